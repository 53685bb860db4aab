"""Writes the tensors of a public PyTorch generator of BigBiGAN under our names: see scripts/import-bigbigan."""

import ctypes
import hashlib
import json
import pathlib
import re
import struct
import sys
import warnings

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # which nothing here needs
import torch  # noqa: E402 (after that)

OUR_EPS = 1e-4  # g.bn_eps: of every batch norm of ours
BLOCKS = 5  # of 128 px


def fail(problem):
    sys.exit(f"import-bigbigan: {problem}")


class Source:
    """The file's tensors; each is to be asked for once."""

    def __init__(self, path):
        try:
            # Never as a pickle of anything but tensors.
            self.tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            fail(f"{path}: no file of tensors alone: {error}")
        if not isinstance(self.tensors, dict):
            fail(f"{path}: holds no table of tensors")
        self.asked = set()

    def get(self, name, *shape):
        tensor = self.tensors.get(name)
        if not isinstance(tensor, torch.Tensor):
            fail(f"no tensor {name}: this is no generator of that form")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex():
            fail(f"{name} is no plain tensor of numbers")
        if tensor.shape != torch.Size(shape):
            fail(f"{name} is {list(tensor.shape)}, and {list(shape)} is expected")
        if not torch.isfinite(tensor).all():
            fail(f"{name} holds values that are not finite")
        self.asked.add(name)
        return tensor.double()

    def variance(self, name, size):
        tensor = self.get(name, size)
        if (tensor < 0).any():
            fail(f"{name} holds a negative variance")
        return tensor

    def normed(self, name, *shape):
        """W/sigma: sigma by one step of the power iteration from the stored vector, as their evaluation does."""
        weight = self.get(f"{name}.weight", *shape)
        matrix = weight.reshape(shape[0], -1)
        right = torch.nn.functional.normalize(self.get(f"{name}.u0", 1, shape[0]) @ matrix, eps=OUR_EPS)
        left = torch.nn.functional.normalize(right @ matrix.T, eps=OUR_EPS)
        self.asked.add(f"{name}.sv0")
        sigma = (right @ matrix.T @ left.T).squeeze()
        if not sigma > 0:
            fail(f"{name}.weight: its largest singular value is {sigma:.1g} by {name}.u0: nothing can be divided by it")
        return weight / sigma

    def check_all_asked(self):
        left = [name for name in self.tensors if name not in self.asked and not name.endswith("accumulation_counter")]
        if left:
            fail(f"tensors that this script does not know: {', '.join(sorted(left)[:5])}")


def convert(source, last_eps):
    """Our names to tensors, and the sizes: width multiplier, chunk of z, width of the embedding."""
    first, shared = source.tensors.get("linear.weight"), source.tensors.get("shared.weight")
    if not all(isinstance(t, torch.Tensor) and t.dim() == 2 and t.numel() for t in (first, shared)):
        fail("no linear.weight and shared.weight: this is no generator of that form")
    blocks = {int(match[1]) for name in source.tensors if (match := re.match(r"blocks\.(\d+)\.0\.", name))}
    if blocks != set(range(BLOCKS)) or first.shape[0] % 256:
        fail(f"{len(blocks)} blocks: this is no generator of 128 px")
    ch, chunk, width = first.shape[0] // 256, first.shape[1], shared.shape[1]
    channels = [16 * ch, 16 * ch, 8 * ch, 4 * ch, 2 * ch, ch]
    rows = source.get("shared.weight", shared.shape[0], width)
    if not torch.equal(rows, rows[:1].expand_as(rows)):
        fail("shared.weight: its rows differ, as those of classes do: this is a BigGAN")
    ours = {
        "embedding": rows[:1],
        "first.weight": source.normed("linear", 16 * channels[0], chunk),
        "first.bias": source.get("linear.bias", 16 * channels[0]),
    }
    for i in range(BLOCKS):
        low, high = channels[i : i + 2]
        theirs, own = f"blocks.{i}.0", f"block{i}"
        for number, size in ((1, low), (2, high)):
            norm = f"{own}.norm{number}"
            for part, name in (("gain", "gain"), ("bias", "shift")):
                weight = source.normed(f"{theirs}.bn{number}.{part}", size, width + chunk)
                # There the embedding comes first, here z does.
                ours[f"{norm}.{name}.weight"] = torch.cat([weight[:, width:], weight[:, :width]], 1)
            ours[f"{norm}.bn.mean"] = source.get(f"{theirs}.bn{number}.stored_mean", size)
            ours[f"{norm}.bn.var"] = source.variance(f"{theirs}.bn{number}.stored_var", size)
        for part, name, cin, kernel in (("conv1", "conv1", low, 3), ("conv2", "conv2", high, 3), ("conv_sc", "shortcut", low, 1)):
            ours[f"{own}.{name}.weight"] = source.normed(f"{theirs}.{part}", high, cin, kernel, kernel)
            ours[f"{own}.{name}.bias"] = source.get(f"{theirs}.{part}.bias", high)
    at = channels[4]  # of the 64 px map
    for part, cout, cin in (("theta", at // 8, at), ("phi", at // 8, at), ("g", at // 2, at), ("o", at, at // 2)):
        ours[f"block3.attention.{part}.weight"] = source.normed(f"blocks.3.1.{part}", cout, cin, 1, 1)
    ours["block3.attention.gamma"] = source.get("blocks.3.1.gamma")
    ours["norm.gain"] = source.get("output_layer.0.gain", ch)
    ours["norm.shift"] = source.get("output_layer.0.bias", ch)
    ours["norm.mean"] = source.get("output_layer.0.stored_mean", ch)
    # Ours adds another epsilon: the sum is what counts.
    ours["norm.var"] = source.variance("output_layer.0.stored_var", ch) + (last_eps - OUR_EPS)
    ours["last.weight"] = source.normed("output_layer.2", 3, ch, 3, 3)
    ours["last.bias"] = source.get("output_layer.2.bias", 3)
    source.check_all_asked()
    return ours, (ch, chunk, width)


def write(path, tensors, note):
    header, data = {"__metadata__": dict(sorted(note.items()))}, []
    at = 0
    for name in sorted(tensors):
        tensor = tensors[name].float().contiguous()
        raw = ctypes.string_at(tensor.data_ptr(), tensor.nbytes)  # .numpy() would need NumPy
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
        data.append(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_suffix(".part")
    try:
        part.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def main():
    path, out, last_eps = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
    if last_eps not in ("1e-4", "1e-5"):
        fail(f"--last-eps {last_eps}: 1e-4 as in the released graph, or 1e-5 as in the programs that load the file")
    if not path.is_file():
        fail(f"{path}: no such file")
    if out.exists() and not out.is_dir():
        fail(f"{out}: is no folder")
    if out.exists() and any(out.iterdir()):
        fail(f"{out}: is not empty; name a new folder")
    tensors, (ch, chunk, width) = convert(Source(path), float(last_eps))
    config = f"""\
[latent]
dim = {(BLOCKS + 1) * chunk}
chunk = {chunk}

[g]
ch = {ch}
shared_dim = {width}

[loss]
sxz = false
sz = false
"""
    source = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    note = {
        "format": "bigbigan 1",
        "step": "0",
        "weights": "average, spectral norms folded in",
        "input": "z (N, Z)",
        "output": "images (N, 3, R_G, R_G), RGB in [-1, 1]",
        "config": config,
        "imported": f"{source['file']}, SHA-256 {source['sha256']}, last epsilon {last_eps}",
    }
    model = out / "generator.safetensors"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write(model, tensors, note)
    except OSError as error:
        fail(f"{model}: {error}")
    about = {"step": 0, "checkpoint": None, "imported": source, "last_eps": float(last_eps)}
    about["files"] = {model.name: hashlib.sha256(model.read_bytes()).hexdigest()}
    (out / "export.json").write_text(json.dumps(about, indent=2) + "\n")
    numbers = sum(tensor.numel() for tensor in tensors.values())
    print(f"{model}: {numbers} numbers, width {ch}, of {path.name}; the encoder is published nowhere")


main()

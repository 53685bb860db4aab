"""Writes generator.onnx and encoder.onnx beside an exported model's TorchScript: see scripts/export-onnx."""

import json
import pathlib
import sys
import warnings

warnings.filterwarnings("ignore")  # of the exporter, about its successor, which takes no TorchScript
import onnxruntime  # noqa: E402 (after that)
import torch  # noqa: E402
from torch.onnx import register_custom_op_symbolic, symbolic_helper  # noqa: E402

OPSET = 17
OFF = 1e-3  # most that an output may differ from PyTorch's, relative to its largest


def plain_batch_norm(g, x, weight, bias, mean, var, training, momentum, eps, cudnn):
    """One by stored statistics; PyTorch's own wants the number of channels where there is no weight."""
    if symbolic_helper._get_const(training, "b", "training"):
        raise ValueError("a batch norm over batches is no part of an exported model")
    eps = symbolic_helper._get_const(eps, "f", "eps")
    rank = 2 if symbolic_helper._get_tensor_rank(x) == 2 else 4
    shape = g.op("Constant", value_t=torch.tensor([1, -1, 1, 1] if rank == 4 else [1, -1]))

    def spread(tensor):
        return g.op("Reshape", tensor, shape)

    deviation = g.op("Sqrt", g.op("Add", var, g.op("Constant", value_t=torch.tensor(eps))))
    y = g.op("Div", g.op("Sub", x, spread(mean)), spread(deviation))
    if not symbolic_helper._is_none(weight):
        y = g.op("Mul", y, spread(weight))
    return y if symbolic_helper._is_none(bias) else g.op("Add", y, spread(bias))


register_custom_op_symbolic("aten::batch_norm", plain_batch_norm, OPSET)


class Outputs(torch.nn.Module):
    """The dictionary of an encoder as a tuple, without the draw, which ONNX has no seed for."""

    NAMES = ["z_mean", "z_stdev", "avepool_feat", "bn_crelu_feat"]

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        said: dict[str, torch.Tensor] = self.encoder(x)
        return said["z_mean"], said["z_stdev"], said["avepool_feat"], said["bn_crelu_feat"]


def export(model, example, names, path):
    (entry, outputs), batch = names, {0: "n"}
    part = path.with_suffix(".onnx.part")
    torch.onnx.export(
        model,
        (example,),
        str(part),
        dynamo=False,
        opset_version=OPSET,
        input_names=[entry],
        output_names=outputs,
        dynamic_axes={name: batch for name in [entry, *outputs]},
    )
    # Of another number of rows than it was made with.
    x = torch.cat([example, example.flip(0), -example])
    with torch.no_grad():
        expected = model(x)
    expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
    session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
    found = session.run(None, {entry: x.numpy()})
    worst = 0.0
    for name, theirs, ours in zip(outputs, found, expected, strict=True):
        off = (torch.from_numpy(theirs) - ours).abs().max() / ours.abs().max().clamp_min(1e-6)
        if not off <= OFF:
            part.unlink()
            sys.exit(f"export-onnx: {path.name}: {name} differs by {off:.1e} from PyTorch's: not written")
        worst = max(worst, off.item())
    part.rename(path)
    print(f"{path}: onnxruntime and PyTorch differ by {worst:.0e}")


def main():
    folder = pathlib.Path(sys.argv[1])
    script = folder / "generator.pt"
    if not script.is_file():
        sys.exit(f"export-onnx: {folder}: no generator.pt in it; name a folder that trainer export wrote")
    torch.manual_seed(0)
    generator = torch.jit.load(script, map_location="cpu").eval()
    weights = dict(generator.named_parameters())
    blocks = len({name.split(".")[0] for name in weights if name.startswith("block")})
    latents = (blocks + 1) * weights["first.weight"].shape[1]
    export(generator, torch.randn(2, latents), ("z", ["images"]), folder / "generator.onnx")
    script = folder / "encoder.pt"
    if script.is_file():
        note = {"bigbigan.json": ""}
        encoder = torch.jit.load(script, map_location="cpu", _extra_files=note).eval()
        side = side_of(json.loads(note["bigbigan.json"])["config"])
        model = torch.jit.script(Outputs(encoder)).eval()
        export(model, torch.rand(2, 3, side, side) * 2 - 1, ("x", Outputs.NAMES), folder / "encoder.onnx")


def side_of(config):
    """`res` of the table [e]."""
    import tomllib

    return tomllib.loads(config)["e"]["res"]


main()

"""Makes resize.json (Pillow's resizers on hashed images, as digests), extractor.pt (a small TorchScript extractor with
the signature of NVIDIA's Inception) and extractors.json (features of it and of EfficientNet-Lite0 with hashed
weights), for `trainer/src/eval`."""

import hashlib
import io
import math
import pathlib
import zipfile

import numpy as np
import torch
import torch.nn.functional as F
from make import fnv, hashed, sketch, splitmix, write
from PIL import Image


def bytes_of(name, *shape):
    return torch.floor((hashed(name, shape) + 1) * 128).to(torch.uint8)


def resize():
    cases = []
    for number in range(200):
        draw = lambda what, span: splitmix(fnv(f"{what}{number}")) % span
        size, side = 1 + draw("size", 120), 1 + draw("side", 90)
        if number % 20 == 0:
            size, side = 32, 299
        planes = bytes_of(f"picture{number}", 1, 3, size, size)[0].permute(1, 2, 0).numpy()
        image = Image.fromarray(np.ascontiguousarray(planes))
        case = {"size": size, "side": side}
        for name, filter in (("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)):
            out = np.asarray(image.resize((side, side), filter)).transpose(2, 0, 1)
            case[name] = hashlib.sha256(np.ascontiguousarray(out).tobytes()).hexdigest()[:12]
        cases.append(case)
    return cases


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 5, 3)
        self.output = torch.nn.Linear(8, 6)
        for name, p in self.named_parameters():
            p.data = hashed(name, tuple(p.shape)).float()

    def forward(self, img, return_features: bool = False):
        x = self.conv(img.to(torch.float32) / 255).relu().mean((2, 3))
        if return_features:
            return x
        return self.output(x).softmax(1)


def save(module, path):
    """Without the debugging files, which hold paths of this machine."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry))


def lite0(x):
    """Tan & Le 2019, "lite": ReLU6, TensorFlow's padding; batch norms folded into hashed weights."""
    def conv(name, x, cout, k, stride=1, groups=1):
        shape = (cout, x.shape[1] // groups, k, k)
        weight = hashed(f"{name}.weight", shape) * math.sqrt(6 / math.prod(shape[1:]))
        pad = max((math.ceil(x.shape[-1] / stride) - 1) * stride + k - x.shape[-1], 0)
        x = F.pad(x, [pad // 2, pad - pad // 2] * 2)
        return F.conv2d(x, weight, hashed(f"{name}.bias", (cout,)) * 0.2, stride, groups=groups)

    x = F.relu6(conv("stem", (x.double() - 127) / 128, 32, 3, 2))
    i = 0
    for k, stride, expansion, cout, count in (
        (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
        (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1),
    ):
        for block in range(count):
            h, mid, s = x, x.shape[1] * expansion, stride if block == 0 else 1
            if expansion > 1:
                h = F.relu6(conv(f"blocks.{i}.expand", h, mid, 1))
            h = F.relu6(conv(f"blocks.{i}.depthwise", h, mid, k, s, mid))
            h = conv(f"blocks.{i}.project", h, cout, 1)
            x = x + h if s == 1 and x.shape[1] == cout else h
            i += 1
    features = F.relu6(conv("head", x, 1280, 1)).mean((2, 3))
    weight = hashed("classifier.weight", (1000, 1280)) * math.sqrt(6 / 1280)
    return features, features @ weight.T + hashed("classifier.bias", (1000,)) * 0.2


if __name__ == "__main__":
    write("resize", resize())
    module = Small()
    save(module, pathlib.Path(__file__).parent / "extractor.pt")
    features = module(bytes_of("script", 2, 3, 20, 20), True)
    probabilities = (features.double() @ module.output.weight.double().T).softmax(1)
    lite, classes = lite0(bytes_of("lite0", 2, 3, 224, 224))
    write("extractors", {
        "script": sketch(features), "script_probabilities": sketch(probabilities),
        "lite0": sketch(lite), "lite0_classes": sketch(classes),
    })

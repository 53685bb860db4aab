"""Writes inception.pt and inception.json into a folder: the Inception graph of 2015 with random weights, as TorchScript
with the signature of NVIDIA's translation, and its features of hashed images. 95 MB, so made by the test that
needs it (`trainer/src/eval/extractor.rs`) and not kept."""

import json
import pathlib
import sys

sys.dont_write_bytecode = True
import torch
import torch.nn as nn
import torch.nn.functional as F
from make import hashed, sketch

torch.set_default_dtype(torch.float32)


class Conv(nn.Module):
    def __init__(self, cin, cout, k, stride=1, pad=0):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, k, stride, pad, bias=False)
        self.norm = nn.BatchNorm2d(cout, eps=1e-3)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


class Pool(nn.Module):
    """3x3, side kept; a mean does not count the padding, as in the graph of 2015."""
    def __init__(self, largest: bool):
        super().__init__()
        self.largest = largest

    def forward(self, x):
        if self.largest:
            return F.max_pool2d(x, 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Cat(nn.Module):
    """Branches side by side."""
    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        parts = []
        for branch in self.branches:
            parts.append(branch(x))
        return torch.cat(parts, 1)


def chain(cin, *convs):
    layers = []
    for cout, k, *rest in convs:
        pad = rest[1] if len(rest) > 1 else ((k[0] // 2, k[1] // 2) if isinstance(k, tuple) else k // 2)
        layers.append(Conv(cin, cout, k, rest[0] if rest else 1, pad))
        cin = cout
    return nn.Sequential(*layers)


def a(cin, pool):
    return Cat(
        chain(cin, (64, 1)), chain(cin, (48, 1), (64, 5)), chain(cin, (64, 1), (96, 3), (96, 3)),
        nn.Sequential(Pool(False), Conv(cin, pool, 1)),
    )


def c(mid):
    row, column = (1, 7), (7, 1)
    return Cat(
        chain(768, (192, 1)), chain(768, (mid, 1), (mid, row), (192, column)),
        chain(768, (mid, 1), (mid, column), (mid, row), (mid, column), (192, row)),
        nn.Sequential(Pool(False), Conv(768, 192, 1)),
    )


def e(cin, largest):
    split = lambda cin: Cat(chain(cin, (384, (1, 3))), chain(cin, (384, (3, 1))))
    return Cat(
        chain(cin, (320, 1)), nn.Sequential(Conv(cin, 384, 1), split(384)),
        nn.Sequential(chain(cin, (448, 1), (384, 3)), split(384)),
        nn.Sequential(Pool(largest), Conv(cin, 192, 1)),
    )


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        halve = lambda: nn.MaxPool2d(3, 2)
        self.layers = nn.Sequential(
            Conv(3, 32, 3, 2), Conv(32, 32, 3), Conv(32, 64, 3, 1, 1), halve(),
            Conv(64, 80, 1), Conv(80, 192, 3), halve(),
            a(192, 32), a(256, 64), a(288, 64),
            Cat(chain(288, (384, 3, 2, 0)), chain(288, (64, 1), (96, 3), (96, 3, 2, 0)), halve()),
            c(128), c(160), c(160), c(192),
            Cat(
                chain(768, (192, 1), (320, 3, 2, 0)),
                chain(768, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2, 0)), halve(),
            ),
            e(1280, False), e(2048, True),
        )
        self.output = nn.Linear(2048, 1008)

    def forward(self, img, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False):
        x = img.to(torch.float32)
        at = torch.arange(299, device=x.device) * (x.shape[3] / 299)
        low = at.floor().long()
        high = (low + 1).clamp(max=x.shape[3] - 1)
        share = (at - low).to(torch.float32)
        x = x[:, :, :, low] + (x[:, :, :, high] - x[:, :, :, low]) * share
        share = share[:, None]
        x = x[:, :, low] + (x[:, :, high] - x[:, :, low]) * share
        x = self.layers((x - 128) / 128).mean((2, 3))
        if return_features:
            return x
        scores = F.linear(x, self.output.weight) if no_output_bias else self.output(x)
        return scores.softmax(1)


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Inception().eval()
    parameters = sum(p.numel() for p in net.parameters())
    # torchvision's network (23,834,568 without its auxiliary head) with eight more classes.
    assert parameters == 23_834_568 + 8 * 2049, parameters
    torch.jit.save(torch.jit.script(net), folder / "inception.pt")
    images = torch.floor((hashed("inception", (2, 3, 32, 32)) + 1) * 128).to(torch.uint8)
    with torch.no_grad():
        out = {"features": sketch(net(images, True)), "probabilities": sketch(net(images, no_output_bias=True))}
    (folder / "inception.json").write_text(json.dumps(out))

"""Seconds of a step of the `demo` model in plain, eager PyTorch: the peer of `--bench step`.

The same layers, sizes, losses and update order as the trainer's `demo` preset, written the usual way:
spectral norm in every forward pass, one Adam a network over all its tensors. Run it with the virtual
environment's Python; it prints one JSON object on its last line.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as sn


class ConditionalNorm(nn.Module):
    def __init__(self, channels, condition):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=1e-4, affine=False)
        self.gain = sn(nn.Linear(condition, channels, bias=False))
        self.shift = sn(nn.Linear(condition, channels, bias=False))

    def forward(self, x, c):
        spread = lambda t: t[:, :, None, None]
        return self.norm(x) * (1 + spread(self.gain(c))) + spread(self.shift(c))


class GBlock(nn.Module):
    def __init__(self, cin, cout, condition):
        super().__init__()
        self.norm1, self.norm2 = ConditionalNorm(cin, condition), ConditionalNorm(cout, condition)
        self.conv1, self.conv2 = sn(nn.Conv2d(cin, cout, 3, 1, 1)), sn(nn.Conv2d(cout, cout, 3, 1, 1))
        self.shortcut = sn(nn.Conv2d(cin, cout, 1))

    def forward(self, x, c):
        up = lambda t: F.interpolate(t, scale_factor=2)
        h = self.conv1(up(F.relu(self.norm1(x, c))))
        return self.conv2(F.relu(self.norm2(h, c))) + self.shortcut(up(x))


class Generator(nn.Module):
    def __init__(self, ch=16, chunk=20, shared=16):
        super().__init__()
        self.chunk, self.ch = chunk, ch
        self.embedding = nn.Parameter(torch.randn(1, shared))
        self.first = sn(nn.Linear(chunk, 4 * ch * 16))
        widths = [4 * ch, 2 * ch, ch]
        self.blocks = nn.ModuleList(GBlock(a, b, chunk + shared) for a, b in zip(widths, widths[1:]))
        self.norm = nn.BatchNorm2d(ch, eps=1e-4)
        self.last = sn(nn.Conv2d(ch, 3, 3, 1, 1))

    def forward(self, z):
        z, e = z.split(self.chunk, 1), self.embedding.expand(len(z), -1)
        x = self.first(z[0]).view(-1, 4 * self.ch, 4, 4)
        for block, chunk in zip(self.blocks, z[1:]):
            x = block(x, torch.cat([chunk, e], 1))
        return torch.tanh(self.last(F.relu(self.norm(x))))


class DBlock(nn.Module):
    def __init__(self, cin, cout, first, halves):
        super().__init__()
        self.conv1, self.conv2 = sn(nn.Conv2d(cin, cout, 3, 1, 1)), sn(nn.Conv2d(cout, cout, 3, 1, 1))
        self.shortcut = sn(nn.Conv2d(cin, cout, 1)) if cin != cout or halves else nn.Identity()
        self.first, self.pool = first, nn.AvgPool2d(2) if halves else nn.Identity()

    def forward(self, x):
        h = x if self.first else F.relu(x)
        return self.pool(self.conv2(F.relu(self.conv1(h)))) + self.pool(self.shortcut(x))


class Mlp(nn.Module):
    def __init__(self, cin, width, layers, norm, end):
        super().__init__()
        widths = [cin] + [width] * (layers // 2)
        make = lambda a, b, bias=True: norm(nn.Linear(a, b, bias=bias))
        self.first = nn.ModuleList(make(a, b) for a, b in zip(widths, widths[1:]))
        self.second = nn.ModuleList(make(b, b) for b in widths[1:])
        self.skip = nn.ModuleList(
            make(a, b, False) if a != b else nn.Identity() for a, b in zip(widths, widths[1:])
        )
        self.end = end

    def forward(self, x):
        for i, (first, second, skip) in enumerate(zip(self.first, self.second, self.skip)):
            x = second(F.relu(first(x if i == 0 else F.relu(x)))) + skip(x)
        return F.relu(x) if self.end else x


class Discriminator(nn.Module):
    def __init__(self, ch=32, z=60, h=128, j=256):
        super().__init__()
        widths = [3, ch, 2 * ch, 4 * ch, 4 * ch]
        self.f = nn.Sequential(
            *(DBlock(a, b, i == 0, i < 2) for i, (a, b) in enumerate(zip(widths, widths[1:])))
        )
        self.h, self.j = Mlp(z, h, 4, sn, True), Mlp(4 * ch + h, j, 4, sn, True)
        self.tx, self.tz, self.txz = (sn(nn.Linear(w, 1)) for w in (4 * ch, h, j))

    def forward(self, x, z):
        f, h = F.relu(self.f(x)).sum((2, 3)), self.h(z)
        return self.txz(self.j(torch.cat([f, h], 1))), self.tx(f), self.tz(h)


class Basic(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        norm = lambda c: nn.BatchNorm2d(c, eps=1e-3, momentum=0.01)
        self.n1, self.n2 = norm(cin), norm(cout)
        self.c1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.c2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(cin, cout, 1, stride, bias=False) if stride > 1 or cin != cout else None

    def forward(self, x):
        h = F.relu(self.n1(x))
        return self.c2(F.relu(self.n2(self.c1(h)))) + (self.skip(h) if self.skip else x)


class Encoder(nn.Module):
    def __init__(self, z=60, width=128):
        super().__init__()
        blocks, cin = [], 32
        for cout in (32, 64, 128):
            blocks += [Basic(cin, cout, 2), Basic(cout, cout, 1)]
            cin = cout
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 32, 3, 1, 1, bias=False), *blocks, nn.BatchNorm2d(128, eps=1e-3, momentum=0.01)
        )
        self.mlp, self.head = Mlp(128, width, 4, lambda m: m, False), nn.Linear(width, 2 * z)

    def forward(self, x):
        mu, s = self.head(self.mlp(F.relu(self.trunk(x)).mean((2, 3)))).chunk(2, 1)
        return mu + torch.randn_like(mu) * F.softplus(s)


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--batch", type=int, default=64)
    args.add_argument("--steps", type=int, default=30)
    args.add_argument("--compile", action="store_true", help="torch.compile: the upper mark")
    args = args.parse_args()
    g, e, d = Generator(), Encoder(), Discriminator()
    adam = lambda net, lr: torch.optim.Adam(net.parameters(), lr=lr, betas=(0.0, 0.999))
    og, oe, od = adam(g, 2e-4), adam(e, 2e-4), adam(d, 8e-4)
    ema = [[p.detach().clone() for p in net.parameters()] for net in (g, e)]
    large = torch.rand(args.batch, 3, 32, 32) * 2 - 1
    small = F.avg_pool2d(large, 2)
    if args.compile:
        g, e, d = torch.compile(g), torch.compile(e), torch.compile(d)

    def step():
        for _ in range(2):
            z = torch.randn(args.batch, 60)
            with torch.no_grad():
                pairs = torch.cat([small, g(z)]), torch.cat([e(large), z])
            loss = sum(
                F.relu(1 - s[: args.batch]).mean() + F.relu(1 + s[args.batch :]).mean() for s in d(*pairs)
            )
            od.zero_grad(set_to_none=True)
            loss.backward()
            od.step()
        z = torch.randn(args.batch, 60)
        d.requires_grad_(False)
        real, fake = d(small, e(large)), d(g(z), z)
        loss = sum(s.mean() for s in real) - sum(s.mean() for s in fake)
        og.zero_grad(set_to_none=True)
        oe.zero_grad(set_to_none=True)
        loss.backward()
        d.requires_grad_(True)
        og.step()
        oe.step()
        for average, net in zip(ema, (g, e)):
            torch._foreach_lerp_(average, [p.detach() for p in net.parameters()], 0.01)

    seconds = []
    for i in range(args.steps + max(args.steps // 10, 1)):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    median = statistics.median(seconds[-args.steps :])
    name = "torch compile" if args.compile else "torch eager"
    print(json.dumps({
        "bench": "step", "peer": name, "batch": args.batch, "threads": torch.get_num_threads(),
        "step_seconds": median, "images_per_s": args.batch / median,
    }))


if __name__ == "__main__":
    main()

"""Seconds of a training step in plain, eager PyTorch: the peer of `cargo bench -p benches --bench step`.

    step_torch.py [--preset demo|cifar10|base|hi_e] [--batch N] [--threads N] [--steps N] [--compile]
                  [--precision f32|tf32|bf16] [--device cpu|cuda] [--channels-last]

Layers, sizes, losses and update order are the trainer's: sizes come from `trainer/presets`, and the number
of parameters of every part must be the one the trainer's tests hold, or this ends with an error. All is
written the usual way: spectral norm in every forward pass, a 1x1 shortcut where the reference codes have it,
one Adam a network over its tensors. `--compile` is the upper mark: torch.compile and the fused Adam.
`--channels-last` lays images and weights of convolutions out so, as the trainer does; `--device cuda` was not
run on a GPU. Random images, a fresh batch for every update of a step. `base` and `hi_e` want `--batch 2` on a CPU.
Run it with the Python of an environment that has the trainer's version of PyTorch; the last line is one JSON
object.
"""

import argparse
import functools
import json
import math
import pathlib
import statistics
import time
import tomllib

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

TRAINER = pathlib.Path(__file__).resolve().parents[2] / "trainer"
COUNTS = "src/snapshots/trainer__inspect__tests__the_parameters_of_every_preset_are_as_they_were.snap"
# By the side of the images: channels in units of `ch` into each block of G and out of the last; channels out
# of each block of D, and how many of those blocks halve the side.
G_WIDTHS = {16: (4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}
D_WIDTHS = {16: ((1, 2, 4, 4), 2), 128: ((1, 2, 4, 8, 16, 16), 5)}


class ConditionalNorm(nn.Module):
    def __init__(self, channels, condition, eps, sn):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=False)
        self.gain = sn(nn.Linear(condition, channels, bias=False))
        self.shift = sn(nn.Linear(condition, channels, bias=False))

    def forward(self, x, c):
        spread = lambda t: t[:, :, None, None]
        return self.norm(x) * (1 + spread(self.gain(c))) + spread(self.shift(c))


class Attention(nn.Module):
    def __init__(self, channels, sn):
        super().__init__()
        conv = lambda a, b: sn(nn.Conv2d(a, b, 1, bias=False))
        self.theta, self.phi = conv(channels, channels // 8), conv(channels, channels // 8)
        self.g, self.o = conv(channels, channels // 2), conv(channels // 2, channels)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        theta = self.theta(x).flatten(2)
        phi, g = (F.max_pool2d(layer(x), 2).flatten(2) for layer in (self.phi, self.g))
        beta = F.softmax(torch.bmm(theta.transpose(1, 2), phi), -1)
        mixed = torch.bmm(g, beta.transpose(1, 2)).view(len(x), -1, *x.shape[2:])
        return x + self.gamma * self.o(mixed)


class GBlock(nn.Module):
    def __init__(self, cin, cout, condition, attends, eps, sn):
        super().__init__()
        self.norm1 = ConditionalNorm(cin, condition, eps, sn)
        self.norm2 = ConditionalNorm(cout, condition, eps, sn)
        self.conv1, self.conv2 = sn(nn.Conv2d(cin, cout, 3, 1, 1)), sn(nn.Conv2d(cout, cout, 3, 1, 1))
        self.shortcut = sn(nn.Conv2d(cin, cout, 1))
        self.attention = Attention(cout, sn) if attends else nn.Identity()

    def forward(self, x, c):
        up = lambda t: F.interpolate(t, scale_factor=2)
        h = self.conv1(up(F.relu(self.norm1(x, c))))
        return self.attention(self.conv2(F.relu(self.norm2(h, c))) + self.shortcut(up(x)))


class Generator(nn.Module):
    def __init__(self, c):
        super().__init__()
        g, self.chunk = c["g"], c["latent"]["chunk"]
        sn = functools.partial(spectral_norm, eps=g["sn_eps"])
        widths = [m * g["ch"] for m in G_WIDTHS[g["res"]]]
        self.embedding = nn.Parameter(torch.randn(1, g["shared_dim"]))
        self.first = sn(nn.Linear(self.chunk, widths[0] * 4 * 4))
        self.blocks = nn.ModuleList(
            GBlock(a, b, self.chunk + g["shared_dim"], 8 << i == g["attn_res"], g["bn_eps"], sn)
            for i, (a, b) in enumerate(zip(widths, widths[1:]))
        )
        self.norm = nn.BatchNorm2d(widths[-1], eps=g["bn_eps"])
        self.last = sn(nn.Conv2d(widths[-1], 3, 3, 1, 1))

    def forward(self, z):
        z, e = z.split(self.chunk, 1), self.embedding.expand(len(z), -1)
        x = self.first(z[0]).view(len(e), -1, 4, 4)
        for block, chunk in zip(self.blocks, z[1:]):
            x = block(x, torch.cat([chunk, e], 1))
        return torch.tanh(self.last(F.relu(self.norm(x))))


class DBlock(nn.Module):
    def __init__(self, cin, cout, first, halves, attends, sn):
        super().__init__()
        self.conv1, self.conv2 = sn(nn.Conv2d(cin, cout, 3, 1, 1)), sn(nn.Conv2d(cout, cout, 3, 1, 1))
        self.shortcut = sn(nn.Conv2d(cin, cout, 1)) if cin != cout or halves else nn.Identity()
        self.first, self.pool = first, nn.AvgPool2d(2) if halves else nn.Identity()
        self.attention = Attention(cout, sn) if attends else nn.Identity()

    def forward(self, x):
        h = self.pool(self.conv2(F.relu(self.conv1(x if self.first else F.relu(x)))))
        skip = self.shortcut(self.pool(x)) if self.first else self.pool(self.shortcut(x))
        return self.attention(h + skip)


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
    def __init__(self, c):
        super().__init__()
        f, h, j = c["f"], c["h"], c["j"]
        sn = functools.partial(spectral_norm, eps=f["sn_eps"])
        multipliers, halvings = D_WIDTHS[f["res"]]
        widths = [3] + [m * f["ch"] for m in multipliers]
        self.f = nn.Sequential(*(
            DBlock(a, b, i == 0, i < halvings, i < halvings and f["res"] >> (i + 1) == f["attn_res"], sn)
            for i, (a, b) in enumerate(zip(widths, widths[1:]))
        ))
        self.h = Mlp(c["latent"]["dim"], h["width"], h["layers"], sn, True)
        self.j = Mlp(widths[-1] + h["width"], j["width"], j["layers"], sn, True)
        self.theta_x, self.theta_z, self.theta_xz = (
            sn(nn.Linear(width, 1)) for width in (widths[-1], h["width"], j["width"])
        )

    def forward(self, x, z):
        f, h = F.relu(self.f(x)).sum((2, 3)), self.h(z)
        return self.theta_xz(self.j(torch.cat([f, h], 1))), self.theta_x(f), self.theta_z(h)


class Residual(nn.Module):
    """A pre-activation block of E; `layers` are (channels out, side of the kernel, stride)."""

    def __init__(self, cin, layers, norm):
        super().__init__()
        conv = lambda a, b, k, stride: nn.Conv2d(a, b, k, stride, k // 2, bias=False)
        outs, stride = [layer[0] for layer in layers], math.prod(layer[2] for layer in layers)
        ins = [cin] + outs[:-1]
        self.norms = nn.ModuleList(norm(a) for a in ins)
        self.convs = nn.ModuleList(conv(a, *layer) for a, layer in zip(ins, layers))
        changes = stride > 1 or cin != outs[-1]
        self.projection = conv(cin, outs[-1], 1, stride) if changes else None

    def forward(self, x):
        h = F.relu(self.norms[0](x))
        skip, h = self.projection(h) if self.projection else x, self.convs[0](h)
        for norm, conv in zip(self.norms[1:], self.convs[1:]):
            h = conv(F.relu(norm(h)))
        return h + skip


class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        e, z = c["e"], c["latent"]["dim"]
        norm = lambda channels: nn.BatchNorm2d(channels, eps=e["bn_eps"], momentum=e["bn_momentum"])
        if e["family"] == "small":  # Basic blocks; every stage halves the side.
            cin, counts, halved = 32 * e["width"], [(e["depth"] - 2) // 6] * 3, 0
            root = [nn.Conv2d(3, cin, 3, 1, 1, bias=False)]
            layers = lambda width, stride: [(width, 3, stride), (width, 3, 1)]
        else:  # Bottlenecks, as ResNet-50-v2 has them.
            assert (e["family"], e["depth"]) == ("resnet_v2", 50)
            cin, counts, halved = 64 * e["width"], [3, 4, 6, 3], 1
            assert e["root_pad"] == "zero"
            root = [nn.Conv2d(3, cin, 7, 2, 3, bias=False), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)]
            layers = lambda width, stride: [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
        first, blocks = cin, []
        for stage, count in enumerate(counts):
            for block in range(count):
                stride = 2 if block == 0 and stage >= halved else 1
                blocks.append(Residual(cin, layers(first << stage, stride), norm))
                cin = blocks[-1].convs[-1].out_channels
        self.trunk = nn.Sequential(*root, *blocks, norm(cin))
        self.mlp = Mlp(cin, e["mlp_width"], e["mlp_layers"], lambda m: m, False)
        self.head = nn.Linear(e["mlp_width"], 2 * z)

    def forward(self, x):
        mu, s = self.head(self.mlp(F.relu(self.trunk(x)).mean((2, 3)))).chunk(2, 1)
        return mu + torch.randn_like(mu) * F.softplus(s)


def preset(name):
    """The trainer's configuration: what `name` changes, over what it extends."""
    changes = tomllib.loads((TRAINER / f"presets/{name}.toml").read_text())
    parent = changes.pop("extends", "base")
    whole = {} if name == "base" else preset(parent)
    return {table: whole.get(table, {}) | changes.get(table, {}) for table in whole | changes}


def check_counts(name, g, e, d):
    """Ends with an error unless every part has the trainer's number of parameters."""
    line = next(l for l in (TRAINER / COUNTS).read_text().splitlines() if l.startswith(name + " "))
    theirs = {part: int(count) for part, count in (pair.split("=") for pair in line.split()[1:])}
    del theirs["checkpoint"]
    parts = {"g": g} | {f"e.{part}": net for part, net in e.named_children()} | dict(d.named_children())
    ours = {part: sum(p.numel() for p in net.parameters()) for part, net in parts.items()}
    assert ours == theirs, f"numbers of parameters of {name}: {ours} here, {theirs} in the trainer"


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--preset", choices=("demo", "cifar10", "base", "hi_e"), default="demo")
    args.add_argument("--batch", type=int, help="images an update [default: the preset's]")
    args.add_argument("--threads", type=int, help="[default: PyTorch's]")
    args.add_argument("--steps", type=int, default=30, help="to time, after a tenth of it to warm up")
    args.add_argument("--precision", choices=("f32", "tf32", "bf16"), help="[default: the preset's]")
    args.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args.add_argument("--channels-last", action="store_true", help="memory of images and convolutions' weights")
    args.add_argument("--compile", action="store_true", help="torch.compile, fused Adam: the upper mark")
    args = args.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    c = preset(args.preset)
    opt, dim, d_steps = c["opt"], c["latent"]["dim"], c["train"]["d_steps"]
    batch, precision = args.batch or c["train"]["batch"], args.precision or c["train"]["precision"]
    bf16 = lambda: torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    g, e, d = Generator(c), Encoder(c), Discriminator(c)
    check_counts(args.preset, g, e, d)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    for net in (g, e, d):
        net.to(args.device, memory_format=layout)
    adam = lambda net, lr: torch.optim.Adam(
        net.parameters(), lr=lr, betas=(opt["beta1"], opt["beta2"]), eps=opt["eps"], fused=args.compile
    )
    og, oe, od = adam(g, opt["lr_g"]), adam(e, opt["lr_g"] * opt["e_lr_mult"]), adam(d, opt["lr_d"])
    ema = [[p.detach().clone() for p in net.parameters()] for net in (g, e)]
    noise = lambda: torch.randn(batch, dim, device=args.device)
    draw = lambda side: (torch.rand(batch, 3, side, side, device=args.device) * 2 - 1).contiguous(memory_format=layout)
    images = [(draw(c["g"]["res"]), draw(c["e"]["res"])) for _ in range(d_steps + 1)]
    if args.compile:
        g, e, d = torch.compile(g), torch.compile(e), torch.compile(d)

    def step():
        for small, large in images[:-1]:
            z = noise()
            with bf16():
                with torch.no_grad():
                    pairs = torch.cat([small, g(z)]), torch.cat([e(large), z])
                loss = sum(
                    F.relu(1 - s[:batch]).mean() + F.relu(1 + s[batch:]).mean() for s in d(*pairs)
                )
            od.zero_grad(set_to_none=True)
            loss.backward()
            od.step()
        (small, large), z = images[-1], noise()
        d.requires_grad_(False)
        with bf16():
            real, fake = d(small, e(large)), d(g(z), z)
            loss = sum(s.mean() for s in real) - sum(s.mean() for s in fake)
        og.zero_grad(set_to_none=True)
        oe.zero_grad(set_to_none=True)
        loss.backward()
        d.requires_grad_(True)
        og.step()
        oe.step()
        for average, net in zip(ema, (g, e)):
            torch._foreach_lerp_(average, [p.detach() for p in net.parameters()], 1 - opt["ema"])
        return loss.item()  # waits for the device

    seconds = []
    for _ in range(args.steps + max(args.steps // 10, 1)):
        begun = time.perf_counter()
        assert math.isfinite(step())
        seconds.append(time.perf_counter() - begun)
    median = statistics.median(seconds[-args.steps :])
    name = "torch compile" if args.compile else "torch eager"
    print(json.dumps({
        "bench": "step", "peer": name, "preset": args.preset, "batch": batch, "precision": precision,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "channels_last": args.channels_last, "torch": torch.__version__, "threads": torch.get_num_threads(),
        "step_seconds": median, "images_per_s": batch / median,
        "peak_bytes": torch.cuda.max_memory_allocated() if args.device == "cuda" else None,
    }))


if __name__ == "__main__":
    main()

"""Makes the golden files of the model from Python's PyTorch: `make golden`.

Every case builds a piece of the model the textbook way in double precision (spectral norm inside the
forward pass, its vectors constant; autograd through everything), fills it by a hash of its parameters'
names, and writes output, loss and gradients as sketches: a tensor's values summed, with hashed signs, into
SKETCH buckets, so that the norm of a difference survives (a count sketch). `trainer/model/src/parity.rs` fills
the Rust model by the same hash and compares.
"""

import json
import math
import pathlib
import sys

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
MASK = (1 << 64) - 1
SKETCH = 32
ITERATIONS = 3


def splitmix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def fnv(name):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def hashed(name, shape):
    """Values in [-1, 1) that depend on name and position alone."""
    seed, count = fnv(name), math.prod(shape)
    values = [(splitmix(seed ^ i) >> 11) * 2.0**-52 - 1.0 for i in range(count)]
    return torch.tensor(values).reshape(shape)


def parameter_value(name, shape):
    h = hashed(name, shape)
    if name.endswith("weight"):
        return h * math.sqrt(3.0 / math.prod(shape[1:]))
    if name.endswith("gain"):
        return 1.0 + 0.2 * h
    return 0.2 * h


def sketch(t):
    values = t.detach().reshape(-1).tolist()
    if len(values) <= SKETCH:
        return values
    out = [0.0] * SKETCH
    for i, value in enumerate(values):
        r = splitmix(i)
        out[r % SKETCH] += value if r >> 63 else -value
    return out


class Net:
    """Named parameters of one case; weights asked for with `sn` come out divided by sigma."""

    def __init__(self):
        self.raw, self.u, self.v = {}, {}, {}

    def p(self, name, *shape):
        if name not in self.raw:
            self.raw[name] = parameter_value(name, shape).requires_grad_()
        return self.raw[name]

    def sn(self, name, *shape, eps=1e-4):
        w = self.p(name, *shape)
        m = w.flatten(1)
        if name not in self.u:
            u = hashed(name + ".u", (shape[0],))
            self.u[name], self.v[name] = u / u.norm(), None
            self.advance(name, ITERATIONS, eps)
        sigma = torch.clamp_min(self.u[name] @ (m @ self.v[name]), eps)
        return w / sigma

    def advance(self, name, times=1, eps=1e-4):
        with torch.no_grad():
            m = self.raw[name].flatten(1)
            for _ in range(times):
                v = m.T @ self.u[name]
                v = v / v.norm().clamp_min(eps)
                u = m @ v
                self.u[name], self.v[name] = u / u.norm().clamp_min(eps), v


class At:
    """A place in a net: prefixes names."""

    def __init__(self, net, prefix=""):
        self.net, self.prefix = net, prefix

    def __truediv__(self, name):
        return At(self.net, f"{self.prefix}{name}.")

    def p(self, name, *shape):
        return self.net.p(self.prefix + name, *shape)

    def sn(self, name, *shape):
        return self.net.sn(self.prefix + name, *shape)


def conv(s, x, cout, k, stride=1, bias=True, sn=True):
    shape = (cout, x.shape[1], k, k)
    w = s.sn("weight", *shape) if sn else s.p("weight", *shape)
    return F.conv2d(x, w, s.p("bias", cout) if bias else None, stride, k // 2)


def linear(s, x, out, bias=True, sn=True):
    shape = (out, x.shape[1])
    w = s.sn("weight", *shape) if sn else s.p("weight", *shape)
    return F.linear(x, w, s.p("bias", out) if bias else None)


def norm(x, eps, gain=None, shift=None):
    return F.batch_norm(x, None, None, gain, shift, True, 0.0, eps)


def affine_norm(s, x, eps):
    return norm(x, eps, s.p("gain", x.shape[1]), s.p("shift", x.shape[1]))


def conditional_norm(s, x, c):
    spread = lambda t: t[:, :, None, None]
    gain = linear(s / "gain", c, x.shape[1], bias=False)
    shift = linear(s / "shift", c, x.shape[1], bias=False)
    return norm(x, 1e-4) * (1 + spread(gain)) + spread(shift)


def up(x):
    return F.interpolate(x, scale_factor=2, mode="nearest")


def g_block(s, x, c, cout):
    h = up(F.relu(conditional_norm(s / "norm1", x, c)))
    h = F.relu(conditional_norm(s / "norm2", conv(s / "conv1", h, cout, 3), c))
    return conv(s / "conv2", h, cout, 3) + conv(s / "shortcut", up(x), cout, 1)


def attention(s, x):
    n, ch, h, w = x.shape
    one = lambda name, x, cout: conv(s / name, x, cout, 1, bias=False)
    theta = one("theta", x, ch // 8).flatten(2)
    phi = F.max_pool2d(one("phi", x, ch // 8), 2).flatten(2)
    g = F.max_pool2d(one("g", x, ch // 2), 2).flatten(2)
    beta = torch.softmax(torch.einsum("bcq,bck->bqk", theta, phi), -1)
    o = torch.einsum("bck,bqk->bcq", g, beta).reshape(n, ch // 2, h, w)
    return x + s.p("gamma") * one("o", o, ch)


def d_block(s, x, cout, first, halves):
    pool = (lambda t: F.avg_pool2d(t, 2)) if halves else (lambda t: t)
    h = x if first else F.relu(x)
    h = conv(s / "conv2", F.relu(conv(s / "conv1", h, cout, 3)), cout, 3)
    skip = conv(s / "shortcut", x, cout, 1) if halves or x.shape[1] != cout else x
    return pool(h) + pool(skip)


def mlp(s, x, layers, width, sn, end):
    for i in range(layers // 2):
        b, r = s / i, x if i == 0 else F.relu(x)
        u = linear(b / "second", F.relu(linear(b / "first", r, width, sn=sn)), width, sn=sn)
        skip = x if x.shape[1] == width else linear(b / "projection", x, width, bias=False, sn=sn)
        x = u + skip
    return F.relu(x) if end else x


def bottleneck(s, x, mid, stride):
    plain = lambda name, x, cout, k, stride=1: conv(s / name, x, cout, k, stride, False, False)
    h = F.relu(affine_norm(s / "norm1", x, 1e-3))
    changes = stride != 1 or x.shape[1] != 4 * mid
    skip = plain("projection", h, 4 * mid, 1, stride) if changes else x
    h = F.relu(affine_norm(s / "norm2", plain("conv1", h, mid, 1), 1e-3))
    h = F.relu(affine_norm(s / "norm3", plain("conv2", h, mid, 3, stride), 1e-3))
    return plain("conv3", h, 4 * mid, 1) + skip


def reversible(s, x):
    x1, x2 = x.chunk(2, 1)
    mid, h = x.shape[1] // 8, x2
    for i, (cout, k) in enumerate([(mid, 1), (mid, 3), (x2.shape[1], 1)], 1):
        h = conv(s / f"conv{i}", F.relu(affine_norm(s / f"norm{i}", h, 1e-3)), cout, k, 1, False, False)
    return torch.cat([x2, x1 + h], 1)


def basic(s, x, cout, stride):
    plain = lambda name, x, k, stride: conv(s / name, x, cout, k, stride, False, False)
    h = F.relu(affine_norm(s / "norm1", x, 1e-3))
    skip = plain("projection", h, 1, stride) if stride != 1 or x.shape[1] != cout else x
    h = F.relu(affine_norm(s / "norm2", plain("conv1", h, 3, stride), 1e-3))
    return plain("conv2", h, 3, 1) + skip


def generator(s, z, ch, chunk, shared, attend):
    z, e = z.split(chunk, 1), s.p("embedding", 1, shared).expand(len(z), -1)
    x = linear(s / "first", z[0], 4 * ch * 16).reshape(-1, 4 * ch, 4, 4)
    for i, cout in enumerate((2 * ch, ch)):
        b = s / f"block{i}"
        x = g_block(b, x, torch.cat([z[i + 1], e], 1), cout)
        if x.shape[-1] == attend:
            x = attention(b / "attention", x)
    return torch.tanh(conv(s / "last", F.relu(affine_norm(s / "norm", x, 1e-4)), 3, 3))


def encoder(s, x, depth, mlp_width, z):
    t = s / "trunk"
    x = conv(t / "root", x, 32, 3, 1, False, False)
    for stage, cout in enumerate((32, 64, 128), 1):
        for block in range((depth - 2) // 6):
            x = basic(t / f"stage{stage}" / block, x, cout, 2 if block == 0 else 1)
    a = F.relu(affine_norm(t / "end", x, 1e-3)).mean((2, 3))
    out = linear(s / "head", mlp(s / "mlp", a, 4, mlp_width, False, False), 2 * z, sn=False)
    mu, raw = out.chunk(2, 1)
    return mu, F.softplus(raw)


def discriminator(s, x, z, ch, layers, h_width, j_width, attend):
    f, side = s / "f", x.shape[-1]
    for i, m in enumerate((1, 2, 4, 4)):
        x = d_block(f / f"block{i}", x, m * ch, i == 0, i < 2)
        if i < 2 and x.shape[-1] == attend:
            x = attention(f / f"block{i}" / "attention", x)
    f = F.relu(x).sum((2, 3))
    h = mlp(s / "h", z, layers, h_width, True, True)
    j = mlp(s / "j", torch.cat([f, h], 1), layers, j_width, True, True)
    score = lambda name, x: linear(s / name, x, 1).squeeze(1)
    return score("theta_xz", j), score("theta_x", f), score("theta_z", h)


def case(name, inputs, forward):
    net = Net()
    x = {k: hashed(f"input.{k}", shape).requires_grad_() for k, shape in inputs.items()}
    out = forward(At(net), *x.values())
    loss = (out * hashed("direction", tuple(out.shape))).sum()
    grads = torch.autograd.grad(loss, list(x.values()) + list(net.raw.values()))
    return {
        "out": sketch(out),
        "inputs": {k: sketch(g) for k, g in zip(x, grads)},
        "parameters": {k: sketch(g) for k, g in zip(net.raw, grads[len(x):])},
    }


def blocks():
    z, t = 60, 20
    return {
        "conditional_norm": case("conditional_norm", {"x": (4, 8, 3, 3), "c": (4, 5)}, conditional_norm),
        "g_block": case("g_block", {"x": (3, 8, 4, 4), "c": (3, 5)}, lambda s, x, c: g_block(s, x, c, 4)),
        "attention": case("attention", {"x": (2, 16, 8, 8)}, attention),
        "d_block_first": case("d_block", {"x": (2, 3, 8, 8)}, lambda s, x: d_block(s, x, 8, True, True)),
        "d_block": case("d_block", {"x": (2, 4, 8, 8)}, lambda s, x: d_block(s, x, 8, False, True)),
        "d_block_last": case("d_block", {"x": (2, 8, 4, 4)}, lambda s, x: d_block(s, x, 8, False, False)),
        "mlp_discriminating": case("mlp", {"x": (5, 7)}, lambda s, x: mlp(s, x, 4, 12, True, True)),
        "mlp_encoding": case("mlp", {"x": (5, 7)}, lambda s, x: mlp(s, x, 4, 12, False, False)),
        "bottleneck": case("bottleneck", {"x": (3, 16, 6, 6)}, lambda s, x: bottleneck(s, x, 4, 1)),
        "bottleneck_strided": case(
            "bottleneck", {"x": (3, 16, 6, 6)}, lambda s, x: bottleneck(s, x, 8, 2)
        ),
        "reversible": case("reversible", {"x": (3, 16, 5, 5)}, reversible),
        "basic": case("basic", {"x": (3, 8, 6, 6)}, lambda s, x: basic(s, x, 12, 2)),
        "generator": case(
            "generator", {"z": (3, z)}, lambda s, z: generator(s, z, 8, t, 6, 16)
        ),
    }


class Adam:
    def __init__(self, net, lr):
        self.net, self.lr, self.t, self.v = net, lr, 0, {}

    def step(self, grads):
        self.t += 1
        for (name, w), g in zip(self.net.raw.items(), grads):
            v = self.v[name] = 0.999 * self.v.get(name, torch.zeros_like(w)) + 0.001 * g * g
            with torch.no_grad():
                w -= self.lr * g / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)
        for name in self.net.u:
            self.net.advance(name)


def whole_step():
    """Two updates of D and one of G and E, as the paper orders them; batch 4."""
    z, batch = 60, 4
    nets = {name: Net() for name in "ged"}
    make_g = lambda z: generator(At(nets["g"]), z, 4, 20, 16, 0)
    make_e = lambda x: encoder(At(nets["e"]), x, 8, 16, z)
    make_d = lambda x, z: discriminator(At(nets["d"]), x, z, 8, 4, 16, 16, 8)
    draw = lambda kind, update, *shape: hashed(f"{kind}.{update}", shape)
    images = lambda update: torch.tanh(draw("images", update, batch, 3, 32, 32) * 2)
    adams, losses = None, {}
    for update in range(3):
        large = images(update)
        small = F.avg_pool2d(large, 2)
        prior, noise = draw("prior", update, batch, z), draw("noise", update, batch, z) * 2
        mu, sigma = make_e(large)
        encoded, generated = mu + noise * sigma, make_g(prior)
        if update < 2:
            real = make_d(small, encoded.detach())
            fake = make_d(generated.detach(), prior)
        else:
            real, fake = make_d(small, encoded), make_d(generated, prior)
        if adams is None:
            rates = {"g": 2e-4, "e": 2e-4, "d": 8e-4}
            adams = {name: Adam(nets[name], rates[name]) for name in nets}
        if update < 2:
            loss = sum(F.relu(1 - s).mean() for s in real) + sum(F.relu(1 + s).mean() for s in fake)
            adams["d"].step(torch.autograd.grad(loss, list(nets["d"].raw.values())))
            losses[f"d{update}"] = loss.item()
        else:
            loss_e, loss_g = sum(s.mean() for s in real), -sum(s.mean() for s in fake)
            both = list(nets["g"].raw.values()) + list(nets["e"].raw.values())
            grads = torch.autograd.grad(loss_e + loss_g, both)
            adams["g"].step(grads[: len(nets["g"].raw)])
            adams["e"].step(grads[len(nets["g"].raw) :])
            losses |= {"e": loss_e.item(), "g": loss_g.item()}
    weights = {
        name: {k: sketch(w) for k, w in net.raw.items()} for name, net in nets.items()
    }
    return {"losses": losses, "weights": weights}


def write(name, value):
    path = pathlib.Path(__file__).parent / f"{name}.json"
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n")
    print(f"{path}: {path.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("blocks", blocks())
    write("step", whole_step())

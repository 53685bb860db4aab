"""Writes a generator as BigBiGAN_x1.pth holds one, small and with random weights, and what it makes of some latents.

    weights.py FILE.pth FILE.pt

The second file is a table of z (N, Z) and, by the formulas of the public programs that load such files, images
(N, 3, 128, 128) with both epsilons of the last batch norm."""

import sys

import torch
from torch.nn import functional as F

torch.manual_seed(3)
CH, CHUNK, WIDTH, CLASSES = 8, 4, 6, 10
CHANNELS = [16 * CH, 16 * CH, 8 * CH, 4 * CH, 2 * CH, CH]
tensors = {}


def weight(name, *shape, bias=True):
    tensors[f"{name}.weight"] = torch.randn(shape) / torch.tensor(shape[1:]).prod().sqrt()
    tensors[f"{name}.u0"] = torch.randn(1, shape[0])
    tensors[f"{name}.sv0"] = torch.rand(1)  # is for logs, and not used
    if bias:
        tensors[f"{name}.bias"] = 0.1 * torch.randn(shape[0])


def norm(name, size):
    tensors[f"{name}.stored_mean"] = 0.1 * torch.randn(size)
    tensors[f"{name}.stored_var"] = torch.rand(size) + 0.5


tensors["shared.weight"] = torch.randn(1, WIDTH).repeat(CLASSES, 1)
weight("linear", 16 * CHANNELS[0], CHUNK)
for i in range(5):
    low, high = CHANNELS[i : i + 2]
    for n, size in ((1, low), (2, high)):
        norm(f"blocks.{i}.0.bn{n}", size)
        for part in ("gain", "bias"):
            weight(f"blocks.{i}.0.bn{n}.{part}", size, WIDTH + CHUNK, bias=False)
    weight(f"blocks.{i}.0.conv1", high, low, 3, 3)
    weight(f"blocks.{i}.0.conv2", high, high, 3, 3)
    weight(f"blocks.{i}.0.conv_sc", high, low, 1, 1)
at = CHANNELS[4]
for part, cout, cin in (("theta", at // 8, at), ("phi", at // 8, at), ("g", at // 2, at), ("o", at, at // 2)):
    weight(f"blocks.3.1.{part}", cout, cin, 1, 1, bias=False)
tensors["blocks.3.1.gamma"] = torch.tensor(0.7)
tensors["output_layer.0.gain"] = 0.1 * torch.rand(CH)
tensors["output_layer.0.bias"] = 0.1 * torch.randn(CH)
norm("output_layer.0", CH)
tensors["output_layer.0.stored_var"] *= 1e-3  # so small that the epsilon counts
weight("output_layer.2", 3, CH, 3, 3)
torch.save(tensors, sys.argv[1])

double = {name: tensor.double() for name, tensor in tensors.items()}


def normed(name):
    w = double[f"{name}.weight"]
    matrix = w.flatten(1)
    v = F.normalize(double[f"{name}.u0"] @ matrix, eps=1e-4)
    u = F.normalize(v @ matrix.T, eps=1e-4)
    return w / (v @ matrix.T @ u.T).squeeze()


def conv(name, x, padding):
    return F.conv2d(x, normed(name), double.get(f"{name}.bias"), padding=padding)


def conditional(name, x, y):
    gain, bias = (F.linear(y, normed(f"{name}.{part}"))[:, :, None, None] for part in ("gain", "bias"))
    mean, var = double[f"{name}.stored_mean"], double[f"{name}.stored_var"]
    return F.batch_norm(x, mean, var, None, None, False, 0.1, 1e-4) * (1 + gain) + bias


def attend(name, x):
    n, c, h, w = x.shape
    theta = conv(f"{name}.theta", x, 0).view(n, c // 8, h * w)
    phi = F.max_pool2d(conv(f"{name}.phi", x, 0), 2).view(n, c // 8, h * w // 4)
    g = F.max_pool2d(conv(f"{name}.g", x, 0), 2).view(n, c // 2, h * w // 4)
    beta = (theta.transpose(1, 2) @ phi).softmax(-1)
    o = conv(f"{name}.o", (g @ beta.transpose(1, 2)).view(n, c // 2, h, w), 0)
    return double[f"{name}.gamma"] * o + x


def generate(z, last_eps):
    shared = double["shared.weight"][torch.zeros(len(z), dtype=torch.int64)]
    chunks = z.split(CHUNK, 1)
    x = F.linear(chunks[0], normed("linear"), double["linear.bias"]).view(len(z), -1, 4, 4)
    for i in range(5):
        name, y = f"blocks.{i}.0", torch.cat([shared, chunks[i + 1]], 1)
        h = F.interpolate(conditional(f"{name}.bn1", x, y).relu(), scale_factor=2)
        h = conditional(f"{name}.bn2", conv(f"{name}.conv1", h, 1), y).relu()
        x = conv(f"{name}.conv2", h, 1) + conv(f"{name}.conv_sc", F.interpolate(x, scale_factor=2), 0)
        if f"blocks.{i}.1.gamma" in double:
            x = attend(f"blocks.{i}.1", x)
    last = [double[f"output_layer.0.{part}"] for part in ("stored_mean", "stored_var", "gain", "bias")]
    x = F.batch_norm(x, *last, False, 0.1, last_eps)
    return conv("output_layer.2", x.relu(), 1).tanh()


class Table(torch.nn.Module):
    """What both torch and tch read."""


table = Table()
z = torch.randn(3, 6 * CHUNK)
entries = {"z": z, "last_1e_4": generate(z.double(), 1e-4), "last_1e_5": generate(z.double(), 1e-5)}
for name, tensor in entries.items():
    table.register_parameter(name, torch.nn.Parameter(tensor.float(), requires_grad=False))
torch.jit.script(table).save(sys.argv[2])

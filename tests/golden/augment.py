"""Makes augment.json: what a public DiffAugment (of lightweight-gan, after Zhao et al. 2020) makes of images by given numbers."""

import importlib.util
from importlib.metadata import distribution

import torch
from make import hashed, write

path = distribution("lightweight-gan").locate_file("lightweight_gan/diff_augment.py")
spec = importlib.util.spec_from_file_location("diff_augment", path)
public = importlib.util.module_from_spec(spec)
spec.loader.exec_module(public)

ROWS = 4
# Columns of the numbers in [-1, 1], by what is drawn, in the order it is drawn.
COLUMNS = {"color": [0, 1, 2], "translation": [3, 4], "cutout": [5, 6]}


def augmented(x, policy, uniforms):
    columns = iter([i for name in policy for i in COLUMNS[name]])

    def unit():
        return (uniforms[:, next(columns)] + 1) / 2

    def rand(*size, dtype, device):
        return unit().view(size).to(dtype)

    def randint(low, high, size, device):
        return (low + (unit() * (high - low)).floor()).long().clamp(low, high - 1).view(size)

    torch.rand, torch.randint, before = rand, randint, (torch.rand, torch.randint)
    try:
        return public.DiffAugment(x, policy)
    finally:
        torch.rand, torch.randint = before


if __name__ == "__main__":
    cases = []
    for side, policy in [
        (8, ["color"]),
        (12, ["translation"]),
        (7, ["cutout"]),
        (9, ["color", "translation", "cutout"]),
    ]:
        shape = (ROWS, 3, side, side)
        x = hashed("x", shape).float().requires_grad_()
        uniforms = hashed("uniforms", (ROWS, 7)).float()
        uniforms = uniforms / uniforms.abs().max()
        found = augmented(x, policy, uniforms)
        (found * hashed("direction", shape).float()).sum().backward()
        flat = {"images": found, "gradient": x.grad}
        flat = {key: [round(v, 7) for v in value.flatten().tolist()] for key, value in flat.items()}
        numbers = uniforms.flatten().tolist()
        cases.append({"side": side, "policy": ",".join(policy), "uniforms": numbers, **flat})
    write("augment", cases)

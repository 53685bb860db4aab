"""Makes crops.json, for `pipeline/src/augment.rs`: crops that torchvision falls back to, centre crops by torchvision's
and tensorflow/tpu's arithmetic, and statistics of random crops by torchvision itself and by a port of TensorFlow's
`GenerateRandomCrop` (with `--tensorflow`, by TensorFlow itself instead: the two agree)."""

import itertools
import json
import pathlib
import random
import sys

import numpy as np

SIZES = [(500, 375), (375, 500), (75, 500), (500, 75), (64, 64), (1200, 300), (9, 7)]
EDGES = [(500, 375), (375, 500), (75, 500), (500, 75), (1, 500), (500, 1), (1, 1), (2, 3), (333, 334), (400, 301)]
RESIZED = [(500, 375), (375, 501), (75, 300), (300, 75), (32, 32), (31, 47), (1, 9), (640, 480), (288, 400)]
RANGES = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
DRAWS = 40_000


def fallback(width, height, ratio):
    """A try never fits where the scale is 1 and the image is not within the ratios."""
    import torch
    from torchvision.transforms import RandomResizedCrop

    y, x, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], list(ratio))
    return [x, y, w, h]


def centre(width, height):
    """CenterCropLongEdge of BigGAN-PyTorch."""
    from PIL import Image
    from torchvision.transforms.functional import center_crop

    square = min(width, height)
    places = Image.fromarray(np.arange(width * height, dtype=np.int32).reshape(height, width))
    first = np.asarray(center_crop(places, square))[0, 0]
    return [int(first % width), int(first // width), square, square]


def padded_centre(width, height, side):
    """_decode_and_center_crop of tensorflow/tpu's resnet_preprocessing.py."""
    square = int(np.float32(side / (side + 32)) * np.float32(min(width, height)))
    return [(width - square + 1) // 2, (height - square + 1) // 2, square, square]


def resized(width, height, resize, side, number):
    """Resize and CenterCrop of a picture of Pillow."""
    from pillow import digest, picture
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    image, out = picture("slopes", width, height, number), {}
    for name in ("bicubic", "bilinear"):
        whole = Resize(resize, InterpolationMode(name))(image)
        out[name] = digest(CenterCrop(side)(whole))
    return {"size": [width, height], "resize": resize, "side": side, **out}


def torchvision_crops(width, height, count):
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(1)
    image = torch.empty(3, height, width)
    crops = [RandomResizedCrop.get_params(image, list(RANGES["scale"]), list(RANGES["ratio"])) for _ in range(count)]
    return [(x, y, w, h) for y, x, h, w in crops]


def generate(width, height, draw):
    """GenerateRandomCrop, in single precision."""
    f = np.float32
    low, high = RANGES["scale"]
    aspect = f(draw.random()) * (f(RANGES["ratio"][1]) - f(RANGES["ratio"][0])) + f(RANGES["ratio"][0])
    least, most = f(low) * f(width) * f(height), f(high) * f(width) * f(height)
    lrint = lambda x: int(np.rint(f(x)))
    h, top = lrint(np.sqrt(least / aspect)), lrint(np.sqrt(most / aspect))
    if lrint(f(top) * aspect) > width:
        top = int((width + 0.5 - float(f(1e-7))) / float(aspect))
        if lrint(f(top) * aspect) > width:
            top -= 1
    top = min(top, height)
    h = min(h, top)
    if h < top:
        h += draw.randrange(top - h + 1)
    w = lrint(f(h) * aspect)
    if f(w * h) < least:
        h += 1
        w = lrint(f(h) * aspect)
    if f(w * h) > most:
        h -= 1
        w = lrint(f(h) * aspect)
    if f(w * h) < least or f(w * h) > most or w > width or h > height or w <= 0 or h <= 0:
        return None
    y = draw.randrange(height - h) if h < height else 0
    x = draw.randrange(width - w) if w < width else 0
    return x, y, w, h


def tensorflow_crops(width, height, count):
    """The op with the whole image as its box: at least 10 % of it must be covered."""
    draw = random.Random(1)
    crops = []
    for _ in range(count):
        tries = (generate(width, height, draw) for _ in range(10))
        fits = (crop for crop in tries if crop and np.float32(crop[2] * crop[3]) / np.float32(width * height) >= 0.1)
        crops.append(next(fits, (0, 0, width, height)))
    return crops


def tensorflow_itself(width, height, count):
    import tensorflow as tf

    @tf.function
    def crop(seed):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            [height, width, 3], [[[0.0, 0.0, 1.0, 1.0]]], [1, seed], 0.1, RANGES["ratio"], RANGES["scale"], 10
        )
        return tf.stack([begin[1], begin[0], size[1], size[0]])

    return [tuple(row) for row in tf.map_fn(crop, tf.range(count)).numpy().tolist()]


def statistics(width, height, crops):
    """Means of area, aspect and place, deciles of the area, and how often the whole image is seen."""
    x, y, w, h = np.array(crops, dtype=np.float64).T
    area = w * h / (width * height)
    place = lambda at, length, size: float((at / np.maximum(size - length, 1)).mean())
    return {
        "size": [width, height],
        "area": float(area.mean()),
        "deciles": [float(q) for q in np.quantile(area, np.arange(0.1, 1.0, 0.1))],
        "aspect": float(np.log(w / h).mean()),
        "x": place(x, w, width),
        "y": place(y, h, height),
        "whole": float(((w == width) & (h == height)).mean()),
    }


if __name__ == "__main__":
    if "--tensorflow" in sys.argv:
        for size in SIZES:
            ours, theirs = tensorflow_crops(*size, DRAWS), tensorflow_itself(*size, DRAWS)
            print(json.dumps({"port": statistics(*size, ours), "tensorflow": statistics(*size, theirs)}))
        sys.exit()
    ratios = [(3 / 4, 4 / 3), (1.0, 1.0), (0.5, 0.9)]
    out = {
        "fallbacks": [
            {"size": [w, h], "ratio": list(r), "crop": fallback(w, h, r)}
            for w, h in EDGES for r in ratios if w * h > 6 and not r[0] * 0.95 < w / h < r[1] * 1.05
        ],
        "full": [{"size": [w, h], "crop": centre(w, h)} for w, h in EDGES],
        "eval": [
            {"size": [w, h], "side": s, "crop": padded_centre(w, h, s)}
            for w, h in EDGES for s in (32, 128, 160, 224, 256) if min(w, h) > 1
        ],
        "resized": [
            resized(*size, resize, side, number)
            for number, (size, (resize, side)) in enumerate(itertools.product(RESIZED, [(32, 32), (37, 32), (288, 256)]))
        ],
        "torchvision": [statistics(*size, torchvision_crops(*size, DRAWS)) for size in SIZES],
        "tensorflow": [statistics(*size, tensorflow_crops(*size, DRAWS)) for size in SIZES],
    }
    path = pathlib.Path(__file__).parent / "crops.json"
    path.write_text("{" + ",\n".join(f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in out.items()) + "}\n")

"""Makes pillow.json: digests of what Pillow's `Image.resize` makes of crops of made pictures, for
`pipeline/src/decode/resize`."""

import hashlib
import json
import pathlib
import random

import numpy as np
from PIL import Image

FILTERS = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}


def splitmix(x):
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def picture(kind, width, height, seed):
    """Noise, black and white, or slopes and edges under a little noise."""
    count = width * height * 3
    bits = splitmix(np.arange(count, dtype=np.uint64) + np.uint64(seed << 32))
    if kind == "noise":
        values = bits >> np.uint64(56)
    elif kind == "extremes":
        values = (bits >> np.uint64(63)) * np.uint64(255)
    else:
        at = np.arange(count, dtype=np.uint64)
        x, y, c = (at // np.uint64(3)) % np.uint64(width), at // np.uint64(3 * width), at % np.uint64(3)
        slope = (x * np.uint64(2) + y * (c + np.uint64(1)) + np.uint64(seed)) % np.uint64(360)
        slope = np.where(slope < 180, slope, np.uint64(360) - slope)
        edge = (x // np.uint64(23) + y // np.uint64(17)) % np.uint64(5) == 0
        values = np.where(edge, np.uint64(250) - slope, slope) + (bits >> np.uint64(60))
    values = np.minimum(values, 255).astype(np.uint8)
    return Image.fromarray(values.reshape(height, width, 3))


def digest(image):
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]


def case(number, draw):
    sizes = [(1, 1), (1, 40), (40, 1), (3, 301), (301, 3), (2, 201), (1, 400), (37, 53), (256, 256), (500, 375)]
    width, height = sizes[number] if number < len(sizes) else (draw.randint(1, 360), draw.randint(1, 360))
    side = draw.choice([1, 3, 16, 31, 32, 48, 64, 75, 128])
    w, h = draw.randint(1, width), draw.randint(1, height)
    if number % 4 == 0:
        w, h = width, height
    if number % 17 == 0:  # one pass or none
        w = min(side, width)
    if number % 34 == 0:
        h = min(side, height)
    crop = [draw.randint(0, width - w), draw.randint(0, height - h), w, h]
    part = None
    if number % 5 == 0:  # between pixels, in eighths, as after a scaled decode
        left, top = draw.randint(0, 7) / 8, draw.randint(0, 7) / 8
        right, bottom = w - draw.randint(0, 7) / 8, h - draw.randint(0, 7) / 8
        if right > left and bottom > top:
            part = [left, top, right, bottom]
    kind = draw.choice(["noise", "extremes", "slopes"])
    flip = draw.random() < 0.5
    out = {"kind": kind, "size": [width, height], "crop": crop, "box": part, "side": side, "flip": flip}
    cut = picture(kind, width, height, number).crop((crop[0], crop[1], crop[0] + w, crop[1] + h))
    for name, filter in FILTERS.items():
        large = cut.resize((side, side), filter, box=part)
        if flip:
            large = large.transpose(Image.FLIP_LEFT_RIGHT)
        out[name] = [digest(large)] + ([digest(large.reduce(2))] if side % 2 == 0 else [])
    return out


if __name__ == "__main__":
    draw = random.Random(1)
    cases = [case(number, draw) for number in range(400)]
    # What the loader does most: photographs' crops to 256 pixels a side, up and down.
    for number, size in enumerate([(131, 97), (256, 200), (333, 333), (472, 400), (900, 700)], 400):
        out = {"kind": "slopes", "size": list(size), "crop": [0, 0, *size], "box": None, "side": 256, "flip": False}
        for name, filter in FILTERS.items():
            large = picture("slopes", *size, number).resize((256, 256), filter)
            out[name] = [digest(large), digest(large.reduce(2))]
        cases.append(out)
    # Values of very many pixels.
    for number, (size, side) in enumerate([((40, 1500), 24), ((1500, 40), 24), ((30, 1580), 25), ((300, 3000), 8)], 405):
        out = {"kind": "extremes", "size": list(size), "crop": [0, 0, *size], "box": None, "side": side, "flip": True}
        for name, filter in FILTERS.items():
            large = picture("extremes", *size, number).resize((side, side), filter).transpose(Image.FLIP_LEFT_RIGHT)
            out[name] = [digest(large)] + ([digest(large.reduce(2))] if side % 2 == 0 else [])
        cases.append(out)
    path = pathlib.Path(__file__).parent / "pillow.json"
    path.write_text("[" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "]\n")

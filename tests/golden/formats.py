"""Small image files of every format that `shard-imagenet build` reads from a folder, and what Pillow makes of each
with `.convert("RGB")`: formats.json, for tools/tests/stories/formats.rs. Needs Pillow and tifffile.

An entry is {"name", "file", "size": [width, height], "rgb"} with base64 for bytes, "error" in place of the last two
where Pillow reads nothing."""

import base64
import io
import json
import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

W, H = 19, 11


def pixels(seed=0, channels=3):
    y, x = np.mgrid[0:H, 0:W]
    planes = [127 + 110 * np.sin(0.21 * x * (c + 1) + 0.33 * y + seed + c) for c in range(channels)]
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


RGB = Image.fromarray(pixels())
RGBA = Image.fromarray(pixels(3, 4))
GREY = RGB.convert("L")
PALETTE = RGB.quantize(37)
BITS = RGB.convert("1")
DEEP = (pixels(5).astype(np.uint16) << 8) + 77


def saved(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def bmp(header, body, palette=b""):
    """A BMP of a 40-byte header's fields after the size, a palette or masks, and rows."""
    start = 14 + 40 + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + struct.pack("<I", 40) + header + palette + body


def bmp_header(bits, compression, height=H, colours=0):
    return struct.pack("<iiHHIIiiII", W, height, 1, bits, compression, 0, 0, 0, colours, 0)


def bmp16(bits, masks=None, top_down=False):
    r, g, b = (pixels().astype(np.uint16)[..., c] for c in range(3))
    word = (r >> 3 << 11 | g >> 2 << 5 | b >> 3) if bits == 565 else (r >> 3 << 10 | g >> 3 << 5 | b >> 3)
    rows = word if top_down else word[::-1]
    body = b"".join(row.astype("<u2").tobytes().ljust((W * 2 + 3) // 4 * 4, b"\0") for row in rows)
    palette = struct.pack("<III", *masks) if masks else b""
    return bmp(bmp_header(16, 3 if masks else 0, -H if top_down else H), body, palette)


def bmp_palette(bits, rle=False):
    colours = 1 << bits
    image = RGB.quantize(colours)
    table = image.getpalette()[: 3 * colours]
    table += [0] * (3 * colours - len(table))
    palette = b"".join(bytes([table[3 * i + 2], table[3 * i + 1], table[3 * i], 0]) for i in range(colours))
    rows = np.array(image)[::-1]
    if rle:
        body = b""
        for row in rows:
            for value in row:
                # A run of one, in four bits the index in both halves.
                body += bytes([1, value if bits == 8 else value << 4])
            body += b"\0\0"
        return bmp(bmp_header(bits, 1 if bits == 8 else 2, colours=colours), body + b"\0\1", palette)
    body = b""
    for row in rows:
        text = "".join(format(v, f"0{bits}b") for v in row)
        text = text.ljust((len(text) + 31) // 32 * 32, "0")
        body += bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    return bmp(bmp_header(bits, 0, colours=colours), body, palette)


def bmps():
    yield "rgb.bmp", saved(RGB, "BMP")
    yield "grey.bmp", saved(GREY, "BMP")
    yield "palette.bmp", saved(PALETTE, "BMP")
    yield "bits.bmp", saved(BITS, "BMP")
    yield "alpha.bmp", saved(RGBA, "BMP")
    yield "555.bmp", bmp16(555)
    yield "565.bmp", bmp16(565, (0xF800, 0x7E0, 0x1F))
    yield "top_down.bmp", bmp16(555, top_down=True)
    yield "4_bits.bmp", bmp_palette(4)
    yield "rle8.bmp", bmp_palette(8, rle=True)
    yield "rle4.bmp", bmp_palette(4, rle=True)
    yield "cut.bmp", saved(RGB, "BMP")[:-100]


def pnms():
    data = pixels()
    text = lambda values: " ".join(str(v) for v in values.ravel()).encode()
    yield "rgb.ppm", saved(RGB, "PPM")
    yield "grey.pgm", saved(GREY, "PPM")
    yield "bits.pbm", saved(BITS, "PPM")
    yield "text.ppm", b"P3\n# by hand\n%d %d\n255\n" % (W, H) + text(data)
    yield "text.pgm", b"P2 %d %d 255\n" % (W, H) + text(np.array(GREY))
    yield "text.pbm", b"P1\n%d %d\n" % (W, H) + text(np.array(BITS).astype(int) ^ 1)
    yield "max15.ppm", b"P6 %d %d 15\n" % (W, H) + (data >> 4).tobytes()
    yield "max15.pgm", b"P5 %d %d 15\n" % (W, H) + (np.array(GREY) >> 4).tobytes()
    yield "max100_text.ppm", b"P3 %d %d 100\n" % (W, H) + text(data.astype(int) * 100 // 255)
    yield "max1000.ppm", b"P6 %d %d 1000\n" % (W, H) + (data.astype(">u2") * 3).astype(">u2").tobytes()
    yield "16_bits.ppm", b"P6 %d %d 65535\n" % (W, H) + DEEP.astype(">u2").tobytes()
    yield "16_bits.pgm", b"P5 %d %d 65535\n" % (W, H) + DEEP[..., 0].astype(">u2").tobytes()
    yield "cut.ppm", saved(RGB, "PPM")[:-100]


def gifs():
    yield "palette.gif", saved(PALETTE, "GIF")
    yield "grey.gif", saved(GREY, "GIF")
    yield "bits.gif", saved(BITS, "GIF")
    yield "transparent.gif", saved(PALETTE, "GIF", transparency=5)
    yield "interlaced.gif", saved(PALETTE, "GIF", interlace=1)
    yield "animated.gif", saved(PALETTE, "GIF", save_all=True, append_images=[RGB.rotate(180).quantize(16)], duration=40)
    whole = bytearray(saved(PALETTE, "GIF"))
    at = whole.rindex(b"\x2c\0\0\0\0" + struct.pack("<HH", W, H))
    small = bytearray(whole)  # the frame at (3, 2) of a larger screen
    small[6:10] = struct.pack("<HH", W + 7, H + 5)
    small[at + 1 : at + 5] = struct.pack("<HH", 3, 2)
    yield "small_frame.gif", bytes(small)
    clear = bytearray(saved(PALETTE, "GIF", transparency=5))
    at = clear.rindex(b"\x2c\0\0\0\0" + struct.pack("<HH", W, H))
    clear[6:10] = struct.pack("<HH", W + 7, H + 5)
    clear[at + 1 : at + 5] = struct.pack("<HH", 3, 2)
    yield "small_transparent_frame.gif", bytes(clear)
    yield "cut.gif", bytes(whole[:-60])


def webps():
    yield "lossless.webp", saved(RGB, "WEBP", lossless=True)
    yield "lossless_alpha.webp", saved(RGBA, "WEBP", lossless=True, exact=True)
    yield "lossy.webp", saved(RGB, "WEBP", quality=90)
    yield "lossy_alpha.webp", saved(RGBA, "WEBP", quality=90)
    other = RGB.rotate(180)
    yield "animated_lossless.webp", saved(RGB, "WEBP", lossless=True, save_all=True, append_images=[other], duration=40)
    yield "animated_lossy.webp", saved(RGB, "WEBP", quality=90, save_all=True, append_images=[other], duration=40)
    yield "cut.webp", saved(RGB, "WEBP", lossless=True)[:-60]


def tiffs():
    for name, image in [("rgb", RGB), ("alpha", RGBA), ("grey", GREY), ("palette", PALETTE), ("bits", BITS)]:
        yield f"{name}.tif", saved(image, "TIFF")
    yield "cmyk.tif", saved(RGB.convert("CMYK"), "TIFF")
    yield "grey_alpha.tif", saved(RGB.convert("LA"), "TIFF")
    yield "lab.tif", saved(Image.fromarray(pixels(2), "LAB"), "TIFF")
    for compression in ["tiff_lzw", "tiff_adobe_deflate", "packbits"]:
        yield f"rgb_{compression}.tiff", saved(RGB, "TIFF", compression=compression)
    yield "palette_lzw.tif", saved(PALETTE, "TIFF", compression="tiff_lzw")
    yield "bits_group4.tif", saved(BITS, "TIFF", compression="group4")
    yield "jpeg.tif", saved(RGB, "TIFF", compression="jpeg", quality=95)
    yield "predictor.tif", saved(RGB, "TIFF", compression="tiff_lzw", tiffinfo={317: 2})
    for turn in range(2, 9):
        yield f"turned_{turn}.tif", saved(RGB, "TIFF", tiffinfo={274: turn})
    yield "pages.tif", saved(RGB, "TIFF", save_all=True, append_images=[RGB.rotate(180)])
    deep = lambda **options: tiff(DEEP, **options)
    yield "16_bits.tif", deep(photometric="rgb")
    yield "16_bits_big_endian.tif", deep(photometric="rgb", byteorder=">")
    yield "16_bits_grey.tif", tiff(DEEP[..., 0], photometric="minisblack")
    yield "white_is_zero.tif", tiff(np.array(GREY), photometric="miniswhite")
    yield "planes.tif", tiff(np.moveaxis(pixels(), -1, 0), photometric="rgb", planarconfig="separate")
    yield "tiles.tif", tiff(pixels(), photometric="rgb", tile=(16, 16))
    yield "strips.tif", tiff(pixels(), photometric="rgb", rowsperstrip=3)
    yield "big.tif", tiff(pixels(), photometric="rgb", bigtiff=True)
    yield "associated_alpha.tif", tiff(pixels(3, 4), photometric="rgb", extrasamples=["assocalpha"])
    yield "float.tif", tiff(np.array(GREY).astype(np.float32), photometric="minisblack")
    yield "cut.tif", saved(RGB, "TIFF", compression="tiff_lzw")[:-100]


def tiff(array, byteorder="<", bigtiff=False, **options):
    out = io.BytesIO()
    with tifffile.TiffWriter(out, byteorder=byteorder, bigtiff=bigtiff) as writer:
        writer.write(array, metadata=None, software=False, **options)
    return out.getvalue()


def pngs():
    for name, image in [("rgb", RGB), ("alpha", RGBA), ("grey", GREY), ("palette", PALETTE), ("bits", BITS)]:
        yield f"{name}.png", saved(image, "PNG")
    yield "grey_alpha.png", saved(RGB.convert("LA"), "PNG")
    yield "transparent.png", saved(PALETTE, "PNG", transparency=5)
    yield "named_wrongly.png", saved(RGB, "BMP")


def entry(name, file):
    text = lambda data: base64.b64encode(data).decode()
    found = {"name": name, "file": text(file)}
    try:
        image = Image.open(io.BytesIO(file))
        rgb = image.convert("RGB")
        return found | {"mode": image.mode, "size": rgb.size, "rgb": text(rgb.tobytes())}
    except Exception as error:
        return found | {"error": type(error).__name__}


if __name__ == "__main__":
    files = [file for group in (bmps, pnms, gifs, webps, tiffs, pngs) for file in group()]
    lines = ",\n".join(json.dumps(entry(*file)) for file in files)
    Path(__file__).with_name("formats.json").write_text(f"[\n{lines}\n]\n")

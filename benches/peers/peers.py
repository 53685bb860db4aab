"""One other loader on our job: `peers.py NAME SHARDS [--side N] [--no-small] [--images N] [--threads N]`.

The job: tar shards of JPEGs to batches of 64 uint8 images at 256 x 256, random resized crop (area
8-100 %, aspect 3/4-4/3), flip, bilinear and antialiased, and the same view at 128 x 128, as torch tensors.
`--side 224 --no-small` is the usual job of people who train classifiers. `bigbigan` is our own wheel.
Prints one line, "NAME IMAGES_PER_S", measured after a warm-up of 512 images. Each loader is used as
its manual shows; nothing is done to slow it down.
"""

import argparse
import glob
import itertools
import math
import random
import time

import numpy

BATCH, WARM_UP = 64, 512
# Set by the arguments, before any worker is forked off.
SIDE, SMALL = 256, True


def crop(width, height):
    """torchvision's RandomResizedCrop: left, top, width, height."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def halve(batch):
    """The mean of each 2 x 2 square of (N, H, W, 3)."""
    n, h, w, c = batch.shape
    sums = batch.reshape(n, h // 2, 2, w // 2, 2, c).sum((2, 4), dtype=numpy.uint16)
    return ((sums + 2) >> 2).astype(numpy.uint8)


def pil_view(image):
    from PIL import Image

    x, y, w, h = crop(*image.size)
    view = image.convert("RGB").resize((SIDE, SIDE), Image.BILINEAR, box=(x, y, x + w, y + h))
    if random.random() < 0.5:
        view = view.transpose(Image.FLIP_LEFT_RIGHT)
    return (numpy.asarray(view), numpy.asarray(view.reduce(2))) if SMALL else (numpy.asarray(view), ())


def torchvision_view(data):
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import functional

    image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    x, y, w, h = crop(image.shape[2], image.shape[1])
    view = functional.resized_crop(image, y, x, h, w, [SIDE, SIDE], antialias=True)
    if random.random() < 0.5:
        view = functional.horizontal_flip(view)
    return view, functional.resize(view, [SIDE // 2, SIDE // 2], antialias=True) if SMALL else ()


def webdataset(shards, threads, decode, view):
    """The PyTorch DataLoader over WebDataset, as its manual has it."""
    import torch
    import webdataset as wds

    torch.set_num_threads(1)
    data = wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(1000)
    data = data.decode(decode) if decode else data
    data = data.to_tuple("jpg", "cls").map_tuple(view, int if not decode else lambda label: label)
    data = data.repeat()
    for (large, small), labels in torch.utils.data.DataLoader(
        data.batched(BATCH, collation_fn=torch.utils.data.default_collate),
        batch_size=None,
        num_workers=threads,
    ):
        yield large, small, labels


def imagefolder(shards, threads):
    """The PyTorch DataLoader over torchvision's ImageFolder, of the same files beside each other."""
    import os
    import tarfile
    import tempfile

    import torch
    from torchvision.datasets import ImageFolder

    folder = tempfile.TemporaryDirectory()
    for path in shards:
        with tarfile.open(path) as shard:
            for member in shard:
                if member.name.endswith(".jpg"):
                    to = os.path.join(folder.name, "all", f"{os.path.basename(path)}-{os.path.basename(member.name)}")
                    os.makedirs(os.path.dirname(to), exist_ok=True)
                    with open(to, "wb") as file:
                        file.write(shard.extractfile(member).read())
    torch.set_num_threads(1)
    files = ImageFolder(folder.name, transform=pil_view)
    while True:
        for (large, small), labels in torch.utils.data.DataLoader(
            files, batch_size=BATCH, shuffle=True, num_workers=threads, drop_last=True, pin_memory=False
        ):
            yield large, small, labels


def bigbigan(shards, threads):
    """Ours, from Python."""
    import os

    import torch

    import bigbigan

    loader = bigbigan.Loader(
        os.path.dirname(shards[0]),
        batch=BATCH,
        size=SIDE,
        small=SIDE // 2 if SMALL else None,
        filter="bilinear",
        threads=threads,
    )
    while True:
        for batch in loader:
            small = torch.from_numpy(batch.small) if SMALL else ()
            yield torch.from_numpy(batch.images), small, torch.from_numpy(batch.labels)


def pil(shards, threads):
    return webdataset(shards, threads, "pil", pil_view)


def torchvision(shards, threads):
    return webdataset(shards, threads, None, torchvision_view)


def dali(shards, threads):
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None, prefetch_queue_depth=2)
    def pipe():
        data, labels = fn.readers.webdataset(
            paths=shards, ext=["jpg", "cls"], random_shuffle=True, missing_component_behavior="error"
        )
        images = fn.decoders.image_random_crop(
            data, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3], output_type=types.RGB
        )
        large = fn.resize(
            images, resize_x=SIDE, resize_y=SIDE, interp_type=types.INTERP_LINEAR, antialias=True
        )
        large = fn.flip(large, horizontal=fn.random.coin_flip())
        if not SMALL:
            return large, labels
        small = fn.resize(
            large,
            resize_x=SIDE // 2,
            resize_y=SIDE // 2,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        return large, small, labels

    import torch

    running = pipe()
    running.build()
    while True:
        *views, _ = running.run()
        yield [torch.from_numpy(view.as_array()) for view in views]


def spdl(shards, threads):
    import io
    import tarfile

    import spdl.io
    import torch
    from spdl.pipeline import PipelineBuilder

    def source():
        while True:
            for path in random.sample(shards, len(shards)):
                with tarfile.open(path) as shard:
                    for member in shard:
                        if member.name.endswith(".jpg"):
                            yield shard.extractfile(member).read()

    def decode(data):
        packets = spdl.io.demux_image(data)
        x, y, w, h = crop(packets.codec.width, packets.codec.height)
        flip = ",hflip" if random.random() < 0.5 else ""
        return spdl.io.decode_packets(
            packets,
            filter_desc=f"crop={w}:{h}:{x}:{y},scale={SIDE}:{SIDE}:flags=bilinear{flip},format=rgb24",
        )

    def batch(frames):
        large = spdl.io.to_torch(spdl.io.convert_frames(frames))
        return large, torch.from_numpy(halve(large.numpy())) if SMALL else ()

    builder = (
        PipelineBuilder()
        .add_source(source())
        .pipe(decode, concurrency=threads)
        .aggregate(BATCH)
        .pipe(batch)
        .add_sink(4)
    )
    running = builder.build(num_threads=threads + 1)
    with running.auto_stop():
        yield from running.get_iterator()


def ffcv(shards, threads, **coding):
    """FFCV makes one size only, the large one, from its own file: of re-encoded JPEGs, or of plain pixels,
    which take five times the bytes."""
    import io
    import os
    import tarfile
    import tempfile

    import torch
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor
    from ffcv.writer import DatasetWriter
    from PIL import Image

    class Files(torch.utils.data.Dataset):
        def __init__(self):
            self.members = []
            for path in shards:
                with tarfile.open(path) as shard:
                    images = [m for m in shard if m.name.endswith(".jpg")]
                    self.members += [(path, m.offset_data, m.size) for m in images]

        def __len__(self):
            return len(self.members)

        def __getitem__(self, number):
            path, offset, size = self.members[number]
            with open(path, "rb") as shard:
                shard.seek(offset)
                return Image.open(io.BytesIO(shard.read(size))).convert("RGB"), 0

    folder = tempfile.TemporaryDirectory()
    path = os.path.join(folder.name, "data.beton")
    image = RGBImageField(**(coding or {"write_mode": "jpg", "jpeg_quality": 90}))
    DatasetWriter(path, {"image": image, "label": IntField()}, num_workers=threads).from_indexed_dataset(
        Files()
    )
    loader = Loader(
        path,
        batch_size=BATCH,
        num_workers=threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={
            "image": [RandomResizedCropRGBImageDecoder((SIDE, SIDE)), RandomHorizontalFlip(), ToTensor()],
            "label": [IntDecoder(), ToTensor()],
        },
    )
    while True:
        yield from loader


PEERS = {
    "bigbigan": bigbigan,
    "imagefolder": imagefolder,
    "pil": pil,
    "torchvision": torchvision,
    "dali": dali,
    "spdl": spdl,
    "ffcv": ffcv,
    "ffcv_raw": lambda shards, threads: ffcv(shards, threads, write_mode="raw"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("shards", help="folder of SPLIT-*.tar")
    parser.add_argument("--side", type=int, default=256, help="pixels a side")
    parser.add_argument("--no-small", action="store_true", help="without the view of half the side")
    parser.add_argument("--images", type=int, default=12_288)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    global SIDE, SMALL
    SIDE, SMALL = arguments.side, not arguments.no_small
    shards = sorted(glob.glob(f"{arguments.shards}/train-*.tar"))
    if not shards:
        parser.error(f"{arguments.shards} holds no train-*.tar")
    if len(shards) < arguments.threads:
        parser.error(f"{len(shards)} shards leave some of {arguments.threads} workers of WebDataset without any")
    batches = PEERS[arguments.name](shards, arguments.threads)
    for _ in itertools.islice(batches, WARM_UP // BATCH):
        pass
    start, images = time.perf_counter(), 0
    for batch in itertools.islice(batches, arguments.images // BATCH):
        images += len(batch[0])
    print(arguments.name, f"{images / (time.perf_counter() - start):.0f}", flush=True)


if __name__ == "__main__":
    main()

"""Trained networks, as `trainer export` wrote them: features of images, and images.

>>> import bigbigan
>>> model = bigbigan.load("demo/export")
>>> model.encode(["a.jpg", "b.png"])  # float32 (2, features)
>>> model.generate(16, seed=1)  # uint8 (16, H, W, 3)
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol

import bigbigan
import numpy as np
import torch

__all__ = ["FEATURES", "Model"]

# What an encoder gives of an image x: a draw of its code, the code's mean and deviation, the pooled feature a of the
# trunk, and [ReLU(h), ReLU(-h)] of h = BN(a), the paper's feature for linear classifiers.
FEATURES = ("z_sample", "z_mean", "z_stdev", "avepool_feat", "bn_crelu_feat")


class _Picture(Protocol):
    """A PIL image."""

    def convert(self, mode: str) -> Any: ...


Image = str | PathLike[str] | bytes | np.ndarray | _Picture


class Model:
    """A trained generator and, where the run had one, its encoder, on a device.

    An image is a path, the bytes of a JPEG or PNG file, pixels uint8 (H, W, 3), or a PIL image; it is cropped and resized
    as the trainer's evaluation does it. A `bigbigan.Batch` and uint8 (N, R, R, 3) of `image_size` are taken as they are.
    """

    def __init__(self, folder: str | PathLike[str], device: torch.device | str | int = "cpu") -> None:
        folder = Path(folder)
        self.device = torch.device(device)
        note = {"bigbigan.json": ""}
        path = folder / "generator.pt"
        if not path.exists():
            raise FileNotFoundError(f"{path}: not there; `trainer export --run RUN --out {folder}` writes it")
        self.generator = torch.jit.load(path, self.device, _extra_files=note).eval()
        about = json.loads(note["bigbigan.json"])
        if about["format"] != "bigbigan 1":
            raise ValueError(f"{path}: format {about['format']!r}; this package reads \"bigbigan 1\"")
        # The run's configuration.
        self.config: dict[str, Any] = tomllib.loads(about["config"])
        # Steps that it was trained for.
        self.step = int(about["step"])
        path = folder / "encoder.pt"
        self.encoder = torch.jit.load(path, self.device).eval() if path.exists() else None
        # Pixels a side of what the encoder sees, and of what the generator makes.
        self.image_size = int(self.config["e"]["res"])
        self.generated_size = int(self.config["g"]["res"])
        # Numbers of a code.
        self.latent = int(self.config["latent"]["dim"])

    def __repr__(self) -> str:
        encoder = "" if self.encoder is not None else ", no encoder"
        sizes = f"images {self.image_size}, generated {self.generated_size}, codes {self.latent}"
        return f"Model(step {self.step}: {sizes}{encoder}, on {self.device})"

    def pixels(self, image: Image) -> np.ndarray:
        """What the encoder sees of an image: uint8 (R, R, 3)."""
        if isinstance(image, (str, PathLike)):
            name = fspath(image)
            try:
                return self.pixels(Path(name).read_bytes())
            except bigbigan.DataError as error:
                raise bigbigan.DataError(f"{name}: {error}") from None
        if not isinstance(image, (bytes, np.ndarray)):
            image = np.asarray(image.convert("RGB"))
        mode = self.config["eval"]["mode"]
        return bigbigan.view(image, self.image_size, mode, filter=self.config["data"]["filter"])

    @torch.inference_mode()
    def encode(
        self,
        images: Image | Sequence[Image] | bigbigan.Batch,
        feature: str = "bn_crelu_feat",
        *,
        batch_size: int = 64,
    ) -> torch.Tensor:
        """A feature of each image, one of `FEATURES`: float32 (N, width), on the CPU.

        Files are read by several threads, `batch_size` at a time: any number of paths can be given.
        """
        if self.encoder is None:
            raise ValueError("the run trained no encoder")
        if feature not in FEATURES:
            raise ValueError(f"feature = {feature!r}: it may be one of {', '.join(FEATURES)}")
        rows = [self.encoder(self._normalised(seen))[feature].cpu() for seen in self._seen(images, batch_size)]
        if not rows:
            raise ValueError("no images")
        return torch.cat(rows)

    @torch.inference_mode()
    def generate(self, codes: int | torch.Tensor, *, seed: int | None = None, batch_size: int = 64) -> torch.Tensor:
        """Images of codes (N, latent), or of so many codes drawn from the run's prior: uint8 (N, R, R, 3), on the CPU.

        The same `seed` gives the same codes.
        """
        if isinstance(codes, int):
            draw = torch.Generator().manual_seed(seed) if seed is not None else None
            if self.config["latent"]["prior"] == "uniform":
                codes = torch.rand(codes, self.latent, generator=draw) * 2 - 1
            else:
                codes = torch.randn(codes, self.latent, generator=draw)
        images = [self.generator(some.to(self.device, torch.float32)) for some in codes.split(batch_size)]
        if not images:
            raise ValueError("no codes")
        pixels = ((torch.cat([some.cpu() for some in images]) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous()

    def reconstruct(self, images: Image | Sequence[Image] | bigbigan.Batch, *, batch_size: int = 64) -> torch.Tensor:
        """G(E(x)) of each image x, by the mean of its code: uint8 (N, R, R, 3), on the CPU."""
        return self.generate(self.encode(images, "z_mean", batch_size=batch_size), batch_size=batch_size)

    def _seen(self, images: Any, batch_size: int) -> Iterator[torch.Tensor]:
        """What the encoder sees, uint8 (n, R, R, 3), some at a time."""
        if isinstance(images, (str, PathLike, bytes)) or hasattr(images, "convert"):
            images = [images]
        pixels = getattr(images, "images", images)
        if isinstance(pixels, torch.Tensor):
            pixels = pixels.cpu().numpy()
        side = self.image_size
        if isinstance(pixels, np.ndarray):
            if pixels.dtype != np.uint8:
                raise ValueError(f"images of {pixels.dtype}: uint8 is wanted")
            if pixels.shape[1:] == (side, side, 3):
                yield from torch.from_numpy(np.ascontiguousarray(pixels)).split(batch_size)
                return
            if pixels.ndim == 3:
                images = [pixels]
            elif pixels is not images:
                raise ValueError(f"a batch of {pixels.shape[1:]}: the encoder sees ({side}, {side}, 3)")
        rest = iter(images)
        with ThreadPoolExecutor() as threads:
            while some := list(islice(rest, batch_size)):
                yield torch.from_numpy(np.stack(list(threads.map(self.pixels, some))))

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.to(self.device).permute(0, 3, 1, 2).to(torch.float32)
        return images.div_(127.5).sub_(1)

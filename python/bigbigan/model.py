"""Trained networks, as `trainer export` wrote them: features of images, and images.

>>> import bigbigan
>>> model = bigbigan.load("demo/export")
>>> model.encode(["a.jpg", "b.png"])  # float32 (2, features)
>>> model.generate(16, seed=1)  # uint8 (16, H, W, 3)
"""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from operator import index
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, Protocol

import bigbigan
import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["FEATURES", "Model"]

# What an encoder gives of an image x: a draw of its code, the code's mean and deviation, the pooled feature a of the
# trunk, and [ReLU(h), ReLU(-h)] of h = BN(a), the paper's feature for linear classifiers.
FEATURES = ("z_sample", "z_mean", "z_stdev", "avepool_feat", "bn_crelu_feat")


_LOGGER = logging.getLogger("bigbigan")


class _Picture(Protocol):
    """A PIL image."""

    mode: str

    def convert(self, mode: str) -> Any: ...


Image = str | PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8] | torch.Tensor | _Picture
Images = Image | Iterable[Image] | bigbigan.Batch


def _opened(path: Path, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """A network, and what its file says of it."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; `trainer export --run RUN --out {path.parent}` writes it")
    note = {"bigbigan.json": ""}
    network = torch.jit.load(path, device, _extra_files=note).eval()
    about = json.loads(note["bigbigan.json"] or "{}")
    if about.get("format") != "bigbigan 1":
        raise ValueError(f"{path}: no network that `trainer export` wrote, or of a newer one")
    return network, about


class Model:
    """A trained generator and, where the run had one, its encoder, on a device.

    An image is a path, the bytes of a JPEG or PNG file, pixels uint8 (H, W, 3), or a PIL image; it is cropped and resized
    as the trainer's evaluation does it. A `bigbigan.Batch` and uint8 (N, R, R, 3) of `image_size` are taken as they are.
    """

    def __init__(self, folder: str | PathLike[str], device: torch.device | str | int = "cpu") -> None:
        self.folder = Path(folder)
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(f"device = {device}: this PyTorch sees no CUDA device")
        self.generator, about = _opened(self.folder / "generator.pt", self.device)
        # The run's configuration.
        self.config: dict[str, Any] = tomllib.loads(about["config"])
        # Steps that it was trained for.
        self.step = int(about["step"])
        self.encoder = None
        if (self.folder / "encoder.pt").exists():
            self.encoder, other = _opened(self.folder / "encoder.pt", self.device)
            if other["config"] != about["config"] or other["step"] != about["step"]:
                raise ValueError(f"{self.folder}: generator.pt and encoder.pt are of two exports")
        # Pixels a side of what the encoder sees, and of what the generator makes.
        self.image_size = int(self.config["e"]["res"])
        self.generated_size = int(self.config["g"]["res"])
        # Numbers of a code.
        self.latent = int(self.config["latent"]["dim"])

    def __repr__(self) -> str:
        encoder = "" if self.encoder is not None else ", no encoder"
        sizes = f"images {self.image_size}, generated {self.generated_size}, codes {self.latent}"
        return f"Model(step {self.step}: {sizes}{encoder}, on {self.device})"

    def __reduce__(self) -> tuple[Callable[..., Model], tuple[Path, torch.device]]:
        return Model, (self.folder, self.device)

    def pixels(self, image: Image) -> NDArray[np.uint8]:
        """What the encoder sees of an image: uint8 (R, R, 3)."""
        if isinstance(image, (str, PathLike)):
            name = fspath(image)
            try:
                return self.pixels(Path(name).read_bytes())
            except bigbigan.DataError as error:
                raise bigbigan.DataError(f"{name}: {error}") from None
        if isinstance(image, torch.Tensor):
            image = image.cpu().numpy()
        elif not isinstance(image, (bytes, bytearray, memoryview, np.ndarray)):
            image = _rgb(image)
        if isinstance(image, np.ndarray) and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3):
            raise ValueError(f"an image of {image.dtype} {image.shape}: it may be uint8 (H, W, 3)")
        mode = self.config["eval"]["mode"]
        if mode.split(",")[0] not in ("eval", "full", "resize-centre-crop"):
            size = self.image_size
            raise ValueError(f"the run's eval.mode, {mode}, is drawn at random: give uint8 (N, {size}, {size}, 3) of your own crop")
        return bigbigan.view(image, self.image_size, mode, filter=self.config["data"]["filter"])

    @torch.no_grad()
    def encode(
        self,
        images: Images,
        feature: str = "bn_crelu_feat",
        *,
        batch_size: int = 64,
        bad: Literal["raise", "nan"] = "raise",
    ) -> torch.Tensor:
        """A feature of each image, one of `FEATURES`: float32 (N, width), on the CPU.

        Files are read by several threads, `batch_size` at a time: any number of paths can be given.

        Raises DataError or OSError where an image cannot be read, with its path or number. With `bad="nan"` its row is
        NaN, and Python's logger "bigbigan" says why.
        """
        if self.encoder is None:
            raise ValueError(f"no encoder.pt in {self.folder}: the run trained none, or it was not copied")
        if feature not in FEATURES:
            raise ValueError(f"feature = {feature!r}: it may be one of {', '.join(FEATURES)}")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: it may be 1 or more")
        if bad not in ("raise", "nan"):
            raise ValueError(f"bad = {bad!r}: it may be raise or nan")
        rows = []
        for seen, missing in self._seen(images, batch_size, bad == "nan"):
            row = self.encoder(self._normalised(seen))[feature].cpu()
            row[missing] = torch.nan
            rows.append(row)
        if not rows:
            raise ValueError("no images")
        return torch.cat(rows)

    @torch.no_grad()
    def generate(self, codes: int | torch.Tensor, *, seed: int | None = None, batch_size: int = 64) -> torch.Tensor:
        """Images of codes (N, latent), or of so many codes drawn from the run's prior: uint8 (N, R, R, 3), on the CPU.

        The same `seed` gives the same codes. Codes nearer to 0 give plainer images; `trainer sample --truncation` also
        collects batch norm's statistics from such codes.
        """
        if not isinstance(codes, (torch.Tensor, np.ndarray)):
            draw = torch.Generator().manual_seed(seed) if seed is not None else None
            uniform = self.config["latent"]["prior"] == "uniform"
            of = torch.rand if uniform else torch.randn
            codes = of(index(codes), self.latent, generator=draw, dtype=torch.float32, device="cpu")
            if uniform:
                codes = codes * 2 - 1
        codes = torch.as_tensor(codes)
        if codes.ndim != 2 or codes.shape[1] != self.latent or len(codes) == 0:
            raise ValueError(f"codes of {tuple(codes.shape)}: they may be (N, {self.latent}), N from 1 on")
        images = [self.generator(some.to(self.device, torch.float32)) for some in codes.split(batch_size)]
        pixels = ((torch.cat([some.cpu() for some in images]) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous()

    def reconstruct(self, images: Images, *, batch_size: int = 64) -> torch.Tensor:
        """G(E(x)) of each image x, by the mean of its code: uint8 (N, R, R, 3), on the CPU."""
        return self.generate(self.encode(images, "z_mean", batch_size=batch_size), batch_size=batch_size)

    def _seen(self, images: Any, batch_size: int, pass_over: bool) -> Iterator[tuple[torch.Tensor, list[int]]]:
        """What the encoder sees, uint8 (n, R, R, 3), some at a time, and which of them cannot be read, if such are black."""
        if isinstance(images, (str, PathLike, bytes, bytearray, memoryview)) or hasattr(images, "convert"):
            images = [images]
        if isinstance(images, bigbigan.Batch):
            images = images.images
        if isinstance(images, torch.Tensor):
            images = images.cpu().numpy()
        side = self.image_size
        if isinstance(images, np.ndarray):
            if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
                raise ValueError(f"images of {images.dtype} {images.shape}: they may be uint8 (N, H, W, 3)")
            if images.ndim == 3:
                images = images[None]
            elif images.shape[1:] != (side, side, 3):
                raise ValueError(f"a batch of {images.shape[1:]}: the encoder sees ({side}, {side}, 3); a list of them is cropped")
            else:
                whole = np.array(images) if not images.flags.writeable else np.ascontiguousarray(images)
                for some in torch.from_numpy(whole).split(batch_size):
                    yield some, []
                return
        numbered = enumerate(images)
        with ThreadPoolExecutor() as threads:
            while some := list(islice((self._begun(n, image, threads) for n, image in numbered), batch_size)):
                pixels, missing = [], []
                for row, begun in enumerate(some):
                    try:
                        pixels.append(begun())
                    except (bigbigan.DataError, OSError) as error:
                        if not pass_over:
                            raise
                        _LOGGER.warning("%s; its features are NaN", error)
                        missing.append(row)
                        pixels.append(np.zeros((side, side, 3), np.uint8))
                yield torch.from_numpy(np.stack(pixels)), missing

    def _begun(self, number: int, image: Any, threads: ThreadPoolExecutor) -> Callable[[], NDArray[np.uint8]]:
        """What gives the pixels of an image. Only files are left to threads: pixels may be other ones a moment later."""
        if isinstance(image, (str, PathLike)):
            return threads.submit(self.pixels, image).result
        try:
            seen = self.pixels(image)
        except (bigbigan.DataError, OSError) as unread:
            # An OSError is of a PIL image, which is read only now.
            kind = bigbigan.DataError if isinstance(unread, bigbigan.DataError) else OSError
            return _raising(kind(f"image {number}: {unread}"))
        except (ValueError, TypeError) as error:
            raise type(error)(f"image {number}: {error}") from None
        return lambda: seen

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.to(self.device).permute(0, 3, 1, 2).to(torch.float32)
        return images.div_(127.5).sub_(1)


def _raising(error: Exception) -> Callable[[], NDArray[np.uint8]]:
    def pixels() -> NDArray[np.uint8]:
        raise error

    return pixels


def _rgb(image: _Picture) -> NDArray[np.uint8]:
    """A PIL image's pixels, as they are of its file."""
    if not hasattr(image, "convert"):
        raise TypeError(f"an image of type {type(image).__name__}: a path, bytes of a file, uint8 (H, W, 3), or a PIL image")
    if hasattr(image, "load"):
        # It may be read only now, and what a broken file raises is of many types.
        try:
            image.load()
        except Exception as error:
            raise OSError(f"it cannot be read: {error}") from error
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"an image of mode {image.mode}: its range is not known; make it uint8")
    return np.asarray(image.convert("RGB"))

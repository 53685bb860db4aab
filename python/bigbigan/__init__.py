"""JPEG tar shards to whole batches, and trained BigBiGANs.

>>> import bigbigan
>>> loader = bigbigan.Loader("data/imagenet", batch=256, size=224, seed=1)
>>> for epoch in range(90):
...     for batch in loader:
...         batch.images, batch.labels  # u8 (256, 224, 224, 3) and i64 (256), NumPy arrays without a copy

The same batches in the same order for every number of threads; `rank` and `world` deal the rows of a batch out;
`loader.state_dict()` goes on in mid-epoch, with other threads and ranks too. `bigbigan.torch` has the same for
PyTorch. `bigbigan.load` opens what `trainer export` wrote. See docs/python.md.
"""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Literal

import numpy as np
from bigbigan import _bigbigan
from bigbigan._bigbigan import Batch, DataError, Epoch, Loader

if TYPE_CHECKING:
    from os import PathLike

    import torch
    from bigbigan.model import Model
    from numpy.typing import NDArray
    from typing_extensions import Buffer

__all__ = ["Batch", "DataError", "Epoch", "Loader", "load", "view"]
__version__ = _version("bigbigan")


def view(
    image: Buffer | NDArray[np.uint8],
    size: int,
    mode: Literal["eval", "full", "resize-centre-crop"] = "eval",
    *,
    resize: int | None = None,
    filter: Literal["bicubic", "bilinear"] = "bicubic",
    orientation: Literal["ignore", "apply"] = "ignore",
) -> NDArray[np.uint8]:
    """One picture as evaluation sees it: the pixels that a `Loader` of these options gives.

    image: the bytes of a JPEG or PNG file, or pixels, uint8 (H, W, 3). Gives uint8 (size, size, 3). `orientation` is
    that of a JPEG's EXIF.

    Raises ValueError for options that cannot be, DataError for an image that cannot be read. Threads may call it
    at once: Python's lock is released.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise ValueError(f"an image of {image.dtype}: it may be uint8 (H, W, 3), or the bytes of a file")
        image = np.ascontiguousarray(image)
    pixels = _bigbigan.view(image, size, mode, resize, filter, orientation)
    return np.frombuffer(pixels, np.uint8).reshape(size, size, 3)


def load(folder: str | PathLike[str], device: torch.device | str | int = "cpu") -> Model:
    """The networks that `trainer export` wrote into a folder. Wants PyTorch; `bigbigan.model.Model` says what it can."""
    from bigbigan.model import Model

    return Model(folder, device)

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Self, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class DataError(RuntimeError): ...

@final
class Array:
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Batch:
    @property
    def images(self) -> NDArray[np.uint8]: ...
    @property
    def small(self) -> NDArray[np.uint8] | None: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def ids(self) -> NDArray[np.uint64]: ...
    @property
    def keys(self) -> list[str]: ...
    def member(self, extension: str) -> list[bytes | None]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...

@final
class Epoch:
    def __iter__(self) -> Self: ...
    def __next__(self) -> Batch: ...

@final
class Loader:
    def __new__(
        cls,
        source: str | PathLike[str],
        split: str = "train",
        *,
        batch: int,
        size: int = 224,
        small: int | None = None,
        mode: str = "random-resized-crop",
        scale: Sequence[float] | None = None,
        ratio: Sequence[float] | None = None,
        law: Literal["torchvision", "tensorflow"] | None = None,
        flip: bool | None = None,
        resize: int | None = None,
        filter: Literal["bicubic", "bilinear"] = "bicubic",
        orientation: Literal["ignore", "apply"] = "ignore",
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        threads: int | None = None,
        shuffle: Literal["global", "shards", "none"] | bool = "global",
        last: Literal["drop", "pad", "keep"] = "drop",
        epochs: int | None = None,
        bad: float = 0.0,
        depth: int = 2,
        held_s: int | None = 30,
        cache: str | PathLike[str] | None = None,
        cache_bytes: int | None = None,
        read_ahead: int | None = None,
        memory: Callable[[int], Buffer] | None = None,
    ) -> Self: ...
    @property
    def epoch(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def classes(self) -> list[str]: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def close(self) -> None: ...
    def set_epoch(self, epoch: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def stats(self) -> dict[str, Any]: ...

def shard_imagenet(args: list[str]) -> int: ...
def view(
    image: Buffer, size: int, mode: str, resize: int | None, filter: str, orientation: str
) -> bytearray: ...

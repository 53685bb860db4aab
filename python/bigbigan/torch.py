"""Batches as PyTorch's tensors, normalised on the device while the step before computes.

>>> import bigbigan.torch
>>> loader = bigbigan.torch.Loader("data/imagenet", batch=256, device="cuda", seed=1)
>>> for images, labels in loader:  # float (256, 3, 224, 224), channels last
...     ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import bigbigan
import torch

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Loader", "pinned"]

# Of RGB from 0 to 1, as torchvision's models take them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def pinned(size: int) -> memoryview:
    """Page-locked memory from PyTorch's allocator, for `bigbigan.Loader(memory=pinned)`."""
    return memoryview(torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True).numpy())


class Loader:
    """A `bigbigan.Loader` whose batches are tensors on a device.

    A loop over it gives `(images, labels)`, or `(images, small, labels)` where `small` is asked for: images are
    (N, 3, H, W), channels last, of `dtype`, `(x / 255 - mean) / std`; labels are int64 (N).

    On CUDA the batches' memory is page-locked, and the next batch is copied and normalised on a stream of its own.
    Rank and world are those of `torch.distributed` where it is initialised and they are not given. All other
    options are those of `bigbigan.Loader`.

    A new loop, `set_epoch`, `load_state_dict` and `close` end the loop before.

    `state_dict()` is the position after the batch that the loop was given last, however many are under way.
    """

    def __init__(
        self,
        source: Any,
        split: str = "train",
        *,
        device: torch.device | str | int = "cpu",
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        rank: int | None = None,
        world: int | None = None,
        **options: Any,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        if world is None:
            world = torch.distributed.get_world_size() if distributed else 1
        for name, value in (("mean", mean), ("std", std)):
            if torch.as_tensor(value, device="cpu").shape != (3,):
                raise ValueError(f"{name} = {value}: three numbers, of red, green and blue")
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"device = {device}: it may be cpu or cuda")
        cuda = self.device.type == "cuda"
        if cuda:
            options.setdefault("memory", pinned)
        self.loader = bigbigan.Loader(source, split, rank=rank, world=world, **options)
        self.dtype = dtype
        scale = torch.tensor(std, dtype=torch.float32, device="cpu") * 255
        # x / 255 / std - mean / std, as one product and one sum.
        shape = (1, 3, 1, 1)
        self._factor = (1 / scale).reshape(shape).to(self.device)
        self._shift = (-torch.tensor(mean, dtype=torch.float32, device="cpu") * 255 / scale).reshape(shape).to(self.device)
        self._stream = torch.cuda.Stream(self.device) if cuda else None
        self._given: dict[str, Any] | None = None
        # Counts what makes loops that are under way old: their batches ahead are no longer to be given.
        self._turn = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        self._turn += 1
        return self._loop(self._turn)

    def _loop(self, turn: int) -> Iterator[tuple[torch.Tensor, ...]]:
        if turn != self._turn:
            return
        if self._given is None:
            self._given = self.loader.state_dict()
        else:
            # A loop that was left early had batches under way that nobody saw.
            self.loader.load_state_dict(self._given)
        batches = iter(self.loader)
        if self._stream is None:
            for batch in batches:
                tensors = self._tensors(batch)
                self._given = batch.state_dict()
                yield tensors
                if turn != self._turn:
                    return
            return
        ahead: deque[tuple[Any, torch.cuda.Event, tuple[torch.Tensor, ...]]] = deque()
        for batch in batches:
            with torch.cuda.stream(self._stream):
                tensors = self._tensors(batch)
            ahead.append((batch, self._stream.record_event(), tensors))
            if len(ahead) > 1:
                yield self._hand_over(ahead.popleft())
                if turn != self._turn:
                    return
        while ahead and turn == self._turn:
            yield self._hand_over(ahead.popleft())

    def _tensors(self, batch: bigbigan.Batch) -> tuple[torch.Tensor, ...]:
        labels = torch.from_numpy(batch.labels)
        views = [batch.images] if batch.small is None else [batch.images, batch.small]
        # The labels are copied on a CPU: they would keep the whole batch's memory.
        labels = labels.clone() if self._stream is None else labels.to(self.device, non_blocking=True)
        return (*(self._normalised(torch.from_numpy(view)) for view in views), labels)

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return torch.addcmul(self._shift, images.to(torch.float32), self._factor).to(self.dtype)

    def _hand_over(self, made: tuple[Any, torch.cuda.Event, tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        batch, copied, tensors = made
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copied)
        for tensor in tensors:
            tensor.record_stream(stream)
        # Its memory is filled again when `batch` goes: not before the copy is made.
        copied.synchronize()
        self._given = batch.state_dict()
        return tensors

    def set_epoch(self, epoch: int) -> None:
        """Goes to the first batch of an epoch, counted from 0."""
        self.loader.set_epoch(epoch)
        self._given = None
        self._turn += 1

    def state_dict(self) -> dict[str, Any]:
        """The position after the batch that was given last."""
        return self._given or self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on at a position that `state_dict` gave, of any number of ranks and threads."""
        self.loader.load_state_dict(state)
        self._given = None
        self._turn += 1

    @property
    def epoch(self) -> int:
        """The epoch of the batch that comes next."""
        return int(self.state_dict()["epoch"])

    @property
    def samples(self) -> int:
        """Number of samples of the split."""
        return self.loader.samples

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by label."""
        return self.loader.classes

    def stats(self) -> dict[str, Any]:
        """As `bigbigan.Loader.stats`."""
        return self.loader.stats()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the loader's threads."""
        self._turn += 1
        self.loader.close()

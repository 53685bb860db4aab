"""JPEG tar shards to whole batches.

>>> import bigbigan
>>> loader = bigbigan.Loader("data/imagenet", batch=256, size=224, seed=1)
>>> for epoch in range(90):
...     for batch in loader:
...         batch.images, batch.labels  # u8 (256, 224, 224, 3) and i64 (256), NumPy arrays without a copy

The same batches in the same order for every number of threads; `rank` and `world` deal the rows of a batch out;
`loader.state_dict()` goes on in mid-epoch, with other threads and ranks too. `bigbigan.torch` has the same for
PyTorch. See docs/python.md.
"""

from importlib.metadata import version as _version

from bigbigan._bigbigan import Batch, DataError, Epoch, Loader

__all__ = ["Batch", "DataError", "Epoch", "Loader"]
__version__ = _version("bigbigan")

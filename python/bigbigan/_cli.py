"""The console scripts."""

import sys

from bigbigan import _bigbigan


def shard_imagenet() -> int:
    """The program shard-imagenet."""
    return _bigbigan.shard_imagenet(["shard-imagenet", *sys.argv[1:]])

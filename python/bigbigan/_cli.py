"""The console scripts."""

import signal
import sys

from bigbigan import _bigbigan


def shard_imagenet() -> int:
    """The program shard-imagenet."""
    # As of any program: the first Ctrl-C is its own to answer.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _bigbigan.shard_imagenet(["shard-imagenet", *sys.argv[1:]])

"""What all tests of the wheel use: data folders that the wheel's own program makes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# More of everything, as `make test-long` asks for it.
LONG = os.environ.get("BIGBIGAN_TESTS") == "long"


def program(name):
    """A console script of this environment."""
    return str(Path(sys.executable).parent / name)


def synth(folder, images, size):
    words = ["--images", str(images), "--val-images", "24", "--classes", "5", "--size", str(size), "--shard-bytes", "100K"]
    subprocess.run([program("shard-imagenet"), "synth", "--output", str(folder), *words], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """203 images of 96 pixels a side, 5 classes, several shards, and 24 in val."""
    return synth(tmp_path_factory.mktemp("data") / "data", 203, 96)

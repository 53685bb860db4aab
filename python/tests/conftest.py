"""What all tests of the wheel use: data folders that the wheel's own program makes."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

# More of everything, as `make test-long` asks for it.
LONG = os.environ.get("BIGBIGAN_TESTS") == "long"


def needs(name):
    """A module that a test wants: skipped without it, but not where all judges are to be there (`.ci/run`)."""
    if os.environ.get("BIGBIGAN_JUDGES") == "all":
        return importlib.import_module(name)
    return pytest.importorskip(name)


def program(name):
    """A console script of this environment."""
    return str(Path(sys.executable).parent / name)


def ids(loader):
    return [batch.ids.tolist() for batch in loader]


def synth(folder, images, size):
    words = ["--images", str(images), "--val-images", "24", "--classes", "5", "--size", str(size), "--shard-bytes", "100K"]
    subprocess.run([program("shard-imagenet"), "synth", "--output", str(folder), *words], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """203 images of 96 pixels a side, 5 classes, several shards, and 24 in val."""
    return synth(tmp_path_factory.mktemp("data") / "data", 203, 96)


@pytest.fixture(scope="session")
def exported(data, tmp_path_factory):
    """What `trainer export` wrote of a tiny run."""
    folder = tmp_path_factory.mktemp("runs")
    keys = ["g.ch=4", "f.ch=4", "h.width=16", "j.width=16", "e.depth=8", "e.mlp_width=16", "g.res=16", "f.res=16"]
    keys += ["e.res=32", "train.batch=8", "train.steps=2", "eval.probe_images=0", "images.standing_images=16"]
    words = [word for key in keys for word in ("--set", key)]
    run = ["run", "--preset", "demo", "--device", "cpu", "--data", str(data), "--out", str(folder / "run")]
    for args in ([*run, *words], ["export", "--run", str(folder / "run"), "--out", str(folder / "exported")]):
        trainer(*args)
    return folder / "exported"


def trainer(*args, **options):
    said = subprocess.run([program("trainer"), *args], capture_output=True, text=True, **options)
    assert said.returncode == 0, said.stderr
    return said.stdout

"""The examples do what they say, at small size."""

import runpy
from pathlib import Path

import numpy as np
from conftest import needs, synth
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_a_run_goes_on_with_other_ranks(data, capsys):
    example("resume.py")(str(data))
    assert "are the 25 of one process" in capsys.readouterr().out


def test_jax_learns_from_batches(data):
    needs("jax")
    losses = example("jax_loop.py")(str(data))
    assert losses[-1] < losses[0] < 2


def test_photographs_are_searched_and_told_apart(exported, tmp_path, capsys):
    needs("torch")
    draw = np.random.default_rng(0)
    for name, colour in [("red", (200, 60, 60)), ("blue", (60, 60, 200))]:
        (tmp_path / name).mkdir()
        for number in range(20):
            noise = draw.integers(-50, 50, (40, 56, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number:02}.jpg")
    example("search.py")(str(exported), str(tmp_path), str(tmp_path / "red" / "03.jpg"))
    said = capsys.readouterr().out
    found = [line for line in said.splitlines() if line.startswith("  ")]
    assert len(found) == 6 and found[0].endswith("red/03.jpg") and all("/red/" in line for line in found)
    assert "probe: 100.0% of 8" in said


def test_a_classifier_learns_as_with_torchvision(tmp_path):
    needs("torch")
    needs("torchvision")
    data = synth(tmp_path / "data", 768, 32)
    train = example("cifar10.py")
    ours, theirs = (train(str(data), loader, seed=3, epochs=8, width=4) for loader in ("bigbigan", "torchvision"))
    # Of five classes.
    assert min(ours[-1], theirs[-1]) > 0.5, (ours, theirs)

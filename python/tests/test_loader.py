"""Batches in Python: what they hold, how long they live, and how a loader goes on and ends."""

import gc
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import xxhash
from conftest import LONG, ids, needs, program

import bigbigan
from bigbigan import Loader


def test_a_batch_is_arrays_of_the_loaders_own_memory(data):
    loader = Loader(data, batch=8, size=64, small=32, seed=3)
    batch = next(iter(loader))
    assert (batch.images.shape, batch.images.dtype) == ((8, 64, 64, 3), np.uint8)
    assert (batch.small.shape, batch.small.dtype) == ((8, 32, 32, 3), np.uint8)
    assert (batch.labels.shape, batch.labels.dtype) == ((8,), np.int64)
    assert (batch.ids.shape, batch.ids.dtype) == ((8,), np.uint64)
    assert len(batch) == 8 and len(batch.keys) == 8 and set(batch.labels) <= set(range(5))
    assert batch.images.ctypes.data == batch.images.ctypes.data, "no copy"
    assert batch.images.flags.c_contiguous and batch.images.flags.writeable
    # The law of the two sizes, by NumPy: means of 2 x 2 squares, halves rounded up.
    squares = batch.images.reshape(8, 32, 2, 32, 2, 3).astype(np.uint32).sum((2, 4))
    assert np.array_equal(batch.small, (squares + 2) // 4)
    assert "8 rows, size=64, small=32" in repr(batch)
    alone = next(iter(Loader(data, batch=8, size=64)))
    assert alone.small is None


def test_every_way_to_see_a_batch_shows_the_same_bytes(data):
    batch = next(iter(Loader(data, batch=4, size=32)))
    image = batch.images
    view = memoryview(image)
    assert view.nbytes == 4 * 32 * 32 * 3 and bytes(view) == image.tobytes()
    assert np.from_dlpack(image).ctypes.data == image.ctypes.data
    torch = needs("torch")
    for array in (batch.images, batch.labels, batch.ids):
        assert torch.from_numpy(array).data_ptr() == array.ctypes.data
    for tensor in (torch.from_numpy(image), torch.from_dlpack(image), torch.as_tensor(image)):
        assert tensor.data_ptr() == image.ctypes.data and tensor.shape == image.shape
    image[0, 0, 0, 0] ^= 255
    assert batch.images[0, 0, 0, 0] == image[0, 0, 0, 0], "yours to write to"


def test_images_are_those_of_the_files(data):
    from PIL import Image

    loader = Loader(data, "val", batch=4, size=96, mode="full", shuffle=False)
    batch = next(iter(loader))
    files = batch.member("jpg")
    assert len(files) == 4
    for file, pixels in zip(files, batch.images):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file)).convert("RGB")), pixels)
    assert batch.member("json") == [None] * 4
    keys = batch.keys
    batch.ids[:] = 2**40
    assert batch.keys == keys and batch.member("jpg") == files, "ids may be written to"


def test_a_loop_is_an_epoch_and_the_next_loop_the_next(data):
    loader = Loader(data, batch=20, size=16, seed=1, epochs=3)
    assert len(loader) == 10 and loader.samples == 203 and len(loader.classes) == 5
    first, second = ids(loader), ids(loader)
    assert len(first) == len(second) == 10 and first != second
    assert loader.epoch == 2
    # A loop that is left early leaves the rest to the next one.
    for batch in loader:
        break
    third = [batch.ids.tolist(), *ids(loader)]
    assert len(third) == 10 and ids(loader) == [], "three epochs"
    loader.set_epoch(1)
    assert ids(loader) == second
    one_by_one = Loader(data, batch=20, size=16, seed=1, epochs=3)
    assert [ids(one_by_one) for _ in range(3)] == [first, second, third]
    epoch = iter(one_by_one)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(epoch)


def test_ranks_share_an_epoch_and_threads_change_nothing(data):
    whole = Loader(data, batch=12, size=24, seed=5, threads=1)
    parts = [Loader(data, batch=4, size=24, seed=5, rank=rank, world=3, threads=rank + 1) for rank in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        rows = np.empty_like(batch.images)
        for rank, share in enumerate(shares):
            rows[rank::3] = share.images
        assert np.array_equal(rows, batch.images)


def test_a_state_goes_on_in_mid_epoch_with_other_ranks(data):
    straight = Loader(data, batch=12, size=16, seed=7)
    expected = [batch.images.copy() for _ in range(2) for batch in straight]
    loader = Loader(data, batch=12, size=16, seed=7)
    for n, batch in enumerate(loader):
        if n == 5:
            break
    state = json.loads(json.dumps(loader.state_dict()))
    assert state == batch.state_dict() and (state["epoch"], state["batch"]) == (0, 6)
    parts = [Loader(data, batch=3, size=16, seed=7, rank=rank, world=4) for rank in range(4)]
    for part in parts:
        part.load_state_dict(state)
        assert part.state_dict()["batch"] == 6
    n = 6
    for _ in range(2):
        for shares in zip(*parts, strict=True):
            for rank, share in enumerate(shares):
                assert np.array_equal(share.images, expected[n][rank::4])
            n += 1
    assert n == len(expected)
    for other in (dict(seed=8), dict(batch=6), dict(size=32), dict(shuffle="shards"), dict(split="val", batch=6)):
        options = dict(batch=12, size=16, seed=7) | other
        with pytest.raises(ValueError):
            Loader(data, options.pop("split", "train"), **options).load_state_dict(state)


MODES = ["random-resized-crop", "resnet", "tpu", "distorted", "biggan", "eval", "full", "small"]


@pytest.mark.parametrize("round", range(40 if LONG else 10))
def test_batches_are_those_of_the_rust_loader(data, round):
    """Any options, from any place: what pipeline/examples/hashes.rs prints."""
    draw = random.Random(round)
    size = draw.choice([16, 32, 64])
    world = draw.choice([1, 2, 3])
    options = dict(
        batch=draw.choice([1, 5, 16]), seed=draw.randrange(1 << 60), threads=draw.choice([1, 2, 5]), world=world,
        rank=draw.randrange(world), shuffle=draw.choice(["global", "shards", "none"]), mode=draw.choice(MODES),
        last=draw.choice(["drop", "pad", "keep"]), small=draw.choice([None, size, size // 2, size // 4]),
    )  # fmt: skip
    at = (draw.randrange(3), draw.randrange(3))
    rust = dict(options, large=size, mode="resnet" if options["mode"] == MODES[0] else options["mode"])
    words = [os.environ["BIGBIGAN_HASHES"], data, "train", json.dumps(rust), *map(str, at), "6"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split("\n")
    loader = Loader(data, size=size, **options)
    loader.load_state_dict({"epoch": at[0], "batch": at[1]})
    count = 0

    def digest(array):
        return xxhash.xxh3_64_hexdigest(b"" if array is None else array.tobytes())

    while count < 6:
        for batch in loader:
            state = batch.state_dict()
            ours = [state["epoch"], state["batch"], len(batch)]
            ours += map(digest, (batch.images, batch.small, batch.labels, batch.ids))
            assert " ".join(map(str, ours)) == said[count], options
            count += 1
            if count == 6:
                break


def test_a_row_that_is_held_keeps_its_batch_and_nothing_else_does(data):
    loader = Loader(data, batch=10, size=16, depth=1, held_s=1)
    epoch = iter(loader)
    row = next(epoch).images[3, 2:5]
    kept = row.copy()
    for _ in range(15):
        assert next(epoch) is not None
    assert np.array_equal(row, kept)
    del loader, epoch
    gc.collect()
    assert np.array_equal(row, kept), "a view outlives its loader"


def test_a_caller_that_keeps_all_batches_is_told_and_goes_on(data, caplog):
    loader = Loader(data, batch=10, size=16, depth=1, held_s=3)
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="depth"):
        list(loader)
    assert time.monotonic() - begun < 10
    assert [record.name for record in caplog.records] == ["bigbigan"] and "held" in caplog.text
    assert len(ids(loader)) == 17, "the three before are gone, the rest of the epoch comes"
    held, loader = [], Loader(data, batch=10, size=16, depth=1, held_s=20)
    epoch = iter(loader)
    held = [next(epoch) for _ in range(3)]
    threading.Timer(0.5, held.clear).start()
    assert len(next(epoch)) == 10, "given back by another thread"


def test_what_is_wrong_is_said(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="shard-imagenet"):
        Loader(tmp_path / "none", batch=1)
    for options, words in [
        (dict(batch=0), "batch = 0"), (dict(batch=1, size=15, small=7), "small = 7"), (dict(batch=1000), "fewer"),
        (dict(batch=1, mode="upside-down"), "random-resized-crop"), (dict(batch=1, last="lost"), "drop"),
        (dict(batch=1, rank=2, world=2), "rank"), (dict(batch=1, scale=(0, 1)), "scale"),
        (dict(batch=1, mode="full", scale=(0.5, 1)), "scale"), (dict(batch=1, shuffle="twice"), "shards"),
        (dict(batch=1, shuffle=1.5), "shards"), (dict(batch=1, world=2**63, last="keep"), "world"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            Loader(data, **options)
    with pytest.raises(ValueError, match="epoch"):
        Loader(data, batch=1).set_epoch(2**64 - 1)
    assert "scale=0.1..1" in repr(Loader(data, batch=1, scale=[0.1, 1]))
    with pytest.raises(bigbigan.DataError, match="val"):
        Loader(data, "test", batch=1)
    with pytest.raises(KeyError, match="batch"):
        Loader(data, batch=1).load_state_dict({"epoch": 0})
    with Loader(data, batch=1, size=16) as loader:
        next(iter(loader))
    with pytest.raises(RuntimeError, match="closed"):
        iter(loader)


def test_a_bad_image_is_an_error_or_stood_in_for(data, tmp_path):
    import shutil

    shutil.copytree(data, tmp_path / "bad")
    shard = sorted((tmp_path / "bad").glob("train-*.tar"))[0]
    bytes_ = bytearray(shard.read_bytes())
    start = bytes_.index(b"\xff\xd8\xff")
    bytes_[start : start + 300] = bytes(300)
    shard.write_bytes(bytes_)
    halting = Loader(tmp_path / "bad", batch=7, size=16)
    for _ in range(2):
        with pytest.raises(bigbigan.DataError, match="cannot be decoded"):
            ids(halting)
    loader = Loader(tmp_path / "bad", batch=7, size=16, bad=0.1)
    assert len(ids(loader)) == 29
    stats = loader.stats()
    assert stats["bad"] == 1 and "cannot be decoded" in stats["first_bad"][0]


def test_memory_may_be_the_callers(data):
    given = []

    def memory(size):
        given.append(np.zeros(size, np.uint8))
        return given[-1]

    loader = Loader(data, batch=4, size=32, depth=1, memory=memory)
    batch = next(iter(loader))
    assert len(given) == 3 and {array.size for array in given} == {4 * 32 * 32 * 3}
    assert batch.images.ctypes.data in {array.ctypes.data for array in given}

    def interrupted(size):
        raise KeyboardInterrupt("no more")

    with pytest.raises(KeyboardInterrupt, match="no more"):
        next(iter(Loader(data, batch=4, memory=interrupted)))
    with pytest.raises(ValueError, match="read-only"):
        next(iter(Loader(data, batch=4, memory=lambda size: bytes(size))))
    with pytest.raises(ValueError, match="function"):
        Loader(data, batch=4, memory=5)
    within = Loader(data, batch=4, memory=lambda size: within.state_dict())
    with pytest.raises(RuntimeError, match="memory="):
        next(iter(within))
    watched = weakref.ref(given[0])
    del loader, batch
    given.clear()
    gc.collect()
    assert watched() is None, "given back"


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_lifetimes_at_random_leak_nothing(data):
    """Views that live for a while, loops left early, errors in the middle, two loaders at once."""
    draw, held, loaders, memory = random.Random(1), [], [], []
    rounds = 10_000 if LONG else 1_000
    for round in range(rounds):
        if not loaders or draw.random() < 0.05:
            loaders = [
                Loader(data, batch=draw.choice([1, 4]), size=16, small=8, seed=round, depth=6, held_s=5, threads=2)
                for _ in range(2)
            ]
        try:
            for batch in draw.choice(loaders):
                what = draw.random()
                if what < 0.3 and len(held) < 5:
                    held.append(draw.choice([batch, batch.images, batch.small[0], batch.labels, memoryview(batch.ids)]))
                if what > 0.9:
                    raise KeyError(round)
                if what > 0.6:
                    break
        except KeyError:
            pass
        while len(held) > draw.randrange(4):
            held.pop(draw.randrange(len(held)))
        if round >= rounds // 2:
            memory.append(resident())
    first, last = memory[: len(memory) // 4], memory[-len(memory) // 4 :]
    assert sorted(last)[len(last) // 2] < sorted(first)[len(first) // 2] * 1.02 + (1 << 20)


def test_the_program_is_in_the_wheel(tmp_path):
    said = subprocess.run([program("shard-imagenet"), "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("shard-imagenet ")
    said = subprocess.run([program("shard-imagenet"), "inspect", tmp_path], capture_output=True, text=True)
    assert said.returncode == 2 and "error: " in said.stderr
    said = subprocess.run([program("shard-imagenet"), "--nonsense"], capture_output=True, text=True)
    assert said.returncode == 2 and "Usage" in said.stderr
    assert bigbigan.__version__ and Path(bigbigan.__file__).with_name("py.typed").exists()
    share = Path(sys.prefix) / "share"
    for name in ("shard-imagenet", "trainer"):
        assert (share / "man/man1" / f"{name}.1").read_text().startswith(".ie"), name
        assert name in (share / "bash-completion/completions" / name).read_text()
        assert (share / "zsh/site-functions" / f"_{name}").read_text().startswith(f"#compdef {name}")
        assert name in (share / "fish/vendor_completions.d" / f"{name}.fish").read_text()


def test_words_are_those_of_python(data, tmp_path):
    for options, what in [
        ({"size": 0}, "size = 0"),
        ({"small": 64}, "must be size = 224"),
        ({"bad": 2.0}, "bad = 2"),
        ({"mode": "resize-centre-crop"}, "resize="),
        ({"shuffle": None}, "shuffle = "),
    ]:
        with pytest.raises(ValueError, match=what):
            Loader(data, batch=8, **options)
    (tmp_path / "cat").mkdir()
    with pytest.raises(bigbigan.DataError, match="build --layout imagefolder"):
        Loader(str(tmp_path), batch=8)
    with pytest.raises(FileNotFoundError, match="not a file or a pattern"):
        Loader(f"{data}/train-{{000000..000003}}.tar", batch=8)
    batch = next(iter(Loader(data, batch=2, size=16)))
    assert batch.member(".jpg") == batch.member("jpg") != [None] * 2


def test_what_was_counted_is_told_when_the_threads_have_ended(data):
    loader = Loader(data, batch=20, size=16, epochs=1)
    assert loader.stats() == {}
    assert len(ids(loader)) == 10
    loader.close()
    assert loader.stats()["batches"] == 10 and loader.stats()["bad"] == 0

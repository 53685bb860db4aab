"""bigbigan.torch on a CPU; on CUDA where there is one."""

import numpy as np
import pytest
from conftest import needs

torch = needs("torch")

import bigbigan  # noqa: E402
import bigbigan.torch  # noqa: E402
from bigbigan.torch import IMAGENET_MEAN, IMAGENET_STD, Loader  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_are_normalised_and_channels_last(data, device, dtype):
    plain = bigbigan.Loader(data, batch=6, size=32, seed=4)
    loader = bigbigan.torch.Loader(data, batch=6, size=32, seed=4, device=device, dtype=dtype)
    assert len(loader) == len(plain)
    for batch, (images, labels) in zip(plain, loader, strict=True):
        # As torchvision's ToTensor and Normalize do it.
        pixels = torch.from_numpy(batch.images.copy()).permute(0, 3, 1, 2).to(torch.float32).div(255)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        expected = ((pixels - mean) / std).to(dtype)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert (images.dtype, images.device.type, labels.device.type) == (dtype, device, device)
        torch.testing.assert_close(images.cpu(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=2e-6)
        assert np.array_equal(labels.cpu().numpy(), batch.labels)


@pytest.mark.parametrize("device", DEVICES)
def test_tensors_stay_what_they_are(data, device):
    """All of an epoch is kept: tensors are no views of the loader's memory."""
    loader = bigbigan.torch.Loader(data, batch=6, size=32, seed=4, device=device, held_s=1)
    kept = list(loader)
    again = bigbigan.torch.Loader(data, batch=6, size=32, seed=4, device=device)
    for (images, labels), (same, numbers) in zip(kept, again, strict=True):
        assert torch.equal(images, same) and torch.equal(labels, numbers)


@pytest.mark.parametrize("device", DEVICES)
def test_a_state_is_that_of_what_was_given(data, device):
    def loader():
        return bigbigan.torch.Loader(data, batch=6, size=32, small=16, seed=4, device=device)

    whole = list(loader())
    first = loader()
    for n, _ in enumerate(first):
        if n == 4:
            break
    state = first.state_dict()
    assert state["batch"] == 5
    second = loader()
    second.load_state_dict(state)
    for rest in (list(second), list(first)):
        assert len(rest) == len(whole) - 5
        for ours, expected in zip(rest, whole[5:], strict=True):
            assert len(ours) == 3 and all(map(torch.equal, ours, expected))
    first.set_epoch(0)
    assert torch.equal(next(iter(first))[0], whole[0][0])


@pytest.mark.parametrize("device", DEVICES)
def test_a_loop_that_is_old_gives_nothing_more(data, device):
    loader = bigbigan.torch.Loader(data, batch=6, size=32, seed=4, device=device)
    first = iter(loader)
    begun = next(first)[0]
    loader.set_epoch(0)
    assert list(first) == []
    second = iter(loader)
    assert torch.equal(next(second)[0], begun)
    third = iter(loader)
    assert torch.equal(next(third)[0], list(bigbigan.torch.Loader(data, batch=6, size=32, seed=4))[1][0].to(device))
    assert list(second) == []


def test_a_default_device_changes_nothing(data):
    with torch.device("meta"):
        images, labels = next(iter(bigbigan.torch.Loader(data, batch=6, size=32)))
    assert images.device.type == labels.device.type == "cpu"


def test_ranks_are_those_of_torch_distributed(data):
    torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    try:
        assert "rank=0, world=1" in repr(bigbigan.torch.Loader(data, batch=6).loader)
        assert "rank=2, world=3" in repr(bigbigan.torch.Loader(data, batch=6, rank=2, world=3).loader)
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(ValueError, match="cpu or cuda"):
        bigbigan.torch.Loader(data, batch=6, device="meta")


def test_an_exception_before_the_first_batch_loses_none_on_a_stream(data, monkeypatch):
    """The second batch is asked for before the first is given; CUDA's stream is stood in for."""
    import contextlib

    class Event:
        def synchronize(self):
            pass

    class Stream:
        def record_event(self):
            return Event()

        def wait_event(self, event):
            pass

    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)

    class Interrupted:
        def __init__(self, loader):
            self.loader, self.left = loader, 1

        def __getattr__(self, name):
            return getattr(self.loader, name)

        def __iter__(self):
            batches = iter(self.loader)
            yield next(batches)
            if self.left:
                self.left = 0
                raise KeyboardInterrupt
            yield from batches

    for before in (lambda loader: None, lambda loader: loader.set_epoch(2)):
        plain = Loader(data, batch=20, size=16, seed=1)
        before(plain)
        wanted = [labels.tolist() for _, labels in plain]
        loader = Loader(data, batch=20, size=16, seed=1)
        before(loader)
        loader._stream = Stream()
        loader.loader = Interrupted(loader.loader)
        with pytest.raises(KeyboardInterrupt):
            list(loader)
        assert loader.state_dict()["batch"] == 0
        assert [labels.tolist() for _, labels in loader] == wanted


def test_it_has_what_the_loader_has(data):
    with Loader(data, batch=20, size=16, epochs=2) as loader:
        assert (loader.epoch, loader.samples, len(loader.classes)) == (0, 203, 5)
        assert len(list(loader)) == 10 and loader.epoch == 1 and loader.stats()["images"] >= 200
    for mean in (0.5, (0.5,)):
        with pytest.raises(ValueError, match="three numbers"):
            Loader(data, batch=20, mean=mean)


def test_an_exception_while_tensors_are_made_loses_no_batch(data, monkeypatch):
    wanted = [labels.tolist() for _, labels in Loader(data, batch=20, size=16, seed=1)]
    loader, seen = Loader(data, batch=20, size=16, seed=1), []
    made = loader._tensors
    monkeypatch.setattr(loader, "_tensors", lambda batch: made(batch) if len(seen) != 2 else (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        for _, labels in loader:
            seen.append(labels.tolist())
    monkeypatch.setattr(loader, "_tensors", made)
    assert loader.state_dict()["batch"] == 2
    assert seen + [labels.tolist() for _, labels in loader] == wanted

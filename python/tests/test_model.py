"""bigbigan.view, bigbigan.load and the program `trainer` of its own wheel."""

import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile

import bigbigan
import numpy as np
import pytest
from conftest import needs, program, trainer
from PIL import Image, ImageSequence

SIZES = [(96, 64), (64, 97), (33, 33), (200, 31), (128, 128), (57, 144), (31, 32)]


def photograph(size, seed):
    """Something smooth with an edge in it, RGB."""
    (width, height), draw = size, np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    image = np.stack([np.sin(x * k + y * draw.uniform(1, 3)) * 100 + 128 for k in draw.uniform(1, 4, 3)], axis=-1)
    image[height // 3 :, width // 2 :] *= 0.6
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of JPEG and PNG files of odd sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        image = Image.fromarray(photograph(size, number))
        kind = {"quality": 95} if number % 3 else {}
        image.save(folder / f"{number}.{'jpg' if number % 3 else 'png'}", **kind)
    return folder


@pytest.mark.parametrize("mode", ["eval", "full", "resize-centre-crop"])
@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
def test_a_view_is_the_loader_s(data, mode, filter):
    options = {"filter": filter} | ({"resize": 40} if mode == "resize-centre-crop" else {})
    loader = bigbigan.Loader(data, "val", batch=8, size=32, mode=mode, shuffle=False, epochs=1, **options)
    files = {}
    for path in data.glob("val-*.tar"):
        with tarfile.open(path) as tar:
            files |= {member.name: tar.extractfile(member).read() for member in tar}
    seen = 0
    for batch in loader:
        for row, key in zip(batch.images, batch.keys, strict=True):
            bytes_ = files[f"{key}.jpg"]
            assert np.array_equal(bigbigan.view(bytes_, 32, mode, **options), row)
            pixels = np.asarray(Image.open(io.BytesIO(bytes_)).convert("RGB"))
            assert np.abs(bigbigan.view(pixels, 32, mode, **options).astype(int) - row).max() <= 1
            seen += 1
    assert seen == 24


@pytest.mark.parametrize("size", SIZES)
def test_a_view_is_pillow_s(size):
    pixels, (width, height), side = photograph(size, 3), size, 24
    square = min(size)
    for mode, length in [("full", square), ("eval", square * side // (side + 32))]:
        if length < 2:
            continue
        # Where the number of pixels beside the crop is odd, either place will do.
        found = bigbigan.view(pixels, side, mode).astype(int)
        places = [(left, top) for left in {(width - length) // 2, -((length - width) // 2)}
                  for top in {(height - length) // 2, -((length - height) // 2)}]  # fmt: skip
        boxes = [(left, top, left + length, top + length) for left, top in places]
        expected = [Image.fromarray(pixels).crop(box).resize((side, side), Image.Resampling.BICUBIC) for box in boxes]
        assert min(np.abs(found - np.asarray(image)).max() for image in expected) <= 1


def test_views_that_cannot_be_are_refused():
    pixels = photograph((40, 40), 0)
    for image, options, words in [
        (pixels, {"mode": "resnet"}, "chance"),
        (pixels, {"mode": "nonsense"}, "nonsense"),
        (pixels, {"size": 0}, "size"),
        (pixels, {"filter": "lanczos"}, "bicubic"),
        (pixels, {"orientation": "up"}, "apply"),
        (pixels, {"mode": "resize-centre-crop", "resize": 8}, "resize"),
        (pixels[..., :2], {}, "shape"),
        (pixels[:0], {}, "pixels"),
    ]:
        with pytest.raises((ValueError, bigbigan.DataError), match=words):
            bigbigan.view(image, **{"size": 16, **options})
    with pytest.raises((TypeError, BufferError)):
        bigbigan.view("a.jpg", 16)
    for data in (b"", b"GIF89a", b"\xff\xd8\xff\xe0"):
        with pytest.raises(bigbigan.DataError):
            bigbigan.view(data, 16)
    assert bigbigan.view(pixels[::-1], 16).flags.writeable


def test_the_trainer_runs_with_the_torch_beside_it():
    needs("torch")
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_LIBRARY_PATH", "LIBTORCH")}
    assert "libtorch 2.11" in trainer("--version", env=environment)
    bare = subprocess.run([program("trainer"), "nonsense"], capture_output=True, text=True)
    assert bare.returncode == 2 and "Usage" in bare.stderr


def test_features_are_those_of_the_trainer(exported, photos, tmp_path):
    torch = needs("torch")
    model = bigbigan.load(exported)
    assert (model.image_size, model.generated_size, model.step) == (32, 16, 2)
    names = {"avepool_feat": "avepool", "z_mean": "mu"}
    for name, theirs in names.items():
        out = tmp_path / name
        trainer("embed", "--run", str(exported), "--folder", str(photos), "--feature", theirs, "--out", str(out))
        rows = np.load(f"{out}.npy")
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        paths = [photos / line["key"] for line in lines]
        assert len(paths) == len(SIZES) and all(path.exists() for path in paths)
        found = model.encode(paths, name, batch_size=3).numpy()
        np.testing.assert_allclose(found, rows, rtol=1e-4, atol=1e-5)
    crelu = model.encode(paths)
    assert crelu.shape[1] == 2 * model.encode(paths, "avepool_feat").shape[1] and (crelu >= 0).all()
    # However an image comes, it is the same.
    png = photos / "0.png"
    one = model.encode(png)
    pixels = np.asarray(Image.open(png))
    for image in (str(png), png.read_bytes(), [png], Image.open(png), pixels, [pixels], iter([pixels])):
        assert torch.equal(model.encode(image), one)
    seen = np.stack([model.pixels(path) for path in paths])
    torch.testing.assert_close(model.encode(seen), crelu, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encode(torch.from_numpy(seen)), crelu, rtol=1e-4, atol=1e-5)


def test_a_batch_is_encoded_as_it_is(exported, data):
    torch = needs("torch")
    model = bigbigan.load(exported)
    batch = next(iter(bigbigan.Loader(data, "val", batch=8, size=32, mode="full", shuffle=False)))
    assert torch.equal(model.encode(batch), model.encode(batch.images.copy()))
    wrong = next(iter(bigbigan.Loader(data, "val", batch=8, size=16, mode="full", shuffle=False)))
    with pytest.raises(ValueError, match="32"):
        model.encode(wrong)


def test_images_are_made_of_codes(exported, photos):
    torch = needs("torch")
    model = bigbigan.load(exported)
    images = model.generate(5, seed=3, batch_size=2)
    assert images.shape == (5, 16, 16, 3) and images.dtype == torch.uint8
    assert torch.equal(images, model.generate(5, seed=3)) and not torch.equal(images, model.generate(5, seed=4))
    codes = torch.randn(5, model.latent, generator=torch.Generator().manual_seed(3))
    assert torch.equal(images, model.generate(codes))
    # As plain PyTorch opens it.
    plain = torch.jit.load(exported / "generator.pt").eval()
    with torch.inference_mode():
        floats = (plain(codes) + 1) * 127.5
    assert (floats - images.permute(0, 3, 1, 2)).abs().max() <= 0.51
    path = photos / "0.png"
    assert torch.equal(model.reconstruct(path), model.generate(model.encode(path, "z_mean")))
    Image.fromarray(model.reconstruct(path)[0].numpy())


def test_what_is_no_model_or_image_is_refused(exported, tmp_path):
    needs("torch")
    with pytest.raises(FileNotFoundError, match="trainer export"):
        bigbigan.load(tmp_path)
    model = bigbigan.load(exported)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    with pytest.raises(bigbigan.DataError, match=r"broken\.jpg"):
        model.encode([broken])
    with pytest.raises(FileNotFoundError):
        model.encode(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="avepool_feat"):
        model.encode([], "avepool")
    with pytest.raises(ValueError, match="no images"):
        model.encode([])
    with pytest.raises(ValueError, match="uint8"):
        model.encode(np.zeros((2, 32, 32, 3), np.float32))


def test_each_image_is_what_it_was_when_it_was_given(exported):
    torch = needs("torch")
    model = bigbigan.load(exported)
    frames = [Image.fromarray(photograph((40, 40), seed)) for seed in range(4)]
    gif = io.BytesIO()
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    film = Image.open(gif)
    one_by_one = torch.cat([model.encode(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)])
    torch.testing.assert_close(model.encode(ImageSequence.Iterator(film)), one_by_one, rtol=1e-4, atol=1e-5)

    def reused():
        memory = np.empty((40, 40, 3), np.uint8)
        for seed in range(4):
            memory[:] = photograph((40, 40), seed)
            yield memory

    copies = model.encode([array.copy() for array in reused()])
    assert torch.equal(model.encode(reused()), copies) and not torch.equal(copies[0], copies[1])
    jpeg = io.BytesIO()
    Image.fromarray(photograph((900, 700), 1)).save(jpeg, "JPEG")
    lazy = Image.open(jpeg)
    assert model.encode([lazy] * 8).shape[0] == 8


def test_features_can_be_learned_from(exported, photos):
    torch = needs("torch")
    features = bigbigan.load(exported).encode(photos / "0.png")
    torch.nn.Linear(features.shape[1], 2)(features).sum().backward()
    features += 1


def test_sixteen_bits_are_those_of_the_file(exported, tmp_path):
    needs("torch")
    model, path = bigbigan.load(exported), tmp_path / "grey.png"
    Image.fromarray(np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)).save(path)
    assert np.abs(model.pixels(path).astype(int) - model.pixels(Image.open(path))).max() <= 1
    with pytest.raises(ValueError, match="range"):
        model.encode(Image.fromarray(np.ones((40, 40), np.float32)))


def test_codes_are_the_seed_s_alone(exported):
    torch = needs("torch")
    model = bigbigan.load(exported)
    images = model.generate(3, seed=1)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(model.generate(np.int64(3), seed=1), images)
    finally:
        torch.set_default_dtype(torch.float32)
    for wrong in (torch.zeros(2, model.latent - 1), torch.zeros(model.latent), torch.zeros(0, model.latent)):
        with pytest.raises(ValueError, match="codes"):
            model.generate(wrong)


def test_a_model_goes_to_other_processes(exported, photos):
    torch = needs("torch")
    model = bigbigan.load(exported)
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other.encode(photos / "0.png"), model.encode(photos / "0.png"))


def test_what_is_wrong_is_named(exported, photos, tmp_path):
    torch = needs("torch")
    model = bigbigan.load(exported)
    png = (photos / "0.png").read_bytes()
    for images, error, words in [
        ([png, b"\xff\xd8\xff\xe0xx"], bigbigan.DataError, "image 1"),
        ([png, None], TypeError, "image 1.*NoneType"),
        ([np.zeros((4, 4), np.uint8)], ValueError, "image 0.*uint8"),
        (np.zeros((4, 4), np.uint8), ValueError, "uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), ValueError, "a list of them"),
        ([np.zeros((4, 4, 3))], ValueError, "float64"),
    ]:
        with pytest.raises(error, match=words):
            model.encode(images)
    with pytest.raises(ValueError, match="batch_size"):
        model.encode(png, batch_size=0)
    assert torch.equal(model.encode(bytearray(png)), model.encode(memoryview(png)))
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="no CUDA device"):
            bigbigan.load(exported, "cuda")
    model.config["eval"]["mode"] = "resnet"
    with pytest.raises(ValueError, match="at random"):
        model.encode(png)
    # A generator alone, and one of another export.
    shutil.copy(exported / "generator.pt", tmp_path)
    alone = bigbigan.load(tmp_path)
    assert alone.generate(1).shape[0] == 1
    with pytest.raises(ValueError, match=r"no encoder\.pt"):
        alone.encode(png)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "encoder.pt")
    with pytest.raises(ValueError, match=r"encoder\.pt: no network"):
        bigbigan.load(tmp_path)


def test_what_cannot_be_read_is_named_or_nan(exported, photos, tmp_path, caplog):
    torch = needs("torch")
    model = bigbigan.load(exported)
    sound = sorted(photos.iterdir())[:3]
    whole = sound[1].read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    lazy = Image.open(tmp_path / "cut.jpg")
    images = [sound[0], tmp_path / "cut.jpg", sound[1], tmp_path / "gone.jpg", b"text", lazy, sound[2]]
    with pytest.raises((bigbigan.DataError, OSError), match=r"cut\.jpg"):
        model.encode(images)
    for size in (1, 3, 64):
        caplog.clear()
        found = model.encode(images, bad="nan", batch_size=size)
        missing = torch.isnan(found)
        assert missing.all(1).tolist() == missing.any(1).tolist() == [False, True, False, True, True, True, False]
        torch.testing.assert_close(found[[0, 2, 6]], model.encode(sound), rtol=1e-4, atol=1e-4)
        said = [record.getMessage() for record in caplog.records]
        assert [any(word in line for line in said) for word in ("cut.jpg", "gone.jpg", "image 4", "image 5")] == [True] * 4
        assert len(said) == 4, said
    with pytest.raises(ValueError, match="raise or nan"):
        model.encode(sound, bad="skip")


def test_a_torch_that_is_another_is_refused_in_words(tmp_path):
    libraries = tmp_path / "torch" / "lib"
    libraries.mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    (libraries / "libtorch_cpu.so").touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    environment = dict(os.environ, PYTHONPATH=str(tmp_path))
    said = subprocess.run([program("trainer"), "--version"], capture_output=True, text=True, env=environment)
    assert said.returncode == 1 and "2.9.1+cpu" in said.stderr and "2.11" in said.stderr

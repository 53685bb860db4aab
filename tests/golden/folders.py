"""Folders, and what torchvision's ImageFolder makes of each: folders.json, for tools/tests/stories/layouts.rs. Needs
torchvision.

An entry is {"name", "files", "folders", "links", "root", "classes", "samples"}: files by path (bytes in Latin-1, each a
small JPEG), empty folders, links as [from, to]; the folder that is read; then the classes in order and the label of
each sample by its path, or "error" in place of both."""

import io
import json
import os
import tempfile
from pathlib import Path

from PIL import Image
from torchvision.datasets import ImageFolder


def case(name, files, folders=(), links=(), root="."):
    return {"name": name, "files": list(files), "folders": list(folders), "links": [list(l) for l in links], "root": root}


CASES = [
    case("plain", ["cat/1.jpg", "dog/2.jpg"]),
    case("nested", ["cat/1.jpg", "cat/more/2.jpg", "dog/sub/deep/3.jpg", "dog/4.jpg"]),
    case("a_folder_in_each_class", ["n01443537/images/n01443537_0.JPEG", "n01629819/images/n01629819_0.JPEG"]),
    case("class_named_train", ["bus/0.jpg", "car/1.jpg", "train/2.jpg"]),
    case("class_named_test", ["cat/0.jpg", "dog/1.jpg", "test/2.jpg", "val/3.jpg"]),
    case("splits", ["train/cat/1.jpg", "train/dog/2.jpg"], root="train"),
    case("one_class", ["a/1.jpg", "a/2.jpg"]),
    case("extensions", ["a/1.jpg", "a/2.JPEG", "a/3.png", "a/4.ppm", "a/5.bmp", "a/6.pgm", "a/7.tif", "a/8.tiff", "a/9.webp"]),
    case("more_extensions", ["a/0.jpg", "a/1.gif", "a/2.jfif", "a/3.jpe", "a/4.pbm", "a/5.pnm", "a/6.apng", "a/7.dib"]),
    case("not_images", ["a/0.jpg", "a/1.avif", "a/2.heic", "a/3.jxl", "a/4.txt", "a/5", "a/6.JPG.bak"]),
    case("dots_in_names", ["a/x.1.jpg", "a/x.2.jpg"]),
    case("beside_the_classes", ["cat/1.jpg", "dog/2.jpg", "readme.txt", "stray.jpg"]),
    case("sorted_by_code_point", ["B/1.jpg", "a/2.jpg", "\xc3\xa9/3.jpg", "\xe9/4.jpg", "a\xe9/5.jpg", "\xee\x80\x80/6.jpg"]),
    case("not_utf_8", ["cat/caf\xe9.jpg", "cat/caf\xe8.jpg", "d\xf6g/1.jpg"]),
    case("link_to_a_folder", ["cat/1.jpg", "elsewhere/dog/2.jpg", "elsewhere/dog/3.jpg"], links=[("cat/more", "../elsewhere/dog")]),
    case("link_to_a_class", ["in/cat/1.jpg", "store/dog/2.jpg"], links=[("in/dog", "../store/dog")], root="in"),
    case("empty_class", ["cat/1.jpg"], folders=["dog"]),
    case("no_class", ["1.jpg"]),
    case("macosx", ["cat/1.jpg", "dog/2.jpg", "cat/._1.jpg", "__MACOSX/cat/._1.jpg"]),
    case("hidden", ["cat/1.jpg", "dog/2.jpg", "cat/.2.jpg", ".cache/3.jpg"]),
    case("file_managers", ["cat/1.jpg", "dog/2.jpg", "cat/.DS_Store", "cat/Thumbs.db", ".DS_Store"]),
    case("system_folders", ["cat/1.jpg", "dog/2.jpg", "lost+found/3.jpg", "@eaDir/cat/4.jpg"]),
]


def verdict(case):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 90, 30)).save(out, "JPEG")
    with tempfile.TemporaryDirectory() as top:
        top = os.fsencode(top)
        path = lambda name: os.path.join(top, name.encode("latin-1"))
        for folder in case["folders"]:
            os.makedirs(path(folder))
        for name in case["files"]:
            os.makedirs(os.path.dirname(path(name)), exist_ok=True)
            Path(os.fsdecode(path(name))).write_bytes(out.getvalue())
        for name, to in case["links"]:
            os.symlink(to.encode("latin-1"), path(name))
        root = os.path.normpath(path(case["root"]))
        try:
            found = ImageFolder(os.fsdecode(root))
        except FileNotFoundError as error:
            return case | {"error": str(error).replace(os.fsdecode(root), "ROOT")}
        text = lambda name: os.fsencode(name).decode("latin-1")
        samples = {text(os.path.relpath(name, os.fsdecode(root))): label for name, label in found.samples}
        return case | {"classes": [text(name) for name in found.classes], "samples": samples}


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(verdict(case)) for case in CASES)
    Path(__file__).with_name("folders.json").write_text(f"[\n{lines}\n]\n")

"""Makes tests/golden/shards.json: odd tar shards, and what the WebDataset library reads of each.

    pip install webdataset==1.0.2; python tests/golden/shards.py

A case is a set of shards (zlib, base64) and a verdict: the samples in order, each with its shard, key, members and
the number that `.decode()` makes of its `.cls`; and the name of the error that ended the reading, if one did.
`pipeline/tests/webdataset.rs` opens the same bytes; where we mean to differ, that file says how.
"""

import base64
import io
import json
import pathlib
import struct
import tarfile
import zlib

import webdataset
from webdataset.autodecode import decoders
from webdataset.tariterators import group_by_keys, tar_file_iterator

IMAGE = "image of "


def entry(name, data=b"", kind=tarfile.REGTYPE, **more):
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def tar(*members, format=tarfile.GNU_FORMAT, end=True, **more):
    """Members are names, whose data say so, pairs of name and data, or entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, **more) as archive:
        for member in members:
            if isinstance(member, str):
                member = (member, (IMAGE + member).encode())
            info, data = member if isinstance(member[0], tarfile.TarInfo) else entry(*member)
            archive.addfile(info, io.BytesIO(data))
        last = archive.offset
    return out.getvalue() if end else out.getvalue()[:last]


def plain(*keys, label=b"1"):
    return [member for key in keys for member in (f"{key}.jpg", (f"{key}.cls", label))]


def header(name, size, kind=b"0", magic=b"ustar  \0", **at):
    """A raw header block; `at` puts bytes at offsets of it."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136], block[136:148] = b"%011o\0" % size, b"00000000000\0"
    block[156:157], block[257 : 257 + len(magic)] = kind, magic
    for key, value in at.items():
        start = int(key[1:])
        block[start : start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def raw(*parts):
    """Headers and data as they are, each padded to whole blocks, and an end marker."""
    padded = b"".join(part + bytes(-len(part) % 512) for part in parts)
    return padded + bytes(1024)


def sparse():
    """A GNU sparse file of one piece, then an ordinary sample."""
    piece = struct.pack(">12s", b"%011o\0" % 0) + b"%011o\0" % 512
    block = header(b"hole.jpg", 512, b"S", _386=piece, _483=b"%011o\0" % 512)
    return block + b"\1" * 512 + tar(*plain("a"))


def sparse_pax():
    """The newest sparse format: an extended header, and a map in front of the data."""
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "hole.jpg", "GNU.sparse.realsize": "512"}
    pax = b"".join(pax_record(key, value.encode()) for key, value in records.items())
    data = b"1\n0\n512\n".ljust(512, b"\0") + b"\1" * 512
    return raw(header(b"pax", len(pax), b"x"), pax, header(b"GNUSparseFile.0/hole.jpg", len(data)), data) [:-1024] + tar(*plain("a"))


def pax_record(key, value):
    rest = b" " + key.encode() + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def pax_size():
    """An extended header that names and sizes the member after it, whose own header says 0."""
    pax = pax_record("path", "\u00e9t\u00e9.jpg".encode()) + pax_record("size", b"7")
    return raw(header(b"pax", len(pax), b"x"), pax, header(b"other.jpg", 0), b"picture", header(b"\xc3\xa9t\xc3\xa9.cls", 1), b"6")


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def cases():
    two = plain("a", "b")
    whole = tar(*two)
    bare = tar(*two, end=False)
    long = "d" * 90 + "/" + "k" * 150
    yield "plain", {"train-0.tar": whole}
    yield "label_first", {"train-0.tar": tar(("a.cls", b"1"), "a.jpg", ("b.cls", b"2"), "b.jpg")}
    yield "upper_case", {"train-0.tar": tar("A.JPG", ("A.CLS", b"1"), "b.Jpeg", ("b.cls", b"2"))}
    yield "extensions", {"train-0.tar": tar(*[m for e in ("jpg", "jpeg", "jpe", "jfif", "png") for m in (f"{e}.{e}", (f"{e}.cls", b"1"))])}
    yield "folders", {"train-0.tar": tar(entry("x", kind=tarfile.DIRTYPE), *plain("x/a", "./b", "x.y/c"))}
    yield "keys_again", {"train-0.tar": tar(*two), "train-1.tar": tar(*two)}
    yield "members_apart", {"train-0.tar": tar("a.jpg", "b.jpg", ("a.cls", b"1"), ("b.cls", b"2"))}
    yield "names_again", {"train-0.tar": tar(*two, *plain("a", label=b"2"))}
    yield "name_twice", {"train-0.tar": tar("a.jpg", "a.jpg", ("a.cls", b"1"))}
    yield "appledouble", {"train-0.tar": tar("._a.jpg", *plain("a"), ("x/._b.cls", b"1"), "__MACOSX/x/._b.jpg", *plain("x/b"))}
    yield "hidden", {"train-0.tar": tar(".DS_Store", ".a.jpg", "x/.jpg", *plain("a"))}
    yield "metadata", {"train-0.tar": tar(("__meta__/x.json", b"{}"), ("__index__", b"1"), ("__x.jpg__", b"1"), *plain("a"))}
    yield "no_extension", {"train-0.tar": tar("README", "x.y/LICENSE", *plain("a"))}
    yield "other_members", {"train-0.tar": tar("a.jpg", ("a.cls", b"1"), ("a.txt", b"a cat"), ("a.json", b'{"label": 5}'), ("b.txt", b"no image"))}
    yield "json_label", {"train-0.tar": tar("a.jpg", ("a.json", b'{"label": 3, "cls": 4}'), ("b.json", b'{"cls": "4"}'), "b.jpg")}
    yield "json_other_field", {"train-0.tar": tar("a.jpg", ("a.json", b'{"class_id": 3}'))}
    yield "json_text_label", {"train-0.tar": tar("a.jpg", ("a.json", b'{"label": "cat"}'))}
    yield "json_damaged", {"train-0.tar": tar("a.jpg", ("a.json", b'{"label": '))}
    yield "compound", {"train-0.tar": tar("a.left.jpg", ("a.cls", b"1"), "b.left.jpg", ("b.v2.cls", b"2"))}
    yield "two_images", {"train-0.tar": tar("a.left.jpg", "a.right.jpg", ("a.cls", b"1"))}
    yield "image_and_mask", {"train-0.tar": tar("a.jpg", "a.seg.png", ("a.cls", b"1"))}
    yield "two_labels", {"train-0.tar": tar("a.jpg", ("a.cls", b"1"), ("a.fine.cls", b"2"))}
    yield "other_label", {"train-0.tar": tar("a.jpg", ("a.cls2", b"2"))}
    yield "dotted_keys", {"train-0.tar": tar(*plain("x.1"), *plain("x.2", label=b"2"))}
    yield "no_labels", {"train-0.tar": tar("a.jpg", "b.png")}
    yield "some_labels", {"train-0.tar": tar(*plain("a"), "b.jpg")}
    yield "label_alone", {"train-0.tar": tar(*plain("a"), ("b.cls", b"1"))}
    yield "label_with_space", {"train-0.tar": tar("a.jpg", ("a.cls", b" 7\n"), "b.jpg", ("b.cls", b"+7"))}
    yield "label_word", {"train-0.tar": tar("a.jpg", ("a.cls", b"cat"))}
    yield "label_negative", {"train-0.tar": tar("a.jpg", ("a.cls", b"-1"))}
    yield "label_huge", {"train-0.tar": tar("a.jpg", ("a.cls", b"4294967294"))}
    yield "label_empty", {"train-0.tar": tar("a.jpg", ("a.cls", b""))}
    yield "other_formats", {"train-0.tar": tar("a.webp", ("a.cls", b"1"))}
    yield "no_images", {"train-0.tar": tar(("a.txt", b"1"), ("a.json", b"{}"))}
    yield "no_end_marker", {"train-0.tar": bare}
    yield "no_padding", {"train-0.tar": bare[:-511]}
    yield "half_end_marker", {"train-0.tar": bare + bytes(512)}
    yield "lone_zero_block", {"train-0.tar": bare + bytes(512) + tar(*plain("c"))}
    yield "joined", {"train-0.tar": tar(*two) + tar(*plain("a", "c", label=b"2"))}
    yield "junk_behind", {"train-0.tar": whole + b"junk after the end marker"}
    yield "cut_in_data", {"train-0.tar": bare[:700][:520]}
    yield "cut_in_header", {"train-0.tar": bare[: -1024 + 100]}
    yield "cut_first_header", {"train-0.tar": bare[:100]}
    yield "empty_file", {"train-0.tar": b""}
    yield "empty_archive", {"train-0.tar": tar()}
    yield "empty_among_others", {"train-0.tar": whole, "train-1.tar": tar()}
    yield "no_archive", {"train-0.tar": b"<html>this is no archive</html>" * 50}
    yield "flipped_first", {"train-0.tar": flipped(whole, 130)}
    yield "flipped_later", {"train-0.tar": flipped(whole, 1024 + 130)}
    yield "long_names", {"train-0.tar": tar(*plain(long))}
    yield "pax_names", {"train-0.tar": tar(*plain(long, "\u732b"), format=tarfile.PAX_FORMAT, pax_headers={"comment": "by another hand"})}
    yield "pax_size", {"train-0.tar": pax_size()}
    yield "ustar_prefix", {"train-0.tar": tar(*plain("p" * 80 + "/" + "k" * 60), format=tarfile.USTAR_FORMAT)}
    yield "latin_names", {"train-0.tar": tar(*plain("\u00e9", "\u00e8"), encoding="latin-1")}
    yield "oldest", {"train-0.tar": raw(header(b"x/", 0, b"\0", b""), header(b"x/a.jpg", 7, b"\0", b""), b"picture", header(b"x/a.cls", 1, b"\0", b""), b"3")}
    yield "contiguous", {"train-0.tar": raw(header(b"a.jpg", 7, b"7"), b"picture")}
    links = [entry(f"{n}.jpg", kind=k, linkname="a.jpg") for n, k in (("s", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE), ("c", tarfile.CHRTYPE), ("f", tarfile.FIFOTYPE))]
    yield "links_and_devices", {"train-0.tar": tar(*plain("a"), *links, *plain("b"))}
    yield "link_with_size", {"train-0.tar": raw(header(b"a.jpg", 7), b"picture", header(b"h.jpg", 7, b"1"), header(b"b.jpg", 7), b"another")}
    yield "sparse", {"train-0.tar": sparse()}
    yield "sparse_pax", {"train-0.tar": sparse_pax()}
    yield "absolute", {"train-0.tar": tar(*plain("/x/a"))}
    yield "parent", {"train-0.tar": tar(*plain("../a"))}
    yield "gzip", {"train-0.tar.gz": zlib_gzip(whole)}
    yield "gzip_by_another_name", {"train-0.tar": zlib_gzip(whole)}
    yield "bzip2", {"train-0.tar.bz2": compressed("bz2", two)}
    yield "xz", {"train-0.tar.xz": compressed("xz", two)}


def zlib_gzip(data):
    maker = zlib.compressobj(9, zlib.DEFLATED, 31)
    return maker.compress(data) + maker.flush()


def compressed(how, members):
    import bz2
    import lzma

    return {"bz2": bz2.compress, "xz": lzma.compress}[how](tar(*members))


def text(value):
    """Bytes that are not UTF-8 as \\xNN, in names too."""
    value = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    return value.decode("utf-8", "backslashreplace")


def number(data):
    try:
        return decoders["cls"](data)
    except ValueError:
        return None


def verdict(shards):
    samples, error = [], None

    def members():
        for shard in sorted(shards):
            for member in tar_file_iterator(io.BytesIO(shards[shard])):
                yield member | {"__url__": shard}
            yield {}

    try:
        for sample in group_by_keys(members()):
            parts = {text(k): text(v) for k, v in sample.items() if not k.startswith("__")}
            labels = {k: number(v) for k, v in sample.items() if k.split(".")[-1] == "cls"}
            samples.append({"shard": sample["__url__"], "key": text(sample["__key__"]), "members": parts, "labels": labels})
    except Exception as exception:
        error = type(exception).__name__
    return {"samples": samples, "error": error}


def main():
    found = {}
    for name, shards in cases():
        bytes_of = {shard: base64.b64encode(zlib.compress(data, 9)).decode() for shard, data in shards.items()}
        found[name] = {"shards": bytes_of} | verdict(shards)
    path = pathlib.Path(__file__).with_name("shards.json")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in found.items())
    path.write_text(f'{{"version": {json.dumps(webdataset.__version__)}, "cases": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()

//! Shards by other hands, odd tar files, and files that are not what they should be.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

mod support;

use std::path::{Path, PathBuf};

use pipeline::container::Members;
use pipeline::index::{INDEX_FILE, Index};
use pipeline::{Dataset, Error, LoaderConfig};
use support::{batches, config, folder, jpeg, open, with_causes};

/// Members of a tar file to make, by the tar crate and not by our writer.
type Files<'a> = &'a [(&'a str, &'a [u8])];

fn header(kind: tar::EntryType, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size as u64);
    header.set_mode(0o600);
    header.set_entry_type(kind);
    header.set_mtime(1_600_000_000);
    header
}

fn tar_of(files: Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = header(tar::EntryType::Regular, data.len());
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn picture() -> Vec<u8> {
    jpeg(40, 40, 1, turbojpeg::Subsamp::Sub2x2)
}

fn put(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// The names of a file's members.
fn members(path: &Path) -> Vec<String> {
    let mut members = Members::open(path).unwrap();
    let next = || members.next_member().unwrap().map(|member| member.name);
    std::iter::from_fn(next).collect()
}

fn error_of(dir: &Path) -> Error {
    match Dataset::open(dir, "train") {
        Ok(data) => panic!("opened, with {} samples", data.len()),
        Err(error) => error,
    }
}

#[test]
fn shards_without_an_index_are_indexed_once() {
    let image = picture();
    let files: Vec<_> = (0..9).map(|n| (format!("./a/{n}.JPEG"), format!("./a/{n}.cls"))).collect();
    let files: Vec<_> = files
        .iter()
        .flat_map(|(jpg, cls)| [(&jpg[..], &image[..]), (&cls[..], b"3\n"), ("./a/x.json", b"{}")])
        .collect();
    let files: Vec<_> = files.into_iter().filter(|file| !file.0.ends_with("json")).collect();
    let (dir, _) = put("set-train-00.tar", &tar_of(&files));
    std::fs::write(dir.path().join("set-val-00.tar"), tar_of(&[("v.png", &support::png(5, 6, 0))]))
        .unwrap();
    let data = open(dir.path());
    assert_eq!((data.len(), data.label(4), data.classes().len()), (9, Some(3), 4));
    assert!(dir.path().join(INDEX_FILE).exists());
    let once = LoaderConfig { epochs: Some(1), ..config() };
    assert_eq!(batches(&data, once, pipeline::Cursor::default()).len(), 1);
    assert_eq!(Dataset::open(dir.path(), "val").unwrap().len(), 1);
    assert_eq!(open(dir.path()).fingerprint(), data.fingerprint());
    // A shard that came later, or grew, makes the index anew.
    std::fs::write(
        dir.path().join("set-train-01.tar"),
        tar_of(&[("b.jpg", &image), ("b.cls", b"0")]),
    )
    .unwrap();
    assert_eq!(open(dir.path()).len(), 10);
    std::fs::write(dir.path().join("set-train-01.tar"), tar_of(&[])).unwrap();
    assert_eq!(open(dir.path()).len(), 9);
}

#[test]
fn long_names_and_other_kinds_of_members_do_no_harm() {
    let image = picture();
    let long = format!("{}/{}", "d".repeat(90), "k".repeat(150));
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("comment", &b"by another hand"[..])]).unwrap();
    let data = [("folder.jpg", tar::EntryType::Directory), ("link.jpg", tar::EntryType::Link)];
    for (name, kind) in data {
        builder.append_data(&mut header(kind, 0), name, &[][..]).unwrap();
    }
    for extension in ["jpg", "cls"] {
        let bytes = if extension == "jpg" { &image[..] } else { b"5" };
        let mut header = header(tar::EntryType::Regular, bytes.len());
        builder.append_data(&mut header, format!("{long}.{extension}"), bytes).unwrap();
    }
    // A PAX header that names and sizes the member after it; the size in that one's header is 0.
    let size = image.len().to_string();
    builder
        .append_pax_extensions([("path", &b"\xc3\xa9t\xc3\xa9.jpg"[..]), ("size", size.as_bytes())])
        .unwrap();
    let mut plain = header(tar::EntryType::Regular, 0);
    plain.set_path("other.jpg").unwrap();
    plain.set_cksum();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend_from_slice(plain.as_bytes());
    bytes.extend_from_slice(&image);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend_from_slice(&tar_of(&[("\u{e9}t\u{e9}.cls", b"6")]));
    bytes.extend_from_slice(b"junk after the end marker");
    let (dir, path) = put("train-0.tar", &bytes);
    let data = open(dir.path());
    assert_eq!((data.key(0), data.label(0)), (long, Some(5)));
    assert_eq!((data.key(1), data.label(1)), ("\u{e9}t\u{e9}".into(), Some(6)));
    assert_eq!(data.bytes(1).unwrap(), image);
    assert_eq!(members(&path).len(), 5);
    assert_eq!(members(&path)[0], "link.jpg");
}

#[test]
fn sparse_members_are_passed_over() {
    let mut header = tar::Header::new_gnu();
    header.set_path("hole.jpg").unwrap();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_size(512);
    header.as_gnu_mut().unwrap().set_real_size(512);
    let block = &mut header.as_gnu_mut().unwrap().sparse[0];
    block.set_offset(0);
    block.set_length(512);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(&[1; 512]);
    bytes.extend_from_slice(&tar_of(&[("a.jpg", b"x"), ("a.cls", b"1")]));
    let (_dir, path) = put("train-0.tar", &bytes);
    assert_eq!(members(&path), ["hole.jpg", "a.jpg", "a.cls"]);
}

#[test]
fn containers_that_break_the_convention_are_refused_with_their_place() {
    let image = &picture()[..];
    for (files, said) in [
        (&[("a.jpg", image), ("a.cls", b"1"), ("b.jpg", image)][..], "some have none"),
        (&[("a.jpg", image), ("b.cls", b"1")], "has a label but no image"),
        (&[("a.jpg", image), ("a.cls", b"cat")], "not a class number"),
        (&[("a.jpg", image), ("a.cls", b"-1")], "not a class number"),
        (&[("a.jpg", image), ("a.cls", b"1048576")], "not a class number"),
        (&[("a.txt", image), ("a.json", b"{}")], "holds a KEY.jpg"),
        (&[("a.jpg", image), ("a.png", image), ("a.cls", b"1")], "has 2 images"),
        (&[("a.jpg", image), ("a.cls", b"1"), ("a.cls", b"1")], "is there twice"),
    ] {
        let (dir, _) = put("train-0.tar", &tar_of(files));
        let error = error_of(dir.path());
        assert!(matches!(error, Error::Format { .. }), "{error:?}");
        assert!(with_causes(&error).contains(said), "{}", with_causes(&error));
        assert!(error.is_input() && !dir.path().join(INDEX_FILE).exists());
    }
    let mut up = tar_of(&[("xx/a.jpg", image)]);
    up[..2].copy_from_slice(b"..");
    let sum: u32 = up[..512]
        .iter()
        .enumerate()
        .map(|(at, &byte)| u32::from(if (148..156).contains(&at) { b' ' } else { byte }))
        .sum();
    up[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let (dir, _) = put("train-0.tar", &up);
    assert!(with_causes(&error_of(dir.path())).contains("points out of the archive"));
}

#[test]
fn a_foreign_shard_cut_in_a_member_is_called_truncated() {
    let whole = tar_of(&[("a.jpg", &[7; 900]), ("a.cls", b"1")]);
    // What is missing behind the data of the last member is only padding.
    for length in (0..=512 + 1024 + 512).step_by(64) {
        let (dir, _) = put("train-0.tar", &whole[..length]);
        // Between the two members it could be a shard without labels or an end marker.
        if (512 + 900..=512 + 1024).contains(&length) {
            assert_eq!(open(dir.path()).label(0), None);
            continue;
        }
        let error = error_of(dir.path());
        assert!(matches!(error, Error::ShardTruncated { .. }), "cut at {length}: {error:?}");
    }
}

#[test]
fn folders_that_hold_no_data_say_so() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(error_of(dir.path()), Error::EmptyFolder { .. }));
    assert!(matches!(error_of(&dir.path().join("none")), Error::NoFolder { .. }));
    let (file, path) = put("train-0.tar", b"x");
    assert!(matches!(error_of(&path), Error::NoFolder { .. }));
    assert!(matches!(error_of(file.path()), Error::ShardTruncated { .. }));
    let (text, _) = put("train-0.tar", &b"<html>this is no archive</html>".repeat(100));
    let error = error_of(text.path());
    assert!(matches!(error, Error::Format { offset: 0, .. }), "{error:?}");
}

#[test]
fn shards_that_changed_under_their_index_are_refused() {
    let dir = folder(30);
    let shard = dir.path().join("train-000001.tar");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 1000]).unwrap();
    let error = error_of(dir.path());
    assert!(matches!(error, Error::ShardLength { .. }) && error.is_input(), "{error:?}");
    assert!(with_causes(&error).contains("train-000001.tar"), "{error}");
    // The same length, but other samples: two shards of equal size that changed places.
    let other = dir.path().join("train-000002.tar");
    let mut swapped = std::fs::read(&other).unwrap();
    swapped.resize(bytes.len(), 0);
    std::fs::write(&shard, &swapped).unwrap();
    let error = error_of(dir.path());
    assert!(matches!(error, Error::Format { .. }), "{error:?}");
    assert!(with_causes(&error).contains("the index has sample \"s0010\" here"), "{error}");
    std::fs::remove_file(&shard).unwrap();
    let error = error_of(dir.path());
    assert!(matches!(error, Error::Io { .. }) && error.is_input(), "{error:?}");
    let error = Dataset::open(dir.path(), "val").unwrap_err();
    assert!(with_causes(&error).contains("only: train"), "{error}");
    assert!(Index::open(dir.path()).is_ok());
}

//! Odd shards, judged by the WebDataset library: `tests/golden/shards.py` made them and asked it.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use pipeline::container::{Choice, image_kind};
use pipeline::index::Index;
use pipeline::{Dataset, Error};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    /// Shards by name: zlib, base64.
    shards: BTreeMap<String, String>,
    samples: Vec<Sample>,
    error: Option<String>,
}

/// A sample as the library reads it.
#[derive(Deserialize)]
struct Sample {
    key: String,
    members: BTreeMap<String, String>,
    /// What it makes of members `.cls`.
    labels: BTreeMap<String, Option<i64>>,
}

/// What we read: key, image and label.
type Found = (String, String, Option<i64>);

fn golden() -> BTreeMap<String, Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/shards.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    golden.cases
}

fn folder(case: &Case) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in &case.shards {
        let zlib = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        let mut bytes = Vec::new();
        flate2::read::ZlibDecoder::new(&zlib[..]).read_to_end(&mut bytes).unwrap();
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn found(dir: &Path) -> Result<Vec<Found>, Error> {
    let data = Dataset::open(dir, "train")?;
    let sample = |sample| {
        let image = data.bytes(sample)?;
        let image = String::from_utf8_lossy(&image).into_owned();
        Ok((data.key(sample), image, data.label(sample)))
    };
    (0..data.len() as u64).map(sample).collect()
}

/// The library's samples that have one image, with its label.
fn theirs(case: &Case) -> Vec<Found> {
    let sample = |sample: &Sample| {
        let images: Vec<_> =
            sample.members.iter().filter(|(part, _)| image_kind(part).is_some()).collect();
        assert!(images.len() < 2, "{}: there are several images to choose from", sample.key);
        let (_, image) = images.first()?;
        let label = sample.labels.values().next().copied().flatten();
        Some((sample.key.clone(), image.to_string(), label))
    };
    case.samples.iter().filter_map(sample).collect()
}

/// What differs from the library, on purpose.
enum Ours {
    /// These samples, as key and label.
    Read(&'static [(&'static str, Option<i64>)]),
    /// An error that says this.
    Refused(&'static str),
}

const BUILD: &str = "`shard-imagenet build";

/// Where we differ. A table of it for people is in docs/formats.md.
fn departures() -> BTreeMap<&'static str, Ours> {
    BTreeMap::from_iter(of_members().into_iter().chain(of_archives()))
}

/// Of names, keys and labels in JSON.
fn of_members() -> impl IntoIterator<Item = (&'static str, Ours)> {
    use Ours::{Read, Refused};
    [
        // Keys are unique in a split.
        (
            "keys_again",
            Read(&[
                ("train-0/a", Some(1)),
                ("train-0/b", Some(1)),
                ("train-1/a", Some(1)),
                ("train-1/b", Some(1)),
            ]),
        ),
        (
            "names_again",
            Read(&[("train-0/a", Some(1)), ("train-0/b", Some(1)), ("train-0/a-2", Some(2))]),
        ),
        // Members of a sample may stand apart: the library makes four halves of two samples.
        ("members_apart", Read(&[("a", Some(1)), ("b", Some(2))])),
        // In folders the library takes such names for samples called by the folder.
        ("appledouble", Read(&[("a", Some(1)), ("x/b", Some(1))])),
        ("hidden", Read(&[("a", Some(1))])),
        // Labels in JSON need no code of the user's.
        ("json_label", Read(&[("a", Some(3)), ("b", Some(4))])),
        ("json_damaged", Refused("has a .json that is not JSON")),
        // Archives behind the first are read.
        ("lone_zero_block", Read(&[("a", Some(1)), ("b", Some(1)), ("c", Some(1))])),
        (
            "joined",
            Read(&[
                ("train-0/a", Some(1)),
                ("train-0/b", Some(1)),
                ("train-0-2/a", Some(2)),
                ("train-0-2/c", Some(2)),
            ]),
        ),
        // The data are whole.
        ("no_padding", Read(&[("a", Some(1)), ("b", Some(1))])),
        // Pictures with holes.
        ("sparse", Read(&[("a", Some(1))])),
        ("sparse_pax", Read(&[("a", Some(1))])),
        // As tar extracts it.
        ("absolute", Read(&[("x/a", Some(1))])),
        ("parent", Refused("points out of the archive")),
    ]
}

/// Of what could be meant in two ways, is damaged or is no archive of images.
fn of_archives() -> impl IntoIterator<Item = (&'static str, Ours)> {
    use Ours::Refused;
    [
        // What could be meant in two ways.
        (
            "two_images",
            Refused("2 images, .left.jpg and .right.jpg: choose one (--image left.jpg)"),
        ),
        ("image_and_mask", Refused("2 images, .jpg and .seg.png: choose one (--image jpg)")),
        ("two_labels", Refused("2 labels, .cls and .fine.cls: choose one (--label cls)")),
        ("dotted_keys", Refused("or let keys end at the last dot (--last-dot)")),
        ("some_labels", Refused("some have none")),
        ("label_alone", Refused("has a label but no image")),
        ("label_word", Refused("\"cat\" is not a class number")),
        ("label_negative", Refused("\"-1\" is not a class number")),
        ("label_huge", Refused("\"4294967294\" is not a class number")),
        ("label_empty", Refused("\"\" is not a class number")),
        ("other_formats", Refused("is no JPEG or PNG")),
        ("no_images", Refused("no shard of the split holds a KEY.jpg")),
        ("empty_archive", Refused("no shard of the split holds a KEY.jpg")),
        // What is cut or damaged; the library stops there without a word.
        ("cut_in_header", Refused("cut short")),
        ("flipped_later", Refused("no sound tar archive after a.jpg")),
        // What the library refuses too.
        ("name_twice", Refused("member \"a.jpg\" is there twice")),
        ("cut_in_data", Refused("cut short")),
        ("cut_first_header", Refused("cut short")),
        ("empty_file", Refused("cut short")),
        ("no_archive", Refused("no sound tar archive")),
        ("flipped_first", Refused("no sound tar archive")),
        // What is compressed cannot be read in place.
        ("gzip", Refused("is compressed")),
        ("gzip_by_another_name", Refused("is compressed with gzip")),
        ("bzip2", Refused("is compressed")),
        ("xz", Refused("is compressed")),
    ]
}

#[test]
fn shards_are_read_as_the_webdataset_library_reads_them() {
    let mut departures = departures();
    for (name, case) in golden() {
        let dir = folder(&case);
        let found = found(dir.path());
        match departures.remove(&*name) {
            None => {
                assert!(case.error.is_none(), "{name}: the library refuses it");
                let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(found, theirs(&case), "{name}");
            }
            Some(Ours::Read(expected)) => {
                let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
                let keys: Vec<_> = found.iter().map(|(key, _, label)| (&**key, *label)).collect();
                assert_eq!(keys, expected, "{name}");
                assert!(found.iter().all(|(_, image, _)| image.starts_with("image of")), "{name}");
            }
            Some(Ours::Refused(what)) => {
                let error = found.expect_err(&name);
                let words = error.to_string();
                assert!(words.contains(what) && error.is_input(), "{name}: {words}");
                let cut = matches!(error, Error::ShardTruncated { .. });
                assert!(cut || words.contains(BUILD), "{name}: no way out in {words}");
                assert!(!dir.path().join("index.bin").exists(), "{name}");
            }
        }
    }
    assert!(departures.is_empty(), "cases that are gone: {:?}", departures.keys());
}

#[test]
fn every_case_is_in_the_table_for_people() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats.md");
    let table = std::fs::read_to_string(path).unwrap();
    for name in golden().keys() {
        assert!(table.contains(&format!("`{name}`")), "{name} is not in docs/formats.md");
    }
}

/// What is passed over in a case, as kinds and counts.
fn passed_over(case: &Case) -> Vec<(String, u64, String)> {
    let dir = folder(case);
    let index = Index::open(dir.path()).unwrap();
    let skipped = &index.scan().unwrap().skipped;
    skipped.iter().map(|(kind, count, example)| (kind.into(), count, example.into())).collect()
}

#[test]
fn what_is_passed_over_is_counted_with_an_example() {
    let cases = golden();
    for (name, expected) in [
        ("plain", &[][..]),
        (
            "appledouble",
            &[
                ("AppleDouble files (._*)", 2, "train-0.tar: ._a.jpg"),
                ("files of __MACOSX folders", 1, "train-0.tar: __MACOSX/x/._b.jpg"),
            ],
        ),
        (
            "hidden",
            &[
                ("files of file managers (.DS_Store, Thumbs.db)", 1, "train-0.tar: .DS_Store"),
                ("hidden files", 2, "train-0.tar: .a.jpg"),
            ],
        ),
        ("metadata", &[("files of metadata (__*__)", 3, "train-0.tar: __meta__/x.json")]),
        ("no_extension", &[("files without an extension", 2, "train-0.tar: README")]),
        (
            "other_members",
            &[("files .json", 1, "train-0.tar: a.json"), ("files .txt", 2, "train-0.tar: a.txt")],
        ),
        ("json_other_field", &[("files .json", 1, "train-0.tar: a.json")]),
        ("json_text_label", &[("files .json", 1, "train-0.tar: a.json")]),
        ("other_label", &[("files .cls2", 1, "train-0.tar: a.cls2")]),
        ("no_end_marker", &[("missing end markers", 1, "train-0.tar")]),
        ("no_padding", &[("missing end markers", 1, "train-0.tar")]),
        (
            "junk_behind",
            &[(
                "archives with bytes after the end marker that are no archive",
                1,
                "train-0.tar from byte 10240 on",
            )],
        ),
        (
            "links_and_devices",
            &[
                ("devices", 1, "train-0.tar: c.jpg"),
                ("hard links", 1, "train-0.tar: h.jpg"),
                ("pipes", 1, "train-0.tar: f.jpg"),
                ("symbolic links", 1, "train-0.tar: s.jpg"),
            ],
        ),
        ("link_with_size", &[("hard links", 1, "train-0.tar: h.jpg")]),
        ("sparse", &[("sparse files", 1, "train-0.tar: hole.jpg")]),
        ("sparse_pax", &[("sparse files", 1, "train-0.tar: hole.jpg")]),
    ] {
        let found = passed_over(&cases[name]);
        let found: Vec<_> =
            found.iter().map(|(kind, n, example)| (&**kind, *n, &**example)).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_choice_of_members_is_kept_in_the_index() {
    let cases = golden();
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let choice = |image: &str, label: &str, last_dot| Choice {
        image: some(image),
        label: some(label),
        last_dot,
    };
    for (name, choice, expected) in [
        (
            "two_images",
            choice("right.jpg", "", false),
            &[("a", "image of a.right.jpg", Some(1))][..],
        ),
        ("image_and_mask", choice("SEG.png", "", false), &[("a", "image of a.seg.png", Some(1))]),
        ("two_labels", choice("", "fine.cls", false), &[("a", "image of a.jpg", Some(2))]),
        ("other_label", choice("", "cls2", false), &[("a", "image of a.jpg", Some(2))]),
        (
            "json_other_field",
            choice("", "json:class_id", false),
            &[("a", "image of a.jpg", Some(3))],
        ),
        ("other_members", choice("", "json:label", false), &[("a", "image of a.jpg", Some(5))]),
        ("other_members", choice("", "json:none", false), &[]),
        (
            "dotted_keys",
            choice("", "", true),
            &[("x.1", "image of x.1.jpg", Some(1)), ("x.2", "image of x.2.jpg", Some(2))],
        ),
        ("dotted_keys", choice("2.jpg", "1.cls", false), &[("x", "image of x.2.jpg", Some(1))]),
    ] {
        let dir = folder(&cases[name]);
        if expected.is_empty() {
            let error = Index::make(dir.path(), &choice).unwrap_err().to_string();
            assert!(
                error.contains("sample \"a\" has a .json that has no field \"none\""),
                "{error}"
            );
            continue;
        }
        Index::make(dir.path(), &choice).unwrap();
        // Whatever opens the folder later keeps to it, also when a shard has changed.
        let read = || found(dir.path()).unwrap();
        let check = |found: &[Found]| {
            let found: Vec<_> =
                found.iter().map(|(key, image, n)| (&**key, &**image, *n)).collect();
            assert_eq!(found, expected, "{name}");
        };
        check(&read());
        let shard = dir.path().join("train-0.tar");
        let mut bytes = std::fs::read(&shard).unwrap();
        bytes.resize(bytes.len() + 512, 0);
        std::fs::write(&shard, bytes).unwrap();
        check(&read());
    }
}

//! Indexes of shards that changed since, of shards that did not, and of earlier versions.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pipeline::container::Choice;
use pipeline::index::{Class, Classes, Format, INDEX_FILE, Index, IndexWriter};
use pipeline::shard::ShardWriter;
use pipeline::{Dataset, Error};
use xxhash_rust::xxh3::xxh3_64;

/// A shard of four samples with one label, as another program writes it; all have one length.
fn put(path: &Path, label: u32) {
    let mut builder = tar::Builder::new(Vec::new());
    for n in 0..4 {
        for (name, data) in
            [(format!("s{n}.jpg"), "image".into()), (format!("s{n}.cls"), label.to_string())]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            builder.append_data(&mut header, name, data.as_bytes()).unwrap();
        }
    }
    let mut bytes = builder.into_inner().unwrap();
    bytes.resize(bytes.len().next_multiple_of(10_240), 0);
    fs::write(path, bytes).unwrap();
}

/// Makes a file one that was changed long ago.
fn age(path: &Path, seconds: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// Waits until what was just written is believed not to change again without a new time of change.
fn settle() {
    std::thread::sleep(Duration::from_millis(2_100));
}

fn labels(dir: &Path) -> Vec<Option<i64>> {
    let data = Dataset::open(dir, "train").unwrap();
    (0..data.len() as u64).map(|sample| data.label(sample)).collect()
}

/// A folder of two shards with label 0, and its index.
fn folder() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let shards = [0, 1].map(|n| dir.path().join(format!("train-{n}.tar")));
    for shard in &shards {
        put(shard, 0);
        age(shard, 1000);
    }
    assert_eq!(labels(dir.path()), [Some(0); 8]);
    (dir, shards[0].clone(), shards[1].clone())
}

#[test]
fn a_shard_written_anew_in_place_is_read_anew_whatever_its_length_and_times() {
    // In place, as Python's tar and `cp` write; the same time of change; another file of that name.
    for (replace, old) in [(false, false), (false, true), (true, false), (true, true)] {
        let (dir, shard, _) = folder();
        let before = fs::metadata(&shard).unwrap();
        if replace {
            let aside = dir.path().join("aside");
            put(&aside, 3);
            fs::rename(&aside, &shard).unwrap();
        } else {
            put(&shard, 3);
        }
        if old {
            let file = File::options().write(true).open(&shard).unwrap();
            file.set_modified(before.modified().unwrap()).unwrap();
        }
        assert_eq!(fs::metadata(&shard).unwrap().len(), before.len());
        let expected: Vec<_> = [[Some(3); 4], [Some(0); 4]].concat();
        assert_eq!(labels(dir.path()), expected, "replaced {replace}, old {old}");
        assert_eq!(labels(dir.path()), expected);
    }
}

#[test]
fn a_shard_that_changed_just_before_it_was_indexed_is_looked_at_again() {
    let dir = tempfile::tempdir().unwrap();
    let shard = dir.path().join("train-0.tar");
    put(&shard, 0);
    let time = fs::metadata(&shard).unwrap().modified().unwrap();
    assert_eq!(labels(dir.path()), [Some(0); 4]);
    // Within one step of the file system's clock.
    put(&shard, 3);
    File::options().write(true).open(&shard).unwrap().set_modified(time).unwrap();
    assert_eq!(labels(dir.path()), [Some(3); 4]);
}

#[test]
fn a_shard_written_anew_with_its_times_kept_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let shard = dir.path().join("train-0.tar");
    put(&shard, 0);
    age(&shard, 1000);
    settle();
    let before = fs::metadata(&shard).unwrap();
    assert_eq!(labels(dir.path()), [Some(0); 4]);
    // As `cp -p` onto it.
    put(&shard, 3);
    let file = File::options().write(true).open(&shard).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(fs::metadata(&shard).unwrap().modified().unwrap(), before.modified().unwrap());
    assert_eq!(labels(dir.path()), [Some(3); 4]);
}

#[test]
fn shards_that_were_only_copied_or_touched_keep_their_index() {
    let (dir, shard, _) = folder();
    let open = |dir: &Path| Dataset::open(dir, "train").unwrap().fingerprint();
    let fingerprint = open(dir.path());
    let index = || fs::read(dir.path().join(INDEX_FILE)).unwrap();
    let before = index();
    age(&shard, 500);
    settle();
    assert_eq!(open(dir.path()), fingerprint);
    let touched = index();
    assert_ne!(touched, before);
    // What was found is kept, so it is not looked for again.
    let written = fs::metadata(dir.path().join(INDEX_FILE)).unwrap().modified().unwrap();
    assert_eq!(open(dir.path()), fingerprint);
    assert_eq!(fs::metadata(dir.path().join(INDEX_FILE)).unwrap().modified().unwrap(), written);
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    assert_eq!(open(copy.path()), fingerprint);
}

#[test]
fn shards_that_come_go_or_are_damaged_make_the_index_anew() {
    let (dir, first, second) = folder();
    fs::rename(&second, dir.path().join("val-1.tar")).unwrap();
    assert_eq!(labels(dir.path()).len(), 4);
    assert_eq!(Dataset::open(dir.path(), "val").unwrap().len(), 4);
    fs::remove_file(dir.path().join("val-1.tar")).unwrap();
    assert_eq!(labels(dir.path()).len(), 4);
    let bytes = fs::read(&first).unwrap();
    fs::write(&first, &bytes[..4300]).unwrap();
    let error = Dataset::open(dir.path(), "train").unwrap_err();
    assert!(matches!(error, Error::ShardTruncated { .. }), "{error}");
    fs::write(&first, &bytes).unwrap();
    assert_eq!(labels(dir.path()).len(), 4);
}

/// The folder of this name that commit 9d001b8 wrote.
fn earlier(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/folders").join(name);
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        fs::write(dir.path().join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
    }
    dir
}

#[test]
fn data_folders_of_earlier_versions_open() {
    let built = earlier("built");
    let before = fs::read(built.path().join(INDEX_FILE)).unwrap();
    let data = Dataset::open(built.path(), "train").unwrap();
    assert_eq!((data.len(), data.classes().len()), (4, 2));
    assert_eq!(Dataset::open(built.path(), "val").unwrap().len(), 2);
    assert_eq!(fs::read(built.path().join(INDEX_FILE)).unwrap(), before);
    assert!(!data.index().is_scanned());

    // One that was scanned lacks what tells whether shards changed: it is scanned again, to the same
    // fingerprint, so that runs go on.
    let scanned = earlier("scanned");
    let before = fs::read(scanned.path().join(INDEX_FILE)).unwrap();
    let checksum = u64::from_le_bytes(before[before.len() - 8..].try_into().unwrap());
    let data = Dataset::open(scanned.path(), "train").unwrap();
    assert_eq!((data.len(), data.index().fingerprint()), (4, checksum));
    let after = fs::read(scanned.path().join(INDEX_FILE)).unwrap();
    assert_eq!((before[8], after[8]), (1, 2));
    assert!(data.index().is_scanned() && data.index().scan().is_some());
    // An index of a version to come is refused by it.
    let mut newer = after;
    newer[8] = 3;
    let body = newer.len() - 8;
    let sum = xxh3_64(&newer[..body]);
    newer[body..].copy_from_slice(&sum.to_le_bytes());
    fs::write(scanned.path().join(INDEX_FILE), newer).unwrap();
    let error = Dataset::open(scanned.path(), "train").unwrap_err().to_string();
    assert!(error.contains("index version 3, this program reads 1 and 2"), "{error}");
}

#[test]
fn every_damaged_byte_of_a_scanned_index_is_noticed() {
    let (dir, ..) = folder();
    let path = dir.path().join(INDEX_FILE);
    let whole = fs::read(&path).unwrap();
    let body = whole.len() - 8;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(Index::open(dir.path()), Err(Error::Format { .. })), "byte {at}");
        // Under a right checksum: records in bounds, or an error.
        if (8..body).contains(&at) && at % 3 == 0 {
            let sum = xxh3_64(&bytes[..body]);
            bytes[body..].copy_from_slice(&sum.to_le_bytes());
            fs::write(&path, &bytes).unwrap();
            if let Ok(index) = Index::open(dir.path()) {
                (0..index.len()).for_each(|sample| drop((index.record(sample), index.key(sample))));
            }
        }
    }
}

#[test]
fn labels_beyond_the_classes_are_refused_when_a_folder_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let write = |label: u32| {
        let mut index = IndexWriter::new();
        index.begin_split("train").unwrap();
        let mut shard = ShardWriter::create(&dir.path().join("train-000000.tar")).unwrap();
        let entry = shard.append("a", "jpg", b"x", Some(label)).unwrap();
        index.sample("a", entry, Some(label), Format::Jpeg, (9, 9));
        index.end_shard("train-000000.tar", shard.finish().unwrap()).unwrap();
        index.write(dir.path()).unwrap();
    };
    // Without a list every class below would get a name.
    write(0xffff_fffe);
    let error = Dataset::open(dir.path(), "train").unwrap_err();
    assert!(matches!(error, Error::Format { .. }) && error.is_input());
    assert!(error.to_string().contains("label 4294967294, and 1048575 is the largest"), "{error}");
    write(1);
    assert_eq!(Dataset::open(dir.path(), "train").unwrap().classes(), ["0", "1"]);
    let class = |class: u32| Class { class, name: format!("c{class}"), words: None };
    Classes(vec![class(0)]).save(dir.path()).unwrap();
    let error = Dataset::open(dir.path(), "train").unwrap_err();
    assert!(error.to_string().contains("1 classes, but sample \"a\" has label 1"), "{error}");
    Classes((0..2).map(class).collect()).save(dir.path()).unwrap();
    assert_eq!(Dataset::open(dir.path(), "train").unwrap().classes(), ["c0", "c1"]);
}

#[test]
fn an_index_is_made_on_request_but_not_for_a_folder_that_was_built() {
    let (dir, ..) = folder();
    let index = Index::make(dir.path(), &Choice::default()).unwrap();
    assert_eq!((index.len(), index.scan().unwrap().skipped.is_empty()), (8, true));
    fs::write(dir.path().join(INDEX_FILE), b"of another program").unwrap();
    assert!(Index::open(dir.path()).is_err());
    assert_eq!(Index::make(dir.path(), &Choice::default()).unwrap().len(), 8);
    let built = earlier("built");
    let error = Index::make(built.path(), &Choice::default()).unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    let none = tempfile::tempdir().unwrap();
    let error = Index::make(none.path(), &Choice::default()).unwrap_err();
    assert!(matches!(error, Error::EmptyFolder { .. }), "{error}");
}

#[test]
fn a_pipe_called_as_a_shard_is_refused_and_a_folder_is_none() {
    let (dir, ..) = folder();
    fs::create_dir(dir.path().join("x.tar")).unwrap();
    assert_eq!(labels(dir.path()).len(), 8);
    let pipe = dir.path().join("train-2.tar");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let error = Dataset::open(dir.path(), "train").unwrap_err();
    assert!(error.to_string().contains("train-2.tar: it is no regular file"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_listed_into_splits_says_how_to_mend_it() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("0.tar"), 0);
    put(&dir.path().join("val-0.tar"), 0);
    let error = Dataset::open(dir.path(), "train").unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }) && error.is_input());
    assert!(error.to_string().contains("the name of 0 tells none; rename it"), "{error}");
    fs::rename(dir.path().join("0.tar"), dir.path().join("imagenet1k-train-0.tar")).unwrap();
    fs::rename(dir.path().join("val-0.tar"), dir.path().join("imagenet1k-validation-00.tar"))
        .unwrap();
    assert_eq!(Dataset::open(dir.path(), "train").unwrap().len(), 4);
    assert_eq!(Dataset::open(dir.path(), "val").unwrap().len(), 4);
    fs::write(dir.path().join("x.tar.gz"), b"").unwrap();
    let error = Dataset::open(dir.path(), "train").unwrap_err().to_string();
    assert!(error.contains("x.tar.gz is compressed") && error.contains("shard-imagenet build"));
}

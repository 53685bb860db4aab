//! A program of its own writes a data folder, and a loader reads it.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

mod support;

use std::path::Path;

use pipeline::index::{Classes, Format, Index, Manifest};
use pipeline::{Cursor, Dataset, Error, FolderOptions, FolderWriter, LoaderConfig, Mode};
use support::{Sample, batches, config, open, samples, write};

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| name(e).into_string().unwrap()).collect();
    names.sort();
    names
}

fn labelled(count: usize) -> Vec<Sample> {
    samples(count).into_iter().map(|s| Sample { label: s.label.or(Some(6)), ..s }).collect()
}

fn append(writer: &mut FolderWriter, sample: &Sample) -> Result<(), Error> {
    writer.append(&sample.key, &sample.image, sample.label)
}

#[test]
fn what_was_written_is_what_is_loaded() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("own");
    let classes: Vec<String> = (0..7).map(|n| format!("c{n}")).collect();
    let options = FolderOptions {
        classes: classes.clone(),
        shard_bytes: 20_000,
        source: "a test".into(),
        ..FolderOptions::default()
    };
    let samples = labelled(40);
    let mut writer = FolderWriter::create(&dir, options).unwrap();
    writer.split("train").unwrap();
    samples.iter().for_each(|sample| append(&mut writer, sample).unwrap());
    assert!(!dir.exists(), "not before it is whole");
    writer.split("val").unwrap();
    samples[..5].iter().for_each(|sample| append(&mut writer, sample).unwrap());
    let manifest = writer.finish().unwrap();
    assert_eq!(names(root.path()), ["own"]);

    assert_eq!(Manifest::load(&dir).unwrap(), manifest);
    assert_eq!((manifest.source.as_str(), manifest.classes), ("a test", 7));
    let read: Vec<_> = Classes::load(&dir).unwrap().0.into_iter().map(|c| c.name).collect();
    assert_eq!(read, classes);
    let index = Index::open(&dir).unwrap();
    assert!(index.split("train").unwrap().shards.len() > 3);
    assert!(index.shards().iter().all(|shard| shard.bytes < 24_000));
    for (n, sample) in samples.iter().enumerate() {
        let record = index.record(n);
        assert_eq!((index.key(n).as_ref(), record.label), (sample.key.as_str(), sample.label));
        assert_eq!(index.image(n).unwrap(), sample.image);
        let format = if sample.extension == "png" { Format::Png } else { Format::Jpeg };
        let size = (40 + n * 7 % 60, 36 + n * 11 % 50);
        assert_eq!(record.format, format);
        assert_eq!((usize::from(record.width), usize::from(record.height)), size);
    }
    assert_eq!(Dataset::open(&dir, "val").unwrap().len(), 5);

    // The same batches as of a folder that was written by hand.
    let other = tempfile::tempdir().unwrap();
    write(other.path(), &samples, 10);
    let run = |dir: &Path| {
        let config = LoaderConfig {
            mode: Mode::Resnet,
            epochs: Some(1),
            shuffle: pipeline::Shuffle::None,
            ..config()
        };
        let seen = batches(&open(dir), config, Cursor::default());
        seen.into_iter().map(|batch| (batch.large, batch.labels)).collect::<Vec<_>>()
    };
    assert_eq!(run(&dir), run(other.path()));
}

#[test]
fn a_sample_that_no_reader_would_take_is_refused_and_the_next_is_not() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("own");
    let options = || FolderOptions { classes: vec!["a".into(), "b".into()], ..Default::default() };
    let mut writer = FolderWriter::create(&dir, options()).unwrap();
    let good = labelled(3);
    let image = &good[0].image;
    let cut = &image[..image.len() - 40];
    let mut damaged = image.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 60].fill(0xff);
    assert!(writer.append("a", image, None).unwrap_err().to_string().contains("split(NAME)"));
    writer.split("train").unwrap();
    writer.append("a", image, Some(0)).unwrap();
    for (key, bytes, label, problem) in [
        ("a", image.as_slice(), Some(0), "this key already"),
        ("b", image, None, "no label"),
        ("b", image, Some(2), "2 classes"),
        ("b", cut, Some(0), ""),
        ("b", &damaged, Some(0), ""),
        ("b", b"some text", Some(0), "text"),
        ("b", b"", Some(0), "empty"),
        ("b.c", image, Some(0), "dot"),
        ("", image, Some(0), "empty"),
        ("../b", image, Some(0), "'..'"),
    ] {
        let error = writer.append(key, bytes, label).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{key}: {error:?}");
        let text = error.to_string();
        assert!(text.contains("split \"train\"") && text.contains(problem), "{text}");
    }
    writer.append("b", image, Some(1)).unwrap();
    assert!(writer.split("train").is_err() && writer.split("a-b").is_err());
    writer.split("val").unwrap();
    // Another split, another rule.
    writer.append("a", image, None).unwrap();
    let error = writer.append("b", image, Some(0)).unwrap_err();
    assert!(error.to_string().contains("have none"), "{error}");
    writer.finish().unwrap();
    assert_eq!(Dataset::open(&dir, "train").unwrap().len(), 2);
    assert_eq!(Dataset::open(&dir, "val").unwrap().label(0), None);

    // What is there is not written over.
    let error = FolderWriter::create(&dir, options()).unwrap_err();
    assert!(error.to_string().contains("something already"), "{error}");
    assert_eq!(names(root.path()), ["own"]);
}

#[test]
fn a_writer_that_is_dropped_or_fails_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("own");
    let begin = || FolderWriter::create(&dir, FolderOptions::default()).unwrap();
    let sample = &labelled(1)[0];
    let mut writer = begin();
    writer.split("train").unwrap();
    append(&mut writer, sample).unwrap();
    // Neither the folder nor the one that it is written in opens.
    for name in names(root.path()) {
        assert!(name.starts_with('.'), "{name}");
        assert!(Dataset::open(&root.path().join(name), "train").is_err());
    }
    drop(writer);
    assert!(names(root.path()).is_empty());

    let mut writer = begin();
    assert!(writer.split("train").is_ok() && writer.finish().is_err());
    assert!(names(root.path()).is_empty());
    assert!(begin().finish().is_err() && names(root.path()).is_empty());

    // Something came to stand there meanwhile.
    let mut writer = begin();
    writer.split("train").unwrap();
    append(&mut writer, sample).unwrap();
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("mine"), "mine").unwrap();
    assert!(writer.finish().is_err());
    assert_eq!(names(&dir), ["mine"]);
}

#[test]
fn a_place_that_cannot_be_renamed_to_is_refused_at_once_and_a_whole_folder_is_never_removed() {
    let root = tempfile::tempdir().unwrap();
    let (real, link) = (root.path().join("real"), root.path().join("link"));
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let error = FolderWriter::create(&link, FolderOptions::default()).unwrap_err();
    assert!(error.to_string().contains("a link"), "{error}");

    // Something comes to its place while it is written.
    let dir = root.path().join("own");
    let mut writer = FolderWriter::create(&dir, FolderOptions::default()).unwrap();
    writer.split("train").unwrap();
    labelled(3).iter().for_each(|sample| append(&mut writer, sample).unwrap());
    std::fs::create_dir_all(dir.join("other")).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    let kept = names(root.path()).into_iter().find(|name| name.starts_with(".own")).unwrap();
    assert!(error.contains(&kept), "{error}");
    assert_eq!(Dataset::open(&root.path().join(kept), "train").unwrap().len(), 3);
}

use std::collections::BTreeMap;

use super::*;
use crate::shard::{ShardWriter, Written};

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut index = IndexWriter::new();
    for (split, shards) in [("train", 2), ("val", 1)] {
        index.begin_split(split).unwrap();
        for shard in 0..shards {
            let name = format!("{split}-{shard:06}.tar");
            let mut writer = ShardWriter::create(&dir.path().join(&name)).unwrap();
            for sample in 0..3u8 {
                let key = format!("{split}{shard}_{sample}");
                let image = vec![sample; 100 * sample as usize];
                let label = (sample > 0).then_some(u32::from(sample));
                let entry = writer.append(&key, "jpg", &image, label).unwrap();
                index.sample(&key, entry, label, Format::Jpeg, (7, 70_000));
            }
            index.end_shard(&name, writer.finish().unwrap()).unwrap();
        }
    }
    index.write(dir.path()).unwrap();
    dir
}

#[test]
fn an_index_gives_back_what_was_written() {
    let dir = folder();
    let index = Index::open(dir.path()).unwrap();
    assert_eq!((index.len(), index.shards().len(), index.splits().len()), (9, 3, 2));
    let val = index.split("val").unwrap();
    assert_eq!((val.samples.clone(), val.shards.clone()), (6..9, 2..3));
    assert_eq!(index.key(5), "train1_2");
    assert_eq!(index.find("val0_1"), Some(7));
    assert_eq!(index.record(3).label, None);
    let record = index.record(8);
    assert_eq!((record.label, record.width, record.height), (Some(2), 7, 0));
    assert_eq!(record.format, Format::Jpeg);
    let shard = Shard::open(&index.shard_path(record.shard)).unwrap();
    assert_eq!(shard.read(record.entry).unwrap(), &[2; 200][..]);
    let file = std::fs::read(shard.path()).unwrap();
    assert_eq!(xxh3_64(&file), index.shards()[2].xxh3);
    assert_eq!((shard.len(), file.len() as u64), (index.shards()[2].bytes, shard.len()));
}

#[test]
fn every_damaged_byte_of_an_index_is_noticed() {
    let dir = folder();
    let path = dir.path().join(INDEX_FILE);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = Index::open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "byte {at}: {error}");
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(Index::open(dir.path()).is_err(), "cut at {at}");
    }
}

#[test]
fn damage_under_a_right_checksum_is_an_error_and_no_panic() {
    let dir = folder();
    let path = dir.path().join(INDEX_FILE);
    let whole = std::fs::read(&path).unwrap();
    let body = whole.len() - CHECKSUM;
    for at in 8..body {
        for value in [0, 0xff] {
            let mut bytes = whole[..body].to_vec();
            bytes[at] = value;
            let sum = xxh3_64(&bytes);
            bytes.extend_from_slice(&sum.to_le_bytes());
            std::fs::write(&path, &bytes).unwrap();
            let Ok(index) = Index::open(dir.path()) else { continue };
            for sample in 0..index.len() {
                index.record(sample);
                index.key(sample);
            }
        }
    }
}

#[test]
fn a_key_twice_in_a_split_is_refused() {
    let mut index = IndexWriter::new();
    index.begin_split("train").unwrap();
    for name in ["train-000000.tar", "train-000001.tar"] {
        let entry = Entry { offset: 512, length: 1 };
        index.sample("dog", entry, None, Format::Unknown, (0, 0));
        index.end_shard(name, Written { bytes: 2048, xxh3: 0 }).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let error = index.write(dir.path()).unwrap_err();
    assert!(matches!(error, Error::DuplicateKey { .. }), "{error}");
    assert!(!dir.path().join(INDEX_FILE).exists());
}

#[test]
fn json_files_survive_a_round_trip() {
    let dir = folder();
    let manifest = Manifest {
        format: Manifest::FORMAT,
        tool: "test".into(),
        version: "0".into(),
        source: "made up".into(),
        options: BTreeMap::from([("shard_bytes".into(), 7.into())]),
        seed: 3,
        classes: 1,
        splits: BTreeMap::new(),
    };
    manifest.save(dir.path()).unwrap();
    assert_eq!(Manifest::load(dir.path()).unwrap(), manifest);
    let classes = Classes(vec![Class { class: 0, name: "n0".into(), words: None }]);
    classes.save(dir.path()).unwrap();
    assert_eq!(Classes::load(dir.path()).unwrap(), classes);
    Classes(vec![Class { class: 1, name: "n0".into(), words: None }]).save(dir.path()).unwrap();
    assert!(Classes::load(dir.path()).is_err());
}

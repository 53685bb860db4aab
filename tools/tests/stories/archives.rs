//! ImageNet's archives and WebDataset shards.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::tempdir;
use turbojpeg::Subsamp;

use crate::support::{
    Sample, append, build, cmyk, decode, jpeg, jpeg_of, json, names, png, report, run, samples,
    tar_of, text, write,
};

const SYNSETS: [&str; 3] = ["n00000001", "n00000002", "n00000003"];

/// A training archive in ImageNet's layout: three classes of four photographs, and oddities.
fn train_tar() -> Vec<u8> {
    let photo = |class: usize, at: usize| {
        (format!("{}_{at}.JPEG", SYNSETS[class]), jpeg(200 + 8 * at, 150, class * 10 + at))
    };
    let class = |class: usize, odd: &[(&str, Vec<u8>)]| {
        let photos: Vec<_> = (0..4).map(|at| photo(class, at)).collect();
        let photos = photos.iter().map(|(name, bytes)| (name.as_str(), bytes.clone()));
        tar_of(&photos.chain(odd.iter().cloned()).collect::<Vec<_>>())
    };
    let whole = jpeg(160, 140, 77);
    let mut linked = tar::Builder::new(Vec::new());
    append(&mut linked, "n00000003_0.JPEG", &jpeg(150, 150, 30));
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    linked.append_link(&mut link, "n00000003_8.JPEG", "/etc/passwd").expect("memory");
    append(&mut linked, "n00000003_9.JPEG", &jpeg(300, 200, 31));
    // Not in the order of their names, as a hand-made archive may be.
    tar_of(&[
        ("n00000002.tar", class(1, &[("n00000002_7.JPEG", cmyk(140, 130, 5))])),
        ("n00000003.tar", linked.into_inner().expect("memory")),
        (
            "n00000001.tar",
            class(
                0,
                &[
                    ("n00000001_5.JPEG", png(130, 140, 6)),
                    ("n00000001_6.JPEG", whole[..whole.len() / 2].to_vec()),
                    ("n00000001_7.JPEG", b"not a picture at all".to_vec()),
                    ("n00000001_8.JPEG", Vec::new()),
                    ("n00000001_9.JPEG", jpeg_of(180, 170, 9, Subsamp::None, true)),
                    ("n00000001_4.JPEG", jpeg_of(180, 170, 8, Subsamp::Gray, false)),
                ],
            ),
        ),
        ("README", b"hello".to_vec()),
    ])
}

fn val_tar() -> Vec<u8> {
    let names: Vec<String> =
        (1..=6).map(|number| format!("ILSVRC2012_val_{number:08}.JPEG")).collect();
    let file = |at: usize| (names[at].as_str(), jpeg(160, 130, 50 + at));
    tar_of(&[5, 0, 3, 1, 4, 2].map(file))
}

/// Labels of the six validation images, in the order of their names.
const VAL: [usize; 6] = [2, 0, 1, 1, 0, 2];

fn archives(dir: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let lines: String = VAL.iter().map(|class| format!("{}\n", SYNSETS[*class])).collect();
    (
        write(dir.join("train.tar"), train_tar()),
        write(dir.join("val.tar"), val_tar()),
        write(dir.join("val.txt"), lines),
    )
}

#[test]
fn imagenets_archives_become_shards_with_everything_accounted_for() {
    let dir = tempdir().expect("a folder");
    let (train, val, labels) = archives(dir.path());
    let words = write(dir.path().join("words.txt"), "n00000001 tench, Tinca tinca\n");
    let output = dir.path().join("out");
    let lists = ["--val", text(&val), "--val-labels", text(&labels), "--synsets", text(&words)];
    build("imagenet", &train, &output, &[&lists[..], &["--holdout", "3"]].concat()).ok();

    let classes = json(&output, "classes.json");
    assert_eq!(classes.as_array().expect("a list").len(), 3);
    assert_eq!(classes[0]["name"], SYNSETS[0]);
    assert_eq!(classes[0]["words"], "tench, Tinca tinca");
    assert_eq!(classes[2]["words"], serde_json::Value::Null);

    let all = samples(&output);
    let split = |name: &str| {
        all.iter().filter(|s| s.shard.starts_with(&format!("{name}-"))).collect::<Vec<_>>()
    };
    // 4 + 4 + 2 photographs, a CMYK, a PNG, a progressive and a grey one.
    assert_eq!([split("train").len(), split("trainval").len(), split("val").len()], [11, 3, 6]);
    for sample in split("train").iter().chain(&split("trainval")) {
        let label = SYNSETS.iter().position(|synset| sample.key.starts_with(synset));
        assert_eq!(sample.label, label.map(|label| label as u32), "{}", sample.key);
    }
    let mut by_name = split("val");
    by_name.sort_by(|a, b| a.key.cmp(&b.key));
    let got: Vec<_> = by_name.iter().map(|s| s.label.expect("a label") as usize).collect();
    assert_eq!(got, VAL);

    let rejected = report(&output, "rejected.jsonl");
    let reason = |name: &str| {
        let found = rejected.iter().find(|(file, _)| file.contains(name));
        found.unwrap_or_else(|| panic!("{name} is not in {rejected:?}")).1.clone()
    };
    assert!(reason("n00000001_6").contains("cut short"), "{}", reason("n00000001_6"));
    assert!(reason("n00000001_7").contains("text"));
    assert!(reason("n00000001_8").contains("empty"));
    assert!(reason("n00000003_8").contains("symbolic link"));
    assert!(reason("README").contains("no tar of a class"));
    assert_eq!(rejected.len(), 5);
    let odd = report(&output, "odd.jsonl");
    assert_eq!(odd.len(), 2);
    assert!(odd.iter().any(|(name, why)| name.contains("n00000002_7") && why.contains("CMYK")));
    assert!(odd.iter().any(|(name, why)| name.contains("n00000001_5") && why.contains("PNG")));
    run(&["verify", "--deep", text(&output)]).ok();
}

#[test]
fn validation_labels_come_as_numbers_names_or_lines_and_must_fit() {
    let dir = tempdir().expect("a folder");
    let (train, val, labels) = archives(dir.path());
    let at = |name: &str, text: String| write(dir.path().join(name), text);
    // The devkit numbers classes in an order of its own: here 1 is the third synset.
    let ids = at("ids.txt", format!("{}\n{}\n{}\n", SYNSETS[2], SYNSETS[0], SYNSETS[1]));
    let number = |class: &usize| [2, 3, 1][*class];
    let numbers = at("n.txt", VAL.iter().map(|class| format!("{}\n", number(class))).collect());
    let line = |(at, class): (usize, &usize)| {
        format!("ILSVRC2012_val_{:08},{} 1 2 3 4\n", at + 1, SYNSETS[*class])
    };
    let rows: Vec<String> = VAL.iter().enumerate().map(line).rev().collect();
    let kaggle = at("k.csv", format!("ImageId,PredictionString\n{}", rows.concat()));
    let labelled = |list: &Path, more: &[&str], name: &str| -> Vec<Sample> {
        let output = dir.path().join(name);
        let lists = ["--val", text(&val), "--val-labels", text(list)];
        build("imagenet", &train, &output, &[&lists[..], more].concat()).ok();
        samples(&output)
    };
    let expected = labelled(&labels, &[], "a");
    assert_eq!(labelled(&numbers, &["--ids", text(&ids)], "b"), expected);
    assert_eq!(labelled(&kaggle, &[], "c"), expected);

    let refused = |list: PathBuf, more: &[&str], what: &str| {
        let output = dir.path().join("none");
        let lists = ["--val", text(&val), "--val-labels", text(&list)];
        build("imagenet", &train, &output, &[&lists[..], more].concat()).refused(what);
        assert!(!output.exists());
    };
    refused(numbers, &[], "give --ids");
    refused(at("short.txt", format!("{}\n", SYNSETS[0])), &[], "1 labels for 6 images");
    let unknown = format!("{}n00000009\n", format!("{}\n", SYNSETS[0]).repeat(5));
    refused(at("unknown.txt", unknown), &[], "n00000009 is no class of the training images");
    let output = dir.path().join("none");
    build("imagenet", &train, &output, &["--val", text(&val)]).refused("--val-labels");
}

#[test]
fn an_archive_that_is_cut_anywhere_is_refused_and_leaves_nothing() {
    let dir = tempdir().expect("a folder");
    let whole = train_tar();
    let output = dir.path().join("out");
    let first_member = 512 + 512; // the first photograph of the first class tar
    for cut in [0, 100, 512, first_member + 100, whole.len() / 2, whole.len() / 2 / 512 * 512] {
        let path = write(dir.path().join("cut.tar"), &whole[..cut]);
        let ran = build("imagenet", &path, &output, &[]);
        assert_eq!(ran.code, Some(2), "cut at {cut}: {}", ran.err);
        assert_eq!(names(dir.path()), ["cut.tar"], "cut at {cut}");
    }
    let text = write(dir.path().join("cut.tar"), "a text that calls itself an archive".repeat(99));
    build("imagenet", &text, &output, &[]).refused("no sound tar archive");
    let zipped = write(dir.path().join("cut.tar"), [0x1F, 0x8B, 8, 0, 0, 0]);
    build("imagenet", &zipped, &output, &[]).refused("compressed");
}

#[test]
fn a_size_that_a_header_claims_is_not_believed() {
    let dir = tempdir().expect("a folder");
    let mut archive = tar_of(&[("a.jpg", jpeg(64, 64, 1))]);
    let mut header = tar::Header::new_gnu();
    header.set_path("b.jpg").expect("a name");
    header.set_size(1 << 40);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    archive.truncate(archive.len() - 1024);
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(&[0; 1024]);
    let path = write(dir.path().join("train.tar"), archive);
    build("webdataset", &path, &dir.path().join("out"), &[]).refused("ends inside b.jpg");
}

#[test]
fn shards_are_sharded_again_with_keys_made_unique() {
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    let shard = |seed: usize| {
        tar_of(&[
            ("000.cls", b"1\n".to_vec()),
            ("000.jpg", jpeg(64, 48, seed)),
            ("000.json", b"{}".to_vec()),
            ("sub/001.JPEG", jpeg(48, 64, seed + 1)),
            ("002.cls", b"cat".to_vec()),
            ("002.jpg", jpeg(48, 64, seed + 2)),
            ("003.cls", b"0".to_vec()),
        ])
    };
    // As writers do that count from zero in every shard.
    write(source.join("train-000.tar"), shard(1));
    write(source.join("train-001.tar"), shard(4));
    write(source.join("val-000.tar"), shard(7));
    let output = dir.path().join("out");
    build("webdataset", &source, &output, &[]).ok();
    let all = samples(&output);
    let mut keys: Vec<&str> = all.iter().map(|sample| sample.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["000", "000-2", "000-3", "sub_001", "sub_001-2", "sub_001-3"]);
    for sample in &all {
        let labelled = sample.key.starts_with("000");
        assert_eq!(sample.label, labelled.then_some(1), "{}", sample.key);
    }
    let first = all.iter().find(|sample| sample.key == "000").expect("the first");
    assert_eq!(decode(&first.image), decode(&jpeg(64, 48, 1)));
    let rejected = report(&output, "rejected.jsonl");
    assert_eq!(rejected.iter().filter(|(_, why)| why.contains("\"cat\"")).count(), 3);
    assert_eq!(rejected.iter().filter(|(_, why)| why.contains("no image")).count(), 3);

    // What we wrote reads back to the same images, whatever the size of the shards.
    let again = dir.path().join("again");
    build("webdataset", &output, &again, &["--shard-bytes", "2K"]).ok();
    assert!(names(&again).iter().filter(|name| name.ends_with(".tar")).count() > 3);
    let sorted = |dir: &Path| {
        let mut all = samples(dir);
        all.iter_mut().for_each(|sample| sample.shard.clear());
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    };
    assert_eq!(sorted(&again), sorted(&output));
    assert_eq!(
        fs::read(again.join("classes.json")).ok(),
        fs::read(output.join("classes.json")).ok()
    );
}

//! Archives that arrive through a pipe.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};

use tempfile::tempdir;

use crate::support::{
    Ran, append, build, cmyk, contents, jpeg, json, names, program, report, run, samples, tar_of,
    text, write,
};

const SYNSETS: [&str; 3] = ["n00000001", "n00000002", "n00000003"];

/// A tar of class tars in the order of `classes`, each with `images` photographs in order of name.
fn train_tar(classes: &[usize], images: usize) -> Vec<u8> {
    let class = |class: usize| {
        let name = |at: usize| format!("{}_{at:02}.JPEG", SYNSETS[class]);
        let photo = |at: usize| (name(at), jpeg(120 + at, 100, class * 50 + at));
        let mut photos: Vec<_> = (0..images).map(photo).collect();
        if class == 1 {
            photos.push((name(90), cmyk(140, 130, 5)));
            photos.push((name(91), b"not a picture at all".to_vec()));
        }
        let photos: Vec<_> = photos.iter().map(|(name, b)| (name.as_str(), b.clone())).collect();
        (format!("{}.tar", SYNSETS[class]), tar_of(&photos))
    };
    let tars: Vec<_> = classes.iter().map(|at| class(*at)).collect();
    tar_of(&tars.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect::<Vec<_>>())
}

/// A list of the classes, not in their order, with words.
fn synsets(dir: &Path) -> String {
    let lines = SYNSETS.iter().rev().map(|synset| format!("{synset} a word of {synset}\n"));
    text(&write(dir.join("synsets.txt"), lines.collect::<String>())).to_owned()
}

fn start(args: &[&str]) -> Child {
    let mut command = program(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

fn finish(child: Child) -> Ran {
    let output = child.wait_with_output().expect("ended");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn args<'a>(layout: &'a str, output: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let usual = ["build", "--layout", layout, "--input", "-", "--order", "source", "--output"];
    [&usual[..], &[text(output)], more].concat()
}

/// A build of what is written to its standard input; it may hang up before the end.
fn pipe(layout: &str, bytes: &[u8], output: &Path, more: &[&str]) -> Ran {
    let mut child = start(&args(layout, output, more));
    let mut input = child.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes));
        finish(child)
    })
}

/// A folder without what tells how it was made.
fn made(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut files = contents(dir);
    files.remove("manifest.json");
    files
}

#[test]
fn a_pipe_gives_what_the_file_gives() {
    let dir = tempdir().expect("a folder");
    let bytes = train_tar(&[0, 1, 2], 8);
    let train = write(dir.path().join("train.tar"), &bytes);
    let val = tar_of(&[("v_1.JPEG", jpeg(99, 80, 7)), ("v_2.JPEG", jpeg(90, 80, 8))]);
    let val = write(dir.path().join("val.tar"), val);
    let labels = write(dir.path().join("val.txt"), format!("{}\n{}\n", SYNSETS[2], SYNSETS[0]));
    let synsets = synsets(dir.path());
    let lists = ["--val", text(&val), "--val-labels", text(&labels), "--synsets", &synsets];
    let more = [&lists[..], &["--holdout", "7", "--shard-bytes", "20K", "--seed", "3"]].concat();
    let file = dir.path().join("file");
    build("imagenet", &train, &file, &[&more[..], &["--order", "source"]].concat()).ok();

    let piped = dir.path().join("piped");
    // Eight of each class, and two that are odd or none.
    let counted = [&more[..], &["--images", "26"]].concat();
    pipe("imagenet", &bytes, &piped, &counted).ok();
    let split = |name| json(&piped, "manifest.json")["splits"][name]["samples"].as_u64();
    assert_eq!([split("trainval"), split("val")], [Some(7), Some(2)]);
    let (mut expected, mut got) = (made(&file), made(&piped));
    let names = ["rejected.jsonl", "odd.jsonl"];
    // The reports name the source: the file by its path, the pipe by what it is.
    for name in names {
        let path = text(&train);
        let lines = String::from_utf8(expected.remove(name).expect("a report")).expect("UTF-8");
        let piped = String::from_utf8(got.remove(name).expect("a report")).expect("UTF-8");
        assert_eq!(lines.replace(path, "standard input"), piped);
        assert_eq!(lines.lines().count(), 1);
    }
    assert_eq!(got, expected);
    run(&["verify", "--deep", text(&piped)]).ok();

    // A pipe that has a name, and whatever number of threads.
    let named = dir.path().join("train.fifo");
    let made_it = std::process::Command::new("mkfifo").arg(&named).status().expect("mkfifo");
    assert!(made_it.success());
    let output = dir.path().join("named");
    std::thread::scope(|scope| {
        let (bytes, named) = (&bytes, &named);
        scope.spawn(move || {
            OpenOptions::new().write(true).open(named).and_then(|mut to| to.write_all(bytes))
        });
        let more = [&counted[..], &["--order", "source", "--threads", "3"]].concat();
        build("imagenet", named, &output, &more).ok();
    });
    let (mut got, mut expected) = (made(&output), made(&piped));
    for name in names {
        assert_eq!(got.remove(name).is_some(), expected.remove(name).is_some());
    }
    assert_eq!(got, expected);
}

#[test]
fn classes_are_numbered_by_sorted_synset_in_whatever_order_they_come() {
    let dir = tempdir().expect("a folder");
    let synsets = synsets(dir.path());
    let output = dir.path().join("out");
    let first = SYNSETS[2];
    pipe("imagenet", &train_tar(&[2, 0, 1], 3), &output, &["--synsets", &synsets]).ok();
    let all = samples(&output);
    assert!(all[0].key.starts_with(first), "the order is not the stream's: {}", all[0].key);
    for sample in &all {
        let label = SYNSETS.iter().position(|synset| sample.key.starts_with(synset));
        assert_eq!(sample.label, label.map(|label| label as u32), "{}", sample.key);
    }
    assert_eq!(json(&output, "classes.json")[0]["words"], "a word of n00000001");

    let none = dir.path().join("none");
    let refused = |bytes: &[u8], more: &[&str], what: &str| {
        pipe("imagenet", bytes, &none, more).refused(what);
        assert!(!none.exists() && !dir.path().join(".none.partial").exists(), "{what}");
    };
    refused(&train_tar(&[2, 0], 3), &["--synsets", &synsets], "no n00000002.tar");
    refused(&train_tar(&[2, 0, 2], 3), &["--synsets", &synsets], "n00000003.tar twice");
    let fewer = write(dir.path().join("fewer.txt"), format!("{}\n", SYNSETS[0]));
    refused(&train_tar(&[0, 1], 3), &["--synsets", text(&fewer)], "which is no class of --synsets");
}

#[test]
fn what_a_pipe_cannot_do_is_said_before_it_is_read() {
    let dir = tempdir().expect("a folder");
    let synsets = synsets(dir.path());
    let output = dir.path().join("out");
    let usual = ["build", "--input", "-", "--output", text(&output)];
    let refused = |more: &[&str], what: &str| {
        finish(start(&[&usual[..], more].concat())).refused(what);
        assert_eq!(names(dir.path()), ["synsets.txt"]);
    };
    let listed = ["--layout", "imagenet", "--synsets", &synsets];
    refused(&listed, "--order source");
    refused(&["--layout", "webdataset", "--order", "shuffle"], "--order source");
    refused(&["--layout", "flat", "--order", "source"], "imagenet or webdataset");
    refused(&[&listed[..], &["--order", "source", "--holdout", "2"]].concat(), "--images");
    finish(start(&args("imagenet", &output, &[]))).refused("--synsets");
    let bytes = train_tar(&[0, 1, 2], 2);
    for (images, what) in [("9", "fewer training images"), ("7", "more training images")] {
        let more = ["--synsets", &synsets, "--holdout", "2", "--images", images];
        pipe("imagenet", &bytes, &output, &more).refused(what);
        assert_eq!(names(dir.path()), ["synsets.txt"]);
    }
}

#[test]
fn nothing_that_a_header_says_is_believed() {
    let dir = tempdir().expect("a folder");
    let output = dir.path().join("out");
    let refused = |bytes: &[u8], what: &str| {
        pipe("webdataset", bytes, &output, &[]).refused(what);
        assert!(names(dir.path()).is_empty(), "{what}");
    };
    let start = || {
        let mut builder = tar::Builder::new(Vec::new());
        append(&mut builder, "a.jpg", &jpeg(64, 64, 1));
        builder
    };
    let claims = |kind: tar::EntryType, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_path("b.jpg").expect("a name");
        header.set_size(size);
        header.set_entry_type(kind);
        header.set_cksum();
        let mut bytes = start().into_inner().expect("memory");
        bytes.truncate(bytes.len() - 1024);
        [&bytes[..], header.as_bytes(), &[0; 1024]].concat()
    };
    refused(&claims(tar::EntryType::Regular, 60 << 20), "ends inside b.jpg");
    refused(&claims(tar::EntryType::Regular, 1 << 40), "ends inside b.jpg");
    refused(&claims(tar::EntryType::GNULongName, 1 << 40), "a name of 1099511627776 bytes");
    refused(&claims(tar::EntryType::XHeader, 1 << 40), "a name of 1099511627776 bytes");
    refused(&[], "ends in its first header");
    refused(&[0x1F, 0x8B, 8, 0, 0, 0], "compressed");
    refused("a text that calls itself an archive".repeat(99).as_bytes(), "no sound tar archive");
    let whole = start().into_inner().expect("memory");
    for cut in [100, 512, 900, whole.len() - 1024] {
        refused(&whole[..cut], "without an end marker");
    }
}

#[test]
fn links_and_ways_out_of_an_archive_lead_nowhere() {
    let dir = tempdir().expect("a folder");
    let output = dir.path().join("out");
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, "a.jpg", &jpeg(64, 64, 1));
    for (name, kind) in [
        ("link.jpg", tar::EntryType::Symlink),
        ("hard.jpg", tar::EntryType::Link),
        ("null.jpg", tar::EntryType::Char),
        ("fifo.jpg", tar::EntryType::Fifo),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, name, "/etc/passwd").expect("memory");
    }
    let long = format!("../../{}/c.jpg", "x".repeat(200));
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    let name = format!("{long}\0");
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(name.len() as u64);
    header.set_path("././@LongLink").expect("a name");
    header.set_cksum();
    builder.append(&header, name.as_bytes()).expect("memory");
    append(&mut builder, "short.jpg", &jpeg(64, 64, 2));
    let bytes = builder.into_inner().expect("memory");
    pipe("webdataset", &bytes, &output, &[]).ok();
    assert_eq!(names(dir.path()), ["out"]);
    let all = samples(&output);
    assert_eq!(all.len(), 2);
    assert!(all[1].key.starts_with("______xxx"), "{}", all[1].key);
    let reasons = report(&output, "rejected.jsonl");
    let reason = |name: &str| {
        let found = reasons.iter().find(|(file, _)| file.ends_with(name));
        found.unwrap_or_else(|| panic!("{name} is not in {reasons:?}")).1.as_str()
    };
    assert_eq!(reason("link.jpg"), "is a symbolic link");
    assert_eq!(reason("hard.jpg"), "is a hard link");
    assert_eq!(reason("null.jpg"), "is a device");
    assert_eq!(reason("fifo.jpg"), "is a pipe");
    assert_eq!(reasons.len(), 4);
}

#[test]
fn shards_that_are_joined_end_to_end_are_one_stream() {
    let dir = tempdir().expect("a folder");
    let shard = |seed: usize| {
        tar_of(&[
            ("000.cls", b"1\n".to_vec()),
            ("000.jpg", jpeg(64, 48, seed)),
            ("000.json", b"{}".to_vec()),
            ("sub/001.JPEG", jpeg(48, 64, seed + 1)),
            ("002.jpg", jpeg(48, 64, seed + 2)),
            ("002.cls", b"cat".to_vec()),
            ("003.cls", b"0".to_vec()),
        ])
    };
    let source = dir.path().join("in");
    let shards = [shard(1), shard(4)];
    for (at, bytes) in shards.iter().enumerate() {
        write(source.join(format!("train-{at}.tar")), bytes);
    }
    let file = dir.path().join("file");
    build("webdataset", &source, &file, &["--order", "source"]).ok();
    let piped = dir.path().join("piped");
    pipe("webdataset", &shards.concat(), &piped, &[]).ok();
    assert_eq!(samples(&piped).len(), 4);
    let images = |dir: &Path| {
        let mut images: Vec<_> = samples(dir).into_iter().map(|s| (s.image, s.label)).collect();
        images.sort();
        images
    };
    assert_eq!(images(&piped), images(&file));
    let reasons = |dir: &Path| {
        let mut reasons: Vec<_> =
            report(dir, "rejected.jsonl").into_iter().map(|(_, reason)| reason).collect();
        reasons.sort();
        reasons
    };
    assert_eq!(reasons(&piped), reasons(&file));
    assert_eq!(contents(&piped)["classes.json"], contents(&file)["classes.json"]);
    let skipped = |dir: &Path| {
        let skipped = json(dir, "manifest.json")["options"]["skipped"].clone();
        let kinds = skipped.as_object().expect("kinds").values();
        kinds.map(|kind| kind[0].as_u64().expect("a count")).sum::<u64>()
    };
    assert_eq!((skipped(&piped), skipped(&file)), (2, 2));
}

#[test]
fn an_interrupted_pipe_is_read_again_to_the_same_bytes_and_no_other_is() {
    let dir = tempdir().expect("a folder");
    let synsets = synsets(dir.path());
    let bytes = train_tar(&[1, 0, 2], 30);
    let more = ["--synsets", &synsets, "--shard-bytes", "16K", "--holdout", "30", "--images", "92"];
    let whole = dir.path().join("whole");
    pipe("imagenet", &bytes, &whole, &more).ok();
    let whole = contents(&whole);
    for (at, part) in [3, 5, 7, 8].into_iter().enumerate() {
        let output = dir.path().join(format!("out{at}"));
        let partial = dir.path().join(format!(".out{at}.partial"));
        // The sender goes away in mid-stream: whole shards and the journal stay.
        let cut = bytes.len() * part / 9;
        pipe("imagenet", &bytes[..cut], &output, &more).refused("the same command");
        assert!(!output.exists());
        let before = contents(&partial);
        assert!(before.len() > 2, "nothing was stored: {:?}", before.keys());
        // Another archive is refused by what it holds, wherever it differs, and harms nothing.
        let mut other = bytes.clone();
        other[1024 + 400] ^= 1;
        pipe("imagenet", &other, &output, &more).refused("not what the interrupted build read");
        pipe("imagenet", &train_tar(&[0, 1, 2], 30), &output, &more)
            .refused("not what the interrupted build read");
        pipe("imagenet", b"no archive at all", &output, &more).refused("standard input");
        let journal =
            |files: &std::collections::BTreeMap<String, Vec<u8>>| files["journal.jsonl"].clone();
        assert!(journal(&contents(&partial)).starts_with(&journal(&before)));
        let ran = pipe("imagenet", &bytes, &output, &more).ok();
        assert!(ran.out.contains("stored before"), "{}", ran.out);
        assert_eq!(contents(&output), whole, "cut at {cut}");
        fs::remove_dir_all(&output).expect("removed");
    }
}

/// Killed when a number of shards are recorded, with the pipe still open.
#[test]
fn a_killed_pipe_build_goes_on_to_the_same_bytes() {
    let dir = tempdir().expect("a folder");
    let synsets = synsets(dir.path());
    let bytes = train_tar(&[2, 1, 0], 30);
    let more = ["--synsets", &synsets, "--shard-bytes", "16K", "--holdout", "9", "--images", "92"];
    let whole = dir.path().join("whole");
    pipe("imagenet", &bytes, &whole, &more).ok();
    let output = dir.path().join("out");
    let mut child = start(&args("imagenet", &output, &more));
    let mut input = child.stdin.take().expect("a pipe");
    // Enough for shards, and the end is held back.
    input.write_all(&bytes[..bytes.len() * 8 / 9]).expect("the program reads");
    let journal = dir.path().join(".out.partial/journal.jsonl");
    let lines =
        || fs::read(&journal).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count();
    while lines() < 3 {
        assert!(child.try_wait().expect("a child").is_none(), "it ended before the stream did");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    let ran = pipe("imagenet", &bytes, &output, &more).ok();
    assert!(ran.out.contains("stored before"), "{}", ran.out);
    assert_eq!(contents(&output), contents(&whole));
}

//! WebDataset shards that another program wrote: built into a data folder, and read in place.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::support::{
    Ran, build, jpeg, json, names, png, program, report, run, samples, tar_of, text, write,
};

type Files<'a> = &'a [(&'a str, Vec<u8>)];

/// A folder of shards.
fn shards(files: &[(&str, Files)]) -> (TempDir, PathBuf) {
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    for (name, files) in files {
        write(source.join(name), tar_of(files));
    }
    (dir, source)
}

fn labelled(key: &str, seed: usize, label: u32) -> [(String, Vec<u8>); 2] {
    [
        (format!("{key}.jpg"), jpeg(64, 48, seed)),
        (format!("{key}.cls"), label.to_string().into_bytes()),
    ]
}

/// A shard of so many samples; sample n has label n.
fn shard(key: &str, count: usize) -> Vec<u8> {
    let files: Vec<_> =
        (0..count).flat_map(|n| labelled(&format!("{key}{n}"), n, n as u32)).collect();
    tar_of(&files.iter().map(|(name, bytes)| (&**name, bytes.clone())).collect::<Vec<_>>())
}

/// Images by split, as `inspect` counts them.
fn counts(dir: &Path) -> Vec<(String, u64)> {
    let summary = run(&["inspect", text(dir), "--json"]).ok().out;
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    let split = |split: &Value| {
        let name = split["name"].as_str().expect("a name").to_owned();
        (name, split["images"].as_u64().expect("a number"))
    };
    summary["splits"].as_array().expect("splits").iter().map(split).collect()
}

fn owned(counts: &[(&str, u64)]) -> Vec<(String, u64)> {
    counts.iter().map(|(name, count)| (name.to_string(), *count)).collect()
}

/// A build of what comes through a pipe.
fn pipe(bytes: &[u8], output: &Path, more: &[&str]) -> Ran {
    let usual = ["build", "--layout", "webdataset", "--input", "-", "--order", "source"];
    feed(bytes, &[&usual[..], &["--output", text(output)], more].concat())
}

/// Runs the program with these bytes on its standard input.
fn feed(bytes: &[u8], args: &[&str]) -> Ran {
    let mut command = program(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut input = child.stdin.take().expect("a pipe");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes));
        child.wait_with_output().expect("ended")
    });
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

#[test]
fn a_pipe_among_shards_is_refused_a_folder_passed_over_and_a_stem_is_there_once() {
    let dir = tempdir().expect("a folder");
    let (source, output) = (dir.path().join("in"), dir.path().join("out"));
    write(source.join("train-0.tar"), shard("t", 2));
    fs::create_dir(source.join("x.tar")).expect("a folder");
    build("webdataset", &source, &output, &[]).ok();
    assert_eq!(counts(&output), owned(&[("train", 2)]));
    let (pipe, output) = (source.join("train-1.tar"), dir.path().join("out2"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    build("webdataset", &source, &output, &[]).refused("train-1.tar: is no regular file");
    fs::remove_file(pipe).expect("a pipe");
    write(source.join("train-0.tar.gz"), b"");
    let both = "train-0.tar and train-0.tar.gz are the same shard";
    build("webdataset", &source, &output, &[]).refused(both);
}

#[test]
fn the_words_of_a_shards_name_tell_its_split_built_and_in_place() {
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    write(source.join("imagenet1k-train-0000.tar"), shard("t", 4));
    write(source.join("imagenet1k-validation-00.tar"), shard("v", 2));
    let output = dir.path().join("out");
    build("webdataset", &source, &output, &[]).ok();
    let expected = owned(&[("train", 4), ("val", 2)]);
    assert_eq!(counts(&output), expected);
    assert_eq!(counts(&source), expected);

    // No word at all is train; one beside names that have one could be either.
    let plain = dir.path().join("plain");
    write(plain.join("0.tar"), shard("a", 1));
    let none = dir.path().join("none");
    build("webdataset", &plain, &none, &[]).ok();
    assert_eq!(counts(&none), owned(&[("train", 1)]));
    write(plain.join("val-1.tar"), shard("b", 1));
    let refused = dir.path().join("refused");
    build("webdataset", &plain, &refused, &[]).refused("the name of 0 tells none");
    run(&["inspect", text(&plain)]).refused("--split NAME");
    fs::remove_file(plain.join("index.bin")).ok();
    build("webdataset", &plain, &refused, &["--split", "test"]).ok();
    assert_eq!(counts(&refused), owned(&[("test", 2)]));

    // A pipe has no name, so the split may be said.
    for (more, split) in [(&[][..], "train"), (&["--split", "val"], "val")] {
        let piped = dir.path().join(format!("piped-{split}"));
        pipe(&shard("a", 2), &piped, more).ok();
        assert_eq!(counts(&piped), owned(&[(split, 2)]));
    }
    let two = write(dir.path().join("train-val.tar"), shard("a", 1));
    build("webdataset", &two, &dir.path().join("x"), &[]).refused("could be of the split");
    build("flat", &source, &dir.path().join("x"), &["--split", "val"])
        .refused("--layout webdataset");
}

#[test]
fn what_webdataset_reads_is_built_and_read_in_place() {
    let image = |seed| jpeg(64, 48, seed);
    let one = b"1".to_vec();
    let double = [0, 5, 22, 7].repeat(20);
    for (name, files, expected, rejected) in [
        ("upper case", &[("A.JPG", image(1)), ("A.CLS", one.clone())][..], 1, 0),
        (
            "jpeg",
            &[
                ("a.jpeg", image(1)),
                ("a.cls", one.clone()),
                ("b.png", png(9, 9, 1)),
                ("b.cls", one.clone()),
            ],
            2,
            0,
        ),
        (
            "apart",
            &[
                ("a.jpg", image(1)),
                ("b.jpg", image(2)),
                ("a.cls", one.clone()),
                ("b.cls", one.clone()),
            ],
            2,
            0,
        ),
        (
            "AppleDouble",
            &[
                ("._a.jpg", double.clone()),
                ("a.jpg", image(1)),
                ("x/._a.cls", double.clone()),
                ("a.cls", one.clone()),
                ("__MACOSX/._a.jpg", double),
            ],
            1,
            0,
        ),
        ("JSON", &[("a.jpg", image(1)), ("a.json", br#"{"label": 1}"#.to_vec())], 1, 0),
        ("compound", &[("a.left.jpg", image(1)), ("a.cls", one.clone())], 1, 0),
    ] {
        let (dir, source) = shards(&[("train-0.tar", files)]);
        let output = dir.path().join("out");
        build("webdataset", &source, &output, &[]).ok();
        let built = samples(&output);
        assert_eq!(built.len(), expected, "{name}");
        assert!(built.iter().all(|sample| sample.label == Some(1)), "{name}");
        assert_eq!(report(&output, "rejected.jsonl").len(), rejected, "{name}");
        assert_eq!(counts(&source), owned(&[("train", expected as u64)]), "{name}");
        run(&["verify", "--deep", text(&source)]).ok();
        let index = fs::read(source.join("index.bin")).expect("an index");
        run(&["verify", "--deep", text(&output)]).ok();
        assert_eq!(fs::read(source.join("index.bin")).ok(), Some(index), "{name}");
    }
}

#[test]
fn a_label_in_json_that_is_damaged_or_no_class_number_is_refused_or_rejected() {
    for (json, what) in [
        (r#"{"label": "#, "has a .json that is not JSON"),
        (r#"{"label": -1}"#, "has a .json that has the field \"label\", but \"-1\" is not a class"),
    ] {
        let files = [
            ("a.jpg", jpeg(64, 48, 1)),
            ("a.json", json.as_bytes().to_vec()),
            ("b.jpg", jpeg(64, 48, 2)),
            ("b.json", b"\xef\xbb\xbf{\"label\": 1.0}".to_vec()),
        ];
        let (dir, source) = shards(&[("train-0.tar", &files)]);
        let (output, piped) = (dir.path().join("out"), dir.path().join("piped"));
        build("webdataset", &source, &output, &[]).ok();
        pipe(&tar_of(&files), &piped, &[]).ok();
        for output in [output, piped] {
            let labels: Vec<_> = samples(&output).iter().map(|sample| sample.label).collect();
            assert_eq!(labels, [Some(1)]);
            let rejected = report(&output, "rejected.jsonl");
            assert!(rejected.len() == 1 && rejected[0].1.contains(what), "{rejected:?}");
        }
        run(&["inspect", text(&source)]).refused(what);
    }
}

#[test]
fn of_an_index_beside_and_one_in_the_cache_the_later_is_read() {
    let dir = tempdir().expect("a folder");
    let (source, cache) = (dir.path().join("in"), dir.path().join("cache"));
    let files = [("a.jpg", jpeg(64, 48, 1)), ("a.cls", b"1".to_vec()), ("a.cls2", b"2".to_vec())];
    write(source.join("train-0.tar"), tar_of(&files));
    let index = source.join("index.bin");
    run(&["index", text(&source)]).ok();
    let beside = fs::read(&index).expect("an index");
    run(&["index", text(&source), "--label", "cls2"]).ok();
    let chosen = fs::read(&index).expect("an index");
    let path = source.canonicalize().expect("a folder");
    let name = xxhash_rust::xxh3::xxh3_64(path.as_os_str().as_encoded_bytes());
    let cached = cache.join(format!("bigbigan/indexes/{name:016x}.bin"));
    let age = |path: &Path, seconds| {
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        let file = fs::File::options().write(true).open(path).expect("a file");
        file.set_modified(time).expect("a time");
    };
    // One that is not absolute counts as unset.
    for (home, beside_age, cached_age, expected) in [
        (text(&cache), 100, 50, [0, 0, 1].as_slice()),
        (text(&cache), 50, 100, &[0, 1]),
        ("cache", 100, 50, &[0, 1]),
        ("", 100, 50, &[0, 1]),
    ] {
        write(index.clone(), &beside);
        write(cached.clone(), &chosen);
        age(&index, beside_age);
        age(&cached, cached_age);
        let mut inspect = program(&["inspect", text(&source), "--json"]);
        inspect.env("XDG_CACHE_HOME", home).env("HOME", dir.path()).current_dir(dir.path());
        let output = inspect.output().expect("the program starts");
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(json["splits"][0]["per_class"], serde_json::json!(expected), "{home:?}");
    }
}

#[test]
fn archives_that_are_joined_in_a_file_are_read_to_the_last() {
    let dir = tempdir().expect("a folder");
    let joined = [shard("a", 2), shard("b", 3)].concat();
    let source = dir.path().join("in");
    write(source.join("train.tar"), &joined);
    let (file, piped) = (dir.path().join("file"), dir.path().join("piped"));
    build("webdataset", &source, &file, &["--order", "source"]).ok();
    pipe(&joined, &piped, &[]).ok();
    assert_eq!(samples(&file).len(), 5);
    assert_eq!(samples(&file), samples(&piped));
    assert_eq!(counts(&source), owned(&[("train", 5)]));
}

#[test]
fn compressed_shards_are_built_and_not_read_in_place() {
    let dir = tempdir().expect("a folder");
    let (plain, packed) = (dir.path().join("plain"), dir.path().join("packed"));
    let bytes = [shard("a", 3), shard("b", 2), shard("c", 4)];
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).expect("memory");
    for (at, bytes) in bytes.iter().enumerate() {
        write(plain.join(format!("train-{at}.tar")), bytes);
    }
    write(packed.join("train-0.tar.gz"), gzip(&bytes[0]));
    write(packed.join("train-1.tar"), &bytes[1]);
    write(packed.join("train-2.tar.zst"), zstd(&bytes[2]));
    let outputs = ["a", "b"].map(|name| dir.path().join(name));
    for (source, output) in [&plain, &packed].into_iter().zip(&outputs) {
        build("webdataset", source, output, &["--threads", "2"]).ok();
    }
    assert_eq!(samples(&outputs[0]).len(), 9);
    assert_eq!(samples(&outputs[0]), samples(&outputs[1]));
    // Nothing of the unpacked shards stays.
    assert_eq!(names(dir.path()), ["a", "b", "packed", "plain"]);
    run(&["inspect", text(&packed)]).refused("shard-imagenet build");

    // A stream is unpacked as it comes.
    let piped = dir.path().join("piped");
    for packed in [gzip(&bytes[0]), zstd(&bytes[0])] {
        pipe(&packed, &piped, &["--overwrite"]).ok();
        assert_eq!(samples(&piped).len(), 3);
        let cut = &packed[..packed.len() / 2];
        pipe(cut, &dir.path().join("cut"), &[]).refused("without an end marker");
    }
    for (name, bytes, what) in [
        ("train-0.tar.gz", gzip(&bytes[0])[..1500].to_vec(), "cut short"),
        ("train-0.tar.gz", [gzip(&bytes[0]), vec![7; 100]].concat(), "damaged"),
        ("train-0.tar", b"BZh91AY&SY0000".to_vec(), "bunzip2"),
        ("train-0.tar.xz", b"\xfd7zXZ\x00000".to_vec(), "unxz"),
    ] {
        let path = write(dir.path().join(name), bytes);
        build("webdataset", &path, &dir.path().join("x"), &[]).refused(what);
    }
}

#[test]
fn what_could_be_meant_in_two_ways_is_chosen_by_an_option() {
    let image = |seed| jpeg(64, 48, seed);
    let label = |n: u32| n.to_string().into_bytes();
    let pairs: Files = &[
        ("a.left.jpg", image(1)),
        ("a.right.jpg", image(2)),
        ("a.cls", label(1)),
        ("a.json", br#"{"class_id": 2}"#.to_vec()),
    ];
    let (dir, source) = shards(&[("train-0.tar", pairs)]);
    let output = dir.path().join("out");
    build("webdataset", &source, &output, &[]).refused("choose one (--image left.jpg)");
    run(&["inspect", text(&source)]).refused("`shard-imagenet index DIR` takes these options");
    let options = ["--image", "right.jpg", "--label", "json:class_id"];
    build("webdataset", &source, &output, &options).ok();
    let built = &samples(&output)[0];
    assert_eq!((built.key.as_str(), built.label), ("a", Some(2)));
    let piped = dir.path().join("piped");
    let bytes = fs::read(source.join("train-0.tar")).expect("a shard");
    pipe(&bytes, &piped, &options).ok();
    assert_eq!(samples(&piped), samples(&output));

    // In place an index keeps the choice.
    let ran = run(&[&["index", text(&source)], &options[..]].concat()).ok();
    assert!(ran.out.contains("train 1 images in 1 shards"), "{}", ran.out);
    assert!(
        ran.out.contains("passed over: 1 files .left.jpg, such as train-0.tar: a.left.jpg"),
        "{}",
        ran.out
    );
    let shown = program(&["cat", text(&source), "a"]).output().expect("it runs");
    assert_eq!(shown.stdout, image(2));
    run(&["index", text(&output)]).refused("the index that it was built with");

    // Dots in keys: both readings.
    let dotted = ["x.1", "x.2"].map(|key| labelled(key, 3, 1)).concat();
    let dotted: Vec<_> = dotted.iter().map(|(name, bytes)| (&**name, bytes.clone())).collect();
    let (dir, source) = shards(&[("train-0.tar", &dotted)]);
    let output = dir.path().join("out");
    build("webdataset", &source, &output, &[]).refused("(--last-dot)");
    build("webdataset", &source, &output, &["--last-dot"]).ok();
    assert_eq!(samples(&output).len(), 2);
    run(&["index", text(&source), "--last-dot"]).ok();
    assert_eq!(counts(&source), owned(&[("train", 2)]));
}

#[test]
fn what_a_pipe_cannot_put_together_is_said() {
    let dir = tempdir().expect("a folder");
    let image = jpeg(64, 48, 1);
    let bytes = tar_of(&[
        ("a.jpg", image.clone()),
        ("b.jpg", image),
        ("a.cls", b"1".to_vec()),
        ("b.cls", b"1".to_vec()),
    ]);
    pipe(&bytes, &dir.path().join("out"), &[]).refused("a.cls stands apart");
}

#[test]
fn shards_of_others_are_shown_checked_and_read_in_place() {
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    // Keys that begin again in each shard.
    for at in 0..2 {
        write(source.join(format!("train-{at}.tar")), shard("k", 3));
    }
    let table = run(&["inspect", text(&source)]).ok().out;
    assert!(table.contains("WebDataset shards") && table.contains("unknown"), "{table}");
    let grid = dir.path().join("grid.png");
    run(&["inspect", text(&source), "--grid", text(&grid), "--views", "2"]).ok();
    let ran = run(&["verify", "--deep", text(&source)]).ok();
    assert!(
        ran.out.contains("6 images in 2 shards are sound, all decoded; 3 duplicates"),
        "{}",
        ran.out
    );
    let shown = program(&["cat", text(&source), "train-1/k2"]).output().expect("it runs");
    assert_eq!(shown.stdout, jpeg(64, 48, 2));

    // An image that is damaged is found though no checksum is known.
    let path = source.join("train-1.tar");
    let mut bytes = fs::read(&path).expect("a shard");
    bytes[512..700].fill(0);
    fs::write(&path, bytes).expect("written");
    run(&["verify", "--deep", text(&source)]).refused("train-1/k0");
    fs::write(source.join("classes.json"), r#"[{"class":0,"name":"a","words":null}]"#)
        .expect("written");
    run(&["verify", text(&source)]).refused("has label 1, but there are 1 classes");
    run(&["inspect", text(dir.path())]).refused("no shards here");
}

#[test]
fn a_shard_written_anew_in_place_is_read_anew() {
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    let of = |label: u32| {
        let mut files = Vec::new();
        for n in 0..4 {
            files.extend(labelled(&format!("s{n}"), n, label));
        }
        let files: Vec<_> = files.iter().map(|(name, bytes)| (&**name, bytes.clone())).collect();
        let mut bytes = tar_of(&files);
        bytes.resize(40_960, 0);
        bytes
    };
    let path = write(source.join("train-0.tar"), of(0));
    let labels = |source: &Path| {
        let summary = run(&["inspect", text(source), "--json"]).ok();
        let json: Value = serde_json::from_str(&summary.out).expect("JSON");
        (json["splits"][0]["per_class"].clone(), summary.err)
    };
    assert_eq!(labels(&source).0, serde_json::json!([4]));
    fs::write(&path, of(3)).expect("written");
    let (per_class, said) = labels(&source);
    assert_eq!(per_class, serde_json::json!([0, 0, 0, 4]));
    assert!(said.contains("train-0.tar is not what it was when it was indexed"), "{said}");
    assert_eq!(labels(&source).1, "");
    assert!(json(&build_of(&dir, &source), "classes.json").is_array());
}

/// A data folder of the shards.
fn build_of(dir: &TempDir, source: &Path) -> PathBuf {
    let output = dir.path().join("built");
    build("webdataset", source, &output, &[]).ok();
    output
}

#[test]
fn apple_double_files_end_no_build_of_imagenets_archives() {
    let dir = tempdir().expect("a folder");
    let double = vec![0, 5, 22, 7];
    let class = |seed| {
        tar_of(&[
            ("._1.JPEG", double.clone()),
            ("1.JPEG", jpeg(64, 48, seed)),
            ("2.JPEG", jpeg(64, 48, seed + 1)),
        ])
    };
    let train = tar_of(&[
        ("._n00000001.tar", double.clone()),
        ("n00000001.tar", class(1)),
        ("n00000002.tar", class(3)),
    ]);
    let synsets = write(dir.path().join("synsets.txt"), "n00000001\nn00000002\n");
    let file = write(dir.path().join("train.tar"), &train);
    let outputs = ["file", "piped"].map(|name| dir.path().join(name));
    let more = ["--order", "source", "--synsets", text(&synsets)];
    let built = build("imagenet", &file, &outputs[0], &more).ok();
    let piped = ["build", "--layout", "imagenet", "--input", "-", "--output", text(&outputs[1])];
    let piped = feed(&train, &[&piped[..], &more].concat()).ok();
    for ran in [built, piped] {
        assert!(
            ran.out.contains("passed over: 3 AppleDouble files (._*), such as "),
            "{}",
            ran.out
        );
    }
    assert_eq!(samples(&outputs[0]), samples(&outputs[1]));
    assert_eq!(samples(&outputs[0]).len(), 4);
    assert!(report(&outputs[0], "rejected.jsonl").is_empty());
}

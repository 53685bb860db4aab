//! Which images of a folder are read, and with which labels. torchvision's `ImageFolder` is the judge:
//! tests/golden/folders.json holds its verdicts. Where we read otherwise, docs/formats.md says why.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::support::{Ran, build, jpeg, json, names, report, samples, text, write};

/// Labels by path, from the folder that was read.
type Labels = BTreeMap<Vec<u8>, Option<u32>>;

/// A folder of small JPEGs that are told apart by their bytes.
struct Tree {
    dir: TempDir,
    images: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Tree {
    fn new(files: &[&str]) -> Self {
        let mut tree = Self { dir: tempdir().expect("a folder"), images: BTreeMap::new() };
        for file in files {
            tree.add(file.as_bytes());
        }
        tree
    }

    /// Adds a JPEG under a name of any bytes.
    fn add(&mut self, name: &[u8]) {
        let image = jpeg(16 + self.images.len() % 40, 16 + self.images.len() / 40, 1);
        write(self.root().join(OsStr::from_bytes(name)), &image);
        self.images.insert(name.to_vec(), image);
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("in")
    }

    /// `build` of a folder in it. Bytes are kept, so that images can be told apart.
    fn build(&self, below: &str, more: &[&str]) -> Ran {
        let output = self.dir.path().join("out");
        let _ = fs::remove_dir_all(&output);
        let keep = ["--restart", "off", "--check", "off"];
        build("imagefolder", &self.root().join(below), &output, &[&keep[..], more].concat())
    }

    /// What was stored of each split, by path.
    fn stored(&self, split: &str) -> Labels {
        let all = samples(&self.dir.path().join("out"));
        let of = |image: &[u8]| {
            let found = self.images.iter().find(|(_, bytes)| *bytes == image);
            found.expect("an image of the tree").0.clone()
        };
        let split = all.into_iter().filter(|sample| sample.shard.starts_with(&format!("{split}-")));
        split.map(|sample| (of(&sample.image), sample.label)).collect()
    }

    fn classes(&self) -> Vec<String> {
        let classes = json(&self.dir.path().join("out"), "classes.json");
        let classes = classes.as_array().expect("classes").iter();
        classes.map(|class| class["name"].as_str().expect("a name").to_owned()).collect()
    }
}

fn labels(pairs: &[(&str, Option<u32>)]) -> Labels {
    pairs.iter().map(|(name, label)| (name.as_bytes().to_vec(), *label)).collect()
}

/// Bytes that JSON holds as Latin-1.
fn bytes_of(value: &Value) -> Vec<u8> {
    value.as_str().expect("text").chars().map(|c| c as u8).collect()
}

/// Cases in which we read otherwise than torchvision: what is stored instead.
fn departure(name: &str) -> Option<Labels> {
    Some(match name {
        // GIF and the further names of formats that are read anyway.
        "more_extensions" => labels(
            &["0.jpg", "1.gif", "2.jfif", "3.jpe", "4.pbm", "5.pnm", "6.apng", "7.dib"]
                .map(|file| (&*format!("a/{file}").leak(), Some(0))),
        ),
        // What a system leaves behind is no class and no image.
        "macosx" | "hidden" | "system_folders" => {
            labels(&[("cat/1.jpg", Some(0)), ("dog/2.jpg", Some(1))])
        }
        _ => return None,
    })
}

/// A name with what is not UTF-8 as `\xNN`.
fn escaped(name: Vec<u8>) -> String {
    String::from_utf8(name).unwrap_or_else(|error| {
        let bytes = error.as_bytes().iter().map(|b| match b {
            0x80.. => format!("\\x{b:02x}"),
            _ => (*b as char).to_string(),
        });
        bytes.collect()
    })
}

#[test]
fn a_folder_of_classes_is_read_as_torchvision_reads_it() {
    let text = include_str!("../../../tests/golden/folders.json");
    let cases: Vec<Value> = serde_json::from_str(text).expect("JSON");
    assert!(cases.len() > 20);
    for case in cases {
        let name = case["name"].as_str().expect("a name");
        let list = |key: &str| case[key].as_array().expect("a list").clone();
        let mut tree = Tree::new(&[]);
        for folder in list("folders") {
            fs::create_dir_all(tree.root().join(OsStr::from_bytes(&bytes_of(&folder))))
                .expect("made");
        }
        for file in list("files") {
            tree.add(&bytes_of(&file));
        }
        for link in list("links") {
            let [from, to] = [0, 1].map(|at| bytes_of(&link[at]));
            let from = tree.root().join(OsStr::from_bytes(&from));
            std::os::unix::fs::symlink(OsStr::from_bytes(&to), from).expect("a link");
        }
        let root = case["root"].as_str().expect("a folder");
        let ran = tree.build(root, &[]);
        let Some(expected) = case.get("samples") else {
            assert_eq!(ran.code, Some(2), "{name}: torchvision refuses it");
            continue;
        };
        ran.ok();
        // A path below the folder that is read, by way of links; ours is that of the file itself.
        let own = |path: &str| {
            let path: Vec<u8> = path.chars().map(|c| c as u8).collect();
            let path = tree.root().join(root).join(OsStr::from_bytes(&path));
            let real = path.canonicalize().expect("a file");
            let top = tree.root().canonicalize().expect("a folder");
            real.strip_prefix(top).expect("inside").as_os_str().as_bytes().to_vec()
        };
        let expected = expected.as_object().expect("samples");
        let number = |label: &Value| label.as_u64().map(|label| label as u32);
        // An image that links show twice is stored twice, with a label each.
        let mut all: Vec<_> = expected.iter().map(|(path, l)| (own(path), number(l))).collect();
        let stored = samples(&tree.dir.path().join("out"));
        let mut found: Vec<_> = stored
            .iter()
            .map(|sample| {
                let image = tree.images.iter().find(|(_, bytes)| **bytes == sample.image);
                (image.expect("an image of the tree").0.clone(), sample.label)
            })
            .collect();
        if let Some(departure) = departure(name) {
            all = departure.into_iter().collect();
        } else {
            let expected = case["classes"].as_array().expect("classes").iter().map(bytes_of);
            assert_eq!(tree.classes(), expected.map(escaped).collect::<Vec<_>>(), "{name}");
        }
        all.sort();
        found.sort();
        assert_eq!(found, all, "{name}");
    }
}

const TINY: [&str; 8] = [
    "train/n01443537/images/n01443537_0.JPEG",
    "train/n01443537/images/n01443537_1.JPEG",
    "train/n01629819/images/n01629819_0.JPEG",
    "train/n01629819/images/n01629819_1.JPEG",
    "val/images/val_0.JPEG",
    "val/images/val_1.JPEG",
    "test/images/test_0.JPEG",
    "test/images/test_1.JPEG",
];

fn tiny_imagenet() -> Tree {
    let tree = Tree::new(&TINY);
    let file = |name: &str, text: &str| write(tree.root().join(name), text);
    file(
        "val/val_annotations.txt",
        "val_0.JPEG\tn01629819\t0\t0\t9\t9\nval_1.JPEG\tn01443537\t1\t1\t9\t9\n",
    );
    // Not in the order of the names, as in the original.
    file("wnids.txt", "n01629819\nn01443537\n");
    for class in ["n01443537", "n01629819"] {
        file(&format!("train/{class}/{class}_boxes.txt"), "");
    }
    tree
}

#[test]
fn tiny_imagenet_gives_its_labels_for_training_and_validation() {
    let tree = tiny_imagenet();
    let out = tree.build("", &[]).ok().out;
    assert!(out.contains("train 4 + val 2 + test 2"), "{out}");
    assert!(out.contains("passed over: 3 files .txt, such as "), "{out}");
    let train = [(TINY[0], Some(0)), (TINY[1], Some(0)), (TINY[2], Some(1)), (TINY[3], Some(1))];
    assert_eq!(tree.stored("train"), labels(&train));
    assert_eq!(tree.stored("val"), labels(&[(TINY[4], Some(1)), (TINY[5], Some(0))]));
    assert_eq!(tree.stored("test"), labels(&[(TINY[6], None), (TINY[7], None)]));
    assert_eq!(tree.classes(), ["n01443537", "n01629819"]);
}

#[test]
fn a_list_of_labels_that_does_not_fit_its_images_is_told_of() {
    let tree = tiny_imagenet();
    let list = |text: &str| write(tree.root().join("val/val_annotations.txt"), text);
    list("val_0.JPEG\tn01629819\nval_9.JPEG\tn01443537\n");
    let out = tree.build("", &[]).ok().out;
    assert!(out.contains("1 lines of a list of labels, without an image, such as"), "{out}");
    assert_eq!(tree.stored("val"), labels(&[(TINY[4], Some(1))]));
    let rejected = report(&tree.dir.path().join("out"), "rejected.jsonl");
    assert!(rejected[0].1.contains("no line in val_annotations.txt"), "{rejected:?}");
    list("val_0.JPEG\tn01629819\nval_1.JPEG\tfox\n");
    tree.build("", &[]).refused("line 2: fox is no class");
    list("val_0.JPEG\tn01629819\nval_0.JPEG\tn01443537\n");
    tree.build("", &[]).refused("line 2: val_0.JPEG has two classes");
    list("val_0.JPEG\n");
    tree.build("", &[]).refused("line 1: is no file name and class");
    // Sorted into class folders by a script, which leaves the list and an empty folder there.
    let tree = Tree::new(&["train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "val/b/4.jpg"]);
    write(tree.root().join("val/val_annotations.txt"), "3.jpg\ta\n4.jpg\tb\n");
    fs::create_dir(tree.root().join("val/images")).expect("made");
    let out = tree.build("", &[]).ok().out;
    assert_eq!(tree.stored("val"), labels(&[("val/a/3.jpg", Some(0)), ("val/b/4.jpg", Some(1))]));
    assert!(out.contains("1 folders without images, such as"), "{out}");
    assert!(out.contains("1 files .txt, such as"), "{out}");
}

/// (case, files, what is refused, further options and what they store of `train`).
type Readings<'a> = (&'a [&'a str], &'a str, &'a [(&'a [&'a str], &'a [(&'a str, Option<u32>)])]);

const CLASSES: &[&str] = &["--folders", "classes"];
const SPLITS: &[&str] = &["--folders", "splits"];

const TWO_READINGS: [Readings; 7] = [
    // One level too high.
    (
        &["set/cat/1.jpg", "set/dog/2.jpg"],
        "holds a single folder, set: it could be the only class, or the 2 folder(s) in it the classes",
        &[(CLASSES, &[("set/cat/1.jpg", Some(0)), ("set/dog/2.jpg", Some(0))])],
    ),
    (
        &["set/train/cat/1.jpg", "set/val/cat/2.jpg"],
        "holds a single folder, set",
        &[(CLASSES, &[("set/train/cat/1.jpg", Some(0)), ("set/val/cat/2.jpg", Some(0))])],
    ),
    (
        &["images/1.jpg", "images/2.jpg"],
        "holds a single folder, images: it could be a class of that name, or hold images without classes",
        &[(CLASSES, &[("images/1.jpg", Some(0)), ("images/2.jpg", Some(0))])],
    ),
    (
        &["train/set/cat/1.jpg", "train/set/dog/2.jpg"],
        "holds a single folder, set",
        &[(SPLITS, &[("train/set/cat/1.jpg", Some(0)), ("train/set/dog/2.jpg", Some(0))])],
    ),
    // Splits beside what may be classes, or be left out.
    (
        &["train/cat/1.jpg", "train/dog/2.jpg", "more/3.jpg"],
        "train could be a split, and more be passed over, or both could be classes",
        &[
            (SPLITS, &[("train/cat/1.jpg", Some(0)), ("train/dog/2.jpg", Some(1))]),
            (
                CLASSES,
                &[
                    ("train/cat/1.jpg", Some(1)),
                    ("train/dog/2.jpg", Some(1)),
                    ("more/3.jpg", Some(0)),
                ],
            ),
        ],
    ),
    (
        &["train2017/cat/1.jpg", "train2017/dog/2.jpg", "val2017/cat/3.jpg", "val2017/dog/4.jpg"],
        "train2017 could be a split by its name, or a class",
        &[(SPLITS, &[("train2017/cat/1.jpg", Some(0)), ("train2017/dog/2.jpg", Some(1))])],
    ),
    (
        &["train/1.jpg", "val/2.jpg"],
        "holds no folder of a class in its splits",
        &[(CLASSES, &[("train/1.jpg", Some(0)), ("val/2.jpg", Some(1))])],
    ),
];

#[test]
fn what_has_two_readings_is_refused_with_both_and_read_as_one_on_request() {
    for (files, refused, readings) in TWO_READINGS {
        let tree = Tree::new(files);
        let ran = tree.build("", &[]).refused(refused);
        assert!(ran.err.contains("--folders"), "{}", ran.err);
        for (options, stored) in readings {
            tree.build("", options).ok();
            assert_eq!(tree.stored("train"), labels(stored), "{files:?} {options:?}");
        }
    }
    let tree = Tree::new(&["train/cat/1.jpg", "val/cat/2.jpg", "valid/cat/3.jpg"]);
    tree.build("", &[]).refused("val and valid could both be the split val");
}

#[test]
fn an_empty_class_folder_is_refused_unless_it_may_be_empty() {
    let tree = Tree::new(&["cat/1.jpg", "eel/2.jpg"]);
    write(tree.root().join("dog/photo.heic"), "not read");
    tree.build("", &[]).refused("1 folder(s) hold no image that is read here, such as dog");
    // As torchvision's allow_empty numbers them.
    let out = tree.build("", &["--allow-empty"]).ok().out;
    assert_eq!(tree.stored("train"), labels(&[("cat/1.jpg", Some(0)), ("eel/2.jpg", Some(2))]));
    assert!(out.contains("1 classes without an image, such as"), "{out}");
    assert!(out.contains("1 images .heic, which are not read, such as"), "{out}");
    let output = tree.dir.path().join("flat");
    let ran = build("flat", &tree.root(), &output, &["--allow-empty"]);
    ran.refused("are for --layout imagefolder");
}

#[test]
fn what_is_passed_over_is_counted_by_kind_on_the_terminal_and_in_the_manifest() {
    let tree = Tree::new(&[
        "cat/1.jpg",
        "dog/2.jpg",
        "stray.jpg",
        "cat/._1.jpg",
        "cat/.hidden.jpg",
        ".git/4.jpg",
        "__MACOSX/cat/._1.jpg",
        "lost+found/5.jpg",
    ]);
    for name in ["cat/Thumbs.db", "dog/.DS_Store", "notes.md", "dog/more.md", "LICENSE"] {
        write(tree.root().join(name), "text");
    }
    std::os::unix::fs::symlink("..", tree.root().join("cat/up")).expect("a link");
    std::os::unix::fs::symlink("nowhere", tree.root().join("eel")).expect("a link");
    let out = tree.build("", &[]).ok().out;
    let passed: Vec<&str> = out.lines().filter(|line| line.starts_with("passed over: ")).collect();
    let root = tree.root();
    let expected = [
        ("1 AppleDouble files (._*)", "cat/._1.jpg"),
        ("2 files .md", "dog/more.md"),
        ("2 files of file managers (.DS_Store, Thumbs.db)", "cat/Thumbs.db"),
        ("1 files without an extension", "LICENSE"),
        ("1 folders of macOS's own files (__MACOSX)", "__MACOSX"),
        ("1 folders of the system's own files", "lost+found"),
        ("1 hidden files", "cat/.hidden.jpg"),
        ("1 hidden folders", ".git"),
        ("1 images beside the class folders", "stray.jpg"),
        ("1 links to a folder that they are in", "cat/up"),
        ("1 links to nothing", "eel"),
    ]
    .map(|(kind, name)| format!("passed over: {kind}, such as {}", text(&root.join(name))));
    assert_eq!(passed, expected);
    let manifest = json(&tree.dir.path().join("out"), "manifest.json");
    let skipped = manifest["options"]["skipped"].as_object().expect("kinds");
    assert_eq!(skipped.len(), expected.len());
    assert_eq!(skipped["files .md"][0], 2);
    // A build that was finished before says it again.
    let again = build(
        "imagefolder",
        &root,
        &tree.dir.path().join("out"),
        &["--restart", "off", "--check", "off", "--resume"],
    );
    assert!(again.ok().out.contains(&expected[1]));
    // Nor is it silent where nothing is left to store.
    let empty = Tree::new(&[]);
    write(empty.root().join("a/1.avif"), "not read");
    let ran = empty.build("", &["--allow-empty"]);
    ran.refused("passed over: 1 classes without an image, such as");
}

#[test]
fn a_knot_of_links_ends() {
    let tree = Tree::new(&["cat/1.jpg"]);
    // Each level doubles the ways down.
    for level in 0..30 {
        let folder = tree.root().join(format!("store/{level}"));
        fs::create_dir_all(&folder).expect("made");
        for link in ["a", "b"] {
            let to = format!("../{}", level + 1);
            std::os::unix::fs::symlink(to, folder.join(link)).expect("a link");
        }
    }
    write(tree.root().join("store/30/2.jpg"), jpeg(16, 16, 9));
    tree.build("", &[]).refused("is reached by more than 100 links");
}

#[test]
fn names_that_are_not_utf_8_are_stored_under_an_escaped_key() {
    let mut tree = Tree::new(&["cat/plain.jpg"]);
    tree.add(b"cat/caf\xE9.jpg");
    tree.add(b"cat/caf\xE8.jpg");
    write(tree.root().join(OsStr::from_bytes(b"cat/bad\xFF.jpg")), "no image");
    tree.build("", &[]).ok();
    let mut keys: Vec<String> =
        samples(&tree.dir.path().join("out")).into_iter().map(|sample| sample.key).collect();
    keys.sort();
    assert_eq!(keys, ["cat_caf_xe8", "cat_caf_xe9", "cat_plain"]);
    let rejected = report(&tree.dir.path().join("out"), "rejected.jsonl");
    assert!(rejected[0].0.ends_with("cat/bad\\xff.jpg"), "{rejected:?}");
    // Without labels as well.
    let flat = tree.dir.path().join("flat");
    build("flat", &tree.root(), &flat, &[]).ok();
    assert_eq!(names(Path::new(&flat)).iter().filter(|name| name.ends_with(".tar")).count(), 1);
    assert_eq!(samples(&flat).len(), 3);
}

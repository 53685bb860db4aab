//! What `trainer eval` says of a run, and what it leaves in the run's folder.

mod keeping;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use integration::{
    Background, Said, borrowed, copy_folder, data, repository, text, tiny_run, trainer,
};
use serde_json::Value;
use tempfile::TempDir;
use trainer::checkpoint;
use trainer::evaluations::FILE;

/// A tiny run, made once; evaluations only add what they find.
fn run() -> &'static Path {
    static RUN: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let said = trainer(&borrowed(&tiny_run(data(), &path, &["eval.probe_images=0"])));
        assert_eq!(said.code, 0, "{}", said.err);
        (folder, path)
    });
    path
}

/// What evaluations added to a run's folder, without its times.
fn kept(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join(FILE)).unwrap();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
        line.as_object_mut().unwrap().remove("time");
        line
    };
    text.lines().map(line).collect()
}

/// Runs `trainer COMMAND --run RUN --device cpu ARGS` and returns the JSON lines it prints.
fn evaluate(command: &[&str], args: &[&str]) -> (Said, Vec<Value>) {
    let run = text(run());
    let common = ["--run", &run, "--device", "cpu"];
    let said = trainer(&[command, &common, args].concat());
    let lines = said.out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    (said, lines)
}

/// All of the run but what evaluations found, byte by byte.
fn contents(folder: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            contents(&path, found);
        } else if !path.ends_with(FILE) {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
}

#[test]
fn linear_probes_state_their_protocol_repeat_and_leave_the_run_alone() {
    let (mut before, mut after) = (vec![], vec![]);
    contents(run(), &mut before);
    let args = ["--steps", "6", "--rates", "0.001,0.1", "--features", "avepool,bn_crelu,mu,stage2"];
    let (said, lines) = evaluate(&["eval", "linear"], &args);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(lines.len(), 9, "four features of two encoders, and pixels: {}", said.out);
    let widths: Vec<_> = lines.iter().map(|line| line["width"].as_i64().unwrap()).collect();
    assert_eq!(widths, [128, 256, 60, 64, 128, 256, 60, 64, 3072]);
    for line in &lines {
        for key in ["metric", "step", "checkpoint", "standing_images", "split", "crop", "seed"] {
            assert!(!line[key].is_null() || line["weights"] == "initial", "{key} in {line}");
        }
        assert_eq!(line["rates"], serde_json::json!([0.001, 0.1]));
        assert_eq!((&line["split"], &line["steps"]), (&"val".into(), &6.into()));
        // 4 of 40 images choose, as there is no trainval.
        assert_eq!(line["train_images"], 36);
        assert_eq!(line["selected_on"], "every tenth training image");
        assert_eq!(line["selection"].as_array().unwrap().len(), 2);
    }
    let written = kept(run());
    assert!(lines.iter().all(|line| written.contains(line)), "{written:?}");
    contents(run(), &mut after);
    assert!(before == after, "an evaluation changed the run");
    assert_eq!(evaluate(&["eval", "linear"], &args).1, lines, "the same digits again");

    let fresh = ["--steps", "3", "--no-baselines", "--fresh-crops", "--live"];
    // What it does not train on cannot be chosen on, nor counted.
    for more in [&["--images", "16"][..], &["--protocol", "table2"]] {
        let (said, _) = evaluate(&["eval", "linear"], &[&fresh, more].concat());
        assert_eq!(said.code, 2);
        assert!(said.err.contains("--fresh-crops trains on the whole"), "{}", said.err);
    }
    let (said, lines) = evaluate(&["eval", "linear"], &fresh);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(lines[0]["train_images"], 40);
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["weights"], &lines[0]["train_crop"]), (&"live".into(), &"small".into()));
    assert_eq!((&lines[0]["rate"], &lines[0]["selected_on"]), (&0.01.into(), &"none".into()));
}

#[test]
fn nearest_training_images_of_training_images_are_themselves() {
    let (said, lines) = evaluate(&["eval", "knn"], &["--split", "train"]);
    assert_eq!(said.code, 0, "{}", said.err);
    let metrics: Vec<_> = lines.iter().map(|line| line["metric"].as_str().unwrap()).collect();
    assert_eq!(metrics, ["knn_l1_avepool", "knn_l2_avepool", "knn_cosine_avepool"]);
    for line in &lines {
        assert_eq!(line["top1"]["1"], 100.0, "{line}");
        assert_eq!((&line["train_images"], &line["test_images"]), (&40.into(), &40.into()));
    }
}

#[test]
fn deep_infomax_s_classifiers_score_each_feature_and_repeat() {
    let (said, lines) = evaluate(&["eval", "infomax"], &["--epochs", "3"]);
    assert_eq!(said.code, 0, "{}", said.err);
    let of =
        |key: &str| lines.iter().map(|line| line[key].to_string()).collect::<Vec<_>>().join(" ");
    assert_eq!(
        of("metric").replace('"', ""),
        "infomax_svm_map infomax_mlp_map infomax_svm_avepool infomax_mlp_avepool infomax_svm_mu infomax_mlp_mu"
    );
    assert_eq!(of("width"), "2048 2048 128 128 60 60");
    for line in &lines {
        let top1 = line["top1"].as_f64().unwrap();
        assert!((0.0..=100.0).contains(&top1), "{line}");
        for (key, value) in [("c", 1.0), ("units", 200.0), ("dropout", 0.1), ("rate", 1e-4)] {
            assert_eq!(line[key].as_f64(), Some(value), "{line}");
        }
        assert_eq!((&line["batch"], &line["epochs"]), (&64.into(), &3.into()));
        assert_eq!((&line["train_images"], &line["split"]), (&40.into(), &"val".into()));
    }
    let written = kept(run());
    assert!(lines.iter().all(|line| written.contains(line)), "{written:?}");
    assert_eq!(
        evaluate(&["eval", "infomax"], &["--epochs", "3"]).1,
        lines,
        "the same digits again"
    );
    let (said, lines) = evaluate(&["eval", "infomax"], &["--epochs", "1", "--initial"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(lines.iter().all(|line| line["weights"] == "initial"), "{}", said.out);
    let (said, _) = evaluate(&["eval", "infomax"], &["--images", "1"]);
    assert_eq!(said.code, 2);
    assert!(said.err.contains("give at least 2 training images"), "{}", said.err);
}

/// Arguments of a small comparison by the extractor of the golden files, with its cache in `folder`.
fn small_fid(folder: &Path) -> Vec<String> {
    let extractor = repository().join("tests/golden/extractor.pt");
    let (extractor, cache) = (text(&extractor), text(folder));
    let common = ["--extractor", &extractor, "--cache", &cache, "--images", "30", "--splits", "3"];
    common.map(str::to_owned).into()
}

#[test]
fn generated_images_are_scored_at_each_truncation_against_cached_statistics() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = small_fid(folder.path());
    let (said, _) = evaluate(&["eval", "fid"], &borrowed(&args));
    assert_eq!(said.code, 2);
    assert!(said.err.contains("--trust-extractor"), "{}", said.err);

    args.extend(["--trust-extractor".into(), "--truncation".into(), "0.5".into()]);
    let (said, lines) = evaluate(&["eval", "fid"], &borrowed(&args));
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(lines.len(), 2);
    for line in &lines {
        assert_eq!(line["metric"], "fd-custom", "never FID by another network");
        let scores = line["scores"].as_object().unwrap();
        let names: Vec<_> = scores.keys().map(String::as_str).collect();
        let expected =
            ["coverage", "cs", "cs_std", "density", "fd", "kd", "kd_std", "precision", "recall"];
        assert_eq!(names, expected.map(|name| format!("{name}-custom")));
        for key in ["extractor", "resizer", "checkpoint", "seed", "draw", "nearest", "kernel_part"]
        {
            assert!(!line[key].is_null(), "{key} in {line}");
        }
        assert_eq!((&line["images"], &line["reference_images"]), (&30.into(), &40.into()));
        assert_eq!(line["value"], line["scores"]["fd-custom"]);
    }
    assert_eq!((&lines[0]["truncation"], &lines[1]["truncation"]), (&Value::Null, &0.5.into()));
    assert_ne!(lines[0]["value"], lines[1]["value"]);

    let cached: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(cached.len(), 2, "statistics and what they follow from: {cached:?}");
    let before = cached.iter().map(|path| fs::metadata(path).unwrap().modified().unwrap());
    let before: Vec<_> = before.collect();
    assert_eq!(evaluate(&["eval", "fid"], &borrowed(&args)).1, lines, "the same digits again");
    let after = cached.iter().map(|path| fs::metadata(path).unwrap().modified().unwrap());
    assert_eq!(after.collect::<Vec<_>>(), before, "the cache was made again");

    args.extend(["--resizer".into(), "pil-bicubic".into()]);
    let (said, other) = evaluate(&["eval", "fid"], &borrowed(&args));
    assert_eq!(said.code, 0, "{}", said.err);
    assert_ne!(other[0]["value"], lines[0]["value"]);
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        4,
        "another resizer, other statistics"
    );
}

/// The picture that a command draws.
fn draw(command: &str, args: &[&str]) -> image::RgbImage {
    let folder = tempfile::tempdir().unwrap();
    let out = text(&folder.path().join("out.png"));
    let (said, _) = evaluate(&[command], &[&["--out", &out], args].concat());
    assert_eq!(said.code, 0, "{command}: {}", said.err);
    image::open(&out).unwrap().to_rgb8()
}

/// Tile (column, row) of a grid of 64 px tiles.
fn tile(picture: &image::RgbImage, column: u32, row: u32) -> image::RgbImage {
    image::imageops::crop_imm(picture, 4 + 68 * column, 4 + 68 * row, 64, 64).to_image()
}

#[test]
fn pictures_show_what_their_names_say_tile_by_tile() {
    // Columns of `sample`'s grid: the ceiling of the root of the count.
    let samples = draw("sample", &["--count", "6"]);
    let sample = |i: u32| tile(&samples, i % 3, i / 3);

    let folder = tempfile::tempdir().unwrap();
    let each = text(&folder.path().join("each"));
    let (said, _) = evaluate(&["sample"], &["--count", "6", "--each", &each]);
    assert_eq!(said.code, 0, "{}", said.err);
    let single = image::open(folder.path().join("each/000005.png")).unwrap().to_rgb8();
    let scale = 64 / single.width();
    let large = image::imageops::resize(
        &single,
        single.width() * scale,
        single.height() * scale,
        image::imageops::FilterType::Nearest,
    );
    assert!(large == sample(5));

    // A step is named, or those that there are.
    let (said, _) = evaluate(&["sample"], &["--step", "77", "--each", &each]);
    assert_eq!(said.code, 2);
    assert!(said.err.contains("no checkpoint of step 77; there are those of "), "{}", said.err);

    let ways = draw("interpolate", &["--rows", "3", "--steps", "5"]);
    assert_eq!(ways.dimensions(), (5 * 68 + 4, 3 * 68 + 4));
    for row in 0..3 {
        assert!(tile(&ways, 0, row) == sample(row) && tile(&ways, 4, row) == sample(row + 3));
        assert!(tile(&ways, 2, row) != sample(row), "the middle is neither end");
    }
    let between = |split| draw("interpolate", &["--codes", "--rows", "2", "--split", split]);
    assert_eq!(between("val").dimensions(), (548, 2 * 68 + 4));
    assert!(between("train") != between("val"));

    let chunks = draw("traverse", &["--steps", "4"]);
    assert_eq!(chunks.dimensions(), (4 * 68 + 4, 3 * 68 + 4));
    for chunk in 0..3 {
        assert!(tile(&chunks, 0, chunk) == sample(0), "every row starts from the same image");
        assert!(tile(&chunks, 3, chunk) != sample(0), "chunk {chunk} changes nothing");
    }
    assert!(tile(&chunks, 3, 0) != tile(&chunks, 3, 1));

    let near = draw("neighbors", &["--split", "train", "--count", "4", "--k", "2"]);
    assert_eq!(near.dimensions(), (3 * 68 + 4, 4 * 68 + 4));
    for row in 0..4 {
        assert!(tile(&near, 0, row) == tile(&near, 1, row), "a training image is its own nearest");
        assert!(tile(&near, 0, row) != tile(&near, 2, row));
    }

    // 32 filters of 3 x 3, enlarged by 22.
    let filters = draw("filters", &[]);
    assert_eq!(filters.dimensions(), (6 * 70 + 4, 6 * 70 + 4));

    let triples = draw("reconstruct", &["--sampled"]);
    let pairs = draw("reconstruct", &[]);
    assert_eq!((triples.width(), pairs.width()), (4 * 196 + 4, 4 * 132 + 4));
    let part = |picture, x| image::imageops::crop_imm(picture, x, 4, 64, 64).to_image();
    assert!(part(&triples, 4) == part(&pairs, 4) && part(&triples, 68) == part(&pairs, 68));
    assert!(part(&triples, 132) != part(&triples, 68), "a draw is not the mean");

    assert!(draw("sample", &["--count", "6", "--truncation", "0.1"]) != samples);
}

#[test]
fn features_of_splits_and_folders_can_be_read_and_searched() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let (said, _) = evaluate(&["embed"], &["--split", "train", "--out", &at("split")]);
    assert_eq!(said.code, 0, "{}", said.err);
    let rows = fs::read(at("split.npy")).unwrap();
    assert_eq!((&rows[..6], rows.len()), (&b"\x93NUMPY"[..], 128 + 40 * 128 * 4));

    // The same images as files, in a tree: the same rows, in the order of their paths.
    let items = fs::read_to_string(at("split.jsonl")).unwrap();
    let items: Vec<Value> = items.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(items.len(), 40);
    fs::create_dir_all(at("photos/deep")).unwrap();
    let dataset = pipeline::Dataset::open(data(), "train").unwrap();
    for (place, sample) in [("photos/a.jpg", 7), ("photos/deep/b.jpeg", 3)] {
        assert_eq!(items[sample as usize]["key"], dataset.key(sample));
        fs::write(at(place), dataset.bytes(sample).unwrap()).unwrap();
    }
    fs::write(at("photos/note.txt"), "not a picture").unwrap();
    // One that cannot be read has no row, and does not end the others.
    fs::write(at("photos/aa.jpg"), "not a picture").unwrap();
    let embed = |more: &[&str]| {
        let args = ["--folder", &at("photos"), "--out", &at("files")];
        evaluate(&["embed"], &[&args[..], more].concat()).0
    };
    let said = embed(&["--max-unread", "0.3"]);
    assert_eq!(said.code, 2, "{}", said.err);
    assert!(said.err.contains("aa.jpg") && said.err.contains("1 of 3 files"), "{}", said.err);
    let said = embed(&[]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.err.contains("1 of 3 files cannot be read"), "{}", said.err);
    assert!(said.out.contains("passed over: 1 files .txt, such as"), "{}", said.out);
    let unread = fs::read_to_string(at("files.unread.jsonl")).unwrap();
    assert!(unread.lines().count() == 1 && unread.contains("photos/aa.jpg"), "{unread}");
    let files = fs::read(at("files.npy")).unwrap();
    let row = |bytes: &[u8], i: usize| -> Vec<f32> {
        let bytes = &bytes[128 + i * 512..][..512];
        bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    for (file, sample) in [(0, 7), (1, 3)] {
        let pairs = row(&files, file).into_iter().zip(row(&rows, sample));
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-4), "{file}");
    }

    let search = |query: &str| {
        let (among, query) = (at("split"), at(query));
        evaluate(&["search"], &["--among", &among, "--query", &query, "--k", "3"]).0
    };
    let said = search("photos/deep/b.jpeg");
    assert_eq!(said.code, 0, "{}", said.err);
    let nearest = said.out.lines().find(|line| line.contains("0.0000")).unwrap();
    assert!(nearest.contains(items[3]["key"].as_str().unwrap()), "{}", said.out);
    let said = search("photos/note.txt");
    assert_eq!(said.code, 2);
    assert!(said.err.contains("note.txt"), "{}", said.err);
}

#[test]
fn wrong_requests_are_refused() {
    for (args, word) in [
        (&["--features", "conv3"][..], "stage1"),
        (&["--features", "stage7"], "3 stages"),
        (&["--rates", "0"], "--rates"),
        (&["--split", "test"], "test"),
    ] {
        let (said, _) = evaluate(&["eval", "linear"], &[args, &["--steps", "1"]].concat());
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.err.contains(word), "{word} is not in {}", said.err);
    }
}

#[test]
fn reconstructions_are_judged_by_a_classifier_of_another_network_s_features() {
    let extractor = text(&repository().join("tests/golden/extractor.pt"));
    let args = ["--extractor", &extractor, "--trust-extractor", "--images", "8"];
    let (said, lines) = evaluate(&["eval", "agreement"], &args);
    assert_eq!(said.code, 0, "{}", said.err);
    let [line] = &lines[..] else { panic!("one line: {}", said.out) };
    assert_eq!(line["metric"], "agreement-custom");
    assert_eq!((&line["split"], &line["train_images"]), (&"val".into(), &40.into()));
    for key in ["reconstructions", "images", "chance"] {
        assert!((0.0..=100.0).contains(&line[key].as_f64().unwrap()), "{key} in {line}");
    }
    for key in ["error", "error_chance"] {
        assert!((0.0..=2.0).contains(&line[key].as_f64().unwrap()), "{key} in {line}");
    }
    assert_eq!(evaluate(&["eval", "agreement"], &args).1, lines, "the same digits again");
    // Images that the classifier has learned are classified rightly: the judge is not blind.
    let (_, own) = evaluate(&["eval", "agreement"], &[&args[..], &["--split", "train"]].concat());
    assert!(own[0]["images"].as_f64().unwrap() > 50.0, "{}", own[0]);
}

#[test]
fn a_run_is_evaluated_while_another_process_trains_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let keys = ["train.steps=100000", "checkpoint.every=2", "checkpoint.keep=2"];
    let mut training = Background::start(&tiny_run(data(), &run, &keys));
    training.until(|_| checkpoint::newest(&run.join("checkpoints")).is_ok());
    // Checkpoints come and go meanwhile.
    let steps: Vec<_> = (0..3)
        .map(|_| {
            let said = trainer(&["eval", "knn", "--run", &text(&run), "--device", "cpu"]);
            assert_eq!(said.code, 0, "{}", said.err);
            let line = said.out.lines().find(|line| line.starts_with('{')).unwrap();
            serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(training.terminate().0.code, 75);
    assert!(steps[0] < steps[2] && steps.is_sorted(), "{steps:?}");
    assert_eq!(kept(&run).len(), 9);
}

#[test]
fn a_result_that_cannot_be_kept_is_printed_and_its_cause_is_named_before_and_after() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("run");
    copy_folder(run(), &copy);
    let knn = ["eval", "knn", "--run", &text(&copy), "--device", "cpu"];
    let lines = |said: &Said| said.out.lines().filter(|line| line.starts_with('{')).count();
    let file = copy.join(FILE);
    let _ = fs::remove_file(&file);
    // As on a disk that is full by then: nothing is noticed before the work is done.
    std::os::unix::fs::symlink("/dev/full", &file).unwrap();
    let said = trainer(&knn);
    assert_eq!((said.code, lines(&said)), (1, 3), "{said:?}");
    assert!(!said.err.contains("warning"), "{}", said.err);
    for word in ["the result above could not be kept", FILE, "No space left"] {
        assert!(said.err.contains(word), "{word} is not in {}", said.err);
    }
    // As where nothing may be written, which holds for root, too.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let said = trainer(&knn);
    assert_eq!((said.code, lines(&said)), (1, 3), "{said:?}");
    let (before, after) = said.err.split_once('\n').unwrap();
    assert!(before.contains("warning") && before.contains(FILE), "{}", said.err);
    assert!(after.contains("error: ") && after.contains("directory"), "{}", said.err);
    assert!(!copy.join("metrics.jsonl").exists() || metrics(&copy).is_empty());
    // A reader that has gone away takes nothing from the run.
    fs::remove_dir(&file).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut gone = std::process::Command::new(integration::program("trainer"));
    let output = gone.args(knn).envs(integration::ONE_THREAD).stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(kept(&copy).len(), 3);
}

fn metrics(run: &Path) -> String {
    fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default()
}

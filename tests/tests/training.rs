//! From shards to a trained model, its pictures and its checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use integration::{
    Background, borrowed, copy_folder, data, shard_imagenet, text, tiny_run, trainer,
};
use serde_json::Value;
use trainer::checkpoint;

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a checkpoint's manifest says, but for when and where it was saved.
fn manifest(checkpoint: &Path) -> Value {
    let text = fs::read_to_string(checkpoint.join("manifest.json")).unwrap();
    let mut manifest: Value = serde_json::from_str(&text).unwrap();
    let provenance = manifest.as_object_mut().unwrap().remove("provenance").unwrap();
    assert!(provenance["time"].is_string(), "{provenance}");
    manifest.as_object_mut().unwrap().remove("own_sha256").unwrap();
    manifest
}

#[test]
fn a_run_leaves_pictures_statistics_metrics_and_a_checkpoint_that_can_be_drawn_from() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let said = trainer(&borrowed(&tiny_run(data(), &run, &["images.every=2", "eval.every=2"])));
    assert_eq!(said.code, 0, "{}", said.err);
    for word in
        ["samples.png", "reconstructions.png", "data wait", "loss E", "linear probe", "input "]
    {
        assert!(said.out.contains(word), "{word} is not in {}", said.out);
    }
    let stats = lines(&run.join("stats.jsonl"));
    let steps: Vec<_> = stats.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
    for line in &stats {
        let line = line.as_object().unwrap();
        assert!(line.iter().all(|(key, v)| v.is_number() || key == "time"), "{line:?}");
        for key in ["loss_d", "loss_g", "loss_e", "images_per_s", "images_read_per_s"] {
            assert!(line.contains_key(key), "{key}");
        }
        let read = line["images_read_per_s"].as_f64().unwrap();
        let ratio = read / line["images_per_s"].as_f64().unwrap();
        assert!((ratio - 3.0).abs() < 1e-9, "three batches are read a step, not {ratio}");
        let wait = line["data_wait_percent"].as_f64().unwrap();
        assert!((0.0..=100.0).contains(&wait));
    }
    let metrics = lines(&run.join("metrics.jsonl"));
    let of = |line: &Value| ["step", "weights", "metric"].map(|key| line[key].to_string());
    let expected =
        [(2, "average"), (4, "average"), (4, "initial")].into_iter().flat_map(|(s, w)| {
            ["avepool", "bn_crelu"].map(|feature| {
                [s.to_string(), format!("{w:?}"), format!("\"linear_probe_{feature}\"")]
            })
        });
    assert_eq!(metrics.iter().map(of).collect::<Vec<_>>(), expected.collect::<Vec<_>>());

    // 64 px tiles with 4 px gaps: 8 x 8 samples; 4 x 8 pairs, which the split cannot fill.
    let size = |name: &str| image::open(run.join("images").join(name)).unwrap().to_rgb8();
    assert_eq!(size("samples.png").dimensions(), (8 * 68 + 4, 8 * 68 + 4));
    assert_eq!(size("samples-00000002.png").dimensions(), (8 * 68 + 4, 8 * 68 + 4));
    assert_eq!(size("reconstructions.png").width(), 4 * 132 + 4);

    let drawn = folder.path().join("drawn.png");
    let said =
        trainer(&["sample", "--run", &text(&run), "--out", &text(&drawn), "--device", "cpu"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(image::open(&drawn).unwrap().to_rgb8(), size("samples.png"));

    let said =
        trainer(&["reconstruct", "--run", &text(&run), "--out", &text(&drawn), "--device", "cpu"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(image::open(&drawn).unwrap().to_rgb8(), size("reconstructions.png"));

    let said = trainer(&["inspect", "--run", &text(&run), "--json"]);
    let counts: Value = serde_json::from_str(&said.out).unwrap();
    assert!(counts["parameters"]["all"].as_u64().unwrap() > 1000);
}

#[test]
fn a_resumed_run_ends_bit_equal_to_one_that_was_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    for micro in ["train.micro_batch=0", "train.micro_batch=4"] {
        let straight = folder.path().join(micro);
        let said = trainer(&borrowed(&tiny_run(
            data(),
            &straight,
            &["checkpoint.every=1", "checkpoint.keep=9", micro],
        )));
        assert_eq!(said.code, 0, "{}", said.err);
        let end = manifest(&straight.join("checkpoints/step-00000004"));
        for cut in 1..4 {
            let resumed = folder.path().join(format!("{micro}-{cut}"));
            copy_folder(&straight, &resumed);
            for later in cut + 1..=4 {
                fs::remove_dir_all(resumed.join(format!("checkpoints/step-0000000{later}")))
                    .unwrap();
            }
            let said = trainer(&["run", "--resume", "--out", &text(&resumed)]);
            assert_eq!(said.code, 0, "{}", said.err);
            assert_eq!(manifest(&resumed.join("checkpoints/step-00000004")), end, "cut at {cut}");
            let losses = |run: &Path| -> Vec<_> {
                let pick = |line: &Value| {
                    ["step", "loss_d", "loss_g", "loss_e", "epoch"].map(|k| line[k].clone())
                };
                lines(&run.join("stats.jsonl")).iter().map(pick).collect()
            };
            assert_eq!(losses(&resumed), losses(&straight));
        }
    }
}

/// Nor is there an operator in a step that libtorch refuses when it is to give the same bits each time.
#[test]
fn graphs_and_determinism_change_nothing_on_a_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let said =
            trainer(&borrowed(&tiny_run(data(), &out, &[&["train.steps=3"], more].concat())));
        assert_eq!(said.code, 0, "{}", said.err);
        manifest(&out.join("checkpoints/step-00000003"))["files"].clone()
    };
    let plain = run("plain", &[]);
    assert!(plain.is_object(), "{plain}");
    assert_eq!(run("other", &["train.graphs=true", "train.deterministic=true"]), plain);
}

#[test]
fn a_finished_run_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    assert_eq!(trainer(&borrowed(&tiny_run(data(), &run, &["train.steps=1"]))).code, 0);
    let files = |path: &Path| -> BTreeMap<_, _> {
        let mut all = BTreeMap::new();
        for name in [
            "stats.jsonl",
            "metrics.jsonl",
            "images/samples.png",
            "checkpoints/step-00000001/manifest.json",
        ] {
            all.insert(name, fs::read(path.join(name)).unwrap());
        }
        all
    };
    let before = files(&run);
    let said = trainer(&["run", "--resume", "--out", &text(&run)]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("finished"), "{}", said.out);
    assert_eq!(files(&run), before);
}

#[test]
fn a_resumed_run_may_change_how_long_it_goes_but_not_what_it_computes_unless_told() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let keys = ["train.steps=1", "eval.probe_images=0"];
    assert_eq!(trainer(&borrowed(&tiny_run(data(), &run, &keys))).code, 0);
    let resume = |more: &[&str]| {
        let run = text(&run);
        trainer(&[&["run", "--resume", "--out", &run], more].concat())
    };
    let said = resume(&["--set", "train.steps=2"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.err.contains("train.steps from 1 to 2"), "{}", said.err);
    let faster = ["--set", "train.steps=3", "--set", "opt.lr_d=0.001"];
    let said = resume(&faster);
    assert!(said.code == 2 && said.err.contains("opt.lr_d"), "{}", said.err);
    assert_eq!(lines(&run.join("stats.jsonl")).len(), 2);
    let said = resume(&[&faster[..], &["--allow-change"]].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(lines(&run.join("stats.jsonl")).len(), 3);
    assert!(fs::read_to_string(run.join("config.toml")).unwrap().contains("lr_d = 0.001"));
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let args = tiny_run(data(), &run, &["checkpoint.every=2"]);
    assert_eq!(trainer(&borrowed(&args)).code, 0);
    let file = run.join("checkpoints/step-00000004/generator.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let drawn = folder.path().join("drawn.png");
    let said =
        trainer(&["sample", "--run", &text(&run), "--out", &text(&drawn), "--device", "cpu"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.err.contains("SHA-256") && said.err.contains("step-00000004"), "{}", said.err);
    fs::remove_dir_all(run.join("checkpoints/step-00000002")).unwrap();
    let said =
        trainer(&["sample", "--run", &text(&run), "--out", &text(&drawn), "--device", "cpu"]);
    assert_eq!(said.code, 2, "{}", said.err);
}

#[test]
fn a_run_stopped_by_sigterm_saves_and_can_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let args = tiny_run(data(), &run, &["train.steps=100000"]);
    let stats = run.join("stats.jsonl");
    let mut child = Background::start(&args);
    child.until(|_| stats.exists() && !lines(&stats).is_empty());
    let (said, _) = child.terminate();
    assert!(said.code == 75 && said.out.contains("stopped by a signal"), "{said:?}");
    let steps = lines(&run.join("stats.jsonl")).last().unwrap()["step"].as_u64().unwrap();
    // Perhaps between the updates of the step that follows.
    let newest = checkpoint::newest(&run.join("checkpoints")).unwrap();
    let name = newest.file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with(&format!("step-{steps:08}")), "{name}");
}

/// Runs the trainer and sends it SIGTERM half a second after it trains and `when` holds; how long it
/// then took to leave well.
fn terminated(args: &[String], when: impl Fn() -> bool) -> Duration {
    let mut child = Background::start(args);
    child.until(|said| said.contains("training on the CPU") && when());
    std::thread::sleep(Duration::from_millis(500));
    let (said, took) = child.terminate();
    assert_eq!(said.code, 75, "{}", said.err);
    took
}

#[test]
fn a_signal_ends_evaluations_and_what_they_owe_is_made_up_for() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let metrics = || lines(&run.join("metrics.jsonl"));
    // Probes that would take hours, within the run and at its end.
    let keys = ["eval.every=2", "images.every=2", "eval.probe_steps=100000000"];
    let drawn = run.join("images/live-00000002.png");
    let took = terminated(&tiny_run(data(), &run, &keys), || drawn.exists());
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(metrics().is_empty());
    let resume = ["run", "--resume", "--out", &text(&run)].map(str::to_owned).to_vec();
    let set = |change: &str| [&resume[..], &["--set".into(), change.into()]].concat();
    let took = terminated(&set("train.steps=3"), || true);
    assert!(took < Duration::from_secs(20) && metrics().is_empty(), "{took:?}");
    // The probe of step 2 is made up for, and that of the end interrupted by nothing.
    let again =
        [&set("eval.probe_steps=5")[..], &["--set".into(), "train.steps=4".into()]].concat();
    let said = trainer(&borrowed(&again));
    assert_eq!(said.code, 0, "{}", said.err);
    let steps: Vec<_> = metrics().iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [2, 2, 4, 4, 4, 4]);
    // A finished run changes nothing; one whose last evaluation was cut off makes it again.
    assert_eq!(trainer(&borrowed(&resume)).code, 0);
    assert_eq!(metrics().len(), 6);
    fs::remove_file(run.join("evaluated")).unwrap();
    let said = trainer(&borrowed(&resume));
    assert_eq!(said.code, 0, "{}", said.err);
    let steps: Vec<_> = metrics().iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [2, 2, 4, 4, 4, 4]);
}

#[test]
fn the_paper_s_model_is_described_without_being_built() {
    let folder = tempfile::tempdir().unwrap();
    let dir = text(data());
    let out = folder.path().join("run");
    let mut args = vec!["run", "--preset", "base", "--dry-run", "--gflops", "100000"];
    let run = text(&out);
    let said = trainer(&[&args[..], &["--data", &dir, "--out", &run]].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    let after = |words: &str| -> f64 {
        let (_, rest) =
            said.out.split_once(words).unwrap_or_else(|| panic!("{words}: {}", said.out));
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    let gflop = after("a step costs ");
    let step = after("at 100000 GFLOP/s a step takes ");
    assert!((step - 2048.0 * gflop / 100_000.0).abs() < 2e-3, "{step} s, {gflop} GFLOP");
    assert!((after("and the run ") - step * 500_000.0 / 86_400.0).abs() < 0.02);
    // With no data at hand it speaks of ImageNet.
    args.extend(["--set", "train.steps=1000"]);
    let alone = trainer(&args);
    assert!(alone.out.contains("1.6 epochs") && alone.out.contains("ImageNet"), "{}", alone.out);
    for text in ["70,306,116", "91,608,880", "160,375,076", "batch = 2048", "beta2 = 0.999"] {
        assert!(said.out.contains(text), "{text} is not in {}", said.out);
    }
    assert!(!out.exists());
}

#[test]
fn doctor_reports_libtorch_and_the_data_folder() {
    let said = trainer(&["doctor", "--data", &text(data())]);
    assert_eq!(said.code, 0, "{}", said.out);
    for word in ["2.11.0", "CUDA", "cores", "memory", "40 train"] {
        assert!(said.out.contains(word), "{word} is not in {}", said.out);
    }
    assert_eq!(trainer(&["doctor", "--data", "no/such/folder"]).code, 2);
}

#[test]
fn an_imagefolder_can_be_sharded_and_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    for (class, shade) in [("cat", 40), ("dog", 200)] {
        fs::create_dir_all(images.join(class)).unwrap();
        for i in 0..12u8 {
            let picture = image::RgbImage::from_fn(40, 36, |x, y| {
                image::Rgb([shade, (x * 5) as u8, (y * 5) as u8 ^ i])
            });
            picture.save(images.join(class).join(format!("{i}.jpg"))).unwrap();
        }
    }
    let shards = folder.path().join("shards");
    let said = shard_imagenet(&[
        "build",
        "--layout",
        "imagefolder",
        "--input",
        &text(&images),
        "--output",
        &text(&shards),
    ]);
    assert_eq!(said.code, 0, "{}", said.err);
    let run = folder.path().join("run");
    let said = trainer(&borrowed(&tiny_run(&shards, &run, &["train.steps=1"])));
    assert_eq!(said.code, 0, "{}", said.err);
    // It has no validation split, which is said, not hidden.
    assert!(said.err.contains("no probe") && said.err.contains("training images"), "{}", said.err);
    assert!(run.join("images/reconstructions.png").exists());
}

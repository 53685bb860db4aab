//! What is made of a run on the device.

use super::*;

/// A run made on the device, and commands that read it, on the CPU and on the device.
struct Both {
    devices: Devices,
    folder: tempfile::TempDir,
    run: String,
}

impl Both {
    fn of(overrides: &[&str]) -> Option<Self> {
        let (devices, folder) = (Devices::new()?, tempfile::tempdir().unwrap());
        let run = folder.path().join("run");
        on_the_device(&devices, &run, overrides);
        Some(Self { devices, folder, run: text(&run) })
    }

    fn at(&self, name: &str, device: &str) -> String {
        text(&self.folder.path().join(format!("{name}-{device}")))
    }

    /// The JSON lines that a command prints, by the CPU and by the device; with a name, it writes there.
    fn say(&self, args: &[&str], out: Option<&str>) -> [Vec<Value>; 2] {
        let said = ["cpu", "cuda"].map(|device| {
            let mut args = with(args, &["--run", &self.run, "--device", device]);
            let path = out.map(|name| self.at(name, device));
            args.extend(path.iter().flat_map(|path| ["--out", path]));
            let said = if device == "cpu" { trainer(&args) } else { self.devices.trainer(&args) };
            fine(&said);
            said.out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
        });
        let log = sound(&self.devices);
        let waits = log.with("SYNC upload, page-locked");
        assert!(waits.is_empty(), "page-locked memory is for uploads beside the work: {waits:?}");
        said
    }

    /// What `read` makes of the file that each of them wrote.
    fn wrote<T>(&self, name: &str, read: impl Fn(String) -> T) -> [T; 2] {
        ["cpu", "cuda"].map(|device| read(self.at(name, device)))
    }

    /// As [`Both::say`], of an evaluation whose accuracies agree to `off` percent.
    fn score(&self, args: &[&str], off: f64) -> [Vec<Value>; 2] {
        let [cpu, cuda] = self.say(args, None);
        assert!(cpu.len() == cuda.len() && !cpu.is_empty(), "{cpu:?} {cuda:?}");
        for (a, b) in cuda.iter().zip(&cpu) {
            for key in ["metric", "weights", "train_images", "test_images"] {
                assert_eq!(a[key], b[key]);
            }
            if let (Some(a), Some(b)) = (a["top1"].as_f64(), b["top1"].as_f64()) {
                assert!((a - b).abs() <= off, "{a} {b}");
            }
        }
        [cpu, cuda]
    }
}

#[test]
fn evaluations_say_what_they_say_on_the_cpu() {
    let probes = ["train.steps=2", "eval.every=1", "images.every=1"];
    let Some(both) = Both::of(&probes) else { return };
    // One of 40 images is 2.5 %, and one of 4 is 25 %.
    both.score(&["eval", "linear", "--steps", "5", "--split", "train", "--rates", "0.01,0.1"], 2.5);
    both.score(&["eval", "linear", "--steps", "3", "--fresh-crops", "--no-baselines"], 25.0);
    let [cpu, cuda] = both.score(&["eval", "knn"], 0.0);
    for (a, b) in cuda.iter().zip(&cpu) {
        assert_eq!(a["top1"], b["top1"]);
    }
    let extractor = text(&repository().join("tests/golden/extractor.pt"));
    let cache = both.at("cache", "both");
    let small = ["--images", "30", "--splits", "3", "--trust-extractor", "--cache", &cache];
    let [cpu, cuda] = both.score(&with(&["eval", "fid", "--extractor", &extractor], &small), 0.0);
    for (name, score) in cpu[0]["scores"].as_object().unwrap() {
        let (a, b) = (cuda[0]["scores"][name].as_f64().unwrap(), score.as_f64().unwrap());
        assert!((a - b).abs() <= 1e-3 * b.abs().max(1.0), "{name}: {a} {b}");
    }
}

#[test]
fn pictures_features_and_exports_are_the_cpu_s() {
    let Some(both) = Both::of(&with(&STEPS_ALONE, &["train.steps=2"])) else { return };
    for (command, more) in [
        ("sample", &["--count", "4"][..]),
        ("reconstruct", &[]),
        ("neighbors", &["--count", "3", "--k", "2"]),
        ("interpolate", &["--rows", "2", "--steps", "3"]),
        ("traverse", &["--steps", "2"]),
        ("filters", &[]),
    ] {
        both.say(&with(&[command], more), Some(command));
        let [cpu, cuda] = both.wrote(command, |path| {
            image::load_from_memory(&fs::read(path).unwrap()).unwrap().to_rgb8()
        });
        assert_eq!(cpu.dimensions(), cuda.dimensions(), "{command}");
        let off = cpu.as_raw().iter().zip(cuda.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(off <= Some(1), "{command}: pixels differ by {off:?} of 255");
    }

    both.say(&["embed", "--split", "train"], Some("features"));
    let [cpu, cuda] = both.wrote("features", |path| {
        let bytes = fs::read(path + ".npy").unwrap();
        let words = bytes[128..].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        words.collect::<Vec<_>>()
    });
    assert!(cpu.len() == cuda.len() && cpu.len() == 40 * 128);
    assert!(cpu.iter().zip(&cuda).all(|(a, b)| (a - b).abs() < 1e-4));

    both.say(&["export"], Some("exported"));
    for network in ["generator", "encoder"] {
        let [cpu, cuda] = both.wrote("exported", |folder| {
            tch::Tensor::read_safetensors(format!("{folder}/{network}.safetensors")).unwrap()
        });
        assert!(cpu.len() == cuda.len() && !cpu.is_empty());
        for (name, tensor) in &cpu {
            let (_, other) = cuda.iter().find(|(other, _)| other == name).unwrap();
            assert!(tensor.allclose(other, 1e-5, 1e-6, false), "{network} {name}");
        }
    }
}

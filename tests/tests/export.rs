//! A trained model in other programs: safetensors, and TorchScript in plain PyTorch.

use std::path::Path;
use std::process::Command;

use common::stop::Stop;
use integration::{borrowed, data, repository, text, tiny_run, trainer};
use safetensors::SafeTensors;
use serde_json::Value;
use tch::{CModule, Device, Kind, Tensor};
use trainer::eval::{Model, Variant};
use trainer::{checkpoint, run};

/// Python beside the libtorch that the repository links, unless PYTHON names another.
pub(crate) fn python() -> String {
    let beside = repository().join(".libtorch/../../../../bin/python");
    std::env::var("PYTHON").unwrap_or_else(|_| text(&beside))
}

fn metadata(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::to_value(header.metadata()).unwrap()
}

/// Every evaluation takes the exported model in place of the run, and finds the same.
fn serves_as_the_run_does(run: &Path, exported: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let (run, exported, data) = (text(run), text(exported), text(data()));
    let said = |args: &[&str]| {
        let said = trainer(&[args, &["--device", "cpu"]].concat());
        assert_eq!(said.code, 0, "{args:?}: {}", said.err);
        said.out
    };
    let found = [&run, &exported].map(|from| {
        let with = |args: &[&str]| said(&[args, &["--run", from, "--data", &data]].concat());
        let knn = with(&["eval", "knn"]);
        let top1 = |line: &str| serde_json::from_str::<Value>(line).ok().map(|l| l["top1"].clone());
        let linear = with(&["eval", "linear", "--steps", "3"]);
        let scores: Vec<_> = knn.lines().chain(linear.lines()).filter_map(top1).collect();
        let sample = at("sample.png");
        said(&["sample", "--run", from, "--out", &sample]);
        let features = at("features");
        with(&["embed", "--split", "val", "--out", &features]);
        let query = repository().join("docs/demo-samples.png");
        let near = with(&["search", "--among", &features, "--query", &text(&query)]);
        let read = |path: String| std::fs::read(path).unwrap();
        (scores, read(sample), read(features + ".npy"), near)
    });
    assert_eq!(found[0].0.len(), 8, "{:?}", found[0].0);
    assert!(found[0] == found[1], "{:?} is not {:?}", found[0].0, found[1].0);
    let live = trainer(&["eval", "knn", "--run", &exported, "--data", &data, "--live"]);
    assert!(live.code == 2 && live.err.contains("averaged"), "{}", live.err);
}

/// `export.json` names the checkpoint, the program and each file's hash.
fn says_what_made_it(run: &Path, exported: &Path) {
    let read = |path: &Path| std::fs::read(path).unwrap();
    let about: Value = serde_json::from_slice(&read(&exported.join("export.json"))).unwrap();
    let manifest = checkpoint::newest(&run.join("checkpoints")).unwrap().join("manifest.json");
    assert_eq!(about["checkpoint"], common::files::sha256(&read(&manifest)));
    assert_eq!((&about["step"], &about["device"]), (&2.into(), &"cpu".into()));
    for key in ["version", "commit", "libtorch", "host", "time"] {
        assert!(about[key].as_str().is_some_and(|word| !word.is_empty()), "{key} in {about}");
    }
    let files = about["files"].as_object().unwrap();
    assert_eq!(files.len(), 5);
    for (name, hash) in files {
        assert_eq!(*hash, common::files::sha256(&read(&exported.join(name))), "{name}");
    }
}

/// The card is one as the Hugging Face Hub's library reads it, and a later export leaves somebody's words alone.
fn a_card_that_was_edited_stays(export: &[&str], exported: &Path) {
    let card = exported.join("README.md");
    let read = || std::fs::read_to_string(&card).unwrap();
    let text = read();
    for word in ["2 steps", "linear_probe_bn_crelu", "index fingerprint", "`g.ch`", "(commit "] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    assert!(!text.contains("/tmp/") && !text.contains("data.dir"), "{text}");
    let python = python();
    let judge = Command::new(&python).args(["-c", "import huggingface_hub"]).output();
    if judge.is_ok_and(|output| output.status.success()) {
        let said = Command::new(&python).args(["-c", CARD]).arg(&card).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    } else {
        integration::missing(&format!("{python} has no huggingface_hub"));
    }
    let again = |more: &[&str]| {
        let said = trainer(&[export, more].concat());
        assert_eq!(said.code, 0, "{}", said.err);
        said.out
    };
    assert!(!again(&["--license", "cc-by-4.0"]).contains("README.md.new"));
    assert!(read().contains("license: \"cc-by-4.0\""));
    let mine = read() + "Trained on my own photographs.\n";
    std::fs::write(&card, &mine).unwrap();
    assert!(again(&[]).contains("README.md.new"));
    let heading = trainer(&[export, &["--license", "mit`\n\n# mine"]].concat());
    assert!(heading.code == 2 && heading.err.contains("such as apache-2.0"), "{}", heading.err);
    assert_eq!(read(), mine);
    let new = std::fs::read_to_string(exported.join("README.md.new")).unwrap();
    assert!(new.starts_with("---\nlicense: \"unknown\""), "{new}");
    std::fs::remove_file(exported.join("README.md.new")).unwrap();
}

const CARD: &str = r##"
import sys
from huggingface_hub import ModelCard
card = ModelCard.load(sys.argv[1])
assert card.data.license == "unknown" and card.data.library_name == "bigbigan", card.data
found = {result.metric_name: result.metric_value for result in card.data.eval_results}
assert 0 <= found["linear_probe_bn_crelu"] <= 100, found
assert "image-feature-extraction" in card.data.tags and card.text.strip().startswith("# BigBiGAN, 16 px")
"##;

#[test]
fn an_exported_model_says_in_other_programs_what_it_says_here() {
    let folder = tempfile::tempdir().unwrap();
    let (out, exported) = (folder.path().join("run"), folder.path().join("export"));
    let mirror = format!("checkpoint.mirror=file://{}/elsewhere", folder.path().display());
    let attention = ["train.steps=2", "g.attn_res=8", "f.attn_res=8", "f.ch=8", "g.ch=8", &mirror];
    let said = trainer(&borrowed(&tiny_run(data(), &out, &attention)));
    assert_eq!(said.code, 0, "{}", said.err);
    let args = ["export", "--run", &text(&out), "--out", &text(&exported), "--device", "cpu"];
    let said = trainer(&args);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(said.out.lines().count(), 6, "{}", said.out);
    says_what_made_it(&out, &exported);

    let config = run::read_config(&out).unwrap();
    let newest = checkpoint::newest(&out.join("checkpoints")).unwrap();
    let train = run::open_data(&config, "train").unwrap();
    let model = Model::load(
        &newest,
        &config,
        Device::Cpu,
        Variant::Average,
        Some(&train),
        &Stop::default(),
    )
    .unwrap();
    let z = model.latents(3, 5);
    let images = model.generate(&z);
    let script = CModule::load(exported.join("generator.pt")).unwrap();
    let off = (script.forward_ts(&[&z]).unwrap() - &images).abs().max();
    assert!(off.double_value(&[]) < 1e-5, "{off:?}");

    for network in ["generator", "encoder"] {
        let note = metadata(&exported.join(format!("{network}.safetensors")));
        assert_eq!((&note["step"], &note["format"]), (&"2".into(), &"bigbigan 1".into()));
        let config = note["config"].as_str().unwrap();
        assert!(config.contains("[latent]") && !config.contains(&text(data())), "{config}");
        assert!(!config.contains("elsewhere"), "{config}");
    }

    serves_as_the_run_does(&out, &exported);
    a_card_that_was_edited_stays(&args, &exported);

    let python = python();
    let has_torch = Command::new(&python).args(["-c", "import torch"]).output();
    if !has_torch.is_ok_and(|output| output.status.success()) {
        return integration::missing(&format!("{python} has no torch"));
    }
    // The ten lines of README.md, then what they may not say.
    let ramp = Tensor::linspace(-1.0, 1.0, 4 * 3 * 32 * 32, (Kind::Float, Device::Cpu));
    let view = bigbigan_model::images::Images {
        large: ramp.view([4, 3, 32, 32]),
        small: Tensor::zeros([4, 3, 16, 16], (Kind::Float, Device::Cpu)),
    };
    let features = model.features(&view).unwrap().flatten(0, -1);
    let features = Vec::<f64>::try_from(features.to_kind(Kind::Double)).unwrap();
    let expected = folder.path().join("features.json");
    std::fs::write(&expected, serde_json::to_string(&features).unwrap()).unwrap();
    let said = Command::new(&python)
        .args(["-c", SCRIPT, &text(&exported), &text(&expected)])
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    onnxruntime_says_the_same(&python, &exported);
}

/// `scripts/export-onnx` keeps a file only where onnxruntime says what PyTorch says.
fn onnxruntime_says_the_same(python: &str, exported: &Path) {
    let has = Command::new(python).args(["-c", "import onnx, onnxruntime"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        return integration::missing(&format!("{python} has no onnxruntime"));
    }
    let script = |folder: &Path| {
        let program = repository().join("scripts/export-onnx");
        Command::new(program).arg(folder).env("PYTHON", python).output().unwrap()
    };
    let said = script(exported);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let words = String::from_utf8_lossy(&said.stdout).into_owned();
    for file in ["generator.onnx", "encoder.onnx"] {
        assert!(words.contains(file) && exported.join(file).is_file(), "{words}");
    }
    let nothing = script(&exported.join("nowhere"));
    let words = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(!nothing.status.success() && words.contains("no generator.pt"), "{words}");
}

const SCRIPT: &str = r#"
import json, sys, torch
folder, expected = sys.argv[1:]
note = {"bigbigan.json": ""}
e = torch.jit.load(f"{folder}/encoder.pt", _extra_files=note)
g = torch.jit.load(f"{folder}/generator.pt")
assert json.loads(note["bigbigan.json"])["step"] == "2"
x = torch.linspace(-1, 1, 4 * 3 * 32 * 32).view(4, 3, 32, 32)
said = e(x)
assert list(said) == ["z_sample", "z_mean", "z_stdev", "avepool_feat", "bn_crelu_feat"], list(said)
a = torch.tensor(json.load(open(expected)), dtype=torch.float32).view(4, -1)
assert (said["avepool_feat"] - a).abs().max() < 1e-4
torch.testing.assert_close(said["bn_crelu_feat"].size(1), 2 * a.size(1))
for rows in (1, 7):
    assert g(e(torch.rand(rows, 3, 32, 32))["z_mean"]).shape == (rows, 3, 16, 16)
assert len(list(e.parameters())) > 20 and len(list(g.buffers())) > 4
for m in (e.double(), g.double()):
    assert all(p.dtype == torch.float64 and p.requires_grad for p in m.parameters())
wide = e(x.double())
assert (wide["avepool_feat"] - a).abs().max() < 1e-4
image = g(wide["z_sample"])
image.square().mean().backward()
assert all(p.grad is not None for p in g.parameters())
"#;

//! What a run shows of itself: health, TensorBoard's event files, the report.

use std::fs;
use std::path::Path;
use std::process::Command;

use integration::{borrowed, data, missing, text, tiny_run, trainer};
use serde_json::Value;

/// Steps and pictures that TensorBoard's own reader finds, where Python has it.
fn read_by_tensorboard(events: &Path) -> Option<Value> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import tensorboard, PIL"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        missing(&format!("{python} has no TensorBoard"));
        return None;
    }
    let said = Command::new(&python).args(["-c", READER, &text(events)]).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Some(serde_json::from_slice(&said.stdout).unwrap())
}

const READER: &str = r#"
import io, json, sys
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
a = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "images": 0, "histograms": 0})
a.Reload()
tags = a.Tags()
pictures = {t: [Image.open(io.BytesIO(i.encoded_image_string)).convert("RGB").size + (i.step,)
                for i in a.Images(t)] for t in tags["images"]}
print(json.dumps({
    "scalars": {t: [(s.step, s.value) for s in a.Scalars(t)] for t in tags["scalars"]},
    "pictures": pictures,
    "histograms": {t: [h.step for h in a.Histograms(t)] for t in tags["histograms"]},
    "texts": {t: [x.tensor_proto.string_val[0].decode() for x in a.Tensors(t)] for t in tags["tensors"]},
}))
"#;

/// What TensorBoard read of a run with a session that went back from step 4 to step 2.
fn assert_same_in_tensorboard(read: &Value, stats: &[Value], run: &Path) {
    let config = read["texts"]["config"].as_array().unwrap();
    let of_sessions: Vec<_> = config.iter().map(|text| text.as_str().unwrap()).collect();
    assert_eq!(of_sessions.len(), 2, "of each session");
    assert!(of_sessions[0].contains("[latent]"), "{}", of_sessions[0]);
    let groups =
        [("loss", "loss_d"), ("rate", "lr_e"), ("health", "nearest"), ("speed", "images_per_s")];
    for (group, key) in groups {
        let found = read["scalars"][format!("{group}/{key}")].as_array().unwrap();
        assert_eq!(found.len(), stats.len(), "{key}");
        for (found, line) in found.iter().zip(stats) {
            assert_eq!(found[0], line["step"]);
            let (a, b) = (found[1].as_f64().unwrap(), line[key].as_f64().unwrap());
            assert!((a - b).abs() <= 1e-6 * b.abs(), "{key}: {a} is not {b}");
        }
    }
    for name in ["samples", "live", "reconstructions"] {
        let found = read["pictures"][name].as_array().unwrap();
        let steps: Vec<_> = found.iter().map(|picture| &picture[2]).collect();
        assert_eq!(steps, [2, 4], "{name}");
        let path = run.join("images").join(format!("{name}.png"));
        let size = image::open(path).unwrap().to_rgb8().dimensions();
        assert_eq!((&found[1][0], &found[1][1]), (&size.0.into(), &size.1.into()));
    }
    assert_eq!(read["histograms"]["g/first.weight"], serde_json::json!([2, 4]));
    let probes = read["scalars"]["metric/linear_probe_bn_crelu_top1"].as_array().unwrap();
    let steps: Vec<_> = probes.iter().map(|probe| &probe[0]).collect();
    assert_eq!(steps, [2, 4]);
}

#[test]
fn a_run_shows_its_health_its_pictures_and_a_report_and_a_resumed_one_shows_no_step_twice() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let keys = ["images.every=2", "checkpoint.every=2", "eval.every=2", "eval.probe_images=8"];
    let said = trainer(&borrowed(&tiny_run(data(), &run, &keys)));
    assert_eq!(said.code, 0, "{}", said.err);
    // What the run is, before anything else is said of it.
    for word in ["[latent]", "GFLOP an image", "spectral norm"] {
        assert!(said.err.contains(word), "{word} is not in {}", said.err);
    }
    for name in ["reals", "live", "live-00000002", "samples-00000002"] {
        assert!(run.join("images").join(format!("{name}.png")).exists(), "{name}");
    }
    // Pictures and a checkpoint after step 2 are not of the time of step 3.
    let stats = || -> Vec<Value> {
        let lines = fs::read_to_string(run.join("stats.jsonl")).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    for line in stats() {
        assert_eq!(line["aside_s"].is_f64(), line["step"] == 3, "{line}");
    }
    // Back to step 2, as after a crash: steps 3 and 4 are made, and logged, again.
    fs::remove_dir_all(run.join("checkpoints/step-00000004")).unwrap();
    let said = trainer(&["run", "--resume", "--out", &text(&run)]);
    assert_eq!(said.code, 0, "{}", said.err);

    let stats = stats();
    for key in ["nearest", "sigma_d", "grad_e", "saturation_real", "gflop_per_s", "memory_gb"] {
        assert!(stats.iter().all(|line| line[key].as_f64().unwrap() >= 0.0), "{key}");
    }
    if let Some(read) = read_by_tensorboard(&run.join("events")) {
        assert_same_in_tensorboard(&read, &stats, &run);
    }

    let page = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("step 4 of 4") && !page.contains("://"));
    fs::remove_file(run.join("report.html")).unwrap();
    let said = trainer(&["report", "--run", &text(&run)]);
    assert_eq!((said.code, said.out.trim()), (0, text(&run.join("report.html")).as_str()));
    assert_eq!(fs::read_to_string(run.join("report.html")).unwrap(), page);
}

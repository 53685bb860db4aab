//! Other programs read our shards: the webdataset package and DALI, where they are installed for the
//! Python named by PYTHON (`python3` if unset).

use std::process::Command;

use crate::support::{run, text};

/// Runs a script over the shards of a small data folder. Without the module it needs, says so.
fn read_with(module: &str, script: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    run(&["synth", "--output", text(&data), "--images", "30", "--classes", "3", "--size", "40"])
        .ok();
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let python = |code: &str| {
        let shard = data.join("train-000000.tar");
        Command::new(&python).args(["-c", code, text(&shard), text(folder.path())]).output()
    };
    if !python(&format!("import {module}")).is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("BIGBIGAN_JUDGES").is_none(), "Python has no {module}");
        eprintln!("{module} is not installed here: not tested");
        return;
    }
    let output = python(script).expect("Python starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.trim(), "30 images, labels [0, 1, 2]");
}

#[test]
fn the_webdataset_package_reads_every_sample() {
    read_with(
        "webdataset",
        r#"
import sys, webdataset
samples = list(webdataset.WebDataset(sys.argv[1], shardshuffle=False).decode("rgb8"))
assert all(s["jpg"].shape == (40, 40, 3) for s in samples)
print(f"{len(samples)} images, labels {sorted({s['cls'] for s in samples})}")
"#,
    );
}

#[test]
fn dali_reads_every_sample() {
    read_with(
        "nvidia.dali",
        r#"
import subprocess, sys, numpy
from nvidia.dali import fn, pipeline_def
@pipeline_def(batch_size=30, num_threads=1, device_id=None)
def read():
    jpg, cls = fn.readers.webdataset(paths=[sys.argv[1]], ext=["jpg", "cls"], random_shuffle=False)
    return fn.decoders.image(jpg), cls
pipe = read()
pipe.build()
images, labels = pipe.run()
assert all(images.at(i).shape == (40, 40, 3) for i in range(len(images)))
labels = {int(bytes(labels.at(i))) for i in range(len(labels))}
print(f"{len(images)} images, labels {sorted(labels)}")
"#,
    );
}

//! The path through CUDA, on a device without a GPU (`tests/fake_cuda/`): what the programs ask of libtorch's
//! CUDA half, in which order and from where. It says nothing of CUDA's own kernels; docs/gpu-log.md says what ran
//! on a GPU.

mod evaluations;

use std::fs;
use std::path::Path;
use std::process::Command;

use integration::fake_cuda::{self, Devices, Log};
use integration::{Said, TINY, borrowed, data, repository, text, tiny_run, trainer, unit_tests};
use serde_json::Value;

use crate::export::python;
use crate::ranks::{assert_same_losses, lines};

/// Nothing but the steps.
const STEPS_ALONE: [&str; 5] = [
    "eval.probe_images=0",
    "images.columns=2",
    "images.rows=1",
    "images.standing_images=4",
    "data.threads=1",
];

/// All that goes past the paper.
const FURTHER: [&str; 4] = [
    "beyond.contrast=1",
    "beyond.codes=1",
    "beyond.reconstruct=1",
    "beyond.augment=colour,translation,cutout",
];

/// Arguments of a tiny run on a device.
fn tiny(device: &str, out: &Path, overrides: &[&str]) -> Vec<String> {
    let mut args = tiny_run(data(), out, overrides);
    let place = args.iter().position(|word| word == "--device").unwrap() + 1;
    args[place] = device.to_owned();
    args
}

fn fine(said: &Said) {
    assert_eq!(said.code, 0, "{}", said.err);
}

/// What the devices wrote down, which is no fault.
fn sound(devices: &Devices) -> Log {
    let log = devices.log();
    assert!(log.faults.is_empty(), "{:#?}", log.faults);
    assert!(log.count("operator ") > 0, "nothing ran on the device");
    log
}

/// A tiny run on the device, and what it wrote down.
fn on_the_device(devices: &Devices, out: &Path, overrides: &[&str]) -> Log {
    fine(&devices.trainer(&borrowed(&tiny("cuda", out, overrides))));
    sound(devices)
}

fn on_the_cpu(out: &Path, overrides: &[&str]) {
    fine(&trainer(&borrowed(&tiny("cpu", out, overrides))));
}

/// Losses and norms of gradients of every step.
fn numbers(run: &Path) -> Vec<Vec<f64>> {
    let number = |line: &Value, key: &str| line[key].as_f64().unwrap_or(f64::INFINITY);
    let keys = ["loss_d", "loss_g", "loss_e", "loss_further", "grad_d", "grad_g", "grad_e"];
    let all = lines(run);
    assert!(!all.is_empty());
    let there = |line: &Value, key: &str| !(key == "loss_further" && line[key].is_null());
    let numbers = |line: &Value| {
        keys.iter().filter(|key| there(line, key)).map(|key| number(line, key)).collect()
    };
    all.iter().map(numbers).collect()
}

/// The hashes of what the newest checkpoint holds.
fn saved(run: &Path) -> Value {
    let newest = trainer::checkpoint::newest(&run.join("checkpoints")).unwrap();
    serde_json::to_value(trainer::checkpoint::read_manifest(&newest).unwrap().files).unwrap()
}

/// Losses of the first step, or of another, agree to `most` of 1 or of their size.
fn assert_close(ours: &[f64], theirs: &[f64], most: f64, what: &str) {
    // Three losses, or four, and three norms.
    for (a, b) in ours[..ours.len() - 3].iter().zip(theirs) {
        let off = if a == b { 0.0 } else { (a - b).abs() / b.abs().max(1.0) };
        assert!(off <= most, "{what}: {ours:?} and {theirs:?}");
    }
}

fn with<'a>(some: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    some.iter().chain(more).copied().collect()
}

#[test]
fn a_first_step_is_the_cpu_s_in_every_precision_and_size_of_pass() {
    let Some(devices) = Devices::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let one = with(&STEPS_ALONE, &["train.steps=1"]);
    let small = with(&one, &["train.micro_batch=4"]);
    let bf16 = with(&one, &["train.precision=bf16"]);
    let further = with(&one, &FURTHER);
    let mut cpu = vec![];
    let all = [("whole", &one), ("small", &small), ("bf16", &bf16), ("further", &further)];
    for (name, overrides) in all {
        on_the_cpu(&at(name), overrides);
        cpu.push(numbers(&at(name)).remove(0));
    }
    let tf32 = with(&one, &["train.precision=tf32"]);
    let deterministic = with(&one, &["train.deterministic=true"]);
    for (name, overrides, like, most) in [
        ("f32", &one, 0, 1e-5),
        ("in-parts", &small, 1, 1e-5),
        ("tf32", &tf32, 0, 1e-5), // of which the CPU's kernels know nothing
        ("deterministic", &deterministic, 0, 1e-5),
        ("further-too", &further, 3, 1e-5),
        // CPU and CUDA round different operators to bfloat16.
        ("bf16-too", &bf16, 2, 2e-2),
    ] {
        on_the_device(&devices, &at(name), overrides);
        assert_close(&numbers(&at(name))[0], &cpu[like], most, name);
    }
    let [single, half] = ["f32", "bf16-too"].map(|name| numbers(&at(name)).remove(0));
    assert!(single[0] != half[0], "bfloat16 changes nothing");
}

#[test]
fn graphs_give_the_bits_of_plain_steps_and_so_do_deterministic_steps_each_time() {
    let Some(devices) = Devices::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, overrides) in [
        ("f32", vec!["train.steps=5"]),
        ("parts", vec!["train.steps=4", "train.micro_batch=4", "train.precision=bf16"]),
        ("further", with(&FURTHER, &["train.steps=4"])),
    ] {
        let overrides = with(&STEPS_ALONE, &overrides);
        let (plain, graphs) = (at(name), at(&format!("{name}-graphs")));
        // The vectors of spectral norms go on by a graph in both, one for G and one for D.
        let log = on_the_device(&devices, &plain, &overrides);
        assert_eq!(log.count("graph recorded"), 2, "{name}");
        let one_by_one = log.count("operator ");
        let log = on_the_device(&devices, &graphs, &with(&overrides, &["train.graphs=true"]));
        let beside_graphs = log.count("operator ");
        assert!(
            beside_graphs * 10 < one_by_one * 8,
            "{name}: {beside_graphs} of {one_by_one} operators"
        );
        let (recorded, replayed) = (log.count("graph recorded"), log.count("graph replayed"));
        assert!(recorded >= 2 && replayed > recorded, "{recorded} graphs, {replayed} replays");
        assert_eq!(numbers(&graphs), numbers(&plain), "{name}");
        assert_eq!(saved(&graphs), saved(&plain), "{name}: weights, moments or statistics");
    }
    let overrides = with(&STEPS_ALONE, &["train.deterministic=true", "train.graphs=true"]);
    let [one, other] = ["one", "other"].map(|name| {
        on_the_device(&devices, &at(name), &overrides);
        numbers(&at(name))
    });
    assert_eq!(one, other);
}

/// What is waited for does not grow with the number of steps: no value is read back, nothing uploaded from
/// memory that is not page-locked.
#[test]
fn nothing_in_a_step_waits_for_the_device() {
    let Some(devices) = Devices::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let quiet = with(&STEPS_ALONE, &["log.every=1000", "images.every=0", "checkpoint.every=0"]);
    for (name, changes, ranks) in [
        ("plain", &[][..], 1),
        ("parts", &["train.micro_batch=4", "train.precision=bf16"], 1),
        ("graphs", &["train.graphs=true"], 1),
        ("further", &FURTHER, 1),
        ("ranks", &["dist.check_every=0"], 2),
    ] {
        let [few, many] = ["train.steps=4", "train.steps=7"].map(|steps| {
            let out = folder.path().join(format!("{name}-{steps}"));
            let changes = with(changes, &[steps]);
            let args = tiny("cuda", &out, &with(&quiet, &changes));
            let launch = ["launch", "-n", "2", "--"];
            fine(&devices.trainer(&with(&launch[..4 * (ranks - 1)], &borrowed(&args))));
            sound(&devices)
        });
        let (of_few, of_many) = (few.with("SYNC "), many.with("SYNC "));
        assert!(!of_few.is_empty(), "a checkpoint reads weights back, so a sync is seen");
        assert_eq!(of_many, of_few, "{name}: what is waited for in 7 steps, and in 4");
        let more = |what: &str| many.count(what) - few.count(what);
        assert!(more("upload, page-locked") > 0, "{name}: nothing uploaded beside the work");
        // For an earlier copy of each of three batches, whose memory is used again, and for how the step before
        // went.
        let waits = more("wait for an event");
        assert!(waits <= 3 * 4 * ranks as u64, "{name}: {waits} waits in three steps");
    }
}

#[test]
fn a_run_on_the_device_that_a_signal_stops_goes_on_to_the_same_bits() {
    let Some(devices) = Devices::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (straight, broken) = (folder.path().join("straight"), folder.path().join("broken"));
    let overrides = with(&STEPS_ALONE, &["train.graphs=true"]);
    let mut endless = devices.background(&borrowed(&tiny(
        "cuda",
        &broken,
        &with(&overrides, &["train.steps=100000"]),
    )));
    endless.until(|_| lines(&broken).len() >= 2);
    let (said, _) = endless.terminate();
    assert_eq!(said.code, 75, "{}", said.err);
    sound(&devices);
    let done = lines(&broken).len();
    let steps = format!("train.steps={}", done + 3);
    let resume = ["run", "--resume", "--out", &text(&broken), "--set", &steps];
    fine(&devices.trainer(&resume));
    sound(&devices);
    on_the_device(&devices, &straight, &with(&overrides, &[&steps]));
    assert_eq!(numbers(&broken), numbers(&straight));

    // On another device it goes on, too.
    let steps = format!("train.steps={}", done + 4);
    let moved = ["train.device=cuda:1", &steps].map(|change| ["--set", change]).concat();
    let resume = ["run", "--resume", "--allow-change", "--out", &text(&broken)];
    fine(&devices.trainer(&with(&resume, &moved)));
    assert!(sound(&devices).count("device 1") > 0);
}

#[test]
fn faulty_steps_are_skipped_and_rolled_back_as_on_the_cpu() {
    let Some(devices) = Devices::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let incidents = |run: &Path| -> Vec<Value> {
        let text = fs::read_to_string(run.join("incidents.jsonl")).unwrap();
        let line = |line: &str| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            line.as_object_mut().unwrap().remove("time");
            line
        };
        text.lines().map(line).collect()
    };
    for what in ["skip", "rollback"] {
        // No weight survives such a rate.
        let on_fault = format!("health.on_fault={what}");
        let overrides = with(&STEPS_ALONE, &[&on_fault, "health.patience=2", "opt.lr_d=1e38"]);
        let [cpu, cuda] = ["cpu", "cuda"].map(|device| {
            let out = folder.path().join(format!("{what}-{device}"));
            let args = tiny(device, &out, &overrides);
            let said = match device {
                "cpu" => trainer(&borrowed(&args)),
                _ => devices.trainer(&borrowed(&args)),
            };
            (said.code, incidents(&out))
        });
        sound(&devices);
        assert_eq!(cuda, cpu);
        assert!(cuda.1.len() == 3 && cuda.1[0]["done"] == what, "{cuda:?}");
    }
}

/// The presets that differ in more than sizes and rates, at sizes that take a second; E of ResNets and RevNets
/// has no smaller width than its own.
#[test]
fn every_family_of_presets_begins_as_on_the_cpu() {
    let Some(devices) = Devices::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let common = with(
        &STEPS_ALONE,
        &[
            "g.ch=8",
            "f.ch=8",
            "g.res=32",
            "f.res=32",
            "train.batch=4",
            "train.steps=1",
            "checkpoint.keep=1",
        ],
    );
    let (attends, plain) = (["g.attn_res=16", "f.attn_res=16"], ["g.attn_res=0", "f.attn_res=0"]);
    let recomputed = with(&attends, &["g.recompute=true", "f.recompute=true"]);
    let small = ["e.family=small", "e.depth=8", "e.width=1"];
    let (four, own) = (["latent.dim=80"], ["latent.dim=96"]);
    let sized = |e: &[&'static str], attention: &[&'static str], res| {
        [e, attention, &four[..], &[res][..]].concat()
    };
    for (preset, overrides) in [
        ("base", sized(&small, &attends, "e.res=32")),
        ("uniform_pz", sized(&["e.depth=50"], &attends, "e.res=32")),
        ("rev50", sized(&["e.depth=50"], &attends, "e.res=64")),
        ("hi_e_g64", [&small[..], &attends, &own, &["e.res=64"]].concat()),
        ("gen_hi_e", sized(&small, &attends, "e.res=64")),
        ("no_e", sized(&small, &attends, "e.res=32")),
        ("no_unary", sized(&small, &attends, "e.res=32")),
        ("x_unary", sized(&small, &attends, "e.res=32")),
        ("z_unary", sized(&small, &attends, "e.res=32")),
        ("r50x2", sized(&["e.family=small", "e.depth=8", "e.width=2"], &attends, "e.res=64")),
        ("cifar10_32", sized(&["e.width=1"], &plain, "e.res=32")),
        ("small_g32", sized(&small, &recomputed, "e.res=32")),
    ] {
        let overrides = with(&common, &overrides);
        let [cpu, cuda] = ["cpu", "cuda"].map(|device| {
            let out = folder.path().join(format!("{preset}-{device}"));
            let mut args = tiny(device, &out, &overrides);
            let place = args.iter().position(|word| word == "--preset").unwrap() + 1;
            args[place] = preset.to_owned();
            fine(&match device {
                "cpu" => trainer(&borrowed(&args)),
                _ => devices.trainer(&borrowed(&args)),
            });
            let found = numbers(&out);
            fs::remove_dir_all(out).unwrap(); // hundreds of megabytes
            found
        });
        sound(&devices);
        assert_close(&cuda[0], &cpu[0], 1e-5, preset);
    }
}

#[test]
fn the_largest_micro_batch_is_found_within_a_device_s_memory() {
    let mut args = vec!["bench-batch", "--preset", "demo", "--device", "cuda", "--most", "64"];
    args.extend(TINY.iter().flat_map(|change| ["--set", change]));
    let mut found: Vec<i64> = vec![];
    for bytes in ["16000000", "24000000"] {
        let Some(devices) = Devices::new() else { return };
        let said = devices.with("FAKE_CUDA_BYTES", bytes).trainer(&args);
        fine(&said);
        assert!(
            said.out.contains("memory ran out: ") && !said.err.contains("panicked"),
            "{said:?}"
        );
        let (_, size) = said.out.split_once("the largest that fits: ").expect(&said.out);
        found.push(size.lines().next().unwrap().trim().parse().unwrap());
    }
    assert!(2 <= found[0] && found[0] < found[1] && found[1] < 64, "{found:?} images");
}

#[test]
fn a_study_trains_on_two_devices_at_once() {
    let Some(devices) = Devices::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("study.toml"), folder.path().join("out"));
    let all = TINY.iter().chain(&STEPS_ALONE[1..]).chain(&["train.max_minutes=0.0"]);
    let all: Vec<_> = all.map(|change| format!("{change:?}")).collect();
    let rows = "[[row]]\nname = \"base\"\nset = []\n[[row]]\nname = \"bf16\"\n\
                set = [\"train.precision=bf16\"]\n";
    let head =
        format!("title = \"Two\"\npreset = \"demo\"\nseeds = [0]\nset = [{}]\n", all.join(", "));
    fs::write(&file, head + rows).unwrap();
    let (file, to, from) = (text(&file), text(&out), text(data()));
    let devices_of = ["--devices", "cuda:0,cuda:1"];
    let said =
        devices.trainer(&with(&["study", &file, "--data", &from, "--out", &to], &devices_of));
    fine(&said);
    assert!(said.out.contains("2 of 2 runs done"), "{}", said.out);
    let log = sound(&devices);
    let work = ["device 0", "device 1"].map(|device| log.count(device));
    assert!(work.iter().all(|count| *count > 1000), "operators on each device: {work:?}");
}

#[test]
fn two_ranks_on_two_devices_train_the_model_of_one() {
    let Some(devices) = Devices::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let overrides = ["train.steps=3", "dist.check_every=2"];
    on_the_device(&devices, &at("one"), &overrides);
    let args = tiny("cuda", &at("two"), &overrides);
    fine(&devices.trainer(&with(&["launch", "-n", "2", "--"], &borrowed(&args))));
    let log = sound(&devices);
    assert!(log.count("NCCL all_reduce") > 0 && log.count("NCCL broadcast") > 0, "{log:?}");
    assert!(log.count("device 1") > 0);
    assert_same_losses(&at("two"), &at("one"));
    // Each tells images from those of its own half; their weights stay equal, which they check.
    let overrides = with(&FURTHER, &overrides);
    let args = tiny("cuda", &at("further"), &overrides);
    fine(&devices.trainer(&with(&["launch", "-n", "2", "--"], &borrowed(&args))));
    sound(&devices);
}

/// What would be an H100's silent wrong number is a fault here: each detector speaks where its cause is made.
#[test]
fn a_device_that_is_broken_on_purpose_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    for (broken, ranks, words) in [
        ("block", 1, "may still be writing"),
        ("record", 1, "no record_stream"),
        ("sync", 1, "the host writes page-locked memory that a copy may still read"),
        ("wait", 2, "may still be"),
    ] {
        let Some(devices) = Devices::new() else { return };
        let devices = devices.with("FAKE_CUDA_BREAK", broken);
        let args = tiny("cuda", &folder.path().join(broken), &STEPS_ALONE);
        let launch = ["launch", "-n", "2", "--"];
        let mut command = devices.command(&integration::program("trainer"));
        command.args(&launch[..4 * (ranks - 1)]).args(&args);
        let ended = command.output().unwrap().status; // of `sync`, by a signal
        assert_eq!(ended.success(), broken != "sync", "{broken}: {ended}");
        let faults = devices.log().faults;
        assert!(faults.iter().any(|fault| fault.contains(words)), "{broken}: {faults:?}");
    }
}

/// Where a test before them asked for devices without loading CUDA, these would find none.
#[test]
fn unit_tests_over_cuda_pass_on_the_device_one_after_the_other() {
    let Some(devices) = Devices::new() else { return };
    for (library, filters) in
        [("torch_ext", &["cuda::", "graph::", "nccl::"][..]), ("trainer", &["device::"])]
    {
        let mut command = devices.command(&unit_tests(library));
        let said = command.arg("--test-threads=1").args(filters).output().unwrap();
        let words = String::from_utf8_lossy(&said.stdout);
        assert!(said.status.success() && !words.contains("running 0 tests"), "{words}");
    }
    let log = sound(&devices);
    assert_eq!((log.count("graph replayed"), log.count("NCCL all_reduce")), (3, 1), "{log:?}");
}

/// What the build script reads from `native_functions.yaml`, by torchgen, which CUDA's own registrations are made with.
const TORCHGEN: &str = r#"
import os, torchgen
from torchgen.gen import parse_native_yaml
from torchgen.model import DeviceCheckType, DispatchKey
folder = os.path.join(os.path.dirname(torchgen.__file__), "packaged/ATen/native/")
found = parse_native_yaml(folder + "native_functions.yaml", folder + "tags.yaml")
cuda = found.backend_indices[DispatchKey.CUDA]
named = {str(f.func.name): f for f in found.native_functions if "generated" not in f.tags}
for name, f in named.items():
    of = named[str(f.structured_delegate)] if f.structured_delegate else f
    if cuda.has_kernel(f) or cuda.has_kernel(of):
        print('{"%s", %s},' % (name, str(f.device_check is DeviceCheckType.NoCheck).lower()))
"#;

#[test]
fn the_device_has_the_kernels_that_torchgen_gives_cuda() {
    let Some(folder) = fake_cuda::folder() else { return };
    let python = python();
    let said = Command::new(&python).args(["-c", TORCHGEN]).output();
    let Some(said) = said.ok().filter(|said| said.status.success()) else {
        return integration::missing(&format!("{python} has no torchgen with its yaml"));
    };
    let ours = fs::read_to_string(folder.join("kernels.inc")).unwrap();
    let [ours, theirs] = [&ours, &String::from_utf8(said.stdout).unwrap()]
        .map(|text| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>());
    let off: Vec<_> = ours.symmetric_difference(&theirs).collect();
    assert!(off.is_empty() && ours.len() > 1000, "{off:?}");
}

/// At the start, in a step, and with what the run had saved then.
#[test]
fn a_device_without_room_says_so_and_how_to_need_less() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let args = tiny("cuda", &out, &with(&STEPS_ALONE, &["train.steps=2"]));
    for (bytes, begun) in [("4000000", false), ("9000000", true)] {
        let Some(devices) = Devices::new() else { return };
        let said = devices.with("FAKE_CUDA_BYTES", bytes).trainer(&borrowed(&args));
        assert_eq!((said.code, out.exists()), (1, begun), "{}", said.err);
        let error = said.err.lines().find(|line| line.starts_with("error: ")).expect(&said.err);
        for words in ["out of memory", "Tried to allocate", "train.micro_batch"] {
            assert!(error.contains(words), "{words} is not in {error}");
        }
        assert!(!said.err.contains("panicked") && !said.err.contains("frame #"), "{}", said.err);
    }
    let Some(devices) = Devices::new() else { return };
    fine(&devices.trainer(&["run", "--resume", "--out", &text(&out)]));
    sound(&devices);
}

//! What is on the disk when a program says so: the order of writes, syncs and renames, seen by a library
//! that stands between the programs and the system, and what a call that fails in between leaves.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use integration::faults::{self, Call, Event, Failing, Fault};
use integration::{
    ONE_THREAD, borrowed, copy_folder, data, program, repository, text, tiny_run, trainer,
};
use pipeline::{FolderOptions, FolderWriter};
use tempfile::TempDir;

/// A command with these arguments.
fn command(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program(name));
    command.args(args).envs(ONE_THREAD);
    command
}

fn ended_well(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What a power cut could have undone of what a command left below `root`.
fn at_risk(mut command: Command, root: &Path, grows: &[&str]) -> Vec<String> {
    let log = tempfile::NamedTempFile::new().unwrap();
    faults::watch(&mut command, log.path());
    ended_well(&command.output().unwrap());
    let events = faults::events(log.path(), root);
    let renamed = events.iter().any(|event| matches!(event, Event::Renamed(..)));
    assert!(renamed, "nothing was renamed: is the library in the way? {events:?}");
    faults::at_risk(&events, |path| {
        let name = path.file_name().unwrap().to_string_lossy();
        grows.iter().any(|grown| name.starts_with(grown))
    })
}

const NONE: [String; 0] = [];

fn synth(output: &Path) -> Command {
    let size = ["--images", "40", "--classes", "4", "--size", "32", "--shard-bytes", "20K"];
    command("shard-imagenet", &[&["synth", "--output", &text(output)][..], &size].concat())
}

#[test]
fn a_data_folder_is_on_the_disk_when_it_has_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (made, built) = (folder.path().join("made"), folder.path().join("built"));
    assert_eq!(at_risk(synth(&made), folder.path(), &[]), NONE);
    // Of another folder's shards, with a list of what could not be read.
    fs::create_dir(folder.path().join("photos")).unwrap();
    let dataset = pipeline::Dataset::open(&made, "train").unwrap();
    for sample in 0..3 {
        let path = folder.path().join(format!("photos/{sample}.jpg"));
        fs::write(path, dataset.bytes(sample).unwrap()).unwrap();
    }
    fs::write(folder.path().join("photos/x.jpg"), "no picture").unwrap();
    let photos = text(&folder.path().join("photos"));
    let args = ["build", "--layout", "flat", "--input", &photos, "--output", &text(&built)];
    let build = command("shard-imagenet", &[&args[..], &["--max-rejected", "1"]].concat());
    assert_eq!(at_risk(build, folder.path(), &[]), NONE);
    assert!(built.join("rejected.jsonl").exists());
    let again = [&args[..], &["--max-rejected", "1", "--overwrite", "--seed", "1"]].concat();
    assert_eq!(at_risk(command("shard-imagenet", &again), folder.path(), &[]), NONE);
}

/// This very test, as a process of its own, is the program.
#[test]
fn a_program_s_own_data_folder_is_on_the_disk_when_it_has_its_name() {
    const WRITER: &str = "INTEGRATION_WRITER";
    if let Some(folder) = std::env::var_os(WRITER) {
        let options = FolderOptions { shard_bytes: 3000, ..FolderOptions::default() };
        let mut writer = FolderWriter::create(&Path::new(&folder).join("data"), options).unwrap();
        let dataset = pipeline::Dataset::open(data(), "train").unwrap();
        writer.split("train").unwrap();
        for sample in 0..8 {
            writer.append(&sample.to_string(), &dataset.bytes(sample).unwrap(), Some(0)).unwrap();
        }
        writer.finish().unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Command::new(std::env::current_exe().unwrap());
    let name = "durability::a_program_s_own_data_folder_is_on_the_disk_when_it_has_its_name";
    writer.args([name, "--exact"]).env(WRITER, folder.path());
    assert_eq!(at_risk(writer, folder.path(), &[]), NONE);
    assert!(folder.path().join("data/index.bin").exists());
}

/// A tiny run, made once.
fn run() -> &'static Path {
    static RUN: std::sync::OnceLock<(TempDir, std::path::PathBuf)> = std::sync::OnceLock::new();
    let (_, path) = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let said = trainer(&borrowed(&tiny_run(data(), &path, &["eval.probe_images=0"])));
        assert_eq!(said.code, 0, "{}", said.err);
        (folder, path)
    });
    path
}

#[test]
fn what_commands_make_of_a_run_is_on_the_disk_when_they_end() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name));
    let of = ["--run", &text(run()), "--device", "cpu"];
    let extractor = text(&repository().join("tests/golden/extractor.pt"));
    let fid = ["--extractor", &extractor, "--trust-extractor", "--images", "30", "--splits", "3"];
    let embed = ["embed", "--split", "val", "--out", &at("features")];
    let each = ["sample", "--count", "2", "--each", &at("each")];
    for args in [
        &["export", "--out", &at("export")][..],
        &["sample", "--count", "2", "--out", &at("samples.png")],
        &each,
        &["reconstruct", "--out", &at("pairs.png")],
        &["filters", "--out", &at("filters.png")],
        &embed,
        &[&["eval", "fid", "--cache", &at("cache")], &fid[..]].concat(),
    ] {
        let risks = at_risk(command("trainer", &[args, &of].concat()), folder.path(), &[]);
        assert_eq!(risks, NONE, "{args:?}");
    }
    let report = command("trainer", &["report", "--run", &text(run())]);
    assert_eq!(at_risk(report, run(), &[]), NONE);
}

/// This very test, as a process of its own, is the program.
#[test]
fn a_call_fails_by_its_kind_its_path_and_its_number_and_no_other_does() {
    const ACTOR: &str = "INTEGRATION_ACTOR";
    const NAME: &str =
        "durability::a_call_fails_by_its_kind_its_path_and_its_number_and_no_other_does";
    if let Some(path) = std::env::var_os(ACTOR) {
        let path = Path::new(&path);
        let number = |done: io::Result<()>| done.map_or_else(|e| e.raw_os_error().unwrap(), |()| 0);
        let mut did = vec![];
        match File::create(path) {
            Err(e) => did.push(number(Err(e))),
            Ok(mut file) => {
                did.push(0);
                did.extend([b'1', b'2', b'3'].map(|byte| number(file.write_all(&[byte]))));
                did.push(number(file.sync_all()));
                did.push(number(fs::rename(path, path.with_extension("done"))));
            }
        }
        println!("did {did:?}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a");
    let acts = |call, path: &str, at, onwards, fault| {
        let mut actor = Command::new(std::env::current_exe().unwrap());
        actor.args([NAME, "--exact", "--nocapture"]).env(ACTOR, &file);
        faults::hurt(&mut actor, &Failing { call, path, at, onwards, fault });
        let output = actor.output().unwrap();
        if output.status.signal() == Some(9) {
            let text = fs::read_to_string(&file).unwrap();
            return format!("killed with {text:?} written");
        }
        let said = String::from_utf8(output.stdout).unwrap();
        let did = said.lines().find_map(|line| line.split_once("did ")).map(|(_, did)| did);
        did.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    let here = &*format!("{}/*", folder.path().display());
    // EIO is 5, ENOSPC 28.
    let (eio, enospc, kill) = (Fault::Eio, Fault::Enospc, Fault::Kill);
    assert_eq!(acts(Call::Write, here, 4, false, eio), "[0, 0, 0, 0, 0, 0]");
    assert_eq!(acts(Call::Write, "/elsewhere/*", 1, true, eio), "[0, 0, 0, 0, 0, 0]");
    assert_eq!(acts(Call::Write, here, 2, false, eio), "[0, 0, 5, 0, 0, 0]");
    assert_eq!(fs::read_to_string(file.with_extension("done")).unwrap(), "13");
    assert_eq!(acts(Call::Write, here, 2, true, enospc), "[0, 0, 28, 28, 0, 0]");
    assert_eq!(acts(Call::Open, here, 1, false, enospc), "[28]");
    assert_eq!(acts(Call::Fsync, here, 1, false, eio), "[0, 0, 0, 0, 5, 0]");
    assert_eq!(acts(Call::Rename, here, 1, false, eio), "[0, 0, 0, 0, 0, 5]");
    // By the name that it is to get.
    assert_eq!(acts(Call::Rename, "*.done", 1, false, eio), "[0, 0, 0, 0, 0, 5]");
    assert_eq!(acts(Call::Write, here, 3, false, kill), "killed with \"12\" written");
    assert_eq!(acts(Call::Rename, here, 1, false, kill), "killed with \"123\" written");
}

#[test]
fn shards_whose_index_can_be_kept_nowhere_are_read_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("shards");
    copy_folder(&repository().join("tests/fixtures/9d001b8/scanned"), &shards);
    fs::remove_file(shards.join("index.bin")).unwrap();
    let ends = |job: &str| {
        let mut command = command("shard-imagenet", &[job, &text(&shards)]);
        let (call, fault) = (Call::Open, Fault::Eio);
        let failing = Failing { call, path: "*index*", at: 1, onwards: true, fault };
        faults::hurt(command.env("XDG_CACHE_HOME", folder.path()), &failing);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (good, said) = ends("inspect");
    assert!(good && said.contains("its index cannot be kept"), "{said}");
    // What the user chooses for it would be lost.
    let (good, said) = ends("index");
    assert!(!good && said.contains("index"), "{said}");
}

#[test]
fn a_run_is_on_the_disk_as_far_as_it_says_it_has_come() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let keys = ["checkpoint.every=2", "images.every=2", "eval.every=2"];
    let training = command("trainer", &borrowed(&tiny_run(data(), &run, &keys)));
    // Lines are added to these.
    let grow =
        ["stats.jsonl", "metrics.jsonl", "incidents.jsonl", "sessions.jsonl", "events.", "lock"];
    assert_eq!(at_risk(training, folder.path(), &grow), NONE);
    let going_on =
        command("trainer", &["run", "--resume", "--out", &text(&run), "--set", "train.steps=6"]);
    assert_eq!(at_risk(going_on, folder.path(), &grow), NONE);
}

//! `checkpoint.mirror`: a run whose machine goes away goes on from its copy, and what becomes of the copy ends no run.

mod owners;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::files::sha256_of;
use integration::faults::{Call, Failing, Fault, hurt};
use integration::{Background, Said, copy_folder, data, program, text};
use trainer::checkpoint;

use super::server::Faults;
use super::stores::{Kind, Store, environment};
use super::{assert_same_end, begins, newest_sound, saved, tell, times, unattended, undisturbed};

const KEYS: [&str; 3] = ["train.steps=8", "checkpoint.every=2", "checkpoint.keep=2"];

type Environment = Vec<(&'static str, String)>;

/// A run's command with a mirror.
fn mirrored(run: &Path, url: &str, more: &[&str]) -> Vec<String> {
    let mirror = format!("checkpoint.mirror={url}");
    let keys: Vec<&str> = KEYS.iter().chain(more).copied().chain([mirror.as_str()]).collect();
    unattended(data(), run, &keys)
}

fn command(args: &[String], environment: &Environment) -> Command {
    let mut command = Command::new(program("trainer"));
    command.args(args).envs(environment.iter().cloned());
    command.env("OMP_NUM_THREADS", "1");
    command
}

fn said(args: &[String], environment: &Environment) -> Said {
    Background::of(command(args, environment)).wait_for(Duration::from_secs(600)).0
}

/// Runs a command to its good end.
fn done(args: &[String], environment: &Environment) -> Said {
    let said = said(args, environment);
    assert_eq!(said.code, 0, "{}", said.err);
    said
}

/// Names and SHA-256 of all files of a run but its lock.
fn files(run: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![run.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = text(path.strip_prefix(run).unwrap());
            if path.is_dir() {
                folders.push(path);
            } else if name != "lock" && name != "mirror.json" {
                found.insert(name, sha256_of(fs::File::open(&path).unwrap()).unwrap().1);
            }
        }
    }
    found
}

/// A folder beside others as a mirror's URL.
fn beside(folder: &Path) -> (PathBuf, String) {
    let mirror = folder.join("mirror");
    let url = format!("file://{}", mirror.display());
    (mirror, url)
}

#[test]
fn a_run_whose_machine_is_gone_goes_on_from_a_store_that_others_wrote() {
    let folder = tempfile::tempdir().unwrap();
    // Two updates of D a step: it ends between them, too.
    let straight = undisturbed(folder.path(), data(), &KEYS);
    let mut tried = 0;
    for kind in Kind::ALL {
        let Some(store) = Store::start(kind) else { continue };
        let faults =
            Faults { stall: Duration::from_millis(200), failing: 0.1, ..Faults::default() };
        let server = store.behind(faults);
        let environment = environment(&server.url);
        let url = kind.url("some/where");
        let machine = folder.path().join(format!("{kind:?}"));
        // Machine after machine is asked to end and is gone after that.
        for step in [1, 3] {
            let run = machine.join(step.to_string());
            let args = mirrored(&run, &url, &[]);
            let mut child = Background::of(command(&args, &environment));
            child.until(|_| super::steps(&run) > step);
            child.signal("TERM");
            let (ended, took) = child.wait_for(Duration::from_secs(600));
            assert_eq!(ended.code, 75, "{}", ended.err);
            eprintln!("{kind:?}: ended after {took:?}");
            assert!(ended.err.contains(&format!("bringing all to {url}")), "{}", ended.err);
            assert!(saved(&run).unwrap() > step);
            fs::remove_dir_all(&run).unwrap();
        }
        let run = machine.join("last");
        let said = done(&mirrored(&run, &url, &[]), &environment);
        assert!(said.err.contains(&format!("brought back from {url}")), "{}", said.err);
        assert_same_end(&run, &straight);
        assert_eq!(begins(&run).len(), 3);
        // What the clients of others find there is what is here: logs, settings, pictures, and checkpoints as they are kept.
        let here = files(&run).into_iter();
        let here: BTreeMap<_, _> =
            here.map(|(name, hash)| (format!("some/where/{name}"), hash)).collect();
        let mut there = store.holds();
        assert!(there.remove("some/where/mirror.json").is_some());
        assert_eq!(there, here, "{kind:?}");
        assert!(server.served.faults() > 3, "{:?}", server.served);
        tried += server.served.faults();
    }
    let what =
        "a machine that goes away, its mirror behind answers that fail (moto, s3rver, azurite)";
    tell(
        what,
        tried as usize,
        "the same command goes on elsewhere",
        "nothing; the end is bit-equal",
    );
}

#[test]
fn a_machine_killed_at_any_moment_loses_no_more_than_was_on_its_way() {
    let folder = tempfile::tempdir().unwrap();
    let straight = undisturbed(folder.path(), data(), &KEYS);
    let (mirror, url) = beside(folder.path());
    let kills = times(6, 100) as u64;
    let mut most = 0;
    for kill in 0..kills {
        let run = folder.path().join(kill.to_string());
        let child = Background::of(command(&mirrored(&run, &url, &[]), &vec![]));
        std::thread::sleep(Duration::from_millis(400 + 4_000 * (kill * 37 % kills) / kills));
        child.kill();
        let there = newest_sound(&mirror).unwrap_or(0);
        assert!(there >= most, "kill {kill}: step {there}, and it was {most} before");
        most = there;
        let _ = fs::remove_dir_all(&run);
    }
    let run = folder.path().join("last");
    done(&mirrored(&run, &url, &[]), &vec![]);
    assert_same_end(&run, &straight);
    // The one before the last may be there alone: a machine that goes on has just the newest brought.
    let (here, there) = (files(&run), files(&mirror));
    let older = |name: &str| name.starts_with("checkpoints/") && !here.contains_key(name);
    let kept = there.keys().filter(|name| name.ends_with("manifest.json")).count();
    assert!(kept <= 2, "{there:?}");
    assert_eq!(
        there.into_iter().filter(|(name, _)| !older(name)).collect::<BTreeMap<_, _>>(),
        here
    );
    let what = "kill -9 at any moment, and the machine is gone with its disk";
    tell(
        what,
        kills as usize,
        "the same command goes on from the mirror",
        "what was not there yet",
    );
}

#[test]
fn a_run_that_is_brought_back_may_be_killed_at_any_call() {
    let folder = tempfile::tempdir().unwrap();
    let (_, url) = beside(folder.path());
    let first = folder.path().join("first");
    let stopped = [KEYS[1], KEYS[2], "train.steps=2"];
    let mirror = format!("checkpoint.mirror={url}");
    let keys: Vec<&str> = stopped.into_iter().chain([mirror.as_str()]).collect();
    done(&unattended(data(), &first, &keys), &vec![]);
    let args = |run: &Path| unattended(data(), run, &keys);
    let but_sessions = |run: &Path| {
        let mut files = files(run);
        assert!(files.remove("sessions.jsonl").is_some());
        files
    };
    let expected = but_sessions(&first);
    // Files of a checkpoint, logs and pictures: some hundred calls that make, write, sync and name them.
    let every = times(9, 1);
    let mut kills = 0;
    for at in (1..).step_by(every) {
        let run = folder.path().join(format!("at-{at}"));
        let mut hurt_command = command(&args(&run), &vec![]);
        let path = format!("{}*", run.display());
        hurt(
            &mut hurt_command,
            &Failing { call: Call::Any, path: &path, at, onwards: false, fault: Fault::Kill },
        );
        let ended = hurt_command.output().unwrap();
        if ended.status.success() {
            break;
        }
        assert_eq!(ended.status.signal(), Some(9), "{}", String::from_utf8_lossy(&ended.stderr));
        kills += 1;
        let said = done(&args(&run), &vec![]);
        assert!(said.out.contains("is finished"), "call {at}: {} {}", said.out, said.err);
        assert_eq!(but_sessions(&run), expected, "call {at}");
        fs::remove_dir_all(&run).unwrap();
    }
    assert!(kills > times(10, 100), "{kills} calls");
    let what = "kill -9 at a call while a run is brought back from its mirror";
    tell(what, kills, "the same command brings it back", "nothing");
}

#[test]
fn a_mirror_that_fails_ends_no_run_and_is_brought_up_to_date_later() {
    let Some(store) = Store::start(Kind::Moto) else { return };
    let folder = tempfile::tempdir().unwrap();
    let straight = undisturbed(folder.path(), data(), &KEYS);
    let fates = [(503, "503"), (403, "403"), (404, "404")];
    let rounds = times(2, fates.len());
    for (status, how) in fates.into_iter().take(rounds) {
        let url = format!("s3://bucket/{how}");
        let run = folder.path().join(how);
        let sound = store.behind(Faults::default());
        // It is there when the run begins, and no longer when it saves.
        let args = mirrored(&run, &url, &["train.steps=3"]);
        let mut child = Background::of(command(&args, &environment(&sound.url)));
        child.until(|_| super::steps(&run) > 0);
        child.signal("TERM");
        assert_eq!(child.wait().0.code, 75);
        let args = mirrored(&run, &url, &[]);
        let refusing = store.behind(Faults { status: Some(status), ..Faults::default() });
        let ended = said(&args, &environment(&refusing.url));
        // What refuses is said at once; what is away is tried again, and training goes on without it.
        if [403, 404].contains(&status) {
            assert_eq!(ended.code, 2, "{}", ended.err);
        } else {
            assert_eq!(ended.code, 1, "{}", ended.err);
            assert_same_end(&run, &straight);
            assert!(ended.err.contains("WARNING: checkpoint.mirror not written"), "{}", ended.err);
        }
        assert!(ended.err.contains(&url), "{}", ended.err);
        let said = done(&args, &environment(&sound.url));
        assert_same_end(&run, &straight);
        eprintln!("{how}: {}", said.out);
        let named = |name: String| name.strip_prefix(&format!("{how}/")).map(str::to_owned);
        let there = store.holds().into_iter();
        let mut there: BTreeMap<_, _> =
            there.filter_map(|(name, hash)| Some((named(name)?, hash))).collect();
        there.remove("mirror.json");
        assert_eq!(there, files(&run));
    }
    let what = "a mirror that refuses or answers with 503 under a run";
    tell(what, rounds, "said; training goes on; the same command brings it up to date", "nothing");
}

#[test]
fn nothing_is_begun_while_nobody_knows_what_the_mirror_holds() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let nowhere = environment("http://127.0.0.1:1");
    let ended = said(&mirrored(&run, "s3://bucket/run", &[]), &nowhere);
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert!(ended.err.contains("cannot list s3://bucket/run"), "{}", ended.err);
    assert!(!run.exists());
    let inside = format!("file://{}/copy", run.display());
    fs::create_dir(&run).unwrap();
    for (url, code, why) in [
        ("https://me:secret@host/run", 2, "is not an s3://, gs://, az:// or file:/// URL"),
        ("file:///nowhere/at/all", 1, "the folder that it lies in is not there"),
        ("s3://", 2, "cannot write to s3://"),
        ("s3://bucket/run#1", 2, "no part behind ? or #"),
        ("s3://bucket/run?token=secret", 2, "no part behind ? or #"),
        (&inside, 2, "lies in the run's folder"),
    ] {
        let ended = said(&mirrored(&run, url, &[]), &nowhere);
        assert_eq!(ended.code, code, "{url}: {}", ended.err);
        assert!(ended.err.contains(why) && !ended.err.contains("secret"), "{}", ended.err);
        assert!(!run.join("config.toml").exists());
    }
}

#[test]
fn a_damaged_checkpoint_in_the_mirror_is_passed_over_and_mended() {
    let folder = tempfile::tempdir().unwrap();
    let straight = undisturbed(folder.path(), data(), &KEYS);
    let (mirror, url) = beside(folder.path());
    let first = folder.path().join("first");
    done(&mirrored(&first, &url, &["train.steps=6"]), &vec![]);
    fs::remove_dir_all(&first).unwrap();
    let file = mirror.join("checkpoints/step-00000006/generator.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    // A name that leads out of the folder is nobody's.
    std::os::unix::fs::symlink("/etc/hostname", mirror.join("images/link.png")).unwrap();
    let run = folder.path().join("run");
    let said = done(&mirrored(&run, &url, &[]), &vec![]);
    assert!(said.err.contains("taking the one before"), "{}", said.err);
    assert_eq!(begins(&run).last(), Some(&4));
    assert_same_end(&run, &straight);
    let (mut here, mut there) = (files(&run), files(&mirror));
    for files in [&mut here, &mut there] {
        files.remove("images/link.png");
    }
    assert_eq!(here, there);
}

#[test]
fn a_run_that_is_done_brings_its_mirror_up_to_date_and_mends_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mirror, url) = beside(folder.path());
    let run = folder.path().join("run");
    let keys = [&KEYS[..], &["checkpoint.keep_every=2"]].concat();
    done(&unattended(data(), &run, &keys), &vec![]);
    let args = mirrored(&run, &url, &["checkpoint.keep_every=2"]);
    let said = done(&args, &vec![]);
    assert!(said.out.contains("is finished"), "{}", said.out);
    let whole = files(&run);
    assert_eq!(files(&mirror), whole);
    // A file that was lost there, one that was cut there, and what a write that was cut has left.
    fs::remove_file(mirror.join("checkpoints/step-00000002/encoder.safetensors")).unwrap();
    fs::write(mirror.join("checkpoints/step-00000008/encoder.safetensors"), "half").unwrap();
    fs::write(mirror.join("checkpoints/step-00000004/encoder.safetensors#7"), "half").unwrap();
    fs::remove_file(mirror.join("evaluated")).unwrap();
    done(&args, &vec![]);
    assert_eq!(files(&mirror), whole);
    // Where it cannot be, the command says so.
    fs::remove_dir_all(&mirror).unwrap();
    fs::write(&mirror, "no folder").unwrap();
    let behind = self::said(&args, &vec![]);
    assert_eq!(behind.code, 1, "{}", behind.err);
    assert!(behind.err.contains("checkpoint.mirror"), "{}", behind.err);
}

#[test]
fn what_a_run_went_back_behind_leaves_its_mirror() {
    let folder = tempfile::tempdir().unwrap();
    let (mirror, url) = beside(folder.path());
    let run = folder.path().join("run");
    done(&mirrored(&run, &url, &[]), &vec![]);
    fs::remove_dir_all(run.join("checkpoints/step-00000008")).unwrap();
    // The store's clock is ahead, and what changes has the same length.
    let later = std::time::SystemTime::now() + Duration::from_secs(7200);
    let config = fs::File::options().append(true).open(mirror.join("config.toml")).unwrap();
    config.set_modified(later).unwrap();
    done(&mirrored(&run, &url, &["train.steps=7", "log.every=2"]), &vec![]);
    assert_eq!(saved(&mirror), Some(7));
    assert_eq!(files(&mirror), files(&run));
    assert_eq!(fs::read_dir(mirror.join("checkpoints")).unwrap().count(), 2);
    fs::remove_dir_all(&run).unwrap();
    let said = done(&mirrored(&run, &url, &["train.steps=7", "log.every=2"]), &vec![]);
    assert!(said.err.contains("brought back") && said.out.contains("7 steps"), "{}", said.out);
}

#[test]
fn bringing_back_is_stopped_by_a_signal_goes_on_where_it_was_and_ranks_wait_for_it() {
    let Some(store) = Store::start(Kind::Moto) else { return };
    let folder = tempfile::tempdir().unwrap();
    let url = "s3://bucket/slow";
    let run = folder.path().join("run");
    let quick = store.behind(Faults::default());
    store.mark_folder("slow/images/");
    done(&mirrored(&run, url, &["train.steps=2"]), &environment(&quick.url));
    fs::remove_dir_all(&run).unwrap();
    let slow = store.behind(Faults { latency: Duration::from_millis(200), ..Faults::default() });
    let args = mirrored(&run, url, &["train.steps=4", "dist.join=3"]);
    let aside = run.join(".from-mirror.partial/checkpoints/step-00000002");
    let mut child = Background::of(command(&args, &environment(&slow.url)));
    child.until(|_| aside.join("discriminator.safetensors").exists());
    child.signal("TERM");
    let (ended, took) = child.wait_for(Duration::from_secs(60));
    assert_eq!(ended.code, 75, "{}", ended.err);
    assert!(took < Duration::from_secs(5), "{took:?}");
    let there =
        aside.join("discriminator.adam.safetensors").metadata().unwrap().modified().unwrap();
    let launch = ["launch", "--ranks", "2", "--"].map(str::to_owned).into_iter();
    let launch: Vec<String> = launch.chain(args.iter().cloned()).collect();
    let begun = std::time::Instant::now();
    done(&launch, &environment(&slow.url));
    assert!(begun.elapsed() > Duration::from_secs(3));
    assert_eq!(saved(&run), Some(4));
    // It came with the first try, and is in its place.
    let brought = run.join("checkpoints/step-00000002/discriminator.adam.safetensors");
    assert_eq!(brought.metadata().unwrap().modified().unwrap(), there);
}

#[test]
fn a_full_mirror_makes_room_and_a_damaged_checkpoint_here_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (mirror, url) = beside(folder.path());
    let run = folder.path().join("run");
    done(&mirrored(&run, &url, &["train.steps=4"]), &vec![]);
    let mut full = command(&mirrored(&run, &url, &["train.steps=6"]), &vec![]);
    let path = format!("{}/checkpoints/step-00000006/*", mirror.display());
    hurt(
        &mut full,
        &Failing { call: Call::Write, path: &path, at: 1, onwards: false, fault: Fault::Enospc },
    );
    let said = Background::of(full).wait_for(Duration::from_secs(600)).0;
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.err.contains("step-00000002 is removed there to make room"), "{}", said.err);
    assert_eq!(saved(&mirror), Some(6));
    // Kept for good, and damaged before it was brought.
    let other = folder.path().join("other");
    let (mirror, url) =
        (folder.path().join("m2"), format!("file://{}/m2", folder.path().display()));
    let keys = ["checkpoint.keep_every=2", "train.steps=4"];
    done(&unattended(data(), &other, &[&KEYS[..], &keys].concat()), &vec![]);
    let damaged = other.join("checkpoints/step-00000002/encoder.safetensors");
    fs::write(&damaged, "damaged").unwrap();
    let ended = self::said(&mirrored(&other, &url, &["checkpoint.keep_every=2"]), &vec![]);
    assert!(ended.code == 1 && ended.err.contains("step-00000002/encoder"), "{}", ended.err);
    let kept: Vec<_> = checkpoint::list(&mirror.join("checkpoints")).unwrap();
    assert_eq!(kept.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [4, 6, 8]);
}

#[test]
fn a_copy_is_kept_while_training_outruns_it_and_where_the_run_s_own_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let (mirror, url) = beside(folder.path());
    let run = folder.path().join("run");
    done(&mirrored(&run, &url, &["train.steps=4"]), &vec![]);
    let damaged = run.join("checkpoints/step-00000004/encoder.safetensors");
    fs::write(&damaged, "damaged").unwrap();
    done(&mirrored(&run, &url, &["train.steps=3"]), &vec![]);
    assert_eq!(saved(&mirror), Some(4), "the only sound copy of step 4");
    // Another run's command meets a mirror in which none is whole yet.
    let whole = checkpoint::list(&mirror.join("checkpoints")).unwrap();
    for (_, path) in whole {
        fs::remove_file(path.join("manifest.json")).unwrap();
    }
    let other = said(&mirrored(&folder.path().join("other"), &url, &["train.seed=9"]), &vec![]);
    assert!(other.code == 2 && other.err.contains("another run begins there"), "{}", other.err);
    let Some(store) = Store::start(Kind::Moto) else { return };
    // Every step replaces the one checkpoint, and the store takes longer than a step.
    let slow = store.behind(Faults { latency: Duration::from_millis(15), ..Faults::default() });
    let quick = ["train.steps=100000", "checkpoint.every=1", "checkpoint.keep=1"];
    let fast = folder.path().join("fast");
    let args = mirrored(&fast, "s3://bucket/fast", &quick);
    let mut child = Background::of(command(&args, &environment(&slow.url)));
    let there = || store.names().iter().filter(|name| name.ends_with("manifest.json")).count();
    child.until(|_| there() > 0);
    for _ in 0..5 {
        assert!(there() > 0, "no whole checkpoint is left");
        std::thread::sleep(Duration::from_millis(300));
    }
    child.kill();
    assert!(there() > 0, "no whole checkpoint is left");
}

//! Kills, second trainers, and the command that starts or goes on.

mod damage;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use integration::{Background, borrowed, data, text, tiny_run, trainer};
use trainer::checkpoint;

use super::hostile::Seeded;
use super::{
    assert_same_end, face, finished, lines, same_end, saved, steps, tell, times, unattended,
    undisturbed,
};

#[test]
fn a_trainer_killed_at_any_moment_loses_no_more_than_a_checkpoint_interval() {
    let folder = tempfile::tempdir().unwrap();
    let (kills, last) = (times(8, 200), times(12, 150));
    let last = format!("train.steps={last}");
    let keys = [last.as_str(), "checkpoint.every=1", "checkpoint.keep=1"];
    let begun = Instant::now();
    let straight = undisturbed(folder.path(), data(), &keys);
    let run = folder.path().join("run");
    let args = unattended(data(), &run, &keys);
    // From before the first step to some steps on.
    let longest = begun.elapsed().as_millis() as u64 / times(2, 30) as u64;
    let (mut most, kills) = (0, kills as u64);
    for kill in 0..kills {
        let child = Background::start(&args);
        std::thread::sleep(Duration::from_millis(longest * (kill * 37 % kills) / kills));
        child.kill();
        let Some(newest) = saved(&run) else { continue };
        // A line is written before its step is saved; the one under way may be lost besides.
        let logged = steps(&run);
        assert!(newest >= most && logged <= newest + 2, "kill {kill}: {newest} of {logged}");
        most = newest;
    }
    assert!(most > 0, "no step was ever saved in {kills} tries");
    finished(&args);
    assert_same_end(&run, &straight);
    // A run that is done stays as it is, and the command says so.
    let before = face(&run);
    let said = finished(&args);
    assert!(said.out.contains("is finished"), "{}", said.out);
    assert_eq!(face(&run), before);
    let what = "kill -9 at any moment, `checkpoint.every=1`";
    tell(
        what,
        kills as usize,
        "the same command goes on",
        "the step under way; the end is bit-equal",
    );
}

#[test]
fn a_run_killed_before_its_first_interval_goes_on_by_the_same_command() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    // The demo saves every thousand steps.
    let args = unattended(data(), &run, &["train.steps=100000"]);
    let rounds = times(3, 20);
    for _ in 0..rounds {
        let before = lines(&run.join("sessions.jsonl")).len();
        let mut child = Background::start(&args);
        child
            .until(|_| lines(&run.join("sessions.jsonl")).len() > before && saved(&run) == Some(0));
        child.kill();
    }
    // Without =auto too, and where not even that was saved, the command that began it begins it anew.
    let resumed = ["run", "--resume", "--out", &text(&run)].map(str::to_owned);
    let mut child = Background::start(&resumed);
    child.until(|said| said.contains("training on the CPU"));
    child.kill();
    fs::remove_dir_all(run.join("checkpoints")).unwrap();
    let said = trainer(&borrowed(&resumed));
    assert!(said.code == 2 && said.err.contains("--resume=auto"), "{said:?}");
    let plain = tiny_run(data(), &run, &[]);
    let said = trainer(&borrowed(&plain));
    assert!(said.code == 0 && said.err.contains("begun anew"), "{said:?}");
    // Now it holds results, which the same command does not overwrite.
    let before = face(&run);
    let said = trainer(&borrowed(&plain));
    assert!(said.code == 2 && said.err.contains("--resume"), "{said:?}");
    assert_eq!(face(&run), before);
    let what = "kill -9 before the first interval";
    tell(what, rounds, "the same command begins again from step 0", "the steps since the start");
}

#[test]
fn a_second_trainer_and_a_second_resume_change_nothing_of_a_live_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut child = Background::start(&tiny_run(data(), &run, &["train.steps=100000"]));
    child.until(|_| steps(&run) > 0 && saved(&run) == Some(0));
    // A half-written newest checkpoint, as a reader may see it.
    let half = run.join("checkpoints/step-00099999");
    fs::create_dir(&half).unwrap();
    let before = face(&run);
    let resume = ["run", "--resume", "--out", &text(&run)].map(str::to_owned);
    let set = ["--set".to_owned(), "train.steps=7".to_owned()];
    let other = ["--set".to_owned(), "opt.lr_d=1e-3".to_owned(), "--allow-change".to_owned()];
    let commands = [
        resume.to_vec(),
        [&resume[..], &set].concat(),
        [&resume[..], &other].concat(),
        unattended(data(), &run, &["train.steps=100000"]),
        tiny_run(data(), &run, &[]),
    ];
    for command in &commands {
        let said = trainer(&borrowed(command));
        assert_eq!(said.code, 1, "{said:?}");
        for word in ["another trainer (process ", "since 20"] {
            assert!(said.err.contains(word), "{word} is not in {}", said.err);
        }
        assert_eq!(face(&run), before, "{command:?}");
    }
    fs::remove_dir(&half).unwrap();
    let (said, _) = child.terminate();
    assert_eq!(said.code, 75, "{}", said.err);
    let what = "a second trainer on the folder of a live run";
    tell(what, commands.len(), "refused, exit code 1, naming the first", "nothing");
}

#[test]
fn a_run_that_diverges_is_not_started_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let args = unattended(data(), &run, &["opt.lr_d=1e30", "opt.lr_g=1e30", "train.steps=50"]);
    let said = trainer(&borrowed(&args));
    assert!(said.code == 3 && said.err.contains("not finite"), "{said:?}");
    let before = steps(&run);
    let said = trainer(&borrowed(&args));
    assert!(said.code == 3 && said.err.contains("would again"), "{said:?}");
    assert_eq!(steps(&run), before);
    // With other settings it goes on.
    let mended = [
        "run",
        "--resume",
        "--allow-change",
        "--out",
        &text(&run),
        "--set",
        "opt.lr_d=1e-4",
        "--set",
        "opt.lr_g=1e-4",
        "--set",
        "train.steps=4",
    ];
    assert_eq!(trainer(&mended).code, 0);
    tell("a run that diverges", 1, "exit code 3; --resume=auto refuses to repeat it", "nothing");
}

#[test]
fn an_unattended_command_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    finished(&unattended(data(), &run, &[]));
    let before = face(&run);
    let said = trainer(&borrowed(&unattended(data(), &run, &["g.ch=8"])));
    assert!(said.code == 2 && said.err.contains("g.ch"), "{said:?}");
    assert_eq!(face(&run), before);
    // How long it goes may change, and is kept: then the command need not say it again.
    let said = finished(&unattended(data(), &run, &["train.steps=6"]));
    assert!(said.err.contains("changed: train.steps"), "{}", said.err);
    assert_eq!(saved(&run), Some(6));
}

/// All that a folder holds, but who looked at it last.
pub(crate) fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(contents(&path)),
            false if path.ends_with("lock") => {}
            false => drop(all.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    all
}

pub(crate) fn assert_unchanged(folder: &Path, before: &BTreeMap<PathBuf, Vec<u8>>, story: &str) {
    let now = contents(folder);
    let names = now.keys().chain(before.keys());
    let changed: Vec<_> = names.filter(|name| now.get(*name) != before.get(*name)).collect();
    assert!(changed.is_empty(), "{changed:?}: {story}");
}

#[test]
fn another_run_in_the_place_of_a_live_one_is_written_to_by_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["train.steps=60", "checkpoint.every=5", "images.every=7", "eval.probe_images=0"];
    let straight = undisturbed(folder.path(), data(), &keys);
    let [run, away, other] = ["run", "away", "other"].map(|name| folder.path().join(name));
    let rounds = times(1, 5);
    for round in 0..rounds as u64 {
        let args = unattended(data(), &run, &keys);
        finished(&unattended(data(), &other, &["train.steps=4", "train.seed=5"]));
        let mut child = Background::start(&args);
        child.until(|_| steps(&run) > 6 + 5 * round);
        // As somebody tidies up, and begins the next.
        child.signal("STOP");
        fs::rename(&run, &away).unwrap();
        fs::rename(&other, &run).unwrap();
        let before = contents(&run);
        child.signal("CONT");
        let (said, _) = child.wait();
        assert!(said.code == 1 && said.err.contains("the folder was exchanged"), "{said:?}");
        assert_unchanged(&run, &before, &said.err);
        fs::remove_dir_all(&run).unwrap();
        fs::rename(&away, &run).unwrap();
        finished(&args);
        assert_same_end(&run, &straight);
        fs::remove_dir_all(&run).unwrap();
    }
    let what = "the run's folder is moved away and another's put in its place";
    let outcome =
        "trains on with warnings, as it may come back; exit code 1; the other is left as it is";
    tell(what, rounds, outcome, "what was not saved before");
    // A lock is no file to be tidied up either: who holds it takes it again, or finds another trainer there.
    for second in [false, true] {
        let args = unattended(data(), &run, &keys);
        let mut child = Background::start(&args);
        child.until(|_| steps(&run) > 6);
        child.signal("STOP");
        fs::remove_file(run.join("lock")).unwrap();
        if second {
            finished(&args);
            assert_same_end(&run, &straight);
        }
        let before = contents(&run.join("checkpoints"));
        child.signal("CONT");
        let (said, _) = child.wait();
        if second {
            assert!(said.code == 1 && said.err.contains("the folder was exchanged"), "{said:?}");
            assert_unchanged(&run.join("checkpoints"), &before, &said.err);
        } else {
            assert!(said.code == 0 && said.err.contains("taken again"), "{said:?}");
        }
        assert_same_end(&run, &straight);
        fs::remove_dir_all(&run).unwrap();
    }
    let outcome = "taken again, or left to the trainer that came meanwhile, with exit code 1";
    tell("the lock of a live run is removed", 2, outcome, "nothing; the end is bit-equal");
}

type Hurt = fn(&str) -> String;

pub(crate) fn text_of(run: &Path) -> String {
    fs::read_to_string(run.join("config.toml")).unwrap()
}

#[test]
fn what_is_meant_is_asked_for_once_and_what_says_the_same_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["train.steps=6", "checkpoint.every=1", "checkpoint.keep=9"];
    let straight = undisturbed(folder.path(), data(), &keys);
    let [half, run] = ["half", "run"].map(|name| folder.path().join(name));
    finished(&unattended(data(), &half, &["train.steps=3", keys[1], keys[2]]));
    for (hurt, meant) in [
        ((|text| format!("{text}\n")) as Hurt, false),
        (|text| text.replace('\n', "\r\n"), false),
        (|text| text.replace("lr_d = 0.0008", "lr_d = 0.0003"), true),
    ] {
        integration::copy_folder(&half, &run);
        let sound = text_of(&run);
        fs::write(run.join("config.toml"), hurt(&sound)).unwrap();
        let steps = ["--set".to_owned(), "train.steps=5".to_owned()];
        let resume = ["run", "--resume", "--out", &text(&run)].map(str::to_owned);
        let allow = meant.then(|| "--allow-change".to_owned());
        finished(&resume.iter().cloned().chain(steps).chain(allow).collect::<Vec<_>>());
        let steps = ["--set".to_owned(), "train.steps=6".to_owned()];
        finished(&resume.iter().cloned().chain(steps).collect::<Vec<_>>());
        assert_eq!(saved(&run), Some(6));
        assert_eq!(same_end(&run, &straight), !meant);
        fs::remove_dir_all(&run).unwrap();
    }
    // A fork, or logs that were rotated: what is changed then is remembered, and so is what it began from.
    integration::copy_folder(&half, &run);
    fs::remove_file(run.join("sessions.jsonl")).unwrap();
    let mut change = ["run", "--resume", "--out", &text(&run), "--set", "opt.lr_d=0.0003"]
        .map(str::to_owned)
        .to_vec();
    change.extend(["--allow-change", "--set", "train.steps=5"].map(str::to_owned));
    finished(&change);
    for step in 4..=5 {
        fs::write(run.join(format!("checkpoints/step-{step:08}/manifest.json")), "").unwrap();
    }
    finished(&change[..4].iter().cloned().chain(change[7..].to_vec()).collect::<Vec<_>>());
    assert_eq!(saved(&run), Some(5));
}

/// A run of six steps, its first three in another folder, and what goes on from these in a third.
struct Halved {
    straight: PathBuf,
    half: PathBuf,
    run: PathBuf,
    args: Vec<String>,
}

fn halved(folder: &Path) -> Halved {
    let keys = ["train.steps=6", "checkpoint.every=1", "checkpoint.keep=9"];
    let straight = undisturbed(folder, data(), &keys);
    let [half, run] = ["half", "run"].map(|name| folder.join(name));
    finished(&unattended(data(), &half, &["train.steps=3", keys[1], keys[2]]));
    let args = unattended(data(), &run, &keys);
    Halved { straight, half, run, args }
}

#[test]
fn settings_of_another_hand_are_gone_on_with_by_nobody_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let Halved { straight, half, run, args } = halved(folder.path());
    let hurts: [(&str, Hurt); 6] = [
        ("opt.lr_d", |text| {
            text.split_once('\n').unwrap().1.replace("lr_d = 0.0008", "lr_d = 0.5")
        }),
        ("opt.lr_d", |text| text.replace("lr_d = 0.0008", "lr_d = 0.5")),
        ("train.seed", |text| text.replace("seed = 0", "seed = 7")),
        ("checkpoint.keep", |text| text.split("[checkpoint]").next().unwrap().to_owned()),
        ("opt.", |text| {
            let (before, rest) = text.split_once("[opt]").unwrap();
            format!("{before}[train]{}", rest.split_once("[train]").unwrap().1)
        }),
        ("", |_| String::new()),
    ];
    for (key, hurt) in hurts {
        integration::copy_folder(&half, &run);
        let sound = text_of(&run);
        fs::write(run.join("config.toml"), hurt(&sound)).unwrap();
        assert_ne!(text_of(&run), sound, "{key}");
        let before = contents(&run);
        let resume = ["run", "--resume", "--out", &text(&run)].map(str::to_owned).to_vec();
        for command in [&resume, &args] {
            let said = trainer(&borrowed(command));
            assert!(said.code == 2 && said.err.contains(key), "{key}: {said:?}");
            assert!(key.is_empty() || said.err.contains("not as the trainer wrote it"), "{said:?}");
            assert!(said.err.contains("manifest.json"), "{key}: {}", said.err);
            assert_unchanged(&run, &before, "{key}");
        }
        // As the words say.
        let manifest = checkpoint::read_manifest(&run.join("checkpoints/step-00000003")).unwrap();
        fs::write(run.join("config.toml"), manifest.config).unwrap();
        finished(&args);
        assert_same_end(&run, &straight);
        fs::remove_dir_all(&run).unwrap();
    }
    let what = "config.toml edited, cut or emptied between two sessions";
    let outcome = "refused, exit code 2, naming what differs and where the whole of it is";
    tell(what, hurts.len(), outcome, "nothing; the end is bit-equal");
}

#[test]
fn a_newer_checkpoint_of_another_run_is_refused_and_so_is_a_run_that_lost_all_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let Halved { straight, half, run, args } = halved(folder.path());
    let other = folder.path().join("other");
    finished(&unattended(data(), &other, &["train.steps=5", "train.seed=5", "checkpoint.every=1"]));
    integration::copy_folder(&half, &run);
    let foreign = run.join("checkpoints/step-00000005");
    integration::copy_folder(&other.join("checkpoints/step-00000005"), &foreign);
    let before = contents(&run);
    let said = trainer(&borrowed(&args));
    assert!(said.code == 2 && said.err.contains("train.seed"), "{said:?}");
    assert!(said.err.contains(&text(&foreign)), "{}", said.err);
    assert_unchanged(&run, &before, &said.err);
    fs::remove_dir_all(&foreign).unwrap();
    finished(&args);
    assert_same_end(&run, &straight);
    tell(
        "a checkpoint of another run among its own",
        1,
        "refused, exit code 2, naming it",
        "nothing",
    );
    // All of them gone, though none was deleted by the run.
    fs::remove_dir_all(run.join("checkpoints")).unwrap();
    let said = trainer(&borrowed(&args));
    assert!(said.code == 2 && said.err.contains("missing"), "{said:?}");
}

#[test]
fn what_is_made_of_a_checkpoint_is_as_it_was_made_with_whatever_a_hand_wrote_since() {
    let folder = tempfile::tempdir().unwrap();
    let run = undisturbed(folder.path(), data(), &["train.steps=2", "checkpoint.every=1"]);
    let exported = |name: &str| {
        let out = folder.path().join(name);
        let said =
            trainer(&["export", "--run", &text(&run), "--out", &text(&out), "--device", "cpu"]);
        assert_eq!(said.code, 0, "{said:?}");
        let files = ["generator.safetensors", "generator.pt", "encoder.safetensors", "encoder.pt"];
        (files.map(|file| fs::read(out.join(file)).unwrap()), said.err)
    };
    let sound = text_of(&run);
    let (files, said) = exported("sound");
    assert!(!said.contains("differs"), "{said}");
    assert!(exported("again").0 == files);
    let hurts: [(&str, Hurt); 2] = [
        ("data.mode", |text| text.replace("mode = \"small\"", "mode = \"resnet\"")),
        ("train.seed", |text| text.replace("seed = 0", "seed = 7")),
    ];
    for (key, hurt) in hurts {
        fs::write(run.join("config.toml"), hurt(&sound)).unwrap();
        assert_ne!(text_of(&run), sound, "{key}");
        let (same, said) = exported(key);
        assert!(said.contains("differs") && said.contains(key), "{said}");
        assert!(same == files, "{key}");
    }
    // Cut within a word: said of which file, and where the whole of it is.
    fs::write(run.join("config.toml"), format!("{}\n[trai", &sound[..200])).unwrap();
    let said = trainer(&["export", "--run", &text(&run), "--out", &text(folder.path())]);
    assert!(said.code == 2 && said.err.contains("manifest.json"), "{said:?}");
    tell(
        "config.toml edited, then its checkpoints exported",
        hurts.len(),
        "exported as they were made, and what differs is said",
        "nothing",
    );
}

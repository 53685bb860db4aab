//! Kills, second trainers, and the command that starts or goes on.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use integration::{Background, borrowed, data, text, tiny_run, trainer};
use trainer::checkpoint;

use super::hostile::Seeded;
use super::{
    assert_same_end, face, finished, lines, saved, steps, tell, times, unattended, undisturbed,
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

/// What can be wrong with a checkpoint. The first [`OF_FILES`] kinds are of one file's bytes.
fn hurt(checkpoint: &Path, before: &Path, kind: usize, random: &mut Seeded) -> String {
    let mut files: Vec<_> = fs::read_dir(checkpoint).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let number = random.below(files.len());
    let file = &files[number];
    let name = file.file_name().unwrap();
    let put = |bytes: &[u8]| fs::write(file, bytes).unwrap();
    match kind {
        0..OF_FILES => {
            let good = fs::read(file).unwrap();
            let mut bytes = good.clone();
            let mut how = "";
            while bytes == good {
                how = random.spoil(&mut bytes);
            }
            put(&bytes);
            format!("{how} {name:?}")
        }
        OF_FILES => {
            fs::remove_file(file).unwrap();
            format!("missing {name:?}")
        }
        5 => {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
            format!("a folder {name:?}")
        }
        6 => {
            put(&fs::read(before.join(name)).unwrap());
            format!("of the step before {name:?}")
        }
        7 => {
            put(&fs::read(&files[(number + 1) % files.len()]).unwrap());
            format!("another's bytes {name:?}")
        }
        8 => {
            fs::remove_dir_all(checkpoint).unwrap();
            integration::copy_folder(before, checkpoint);
            "all of the step before".to_owned()
        }
        // A manifest that is true to itself and lists nothing, or another file.
        _ => {
            let mut manifest = checkpoint::read_manifest(checkpoint).unwrap();
            let record = manifest.files.pop_first().unwrap().1;
            if kind == 9 {
                manifest.files.clear();
            } else {
                manifest.files.insert("/dev/zero".to_owned(), record);
            }
            checkpoint::write_manifest(checkpoint, &mut manifest).unwrap();
            "forged".to_owned()
        }
    }
}

const OF_FILES: usize = 4;
const KINDS: usize = 11;

#[test]
fn a_damaged_or_forged_checkpoint_is_set_aside_for_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let straight = undisturbed(folder.path(), data(), &["checkpoint.every=1", "checkpoint.keep=9"]);
    let (rounds, mut random) = (times(KINDS, 6 * KINDS), Seeded(4));
    for round in 0..rounds {
        let run = folder.path().join(round.to_string());
        integration::copy_folder(&straight, &run);
        fs::remove_file(run.join("evaluated")).unwrap();
        let of = |step: u64| run.join(format!("checkpoints/step-{step:08}"));
        let mut story = hurt(&of(4), &of(3), round % KINDS, &mut random);
        // The one before may be no better.
        let worse = round % 3 == 2;
        if worse {
            let kind = random.below(8);
            story += &format!(", {}", hurt(&of(3), &of(2), kind, &mut random));
        }
        let said = trainer(&["run", "--resume", "--out", &text(&run)]);
        assert!(said.code == 0 && said.err.contains("going back"), "{story}: {said:?}");
        for step in if worse { 3..=4 } else { 4..=4 } {
            assert!(of(step).with_extension("damaged").exists(), "{story}: {}", said.err);
        }
        assert_same_end(&run, &straight);
        fs::remove_dir_all(&run).unwrap();
    }
    // None is left: nothing is trained anew in its place without a word.
    let run = folder.path().join("none");
    integration::copy_folder(&straight, &run);
    for entry in fs::read_dir(run.join("checkpoints")).unwrap() {
        fs::write(entry.unwrap().path().join("manifest.json"), "").unwrap();
    }
    let before = face(&run);
    let said = trainer(&["run", "--resume", "--out", &text(&run)]);
    assert!(said.code == 2 && said.err.contains("step-00000004"), "{said:?}");
    assert_eq!(face(&run), before);
    tell(
        "the newest checkpoints cut, longer, bit-flipped, without a page, incomplete, of another step or forged",
        rounds,
        "set aside; goes on from the newest sound one",
        "one interval for each; the end is bit-equal",
    );
}

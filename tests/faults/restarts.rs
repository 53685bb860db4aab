//! Kills, second trainers, and the command that starts or goes on.

use std::fs;
use std::time::{Duration, Instant};

use integration::{Background, borrowed, data, text, tiny_run, trainer};
use trainer::checkpoint;

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

#[test]
fn a_damaged_or_forged_checkpoint_is_set_aside_for_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let straight = undisturbed(folder.path(), data(), &["checkpoint.every=1", "checkpoint.keep=9"]);
    let hurts: [fn(&std::path::Path); 5] = [
        |path| fs::write(path.join("generator.safetensors"), "short").unwrap(),
        |path| {
            let file = path.join("discriminator.safetensors");
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(file, bytes).unwrap();
        },
        |path| fs::remove_file(path.join("encoder.adam.safetensors")).unwrap(),
        |path| {
            let mut manifest = checkpoint::read_manifest(path).unwrap();
            manifest.files.clear();
            fs::write(path.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
        },
        |path| fs::write(path.join("manifest.json"), "").unwrap(),
    ];
    for (number, hurt) in hurts.iter().enumerate() {
        let run = folder.path().join(number.to_string());
        integration::copy_folder(&straight, &run);
        fs::remove_file(run.join("evaluated")).unwrap();
        hurt(&run.join("checkpoints/step-00000004"));
        let said = trainer(&["run", "--resume", "--out", &text(&run)]);
        assert!(said.code == 0 && said.err.contains("going back"), "{said:?}");
        assert!(run.join("checkpoints/step-00000004.damaged").exists());
        assert_same_end(&run, &straight);
    }
    let what = "the newest checkpoint cut, bit-flipped, incomplete or forged";
    tell(
        what,
        hurts.len(),
        "set aside; goes on from the one before",
        "one interval; the end is bit-equal",
    );
}

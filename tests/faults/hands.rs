//! What hands, and kills at the wrong moment, make of a run's folder between two sessions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration::faults::{self, Call, Failing, Fault};
use integration::{
    ONE_THREAD, borrowed, copy_folder, data, program, repository, shard_imagenet, text, tiny_run,
    trainer,
};

use super::restarts::{assert_unchanged, contents, text_of};
use super::{assert_same_end, finished, lines, saved, tell, times, unattended, undisturbed};

const EACH: [&str; 3] = ["train.steps=4", "checkpoint.every=1", "checkpoint.keep=9"];

/// A run of two steps, each saved.
fn two_steps(run: &Path) {
    finished(&unattended(data(), run, &["train.steps=2", EACH[1], EACH[2]]));
}

fn checkpoint_of(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

/// Runs the trainer with these arguments, killed before a call on a file of a run; whether it was.
fn killed(args: &[String], call: Call, path: &Path, at: u64) -> bool {
    let mut command = Command::new(program("trainer"));
    command.args(args).envs(ONE_THREAD);
    let path = text(path);
    faults::hurt(
        &mut command,
        &Failing { call, path: &path, at, onwards: false, fault: Fault::Kill },
    );
    command.output().unwrap().status.code().is_none()
}

fn resume(run: &Path, more: &[&str]) -> Vec<String> {
    let args = ["run", "--resume", "--device", "cpu", "--out", &text(run)].map(str::to_owned);
    args.into_iter().chain(more.iter().map(|&word| word.to_owned())).collect()
}

#[test]
fn the_last_evaluation_is_of_the_end_and_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let keys = [&EACH[..], &["eval.probe_images=40", "eval.probe_steps=10"]].concat();
    let straight = undisturbed(folder.path(), data(), &keys);
    let all = lines(&straight.join("metrics.jsonl")).len();
    assert_eq!(all, 4);
    // The end is damaged, done again, and the run killed before and in its evaluation.
    for written in [0, 2] {
        let run = folder.path().join(format!("run-{written}"));
        copy_folder(&straight, &run);
        fs::write(checkpoint_of(&run, 4).join("generator.safetensors"), "x").unwrap();
        let args = unattended(data(), &run, &keys);
        assert!(killed(&args, Call::Write, &run.join("metrics.jsonl"), 1 + written));
        assert_eq!(saved(&run), Some(4));
        assert_eq!(lines(&run.join("metrics.jsonl")).len() as u64, written);
        assert!(!run.join("evaluated").exists());
        finished(&args);
        assert_eq!(lines(&run.join("metrics.jsonl")).len(), all, "{written}");
        assert!(finished(&args).out.contains("is finished"));
        assert_same_end(&run, &straight);
    }
    let what = "the end of a finished run damaged, then kill -9 in its last evaluation";
    tell(what, 2, "the same command does and evaluates it again", "nothing");
}

#[test]
fn settings_that_are_a_trainer_s_but_not_the_run_s_of_now_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [half, other, run] = ["half", "other", "run"].map(|name| folder.path().join(name));
    let first = ["train.steps=2", EACH[1], EACH[2]];
    finished(&unattended(data(), &half, &first));
    finished(&unattended(data(), &other, &[&first[..], &["opt.lr_g=0.001"]].concat()));
    let more = |run: &Path| resume(run, &["--set", "train.steps=4"]);
    // Another run's.
    copy_folder(&half, &run);
    fs::write(run.join("config.toml"), text_of(&other)).unwrap();
    let before = contents(&run);
    let said = trainer(&borrowed(&more(&run)));
    assert!(said.code == 2 && said.err.contains("opt.lr_g"), "{said:?}");
    assert_unchanged(&run, &before, "another run's settings");
    fs::remove_dir_all(&run).unwrap();
    // Its own of before.
    copy_folder(&half, &run);
    let old = text_of(&run);
    let change = ["--allow-change", "--set", "opt.lr_g=0.001", "--set", "train.steps=3"];
    finished(&resume(&run, &change));
    let new = text_of(&run);
    fs::write(run.join("config.toml"), &old).unwrap();
    let said = trainer(&borrowed(&more(&run)));
    assert!(said.code == 2 && said.err.contains("opt.lr_g"), "{said:?}");
    fs::write(run.join("config.toml"), new).unwrap();
    finished(&more(&run));
    let what = "config.toml exchanged for another run's, or for its own of before";
    tell(what, 2, "refused, exit code 2, naming what differs", "nothing");
}

#[test]
fn a_run_killed_as_its_settings_are_changed_goes_on_by_the_same_command() {
    let folder = tempfile::tempdir().unwrap();
    let [half, run] = ["half", "run"].map(|name| folder.path().join(name));
    two_steps(&half);
    let straight = undisturbed(folder.path(), data(), &EACH);
    let (mut times, tried) = (0, times(3, 8) as u64);
    for call in [Call::Rename, Call::Write] {
        for at in 1..=tried {
            copy_folder(&half, &run);
            let args = resume(&run, &["--set", "train.steps=4"]);
            times += u64::from(killed(&args, call, &run.join("*"), at));
            finished(&args);
            assert_same_end(&run, &straight);
            fs::remove_dir_all(&run).unwrap();
        }
    }
    assert!(4 * times >= 6 * tried, "killed {times} times");
    tell(
        "kill -9 before one of the first writes and renames of a session with other settings",
        times as usize,
        "the same command goes on",
        "nothing; the end is bit-equal",
    );
}

#[test]
fn commands_that_read_a_run_say_what_a_hand_wrote_into_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    let run = undisturbed(folder.path(), data(), &["train.steps=1", EACH[1]]);
    let sound = text_of(&run);
    let commands = [vec!["inspect"], vec!["export", "--out", "x", "--device", "cpu"]];
    let said = |args: &Vec<&str>| {
        let mut command = Command::new(program("trainer"));
        command.args(args).args(["--run", &text(&run)]).current_dir(folder.path());
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for command in &commands {
        fs::write(run.join("config.toml"), &sound).unwrap();
        let (code, words) = said(command);
        assert!(code == 0 && !words.contains("config.toml"), "{words}");
        fs::write(run.join("config.toml"), sound.replace("mode = \"full\"", "mode = \"eval\""))
            .unwrap();
        let (code, words) = said(command);
        assert!(code == 0 && words.contains("eval.mode"), "{words}");
        fs::write(run.join("config.toml"), sound.split("[images]").next().unwrap()).unwrap();
        let (code, words) = said(command);
        assert!(
            code == 2 && words.contains("was cut") && words.contains("manifest.json"),
            "{words}"
        );
    }
    let what = "config.toml cut, then its checkpoints evaluated or exported";
    tell(what, commands.len(), "refused, exit code 2, naming where the whole of it is", "nothing");
}

#[test]
fn a_run_of_before_sessions_were_written_down_goes_on_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = repository().join("tests/fixtures/9d001b8");
    let [run, data] = ["run", "data"].map(|name| folder.path().join(name));
    copy_folder(&fixture.join("run"), &run);
    copy_folder(&fixture.join("data"), &data);
    let many = ["--data", &text(&data), "--set", "train.steps=500"];
    let many = [&many[..], &["--set", "checkpoint.every=100000"]].concat();
    assert!(killed(&resume(&run, &many), Call::Write, &run.join("stats.jsonl"), 1));
    let text = fs::read_to_string(run.join("config.toml")).unwrap();
    fs::write(run.join("config.toml"), format!("{text}# a word\n")).unwrap();
    let said = finished(&resume(&run, &["--set", "train.steps=6"]));
    assert!(!said.err.contains("another run") && !said.err.contains("other settings"), "{said:?}");
    assert_eq!(saved(&run), Some(6));
}

#[test]
fn a_sound_checkpoint_of_other_networks_or_data_is_named_and_stays_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let [half, wide, fed, run, data2] =
        ["half", "wide", "fed", "run", "data2"].map(|name| folder.path().join(name));
    let synth = ["synth", "--output", &text(&data2), "--images", "40", "--size", "32"];
    assert_eq!(shard_imagenet(&synth).code, 0);
    two_steps(&half);
    finished(&unattended(data(), &wide, &["train.steps=3", EACH[1], "g.shared_dim=8"]));
    finished(&unattended(&data2, &fed, &["train.steps=3", EACH[1]]));
    for (other, words) in [(&wide, "g.shared_dim"), (&fed, "data folder")] {
        copy_folder(&half, &run);
        copy_folder(&checkpoint_of(other, 3), &checkpoint_of(&run, 3));
        let before = contents(&run);
        let said = trainer(&borrowed(&unattended(data(), &run, &EACH)));
        assert!(said.code == 2 && said.err.contains(words), "{said:?}");
        assert!(said.err.contains("step-00000003"), "{}", said.err);
        assert_unchanged(&run, &before, words);
        fs::remove_dir_all(&run).unwrap();
    }
    // What was set aside before is nobody's to remove.
    copy_folder(&half, &run);
    let aside = run.join("checkpoints/step-00000002.damaged");
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("precious"), "1").unwrap();
    fs::write(checkpoint_of(&run, 2).join("manifest.json"), "{").unwrap();
    finished(&unattended(data(), &run, &EACH));
    assert_eq!(fs::read_to_string(aside.join("precious")).unwrap(), "1");
    assert!(run.join("checkpoints/step-00000002.damaged-2/manifest.json").exists());
    let what = "a checkpoint of other networks or other data among its own";
    tell(what, 2, "refused, exit code 2, naming it", "nothing");
}

#[test]
fn a_run_that_has_saved_is_not_begun_anew_and_what_is_in_the_way_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let keys = ["train.steps=40", "checkpoint.every=2", "log.every=1000"];
    let args = unattended(data(), &run, &keys);
    // Killed as it writes its third checkpoint: no statistics tell of those before.
    let third = run.join("checkpoints/.step-00000006*");
    assert!(killed(&args, Call::Write, &third, 1));
    fs::rename(run.join("checkpoints"), folder.path().join("away")).unwrap();
    let before = contents(&run);
    for args in [&args, &tiny_run(data(), &run, &keys), &resume(&run, &[])] {
        let said = trainer(&borrowed(args));
        assert!(said.code == 2 && said.err.contains("missing"), "{said:?}");
        assert_unchanged(&run, &before, "checkpoints are missing");
    }
    // Of one that saved nothing the logs are kept, however often, and so are settings that a hand wrote.
    let run = folder.path().join("laid");
    fs::create_dir(&run).unwrap();
    let laid = text_of(&folder.path().join("run")).replace("lr_g = 0.0002", "lr_g = 0.001");
    fs::write(run.join("config.toml"), &laid).unwrap();
    fs::write(run.join("stats.jsonl"), "first\n").unwrap();
    fs::write(run.join("stats.jsonl.before"), "before\n").unwrap();
    let args = unattended(data(), &run, &["train.steps=1"]);
    assert!(killed(&args, Call::Rename, &run.join("*"), 1));
    finished(&args);
    let kept = |name: &str| fs::read_to_string(run.join(name)).unwrap();
    assert_eq!(kept("config.toml.before"), laid);
    assert_eq!(kept("stats.jsonl.before"), "before\n");
    assert_eq!(kept("stats.jsonl.before-2"), "first\n");
    let what = "all checkpoints gone, of a run that had saved some";
    tell(what, 3, "refused, exit code 2", "nothing");
}

#[test]
fn a_divergence_that_was_passed_is_none_to_stop_for() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    two_steps(&run);
    let sessions = run.join("sessions.jsonl");
    let text = fs::read_to_string(&sessions).unwrap();
    // As a fault of a device would leave it.
    fs::write(&sessions, text.replace("\"ended\":\"steps\"", "\"ended\":\"diverged\"")).unwrap();
    let args = unattended(data(), &run, &["train.steps=4", EACH[1], EACH[2]]);
    assert_eq!(trainer(&borrowed(&args)).code, 3);
    // By hand it goes on, and is killed further on.
    let by_hand = resume(&run, &["--set", "train.steps=4"]);
    assert!(killed(&by_hand, Call::Write, &run.join("checkpoints/.step-00000004*"), 1));
    assert_eq!(saved(&run), Some(3));
    finished(&args);
    assert_eq!(saved(&run), Some(4));
}

#[test]
fn nothing_is_renamed_in_a_folder_that_cannot_be_locked() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    two_steps(&run);
    fs::write(checkpoint_of(&run, 2).join("manifest.json"), "{").unwrap();
    fs::remove_file(run.join("lock")).unwrap();
    fs::create_dir(run.join("lock")).unwrap();
    let before = contents(&run);
    let said = trainer(&borrowed(&unattended(data(), &run, &EACH)));
    assert!(said.code == 2 && said.err.contains("remove it"), "{said:?}");
    assert_unchanged(&run, &before, "a lock that is a folder");
    fs::remove_dir(run.join("lock")).unwrap();
    finished(&unattended(data(), &run, &EACH));
    assert_eq!(saved(&run), Some(4));
}

#[test]
fn a_killed_export_is_made_by_the_same_command_and_nothing_else_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let run = undisturbed(folder.path(), data(), &["train.steps=1", EACH[1]]);
    let out = folder.path().join("out");
    let args = ["export", "--run", &text(&run), "--out", &text(&out), "--device", "cpu"];
    let args = args.map(str::to_owned).to_vec();
    for at in [2, 4] {
        assert!(killed(&args, Call::Rename, &out.join("*"), at));
        assert!(!out.join("export.json").exists());
    }
    let said = trainer(&borrowed(&args));
    assert_eq!(said.code, 0, "{said:?}");
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("generator.pt"), "precious").unwrap();
    let said = trainer(&["export", "--run", &text(&run), "--out", &text(&other)]);
    assert!(said.code == 2 && said.err.contains("generator.pt"), "{said:?}");
    assert_eq!(fs::read_to_string(other.join("generator.pt")).unwrap(), "precious");
    fs::rename(other.join("generator.pt"), other.join("export.json")).unwrap();
    let said = trainer(&["export", "--run", &text(&run), "--out", &text(&other)]);
    assert!(said.code == 2 && said.err.contains("export.json"), "{said:?}");
    // An export may be made anew.
    assert_eq!(trainer(&borrowed(&args)).code, 0);
}

#[test]
fn settings_stay_where_nothing_can_be_written_of_the_session_that_changes_them() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    two_steps(&run);
    let before = text_of(&run);
    let args = resume(&run, &["--set", "train.steps=4"]);
    let mut command = Command::new(program("trainer"));
    command.args(&args).envs(ONE_THREAD);
    let path = text(&run.join("sessions.jsonl"));
    let failing =
        Failing { call: Call::Write, path: &path, at: 1, onwards: true, fault: Fault::Enospc };
    faults::hurt(&mut command, &failing);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("config.toml stays"), "{said}");
    assert_eq!(text_of(&run), before);
    finished(&args);
    assert_eq!(saved(&run), Some(4));
}

#[test]
fn a_checkpoint_older_than_the_log_of_sessions_is_gone_back_to() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    two_steps(&run);
    let change = ["--allow-change", "--set", "opt.lr_g=0.001", "--set", "train.steps=3"];
    finished(&resume(&run, &change));
    // A log that was removed and begun again.
    fs::remove_file(run.join("sessions.jsonl")).unwrap();
    finished(&resume(&run, &["--set", "train.steps=4"]));
    for step in [3, 4] {
        fs::write(checkpoint_of(&run, step).join("generator.safetensors"), "x").unwrap();
    }
    let said = finished(&resume(&run, &[]));
    assert!(said.err.contains("says whose it is"), "{}", said.err);
    assert_eq!(saved(&run), Some(4));
}

//! Whose a mirror is.

use super::*;

#[test]
fn a_mirror_of_another_run_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (mirror, url) = beside(folder.path());
    let [one, other, elsewhere] =
        ["one", "other", "elsewhere"].map(|name| folder.path().join(name));
    let short = mirrored(&one, &url, &["train.steps=2"]);
    done(&short, &vec![]);
    let before = files(&mirror);
    // Begun on purpose in a folder that is empty: it is not asked to go on.
    let mut args = mirrored(&other, &url, &[]);
    args.pop();
    let refused = said(&args, &vec![]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("it holds another run"), "{}", refused.err);
    assert!(!other.join("config.toml").exists());
    // The run goes on elsewhere, and then where it was.
    let kept = folder.path().join("kept");
    copy_folder(&one, &kept);
    done(&mirrored(&elsewhere, &url, &["train.steps=4"]), &vec![]);
    let now = files(&mirror);
    assert_ne!(now, before);
    let late = said(&mirrored(&kept, &url, &["train.steps=6"]), &vec![]);
    assert_eq!(late.code, 2, "{}", late.err);
    assert!(late.err.contains("went on elsewhere"), "{}", late.err);
    assert_eq!(files(&mirror), now);
    // What somebody else laid there stays.
    fs::write(mirror.join("thesis.tex"), "mine").unwrap();
    fs::create_dir(mirror.join("checkpoints/old")).unwrap();
    fs::write(mirror.join("checkpoints/old/manifest.json"), "mine").unwrap();
    done(&mirrored(&elsewhere, &url, &["train.steps=8"]), &vec![]);
    for name in ["thesis.tex", "checkpoints/old/manifest.json"] {
        assert_eq!(fs::read(mirror.join(name)).unwrap(), b"mine");
    }
}

#[test]
fn what_is_no_mirror_of_the_run_is_refused_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (mirror, url) = beside(folder.path());
    let run = folder.path().join("run");
    // Somebody's own files, of names that a run has, and a way out of there.
    let precious = folder.path().join("precious");
    for path in [mirror.join("images"), precious.clone()] {
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("a.jpg"), "mine").unwrap();
    }
    fs::write(mirror.join("config.toml"), "mine").unwrap();
    std::os::unix::fs::symlink(&precious, mirror.join("images/link")).unwrap();
    let before = (files(&mirror), files(&precious));
    let refused = |args: &[String], why: &str| {
        let said = said(args, &vec![]);
        assert!(said.code == 2 && said.err.contains(why), "{}: {}", said.code, said.err);
    };
    refused(&mirrored(&run, &url, &[]), "no mirror of a run, and not empty");
    assert_eq!((files(&mirror), files(&precious)), before);
    assert!(!run.exists());
    fs::remove_dir_all(&mirror).unwrap();
    // Another run's, on an empty machine: found out before anything is brought.
    let short = mirrored(&run, &url, &["train.steps=2"]);
    done(&short, &vec![]);
    let before = files(&mirror);
    let other = folder.path().join("other");
    refused(&mirrored(&other, &url, &["train.seed=9"]), "train.seed from 0 to 9");
    assert!(!other.exists());
    // Without what says whose it is.
    fs::rename(mirror.join("sessions.jsonl"), folder.path().join("sessions.jsonl")).unwrap();
    refused(&mirrored(&run, &url, &["train.steps=4"]), "it holds another run");
    fs::rename(folder.path().join("sessions.jsonl"), mirror.join("sessions.jsonl")).unwrap();
    assert_eq!(files(&mirror), before);
}

#[test]
fn a_trainer_whose_run_went_on_elsewhere_leaves_the_mirror_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (mirror, url) = beside(folder.path());
    let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
    let long = ["train.steps=100000", "checkpoint.every=5", "eval.probe_images=0"];
    let mut lives = Background::of(command(&mirrored(&old, &url, &long), &vec![]));
    lives.until(|_| newest_sound(&mirror).is_some_and(|step| step > 0));
    // Its machine was thought to be gone.
    let said = done(&mirrored(&new, &url, &["train.steps=1", "checkpoint.every=5"]), &vec![]);
    assert!(said.err.contains("brought back"), "{}", said.err);
    let now = files(&mirror);
    assert_eq!(now["sessions.jsonl"], files(&new)["sessions.jsonl"]);
    lives.until(|err| err.contains("another trainer writes to it"));
    lives.signal("TERM");
    let ended = lives.wait().0;
    assert!(ended.err.contains("WARNING: checkpoint.mirror not written"), "{}", ended.err);
    assert_eq!(files(&mirror), now);
}

#[test]
fn whoever_brought_a_run_back_has_the_mirror_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let (mirror, url) = beside(folder.path());
    let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
    done(&mirrored(&old, &url, &["train.steps=2"]), &vec![]);
    let before = files(&mirror);
    // What cannot start takes it from nobody.
    let mut args = mirrored(&new, &url, &[]);
    let data = args.iter().position(|arg| arg == "--data").unwrap() + 1;
    args[data] = text(&folder.path().join("nowhere"));
    assert_eq!(said(&args, &vec![]).code, 2);
    let mark = fs::read(mirror.join("mirror.json")).unwrap();
    assert!(!new.join("config.toml").exists());
    // Killed before it saved anything of its own.
    let rare = ["train.steps=100000", "checkpoint.every=100000", "eval.probe_images=0"];
    let mut child = Background::of(command(&mirrored(&new, &url, &rare), &vec![]));
    child.until(|_| crate::steps(&new) > 4);
    child.kill();
    assert_ne!(fs::read(mirror.join("mirror.json")).unwrap(), mark);
    let late = said(&mirrored(&old, &url, &["train.steps=4"]), &vec![]);
    assert_eq!(late.code, 2, "{}", late.err);
    assert!(late.err.contains("went on elsewhere"), "{}", late.err);
    done(&mirrored(&new, &url, &["train.steps=4"]), &vec![]);
    assert_eq!(saved(&mirror), Some(4));
    assert_ne!(files(&mirror), before);
    // A folder in which nothing was saved yet is as good as an empty one.
    let unsaved = folder.path().join("unsaved");
    fs::create_dir(&unsaved).unwrap();
    fs::copy(new.join("config.toml"), unsaved.join("config.toml")).unwrap();
    let said = done(&mirrored(&unsaved, &url, &["train.steps=4"]), &vec![]);
    assert!(said.err.contains("brought back") && said.out.contains("4 steps"), "{}", said.err);
}

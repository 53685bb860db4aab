use super::*;
use crate::config::Origin;

fn open(out: &Path, begin: Begin) -> Result<Session> {
    Session::open(out, begin, &Place::alone())
}

fn touch(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "").unwrap();
}

#[test]
fn a_folder_is_begun_in_or_gone_on_with_by_what_it_holds() {
    let config = Config::resolve(&Origin::Preset("demo"), &[]).unwrap();
    let make = |names: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            touch(&folder.path().join(name));
        }
        if names.contains(&"config.toml") {
            fs::write(folder.path().join("config.toml"), config.to_toml()).unwrap();
        }
        folder
    };
    let nothing: [&[&str]; 3] = [&[], &["lock"], &["lost+found/a", "lock"]];
    let unsaved: [&[&str]; 3] = [
        &["config.toml"],
        &["config.toml", "lock", "stats.jsonl", "images/reals.png"],
        &["config.toml", "checkpoints/.step-00000000.partial/a", ".config.toml.1-0.tmp"],
    ];
    let runs: [&[&str]; 2] = [
        &["config.toml", "checkpoints/step-00000000/manifest.json"],
        &["config.toml", "checkpoints/step-00000007.damaged/manifest.json"],
    ];
    let others: [&[&str]; 5] = [
        &["thesis.tex"],
        &["config.toml", "thesis.tex"],
        &["images/samples.png", "report.html"],
        &["metrics.jsonl"],
        &["checkpoints/step-00000001/manifest.json"],
    ];
    for names in nothing.iter().chain(&unsaved) {
        let folder = make(names);
        for begin in [Begin::New, Begin::Auto] {
            assert!(open(folder.path(), begin).unwrap().before().is_none(), "{names:?}");
        }
        assert!(open(folder.path(), Begin::Continue).is_err(), "{names:?}");
    }
    for names in runs {
        let folder = make(names);
        for begin in [Begin::Continue, Begin::Auto] {
            assert!(open(folder.path(), begin).unwrap().before().is_some(), "{names:?}");
        }
        assert!(open(folder.path(), Begin::New).is_err(), "{names:?}");
    }
    for names in others {
        let folder = make(names);
        for begin in [Begin::New, Begin::Continue, Begin::Auto] {
            assert!(open(folder.path(), begin).is_err(), "{names:?}");
        }
    }
}

#[test]
fn a_run_whose_checkpoints_are_missing_is_not_begun_anew_unless_it_never_saved_any() {
    let config = Config::resolve(&Origin::Preset("demo"), &[]).unwrap();
    for (line, begins) in [
        (r#"{"event":"begin","step":0}"#, true),
        (r#"{"event":"begin","step":7}"#, false),
        (r#"{"event":"end","step":7,"ended":"signal"}"#, false),
        (r#"{"event":"end","step":7,"ended":"failed"}"#, true),
        ("no line", true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("checkpoints")).unwrap();
        fs::write(folder.path().join("config.toml"), config.to_toml()).unwrap();
        fs::write(folder.path().join(SESSIONS), line).unwrap();
        for begin in [Begin::New, Begin::Auto] {
            assert_eq!(open(folder.path(), begin).is_ok(), begins, "{line}");
        }
    }
}

#[test]
fn who_comes_second_is_told_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let first = Lock::take(folder.path()).unwrap();
    let refused = Lock::take(folder.path()).unwrap_err().to_string();
    let words = format!("process {} on {}, since 20", std::process::id(), common::host());
    assert!(refused.contains(&words), "{refused}");
    drop(first);
    Lock::take(folder.path()).unwrap();
}

//! Where results are kept, and what hinders that.

use super::*;

#[test]
fn what_was_found_of_a_run_stays_when_the_run_goes_back_and_is_in_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let keys = ["checkpoint.every=2", "eval.every=2"];
    let said = trainer(&borrowed(&tiny_run(data(), &run, &keys)));
    assert_eq!(said.code, 0, "{}", said.err);
    let knn = ["eval", "knn", "--run", &text(&run), "--device", "cpu"];
    assert_eq!(trainer(&knn).code, 0);
    let (found, own) = (kept(&run), metrics(&run));
    assert_eq!((found.len(), found[0]["step"].as_u64()), (3, Some(4)));
    let written = fs::read(run.join(FILE)).unwrap();
    // Back to step 2: the run's own lines of step 4 are made again, the command's stay as they are.
    fs::remove_dir_all(run.join("checkpoints/step-00000004")).unwrap();
    let said = trainer(&["run", "--resume", "--out", &text(&run)]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(fs::read(run.join(FILE)).unwrap(), written);
    assert_eq!(metrics(&run).lines().count(), own.lines().count());
    assert_eq!(trainer(&["report", "--run", &text(&run)]).code, 0);
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("knn_cosine_avepool") && page.contains("linear_probe_bn_crelu"));
}

#[test]
fn a_cache_that_fails_changes_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let args = |cache: &Path| [small_fid(cache), vec!["--trust-extractor".to_owned()]].concat();
    let fid = |cache: &Path| evaluate(&["eval", "fid"], &borrowed(&args(cache)));
    let (said, lines) = fid(&cache);
    assert_eq!((said.code, said.err.contains("WARN")), (0, false), "{said:?}");
    let statistics = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
    let [statistics] =
        &statistics.filter(|p| p.extension().unwrap() != "json").collect::<Vec<_>>()[..]
    else {
        panic!("one file of statistics")
    };
    let sound = fs::read(statistics).unwrap();
    // A flipped bit in the last number, which is of the right type and shape; and half a file.
    let mut flipped = sound.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [&flipped, &sound[..sound.len() / 2].to_vec()] {
        fs::write(statistics, damaged).unwrap();
        let (said, found) = fid(&cache);
        assert_eq!((said.code, &found), (0, &lines), "{said:?}");
        assert!(said.err.contains("are made anew"), "{}", said.err);
        assert!(fs::read(statistics).unwrap() == sound, "they are not mended");
    }
    // A file where the folder is to be.
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let (said, found) = fid(&file.join("cache"));
    assert_eq!((said.code, &found), (0, &lines), "{said:?}");
    assert!(said.err.contains("cannot be kept"), "{}", said.err);
}

#[test]
fn a_place_where_nothing_can_be_written_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let out = text(&folder.path().join("missing/out.png"));
    for command in [
        &["sample", "--count", "2"][..],
        &["reconstruct"],
        &["filters"],
        &["embed", "--split", "val"],
        &["traverse", "--steps", "2"],
    ] {
        let (said, _) = evaluate(command, &["--out", &out]);
        assert_eq!(said.code, 2, "{command:?}: {said:?}");
        assert!(said.err.contains("missing: No such file"), "{}", said.err);
    }
    // A folder whose place is a file's.
    let file = text(&folder.path().join("file"));
    fs::write(&file, "").unwrap();
    for (command, option) in [("sample", "--each"), ("export", "--out")] {
        let (said, _) = evaluate(&[command], &[option, &file]);
        assert_eq!(said.code, 2, "{command}: {said:?}");
        assert!(said.err.contains("cannot use the output folder"), "{}", said.err);
    }
}

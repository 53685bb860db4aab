//! Checkpoints that are damaged or forged.

use super::*;

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

//! Data that go away or change under a run.

use std::fs::{self, File};

use integration::{Background, borrowed, copy_folder, data, trainer};

use super::{assert_same_end, finished, lines, saved, steps, tell, times, unattended, undisturbed};

#[test]
fn a_shard_that_goes_away_ends_the_run_saved_and_the_same_command_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("data");
    copy_folder(data(), &copy);
    let shard = copy.join("train-000000.tar");
    let whole = fs::read(&shard).unwrap();
    let rounds = times(2, 20);
    let keys = ["train.steps=40", "checkpoint.every=1000"];
    let straight = undisturbed(folder.path(), &copy, &keys);
    for round in 0..rounds {
        let run = folder.path().join(format!("run-{round}"));
        let args = unattended(&copy, &run, &keys);
        let mut child = Background::start(&args);
        child.until(|_| steps(&run) > round as u64 % 8);
        File::options().write(true).open(&shard).unwrap().set_len(100).unwrap();
        let (said, _) = child.wait();
        assert!(said.code == 1 || said.code == 2, "{said:?}");
        assert!(said.err.contains("train-000000.tar"), "{}", said.err);
        // Everything up to there is saved, though no checkpoint was due.
        let step = saved(&run).unwrap();
        assert!(step >= steps(&run) && step > 0, "{step} of {}", steps(&run));
        let last = lines(&run.join("sessions.jsonl")).pop().unwrap();
        assert!(last["ended"] == "failed" && last["error"].is_string(), "{last}");
        // As long as it is away, nothing changes.
        let said = trainer(&borrowed(&args));
        assert!(said.code != 0 && saved(&run) == Some(step), "{said:?}");
        fs::write(&shard, &whole).unwrap();
        finished(&args);
        assert_same_end(&run, &straight);
    }
    let what = "a shard cut off under a run";
    tell(what, rounds, "saved, then ends naming the shard", "nothing; the end is bit-equal");
}

//! A run that goes on and on takes no more than it did.

use std::fs;
use std::time::{Duration, Instant};

use integration::{Background, data, tiny_run};

use super::{saved, tell, times};

/// Resident kilobytes, threads and open descriptors of a process; none where it has ended.
fn taken(pid: u32) -> Option<[f64; 3]> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some([field("VmRSS:")?, field("Threads:")?, descriptors as f64])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn memory_threads_and_descriptors_of_a_long_run_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let keys = [
        "train.steps=100000000",
        "checkpoint.every=5",
        "checkpoint.keep=2",
        "images.every=10",
        "eval.every=50",
        "train.max_minutes=0", // demo ends after eight
        // It is about what is held, not learnt: so small a network might diverge within the hour.
        "opt.lr_d=1e-7",
        "opt.lr_g=1e-7",
    ];
    let mut child = Background::start(&tiny_run(data(), &run, &keys));
    // Everything that a run does was done once.
    child.until(|_| saved_step(&run) >= 60);
    let (third, begun) = (Duration::from_secs(times(10, 1200) as u64), Instant::now());
    let mut seen = [vec![], vec![], vec![]];
    while begun.elapsed() < 3 * third {
        let part = (begun.elapsed().as_secs_f64() / third.as_secs_f64()) as usize;
        match taken(child.id()) {
            Some(now) => seen[part.min(2)].push(now),
            None => child.until(|_| true), // which says how it ended
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let (said, _) = child.terminate();
    assert_eq!(said.code, 75, "{}", said.err);
    assert!(saved(&run).is_some());
    // An hour shows what seconds cannot tell from the allocator's moods.
    let most = if times(0, 1) == 1 { 1.01 } else { 1.05 };
    for (what, n) in [("memory", 0), ("threads", 1), ("descriptors", 2)] {
        let of = |part: &Vec<[f64; 3]>| median(part.iter().map(|all| all[n]).collect());
        let (first, last) = (of(&seen[0]), of(&seen[2]));
        assert!(last <= most * first, "{what}: {first} at first, {last} at last");
    }
    let long = "an hour of training, saving, drawing and probing";
    let what = if times(0, 1) == 1 { long } else { "half a minute of all that a run does" };
    tell(what, 1, "memory, threads and descriptors stay as they are", "nothing");
}

fn saved_step(run: &std::path::Path) -> u64 {
    let all = trainer::checkpoint::list(&run.join("checkpoints")).unwrap_or_default();
    all.last().map_or(0, |(step, _)| *step)
}

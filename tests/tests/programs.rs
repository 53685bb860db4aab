//! The programs as such: what they say they are, and how they start.

use std::process::Command;

use integration::{program, repository, shard_imagenet, trainer};

#[test]
fn a_program_says_its_version_its_commit_and_its_libtorch() {
    let git = ["rev-parse", "HEAD"];
    let commit = Command::new("git").arg("-C").arg(repository()).args(git).output();
    let commit = match commit {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        _ => "unknown".to_owned(),
    };
    let version = env!("CARGO_PKG_VERSION");
    let [trainer, tools] =
        [trainer(&["--version"]), shard_imagenet(&["--version"])].map(|said| said.out);
    let both = format!("{version} (commit {}", commit.trim());
    assert!(trainer.starts_with(&format!("trainer {both}, libtorch 2.")), "{trainer}");
    assert_eq!(tools, format!("shard-imagenet {both})\n"));
}

/// What libgomp says that it goes by.
fn settings(set: &[(&str, &str)]) -> String {
    let mut command = Command::new(program("trainer"));
    for name in ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"] {
        command.env_remove(name);
    }
    command.env("OMP_DISPLAY_ENV", "verbose").envs(set.iter().copied());
    let output = command.arg("--version").output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn threads_that_wait_for_each_other_soon_sleep_unless_the_user_says_otherwise() {
    let spins = |set: &[(&str, &str)]| {
        let said = settings(set);
        let line = said.lines().find(|line| line.contains("GOMP_SPINCOUNT")).map(str::to_owned);
        let line = line.unwrap_or_else(|| panic!("libgomp says nothing of it: {said}"));
        line.split('\'').nth(1).unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(spins(&[]), 1_000);
    assert_eq!(spins(&[("GOMP_SPINCOUNT", "77")]), 77);
    assert!(spins(&[("OMP_WAIT_POLICY", "active")]) > 1_000_000);
    assert_eq!(spins(&[("OMP_WAIT_POLICY", "passive")]), 0);
}

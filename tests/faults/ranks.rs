//! Several ranks: what one of them meets, all of them survive.

use std::fs::{self, File};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use integration::{Background, ONE_THREAD, copy_folder, data, program, trainer};

use super::{assert_same_end, saved, steps, tell, times, unattended};

fn launched(args: &[String]) -> Vec<String> {
    let launch = ["launch", "-n", "2", "--"].map(str::to_owned);
    launch.into_iter().chain(args.iter().cloned()).collect()
}

#[test]
fn two_ranks_killed_and_stopped_go_on_by_the_command_that_began_them() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["train.steps=40", "checkpoint.every=2", "dist.silence=3"];
    let straight = folder.path().join("straight");
    let said = run(&launched(&unattended(data(), &straight, &keys)));
    assert_eq!(said.code, 0, "{}", said.err);
    let out = folder.path().join("run");
    let args = launched(&unattended(data(), &out, &keys));
    let rounds = times(3, 20);
    for round in 0..rounds {
        let before = steps(&out);
        let mut child = Background::start(&args);
        child.until(|_| steps(&out) > before);
        if round % 2 == 0 {
            child.kill(); // its ranks lose the store, and leave
            let begun = Instant::now();
            while fs::File::open(out.join("lock")).unwrap().try_lock().is_err() {
                assert!(begun.elapsed() < Duration::from_secs(60), "the ranks stay");
                std::thread::sleep(Duration::from_millis(50));
            }
        } else {
            let (said, _) = child.terminate();
            assert_eq!(said.code, 75, "{}", said.err);
        }
    }
    let said = run(&args);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_same_end(&out, &straight);
    let what = "two ranks whose launcher is killed or stopped";
    tell(what, rounds, "the same command goes on", "the steps since the last checkpoint");
}

fn run(args: &[String]) -> integration::Said {
    trainer(&integration::borrowed(args))
}

/// Rank `rank` of two, of which each has a data folder of its own.
fn rank(rank: usize, port: u16, args: &[String]) -> Child {
    let place = [
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", "2".to_owned()),
        ("MASTER_ADDR", "127.0.0.1".to_owned()),
        ("MASTER_PORT", port.to_string()),
    ];
    let mut command = Command::new(program("trainer"));
    let command = command.args(args).envs(ONE_THREAD).envs(place);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_rank_that_reads_no_more_images_ends_all_with_the_state_saved() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ranks: Vec<_> = (0..2)
        .map(|number| {
            let copy = folder.path().join(format!("data-{number}"));
            copy_folder(data(), &copy);
            rank(number, port, &unattended(&copy, &out, &["train.steps=100000"]))
        })
        .collect();
    let begun = Instant::now();
    while steps(&out) < 3 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no three steps in a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
    let shard = folder.path().join("data-1/train-000000.tar");
    File::options().write(true).open(shard).unwrap().set_len(100).unwrap();
    let said: Vec<_> = ranks
        .into_iter()
        .map(|rank| {
            let output = rank.wait_with_output().unwrap();
            assert!(!output.status.success());
            String::from_utf8_lossy(&output.stderr).into_owned()
        })
        .collect();
    assert!(said[1].contains("train-000000.tar"), "{said:?}");
    let step = saved(&out).unwrap();
    assert!(step >= steps(&out) && step >= 3, "{step} of {}: {said:?}", steps(&out));
    tell("one of two ranks loses its data", 1, "all save and end, naming the shard", "nothing");
}

//! Data behind a URL whose server is slow, lies, or goes away.

use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::{Background, data, shard_imagenet, text};

use super::server::{Faults, Origin, Server};
use super::{assert_same_end, finished, saved, steps, tell, times, unattended, undisturbed};

const KEYS: [&str; 4] =
    ["train.steps=12", "checkpoint.every=1000", "eval.probe_images=0", "data.shuffle=shards"];

/// More than is read ahead.
const LONG: [&str; 4] =
    ["train.steps=100", "checkpoint.every=1000", "eval.probe_images=0", "data.read_ahead_mb=16"];

/// Images so large that what is read ahead of their decoding (16 MiB) lasts for some steps only.
fn large(folder: &Path) -> PathBuf {
    let path = folder.join("large");
    let options = "synth --images 40 --classes 4 --size 256 --png --output";
    let path_text = text(&path);
    let args: Vec<_> = options.split(' ').chain([path_text.as_str()]).collect();
    assert_eq!(shard_imagenet(&args).code, 0);
    let bytes = |name: &str| path.join(name).metadata().unwrap().len();
    assert!(bytes("train-000000.tar") > 1 << 20, "{}", bytes("train-000000.tar"));
    path
}

/// A server on the port of an earlier one, once the kernel gives it back.
fn again(url: &str, data: &Path, faults: Faults) -> Server {
    let port = url.rsplit(':').next().unwrap().parse().unwrap();
    let origin = || Origin::Folder(data.to_owned());
    loop {
        match Server::start(origin(), faults, port) {
            Ok(server) => return server,
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[test]
fn a_server_on_a_bad_day_changes_no_number() {
    let folder = tempfile::tempdir().unwrap();
    let straight = undisturbed(folder.path(), data(), &KEYS);
    let sound = Faults { stall: Duration::from_millis(300), ..Faults::default() };
    let late = Duration::from_millis(40);
    let days = [
        Faults { failing: 0.3, ..sound },
        Faults { failing: 0.2, tags: false, latency: late, ..sound },
        Faults { latency: 10 * late, ..sound },
        Faults { failing: 0.5, ..sound },
        Faults { failing: 0.1, latency: late, ..sound },
        Faults { tags: false, ..sound },
    ];
    let mut tried = 0;
    for (day, faults) in days.iter().take(times(2, days.len())).enumerate() {
        let server = Server::folder(data(), *faults);
        let run = folder.path().join(format!("day-{day}"));
        finished(&unattended(Path::new(&server.url), &run, &KEYS));
        assert_same_end(&run, &straight);
        let before = tried;
        tried += if faults.failing > 0.0 { server.served.faults() as usize } else { 1 };
        assert!(tried > before, "no request failed on day {day}");
    }
    let what = "a server that is slow, answers with 500, or with half an answer";
    tell(what, tried, "asked again", "nothing; the end is bit-equal");
}

#[test]
fn a_server_that_goes_away_ends_the_run_saved_and_with_it_the_same_command_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = large(folder.path());
    let straight = undisturbed(folder.path(), &data, &LONG);
    let refusing = |status| Faults { status: Some(status), ..Faults::default() };
    let fates = [
        (None, "goes away"),
        (Some(refusing(403)), "says 403"),
        (Some(refusing(404)), "says 404"),
        (Some(refusing(410)), "says 410"),
        (Some(refusing(503)), "says 503"),
        (Some(Faults { ranges: false, ..Faults::default() }), "gives no ranges"),
        (Some(Faults { held: Some("train-000000"), ..Faults::default() }), "never answers"),
    ];
    let rounds = times(1, fates.len());
    for (fate, how) in fates.into_iter().take(rounds) {
        let server = Server::folder(&data, Faults::default());
        let url = server.url.clone();
        let run = folder.path().join(how.replace(' ', "-"));
        let args = unattended(Path::new(&url), &run, &LONG);
        let mut child = Background::start(&args);
        child.until(|_| steps(&run) > 1);
        drop(server);
        let worse = fate.map(|faults| again(&url, &data, faults));
        let (said, took) = child.wait_for(Duration::from_secs(600));
        assert!(matches!(said.code, 1 | 2), "{how}: {said:?}");
        assert!(said.err.contains(&url), "{how}: {}", said.err);
        let step = saved(&run).unwrap();
        assert!(step >= steps(&run) && step < 100, "{how}: {step} of {}", steps(&run));
        eprintln!("{how}: ended after {took:?} with {}", said.code);
        drop(worse);
        let _sound = again(&url, &data, Faults::default());
        finished(&args);
        assert_same_end(&run, &straight);
    }
    let what = "a server that goes away, refuses, or never answers again under a run";
    tell(what, rounds, "saved, then ends naming the URL", "nothing; the end is bit-equal");
}

#[test]
fn a_server_that_was_away_for_a_while_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let data = large(folder.path());
    let straight = undisturbed(folder.path(), &data, &LONG);
    let rounds = times(1, 5);
    for round in 0..rounds {
        let server = Server::folder(&data, Faults::default());
        let url = server.url.clone();
        let run = folder.path().join(round.to_string());
        let mut child = Background::start(&unattended(Path::new(&url), &run, &LONG));
        child.until(|_| steps(&run) > round as u64);
        drop(server);
        std::thread::sleep(Duration::from_secs(3));
        let _back = again(&url, &data, Faults::default());
        let (said, _) = child.wait();
        assert_eq!(said.code, 0, "{}", said.err);
        assert_same_end(&run, &straight);
    }
    tell("a server that is away for three seconds", rounds, "waited for", "nothing");
}

//! Data behind a URL, with every program that names a data folder.

#[path = "../../pipeline/tests/support/server.rs"]
pub(crate) mod server;

use std::fs;
use std::path::Path;
use std::time::Duration;

use integration::{borrowed, data, shard_imagenet, text, tiny_run, trainer};
use server::{Faults, Server};

/// The data folder, behind a server that fails one request in ten.
fn served() -> Server {
    Server::folder(
        data(),
        Faults { failing: 0.1, stall: Duration::from_millis(200), ..Faults::default() },
    )
}

#[test]
fn shard_imagenet_says_of_a_url_what_it_says_of_the_folder() {
    let server = served();
    let folder = tempfile::tempdir().unwrap();
    let local = text(data());
    for command in ["verify", "inspect"] {
        let [here, there] = [&local, &server.url].map(|place| shard_imagenet(&[command, place]));
        assert_eq!((here.code, there.code), (0, 0), "{command}: {}{}", here.err, there.err);
        let lines = |said: &str, place: &str| said.replace(place, "PLACE");
        assert_eq!(lines(&there.out, &server.url), lines(&here.out, &local), "{command}");
    }
    let key = pipeline::Dataset::open(data(), "train").unwrap().key(3);
    let pictures = [&local, &server.url].map(|place| {
        let png = folder.path().join("picture.png");
        let said = shard_imagenet(&["cat", place, &key, "--png", &text(&png)]);
        assert_eq!(said.code, 0, "{}", said.err);
        fs::read(png).unwrap()
    });
    assert!(pictures[0] == pictures[1], "other pixels of {key}");
    let missing = format!("{}/none", server.url);
    let said = shard_imagenet(&["verify", &missing]);
    assert!(said.code == 2 && said.err.contains(&missing), "{}", said.err);
}

#[test]
fn a_run_on_a_url_ends_in_the_weights_of_a_run_on_the_folder() {
    let server = served();
    let folder = tempfile::tempdir().unwrap();
    let weights = [("here", data()), ("there", Path::new(&server.url))].map(|(name, place)| {
        let run = folder.path().join(name);
        let cache = format!("data.cache={}", folder.path().join("cache").display());
        let keys = ["data.shuffle=shards", &cache];
        let said = trainer(&borrowed(&tiny_run(place, &run, &keys)));
        assert_eq!(said.code, 0, "{}", said.err);
        fs::read(run.join("checkpoints/step-00000004/encoder.safetensors")).unwrap()
    });
    assert!(weights[0] == weights[1], "other weights");
    assert!(server.served.faults() > 0, "no request failed");
    let stats = fs::read_to_string(folder.path().join("there/stats.jsonl")).unwrap();
    assert!(stats.lines().last().unwrap().contains("\"remote\""), "{stats}");
}

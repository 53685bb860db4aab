//! A real S3 server, moto, where the Python named by PYTHON (`python3` if unset) has it. Its answers
//! pass through our own server, which makes some of them fail.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

#[path = "support/server.rs"]
mod server;
mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use pipeline::{Cursor, Dataset, LoaderConfig, Shuffle};
use server::{Faults, Origin, Server};
use support::{batches, config, folder, open};

const MOTO: &str = include_str!("support/moto.py");

/// Credentials come from the environment, so the reading half runs in a process of its own.
const FOLDER: &str = "PIPELINE_TEST_S3_COPY_OF";

#[test]
fn s3_gives_the_same_batches_as_the_local_folder() {
    if let Some(local) = std::env::var_os(FOLDER) {
        return compare(Path::new(&local));
    }
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let look = Command::new(&python).args(["-c", "import boto3, moto.server"]).output();
    if !look.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("BIGBIGAN_JUDGES").is_none(), "{python} has no moto");
        eprintln!("moto is not installed here: not tested");
        return;
    }
    let dir = folder(60);
    let credentials = [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    let mut moto = Command::new(&python)
        .args(["-c", MOTO])
        .arg(dir.path())
        .envs(credentials)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut address = String::new();
    BufReader::new(moto.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let faults = Faults { failing: 0.3, ..Faults::default() };
    let front = Server::start(Origin::Server(address.trim().parse().unwrap()), faults, 0).unwrap();
    let reader = Command::new(std::env::current_exe().unwrap())
        .env(FOLDER, dir.path())
        .env("AWS_ENDPOINT", &front.url)
        .envs(credentials)
        .output()
        .unwrap();
    moto.kill().unwrap();
    moto.wait().unwrap();
    assert!(reader.status.success(), "{}", String::from_utf8_lossy(&reader.stdout));
    assert!(front.served.requests() > 10 && front.served.faults() > 0, "{:?}", front.served);
}

fn compare(local: &Path) {
    let options = pipeline::RemoteOptions { stall_ms: 500, ..Default::default() };
    let remote = Dataset::open_with(Path::new("s3://bucket/some/where"), "train", &options);
    let (remote, local) = (remote.unwrap().into(), open(local));
    for shuffle in [Shuffle::Global, Shuffle::Shards] {
        let config = LoaderConfig { shuffle, epochs: Some(2), ..config() };
        let expected = batches(&local, config.clone(), Cursor::default());
        assert!(batches(&remote, config, Cursor::default()) == expected);
    }
}

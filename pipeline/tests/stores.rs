//! Servers of others: moto for S3, where the Python named by PYTHON (`python3` if unset) has it, and azurite for Azure, from
//! npm. Their answers pass through our own server, which makes some of them fail.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

#[path = "support/server.rs"]
mod server;
mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pipeline::{Cursor, Dataset, LoaderConfig, Shuffle};
use server::{Faults, Origin, Server};
use support::{batches, config, folder, open};

const MOTO: &str = include_str!("support/moto.py");

const AZURITE: &str = include_str!("support/azurite.js");
/// Microsoft's client.
const AZURE: &str = include_str!("support/azure.py");

/// Credentials come from the environment, so the reading half runs in a process of its own.
const FOLDER: &str = "PIPELINE_TEST_COPY_OF";

fn python() -> String {
    std::env::var("PYTHON").unwrap_or_else(|_| "python3".into())
}

/// Whether Python has these modules and npm's judges have the package. Where all judges are to be there, one that is
/// missing is a failure.
fn installed(modules: &str, package: Option<&str>) -> bool {
    let look = Command::new(python()).args(["-c", &format!("import {modules}")]).output();
    let there = look.is_ok_and(|output| output.status.success())
        && package.is_none_or(|name| node_modules().join(name).is_dir());
    assert!(there || std::env::var_os("BIGBIGAN_JUDGES").is_none(), "no {modules} {package:?}");
    if !there {
        eprintln!("{modules} {package:?} is not installed here: not tested");
    }
    there
}

fn node_modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/judges/node/node_modules")
}

/// Reads the folder behind a server that answers for the store, in another process, and compares.
fn read_behind_faults(
    test: &str,
    local: &Path,
    mut store: Command,
    fill: impl FnOnce(&str),
    environment: impl FnOnce(&str) -> Vec<(&'static str, String)>,
) {
    let piped = store.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut store = piped.spawn().unwrap();
    let mut address = String::new();
    BufReader::new(store.stdout.take().unwrap()).read_line(&mut address).unwrap();
    fill(&format!("http://{}", address.trim()));
    let faults = Faults { failing: 0.3, ..Faults::default() };
    let front = Server::start(Origin::Server(address.trim().parse().unwrap()), faults, 0).unwrap();
    let reader = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(FOLDER, local)
        .envs(environment(&front.url))
        .output()
        .unwrap();
    drop(store.stdin.take()); // by which it ends
    store.wait().unwrap();
    assert!(reader.status.success(), "{}", String::from_utf8_lossy(&reader.stdout));
    assert!(front.served.requests() > 10 && front.served.faults() > 0, "{:?}", front.served);
}

#[test]
fn s3_gives_the_same_batches_as_the_local_folder() {
    if let Some(local) = std::env::var_os(FOLDER) {
        return compare("s3://bucket/some/where", Path::new(&local));
    }
    if !installed("boto3, moto.server", None) {
        return;
    }
    let dir = folder(60);
    let credentials = [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    let mut moto = Command::new(python());
    moto.args(["-c", MOTO]).arg(dir.path()).envs(credentials);
    let environment = |url: &str| {
        let keys = credentials.map(|(key, value)| (key, value.to_owned()));
        keys.into_iter().chain([("AWS_ENDPOINT", url.to_owned())]).collect()
    };
    let test = "s3_gives_the_same_batches_as_the_local_folder";
    read_behind_faults(test, dir.path(), moto, |_| {}, environment);
}

#[test]
fn azure_gives_the_same_batches_as_the_local_folder() {
    if let Some(local) = std::env::var_os(FOLDER) {
        return compare("az://bucket/some/where", Path::new(&local));
    }
    if !installed("azure.storage.blob", Some("azurite")) {
        return;
    }
    let dir = folder(60);
    let mut azurite = Command::new("node");
    azurite.args(["-e", AZURITE]).env("NODE_PATH", node_modules());
    let fill = |url: &str| {
        let words = ["-c", AZURE, url, "fill"];
        let filled = Command::new(python()).args(words).arg(dir.path()).output().unwrap();
        assert!(filled.status.success(), "{}", String::from_utf8_lossy(&filled.stderr));
    };
    let environment = |url: &str| {
        let keys = [("AZURE_STORAGE_USE_EMULATOR", "true"), ("AZURITE_BLOB_STORAGE_URL", url)];
        keys.map(|(key, value)| (key, value.to_owned())).to_vec()
    };
    let test = "azure_gives_the_same_batches_as_the_local_folder";
    read_behind_faults(test, dir.path(), azurite, fill, environment);
}

fn compare(url: &str, local: &Path) {
    let options = pipeline::RemoteOptions { stall_ms: 500, ..Default::default() };
    let remote = Dataset::open_with(Path::new(url), "train", &options);
    let (remote, local) = (remote.unwrap().into(), open(local));
    for shuffle in [Shuffle::Global, Shuffle::Shards] {
        let config = LoaderConfig { shuffle, epochs: Some(2), ..config() };
        let expected = batches(&local, config.clone(), Cursor::default());
        assert!(batches(&remote, config, Cursor::default()) == expected);
    }
}

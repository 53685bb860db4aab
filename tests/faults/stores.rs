//! Real stores that others wrote, each with a bucket, behind a server of ours that makes some answers fail: moto (PyPI)
//! and s3rver (npm) for S3, azurite (npm) for Azure.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use integration::{missing, repository};

use super::server::{Faults, Origin, Server};

/// Starts moto, says where, and stays until its input ends.
const MOTO: &str = include_str!("../../pipeline/tests/support/moto.py");

const S3RVER: &str = r#"
const S3rver = require("s3rver");
const directory = require("fs").mkdtempSync(require("path").join(require("os").tmpdir(), "s3rver-"));
process.on("exit", () => require("fs").rmSync(directory, { recursive: true, force: true }));
const server = new S3rver({ address: "127.0.0.1", port: 0, silent: true, directory, configureBuckets: [{ name: "bucket" }] });
server.run().then(({ address, port }) => console.log(`${address}:${port}`));
process.stdin.on("end", () => process.exit()).resume();
"#;

const AZURITE: &str = include_str!("../../pipeline/tests/support/azurite.js");

/// Microsoft's client.
const AZURE: &str = include_str!("../../pipeline/tests/support/azure.py");

/// What is in a bucket by boto3: names, and SHA-256 of those below a prefix.
const LIST: &str = r#"
import hashlib, json, sys
import boto3
s3 = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1")
pages = s3.get_paginator("list_objects_v2").paginate(Bucket="bucket")
names = [item["Key"] for page in pages for item in page.get("Contents", [])]
read = lambda name: s3.get_object(Bucket="bucket", Key=name)["Body"].read()
prefix = sys.argv[2]
print(json.dumps({name: name.startswith(prefix) and hashlib.sha256(read(name)).hexdigest() or "" for name in names}))
"#;

const MARK: &str = r#"
import sys
import boto3
s3 = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1")
s3.put_object(Bucket="bucket", Key=sys.argv[2], Body=b"")
"#;

/// A program that serves objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Moto,
    S3rver,
    Azurite,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Moto, Self::S3rver, Self::Azurite];

    /// A folder of the bucket.
    pub(crate) fn url(self, folder: &str) -> String {
        let scheme = if self == Self::Azurite { "az" } else { "s3" };
        format!("{scheme}://bucket/{folder}")
    }
}

/// A running one, until it is dropped.
pub(crate) struct Store {
    kind: Kind,
    child: Child,
    address: String,
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn python() -> String {
    std::env::var("PYTHON").unwrap_or_else(|_| "python3".into())
}

/// Where npm's judges are.
fn node_modules() -> PathBuf {
    repository().join("target/judges/node/node_modules")
}

const KEYS: [(&str, &str); 4] = [
    ("AWS_ACCESS_KEY_ID", "S3RVER"),
    ("AWS_SECRET_ACCESS_KEY", "S3RVER"),
    ("AWS_REGION", "us-east-1"),
    ("AWS_ALLOW_HTTP", "true"),
];

impl Store {
    /// None where it is not installed here.
    pub(crate) fn start(kind: Kind) -> Option<Self> {
        let imports = |modules: &str| {
            let look = Command::new(python()).args(["-c", &format!("import {modules}")]).output();
            look.is_ok_and(|output| output.status.success())
        };
        let there = match kind {
            Kind::Moto => imports("boto3, moto.server"),
            Kind::S3rver => imports("boto3") && node_modules().join("s3rver").is_dir(),
            Kind::Azurite => {
                imports("azure.storage.blob") && node_modules().join("azurite").is_dir()
            }
        };
        if !there {
            missing(&format!("{kind:?} is not installed; scripts/setup tests does that"));
            return None;
        }
        let mut command = match kind {
            Kind::Moto => Command::new(python()),
            Kind::S3rver | Kind::Azurite => Command::new("node"),
        };
        match kind {
            Kind::Moto => command.args(["-c", MOTO]).envs(KEYS),
            Kind::S3rver => command.args(["-e", S3RVER]).env("NODE_PATH", node_modules()),
            Kind::Azurite => command.args(["-e", AZURITE]).env("NODE_PATH", node_modules()),
        };
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = piped.spawn().unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let store = Self { kind, child, address: address.trim().to_owned() };
        if kind == Kind::Azurite {
            store.asked(&["-c", AZURE, &store.url(), "make", ""]);
        }
        Some(store)
    }

    /// A server in front of it.
    pub(crate) fn behind(&self, faults: Faults) -> Server {
        Server::start(Origin::Server(self.address.parse().unwrap()), faults, 0).unwrap()
    }

    /// Makes what a console makes for an empty folder.
    pub(crate) fn mark_folder(&self, name: &str) {
        match self.kind {
            Kind::Azurite => self.asked(&["-c", AZURE, &self.url(), "put", name]),
            _ => self.asked(&["-c", MARK, &self.url(), name]),
        };
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What a script of Python says.
    fn asked(&self, args: &[&str]) -> Vec<u8> {
        let said = Command::new(python()).args(args).envs(KEYS).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        said.stdout
    }

    /// Names and SHA-256 of all that it holds, by boto3 or Microsoft's client.
    pub(crate) fn holds(&self) -> BTreeMap<String, String> {
        self.listed("")
    }

    /// Names of all that it holds at one moment.
    pub(crate) fn names(&self) -> Vec<String> {
        self.listed("nothing is read").into_keys().collect()
    }

    fn listed(&self, prefix: &str) -> BTreeMap<String, String> {
        let listed = match self.kind {
            Kind::Azurite => self.asked(&["-c", AZURE, &self.url(), "list", prefix]),
            _ => self.asked(&["-c", LIST, &self.url(), prefix]),
        };
        serde_json::from_slice(&listed).unwrap()
    }
}

/// The environment by which a program reaches S3, or azurite, at `url`.
pub(crate) fn environment(url: &str) -> Vec<(&'static str, String)> {
    let keys = KEYS.iter().map(|(key, value)| (*key, (*value).to_owned()));
    let azure = [("AZURE_STORAGE_USE_EMULATOR", "true"), ("AZURITE_BLOB_STORAGE_URL", url)];
    let azure = azure.map(|(key, value)| (key, value.to_owned()));
    keys.chain([("AWS_ENDPOINT", url.to_owned())]).chain(azure).collect()
}

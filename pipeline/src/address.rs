//! What is said of data folders behind URLs: how they are read, what that took, and names without
//! secrets. Nothing here needs a network.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How a data folder behind a URL is read. A folder of this machine needs none of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteOptions {
    /// Most bytes that a loader asks for ahead of its decode threads: on their way, or waiting to
    /// be decoded. The more, the fewer and larger requests `shuffle = "shards"` needs: with twice
    /// the bytes of [`WINDOW`](crate::WINDOW) images nearly all are of 4 MiB. At least 16 MiB.
    pub read_ahead: u64,
    /// A folder that keeps what was read for later epochs and runs, made if it is not there; none
    /// to keep nothing. Several processes may share it.
    pub cache: Option<PathBuf>,
    /// Most bytes in that folder; beyond, what was not used for longest is removed. Processes that
    /// share the folder may each exceed it by a sixteenth for a while.
    pub cache_bytes: u64,
    /// Milliseconds without a byte after which a request is given up and made again, at most: a
    /// request that stalls holds up all later samples, so where answers have never been silent for
    /// that long, patience is shorter, as TCP's is (RFC 6298), but 0.5 s at least. It doubles with
    /// each failure, up to 30 s, so that a server that becomes slow is heard.
    pub stall_ms: u64,
    /// Failures in a row, without a byte between them, after which reading ends with an error. The
    /// waits between them double from 0.1 s to 10 s: 10 are about half a minute where the server
    /// refuses, and some minutes where nothing answers.
    pub retries: u32,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            read_ahead: 1 << 30,
            cache: None,
            cache_bytes: 100 << 30,
            stall_ms: 1000,
            retries: 10,
        }
    }
}

impl RemoteOptions {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Self { read_ahead, stall_ms, .. } = *self;
        if read_ahead < 16 << 20 {
            let problem = format!("read_ahead = {read_ahead} bytes: 16 MiB is the least");
            return Err(Error::Config { problem });
        }
        if stall_ms == 0 {
            let problem = "stall_ms = 0 would give every request up at once".into();
            return Err(Error::Config { problem });
        }
        Ok(())
    }
}

/// What reading a data folder behind a URL took since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Requests made, those for a second try among them.
    pub requests: u64,
    /// Requests that failed or were cut and made again.
    pub retries: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Reads that the cache folder answered.
    pub cache_hits: u64,
    /// Reads that it could not answer.
    pub cache_misses: u64,
}

/// A file in a [`Store`](crate::Store).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name, below the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// Whether a data folder's name is a URL.
pub fn is_url(dir: &Path) -> bool {
    dir.to_str().is_some_and(|dir| dir.contains("://"))
}

/// A data folder's name to be shown: a URL's password and query, which may hold a token, are left
/// out.
pub fn without_secrets(dir: &Path) -> PathBuf {
    match dir.to_str() {
        Some(text) if is_url(dir) => hidden(text.into(), &secrets(text)).into(),
        _ => dir.to_path_buf(),
    }
}

/// The parts of a URL that are not for everybody, with the signs around them; those of what is no
/// good URL as well, for it may be a slip of the pen.
pub(crate) fn secrets(url: &str) -> Vec<(String, &'static str)> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, q)| (rest, Some(q)));
    // A password may hold a slash, against the rules: the last @ counts.
    let user = rest.rsplit_once('@').map(|(user, _)| user);
    let password = user.and_then(|user| user.split_once(':')).map(|(_, password)| password);
    let password = password.map(|password| (format!(":{password}@"), ":***@"));
    password.into_iter().chain(query.map(|query| (format!("?{query}"), "?***"))).collect()
}

/// A text without these.
pub(crate) fn hidden(mut text: String, secrets: &[(String, &'static str)]) -> String {
    for (secret, shown) in secrets {
        text = text.replace(secret, shown);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password_and_query() {
        for (url, shown) in [
            ("https://host/data", "https://host/data"),
            ("https://me@host/data", "https://me@host/data"),
            ("https://me:hunter2@host/data", "https://me:***@host/data"),
            ("s3://key:sec/ret@bucket/data", "s3://key:***@bucket/data"),
            ("https://host/data?sig=hunter2", "https://host/data?***"),
            ("https://me:@host/data", "https://me:***@host/data"),
            ("/data/a:b@c?d", "/data/a:b@c?d"),
        ] {
            assert_eq!(without_secrets(Path::new(url)), Path::new(shown));
        }
    }
}

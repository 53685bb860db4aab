//! Whose copy a mirror is, and which session writes to it.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use common::files::sha256;
use pipeline::Store;
use serde::{Deserialize, Serialize};

use super::MARK;
use crate::error::{Error, Result};
use crate::run::session::has_saved;
use crate::run::sessions::SESSIONS;

/// What `mirror.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    format: u32,
    /// SHA-256 of the first line of the run's `sessions.jsonl`, which no other run has.
    pub(super) run: String,
    /// The session that writes there.
    pub(super) session: String,
    /// For people: where and when it began to.
    pub(super) host: String,
    pub(super) since: String,
}

/// What `mirror.json` in a store says; none where there is none.
pub(super) fn mark(store: &Store) -> Result<Option<Mark>> {
    let Some(text) = store.read(MARK)? else { return Ok(None) };
    serde_json::from_slice(&text).map(Some).map_err(|e| Error::Output {
        path: store.url().join(MARK),
        reason: format!("{e}: it is no mirror of this trainer, or of a newer one"),
    })
}

/// Whether a store holds the mirror of a run: of that whose logs are in `out`, where these tell of a saved one.
pub(in crate::run) fn is_mirror(store: &Store, out: &Path) -> Result<bool> {
    let Some(mark) = mark(store)? else { return Ok(false) };
    let ours = fs::read(out.join(SESSIONS)).ok().and_then(|text| run_of(&text));
    Ok(!has_saved(out) || ours == Some(mark.run))
}

/// Says in a mirror that a new session writes to it, before it is read: one that still lives leaves it alone from then on.
/// Gives the session's name.
pub(in crate::run) fn take_over(store: &Store) -> Result<String> {
    let Some(Mark { run, .. }) = mark(store)? else {
        let reason = "its mirror.json is gone".to_owned();
        return Err(Error::Output { path: store.url().to_owned(), reason });
    };
    let session = session_name();
    write_mark(store, run, &session).map(|()| session)
}

pub(super) fn write_mark(store: &Store, run: String, session: &str) -> Result<()> {
    let (session, host, since) = (session.to_owned(), common::host(), common::now());
    let mark = Mark { format: 1, run, session, host, since };
    let text = serde_json::to_vec_pretty(&mark).expect("plain values");
    Ok(store.put(MARK, &text)?)
}

/// What no other session is called.
pub(super) fn session_name() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let name = format!("{} {} {}", common::host(), std::process::id(), now.as_nanos());
    sha256(name.as_bytes())
}

/// What no other run has.
pub(super) fn run_of(sessions: &[u8]) -> Option<String> {
    let first = sessions.split_inclusive(|byte| *byte == b'\n').next()?;
    first.ends_with(b"\n").then(|| sha256(first))
}

/// Whether one of the lines names a session that writes to the mirror.
pub(super) fn knows(sessions: &[u8], session: &str) -> bool {
    #[derive(Deserialize)]
    struct Line {
        mirror: Option<String>,
    }
    let mut lines = sessions.split(|byte| *byte == b'\n');
    lines.any(|line| {
        serde_json::from_slice::<Line>(line)
            .is_ok_and(|line| line.mirror.as_deref() == Some(session))
    })
}

/// Whether the whole lines of `first`, of which there are some, are the first of `all`. A last line without its end is of
/// a write that was cut.
pub(super) fn begins_with(all: &[u8], first: &[u8]) -> bool {
    let lines = |text| <[u8]>::split_inclusive(text, |byte| *byte == b'\n');
    let mut first = lines(first).filter(|line| line.ends_with(b"\n")).peekable();
    let mut all = lines(all);
    first.peek().is_some() && first.all(|line| all.next() == Some(line))
}

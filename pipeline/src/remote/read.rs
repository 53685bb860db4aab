//! A range of a file, asked for again until it is whole.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange};
use tokio::time::timeout;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::connect::{UNREACHED, refused};
use super::{Failure, Remote, Stop, refusal};
use crate::address::hidden;
use crate::error::report;

const STALLED: &str = "stalled";

impl Remote {
    /// Reads a range to its end (the file's, if none), going on from where an answer was cut.
    pub(super) async fn read_into(
        &self,
        bytes: &mut Vec<u8>,
        name: &str,
        range: (u64, Option<u64>),
        length: Option<u64>,
    ) -> Result<(), Stop> {
        let mut seen = Seen { length, tag: None };
        let (mut failures, mut since) = (0, Instant::now());
        loop {
            let before = bytes.len();
            let most = Duration::from_millis(self.options.stall_ms);
            let patience = self.silence().patience(most) * (1 << failures.min(7));
            let patience = patience.min(most.max(Duration::from_secs(30)));
            let error = match self.request(bytes, name, range, (&mut seen, patience)).await {
                Ok(silence) => {
                    self.silence().heard(silence);
                    return Ok(());
                }
                Err(error) => error,
            };
            if matches!(error, Cut::Short(STALLED)) {
                // It was at least as long, and where many are, the server is slow and not at fault.
                self.silence().heard(patience);
            }
            failures = if bytes.len() > before { 1 } else { failures + 1 };
            if failures == 1 {
                since = Instant::now();
            }
            let pause = backoff(name, range.0, failures);
            self.worth_another(error, name, failures, (since, pause))?;
            self.counters.retries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether to ask again after `failures` in a row, the first at `since`, and a pause: an error where not.
    fn worth_another(
        &self,
        error: Cut,
        name: &str,
        failures: u32,
        (since, pause): (Instant, Duration),
    ) -> Result<(), Stop> {
        let failure = |problem, mend, input| {
            let problem = hidden(problem, &self.secrets);
            Failure { url: self.url.join(name), problem, mend, input }
        };
        let fail = |problem, mend, input| Err(Stop::Failure(failure(problem, mend, input)));
        match error {
            Cut::Store(object_store::Error::NotFound { .. }) => return Err(Stop::Missing),
            Cut::Changed(problem) => {
                return fail(problem, "copy the whole data folder again", true);
            }
            Cut::Store(error) => match refusal(&error) {
                Some(mend) if matches!(error, object_store::Error::PermissionDenied { .. }) => {
                    return Err(Stop::Refused(failure(error.to_string(), mend, true)));
                }
                Some(mend) => return fail(error.to_string(), mend, true),
                None if failures > self.options.retries
                    || !self.is_reached()
                        && refused(&error)
                        && since.elapsed() + pause > UNREACHED =>
                {
                    let problem =
                        format!("{failures} tries in a row failed; the last: {}", report(&error));
                    let mend = "check the network and the server, then start again";
                    return fail(problem, mend, false);
                }
                None if refused(&error) => self.tell(&failure(report(&error), "", false)),
                None => {}
            },
            Cut::Short(how) if failures > self.options.retries => {
                let problem = format!("{failures} answers in a row {how}");
                return fail(problem, "check the server, then start again", false);
            }
            Cut::Short(how) if since.elapsed() > UNREACHED / 2 => {
                self.tell(&failure(format!("{failures} answers in a row {how}"), "", false));
            }
            Cut::Short(_) => {}
        }
        Ok(())
    }

    /// One request, from where `bytes` end. Gives the longest time that no byte came.
    async fn request(
        &self,
        bytes: &mut Vec<u8>,
        name: &str,
        (first, end): (u64, Option<u64>),
        (seen, patience): (&mut Seen, Duration),
    ) -> Result<Duration, Cut> {
        let start = first + bytes.len() as u64;
        let ask = match end {
            Some(end) => GetRange::Bounded(start..end),
            None => GetRange::Offset(start),
        };
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let options = GetOptions { range: Some(ask), ..GetOptions::default() };
        // Joined as text: what is joined as a part has its é, # and % escaped twice.
        let path = match self.prefix.as_ref() {
            "" => ObjectPath::parse(name),
            prefix => ObjectPath::parse(format!("{prefix}/{name}")),
        };
        let path = path.map_err(|error| Cut::Store(error.into()))?;
        let stalled = |_| Cut::Short(STALLED);
        let mut asked = Instant::now();
        let answer = timeout(patience, self.store.get_opts(&path, options)).await;
        let answer = answer.map_err(stalled)?;
        if answer.as_ref().map_or_else(|error| !refused(error), |_| true) {
            self.reached.store(true, Ordering::Relaxed);
            self.told.store(false, Ordering::Relaxed);
        }
        let answer = answer.map_err(Cut::Store)?;
        let mut silence = asked.elapsed();
        let found = answer.meta.size;
        if let Some(expected) = seen.length.replace(found).filter(|&expected| expected != found) {
            let problem = format!("{found} bytes, but {expected} were expected: it was replaced");
            return Err(Cut::Changed(problem));
        }
        let tag = answer.meta.e_tag.clone();
        if seen.tag.replace(tag.clone()).is_some_and(|before| before != tag) {
            return Err(Cut::Changed("it was replaced while it was read".into()));
        }
        let end = end.unwrap_or(found);
        let mut body = answer.into_stream();
        asked = Instant::now();
        while let Some(chunk) = timeout(patience, body.next()).await.map_err(stalled)? {
            silence = silence.max(asked.elapsed());
            asked = Instant::now();
            let chunk = chunk.map_err(Cut::Store)?;
            self.counters.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            // No more than was asked for, whatever the server sends.
            let missing = usize::try_from(end - first).unwrap_or(usize::MAX) - bytes.len();
            bytes.extend_from_slice(&chunk[..chunk.len().min(missing)]);
        }
        let whole = first + (bytes.len() as u64) >= end;
        if whole { Ok(silence) } else { Err(Cut::Short("ended early")) }
    }
}

/// What a file proved to be at the first answer; later ones must agree.
#[derive(Debug)]
struct Seen {
    length: Option<u64>,
    tag: Option<Option<String>>,
}

/// Why one request did not bring all bytes.
#[derive(Debug)]
enum Cut {
    Store(object_store::Error),
    Changed(String),
    /// Some or all bytes are missing, how in words.
    Short(&'static str),
}

/// Doubles from 0.1 s to 10 s, less up to a half so that requests that failed together part.
fn backoff(name: &str, start: u64, failures: u32) -> Duration {
    let longest = 0.1 * f64::from(1 << (failures - 1).min(10));
    let random = xxh3_64_with_seed(name.as_bytes(), start ^ u64::from(failures)) as f64;
    Duration::from_secs_f64(longest.min(10.0) * (1.0 - 0.5 * random / u64::MAX as f64))
}

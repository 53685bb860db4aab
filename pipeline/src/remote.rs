//! Files behind a URL: `http(s)://`, `s3://`, `gs://` and `az://`, read in byte ranges through
//! `object_store`, each range tried again until it is whole.
//!
//! A remote folder has a runtime of its own, one thread that waits for the network. Whoever needs
//! bytes hands it a task; so the rest of the crate is free of async, and a folder may be opened and
//! dropped anywhere.

use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path as ObjectPath;
use object_store::{
    ClientConfigKey, ClientOptions, GetOptions, GetRange, ObjectStore, RetryConfig,
};
use tokio::time::timeout;
use url::Url;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::address::{RemoteOptions, Traffic, hidden, secrets, without_secrets};
use crate::cache::Cache;
use crate::error::{Error, report};

/// Requests under way at once. 64 of one photograph each, 110 kB, are 3,000 photographs a second
/// where an answer takes 20 ms; servers and object stores allow as many from one client.
pub(crate) const REQUESTS: usize = 64;

/// Bytes that whole files are read in.
const PIECE: u64 = 4 << 20;

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    retries: AtomicU64,
    bytes: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Why a range cannot be had. Clonable, for one read serves several samples.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) url: PathBuf,
    pub(crate) problem: String,
    pub(crate) mend: &'static str,
    pub(crate) input: bool,
}

impl From<Failure> for Error {
    fn from(Failure { url, problem, mend, input }: Failure) -> Self {
        Error::Remote { action: "read", url, problem, mend, input }
    }
}

/// A folder behind a URL.
pub(crate) struct Remote {
    url: PathBuf, // for people: without its secrets
    secrets: Vec<(String, &'static str)>,
    store: Arc<dyn ObjectStore>, // never shown, for it knows them
    prefix: ObjectPath,
    pub(crate) options: RemoteOptions,
    cache: Option<Cache>,
    counters: Counters,
    silence: Mutex<Silence>,
    /// Whether any answer has come so far, and whether silence since the last one was told of.
    reached: AtomicBool,
    told: AtomicBool,
    runtime: Option<tokio::runtime::Runtime>, // taken in `drop` only
    process: u32,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { url, options, .. } = self;
        f.debug_struct("Remote").field("url", url).field("options", options).finish_non_exhaustive()
    }
}

impl Remote {
    /// Names the folder. Nothing is read yet.
    pub(crate) fn open(dir: &Path, options: &RemoteOptions) -> Result<Arc<Self>, Error> {
        options.check()?;
        // An application that chose its own TLS keeps it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let shown = without_secrets(dir);
        let failure =
            |problem: String, mend| Failure { url: shown.clone(), problem, mend, input: true };
        let text = dir.to_str().unwrap_or_default();
        let url = Url::parse(text)
            .map_err(|error| failure(error.to_string(), "write it as s3://BUCKET/FOLDER"))?;
        if !["http", "https", "s3", "gs", "az"].contains(&url.scheme()) {
            let problem = format!("no way to read {}://", url.scheme());
            return Err(failure(problem, "it may be http(s)://, s3://, gs:// or az://").into());
        }
        // As given, and as it is written in requests.
        let secrets = [secrets(text), secrets(url.as_str())].concat();
        // Every try is ours: with credentials that are fresh, and counted. A piece may take as long as it needs while
        // bytes come in; stalls are noticed where they are read. Large enough, for the builders know no way to say
        // "none".
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let (store, prefix) = connect(&url, "1 day", &retry).map_err(|error| {
            failure(hidden(error.to_string(), &secrets), "see \"At a URL\" in docs/data.md")
        })?;
        let cache = options.cache.as_deref();
        let cache = cache.map(|dir| Cache::open(dir, options.cache_bytes, text)).transpose()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("remote")
            .enable_all()
            .build()
            .map_err(Error::io("start the network thread for", &shown))?;
        Ok(Arc::new(Self {
            url: shown,
            secrets,
            store,
            prefix,
            options: options.clone(),
            cache,
            counters: Counters::default(),
            silence: Mutex::default(),
            reached: AtomicBool::new(false),
            told: AtomicBool::new(false),
            runtime: Some(runtime),
            process: std::process::id(),
        }))
    }

    /// The URL as it was given, its secrets left out.
    pub(crate) fn url(&self) -> &Path {
        &self.url
    }

    pub(crate) fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            requests: read(&self.counters.requests),
            retries: read(&self.counters.retries),
            bytes: read(&self.counters.bytes),
            cache_hits: read(&self.counters.hits),
            cache_misses: read(&self.counters.misses),
        }
    }

    /// Runs `task` on this folder's thread.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime().spawn(task)
    }

    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.runtime.as_ref().expect("the runtime is there until the drop")
    }

    /// Waits for what a task on this folder's thread gives. Not for a task of another runtime.
    pub(crate) fn block_on<T>(&self, task: impl Future<Output = T>) -> T {
        self.runtime().block_on(task)
    }

    /// A whole file; none where there is no such file. Waits for it. An `optional` file that the server
    /// refuses is none too: so S3 answers for what is missing, where the bucket may not be listed.
    pub(crate) fn file(
        self: &Arc<Self>,
        name: &str,
        optional: bool,
    ) -> Result<Option<Vec<u8>>, Error> {
        let (remote, name) = (Arc::clone(self), name.to_string());
        let read = async move {
            let mut bytes = Vec::new();
            match remote.read_into(&mut bytes, &name, (0, None), None).await {
                Ok(()) => Ok(Some(bytes)),
                Err(Stop::Missing) => Ok(None),
                Err(Stop::Refused(failure)) if optional => {
                    let (url, problem) = (failure.url.display(), failure.problem);
                    tracing::warn!("{url}: {problem}; going on as if it were not there");
                    Ok(None)
                }
                Err(Stop::Refused(failure) | Stop::Failure(failure)) => Err(failure),
            }
        };
        self.wait(read)
    }

    /// A whole file of `length` bytes in pieces, several at once. Waits for it.
    pub(crate) fn large_file(self: &Arc<Self>, name: &str, length: u64) -> Result<Vec<u8>, Error> {
        let (remote, name) = (Arc::clone(self), name.to_string());
        let read = async move {
            let starts = (0..length).step_by(PIECE as usize);
            let pieces = starts.map(|start| {
                let range = start..(start + PIECE).min(length);
                remote.read(&name, range, length)
            });
            // The first answer says whether the file is so long; until then nothing is taken for it.
            let mut whole = Vec::new();
            let mut pieces = futures_util::stream::iter(pieces).buffered(8);
            while let Some(piece) = pieces.try_next().await? {
                whole.extend_from_slice(&piece);
            }
            Ok::<_, Failure>(whole)
        };
        self.wait(read)
    }

    /// Waits for a task on this folder's thread.
    ///
    /// # Errors
    /// [`Error::Panic`] where the task did.
    pub(crate) fn wait<T: Send + 'static, E: Into<Error> + Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, Error> {
        let process = self.process;
        if process != std::process::id() {
            return Err(Error::Forked { process });
        }
        // Not `block_on`: the caller may be a task of another runtime.
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        self.spawn(async move {
            let _ = send.send(task.await);
        });
        match receive.recv() {
            Ok(result) => result.map_err(Into::into),
            Err(std::sync::mpsc::RecvError) => {
                let message = "a network task ended without an answer".into();
                Err(Error::Panic { stage: "remote", message })
            }
        }
    }

    /// Bytes of a file that is `length` bytes long. Waits for them. They come from the cache or the
    /// server, as [`Remote::cached`] has it, and are an error as soon as `stop` comes.
    pub(crate) fn part_unless(
        self: &Arc<Self>,
        name: &str,
        (part, range): (Range<u64>, Range<u64>),
        length: u64,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Vec<u8>, Error> {
        let (reader, name, url) = (Arc::clone(self), name.to_string(), self.url.join(name));
        self.wait(async move {
            tokio::select! {
                read = reader.cached(&name, part, range, length) => read,
                () = stop => Err(Failure {
                    url,
                    problem: "the loader was stopped".into(),
                    mend: "start it again",
                    input: false,
                }),
            }
        })
    }

    /// Bytes of a file that is `length` bytes long, from the server. Waits for them.
    pub(crate) fn range(
        self: &Arc<Self>,
        name: &str,
        range: Range<u64>,
        length: u64,
    ) -> Result<Vec<u8>, Error> {
        let (reader, name) = (Arc::clone(self), name.to_string());
        self.wait(async move { reader.read(&name, range, length).await })
    }

    /// Bytes of a file that is `length` bytes long, from the cache or the server. A whole `part`
    /// that had to be fetched is kept in the cache.
    pub(crate) async fn cached(
        self: Arc<Self>,
        name: &str,
        part: Range<u64>,
        range: Range<u64>,
        length: u64,
    ) -> Result<Vec<u8>, Failure> {
        let Some(cache) = &self.cache else { return self.read(name, range, length).await };
        let file = cache.part(name, part.start);
        let inside = range.start - part.start..range.end - part.start;
        let (keeper, at) = (Arc::clone(&self), file.clone());
        let look = move || keeper.cache.as_ref()?.get(&at, part.end - part.start, inside);
        if let Ok(Some(bytes)) = tokio::task::spawn_blocking(look).await {
            self.counters.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(bytes);
        }
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        let bytes = self.read(name, range.clone(), length).await?;
        if range != part {
            return Ok(bytes);
        }
        let keeper = Arc::clone(&self);
        let keep = move || {
            if let Some(cache) = &keeper.cache {
                cache.put(&file, &bytes);
            }
            bytes
        };
        // A task of ours that panics is the only way to fail.
        tokio::task::spawn_blocking(keep).await.map_err(|error| Failure {
            url: self.url.join(name),
            problem: error.to_string(),
            mend: "this is a bug; please report it",
            input: false,
        })
    }

    /// Bytes of a file that is `length` bytes long.
    pub(crate) async fn read(
        &self,
        name: &str,
        range: Range<u64>,
        length: u64,
    ) -> Result<Vec<u8>, Failure> {
        // What an index claims is not believed before the server sends it.
        let mut bytes = Vec::with_capacity((range.end - range.start).min(PIECE) as usize);
        match self.read_into(&mut bytes, name, (range.start, Some(range.end)), Some(length)).await {
            Ok(()) => Ok(bytes),
            Err(Stop::Refused(failure) | Stop::Failure(failure)) => Err(failure),
            Err(Stop::Missing) => Err(Failure {
                url: self.url.join(name),
                problem: "the index names this shard, but it is not there".into(),
                mend: "copy the whole data folder again",
                input: true,
            }),
        }
    }

    /// Reads a range to its end (the file's, if none), going on from where an answer was cut.
    async fn read_into(
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
            let failure = |problem, mend, input| {
                let problem = hidden(problem, &self.secrets);
                Failure { url: self.url.join(name), problem, mend, input }
            };
            let fail = |problem, mend, input| Stop::Failure(failure(problem, mend, input));
            match error {
                Cut::Store(object_store::Error::NotFound { .. }) => return Err(Stop::Missing),
                Cut::Changed(problem) => {
                    return Err(fail(problem, "copy the whole data folder again", true));
                }
                Cut::Store(error) => match refusal(&error) {
                    Some(mend) if matches!(error, object_store::Error::PermissionDenied { .. }) => {
                        return Err(Stop::Refused(failure(error.to_string(), mend, true)));
                    }
                    Some(mend) => return Err(fail(error.to_string(), mend, true)),
                    None if failures > self.options.retries
                        || !self.is_reached()
                            && refused(&error)
                            && since.elapsed() + pause > UNREACHED =>
                    {
                        let problem = format!(
                            "{failures} tries in a row failed; the last: {}",
                            report(&error)
                        );
                        let mend = "check the network and the server, then start again";
                        return Err(fail(problem, mend, false));
                    }
                    None if refused(&error) => self.tell(&failure(report(&error), "", false)),
                    None => {}
                },
                Cut::Short(how) if failures > self.options.retries => {
                    let problem = format!("{failures} answers in a row {how}");
                    return Err(fail(problem, "check the server, then start again", false));
                }
                Cut::Short(how) if since.elapsed() > UNREACHED / 2 => {
                    self.tell(&failure(format!("{failures} answers in a row {how}"), "", false));
                }
                Cut::Short(_) => {}
            }
            self.counters.retries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(pause).await;
        }
    }

    fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    /// Says once that the server does not answer, until it has.
    fn tell(&self, Failure { url, problem, .. }: &Failure) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!("no answer from {}: {problem}; trying again for a while", url.display());
        }
    }

    fn silence(&self) -> MutexGuard<'_, Silence> {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            if self.process != std::process::id() {
                // Its threads are the other process's.
                std::mem::forget(runtime);
                return;
            }
            // Not a plain drop: the last user may be a task of this very runtime.
            runtime.shutdown_background();
        }
    }
}

const STALLED: &str = "stalled";

/// How long answers that came whole or stalled were silent: a mean and a mean deviation over the last ones, as TCP
/// keeps them of its round trips.
#[derive(Debug, Default)]
struct Silence {
    mean: Option<Duration>,
    deviation: Duration,
}

impl Silence {
    /// No patience is shorter: a lost packet or a busy machine takes as long by itself.
    const LEAST: Duration = Duration::from_millis(500);

    fn heard(&mut self, silence: Duration) {
        let mean = self.mean.unwrap_or(silence);
        self.deviation = (3 * self.deviation + mean.abs_diff(silence)) / 4;
        self.mean = Some((7 * mean + silence) / 8);
    }

    /// How long to wait for a byte, `most` at most.
    fn patience(&self, most: Duration) -> Duration {
        self.mean.map_or(most, |mean| (mean + 4 * self.deviation).max(Self::LEAST).min(most))
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

/// Why reading ends without all bytes.
#[derive(Debug)]
enum Stop {
    Missing,
    /// For want of permission.
    Refused(Failure),
    Failure(Failure),
}

/// What to do about an answer that another try would not change; none for those worth one.
pub(crate) fn refusal(error: &object_store::Error) -> Option<&'static str> {
    use object_store::Error as E;
    match error {
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            Some("set the credentials that \"At a URL\" in docs/data.md names")
        }
        E::NotSupported { .. } => Some("use a server that answers range requests"),
        E::Generic { source, .. } => {
            // The status is in no public type, only in the words.
            let words = source.to_string();
            let refused = words.contains("status code: 4")
                && !["status code: 408", "status code: 429"].iter().any(|&s| words.contains(s));
            refused.then_some("check the URL, and the region and endpoint where it has them")
        }
        E::JoinError { .. } => None,
        _ => Some("check the URL"),
    }
}

/// How long a server that never answered may refuse: it is told of within five seconds.
const UNREACHED: Duration = Duration::from_secs(3);

/// Whether there was no one to ask: no such host, nobody listening, no way there.
fn refused(error: &object_store::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return error.kind() == HttpErrorKind::Connect;
        }
        cause = error.source();
    }
    false
}

/// Doubles from 0.1 s to 10 s, less up to a half so that requests that failed together part.
fn backoff(name: &str, start: u64, failures: u32) -> Duration {
    let longest = 0.1 * f64::from(1 << (failures - 1).min(10));
    let random = xxh3_64_with_seed(name.as_bytes(), start ^ u64::from(failures)) as f64;
    Duration::from_secs_f64(longest.min(10.0) * (1.0 - 0.5 * random / u64::MAX as f64))
}

/// The store behind a URL, and where the folder lies in it. Credentials and endpoints come from
/// the environment, in the names that `object_store` reads. A request may take as long as `limit` says.
pub(crate) fn connect(
    url: &Url,
    limit: &str,
    retry: &RetryConfig,
) -> Result<(Arc<dyn ObjectStore>, ObjectPath), object_store::Error> {
    let limits = [(ClientConfigKey::Timeout, limit)];
    let prefix = ObjectPath::from_url_path(url.path())?;
    let (url, retry) = (url.as_str(), retry.clone());
    let store: Arc<dyn ObjectStore> = match url.split("://").next() {
        Some("s3") => Arc::new(
            limits
                .into_iter()
                .fold(AmazonS3Builder::from_env(), |builder, (key, value)| {
                    builder.with_config(AmazonS3ConfigKey::Client(key), value)
                })
                .with_url(url)
                .with_retry(retry)
                .build()?,
        ),
        Some("gs") => Arc::new(
            limits
                .into_iter()
                .fold(GoogleCloudStorageBuilder::from_env(), |builder, (key, value)| {
                    builder.with_config(GoogleConfigKey::Client(key), value)
                })
                .with_url(url)
                .with_retry(retry)
                .build()?,
        ),
        Some("az") => Arc::new(
            limits
                .into_iter()
                .fold(MicrosoftAzureBuilder::from_env(), |builder, (key, value)| {
                    builder.with_config(AzureConfigKey::Client(key), value)
                })
                .with_url(url)
                .with_retry(retry)
                .build()?,
        ),
        _ => {
            let options = limits
                .into_iter()
                .fold(ClientOptions::new(), |options, (key, value)| options.with_config(key, value))
                .with_allow_http(true);
            let builder = HttpBuilder::new().with_url(url).with_retry(retry);
            let store = builder.with_client_options(options).build()?;
            return Ok((Arc::new(store), ObjectPath::default()));
        }
    };
    Ok((store, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_learned_from_answers_within_its_bounds() {
        let ms = Duration::from_millis;
        let most = ms(1000);
        let mut silence = Silence::default();
        assert_eq!(silence.patience(most), most);
        for _ in 0..40 {
            silence.heard(ms(20));
        }
        assert_eq!(silence.patience(most), Silence::LEAST);
        // Twice as patient as a server needs whose answers take 200 or 400 ms, and no more than asked.
        for n in 0..40 {
            silence.heard(ms(200 + 200 * (n % 2)));
        }
        assert!((ms(500)..ms(900)).contains(&silence.patience(most)), "{silence:?}");
        assert_eq!(silence.patience(ms(200)), ms(200));
        // Answers that stall one after another are given more time, those of one in fifty are not.
        (0..40).for_each(|_| silence.heard(silence.patience(most)));
        assert_eq!(silence.patience(most), most);
        for _ in 0..50 {
            silence.heard(ms(20));
        }
        assert_eq!(silence.patience(most), Silence::LEAST);
    }
}

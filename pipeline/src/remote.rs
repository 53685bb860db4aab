//! Files behind a URL: `http(s)://`, `s3://`, `gs://` and `az://`, read in byte ranges through
//! `object_store`, each range tried again until it is whole.
//!
//! A remote folder has a runtime of its own, one thread that waits for the network. Whoever needs
//! bytes hands it a task; so the rest of the crate is free of async, and a folder may be opened and
//! dropped anywhere.

mod connect;
mod read;
mod silence;

use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, RetryConfig};
use url::Url;

pub(crate) use self::connect::{connect, refusal};
use self::silence::Silence;
use crate::address::{RemoteOptions, Traffic, hidden, secrets, without_secrets};
use crate::cache::Cache;
use crate::error::Error;

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

/// Why reading ends without all bytes.
#[derive(Debug)]
enum Stop {
    Missing,
    /// For want of permission.
    Refused(Failure),
    Failure(Failure),
}

#[cfg(test)]
mod tests;

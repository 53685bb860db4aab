//! A folder behind a URL to write to: `s3://`, `gs://`, `az://`, or `file:///` for one of this machine.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use common::files::Hasher;
use futures_util::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart};
use url::Url;

use crate::address::{hidden, secrets, without_secrets};
use crate::error::{Error, report};
use crate::remote::{connect, refusal};

/// Bytes of a request, at least: S3 takes no smaller parts than 5 MiB.
const PART: u64 = 8 << 20;

/// Parts of a file that are on their way at once.
const PARTS: usize = 4;

/// Parts of a file at most; S3 takes 10,000.
const MOST_PARTS: u64 = 9_000;

/// How long one request may take: a part at 70 kB/s.
const LIMIT: &str = "120 seconds";

/// Pauses before another try of what object_store does not try again.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];

/// Since when nothing is tried again: object_store has tried, for about as long, by then.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the URL is explained.
const MEND: &str = "it may be s3://, gs://, az:// or file:///FOLDER";

/// A file in a [`Store`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name, below the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// A folder behind a URL. Every call waits until it is done; requests that fail are made again for a minute. Not for a
/// thread of an async runtime.
pub struct Store {
    url: PathBuf, // for people: without its secrets
    secrets: Vec<(String, &'static str)>,
    store: Arc<dyn ObjectStore>, // never shown, for it knows them
    prefix: ObjectPath,
    runtime: tokio::runtime::Runtime,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Store {
    /// Names the folder, which need not be there yet. Nothing is read. Credentials and endpoints come from the
    /// environment, as for a [`Dataset`](crate::Dataset).
    ///
    /// # Errors
    /// [`Error::Remote`] for a URL that is none, or of another kind.
    pub fn open(url: &str) -> Result<Self, Error> {
        // An application that chose its own TLS keeps it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let shown = without_secrets(Path::new(url));
        let refuse = |problem: String, mend| {
            let url = shown.clone();
            Err(Error::Remote { action: "write to", url, problem, mend, input: true })
        };
        let parsed = match Url::parse(url) {
            Ok(parsed) => parsed,
            Err(error) => return refuse(error.to_string(), MEND),
        };
        let secrets = [secrets(url), secrets(parsed.as_str())].concat();
        let retry = RetryConfig {
            max_retries: 8,
            retry_timeout: Duration::from_secs(60),
            ..RetryConfig::default()
        };
        let connected = match parsed.scheme() {
            "file" => match parsed.to_file_path() {
                // A disk that is not mounted is not made up for by a folder of that name.
                Ok(path) if !path.parent().is_some_and(Path::is_dir) => {
                    return refuse("the folder that it lies in is not there".into(), "make it");
                }
                Ok(path) => ObjectPath::from_absolute_path(path).map(|prefix| {
                    let local = LocalFileSystem::new().with_fsync(true);
                    (Arc::new(local) as Arc<dyn ObjectStore>, prefix)
                }),
                Err(()) => return refuse("this is no folder of this machine".into(), MEND),
            }
            .map_err(Into::into),
            "s3" | "gs" | "az" => connect(&parsed, LIMIT, &retry),
            scheme => return refuse(format!("no way to write to {scheme}://"), MEND),
        };
        let (store, prefix) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                let problem = hidden(error.to_string(), &secrets);
                return refuse(problem, "see \"At a URL\" in docs/data.md");
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("start the network for", &shown))?;
        Ok(Self { url: shown, secrets, store, prefix, runtime })
    }

    /// The URL, its secrets left out.
    #[must_use]
    pub fn url(&self) -> &Path {
        &self.url
    }

    /// All files below the folder; none where there is no folder.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub fn list(&self) -> Result<Vec<Stored>, Error> {
        let prefix = Some(&self.prefix).filter(|prefix| !prefix.as_ref().is_empty());
        let list = || async { self.store.list(prefix).try_collect::<Vec<_>>().await };
        let listed = self.runtime.block_on(again(list));
        let listed = listed.map_err(|error| self.fault("list", "", &error))?;
        let name = |path: &ObjectPath| {
            let below = path.as_ref().strip_prefix(self.prefix.as_ref())?;
            Some(below.trim_start_matches('/').to_owned())
        };
        let stored = listed.into_iter().filter_map(|meta| {
            let (name, bytes) = (name(&meta.location)?, meta.size);
            Some(Stored { name, bytes, modified: meta.last_modified.into() })
        });
        Ok(stored.collect())
    }

    /// A whole small file; none where there is none.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path(name, "read")?;
        let read = || async { self.store.get(&path).await?.bytes().await };
        match self.runtime.block_on(again(read)) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.fault("read", name, &error)),
        }
    }

    /// Writes a file under a name, at once or not at all. Gives the length and the hexadecimal SHA-256 of what was sent.
    ///
    /// # Errors
    /// [`Error::Remote`]; [`Error::Io`] where the file cannot be read.
    pub fn write(&self, name: &str, mut file: File) -> Result<(u64, String), Error> {
        let path = self.path(name, "write")?;
        let unread = |source| Error::io("read", Path::new(name))(source);
        let length = file.metadata().map_err(unread)?.len();
        let part = PART.max(length.div_ceil(MOST_PARTS));
        let (file, sent) = (RefCell::new(&mut file), RefCell::new(Hasher::default()));
        // What cannot be read here is no fault of the store's.
        let own = RefCell::new(None);
        let next = || {
            let mut bytes = Vec::with_capacity(part.min(length) as usize);
            let read = (&mut *file.borrow_mut()).take(part).read_to_end(&mut bytes);
            read.map_err(|source| given_up(&own, source))?;
            sent.borrow_mut().update(&bytes);
            Ok::<_, object_store::Error>(Bytes::from(bytes))
        };
        let write = || async {
            file.borrow_mut().rewind().map_err(|source| given_up(&own, source))?;
            *sent.borrow_mut() = Hasher::default();
            if length <= part {
                return self.store.put(&path, next()?.into()).await.map(drop);
            }
            let upload = self.store.put_multipart(&path).await?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, part as usize);
            let parts = async {
                loop {
                    upload.wait_for_capacity(PARTS).await?;
                    match next()? {
                        bytes if bytes.is_empty() => return Ok(()),
                        bytes => upload.put(bytes),
                    }
                }
            };
            match parts.await {
                Ok(()) => upload.finish().await.map(drop),
                Err(error) => {
                    // Parts without a whole take room that nobody sees.
                    let _ = upload.abort().await;
                    Err(error)
                }
            }
        };
        let written = self.runtime.block_on(again(write));
        if let Some(source) = own.take() {
            return Err(unread(source));
        }
        written.map_err(|error| self.fault("write", name, &error))?;
        Ok(sent.into_inner().finish())
    }

    /// Gives the bytes of a file to `take`, piece by piece. Gives its length and hexadecimal SHA-256 too.
    ///
    /// # Errors
    /// [`Error::Remote`], also where there is no such file; those of `take`.
    pub fn read_with(
        &self,
        name: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(u64, String), Error> {
        let path = self.path(name, "read")?;
        let fault = |error| self.fault("read", name, &error);
        let mut hasher = Hasher::default();
        self.runtime.block_on(async {
            let length = again(|| self.store.head(&path)).await.map_err(fault)?.size;
            for start in (0..length).step_by(PART as usize) {
                let range = start..(start + PART).min(length);
                let part = || self.store.get_range(&path, range.clone());
                let bytes = again(part).await.map_err(fault)?;
                hasher.update(&bytes);
                take(&bytes)?;
            }
            Ok::<_, Error>(())
        })?;
        Ok(hasher.finish())
    }

    /// Removes a file; one that is not there is removed.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name, "remove")?;
        match self.runtime.block_on(again(|| self.store.delete(&path))) {
            Err(object_store::Error::NotFound { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(self.fault("remove", name, &error)),
        }
    }

    fn path(&self, name: &str, action: &'static str) -> Result<ObjectPath, Error> {
        // Joined as text: what is joined as a part has its é, # and % escaped twice.
        let path = match self.prefix.as_ref() {
            "" => ObjectPath::parse(name),
            prefix => ObjectPath::parse(format!("{prefix}/{name}")),
        };
        path.map_err(|error| self.fault(action, name, &error.into()))
    }

    fn fault(&self, action: &'static str, name: &str, error: &object_store::Error) -> Error {
        let missing = matches!(error, object_store::Error::NotFound { .. });
        let mend = match refusal(error) {
            _ if missing => "is the bucket, or container, there?",
            Some(mend) => mend,
            None => "check the network and the server",
        };
        Error::Remote {
            action,
            url: if name.is_empty() { self.url.clone() } else { self.url.join(name) },
            problem: hidden(report(error), &self.secrets),
            mend,
            input: refusal(error).is_some(),
        }
    }
}

/// Does `work` again, some times, where it fails by what may pass: an answer that is cut within its body, for one, is not asked
/// for again by `object_store`.
async fn again<T, F: Future<Output = object_store::Result<T>>>(
    work: impl Fn() -> F,
) -> object_store::Result<T> {
    let begun = Instant::now();
    for pause in PAUSES {
        match work().await {
            Err(error) if passes(&error) && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(pause).await;
            }
            done => return done,
        }
    }
    work().await
}

fn passes(error: &object_store::Error) -> bool {
    !matches!(error, object_store::Error::NotFound { .. }) && refusal(error).is_none()
}

/// Ends a write whose file cannot be read.
fn given_up(own: &RefCell<Option<io::Error>>, source: io::Error) -> object_store::Error {
    let problem = source.to_string();
    *own.borrow_mut() = Some(source);
    object_store::Error::NotSupported { source: problem.into() }
}

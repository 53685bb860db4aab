//! A folder behind a URL to write to: `s3://`, `gs://`, `az://`, or `file:///` for one of this machine.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::files::Hasher;
use futures_util::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart};
use url::Url;

use crate::address::{Stored, hidden, secrets, without_secrets};
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

/// A folder behind a URL. Every call waits until it is done; requests that fail are made again for a minute. Not for a
/// thread of an async runtime.
pub struct Store {
    url: PathBuf, // for people: without its secrets
    secrets: Vec<(String, &'static str)>,
    store: Arc<dyn ObjectStore>, // never shown, for it knows them
    prefix: ObjectPath,
    /// Where it is on this machine, if it is there.
    local: Option<PathBuf>,
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
        if parsed.query().or(parsed.fragment()).is_some() {
            let problem = "a folder's URL has no part behind ? or #".into();
            return refuse(problem, "write these signs as %3F and %23 where they are of its name");
        }
        let secrets = [secrets(url), secrets(parsed.as_str())].concat();
        let retry = RetryConfig {
            max_retries: 8,
            retry_timeout: Duration::from_secs(60),
            ..RetryConfig::default()
        };
        let mut local = None;
        let connected = match parsed.scheme() {
            "file" => match parsed.to_file_path() {
                Ok(path) => {
                    let prefix = ObjectPath::from_absolute_path(&path).map_err(Into::into);
                    local = Some(path);
                    let files =
                        LocalFileSystem::new().with_fsync(true).with_automatic_cleanup(true);
                    prefix.map(|prefix| (Arc::new(files) as Arc<dyn ObjectStore>, prefix))
                }
                Err(()) => return refuse("this is no folder of this machine".into(), MEND),
            },
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
        Ok(Self { url: shown, secrets, store, prefix, local, runtime })
    }

    /// The URL, its secrets left out.
    #[must_use]
    pub fn url(&self) -> &Path {
        &self.url
    }

    /// The folder, where it is one of this machine.
    #[must_use]
    pub fn local(&self) -> Option<&Path> {
        self.local.as_deref()
    }

    /// All files below the folder; none where there is no folder. What only marks a folder is no file.
    ///
    /// # Errors
    /// [`Error::Remote`]; also where the folder that it lies in is not there: a disk that is not mounted is not made up
    /// for by a folder of that name.
    pub fn list(&self) -> Result<Vec<Stored>, Error> {
        if let Some(path) = &self.local
            && !path.parent().is_some_and(Path::is_dir)
        {
            return Err(Error::Remote {
                action: "list",
                url: self.url.clone(),
                problem: "the folder that it lies in is not there".into(),
                mend: "make it, or mount its disk",
                input: false,
            });
        }
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
        let stored: Vec<Stored> = stored.collect();
        // What consoles of S3 make for "Create folder".
        let marks = |of: &Stored| {
            let below = format!("{}/", of.name);
            of.name.is_empty() || of.bytes == 0 && stored.iter().any(|s| s.name.starts_with(&below))
        };
        Ok(stored.iter().filter(|stored| !marks(stored)).cloned().collect())
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

    /// Writes a small file, at once or not at all.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path(name, "write")?;
        let bytes = Bytes::copy_from_slice(bytes);
        let put = || async { self.store.put(&path, bytes.clone().into()).await.map(drop) };
        self.runtime.block_on(again(put)).map_err(|error| self.fault("write", name, &error))
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

    /// Gives the bytes of a file to `take`, piece by piece. Gives its length and hexadecimal SHA-256 too; none where there
    /// is no such file.
    ///
    /// # Errors
    /// [`Error::Remote`]; those of `take`.
    pub fn read_with(
        &self,
        name: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<Option<(u64, String)>, Error> {
        let path = self.path(name, "read")?;
        let fault = |error| self.fault("read", name, &error);
        let mut hasher = Hasher::default();
        self.runtime.block_on(async {
            let length = match again(|| self.store.head(&path)).await {
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                head => head.map_err(fault)?.size,
            };
            for start in (0..length).step_by(PART as usize) {
                let range = start..(start + PART).min(length);
                let part = || self.store.get_range(&path, range.clone());
                let bytes = match again(part).await {
                    Err(object_store::Error::NotFound { .. }) => return Ok(None),
                    bytes => bytes.map_err(fault)?,
                };
                hasher.update(&bytes);
                take(&bytes)?;
            }
            Ok(Some(hasher.finish()))
        })
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

    /// Removes what writes that were cut short have left, where that can be seen: beside the files of a folder of this
    /// machine. In a bucket, parts without a whole go by its own rule (`AbortIncompleteMultipartUpload`).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_unfinished(&self) -> Result<(), Error> {
        let Some(path) = self.local.as_ref().filter(|path| path.is_dir()) else { return Ok(()) };
        let mut folders = vec![path.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
                let entry = entry.map_err(Error::io("read", &folder))?;
                let (path, name) = (entry.path(), entry.file_name());
                // As LocalFileSystem names what it stages.
                let name = name.to_string_lossy();
                let staged = name
                    .rsplit_once('#')
                    .is_some_and(|(of, number)| !of.is_empty() && number.parse::<u64>().is_ok());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                } else if staged {
                    std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                }
            }
        }
        Ok(())
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
        if let Some(kind) = full(error) {
            return Error::io(action, &self.url.join(name))(kind.into());
        }
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
    let missing = matches!(error, object_store::Error::NotFound { .. });
    !missing && refusal(error).is_none() && full(error).is_none()
}

/// How a disk says that it is full, if that is what an error comes of.
fn full(error: &object_store::Error) -> Option<io::ErrorKind> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let source = error.downcast_ref::<io::Error>();
        if let Some(source) = source.filter(|source| common::files::is_full(source)) {
            return Some(source.kind());
        }
        cause = error.source();
    }
    None
}

/// Ends a write whose file cannot be read.
fn given_up(own: &RefCell<Option<io::Error>>, source: io::Error) -> object_store::Error {
    let problem = source.to_string();
    *own.borrow_mut() = Some(source);
    object_store::Error::NotSupported { source: problem.into() }
}

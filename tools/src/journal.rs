//! The folder in which an output grows, and the journal that lets an interrupted build go on.
//!
//! While it is built, `DIR` is called `.DIR.partial` and holds `journal.jsonl`: a first line with the
//! plan's fingerprint, then one line per finished shard. A shard is on disk before its line is, so
//! whatever the journal does not name is unfinished and is removed when the build goes on. A pipe is
//! then read again from its start: what is stored is passed over, and checked by a hash of all images.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::files;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::catalog::{Rejected, Split};

const JOURNAL: &str = "journal.jsonl";

/// What to do when the output is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse, unless it is an empty folder.
    Refuse,
    /// Accept a finished folder that the same plan made.
    Resume,
    /// Replace it, and forget what an interrupted build of another plan left.
    Overwrite,
}

/// One stored image of a finished shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// Place in the plan's items.
    pub(crate) item: usize,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) png: bool,
}

/// One finished shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finished {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) xxh3: u64,
    /// Whose shard it is.
    pub(crate) split: Split,
    /// The first item that comes after it.
    pub(crate) next: usize,
    /// What was read of a pipe before that item.
    pub(crate) read: Option<Read>,
    pub(crate) stored: Vec<Stored>,
    pub(crate) rejected: Vec<Rejected>,
    pub(crate) odd: Vec<Rejected>,
}

impl Finished {
    /// A shard of which nothing is written yet.
    pub(crate) fn empty(split: Split) -> Self {
        Self {
            name: String::new(),
            bytes: 0,
            xxh3: 0,
            split,
            next: 0,
            read: None,
            stored: Vec::new(),
            rejected: Vec::new(),
            odd: Vec::new(),
        }
    }
}

/// How far a pipe was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Read {
    /// Its images, and one more when the end was reached.
    pub(crate) images: usize,
    /// A hash of all of them.
    pub(crate) digest: u64,
}

#[derive(Serialize, Deserialize)]
struct Head {
    plan: String,
}

/// The output under its temporary name, locked against a second build.
#[derive(Debug)]
pub(crate) struct Workplace {
    output: PathBuf,
    pub(crate) dir: PathBuf,
    journal: File,
    existing: Existing,
}

/// What was found at the output's place.
pub(crate) enum Found {
    /// Work to do, from the shards that are already finished on.
    Work(Workplace, Vec<Finished>),
    /// A finished folder that this very plan made.
    Complete,
}

/// What stands in the place of the output: a finished folder of this plan, or nothing that hinders.
fn look_at(output: &Path, existing: Existing, plan: &str) -> Result<Option<Found>, Error> {
    if journal_of(&output.join(JOURNAL), plan) {
        // A build of this plan died between its last two steps.
        remove_journal(output)?;
        return Ok(Some(Found::Complete));
    }
    match fs::read_dir(output).map(|mut entries| entries.next().is_some()) {
        // Found out now, not after hours of work: a link or a mount point takes no folder's place.
        Ok(false) => fs::remove_dir(output).map_err(in_the_way(output))?,
        Ok(true) if existing == Existing::Overwrite && is_mount_point(output) => {
            return Err(in_the_way(output)(io::ErrorKind::ResourceBusy.into()));
        }
        Ok(true) if existing == Existing::Resume => return completed(output, plan).map(Some),
        Ok(true) if existing == Existing::Refuse => {
            let mend = "choose another folder, or give --overwrite";
            return Err(Error::input(output, "is there and is not empty", mend));
        }
        Err(_) if output.is_file() => {
            return Err(Error::input(output, "is a file", "choose another name"));
        }
        _ => {}
    }
    Ok(None)
}

impl Workplace {
    /// Opens the temporary folder of `output` for the plan with this fingerprint.
    ///
    /// # Errors
    /// The output is there and `existing` does not allow that; another plan was interrupted here;
    /// another build is at work; the folder cannot be written.
    pub(crate) fn open(output: &Path, existing: Existing, plan: &str) -> Result<Found, Error> {
        let name = output.file_name().ok_or_else(|| {
            Error::input(output, "is no name for a new folder", "name the folder itself")
        })?;
        if let Some(found) = look_at(output, existing, plan)? {
            return Ok(found);
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".partial");
        let dir = output.with_file_name(hidden);
        fs::create_dir_all(&dir).map_err(create(&dir))?;
        let path = dir.join(JOURNAL);
        let mut journal = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(create(&path))?;
        match journal.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mend = "wait for it, or choose another folder";
                return Err(Error::input(output, "is being built by another process", mend));
            }
            Err(TryLockError::Error(source)) => return Err(Error::io(&path, "lock it")(source)),
        }
        let journaled = match read(&mut journal, plan) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                if existing != Existing::Overwrite {
                    let mend = "restore it, or give --overwrite to begin anew";
                    return Err(Error::input(path, error.to_string(), mend));
                }
                None
            }
            other => other.map_err(Error::io(&path, "read it"))?,
        };
        let finished = match journaled {
            Some(finished) => finished,
            None if existing == Existing::Overwrite || is_new(&journal) => {
                journal.set_len(0).map_err(Error::io(&path, "empty it"))?;
                append(&mut journal, &Head { plan: plan.to_owned() })
                    .map_err(Error::io(&path, "write to it"))?;
                Vec::new()
            }
            None => {
                let problem = "is an unfinished build of another input or other options";
                let mend = "give the same ones to go on with it, or --overwrite to drop it";
                return Err(Error::input(dir, problem, mend));
            }
        };
        let workplace = Self { output: output.to_path_buf(), dir, journal, existing };
        workplace.remove_unfinished(&finished)?;
        Ok(Found::Work(workplace, finished))
    }

    /// Records a shard that is complete on disk.
    pub(crate) fn record(&mut self, shard: &Finished) -> Result<(), Error> {
        let path = self.dir.join(JOURNAL);
        append(&mut self.journal, shard).map_err(Error::io(&path, "write to it"))
    }

    /// Gives the folder its name. Everything but the journal must be on disk.
    pub(crate) fn publish(self) -> Result<(), Error> {
        let rename = |from: &Path, to: &Path| {
            files::rename(from, to).map_err(Error::io(from, "give it its final name"))
        };
        files::sync_folder(&self.dir).map_err(Error::io(&self.dir, "sync it"))?;
        let mut old = self.dir.clone().into_os_string();
        old.push("-old");
        let old = PathBuf::from(old);
        let replaces = self.existing == Existing::Overwrite && self.output.exists();
        if replaces {
            if old.exists() {
                fs::remove_dir_all(&old).map_err(Error::io(&old, "remove what was replaced"))?;
            }
            rename(&self.output, &old)?;
        }
        rename(&self.dir, &self.output)?;
        // Last, so that a build that dies before this line is known for what it is.
        remove_journal(&self.output)?;
        if replaces {
            fs::remove_dir_all(&old).map_err(Error::io(&old, "remove what was replaced"))?;
        }
        Ok(())
    }

    /// Removes the temporary folder: nothing of the build remains.
    pub(crate) fn discard(self) -> Result<(), Error> {
        fs::remove_dir_all(&self.dir).map_err(Error::io(&self.dir, "remove it"))
    }

    fn remove_unfinished(&self, finished: &[Finished]) -> Result<(), Error> {
        let entries = fs::read_dir(&self.dir).map_err(Error::io(&self.dir, "list it"))?;
        for entry in entries {
            let name = entry.map_err(Error::io(&self.dir, "list it"))?.file_name();
            if name != JOURNAL && !finished.iter().any(|shard| name == *shard.name) {
                let path = self.dir.join(name);
                fs::remove_file(&path).map_err(Error::io(&path, "remove it"))?;
            }
        }
        Ok(())
    }
}

/// For `map_err`: a place that may not be written is wrong input, not a failure.
fn create(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::AlreadyExists => {
            Error::input(path, format!("cannot be created ({source})"), "choose another --output")
        }
        _ => Error::Io { path, doing: "create it", source },
    }
}

/// For `map_err`: what stands where the finished folder is to be renamed to cannot be moved.
fn in_the_way(output: &Path) -> impl FnOnce(io::Error) -> Error {
    let output = output.to_path_buf();
    move |source| {
        let problem = format!("cannot be replaced by the finished folder ({source})");
        Error::input(output, problem, "name a new folder, for a mount point or link one inside it")
    }
}

fn is_mount_point(dir: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(dir) != device(&dir.join(".."))
}

fn remove_journal(dir: &Path) -> Result<(), Error> {
    let path = dir.join(JOURNAL);
    fs::remove_file(&path).map_err(Error::io(&path, "remove it"))
}

/// True when there is a journal of this plan.
fn journal_of(path: &Path, plan: &str) -> bool {
    let Ok(journal) = File::open(path) else { return false };
    let mut line = Vec::new();
    BufReader::new(journal).read_until(b'\n', &mut line).is_ok()
        && serde_json::from_slice::<Head>(&line).is_ok_and(|head| head.plan == plan)
}

fn completed(output: &Path, plan: &str) -> Result<Found, Error> {
    let manifest = pipeline::index::Manifest::load(output)?;
    match manifest.options.get("plan") {
        Some(made_by) if made_by == plan => Ok(Found::Complete),
        _ => {
            let problem = "is finished, from another input or other options";
            Err(Error::input(output, problem, "choose another folder, or give --overwrite"))
        }
    }
}

fn is_new(journal: &File) -> bool {
    journal.metadata().is_ok_and(|metadata| metadata.len() == 0)
}

/// The finished shards, if the journal is this plan's. A last line that was cut off is taken away; a
/// damaged one that others follow is an error, as the shards of all of these would be lost.
fn read(journal: &mut File, plan: &str) -> io::Result<Option<Vec<Finished>>> {
    let mut lines = BufReader::new(&*journal);
    let mut line = Vec::new();
    let mut length = lines.read_until(b'\n', &mut line)? as u64;
    if !line.ends_with(b"\n") {
        // Cut off before anything was built, or not written yet.
        journal.set_len(0)?;
        return Ok(None);
    }
    match serde_json::from_slice::<Head>(&line) {
        Ok(head) if head.plan == plan => {}
        _ => return Ok(None),
    }
    let mut finished = Vec::new();
    loop {
        line.clear();
        let read = lines.read_until(b'\n', &mut line)? as u64;
        match serde_json::from_slice::<Finished>(&line) {
            Ok(shard) if line.ends_with(b"\n") => finished.push(shard),
            Err(_) if line.ends_with(b"\n") => {
                let problem = format!("line {} is damaged", finished.len() + 2);
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
            _ => break,
        }
        length += read;
    }
    journal.set_len(length)?;
    journal.seek(io::SeekFrom::End(0))?;
    Ok(Some(finished))
}

fn append<T: Serialize>(journal: &mut File, line: &T) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    journal.write_all(&bytes)?;
    journal.sync_data()
}

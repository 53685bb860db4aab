//! An index for shards that somebody else wrote: WebDataset tar files with no index of ours.
//!
//! It is made when a folder is first opened and kept beside the shards, or in the user's cache
//! where the folder cannot be written. Only headers and labels are read, so the shards' hashes stay
//! unknown (0). With each shard it keeps what the system says of the file, and a hash of what was
//! read. A shard of which the system says something else is read again: where the hash is the same
//! it was only copied or touched, else the index is made anew.

mod shard;

use std::collections::HashSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::files::replace_file;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use self::shard::{Found, Shard, hash, read_members, read_shard};
use super::{INDEX_FILE, Index, IndexWriter};
use crate::container::{self, Choice, Members, ShardName, Skipped, Split};
use crate::error::Error;
use crate::folder::Folder;
use crate::shard::Written;

/// What to do where shards cannot be read in place.
const MEND: &str =
    "`shard-imagenet build --layout webdataset` makes a data folder of what is sound";

/// The same where an option could help.
const MEND_BY_OPTION: &str = "`shard-imagenet index DIR` takes these options, and so does \
                              `shard-imagenet build --layout webdataset`, which makes a data folder";

/// A file that changed less than this before it was read may change again without a new time of
/// change: file systems count it in steps of up to 2 s.
const UNSURE: Duration = Duration::from_secs(2);

/// How an index was made of shards that came without one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    /// Which members were taken for images and labels.
    pub choice: Choice,
    /// What was passed over.
    pub skipped: Skipped,
}

/// What tells whether a shard is the file that was scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Time of the last change of content or of times, nanoseconds since 1970; [`i64::MIN`] where that
    /// could not be relied on.
    pub(super) mtime: i64,
    pub(super) inode: u64,
    /// Of the samples, as headers and labels tell them.
    pub(super) hash: u64,
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        let nanos = |seconds: i64, rest| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        // The one can be set to any time, as `cp -p` does; the other tells of that.
        let mtime = nanos(file.mtime(), file.mtime_nsec());
        let mtime = mtime.max(nanos(file.ctime(), file.ctime_nsec()));
        Self { mtime, inode: file.ino(), hash: 0 }
    }

    /// The stamp to keep of a file that is read now.
    fn kept(file: &Metadata) -> Self {
        let stamp = Self::of(file);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_nanos() as i128);
        let sure = now - i128::from(stamp.mtime) > UNSURE.as_nanos() as i128;
        if sure { stamp } else { Self { mtime: i64::MIN, ..stamp } }
    }

    fn same_file(&self, other: &Self) -> bool {
        (self.mtime, self.inode) == (other.mtime, other.inode)
    }
}

/// Opens the folder's index, or makes one where the folder holds shards only.
pub(super) fn open(folder: &Folder) -> Result<Index, Error> {
    let dir = match folder {
        Folder::Local(dir) => dir.as_path(),
        Folder::Remote(remote) => {
            return match Index::read_in(folder) {
                Err(Error::EmptyFolder { .. }) => Err(no_index(remote.url())),
                other => other,
            };
        }
    };
    let beside = match Index::read_in(folder) {
        Ok(index) if !index.is_scanned() => return Ok(index),
        Ok(index) => Some(index),
        Err(Error::EmptyFolder { .. }) => None,
        Err(error) => return Err(error),
    };
    let shards = shards_of(dir)?;
    let cached = cache_path(dir).filter(|path| path.exists());
    let cached = cached.and_then(|path| Index::read_at(folder, &path).ok());
    let written = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let later = cache_path(dir).and_then(|path| written(&path)) > written(&dir.join(INDEX_FILE));
    // The one that was written later has the choice that was made last.
    let both = if later { [cached, beside] } else { [beside, cached] };
    let mut known: Vec<Index> = both.into_iter().flatten().filter(Index::is_scanned).collect();
    let changed: Vec<_> = known.iter().map(|index| changed(index, &shards)).collect();
    if let Some(found) = changed
        .iter()
        .position(|changed| matches!(changed, Changed::Shards(shards) if shards.is_empty()))
    {
        return Ok(known.swap_remove(found));
    }
    for (index, changed) in known.iter().zip(&changed) {
        let Changed::Shards(numbers) = changed else { continue };
        if let Some(stamps) = checked(index, numbers)? {
            return keep_or_hold(folder, dir, index.restamped(&stamps));
        }
    }
    let choice = known
        .first()
        .and_then(Index::scan)
        .map_or_else(Choice::default, |scan| scan.choice.clone());
    if let (Some(index), Some(changed)) = (known.first(), changed.first()) {
        tracing::warn!(
            "{}: {}: reading its shards' headers again",
            dir.display(),
            changed.describe(index)
        );
    }
    keep_or_hold(folder, dir, scan(dir, &shards, &choice)?)
}

/// Makes the index of a folder of shards anew, whatever index it has, unless it was built.
pub(super) fn make(folder: &Folder, choice: &Choice) -> Result<Index, Error> {
    let Folder::Local(dir) = folder else {
        return Err(foreign(
            folder.path(),
            "shards behind a URL cannot be listed",
            "index the folder where it lies",
        ));
    };
    match Index::read_in(folder) {
        Ok(index) if !index.is_scanned() => {
            let problem = "it has the index that it was built with";
            return Err(foreign(dir, problem, "read it as it is"));
        }
        Err(error @ (Error::NoFolder { .. } | Error::Io { .. })) => return Err(error),
        _ => {}
    }
    keep(folder, dir, &scan(dir, &shards_of(dir)?, choice)?)
}

fn foreign(dir: &Path, problem: impl Into<String>, mend: &str) -> Error {
    Error::Foreign { dir: dir.to_path_buf(), problem: problem.into(), mend: mend.into() }
}

/// Shards behind a URL cannot be listed, and reading them all to make an index would take as long
/// as an epoch.
fn no_index(url: &Path) -> Error {
    Error::Remote {
        action: "read",
        url: url.join(INDEX_FILE),
        problem: "it is not there, and without it nothing is known of the shards".into(),
        mend: "check the URL; for shards that another program wrote, run `shard-imagenet index DIR` \
               once where the folder lies and copy the index.bin that this makes beside them",
        input: true,
    }
}

/// Where the index of a folder that cannot be written is kept.
pub(super) fn cache_path(dir: &Path) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    // The standard has it that a relative one is ignored.
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.filter(|path| path.is_absolute()).or(home)?;
    let dir = dir.canonicalize().ok()?;
    let name = format!("{:016x}.bin", xxh3_64(dir.as_os_str().as_encoded_bytes()));
    Some(cache.join("bigbigan").join("indexes").join(name))
}

/// Writes an index beside the shards, or into the cache where that cannot be done, and reads it.
fn keep(folder: &Folder, dir: &Path, bytes: &[u8]) -> Result<Index, Error> {
    let beside = dir.join(INDEX_FILE);
    let refused = match replace_file(&beside, bytes) {
        Ok(()) => return Index::read_in(folder),
        Err(error) => Error::io("write", &beside)(error),
    };
    let cached = cache_path(dir).ok_or(refused)?;
    if let Some(parent) = cached.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    replace_file(&cached, bytes).map_err(Error::io("write", &cached))?;
    Index::read_at(folder, &cached)
}

/// The same; an index that can be kept nowhere is held in memory, and made again the next time.
fn keep_or_hold(folder: &Folder, dir: &Path, bytes: Vec<u8>) -> Result<Index, Error> {
    keep(folder, dir, &bytes).or_else(|error| {
        let dir = dir.display();
        tracing::warn!("{dir}: its index cannot be kept, and is made again each time: {error}");
        Index::parse(folder, folder.path().join(INDEX_FILE), bytes)
    })
}

/// How the shards of a folder differ from those its index was made of.
enum Changed {
    /// There are others.
    Names,
    /// The index does not say what they were.
    Unknown,
    /// The system says other things of these, by number.
    Shards(Vec<usize>),
}

impl Changed {
    fn describe(&self, index: &Index) -> String {
        match self {
            Self::Names => {
                "shards came, went or are of another split than when it was indexed".into()
            }
            Self::Unknown => {
                "its index is of an older version, which cannot tell whether shards changed".into()
            }
            Self::Shards(numbers) => {
                let name = numbers.first().map_or("", |&number| &*index.shards()[number].name);
                format!("{name} is not what it was when it was indexed")
            }
        }
    }
}

fn changed(index: &Index, shards: &[(Split, String)]) -> Changed {
    let known = index.splits().iter().flat_map(|split| {
        index.shards()[split.shards.clone()].iter().map(|shard| (&*split.name, &*shard.name))
    });
    if !known.eq(shards.iter().map(|(split, name)| (split.name(), &**name))) {
        return Changed::Names;
    }
    if index.stamps().is_empty() && !shards.is_empty() {
        return Changed::Unknown;
    }
    let other = |&number: &usize| {
        let Ok(file) = std::fs::metadata(index.shard_path(number)) else { return true };
        let same = index.stamps()[number].same_file(&Stamp::of(&file));
        !same || file.len() != index.shards()[number].bytes
    };
    Changed::Shards((0..shards.len()).filter(other).collect())
}

/// The stamps of an index with these shards' made anew; none where one is no longer what it was.
fn checked(index: &Index, shards: &[usize]) -> Result<Option<Vec<Stamp>>, Error> {
    let choice = index.scan().map_or_else(Choice::default, |scan| scan.choice.clone());
    let mut stamps = index.stamps().to_vec();
    for &number in shards {
        let path = index.shard_path(number);
        if std::fs::metadata(&path).map_err(Error::io("open", &path))?.len()
            != index.shards()[number].bytes
        {
            return Ok(None);
        }
        // What is wrong with it now is for the scan to say.
        let Ok(shard) = read_shard(&path, &choice) else { return Ok(None) };
        if shard.stamp.hash != stamps[number].hash {
            return Ok(None);
        }
        stamps[number] = shard.stamp;
    }
    Ok(Some(stamps))
}

/// The folder's shards with their splits, in the order of the splits, then of their names.
fn shards_of(dir: &Path) -> Result<Vec<(Split, String)>, Error> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let name = entry.map_err(Error::io("list", dir))?.file_name();
        let shard = ShardName::of(&name.to_string_lossy()).map(|shard| shard.compressed);
        let Some(compressed) = shard else { continue };
        if dir.join(&name).is_dir() {
            continue;
        }
        let Some(name) = name.to_str() else {
            let problem = format!("the name of {} is not UTF-8", name.display());
            return Err(foreign(dir, problem, "rename it"));
        };
        if compressed {
            let problem = format!("{name} is compressed, so it cannot be read in place");
            return Err(foreign(dir, problem, MEND));
        }
        names.push(name.to_owned());
    }
    if names.is_empty() {
        return Err(Error::EmptyFolder { dir: dir.to_path_buf() });
    }
    names.sort();
    let stems: Vec<_> =
        names.iter().map(|name| ShardName::of(name).map_or(&**name, |shard| shard.stem)).collect();
    let splits = container::splits(&stems).map_err(|mixed| {
        let mend = "rename it (train, val or test in the name), or build each split from a folder of \
                    its own: `shard-imagenet build --layout webdataset --split NAME`";
        foreign(dir, mixed.to_string(), mend)
    })?;
    let mut shards: Vec<_> = splits.into_iter().zip(names).collect();
    shards.sort();
    Ok(shards)
}

fn scan(dir: &Path, shards: &[(Split, String)], choice: &Choice) -> Result<Vec<u8>, Error> {
    let mut index = IndexWriter::new();
    let (mut stamps, mut skipped) = (Vec::new(), Skipped::new());
    for of_split in shards.chunk_by(|a, b| a.0 == b.0) {
        index.begin_split(of_split[0].0.name())?;
        let mut scanned = Vec::with_capacity(of_split.len());
        for (_, name) in of_split {
            let shard = read_shard(&dir.join(name), choice)?;
            stamps.push(shard.stamp);
            skipped.merge(shard.skipped.clone());
            scanned.push((&**name, shard));
        }
        check_labels(dir, &scanned)?;
        make_keys_unique(&mut scanned);
        if scanned.iter().all(|(_, shard)| shard.samples.is_empty()) {
            let there = match skipped.is_empty() {
                true => String::new(),
                false => format!(" (there are {})", skipped.to_string().replace('\n', ", ")),
            };
            let what = format!(
                "no shard of the split holds a KEY.jpg or KEY.png{there}; ImageNet's own archives \
                 become shards by `shard-imagenet build`"
            );
            return Err(Error::format(&dir.join(&of_split[0].1), 0, what));
        }
        for (name, shard) in scanned {
            for Found { key, entry, label, format, .. } in shard.samples {
                index.sample(&key, entry, label, format, (0, 0));
            }
            index.end_shard(name, Written { bytes: shard.bytes, xxh3: 0 })?;
        }
    }
    index.check_keys(dir)?;
    for (kind, count, example) in skipped.iter() {
        tracing::warn!("{}: passed over {count} {kind}, such as {example}", dir.display());
    }
    let scan = Scan { choice: choice.clone(), skipped };
    Ok(index.scanned(stamps, scan).to_bytes())
}

/// All samples of a split have labels, or none has.
fn check_labels(dir: &Path, shards: &[(&str, Shard)]) -> Result<(), Error> {
    let mut all =
        shards.iter().flat_map(|(name, shard)| shard.samples.iter().map(move |s| (name, s)));
    let Some((_, first)) = all.next() else { return Ok(()) };
    let labelled = first.label.is_some();
    match all.find(|(_, sample)| sample.label.is_some() != labelled) {
        None => Ok(()),
        Some((name, sample)) => {
            let what = format!(
                "sample {:?}: some samples of the split have a label (.cls, or \"label\" in .json) and \
                 some have none; {MEND}",
                sample.key
            );
            Err(Error::format(&dir.join(name), sample.entry.offset, what))
        }
    }
}

/// Where a key comes again in a split, as in shards that each count from 0, every key of the split
/// gets its shard's name in front; where that is not enough, later ones end in `-2`, `-3` and so on.
fn make_keys_unique(shards: &mut [(&str, Shard)]) {
    let unique = {
        let mut taken = HashSet::new();
        shards.iter().flat_map(|(_, shard)| &shard.samples).all(|found| taken.insert(&*found.key))
    };
    if unique {
        return;
    }
    let mut taken: HashSet<String> = HashSet::new();
    for (name, shard) in shards {
        let stem = ShardName::of(name).map_or(&**name, |shard| shard.stem);
        for found in &mut shard.samples {
            let key = match found.archive {
                0 => format!("{stem}/{}", found.key),
                // Further archives in the same file.
                archive => format!("{stem}-{}/{}", archive + 1, found.key),
            };
            let (mut free, mut copy) = (key.clone(), 2);
            while !taken.insert(free.clone()) {
                free = format!("{key}-{copy}");
                copy += 1;
            }
            found.key = free;
        }
    }
}

impl Index {
    /// Reads headers and labels of a shard, which `file` is, and says where they are not what the index
    /// says of them: a line for each, which begins with the shard's name.
    ///
    /// # Errors
    /// The shard cannot be read, or is no archive as [`crate::container`] says.
    ///
    /// # Panics
    /// When `shard` is not below the number of shards.
    pub fn differences(
        &self,
        shard: usize,
        file: &crate::shard::Shard,
    ) -> Result<Vec<String>, Error> {
        let (record, path) = (&self.shards[shard], self.shard_path(shard));
        let members = Members::seek(file.reader()).map_err(Error::io("read", &path))?;
        let read = |entry| file.read(entry).map(Vec::from);
        let choice = self.scan().map_or_else(Choice::default, |scan| scan.choice.clone());
        let (found, skipped) = read_members(&path, members, &read, &choice)?;
        let mut problems = Vec::new();
        let mut tell = |what: String| problems.push(format!("{}: {what}", record.name));
        if self.is_scanned() {
            let stamp = self.stamps().get(shard);
            if stamp.is_some_and(|stamp| stamp.hash != hash(&found)) {
                tell("is not what it was when it was indexed".to_owned());
            }
            return Ok(problems);
        }
        let mut found = found.into_iter();
        for sample in record.samples.clone() {
            let (key, known) = (self.key(sample), self.record(sample));
            match found.next() {
                None => tell(format!("{key} is missing from the archive")),
                Some(found) if found.key != key => {
                    tell(format!("{key} is {} in the archive", found.key));
                }
                Some(found) if found.entry != known.entry => {
                    tell(format!("{key} is elsewhere than the index says"));
                }
                Some(found) if found.label != known.label => {
                    tell(format!("{key} has another label in the archive than in the index"));
                }
                Some(_) => {}
            }
        }
        if let Some(found) = found.next() {
            tell(format!("{} is not in the index", found.key));
        }
        for (kind, count, example) in skipped.iter() {
            tell(format!("{count} {kind} are not in the index, such as {example}"));
        }
        Ok(problems)
    }
}

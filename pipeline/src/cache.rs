//! A folder that keeps parts of remote shards, one file each, for later epochs and runs.
//!
//! Any number of processes may share it: a file appears whole or not at all (written aside, then
//! renamed), ends with its own checksum, and whoever finds it gone reads the server again. The time
//! of last use is the file's modification time, so that all processes agree on what is oldest.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use common::files::replace_file;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::Error;

const CHECKSUM: usize = 8;
const EXTENSION: &str = "part";
/// A file aside that was not renamed after so long belongs to a process that died.
const STALE: Duration = Duration::from_secs(3600);

/// The parts of one data folder, in a cache folder that other data folders may use as well.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
    dir: PathBuf,
    limit: u64,
    fresh: AtomicU64, // bytes written since the folder was last measured
    sound: Mutex<HashSet<PathBuf>>, // files whose checksum this process has seen to be right
    failed: AtomicBool,
}

impl Cache {
    /// Opens the cache folder `root` for the data folder `identity`.
    pub(crate) fn open(root: &Path, limit: u64, identity: &str) -> Result<Self, Error> {
        let dir = root.join(format!("{:016x}", xxh3_64(identity.as_bytes())));
        fs::create_dir_all(&dir).map_err(Error::io("create the cache folder", &dir))?;
        let cache = Self {
            root: root.to_path_buf(),
            dir,
            limit,
            fresh: AtomicU64::new(0),
            sound: Mutex::default(),
            failed: AtomicBool::new(false),
        };
        cache.evict().map_err(Error::io("list the cache folder", root))?;
        Ok(cache)
    }

    /// The file of the part of `shard` that starts at byte `start`.
    pub(crate) fn part(&self, shard: &str, start: u64) -> PathBuf {
        self.dir.join(format!("{shard}.{start}.{EXTENSION}"))
    }

    /// Bytes of a part that is `length` bytes long; none where the cache has no sound copy.
    pub(crate) fn get(&self, part: &Path, length: u64, range: Range<u64>) -> Option<Vec<u8>> {
        let file = File::options().read(true).write(true).open(part).ok()?;
        let whole = usize::try_from(length).ok()?;
        let known = self.sound.lock().is_ok_and(|sound| sound.contains(part));
        if !known {
            // The length may be anything that an index claims.
            let stored = file.metadata().map_or(0, |file| file.len());
            if stored.checked_sub(CHECKSUM as u64) != Some(length) {
                let _ = fs::remove_file(part);
                return None;
            }
            let mut bytes = vec![0; whole + CHECKSUM];
            let read = file.read_exact_at(&mut bytes, 0);
            let (body, checksum) = bytes.split_at(whole);
            if read.is_err() || xxh3_64(body).to_le_bytes() != checksum {
                let _ = fs::remove_file(part);
                return None;
            }
            if let Ok(mut sound) = self.sound.lock() {
                sound.insert(part.to_path_buf());
            }
        }
        let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
        file.read_exact_at(&mut bytes, range.start).ok()?;
        // Should this fail, the part only looks older than it is.
        let _ = file.set_modified(SystemTime::now());
        Some(bytes)
    }

    /// Keeps a whole part. A folder that cannot take it is told of once, and changes only speed.
    pub(crate) fn put(&self, part: &Path, bytes: &[u8]) {
        let mut content = Vec::with_capacity(bytes.len() + CHECKSUM);
        content.extend_from_slice(bytes);
        content.extend_from_slice(&xxh3_64(bytes).to_le_bytes());
        let written =
            replace_file(part, &content).map_err(Error::io("write", part)).and_then(|()| {
                let fresh = self.fresh.fetch_add(content.len() as u64, Ordering::Relaxed);
                match fresh + content.len() as u64 > self.limit / 16 {
                    true => self.evict().map_err(Error::io("list the cache folder", &self.root)),
                    false => Ok(()),
                }
            });
        if let Err(error) = written
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let cause = cause.unwrap_or_default();
            tracing::warn!("{error}: {cause}; what the cache lacks is read from the server again");
        }
    }

    /// Removes what was not used for longest until a sixteenth of the limit is free.
    fn evict(&self) -> io::Result<()> {
        // One at a time, of all threads and processes: two that list the same parts while their times of use change
        // remove more than either means to, up to all. Whoever finds another at it leaves it to that one, and
        // waits for nobody: a process may be stopped. Where files cannot be locked, all go on at once.
        let turn = File::open(&self.root);
        if let Ok(file) = &turn
            && let Err(TryLockError::WouldBlock) = file.try_lock()
        {
            return Ok(());
        }
        self.fresh.store(0, Ordering::Relaxed);
        let mut parts = Vec::new();
        let mut total = 0;
        for folder in fs::read_dir(&self.root)? {
            let folder = folder?.path();
            // Only what a cache made is looked at, and so only that is ever removed.
            let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.len() != 16 || u64::from_str_radix(name, 16).is_err() || !folder.is_dir() {
                continue;
            }
            for file in fs::read_dir(&folder)? {
                let path = file?.path();
                // Another process may have removed it meanwhile.
                let Ok(data) = fs::metadata(&path) else { continue };
                let used = data.modified()?;
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if name.starts_with('.') && name.ends_with(".tmp") {
                    if used.elapsed().is_ok_and(|age| age > STALE) {
                        let _ = fs::remove_file(&path);
                    }
                } else if path.extension().is_some_and(|extension| extension == EXTENSION) {
                    total += data.len();
                    parts.push((used, data.len(), path));
                }
            }
        }
        parts.sort();
        let mut parts = parts.into_iter();
        let enough = self.limit - self.limit / 16;
        while total > enough
            && let Some((_, length, path)) = parts.next()
        {
            let _ = fs::remove_file(&path);
            if let Ok(mut sound) = self.sound.lock() {
                sound.remove(&path);
            }
            total -= length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let open = |limit| Cache::open(dir.path(), limit, "http://host/data").unwrap();
        let cache = open(1 << 20);
        let part = |number: u64| cache.part("train-000000.tar", number);
        for number in 0..4 {
            cache.put(&part(number), &[number as u8; 1000]);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(cache.get(&part(0), 1000, 10..20), Some(vec![0; 10]));
        let other = Cache::open(dir.path(), 1 << 20, "http://host/other").unwrap();
        assert_ne!(other.part("train-000000.tar", 0), part(0));

        // There is room for two of the four, and opening makes it.
        let cache = open(2300);
        let there = [0, 1, 2, 3].map(|number| cache.get(&part(number), 1000, 0..1).is_some());
        assert_eq!(there, [true, false, false, true]);
    }

    #[test]
    fn what_dead_processes_left_behind_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 1 << 20, "x").unwrap();
        let aside = cache.dir.join(".train-000000.tar.0.77-0.tmp");
        let strange = dir.path().join(".tmp");
        for path in [&aside, &strange] {
            let file = File::create(path).unwrap();
            cache.evict().unwrap();
            assert!(path.exists(), "it may be in use");
            file.set_modified(SystemTime::now() - 2 * STALE).unwrap();
        }
        cache.evict().unwrap();
        assert!(!aside.exists() && strange.exists());
    }
}

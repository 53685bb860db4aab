//! Makes the seek points of a folder.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use common::files::rename;
use rustix::fs::OFlags;

use super::{
    CACHED, EVERY, HEADER, MAGIC, SEEK_FILE, SeekFile, SeekReport, VERSION, checksum_of,
    checksum_of_points,
};
use crate::decode::{DecodeOptions, Decoder};
use crate::error::{Error, Fault};
use crate::index::Index;
use crate::shard::{Shard, temporary_beside};

/// Samples that a thread works on at a time.
const BLOCK: usize = 64;

impl SeekFile {
    /// Makes the file for a folder of this machine, from all of its JPEGs, on `threads` threads: beside
    /// the shards, or in the user's cache where that cannot be written. It replaces one that is there. `each`
    /// is called for each sample, with the bytes of its image.
    ///
    /// # Errors
    /// [`Error::Foreign`] behind a URL; [`Error::Io`], [`Error::ShardTruncated`]; [`Error::Stopped`] once
    /// `stop` is set. Nothing is left of it then. Nor is there a file where no sample has points.
    pub fn make(
        index: &Index,
        threads: usize,
        stop: &AtomicBool,
        each: &(dyn Fn(u64) + Sync),
    ) -> Result<SeekReport, Error> {
        let Some(places) = index.places(SEEK_FILE, CACHED) else {
            return Err(Error::Foreign {
                dir: index.dir().to_path_buf(),
                problem: "seek points are for folders of this machine".into(),
                mend: "leave them out: a folder behind a URL is read without".into(),
            });
        };
        let mut refused = None;
        for path in places {
            if refused.is_some()
                && let Some(parent) = path.parent()
            {
                std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            }
            let (file, temporary) = match aside(&path) {
                Ok(aside) => aside,
                Err(error) if unwritable(&error) && refused.is_none() => {
                    refused = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Of the same open file, so it is locked until what is left of it is gone.
            let lock = file.try_clone().map_err(Error::io("create", &temporary))?;
            let made = fill(index, threads, (stop, each), (file, &temporary, &path));
            if made.is_err() && is(&lock, &temporary) {
                let _ = std::fs::remove_file(&temporary);
            }
            return made;
        }
        Err(refused.unwrap_or(Error::Stopped))
    }
}

fn unwritable(error: &Error) -> bool {
    let Error::Io { source, .. } = error else { return false };
    matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// Whether a file has this name.
fn is(file: &File, path: &Path) -> bool {
    let place = |file: std::fs::Metadata| (file.dev(), file.ino());
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(file), Ok(named)) => place(file) == place(named),
        _ => false,
    }
}

/// Opens the file that becomes `path`, empty and for this process alone. One that a process left which was
/// killed is used again.
fn aside(path: &Path) -> Result<(File, PathBuf), Error> {
    let temporary = temporary_beside(path);
    let io = || Error::io("create", &temporary);
    loop {
        // Neither through a link nor to a pipe, which is no file of ours.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(false).custom_flags(flags);
        let file = options.open(&temporary).map_err(io())?;
        // Nor to what has another name too.
        let there = file.metadata().map_err(io())?;
        if !there.is_file() || there.nlink() > 1 {
            return Err(io()(std::io::Error::other("it is there and no file of ours")));
        }
        // A file system without locks has none to ask.
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(Error::Foreign {
                dir: path.to_path_buf(),
                problem: "another process is making it".into(),
                mend: "wait until that ends".into(),
            });
        }
        // That process may have finished it since.
        if is(&file, &temporary) {
            file.set_len(0).map_err(io())?;
            return Ok((file, temporary));
        }
    }
}

/// Writes the file and gives it its name, if it has anything to say.
fn fill(
    index: &Index,
    threads: usize,
    run: (&AtomicBool, &(dyn Fn(u64) + Sync)),
    (file, temporary, path): (File, &Path, &Path),
) -> Result<SeekReport, Error> {
    let io = |error| Error::io("write", path)(error);
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let report = write(index, threads, run, &mut out, io)?;
    if report.pictures == 0 {
        std::fs::remove_file(temporary).map_err(io)?;
        if let Err(error) = std::fs::remove_file(path)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(Error::io("remove", path)(error));
        }
        return Ok(SeekReport { bytes: 0, ..report });
    }
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    rename(temporary, path).map_err(io)?;
    Ok(SeekReport { path: path.to_path_buf(), ..report })
}

/// The records of some samples that follow each other.
struct Block {
    records: Vec<u8>,
    lengths: Vec<usize>,
    report: SeekReport,
}

fn head_of(index: &Index) -> [u8; HEADER] {
    let mut head = [0; HEADER];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..16].copy_from_slice(&u32::from(EVERY).to_le_bytes());
    head[16..24].copy_from_slice(&(index.len() as u64).to_le_bytes());
    head[24..].copy_from_slice(&index.fingerprint().to_le_bytes());
    head
}

/// Writes the whole file.
fn write(
    index: &Index,
    threads: usize,
    (stop, each): (&AtomicBool, &(dyn Fn(u64) + Sync)),
    out: &mut impl Write,
    io: impl Fn(std::io::Error) -> Error + Copy,
) -> Result<SeekReport, Error> {
    let head = head_of(index);
    out.write_all(&head).map_err(io)?;
    let shards =
        (0..index.shards().len()).map(|n| index.shard(n)).collect::<Result<Vec<_>, _>>()?;
    let (next, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let ended = AtomicBool::new(false);
    let (sender, blocks) = mpsc::sync_channel(2 * threads.max(1));
    let work = |sender: mpsc::SyncSender<(usize, Result<Block, Error>)>| {
        let no_memory = |fault: Fault| Error::Memory { bytes: 0, reason: fault.to_string() };
        let mut decoder = Decoder::new(DecodeOptions::default()).map_err(no_memory);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number * BLOCK >= index.len() || ended.load(Ordering::Relaxed) {
                return;
            }
            // So that no more is held than that while one block takes long.
            while number > taken.load(Ordering::Relaxed) + 16 * threads.max(1) {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let made = match &mut decoder {
                Ok(decoder) => block(index, &shards, number, decoder, (stop, each)),
                Err(error) => Err(std::mem::replace(error, Error::Stopped)),
            };
            if sender.send((number, made)).is_err() {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        let work = &work;
        for _ in 0..threads.max(1) {
            let sender = sender.clone();
            scope.spawn(move || work(sender));
        }
        drop(sender);
        let result = in_order(&blocks, &taken, out, io);
        // Threads that wait to send find nobody, and the others no more work.
        ended.store(true, Ordering::Relaxed);
        drop(blocks);
        let (mut report, table, end) = result?;
        out.write_all(&table).map_err(io)?;
        out.write_all(&checksum_of(&head, &table).to_le_bytes()).map_err(io)?;
        report.bytes = HEADER as u64 + end + table.len() as u64 + 8;
        Ok(report)
    })
}

/// Blocks as threads send them.
type Blocks = mpsc::Receiver<(usize, Result<Block, Error>)>;

/// Writes the records of blocks in their order; gives what came of them, the table of ends, and the last of these.
fn in_order(
    blocks: &Blocks,
    taken: &AtomicUsize,
    out: &mut impl Write,
    io: impl Fn(std::io::Error) -> Error + Copy,
) -> Result<(SeekReport, Vec<u8>, u64), Error> {
    let (mut report, mut table, mut end) = (SeekReport::default(), Vec::new(), 0u64);
    let (mut early, mut wanted) = (BTreeMap::new(), 0);
    for (number, block) in blocks {
        early.insert(number, block?);
        while let Some(Block { records, lengths, report: part }) = early.remove(&wanted) {
            wanted += 1;
            taken.store(wanted, Ordering::Relaxed);
            out.write_all(&records).map_err(io)?;
            for length in lengths {
                end += length as u64;
                table.extend_from_slice(&end.to_le_bytes());
            }
            report.pictures += part.pictures;
            report.without += part.without;
            report.damaged += part.damaged;
        }
    }
    Ok((report, table, end))
}

/// The points of one block of samples.
fn block(
    index: &Index,
    shards: &[Shard],
    number: usize,
    decoder: &mut Decoder,
    (stop, each): (&AtomicBool, &(dyn Fn(u64) + Sync)),
) -> Result<Block, Error> {
    let mut block =
        Block { records: Vec::new(), lengths: Vec::new(), report: SeekReport::default() };
    let (mut image, mut points) = (Vec::new(), Vec::new());
    for sample in number * BLOCK..((number + 1) * BLOCK).min(index.len()) {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        let record = index.record(sample);
        shards[record.shard].read_into(record.entry, &mut image)?;
        let before = block.records.len();
        match decoder.seek_points(&image, EVERY, &mut points) {
            Ok(()) if points.is_empty() => block.report.without += 1,
            Ok(()) => {
                block.report.pictures += 1;
                block.records.extend_from_slice(&checksum_of_points(&points, &image));
                block.records.extend_from_slice(&points);
            }
            // What is wrong with it is for the loader to say, when it is drawn.
            Err(_) => block.report.damaged += 1,
        }
        block.lengths.push(block.records.len() - before);
        each(u64::from(record.entry.length));
    }
    Ok(block)
}

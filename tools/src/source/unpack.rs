//! Archives that are compressed: as they come, or unpacked so that their members can be read in any
//! order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use pipeline::container::Compression;

use crate::Error;

/// The bytes that a compressed stream stands for.
///
/// # Errors
/// The compression is one that is not read here.
pub(super) fn decoder(
    path: &Path,
    compression: Compression,
    reader: impl Read + 'static,
) -> Result<Box<dyn Read>, Error> {
    Ok(match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::new(reader))),
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::new(reader);
            Box::new(decoder.map_err(Error::io(path, "unpack it"))?)
        }
        Compression::Bzip2 | Compression::Xz => {
            let tool = if compression == Compression::Bzip2 { "bunzip2" } else { "unxz" };
            let mend = format!("unpack it first ({tool}); gzip and zstd are read as they are");
            return Err(Error::input(path, format!("is compressed with {compression}"), mend));
        }
    })
}

/// The error of a compressed stream that could not be read on.
pub(super) fn failed(path: &Path, error: io::Error) -> Error {
    use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    match error.kind() {
        UnexpectedEof => {
            Error::input(path, "is compressed, and cut short", "fetch the archive again")
        }
        InvalidData | InvalidInput | Other if error.raw_os_error().is_none() => {
            let problem = format!("is compressed, and damaged ({error})");
            Error::input(path, problem, "fetch the archive again")
        }
        _ => Error::io(path, "read it")(error),
    }
}

/// Archives that were compressed, one behind the other in a file that has no name and goes with the
/// process.
#[derive(Debug, Default)]
pub struct Unpacked {
    file: Option<File>,
    length: u64,
    /// Where each archive begins, by its number in the catalog.
    starts: BTreeMap<u32, u64>,
}

impl Unpacked {
    /// Unpacks an archive; gives where it lies now.
    pub(super) fn add(
        &mut self,
        number: u32,
        archive: &File,
        path: &Path,
        compression: Compression,
        scratch: &Path,
    ) -> Result<Range<u64>, Error> {
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile_in(scratch).map_err(Error::open(scratch))?);
        }
        let mut out = self.file(path)?;
        let archive = archive.try_clone().map_err(Error::open(path))?;
        let mut reader = decoder(path, compression, archive)?;
        let start = self.length;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(path, error)),
            };
            let doing = "unpack a compressed shard into a temporary file here";
            out.write_all(&buffer[..read]).map_err(Error::io(scratch, doing))?;
            self.length += read as u64;
        }
        self.starts.insert(number, start);
        Ok(start..self.length)
    }

    /// The file of them all.
    pub(super) fn file(&self, path: &Path) -> Result<File, Error> {
        let file = self.file.as_ref().expect("made with the first archive");
        file.try_clone().map_err(Error::open(path))
    }

    /// Reads from an archive by its number; none where it is not among them.
    pub(crate) fn read(
        &self,
        number: u32,
        bytes: &mut [u8],
        offset: u64,
    ) -> Option<io::Result<()>> {
        let start = self.starts.get(&number)?;
        Some(self.file.as_ref()?.read_exact_at(bytes, start + offset))
    }
}

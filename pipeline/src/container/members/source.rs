//! Where an archive's bytes come from.

use std::io::{self, BufReader, Read, Seek};

/// What bytes are read from, or passed over in.
pub(super) trait Source {
    /// Reads up to `buffer.len()` bytes; fewer only at the end.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Passes over so many bytes, and says how many there were.
    fn skip(&mut self, bytes: u64) -> io::Result<u64>;
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What can only be read.
pub(super) struct Streamed<R>(pub(super) BufReader<R>);

impl<R: Read> Source for Streamed<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        fill(&mut self.0, buffer)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        io::copy(&mut self.0.by_ref().take(bytes), &mut io::sink())
    }
}

/// What can be sought: data are never read.
pub(super) struct Sought<R> {
    pub(super) reader: BufReader<R>,
    pub(super) at: u64,
    pub(super) length: u64,
}

impl<R: Read + Seek> Source for Sought<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = fill(&mut self.reader, buffer)?;
        self.at += read as u64;
        Ok(read)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let bytes = bytes.min(self.length.saturating_sub(self.at));
        let by = i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.reader.seek_relative(by)?;
        self.at += bytes;
        Ok(bytes)
    }
}

//! Seek points: places in the data of a JPEG that decoding can begin at, so that a window needs neither
//! what lies above it nor what lies beside it.
//!
//! A point says where in the file an MCU begins, to the bit, and the DC level of each component before
//! it, which is all that a Huffman decoder carries from one MCU to the next. Files stay as they are:
//! restart markers, which do the same, must be written into them. After zran (Adler) and the point
//! lists of indexed_gzip, for another format.
//!
//! # Layout
//! Little-endian, a record for each MCU whose number is a multiple of `every`, but the first one: bits from
//! the first byte behind the scan's header u32, then an i16 for each component of the scan.

use crate::error::Fault;
use crate::jpeg::Part;

/// Where an MCU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    /// The byte of the data, stuffed ones counted, and how many of its bits are of the MCU before.
    pub(super) byte: usize,
    pub(super) bit: u32,
    /// DC levels, by the component's place in the scan.
    pub(super) dc: [i32; 4],
}

impl Point {
    /// Appends the record of a point of so many components; none where the place is beyond 512 MiB.
    pub(super) fn write(&self, components: usize, out: &mut Vec<u8>) -> Option<()> {
        let bits = u64::from(self.bit) + 8 * self.byte as u64;
        let bits = u32::try_from(bits).ok()?;
        out.extend_from_slice(&bits.to_le_bytes());
        for &level in &self.dc[..components] {
            out.extend_from_slice(&(level as i16).to_le_bytes());
        }
        Some(())
    }
}

/// Seek points of one picture, as [`Decoder::seek_points`](super::Decoder::seek_points) makes them.
#[derive(Debug, Clone, Copy, Default)]
pub struct SeekPoints<'a> {
    /// MCUs from one to the next; 0 where there are none.
    every: usize,
    records: &'a [u8],
}

impl<'a> SeekPoints<'a> {
    /// No point: decoding begins with the first MCU, or at a restart marker.
    pub const NONE: Self = Self { every: 0, records: &[] };

    /// Points at every so many MCUs, of which [`Decoder::seek_points`](super::Decoder::seek_points) wrote
    /// `records`. Whether they fit a picture is seen when it is decoded.
    pub fn new(every: u16, records: &'a [u8]) -> Self {
        if records.is_empty() || every == 0 {
            return Self::NONE;
        }
        Self { every: every.into(), records }
    }

    /// Their bytes.
    pub(crate) fn records(&self) -> &'a [u8] {
        self.records
    }

    /// MCUs from one point to the next; 0 where there are none.
    pub(super) fn every(&self) -> usize {
        self.every
    }

    /// Checks that there are as many as a picture of these MCUs and components has.
    pub(super) fn check(&self, part: &Part, components: usize) -> Result<(), Fault> {
        let points = (part.columns * part.rows).saturating_sub(1).checked_div(self.every);
        let wanted = points.map_or(0, |points| points * size(components));
        if self.records.len() != wanted {
            let found = self.records.len();
            return Err(Fault::SeekPoints(format!("{found} bytes, and {wanted} are needed")));
        }
        Ok(())
    }

    /// The point of MCU `number * every`; none of the first one, and where there is no such MCU.
    pub(super) fn get(&self, number: usize, components: usize) -> Option<Point> {
        let size = size(components);
        let start = number.checked_sub(1)?.checked_mul(size)?;
        let (bits, levels) = self.records.get(start..start + size)?.split_first_chunk::<4>()?;
        let bits = u32::from_le_bytes(*bits);
        let mut dc = [0; 4];
        for (level, bytes) in dc.iter_mut().zip(levels.as_chunks::<2>().0) {
            *level = i16::from_le_bytes(*bytes).into();
        }
        Some(Point { byte: (bits / 8) as usize, bit: bits % 8, dc })
    }
}

/// Bytes of a point.
fn size(components: usize) -> usize {
    4 + 2 * components
}

//! The markers of a JPEG file: enough to judge it before decoding, and to write the headers of the
//! small picture that a window of it is. Safe code on untrusted bytes; nothing is allocated.
//!
//! What libjpeg-turbo refuses in headers is refused here too: segments it does not know, a second
//! start marker or frame header. Stray bytes between segments draw a warning there and none here.
//!
//! # Source
//! ITU-T T.81 annex B (markers), A.2 (MCUs), JFIF 1.02, EXIF 2.3 (orientation).

use std::ops::Range;

use memchr::{memchr, memrchr};

use crate::augment::Crop;
use crate::error::Fault;

/// Most components that libjpeg-turbo reads.
const MOST_COMPONENTS: usize = 10;
/// The longest side that libjpeg-turbo reads.
const MOST_SIDE: usize = 65_500;

/// What the headers say, up to the first scan.
///
/// ```
/// # fn main() -> Result<(), pipeline::Fault> {
/// let file = b"\xff\xd8\xff\xc0\0\x0b\x08\0\x50\0\x60\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0\x12\xff\xd9";
/// let header = pipeline::jpeg::Header::read(file)?;
/// assert_eq!((header.width, header.height, header.components()), (96, 80, 1));
/// assert!(header.ended);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Columns of pixels.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Bits of a sample.
    pub precision: u8,
    /// The frame marker's second byte: 0xC0 baseline, 0xC1 extended, 0xC2 progressive, 0xC9 arithmetic.
    pub process: u8,
    /// Sampling factors across and down, each 1 to 4, of `count` components.
    sampling: [(u8, u8); MOST_COMPONENTS],
    count: usize,
    /// MCUs in a restart interval, 0 for none.
    pub interval: usize,
    /// Components in the first scan.
    scan_components: usize,
    /// First byte of the first scan's entropy-coded data.
    pub scan: usize,
    /// EXIF orientation, 1 to 8; 1 where there is none or it makes no sense.
    pub orientation: u8,
    /// True when an end marker stands somewhere behind the first scan's header. Where there is none,
    /// the picture may have been cut: only its last MCU tells.
    pub ended: bool,
}

/// The part of a picture that is wanted, in MCUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// MCUs of the picture, across and down.
    pub(crate) columns: usize,
    pub(crate) rows: usize,
    /// MCUs in a restart interval, 0 for none.
    pub(crate) interval: usize,
    /// The part's first column and row.
    pub(crate) first: (usize, usize),
    /// Its columns.
    pub(crate) width: usize,
    /// Whether an end marker says that the picture is all there.
    pub(crate) ended: bool,
}

/// A marker with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment<'a> {
    /// The marker's second byte.
    pub code: u8,
    /// Its parameters, without the length.
    pub body: &'a [u8],
    /// Where it lies, from the marker to the end of its parameters.
    pub range: Range<usize>,
}

/// The segments of a file from its start to the header of its first scan.
#[derive(Debug, Clone)]
pub struct Segments<'a> {
    bytes: &'a [u8],
    /// The next byte to look at; none when the first scan or an error has been seen.
    at: Option<usize>,
}

fn cut(what: &str) -> Fault {
    Fault::Truncated(format!("the bytes end in {what}"))
}

impl<'a> Segments<'a> {
    /// The segments of the JPEG `bytes`.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, at: Some(0) }
    }

    fn read(&self, mut at: usize) -> Result<Segment<'a>, Fault> {
        let bytes = self.bytes;
        if at == 0 {
            match bytes {
                [0xff, 0xd8, ..] => at = 2,
                [] | [0xff] => return Err(cut("its start marker")),
                _ => return Err(Fault::Jpeg("there is no start marker".into())),
            }
        }
        loop {
            let gap = memchr(0xff, bytes.get(at..).unwrap_or_default());
            at += gap.ok_or_else(|| cut("its headers"))?;
            while bytes.get(at + 1) == Some(&0xff) {
                at += 1; // any number of fill bytes may stand before a marker
            }
            let code = *bytes.get(at + 1).ok_or_else(|| cut("its headers"))?;
            match code {
                0x00 | 0x01 | 0xd0..=0xd7 => {} // a stuffed byte in junk, markers without parameters
                0xd8 => return Err(Fault::Jpeg("two start markers".into())),
                0xd9 => return Err(Fault::Jpeg("the picture ends before it begins".into())),
                0xc0..=0xc4 | 0xc9..=0xcc | 0xda..=0xdd | 0xe0..=0xef | 0xfe => {
                    let length = bytes.get(at + 2..at + 4).ok_or_else(|| cut("its headers"))?;
                    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                    let range = at..at + 2 + length.max(2);
                    let body = bytes.get(at + 4..range.end).ok_or_else(|| cut("its headers"))?;
                    return Ok(Segment { code, body, range });
                }
                _ => return Err(Fault::Jpeg(format!("a marker of an unknown kind, {code:#x}"))),
            }
            at += 2;
        }
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = Result<Segment<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let segment = self.read(self.at?);
        self.at = match &segment {
            Ok(Segment { code: 0xda, .. }) | Err(_) => None,
            Ok(Segment { range, .. }) => Some(range.end),
        };
        Some(segment)
    }
}

impl Segment<'_> {
    /// Whether decoding needs it.
    fn is_needed(&self) -> bool {
        match self.code {
            // JFIF and Adobe decide the colour space.
            0xe0 => self.body.starts_with(b"JFIF\0"),
            0xee => self.body.starts_with(b"Adobe"),
            code => matches!(code, 0xc0..=0xcf | 0xda | 0xdb | 0xdd),
        }
    }

    fn word(&self, at: usize) -> usize {
        self.body.get(at..at + 2).map_or(0, |b| usize::from(b[0]) << 8 | usize::from(b[1]))
    }
}

impl Header {
    /// Reads the markers up to the first scan, and looks for an end marker behind it.
    ///
    /// # Errors
    /// [`Fault::Truncated`] where the bytes end before the scan, [`Fault::Jpeg`] where the headers
    /// make no sense or are of a kind that libjpeg-turbo does not read.
    pub fn read(bytes: &[u8]) -> Result<Self, Fault> {
        let mut header = Header {
            width: 0,
            height: 0,
            precision: 0,
            process: 0,
            sampling: [(0, 0); MOST_COMPONENTS],
            count: 0,
            interval: 0,
            scan_components: 0,
            scan: 0,
            orientation: 1,
            ended: false,
        };
        for segment in Segments::of(bytes) {
            header.segment(&segment?)?;
        }
        if header.count == 0 {
            return Err(Fault::Jpeg("a scan comes before the frame header".into()));
        }
        // What follows the end marker is of no interest, so it is sought from the back.
        let data = &bytes[header.scan..];
        let mut end = data.len();
        while let Some(found) = memrchr(0xff, &data[..end]) {
            header.ended = data.get(found + 1) == Some(&0xd9);
            if header.ended {
                break;
            }
            end = found;
        }
        Ok(header)
    }

    fn segment(&mut self, segment: &Segment<'_>) -> Result<(), Fault> {
        let Segment { code, body, ref range } = *segment;
        match code {
            0xc4 | 0xcc => {}
            0xc0..=0xcf => {
                if self.count > 0 {
                    return Err(Fault::Jpeg("two frame headers".into()));
                }
                let short = || Fault::Jpeg("the frame header is too short".into());
                let count = usize::from(*body.get(5).ok_or_else(short)?);
                let components = body.get(6..6 + 3 * count).ok_or_else(short)?;
                (self.height, self.width) = (segment.word(1), segment.word(3));
                (self.precision, self.process, self.count) = (body[0], code, count);
                if !(1..=MOST_COMPONENTS).contains(&count) {
                    return Err(Fault::Jpeg(format!("{count} components")));
                }
                for (factors, component) in self.sampling.iter_mut().zip(components.chunks_exact(3))
                {
                    *factors = (component[1] >> 4, component[1] & 15);
                    if ![factors.0, factors.1].iter().all(|factor| (1..=4).contains(factor)) {
                        return Err(Fault::Jpeg("sampling factors outside 1 to 4".into()));
                    }
                }
                if self.width.max(self.height) > MOST_SIDE {
                    return Err(Fault::Jpeg(format!("a side of more than {MOST_SIDE} pixels")));
                }
            }
            0xdd => self.interval = segment.word(0),
            0xda => {
                self.scan_components = usize::from(body.first().copied().unwrap_or(0));
                self.scan = range.end;
            }
            0xe1 if body.starts_with(b"Exif\0\0") => {
                self.orientation = orientation(&body[6..]).unwrap_or(1);
            }
            _ => {}
        }
        Ok(())
    }

    /// Components: 1 grey, 3 colour, 4 CMYK or YCCK.
    pub fn components(&self) -> usize {
        self.count
    }

    /// Pixels in all.
    pub fn area(&self) -> u64 {
        self.width as u64 * self.height as u64
    }

    /// True for the lossless processes, SOF3 and SOF11, which have no DCT and so no reduced size.
    pub fn is_lossless(&self) -> bool {
        self.process & 3 == 3
    }

    /// Pixels in a minimum coded unit of a scan of all components, across and down.
    pub fn unit(&self) -> (usize, usize) {
        let sampling = &self.sampling[..self.count];
        if let [_] = sampling {
            return (8, 8); // a scan of one component is not interleaved
        }
        let most = |factor: fn(&(u8, u8)) -> u8| {
            8 * usize::from(sampling.iter().map(factor).max().unwrap_or(1))
        };
        (most(|s| s.0), most(|s| s.1))
    }

    /// Whether all coefficients are in one scan of Huffman codes with 8-bit samples.
    pub fn one_scan(&self) -> bool {
        self.process <= 0xc1 && self.precision == 8 && self.scan_components == self.count
    }

    /// The MCUs that cover `window`, and what they show of the picture: up to the window's right and
    /// lower edges, for a smaller frame ends where it likes.
    pub(crate) fn part(&self, window: Crop) -> (Part, Crop) {
        let (across, down) = self.unit();
        let first = (window.x / across, window.y / down);
        let (x, y) = (first.0 * across, first.1 * down);
        let (right, bottom) = (window.x + window.width, window.y + window.height);
        let shown = Crop { x, y, width: right - x, height: bottom - y };
        let (columns, rows) = (self.width.div_ceil(across), self.height.div_ceil(down));
        let width = shown.width.div_ceil(across);
        let (interval, ended) = (self.interval, self.ended);
        (Part { columns, rows, interval, first, width, ended }, shown)
    }

    /// The headers that decoding needs, with the frame's size set to that of `shown`.
    pub(crate) fn small_headers(&self, bytes: &[u8], shown: Crop, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&[0xff, 0xd8]);
        // They have been read before without an error.
        for segment in Segments::of(bytes).flatten().filter(Segment::is_needed) {
            let copy = out.len();
            out.extend_from_slice(&bytes[segment.range]);
            if segment.code == self.process {
                // Both are at most the sizes in the file, which are of 16 bits.
                out[copy + 5..copy + 7].copy_from_slice(&(shown.height as u16).to_be_bytes());
                out[copy + 7..copy + 9].copy_from_slice(&(shown.width as u16).to_be_bytes());
            }
        }
    }
}

/// Where the first marker at or after `start` stands, and its code.
pub(crate) fn next_marker(data: &[u8], start: usize) -> Option<(usize, u8)> {
    let mut at = start;
    loop {
        at += memchr(0xff, data.get(at..)?)?;
        match *data.get(at + 1)? {
            0 => at += 2,    // a stuffed byte of data
            0xff => at += 1, // a fill byte
            code => return Some((at, code)),
        }
    }
}

/// The orientation tag of the first directory in a TIFF structure.
fn orientation(tiff: &[u8]) -> Option<u8> {
    let little = match tiff.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let word = |at: usize| {
        let b = tiff.get(at..at.checked_add(2)?)?;
        Some(if little {
            u16::from_le_bytes([b[0], b[1]])
        } else {
            u16::from_be_bytes([b[0], b[1]])
        })
    };
    let (low, high) = if little { (4, 6) } else { (6, 4) };
    let directory = usize::from(word(low)?) | usize::from(word(high)?) << 16;
    let entries = usize::from(word(directory)?);
    let entry = (0..entries)
        .map(|number| directory + 2 + 12 * number)
        .find(|&entry| word(entry) == Some(0x0112))?;
    u8::try_from(word(entry + 8)?).ok().filter(|value| (1..=8).contains(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers of a picture of these sampling factors, with a segment and fill bytes before them.
    fn headers(width: u16, height: u16, sampling: &[u8]) -> Vec<u8> {
        let mut file = vec![0xff, 0xd8, 0xff, 0xff, 0xe0, 0, 4, 1, 2];
        file.extend([0xff, 0xc0, 0, 8 + 3 * sampling.len() as u8, 8]);
        file.extend(height.to_be_bytes());
        file.extend(width.to_be_bytes());
        file.push(sampling.len() as u8);
        for (id, factors) in sampling.iter().enumerate() {
            file.extend([id as u8 + 1, *factors, 0]);
        }
        file.extend([0xff, 0xda, 0, 3, sampling.len() as u8]);
        file
    }

    #[test]
    fn headers_cut_anywhere_are_an_error_and_never_a_panic() {
        let whole = headers(640, 80, &[0x21, 0x11, 0x11]);
        let header = Header::read(&whole).unwrap();
        assert_eq!((header.width, header.height, header.scan), (640, 80, whole.len()));
        assert_eq!((header.components(), header.unit()), (3, (16, 8)));
        assert!(!header.ended && header.one_scan() && !header.is_lossless());
        for cut in 0..whole.len() {
            let fault = Header::read(&whole[..cut]).unwrap_err();
            assert!(matches!(fault, Fault::Truncated(_)), "cut at {cut}: {fault}");
        }
        let codes: Vec<u8> = Segments::of(&whole).map(|segment| segment.unwrap().code).collect();
        assert_eq!(codes, [0xe0, 0xc0, 0xda]);
    }

    #[test]
    fn headers_that_make_no_sense_are_refused() {
        let whole = headers(64, 64, &[0x11]);
        let frame = whole.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
        let with = |at: usize, insert: &[u8]| [&whole[..at], insert, &whole[at..]].concat();
        for (what, file) in [
            ("no component", headers(9, 9, &[])),
            ("eleven components", headers(9, 9, &[0x11; 11])),
            ("a factor of 0", headers(9, 9, &[0x01, 0x11, 0x11])),
            ("a factor of 5", headers(9, 9, &[0x15, 0x11, 0x11])),
            ("a side too long", headers(65_501, 9, &[0x11])),
            ("two start markers", with(2, &[0xff, 0xd8])),
            ("an end before the beginning", with(2, &[0xff, 0xd9])),
            ("an unknown marker", with(2, &[0xff, 0xf7, 0, 2])),
            ("two frame headers", with(frame, &whole[frame..frame + 13])),
            ("a scan before the frame header", with(frame, &[0xff, 0xda, 0, 3, 1])),
            ("something else", b"GIF89a".to_vec()),
        ] {
            let fault = Header::read(&file).unwrap_err();
            assert!(matches!(fault, Fault::Jpeg(_)), "{what}: {fault}");
        }
    }
}

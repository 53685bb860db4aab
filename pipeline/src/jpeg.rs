//! The markers of a JPEG file: enough to judge it before decoding, and to write the headers of the
//! small picture that a window of it is. Safe code on untrusted bytes.
//!
//! # Source
//! ITU-T T.81 annex B (markers), JFIF 1.02, EXIF 2.3 (orientation).

use memchr::{memchr, memrchr};

use crate::augment::Crop;
use crate::error::Fault;

/// What the headers say, up to the first scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// Horizontal and vertical sampling factors of each component.
    sampling: Vec<(u8, u8)>,
    /// Baseline or extended sequential Huffman, 8 bits.
    sequential: bool,
    /// No DCT, so no reduced size.
    pub(crate) lossless: bool,
    /// MCUs in a restart interval, 0 for none.
    interval: usize,
    /// Components in the first scan.
    scan_components: usize,
    /// Where the frame header's height field lies.
    frame: usize,
    /// Segments before the scan that decoding needs, as ranges with their markers.
    needed: Vec<std::ops::Range<usize>>,
    /// First byte of entropy-coded data.
    pub(crate) scan: usize,
    /// EXIF orientation, 1 to 8; 1 where there is none or it makes no sense.
    pub(crate) orientation: u8,
    /// True when something stands between the segments that would only draw a warning.
    pub(crate) junk: bool,
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
}

fn cut(what: &str) -> Fault {
    Fault::Truncated(format!("the bytes end in {what}"))
}

/// Reads the markers up to the first scan, and looks for the end marker behind it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Header, Fault> {
    let mut header = Header {
        width: 0,
        height: 0,
        sampling: Vec::with_capacity(4),
        sequential: false,
        lossless: false,
        interval: 0,
        scan_components: 0,
        frame: 0,
        needed: Vec::with_capacity(12),
        scan: 0,
        orientation: 1,
        junk: false,
    };
    let mut at = 2; // after the start marker
    loop {
        let gap = memchr(0xff, bytes.get(at..).unwrap_or_default());
        let gap = gap.ok_or_else(|| cut("its headers"))?;
        header.junk |= gap > 0;
        at += gap;
        while bytes.get(at + 1) == Some(&0xff) {
            at += 1; // any number of fill bytes may stand before a marker
        }
        let code = *bytes.get(at + 1).ok_or_else(|| cut("its headers"))?;
        if matches!(code, 0x00 | 0x01 | 0xd0..=0xd8) {
            header.junk |= code == 0;
            at += 2; // stand-alone, or a stuffed byte in junk
            continue;
        }
        if code == 0xd9 {
            return Err(Fault::Jpeg("the picture ends before it begins".into()));
        }
        let length = bytes.get(at + 2..at + 4).ok_or_else(|| cut("its headers"))?;
        let end = at + 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
        let body = bytes.get(at + 4..end.max(at + 4)).ok_or_else(|| cut("its headers"))?;
        header.segment(code, body, at, end)?;
        at = end.max(at + 4);
        if code == 0xda {
            break;
        }
    }
    if header.sampling.is_empty() {
        return Err(Fault::Jpeg("a scan comes before the frame header".into()));
    }
    header.scan = at;
    // A picture whose end marker is gone was cut, even where the crop decodes without complaint.
    // What follows the end marker is of no interest, so it is sought from the back.
    let data = &bytes[at..];
    let mut end = data.len();
    while let Some(found) = memrchr(0xff, &data[..end]) {
        if data.get(found + 1) == Some(&0xd9) {
            return Ok(header);
        }
        end = found;
    }
    Err(cut("its picture: the end marker is missing"))
}

impl Header {
    fn segment(&mut self, code: u8, body: &[u8], at: usize, end: usize) -> Result<(), Fault> {
        let word =
            |at: usize| body.get(at..at + 2).map(|b| usize::from(b[0]) << 8 | usize::from(b[1]));
        match code {
            0xc4 | 0xdb | 0xcc => self.needed.push(at..end), // tables
            0xc0..=0xcf => {
                if !self.sampling.is_empty() {
                    return Err(Fault::Jpeg("two frame headers".into()));
                }
                let short = || Fault::Jpeg("the frame header is too short".into());
                let count = usize::from(*body.get(5).ok_or_else(short)?);
                let components = body.get(6..6 + 3 * count).ok_or_else(short)?;
                self.height = word(1).unwrap_or(0);
                self.width = word(3).unwrap_or(0);
                self.sequential = code <= 0xc1 && body[0] == 8;
                self.lossless = code & 3 == 3;
                self.sampling.extend(components.chunks_exact(3).map(|c| (c[1] >> 4, c[1] & 15)));
                if count == 0 || self.sampling.iter().any(|&(h, v)| !(1..=4).contains(&h.min(v))) {
                    return Err(Fault::Jpeg("the frame header makes no sense".into()));
                }
                self.frame = at + 5;
                self.needed.push(at..end);
            }
            0xdd => {
                self.interval = word(0).unwrap_or(0);
                self.needed.push(at..end);
            }
            0xda => {
                self.scan_components = usize::from(body.first().copied().unwrap_or(0));
                self.needed.push(at..end);
            }
            // JFIF and Adobe decide the colour space.
            // A JFIF of a version that does not exist draws a warning and tells nothing.
            0xe0 if body.starts_with(b"JFIF\0") => match body.get(5) {
                Some(1) => self.needed.push(at..end),
                _ => self.junk = true,
            },
            0xee if body.starts_with(b"Adobe") => self.needed.push(at..end),
            0xe1 if body.starts_with(b"Exif\0\0") => {
                self.orientation = orientation(&body[6..]).unwrap_or(1);
            }
            _ => {}
        }
        Ok(())
    }

    /// Pixels in a minimum coded unit, across and down.
    pub(crate) fn unit(&self) -> (usize, usize) {
        if let [_] = self.sampling[..] {
            return (8, 8); // a scan of one component is not interleaved
        }
        let most = |factor: fn(&(u8, u8)) -> u8| {
            8 * usize::from(self.sampling.iter().map(factor).max().unwrap_or(1))
        };
        (most(|s| s.0), most(|s| s.1))
    }

    /// The headers without what decoding does not need, then everything from the scan on: the
    /// same picture, with no junk between segments to warn about.
    pub(crate) fn without_junk<'a>(&self, bytes: &[u8], out: &'a mut Vec<u8>) -> &'a [u8] {
        out.clear();
        out.extend_from_slice(&[0xff, 0xd8]);
        for range in &self.needed {
            out.extend_from_slice(&bytes[range.clone()]);
        }
        out.extend_from_slice(&bytes[self.scan..]);
        out
    }

    /// Whether all coefficients are in one scan of Huffman codes with 8-bit samples.
    pub(crate) fn one_scan(&self) -> bool {
        self.sequential && self.scan_components == self.sampling.len()
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
        (Part { columns, rows, interval: self.interval, first, width }, shown)
    }

    /// The needed headers, with the frame's size set to that of `shown`.
    pub(crate) fn small_headers(&self, bytes: &[u8], shown: Crop, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&[0xff, 0xd8]);
        for range in &self.needed {
            let copy = out.len();
            out.extend_from_slice(&bytes[range.clone()]);
            if range.contains(&self.frame) {
                // Both are at most the sizes in the file, which are of 16 bits.
                let field = copy + self.frame - range.start;
                out[field..field + 2].copy_from_slice(&(shown.height as u16).to_be_bytes());
                out[field + 2..field + 4].copy_from_slice(&(shown.width as u16).to_be_bytes());
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

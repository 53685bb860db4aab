//! PBM, PGM and PPM, as numbers or as bytes, of up to 16 bits.
//!
//! # Source
//! <https://netpbm.sourceforge.net/doc/ppm.html>. The scaling to 8 bits is Pillow's
//! (`PpmImagePlugin.PpmDecoder`): to the nearest, and to the even of two.

use pipeline::decode::Decoded;

use super::Picture;

/// What comes before the samples.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Columns.
    pub(super) width: u32,
    /// Rows.
    pub(super) height: u32,
    /// The digit after the P.
    kind: u8,
    /// The largest sample.
    most: u32,
    /// Where the samples begin.
    start: usize,
}

impl Header {
    /// Reads the header.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut numbers = Numbers { bytes, at: 2 };
        let mut next = |what| numbers.next().ok_or_else(|| format!("has no {what}"));
        let (width, height) = (next("width")?, next("height")?);
        let kind = bytes.get(1).copied().unwrap_or_default();
        let most = if matches!(kind, b'1' | b'4') { 1 } else { next("largest sample")? };
        if !(1..=65_535).contains(&most) {
            return Err(format!("has samples of up to {most}"));
        }
        // One white space, then the samples.
        Ok(Self { width, height, kind, most, start: numbers.at + 1 })
    }

    fn channels(self) -> usize {
        if matches!(self.kind, b'3' | b'6') { 3 } else { 1 }
    }
}

/// Decimal numbers between white space and comments.
struct Numbers<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Numbers<'_> {
    /// Passes over white space and comments.
    fn skip(&mut self) {
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'#' => {
                    let rest = &self.bytes[self.at..];
                    let line = rest.iter().position(|b| matches!(b, b'\n' | b'\r'));
                    self.at += line.unwrap_or(rest.len());
                }
                b if b.is_ascii_whitespace() || *b == 0x0B => self.at += 1,
                _ => break,
            }
        }
    }

    fn next(&mut self) -> Option<u32> {
        self.skip();
        let rest = self.bytes.get(self.at..)?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
        self.at += digits;
        Some(number)
    }

    /// One bit of a bitmap in text, where nothing need stand between two.
    fn bit(&mut self) -> Option<u32> {
        self.skip();
        let bit = self.bytes.get(self.at)?.checked_sub(b'0').filter(|bit| *bit < 2)?;
        self.at += 1;
        Some(bit.into())
    }
}

/// Decodes the file. The samples are read one after the other: little memory, whatever is claimed.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, String> {
    let header = Header::read(bytes)?;
    let (width, height) = (header.width as usize, header.height as usize);
    let samples = width * height * header.channels();
    let body = bytes.get(header.start..).unwrap_or_default();
    let cut = || "is cut short".to_owned();
    let scaled = |sample: u32| scale(sample, header.most);
    let mut out: Vec<u8> = Vec::with_capacity(samples.min(bytes.len() * 8));
    match header.kind {
        b'1' | b'2' | b'3' => {
            let mut numbers = Numbers { bytes: body, at: 0 };
            for _ in 0..samples {
                let sample = if header.kind == b'1' { numbers.bit() } else { numbers.next() };
                let sample = sample.ok_or("has fewer samples than its size")?;
                if sample > header.most {
                    return Err(format!("has the sample {sample} above {}", header.most));
                }
                out.push(scaled(sample));
            }
        }
        b'4' => {
            for row in 0..height {
                let stride = width.div_ceil(8);
                let row = body.get(row * stride..(row + 1) * stride).ok_or_else(cut)?;
                out.extend((0..width).map(|x| scaled(u32::from((row[x / 8] >> (7 - x % 8)) & 1))));
            }
        }
        _ if header.most < 256 => {
            let body = body.get(..samples).ok_or_else(cut)?;
            out.extend(body.iter().map(|sample| scaled(u32::from(*sample).min(header.most))));
        }
        _ => {
            let body = body.get(..samples * 2).ok_or_else(cut)?;
            let words = body.chunks_exact(2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]])));
            out.extend(words.map(|sample| scaled(sample.min(header.most))));
        }
    }
    if matches!(header.kind, b'1' | b'4') {
        // One is black.
        out.iter_mut().for_each(|level| *level = 255 - *level);
    }
    let mut notes = Vec::new();
    if header.channels() == 1 {
        if header.most > 255 {
            notes.push("of 16-bit grey, scaled to 8");
        }
        out = out.into_iter().flat_map(|level| [level; 3]).collect();
    }
    Ok(Picture { decoded: Decoded { width, height, pixels: out }, lossless: true, notes })
}

/// A sample of 0 to `most` as one of 0 to 255.
fn scale(sample: u32, most: u32) -> u8 {
    let (whole, rest) = (sample * 255 / most, sample * 255 % most);
    let up = match (rest * 2).cmp(&most) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => whole % 2 == 1,
        std::cmp::Ordering::Greater => true,
    };
    (whole + u32::from(up)) as u8
}

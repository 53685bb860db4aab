//! libjpeg-turbo as the judge of the decoder that training uses: what each reads of a whole file.
//!
//! The judge reads a file by libjpeg-turbo alone (`jpeg_read_coefficients`, then its pixels), going on
//! after warnings and counting them. Beside it stands what our own entropy decoder reads. `build`
//! compares source and result so, tests and fuzzers hold the one to the other.

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::entropy::Entropy;
use super::libjpeg::{Block, Coefficients, Frame, Layout, Picture};
use super::rows::Pixels;
use super::{Decoded, Decoder, SeekPoints, cmyk_to_rgb};
use crate::augment::Crop;
use crate::error::Fault;
use crate::jpeg::Header;

pub use super::libjpeg::Warnings;

/// Words of the faults that libjpeg-turbo does not see.
const STRICTER: [&str; 3] = ["an unknown code", "beyond the end of a block", "beyond 16 bits"];

/// What was read of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// A hash of all that decides the pixels: size, colour space, sampling factors, quantisers and
    /// every coefficient at its place. Entropy coding, the order of scans and the blocks that only
    /// fill up MCUs do not move it.
    pub fingerprint: u128,
    /// What libjpeg-turbo complained of.
    pub warnings: Warnings,
}

/// Reads whole JPEGs by libjpeg-turbo and by our decoder. One per thread.
#[derive(Debug)]
pub struct Judge {
    picture: Picture,
    entropy: Entropy,
    headers: Vec<u8>,
    max_pixels: u64,
}

impl Judge {
    /// A judge of pictures of up to `max_pixels` pixels.
    ///
    /// # Errors
    /// [`Fault::Jpeg`] when libjpeg-turbo has no memory to start.
    pub fn new(max_pixels: u64) -> Result<Self, Fault> {
        let (picture, entropy) = (Picture::new()?, Entropy::new());
        Ok(Self { picture, entropy, headers: Vec::new(), max_pixels })
    }

    /// The coefficients as libjpeg-turbo reads them.
    ///
    /// # Errors
    /// [`Fault::Jpeg`] or [`Fault::Truncated`] where the library gives up: wrong headers, too many
    /// pixels or scans, a lossless file (which has no coefficients).
    pub fn read(&mut self, bytes: &[u8]) -> Result<Reading, Fault> {
        let mut sum = 0u128;
        let frame =
            self.picture.coefficients(bytes, self.max_pixels, &mut |component, row, blocks| {
                for (column, block) in blocks.iter().enumerate() {
                    sum = sum.wrapping_add(hash(component, row, column, block));
                }
            })?;
        let fingerprint = sum.wrapping_add(of_frame(&frame));
        Ok(Reading { fingerprint, warnings: self.picture.warnings() })
    }

    /// The fingerprint of the coefficients as our entropy decoder reads them, or `None` where it
    /// leaves the work to libjpeg-turbo, as of progressive and arithmetic files.
    ///
    /// # Errors
    /// Those of [`super::Decoder::decode`].
    pub fn ours(&mut self, bytes: &[u8]) -> Result<Option<u128>, Fault> {
        let header = Header::read(bytes)?;
        let (width, height) = (header.width as u64, header.height as u64);
        if width * height > self.max_pixels {
            return Err(Fault::Pixels { width, height, limit: self.max_pixels });
        }
        if !header.one_scan() {
            return Ok(None);
        }
        let whole = Crop { x: 0, y: 0, width: header.width, height: header.height };
        let (part, shown) = header.part(whole);
        header.small_headers(bytes, shown, &mut self.headers);
        let started = self.picture.start(&self.headers, (shown.width, shown.height), 1)?;
        let (frame, layout) = (started.frame(), started.layout);
        let data = (part, SeekPoints::NONE);
        let mut scan = self.entropy.scan(&bytes[header.scan..], data, &layout)?;
        let mut mcu = [[0; 64]; 10];
        let mcu = &mut mcu[..layout.blocks().len()];
        let mut sum = of_frame(&frame);
        for number in 0..part.columns * part.rows {
            mcu.fill([0; 64]);
            scan.next(mcu)?;
            let (row, column) = (number / part.columns, number % part.columns);
            let mut blocks = layout.blocks().iter().zip(&*mcu).peekable();
            while let Some((plan, _)) = blocks.peek() {
                let component = frame.scan[usize::from(plan.component)] as usize;
                let about = frame.components()[component];
                let (wide, high) = match layout.blocks() {
                    [_] => (1, 1), // a scan of one component is not interleaved
                    _ => (about.horizontal as usize, about.vertical as usize),
                };
                for (down, across) in (0..high * wide).map(|n| (n / wide, n % wide)) {
                    let Some((_, block)) = blocks.next() else { break };
                    let (row, column) = (row * high + down, column * wide + across);
                    if row < about.down as usize && column < about.across as usize {
                        sum = sum.wrapping_add(hash(component, row, column, block));
                    }
                }
            }
        }
        Ok(Some(sum))
    }

    /// Holds `decoder` to libjpeg-turbo on one file, as [`super`] says: the same coefficients and
    /// pixels of what the library reads without complaint, a fault where it warns of damage, with
    /// the exceptions named there. For tests and fuzzers.
    ///
    /// # Errors
    /// How they differ.
    pub fn hold(&mut self, decoder: &mut Decoder, bytes: &[u8]) -> Result<(), String> {
        if !bytes.starts_with(&[0xff, 0xd8, 0xff]) {
            return Ok(());
        }
        let arithmetic = Header::read(bytes).is_ok_and(|header| header.process > 0xc8);
        let (ours, coefficients) = (decoder.decode(bytes), self.ours(bytes));
        if let Err(Fault::Pixels { .. }) = ours {
            return Ok(());
        }
        let (theirs, warnings) = match (self.pixels(bytes), &ours) {
            (Ok(read), _) => read,
            (Err(_), Err(_)) => return Ok(()),
            (Err(fault), Ok(_)) => return Err(format!("we read what they do not: {fault}")),
        };
        let ours = match ours {
            Ok(ours) => ours,
            Err(fault) => {
                let text = fault.to_string();
                let known = STRICTER.iter().any(|known| text.contains(known));
                let cut = arithmetic && warnings.no_end > 0;
                let sound = !warnings.damage() && warnings.behind == 0 && !known && !cut;
                return if sound {
                    Err(format!("refused, and it is sound: {text}"))
                } else {
                    Ok(())
                };
            }
        };
        let leftover = Warnings { stray: 0, ..warnings };
        if leftover.damage() || (arithmetic && warnings.no_end > 0) {
            return Err(format!("damage that we do not see: {warnings}"));
        }
        // Of such a file the library may keep what it had decoded wrongly.
        if bytes.windows(3).any(|three| three == [0xff, 0xff, 0]) {
            return Ok(());
        }
        if ours != theirs {
            return Err("other pixels".into());
        }
        match (coefficients, self.read(bytes)) {
            (Ok(Some(ours)), Ok(theirs)) if ours != theirs.fingerprint => {
                Err("other coefficients".into())
            }
            (Err(fault), _) => Err(format!("pixels, and no coefficients: {fault}")),
            (Ok(Some(_)), Err(fault)) if warnings.behind == 0 => {
                Err(format!("pixels, and they see no coefficients: {fault}"))
            }
            _ => Ok(()),
        }
    }

    /// The pixels as libjpeg-turbo makes them, CMYK converted as [`super::Decoder::decode`] does, and
    /// what it complained of.
    ///
    /// # Errors
    /// [`Fault::Jpeg`] or [`Fault::Truncated`] where the library gives up.
    pub fn pixels(&mut self, bytes: &[u8]) -> Result<(Decoded, Warnings), Fault> {
        let started = self.picture.start_lenient(bytes, self.max_pixels)?;
        let Layout { width, height, channels, .. } = started.layout;
        let (width, height) = (width as usize, height as usize);
        let mut read = Pixels::default();
        started.read(None, &mut read)?;
        let pixels = if channels == 4 {
            let mut pixels = vec![0; width * height * 3];
            cmyk_to_rgb(&read, &mut pixels);
            pixels
        } else {
            read[..width * height * 3].to_vec()
        };
        Ok((Decoded { width, height, pixels }, self.picture.warnings()))
    }
}

/// The hash of a block at its place.
fn hash(component: usize, row: usize, column: usize, block: &Block) -> u128 {
    let place = (component as u64) << 48 | (row as u64) << 24 | column as u64;
    let mut bytes = [0; 128];
    for (pair, value) in bytes.chunks_exact_mut(2).zip(block) {
        pair.copy_from_slice(&value.to_le_bytes());
    }
    xxh3_128_with_seed(&bytes, place)
}

/// The hash of what the coefficients are of.
fn of_frame(frame: &Frame) -> u128 {
    let mut bytes = Vec::new();
    for number in [frame.width, frame.height, frame.space] {
        bytes.extend(number.to_le_bytes());
    }
    for component in frame.components() {
        for number in [component.horizontal, component.vertical] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(component.quantisers.iter().flat_map(|value| value.to_le_bytes()));
    }
    xxh3_128_with_seed(&bytes, u64::MAX)
}

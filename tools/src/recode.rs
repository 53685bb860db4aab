//! From what a source holds to what a shard stores: a pure function of the bytes and the options.

use fast_image_resize as resize;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use pipeline::decode::judge::{Judge, Warnings};
use pipeline::decode::{DecodeOptions, Decoded, Decoder};
use pipeline::jpeg::Header;
use serde::{Deserialize, Serialize};
use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};
use xxhash_rust::xxh3::xxh3_64;

use crate::Error;
use crate::catalog::Raw;
use crate::formats::{self, Foreign, Picture};
use crate::jpeg::{SMALL_SIDE, restart_interval};
use crate::transform::{Rewriter, Verdict};

/// Larger images are rejected: decoding a progressive one takes 9 bytes a pixel at the worst, and a
/// build is to stay below 500 MB.
pub const MAX_PIXELS: u32 = 40_000_000;

/// The longest side that libjpeg-turbo writes.
const MAX_JPEG_SIDE: u32 = 65_500;

/// What happens to the entropy coding of a JPEG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Restart {
    /// Lossless rewrite: baseline, optimised tables, restart markers that make crops cheap
    Auto,
    /// The source's own coding
    Off,
}

/// Which results are compared with their source: their coefficients as libjpeg-turbo reads both, and
/// as training's decoder reads the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// Every one
    Full,
    /// One in sixteen, chosen by the source's bytes
    Sample,
    /// None
    Off,
}

/// How images are stored. Written to the manifest as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coding {
    /// Store files untouched, oddities included. Excludes everything below.
    pub keep: bool,
    /// The entropy coding of JPEGs.
    pub restart: Restart,
    /// How much of it is checked.
    pub check: Check,
    /// Images longer than this are scaled down to it, which is lossy.
    pub max_side: Option<u16>,
    /// JPEG quality of images that have to be encoded.
    pub quality: u8,
    /// Store images that are no JPEG as PNG, which loses nothing. Lossless formats other than PNG always
    /// are.
    pub png: bool,
}

impl Default for Coding {
    fn default() -> Self {
        let (restart, check) = (Restart::Auto, Check::Full);
        Self { keep: false, restart, check, max_side: None, quality: 95, png: false }
    }
}

/// An image as it will be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coded {
    /// The member's bytes.
    pub bytes: Vec<u8>,
    /// The member's extension, `jpg` or `png`.
    pub extension: &'static str,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// What was out of the ordinary, for the report.
    pub oddity: Option<String>,
}

/// Re-codes images one after another; each thread has its own.
#[derive(Debug)]
pub struct Recoder {
    coding: Coding,
    rewriter: Rewriter,
    decoder: Decoder,
    judge: Judge,
    compressor: Compressor,
    resizer: resize::Resizer,
}

impl Recoder {
    /// Sets up libjpeg-turbo for `coding`.
    ///
    /// # Errors
    /// libjpeg-turbo has no memory left or refuses the quality.
    pub fn new(coding: Coding) -> Result<Self, Error> {
        let mut compressor = Compressor::new()?;
        compressor.set_quality(coding.quality.into())?;
        compressor.set_subsamp(Subsamp::None)?;
        let (rewriter, resizer) = (Rewriter::new(MAX_PIXELS)?, resize::Resizer::new());
        let judge = Judge::new(MAX_PIXELS.into()).map_err(Error::Decoder)?;
        Ok(Self { coding, rewriter, decoder: decoder()?, judge, compressor, resizer })
    }

    /// What is stored for `bytes`, or why they are rejected.
    ///
    /// # Errors
    /// libjpeg-turbo fails for want of memory: nothing that the input can cause.
    pub fn recode(&mut self, raw: Raw, bytes: Vec<u8>) -> Result<Result<Coded, String>, Error> {
        if let (Raw::Encoded, Some(format)) = (raw, Foreign::of(&bytes)) {
            return self.recode_foreign(format, bytes);
        }
        let (width, height) = match raw {
            Raw::Pixels { width, height } => {
                let png = self.coding.png;
                return self.encode(&bytes, (width, height), png, None).map(Ok);
            }
            Raw::Encoded => match self.decoder.size(&bytes) {
                Ok((width, height)) => (width as u32, height as u32),
                Err(fault) => {
                    let name = formats::not_read(&bytes)
                        .map(|name| format!("is {name}, which is not read"));
                    return Ok(Err(name.unwrap_or_else(|| reason(&fault))));
                }
            },
        };
        let png = bytes.starts_with(PNG);
        if weight(&bytes) > MAX_PIXELS.into() {
            let half = MAX_PIXELS / 2_000_000;
            let what = format!("{width}x{height} pixels of 16 bits, more than {half} million");
            return Ok(Err(what));
        }
        let header = match (!png).then(|| Header::read(&bytes)).transpose() {
            Ok(header) => header,
            Err(fault) => return Ok(Err(reason(&fault))),
        };
        // Without an end marker, only the last MCU tells whether a file was cut.
        let doubtful = header.is_some_and(|header| !header.ended);
        if self.coding.keep {
            let extension = if png { "png" } else { "jpg" };
            let cut = if doubtful { self.decoder.decode(&bytes).err() } else { None };
            let kept = Coded { bytes, extension, width, height, oddity: None };
            return Ok(cut.map_or(Ok(kept), |fault| Err(reason(&fault))));
        }
        let told;
        let what = match header {
            None => {
                told = self.changed_png(&bytes);
                told.as_deref()
            }
            Some(header) => match header.components() {
                4 => Some("was CMYK, converted to RGB"),
                1 | 3 if header.is_lossless() => Some("was a lossless JPEG, converted"),
                1 | 3 => {
                    let shrinks = |side: u16| header.width.max(header.height) > side.into();
                    if !self.coding.max_side.is_some_and(shrinks) {
                        return self.keep_pixels(bytes, &header);
                    }
                    None
                }
                _ => Some("had odd components, converted to RGB"),
            },
        };
        match self.decoder.decode(&bytes) {
            Ok(decoded) => {
                drop(bytes);
                self.store(decoded, self.coding.png, what)
            }
            Err(fault) => Ok(Err(reason(&fault))),
        }
    }

    /// What changes of a PNG as it is stored.
    fn changed_png(&self, bytes: &[u8]) -> Option<String> {
        let notes = png_notes(bytes);
        let stored = if self.coding.png { "stored as PNG" } else { "converted to JPEG" };
        (!self.coding.png || !notes.is_empty()).then(|| format!("was PNG{notes}, {stored}"))
    }

    /// What is neither JPEG nor PNG: what has lost nothing yet becomes PNG, the rest JPEG.
    fn recode_foreign(
        &mut self,
        format: Foreign,
        bytes: Vec<u8>,
    ) -> Result<Result<Coded, String>, Error> {
        let name = format.name();
        if self.coding.keep {
            return Ok(Err(format!("is {name}, and --keep stores nothing but JPEG and PNG")));
        }
        let Picture { decoded, lossless, notes } = match format.decode(&bytes) {
            Ok(picture) => picture,
            Err(problem) => return Ok(Err(problem)),
        };
        drop(bytes);
        let png = lossless || self.coding.png;
        let stored = if png { "PNG" } else { "JPEG" };
        let notes: String = notes.iter().map(|note| format!(", {note}")).collect();
        self.store(decoded, png, Some(&format!("was {name}{notes}, stored as {stored}")))
    }

    /// Scales down and encodes.
    fn store(
        &mut self,
        decoded: Decoded,
        png: bool,
        what: Option<&str>,
    ) -> Result<Result<Coded, String>, Error> {
        let (pixels, size) = self.shrink(decoded);
        let (width, height) = size;
        if !png && width.max(height) > MAX_JPEG_SIDE {
            return Ok(Err(format!(
                "{width}x{height} pixels, and a JPEG has at most {MAX_JPEG_SIDE} a side"
            )));
        }
        self.encode(&pixels, size, png, what).map(Ok)
    }

    /// A JPEG that is stored with the pixels it has.
    fn keep_pixels(
        &mut self,
        bytes: Vec<u8>,
        header: &Header,
    ) -> Result<Result<Coded, String>, Error> {
        let [width, height] = [header.width, header.height].map(|side| side as u32);
        let coded = |bytes, oddity| Coded { bytes, extension: "jpg", width, height, oddity };
        let check = match self.coding.check {
            Check::Full => true,
            Check::Sample => xxh3_64(&bytes).is_multiple_of(16),
            Check::Off => false,
        };
        if self.coding.restart == Restart::Off {
            if !check && header.ended {
                return Ok(Ok(coded(bytes, None)));
            }
            return Ok(self.compare(&bytes, &bytes).map(|oddity| coded(bytes, oddity)));
        }
        let mut output = Vec::with_capacity(bytes.len() + bytes.len() / 8);
        let warned = match self.rewriter.rewrite(&bytes, restart_interval(header), &mut output)? {
            Ok(Verdict::Clean) => None,
            Ok(Verdict::Warned(warning)) => Some(warning),
            Err(problem) => return Ok(Err(problem)),
        };
        // After a warning the comparison has the word: some are harmless, others are lost pixels.
        if !check && warned.is_none() {
            return Ok(Ok(coded(output, None)));
        }
        Ok(self.compare(&bytes, &output).map(|oddity| coded(output, warned.or(oddity))))
    }

    /// Compares the coefficients of a JPEG and of its rewrite: those that libjpeg-turbo reads of both,
    /// and those that training's decoder reads of the rewrite.
    ///
    /// # Errors
    /// Damage in the source, or a difference. Else what is odd about the source.
    fn compare(&mut self, source: &[u8], result: &[u8]) -> Result<Option<String>, String> {
        let of = self.judge.read(source).map_err(|fault| reason(&fault))?;
        if of.warnings.damage() {
            // Training's decoder says where.
            let said = self.decoder.decode(source).err().map(|fault| reason(&fault));
            return Err(said.unwrap_or_else(|| format!("the data are damaged: {}", of.warnings)));
        }
        if !std::ptr::eq(source, result) {
            let stored = self.judge.read(result).map_err(|fault| reason(&fault))?;
            if stored.fingerprint != of.fingerprint || stored.warnings.damage() {
                return Err("the lossless rewrite would change its pixels".to_owned());
            }
        }
        match self.judge.ours(result).map_err(|fault| reason(&fault))? {
            Some(ours) if ours != of.fingerprint => {
                Err("training would decode it to other pixels than libjpeg-turbo: please report it"
                    .to_owned())
            }
            Some(_) => Ok(()),
            // Training leaves it to libjpeg-turbo.
            None => self.decoder.decode(result).map(drop).map_err(|fault| reason(&fault)),
        }?;
        Ok((of.warnings != Warnings::default()).then(|| of.warnings.to_string()))
    }

    /// Scales down to the longest side allowed, with an antialiased Lanczos filter of three lobes.
    fn shrink(&mut self, decoded: Decoded) -> (Vec<u8>, (u32, u32)) {
        let (width, height) = (decoded.width as u32, decoded.height as u32);
        let longest = width.max(height);
        let side = self.coding.max_side.map_or(longest, u32::from);
        if longest <= side {
            return (decoded.pixels, (width, height));
        }
        let scale = |length: u32| {
            let [length, side, longest] = [length, side, longest].map(u64::from);
            ((length * side + longest / 2) / longest).max(1) as u32
        };
        let (to_width, to_height) = (scale(width), scale(height));
        let kind = resize::PixelType::U8x3;
        let source = resize::images::Image::from_vec_u8(width, height, decoded.pixels, kind)
            .expect("a decoded image holds three bytes a pixel");
        let mut target = resize::images::Image::new(to_width, to_height, kind);
        let filter = resize::ResizeAlg::Convolution(resize::FilterType::Lanczos3);
        let options = resize::ResizeOptions::new().resize_alg(filter);
        self.resizer.resize(&source, &mut target, &options).expect("both images are U8x3");
        (target.into_vec(), (to_width, to_height))
    }

    fn encode(
        &mut self,
        pixels: &[u8],
        (width, height): (u32, u32),
        png: bool,
        what: Option<&str>,
    ) -> Result<Coded, Error> {
        let oddity = what.map(str::to_owned);
        if png {
            let mut bytes = Vec::new();
            PngEncoder::new(&mut bytes).write_image(
                pixels,
                width,
                height,
                ExtendedColorType::Rgb8,
            )?;
            return Ok(Coded { bytes, extension: "png", width, height, oddity });
        }
        // The standard tables cost a small file some bytes. Training keeps them from one file to the next, where
        // those of each file's own take a fifth of its decoding to make ready.
        self.compressor.set_optimize(width.min(height) >= SMALL_SIDE)?;
        let bytes = self.compressor.compress_to_vec(Image {
            pixels,
            width: width as usize,
            pitch: width as usize * 3,
            height: height as usize,
            format: PixelFormat::RGB,
        })?;
        let mut coded = Coded { bytes, extension: "jpg", width, height, oddity };
        let interval = Header::read(&coded.bytes).map_or(0, |header| restart_interval(&header));
        if self.coding.restart == Restart::Auto && interval > 0 {
            let mut output = Vec::with_capacity(coded.bytes.len());
            // A JPEG that we have just written gives no cause for complaint.
            if let Ok(Verdict::Clean) =
                self.rewriter.rewrite(&coded.bytes, interval, &mut output)?
            {
                coded.bytes = output;
            }
        }
        Ok(coded)
    }
}

/// A decoder for images of up to [`MAX_PIXELS`] that leaves EXIF orientation alone, as training does.
pub(crate) fn decoder() -> Result<Decoder, Error> {
    let options = DecodeOptions { max_pixels: MAX_PIXELS.into(), ..DecodeOptions::default() };
    Decoder::new(options).map_err(Error::Decoder)
}

/// What decoding an image takes, counted as pixels of an ordinary one; 0 for what is no image. It is
/// judged from the header, before any memory is taken.
pub(crate) fn weight(image: &[u8]) -> u64 {
    if let Some(format) = Foreign::of(image) {
        return format.weight(image);
    }
    if !image.starts_with(PNG) {
        return Header::read(image).map_or(0, |header| header.area());
    }
    // IHDR: width and height of 4 bytes, then the bits of a sample.
    let Some(&[w0, w1, w2, w3, h0, h1, h2, h3, depth]) = image.get(16..25) else { return 0 };
    let [width, height] = [[w0, w1, w2, w3], [h0, h1, h2, h3]].map(u32::from_be_bytes);
    let double = if depth == 16 { 2 } else { 1 };
    (u64::from(width) * u64::from(height)).saturating_mul(double)
}

/// What decoding leaves out of a PNG, in words behind a comma.
fn png_notes(image: &[u8]) -> String {
    let mut notes = String::new();
    if image.get(24) == Some(&16) {
        notes += ", 16 bits a sample, stored as 8";
    }
    let mut rest = image.get(PNG.len()..).unwrap_or_default();
    // Length, kind, data and checksum of each chunk; an animation says so before its first picture.
    while let Some(&[l0, l1, l2, l3, ref kind @ ..]) = rest.first_chunk::<8>() {
        match kind {
            b"IDAT" => break,
            b"acTL" => {
                notes += ", the first frame of an animation";
                break;
            }
            _ => {
                let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
                rest = rest.get(length.saturating_add(12)..).unwrap_or_default();
            }
        }
    }
    notes
}

/// What a PNG file begins with.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A fault and its causes on one line, for reports.
pub(crate) fn reason(fault: &dyn std::error::Error) -> String {
    match fault.source() {
        Some(cause) => format!("{fault}: {}", reason(cause)),
        None => fault.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jpeg(quality: i32, seed: usize) -> Vec<u8> {
        let pixels: Vec<u8> = (0..200 * 150 * 3).map(|n| (n * seed + n / 600 * 7) as u8).collect();
        let mut compressor = Compressor::new().unwrap();
        compressor.set_quality(quality).unwrap();
        let (pixels, format) = (&pixels[..], PixelFormat::RGB);
        compressor
            .compress_to_vec(Image { pixels, width: 200, pitch: 600, height: 150, format })
            .unwrap()
    }

    #[test]
    fn the_check_sees_other_coefficients_other_quantisers_and_damage() {
        let mut recoder = Recoder::new(Coding::default()).unwrap();
        let source = jpeg(90, 3);
        let mut same = Vec::new();
        recoder.rewriter.rewrite(&source, 5, &mut same).unwrap().unwrap();
        assert_ne!(same, source);
        assert_eq!(recoder.compare(&source, &same), Ok(None));
        let table = source.windows(2).position(|two| two == [0xFF, 0xDB]).unwrap();
        let mut quantiser = source.clone();
        quantiser[table + 9] += 1;
        let mut coefficient = source.clone();
        let middle = source.len() / 2;
        coefficient[middle] ^= 4;
        for (what, other) in [
            ("another picture", jpeg(90, 5)),
            ("another quality", jpeg(91, 3)),
            ("one quantiser", quantiser),
            ("one bit of the data", coefficient),
        ] {
            assert!(recoder.compare(&source, &other).is_err(), "{what}");
        }
        let cut = source[..middle].to_vec();
        let said = recoder.compare(&cut, &cut).unwrap_err();
        assert!(said.contains("cut short"), "{said}");
        let odd = [&source[..2], b"junk", &source[2..]].concat();
        assert!(recoder.compare(&odd, &same).unwrap().unwrap().contains("belong to no segment"));
    }
}

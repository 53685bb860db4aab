//! From what a source holds to what a shard stores: a pure function of the bytes and the options.

use std::io::Cursor;

use fast_image_resize as resize;
use image::{ExtendedColorType, ImageEncoder, ImageFormat, ImageReader, codecs::png::PngEncoder};
use serde::{Deserialize, Serialize};
use turbojpeg::{Colorspace, Compressor, Decompressor, Image, PixelFormat, Subsamp};
use xxhash_rust::xxh3::xxh3_64;

use crate::Error;
use crate::catalog::Raw;
use crate::jpeg::Frame;
use crate::transform::{Rewriter, Verdict};

/// Larger images are rejected: their coefficients, or two decodes of them, take 6 bytes a pixel and
/// would not fit the memory bound of a build, 500 MB.
pub const MAX_PIXELS: u32 = 64_000_000;

/// The lowest quality at which oddities are converted.
const CONVERSION_QUALITY: u8 = 95;

/// What happens to the entropy coding of a JPEG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Restart {
    /// Lossless rewrite: baseline, optimised tables, restart markers that make crops cheap to decode.
    Auto,
    /// The source's own coding.
    Off,
}

/// Which results are decoded and compared with a decode of their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// Every one.
    Full,
    /// One in sixteen, chosen by the source's bytes.
    Sample,
    /// None.
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
    /// Store images that are no JPEG as PNG, which loses nothing.
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
    decompressor: Decompressor,
    compressor: Compressor,
    resizer: resize::Resizer,
    /// Two decodes of the same image, (height, width, 3).
    pixels: [Vec<u8>; 2],
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
        compressor.set_optimize(true)?;
        Ok(Self {
            coding,
            rewriter: Rewriter::new(MAX_PIXELS)?,
            decompressor: Decompressor::new()?,
            compressor,
            resizer: resize::Resizer::new(),
            pixels: [Vec::new(), Vec::new()],
        })
    }

    /// A recoder that is only asked whether images decode.
    pub(crate) fn for_decoding() -> Result<Self, Error> {
        Self::new(Coding::default())
    }

    /// Decodes a stored image; `Err` says what is wrong with it.
    pub(crate) fn decodes(&mut self, image: &[u8]) -> Result<(), String> {
        let verdict = if image.starts_with(PNG) {
            decode_png(image, &mut self.pixels[0]).map(|_| Verdict::Clean)
        } else {
            Frame::read(image)?;
            decode(&mut self.decompressor, image, &mut self.pixels[0])
        };
        verdict.map(|_| ())
    }

    /// What is stored for `bytes`, or why they are rejected.
    ///
    /// # Errors
    /// libjpeg-turbo fails for want of memory, or a rewrite changed pixels: nothing the input can cause.
    pub fn recode(&mut self, raw: Raw, bytes: Vec<u8>) -> Result<Result<Coded, String>, Error> {
        match raw {
            Raw::Pixels { width, height } => self.encode(&bytes, width, height, None).map(Ok),
            Raw::Encoded if bytes.starts_with(&[0xFF, 0xD8]) => self.jpeg(bytes),
            Raw::Encoded if bytes.starts_with(PNG) => self.png(bytes),
            Raw::Encoded => Ok(Err(format!("{}, neither JPEG nor PNG", format_of(&bytes)))),
        }
    }

    fn jpeg(&mut self, bytes: Vec<u8>) -> Result<Result<Coded, String>, Error> {
        let frame = match Frame::read(&bytes) {
            Ok(frame) if frame.area() <= u64::from(MAX_PIXELS) => frame,
            Ok(frame) => return Ok(Err(too_large(frame.width.into(), frame.height.into()))),
            Err(problem) => return Ok(Err(problem.to_owned())),
        };
        let [width, height] = [frame.width, frame.height].map(u32::from);
        let coded = |bytes, oddity| Coded { bytes, extension: "jpg", width, height, oddity };
        if self.coding.keep {
            return Ok(Ok(coded(bytes, None)));
        }
        let shrinks = self.coding.max_side.is_some_and(|side| frame.width.max(frame.height) > side);
        // Lossless JPEG (SOF3, 7, 11, 15), CMYK and anything else that is not grey or colour.
        let odd = !matches!(frame.components, 1 | 3) || frame.process & 3 == 3;
        if shrinks || odd {
            let what = match (frame.components, frame.process & 3) {
                (4, _) => Some("was CMYK, converted to RGB"),
                (_, 3) => Some("was a lossless JPEG, converted"),
                _ => None,
            };
            return match decode(&mut self.decompressor, &bytes, &mut self.pixels[0]) {
                Ok(_) => self.shrink_and_encode(width, height, what).map(Ok),
                Err(problem) => Ok(Err(problem)),
            };
        }
        let check = match self.coding.check {
            Check::Full => true,
            Check::Sample => xxh3_64(&bytes).is_multiple_of(16),
            Check::Off => false,
        };
        let [source, result] = &mut self.pixels;
        if self.coding.restart == Restart::Off {
            let verdict = match check {
                true => decode(&mut self.decompressor, &bytes, source),
                false => Ok(Verdict::Clean),
            };
            return Ok(verdict.map(|verdict| coded(bytes, oddity(verdict))));
        }
        let mut output = Vec::with_capacity(bytes.len() + bytes.len() / 8);
        let verdict = self.rewriter.rewrite(&bytes, frame.restart_interval(), &mut output)?;
        let verdict = match verdict.and_then(accept) {
            Ok(verdict) => verdict,
            Err(problem) => return Ok(Err(problem)),
        };
        if check {
            let before = decode(&mut self.decompressor, &bytes, source);
            let after = decode(&mut self.decompressor, &output, result);
            if let Err(problem) = before.and(after) {
                return Ok(Err(problem));
            }
            if source != result {
                let problem =
                    "its lossless rewrite changed pixels, which is a fault of this program";
                return Ok(Err(problem.to_owned()));
            }
        }
        Ok(Ok(coded(output, oddity(verdict))))
    }

    fn png(&mut self, bytes: Vec<u8>) -> Result<Result<Coded, String>, Error> {
        if self.coding.keep {
            return Ok(png_size(&bytes).map(|(width, height)| Coded {
                bytes,
                extension: "png",
                width,
                height,
                oddity: None,
            }));
        }
        let (width, height) = match decode_png(&bytes, &mut self.pixels[0]) {
            Ok(size) => size,
            Err(problem) => return Ok(Err(problem)),
        };
        let what = if self.coding.png { None } else { Some("was PNG, converted to JPEG") };
        self.shrink_and_encode(width, height, what).map(Ok)
    }

    /// Encodes `pixels[0]`, scaled down first where the options say so.
    fn shrink_and_encode(
        &mut self,
        width: u32,
        height: u32,
        what: Option<&str>,
    ) -> Result<Coded, Error> {
        let mut pixels = std::mem::take(&mut self.pixels[0]);
        let (mut to_width, mut to_height) = (width, height);
        if let Some(side) =
            self.coding.max_side.map(u32::from).filter(|side| width.max(height) > *side)
        {
            let longest = width.max(height);
            let scale = |length: u32| ((length * side + longest / 2) / longest).max(1);
            (to_width, to_height) = (scale(width), scale(height));
            pixels = self.shrink(pixels, (width, height), (to_width, to_height));
        }
        let coded = self.encode(&pixels, to_width, to_height, what);
        self.pixels[0] = pixels;
        coded
    }

    /// Scales with an antialiased Lanczos filter of three lobes.
    fn shrink(&mut self, pixels: Vec<u8>, from: (u32, u32), to: (u32, u32)) -> Vec<u8> {
        let kind = resize::PixelType::U8x3;
        let source = resize::images::Image::from_vec_u8(from.0, from.1, pixels, kind)
            .expect("the buffer holds three bytes a pixel");
        let mut target = resize::images::Image::new(to.0, to.1, kind);
        let filter = resize::ResizeAlg::Convolution(resize::FilterType::Lanczos3);
        let options = resize::ResizeOptions::new().resize_alg(filter);
        self.resizer.resize(&source, &mut target, &options).expect("both images are U8x3");
        target.into_vec()
    }

    fn encode(
        &mut self,
        pixels: &[u8],
        width: u32,
        height: u32,
        what: Option<&str>,
    ) -> Result<Coded, Error> {
        let oddity = what.map(str::to_owned);
        if self.coding.png {
            let mut bytes = Vec::new();
            PngEncoder::new(&mut bytes).write_image(
                pixels,
                width,
                height,
                ExtendedColorType::Rgb8,
            )?;
            return Ok(Coded { bytes, extension: "png", width, height, oddity });
        }
        if what.is_some() {
            self.compressor.set_quality(self.coding.quality.max(CONVERSION_QUALITY).into())?;
        }
        let bytes = self.compressor.compress_to_vec(Image {
            pixels,
            width: width as usize,
            pitch: width as usize * 3,
            height: height as usize,
            format: PixelFormat::RGB,
        })?;
        self.compressor.set_quality(self.coding.quality.into())?;
        let mut coded = Coded { bytes, extension: "jpg", width, height, oddity };
        let interval = Frame::read(&coded.bytes).map_or(0, |frame| frame.restart_interval());
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

/// What a PNG file begins with.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Width and height of a PNG that is not too large.
fn png_size(png: &[u8]) -> Result<(u32, u32), String> {
    let reader = ImageReader::with_format(Cursor::new(png), ImageFormat::Png);
    let (width, height) = reader.into_dimensions().map_err(|error| error.to_string())?;
    if u64::from(width) * u64::from(height) > MAX_PIXELS.into() {
        return Err(too_large(width, height));
    }
    Ok((width, height))
}

/// Decodes a PNG to (height, width, 3) RGB. Alpha is dropped, not blended: what lies under it is the
/// picture's own.
fn decode_png(png: &[u8], pixels: &mut Vec<u8>) -> Result<(u32, u32), String> {
    let size = png_size(png)?;
    let mut reader = ImageReader::with_format(Cursor::new(png), ImageFormat::Png);
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(u64::from(MAX_PIXELS) * 6);
    reader.limits(limits);
    *pixels = reader.decode().map_err(|error| error.to_string())?.into_rgb8().into_raw();
    Ok(size)
}

/// Decodes a JPEG of any colour space to (height, width, 3) RGB.
fn decode(
    decompressor: &mut Decompressor,
    jpeg: &[u8],
    pixels: &mut Vec<u8>,
) -> Result<Verdict, String> {
    let header = decompressor.read_header(jpeg).map_err(|error| error.to_string())?;
    let (width, height) = (header.width, header.height);
    let cmyk = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let format = if cmyk { PixelFormat::CMYK } else { PixelFormat::RGB };
    let pitch = width * format.size();
    pixels.clear();
    pixels.resize(pitch * height, 0);
    let image = Image { pixels: &mut pixels[..], width, pitch, height, format };
    let verdict = match decompressor.decompress(jpeg, image) {
        Ok(()) => Ok(Verdict::Clean),
        Err(turbojpeg::Error::TurboJpegError(text)) => accept(Verdict::Warned(text)),
        Err(error) => Err(error.to_string()),
    };
    if cmyk {
        // Adobe stores CMYK inverted, and libjpeg hands it on: 255 is no ink. So R = C K / 255.
        for at in 0..width * height {
            let [c, m, y, k] = [0, 1, 2, 3].map(|i| u32::from(pixels[at * 4 + i]));
            for (i, ink) in [c, m, y].into_iter().enumerate() {
                pixels[at * 3 + i] = ((ink * k + 127) / 255) as u8;
            }
        }
        pixels.truncate(width * height * 3);
    }
    verdict
}

/// Lets warnings pass that leave every pixel as it was meant; others are damage.
///
/// # Source
/// libjpeg-turbo's `jerror.h`; the library keeps the text of the first warning of a file.
fn accept(verdict: Verdict) -> Result<Verdict, String> {
    const HARMLESS: [&str; 4] = [
        "extraneous bytes before marker",
        "unknown JFIF revision number",
        "Unknown Adobe color transform code",
        "Invalid SOS parameters for sequential JPEG",
    ];
    match verdict {
        Verdict::Warned(text) if !HARMLESS.iter().any(|known| text.contains(known)) => Err(text),
        harmless => Ok(harmless),
    }
}

fn oddity(verdict: Verdict) -> Option<String> {
    match verdict {
        Verdict::Clean => None,
        Verdict::Warned(text) => Some(text),
    }
}

fn too_large(width: u32, height: u32) -> String {
    format!("{width}x{height} is more than {} million pixels", MAX_PIXELS / 1_000_000)
}

/// What the first bytes of a file say it is.
fn format_of(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => "is empty",
        [b'G', b'I', b'F', b'8', ..] => "is a GIF",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "is a WebP",
        [b'B', b'M', ..] => "is a BMP",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "is a TIFF",
        [b'<', ..] => "is HTML or XML",
        _ if bytes.iter().take(64).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => {
            "is text"
        }
        _ => "is of an unknown format",
    }
}

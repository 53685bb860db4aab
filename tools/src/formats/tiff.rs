//! TIFF, as far as photographs come in it: grey, RGB, CMYK and palettes, in strips, tiles or planes.

use std::borrow::Cow;
use std::io::Cursor;

use image::metadata::Orientation;
use pipeline::decode::Decoded;
use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult};
use tiff::tags::Tag;

use super::{Header, Picture};

/// The first page's size, and what decoding it takes.
pub(super) fn header(bytes: &[u8]) -> Result<Header, String> {
    let bytes = readable(bytes);
    let mut decoder = decoder(&bytes)?;
    let (width, height) = decoder.dimensions().map_err(|e| e.to_string())?;
    let colour = decoder.colortype().map_err(|e| e.to_string())?;
    let bits = u64::from(colour.bit_depth().max(8)) * u64::from(colour.num_samples());
    Ok(Header { width, height, bytes: bits.div_ceil(8) })
}

fn decoder(bytes: &[u8]) -> Result<Decoder<Cursor<&[u8]>>, String> {
    Decoder::new(Cursor::new(bytes)).map_err(|error| error.to_string())
}

/// Where the first page's photometric interpretation lies in a file whose colours are in a palette:
/// its value is 3 there. The library reads no palettes, but it reads the numbers as grey levels once
/// that value says so.
fn palette_tag(bytes: &[u8]) -> Option<usize> {
    let big = bytes.starts_with(b"MM");
    let number = |at: usize, length: usize| {
        let bytes = bytes.get(at..at.checked_add(length)?)?;
        let fold = |all: u64, byte: &u8| (all << 8) | u64::from(*byte);
        Some(if big { bytes.iter().fold(0, fold) } else { bytes.iter().rev().fold(0, fold) })
    };
    // Offsets of 4 bytes, or of 8 in a BigTIFF.
    let wide = number(2, 2)? == 43;
    let start = if wide { number(8, 8)? } else { number(4, 4)? };
    let start = usize::try_from(start).ok().filter(|start| *start < bytes.len())?;
    let (count, head, size) = match wide {
        true => (number(start, 8)?, 8, 20),
        false => (number(start, 2)?, 2, 12),
    };
    let entries = (0..usize::try_from(count).ok()?.min(4096)).map(|n| start + head + n * size);
    let value = |entry: usize| entry + if wide { 12 } else { 8 };
    entries
        .take_while(|entry| number(*entry, 2).is_some())
        .find(|entry| number(*entry, 2) == Some(Tag::PhotometricInterpretation.to_u16().into()))
        .map(value)
        .filter(|at| number(*at, 2) == Some(3))
}

/// The file as the library reads it.
fn readable(bytes: &[u8]) -> Cow<'_, [u8]> {
    let Some(at) = palette_tag(bytes) else { return bytes.into() };
    // Black is zero, in either order of bytes.
    let one = if bytes.starts_with(b"MM") { [0, 1] } else { [1, 0] };
    let mut bytes = bytes.to_vec();
    bytes[at..at + 2].copy_from_slice(&one);
    bytes.into()
}

pub(super) fn decode(file: &[u8]) -> Result<Picture, String> {
    let bytes = readable(file);
    let problem = |error: tiff::TiffError| error.to_string();
    let mut decoder = decoder(&bytes)?;
    let (width, height) = decoder.dimensions().map_err(problem)?;
    let (width, height) = (width as usize, height as usize);
    let colour = decoder.colortype().map_err(problem)?;
    let tag =
        |decoder: &mut Decoder<_>, tag| decoder.find_tag_unsigned::<u16>(tag).map_err(problem);
    let compression = tag(&mut decoder, Tag::Compression)?;
    let orientation = tag(&mut decoder, Tag::Orientation)?;
    let extra = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples).map_err(problem)?;
    let palette = match palette_tag(file) {
        Some(_) => Some(decoder.get_tag_u16_vec(Tag::ColorMap).map_err(problem)?),
        None => None,
    };
    let mut result = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut result).map_err(problem)?;
    if result.as_buffer(0).as_bytes().len() < layout.complete_len {
        return Err("takes too much memory".to_owned());
    }
    let deep = matches!(result, DecodingResult::U16(_));
    let samples = bytes_of(result, colour, width)?;
    let of = Samples {
        samples,
        count: colour.num_samples().into(),
        planes: layout.planes,
        pixels: width * height,
    };
    let mut notes = Vec::new();
    if deep && matches!(colour, ColorType::Gray(_)) {
        notes.push("of 16-bit grey, scaled to 8");
    }
    if decoder.more_images() {
        notes.push("the first of several pages");
    }
    let associated = extra.is_some_and(|extra| extra.first() == Some(&1));
    let pixels = of.rgb(colour, palette.as_deref(), associated)?;
    let lossless = !matches!(compression, Some(6 | 7 | 34_892 | 50_001));
    let decoded = upright(pixels, (width, height), orientation)?;
    Ok(Picture { decoded, lossless, notes })
}

/// Samples of 8 bits, whatever they were: of 16 the upper half and of floating point what lies in 0
/// to 255, as Pillow has it.
fn bytes_of(result: DecodingResult, colour: ColorType, width: usize) -> Result<Vec<u8>, String> {
    match result {
        DecodingResult::U8(packed) if colour.bit_depth() < 8 => {
            let (bits, count) =
                (usize::from(colour.bit_depth()), usize::from(colour.num_samples()));
            let across = width * count;
            let mask = (1u8 << bits) - 1;
            let rows = packed.chunks_exact((across * bits).div_ceil(8));
            let value =
                |row: &[u8], at: usize| (row[at * bits / 8] >> (8 - bits - at * bits % 8)) & mask;
            Ok(rows.flat_map(|row| (0..across).map(move |at| value(row, at))).collect())
        }
        DecodingResult::U8(samples) => Ok(samples),
        DecodingResult::U16(samples) => Ok(samples.into_iter().map(|s| (s >> 8) as u8).collect()),
        DecodingResult::F32(samples) => {
            Ok(samples.into_iter().map(|sample| sample.clamp(0.0, 255.0) as u8).collect())
        }
        _ => Err(format!("has samples of a kind that is not read ({colour:?})")),
    }
}

struct Samples {
    samples: Vec<u8>,
    /// Of one pixel.
    count: usize,
    /// 1, or as many as a pixel has samples.
    planes: usize,
    pixels: usize,
}

impl Samples {
    fn at(&self, pixel: usize, sample: usize) -> u8 {
        match self.planes {
            1 => self.samples[pixel * self.count + sample],
            _ => self.samples[sample * (self.samples.len() / self.planes) + pixel],
        }
    }

    fn rgb(
        &self,
        colour: ColorType,
        palette: Option<&[u16]>,
        associated: bool,
    ) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(self.pixels * 3);
        let pixels = 0..self.pixels;
        match colour {
            ColorType::Gray(1 | 2 | 4 | 8) if palette.is_some() => {
                let palette = palette.unwrap_or_default();
                let colours = palette.len() / 3;
                for pixel in pixels {
                    let index = usize::from(self.at(pixel, 0));
                    if index >= colours {
                        return Err(format!("has no colour {index} in its palette"));
                    }
                    out.extend(
                        (0..3).map(|channel| (palette[channel * colours + index] >> 8) as u8),
                    );
                }
            }
            ColorType::Gray(bits @ (1 | 2 | 4 | 8 | 16 | 32)) if palette.is_none() => {
                let most = if bits < 8 { (1u16 << bits) - 1 } else { 255 };
                let level = |pixel| (u16::from(self.at(pixel, 0)) * 255 / most) as u8;
                out.extend(pixels.flat_map(|pixel| [level(pixel); 3]));
            }
            ColorType::Multiband { num_samples: 2, bit_depth: 8 } | ColorType::GrayA(8) => {
                out.extend(pixels.flat_map(|pixel| [self.at(pixel, 0); 3]));
            }
            ColorType::RGB(8 | 16) => {
                out.extend(pixels.flat_map(|pixel| [0, 1, 2].map(|c| self.at(pixel, c))));
            }
            ColorType::RGBA(8 | 16) => out.extend(pixels.flat_map(|pixel| {
                let alpha = u32::from(self.at(pixel, 3));
                [0, 1, 2].map(|c| match (associated, alpha) {
                    (false, _) | (_, 255) => self.at(pixel, c),
                    (true, 0) => 0,
                    (true, _) => (u32::from(self.at(pixel, c)) * 255 / alpha).min(255) as u8,
                })
            })),
            ColorType::CMYK(8 | 16) => out.extend(pixels.flat_map(|pixel| {
                let left = 255 - u32::from(self.at(pixel, 3));
                [0, 1, 2].map(|c| {
                    let product = u32::from(self.at(pixel, c)) * left + 128;
                    (left - (((product >> 8) + product) >> 8)) as u8
                })
            })),
            other => return Err(format!("has colours of a kind that is not read ({other:?})")),
        }
        Ok(out)
    }
}

/// The picture turned as its tag says, which Pillow does for TIFF, and for TIFF alone.
fn upright(
    pixels: Vec<u8>,
    (width, height): (usize, usize),
    tag: Option<u16>,
) -> Result<Decoded, String> {
    let orientation = tag.and_then(|tag| Orientation::from_exif(tag.min(255) as u8));
    let Some(orientation) = orientation.filter(|o| *o != Orientation::NoTransforms) else {
        return Ok(Decoded { width, height, pixels });
    };
    let rgb =
        image::RgbImage::from_raw(width as u32, height as u32, pixels).ok_or("is cut short")?;
    let mut turned = image::DynamicImage::ImageRgb8(rgb);
    turned.apply_orientation(orientation);
    let (width, height) = (turned.width() as usize, turned.height() as usize);
    Ok(Decoded { width, height, pixels: turned.into_rgb8().into_raw() })
}

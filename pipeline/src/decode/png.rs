//! PNG to RGB through the `png` crate. Chunks that say nothing of the pixels are passed over: text
//! and colour profiles are compressed, and a thousandth of the bytes can claim all memory.

use std::io::Cursor;

use image::{DynamicImage, ImageBuffer, Pixel};
use png::{BitDepth, ColorType, DecodingError, Transformations};

use super::rows::Pixels;
use crate::error::Fault;

/// Most bytes that all other chunks may take.
const CHUNKS: usize = 16 << 20;

/// Reads the headers. The size passes `check` before anything is allocated for it.
pub(super) fn open(
    bytes: &[u8],
    check: impl FnOnce(u64, u64) -> Result<(), Fault>,
) -> Result<png::Reader<Cursor<&[u8]>>, Fault> {
    let limits = png::Limits { bytes: CHUNKS };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let info = decoder.read_header_info().map_err(fault)?;
    check(info.width.into(), info.height.into())?;
    // Palettes and few bits become 8 bits; 16 stay.
    decoder.set_transformations(Transformations::EXPAND);
    decoder.read_info().map_err(fault)
}

/// Writes the pixels to the front of `out`. An alpha channel is dropped, 16 bits are rounded to 8.
pub(super) fn read(mut reader: png::Reader<Cursor<&[u8]>>, out: &mut Pixels) -> Result<(), Fault> {
    let (width, height) = reader.info().size();
    let need = width as usize * height as usize * 3;
    out.grow(need);
    let out = &mut out[..need];
    let (color, depth) = reader.output_color_type();
    if (color, depth) == (ColorType::Rgb, BitDepth::Eight) {
        return reader.next_frame(out).map(drop).map_err(fault);
    }
    let size = reader.output_buffer_size();
    let mut raw = vec![0; size.ok_or_else(|| fault(DecodingError::LimitsExceeded))?];
    reader.next_frame(&mut raw).map_err(fault)?;
    let size = (width, height);
    let picture = if depth == BitDepth::Sixteen {
        let wide = raw.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        match color {
            ColorType::Grayscale => of(size, wide).map(DynamicImage::ImageLuma16),
            ColorType::GrayscaleAlpha => of(size, wide).map(DynamicImage::ImageLumaA16),
            ColorType::Rgb => of(size, wide).map(DynamicImage::ImageRgb16),
            _ => of(size, wide).map(DynamicImage::ImageRgba16),
        }
    } else {
        match color {
            ColorType::Grayscale => of(size, raw).map(DynamicImage::ImageLuma8),
            ColorType::GrayscaleAlpha => of(size, raw).map(DynamicImage::ImageLumaA8),
            _ => of(size, raw).map(DynamicImage::ImageRgba8),
        }
    };
    let picture = picture.ok_or_else(|| fault(DecodingError::LimitsExceeded))?;
    out.copy_from_slice(&picture.into_rgb8());
    Ok(())
}

fn of<P: Pixel>(
    (width, height): (u32, u32),
    samples: Vec<P::Subpixel>,
) -> Option<ImageBuffer<P, Vec<P::Subpixel>>> {
    ImageBuffer::from_raw(width, height, samples)
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Fault::Truncated("the PNG data end early".into())
        }
        error => Fault::Png(Box::new(error)),
    }
}

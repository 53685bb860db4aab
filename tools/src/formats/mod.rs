//! Images that are neither JPEG nor PNG, as they lie in folders: BMP, PNM, GIF, WebP and TIFF to RGB.
//!
//! Pillow is the judge: the pixels are those of its `.convert("RGB")`, which torchvision's `ImageFolder`
//! gives (docs/formats.md; `tests/golden/formats.json` holds its verdicts). So an alpha channel is
//! dropped and what lies under it stays; of animations and files of many pages the first is read.

mod pnm;
mod tiff;

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::ImageDecoder;
use image::codecs::bmp::BmpDecoder;
use pipeline::decode::Decoded;

use crate::recode::MAX_PIXELS;

/// A format that is read, but never stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Foreign {
    Bmp,
    Pnm,
    Gif,
    WebP,
    Tiff,
}

/// What a header says.
#[derive(Clone, Copy, Debug)]
struct Header {
    width: u32,
    height: u32,
    /// Bytes that decoding takes for a pixel, besides the three of the result.
    bytes: u64,
}

/// A decoded picture.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) decoded: Decoded,
    /// No pixel was lost when the file was made.
    pub(crate) lossless: bool,
    /// What there is to say about it beyond its format.
    pub(crate) notes: Vec<&'static str>,
}

impl Foreign {
    /// The format of a file by its first bytes, whatever it is called.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [b'B', b'M', ..] => Some(Self::Bmp),
            [b'P', b'1'..=b'6', b' ' | b'\t' | b'\n' | b'\r' | b'#', ..] => Some(Self::Pnm),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Self::Tiff),
            _ => None,
        }
    }

    /// The format in words.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bmp => "BMP",
            Self::Pnm => "PNM",
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Tiff => "TIFF",
        }
    }

    fn header(self, bytes: &[u8]) -> Result<Header, String> {
        match self {
            Self::Bmp => {
                let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(|e| e.to_string())?;
                let (width, height) = decoder.dimensions();
                Ok(Header { width, height, bytes: decoder.color_type().bytes_per_pixel().into() })
            }
            Self::Pnm => pnm::Header::read(bytes).map(|header| Header {
                width: header.width,
                height: header.height,
                bytes: 0,
            }),
            Self::Gif => {
                let (decoder, left) = gif_frame(bytes)?;
                let (width, height) = gif_screen(&decoder, &left);
                Ok(Header { width, height, bytes: 1 })
            }
            Self::WebP => {
                let decoder = webp(bytes)?;
                let (width, height) = decoder.dimensions();
                // The canvas, a frame, and the planes of a lossy one.
                Ok(Header { width, height, bytes: if decoder.is_animated() { 12 } else { 8 } })
            }
            Self::Tiff => tiff::header(bytes),
        }
    }

    /// What decoding takes, counted as pixels of an ordinary JPEG, of nine bytes; 0 for what has no
    /// sound header.
    pub(crate) fn weight(self, bytes: &[u8]) -> u64 {
        let header = guarded(|| self.header(bytes));
        header.map_or(0, |Header { width, height, bytes }| {
            (u64::from(width) * u64::from(height)).saturating_mul((bytes + 3).div_ceil(9))
        })
    }

    /// Decodes the file, its first frame or page.
    ///
    /// # Errors
    /// In words: it is damaged, cut short, of a variant that is not read, or too large.
    pub(crate) fn decode(self, bytes: &[u8]) -> Result<Picture, String> {
        self.decoded(bytes).map_err(|problem| format!("{}: {problem}", self.name()))
    }

    fn decoded(self, bytes: &[u8]) -> Result<Picture, String> {
        let Header { width, height, .. } = guarded(|| self.header(bytes))?;
        let most = MAX_PIXELS / 1_000_000;
        match self.weight(bytes) {
            0 => Err(format!("has {width}x{height} pixels")),
            weight if weight > MAX_PIXELS.into() => Err(format!(
                "{width}x{height} pixels, which take more memory than {most} million of a JPEG"
            )),
            _ => guarded(|| match self {
                Self::Bmp => bmp(bytes),
                Self::Pnm => pnm::decode(bytes),
                Self::Gif => gif(bytes),
                Self::WebP => decode_webp(bytes),
                Self::Tiff => tiff::decode(bytes),
            }),
        }
    }
}

/// The format of a file that is not read at all, by its first bytes.
pub(crate) fn not_read(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => match brand.get(..4)? {
            b"avif" | b"avis" => Some("AVIF"),
            b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1" => Some("HEIC"),
            _ => Some("a video or another file of ISO media"),
        },
        [0xFF, 0x0A, ..] | [0, 0, 0, 0x0C, b'J', b'X', b'L', b' ', ..] => Some("JPEG XL"),
        [0, 0, 0, 0x0C, b'j', b'P', b' ', b' ', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => {
            Some("JPEG 2000")
        }
        [b'8', b'B', b'P', b'S', ..] => Some("Photoshop"),
        [b'P', b'7', ..] => Some("PAM"),
        _ => None,
    }
}

/// A decoder that panics has met a file it was not made for: the file is at fault, not the build.
fn guarded<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let caught = catch_unwind(AssertUnwindSafe(decode));
    caught.unwrap_or_else(|_| Err("its decoder gave up".to_owned()))
}

fn bmp(bytes: &[u8]) -> Result<Picture, String> {
    let problem = |error: image::ImageError| error.to_string();
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(problem)?;
    let mut rgb = image::DynamicImage::from_decoder(decoder).map_err(problem)?.into_rgb8();
    // Pillow rounds fields of five and six bits down where the library rounds to the nearest.
    let number = |at: usize| {
        bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    let green = match (number(28) & 0xFFFF, number(30), [54, 58, 62].map(number)) {
        _ if number(14) < 40 => None,
        (16, 0, _) | (16, 3 | 6, [0x7C00, 0x3E0, 0x1F]) => Some(31),
        (16, 3 | 6, [0xF800, 0x7E0, 0x1F]) => Some(63),
        _ => None,
    };
    if let Some(green) = green {
        let down =
            |value: u8, most: u32| ((u32::from(value) * most + 127) / 255 * 255 / most) as u8;
        for pixel in rgb.pixels_mut() {
            let [r, g, b] = pixel.0;
            pixel.0 = [down(r, 31), down(g, green), down(b, 31)];
        }
    }
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    let decoded = Decoded { width, height, pixels: rgb.into_raw() };
    Ok(Picture { decoded, lossless: true, notes: Vec::new() })
}

type Gif<'a> = gif::Decoder<&'a [u8]>;

/// A decoder that has read the header of its first frame, which is given as well.
fn gif_frame(bytes: &[u8]) -> Result<(Gif<'_>, gif::Frame<'static>), String> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    let problem = |error: gif::DecodingError| error.to_string();
    let mut decoder = options.read_info(bytes).map_err(problem)?;
    let frame = decoder.next_frame_info().map_err(problem)?.cloned();
    Ok((decoder, frame.ok_or("holds no frame")?))
}

/// The size of the picture: the screen's, and more where the frame reaches beyond it, as in Pillow.
fn gif_screen(decoder: &Gif<'_>, frame: &gif::Frame<'_>) -> (u32, u32) {
    let most = |screen: u16, start: u16, length: u16| {
        u32::from(screen).max(u32::from(start) + u32::from(length))
    };
    let width = most(decoder.width(), frame.left, frame.width);
    (width, most(decoder.height(), frame.top, frame.height))
}

fn gif(bytes: &[u8]) -> Result<Picture, String> {
    let (mut decoder, frame) = gif_frame(bytes)?;
    let (width, height) = gif_screen(&decoder, &frame);
    // Without a palette the numbers are grey levels.
    let mut colours: Vec<[u8; 3]> = (0..=255).map(|level| [level; 3]).collect();
    let palette = frame.palette.as_deref().or(decoder.global_palette()).unwrap_or_default();
    for (colour, known) in colours.iter_mut().zip(palette.chunks_exact(3)) {
        colour.copy_from_slice(known);
    }
    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(|error| error.to_string())?;
    let (width, height) = (width as usize, height as usize);
    // What the frame leaves free is transparent if anything is, else the first colour.
    let free = colours[usize::from(frame.transparent.unwrap_or(0))];
    let mut pixels = free.repeat(width * height);
    let (left, top, across) =
        (usize::from(frame.left), usize::from(frame.top), usize::from(frame.width));
    for (y, row) in indices.chunks_exact(across.max(1)).take(frame.height.into()).enumerate() {
        let start = ((top + y) * width + left) * 3;
        for (pixel, index) in pixels[start..].chunks_exact_mut(3).zip(row) {
            pixel.copy_from_slice(&colours[usize::from(*index)]);
        }
    }
    let more = !matches!(decoder.next_frame_info(), Ok(None));
    let notes = if more { vec!["the first frame of an animation"] } else { Vec::new() };
    Ok(Picture { decoded: Decoded { width, height, pixels }, lossless: true, notes })
}

fn webp(bytes: &[u8]) -> Result<image_webp::WebPDecoder<Cursor<&[u8]>>, String> {
    image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(|error| error.to_string())
}

fn decode_webp(bytes: &[u8]) -> Result<Picture, String> {
    let mut decoder = webp(bytes)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut pixels = vec![0; width * height * channels];
    decoder.read_image(&mut pixels).map_err(|error| error.to_string())?;
    if channels == 4 {
        pixels = pixels.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
    }
    let notes = match decoder.is_animated() {
        true => vec!["the first frame of an animation"],
        false => Vec::new(),
    };
    let lossless = !decoder.is_lossy();
    Ok(Picture { decoded: Decoded { width, height, pixels }, lossless, notes })
}

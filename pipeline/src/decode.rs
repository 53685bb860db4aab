//! One member of a shard to pixels: libjpeg-turbo on no more of the picture than the view needs,
//! PNG through `image`, and the resize to a row at both resolutions.
//!
//! All roads give the same pixels: a cropped or spliced decode takes a margin along for the chroma
//! upsampling, so it equals the full decode, cut. Decoding is exact ("ISLOW", smooth upsampling);
//! only [`Scaling::Dct`] trades pixels for speed.

use std::ffi::CStr;
use std::io::Cursor;
use std::ptr::NonNull;

use fast_image_resize as fir;
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use image::ImageDecoder;
use serde::{Deserialize, Serialize};
use turbojpeg_sys as tj;

use crate::augment::{Crop, View};
use crate::error::Fault;
use crate::jpeg;

/// Scratch that is kept between images; a rare giant's is given back.
const KEPT: usize = 24 << 20;

/// The resampling filter. Both are antialiased: their support grows with the reduction, as in
/// Pillow. The papers' TensorFlow code does not antialias; this is a departure of ours, for
/// sparse sampling of a large photograph is noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Cubic convolution, a = -0.5.
    #[default]
    Bicubic,
    /// Triangle.
    Bilinear,
}

/// Whether a JPEG may be decoded at a reduced size where the crop is large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// Never: the pixels are exact.
    #[default]
    Off,
    /// By 1/2, 1/4 or 1/8, as long as the crop stays at least as large as the row.
    Dct,
}

/// What EXIF says about which way is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Orientation {
    /// Not looked at, as in ImageNet recipes.
    #[default]
    Ignore,
    /// The picture is turned upright before it is cropped.
    Apply,
}

/// How a [`Decoder`] works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecodeOptions {
    /// The resampling filter.
    pub filter: Filter,
    /// Reduced-size decoding.
    pub scaling: Scaling,
    /// EXIF orientation.
    pub orientation: Orientation,
    /// Most pixels a header may claim; more are refused before anything is allocated.
    pub max_pixels: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        let (filter, scaling) = (Filter::default(), Scaling::default());
        Self { filter, scaling, orientation: Orientation::default(), max_pixels: 100_000_000 }
    }
}

/// A whole picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// RGB, (height, width, 3).
    pub pixels: Vec<u8>,
}

/// Decodes one picture after the other, keeping its memory. One per thread.
#[derive(Debug)]
pub struct Decoder {
    jpeg: Turbo,
    options: DecodeOptions,
    resizer: fir::Resizer,
    resize: fir::ResizeOptions,
    pixels: Vec<u8>,
    spare: Vec<u8>,
    spliced: Vec<u8>,
}

/// The format of a file by its first bytes.
fn sniff(bytes: &[u8]) -> Result<bool, Fault> {
    let found = match bytes {
        [] => return Err(Fault::Empty),
        [0xff, 0xd8, 0xff, ..] => return Ok(true),
        [0x89, b'P', b'N', b'G', ..] => return Ok(false),
        [0xff] | [0xff, 0xd8] | [0x89] | [0x89, b'P'] | [0x89, b'P', b'N'] => {
            return Err(Fault::Truncated(format!("{} bytes are no picture", bytes.len())));
        }
        [b'G', b'I', b'F', b'8', ..] => "GIF",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "WebP",
        [b'B', b'M', ..] => "BMP",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "TIFF",
        [b'<', ..] => "HTML or XML",
        _ if bytes.iter().take(512).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => {
            "text"
        }
        _ if bytes.iter().take(512).all(|&b| b == 0) => "nothing but zeros",
        _ => "an unknown format",
    };
    Err(Fault::Unsupported(found))
}

impl Decoder {
    /// A decoder.
    ///
    /// # Errors
    /// [`Fault::Jpeg`] when libjpeg-turbo has no memory to start.
    pub fn new(options: DecodeOptions) -> Result<Self, Fault> {
        let filter = match options.filter {
            Filter::Bicubic => fir::FilterType::CatmullRom,
            Filter::Bilinear => fir::FilterType::Bilinear,
        };
        Ok(Self {
            jpeg: Turbo::new()?,
            options,
            resizer: fir::Resizer::new(),
            resize: fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(filter)),
            pixels: Vec::new(),
            spare: Vec::new(),
            spliced: Vec::new(),
        })
    }

    /// Width and height in pixels, from the header alone, turned where the options say so.
    ///
    /// # Errors
    /// Any [`Fault`] that shows in the header, or a missing end marker.
    pub fn size(&mut self, bytes: &[u8]) -> Result<(usize, usize), Fault> {
        if sniff(bytes)? {
            let header = jpeg::parse(bytes)?;
            self.check_pixels(header.width as u64, header.height as u64)?;
            let turned = self.turn(&header) >= 5;
            Ok(if turned { (header.height, header.width) } else { (header.width, header.height) })
        } else {
            let (width, height) = png(bytes)?.dimensions();
            self.check_pixels(width.into(), height.into())?;
            Ok((width as usize, height as usize))
        }
    }

    /// The whole picture as RGB. An alpha channel is dropped, 16 bits become 8, grey and palette
    /// become RGB, CMYK and YCCK are converted as Pillow does (Adobe's inverted convention).
    ///
    /// # Errors
    /// Any [`Fault`]. A picture that is cut short is an error, never filled up.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Fault> {
        let mut seen = (0, 0);
        self.window(bytes, |width, height| {
            seen = (width, height);
            Crop { x: 0, y: 0, width, height }
        })?;
        let (width, height) = seen;
        let pixels = self.pixels[..width * height * 3].to_vec();
        self.forget_giants();
        Ok(Decoded { width, height, pixels })
    }

    /// Decodes the part of the picture that `choose` wants of one of this width and height, and
    /// writes it into two rows, `large` of `side` by `side` pixels and `small`, its mean.
    ///
    /// # Errors
    /// Any [`Fault`].
    ///
    /// # Panics
    /// When `large` does not hold `side` x `side` RGB pixels or `small` has no side that divides it.
    pub fn view(
        &mut self,
        bytes: &[u8],
        choose: impl FnOnce(usize, usize) -> View,
        side: usize,
        (large, small): (&mut [u8], &mut [u8]),
    ) -> Result<(), Fault> {
        let mut seen =
            View { crop: Crop { x: 0, y: 0, width: 1, height: 1 }, flip: false, shift: (0, 0) };
        let window = self.scaled_window(bytes, side, |width, height| {
            seen = choose(width, height);
            seen.crop
        })?;
        self.render(&window, side, large)?;
        if seen.shift != (0, 0) {
            self.spare.clear();
            self.spare.extend_from_slice(large);
            shift_mirrored(&self.spare, seen.shift, side, large);
        }
        if seen.flip {
            flip(large, side);
        }
        shrink(large, side, small);
        self.forget_giants();
        Ok(())
    }

    /// Resizes the crop in `self.pixels` to a row.
    fn render(&mut self, window: &Window, side: usize, row: &mut [u8]) -> Result<(), Fault> {
        let fail = |error: &dyn std::fmt::Display| Fault::Resize(error.to_string());
        let used = &self.pixels[..window.width * window.height * 3];
        let (width, height) = (window.width as u32, window.height as u32);
        let source: TypedImageRef<U8x3> =
            TypedImageRef::from_buffer(width, height, used).map_err(|e| fail(&e))?;
        // The resizer must see nothing beyond the crop: filters reach over its edges.
        let Crop { x, y, width, height } = window.inner;
        let [x, y, width, height] = [x, y, width, height].map(|v| v as u32);
        let inner =
            TypedCroppedImage::from_ref(&source, x, y, width, height).map_err(|e| fail(&e))?;
        let mut target: TypedImage<U8x3> =
            TypedImage::from_buffer(side as u32, side as u32, row).map_err(|e| fail(&e))?;
        let options = match window.fraction {
            None => self.resize,
            Some([left, top, width, height]) => self.resize.crop(left, top, width, height),
        };
        self.resizer.resize_typed(&inner, &mut target, &options).map_err(|e| fail(&e))
    }

    fn window(
        &mut self,
        bytes: &[u8],
        choose: impl FnOnce(usize, usize) -> Crop,
    ) -> Result<Window, Fault> {
        self.scaled_window(bytes, usize::MAX, choose)
    }

    /// Fills `self.pixels` with a part of the picture around the chosen crop. With DCT scaling the
    /// part may be reduced, but the crop in it has at least `side` pixels both ways.
    fn scaled_window(
        &mut self,
        bytes: &[u8],
        side: usize,
        choose: impl FnOnce(usize, usize) -> Crop,
    ) -> Result<Window, Fault> {
        if !sniff(bytes)? {
            let (width, height) = self.decode_png(bytes)?;
            return Ok(Window::whole(width, height, choose(width, height)));
        }
        let header = jpeg::parse(bytes)?;
        self.check_pixels(header.width as u64, header.height as u64)?;
        let turn = self.turn(&header);
        if turn > 1 {
            let all = Crop { x: 0, y: 0, width: header.width, height: header.height };
            self.decode_jpeg(bytes, &header, all, 1)?;
            let (width, height) =
                turned(turn, (header.width, header.height), &self.pixels, &mut self.spare);
            std::mem::swap(&mut self.pixels, &mut self.spare);
            return Ok(Window::whole(width, height, choose(width, height)));
        }
        let crop = choose(header.width, header.height);
        let fits = |&divisor: &usize| crop.width / divisor >= side && crop.height / divisor >= side;
        let divisor = match self.options.scaling {
            Scaling::Off => 1,
            Scaling::Dct => [8, 4, 2].into_iter().find(fits).unwrap_or(1),
        };
        self.decode_jpeg(bytes, &header, crop, divisor)
    }

    fn decode_jpeg(
        &mut self,
        bytes: &[u8],
        header: &jpeg::Header,
        crop: Crop,
        divisor: usize,
    ) -> Result<Window, Fault> {
        // Smooth chroma upsampling looks one chroma sample, at most four pixels, to each side.
        let margin = if header.unit() == (8, 8) { 0 } else { 4 * divisor };
        let wide = Crop {
            x: crop.x.saturating_sub(margin),
            y: crop.y.saturating_sub(margin),
            width: (crop.x + crop.width + margin).min(header.width) - crop.x.saturating_sub(margin),
            height: (crop.y + crop.height + margin).min(header.height)
                - crop.y.saturating_sub(margin),
        };
        let Self { jpeg, pixels, spare, spliced, .. } = self;
        if let Some(shown) = header.splice(bytes, wide, spliced) {
            let inside = Crop { x: crop.x - shown.x, y: crop.y - shown.y, ..crop };
            let wide = Crop { x: wide.x - shown.x, y: wide.y - shown.y, ..wide };
            return jpeg.decode(spliced, wide, inside, divisor, (pixels, spare));
        }
        if header.junk {
            header.without_junk(bytes, spliced);
            return jpeg.decode(spliced, wide, crop, divisor, (pixels, spare));
        }
        jpeg.decode(bytes, wide, crop, divisor, (pixels, spare))
    }

    fn turn(&self, header: &jpeg::Header) -> u8 {
        match self.options.orientation {
            Orientation::Ignore => 1,
            Orientation::Apply => header.orientation,
        }
    }

    fn check_pixels(&self, width: u64, height: u64) -> Result<(), Fault> {
        let limit = self.options.max_pixels;
        match width.checked_mul(height) {
            Some(1..) if width * height <= limit => Ok(()),
            _ => Err(Fault::Pixels { width, height, limit }),
        }
    }

    fn decode_png(&mut self, bytes: &[u8]) -> Result<(usize, usize), Fault> {
        let decoder = png(bytes)?;
        let (width, height) = decoder.dimensions();
        self.check_pixels(width.into(), height.into())?;
        let need = width as usize * height as usize * 3;
        grow(&mut self.pixels, need);
        if decoder.color_type() == image::ColorType::Rgb8 {
            decoder.read_image(&mut self.pixels[..need]).map_err(png_fault)?;
        } else {
            let picture = image::DynamicImage::from_decoder(decoder).map_err(png_fault)?;
            self.pixels[..need].copy_from_slice(&picture.into_rgb8());
        }
        Ok((width as usize, height as usize))
    }

    fn forget_giants(&mut self) {
        for buffer in [&mut self.pixels, &mut self.spare, &mut self.spliced] {
            if buffer.capacity() > KEPT {
                *buffer = Vec::new();
            }
        }
        if self.resizer.size_of_internal_buffers() > KEPT {
            self.resizer.reset_internal_buffers();
        }
    }
}

/// A part of a picture in a decoder's memory.
#[derive(Debug)]
struct Window {
    width: usize,
    height: usize,
    /// The crop's place in it, in whole pixels.
    inner: Crop,
    /// The crop within `inner`, where scaling made it fall between pixels: left, top, width, height.
    fraction: Option<[f64; 4]>,
}

impl Window {
    fn whole(width: usize, height: usize, inner: Crop) -> Self {
        Self { width, height, inner, fraction: None }
    }
}

fn grow(buffer: &mut Vec<u8>, need: usize) {
    if buffer.len() < need {
        buffer.resize(need, 0);
    }
}

fn png(bytes: &[u8]) -> Result<image::codecs::png::PngDecoder<Cursor<&[u8]>>, Fault> {
    image::codecs::png::PngDecoder::new(Cursor::new(bytes)).map_err(png_fault)
}

fn png_fault(error: image::ImageError) -> Fault {
    if let image::ImageError::IoError(source) = &error
        && source.kind() == std::io::ErrorKind::UnexpectedEof
    {
        return Fault::Truncated("the PNG data end early".into());
    }
    Fault::Png(Box::new(error))
}

/// Turns a picture upright. Returns its new width and height.
fn turned(
    orientation: u8,
    (width, height): (usize, usize),
    pixels: &[u8],
    out: &mut Vec<u8>,
) -> (usize, usize) {
    let size = if orientation >= 5 { (height, width) } else { (width, height) };
    grow(out, width * height * 3);
    for y in 0..size.1 {
        for x in 0..size.0 {
            let (from_x, from_y) = match orientation {
                2 => (width - 1 - x, y),
                3 => (width - 1 - x, height - 1 - y),
                4 => (x, height - 1 - y),
                5 => (y, x),
                6 => (y, height - 1 - x),
                7 => (width - 1 - y, height - 1 - x),
                8 => (width - 1 - y, x),
                _ => (x, y),
            };
            let (to, from) = ((y * size.0 + x) * 3, (from_y * width + from_x) * 3);
            out[to..to + 3].copy_from_slice(&pixels[from..from + 3]);
        }
    }
    size
}

/// Exchanges left and right in a square picture.
fn flip(pixels: &mut [u8], side: usize) {
    for line in pixels.chunks_exact_mut(side * 3) {
        let (pixels, _) = line.as_chunks_mut::<3>();
        pixels.reverse();
    }
}

/// Moves a square picture, filling what comes in with its mirror image (edges not repeated).
fn shift_mirrored(from: &[u8], (right, down): (isize, isize), side: usize, to: &mut [u8]) {
    let mirror = |at: isize| {
        let last = side as isize - 1;
        let at = at.abs();
        (if at > last { (2 * last - at).max(0) } else { at }) as usize
    };
    for (y, line) in to.chunks_exact_mut(side * 3).enumerate() {
        let source = &from[mirror(y as isize - down) * side * 3..][..side * 3];
        for (x, pixel) in line.chunks_exact_mut(3).enumerate() {
            pixel.copy_from_slice(&source[mirror(x as isize - right) * 3..][..3]);
        }
    }
}

/// The mean of each 1x1, 2x2 or 4x4 square, halves rounded up.
fn shrink(large: &[u8], side: usize, small: &mut [u8]) {
    match large.len() / small.len() {
        1 => small.copy_from_slice(large),
        4 => shrink_by::<2>(large, side, small),
        _ => shrink_by::<4>(large, side, small),
    }
}

fn shrink_by<const BY: usize>(large: &[u8], side: usize, small: &mut [u8]) {
    // Lines are added up first: that loop has no order and no gaps, so it becomes vector code.
    const PART: usize = 96; // a multiple of 3 and 4, so that no square is cut
    let (line, mut sums) = (side * 3, [0u16; PART]);
    for (lines, out) in large.chunks_exact(line * BY).zip(small.chunks_exact_mut(line / BY)) {
        for start in (0..line).step_by(PART) {
            let end = (start + PART).min(line);
            let sums = &mut sums[..end - start];
            sums.fill((BY / 2) as u16); // half of a square, spread over its columns
            for row in 0..BY {
                for (sum, &value) in sums.iter_mut().zip(&lines[row * line + start..]) {
                    *sum += u16::from(value);
                }
            }
            let squares = sums.chunks_exact(3 * BY);
            for (pixel, square) in out[start / BY..].chunks_exact_mut(3).zip(squares) {
                for (channel, value) in pixel.iter_mut().enumerate() {
                    let sum: u16 = (0..BY).map(|x| square[3 * x + channel]).sum();
                    *value = (sum / (BY * BY) as u16) as u8;
                }
            }
        }
    }
}

/// A libjpeg-turbo decompressor.
#[derive(Debug)]
struct Turbo(NonNull<libc::c_void>);

// SAFETY: a handle may be used by any one thread at a time; `&mut self` keeps it to one.
unsafe impl Send for Turbo {}

impl Drop for Turbo {
    fn drop(&mut self) {
        // SAFETY: the handle came from `tj3Init` and is destroyed only here.
        unsafe { tj::tj3Destroy(self.0.as_ptr()) }
    }
}

impl Turbo {
    fn new() -> Result<Self, Fault> {
        // SAFETY: no precondition.
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as libc::c_int) };
        let handle = NonNull::new(handle);
        let turbo = Self(handle.ok_or_else(|| Fault::Jpeg("no memory for a decoder".into()))?);
        // A progressive file may hold thousands of scans, each a pass over the whole picture.
        for (parameter, value) in
            [(tj::TJPARAM_TJPARAM_SCANLIMIT, 200), (tj::TJPARAM_TJPARAM_SAVEMARKERS, 0)]
        {
            // SAFETY: the handle is alive.
            if unsafe { tj::tj3Set(turbo.0.as_ptr(), parameter as libc::c_int, value) } != 0 {
                return Err(turbo.fault());
            }
        }
        Ok(turbo)
    }

    fn get(&self, parameter: tj::TJPARAM) -> i32 {
        // SAFETY: the handle is alive.
        unsafe { tj::tj3Get(self.0.as_ptr(), parameter as libc::c_int) }
    }

    fn message(&self) -> String {
        // SAFETY: the handle is alive; the string is NUL-terminated, belongs to the handle or the
        // thread, and is copied before anything else can change it.
        let text = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.0.as_ptr())) };
        text.to_string_lossy().into_owned()
    }

    fn fault(&self) -> Fault {
        let message = self.message();
        let cut = ["Premature end", "premature end"].iter().any(|cut| message.contains(cut));
        if cut { Fault::Truncated(message) } else { Fault::Jpeg(message) }
    }

    /// Whether the last call failed or warned of damage to the picture.
    ///
    /// libjpeg-turbo words only the first warning of a picture. Junk before the end marker is the
    /// one that does no harm, and nothing is decoded after it; junk between headers does not get
    /// here ([`jpeg::Header::junk`]).
    fn check(&self, answer: libc::c_int) -> Result<(), Fault> {
        if answer == 0 {
            return Ok(());
        }
        // SAFETY: the handle is alive.
        let code = unsafe { tj::tj3GetErrorCode(self.0.as_ptr()) };
        let warning = code == tj::TJERR_TJERR_WARNING as libc::c_int;
        if warning && self.message().contains("extraneous bytes before marker 0xd9") {
            return Ok(());
        }
        Err(self.fault())
    }

    /// Decodes `wide`, reduced by `divisor`, and says where `crop` lies in it.
    fn decode(
        &mut self,
        bytes: &[u8],
        wide: Crop,
        crop: Crop,
        divisor: usize,
        (pixels, spare): (&mut Vec<u8>, &mut Vec<u8>),
    ) -> Result<Window, Fault> {
        // SAFETY: the handle is alive and the slice gives a valid pointer and length.
        let answer = unsafe {
            tj::tj3DecompressHeader(self.0.as_ptr(), bytes.as_ptr(), bytes.len() as tj::size_t)
        };
        self.check(answer)?;
        let width = self.get(tj::TJPARAM_TJPARAM_JPEGWIDTH) as usize;
        let height = self.get(tj::TJPARAM_TJPARAM_JPEGHEIGHT) as usize;
        if wide.x + wide.width > width || wide.y + wide.height > height {
            return Err(Fault::Jpeg(format!(
                "two sizes in one file, one of them {width} x {height}"
            )));
        }
        let factor = tj::tjscalingfactor { num: 1, denom: divisor as libc::c_int };
        // SAFETY: the handle is alive.
        self.check(unsafe { tj::tj3SetScalingFactor(self.0.as_ptr(), factor) })?;
        let part = self.region(wide, (width, height), divisor)?;
        let cmyk = matches!(
            self.get(tj::TJPARAM_TJPARAM_COLORSPACE) as tj::TJCS,
            tj::TJCS_TJCS_CMYK | tj::TJCS_TJCS_YCCK
        );
        let (format, channels, out) = if cmyk {
            (tj::TJPF_TJPF_CMYK, 4, &mut *spare)
        } else {
            (tj::TJPF_TJPF_RGB, 3, &mut *pixels)
        };
        grow(out, part.width * part.height * channels);
        let pitch = (part.width * channels) as libc::c_int;
        // SAFETY: the handle is alive, `bytes` is valid, and `out` has room for `part.height` lines
        // of `pitch` bytes: what the decoder writes after `region` set its crop, for that is the
        // scaled header's size or the region within it.
        let answer = unsafe {
            let (data, length, out) = (bytes.as_ptr(), bytes.len() as tj::size_t, out.as_mut_ptr());
            tj::tj3Decompress8(self.0.as_ptr(), data, length, out, pitch, format)
        };
        self.check(answer)?;
        if cmyk {
            grow(pixels, part.width * part.height * 3);
            cmyk_to_rgb(&spare[..part.width * part.height * 4], pixels);
        }
        Ok(Window::of(crop, part, divisor))
    }

    /// Sets the decoder's region to one that covers `wide`, and returns it in reduced pixels.
    fn region(&self, wide: Crop, size: (usize, usize), divisor: usize) -> Result<Crop, Fault> {
        let (width, height) = (size.0.div_ceil(divisor), size.1.div_ceil(divisor));
        let unit = match self.get(tj::TJPARAM_TJPARAM_SUBSAMP) {
            tj::TJSAMP_TJSAMP_444 | tj::TJSAMP_TJSAMP_GRAY | tj::TJSAMP_TJSAMP_440 => 8,
            tj::TJSAMP_TJSAMP_422 | tj::TJSAMP_TJSAMP_420 => 16,
            tj::TJSAMP_TJSAMP_441 => 8,
            tj::TJSAMP_TJSAMP_411 => 32,
            _ => 0, // an odd subsampling: the library cannot crop it
        };
        let lossless = self.get(tj::TJPARAM_TJPARAM_LOSSLESS) == 1;
        let mut part = Crop { x: 0, y: 0, width, height };
        if unit > 0 && !lossless {
            part.x = wide.x / unit * unit / divisor;
            part.y = wide.y / divisor;
            part.width = (wide.x + wide.width).div_ceil(divisor).min(width) - part.x;
            part.height = (wide.y + wide.height).div_ceil(divisor).min(height) - part.y;
        }
        let all = part == Crop { x: 0, y: 0, width, height };
        let [x, y, w, h] = if all {
            [0; 4] // which means no region
        } else {
            [part.x, part.y, part.width, part.height].map(|v| v as libc::c_int)
        };
        // SAFETY: the handle is alive and its header was read.
        self.check(unsafe {
            tj::tj3SetCroppingRegion(self.0.as_ptr(), tj::tjregion { x, y, w, h })
        })?;
        Ok(part)
    }
}

impl Window {
    /// Where `crop`, of the full-size picture, lies in the decoded `part` of the reduced one.
    fn of(crop: Crop, part: Crop, divisor: usize) -> Self {
        if divisor == 1 {
            let inner = Crop { x: crop.x - part.x, y: crop.y - part.y, ..crop };
            return Self { width: part.width, height: part.height, inner, fraction: None };
        }
        let span = |start: usize, length: usize, part_start: usize, part_length: usize| {
            let first = start as f64 / divisor as f64 - part_start as f64;
            let whole = first.floor() as usize;
            let end = ((first + length as f64 / divisor as f64).ceil() as usize).min(part_length);
            let first = first - whole as f64;
            let length = (length as f64 / divisor as f64).min((end - whole) as f64 - first);
            (whole, end - whole, first, length)
        };
        let (x, width, left, across) = span(crop.x, crop.width, part.x, part.width);
        let (y, height, top, down) = span(crop.y, crop.height, part.y, part.height);
        Self {
            width: part.width,
            height: part.height,
            inner: Crop { x, y, width, height },
            fraction: Some([left, top, across, down]),
        }
    }
}

/// CMYK as Adobe stores it, inverted, to RGB.
///
/// # Source
/// Pillow's conversion: each colour is 255 - K less that times the ink, divided by 255 with
/// rounding.
fn cmyk_to_rgb(cmyk: &[u8], rgb: &mut [u8]) {
    for (ink, out) in cmyk.chunks_exact(4).zip(rgb.chunks_exact_mut(3)) {
        let white = u32::from(ink[3]); // 255 - K
        for (value, &stored) in out.iter_mut().zip(ink) {
            let product = u32::from(255 - stored) * white + 128;
            *value = white.saturating_sub((product + (product >> 8)) >> 8) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::Mode;
    use crate::sampler::{Purpose, Stream};

    /// Sampling factors of the first component; the others have 1 x 1.
    const SUBSAMPLINGS: [tj::TJSAMP; 7] = [
        tj::TJSAMP_TJSAMP_444,
        tj::TJSAMP_TJSAMP_422,
        tj::TJSAMP_TJSAMP_420,
        tj::TJSAMP_TJSAMP_GRAY,
        tj::TJSAMP_TJSAMP_440,
        tj::TJSAMP_TJSAMP_411,
        tj::TJSAMP_TJSAMP_441,
    ];

    fn picture(width: usize, height: usize, seed: u64) -> Vec<u8> {
        let mut random = Stream::new(seed, 0, 0, Purpose::Order);
        let mut pixels = Vec::with_capacity(width * height * 3);
        for at in 0..width * height {
            let (x, y) = ((at % width) as f64, (at / width) as f64);
            for channel in 0..3 {
                let phase = seed as f64 + 2.0 * f64::from(channel);
                let wave = (x / 5.0 + phase).sin() + (y / 4.0 - phase).cos();
                pixels.push((90.0 + 40.0 * wave + random.range(0.0, 60.0)).clamp(0.0, 255.0) as u8);
            }
        }
        pixels
    }

    /// A JPEG of `width` x `height` with the given parameters set.
    fn encode(
        (width, height): (usize, usize),
        subsamp: tj::TJSAMP,
        parameters: &[(tj::TJPARAM, i32)],
    ) -> Vec<u8> {
        let cmyk = parameters
            .iter()
            .any(|p| p.0 == tj::TJPARAM_TJPARAM_COLORSPACE && p.1 >= tj::TJCS_TJCS_CMYK as i32);
        let mut pixels = picture(width, height, 3);
        let mut format = tj::TJPF_TJPF_RGB;
        if cmyk {
            pixels.extend_from_slice(&picture(width, height, 4)[..width * height]);
            format = tj::TJPF_TJPF_CMYK;
        }
        // SAFETY: the handle is checked; the pixels fill width x height; the buffer that the
        // library allocates is copied within the length it gives, and freed once.
        unsafe {
            let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as libc::c_int);
            assert!(!handle.is_null());
            let base = [(tj::TJPARAM_TJPARAM_QUALITY, 92), (tj::TJPARAM_TJPARAM_SUBSAMP, subsamp)];
            for &(parameter, value) in base.iter().chain(parameters) {
                assert_eq!(tj::tj3Set(handle, parameter as libc::c_int, value), 0);
            }
            let (mut out, mut length) = (std::ptr::null_mut(), 0);
            let (w, h) = (width as libc::c_int, height as libc::c_int);
            let data = pixels.as_ptr();
            let answer = tj::tj3Compress8(handle, data, w, 0, h, format, &mut out, &mut length);
            assert_eq!(answer, 0);
            let bytes = std::slice::from_raw_parts(out, length as usize).to_vec();
            tj::tj3Free(out.cast());
            tj::tj3Destroy(handle);
            bytes
        }
    }

    /// The whole picture by libjpeg-turbo's simple road: no region, no splice.
    fn reference(bytes: &[u8], (width, height): (usize, usize)) -> Vec<u8> {
        let mut turbo = Turbo::new().unwrap();
        let all = Crop { x: 0, y: 0, width, height };
        let (mut pixels, mut spare) = (Vec::new(), Vec::new());
        turbo.decode(bytes, all, all, 1, (&mut pixels, &mut spare)).unwrap();
        pixels
    }

    fn cut_out(pixels: &[u8], width: usize, crop: Crop) -> Vec<u8> {
        (crop.y..crop.y + crop.height)
            .flat_map(|y| &pixels[(y * width + crop.x) * 3..][..crop.width * 3])
            .copied()
            .collect()
    }

    /// Decodes every crop of a list by the short road and compares it with the long one.
    fn check_crops(bytes: &[u8], size: (usize, usize), what: &str) {
        let whole = reference(bytes, size);
        let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
        let mut random = Stream::new(9, 0, 0, Purpose::View);
        for number in 0..60 {
            let mut side = |most: usize| match number {
                0 => (0, most),
                1 => (most - 1, 1),
                2 => (0, 1),
                _ => {
                    let length = 1 + random.below(most as u64) as usize;
                    (random.below((most - length) as u64 + 1) as usize, length)
                }
            };
            let ((x, width), (y, height)) = (side(size.0), side(size.1));
            let crop = Crop { x, y, width, height };
            let window = decoder.window(bytes, |_, _| crop).unwrap();
            let got = cut_out(&decoder.pixels, window.width, window.inner);
            assert!(got == cut_out(&whole, size.0, crop), "{what} {size:?} {crop:?}");
        }
    }

    const SIZES: [(usize, usize); 8] =
        [(1, 1), (1, 40), (40, 1), (16, 16), (17, 33), (128, 96), (131, 97), (250, 70)];

    #[test]
    fn a_cropped_decode_equals_the_full_one_cut() {
        for subsamp in SUBSAMPLINGS {
            for size in SIZES {
                check_crops(&encode(size, subsamp, &[]), size, &format!("subsampling {subsamp}"));
            }
        }
    }

    #[test]
    fn progressive_and_arithmetic_files_crop_alike() {
        for subsamp in [tj::TJSAMP_TJSAMP_444, tj::TJSAMP_TJSAMP_420] {
            for kind in [tj::TJPARAM_TJPARAM_PROGRESSIVE, tj::TJPARAM_TJPARAM_ARITHMETIC] {
                let bytes = encode((131, 97), subsamp, &[(kind, 1)]);
                check_crops(&bytes, (131, 97), &format!("kind {kind} subsampling {subsamp}"));
            }
        }
    }

    #[test]
    fn a_spliced_decode_equals_the_full_one_cut() {
        for subsamp in SUBSAMPLINGS {
            for size in SIZES {
                for interval in [1, 2, 3, 4, 8] {
                    let restart = [(tj::TJPARAM_TJPARAM_RESTARTBLOCKS, interval)];
                    let what = format!("subsampling {subsamp}, interval {interval}");
                    check_crops(&encode(size, subsamp, &restart), size, &what);
                }
            }
        }
    }

    #[test]
    fn a_splice_holds_only_the_segments_it_needs() {
        let restart = [(tj::TJPARAM_TJPARAM_RESTARTBLOCKS, 2)];
        let bytes = encode((256, 256), tj::TJSAMP_TJSAMP_420, &restart);
        let header = jpeg::parse(&bytes).unwrap();
        let mut out = Vec::new();
        let window = Crop { x: 70, y: 100, width: 40, height: 30 };
        let shown = header.splice(&bytes, window, &mut out);
        assert_eq!(shown, Some(Crop { x: 64, y: 96, width: 64, height: 48 }));
        assert!(out.len() < bytes.len() / 8, "{} of {} bytes", out.len(), bytes.len());
        // A file whose restart markers are out of step is not spliced but left to the decoder.
        let at = (0..bytes.len() - 1).rposition(|at| bytes[at] == 0xff && bytes[at + 1] == 0xd1);
        let mut wrong = bytes.clone();
        wrong[at.unwrap() + 1] = 0xd5;
        let below = Crop { x: 0, y: 250, width: 40, height: 6 };
        assert_eq!(header.splice(&wrong, below, &mut out), None);
        let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
        let error = decoder.window(&wrong, |_, _| below).unwrap_err();
        assert!(matches!(error, Fault::Jpeg(_)), "{error:?}");
    }

    #[test]
    fn cmyk_and_ycck_come_out_as_pillow_would() {
        for space in [tj::TJCS_TJCS_CMYK, tj::TJCS_TJCS_YCCK] {
            let parameters = [(tj::TJPARAM_TJPARAM_COLORSPACE, space as i32)];
            let bytes = encode((60, 40), tj::TJSAMP_TJSAMP_444, &parameters);
            let decoded = Decoder::new(DecodeOptions::default()).unwrap().decode(&bytes).unwrap();
            // The stored values are inverted inks: r = c · k / 255.
            let (inks, black) = (picture(60, 40, 3), picture(60, 40, 4));
            let all: Vec<u8> = inks.into_iter().chain(black).take(60 * 40 * 4).collect();
            let errors =
                decoded.pixels.chunks_exact(3).zip(all.chunks_exact(4)).map(|(rgb, ink)| {
                    let wanted = |n: usize| f64::from(ink[n]) * f64::from(ink[3]) / 255.0;
                    (0..3).map(|n| (f64::from(rgb[n]) - wanted(n)).abs()).fold(0.0, f64::max)
                });
            let mean = errors.sum::<f64>() / (60.0 * 40.0);
            assert!(mean < 8.0, "colour space {space}: mean error {mean} beyond JPEG's own loss");
        }
        let mut rgb = [0; 6];
        cmyk_to_rgb(&[255, 0, 128, 255, 10, 20, 30, 0], &mut rgb);
        assert_eq!(rgb, [255, 0, 128, 0, 0, 0]);
    }

    #[test]
    fn a_file_cut_anywhere_is_called_truncated() {
        let restart = [(tj::TJPARAM_TJPARAM_RESTARTBLOCKS, 2)];
        for parameters in [&[][..], &restart, &[(tj::TJPARAM_TJPARAM_PROGRESSIVE, 1)]] {
            let bytes = encode((64, 48), tj::TJSAMP_TJSAMP_420, parameters);
            let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
            decoder.decode(&bytes).unwrap();
            for length in 1..bytes.len() {
                let error = decoder.decode(&bytes[..length]).unwrap_err();
                assert!(matches!(error, Fault::Truncated(_)), "{length} bytes: {error:?}");
            }
            assert!(matches!(decoder.decode(&[]), Err(Fault::Empty)));
            // A hole in the middle, with the end in place, shows where the hole is decoded.
            let mut holed = bytes[..bytes.len() / 2].to_vec();
            holed.extend_from_slice(&[0xff, 0xd9]);
            assert!(decoder.decode(&holed).is_err());
        }
    }

    #[test]
    fn junk_that_hides_no_damage_is_let_pass() {
        let bytes = encode((64, 48), tj::TJSAMP_TJSAMP_420, &[]);
        let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
        let wanted = decoder.decode(&bytes).unwrap();
        let insert = |at: usize, junk: &[u8]| [&bytes[..at], junk, &bytes[at..]].concat();
        let end = bytes.len();
        let mut future = bytes.clone();
        assert_eq!(future[6..12], *b"JFIF\0\x01");
        future[11] = 7;
        for (what, file) in [
            ("after the end", insert(end, b"trailing \xff\xd8\xff garbage")),
            ("before the end marker", insert(end - 2, &[0, 0, 0, 0])),
            ("between headers", insert(20, b"junk\xff\0junk")),
            ("fill bytes", insert(20, &[0xff; 9])),
            ("a JFIF version to come", future),
            (
                "an EXIF block of nonsense",
                insert(2, b"\xff\xe1\0\x10Exif\0\0II*\0\xff\xff\xff\xff"),
            ),
        ] {
            let got = decoder.decode(&file);
            assert_eq!(got.as_ref().ok(), Some(&wanted), "{what}: {:?}", got.as_ref().err());
        }
        // Junk in the header must not hide damage to the picture.
        let mut damaged = insert(20, b"junk");
        let middle = damaged.len() / 2;
        damaged[middle..middle + 40].fill(0xff);
        assert!(decoder.decode(&damaged).is_err());
    }

    #[test]
    fn what_is_no_picture_is_named() {
        let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
        for (bytes, name) in [
            (&b"just some text\n"[..], "text"),
            (b"<!doctype html><html></html>", "HTML or XML"),
            (b"GIF89a\x01\0\x01\0", "GIF"),
            (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
            (b"\x01\x02\x80\xfe", "an unknown format"),
            (&[0; 100], "nothing but zeros"),
        ] {
            let error = decoder.decode(bytes).unwrap_err();
            assert!(matches!(error, Fault::Unsupported(found) if found == name), "{error}");
        }
    }

    #[test]
    fn sizes_beyond_the_limit_are_refused_by_the_header() {
        let options = DecodeOptions { max_pixels: 3000, ..DecodeOptions::default() };
        let mut decoder = Decoder::new(options).unwrap();
        let mut bytes = encode((60, 50), tj::TJSAMP_TJSAMP_444, &[]);
        decoder.decode(&bytes).unwrap();
        let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        for (height, width) in [(65_500u16, 65_500u16), (0, 60), (50, 0), (51, 60)] {
            bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
            bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
            let error = decoder.decode(&bytes).unwrap_err();
            assert!(matches!(error, Fault::Pixels { .. }), "{width} x {height}: {error}");
        }
        assert!(decoder.pixels.capacity() < 20_000);
    }

    fn encode_png(picture: &image::DynamicImage) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        picture.write_to(&mut out, image::ImageFormat::Png).unwrap();
        out.into_inner()
    }

    #[test]
    fn png_of_every_kind_becomes_rgb() {
        let rgb = image::RgbImage::from_raw(9, 7, picture(9, 7, 1)).unwrap();
        let all = image::DynamicImage::ImageRgb8(rgb.clone());
        let mut rgba = all.to_rgba8();
        rgba.pixels_mut().enumerate().for_each(|(n, pixel)| pixel[3] = n as u8);
        let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
        let wide = image::DynamicImage::ImageRgb16(all.to_rgb16());
        for picture in [all.clone(), rgba.into(), wide] {
            let decoded = decoder.decode(&encode_png(&picture)).unwrap();
            assert_eq!((decoded.width, decoded.height), (9, 7));
            assert!(decoded.pixels == *rgb, "{:?}", picture.color());
        }
        let grey = all.to_luma8();
        let decoded = decoder.decode(&encode_png(&grey.clone().into())).unwrap();
        assert!(decoded.pixels.chunks_exact(3).zip(grey.iter()).all(|(p, &g)| p == [g; 3]));
        let bytes = encode_png(&all);
        for length in [9, 40, bytes.len() / 2, bytes.len() - 13] {
            assert!(decoder.decode(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
        }
    }

    #[test]
    fn orientation_is_ignored_unless_asked_for() {
        let plain = encode((40, 24), tj::TJSAMP_TJSAMP_444, &[]);
        let apply = DecodeOptions { orientation: Orientation::Apply, ..DecodeOptions::default() };
        let upright = reference(&plain, (40, 24));
        for (big, value) in (0..=9u8).flat_map(|value| [(false, value), (true, value)]) {
            let mut exif = b"\xff\xe1\0\x22Exif\0\0".to_vec();
            exif.extend_from_slice(if big {
                b"MM\0*\0\0\0\x08\0\x01"
            } else {
                b"II*\0\x08\0\0\0\x01\0"
            });
            exif.extend_from_slice(if big {
                b"\x01\x12\0\x03\0\0\0\x01\0"
            } else {
                b"\x12\x01\x03\0\x01\0\0\0"
            });
            exif.push(value);
            exif.resize(36, 0);
            let bytes = [&plain[..2], &exif, &plain[2..]].concat();
            let ignored = Decoder::new(DecodeOptions::default()).unwrap().decode(&bytes).unwrap();
            assert!(ignored.pixels == upright);
            let mut decoder = Decoder::new(apply).unwrap();
            let turned = decoder.decode(&bytes).unwrap();
            let size = if (5..=8).contains(&value) { (24, 40) } else { (40, 24) };
            assert_eq!((turned.width, turned.height), size, "orientation {value}");
            assert_eq!(decoder.size(&bytes).unwrap(), size);
            // Where the stored picture's first pixel goes, as the EXIF standard says.
            let corner = match value {
                2 => 39,
                3 => 40 * 24 - 1,
                4 => 40 * 23,
                6 => 23,
                7 => 24 * 40 - 1,
                8 => 24 * 39,
                _ => 0,
            };
            assert_eq!(turned.pixels[corner * 3..][..3], upright[..3], "orientation {value}");
        }
    }

    fn view_of(bytes: &[u8], options: DecodeOptions, view: View, side: usize) -> Vec<u8> {
        let mut row = vec![0; side * side * 3];
        let mut small = row.clone();
        let mut decoder = Decoder::new(options).unwrap();
        decoder.view(bytes, |_, _| view, side, (&mut row, &mut small)).unwrap();
        row
    }

    #[test]
    fn a_flip_mirrors_and_a_shift_moves() {
        let bytes = encode_png(&image::RgbImage::from_raw(8, 8, picture(8, 8, 1)).unwrap().into());
        let crop = Crop { x: 0, y: 0, width: 8, height: 8 };
        let still = View { crop, flip: false, shift: (0, 0) };
        let options = DecodeOptions::default();
        let plain = view_of(&bytes, options, still, 8);
        assert!(plain == picture(8, 8, 1), "the same size is no resize");
        let pixel = |row: &[u8], x: usize, y: usize| row[(y * 8 + x) * 3..][..3].to_vec();
        let flipped = view_of(&bytes, options, View { flip: true, ..still }, 8);
        let moved = view_of(&bytes, options, View { shift: (2, -1), ..still }, 8);
        for (x, y) in (0..64).map(|at| (at % 8, at / 8)) {
            assert_eq!(pixel(&flipped, x, y), pixel(&plain, 7 - x, y));
            let from = (x.abs_diff(2), if y == 7 { 6 } else { y + 1 });
            assert_eq!(pixel(&moved, x, y), pixel(&plain, from.0, from.1), "{x}, {y}");
        }
    }

    #[test]
    fn nothing_outside_the_crop_shows() {
        // A white square on black: a filter that reached over the crop's edge would darken it.
        let mut picture = image::RgbImage::new(90, 90);
        for (x, y) in (0..900).map(|at| (30 + at % 30, 30 + at / 30)) {
            picture.put_pixel(x, y, image::Rgb([255; 3]));
        }
        let bytes = encode_png(&picture.into());
        let crop = Crop { x: 30, y: 30, width: 30, height: 30 };
        for filter in [Filter::Bicubic, Filter::Bilinear] {
            let options = DecodeOptions { filter, ..DecodeOptions::default() };
            for side in [8, 64] {
                let row = view_of(&bytes, options, View { crop, flip: false, shift: (0, 0) }, side);
                assert!(row.iter().all(|&value| value == 255), "{filter:?} {side}");
            }
        }
    }

    #[test]
    fn scaled_decoding_stays_close_and_only_where_the_crop_is_large() {
        let bytes = encode((640, 600), tj::TJSAMP_TJSAMP_420, &[]);
        let scaled = DecodeOptions { scaling: Scaling::Dct, ..DecodeOptions::default() };
        let rms = |crop: Crop| {
            let view = View { crop, flip: false, shift: (0, 0) };
            let one = view_of(&bytes, DecodeOptions::default(), view, 64);
            let two = view_of(&bytes, scaled, view, 64);
            let squares = one.iter().zip(&two).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2));
            (squares.sum::<f64>() / one.len() as f64).sqrt()
        };
        assert_eq!(rms(Crop { x: 33, y: 21, width: 127, height: 100 }), 0.0);
        for crop in [
            Crop { x: 33, y: 21, width: 129, height: 140 },
            Crop { x: 101, y: 77, width: 300, height: 290 },
            Crop { x: 0, y: 0, width: 640, height: 600 },
        ] {
            let rms = rms(crop);
            assert!(rms > 0.0 && rms < 6.0, "{crop:?}: error {rms} of 255");
        }
    }

    #[test]
    fn every_mode_works_on_every_size() {
        let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
        let (mut large, mut small) = (vec![0; 32 * 32 * 3], vec![0; 16 * 16 * 3]);
        for size in SIZES {
            let bytes = encode(size, tj::TJSAMP_TJSAMP_420, &[]);
            for mode in [Mode::Resnet, Mode::Distorted, Mode::Biggan, Mode::Eval, Mode::Small] {
                let mut random = Stream::new(1, 0, 0, Purpose::View);
                let view = |w, h| crate::augment::view(mode, (w, h), 32, &mut random);
                decoder.view(&bytes, view, 32, (&mut large, &mut small)).unwrap();
            }
        }
    }
}

//! One member of a shard to pixels: no more of a JPEG than the view needs, PNG, and
//! the resize to a row at both resolutions.
//!
//! Huffman-coded JPEGs of one scan, which nearly all are, go by our own entropy decoder: it passes
//! over what lies outside the window in less time than decoding takes, and stops below it.
//! libjpeg-turbo is given the window's coefficients as if they were a small picture, and does the
//! rest. It decodes other kinds (progressive, arithmetic, lossless) whole.
//!
//! The window takes a margin along for the chroma upsampling, so its pixels equal the full decode,
//! cut. Decoding is exact ("ISLOW", smooth upsampling); only [`Scaling::Dct`] trades pixels for
//! speed.
//!
//! # What is refused
//! A file that libjpeg-turbo reads without a warning decodes to the pixels that it gives, and a file
//! of which it warns that the data are corrupt is a [`Fault`]: tests and a fuzzer hold whole decodes
//! to it ([`judge`]). A view is judged by what it decodes or passes over: damage below the window is
//! not seen, nor what lies in restart intervals outside of it, nor, with seek points, before the points that it
//! begins at. So of a damaged image a view may be good with points that is bad without; of a sound one all are the
//! same.
//!
//! A file that was cut is refused whatever the window: where no end marker stands behind the scan's
//! header, the decoder goes on to the last MCU. If all are there, only the marker is missing, and
//! the file is as good as any (so libjpeg-turbo has it, and some cameras write such files). Of
//! progressive files without an end marker all scans must be there; arithmetic ones without it are
//! refused, for their data end without a trace.
//!
//! Where we differ from libjpeg-turbo:
//! - Stricter, where it is silent: a code of no meaning in a block (it takes any without a value for
//!   the block's end), coefficients beyond the end of a block, a DC level beyond 16 bits (it wraps),
//!   more than 200 scans; a file is a JPEG only where a marker follows the start marker at once.
//! - Laxer, where it warns: junk between the header's segments and behind the picture, and all that
//!   stands behind the first marker after it; up to 63 bits left over before a restart marker, of
//!   which it may warn or not; a JFIF version or an Adobe transform that does not exist and
//!   odd numbers in a sequential scan's header, which it warns of and reads alike.
//! - Where a fill byte stands before a stuffed zero in the data, which no encoder writes, it decodes
//!   an MCU twice without clearing it, so other coefficients may stay in it.

#[cfg(test)]
mod differential;
mod entropy;
pub mod judge;
mod libjpeg;
mod lookup;
mod options;
mod png;
mod resize;
mod rows;
mod seek;
#[cfg(test)]
mod tests;
mod weights;
mod window;

#[cfg(test)]
use self::entropy::CHUNK as BUFFER;
use self::entropy::Entropy;
use self::libjpeg::Picture;
pub use self::options::{DecodeOptions, Filter, Orientation, Scaling};
use self::resize::Resizer;
use self::rows::{Pixels, cmyk_to_rgb, shift_mirrored, shrink, turned};
pub use self::seek::SeekPoints;
use self::weights::Stretch;
use self::window::Window;
use crate::augment::{Crop, View};
use crate::error::Fault;
use crate::jpeg::{Header, Part};

/// Scratch that is kept between images; a rare giant's is given back.
const KEPT: usize = 24 << 20;
/// Pictures of fewer MCUs have no seek points. Ours: 64 are 128 x 128 pixels of the usual kind.
const SMALL: usize = if cfg!(any(test, fuzzing)) { 2 } else { 64 };

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

/// What a view is of.
#[derive(Clone, Copy)]
enum Source<'a> {
    File(&'a [u8], SeekPoints<'a>),
    Pixels(&'a Decoded),
}

/// Decodes one picture after the other, keeping its memory. One per thread.
#[derive(Debug)]
pub struct Decoder {
    picture: Picture,
    entropy: Entropy,
    options: DecodeOptions,
    resizer: Resizer,
    pixels: Pixels,
    spare: Pixels,
    headers: Vec<u8>,
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
        Ok(Self {
            picture: Picture::new()?,
            entropy: Entropy::new(),
            options,
            resizer: Resizer::new(options.filter),
            pixels: Pixels::default(),
            spare: Pixels::default(),
            headers: Vec::new(),
        })
    }

    /// Width and height in pixels, from the header alone, turned where the options say so.
    ///
    /// # Errors
    /// Any [`Fault`] that shows in the header.
    pub fn size(&mut self, bytes: &[u8]) -> Result<(usize, usize), Fault> {
        if sniff(bytes)? {
            let header = Header::read(bytes)?;
            self.check_pixels(header.width as u64, header.height as u64)?;
            let turned = self.turn(&header) >= 5;
            Ok(if turned { (header.height, header.width) } else { (header.width, header.height) })
        } else {
            let check = |width, height| self.check_pixels(width, height);
            let (width, height) = png::open(bytes, check)?.info().size();
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
        self.window((bytes, SeekPoints::NONE), |width, height| {
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
        rows: (&mut [u8], &mut [u8]),
    ) -> Result<(), Fault> {
        self.view_of(Source::File(bytes, SeekPoints::NONE), choose, side, rows)
    }

    /// The same with the seek points of the file, which make it faster and change no pixel.
    ///
    /// # Errors
    /// Any [`Fault`]; [`Fault::SeekPoints`] where they are seen to be of another file. Not all that are can
    /// be seen, so they must come from where that is known.
    ///
    /// # Panics
    /// As [`view`](Self::view).
    pub fn view_seeking(
        &mut self,
        (bytes, points): (&[u8], SeekPoints<'_>),
        choose: impl FnOnce(usize, usize) -> View,
        side: usize,
        rows: (&mut [u8], &mut [u8]),
    ) -> Result<(), Fault> {
        self.view_of(Source::File(bytes, points), choose, side, rows)
    }

    /// Writes the seek points of a file into `records`, one at each `every` MCUs of 8 x 8 pixels or more, for
    /// [`SeekPoints::new`]. There is none in a small picture, nor where restart markers stand nearly as close,
    /// nor where the file is no JPEG of one scan of Huffman codes, of which alone a part can be decoded.
    ///
    /// # Errors
    /// Any [`Fault`] of the whole picture.
    ///
    /// # Panics
    /// When `every` is 0.
    pub fn seek_points(
        &mut self,
        bytes: &[u8],
        every: u16,
        records: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        records.clear();
        if !sniff(bytes)? {
            return Ok(());
        }
        let header = Header::read(bytes)?;
        self.check_pixels(header.width as u64, header.height as u64)?;
        let (width, height) = (header.width, header.height);
        let (part, shown) = header.part(Crop { x: 0, y: 0, width, height });
        // Restart markers that are near serve as well.
        let restarts = (1..=2 * usize::from(every)).contains(&header.interval);
        if !header.one_scan() || restarts || part.columns * part.rows < SMALL {
            return Ok(());
        }
        let Self { picture, entropy, headers, .. } = self;
        header.small_headers(bytes, shown, headers);
        let layout = picture.start(headers, (width, height), 1)?.layout;
        // As if nothing were wanted and the end not known: all is passed over.
        let part = Part { width: 0, ended: false, ..part };
        let data = (part, SeekPoints::NONE);
        let mut scan = entropy.scan(&bytes[header.scan..], data, &layout)?;
        scan.write_points(every.into(), records)
    }

    /// The same of a picture that is decoded already.
    ///
    /// # Errors
    /// [`Fault::Pixels`] where it has none or too many; [`Fault::View`].
    ///
    /// # Panics
    /// As [`view`](Self::view), and when `picture` has other than 3 bytes a pixel.
    pub fn view_of_pixels(
        &mut self,
        picture: &Decoded,
        choose: impl FnOnce(usize, usize) -> View,
        side: usize,
        rows: (&mut [u8], &mut [u8]),
    ) -> Result<(), Fault> {
        let Decoded { width, height, pixels } = picture;
        self.check_pixels(*width as u64, *height as u64)?;
        assert_eq!(pixels.len(), width * height * 3, "RGB pixels");
        self.view_of(Source::Pixels(picture), choose, side, rows)
    }

    fn view_of(
        &mut self,
        source: Source<'_>,
        choose: impl FnOnce(usize, usize) -> View,
        side: usize,
        (large, small): (&mut [u8], &mut [u8]),
    ) -> Result<(), Fault> {
        let filter = self.options.filter;
        let mut seen = View::of(Crop { x: 0, y: 0, width: 1, height: 1 });
        let mut stretches = None;
        let mut window = self.scaled_window(source, |width, height| {
            seen = choose(width, height);
            seen.check((width, height), side).map_err(Fault::View)?;
            let Some(resized) = seen.resized else { return Ok((seen.crop, side)) };
            let all = [(width, resized.0, seen.crop.x), (height, resized.1, seen.crop.y)];
            let both = all.map(|(size, values, first)| {
                let stretch = Stretch { first, ..Stretch::whole(size, values) };
                let (origin, end) = stretch.reach(filter, side);
                (Stretch { origin, ..stretch }, end - origin)
            });
            let [(row, width), (column, height)] = both;
            stretches = Some([row, column]);
            Ok((Crop { x: row.origin, y: column.origin, width, height }, usize::MAX))
        })?;
        window.stretches = stretches;
        let View { flip, shift: (right, down), .. } = seen;
        let Self { resizer, pixels, spare, .. } = self;
        if seen.shift == (0, 0) {
            resizer.resize(pixels, &window, flip, side, (large, small));
        } else {
            spare.grow(large.len());
            let spare = &mut spare[..large.len()];
            resizer.resize(pixels, &window, flip, side, (&mut *spare, &mut []));
            let right = if flip { -right } else { right };
            shift_mirrored(spare, (right, down), side, large);
            shrink(large, side, small);
        }
        self.forget_giants();
        Ok(())
    }

    fn window(
        &mut self,
        (bytes, points): (&[u8], SeekPoints<'_>),
        choose: impl FnOnce(usize, usize) -> Crop,
    ) -> Result<Window, Fault> {
        let all = |width, height| Ok((choose(width, height), usize::MAX));
        self.scaled_window(Source::File(bytes, points), all)
    }

    /// Fills `self.pixels` with a part of the picture around the crop that `choose` gives. With DCT
    /// scaling the part may be reduced, but the crop in it has at least as many pixels both ways as
    /// `choose` says.
    fn scaled_window(
        &mut self,
        source: Source<'_>,
        choose: impl FnOnce(usize, usize) -> Result<(Crop, usize), Fault>,
    ) -> Result<Window, Fault> {
        let (bytes, points) = match source {
            Source::File(bytes, points) => (bytes, points),
            Source::Pixels(&Decoded { width, height, ref pixels }) => {
                self.pixels.fill(pixels);
                return Ok(Window::whole(width, height, choose(width, height)?.0));
            }
        };
        if !sniff(bytes)? {
            let (width, height) = self.decode_png(bytes)?;
            return Ok(Window::whole(width, height, choose(width, height)?.0));
        }
        let header = Header::read(bytes)?;
        self.check_pixels(header.width as u64, header.height as u64)?;
        let turn = self.turn(&header);
        if turn > 1 {
            let all = Crop { x: 0, y: 0, width: header.width, height: header.height };
            self.decode_jpeg((bytes, points), &header, all, 1)?;
            let (width, height) =
                turned(turn, (header.width, header.height), &self.pixels, &mut self.spare);
            std::mem::swap(&mut self.pixels, &mut self.spare);
            return Ok(Window::whole(width, height, choose(width, height)?.0));
        }
        let (crop, side) = choose(header.width, header.height)?;
        let fits = |&divisor: &usize| crop.width / divisor >= side && crop.height / divisor >= side;
        let divisor = match self.options.scaling {
            Scaling::Off => 1,
            Scaling::Dct => [8, 4, 2].into_iter().find(fits).unwrap_or(1),
        };
        self.decode_jpeg((bytes, points), &header, crop, divisor)
    }

    fn decode_jpeg(
        &mut self,
        (bytes, points): (&[u8], SeekPoints<'_>),
        header: &Header,
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
        let divisor = if header.is_lossless() { 1 } else { divisor };
        let Self { picture, entropy, pixels, spare, headers, .. } = self;
        let (shown, layout) = if header.one_scan() {
            let (part, shown) = header.part(wide);
            header.small_headers(bytes, shown, headers);
            let started = picture.start(headers, (shown.width, shown.height), divisor)?;
            let layout = started.layout;
            let mut scan = entropy.scan(&bytes[header.scan..], (part, points), &layout)?;
            started.read(Some(&mut scan), pixels)?;
            scan.finish()?;
            (shown, layout)
        } else {
            let size = (header.width, header.height);
            let started = picture.start(bytes, size, divisor)?;
            let layout = started.layout;
            started.read(None, pixels)?;
            (Crop { x: 0, y: 0, width: size.0, height: size.1 }, layout)
        };
        let part = Crop {
            x: shown.x / divisor,
            y: shown.y / divisor,
            width: layout.width as usize,
            height: layout.height as usize,
        };
        if layout.channels == 4 {
            std::mem::swap(pixels, spare);
            pixels.grow(part.width * part.height * 3);
            cmyk_to_rgb(&spare[..part.width * part.height * 4], pixels);
        }
        Ok(Window::of(crop, part, divisor))
    }

    fn turn(&self, header: &Header) -> u8 {
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
        let reader = png::open(bytes, |width, height| self.check_pixels(width, height))?;
        let (width, height) = reader.info().size();
        png::read(reader, &mut self.pixels)?;
        Ok((width as usize, height as usize))
    }

    fn forget_giants(&mut self) {
        self.pixels.forget_giants();
        self.spare.forget_giants();
        if self.headers.capacity() > KEPT {
            self.headers = Vec::new();
        }
        self.resizer.forget_giants();
    }
}

fn grow(buffer: &mut Vec<u8>, need: usize) {
    if buffer.len() < need {
        buffer.resize(need, 0);
    }
}

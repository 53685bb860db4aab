//! Moving pixels about: turning, mirroring, shrinking, and inks to RGB.

use std::ops::{Deref, DerefMut};

use super::{KEPT, grow};

/// Pixels of a picture, row after row, in memory that is kept from picture to picture.
#[derive(Debug, Default)]
pub(super) struct Pixels {
    bytes: Vec<u8>,
    /// Where they begin.
    first: usize,
}

impl Pixels {
    /// Makes room for `length` bytes in rows of `pitch`, which libjpeg-turbo is to write.
    ///
    /// Its vector code writes what begins at a multiple of 16 or 32 bytes past the cache, out of which
    /// the resize would have read it next. So rows begin between these; where a row has an odd number
    /// of bytes, all but one in 16 do.
    pub(super) fn rows(&mut self, pitch: usize, length: usize) -> &mut [u8] {
        const VECTOR: usize = 32;
        let between = (1_usize << pitch.trailing_zeros().min(4)) / 2;
        self.first = 0;
        self.grow(length + VECTOR);
        self.first = between.wrapping_sub(self.bytes.as_ptr().addr()) % VECTOR;
        self
    }

    /// Begins with these.
    pub(super) fn fill(&mut self, pixels: &[u8]) {
        self.grow(pixels.len());
        self[..pixels.len()].copy_from_slice(pixels);
    }

    /// Makes it at least so many bytes long.
    pub(super) fn grow(&mut self, length: usize) {
        grow(&mut self.bytes, self.first + length);
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives a rare giant's memory back.
    pub(super) fn forget_giants(&mut self) {
        if self.capacity() > KEPT {
            *self = Self::default();
        }
    }
}

impl Deref for Pixels {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.first..]
    }
}

impl DerefMut for Pixels {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.first..]
    }
}

/// Turns a picture upright. Returns its new width and height.
pub(super) fn turned(
    orientation: u8,
    (width, height): (usize, usize),
    pixels: &[u8],
    out: &mut Pixels,
) -> (usize, usize) {
    let size = if orientation >= 5 { (height, width) } else { (width, height) };
    out.grow(width * height * 3);
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
pub(super) fn flip(pixels: &mut [u8], side: usize) {
    for line in pixels.chunks_exact_mut(side * 3) {
        let (pixels, _) = line.as_chunks_mut::<3>();
        pixels.reverse();
    }
}

/// Moves a square picture, filling what comes in with its mirror image (edges not repeated).
pub(super) fn shift_mirrored(
    from: &[u8],
    (right, down): (isize, isize),
    side: usize,
    to: &mut [u8],
) {
    let mirror = |at: isize| {
        let last = side as isize - 1;
        let at = at.abs();
        (if at > last { (2 * last - at).max(0) } else { at }) as usize
    };
    // What is left and right of the part that moves as it is.
    let (left, cut) = (right.max(0) as usize, (-right).max(0) as usize);
    let (left, end) = (left.min(side), side.saturating_sub(cut));
    for (y, line) in to.chunks_exact_mut(side * 3).enumerate() {
        let source = &from[mirror(y as isize - down) * side * 3..][..side * 3];
        if left < end {
            let first = (left as isize - right) as usize * 3;
            line[3 * left..3 * end].copy_from_slice(&source[first..][..3 * (end - left)]);
        }
        for x in (0..left).chain(end.max(left)..side) {
            let first = mirror(x as isize - right) * 3;
            line[3 * x..3 * x + 3].copy_from_slice(&source[first..first + 3]);
        }
    }
}

/// The mean of each 1x1, 2x2 or 4x4 square, halves rounded up; nothing where `small` is of no size.
pub(super) fn shrink(large: &[u8], side: usize, small: &mut [u8]) {
    match large.len().checked_div(small.len()) {
        None => {}
        Some(1) => small.copy_from_slice(large),
        Some(4) => shrink_by::<2>(large, side, small),
        _ => shrink_by::<4>(large, side, small),
    }
}

fn shrink_by<const BY: usize>(large: &[u8], side: usize, small: &mut [u8]) {
    // The mean of the square that begins at each byte, though only every `BY`th pixel's is used:
    // loops without an order and without gaps become vector code.
    const PART: usize = 96; // a multiple of 3 and 4, so that no square is cut
    let add = |sums: &mut [u16; PART + 9], row: &[u8]| {
        for (sum, &value) in sums[..PART].iter_mut().zip(row) {
            *sum += u16::from(value);
        }
    };
    let line = side * 3;
    for (lines, out) in large.chunks_exact(line * BY).zip(small.chunks_exact_mut(line / BY)) {
        for (part, out) in out.chunks_mut(PART / BY).enumerate() {
            let mut sums = [(BY / 2) as u16; PART + 9]; // half of a square, spread over its columns
            for row in lines.chunks_exact(line) {
                let row = &row[part * PART..];
                match row.first_chunk::<PART>() {
                    Some(row) => add(&mut sums, row), // of a length that is known
                    None => add(&mut sums, row),
                }
            }
            let mut means = [0; PART];
            for (at, mean) in means.iter_mut().enumerate() {
                let sum: u16 = (0..BY).map(|x| sums[at + 3 * x]).sum();
                *mean = (sum / (BY * BY) as u16) as u8;
            }
            for (pixel, mean) in out.chunks_exact_mut(3).zip(means.chunks_exact(3 * BY)) {
                pixel.copy_from_slice(&mean[..3]);
            }
        }
    }
}

/// CMYK as Adobe stores it, inverted, to RGB.
///
/// # Source
/// Pillow's conversion: each colour is 255 - K less that times the ink, divided by 255 with
/// rounding.
pub(super) fn cmyk_to_rgb(cmyk: &[u8], rgb: &mut [u8]) {
    for (ink, out) in cmyk.chunks_exact(4).zip(rgb.chunks_exact_mut(3)) {
        let white = u32::from(ink[3]); // 255 - K
        for (value, &stored) in out.iter_mut().zip(ink) {
            let product = u32::from(255 - stored) * white + 128;
            *value = white.saturating_sub((product + (product >> 8)) >> 8) as u8;
        }
    }
}

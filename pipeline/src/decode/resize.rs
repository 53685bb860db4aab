//! A crop to a row of a batch, and the row to its mean. The pixels are Pillow's to the bit, of the
//! crop cut out and resized by `Image.resize`: two passes, rounded to whole levels between them,
//! rows first unless the height shrinks much more than the width. On machines with AVX2 by code of
//! ours that takes four lines at a time across, keeps no more of them than a line of the result is
//! made of, mirrors on the way, goes on to the mean while the result is in the nearest cache, and
//! writes past the caches; elsewhere by plain loops.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(test)]
mod tests;

use super::rows::{Pixels, flip, shrink};
use super::weights::{Axis, PRECISION, Stretch, columns_first};
use super::{Filter, KEPT, Window, grow};
use crate::augment::Crop;

/// Memory of the resizer, kept between pictures.
#[derive(Debug)]
pub(super) struct Resizer {
    filter: Filter,
    #[cfg(target_arch = "x86_64")]
    fast: Option<avx2::Resizer>,
    across: Axis,
    down: Axis,
    /// What one pass gives the other.
    lines: Vec<u8>,
}

impl Resizer {
    pub(super) fn new(filter: Filter) -> Self {
        Self {
            filter,
            #[cfg(target_arch = "x86_64")]
            fast: is_x86_feature_detected!("avx2").then(avx2::Resizer::default),
            across: Axis::default(),
            down: Axis::default(),
            lines: Vec::new(),
        }
    }

    /// Resizes the crop in `pixels` to `large`, `side` by `side` pixels, and that to `small`, its
    /// mean, exchanging left and right where `mirrored`. `pixels` may grow.
    pub(super) fn resize(
        &mut self,
        pixels: &mut Pixels,
        window: &Window,
        mirrored: bool,
        side: usize,
        (large, small): (&mut [u8], &mut [u8]),
    ) {
        if window.stretches(side) == [Stretch::whole(side, side); 2] {
            copy(pixels, window, mirrored, side, large);
            return shrink(large, side, small);
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(fast) = &mut self.fast
            && window.stretches(side)[1].most_taps(self.filter.support()) <= avx2::MOST_TAPS
        {
            return fast.resize(self.filter, pixels, window, mirrored, side, (large, small));
        }
        self.portable(pixels, window, large, side);
        if mirrored {
            flip(large, side);
        }
        shrink(large, side, small);
    }

    fn portable(&mut self, pixels: &[u8], window: &Window, out: &mut [u8], side: usize) {
        let Crop { x, y, width, height } = window.inner;
        let [row, column] = window.stretches(side);
        let Self { filter, across, down, lines, .. } = self;
        across.plan(*filter, row, side);
        down.plan(*filter, column, side);
        let stride = 3 * window.width;
        let line = |n: usize| &pixels[(y + n) * stride + 3 * x..][..3 * width];
        if columns_first(&row, &column) {
            grow(lines, 3 * width * side);
            let lines = &mut lines[..3 * width * side];
            pass_down(down, line, 3 * width, lines);
            for (line, out) in lines.chunks_exact(3 * width).zip(out.chunks_exact_mut(3 * side)) {
                pass_across(across, line, out);
            }
            return;
        }
        let first = down.starts.first().map_or(0, |&first| first);
        let end = down.starts.last().map_or(0, |last| (last + 2 * down.pairs).min(height));
        grow(lines, 3 * side * (end - first));
        let lines = &mut lines[..3 * side * (end - first)];
        for (n, made) in lines.chunks_exact_mut(3 * side).enumerate() {
            pass_across(across, line(first + n), made);
        }
        pass_down(down, |n| &lines[3 * side * (n - first)..][..3 * side], 3 * side, out);
    }

    /// Gives a rare giant's memory back.
    pub(super) fn forget_giants(&mut self) {
        if self.lines.capacity() > KEPT {
            self.lines = Vec::new();
        }
    }
}

/// What resizing comes to where the crop has the row's size.
fn copy(pixels: &[u8], window: &Window, mirrored: bool, side: usize, large: &mut [u8]) {
    let Crop { x, y, .. } = window.inner;
    let lines = pixels[y * 3 * window.width..].chunks(3 * window.width);
    for (line, out) in lines.zip(large.chunks_exact_mut(3 * side)) {
        out.copy_from_slice(&line[3 * x..][..3 * side]);
    }
    if mirrored {
        flip(large, side);
    }
}

fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION - 1);

fn pass_across(axis: &Axis, line: &[u8], out: &mut [u8]) {
    let (line, _) = line.as_chunks::<3>();
    let places = out.as_chunks_mut::<3>().0.iter_mut();
    for ((out, &start), weights) in places.zip(&axis.starts).zip(axis.weights()) {
        let mut sums = [HALF; 3];
        for (pixel, &weight) in line[start..].iter().zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(value) * weight;
            }
        }
        *out = sums.map(level);
    }
}

/// Makes lines of `width` bytes of the lines that `source` has.
fn pass_down<'a>(axis: &Axis, source: impl Fn(usize) -> &'a [u8], width: usize, out: &mut [u8]) {
    let mut sums = vec![0; width];
    for ((out, &start), weights) in
        out.chunks_exact_mut(width).zip(&axis.starts).zip(axis.weights())
    {
        sums.fill(HALF);
        for (n, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0) {
            for (sum, &value) in sums.iter_mut().zip(source(start + n)) {
                *sum += i32::from(value) * weight;
            }
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = level(sum);
        }
    }
}

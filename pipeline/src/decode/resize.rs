//! A crop to a row, and a row to its mean. On machines with AVX2 by code of ours, which takes four
//! rows at a time through both passes, mirroring on the way, and on to their mean while they are in
//! the nearest cache, and writes past the caches; elsewhere by `fast_image_resize`.
//! Both give the same pixels: separable filters, columns first, in whole numbers of the same
//! precision.

use fast_image_resize as fir;
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;

use super::rows::{flip, shrink};
use super::{Filter, KEPT, Window, grow};
use crate::augment::Crop;
use crate::error::Fault;

/// Memory of the resizer, kept between pictures.
#[derive(Debug)]
pub(super) struct Resizer {
    filter: Filter,
    #[cfg(target_arch = "x86_64")]
    fast: Option<avx2::Resizer>,
    portable: fir::Resizer,
}

impl Resizer {
    pub(super) fn new(filter: Filter) -> Self {
        Self {
            filter,
            #[cfg(target_arch = "x86_64")]
            fast: is_x86_feature_detected!("avx2").then(avx2::Resizer::default),
            portable: fir::Resizer::new(),
        }
    }

    /// Resizes the crop in `pixels` to `large`, `side` by `side` pixels, and that to `small`, its
    /// mean, exchanging left and right where `mirrored`. `pixels` may grow.
    pub(super) fn resize(
        &mut self,
        pixels: &mut Vec<u8>,
        window: &Window,
        mirrored: bool,
        side: usize,
        (large, small): (&mut [u8], &mut [u8]),
    ) -> Result<(), Fault> {
        #[cfg(target_arch = "x86_64")]
        if let Some(fast) = &mut self.fast {
            fast.resize(self.filter, pixels, window, mirrored, side, (large, small));
            return Ok(());
        }
        self.portable(pixels, window, large, side)?;
        if mirrored {
            flip(large, side);
        }
        shrink(large, side, small);
        Ok(())
    }

    pub(super) fn portable(
        &mut self,
        pixels: &[u8],
        window: &Window,
        row: &mut [u8],
        side: usize,
    ) -> Result<(), Fault> {
        let fail = |error: &dyn std::fmt::Display| Fault::Resize(error.to_string());
        let used = &pixels[..window.width * window.height * 3];
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
        let filter = match self.filter {
            Filter::Bicubic => fir::FilterType::CatmullRom,
            Filter::Bilinear => fir::FilterType::Bilinear,
        };
        let [left, top, width, height] = window.span();
        let options = fir::ResizeOptions::new()
            .resize_alg(fir::ResizeAlg::Convolution(filter))
            .crop(left, top, width, height);
        self.portable.resize_typed(&inner, &mut target, &options).map_err(|e| fail(&e))
    }

    /// Gives a rare giant's memory back.
    pub(super) fn forget_giants(&mut self) {
        if self.portable.size_of_internal_buffers() > KEPT {
            self.portable.reset_internal_buffers();
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    #[allow(clippy::wildcard_imports, reason = "intrinsics")]
    use std::arch::x86_64::*;

    use super::{Filter, Window, grow, shrink};

    /// Rows that go through both passes together.
    const ROWS: usize = 4;
    /// Pixels that the second pass makes at once.
    const PIXELS: usize = 4;
    /// Bytes of a vector.
    const LANES: usize = 32;

    /// Where the values of an axis come from.
    #[derive(Debug, Default)]
    struct Axis {
        /// The first source of each value.
        starts: Vec<usize>,
        /// The weights of each value, `2 * pairs`, zeros behind the last.
        weights: Vec<i16>,
        pairs: usize,
        /// Bits of a weight behind the point.
        precision: i32,
        /// The weights before they are rounded, and how many a value has.
        exact: Vec<f64>,
        counts: Vec<usize>,
    }

    #[derive(Debug, Default)]
    pub(super) struct Resizer {
        across: Axis,
        down: Axis,
        /// What the first pass gives the second.
        rows: Vec<u8>,
        /// What the second pass makes of it.
        made: Vec<u8>,
    }

    fn bilinear(x: f64) -> f64 {
        (1.0 - x.abs()).max(0.0)
    }

    /// The cubic convolution with a = -0.5.
    fn bicubic(x: f64) -> f64 {
        let x = x.abs();
        if x < 1.0 {
            (1.5 * x - 2.5) * x * x + 1.0
        } else if x < 2.0 {
            (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        } else {
            0.0
        }
    }

    impl Axis {
        /// Plans `side` values over `length` sources from `from` on, of `size`.
        #[target_feature(enable = "avx2")]
        fn plan(
            &mut self,
            filter: Filter,
            size: usize,
            (from, length): (f64, f64),
            side: usize,
            mirrored: bool,
        ) {
            match filter {
                Filter::Bilinear => self.weigh(bilinear, 1.0, size, (from, length), side),
                Filter::Bicubic => self.weigh(bicubic, 2.0, size, (from, length), side),
            }
            self.round(mirrored);
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        fn weigh(
            &mut self,
            filter: impl Fn(f64) -> f64,
            support: f64,
            size: usize,
            (from, length): (f64, f64),
            side: usize,
        ) {
            let scale = (from + length - from) / side as f64;
            let wide = scale.max(1.0);
            let (radius, narrow) = (support * wide, 1.0 / wide);
            self.exact.clear();
            self.starts.clear();
            self.counts.clear();
            for value in 0..side {
                let centre = from + (value as f64 + 0.5) * scale;
                let start = (centre - radius).floor().max(0.0) as usize;
                let end = (centre + radius).ceil().min(size as f64) as usize;
                let first = self.exact.len();
                let mut begun = start;
                let mut sum = 0.0;
                for at in start..end {
                    let weight = filter((at as f64 - (centre - 0.5)) * narrow);
                    if at == begun && weight == 0.0 {
                        begun += 1;
                        continue;
                    }
                    self.exact.push(weight);
                    sum += weight;
                }
                while self.exact.len() > first && self.exact.last() == Some(&0.0) {
                    self.exact.pop();
                }
                for weight in &mut self.exact[first..] {
                    *weight /= sum;
                }
                self.starts.push(begun);
                self.counts.push(self.exact.len() - first);
            }
        }

        /// Makes whole numbers of the weights, as precise as 16 bits allow.
        #[inline]
        #[target_feature(enable = "avx2")]
        fn round(&mut self, mirrored: bool) {
            let most = self.exact.iter().copied().fold(0.0, f64::max);
            let fits = |bits: &i32| (most * f64::from(1 << (bits + 1))).round() < 32768.0;
            self.precision = (0..21).find(|bits| !fits(bits)).unwrap_or(21);
            let scale = f64::from(1 << self.precision);
            self.pairs = self.counts.iter().max().map_or(0, |most| most.div_ceil(2));
            self.weights.clear();
            // Whole groups of values, of which the last may come to nothing.
            self.weights.resize(self.starts.len().next_multiple_of(PIXELS) * 2 * self.pairs, 0);
            let mut from = 0;
            for (value, count) in self.counts.iter().enumerate() {
                let place = if mirrored { self.counts.len() - 1 - value } else { value };
                let place = &mut self.weights[2 * self.pairs * place..];
                for (place, weight) in place.iter_mut().zip(&self.exact[from..from + count]) {
                    *place = (weight * scale).round() as i16;
                }
                from += count;
            }
            if mirrored {
                self.starts.reverse();
            }
            self.starts.resize(self.starts.len().next_multiple_of(PIXELS), 0);
        }
    }

    impl Resizer {
        /// Resizes the crop in `pixels`, which may grow.
        pub(super) fn resize(
            &mut self,
            filter: Filter,
            pixels: &mut Vec<u8>,
            window: &Window,
            mirrored: bool,
            side: usize,
            (large, small): (&mut [u8], &mut [u8]),
        ) {
            let [left, top, width, height] = window.span();
            let inner = window.inner;
            // SAFETY: without AVX2 there is no `Resizer`.
            unsafe {
                self.across.plan(filter, inner.width, (left, width), side, mirrored);
                self.down.plan(filter, inner.height, (top, height), side, false);
            }
            let Self { across, down, rows, made } = self;
            let stride = 3 * window.width;
            // The last loads of a row, of either pass, reach beyond it.
            let line = (3 * inner.width).next_multiple_of(LANES);
            let gap = line + 6 * across.pairs + 16;
            grow(pixels, stride * window.height + LANES);
            grow(rows, ROWS * gap);
            let (crop, last) = (&pixels[inner.y * stride + 3 * inner.x..], inner.height - 1);
            let fits = |start: &usize| 3 * (start + 2 * across.pairs) + 16 <= gap;
            assert!(across.starts.iter().all(fits) && rows.len() >= ROWS * gap);
            grow(made, ROWS * 3 * side);
            let halved = large.len() == 4 * small.len() && side.is_multiple_of(16);
            for (four, large) in large.chunks_mut(ROWS * 3 * side).enumerate() {
                let out = &mut made[..large.len()];
                for (n, row) in rows.chunks_exact_mut(gap).take(out.len() / (3 * side)).enumerate()
                {
                    let value = ROWS * four + n;
                    let weights = &down.weights[2 * down.pairs * value..][..2 * down.pairs];
                    let source = |n: usize| {
                        crop[(down.starts[value] + n).min(last) * stride..][..line].as_chunks().0
                    };
                    let (row, precision) = (row[..line].as_chunks_mut().0, down.precision);
                    // SAFETY: as above.
                    unsafe {
                        match down.pairs {
                            1 => blend::<2>(weights, source, precision, row),
                            2 => blend::<4>(weights, source, precision, row),
                            3 => blend::<6>(weights, source, precision, row),
                            _ => blend::<0>(weights, source, precision, row),
                        }
                    }
                }
                // SAFETY: as above, and by the assertion.
                unsafe {
                    match across.pairs {
                        1 => gather::<2>(across, rows, gap, out, side),
                        2 => gather::<4>(across, rows, gap, out, side),
                        3 => gather::<6>(across, rows, gap, out, side),
                        _ => gather::<0>(across, rows, gap, out, side),
                    }
                    if halved {
                        halve(out, side, &mut small[ROWS * 3 * side / 4 * four..]);
                    }
                    stream(out, large);
                }
            }
            // Before another thread is told of the row.
            // SAFETY: there since before AVX2.
            unsafe { _mm_sfence() };
            if !halved {
                shrink(large, side, small);
            }
        }
    }

    /// The sum of the rows of `source` by `weights`, `TAPS` of them or, where that is 0, any number.
    #[target_feature(enable = "avx2")]
    fn blend<'a, const TAPS: usize>(
        weights: &[i16],
        source: impl Fn(usize) -> &'a [[u8; LANES]],
        precision: i32,
        row: &mut [[u8; LANES]],
    ) {
        let known: [_; TAPS] = std::array::from_fn(&source);
        let source = |tap| if TAPS > 0 { known[tap] } else { source(tap) };
        let (half, bits) = rounding(precision);
        let zero = _mm256_setzero_si256();
        let taps = if TAPS > 0 { TAPS } else { weights.len() };
        for (n, out) in row.iter_mut().enumerate() {
            let mut sums = [half; 4];
            for tap in (0..taps).step_by(2) {
                let weights = pair(&weights[tap..]);
                // SAFETY: arrays of as many bytes.
                let [first, second] = [source(tap), source(tap + 1)]
                    .map(|row| unsafe { _mm256_loadu_si256(row[n].as_ptr().cast()) });
                let low = _mm256_unpacklo_epi8(first, second);
                let high = _mm256_unpackhi_epi8(first, second);
                let quarters = [
                    _mm256_unpacklo_epi8(low, zero),
                    _mm256_unpackhi_epi8(low, zero),
                    _mm256_unpacklo_epi8(high, zero),
                    _mm256_unpackhi_epi8(high, zero),
                ];
                for (sum, bytes) in sums.iter_mut().zip(quarters) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(bytes, weights));
                }
            }
            let [a, b, c, d] = sums.map(|sum| _mm256_sra_epi32(sum, bits));
            let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            // SAFETY: an array of as many bytes.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) }
        }
    }

    /// The second pass, over `ROWS` rows that are `gap` bytes apart, into as many or, at the end,
    /// fewer.
    ///
    /// # Safety
    /// From every start, as many pixels as there are weights and 16 bytes must be within `gap`.
    #[target_feature(enable = "avx2")]
    unsafe fn gather<const TAPS: usize>(
        across: &Axis,
        rows: &[u8],
        gap: usize,
        out: &mut [u8],
        side: usize,
    ) {
        let taps = if TAPS > 0 { TAPS } else { 2 * across.pairs };
        let (half, bits) = rounding(across.precision);
        // Two pixels as 16-bit pairs of red, green and blue, and the two behind them.
        let near = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
        ));
        let far = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
        ));
        let dense = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1,
        ));
        let groups = across.starts.as_chunks::<PIXELS>().0.iter();
        let groups = groups.zip(across.weights.chunks_exact(PIXELS * taps));
        for (group, (starts, weights)) in groups.enumerate() {
            for two_rows in 0..ROWS / 2 {
                let [one, other] = [0, gap].map(|row| rows[2 * gap * two_rows + row..].as_ptr());
                let mut sums = [half; PIXELS];
                for ((sum, start), weights) in
                    sums.iter_mut().zip(starts).zip(weights.chunks_exact(taps))
                {
                    for tap in (0..taps).step_by(4) {
                        let at = 3 * (start + tap);
                        // SAFETY: within `gap` by the caller's word, and slices begin `gap` apart.
                        let [one, other] =
                            [one, other].map(|row| unsafe { _mm_loadu_si128(row.add(at).cast()) });
                        let bytes = _mm256_set_m128i(other, one);
                        let two = _mm256_shuffle_epi8(bytes, near);
                        let product = _mm256_madd_epi16(two, pair(&weights[tap..]));
                        *sum = _mm256_add_epi32(*sum, product);
                        if tap + 2 < taps {
                            let two = _mm256_shuffle_epi8(bytes, far);
                            let product = _mm256_madd_epi16(two, pair(&weights[tap + 2..]));
                            *sum = _mm256_add_epi32(*sum, product);
                        }
                    }
                }
                let [a, b, c, d] = sums.map(|sum| _mm256_sra_epi32(sum, bits));
                let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
                let bytes = _mm256_shuffle_epi8(bytes, dense);
                let at = 3 * (2 * side * two_rows + PIXELS * group);
                let room = 3 * (side - PIXELS * group);
                put(out, at, room, _mm256_castsi256_si128(bytes));
                put(out, at + 3 * side, room, _mm256_extracti128_si256::<1>(bytes));
            }
        }
    }

    /// Writes four pixels, or as many as there is `room` for, unless they are beyond the last row.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn put(out: &mut [u8], at: usize, room: usize, bytes: __m128i) {
        let Some(out) = out.get_mut(at..at + room) else { return };
        // What is behind the four is written over with the next.
        if let Some(place) = out.first_chunk_mut::<16>() {
            // SAFETY: an array of as many bytes.
            return unsafe { _mm_storeu_si128(place.as_mut_ptr().cast(), bytes) };
        }
        let mut all = [0; 16];
        // SAFETY: as above.
        unsafe { _mm_storeu_si128(all.as_mut_ptr().cast(), bytes) };
        let room = room.min(3 * PIXELS);
        out[..room].copy_from_slice(&all[..room]);
    }

    /// Copies past the caches: what reads a batch comes later, and mostly by another way.
    #[target_feature(enable = "avx2")]
    fn stream(from: &[u8], to: &mut [u8]) {
        // SAFETY: any bytes are a vector.
        let (head, body, _) = unsafe { to.align_to_mut::<__m256i>() };
        if !head.is_empty() || size_of_val(body) < from.len() {
            return to.copy_from_slice(from);
        }
        for (place, bytes) in body.iter_mut().zip(from.as_chunks::<LANES>().0) {
            // SAFETY: a vector's place, and an array of as many bytes.
            unsafe { _mm256_stream_si256(place, _mm256_loadu_si256(bytes.as_ptr().cast())) }
        }
    }

    /// The mean of each 2 x 2 square, halves rounded up, of rows of a multiple of 16 pixels.
    #[target_feature(enable = "avx2")]
    fn halve(large: &[u8], side: usize, small: &mut [u8]) {
        // The bytes of four pixels by pairs of red, green and blue, where they begin 16 bytes and,
        // in the upper half of the second, where they end them.
        let first = _mm_setr_epi8(0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11, -1, -1, -1, -1);
        let second = _mm256_set_m128i(_mm_add_epi8(first, _mm_set1_epi8(4)), first);
        let first = _mm256_broadcastsi128_si256(first);
        let two = _mm256_set1_epi16(2);
        let dense = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, -1, -1, -1, -1,
        ));
        let lines = large.as_chunks::<48>().0.chunks_exact(side / 16 * 2);
        let outs = small.as_chunks_mut::<24>().0.chunks_exact_mut(side / 16);
        for (lines, outs) in lines.zip(outs) {
            let (upper, lower) = lines.split_at(side / 16);
            for ((upper, lower), out) in upper.iter().zip(lower).zip(outs) {
                let sums =
                    _mm256_add_epi16(couples(upper, 0, 24, first), couples(lower, 0, 24, first));
                let left = _mm256_srli_epi16::<2>(_mm256_add_epi16(sums, two));
                let sums = _mm256_add_epi16(
                    couples(upper, 12, 32, second),
                    couples(lower, 12, 32, second),
                );
                let right = _mm256_srli_epi16::<2>(_mm256_add_epi16(sums, two));
                let means = _mm256_packus_epi16(left, right);
                let means = _mm256_shuffle_epi8(means, dense);
                let (low, high) =
                    (_mm256_castsi256_si128(means), _mm256_extracti128_si256::<1>(means));
                // SAFETY: 16 bytes from the first on, then 12 from the twelfth, of 24.
                unsafe {
                    let out = out.as_mut_ptr();
                    _mm_storeu_si128(out.cast(), low);
                    _mm_storel_epi64(out.add(12).cast(), high);
                    out.add(20).cast::<i32>().write_unaligned(_mm_extract_epi32::<2>(high));
                }
            }
        }
    }

    /// The sums of the pairs that `order` makes of 16 bytes from either place on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn couples(line: &[u8; 48], low: usize, high: usize, order: __m256i) -> __m256i {
        assert!(low + 16 <= line.len() && high + 16 <= line.len());
        // SAFETY: the assertion.
        let bytes = unsafe {
            let (low, high) = (line.as_ptr().add(low), line.as_ptr().add(high));
            _mm256_set_m128i(_mm_loadu_si128(high.cast()), _mm_loadu_si128(low.cast()))
        };
        _mm256_maddubs_epi16(_mm256_shuffle_epi8(bytes, order), _mm256_set1_epi8(1))
    }

    /// What rounds a sum, and the bits to drop then.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn rounding(precision: i32) -> (__m256i, __m128i) {
        (_mm256_set1_epi32(1 << (precision - 1)), _mm_cvtsi32_si128(precision))
    }

    /// The first two weights, everywhere.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn pair(weights: &[i16]) -> __m256i {
        let [low, high] = [weights[0], weights[1]].map(|weight| i32::from(weight as u16));
        _mm256_set1_epi32(high << 16 | low)
    }
}

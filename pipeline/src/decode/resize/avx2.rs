//! The resizer for machines with AVX2.

mod sums;

#[allow(clippy::wildcard_imports, reason = "intrinsics")]
use std::arch::x86_64::*;
use std::ops::Range;

use self::sums::{Sum, SumDown, Weights, pack};
use super::{Axis, Filter, Pixels, Stretch, Window, columns_first, grow, shrink};

/// Lines that are made together.
const LINES: usize = 4;
/// Pixels that are made at once.
const PIXELS: usize = 4;
/// Lines that one of the result may be made of: more would overflow.
pub(super) const MOST_TAPS: usize = 256;
/// Bytes of a vector.
const LANES: usize = 32;
/// Rows of so many bytes and more are written past the caches. Ours: of smaller ones a batch stays in them.
const PAST: usize = 32 << 10;

/// The weights of an axis in two parts, each for sums of pairs.
#[derive(Debug, Default)]
struct Plan {
    axis: Axis,
    starts: Vec<usize>,
    /// Of each value, the high parts of all pairs of sources, then the low parts.
    weights: Vec<i32>,
    /// Pairs of sources of a value.
    pairs: usize,
    /// The last of `starts`.
    furthest: usize,
}

#[derive(Debug, Default)]
pub(super) struct Resizer {
    across: Plan,
    down: Plan,
    /// What the first pass gives the second: the newest lines, each in the place of one that
    /// is not needed any more.
    lines: Vec<u8>,
    /// `LINES` lines of the result.
    made: Vec<u8>,
}

/// Weights as 256 times a high part and a low part from 0 to 255, in 16 bits each.
fn split_across([first, second]: [i32; 2]) -> [i32; 2] {
    [(first >> 8) & 0xffff | (second >> 8) << 16, first & 0xff | (second & 0xff) << 16]
}

/// Weights as 65,536 times a high part, in 8 bits, twice, and a low part from -32,768 to
/// 32,767, in 16.
fn split_down([first, second]: [i32; 2]) -> [i32; 2] {
    let [high, other] = [first, second].map(|weight| (weight + 0x8000) >> 16 & 0xff);
    let both = high | other << 8;
    [both | both << 16, first & 0xffff | second << 16]
}

impl Plan {
    /// Plans `side` values of a stretch; `mirrored`, from the last to the first.
    #[target_feature(enable = "avx2")]
    fn make(
        &mut self,
        filter: Filter,
        stretch: Stretch,
        side: usize,
        mirrored: bool,
        split: impl Fn([i32; 2]) -> [i32; 2],
    ) {
        let Self { axis, starts, weights, pairs, furthest } = self;
        axis.plan(filter, stretch, side);
        *pairs = axis.pairs;
        // Whole groups of values, of which the last may come to nothing.
        let all = side.next_multiple_of(PIXELS);
        starts.clear();
        starts.extend_from_slice(&axis.starts);
        *furthest = axis.starts.iter().copied().max().unwrap_or(0);
        if mirrored {
            starts.reverse();
        }
        starts.resize(all, 0);
        weights.clear();
        weights.resize(all * 2 * *pairs, 0);
        let places = weights.chunks_exact_mut(2 * *pairs);
        let split = |(place, whole): (&mut [i32], &[i32])| {
            let (high, low) = place.split_at_mut(*pairs);
            for ((high, low), pair) in high.iter_mut().zip(low).zip(whole.as_chunks::<2>().0) {
                [*high, *low] = split(*pair);
            }
        };
        match mirrored {
            false => places.zip(axis.weights()).for_each(split),
            true => places.zip(axis.weights().rev()).for_each(split),
        }
    }
}

impl Resizer {
    /// Resizes the crop in `pixels`, which may grow.
    pub(super) fn resize(
        &mut self,
        filter: Filter,
        pixels: &mut Pixels,
        window: &Window,
        mirrored: bool,
        side: usize,
        (large, small): (&mut [u8], &mut [u8]),
    ) {
        let [row, column] = window.stretches(side);
        let (inner, columns_first) = (window.inner, columns_first(&row, &column));
        // SAFETY: without AVX2 there is no `Resizer`.
        unsafe {
            self.across.make(filter, row, side, mirrored, split_across);
            self.down.make(filter, column, side, false, split_down);
        }
        let stride = 3 * window.width;
        let longest = 3 * if columns_first { inner.width } else { side };
        // Loads and stores reach beyond the end of a line.
        let reach = 6 * self.across.pairs + 2 * LANES;
        let gap = longest + reach;
        pixels.grow(stride * window.height + reach);
        grow(&mut self.lines, (2 * self.down.pairs + LINES) * gap);
        let made_gap = 3 * side + LANES;
        grow(&mut self.made, LINES * made_gap);
        let from = Source {
            pixels: &pixels[inner.y * stride + 3 * inner.x..],
            stride,
            width: 3 * inner.width,
            reach: 3 * inner.width + reach,
            last: inner.height - 1,
        };
        let halved = large.len() == 4 * small.len() && side.is_multiple_of(16);
        let past = large.len() >= PAST;
        let mut next = self.down.starts[0];
        for (four, large) in large.chunks_mut(LINES * 3 * side).enumerate() {
            let values = LINES * four..LINES * four + large.len() / (3 * side);
            // SAFETY: as above.
            unsafe {
                if columns_first {
                    self.columns_first(&from, gap, values, made_gap);
                } else {
                    self.rows_first(&from, gap, values, made_gap, &mut next);
                }
                let mut made = self.made.chunks_exact(made_gap).map(|line| &line[..3 * side]);
                for (line, large) in made.clone().zip(large.chunks_exact_mut(3 * side)) {
                    match past {
                        true => stream(line, large),
                        false => large.copy_from_slice(line),
                    }
                }
                if halved {
                    let small = &mut small[LINES * 3 * side / 4 * four..];
                    for small in small.chunks_exact_mut(3 * side / 2).take(LINES / 2) {
                        if let [Some(upper), Some(lower)] = [made.next(), made.next()] {
                            halve(upper, lower, small);
                        }
                    }
                }
            }
        }
        // Before another thread is told of the row.
        if past {
            // SAFETY: there since before AVX2.
            unsafe { _mm_sfence() };
        }
        if !halved {
            shrink(large, side, small);
        }
    }

    /// Makes `values` of the result, taking further lines across where they need them. `next`
    /// is the first line that has not gone across.
    #[target_feature(enable = "avx2")]
    fn rows_first(
        &mut self,
        from: &Source,
        gap: usize,
        values: Range<usize>,
        made_gap: usize,
        next: &mut usize,
    ) {
        let Self { across, down, lines, made } = self;
        let turns = 2 * down.pairs + LINES;
        for (value, made) in values.zip(made.chunks_exact_mut(made_gap)) {
            let start = down.starts[value];
            while *next < (start + 2 * down.pairs).min(from.last + 1) {
                let four = std::array::from_fn(|n| from.line(*next + n));
                let places = std::array::from_fn(|n| (*next + n) % turns * gap);
                across.sideways(four, lines, places);
                *next += LINES;
            }
            let turn = start % turns;
            let line = |n| {
                let at = if turn + n < turns { turn + n } else { turn + n - turns };
                &lines[at * gap..][..gap]
            };
            down.lengthwise(value, line, made_gap - LANES, made);
        }
    }

    /// Makes `values` of the result.
    #[target_feature(enable = "avx2")]
    fn columns_first(&mut self, from: &Source, gap: usize, values: Range<usize>, made_gap: usize) {
        let Self { across, down, lines, made } = self;
        for (value, line) in values.zip(lines.chunks_exact_mut(gap)) {
            let start = down.starts[value];
            down.lengthwise(value, |n| from.line(start + n), from.width, line);
        }
        let four = std::array::from_fn(|n| &lines[n * gap..][..gap]);
        across.sideways(four, made, std::array::from_fn(|n| n * made_gap));
    }
}

/// The crop in a decoder's memory.
#[derive(Debug)]
struct Source<'a> {
    pixels: &'a [u8],
    stride: usize,
    /// Bytes of a line.
    width: usize,
    /// Bytes of a line that may be read.
    reach: usize,
    last: usize,
}

impl Source<'_> {
    /// A line, or the last.
    fn line(&self, n: usize) -> &[u8] {
        &self.pixels[n.min(self.last) * self.stride..][..self.reach]
    }
}

impl Plan {
    /// Takes four lines across, to their places in `to`.
    #[target_feature(enable = "avx2")]
    fn sideways(&self, from: [&[u8]; LINES], to: &mut [u8], places: [usize; LINES]) {
        match self.pairs {
            1 => self.sideways_by::<1>(from, to, places),
            2 => self.sideways_by::<2>(from, to, places),
            3 => self.sideways_by::<3>(from, to, places),
            4 => self.sideways_by::<4>(from, to, places),
            _ => self.sideways_by::<0>(from, to, places),
        }
    }

    /// By `PAIRS` pairs of sources or, where that is 0, any number.
    #[target_feature(enable = "avx2")]
    fn sideways_by<const PAIRS: usize>(
        &self,
        from: [&[u8]; LINES],
        to: &mut [u8],
        places: [usize; LINES],
    ) {
        let pairs = if PAIRS > 0 { PAIRS } else { self.pairs };
        let zero = _mm256_setzero_si256();
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
        let groups = self.starts.as_chunks::<PIXELS>().0;
        let furthest = 3 * (self.furthest + 2 * (pairs - 1)) + 16;
        assert!(from.iter().all(|line| line.len() >= furthest));
        let needed = 3 * PIXELS * groups.len() + 4;
        assert!(places.iter().all(|place| place + needed <= to.len()));
        let groups = groups.iter().zip(self.weights.chunks_exact(PIXELS * 2 * pairs));
        for (group, (starts, weights)) in groups.enumerate() {
            let mut levels = [[zero; PIXELS]; LINES / 2];
            for pixel in 0..PIXELS {
                let mut sums = [Sum::new(); LINES / 2];
                let weights = |pair| Weights::new(weights, 2 * pairs * pixel + pair, pairs);
                for four in 0..pairs.div_ceil(2) {
                    let at = 3 * (starts[pixel] + 4 * four);
                    let first = weights(2 * four);
                    let second = (2 * four + 1 < pairs).then(|| weights(2 * four + 1));
                    for two in 0..LINES / 2 {
                        let (one, other) = (from[2 * two], from[2 * two + 1]);
                        // SAFETY: the assertion.
                        let bytes = unsafe {
                            let one = _mm_loadu_si128(one.as_ptr().add(at).cast());
                            let other = _mm_loadu_si128(other.as_ptr().add(at).cast());
                            _mm256_set_m128i(other, one)
                        };
                        sums[two].add(_mm256_shuffle_epi8(bytes, near), first);
                        if let Some(second) = second {
                            sums[two].add(_mm256_shuffle_epi8(bytes, far), second);
                        }
                    }
                }
                for two in 0..LINES / 2 {
                    levels[two][pixel] = sums[two].levels();
                }
            }
            for (two, levels) in levels.into_iter().enumerate() {
                let bytes = _mm256_shuffle_epi8(pack(levels), dense);
                let (one, other) =
                    (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
                for (n, bytes) in [one, other].into_iter().enumerate() {
                    // What is behind the four is written over with the next.
                    // SAFETY: the assertion.
                    unsafe {
                        let place = to.as_mut_ptr().add(places[2 * two + n]);
                        _mm_storeu_si128(place.add(3 * PIXELS * group).cast(), bytes);
                    }
                }
            }
        }
    }

    /// Makes one line, of `width` bytes, of those that `line` gives, and writes whole vectors.
    #[target_feature(enable = "avx2")]
    fn lengthwise<'a>(
        &self,
        value: usize,
        line: impl Fn(usize) -> &'a [u8],
        width: usize,
        out: &mut [u8],
    ) {
        let weights = &self.weights[2 * self.pairs * value..][..2 * self.pairs];
        let width = width.next_multiple_of(LANES);
        let line = |n| line(n)[..width].as_chunks().0;
        let out = out[..width].as_chunks_mut().0;
        match self.pairs {
            1 => lengthwise_by::<1>(weights, line, out),
            2 => lengthwise_by::<2>(weights, line, out),
            3 => lengthwise_by::<3>(weights, line, out),
            4 => lengthwise_by::<4>(weights, line, out),
            _ => lengthwise_by::<0>(weights, line, out),
        }
    }
}

/// By `PAIRS` pairs of lines or, where that is 0, any number.
#[target_feature(enable = "avx2")]
fn lengthwise_by<'a, const PAIRS: usize>(
    weights: &[i32],
    line: impl Fn(usize) -> &'a [[u8; LANES]],
    out: &mut [[u8; LANES]],
) {
    let pairs = if PAIRS > 0 { PAIRS } else { weights.len() / 2 };
    let weights = |pair| Weights::new(weights, pair, pairs);
    let vectors = out.len();
    let place = |n| line(n)[..vectors].as_ptr();
    let two = |pair| [place(2 * pair), place(2 * pair + 1)];
    let mut known = [([std::ptr::null(); 2], Weights::none()); PAIRS];
    for (pair, known) in known.iter_mut().enumerate() {
        *known = (two(pair), weights(pair));
    }
    for (n, out) in out.iter_mut().enumerate() {
        let mut sums = SumDown::new();
        if PAIRS > 0 {
            for ([first, second], weights) in known {
                // SAFETY: lines as long as `out`.
                unsafe { sums.add([first.add(n), second.add(n)], weights) }
            }
        } else {
            for pair in 0..pairs {
                let [first, second] = two(pair);
                // SAFETY: as above.
                unsafe { sums.add([first.add(n), second.add(n)], weights(pair)) }
            }
        }
        // SAFETY: an array of as many bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sums.bytes()) }
    }
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

/// The mean of each 2 x 2 square, halves rounded up, of two lines of a multiple
/// of 16 pixels.
#[target_feature(enable = "avx2")]
fn halve(upper: &[u8], lower: &[u8], small: &mut [u8]) {
    // The bytes of four pixels by pairs of red, green and blue, where they begin 16 bytes and,
    // in the upper half of the second, where they end them.
    let first = _mm_setr_epi8(0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11, -1, -1, -1, -1);
    let second = _mm256_set_m128i(_mm_add_epi8(first, _mm_set1_epi8(4)), first);
    let first = _mm256_broadcastsi128_si256(first);
    let two = _mm256_set1_epi16(2);
    let dense = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, -1, -1, -1, -1,
    ));
    let (upper, lower) = (upper.as_chunks::<48>().0, lower.as_chunks::<48>().0);
    for ((upper, lower), out) in upper.iter().zip(lower).zip(small.as_chunks_mut::<24>().0) {
        let sums = _mm256_add_epi16(couples(upper, 0, 24, first), couples(lower, 0, 24, first));
        let left = _mm256_srli_epi16::<2>(_mm256_add_epi16(sums, two));
        let sums = _mm256_add_epi16(couples(upper, 12, 32, second), couples(lower, 12, 32, second));
        let right = _mm256_srli_epi16::<2>(_mm256_add_epi16(sums, two));
        let means = _mm256_shuffle_epi8(_mm256_packus_epi16(left, right), dense);
        let (low, high) = (_mm256_castsi256_si128(means), _mm256_extracti128_si256::<1>(means));
        // SAFETY: 16 bytes from the first on, then 12 from the twelfth, of 24.
        unsafe {
            let out = out.as_mut_ptr();
            _mm_storeu_si128(out.cast(), low);
            _mm_storel_epi64(out.add(12).cast(), high);
            out.add(20).cast::<i32>().write_unaligned(_mm_extract_epi32::<2>(high));
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

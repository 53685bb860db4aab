//! What each pixel of a resized line is made of: the weights of Pillow's `precompute_coeffs`, to
//! the bit.

use super::Filter;

/// Bits of a weight behind the point, as in Pillow: 8 for a level and 2 for what filters ring.
pub(super) const PRECISION: u32 = 32 - 8 - 2;

/// Added to a whole number below 2^51, leaves it in the low bits.
const INTEGERS: f64 = 1.5 * (1_u64 << 52) as f64;

/// Values that are planned together, in vectors.
const BLOCK: usize = 32;

/// Where the values of an axis come from.
#[derive(Debug, Default)]
pub(super) struct Axis {
    /// The first source of each value. They never go back.
    pub(super) starts: Vec<usize>,
    /// Pairs of weights that each value has.
    pub(super) pairs: usize,
    /// The weights of all values, `stride` each, of which the first is that of `starts` less
    /// `skipped`.
    weights: Vec<i32>,
    stride: usize,
    skipped: Vec<usize>,
    exact: Vec<[f64; BLOCK]>,
}

fn bilinear(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// The cubic convolution with a = -0.5, in the order of operations that Pillow rounds in.
fn bicubic(x: f64) -> f64 {
    let x = x.abs();
    let near = (1.5 * x - 2.5) * x * x + 1.0;
    let far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
    if x < 1.0 {
        near
    } else if x < 2.0 {
        far
    } else {
        0.0
    }
}

/// A stretch of a line that is resized, and which of its values are wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stretch {
    /// Pixels of the line. Filters reach over the ends of the stretch, not over those of the line.
    pub(super) size: usize,
    /// Where the stretch begins and ends in the line.
    pub(super) from: f32,
    pub(super) to: f32,
    /// Values that it becomes.
    pub(super) values: usize,
    /// The first of them that is wanted.
    pub(super) first: usize,
    /// The pixel of the line that counts as the first.
    pub(super) origin: usize,
}

impl Stretch {
    /// The whole of `size` pixels as `values` values.
    pub(super) fn whole(size: usize, values: usize) -> Self {
        Self { size, from: 0.0, to: size as f32, values, first: 0, origin: 0 }
    }

    fn scale(&self) -> f64 {
        f64::from(self.to - self.from) / self.values as f64
    }

    fn centre(&self, value: usize) -> f64 {
        f64::from(self.from) + (value as f64 + 0.5) * self.scale()
    }

    /// No value is made of more pixels.
    pub(super) fn most_taps(&self, support: f64) -> usize {
        (support * self.scale().max(1.0)).ceil() as usize * 2 + 1
    }

    /// The first of the pixels that `count` wanted values are made of, and the end of them.
    pub(super) fn reach(&self, filter: Filter, count: usize) -> (usize, usize) {
        let radius = filter.support() * self.scale().max(1.0);
        let begin = self.centre(self.first) - radius + 0.5;
        let end = self.centre(self.first + count - 1) + radius + 0.5;
        (begin.max(0.0) as usize, (end as usize).min(self.size))
    }
}

/// Whether columns are resized before rows: where the height shrinks by more than twice what the
/// width does.
///
/// # Source
/// `ImagingResampleInner` of Pillow 13. Versions before it always begin with rows.
pub(super) fn columns_first(row: &Stretch, column: &Stretch) -> bool {
    let shrinks = |stretch: &Stretch| stretch.size as i64 - stretch.values as i64;
    shrinks(column) > 0 && shrinks(column) > 2 * shrinks(row)
}

impl Filter {
    pub(super) fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }
}

impl Axis {
    /// Plans `side` of the values of a stretch.
    #[inline(always)]
    pub(super) fn plan(&mut self, filter: Filter, stretch: Stretch, side: usize) {
        match filter {
            Filter::Bilinear => self.weigh(bilinear, filter.support(), stretch, side),
            Filter::Bicubic => self.weigh(bicubic, filter.support(), stretch, side),
        }
    }

    #[inline(always)]
    fn weigh(&mut self, filter: impl Fn(f64) -> f64, support: f64, stretch: Stretch, side: usize) {
        let scale = stretch.scale();
        let wide = scale.max(1.0);
        let (radius, narrow) = (support * wide, 1.0 / wide);
        let most = stretch.most_taps(support);
        let unit = f64::from(1 << PRECISION);
        self.stride = most.next_multiple_of(2);
        self.weights.clear();
        self.weights.resize(side.next_multiple_of(BLOCK) * self.stride, 0);
        self.starts.clear();
        self.exact.resize(most, [0.0; BLOCK]);
        for (block, weights) in self.weights.chunks_exact_mut(BLOCK * self.stride).enumerate() {
            let (mut centres, mut begins, mut counts, mut sums) =
                ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
            for value in 0..BLOCK {
                let centre = stretch.centre(stretch.first + BLOCK * block + value);
                let begin = (centre - radius + 0.5).max(0.0).floor();
                let end = (centre + radius + 0.5).floor().min(stretch.size as f64);
                (centres[value], begins[value], counts[value]) = (centre, begin, end - begin);
            }
            for (tap, exact) in self.exact.iter_mut().enumerate() {
                for value in 0..BLOCK {
                    let at = begins[value] + tap as f64;
                    let weight = filter((at - centres[value] + 0.5) * narrow);
                    let weight = if (tap as f64) < counts[value] { weight } else { 0.0 };
                    exact[value] = weight;
                    sums[value] += weight;
                }
            }
            for (tap, exact) in self.exact.iter().enumerate() {
                let mut whole = [0; BLOCK];
                for value in 0..BLOCK {
                    let scaled = exact[value] / sums[value] * unit;
                    let rounded = (scaled + 0.5_f64.copysign(scaled)).trunc();
                    // A whole number's low bits, and 0 of what is not used and no number.
                    whole[value] = (rounded + INTEGERS).to_bits() as i32;
                }
                for (weights, whole) in weights.chunks_exact_mut(self.stride).zip(whole) {
                    weights[tap] = whole;
                }
            }
            self.starts.extend(begins.map(|begin| (begin as usize).saturating_sub(stretch.origin)));
        }
        self.starts.truncate(side);
        self.pack();
    }

    /// Leaves zeros at either end out.
    #[inline(always)]
    fn pack(&mut self) {
        let Self { starts, pairs, weights, stride, skipped, .. } = self;
        skipped.clear();
        let (mut next, mut most) = (usize::MAX, 1);
        for (&start, weights) in starts.iter().zip(weights.chunks_exact(*stride)).rev() {
            let first = weights.iter().position(|&weight| weight != 0).unwrap_or(0);
            let end = weights.iter().rposition(|&weight| weight != 0).map_or(1, |last| last + 1);
            let first = first.min(next - start);
            next = start + first;
            most = most.max(end - first);
            skipped.push(first);
        }
        *pairs = most.div_ceil(2);
        let room = *stride - 2 * *pairs;
        skipped.reverse();
        for (start, skipped) in starts.iter_mut().zip(skipped) {
            *skipped = (*skipped).min(room);
            *start += *skipped;
        }
    }

    /// The weights of each value, `2 * pairs` of them, zeros behind the last. A weight that is not
    /// zero has its source within the line.
    pub(super) fn weights(&self) -> impl DoubleEndedIterator<Item = &[i32]> {
        let weights = self.weights.chunks_exact(self.stride).zip(&self.skipped);
        weights.map(|(weights, &skipped)| &weights[skipped..][..2 * self.pairs])
    }
}

//! Sums of weighted pixels, a vector of them at a time.

#[allow(clippy::wildcard_imports, reason = "intrinsics")]
use std::arch::x86_64::*;

use super::super::{HALF, PRECISION};
use super::LANES;

/// Sums of 32 bytes of lines by weights in the parts of `split_down`: the high parts in two halves of 16 bits
/// each, where what overflows does no harm, the low parts in four quarters of 32 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct SumDown {
    high: [__m256i; 2],
    low: [__m256i; 4],
}

impl SumDown {
    /// Half of a level, which rounds.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new() -> Self {
        Self { high: [_mm256_setzero_si256(); 2], low: [_mm256_set1_epi32(HALF); 4] }
    }

    /// Adds two lines.
    ///
    /// # Safety
    /// Both are places of a vector's bytes.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn add(&mut self, two: [*const [u8; LANES]; 2], weights: Weights) {
        // SAFETY: by the caller's word.
        let [first, second] =
            unsafe { [_mm256_loadu_si256(two[0].cast()), _mm256_loadu_si256(two[1].cast())] };
        let zero = _mm256_setzero_si256();
        let halves = [_mm256_unpacklo_epi8(first, second), _mm256_unpackhi_epi8(first, second)];
        for (n, half) in halves.into_iter().enumerate() {
            let high = _mm256_maddubs_epi16(half, weights.high);
            self.high[n] = _mm256_add_epi16(self.high[n], high);
            let quarters = [_mm256_unpacklo_epi8(half, zero), _mm256_unpackhi_epi8(half, zero)];
            for (low, quarter) in self.low[2 * n..].iter_mut().zip(quarters) {
                *low = _mm256_add_epi32(*low, _mm256_madd_epi16(quarter, weights.low));
            }
        }
    }

    /// Whole levels, held between 0 and 255.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn bytes(self) -> __m256i {
        let Self { high, low: [a, b, c, d] } = self;
        let half = |high, one, other| {
            let one = _mm256_srai_epi32::<16>(one);
            let other = _mm256_srai_epi32::<16>(other);
            let sum = _mm256_add_epi16(high, _mm256_packs_epi32(one, other));
            _mm256_srai_epi16::<{ PRECISION as i32 - 16 }>(sum)
        };
        _mm256_packus_epi16(half(high[0], a, b), half(high[1], c, d))
    }
}

/// The weights of a pair, everywhere in a vector.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights {
    high: __m256i,
    low: __m256i,
}

impl Weights {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn none() -> Self {
        Self { high: _mm256_setzero_si256(), low: _mm256_setzero_si256() }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new(weights: &[i32], at: usize, pairs: usize) -> Self {
        let high = _mm256_set1_epi32(weights[at]);
        Self { high, low: _mm256_set1_epi32(weights[at + pairs]) }
    }
}

/// Sums by weights in the parts of `split_across`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sum {
    high: __m256i,
    low: __m256i,
}

impl Sum {
    /// Half of a level, which rounds.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new() -> Self {
        Self { high: _mm256_setzero_si256(), low: _mm256_set1_epi32(HALF) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn add(&mut self, pairs: __m256i, weights: Weights) {
        self.high = _mm256_add_epi32(self.high, _mm256_madd_epi16(pairs, weights.high));
        self.low = _mm256_add_epi32(self.low, _mm256_madd_epi16(pairs, weights.low));
    }

    /// Whole levels, not yet held between 0 and 255.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn levels(self) -> __m256i {
        let sum = _mm256_add_epi32(_mm256_slli_epi32::<8>(self.high), self.low);
        _mm256_srai_epi32::<{ PRECISION as i32 }>(sum)
    }
}

/// Four vectors of levels as bytes, held between 0 and 255.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn pack([a, b, c, d]: [__m256i; 4]) -> __m256i {
    _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d))
}

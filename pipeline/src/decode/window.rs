//! A part of a picture, and where the crop lies in it.

use super::weights::Stretch;
use crate::augment::Crop;

/// A part of a picture in a decoder's memory.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) width: usize,
    pub(super) height: usize,
    /// The crop's place in it, in whole pixels.
    pub(super) inner: Crop,
    /// The crop within `inner`, where scaling made it fall between pixels: left, top, width, height.
    pub(super) fraction: Option<[f64; 4]>,
    /// How rows and columns are resized, where `inner` is not all of the picture that is.
    pub(super) stretches: Option<[Stretch; 2]>,
}

impl Window {
    pub(super) fn whole(width: usize, height: usize, inner: Crop) -> Self {
        Self { width, height, inner, fraction: None, stretches: None }
    }

    /// How rows and columns of `inner` become `side` values.
    pub(super) fn stretches(&self, side: usize) -> [Stretch; 2] {
        if let Some(stretches) = self.stretches {
            return stretches;
        }
        let Crop { width, height, .. } = self.inner;
        let Some([left, top, across, down]) = self.fraction else {
            return [width, height].map(|length| Stretch::whole(length, side));
        };
        let part = |size, from: f64, length: f64| {
            let (from, to) = (from as f32, (from + length) as f32);
            Stretch { from, to, ..Stretch::whole(size, side) }
        };
        [part(width, left, across), part(height, top, down)]
    }

    /// Where `crop`, of the full-size picture, lies in the decoded `part` of the reduced one.
    pub(super) fn of(crop: Crop, part: Crop, divisor: usize) -> Self {
        if divisor == 1 {
            let inner = Crop { x: crop.x - part.x, y: crop.y - part.y, ..crop };
            return Self::whole(part.width, part.height, inner);
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
            stretches: None,
        }
    }
}

//! How a decoder works.

use serde::{Deserialize, Serialize};

/// The resampling filter. Both are antialiased: their support grows with the reduction. Pixels are
/// those of Pillow 13's `Image.crop` and `Image.resize`, to the bit. The papers' TensorFlow code
/// does not antialias; this is a departure of ours, for sparse sampling of a large photograph is
/// noise.
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
    ///
    /// Of 1,000 `resnet` views of 500 ImageNet photographs, 15 were decoded smaller for rows of 256
    /// pixels, and differed from exact ones by 1.1 of 255 in the mean (41 dB; the worst 33 dB). For
    /// rows of 128 it was 466, by 1.4 (40 dB; the worst 27 dB). That is bilinear; bicubic: 1.3 (40
    /// dB) and 1.7 (38 dB).
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

/// How a [`Decoder`](super::Decoder) works.
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

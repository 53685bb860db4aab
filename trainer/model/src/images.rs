//! What a step is given of images.

use tch::{Kind, Tensor};

/// One batch on the device, the same views at two sides: pixels as the pipeline gives them, u8 (N, R, R, 3), or
/// images (N, 3, R, R) in [-1, 1]. The step makes images of pixels a micro-batch at a time ([`normalised`]): a whole
/// batch of them takes four times the memory.
#[derive(Debug)]
pub struct Images {
    /// What E sees, of side R_E.
    pub large: Tensor,
    /// What D sees, of side R_G.
    pub small: Tensor,
}

impl Images {
    /// Pixels made images; images stay as they are.
    #[must_use]
    pub fn normalised(&self) -> Self {
        Self { large: normalised(&self.large), small: normalised(&self.small) }
    }

    /// Rows `first..first + rows` (views).
    #[must_use]
    pub fn rows(&self, first: i64, rows: i64) -> Self {
        Self { large: self.large.narrow(0, first, rows), small: self.small.narrow(0, first, rows) }
    }

    /// N.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> i64 {
        self.small.size()[0]
    }
}

/// Pixels, u8 (N, S, S, 3), as images (N, 3, S, S): x / 127.5 − 1 in single precision, channels_last in memory as
/// convolutions want it. What is no pixels is given back as it is.
pub fn normalised(pixels: &Tensor) -> Tensor {
    if pixels.kind() != Kind::Uint8 {
        return pixels.shallow_clone();
    }
    let mut images = pixels.to_kind(Kind::Float).permute([0, 3, 1, 2]);
    let _ = images.g_div_scalar_(127.5).g_sub_scalar_(1.0);
    images
}

//! Grids of images as PNG.

use std::path::Path;

use image::{Rgb, RgbImage};
use tch::Tensor;

use crate::device::to_u8;
use crate::error::{Error, Result};

/// Pixels between tiles.
pub const GAP: u32 = 4;
/// Tiles smaller than this are enlarged by a whole factor, without smoothing.
pub const LEAST_TILE: u32 = 64;

/// Tiles of one grid, `columns` a row, on white.
///
/// # Shapes
/// `images` (N, 3, H, W) in [-1, 1]. The tile of image i has its corner at column (i mod columns),
/// row (i / columns) times (side + [`GAP`]), plus `GAP`.
///
/// # Panics
/// If the images are not of that shape.
#[must_use]
pub fn grid(images: &Tensor, columns: u32) -> RgbImage {
    let images = to_u8(images).permute([0, 2, 3, 1]).contiguous(); // (N, H, W, 3)
    let (n, h, w, _) = images.size4().expect("images are (N, 3, H, W)");
    let (n, h, w) = (n as u32, h as u32, w as u32);
    let scale = LEAST_TILE.div_ceil(h).max(1);
    let (tile_w, tile_h) = (w * scale + GAP, h * scale + GAP);
    let rows = n.div_ceil(columns);
    let mut pixels = vec![0; images.numel()];
    images.copy_data_u8(&mut pixels, images.numel());
    let white = Rgb([255; 3]);
    let mut out = RgbImage::from_pixel(columns * tile_w + GAP, rows * tile_h + GAP, white);
    for i in 0..n {
        let (left, top) = (GAP + i % columns * tile_w, GAP + i / columns * tile_h);
        for y in 0..h * scale {
            for x in 0..w * scale {
                let at = (((i * h + y / scale) * w + x / scale) * 3) as usize;
                out.put_pixel(left + x, top + y, Rgb([pixels[at], pixels[at + 1], pixels[at + 2]]));
            }
        }
    }
    out
}

/// Two sets of images side by side, (N, 3, H, W) each, to (N, 3, H, 2W): the left of each tile from
/// `left`, the right from `right`.
pub fn pairs(left: &Tensor, right: &Tensor) -> Tensor {
    Tensor::cat(&[left, right], 3)
}

/// Writes a PNG, whole or not at all.
///
/// # Errors
/// [`Error::Picture`] or [`Error::Io`].
pub fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    let aside = path.with_extension("png.partial");
    picture
        .save_with_format(&aside, image::ImageFormat::Png)
        .map_err(|source| Error::Picture { path: path.to_owned(), source })?;
    std::fs::rename(&aside, path).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn every_tile_sits_where_it_should_and_keeps_its_colour() {
        let colours = [[-1.0, -1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]];
        let images = Tensor::zeros([3, 3, 2, 2], (Kind::Float, Device::Cpu));
        for (i, colour) in colours.iter().enumerate() {
            for (c, value) in colour.iter().enumerate() {
                let _ = images.get(i as i64).get(c as i64).fill_(*value);
            }
        }
        let picture = grid(&images, 2);
        let tile = 64 + GAP;
        assert_eq!(picture.dimensions(), (2 * tile + GAP, 2 * tile + GAP));
        let corners = [(GAP, GAP), (GAP + tile, GAP), (GAP, GAP + tile)];
        for ((x, y), rgb) in corners.into_iter().zip([[0, 0, 255], [255, 0, 0], [0, 255, 0]]) {
            for (dx, dy) in [(0, 0), (63, 0), (0, 63), (63, 63)] {
                assert_eq!(picture.get_pixel(x + dx, y + dy).0, rgb);
            }
            assert_eq!(picture.get_pixel(x - 1, y).0, [255; 3]);
            assert_eq!(picture.get_pixel(x + 64, y).0, [255; 3]);
        }
        assert_eq!(picture.get_pixel(GAP + tile, GAP + tile).0, [255; 3]);
    }

    #[test]
    fn a_pair_shows_the_first_image_on_the_left() {
        let (a, b) = (
            Tensor::ones([1, 3, 64, 64], (Kind::Float, Device::Cpu)),
            Tensor::ones([1, 3, 64, 64], (Kind::Float, Device::Cpu)) * -1.0,
        );
        let picture = grid(&pairs(&a, &b), 1);
        assert_eq!(picture.get_pixel(GAP + 63, GAP).0, [255; 3]);
        assert_eq!(picture.get_pixel(GAP + 64, GAP).0, [0; 3]);
    }
}

//! Grids of images as PNG.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use common::files::replace_file;
use image::{Rgb, RgbImage};
use pipeline::Dataset;
use tch::{Kind, Tensor};

use super::Model;
use super::features::{Feature, Features};
use super::knn::{Distance, nearest};
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
    let (pixels, [n, h, w]) = bytes(images);
    let scale = LEAST_TILE.div_ceil(h).max(1);
    let (tile_w, tile_h) = (w * scale + GAP, h * scale + GAP);
    let rows = n.div_ceil(columns);
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

/// Values (N, H, W, 3) as bytes, and N, H, W.
fn bytes(images: &Tensor) -> (Vec<u8>, [u32; 3]) {
    let images = to_u8(images).permute([0, 2, 3, 1]).contiguous();
    let (n, h, w, _) = images.size4().expect("images are (N, 3, H, W)");
    let mut pixels = vec![0; images.numel()];
    images.copy_data_u8(&mut pixels, images.numel());
    (pixels, [n, h, w].map(|side| side as u32))
}

/// Two sets of images side by side, (N, 3, H, W) each, to (N, 3, H, 2W): the left of each tile from
/// `left`, the right from `right`.
pub fn pairs(left: &Tensor, right: &Tensor) -> Tensor {
    Tensor::cat(&[left, right], 3)
}

/// Rows of images on the way from each code of `from` to that of `to`, ends included.
///
/// # Shapes
/// `from`, `to` (R, Z) to (R · steps, 3, R_G, R_G), row by row. steps > 1.
///
/// # Source
/// Straight lines, as Brock et al. 2018.
pub fn interpolations(model: &Model, from: &Tensor, to: &Tensor, steps: i64) -> Tensor {
    let share = Tensor::arange(steps, (Kind::Float, from.device())) / (steps - 1) as f64;
    let way = (to - from).unsqueeze(1) * share.view([1, -1, 1]) + from.unsqueeze(1);
    generate(model, &way.flatten(0, 1))
}

/// A row of images for each chunk of z: from z, with that chunk alone on its way to the same chunk of
/// `to`. Chunk 0 feeds the first layer, the others a block each.
///
/// # Shapes
/// `z`, `to` (1, Z) to (chunks · steps, 3, R_G, R_G). steps > 1.
pub fn traversals(model: &Model, z: &Tensor, to: &Tensor, steps: i64) -> Tensor {
    let chunk = model.config().latent.chunk;
    let ends = (0..model.config().latent.dim / chunk).map(|i| {
        let end = z.copy();
        end.narrow(1, i * chunk, chunk).copy_(&to.narrow(1, i * chunk, chunk));
        end
    });
    let ends = Tensor::cat(&ends.collect::<Vec<_>>(), 0);
    interpolations(model, &z.expand_as(&ends), &ends, steps)
}

/// Filters of the encoder's first convolution, each scaled to [-1, 1] by its largest weight.
///
/// # Shapes
/// (filters, 3, k, k).
///
/// # Errors
/// [`Error::Config`] if the model has no encoder.
///
/// # Source
/// Paper App. A: a ten times larger rate leaves visibly cleaner ones.
pub fn filters(model: &Model) -> Result<Tensor> {
    let root = model.encoder_and_params().and_then(|(_, params)| {
        let mut all = params.parameters();
        all.find(|(name, _)| *name == "trunk.root.weight").map(|(_, weight)| weight.shallow_clone())
    });
    let problem = "this model has no encoder (loss.sxz and loss.sz are off)";
    let root = root.ok_or_else(|| Error::Config { problems: vec![problem.into()] })?;
    Ok(root.detach() / root.detach().abs().amax([1i64, 2, 3].as_slice(), true).clamp_min(1e-12))
}

/// Images of a split, each followed by the `k` training images nearest to it by a feature, row by row.
///
/// # Shapes
/// (count · (k + 1), 3, R_G, R_G).
///
/// # Errors
/// [`Error::Data`]; [`Error::Config`] if the model lacks the feature.
///
/// # Source
/// Paper, App. C.
pub fn neighbours(
    model: &Model,
    train: &Arc<Dataset>,
    split: &Arc<Dataset>,
    (feature, distance): (Feature, Distance),
    (count, k): (i64, i64),
) -> Result<Tensor> {
    let crop = model.config().eval.mode;
    let (mut queries, mut shown) = (vec![], vec![]);
    for batch in model.images(split, crop, count)? {
        let images = batch?;
        queries.push(Features::of_images(model, &images, &[feature])?.get(feature).shallow_clone());
        shown.push(images.small);
    }
    let (queries, shown) = (Tensor::cat(&queries, 0), Tensor::cat(&shown, 0));
    let bank = Features::in_order(model, train, feature)?;
    let found = nearest(bank.get(feature), None, &queries, distance, k);
    let rows = Vec::<i64>::try_from(found.rows.reshape([-1]))?;
    // The pictures of the neighbours, in a second pass over the split: features are small, images not.
    let mut pictures = BTreeMap::new();
    let mut first = 0;
    for batch in model.in_order(train)? {
        let images = batch?.0;
        for row in rows.iter().filter(|row| (first..first + images.len()).contains(row)) {
            pictures.insert(*row, images.small.narrow(0, row - first, 1).copy());
        }
        first += images.len();
    }
    let mut all = vec![];
    for (i, rows) in rows.chunks(found.rows.size()[1] as usize).enumerate() {
        all.push(shown.narrow(0, i as i64, 1));
        all.extend(rows.iter().map(|row| pictures[row].shallow_clone()));
    }
    Ok(Tensor::cat(&all, 0))
}

/// Images generated a few at a time, whatever their number.
pub fn generate(model: &Model, z: &Tensor) -> Tensor {
    let parts: Vec<_> = z.split(64, 0).iter().map(|z| model.generate(z)).collect();
    Tensor::cat(&parts, 0)
}

/// Writes a PNG, whole or not at all.
///
/// # Errors
/// [`Error::Picture`] or [`Error::Io`].
pub fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    let mut png = Cursor::new(vec![]);
    picture
        .write_to(&mut png, image::ImageFormat::Png)
        .map_err(|source| Error::Picture { path: path.to_owned(), source })?;
    replace_file(path, png.get_ref()).map_err(Error::io("write", path))
}

/// Writes images (N, 3, H, W) in [-1, 1] as PNGs of their own, named by their numbers from `first` on:
/// `000000.png`. Makes the folder.
///
/// # Errors
/// [`Error::Picture`] or [`Error::Io`].
///
/// # Panics
/// If the images are not of that shape.
pub fn save_each(images: &Tensor, first: i64, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let (pixels, [_, h, w]) = bytes(images);
    for (number, own) in (first..).zip(pixels.chunks_exact((h * w * 3) as usize)) {
        let image = RgbImage::from_raw(w, h, own.to_vec()).expect("three bytes a pixel");
        save(&image, &folder.join(format!("{number:06}.png")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::Device;

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

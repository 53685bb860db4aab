//! Contact sheets: pictures of a data folder side by side, as PNG.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use common::files::replace_file;
use pipeline::decode::Decoder;
use pipeline::index::Index;
use pipeline::{Crop, Dataset, Heap, LastBatch, Loader, LoaderConfig, Mode, View};

use crate::Error;
use crate::recode::{decoder, reason};

/// Images of a split on a grid, at most.
const MOST: usize = 64;

/// Pixels between cells.
const GAP: usize = 4;

/// Images side by side, in rows from left to right, on white.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sheet {
    columns: usize,
    cell: (usize, usize),
    width: usize,
    pixels: Vec<u8>,
}

impl Sheet {
    /// A white sheet with room for `cells` cells of `cell` pixels (width, height).
    fn new(cells: usize, columns: usize, cell: (usize, usize)) -> Self {
        let width = columns * (cell.0 + GAP) + GAP;
        let height = cells.div_ceil(columns) * (cell.1 + GAP) + GAP;
        Self { columns, cell, width, pixels: vec![255; width * height * 3] }
    }

    /// Puts a square image into a cell, `x` pixels from the cell's left edge, each of its pixels
    /// `scale` pixels wide. `image` is (side, side, 3).
    fn put(&mut self, cell: usize, x: usize, image: &[u8], side: usize, scale: usize) {
        let left = GAP + cell % self.columns * (self.cell.0 + GAP) + x;
        let top = GAP + cell / self.columns * (self.cell.1 + GAP);
        for row in 0..side * scale {
            for column in 0..side * scale {
                let from = (row / scale * side + column / scale) * 3;
                let to = ((top + row) * self.width + left + column) * 3;
                self.pixels[to..to + 3].copy_from_slice(&image[from..from + 3]);
            }
        }
    }

    /// Writes the sheet as a PNG file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let height = self.pixels.len() / 3 / self.width;
        save_png(path, &self.pixels, self.width, height)
    }
}

/// Writes RGB pixels, (height, width, 3), as a PNG file, whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn save_png(path: &Path, pixels: &[u8], width: usize, height: usize) -> Result<(), Error> {
    let (width, height) = (width as u32, height as u32);
    let kind = image::ExtendedColorType::Rgb8;
    let (mut png, format) = (Cursor::new(Vec::new()), image::ImageFormat::Png);
    image::write_buffer_with_format(&mut png, pixels, width, height, kind, format)?;
    replace_file(path, png.get_ref()).map_err(Error::open(path))
}

/// The bytes of the image `key` of the data folder `dir`.
///
/// # Errors
/// There is no such image, or its shard cannot be read.
pub fn member(dir: &Path, key: &str) -> Result<Vec<u8>, Error> {
    let index = Index::open(dir)?;
    let sample = index.find(key).ok_or_else(|| {
        let problem = format!("has no image with the key {key:?}");
        let mend = format!("a key looks like {:?}", index.key(0));
        Error::input(dir, problem, mend)
    })?;
    Ok(index.image(sample)?.into())
}

/// Decodes an image to (height, width, 3) RGB with its width and height. `name` is for the error.
///
/// # Errors
/// The image is damaged.
pub fn decode(name: &str, image: &[u8]) -> Result<(Vec<u8>, usize, usize), Error> {
    let decoded = decoder()?.decode(image).map_err(|fault| damaged(name, &fault))?;
    Ok((decoded.pixels, decoded.width, decoded.height))
}

fn damaged(name: &str, fault: &pipeline::Fault) -> Error {
    Error::input(name, reason(fault), "check the folder with `shard-imagenet verify --deep`")
}

/// Up to 64 images of each split, evenly spread over it: the central square of each.
///
/// # Errors
/// The folder is unsound.
pub fn grid(dir: &Path) -> Result<Sheet, Error> {
    const SIDE: usize = 96;
    let index = Index::open(dir)?;
    let mut chosen = Vec::new();
    for split in index.splits() {
        let (first, count) = (split.samples.start, split.samples.len());
        let shown = count.min(MOST);
        chosen.extend((0..shown).map(|at| first + at * count / shown));
    }
    let mut sheet = Sheet::new(chosen.len(), 16, (SIDE, SIDE));
    let mut decoder: Decoder = decoder()?;
    let (mut large, mut small) = ([0; SIDE * SIDE * 3], [0; SIDE * SIDE * 3]);
    for (cell, sample) in chosen.into_iter().enumerate() {
        let image = index.image(sample)?;
        decoder
            .view(&image, central_square, SIDE, (&mut large, &mut small))
            .map_err(|fault| damaged(&index.key(sample), &fault))?;
        sheet.put(cell, 0, &large, SIDE, 1);
    }
    Ok(sheet)
}

fn central_square(width: usize, height: usize) -> View {
    let side = width.min(height);
    let (x, y) = ((width - side) / 2, (height - side) / 2);
    View::of(Crop { x, y, width: side, height: side })
}

/// The first `count` pairs of views that training would see of a split: the encoder's at `side`
/// pixels, and the generator's at half of it beside, drawn as large.
///
/// # Errors
/// The split is not there or is unsound.
pub fn views(dir: &Path, split: &str, count: usize, side: usize) -> Result<Sheet, Error> {
    let data = Arc::new(Dataset::open(dir, split)?);
    let count = count.min(data.len());
    let config = LoaderConfig {
        batch: count,
        large: side,
        small: Some(side / 2),
        mode: if side < 64 { Mode::Small } else { Mode::Resnet },
        last: LastBatch::Keep,
        epochs: Some(1),
        depth: 1,
        ..LoaderConfig::default()
    };
    let mut loader = Loader::start(data, config, pipeline::Cursor::default(), Arc::new(Heap))?;
    let mut sheet = Sheet::new(count, 4, (2 * side + 2, side));
    if let Some(batch) = loader.next() {
        let batch = batch?;
        let small = side / 2;
        for row in 0..batch.rows() {
            let at = |pixels: &[u8], side: usize| {
                pixels[row * side * side * 3..][..side * side * 3].to_vec()
            };
            sheet.put(row, 0, &at(batch.large(), side), side, 1);
            sheet.put(row, side + 2, &at(batch.small(), small), small, 2);
        }
    }
    Ok(sheet)
}

//! Features for other programs: a NumPy file of rows, a JSON line for each, and what they are of.
//!
//! `NAME.npy` holds (N, D) in single precision, `NAME.jsonl` a key (or a path) and a label for each row,
//! `NAME.json` the feature, the model and the crop.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pipeline::Dataset;
use pipeline::decode::{DecodeOptions, Decoder};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::features::{Feature, Features};
use super::{Model, Subject, loader_config};
use crate::device::Images;
use crate::error::{Error, Result};

/// Files embedded at a time.
const BATCH: usize = 64;

/// Features of images, a row each, and where each comes from.
#[derive(Debug)]
pub struct Embedding {
    /// What the rows are.
    pub about: About,
    /// One for each row.
    pub items: Vec<Item>,
    /// (N, D), single precision, on the CPU.
    pub rows: Tensor,
}

/// What an embedding is of: `NAME.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Which feature.
    pub feature: String,
    /// By which model.
    pub model: Subject,
    /// How images were cropped.
    pub crop: pipeline::Mode,
    /// N.
    pub images: i64,
    /// D.
    pub width: i64,
}

/// One image of an embedding: a line of `NAME.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Its key in the split, or its path.
    pub key: String,
    /// Its class, −1 for none.
    pub label: i64,
}

impl Embedding {
    /// Of a split, in the order of its shards, seen in `eval.mode`.
    ///
    /// # Errors
    /// [`Error::Data`]; [`Error::Config`] if the model lacks the feature.
    pub fn of_split(model: &Model, data: &Arc<Dataset>, feature: Feature) -> Result<Self> {
        let features = Features::in_order(model, data, feature)?;
        let item = |(row, label): (u64, &i64)| Item { key: data.key(row), label: *label };
        let items = (0..).zip(&features.labels).map(item).collect();
        Ok(Self::new(model, feature, items, features.get(feature)))
    }

    /// Of image files (JPEG or PNG), seen in `eval.mode`.
    ///
    /// # Errors
    /// [`Error::Image`] naming the first file that cannot be read; [`Error::Config`] if the model lacks
    /// the feature.
    pub fn of_files(model: &Model, files: &[PathBuf], feature: Feature) -> Result<Self> {
        let mut rows = vec![];
        for files in files.chunks(BATCH) {
            let images = read_images(model, files)?;
            let features = Features::of_images(model, &images, &[feature])?;
            rows.push(features.get(feature).shallow_clone());
        }
        let item = |file: &PathBuf| Item { key: file.to_string_lossy().into_owned(), label: -1 };
        let items = files.iter().map(item).collect();
        Ok(Self::new(model, feature, items, &Tensor::cat(&rows, 0)))
    }

    fn new(model: &Model, feature: Feature, items: Vec<Item>, rows: &Tensor) -> Self {
        let rows = rows.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let about = About {
            feature: feature.to_string(),
            model: model.subject().clone(),
            crop: model.config().eval.mode,
            images: rows.size()[0],
            width: rows.size()[1],
        };
        Self { about, items, rows }
    }

    /// Writes `NAME.npy`, `NAME.jsonl` and `NAME.json`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &Path) -> Result<()> {
        let mut bytes = header(self.about.images, self.about.width);
        let start = bytes.len();
        bytes.resize(start + self.rows.numel() * 4, 0);
        self.rows.f_copy_data_u8(&mut bytes[start..], self.rows.numel())?;
        let lines: String = self.items.iter().map(|item| json(item) + "\n").collect();
        let parts = [("npy", bytes), ("jsonl", lines.into()), ("json", json(&self.about).into())];
        for (extension, bytes) in parts {
            let path = beside(name, extension);
            let write = |path: &Path| fs::File::create(path).and_then(|mut f| f.write_all(&bytes));
            write(&path).map_err(Error::io("write", &path))?;
        }
        Ok(())
    }

    /// Reads what [`Embedding::write`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] where the three files do not fit together.
    pub fn read(name: &Path) -> Result<Self> {
        let read = |extension| {
            let path = beside(name, extension);
            fs::read(&path).map_err(Error::io("read", path))
        };
        let bad = |extension, reason: String| Error::Config {
            problems: vec![format!("{}: {reason}", beside(name, extension).display())],
        };
        let about: About =
            serde_json::from_slice(&read("json")?).map_err(|e| bad("json", e.to_string()))?;
        let lines = String::from_utf8(read("jsonl")?).map_err(|e| bad("jsonl", e.to_string()))?;
        let items: Vec<Item> = lines
            .lines()
            .map(|line| serde_json::from_str(line).map_err(|e| bad("jsonl", e.to_string())))
            .collect::<Result<_>>()?;
        let bytes = read("npy")?;
        let start = header(about.images, about.width);
        let expected = about.images.saturating_mul(about.width).saturating_mul(4);
        let data = bytes.strip_prefix(start.as_slice()).unwrap_or_default();
        if data.len() as i64 != expected || items.len() as i64 != about.images {
            let reason = format!(
                "not the {} rows of {} that {}.json speaks of",
                about.images,
                about.width,
                name.display()
            );
            return Err(bad("npy", reason));
        }
        let rows = Tensor::f_from_data_size(data, &[about.images, about.width], Kind::Float)?;
        Ok(Self { about, items, rows })
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain values")
}

fn beside(name: &Path, extension: &str) -> PathBuf {
    let mut path = name.as_os_str().to_owned();
    path.push(".");
    path.push(extension);
    path.into()
}

/// Head of a NumPy file, format 1.0, padded to 64 bytes.
fn header(rows: i64, width: i64) -> Vec<u8> {
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(format!("{text:<0$}\n", length - 1).bytes());
    bytes
}

/// Image files as a batch, seen in `eval.mode`.
///
/// # Errors
/// [`Error::Image`] naming the first file that cannot be read.
pub fn read_images(model: &Model, files: &[PathBuf]) -> Result<Images> {
    let mut config = loader_config(model.config());
    config.mode = model.config().eval.mode;
    let options = DecodeOptions { filter: config.filter, ..DecodeOptions::default() };
    let bad = |path: &Path, reason: String| Error::Image { path: path.to_owned(), reason };
    let first = files.first().map_or(Path::new(""), PathBuf::as_path);
    let mut decoder = Decoder::new(options).map_err(|e| bad(first, e.to_string()))?;
    let (large, small) = (config.large * config.large * 3, config.small * config.small * 3);
    let mut pixels = (vec![0; large * files.len()], vec![0; small * files.len()]);
    let rows = pixels.0.chunks_mut(large).zip(pixels.1.chunks_mut(small));
    for (file, rows) in files.iter().zip(rows) {
        let bytes = fs::read(file).map_err(|e| bad(file, e.to_string()))?;
        let view = |w, h| config.view(0, 0, (w, h));
        decoder.view(&bytes, view, config.large, rows).map_err(|e| bad(file, e.to_string()))?;
    }
    let sides = (config.large as i64, config.small as i64);
    Ok(Images::of_pixels(&pixels.0, &pixels.1, sides, model.device()))
}

/// Every JPEG and PNG under a folder, in the order of their paths.
///
/// # Errors
/// [`Error::Io`]; [`Error::Config`] if there is none.
pub fn image_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut folders, mut files) = (vec![folder.to_owned()], vec![]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let entry = entry.map_err(Error::io("read", &folder))?;
            let (path, kind) =
                (entry.path(), entry.file_type().map_err(Error::io("read", &folder))?);
            let extension = path.extension().map(|e| e.to_ascii_lowercase());
            let known = extension.is_some_and(|e| ["jpg", "jpeg", "png"].iter().any(|k| e == *k));
            if kind.is_dir() {
                folders.push(path);
            } else if known {
                files.push(path);
            }
        }
    }
    files.sort();
    if files.is_empty() {
        let problem = format!("no .jpg, .jpeg or .png in {}", folder.display());
        return Err(Error::Config { problems: vec![problem] });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Variant;

    #[test]
    fn a_numpy_header_is_numpy_s() {
        let bytes = header(2, 3);
        assert_eq!(bytes.len(), 128);
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert!(
            bytes[10..]
                .starts_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }  ")
        );
        assert_eq!(bytes[127], b'\n');
    }

    #[test]
    fn what_was_written_is_read_and_what_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("all.val");
        let weights = Variant::Average;
        let model =
            Subject { step: 3, weights, checkpoint: None, standing_images: 8, truncation: None };
        let (feature, crop) = ("mu".into(), pipeline::Mode::Eval);
        let about = About { feature, model, crop, images: 2, width: 2 };
        let item = |key: &str| Item { key: key.into(), label: -1 };
        let rows = Tensor::from_slice(&[1f32, 2., 3., 4.]).view([2, 2]);
        let items = vec![item("a \"quoted\" key"), item("b")];
        let written = Embedding { about, items, rows };
        written.write(&name).unwrap();
        let read = Embedding::read(&name).unwrap();
        assert_eq!(
            (&read.about, &read.items, &read.rows),
            (&written.about, &written.items, &written.rows)
        );
        let npy = beside(&name, "npy");
        let bytes = fs::read(&npy).unwrap();
        assert_eq!(bytes[128..132], 1f32.to_le_bytes());
        fs::write(&npy, &bytes[..bytes.len() - 1]).unwrap();
        assert!(Embedding::read(&name).unwrap_err().to_string().contains("all.val.npy"));
    }
}

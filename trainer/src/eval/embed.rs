//! Features for other programs: a NumPy file of rows, a JSON line for each, and what they are of.
//!
//! `NAME.npy` holds (N, D) in single precision, `NAME.jsonl` a key (or a path) and a label for each row,
//! `NAME.json` the feature, the model and the crop.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::files::replace_file;
use pipeline::container::Skipped;
use pipeline::decode::{DecodeOptions, Decoder};
use pipeline::{Dataset, LoaderConfig};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::features::{Feature, Features};
use super::{Model, Subject, loader_config};
use crate::device;
use crate::error::{Error, Result};

/// Files embedded at a time.
const BATCH: usize = 64;

/// What the list of files that cannot be read ends with.
pub const UNREAD: &str = "unread.jsonl";

/// Features of images, a row each, and where each comes from.
#[derive(Debug)]
pub struct Embedding {
    /// What the rows are.
    pub about: Description,
    /// One for each row.
    pub items: Vec<Item>,
    /// (N, D), single precision, on the CPU.
    pub rows: Tensor,
}

/// What an embedding is of: `NAME.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
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

/// An image file that cannot be read: a line of `NAME.unread.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unread {
    /// Its path.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

/// An error once more than a share `most` of the files cannot be read.
fn check_unread(unread: &[Unread], files: usize, most: f64) -> Result<()> {
    let Some(first) = unread.first() else { return Ok(()) };
    if unread.len() as f64 <= most * files as f64 {
        return Ok(());
    }
    let mut reason = first.reason.clone();
    if files > 1 {
        reason += &format!("; {} of {files} files cannot be read", unread.len());
    }
    Err(Error::Image { path: first.path.clone().into(), reason })
}

/// A path as text; bytes that are not UTF-8 become `\xe9`.
fn shown(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text += chunk.valid();
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
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

    /// Of image files (JPEG or PNG), seen in `eval.mode`, and the files that cannot be read. These have
    /// no row; up to a share of `max_unread` of all files they do no harm.
    ///
    /// # Errors
    /// [`Error::Image`] naming the first file that cannot be read, if there are too many such or no
    /// others; [`Error::Config`] if the model lacks the feature.
    pub fn of_files(
        model: &Model,
        files: &[PathBuf],
        feature: Feature,
        max_unread: f64,
    ) -> Result<(Self, Vec<Unread>)> {
        let config =
            LoaderConfig { mode: model.config().eval.mode, ..loader_config(model.config()) };
        let sides = (config.large as i64, model.config().g.res);
        let (mut rows, mut items, mut unread) = (vec![], vec![], vec![]);
        for some in files.chunks(BATCH) {
            let ((large, small), read) = read_pixels(&config, some, &mut unread)?;
            check_unread(&unread, files.len(), max_unread)?;
            if read.is_empty() {
                continue;
            }
            let images = device::of_pixels(&large, &small, sides, model.device());
            let features = Features::of_images(model, &images, &[feature])?;
            rows.push(features.get(feature).shallow_clone());
            items.extend(read.into_iter().map(|file| Item { key: shown(file), label: -1 }));
        }
        if rows.is_empty() {
            check_unread(&unread, files.len(), 0.0)?;
        }
        Ok((Self::new(model, feature, items, &Tensor::cat(&rows, 0)), unread))
    }

    fn new(model: &Model, feature: Feature, items: Vec<Item>, rows: &Tensor) -> Self {
        let rows = rows.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let about = Description {
            feature: feature.to_string(),
            model: model.subject().clone(),
            crop: model.config().eval.mode,
            images: rows.size()[0],
            width: rows.size()[1],
        };
        Self { about, items, rows }
    }

    /// Writes `NAME.npy`, `NAME.jsonl` and `NAME.json`, and `NAME.unread.jsonl` if files could not be
    /// read.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &Path, unread: &[Unread]) -> Result<()> {
        let mut bytes = header(self.about.images, self.about.width);
        let start = bytes.len();
        bytes.resize(start + self.rows.numel() * 4, 0);
        self.rows.f_copy_data_u8(&mut bytes[start..], self.rows.numel())?;
        let lines: String = self.items.iter().map(|item| json(item) + "\n").collect();
        let mut parts =
            vec![("npy", bytes), ("jsonl", lines.into()), ("json", json(&self.about).into())];
        let unread: String = unread.iter().map(|file| json(file) + "\n").collect();
        let list = beside(name, UNREAD);
        match unread.is_empty() {
            // One of an earlier call speaks of other rows.
            true if list.exists() => fs::remove_file(&list).map_err(Error::io("remove", &list))?,
            true => {}
            false => parts.push((UNREAD, unread.into())),
        }
        for (extension, bytes) in parts {
            let path = beside(name, extension);
            replace_file(&path, &bytes).map_err(Error::io("write", &path))?;
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
        let about: Description =
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

/// Both views' rows of the files that can be read, and which these are.
#[allow(clippy::type_complexity, reason = "two buffers of rows, and the files")]
fn read_pixels<'a>(
    config: &LoaderConfig,
    files: &'a [PathBuf],
    unread: &mut Vec<Unread>,
) -> Result<((Vec<u8>, Vec<u8>), Vec<&'a Path>)> {
    let options = DecodeOptions { filter: config.filter, ..DecodeOptions::default() };
    let first = || files.first().cloned().unwrap_or_default();
    let failed = |e: pipeline::Fault| Error::Image { path: first(), reason: e.to_string() };
    let mut decoder = Decoder::new(options).map_err(failed)?;
    let bytes = |side: usize| side * side * 3;
    let (large, small) = (bytes(config.large), config.small.map_or(0, bytes));
    let mut pixels = (vec![0; large * files.len()], vec![0; small * files.len()]);
    let mut read: Vec<&Path> = vec![];
    for file in files {
        let at = read.len();
        let rows = (&mut pixels.0[at * large..][..large], &mut pixels.1[at * small..][..small]);
        let view = |w, h| config.view(0, 0, (w, h));
        let done = fs::read(file).map_err(|e| e.to_string()).and_then(|bytes| {
            decoder.view(&bytes, view, config.large, rows).map_err(|e| e.to_string())
        });
        match done {
            Ok(()) => read.push(file),
            Err(reason) => unread.push(Unread { path: shown(file), reason }),
        }
    }
    pixels.0.truncate(large * read.len());
    pixels.1.truncate(small * read.len());
    Ok((pixels, read))
}

/// Every JPEG and PNG under a folder, in the order of their paths, and what was passed over there.
///
/// # Errors
/// [`Error::Io`]; [`Error::Config`] if there is none.
pub fn image_files(folder: &Path) -> Result<(Vec<PathBuf>, Skipped)> {
    let (mut folders, mut files) = (vec![folder.to_owned()], vec![]);
    let mut skipped = Skipped::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let entry = entry.map_err(Error::io("read", &folder))?;
            let (path, kind) =
                (entry.path(), entry.file_type().map_err(Error::io("read", &folder))?);
            let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
            let hidden = entry.file_name().as_bytes().starts_with(b".");
            match extension {
                _ if kind.is_dir() => folders.push(path),
                _ if hidden => skipped.add("hidden files (.*)", || shown(&path)),
                Some(e) if ["jpg", "jpeg", "png"].contains(&&*e) => files.push(path),
                Some(e) => skipped.add(format!("files .{e}"), || shown(&path)),
                None => skipped.add("files without an extension", || shown(&path)),
            }
        }
    }
    files.sort();
    if files.is_empty() {
        let passed = skipped.to_string().replace('\n', ", ");
        let passed = if passed.is_empty() { passed } else { format!(" (passed over: {passed})") };
        let problem = format!("no .jpg, .jpeg or .png in {}{passed}", folder.display());
        return Err(Error::Config { problems: vec![problem] });
    }
    Ok((files, skipped))
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
        let about = Description { feature, model, crop, images: 2, width: 2 };
        let item = |key: &str| Item { key: key.into(), label: -1 };
        let rows = Tensor::from_slice(&[1f32, 2., 3., 4.]).view([2, 2]);
        let items = vec![item("a \"quoted\" key"), item("b")];
        let written = Embedding { about, items, rows };
        let bad = Unread { path: "c.jpg".into(), reason: "is cut short".into() };
        written.write(&name, std::slice::from_ref(&bad)).unwrap();
        let list = beside(&name, UNREAD);
        assert_eq!(fs::read_to_string(&list).unwrap(), json(&bad) + "\n");
        written.write(&name, &[]).unwrap();
        assert!(!list.exists(), "a list of an earlier call");
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

    #[test]
    fn files_that_cannot_be_read_are_listed_and_the_others_keep_their_rows() {
        let folder = tempfile::tempdir().unwrap();
        let picture = |name: &str, level: u8| {
            let path = folder.path().join(name);
            image::RgbImage::from_pixel(9, 9, image::Rgb([level; 3])).save(&path).unwrap();
            path
        };
        let mut files = vec![picture("a.png", 10)];
        for name in ["b.jpg", "gone.jpg"] {
            files.push(folder.path().join(name));
        }
        fs::write(&files[1], "no image").unwrap();
        files.push(picture("d.png", 200));
        let config = LoaderConfig { large: 8, small: Some(4), ..LoaderConfig::default() };
        let mut unread = vec![];
        let (pixels, read) = read_pixels(&config, &files, &mut unread).unwrap();
        assert_eq!(read, [&files[0], &files[3]]);
        assert_eq!((pixels.0.len(), pixels.1.len()), (2 * 192, 2 * 48));
        assert!(
            pixels.0[..192].iter().all(|p| *p == 10) && pixels.0[192..].iter().all(|p| *p == 200)
        );
        let paths: Vec<&str> = unread.iter().map(|file| file.path.as_str()).collect();
        assert!(paths[0].ends_with("b.jpg") && paths[1].ends_with("gone.jpg"), "{paths:?}");
        assert!(unread[1].reason.contains("No such file"), "{unread:?}");

        assert!(check_unread(&unread, 4, 0.5).is_ok());
        let error = check_unread(&unread, 4, 0.4).unwrap_err().to_string();
        assert!(
            error.contains("b.jpg") && error.ends_with("2 of 4 files cannot be read"),
            "{error}"
        );
        fs::write(folder.path().join("e.webp"), "").unwrap();
        fs::write(folder.path().join("._a.png"), "").unwrap();
        let (found, skipped) = image_files(folder.path()).unwrap();
        assert_eq!(found, [files[0].clone(), files[1].clone(), files[3].clone()]);
        assert_eq!(skipped.total(), 2, "{skipped}");
    }
}

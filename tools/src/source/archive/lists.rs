//! The lists beside ImageNet's archives: labels of the validation images, and classes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::ImageNetLists;
use crate::Error;
use crate::catalog::stem;
use crate::source::devkit::{self, Synset};

/// Fills in what was not named from the usual names, where `input` is a folder.
pub(super) fn usual_names(
    input: &Path,
    lists: &ImageNetLists,
) -> Result<(PathBuf, ImageNetLists), Error> {
    if !input.is_dir() {
        return Ok((input.to_path_buf(), lists.clone()));
    }
    let find =
        |names: &[&str]| names.iter().map(|name| input.join(name)).find(|path| path.is_file());
    let train = find(&["ILSVRC2012_img_train.tar"]).ok_or_else(|| {
        let mend = "name the training archive, or use --layout imagefolder for an unpacked tree";
        Error::input(input, "holds no ILSVRC2012_img_train.tar", mend)
    })?;
    let or = |given: &Option<PathBuf>, names: &[&str]| given.clone().or_else(|| find(names));
    let found = ImageNetLists {
        val: or(&lists.val, &["ILSVRC2012_img_val.tar"]),
        val_labels: or(
            &lists.val_labels,
            &[
                "imagenet_2012_validation_synset_labels.txt",
                "LOC_val_solution.csv",
                "ILSVRC2012_validation_ground_truth.txt",
            ],
        ),
        ids: or(&lists.ids, &["meta.mat"]),
        synsets: or(&lists.synsets, &["synset_words.txt", "LOC_synset_mapping.txt", "synsets.txt"]),
    };
    Ok((train, found))
}

/// The label of a validation image.
pub(super) enum ValLabel {
    /// Of the next image by name.
    Next(String),
    /// Of the image of this name.
    Of(String, String),
}

/// A line is a synset; or an image and a synset; or a number, which counts the lines of `ids` from 1. Comma or white space
/// separate; what else a line says, such as Kaggle's boxes, is not read.
pub(super) fn read_val_labels(path: &Path, ids: &[Synset]) -> Result<Vec<ValLabel>, Error> {
    let wrong = |line: usize, problem: &str, mend: &str| {
        Err(Error::input(path, format!("line {}: {problem}", line + 1), mend))
    };
    let mut labels = Vec::new();
    for (number, line) in read_lines(path)?.iter().enumerate() {
        let mut words = line.split([',', ' ', '\t']).filter(|word| !word.is_empty());
        match (words.next(), words.next()) {
            (Some("ImageId"), _) | (None, _) => {}
            (Some(label), None) if label.bytes().all(|byte| byte.is_ascii_digit()) => {
                let at = label.parse::<usize>().unwrap_or(0);
                let Some((synset, _)) = at.checked_sub(1).and_then(|at| ids.get(at)) else {
                    let problem = format!("no synset has the number {label}");
                    let mend = "give --ids, the devkit's meta.mat";
                    return wrong(number, &problem, mend);
                };
                labels.push(ValLabel::Next(synset.clone()));
            }
            (Some(synset), None) => labels.push(ValLabel::Next(synset.to_owned())),
            (_, Some(synset)) if synset.bytes().all(|byte| byte.is_ascii_digit()) => {
                let mend = "give synsets: it cannot be told from where the numbers count";
                return wrong(number, "gives a number to a named image", mend);
            }
            (Some(image), Some(synset)) => {
                labels.push(ValLabel::Of(stem(image).to_owned(), synset.to_owned()));
            }
        }
    }
    if labels.iter().all(|label| matches!(label, ValLabel::Of(..))) {
        labels.sort_by(|a, b| match (a, b) {
            (ValLabel::Of(a, _), ValLabel::Of(b, _)) => a.cmp(b),
            _ => std::cmp::Ordering::Equal,
        });
    }
    Ok(labels)
}

/// The synsets by number: the devkit's own file, or a list of them.
pub(super) fn read_ids(path: &Path) -> Result<Vec<Synset>, Error> {
    let bytes = std::fs::read(path).map_err(Error::open(path))?;
    match bytes.starts_with(devkit::MAGIC) {
        true => devkit::read(path, &bytes),
        false => read_synsets(path),
    }
}

/// A synset a line, with words after it or not.
pub(in crate::source) fn read_synsets(path: &Path) -> Result<Vec<Synset>, Error> {
    let mut seen = BTreeSet::new();
    let mut synsets = Vec::new();
    for (number, line) in read_lines(path)?.iter().enumerate() {
        let (synset, words) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        if synset.is_empty() {
            continue;
        }
        if !seen.insert(synset.to_owned()) {
            let problem = format!("line {}: {synset} is there twice", number + 1);
            return Err(Error::input(path, problem, "a synset is one class"));
        }
        let words = Some(words.trim().to_owned()).filter(|words| !words.is_empty());
        synsets.push((synset.to_owned(), words));
    }
    Ok(synsets)
}

fn read_lines(path: &Path) -> Result<Vec<String>, Error> {
    let bytes = std::fs::read(path).map_err(Error::open(path))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::input(path, "is not UTF-8 text", "give a list as text"))?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

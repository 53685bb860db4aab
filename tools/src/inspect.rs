//! What is in a data folder: counts, sizes and resolutions, from the index alone.

use std::collections::BTreeMap;
use std::path::Path;

use pipeline::container::Skipped;
use pipeline::index::{Classes, Format, Index, Manifest};
use pipeline::seek::SeekFile;
use serde::Serialize;

use crate::Error;

/// A data folder in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Where the images came from.
    pub source: String,
    /// The program that wrote the folder, and its version.
    pub tool: String,
    /// The options that shaped it.
    pub options: BTreeMap<String, serde_json::Value>,
    /// Classes.
    pub classes: usize,
    /// Files of the source that are not here; `rejected.jsonl` says why.
    pub rejected: u64,
    /// Images that were out of the ordinary; `odd.jsonl` lists them.
    pub odd: u64,
    /// What of the source was passed over, by kind.
    pub skipped: Skipped,
    /// Images that have seek points.
    pub seek_points: usize,
    /// Each split, in the order of its shards.
    pub splits: Vec<SplitSummary>,
}

/// One split in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct SplitSummary {
    /// Its name.
    pub name: String,
    /// Images.
    pub images: usize,
    /// Shards.
    pub shards: usize,
    /// Bytes of the shards.
    pub shard_bytes: u64,
    /// Bytes of image data that an epoch reads.
    pub epoch_bytes: u64,
    /// Images without a label.
    pub unlabelled: usize,
    /// Images that are PNG.
    pub png: usize,
    /// Images per class, by number.
    pub per_class: Vec<usize>,
    /// Images by file size.
    pub file_size: Vec<Bin>,
    /// Images by their shorter side.
    pub short_side: Vec<Bin>,
    /// Smallest width and height, and largest; 0 when unknown.
    pub smallest: (u16, u16),
    /// The image with most pixels.
    pub largest: (u16, u16),
}

/// One bar of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bin {
    /// Counts values from here on...
    pub from: u64,
    /// ...up to but not including this; `None` for no end.
    pub below: Option<u64>,
    /// How many there are.
    pub images: usize,
}

/// Bounds of the file size bins, bytes.
const SIZES: [u64; 9] =
    [0, 4 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];

/// Bounds of the bins of the shorter side, pixels.
const SIDES: [u64; 9] = [0, 32, 64, 128, 256, 320, 384, 512, 1024];

/// Reads the index, manifest and classes of `dir`; a folder with shards of another program needs but
/// the shards.
///
/// # Errors
/// One of them is missing or damaged.
pub fn inspect(dir: &Path) -> Result<Summary, Error> {
    let index = Index::open(dir)?;
    let seek_points = SeekFile::open(&index).map_or(0, |file| file.pictures());
    let summary = if index.is_scanned() {
        let labels = (0..index.len()).filter_map(|sample| index.record(sample).label);
        let classes = match index.classes()? {
            Some(classes) => classes.0.len(),
            None => labels.max().map_or(0, |most| most as usize + 1),
        };
        Summary {
            source: "WebDataset shards, read in place".to_owned(),
            tool: "another program".to_owned(),
            options: BTreeMap::new(),
            classes,
            rejected: 0,
            odd: 0,
            skipped: index.scan().map(|scan| scan.skipped.clone()).unwrap_or_default(),
            seek_points,
            splits: Vec::new(),
        }
    } else {
        let manifest = Manifest::load(dir)?;
        let counted = |name: &str| manifest.options.get(name).and_then(|n| n.as_u64()).unwrap_or(0);
        let skipped = manifest.options.get("skipped").cloned();
        Summary {
            rejected: counted("rejected_files"),
            odd: counted("odd_images"),
            skipped: skipped.and_then(|s| serde_json::from_value(s).ok()).unwrap_or_default(),
            source: manifest.source,
            tool: format!("{} {}", manifest.tool, manifest.version),
            options: manifest.options,
            classes: Classes::load(dir)?.0.len(),
            seek_points,
            splits: Vec::new(),
        }
    };
    let splits = 0..index.splits().len();
    let splits = splits.map(|split| summarise(&index, split, summary.classes)).collect();
    Ok(Summary { splits, ..summary })
}

fn summarise(index: &Index, split: usize, classes: usize) -> SplitSummary {
    let record = &index.splits()[split];
    let mut summary = SplitSummary {
        name: record.name.clone(),
        images: record.samples.len(),
        shards: record.shards.len(),
        shard_bytes: index.shards()[record.shards.clone()].iter().map(|shard| shard.bytes).sum(),
        epoch_bytes: 0,
        unlabelled: 0,
        png: 0,
        per_class: vec![0; classes],
        file_size: bins(&SIZES),
        short_side: bins(&SIDES),
        smallest: (0, 0),
        largest: (0, 0),
    };
    let area = |(width, height): (u16, u16)| u32::from(width) * u32::from(height);
    for sample in record.samples.clone() {
        let sample = index.record(sample);
        let size = (sample.width, sample.height);
        summary.epoch_bytes += u64::from(sample.entry.length);
        summary.png += usize::from(sample.format == Format::Png);
        match sample.label.and_then(|label| summary.per_class.get_mut(label as usize)) {
            Some(count) => *count += 1,
            None => summary.unlabelled += 1,
        }
        count(&mut summary.file_size, sample.entry.length.into());
        // Of shards that another program wrote the sizes are not known.
        if size != (0, 0) {
            count(&mut summary.short_side, size.0.min(size.1).into());
        }
        if area(summary.smallest) == 0 || area(size) < area(summary.smallest) {
            summary.smallest = size;
        }
        if area(size) > area(summary.largest) {
            summary.largest = size;
        }
    }
    summary
}

fn bins(bounds: &[u64]) -> Vec<Bin> {
    let below = bounds.iter().skip(1).copied().map(Some).chain([None]);
    bounds.iter().zip(below).map(|(&from, below)| Bin { from, below, images: 0 }).collect()
}

fn count(bins: &mut [Bin], value: u64) {
    let bin = bins.iter_mut().rev().find(|bin| value >= bin.from);
    bin.expect("the first bin starts at 0").images += 1;
}

impl Summary {
    /// The summary as tables for people.
    pub fn table(&self) -> String {
        let Self { source, tool, classes, rejected, odd, seek_points, .. } = self;
        let mut text = format!(
            "{source}, by {tool}\n{classes} classes, {rejected} files rejected, {odd} odd images\n"
        );
        for (kind, count, example) in self.skipped.iter() {
            text += &format!("passed over: {count} {kind}, such as {example}\n");
        }
        if *seek_points > 0 {
            text += &format!("{seek_points} images have seek points\n");
        }
        text.push('\n');
        let mut table = plain_table();
        table.set_header([
            "split",
            "images",
            "shards",
            "an epoch reads",
            "per class",
            "smallest",
            "largest",
        ]);
        for split in &self.splits {
            let (least, most) = (
                split.per_class.iter().min().unwrap_or(&0),
                split.per_class.iter().max().unwrap_or(&0),
            );
            let per_class = match (split.images == split.unlabelled, least == most) {
                (true, _) => "no labels".to_owned(),
                (_, true) => least.to_string(),
                _ => format!("{least} to {most}"),
            };
            let size = |size| match size {
                (0, 0) => "unknown".to_owned(),
                (width, height) => format!("{width}x{height}"),
            };
            table.add_row([
                split.name.clone(),
                split.images.to_string(),
                split.shards.to_string(),
                indicatif::HumanBytes(split.epoch_bytes).to_string(),
                per_class,
                size(split.smallest),
                size(split.largest),
            ]);
        }
        text += &format!("{table}\n\n");
        let kib = |bytes: u64| format!("{} KiB", bytes >> 10);
        text += &self.histogram("file size", |split| &split.file_size, kib);
        text += &self.histogram("shorter side", |split| &split.short_side, |px| format!("{px} px"));
        text
    }

    /// A table of one histogram, a column per split; bins that are empty everywhere are left out.
    fn histogram(
        &self,
        title: &str,
        bins: impl Fn(&SplitSummary) -> &[Bin],
        show: impl Fn(u64) -> String,
    ) -> String {
        let mut table = plain_table();
        let names = self.splits.iter().map(|split| split.name.clone());
        table.set_header([title.to_owned()].into_iter().chain(names));
        let count = self.splits.first().map_or(0, |split| bins(split).len());
        for at in 0..count {
            let counts: Vec<Bin> = self.splits.iter().map(|split| bins(split)[at]).collect();
            if counts.iter().all(|bin| bin.images == 0) {
                continue;
            }
            let range = match counts[0].below {
                Some(below) => format!("{} to {}", show(counts[0].from), show(below)),
                None => format!("{} and more", show(counts[0].from)),
            };
            let cells = counts.iter().map(|bin| bin.images.to_string());
            table.add_row([range].into_iter().chain(cells));
        }
        format!("{table}\n\n")
    }
}

fn plain_table() -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_into_exactly_one_bin() {
        let mut all = bins(&[0, 10, 20]);
        for value in [0, 9, 10, 19, 20, u64::MAX] {
            count(&mut all, value);
        }
        assert_eq!(all.iter().map(|bin| bin.images).collect::<Vec<_>>(), [2, 2, 2]);
        assert_eq!(all[2], Bin { from: 20, below: None, images: 2 });
    }
}

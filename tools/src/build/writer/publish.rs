//! What describes the shards, and the name of the folder.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use common::files::replace_with;
use pipeline::index::{Classes, Format, IndexWriter, Manifest};
use pipeline::shard::{Entry, Written};
use serde_json::Value;

use super::Writer;
use crate::Error;
use crate::build::{ODD_FILE, REJECTED_FILE, Report, Run};
use crate::catalog::{Item, Rejected};
use crate::journal::{Finished, Stored};
use crate::source::Stream;

impl Writer<'_> {
    /// Puts the shards into the index, by split; what was rejected, and what was odd.
    fn index(&mut self) -> Result<(IndexWriter, Vec<Rejected>, Vec<Rejected>), Error> {
        let mut index = IndexWriter::new();
        let mut rejected: Vec<Rejected> = self.turned_away().cloned().collect();
        rejected.sort_by(|a, b| a.name.cmp(&b.name));
        let mut odd = Vec::new();
        for (split, part) in std::mem::take(&mut self.parts) {
            let images: usize = part.finished.iter().map(|shard| shard.stored.len()).sum();
            if images > 0 {
                index.begin_split(split.name())?;
                self.report.images.push((split.name(), images as u64));
            }
            for shard in part.finished {
                for sample in &shard.stored {
                    let Stored { item, offset, length, width, height, png } = *sample;
                    let Item { key, label, .. } = self.item(item);
                    let format = if png { Format::Png } else { Format::Jpeg };
                    index.sample(key, Entry { offset, length }, *label, format, (width, height));
                }
                let Finished { name, bytes, xxh3, .. } = shard;
                index.end_shard(&name, Written { bytes, xxh3 })?;
                rejected.extend(shard.rejected);
                odd.extend(shard.odd);
            }
            rejected.extend(part.pending.rejected);
        }
        Ok((index, rejected, odd))
    }

    /// Of a folder that has its index. A stop is one of the build: the same command goes on from here.
    fn seek_points(&self, dir: &Path) -> Result<(), Error> {
        let Run { threads, interrupted, .. } = *self.run;
        match crate::seek::seek_points(dir, threads, interrupted) {
            Ok(_) => Ok(()),
            Err(Error::Stopped) => Err(Error::Interrupted { shards: self.report.shards }),
            Err(error) => Err(error),
        }
    }

    /// Removes the folder, and says why nothing could be stored.
    fn nothing_stored(self, rejected: Option<&Rejected>) -> Error {
        let mut why: Vec<String> =
            rejected.map(|r| format!("{}: {}", r.name, r.reason)).into_iter().collect();
        if !self.report.skipped.is_empty() {
            why.push(format!("passed over: {}", self.report.skipped).replace('\n', ", "));
        }
        let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) };
        let problem = format!("no image could be stored from {}{why}", self.plan.source);
        let output = self.run.output.to_path_buf();
        let nothing = Error::input(output, problem, "check --layout and --input");
        self.workplace.discard().map_or_else(|failed| failed, |()| nothing)
    }

    /// Writes what describes the shards, and gives the folder its name.
    pub(crate) fn publish(mut self, fingerprint: String) -> Result<Report, Error> {
        let (index, rejected, odd) = self.index()?;
        self.report.skipped = self.plan.catalog.skipped.clone();
        if let Some(stream) = &self.stream {
            self.report.skipped.merge(stream.skipped().clone());
        }
        if index.is_empty() {
            return Err(self.nothing_stored(rejected.first()));
        }
        let Self { plan, workplace, .. } = &self;
        let dir = &workplace.dir;
        let class = |(number, class): (usize, crate::catalog::Class)| pipeline::index::Class {
            class: number as u32,
            name: class.name,
            words: class.words,
        };
        let stream = self.stream.as_ref();
        let classes = stream.map_or_else(|| plan.catalog.classes.clone(), Stream::classes);
        let count = classes.len() as u64;
        Classes(classes.into_iter().enumerate().map(class).collect()).save(dir)?;
        write_lines(&dir.join(REJECTED_FILE), &rejected)?;
        write_lines(&dir.join(ODD_FILE), &odd)?;
        index.write(dir)?;
        self.seek_points(dir)?;
        let mut options = plan.options.clone();
        let coding = serde_json::to_value(&plan.coding).unwrap_or_default();
        options.extend(coding.as_object().cloned().unwrap_or_default());
        for (name, value) in [
            ("plan", Value::from(fingerprint)),
            ("shard_bytes", plan.shard_bytes.into()),
            ("skipped", serde_json::to_value(&self.report.skipped).unwrap_or_default()),
            ("rejected_files", rejected.len().into()),
            ("odd_images", odd.len().into()),
        ] {
            options.insert(name.to_owned(), value);
        }
        let manifest = Manifest {
            format: Manifest::FORMAT,
            tool: "shard-imagenet".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: plan.source.clone(),
            options,
            seed: plan.seed,
            classes: count,
            splits: index.manifest_splits(),
        };
        manifest.save(dir)?;
        self.report.rejected = rejected.len() as u64;
        self.report.first_rejected = rejected.into_iter().next();
        self.report.odd = odd.len() as u64;
        self.report.first_odd = odd.into_iter().next();
        self.workplace.publish()?;
        Ok(self.report)
    }
}

/// Writes a JSON line for each; no file when there are none.
fn write_lines(path: &Path, lines: &[Rejected]) -> Result<(), Error> {
    if lines.is_empty() {
        return Ok(());
    }
    let write = |file: &mut File| {
        let mut file = BufWriter::new(file);
        for line in lines {
            serde_json::to_writer(&mut file, line)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    };
    replace_with(path, write).map_err(Error::io(path, "write it"))
}

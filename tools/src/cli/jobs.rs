//! What each command does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use common::signals;
use pipeline::container::Choice;
use pipeline::index::Index;
use pipeline::seek::SeekReport;

use super::{
    BuildArgs, CatArgs, IndexArgs, InspectArgs, OutputArgs, SeekArgs, SynthArgs, VerifyArgs, note,
    print,
};
use crate::build::{self, MaxRejected, Plan, Report, Run};
use crate::catalog::Catalog;
use crate::order::{self, HoldOut, Order, arrange};
use crate::recode::Coding;
use crate::source::{
    FolderOptions, ImageNetLists, Input, Layout, ShardOptions, Stream, is_stream, scan,
};
use crate::synth::Synth;
use crate::verify::{self, Depth};
use crate::{Error, Existing, seek, sheet};

pub(super) fn build(args: BuildArgs) -> anyhow::Result<()> {
    let BuildArgs { layout, input, val, val_labels, synsets, ids, holdout, images, order, .. } =
        args;
    let lists = ImageNetLists { val, val_labels, synsets, ids };
    let choice = args.choice.choice();
    // Beside the output, for there is room for what is built.
    let scratch = args.output.output.parent().filter(|parent| !parent.as_os_str().is_empty());
    let scratch = Some(scratch.unwrap_or(".".as_ref()).to_path_buf());
    let shards = ShardOptions { choice: choice.clone(), split: args.split, scratch };
    let folders = FolderOptions { folders: args.folders, allow_empty: args.allow_empty };
    let source = Input { layout, path: input.clone(), lists, shards, folders };
    let hold_out = HoldOut { count: holdout, images: images.map(|images| images as usize) };
    let (catalog, stream) = open(&source, hold_out, order, args.output.seed)?;
    let name = match is_stream(&input) {
        true => "a pipe".into(),
        false => input.file_name().unwrap_or(input.as_os_str()).to_string_lossy(),
    };
    let source = format!("{} {name}", value_name(layout));
    let quality = if layout == Layout::Cifar10 { 98 } else { 95 };
    let coding = Coding {
        keep: args.keep,
        restart: args.restart,
        check: args.check,
        max_side: args.max_side,
        ..coding(&args.output, quality)
    };
    let mut options = BTreeMap::from([
        ("holdout".to_owned(), holdout.into()),
        ("order".to_owned(), value_name(order).into()),
    ]);
    options.extend(images.map(|images| ("images".to_owned(), images.into())));
    options.extend(args.split.map(|split| ("split".to_owned(), split.name().into())));
    if choice != Choice::default() {
        options.insert("choice".to_owned(), serde_json::to_value(&choice)?);
    }
    options.extend(args.folders.map(|what| ("folders".to_owned(), value_name(what).into())));
    let max_rejected = args.max_rejected.unwrap_or_default();
    finish(args.output, (catalog, stream), coding, (source, options), max_rejected)
}

/// Scans what can be sought, and opens what cannot.
fn open(
    input: &Input,
    hold_out: HoldOut,
    order: Order,
    seed: u64,
) -> Result<(Catalog, Option<Stream>), Error> {
    let usage = |problem: &str, mend| Error::Usage { problem: problem.to_owned(), mend };
    let ImageNetLists { val, val_labels, synsets, ids } = &input.lists;
    let lists = [val, val_labels, synsets, ids];
    if input.layout != Layout::Imagenet && lists.into_iter().any(Option::is_some) {
        let problem = "--val, --val-labels, --synsets and --ids are for --layout imagenet";
        return Err(usage(problem, "leave them out, or give that layout"));
    }
    let ShardOptions { choice, split, .. } = &input.shards;
    let shards = *choice != Choice::default() || split.is_some();
    if input.layout != Layout::Webdataset && shards {
        let problem = "--split, --image, --label and --last-dot are for --layout webdataset";
        return Err(usage(problem, "leave them out, or give that layout"));
    }
    let FolderOptions { folders, allow_empty } = input.folders;
    if input.layout != Layout::Imagefolder && (folders.is_some() || allow_empty) {
        let problem = "--folders and --allow-empty are for --layout imagefolder";
        return Err(usage(problem, "leave them out, or give that layout"));
    }
    match (is_stream(&input.path), order) {
        (true, Order::Shuffle) => {
            Err(usage("a pipe cannot be shuffled: it is read once", "give --order source"))
        }
        (true, Order::Source) => {
            let (catalog, stream) = Stream::open(input, hold_out, seed)?;
            Ok((catalog, Some(stream)))
        }
        (false, _) if hold_out.images.is_some() => {
            Err(usage("--images is for pipes", "leave it out: the input is counted"))
        }
        (false, order) => {
            let mut catalog = scan(input)?;
            order::hold_out(&mut catalog.items, hold_out.count, seed)?;
            arrange(&mut catalog.items, order, seed);
            Ok((catalog, None))
        }
    }
}

pub(super) fn synth(args: SynthArgs) -> anyhow::Result<()> {
    let SynthArgs { images, val_images, classes, size, output } = args;
    let val_images = val_images.unwrap_or((images / 10).max(1));
    let synth = Synth { images, val_images, classes, side: size, seed: output.seed };
    let mut catalog = synth.catalog()?;
    catalog.seal();
    arrange(&mut catalog.items, Order::Shuffle, output.seed);
    let source = format!("synth: {images} + {val_images} images, {classes} classes, {size} px");
    let coding = coding(&output, 95);
    finish(output, (catalog, None), coding, (source, BTreeMap::new()), MaxRejected::default())
}

fn coding(args: &OutputArgs, quality: u8) -> Coding {
    Coding { png: args.png, quality: args.quality.unwrap_or(quality), ..Coding::default() }
}

fn finish(
    args: OutputArgs,
    (catalog, stream): (Catalog, Option<Stream>),
    coding: Coding,
    (source, options): (String, BTreeMap<String, serde_json::Value>),
    max_rejected: MaxRejected,
) -> anyhow::Result<()> {
    let OutputArgs { output, overwrite, resume, shard_bytes, seed, threads, .. } = args;
    let interrupted = Arc::new(AtomicBool::new(false));
    signals::set_on_signal(&interrupted).context("cannot listen for signals")?;
    let plan = Plan { catalog, coding, shard_bytes, seed, source, options };
    let existing = match (overwrite, resume) {
        (true, _) => Existing::Overwrite,
        (_, true) => Existing::Resume,
        _ => Existing::Refuse,
    };
    let run = Run {
        output: &output,
        existing,
        threads: cores(threads),
        max_rejected,
        interrupted: &interrupted,
    };
    let started = std::time::Instant::now();
    let report = build::build(&plan, &run, stream)?;
    print(sentence(&report, started.elapsed(), &output).as_bytes())
}

fn sentence(report: &Report, took: std::time::Duration, output: &std::path::Path) -> String {
    let images: u64 = report.images.iter().map(|(_, images)| images).sum();
    let splits: Vec<String> =
        report.images.iter().map(|(split, images)| format!("{split} {images}")).collect();
    let bytes = indicatif::HumanBytes(report.bytes);
    let rate = (images - report.resumed) as f64 / took.as_secs_f64();
    let mut text = format!(
        "{}: {} images in {} shards, {bytes}; {:.1} s, {rate:.0} images/s\n",
        output.display(),
        splits.join(" + "),
        report.shards,
        took.as_secs_f64(),
    );
    if report.resumed > 0 {
        text += &format!("{} images were stored before\n", report.resumed);
    }
    for (count, first, what, file) in [
        (report.rejected, &report.first_rejected, "files were rejected", "rejected.jsonl"),
        (report.odd, &report.first_odd, "images were out of the ordinary", "odd.jsonl"),
    ] {
        let example = first.iter().map(|first| format!("{} ({})", first.name, first.reason));
        for example in example {
            text += &format!("{count} {what}, all in {file}, such as {example}\n");
        }
    }
    for (kind, count, example) in report.skipped.iter() {
        text += &format!("passed over: {count} {kind}, such as {example}\n");
    }
    text
}

pub(super) fn index(args: IndexArgs) -> anyhow::Result<()> {
    let IndexArgs { dir, choice } = args;
    let index = Index::make(&dir, &choice.choice()).map_err(Error::from)?;
    let splits: Vec<String> = index
        .splits()
        .iter()
        .map(|split| format!("{} {}", split.name, split.samples.len()))
        .collect();
    let (splits, shards) = (splits.join(" + "), index.shards().len());
    let mut text = format!("{}: {splits} images in {shards} shards\n", dir.display());
    text += &passed_over(&index);
    print(text.as_bytes())
}

pub(super) fn seek_points(args: SeekArgs) -> anyhow::Result<()> {
    let SeekArgs { dir, threads } = args;
    let stop = Arc::new(AtomicBool::new(false));
    signals::set_on_signal(&stop).context("cannot listen for signals")?;
    let SeekReport { path, pictures, without, damaged, bytes } =
        seek::seek_points(&dir, cores(threads), &stop)?;
    let mut text = format!("{}: {pictures} JPEGs have seek points", dir.display());
    if pictures > 0 {
        text += &format!(", {} in {}", indicatif::HumanBytes(bytes), path.display());
    }
    if without > 0 {
        let why = "small, with restart markers, progressive or no JPEG";
        text += &format!("; {without} images need none, or can have none ({why})");
    }
    text += "\n";
    if damaged > 0 {
        text += &format!(
            "{damaged} images cannot be decoded: `shard-imagenet verify --deep` says why\n"
        );
    }
    print(text.as_bytes())
}

/// Lines that say what was passed over when an index was made.
fn passed_over(index: &Index) -> String {
    let skipped = index.scan().map(|scan| scan.skipped.iter()).into_iter().flatten();
    let line = |(kind, count, example)| format!("passed over: {count} {kind}, such as {example}\n");
    skipped.map(line).collect()
}

pub(super) fn verify(args: VerifyArgs) -> anyhow::Result<()> {
    let VerifyArgs { dir, deep, threads } = args;
    let depth = if deep { Depth::Pixels } else { Depth::Bytes };
    let verdict = verify::verify(&dir, depth, cores(threads))?;
    for problem in verdict.problems.iter().take(20) {
        note(&format!("problem: {problem}"));
    }
    for (copy, original) in verdict.duplicates.iter().take(20) {
        print(format!("duplicate: {copy} is {original}\n").as_bytes())?;
    }
    verdict.sound(&dir)?;
    let (images, shards) = (verdict.images, verdict.shards);
    let (checked, same) = (if deep { ", all decoded" } else { "" }, verdict.duplicates.len());
    let points = match verdict.seek_points {
        0 => String::new(),
        points => format!("; {points} have seek points"),
    };
    print(
        format!(
            "{}: {images} images in {shards} shards are sound{checked}; {same} duplicates{points}\n",
            dir.display()
        )
        .as_bytes(),
    )
}

pub(super) fn inspect(args: InspectArgs) -> anyhow::Result<()> {
    let InspectArgs { dir, json, grid, views, view_size } = args;
    let summary = crate::inspect::inspect(&dir)?;
    if let Some(path) = grid {
        let side = usize::from(view_size) / 2 * 2;
        let sheet = match views {
            Some(count) => sheet::views(&dir, "train", count.into(), side)?,
            None => sheet::grid(&dir)?,
        };
        sheet.save(&path)?;
    }
    match json {
        true => print((serde_json::to_string_pretty(&summary)? + "\n").as_bytes()),
        false => print(summary.table().as_bytes()),
    }
}

pub(super) fn cat(args: CatArgs) -> anyhow::Result<()> {
    let image = sheet::member(&args.dir, &args.key)?;
    let Some(path) = args.png else { return print(&image) };
    let (pixels, width, height) = sheet::decode(&args.key, &image)?;
    Ok(sheet::save_png(&path, &pixels, width, height)?)
}

fn cores(threads: Option<u16>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    threads.map_or_else(cores, usize::from)
}

fn value_name(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

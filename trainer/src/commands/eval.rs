//! `trainer eval`: numbers of a run, with their protocols.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Subcommand, ValueEnum};
use comfy_table::Table;
use pipeline::Dataset;
use serde::Serialize;
use trainer::error::Result;
use trainer::eval::extractor::Extractor;
use trainer::eval::features::Feature;
use trainer::eval::linear::{self, Protocol, Selection};
use trainer::eval::resize::Resizer;
use trainer::eval::{Variant, agreement, fid, infomax, knn};
use trainer::{evaluations, run, say};

use super::{ModelArgs, table, usage};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Linear probes: softmax regressions on the encoder's frozen features
    Linear(LinearArgs),
    /// Votes of the nearest training images
    Knn(KnnArgs),
    /// Deep InfoMax's classifiers: a linear SVM and an MLP on the last map, the pooled feature and mu
    Infomax(InfomaxArgs),
    /// Generated images against real ones: FID, IS, KID, precision, recall, density, coverage
    Fid(FidArgs),
    /// Reconstructions of real images: do they show the same class?
    Agreement(AgreementArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table12 {
    Table1,
    Table2,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: trainer eval linear --run demo/run --features avepool,bn_crelu\n\n\
    Rate and length are chosen on the split trainval; where the data has none, on every tenth\n\
    training image, which is then not trained on."
)]
pub(crate) struct LinearArgs {
    #[command(flatten)]
    source: ModelArgs,
    /// Steps and rates: 5000 at 0.01, or 100000 at five rates of which the best is chosen
    #[arg(long, value_enum, default_value_t = Table12::Table1)]
    protocol: Table12,
    /// avepool, bn_crelu, mu, map, stage1, stage2, …
    #[arg(long, value_delimiter = ',', default_values = ["avepool", "bn_crelu"])]
    features: Vec<Feature>,
    /// Split to report on [default: trainval for table1, if the data has it; else the run's eval.split]
    #[arg(long)]
    split: Option<String>,
    /// Adam steps
    #[arg(long)]
    steps: Option<u64>,
    /// Learning rates, all trained at once
    #[arg(long, value_delimiter = ',')]
    rates: Option<Vec<f64>>,
    /// Images of a step
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(i64).range(1..))]
    batch: i64,
    /// Training images [default: all]
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    images: usize,
    /// New random crops in each epoch, as in the paper, instead of centre crops seen once
    #[arg(long)]
    fresh_crops: bool,
    /// Seed of the order of images
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Without the initial encoder and raw pixels beside it
    #[arg(long)]
    no_baselines: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer eval knn --run demo/run --split val")]
pub(crate) struct KnnArgs {
    #[command(flatten)]
    source: ModelArgs,
    /// avepool, mu, map, stage1, stage2, … or pixels
    #[arg(long, default_value = "avepool")]
    feature: Feature,
    /// Split to classify [default: the run's eval.split]
    #[arg(long)]
    split: Option<String>,
    /// Training images that vote [default: all]
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    images: usize,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer eval infomax --run demo/run --epochs 30\n\n\
    Hjelm et al. 2019: the SVM with C = 1 on scaled features, the MLP with 200 units and dropout 0.1,\n\
    Adam at 1e-4 in batches of 64, a tenth of it after each third of the epochs. All rows of the\n\
    last map are held in memory: 1.2 GB for CIFAR-10 and the preset cifar10.")]
pub(crate) struct InfomaxArgs {
    #[command(flatten)]
    source: ModelArgs,
    /// Split to report on [default: the run's eval.split]
    #[arg(long)]
    split: Option<String>,
    /// Training images [default: all]
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    images: usize,
    /// Passes of the MLP over the training images
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: u64,
    /// Seed of the MLP
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The encoder before training, not the trained one
    #[arg(long, conflicts_with = "live")]
    initial: bool,
}

/// What compares images.
#[derive(Debug, clap::Args)]
struct By {
    /// Image network: a TorchScript file, or .safetensors made by scripts/efflite0
    #[arg(long, value_name = "FILE")]
    extractor: PathBuf,
    /// Run a TorchScript file that is not NVIDIA's Inception: it is code
    #[arg(long)]
    trust_extractor: bool,
    /// How images reach it [default: the extractor's own way, or pil-bicubic]
    #[arg(long, value_parser = ["pil-bicubic", "pil-bilinear", "tf1-bilinear", "extractor"])]
    resizer: Option<String>,
}

impl By {
    fn open(&self, source: &ModelArgs) -> Result<(Extractor, Resizer)> {
        let device = source.networks.device()?;
        let extractor = Extractor::open(&self.extractor, self.trust_extractor, device)?;
        let resizer = match self.resizer.as_deref() {
            None => extractor.input().1,
            Some("extractor") if extractor.name == "efflite0" => {
                return Err(usage("efflite0 does not resize; give --resizer pil-bicubic"));
            }
            Some(name) => serde_json::from_value(name.into()).map_err(|e| usage(&e.to_string()))?,
        };
        Ok((extractor, resizer))
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: trainer eval agreement --run demo/run --extractor efflite0.safetensors\n\n\
    A classifier learns real images from the extractor's features, and then judges G(E(x))."
)]
pub(crate) struct AgreementArgs {
    #[command(flatten)]
    source: ModelArgs,
    #[command(flatten)]
    by: By,
    /// Split of the images that are reconstructed [default: the run's eval.split]
    #[arg(long)]
    split: Option<String>,
    /// How many of them
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(i64).range(2..))]
    images: i64,
    /// Real images that the classifier learns from
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(i64).range(2..))]
    train_images: i64,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: trainer eval fid --run demo/run --extractor efflite0.safetensors --images 5000\n\n\
    Only inception-2015-12-05.pt, known by its SHA-256, gives scores called FID, IS and KID; others\n\
    carry the extractor in their names. scripts/efflite0 makes a free one."
)]
pub(crate) struct FidArgs {
    #[command(flatten)]
    source: ModelArgs,
    #[command(flatten)]
    by: By,
    /// Split of the real images [default: train, all of it (paper App. A)]
    #[arg(long, default_value = "train", hide_default_value = true)]
    split: String,
    /// Generated images
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(i64).range(2..))]
    images: i64,
    /// Real images [default: all]
    #[arg(long, default_value_t = i64::MAX, hide_default_value = true, value_parser = clap::value_parser!(i64).range(2..))]
    reference_images: i64,
    /// Images a side for KID, precision, recall, density and coverage
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(i64).range(2..))]
    manifold_images: i64,
    /// Parts of the Inception score
    #[arg(long, default_value_t = 10)]
    splits: i64,
    /// Bounds of the latents, such as 2,1,0.5; each is scored beside the whole prior
    #[arg(long, value_delimiter = ',')]
    truncation: Vec<f64>,
    /// Which latents
    #[arg(long, default_value_t = 0)]
    draw: u64,
    /// Folder of reference statistics [default: bigbigan/reference in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Linear(args) => linear(args),
        Command::Knn(args) => knn(args),
        Command::Infomax(args) => infomax(args),
        Command::Fid(args) => fid(args),
        Command::Agreement(args) => agreement(args),
    }
}

fn linear(args: &LinearArgs) -> Result<()> {
    let config = args.source.config()?;
    let train = run::open_data(&config, "train")?;
    let protocol = protocol(args)?;
    let choose = args.protocol == Table12::Table2 || protocol.rates.len() > 1;
    let trainval = has_split(&train, "trainval");
    let split = match (&args.split, choose || !trainval) {
        (Some(split), _) => split.clone(),
        (None, true) => config.eval.split.clone(),
        (None, false) => "trainval".into(),
    };
    let selection = match (choose, trainval) {
        (false, _) => Selection::None,
        (true, true) => Selection::Split(run::open_data(&config, "trainval")?),
        (true, false) => Selection::Tenth,
    };
    if args.fresh_crops && (args.images < train.len() || matches!(selection, Selection::Tenth)) {
        return Err(usage(
            "--fresh-crops trains on the whole training split: leave --images out, and let it choose \
             rate and length only where there is a trainval split",
        ));
    }
    let mut task = linear::Task {
        features: args.features.clone(),
        protocol,
        images: args.images,
        fresh_crops: args.fresh_crops,
        selection,
        test: run::open_data(&config, &split)?,
        train,
    };
    warn_unless_kept(&args.source);
    let model = args.source.model(&config, args.source.variant())?;
    let mut lines = task.run(&model)?;
    if !args.no_baselines {
        let initial = args.source.model(model.config(), Variant::Initial)?;
        drop(model);
        lines.extend(task.run(&initial)?);
        task.features = vec![Feature::Pixels];
        lines.extend(task.run(&initial)?);
    }
    show_probes(args, &split, &lines)
}

/// How the probes of a command are trained.
fn protocol(args: &LinearArgs) -> Result<Protocol> {
    let mut protocol = match args.protocol {
        Table12::Table1 => Protocol::table1(args.seed),
        Table12::Table2 => Protocol::table2(args.seed),
    };
    protocol.batch = args.batch;
    protocol.steps = args.steps.unwrap_or(protocol.steps);
    if let Some(rates) = &args.rates {
        protocol.rates.clone_from(rates);
    }
    if protocol.rates.is_empty() || protocol.rates.iter().any(|rate| rate.is_nan() || *rate <= 0.0)
    {
        return Err(usage("--rates needs numbers above 0, such as 0.001,0.01"));
    }
    Ok(protocol)
}

fn show_probes(args: &LinearArgs, split: &str, lines: &[linear::Line]) -> Result<()> {
    let mut table = table(["feature", "weights", "width", "top-1", "top-5", "rate", "steps"]);
    for line in lines {
        let r = &line.result;
        table.add_row([
            r.feature.to_string(),
            if r.feature == Feature::Pixels { "-".into() } else { word(&line.subject.weights) },
            r.width.to_string(),
            format!("{:.2} %", r.top1),
            format!("{:.2} %", r.top5),
            r.rate.to_string(),
            r.stopped.to_string(),
        ]);
    }
    let (line, r) = (&lines[0], &lines[0].result);
    let head = format!(
        "step {}: {} training images ({}), {} of {split} ({}); rate and length chosen on: {}",
        line.subject.step,
        r.train_images,
        word(&line.train_crop),
        r.test_images,
        word(&line.crop),
        line.selected_on
    );
    finish(&args.source, &head, &table, lines)
}

fn knn(args: &KnnArgs) -> Result<()> {
    let config = args.source.config()?;
    let split = args.split.as_ref().unwrap_or(&config.eval.split);
    let task = knn::Task {
        feature: args.feature,
        train: run::open_data(&config, "train")?,
        images: args.images,
        test: run::open_data(&config, split)?,
    };
    if args.feature == Feature::BnCrelu {
        return Err(usage(
            "neighbours are found by avepool, mu, map, a stage or pixels, not bn_crelu",
        ));
    }
    warn_unless_kept(&args.source);
    let lines = task.run(&args.source.model(&config, args.source.variant())?)?;
    let mut table = table(["distance", "k = 1", "k = 5", "k = 25", "k = 50"]);
    for line in &lines {
        let accuracies = line.top1.values().map(|top1| format!("{top1:.2} %"));
        table.add_row(std::iter::once(line.distance.to_string()).chain(accuracies));
    }
    let line = &lines[0];
    let head = format!(
        "step {}: {} of {} images vote on {} of {split}",
        line.subject.step, args.feature, line.train_images, line.test_images
    );
    finish(&args.source, &head, &table, &lines)
}

fn infomax(args: &InfomaxArgs) -> Result<()> {
    let config = args.source.config()?;
    let split = args.split.as_ref().unwrap_or(&config.eval.split);
    let train = run::open_data(&config, "train")?;
    if args.images.min(train.len()) < 2 {
        return Err(usage(
            "give at least 2 training images: batch norm has nothing to do with one",
        ));
    }
    let task = infomax::Task {
        protocol: infomax::Protocol { epochs: args.epochs, ..infomax::Protocol::new(args.seed) },
        train,
        images: args.images,
        test: run::open_data(&config, split)?,
    };
    warn_unless_kept(&args.source);
    let variant = if args.initial { Variant::Initial } else { args.source.variant() };
    let lines = task.run(&args.source.model(&config, variant)?, |line| {
        say::note(format_args!("{}: {:.2} %", line.metric, line.top1));
    })?;
    let mut table = table(["feature", "width", "SVM", "MLP"]);
    for pair in lines.chunks(2) {
        let top1 = pair.iter().map(|line| format!("{:.2} %", line.top1));
        let (feature, width) = (pair[0].feature.to_string(), pair[0].width.to_string());
        table.add_row([feature, width].into_iter().chain(top1));
    }
    let line = &lines[0];
    let head = format!(
        "step {}: {} training images ({}), {} of {split}",
        line.subject.step,
        line.train_images,
        word(&line.crop),
        line.test_images
    );
    finish(&args.source, &head, &table, &lines)
}

fn fid(args: &FidArgs) -> Result<()> {
    let config = args.source.config()?;
    let (extractor, resizer) = args.by.open(&args.source)?;
    let task = fid::Task {
        extractor,
        resizer,
        images: args.images,
        reference: run::open_data(&config, &args.split)?,
        reference_images: args.reference_images,
        manifold_images: args.manifold_images,
        splits: args.splits,
        draw: args.draw,
        cache: args.cache.clone().or_else(cache_folder),
    };
    let truncations: Vec<_> =
        std::iter::once(None).chain(args.truncation.iter().copied().map(Some)).collect();
    let width = task.extractor.width()?;
    warn_unless_kept(&args.source);
    let lines = task.run(&mut args.source.model(&config, args.source.variant())?, &truncations)?;
    let names: Vec<&String> = lines[0].scores.keys().collect();
    let header = std::iter::once("truncation").chain(names.iter().map(|name| name.as_str()));
    let mut table = table(header);
    for line in &lines {
        let bound = line.subject.truncation.map_or("none".into(), |bound| bound.to_string());
        let scores = line.scores.values().map(|value| format!("{value:.4}"));
        table.add_row(std::iter::once(bound).chain(scores));
    }
    let line = &lines[0];
    let mut head = format!(
        "step {}: {} generated images against {} of {}, by {} ({}), resized by {}",
        line.subject.step,
        line.images,
        line.reference_images,
        line.split,
        args.by.extractor.display(),
        task.extractor.name,
        line.resizer
    );
    if line.images.min(line.reference_images) <= width {
        head += &format!(
            "\nnote: no more images than features ({width}): the distance is far too large"
        );
    }
    finish(&args.source, &head, &table, &lines)
}

fn agreement(args: &AgreementArgs) -> Result<()> {
    let config = args.source.config()?;
    let (extractor, resizer) = args.by.open(&args.source)?;
    let split = args.split.as_ref().unwrap_or(&config.eval.split);
    let mut task = agreement::Task {
        extractor,
        resizer,
        train: run::open_data(&config, "train")?,
        train_images: args.train_images,
        test: run::open_data(&config, split)?,
        test_images: args.images,
        seed: config.train.seed,
    };
    warn_unless_kept(&args.source);
    let model = args.source.model(&config, args.source.variant())?;
    task.seed = model.config().train.seed;
    let line = task.run(&model)?;
    let mut table = table(["", "G(E(x))", "x itself", "chance"]);
    let percent = |share: f64| format!("{share:.1} %");
    table.add_row([
        "classified as x's label".into(),
        percent(line.reconstructions),
        percent(line.images),
        percent(line.chance),
    ]);
    let error = |error: f64| format!("{error:.3}");
    table.add_row([
        "mean |x - G(E(x))|".into(),
        error(line.error),
        "0".into(),
        error(line.error_chance),
    ]);
    let head = format!(
        "step {}: {} images of {split}, judged by {} (classifier trained on {} real images)",
        line.subject.step,
        line.test_images,
        args.by.extractor.display(),
        line.train_images
    );
    finish(&args.source, &head, &table, &[line])
}

/// Where reference statistics are kept between runs.
fn cache_folder() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    cache.map(|cache| cache.join("bigbigan/reference"))
}

fn has_split(data: &Arc<Dataset>, name: &str) -> bool {
    data.index().splits().iter().any(|split| split.name == name)
}

/// A plain enum as in the JSON lines.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// Says at once, before hours of work, that what is found cannot be kept with the run. It may be somebody
/// else's, or an exported model: the work is done all the same.
fn warn_unless_kept(source: &ModelArgs) {
    if let Err(error) = evaluations::check(&source.networks.run) {
        let error = pipeline::report(&error);
        say::always(format_args!("warning: {error}; the result will be printed alone"));
    }
}

/// Prints what was found, and then adds its lines to those of the run. A reader that has gone away keeps
/// none of it from the run.
fn finish(source: &ModelArgs, head: &str, table: &Table, lines: &[impl Serialize]) -> Result<()> {
    let json = |line| serde_json::to_string(line).expect("a line of plain values") + "\n";
    let text = format!("{head}\n{table}\n{}", lines.iter().map(json).collect::<String>());
    let printed = say::print(text.trim_end());
    let path = source.networks.run.join(evaluations::FILE);
    let kept = lines.iter().try_for_each(|line| evaluations::append(&path, line));
    if kept.is_err() && printed.is_ok() {
        say::always("the result above could not be kept with the run");
    }
    kept.and(printed)
}

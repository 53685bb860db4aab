//! `trainer eval`: numbers of a run, with their protocols.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Subcommand, ValueEnum};
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use pipeline::Dataset;
use serde::Serialize;
use trainer::config::Config;
use trainer::error::Result;
use trainer::eval::features::Feature;
use trainer::eval::linear::{self, Protocol, Selection};
use trainer::eval::{Model, Variant, knn};
use trainer::log::Lines;
use trainer::{device, run};

use super::{load, usage};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Linear probes: softmax regressions on the encoder's frozen features
    Linear(LinearArgs),
    /// Votes of the nearest training images
    Knn(KnnArgs),
}

/// Which model, and on what images.
#[derive(Debug, clap::Args)]
pub(crate) struct On {
    /// Folder of a run; its newest sound checkpoint is read, while training may go on
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Data folder, if not the run's own
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The live weights, not their averages
    #[arg(long)]
    live: bool,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "auto")]
    device: String,
}

impl On {
    fn config(&self) -> Result<Config> {
        let mut config = run::read_config(&self.run)?;
        if let Some(dir) = &self.data {
            config.data.dir = dir.to_string_lossy().into_owned();
        }
        Ok(config)
    }

    fn model(&self, config: &Config, variant: Variant) -> Result<Model> {
        load(&self.run, config, device::parse(&self.device)?, variant, true)
    }

    fn variant(&self) -> Variant {
        if self.live { Variant::Live } else { Variant::Average }
    }

    /// Prints lines of the metrics and appends them to the run's.
    fn record(&self, lines: &[impl Serialize]) -> Result<()> {
        let mut metrics = Lines::append(&self.run.join("metrics.jsonl"))?;
        for line in lines {
            metrics.write(line)?;
            println!("{}", serde_json::to_string(line).expect("a line of plain values"));
        }
        Ok(())
    }
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
    on: On,
    /// Steps and rates: 5000 at 0.01, or 100000 at five rates of which the best is chosen
    #[arg(long, value_enum, default_value_t = Table12::Table1)]
    protocol: Table12,
    /// avepool, bn_crelu, mu, stage1, stage2, …
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
    on: On,
    /// avepool, mu, stage1, stage2, … or pixels
    #[arg(long, default_value = "avepool")]
    feature: Feature,
    /// Split to classify [default: the run's eval.split]
    #[arg(long)]
    split: Option<String>,
    /// Training images that vote [default: all]
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    images: usize,
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Linear(args) => linear(args),
        Command::Knn(args) => knn(args),
    }
}

fn linear(args: &LinearArgs) -> Result<()> {
    let config = args.on.config()?;
    let train = run::open_data(&config, "train")?;
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
    let mut task = linear::Task {
        features: args.features.clone(),
        protocol,
        images: args.images,
        fresh_crops: args.fresh_crops,
        selection,
        test: run::open_data(&config, &split)?,
        train,
    };
    let mut lines = task.run(&args.on.model(&config, args.on.variant())?)?;
    if !args.no_baselines {
        let initial = args.on.model(&config, Variant::Initial)?;
        lines.extend(task.run(&initial)?);
        task.features = vec![Feature::Pixels];
        lines.extend(task.run(&initial)?);
    }
    let mut table = table(["feature", "weights", "width", "top-1", "top-5", "rate", "steps"]);
    for line in &lines {
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
    println!(
        "step {}: {} training images ({}), {} of {split} ({}); rate and length chosen on: {}",
        line.subject.step,
        r.train_images,
        word(&line.train_crop),
        r.test_images,
        word(&line.crop),
        line.selected_on
    );
    println!("{table}");
    args.on.record(&lines)
}

fn knn(args: &KnnArgs) -> Result<()> {
    let config = args.on.config()?;
    let split = args.split.as_ref().unwrap_or(&config.eval.split);
    let task = knn::Task {
        feature: args.feature,
        train: run::open_data(&config, "train")?,
        images: args.images,
        test: run::open_data(&config, split)?,
    };
    if args.feature == Feature::BnCrelu {
        return Err(usage("neighbours are found by avepool, mu, a stage or pixels, not bn_crelu"));
    }
    let lines = task.run(&args.on.model(&config, args.on.variant())?)?;
    let mut table = table(["distance", "k = 1", "k = 5", "k = 25", "k = 50"]);
    for line in &lines {
        let accuracies = line.top1.values().map(|top1| format!("{top1:.2} %"));
        table.add_row(std::iter::once(line.distance.to_string()).chain(accuracies));
    }
    let line = &lines[0];
    println!(
        "step {}: {} of {} images vote on {} of {split}",
        line.subject.step, args.feature, line.train_images, line.test_images
    );
    println!("{table}");
    args.on.record(&lines)
}

fn has_split(data: &Arc<Dataset>, name: &str) -> bool {
    data.index().splits().iter().any(|split| split.name == name)
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(header);
    table
}

/// A plain enum as in the JSON lines.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

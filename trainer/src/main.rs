//! `trainer`: trains BigBiGAN and shows what it learned.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, Parser, Subcommand};
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use tch::Device;
use trainer::config::{Config, Origin};
use trainer::error::{Error, Result};
use trainer::eval::{Model, pictures};
use trainer::inspect::{self, Cost, Counts};
use trainer::run::{Ended, Summary};
use trainer::{checkpoint, device, doctor, run};

/// Trains BigBiGAN: a generator, an encoder and a discriminator, with no labels.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example: trainer run --preset demo --data demo/data --out runs/first"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model, or go on with one
    Run(RunArgs),
    /// Draw a grid of generated images from a run's newest checkpoint
    Sample(SampleArgs),
    /// Show images beside their reconstructions G(E(x))
    Reconstruct(ReconstructArgs),
    /// Say how large a preset, configuration or run is and what a step costs
    Inspect(InspectArgs),
    /// Say what this machine offers, and whether a data folder is sound
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
struct Source {
    /// A built-in configuration: demo, base, hi_e, …
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// A TOML file of differences from the preset it extends
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    config: Option<PathBuf>,
    /// Change one key, such as --set train.batch=32 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Source {
    fn origin(&self) -> Option<Origin<'_>> {
        let file = self.config.as_deref().map(Origin::File);
        file.or(self.preset.as_deref().map(Origin::Preset))
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: trainer run --preset demo --data demo/data --out runs/first \
                        --set train.steps=200")]
struct RunArgs {
    #[command(flatten)]
    source: Source,
    /// Data folder made by shard-imagenet; its train split is read
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder of the run; new, unless --resume
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from the newest checkpoint in --out, with its own configuration
    #[arg(long, requires = "out", conflicts_with_all = ["preset", "config", "set", "data", "device", "dry_run"])]
    resume: bool,
    /// cpu, cuda, cuda:N or auto
    #[arg(long)]
    device: Option<String>,
    /// Print the resolved configuration and the parameter counts, write nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: trainer sample --run demo/run --count 64 --out samples.png")]
struct SampleArgs {
    /// Folder of a run
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// PNG to write
    #[arg(long, value_name = "FILE", default_value = "samples.png")]
    out: PathBuf,
    /// Number of images
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(i64).range(1..=4096))]
    count: i64,
    /// Which latents: 0 are those of the run's own pictures
    #[arg(long, default_value_t = 0)]
    draw: u64,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "auto")]
    device: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: trainer reconstruct --run demo/run --split val --out pairs.png")]
struct ReconstructArgs {
    /// Folder of a run
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Data folder, if not the run's own
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Split whose first images are shown [default: the run's eval.split]
    #[arg(long)]
    split: Option<String>,
    /// PNG to write
    #[arg(long, value_name = "FILE", default_value = "reconstructions.png")]
    out: PathBuf,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "auto")]
    device: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: trainer inspect --preset base --json")]
struct InspectArgs {
    #[command(flatten)]
    source: Source,
    /// Folder of a run
    #[arg(long, value_name = "DIR", conflicts_with_all = ["preset", "config", "set"])]
    run: Option<PathBuf>,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: trainer doctor --data demo/data")]
struct DoctorArgs {
    /// Data folder to look at
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::new("warn"))
        .without_time()
        .with_target(false)
        .init();
    let outcome = match Cli::parse().command {
        Command::Run(args) => run_command(&args),
        Command::Sample(args) => sample(&args),
        Command::Reconstruct(args) => reconstruct(&args),
        Command::Inspect(args) => inspect_command(&args),
        Command::Doctor(args) => return examine(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(if e.is_input() { 2 } else { 1 })
        }
    }
}

fn usage(problem: &str) -> Error {
    Error::Config { problems: vec![problem.to_owned()] }
}

fn run_command(args: &RunArgs) -> Result<()> {
    if args.resume {
        let out = args.out.as_ref().ok_or_else(|| usage("--resume needs --out DIR"))?;
        return finish(&run::resume(out, &*stop_flag()?)?);
    }
    let origin =
        args.source.origin().ok_or_else(|| usage("give --preset NAME or --config FILE"))?;
    let mut config = Config::resolve(&origin, &args.source.set)?;
    if let Some(device) = &args.device {
        config.train.device.clone_from(device);
    }
    if let Some(dir) = &args.data {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
        config.data.dir = dir.to_string_lossy().into_owned();
    }
    if args.dry_run {
        return dry_run(&config);
    }
    let out = args.out.as_ref().ok_or_else(|| usage("give --out DIR, a new folder for the run"))?;
    finish(&run::start(config, out, &*stop_flag()?)?)
}

fn dry_run(config: &Config) -> Result<()> {
    println!("{}", config.to_toml());
    let counts = Counts::of(config);
    println!("{}", inspect::table(&counts, &Cost::of(config, &counts)));
    if !config.data.dir.is_empty() {
        let images = run::open_data(config, "train")?.len();
        let steps = config.train.steps as f64;
        let epochs = steps * config.train.batch as f64 / images as f64;
        println!("{images} training images; {steps} steps are {epochs:.1} epochs for G and E");
    }
    Ok(())
}

/// SIGTERM and SIGINT set the flag; a second one ends the process at once.
fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .map_err(|source| Error::Io { action: "listen for", path: "signals".into(), source })?;
    }
    Ok(flag)
}

/// A run's last words: where its results are, and one table.
fn finish(summary: &Summary) -> Result<()> {
    let Some(s) = &summary.stats else {
        println!("{} is finished: {} steps", summary.out.display(), summary.steps);
        return Ok(());
    };
    let why = match summary.ended {
        Ended::Steps => "all steps done",
        Ended::Time => "train.max_minutes are over; --resume goes on",
        Ended::Signal => "stopped by a signal; --resume goes on",
    };
    let at = |name: &str| summary.out.join(name).display().to_string();
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header([
        "steps",
        "images/s",
        "data wait",
        "loss D",
        "loss G",
        "loss E",
    ]);
    table.add_row([
        summary.steps.to_string(),
        format!("{:.0}", s.images_per_s),
        format!("{:.2} %", s.data_wait_percent),
        format!("{:.3}", s.loss_d),
        format!("{:.3}", s.loss_g),
        s.loss_e.map_or("-".into(), |e| format!("{e:.3}")),
    ]);
    println!("{why}");
    if summary.ended != Ended::Signal {
        println!("samples          {}", at("images/samples.png"));
        if s.loss_e.is_some() {
            println!("reconstructions  {}", at("images/reconstructions.png"));
        }
    }
    println!("statistics       {}", at("stats.jsonl"));
    println!("metrics          {}", at("metrics.jsonl"));
    println!("checkpoints      {}", at("checkpoints"));
    println!("input            {}", summary.bottleneck);
    if let Some((trained, initial)) = &summary.probe {
        println!(
            "linear probe     {:.1} % top-1 on {} images ({:.1} % with the initial encoder)",
            trained.top1, trained.test_images, initial.top1
        );
    }
    println!("{table}");
    Ok(())
}

/// The averaged networks of a run's newest checkpoint.
fn load(out: &std::path::Path, config: &Config, device: Device, with_data: bool) -> Result<Model> {
    let path = checkpoint::newest(&out.join("checkpoints"))?;
    let train = with_data.then(|| run::open_data(config, "train")).transpose()?;
    Model::load(&path, config, device, train.as_ref())
}

fn sample(args: &SampleArgs) -> Result<()> {
    let config = run::read_config(&args.run)?;
    let model = load(&args.run, &config, device::parse(&args.device)?, false)?;
    let images = model.generate(&model.latents(args.draw, args.count));
    let columns = (args.count as f64).sqrt().ceil() as u32;
    pictures::save(&pictures::grid(&images, columns), &args.out)?;
    println!("{}", args.out.display());
    Ok(())
}

fn reconstruct(args: &ReconstructArgs) -> Result<()> {
    let mut config = run::read_config(&args.run)?;
    if let Some(dir) = &args.data {
        config.data.dir = dir.to_string_lossy().into_owned();
    }
    let split = args.split.as_ref().unwrap_or(&config.eval.split);
    let split = run::open_data(&config, split)?;
    let model = load(&args.run, &config, device::parse(&args.device)?, true)?;
    pictures::save(&run::reconstructions(&model, &split)?, &args.out)?;
    println!("{}", args.out.display());
    Ok(())
}

fn inspect_command(args: &InspectArgs) -> Result<()> {
    let config = match (&args.run, args.source.origin()) {
        (Some(run), _) => run::read_config(run)?,
        (None, Some(origin)) => Config::resolve(&origin, &args.source.set)?,
        (None, None) => return Err(usage("give --preset NAME, --config FILE or --run DIR")),
    };
    let counts = Counts::of(&config);
    let cost = Cost::of(&config, &counts);
    if args.json {
        println!("{}", inspect::json(&counts, &cost));
    } else {
        println!("{}", inspect::table(&counts, &cost));
    }
    Ok(())
}

fn examine(args: &DoctorArgs) -> ExitCode {
    let findings = doctor::examine(args.data.as_deref());
    for finding in &findings {
        let mark = if finding.fine { "ok " } else { "BAD" };
        println!("{mark} {:<9} {}", finding.what, finding.found);
    }
    ExitCode::from(if findings.iter().all(|f| f.fine) { 0 } else { 2 })
}

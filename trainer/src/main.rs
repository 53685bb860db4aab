//! `trainer`: trains BigBiGAN and shows what it learned.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::{
    bench_batch, check_device, compare, doctor, embed, eval, export, inspect, launch, pictures,
    report, run, study, walk, watch,
};
use common::exit;
use trainer::error::{Error, Result};
use trainer::{provenance, say};

/// Trains BigBiGAN: a generator, an encoder and a discriminator, with no labels.
#[derive(Debug, Parser)]
#[command(
    version = provenance::version(),
    after_help = "Example: trainer run --preset demo --data demo/data-cifar10 --out runs/first"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model, or go on with one
    Run(run::Args),
    /// Run a command as several processes on this machine
    Launch(launch::Args),
    /// Train and measure a matrix of configurations and seeds, and write one table
    Study(study::Args),
    /// Measure a run: linear probes, nearest neighbours
    #[command(subcommand)]
    Eval(eval::Command),
    /// Draw a grid of generated images from a run's newest checkpoint
    Sample(pictures::SampleArgs),
    /// Show images beside their reconstructions G(E(x))
    Reconstruct(pictures::ReconstructArgs),
    /// Show images beside the training images nearest to them
    Neighbors(walk::NeighborsArgs),
    /// Show ways between latents, or between the codes of images
    Interpolate(walk::InterpolateArgs),
    /// Show what each chunk of the latents changes
    Traverse(walk::TraverseArgs),
    /// Show the filters of the encoder's first layer
    Filters(walk::FiltersArgs),
    /// Write features of images as NumPy and JSON lines
    Embed(embed::EmbedArgs),
    /// Find the embedded images nearest to an image file
    Search(embed::SearchArgs),
    /// Write report.html, all that a run's folder holds on one page
    Report(report::Args),
    /// Show runs in a browser while they go on
    Watch(watch::Args),
    /// Write a page that shows runs side by side
    Compare(compare::Args),
    /// Write the trained networks for other programs: safetensors and TorchScript
    Export(export::Args),
    /// Say how large a preset, configuration or run is and what a step costs
    Inspect(inspect::Args),
    /// Find the largest micro-batch that fits this machine
    BenchBatch(bench_batch::Args),
    /// Compare a device with the CPU, and time steps on it
    CheckDevice(check_device::Args),
    /// Say what this machine offers, and whether a data folder is sound
    Doctor(doctor::Args),
}

fn main() -> ExitCode {
    provenance::set_commit(commit::commit!());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::new("warn"))
        .without_time()
        .with_target(false)
        .log_internal_errors(false) // a reader that went away ends nothing
        .init();
    let command = Cli::parse().command;
    let is_run = matches!(command, Command::Run(_)); // which says how it ended
    match Error::caught(|| dispatch(command)) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            match e.is_stop() {
                false => say::note(format_args!("error: {}", pipeline::report(&e))),
                true if is_run => {}
                true => say::note("stopped by a signal"),
            }
            ExitCode::from(e.exit_code())
        }
    }
}

/// Does what was typed; what the program exits with.
fn dispatch(command: Command) -> Result<u8> {
    match command {
        Command::Launch(args) => return launch::run(&args),
        Command::Study(args) => return study::run(&args),
        Command::CheckDevice(args) => return check_device::run(&args),
        Command::Doctor(args) => return doctor::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Eval(command) => eval::run(&command),
        Command::Sample(args) => pictures::sample(&args),
        Command::Reconstruct(args) => pictures::reconstruct(&args),
        Command::Neighbors(args) => walk::neighbors(&args),
        Command::Interpolate(args) => walk::interpolate(&args),
        Command::Traverse(args) => walk::traverse(&args),
        Command::Filters(args) => walk::filters(&args),
        Command::Embed(args) => embed::embed(&args),
        Command::Search(args) => embed::search(&args),
        Command::Report(args) => report::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Export(args) => export::run(&args),
        Command::BenchBatch(args) => bench_batch::run(&args),
        Command::Inspect(args) => inspect::run(&args),
    }
    .map(|()| exit::DONE)
}

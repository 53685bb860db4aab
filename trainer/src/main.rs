//! `trainer`: trains BigBiGAN and shows what it learned.

mod commands;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use common::exit;
use trainer::error::Result;
use trainer::{provenance, say};

use commands::{
    bench_batch, check_device, checkpoints, compare, config, doctor, embed, eval, export, inspect,
    launch, pictures, presets, report, run, shell, study, walk, watch,
};

/// Trains BigBiGAN: a generator, an encoder and a discriminator, with no labels.
#[derive(Debug, Parser)]
#[command(
    version = provenance::version(),
    after_help = "With any command: -q, --quiet says nothing but results and errors; -v, --verbose says more, RUST_LOG in \
                  detail.\n\nExample: trainer run --preset demo --data demo/data-cifar10 --out runs/first"
)]
struct Cli {
    // In the help of every command they would take the room of its own; the program's names them.
    #[arg(short, long, global = true, hide = true, conflicts_with = "verbose")]
    quiet: bool,
    #[arg(short, long, global = true, hide = true)]
    verbose: bool,
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
    /// Measure a run: probes, nearest neighbours, Deep InfoMax's classifiers, Fréchet distance, agreement
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
    /// List the presets and what they are
    Presets(presets::Args),
    /// Print a resolved configuration, or the keys in which two differ
    #[command(subcommand)]
    Config(config::Command),
    /// List the checkpoints of a run, and check them
    Checkpoints(checkpoints::Args),
    /// Say how large a preset, configuration or run is and what a step costs
    Inspect(inspect::Args),
    /// Find the largest micro-batch that fits this machine
    BenchBatch(bench_batch::Args),
    /// Compare a device with the CPU, and time steps on it
    CheckDevice(check_device::Args),
    /// Say what this machine offers, and whether a data folder is sound
    Doctor(doctor::Args),
    /// Print completions for a shell
    Completions(shell::CompletionsArgs),
    /// Write manual pages
    Man(shell::ManArgs),
}

fn main() -> ExitCode {
    provenance::set_commit(commit::commit!());
    let Cli { quiet, verbose, command } = Cli::parse();
    say::set_quiet(quiet);
    let usual = if verbose { "info" } else { ["warn", "error"][usize::from(quiet)] };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter.unwrap_or_else(|_| usual.into()))
        .without_time()
        .with_target(false)
        .log_internal_errors(false) // a reader that went away ends nothing
        .init();
    let is_run = matches!(command, Command::Run(_)); // which says how it ended
    match torch_ext::caught(|| dispatch(command)) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            match e.is_stop() {
                false => say::error(pipeline::report(&e)),
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
        Command::Presets(args) => presets::run(&args),
        Command::Config(command) => config::run(&command),
        Command::Checkpoints(args) => checkpoints::run(&args),
        Command::Completions(args) => shell::completions(&args, Cli::command()),
        Command::Man(args) => shell::man(&args, Cli::command()),
        Command::BenchBatch(args) => bench_batch::run(&args),
        Command::Inspect(args) => inspect::run(&args),
    }
    .map(|()| exit::DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What people read of each command. A change to it is seen in a review.
    #[test]
    fn the_help_of_every_command_is_as_it_was() {
        fn helps(command: &clap::Command, name: &str, all: &mut String) {
            let mut own = command.clone().term_width(100).bin_name(name.to_owned());
            *all += &format!("==== {name} --help\n{}\n", own.render_long_help());
            for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
                helps(below, &format!("{name} {}", below.get_name()), all);
            }
        }
        let mut program = Cli::command().disable_version_flag(true);
        program.build();
        let mut all = String::new();
        helps(&program, "trainer", &mut all);
        insta::assert_snapshot!("help", all);
    }

    #[test]
    fn the_parser_is_sound() {
        Cli::command().debug_assert();
    }
}

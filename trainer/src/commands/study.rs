use std::path::{Path, PathBuf};

use common::exit;
use trainer::error::{Error, Result};
use trainer::say;
use trainer::study::{self, Study, Tools};

use super::usage;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: trainer study studies/ablations-cifar10.toml --data demo/data-cifar10 \
                        --out runs/ablations\n\n\
    Ended by a signal (exit code 75) or a power cut, the same command goes on where it was."
)]
pub(crate) struct Args {
    /// The study: preset, seeds and rows, as in studies/
    file: PathBuf,
    /// Rows to run, by name, rather than all; results hold them and all others that have some, and compare with the
    /// study's first among these
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    rows: Vec<String>,
    /// Change one key in every row, over what the study says, such as --set eval.split=trainval (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Data folder made by shard-imagenet
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Folder of its runs and results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Image network for the Fréchet distance, such as scripts/efflite0 makes; without it none is measured
    #[arg(long, value_name = "FILE")]
    extractor: Option<PathBuf>,
    /// Run a TorchScript file that is not NVIDIA's Inception: it is code
    #[arg(long)]
    trust_extractor: bool,
    /// Generated images that it compares with as many real ones
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(i64).range(2..))]
    images: i64,
    /// Where to train, a run at a time on each: cuda:0,cuda:1 or cpu,cpu
    #[arg(long, value_delimiter = ',', default_values = ["auto"])]
    devices: Vec<String>,
    /// Print results.json as one line, not its table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let there = |path: &PathBuf| match path.is_file() {
        true => Ok(()),
        false => Err(usage(&format!("{}: no such file", path.display()))),
    };
    there(&args.file)?;
    args.extractor.as_ref().map_or(Ok(()), there)?;
    let (study, jobs) = Study::read(&args.file, &args.rows, &args.set)?;
    let tools = Tools {
        data: args.data.clone(),
        extractor: args.extractor.clone(),
        trust_extractor: args.trust_extractor,
        images: args.images,
        devices: args.devices.clone(),
    };
    let outcome = study::run(&study, &jobs, &args.out, &tools)?;
    let (done, of, page) = (outcome.done, outcome.of, args.out.join("index.html"));
    let mut words = vec![format!("{done} of {of} runs done; {}", page.display())];
    if outcome.stopped {
        words.push("stopped by a signal; the same command goes on".to_owned());
    }
    if args.json {
        say::print(results(&args.out)?)?;
        words.iter().for_each(say::note);
    } else {
        say::print(&outcome.table)?;
        words.iter().try_for_each(say::print)?;
    }
    let mut problems = vec![];
    if !outcome.failed.is_empty() {
        problems.push(format!("{} failed", outcome.failed.join(", ")));
    }
    if !outcome.untried.is_empty() {
        let (count, lost) = (outcome.untried.len(), outcome.lost.join(", "));
        problems.push(format!(
            "{count} runs were not tried, as no device is left: runs failed at their start on {lost}"
        ));
    }
    if problems.is_empty() {
        return Ok(if outcome.stopped { exit::STOPPED } else { exit::DONE });
    }
    let reason = format!("{}; the same command tries again", problems.join("; "));
    Err(Error::Study { path: args.out.clone(), reason })
}

/// What the study has written of all its runs.
fn results(out: &Path) -> Result<serde_json::Value> {
    let path = out.join("results.json");
    let text = std::fs::read(&path).map_err(|source| Error::Io {
        action: "read",
        path: path.clone(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|e| Error::Output { path, reason: e.to_string() })
}

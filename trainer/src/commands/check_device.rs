use std::path::{Path, PathBuf};
use std::time::Duration;

use common::exit;
use trainer::check::{Ended, Part, Peer, Plan, Sink};
use trainer::config::{Config, Origin};
use trainer::error::Result;
use trainer::say;

use super::{stop, usage};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: trainer check-device --device cuda --data shards --minutes 8 --out check.json\n\n\
    Tiny models with every switch train on the device and, in double precision, on the CPU; what is off is said \
    with what may be. Then presets are timed. --quick has fewer comparisons, and times demo. Ends with exit code 1 \
    where the device does something else than the CPU. A signal ends it early; what it found is kept."
)]
pub(crate) struct Args {
    /// cpu, cuda, cuda:N or auto; cpu compares single precision with double
    #[arg(long, default_value = "auto")]
    device: String,
    /// Fewer comparisons; times demo at 16
    #[arg(long)]
    quick: bool,
    /// A preset to time and images of a batch, halved until it fits (repeatable) [default: hi_e:64, base:64]
    #[arg(long, value_name = "PRESET:N")]
    time: Vec<String>,
    /// Data folder to train from: how long a step waits
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// benches/peers/step_torch.py: the same steps in PyTorch
    #[arg(long, value_name = "FILE")]
    peer: Option<PathBuf>,
    /// Python with PyTorch, for --peer
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    /// All of it takes no longer
    #[arg(long, default_value_t = 8.0)]
    minutes: f64,
    /// A file for the result, one JSON object (also the last line printed), that is written as it grows
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// What one process of it does
    #[arg(long, hide = true, requires = "records")]
    part: Option<String>,
    /// Where that process writes
    #[arg(long, hide = true)]
    records: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    if let (Some(part), Some(records)) = (&args.part, &args.records) {
        return one(part, records, &args.device);
    }
    let Ended { json, wrong, agreeing, stopped } = plan(args)?.run()?;
    match (agreeing, &wrong[..]) {
        (0, []) => say::print("nothing was compared")?,
        (count, []) => say::print(format_args!("all {count} comparisons agree"))?,
        (count, wrong) => {
            let (of, names) = (count + wrong.len(), wrong.join("; "));
            say::print(format_args!("{} of {of} comparisons DIFFER: {names}", wrong.len()))?;
        }
    }
    say::print(json)?;
    Ok(match (stopped, wrong.is_empty() && agreeing > 0) {
        (true, _) => exit::STOPPED,
        (false, true) => exit::DONE,
        (false, false) => exit::FAILED,
    })
}

fn one(part: &str, records: &Path, device: &str) -> Result<u8> {
    let part: Part = serde_json::from_str(part).map_err(|e| usage(&format!("--part: {e}")))?;
    part.run(device, &mut Sink::open(records)?, &stop()?)?;
    Ok(exit::DONE)
}

fn plan(args: &Args) -> Result<Plan> {
    let default: &[&str] = if args.quick { &["demo:16"] } else { &["hi_e:64", "base:64"] };
    let default = default.iter().map(|s| (*s).to_owned()).collect();
    let timed = if args.time.is_empty() { &default } else { &args.time };
    let timed = timed.iter().map(|text| {
        let wrong =
            || usage(&format!("--time {text}: write it as PRESET:N, with at least 2 images"));
        let (preset, batch) = text.split_once(':').ok_or_else(wrong)?;
        let batch = batch.parse().ok().filter(|batch| *batch >= 2).ok_or_else(wrong)?;
        Config::resolve(&Origin::Preset(preset), &[])?;
        Ok((preset.to_owned(), batch))
    });
    let timed = timed.collect::<Result<Vec<_>>>()?;
    if !(0.1..=1e4).contains(&args.minutes) {
        return Err(usage(&format!("--minutes {}: give 0.1 to 10000", args.minutes)));
    }
    let there = |path: &Option<PathBuf>| match path {
        Some(path) if !path.exists() && !pipeline::is_url(path) => {
            Err(usage(&format!("{}: no such file or folder", path.display())))
        }
        _ => Ok(()),
    };
    there(&args.data)?;
    there(&args.peer)?;
    let (python, peer) = (args.python.clone(), args.peer.clone());
    Ok(Plan {
        device: args.device.clone(),
        quick: args.quick,
        timed,
        data: args.data.clone(),
        peer: peer.map(|script| Peer { python, script }),
        most: Duration::from_secs_f64(60.0 * args.minutes),
        out: args.out.clone(),
    })
}

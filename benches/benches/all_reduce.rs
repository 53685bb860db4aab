//! Seconds of the sums over two ranks that a step makes of its gradients and losses, beside one bare Gloo all-reduce
//! of as many bytes: two processes on this machine, over the loopback.
//!
//! `cargo bench -p benches --bench all_reduce -- --preset base [--rounds N]`. The ranks need two cores and hold the
//! gradients of a whole step each (1.9 GB for base). The last line is one JSON object.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use benches::median;
use clap::Parser;
use common::stop::Stop;
use dist::{self, Pending, Place, World};
use serde_json::json;
use tch::{Device, Kind, Tensor};
use torch_ext::c10d::{Group, Reduce, Store};
use trainer::config::{Config, Origin};
use trainer::scale::{Exchange, Sums};

const RANKS: usize = 2;

#[derive(Debug, Parser)]
struct Args {
    /// Preset whose gradients are summed
    #[arg(long, default_value = "base")]
    preset: String,
    /// Rounds to time, each of one way and of the other, after one to warm up
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Given to the ranks: the file for rank 0's results
    #[arg(long, hide = true)]
    report: Option<PathBuf>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.rounds > 0, "--rounds 0 times nothing");
    let config = Config::resolve(&Origin::Preset(&args.preset), &[])?;
    if let Some(report) = &args.report {
        return rank(&args, &config, report);
    }
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report");
    let mut again: Vec<OsString> = std::env::args_os().skip(1).collect();
    again.extend(["--report".into(), report.clone().into()]);
    let code = trainer::launch(&again, RANKS)?;
    anyhow::ensure!(code == 0, "a rank failed");
    print!("{}", std::fs::read_to_string(report)?);
    Ok(())
}

fn rank(args: &Args, config: &Config, report: &Path) -> anyhow::Result<()> {
    let place = Place::from_env()?;
    let group = bare(&place)?;
    let world = World::join(place, Device::Cpu, config.limits(), vec![], &Stop::default())?;
    // One update after the other, of each the values of every bucket.
    let mut of = vec![];
    for Sums { updates, buckets, .. } in Exchange::of(config).gradients {
        of.extend(vec![buckets.iter().map(|n| *n as i64).collect::<Vec<_>>(); updates as usize]);
    }
    let values = of.iter().flatten().sum::<i64>();
    let cpu = (Kind::Float, Device::Cpu);
    // Both ways sum the same memory. Zeros: a sum of sums must not overflow.
    let flat = Tensor::zeros([values], cpu);
    let mut parts = flat.split_with_sizes(of.concat(), 0).into_iter();
    let updates: Vec<Vec<_>> =
        of.iter().map(|update| parts.by_ref().take(update.len()).collect()).collect();
    let (mut own, mut gloo) = (vec![], vec![]);
    for round in 0..=args.rounds {
        own.push(timed(&world, || {
            for buckets in &updates {
                let losses = Tensor::zeros([2], cpu);
                let all = buckets.iter().chain([&losses]);
                let under_way: Vec<_> = all.map(|tensor| world.sum_later(tensor)).collect();
                under_way.into_iter().for_each(Pending::wait);
            }
            world.check().map_err(anyhow::Error::from)
        })?);
        gloo.push(timed(&world, || {
            let work = group.all_reduce(&flat, Reduce::Sum).map_err(anyhow::Error::msg)?;
            work.wait().map_err(anyhow::Error::msg)
        })?);
        if round == 0 {
            (own, gloo) = (vec![], vec![]);
        }
    }
    let [own, gloo] = [own, gloo].map(|seconds| median(seconds).unwrap_or(f64::NAN));
    let (ratio, bytes) = (own / gloo, 4 * values);
    let gigabytes = bytes as f64 / 1e9;
    let line = json!({
        "bench": "all_reduce", "preset": args.preset, "ranks": RANKS, "bytes": bytes, "rounds": args.rounds,
        "own_seconds": own, "gloo_seconds": gloo, "ratio": ratio, "own_gb_per_s": gigabytes / own,
    });
    if world.leads() {
        let text = format!(
            "{} sums {gigabytes:.3} GB a step over {RANKS} ranks, medians of {} rounds\n\
             as the trainer does  {own:>8.4} s\none bare all-reduce  {gloo:>8.4} s, ratio {ratio:.3}\n{line}\n",
            args.preset, args.rounds,
        );
        std::fs::write(report, text)?;
    }
    Ok(world.conclude(Ok::<_, dist::Error>(()))?)
}

/// A group beside the trainer's, through the same store.
fn bare(place: &Place) -> anyhow::Result<Group> {
    let variable = |name| std::env::var(name).context(name);
    let (host, port) = (variable("MASTER_ADDR")?, variable("MASTER_PORT")?.parse()?);
    let minute = Duration::from_secs(60);
    let store = Store::open((&host, port), false, "bare/", minute).map_err(anyhow::Error::msg)?;
    Group::gloo(&store, (place.rank, place.size), &host, minute).map_err(anyhow::Error::msg)
}

/// Seconds from when all ranks are there.
fn timed(world: &World, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let _ = world.largest(0);
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

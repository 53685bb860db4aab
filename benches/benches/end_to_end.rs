//! Pipeline and trainer together: how long a step waits for data, and how fast a trainer may be before
//! loading becomes its limit.
//!
//! `cargo bench -p benches --bench end_to_end -- --data DIR [--preset P] [--batch N] [--device D]
//! [--threads N] [--rates LIST]`. The last line is one JSON object.
//!
//! First the real step of a preset trains on real shards. Then a trainer that only takes batches, through
//! the very same feed, and pauses after each so as to take R images a second, for rising R. A step reads a
//! batch for each update of D and one more; R counts all of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use benches::{Subject, from_callers_folder};
use clap::Parser;
use common::stop::Stop;
use dist::World;
use pipeline::{Cursor, Dataset};
use serde::Serialize;
use serde_json::{Value, json};
use tch::Device;
use trainer::config::Config;
use trainer::device;
use trainer::feed::Feed;
use trainer::run::open_data;
use trainer::timing::{OnFeed, on_feed};

/// Loading is the limit where a trainer loses more than this share of its time to it.
const TOLERATED: f64 = 0.01;
/// As good as nothing lost.
const NOTHING: f64 = 0.001;
/// The limit is found to this share of itself.
const EXACT: f64 = 0.03;
/// A batch that came later than this was waited for.
const LATE: Duration = Duration::from_millis(1);

#[derive(Debug, Parser)]
#[command(name = "end_to_end")]
struct Args {
    /// Folder of shards, or its URL; a relative one is sought from where the command was typed
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[command(flatten)]
    subject: Subject,
    /// Decode threads [default: the preset's]
    #[arg(long)]
    threads: Option<usize>,
    /// Steps of the real trainer to time, after the first and a tenth more; 0 leaves it out
    #[arg(long, default_value_t = 30)]
    steps: u64,
    /// Images a second that the paced trainer takes, such as 500,1000 [default: shares of what the feed
    /// gives to one that never pauses]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    rates: Vec<f64>,
    /// Seconds at each rate
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let begun = Instant::now();
    let args = Args::parse();
    ensure!(args.seconds > 0.0, "--seconds {}: give more than 0", args.seconds);
    ensure!(args.rates.iter().all(|rate| *rate > 0.0), "--rates: give rates above 0");
    let mut changes = vec![format!("data.dir={}", from_callers_folder(&args.data).display())];
    changes.extend(args.threads.map(|threads| format!("data.threads={threads}")));
    let config = args.subject.config(changes)?;
    let device = device::parse(&args.subject.device)?;
    let data = open_data(&config, "train").context("cannot measure without data")?;
    let (batch, updates) = (config.train.batch, config.train.d_steps + 1);
    println!("{} on {device:?}, batch {batch}, {updates} batches a step", args.subject.preset);

    let real = if args.steps == 0 {
        None
    } else {
        Some(train(&config, &data, device, args.steps, begun)?)
    };
    let paced = pace(&config, &data, device, &args)?;
    let line = json!({
        "bench": "end_to_end", "preset": args.subject.preset, "device": format!("{device:?}"), "batch": batch,
        "threads": tch::get_num_threads(), "decode_threads": config.data.threads,
        "precision": config.train.precision, "real": real, "paced": paced,
    });
    println!("{line}");
    Ok(())
}

/// The real step.
fn train(
    config: &Config,
    data: &Arc<Dataset>,
    device: Device,
    steps: u64,
    begun: Instant,
) -> Result<OnFeed> {
    let real = on_feed(config, data, device, (steps, begun), &Stop::default())?;
    println!("start to first step   {:>9.2} s", real.first_step_s);
    println!("step                  {:>9.4} s, mean of {steps}", real.step_s);
    println!(
        "waited for data       {:>9.4} s a step, {:.2} % of the time (for the loader {:.2} %)",
        real.wait_s,
        100.0 * real.wait_share,
        100.0 * real.loading_share
    );
    println!("images read           {:>9.0} a second", real.images_read_per_s);
    Ok(real)
}

/// A trainer that took images at a steady rate.
#[derive(Debug, Clone, Copy, Serialize)]
struct Paced {
    /// Images a second that it would have taken without waits; none where it never paused.
    rate: Option<f64>,
    /// Those that it took.
    images_per_s: f64,
    /// Share of the time that it waited for the loader.
    loading_share: f64,
    /// Share of its speed that it lost: to these waits, to decode threads that kept it from its core, and
    /// to an upload that takes longer than its step; none where it never paused.
    lost_share: Option<f64>,
    /// Batches that it waited for.
    late: u64,
    batches: u64,
}

/// Runs trainers of rising speed, then those between the fastest that loading keeps up with and the next.
fn pace(config: &Config, data: &Arc<Dataset>, device: Device, args: &Args) -> Result<Value> {
    let at = |rate| at_rate(config, data, device, rate, args.seconds);
    println!("{:>12} {:>12} {:>10} {:>10}  late", "images/s", "reached", "waited", "lost");
    let flat_out = at(None)?;
    let top = flat_out.images_per_s;
    let mut rates = args.rates.clone();
    if rates.is_empty() {
        rates.extend([0.25, 0.5, 0.75, 0.9, 1.0, 1.1].map(|share| share * top));
    }
    rates.sort_by(f64::total_cmp);
    let (mut low, mut high, mut all) = (0.0, None, vec![]);
    let mut next = rates.into_iter();
    loop {
        let rate = match (next.next(), high) {
            (Some(rate), _) => rate,
            (None, Some(high)) if high - low > EXACT * high => f64::midpoint(low, high),
            _ => break,
        };
        let paced = at(Some(rate))?;
        all.push(paced);
        if paced.lost_share.is_some_and(|lost| lost > TOLERATED) {
            high = Some(high.map_or(rate, |high: f64| high.min(rate)));
        } else if high.is_none_or(|high| rate < high) {
            low = rate;
        }
    }
    let free = |p: &Paced| p.late == 0 && p.lost_share.is_some_and(|lost| lost <= NOTHING);
    let rate_if =
        |wanted: bool| all.iter().filter(move |p| free(p) == wanted).filter_map(|p| p.rate);
    let slowest_late = rate_if(false).min_by(f64::total_cmp).unwrap_or(f64::INFINITY);
    let never_late = rate_if(true).filter(|rate| *rate < slowest_late).max_by(f64::total_cmp);
    match high {
        Some(_) => println!("loading becomes the limit at about {low:.0} images/s"),
        None => println!("loading is not the limit up to {low:.0} images/s"),
    }
    if let Some(rate) = never_late {
        println!("no wait at all up to {rate:.0} images/s");
    }
    Ok(json!({
        "flat_out": flat_out, "rates": all, "limit_images_per_s": high.map(|_| low),
        "no_wait_images_per_s": never_late,
    }))
}

/// Takes batches for `seconds` at `rate` images a second, without a pause where there is none.
fn at_rate(
    config: &Config,
    data: &Arc<Dataset>,
    device: Device,
    rate: Option<f64>,
    seconds: f64,
) -> Result<Paced> {
    let stop = Stop::default();
    let mut feed = Feed::start(config, data, Cursor::default(), device, &World::alone())?;
    feed.prime(&stop)?;
    let batch = config.train.batch as f64;
    let period = Duration::from_secs_f64(rate.map_or(0.0, |rate| batch / rate));
    // Batches made ahead would hide for a while that loading is too slow.
    for _ in 0..config.data.depth + 2 {
        feed.next(&stop)?;
    }
    let mut due = Instant::now();
    let mut take = |feed: &mut Feed| -> Result<Duration> {
        let before = feed.loading;
        feed.next(&stop)?;
        let wait = feed.loading - before;
        // The step takes as long whether or not it had to wait before; the upload is part of it. A pause
        // that was too long is made up for.
        due += period + wait;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        Ok(wait)
    };
    take(&mut feed)?;
    take(&mut feed)?;
    let (from, mut waited) = (Instant::now(), Duration::ZERO);
    let (mut late, mut batches) = (0, 0);
    while from.elapsed().as_secs_f64() < seconds || batches < 8 {
        let wait = take(&mut feed)?;
        waited += wait;
        late += u64::from(wait > LATE);
        batches += 1;
    }
    let elapsed = from.elapsed().as_secs_f64();
    let images_per_s = batches as f64 * batch / elapsed;
    let loading_share = waited.as_secs_f64() / elapsed;
    let lost_share = rate.map(|rate| (1.0 - images_per_s / rate).max(0.0));
    println!(
        "{:>12} {images_per_s:>12.0} {:>8.2} % {:>10}  {late} of {batches} batches",
        rate.map_or("no pause".into(), |rate| format!("{rate:.0}")),
        100.0 * loading_share,
        lost_share.map_or(String::new(), |lost| format!("{:.2} %", 100.0 * lost))
    );
    Ok(Paced { rate, images_per_s, loading_share, lost_share, late, batches })
}

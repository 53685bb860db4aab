//! How fast images come in: the whole pipeline, the bare loop that bounds it, and their ratio.
//!
//! `cargo bench -p benches --bench input -- --data DIR [--threads N] [--epochs K]`
//!
//! The limit is the very same decode function on preloaded bytes into one buffer a thread: no
//! queue, no shared memory, no allocation. Pipeline and limit take turns, `--rounds` times each,
//! and the medians are given, of the rounds' own ratios too. The last line is one JSON object.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use benches::{from_callers_folder, median};
use clap::Parser;
use pipeline::decode::{DecodeOptions, Decoder};
use pipeline::{
    Cursor, Dataset, Filter, Heap, Loader, LoaderConfig, Mode, RemoteOptions, Scaling, Shuffle,
};
use xxhash_rust::xxh3::Xxh3;

/// Images per second of the input pipeline, and of the loop that bounds it.
#[derive(Debug, Parser)]
#[command(
    name = "input",
    after_help = "Example: cargo bench -p benches --bench input -- --data data/imagenet"
)]
struct Arguments {
    /// Folder of shards, or its URL; a relative one is sought from where the command was typed.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The split to read.
    #[arg(long, default_value = "train")]
    split: String,
    /// Decode threads; all cores unless given.
    #[arg(long)]
    threads: Option<usize>,
    /// Passes over the data in a round; as many as make 24,000 images unless given, so that the start,
    /// which counts, is small.
    #[arg(long)]
    epochs: Option<u64>,
    /// Times that pipeline and limit are measured, taking turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Rows of a batch.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Encoder size, pixels a side.
    #[arg(long, default_value_t = 256)]
    large: usize,
    /// Generator size, pixels a side.
    #[arg(long, default_value_t = 128)]
    small: usize,
    /// resnet, distorted, biggan, eval, full or small.
    #[arg(long, default_value = "resnet", value_parser = word::<Mode>)]
    mode: Mode,
    /// bilinear or bicubic, antialiased.
    #[arg(long, default_value = "bilinear", value_parser = word::<Filter>)]
    filter: Filter,
    /// global, shards or none.
    #[arg(long, default_value = "global", value_parser = word::<Shuffle>)]
    shuffle: Shuffle,
    /// off or dct.
    #[arg(long, default_value = "off", value_parser = word::<Scaling>)]
    scaling: Scaling,
    /// Keep each decode thread on one core.
    #[arg(long)]
    pin: bool,
    /// Measure the pipeline only.
    #[arg(long)]
    no_limit: bool,
    /// Take no more than N images a second, as a trainer would, and tell how long it waited.
    #[arg(long, value_name = "N")]
    cap: Option<f64>,
    /// For a URL: a folder that keeps what was read.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// For a URL: MiB asked for ahead of the decode threads.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    read_ahead: u64,
    /// Cargo passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let dir = from_callers_folder(&arguments.data);
    let options = RemoteOptions {
        read_ahead: arguments.read_ahead << 20,
        cache: arguments.cache.clone(),
        ..RemoteOptions::default()
    };
    let data = Dataset::open_with(&dir, &arguments.split, &options);
    let data = Arc::new(data.context("cannot measure without data")?);
    let config = config(&arguments);
    let pixels = config.large.pow(2) + config.small.map_or(0, |small| small.pow(2));
    let epochs = arguments.epochs.unwrap_or_else(|| 24_000_u64.div_ceil(data.len().max(1) as u64));
    ensure!(epochs > 0 && arguments.rounds > 0, "--epochs and --rounds start at 1");

    // One pass to warm the page cache; its first batch tells the time to start.
    let first = run(&data, &config, 1, None)?;
    eprintln!("first batch after {:.1} ms", 1e3 * first.first_batch);
    let (mut rates, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut whole, mut used) = (None, None);
    for round in 0..arguments.rounds {
        let measured = run(&data, &config, epochs, arguments.cap)?;
        rates.push(measured.rate());
        // Before the bare loop, whose files are not the pipeline's.
        let used = used.get_or_insert_with(memory);
        used.anon = used.anon.max(PEAK_ANON.load(Ordering::Relaxed));
        if !arguments.no_limit {
            let limit = limit(&data, &config, measured.images)?;
            limits.push(limit);
            ratios.push(measured.rate() / limit);
        }
        eprintln!(
            "round {round}: {:.0} images/s, limit {:.0} images/s; {}",
            measured.rate(),
            limits.last().copied().unwrap_or(f64::NAN),
            measured.bottleneck
        );
        whole = Some(measured);
    }
    let (Some(whole), Some(used)) = (whole, used) else { return Ok(()) };
    let (rate, limit) = (median(rates), median(limits));
    println!(
        "{}",
        serde_json::json!({
            "bench": "input",
            "images_per_s": rate,
            "limit_images_per_s": limit,
            "efficiency": median(ratios),
            "threads": config.threads,
            "epochs": epochs,
            "images": whole.images,
            "bytes": whole.bytes,
            "seconds": whole.seconds,
            "first_batch_s": first.first_batch,
            "starved": whole.starved,
            "hash": arguments.cap.map(|_| format!("{:016x}", whole.hash)),
            "remote": data.traffic(),
            "peak_rss_bytes": used.peak_rss,
            "peak_anon_bytes": used.anon,
            "slab_bytes": (config.depth + 2) * config.batch * 3 * pixels,
        })
    );
    Ok(())
}

fn config(arguments: &Arguments) -> LoaderConfig {
    let base = LoaderConfig::default();
    LoaderConfig {
        batch: arguments.batch,
        large: arguments.large,
        small: (arguments.small > 0).then_some(arguments.small),
        mode: arguments.mode,
        filter: arguments.filter,
        shuffle: arguments.shuffle,
        scaling: arguments.scaling,
        threads: arguments.threads.unwrap_or(base.threads),
        pin: arguments.pin,
        ..base
    }
}

struct Measured {
    images: u64,
    bytes: u64,
    seconds: f64,
    first_batch: f64,
    /// Share of the time that the consumer waited for a batch, the first one's wait left out.
    starved: f64,
    /// XXH3-64 of all small views and sample ids, taken with `--cap` only: equal runs, equal hashes.
    hash: u64,
    bottleneck: String,
}

impl Measured {
    fn rate(&self) -> f64 {
        self.images as f64 / self.seconds
    }
}

static PEAK_ANON: AtomicU64 = AtomicU64::new(0);

/// The whole pipeline with a consumer that only takes batches, `cap` images a second at most.
fn run(
    data: &Arc<Dataset>,
    config: &LoaderConfig,
    epochs: u64,
    cap: Option<f64>,
) -> Result<Measured> {
    let config = LoaderConfig { epochs: Some(epochs), ..config.clone() };
    let started = Instant::now();
    let mut loader = Loader::start(Arc::clone(data), config, Cursor::default(), Arc::new(Heap))?;
    let (mut images, mut first_batch, mut starved) = (0, None, 0.0);
    let mut hash = Xxh3::new();
    let mut asked = started;
    for batch in loader.by_ref() {
        let batch = batch?;
        let waited = asked.elapsed().as_secs_f64();
        match first_batch {
            None => first_batch = Some(waited),
            Some(_) => starved += waited,
        }
        images += batch.rows() as u64;
        if cap.is_some() {
            hash.update(batch.small());
            batch.ids().iter().for_each(|id| hash.update(&id.to_le_bytes()));
        }
        // Rarely: asking takes a hundredth of the time that a batch does.
        if images % (32 * batch.rows() as u64) == 0 {
            PEAK_ANON.fetch_max(memory().anon, Ordering::Relaxed);
        }
        // A thread that gets the memory may take this one's core for a while, which is no waiting.
        drop(batch);
        if let (Some(cap), Some(first)) = (cap, first_batch) {
            // A trainer's step takes as long whether or not it had to wait before.
            let due = started + Duration::from_secs_f64(first + starved + images as f64 / cap);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        asked = Instant::now();
    }
    let seconds = started.elapsed().as_secs_f64();
    let first_batch = first_batch.unwrap_or(f64::NAN);
    let stats = loader.stats();
    Ok(Measured {
        images,
        bytes: stats.bytes,
        seconds,
        first_batch,
        starved: starved / (seconds - first_batch),
        hash: hash.digest(),
        bottleneck: stats.bottleneck,
    })
}

/// Files that the bare loop holds in memory, at most: two gigabytes of ImageNet's.
const LIMIT_FILES: u64 = 16_384;

/// The bare loop: each thread decodes its share of the same views from memory into one buffer.
fn limit(data: &Arc<Dataset>, config: &LoaderConfig, images: u64) -> Result<f64> {
    let files: Vec<(Vec<u8>, Vec<u8>)> = (0..images.min(data.len() as u64).min(LIMIT_FILES))
        .map(|sample| Ok((data.bytes(sample)?.to_vec(), data.seek_record(sample))))
        .collect::<Result<_>>()?;
    let options = DecodeOptions {
        filter: config.filter,
        scaling: config.scaling,
        ..DecodeOptions::default()
    };
    let (count, side) = (files.len() as u64, config.large);
    let started = Instant::now();
    let worker = |thread: u64| -> Result<()> {
        let mut decoder = Decoder::new(options)?;
        let mut large = vec![0; side * side * 3];
        let mut small = vec![0; config.small.map_or(0, |small| small * small * 3)];
        for image in (thread..images).step_by(config.threads) {
            let (sample, epoch) = (image % count, image / count);
            let view = |width, height| config.view(sample, epoch, (width, height));
            let (bytes, points) = &files[sample as usize];
            let file = (&**bytes, data.seek_points(sample, points, bytes)?);
            decoder.view_seeking(file, view, side, (&mut large, &mut small))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..config.threads as u64).map(|thread| scope.spawn(move || worker(thread))).collect();
        let joined = threads.into_iter().map(|thread| {
            thread.join().map_err(|_| anyhow::anyhow!("a decode thread panicked"))?
        });
        joined.collect::<Result<()>>()
    })?;
    Ok(images as f64 / started.elapsed().as_secs_f64())
}

struct Memory {
    peak_rss: u64,
    anon: u64,
}

/// What the system says of this process's memory, bytes; zero where it does not say.
fn memory() -> Memory {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        number.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    Memory { peak_rss: kilobytes("VmHWM:"), anon: kilobytes("RssAnon:") }
}

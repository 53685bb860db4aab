//! Seconds of a D update, of a G/E update and of a whole step, on random images; or what its kernels read and write.
//!
//! `cargo bench -p benches --bench step -- --preset demo [--batch N] [--steps N | --audit] [--device D]`.
//! The last line is one JSON object.

use std::mem;

use benches::{Subject, median, peak_rss};
use bigbigan_model::images::Images;
use bigbigan_model::state::TrainState;
use bigbigan_model::step::{discriminator_step, encoder_generator_step, prepare};
use clap::Parser;
use serde_json::json;
use tch::Tensor;
use torch_ext::measure::Audit;
use torch_ext::stream::Moment;
use trainer::config::Config;
use trainer::device;
use trainer::inspect::{Cost, Counts};
use trainer::peak;
use trainer::timing::random_images;

#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Steps to time, after a tenth of it (at least three) to warm up
    #[arg(long, default_value_t = 30)]
    steps: usize,
    /// Time nothing: print what the kernels of a step read and write
    #[arg(long, conflicts_with = "steps")]
    audit: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.steps > 0, "--steps 0 times nothing");
    let config = args.subject.config(vec!["train.micro_batch=0".to_owned()])?;
    let device = device::parse(&args.subject.device)?;
    prepare(&config.recipe(), device)?;
    let mut state = TrainState::new(&config.recipe(), device, true);
    let images = random_images(&config, device);
    let (mut losses, mut moments) = (vec![], vec![]);
    // In the third, spectral norms are recorded.
    for _ in 0..(args.steps / 10).max(3) {
        whole_step(&config, &mut state, &images, &mut losses, &mut vec![])?;
    }
    check(&mem::take(&mut losses))?;
    if args.audit {
        return count(&args.subject.preset, &config, &mut state, &images);
    }
    // Nothing in here waits for the device.
    for _ in 0..args.steps {
        whole_step(&config, &mut state, &images, &mut losses, &mut moments)?;
    }
    check(&losses)?;
    let (mut d, mut eg, mut whole) = (vec![], vec![], vec![]);
    let updates = config.train.d_steps as usize + 1;
    for step in moments.chunks_exact(updates + 1) {
        for (update, ends) in step.windows(2).enumerate() {
            let seconds = ends[1].since(&ends[0])?;
            if update + 1 < updates { d.push(seconds) } else { eg.push(seconds) }
        }
        whole.push(step[updates].since(&step[0])?);
    }
    let [d, eg, whole] = [d, eg, whole].map(|seconds| median(seconds).unwrap_or(f64::NAN));
    let batch = config.train.batch;
    let images_per_s = batch as f64 / whole;
    let audit = audited(&config, &mut state, &images)?;
    let gflop = Cost::of(&config, &Counts::of(&config)).step_flop / 1e9;
    let peak = peak::of(device, config.train.precision);
    let mfu = peak.map(|flops| 1e9 * gflop * images_per_s / flops);
    println!(
        "{} on {device:?}, batch {batch}, medians of {} steps",
        args.subject.preset, args.steps
    );
    println!("D update    {d:>9.4} s");
    println!("G/E update  {eg:>9.4} s");
    println!("whole step  {whole:>9.4} s   {images_per_s:.1} images/s");
    println!("{:.1} GFLOP/s, {} operators a step", gflop * images_per_s, audit.work.operators);
    println!("{:.3} GB read and written a step", audit.moved() / 1e9);
    if let Some(mfu) = mfu {
        println!("MFU {:.1} %", 100.0 * mfu);
    }
    let line = json!({
        "bench": "step", "preset": args.subject.preset, "device": format!("{device:?}"), "batch": batch,
        "threads": tch::get_num_threads(), "precision": config.train.precision, "d_seconds": d, "eg_seconds": eg,
        "step_seconds": whole, "images_per_s": images_per_s, "gflop_per_s": gflop * images_per_s, "mfu": mfu,
        "operators": audit.work.operators,
        "moved_bytes": audit.moved(), "peak_rss_bytes": peak_rss(),
    });
    println!("{line}");
    Ok(())
}

/// One step, counted instead of timed.
fn audited(config: &Config, state: &mut TrainState, images: &Images) -> anyhow::Result<Audit> {
    let (done, audit) = Audit::of(|| whole_step(config, state, images, &mut vec![], &mut vec![]));
    done?;
    Ok(audit)
}

fn count(
    preset: &str,
    config: &Config,
    state: &mut TrainState,
    images: &Images,
) -> anyhow::Result<()> {
    let audit = audited(config, state, images)?;
    println!("{}", audit.table(40));
    for (words, times) in &audit.layouts {
        println!("not channels_last, {times} times: {words}");
    }
    println!("{:.3} GB read and written a step", audit.moved() / 1e9);
    let line = json!({
        "bench": "audit", "preset": preset, "batch": config.train.batch, "precision": config.train.precision,
        "operators": audit.work.operators, "moved_bytes": audit.moved(),
    });
    println!("{line}");
    Ok(())
}

fn again(images: &Images) -> Images {
    images.rows(0, images.len())
}

/// One step; the moments of its begin and of the end of every update.
fn whole_step(
    config: &Config,
    state: &mut TrainState,
    images: &Images,
    losses: &mut Vec<Tensor>,
    moments: &mut Vec<Moment>,
) -> anyhow::Result<()> {
    let device = images.large.device();
    moments.push(Moment::of(device)?);
    for update in 0..config.train.d_steps {
        losses.push(discriminator_step(&config.recipe(), state, again(images), update).0);
        moments.push(Moment::of(device)?);
    }
    losses.push(encoder_generator_step(&config.recipe(), state, again(images)).swap_remove(0).0);
    moments.push(Moment::of(device)?);
    state.step += 1;
    Ok(())
}

fn check(losses: &[Tensor]) -> anyhow::Result<()> {
    let finite = Tensor::stack(losses, 0).isfinite().all();
    anyhow::ensure!(finite.int64_value(&[]) == 1, "a loss is not finite");
    Ok(())
}

//! Seconds of a D update, of a G/E update and of a whole step, on random images.
//!
//! `cargo bench -p benches --bench step -- --preset demo [--batch N] [--steps N] [--device D]`.
//! The last line is one JSON object.

use std::time::Instant;

use anyhow::Context;
use benches::{Subject, median, peak_rss};
use clap::Parser;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use trainer::config::Config;
use trainer::device::{self, Images};
use trainer::inspect::{Cost, Counts};
use trainer::measure::Work;
use trainer::peak;
use trainer::state::TrainState;
use trainer::step::{discriminator_step, encoder_generator_step, prepare};

#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Steps to time, after a tenth of it (at least one) to warm up
    #[arg(long, default_value_t = 30)]
    steps: usize,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.steps > 0, "--steps 0 times nothing");
    let config = args.subject.config(vec!["train.micro_batch=0".to_owned()])?;
    let device = device::parse(&args.subject.device)?;
    prepare(&config, device)?;
    let mut state = TrainState::new(&config, device, true);
    let images = random_images(&config, device);
    let warm_up = (args.steps / 10).max(1);
    let (mut d, mut eg, mut whole) = (vec![], vec![], vec![]);
    for step in 0..warm_up + args.steps {
        let begun = Instant::now();
        for update in 0..config.train.d_steps {
            let update_begun = Instant::now();
            let (loss, _) = discriminator_step(&config, &mut state, again(&images), update);
            wait_for(device, &loss).context("the loss of D")?;
            d.push(update_begun.elapsed().as_secs_f64());
        }
        let update_begun = Instant::now();
        let ((loss, _), _) = encoder_generator_step(&config, &mut state, again(&images));
        wait_for(device, &loss).context("the loss of G")?;
        eg.push(update_begun.elapsed().as_secs_f64());
        state.step += 1;
        whole.push(begun.elapsed().as_secs_f64());
        if step + 1 == warm_up {
            (d, eg, whole) = (vec![], vec![], vec![]);
        }
    }
    let [d, eg, whole] = [d, eg, whole].map(|seconds| median(seconds).unwrap_or(f64::NAN));
    let batch = config.train.batch;
    let images_per_s = batch as f64 / whole;
    // One more step, counted instead of timed.
    let ((), work) = Work::of(|| {
        for update in 0..config.train.d_steps {
            let _ = discriminator_step(&config, &mut state, again(&images), update);
        }
        let _ = encoder_generator_step(&config, &mut state, again(&images));
    });
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
    println!("{:.1} GFLOP/s, {} operators a step", gflop * images_per_s, work.operators);
    if let Some(mfu) = mfu {
        println!("MFU {:.1} %", 100.0 * mfu);
    }
    let line = json!({
        "bench": "step", "preset": args.subject.preset, "device": format!("{device:?}"), "batch": batch,
        "threads": tch::get_num_threads(), "precision": config.train.precision, "d_seconds": d, "eg_seconds": eg,
        "step_seconds": whole, "images_per_s": images_per_s, "gflop_per_s": gflop * images_per_s, "mfu": mfu,
        "operators": work.operators, "peak_rss_bytes": peak_rss(),
    });
    println!("{line}");
    Ok(())
}

fn random_images(config: &Config, device: Device) -> Images {
    let draw = |side| {
        // Channels last in memory, as batches come from the pipeline.
        let shape = [config.train.batch, side, side, 3];
        Tensor::rand(shape, (Kind::Float, device)).permute([0, 3, 1, 2]) * 2.0 - 1.0
    };
    Images { large: draw(config.e.res), small: draw(config.g.res) }
}

fn again(images: &Images) -> Images {
    images.rows(0, images.len())
}

fn wait_for(device: Device, loss: &Tensor) -> anyhow::Result<()> {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
    let value = loss.double_value(&[]);
    anyhow::ensure!(value.is_finite(), "is {value}");
    Ok(())
}

use serde_json::json;
use tch::Device;
use torch_ext::measure;
use trainer::config::Config;
use trainer::error::Result;
use trainer::{device, fit, say};

use super::{Source, usage};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer bench-batch --preset hi_e --device cuda")]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "auto")]
    device: String,
    /// On a CPU: GB (10⁹ bytes) that tensors may take [default: nine tenths of what is free]
    #[arg(long, value_name = "GB")]
    memory: Option<f64>,
    /// Largest size to try [default: train.batch]
    #[arg(long, value_name = "N")]
    most: Option<i64>,
    /// A JSON object a line: one for each size tried, then the largest that fits and the largest of them that divides
    /// train.batch, null where there is none
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let origin =
        args.source.origin().ok_or_else(|| usage("give --preset NAME or --config FILE"))?;
    let config = Config::resolve(&origin, &args.source.set)?;
    let device = device::parse(&args.device)?;
    let most = args.most.unwrap_or(config.train.batch);
    if most < 2 {
        return Err(usage("--most wants at least 2 images: batch norm has nothing to do with one"));
    }
    let limit = match args.memory {
        Some(gb) if gb > 0.0 => gb * 1e9,
        Some(_) => return Err(usage("--memory wants a size above 0")),
        None => 0.9 * measure::free_bytes().unwrap_or(f64::MAX),
    };
    if device == Device::Cpu && !args.json {
        say::print(format_args!("within {:.2} GB", limit / 1e9))?;
    }
    let found = fit::largest(&config, device, limit, most, |tried| {
        if args.json {
            let line = json!({
                "micro_batch": tried.micro_batch, "fits": tried.fits, "peak_bytes": tried.peak_bytes,
                "seconds": tried.seconds,
            });
            // What cannot be written now cannot be at the end.
            let _ = say::print(line);
            return;
        }
        let peak =
            tried.peak_bytes.map_or(String::new(), |bytes| format!("  {:.3} GB", bytes / 1e9));
        let speed = match (tried.seconds, &tried.ran_out) {
            (Some(seconds), _) => format!("  {seconds:.2} s"),
            (None, Some(said)) => format!("  memory ran out: {said}"),
            (None, None) => "  not run: it would not fit".to_owned(),
        };
        let fits = if tried.fits { "fits" } else { "too large" };
        // What cannot be written now cannot be at the end.
        let _ =
            say::print(format_args!("micro-batch {:<5} {fits}{peak}{speed}", tried.micro_batch));
    })?;
    if args.json {
        let batch = config.train.batch;
        let divides = found.and_then(|size| (2..=size).rev().find(|size| batch % size == 0));
        return say::print(json!({"largest": found, "divides_batch": divides}));
    }
    match found {
        None => say::print("not even 2 images fit: see recompute in base.toml")?,
        Some(size) => {
            let batch = config.train.batch;
            let whole = (2..=size).rev().find(|size| batch % size == 0);
            say::print(format_args!("the largest that fits: {size}"))?;
            if let Some(whole) = whole {
                say::print(format_args!(
                    "for train.batch={batch}: --set train.micro_batch={whole}"
                ))?;
            }
        }
    }
    Ok(())
}

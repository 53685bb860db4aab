use std::path::PathBuf;

use trainer::error::Result;
use trainer::eval::{Variant, pictures};
use trainer::{device, run};

use super::{config_of, load};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer sample --run demo/run --count 64 --out samples.png")]
pub(crate) struct SampleArgs {
    /// Folder of a run, or of `export`
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// PNG to write
    #[arg(long, value_name = "FILE", default_value = "samples.png")]
    out: PathBuf,
    /// Number of images
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(i64).range(1..=4096))]
    count: i64,
    /// Which latents: 0 are those of the run's own pictures
    #[arg(long, default_value_t = 0)]
    draw: u64,
    /// Bound of the latents, such as 0.5: typical images rather than all kinds
    #[arg(long)]
    truncation: Option<f64>,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "auto")]
    device: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer reconstruct --run demo/run --split val --out pairs.png")]
pub(crate) struct ReconstructArgs {
    /// Folder of a run, or of `export`
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Data folder, if not the run's own
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Split whose first images are shown [default: the run's eval.split]
    #[arg(long)]
    split: Option<String>,
    /// Beside G of the code's mean, also G of a draw from the code
    #[arg(long)]
    sampled: bool,
    /// PNG to write
    #[arg(long, value_name = "FILE", default_value = "reconstructions.png")]
    out: PathBuf,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "auto")]
    device: String,
}

pub(crate) fn sample(args: &SampleArgs) -> Result<()> {
    let config = config_of(&args.run, None)?;
    let mut model =
        load(&args.run, &config, device::parse(&args.device)?, Variant::Average, false)?;
    model.truncate(args.truncation)?;
    let images = model.generate(&model.latents(args.draw, args.count));
    let columns = (args.count as f64).sqrt().ceil() as u32;
    pictures::save(&pictures::grid(&images, columns), &args.out)?;
    println!("{}", args.out.display());
    Ok(())
}

pub(crate) fn reconstruct(args: &ReconstructArgs) -> Result<()> {
    let config = config_of(&args.run, args.data.as_deref())?;
    let split = args.split.as_ref().unwrap_or(&config.eval.split);
    let split = run::open_data(&config, split)?;
    let model = load(&args.run, &config, device::parse(&args.device)?, Variant::Average, true)?;
    pictures::save(&run::reconstructions(&model, &split, args.sampled)?, &args.out)?;
    println!("{}", args.out.display());
    Ok(())
}

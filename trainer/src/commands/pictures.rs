use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use trainer::error::{Error, Result};
use trainer::eval::pictures;
use trainer::{run, say};

use super::{ModelArgs, Networks, config_of, usage, variant};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer sample --run demo/run --count 64 --out samples.png")]
pub(crate) struct SampleArgs {
    #[command(flatten)]
    networks: Networks,
    /// The live weights, not their averages
    #[arg(long)]
    live: bool,
    /// PNG to write: a grid
    #[arg(long, value_name = "FILE", default_value = "samples.png")]
    out: PathBuf,
    /// Write a PNG for each image into this folder instead, 000000.png, …
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    each: Option<PathBuf>,
    /// Number of images; of a grid 4,096 at most
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    count: i64,
    /// Which latents: 0 are those of the run's own pictures
    #[arg(long, default_value_t = 0)]
    draw: u64,
    /// Bound of the latents, such as 0.5: typical images rather than all kinds
    #[arg(long)]
    truncation: Option<f64>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer reconstruct --run demo/run --split val --out pairs.png")]
pub(crate) struct ReconstructArgs {
    #[command(flatten)]
    source: ModelArgs,
    /// Split whose first images are shown [default: the run's eval.split]
    #[arg(long)]
    split: Option<String>,
    /// Beside G of the code's mean, also G of a draw from the code
    #[arg(long)]
    sampled: bool,
    /// PNG to write
    #[arg(long, value_name = "FILE", default_value = "reconstructions.png")]
    out: PathBuf,
}

/// Refuses a file that cannot be written where it is to be, before there is work to lose.
pub(super) fn check_place(file: &Path) -> Result<()> {
    let folder = file.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let refuse = |reason| Err(Error::Output { path: folder.to_owned(), reason });
    if file.is_dir() {
        let name = file.file_name().unwrap_or_default().display();
        return refuse(format!("{name} is a folder in it: give the name of a file"));
    }
    match access(folder, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Ok(()),
        Err(e) => refuse(format!("{}: make it, or name another", std::io::Error::from(e))),
    }
}

pub(crate) fn sample(args: &SampleArgs) -> Result<()> {
    const PASS: i64 = 64;
    if args.each.is_none() && args.count > 4096 {
        return Err(usage("a grid has 4096 images at most; --each DIR writes one by one"));
    }
    let config = config_of(&args.networks.run, None)?;
    match &args.each {
        Some(folder) => std::fs::create_dir_all(folder).map_err(|e| Error::Output {
            path: folder.clone(),
            reason: format!("{e}: name another"),
        })?,
        None => check_place(&args.out)?,
    }
    let mut model = args.networks.load(&config, variant(args.live), false)?;
    model.truncate(args.truncation)?;
    let Some(folder) = &args.each else {
        let images = model.generate(&model.latents(args.draw, args.count));
        let columns = (args.count as f64).sqrt().ceil() as u32;
        pictures::save(&pictures::grid(&images, columns), &args.out)?;
        say::print(args.out.display())?;
        return Ok(());
    };
    for first in (0..args.count).step_by(PASS as usize) {
        model.stop().check()?;
        let rows = PASS.min(args.count - first);
        let images = model.generate(&model.latents_from(args.draw, first, rows));
        pictures::save_each(&images, first, folder)?;
    }
    say::print(folder.display())?;
    Ok(())
}

pub(crate) fn reconstruct(args: &ReconstructArgs) -> Result<()> {
    let config = args.source.config()?;
    let split = args.split.as_ref().unwrap_or(&config.eval.split);
    let split = run::open_data(&config, split)?;
    check_place(&args.out)?;
    let model = args.source.model(&config, args.source.variant())?;
    pictures::save(&run::reconstructions(&model, &split, args.sampled)?, &args.out)?;
    say::print(args.out.display())?;
    Ok(())
}

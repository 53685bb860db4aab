use std::path::PathBuf;

use trainer::error::Result;
use trainer::eval::Variant;
use trainer::export::{export, make_folder};
use trainer::{run, say};

use super::{Networks, config_of};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer export --run demo/run --out demo/export")]
pub(crate) struct Args {
    #[command(flatten)]
    networks: Networks,
    /// Data folder, if not the run's own
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder to write generator and encoder into, as .safetensors and .pt
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let of = &args.networks;
    let config = config_of(&of.run, args.data.as_deref())?;
    let train = run::open_data(&config, "train")?;
    // Found out now, not after the statistics are collected.
    make_folder(&args.out)?;
    let model = of.load_checkpoint(&config, Variant::Average, Some(&train))?;
    for file in export(&model, &train, &args.out)? {
        say::print(file.display())?;
    }
    Ok(())
}

use std::path::PathBuf;

use trainer::error::Result;
use trainer::eval::Variant;
use trainer::export::{Card, export, make_folder};
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
    /// Folder to write generator and encoder into, as .safetensors and .pt, with a model card
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Licence of the weights that the card names, such as cc-by-4.0
    #[arg(long, value_name = "NAME", default_value = "unknown", value_parser = license)]
    license: String,
}

/// A licence's name, as model hubs have them.
fn license(name: &str) -> std::result::Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-.+".contains(c);
    match !name.is_empty() && name.chars().all(plain) {
        true => Ok(name.to_owned()),
        false => Err("it is a name such as apache-2.0 or cc-by-4.0, or \"other\"".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let of = &args.networks;
    let config = config_of(&of.run, args.data.as_deref())?;
    let train = run::open_data(&config, "train")?;
    // Found out now, not after the statistics are collected.
    make_folder(&args.out)?;
    let model = of.load_checkpoint(&config, Variant::Average, Some(&train))?;
    let card = Card { run: &of.run, license: &args.license };
    for file in export(&model, &train, card, &args.out)? {
        say::print(file.display())?;
    }
    Ok(())
}

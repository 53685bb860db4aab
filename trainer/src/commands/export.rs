use std::path::PathBuf;

use trainer::error::Result;
use trainer::eval::{Model, Variant};
use trainer::export::export;
use trainer::{checkpoint, device, run};

use super::config_of;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer export --run demo/run --out demo/export")]
pub(crate) struct Args {
    /// Folder of a run
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Data folder, if not the run's own
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder to write generator and encoder into, as .safetensors and .pt
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "auto")]
    device: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = config_of(&args.run, args.data.as_deref())?;
    let train = run::open_data(&config, "train")?;
    let path = checkpoint::newest(&args.run.join("checkpoints"))?;
    let step = checkpoint::read_manifest(&path)?.step;
    let model =
        Model::load(&path, &config, device::parse(&args.device)?, Variant::Average, Some(&train))?;
    for file in export(&model, step, &train, &args.out)? {
        println!("{}", file.display());
    }
    Ok(())
}

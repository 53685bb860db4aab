use std::path::PathBuf;

use trainer::error::Result;
use trainer::{report, say};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer report --run demo/run")]
pub(crate) struct Args {
    /// Folder of a run
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    say::print(report::write(&args.run)?.display())?;
    Ok(())
}

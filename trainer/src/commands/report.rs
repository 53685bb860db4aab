use std::path::PathBuf;

use trainer::error::Result;
use trainer::report;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer report --run demo/run")]
pub(crate) struct Args {
    /// Folder of a run
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    println!("{}", report::write(&args.run)?.display());
    Ok(())
}

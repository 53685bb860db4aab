use std::path::PathBuf;

use trainer::error::Result;
use trainer::{report, say};

use super::usage;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer compare runs/first runs/second --out compare.html")]
pub(crate) struct Args {
    /// Folders of two runs or more
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Page to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.out.is_dir() {
        return Err(usage(&format!("--out {}: a folder; give a file", args.out.display())));
    }
    report::compare(&args.runs, &args.out)?;
    say::print(args.out.display())?;
    Ok(())
}

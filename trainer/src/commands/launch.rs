use std::ffi::OsString;

use trainer::error::Result;
use trainer::launch;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: trainer launch -n 2 -- run --preset demo --data demo/data-cifar10 \
                        --out runs/two"
)]
pub(crate) struct Args {
    /// Number of processes
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    ranks: u16,
    /// What each of them runs: a command of trainer and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    launch(&args.command, usize::from(args.ranks))
}

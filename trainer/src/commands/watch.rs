use std::path::PathBuf;

use trainer::error::Result;
use trainer::{say, watch};

use super::stop;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer watch --out runs\n\n\
    On a machine without a screen: ssh -L 8008:localhost:8008 MACHINE, then http://localhost:8008 here. Ends by Ctrl-C.")]
pub(crate) struct Args {
    /// Folder of a run, or one that has runs in it, also in folders of its own
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Port of this machine, which no other machine reaches; 0 for any that is free
    #[arg(long, default_value_t = 8008)]
    port: u16,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    watch::serve(&args.out, args.port, &stop()?, |address| {
        say::print(format_args!("http://{address}"))?;
        Ok(())
    })
}

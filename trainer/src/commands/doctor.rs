use std::path::PathBuf;

use common::exit;
use trainer::error::Result;
use trainer::{doctor, say};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer doctor --data demo/data-cifar10")]
pub(crate) struct Args {
    /// Data folder to look at
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// What the program exits with.
pub(crate) fn run(args: &Args) -> Result<u8> {
    let findings = doctor::examine(args.data.as_deref());
    for finding in &findings {
        let mark = if finding.fine { "ok " } else { "BAD" };
        say::print(format_args!("{mark} {:<9} {}", finding.what, finding.found))?;
    }
    Ok(if findings.iter().all(|f| f.fine) { exit::DONE } else { exit::USAGE })
}

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
    /// A JSON object a line: what, found, fine, cure
    #[arg(long)]
    json: bool,
}

/// What the program exits with.
pub(crate) fn run(args: &Args) -> Result<u8> {
    let findings = doctor::examine(args.data.as_deref());
    for finding in &findings {
        let doctor::Finding { what, found, fine, cure } = finding;
        if args.json {
            let line =
                serde_json::json!({"what": what, "found": found, "fine": fine, "cure": cure});
            say::print(line)?;
            continue;
        }
        let mark = if *fine { "ok " } else { "BAD" };
        say::print(format_args!("{mark} {what:<9} {found}"))?;
        if let Some(cure) = cure {
            say::print(format_args!("              -> {cure}"))?;
        }
    }
    Ok(if findings.iter().all(|f| f.fine) { exit::DONE } else { exit::USAGE })
}

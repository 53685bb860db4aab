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
    /// A JSON object a line: what, found, fine
    #[arg(long)]
    json: bool,
}

/// What the program exits with.
pub(crate) fn run(args: &Args) -> Result<u8> {
    let findings = doctor::examine(args.data.as_deref());
    for finding in &findings {
        let mark = if finding.fine { "ok " } else { "BAD" };
        if args.json {
            let (what, found, fine) = (finding.what, &finding.found, finding.fine);
            say::print(serde_json::json!({"what": what, "found": found, "fine": fine}))?;
        } else {
            say::print(format_args!("{mark} {:<9} {}", finding.what, finding.found))?;
        }
    }
    Ok(if findings.iter().all(|f| f.fine) { exit::DONE } else { exit::USAGE })
}

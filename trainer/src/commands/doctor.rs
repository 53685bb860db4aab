use std::path::PathBuf;
use std::process::ExitCode;

use trainer::{doctor, say};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer doctor --data demo/data-cifar10")]
pub(crate) struct Args {
    /// Data folder to look at
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let findings = doctor::examine(args.data.as_deref());
    for finding in &findings {
        let mark = if finding.fine { "ok " } else { "BAD" };
        let line = format_args!("{mark} {:<9} {}", finding.what, finding.found);
        if let Err(e) = say::print(line) {
            say::note(format_args!("error: {e}"));
            return ExitCode::from(e.exit_code());
        }
    }
    ExitCode::from(if findings.iter().all(|f| f.fine) { 0 } else { 2 })
}

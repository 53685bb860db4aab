use std::path::PathBuf;

use trainer::config::Config;
use trainer::error::Result;
use trainer::inspect::{self, Cost, Counts};
use trainer::{run, say};

use super::{Source, usage};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer inspect --preset base --json")]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Folder of a run
    #[arg(long, value_name = "DIR", conflicts_with_all = ["preset", "config", "set"])]
    run: Option<PathBuf>,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = match (&args.run, args.source.origin()) {
        (Some(run), _) => run::read_config_as_it_is(run)?,
        (None, Some(origin)) => Config::resolve(&origin, &args.source.set)?,
        (None, None) => return Err(usage("give --preset NAME, --config FILE or --run DIR")),
    };
    let counts = Counts::of(&config);
    let cost = Cost::of(&config, &counts);
    if args.json {
        say::print(inspect::json(&counts, &cost))?;
    } else {
        say::print(inspect::table(&counts, &cost))?;
    }
    Ok(())
}

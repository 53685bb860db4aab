use std::path::Path;

use bigbigan_model::presets::PRESETS;
use clap::Subcommand;
use serde_json::json;
use trainer::config::{Config, Origin};
use trainer::error::Result;
use trainer::{run, say};

use super::{table, usage};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print a resolved configuration as TOML
    Show(ShowArgs),
    /// Print the keys in which two configurations differ
    Diff(DiffArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer config show hi_e --set train.batch=256")]
pub(crate) struct ShowArgs {
    /// Name of a preset, a TOML file, or the folder of a run
    what: String,
    /// Change one key (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer config diff hi_e runs/first")]
pub(crate) struct DiffArgs {
    /// Name of a preset, a TOML file, or the folder of a run
    one: String,
    /// Another
    other: String,
    /// A JSON object a line: key, from, to
    #[arg(long)]
    json: bool,
}

/// The configuration of a name. A file or folder is told from a preset by being there.
fn named(name: &str) -> Result<Config> {
    let path = Path::new(name);
    if path.is_dir() {
        return run::read_config_as_it_is(path);
    }
    if path.is_file() {
        return Config::resolve(&Origin::File(path), &[]);
    }
    if name.contains(['/', '.']) && PRESETS.iter().all(|(preset, _)| *preset != name) {
        return Err(usage(&format!("{name}: no such file or folder, and no preset")));
    }
    Config::resolve(&Origin::Preset(name), &[])
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Show(args) => say::print(named(&args.what)?.with(&args.set)?.shown().trim_end()),
        Command::Diff(args) => diff(args),
    }
}

fn diff(args: &DiffArgs) -> Result<()> {
    let (one, other) = (named(&args.one)?, named(&args.other)?);
    let changes = one.without_secrets().changes(&other.without_secrets());
    if args.json {
        for change in changes {
            let (from, to) = (change.from, change.to);
            say::print(json!({"key": change.key, "from": from, "to": to}))?;
        }
        return Ok(());
    }
    if changes.is_empty() {
        return say::print("the same");
    }
    let mut table = table(["key", args.one.as_str(), args.other.as_str()]);
    for change in changes {
        table.add_row([change.key, change.from, change.to]);
    }
    say::print(table)
}

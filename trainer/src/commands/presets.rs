use std::fmt::Write;

use bigbigan_model::presets::PRESETS;
use serde_json::json;
use trainer::error::Result;
use trainer::say;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer presets")]
pub(crate) struct Args {
    /// A JSON object a line: name, extends, what
    #[arg(long)]
    json: bool,
}

/// What a preset says of itself: the comment at its head.
fn what(text: &str) -> String {
    let head = text.lines().map_while(|line| line.strip_prefix('#'));
    head.map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Which one it is made of differences from.
fn extends(text: &str) -> &str {
    let said = text.lines().find_map(|line| line.strip_prefix("extends = \"")?.strip_suffix('"'));
    said.unwrap_or("base")
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut said = String::new();
    for (name, text) in PRESETS {
        let (what, extends) = (what(text), Some(extends(text)).filter(|_| *name != "base"));
        let line = match args.json {
            true => json!({"name": name, "extends": extends, "what": what}).to_string(),
            false => format!("{name:<16} {what}"),
        };
        let _ = writeln!(said, "{line}");
    }
    say::print(said.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_says_what_it_is() {
        for (name, text) in PRESETS {
            assert!(what(text).ends_with(['.', ')']), "{name}: {}", what(text));
            let known = PRESETS.iter().any(|(other, _)| *other == extends(text));
            assert!(known, "{name} extends {}", extends(text));
        }
    }
}

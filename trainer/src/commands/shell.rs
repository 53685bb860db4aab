//! What a shell and `man` ask of the program.

use std::path::PathBuf;

use clap::Command;
use shell::Shell;
use trainer::error::{Error, Result};
use trainer::say;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: trainer completions bash > ~/.local/share/bash-completion/completions/trainer"
)]
pub(crate) struct CompletionsArgs {
    /// bash, zsh, fish, elvish or powershell
    shell: Shell,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer man --out ~/.local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Folder of the pages, one a command
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn completions(args: &CompletionsArgs, program: Command) -> Result<()> {
    say::print(shell::completions(args.shell, program).trim_end())
}

pub(crate) fn man(args: &ManArgs, program: Command) -> Result<()> {
    shell::man(program, &args.out).map_err(|(path, source)| Error::Io {
        action: "write",
        path,
        source,
    })?;
    say::print(args.out.display())
}

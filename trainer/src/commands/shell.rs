//! What a shell and `man` ask of the program.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_complete::aot::generate;
use clap_mangen::Man;
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

pub(crate) fn completions(args: &CompletionsArgs, mut program: Command) -> Result<()> {
    let mut text = vec![];
    generate(args.shell, &mut program, "trainer", &mut text);
    say::print(String::from_utf8_lossy(&text).trim_end())
}

pub(crate) fn man(args: &ManArgs, program: Command) -> Result<()> {
    let failed = |path: &Path, source| Error::Io { action: "write", path: path.to_owned(), source };
    fs::create_dir_all(&args.out).map_err(|e| failed(&args.out, e))?;
    let mut program = program.disable_help_subcommand(true);
    // So that each knows all words of its name.
    program.build();
    pages(&program, &mut |command| {
        let name = command.get_display_name().unwrap_or("trainer").to_owned();
        let mut page = vec![];
        let path = args.out.join(format!("{name}.1"));
        let made = Man::new(command).render(&mut page).and_then(|()| fs::write(&path, page));
        made.map_err(|e| failed(&path, e))
    })?;
    say::print(args.out.display())
}

/// A page for a command and for each below it.
fn pages(command: &Command, page: &mut impl FnMut(Command) -> Result<()>) -> Result<()> {
    page(command.clone())?;
    let mut below = command.get_subcommands().filter(|below| below.get_name() != "help");
    below.try_for_each(|below| pages(below, page))
}

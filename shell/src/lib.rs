//! What a shell and `man` ask of a program: completions and manual pages, made of its clap command.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::aot::generate;
use clap_mangen::Man;

pub use clap_complete::Shell;

/// A file or folder that could not be written, and why.
pub type Unwritten = (PathBuf, io::Error);

/// The text that teaches a shell the words of a program.
#[must_use]
pub fn completions(shell: Shell, mut program: Command) -> String {
    let name = program.get_name().to_owned();
    let mut text = vec![];
    generate(shell, &mut program, name, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Writes a page for a program and for each command below it into a folder, which is made: `NAME.1`, `NAME-COMMAND.1`.
///
/// # Errors
/// The first file, or folder, that could not be written.
pub fn man(program: Command, folder: &Path) -> Result<(), Unwritten> {
    fs::create_dir_all(folder).map_err(|e| (folder.to_owned(), e))?;
    let mut program = program.disable_help_subcommand(true);
    // So that each knows all words of its name.
    program.build();
    pages(&program, folder)
}

fn pages(command: &Command, folder: &Path) -> Result<(), Unwritten> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let path = folder.join(format!("{name}.1"));
    let mut page = vec![];
    let made = Man::new(command.clone()).render(&mut page).and_then(|()| fs::write(&path, page));
    made.map_err(|e| (path, e))?;
    let mut below = command.get_subcommands().filter(|below| below.get_name() != "help");
    below.try_for_each(|below| pages(below, folder))
}

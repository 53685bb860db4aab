//! The subcommands: what was typed becomes calls of the library, and its results become text.

pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod inspect;
pub(crate) mod pictures;
pub(crate) mod report;
pub(crate) mod run;

use std::path::{Path, PathBuf};

use clap::Args;
use tch::Device;
use trainer::checkpoint;
use trainer::config::{Config, Origin};
use trainer::error::{Error, Result};
use trainer::eval::{Model, Variant};
use trainer::run::open_data;

#[derive(Debug, Args)]
pub(crate) struct Source {
    /// A built-in configuration: demo, base, hi_e, …
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// A TOML file of differences from the preset it extends
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    pub(crate) config: Option<PathBuf>,
    /// Change one key, such as --set train.batch=32 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

impl Source {
    pub(crate) fn origin(&self) -> Option<Origin<'_>> {
        let file = self.config.as_deref().map(Origin::File);
        file.or(self.preset.as_deref().map(Origin::Preset))
    }
}

pub(crate) fn usage(problem: &str) -> Error {
    Error::Config { problems: vec![problem.to_owned()] }
}

/// The networks of a run's newest sound checkpoint; nothing is written to the run.
pub(crate) fn load(
    out: &Path,
    config: &Config,
    device: Device,
    variant: Variant,
    with_data: bool,
) -> Result<Model> {
    let path = checkpoint::newest(&out.join("checkpoints"))?;
    let train = with_data.then(|| open_data(config, "train")).transpose()?;
    Model::load(&path, config, device, variant, train.as_ref())
}

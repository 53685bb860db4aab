//! The subcommands: what was typed becomes calls of the library, and its results become text, by
//! [`trainer::say`]: `println!` panics where a pipe has closed.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub(crate) mod bench_batch;
pub(crate) mod check_device;
pub(crate) mod checkpoints;
pub(crate) mod compare;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod embed;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod inspect;
pub(crate) mod launch;
pub(crate) mod pictures;
pub(crate) mod presets;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod shell;
pub(crate) mod study;
pub(crate) mod walk;
pub(crate) mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use clap::Args;
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use common::stop::Stop;
use pipeline::Dataset;
use tch::Device;
use trainer::config::{Config, Origin};
use trainer::error::{Error, Result};
use trainer::eval::{Model, Variant};
use trainer::run::{open_data, read_config_as_it_is};
use trainer::{checkpoint, device};

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

/// The wish that this command's work ends, which signals set ([`common::signals`]).
pub(crate) fn stop() -> Result<Stop> {
    static STOP: OnceLock<Stop> = OnceLock::new();
    if let Some(stop) = STOP.get() {
        return Ok(stop.clone());
    }
    let stop = Stop::default();
    common::signals::set_on_signal(&stop.flag()).map_err(|source| Error::Io {
        action: "listen for",
        path: "signals".into(),
        source,
    })?;
    Ok(STOP.get_or_init(|| stop).clone())
}

pub(crate) fn usage(problem: &str) -> Error {
    Error::Usage { problem: problem.to_owned() }
}

/// Whose networks, and where they are to be.
#[derive(Debug, Args)]
pub(crate) struct Networks {
    /// Folder of a run, whose newest sound checkpoint is read while training may go on, or of `export`
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
    /// The checkpoint of this step rather than the newest
    #[arg(long)]
    pub(crate) step: Option<u64>,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
}

impl Networks {
    pub(crate) fn device(&self) -> Result<Device> {
        device::parse(&self.device)
    }

    /// Nothing is written to the folder.
    pub(crate) fn load(&self, config: &Config, variant: Variant, with_data: bool) -> Result<Model> {
        let (out, device, stop) = (&self.run, self.device()?, stop()?);
        let exported = Model::is_exported(out);
        if exported && self.step.is_some() {
            return Err(usage("an exported model is of one step: leave --step out"));
        }
        match variant {
            // Of no checkpoint: that of the model itself may be gone by now.
            Variant::Initial => {
                return Model::untrained(config, device, &open_data(config, "train")?, &stop);
            }
            Variant::Average if exported => return Model::exported(out, config, device, &stop),
            Variant::Live if exported => {
                return Err(usage("an exported model has averaged weights alone, not --live"));
            }
            Variant::Average | Variant::Live => (),
        }
        let train = with_data.then(|| open_data(config, "train")).transpose()?;
        self.load_checkpoint(config, variant, train.as_ref())
    }

    /// As [`Self::load`], of a run.
    pub(crate) fn load_checkpoint(
        &self,
        config: &Config,
        variant: Variant,
        train: Option<&Arc<Dataset>>,
    ) -> Result<Model> {
        let (device, stop) = (self.device()?, stop()?);
        let folder = self.run.join("checkpoints");
        loop {
            stop.check()?;
            let newest = || checkpoint::newest(&folder);
            let path = self.step.map_or_else(newest, |s| checkpoint::of_step(&folder, s))?;
            match Model::load(&path, config, device, variant, train, &stop) {
                // Training went on, and this one is no longer kept.
                Err(Error::Checkpoint { .. } | Error::Io { .. }) if checkpoint::is_gone(&path) => {}
                loaded => return loaded,
            }
        }
    }
}

/// Which model, and on what images.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    pub(crate) networks: Networks,
    /// Data folder, if not the run's own; exported models name none
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// The live weights, not their averages
    #[arg(long)]
    live: bool,
}

impl ModelArgs {
    pub(crate) fn config(&self) -> Result<Config> {
        config_of(&self.networks.run, self.data.as_deref())
    }

    pub(crate) fn model(&self, config: &Config, variant: Variant) -> Result<Model> {
        self.networks.load(config, variant, true)
    }

    pub(crate) fn variant(&self) -> Variant {
        variant(self.live)
    }
}

pub(crate) fn variant(live: bool) -> Variant {
    if live { Variant::Live } else { Variant::Average }
}

/// An empty table.
pub(crate) fn table<'a>(header: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(header);
    table
}

/// A run's or an exported model's configuration, with another data folder where one is given.
pub(crate) fn config_of(run: &Path, data: Option<&Path>) -> Result<Config> {
    let exported = Model::is_exported(run);
    let mut config =
        if exported { Model::exported_config(run)? } else { read_config_as_it_is(run)? };
    if let Some(dir) = data {
        config.data.dir = dir.to_string_lossy().into_owned();
    }
    Ok(config)
}

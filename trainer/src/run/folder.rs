//! What other commands read of a run: its configuration and its data.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use pipeline::{Dataset, RemoteOptions};

use crate::config::Config;
use crate::error::{Error, Result};

/// The resolved configuration of a run.
///
/// # Errors
/// [`Error::Output`] if `out` is not a run folder; [`Error::Config`] if its configuration is not one.
pub fn read_config(out: &Path) -> Result<Config> {
    let saved = out.join("checkpoints").is_dir();
    let held = "each checkpoint's manifest.json holds the run's as \"config\"";
    let text = fs::read_to_string(out.join("config.toml")).map_err(|e| Error::Output {
        path: out.to_owned(),
        reason: match saved {
            true => format!("config.toml cannot be read ({e}); {held}"),
            false => format!("no config.toml in it ({e}): not the folder of a run"),
        },
    })?;
    Config::parse(&text).map_err(|e| match e {
        Error::Config { mut problems } if saved => {
            problems.push(format!("{}/config.toml was changed or cut: {held}", out.display()));
            Error::Config { problems }
        }
        e => e,
    })
}

/// A split of a configuration's data folder.
///
/// # Errors
/// [`Error::Data`]; [`Error::Config`] if no folder is named.
pub fn open_data(config: &Config, split: &str) -> Result<Arc<Dataset>> {
    if config.data.dir.is_empty() {
        let problem = "no data folder: give --data DIR, a folder or URL (made by shard-imagenet)";
        return Err(Error::Config { problems: vec![problem.into()] });
    }
    let data = &config.data;
    let options = RemoteOptions {
        read_ahead: data.read_ahead_mb << 20,
        cache: (!data.cache.is_empty()).then(|| data.cache.clone().into()),
        cache_bytes: data.cache_mb << 20,
        ..RemoteOptions::default()
    };
    Ok(Arc::new(Dataset::open_with(Path::new(&data.dir), split, &options)?))
}

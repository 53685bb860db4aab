//! What other commands read of a run: its configuration and its data.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::files::{replace_file, sha256};
use pipeline::{Dataset, RemoteOptions};

use super::sessions::{Sessions, hash_of};
use crate::checkpoint;
use crate::config::{Change, Config};
use crate::error::{Error, Result};

const FILE: &str = "config.toml";
/// What the first line of a run's `config.toml` says, before the hash.
const AS_WRITTEN: &str = "# as the trainer wrote it; SHA-256 of the lines below: ";
/// Where the whole of it is.
const HELD: &str = "each checkpoint's manifest.json holds the run's as \"config\"";

/// The resolved configuration of a run.
///
/// # Errors
/// [`Error::Output`] if `out` is not a run folder; [`Error::Config`] if its configuration is not one.
pub fn read_config(out: &Path) -> Result<Config> {
    let saved = out.join("checkpoints").is_dir();
    let text = fs::read_to_string(out.join(FILE)).map_err(|e| Error::Output {
        path: out.to_owned(),
        reason: match saved {
            true => format!("config.toml cannot be read ({e}); {HELD}"),
            false => format!("no config.toml in it ({e}): not the folder of a run"),
        },
    })?;
    Config::parse(&text).map_err(|e| match e {
        Error::Config { mut problems } if saved => {
            problems.push(format!("{}/config.toml was changed or cut: {HELD}", out.display()));
            Error::Config { problems }
        }
        e => e,
    })
}

/// As [`read_config`], for commands that only read a run: what a hand wrote into it since is said.
///
/// # Errors
/// As [`read_config`]; [`Error::Config`] too where the last keys of the newest checkpoint's configuration are missing: it
/// was cut.
pub fn read_config_as_it_is(out: &Path) -> Result<Config> {
    let config = read_config(out)?;
    let Some(differs) = edited(out, &config)? else { return Ok(config) };
    let path = out.join(FILE);
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let whole = newest_manifest(out).map(|(_, manifest)| keys(&manifest.config));
    let (whole, there) = (whole.unwrap_or_default(), keys(&text));
    if there.len() < whole.len() && whole.starts_with(&there) {
        let (path, first, more) = (path.display(), &whole[there.len()], whole.len() - there.len());
        let problem = format!("{path}: was cut before {first}: {more} keys are missing; {HELD}");
        return Err(Error::Config { problems: vec![problem] });
    }
    tracing::warn!("{}: is not as the trainer wrote it ({differs})", path.display());
    Ok(config)
}

/// Writes a run's configuration, under a line by which a later change is noticed.
pub(super) fn write_config(out: &Path, config: &Config) -> Result<()> {
    let (path, text) = (out.join(FILE), config.to_toml());
    let text = format!("{AS_WRITTEN}{}\n{text}", sha256(text.as_bytes()));
    replace_file(&path, text.as_bytes()).map_err(Error::io("write", &path))
}

/// What the first line of a run's `config.toml` says of the lines below it.
pub(super) enum Written {
    /// Nothing: a trainer of before wrote it, or the line is gone.
    Unsaid,
    /// Another hash.
    Other,
    /// Their hash.
    This(String),
}

pub(super) fn written(out: &Path) -> Result<Written> {
    let path = out.join(FILE);
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let Some((first, rest)) = text.split_once('\n') else { return Ok(Written::Other) };
    Ok(match first.strip_prefix(AS_WRITTEN) {
        None => Written::Unsaid,
        Some(hash) if hash == sha256(rest.as_bytes()) => Written::This(hash.to_owned()),
        Some(_) => Written::Other,
    })
}

/// The newest manifest of a run that is sound, and whose it is. The files beside it are not looked at.
fn newest_manifest(out: &Path) -> Option<(PathBuf, checkpoint::Manifest)> {
    let all = checkpoint::list(&out.join("checkpoints")).ok()?;
    let sound = |path: PathBuf| Some((checkpoint::read_manifest(&path).ok()?, path));
    let (manifest, path) = all.into_iter().rev().find_map(|(_, path)| sound(path))?;
    Some((path, manifest))
}

/// The keys of a configuration as a trainer writes it, in its order.
fn keys(text: &str) -> Vec<String> {
    let mut table = String::new();
    let mut found = vec![];
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = format!("{name}.");
        } else if let Some((key, _)) = line.split_once('=') {
            found.push(format!("{table}{}", key.trim()));
        }
    }
    found
}

/// What differs between `config.toml`, which says `config`, and the configuration that the newest checkpoint was made with,
/// in words, where it is not the one by which the run was gone on with last: edited, cut, or of another run or time. A text
/// that was touched and says the same is the same.
pub(super) fn edited(out: &Path, config: &Config) -> Result<Option<String>> {
    let (written, sessions) = (written(out)?, Sessions::read(out));
    let said = hash_of(config);
    // A trainer of before writes the same settings as another text.
    let is = |hash: Option<&str>| {
        let hash = hash.filter(|hash| !hash.is_empty());
        hash.is_some_and(|h| h == said || matches!(&written, Written::This(this) if this == h))
    };
    let last = sessions.newest();
    if is(last.and_then(|line| line.config_sha256.as_deref())) {
        return Ok(None);
    }
    if last.is_none() && matches!(written, Written::This(_)) {
        return Ok(None); // nothing says otherwise
    }
    let unsaid = "there is no checkpoint to compare it with".to_owned();
    let another = !matches!(written, Written::Unsaid);
    let Some((path, manifest)) = newest_manifest(out) else {
        return Ok(another.then_some(unsaid));
    };
    if is(Some(&manifest.config_sha256)) {
        return Ok(None);
    }
    // A session that was killed before it wrote its own settings, and saved nothing.
    if let Some(last) = last
        && manifest.step <= last.step
        && is(last.before_config_sha256.as_deref())
    {
        return Ok(None);
    }
    // A trainer whose checkpoints have no hash of their own wrote no first line either.
    if matches!(written, Written::Unsaid) && manifest.own_sha256.is_none() {
        return Ok(None);
    }
    let Some(made_with) = manifest.made_with(&path)? else {
        return Ok(another.then_some(unsaid));
    };
    let changes: Vec<_> = made_with.changes(config).iter().map(Change::shown).collect();
    Ok((!changes.is_empty()).then(|| changes.join(", ")))
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

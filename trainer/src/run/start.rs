//! How a run begins, and how it goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bigbigan_model::state::TrainState;
use common::stop::Stop;
use dist::World;
use pipeline::{Cursor, Dataset};
use tch::{Device, Kind};

use super::mirror::Copied;
use super::ranks::broadcast;
use super::{Ended, MIRROR, Run, Session, Summary};
use crate::checkpoint::{self, Keep, Loaded};
use crate::config::{CheckpointConfig, Config};
use crate::error::{Error, Result};
use crate::feed::Feed;
use crate::log::Lines;

/// The file that says which step the last pictures and metrics are of.
pub(super) const EVALUATED: &str = "evaluated";

/// Where nobody can tell which checkpoints are to go, none is.
pub(super) const ALL: Keep = Keep { last: usize::MAX, every: 0, best: None };

/// The step after which a run was last evaluated to the end.
pub(crate) fn evaluated(out: &Path) -> Option<u64> {
    fs::read_to_string(out.join(EVALUATED)).ok()?.trim().parse().ok()
}

/// Of what comes now nothing was evaluated to the end.
pub(super) fn forget_evaluated(out: &Path) -> Result<()> {
    let path = out.join(EVALUATED);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
        _ => Ok(()),
    }
}

/// All that a new run begins with. Its folder is made last.
pub(super) fn begin(
    session: &mut Session,
    config: &Config,
    data: &Arc<Dataset>,
    device: Device,
    world: &World,
    stop: &Stop,
) -> Result<(Feed, Loaded)> {
    let mut feed = Feed::start(config, data, Cursor::default(), device, world)?;
    feed.prime(stop)?;
    let state = TrainState::in_world(&config.recipe(), world, (Kind::Float, device), true);
    stop.check()?;
    if world.leads() {
        session.create(config)?;
    }
    let loaded = Loaded { state, cursor: Cursor::default() };
    Ok((feed, broadcast(world, loaded)?))
}

pub(super) fn go_on(
    mut session: Session,
    config: Config,
    data: Arc<Dataset>,
    device: Device,
    world: &World,
    stop: &Stop,
) -> Result<Summary> {
    let own = |found: &Path| session.check_own(&config, found);
    let (found, loaded) = load(&config, &session.out, &data, device, world, own)?;
    let complete = loaded.state.step >= config.train.steps
        && evaluated(&session.out) == Some(loaded.state.step);
    if world.shared([i64::from(complete)]) == [1] {
        // Its mirror may be behind.
        let keep = kept(&config, &session.out);
        let pass = |copied: Copied| copied.of_a_finished_run()?.pass(keep).map(drop);
        let behind = session.mirror.take().and_then(|copied| pass(copied).err());
        return Ok(Summary {
            out: session.out,
            steps: loaded.state.step,
            stats: None,
            ended: Ended::Steps,
            bottleneck: String::new(),
            probe: None,
            incomplete: behind.is_some(),
            troubles: behind.iter().map(|e| format!("{MIRROR}: not up to date ({e})")).collect(),
        });
    }
    let prepare = || {
        session.check_locked()?;
        set_aside_after(&session.out, found.as_deref())?;
        if let Some(found) = &found {
            let hash = checkpoint::read_manifest(found)?.config_sha256;
            session.from_config_sha256 = Some(hash).filter(|hash| !hash.is_empty());
        }
        Ok::<_, Error>(())
    };
    world.lead("write to the folder", prepare)?;
    // Other data were refused with the checkpoint, other settings unless they were changed on purpose;
    // then it goes on at the same place of another order, also from a checkpoint of before.
    let feed = Feed::start(&config, &data, loaded.cursor.unbound(), device, world)?;
    Run::new(session, config, data, feed, loaded, stop)?.run()
}

/// Which checkpoints of a run that is done stay in its mirror, by its settings; all where nobody can tell which is the best.
fn kept(config: &Config, out: &Path) -> Keep {
    let CheckpointConfig { keep: last, keep_every: every, best, .. } = &config.checkpoint;
    let measured = Lines::of(&out.join("metrics.jsonl"));
    let best = if best.is_empty() { Ok(None) } else { measured.best(best) };
    best.map_or(ALL, |best| Keep { last: *last, every: *every, best })
}

/// The newest checkpoint of a run, read by rank 0, on every rank; on rank 0 also where it is.
pub(super) fn load(
    config: &Config,
    out: &Path,
    data: &Dataset,
    device: Device,
    world: &World,
    own: impl Fn(&Path) -> Result<()>,
) -> Result<(Option<PathBuf>, Loaded)> {
    let (folder, data) = (out.join("checkpoints"), data.fingerprint());
    let read = || checkpoint::load_newest(&folder, config, device, data, world, own);
    let unread = || {
        let state = TrainState::in_world(&config.recipe(), world, (Kind::Float, device), false);
        Loaded { state, cursor: Cursor::default() }
    };
    let (found, loaded) = world.lead("read the checkpoint", read)?.unzip();
    Ok((found, broadcast(world, loaded.unwrap_or_else(unread))?))
}

/// Gives what was passed over for the checkpoint in `found` other names.
pub(super) fn set_aside_after(out: &Path, found: Option<&Path>) -> Result<()> {
    found.map_or(Ok(()), |found| checkpoint::set_aside_after(&out.join("checkpoints"), found))
}

//! A run of several ranks: how they meet, and the state that all of them hold.

use std::path::Path;
use std::time::Duration;

use bigbigan_model::state::{PendingDiscriminator, TrainState, Update};
use common::stop::Stop;
use dist::{Place, World};
use pipeline::{Cursor, Dataset};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

use crate::checkpoint::{self, Loaded};
use crate::config::Config;
use crate::error::{Error, Result};

/// How long ranks wait for rank 0 while it brings the run back from its mirror.
const BROUGHT_BACK: Duration = Duration::from_secs(1800);

/// Joins the other ranks, if there are any, and makes sure that they run the same. `awaits`: rank 0 may be bringing the run
/// back before it comes.
pub(super) fn rendezvous(
    config: &Config,
    place: Place,
    device: Device,
    data: &Dataset,
    awaits: bool,
    stop: &Stop,
) -> Result<World> {
    config.rows(place.size)?;
    let mut limits = config.limits();
    if awaits {
        limits.join = limits.join.max(BROUGHT_BACK);
    }
    // The data folder may have another name on another machine.
    let keys = config.flat().into_iter().filter(|(key, _)| key != "data.dir");
    // What differs first is said: another program before what follows from it.
    let mut facts = if place.size > 1 { of_the_program()?.to_vec() } else { vec![] };
    facts.extend(keys);
    facts.push(("the data index's fingerprint".to_owned(), format!("{:016x}", data.fingerprint())));
    Ok(World::join(place, device, limits, facts, stop)?)
}

fn of_the_program() -> Result<[(String, String); 2]> {
    let path = Path::new("/proc/self/exe");
    let program = std::fs::read(path).map_err(Error::io("read", path))?;
    let hash: String = Sha256::digest(program).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([
        ("trainer's version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("the program's SHA-256".to_owned(), hash),
    ])
}

/// Gives every rank what rank 0 has, bit by bit.
pub(super) fn broadcast(world: &World, loaded: Loaded) -> Result<Loaded> {
    let Loaded { mut state, cursor } = loaded;
    if world.size() == 1 {
        return Ok(Loaded { state, cursor });
    }
    world.enter("share the state");
    let of_e = state.e.as_ref().map_or(0, |e| e.live.adam.steps());
    let of_further = state.further.as_ref().map_or(0, |further| further.adam.steps());
    let updates = state.pending_d.as_ref().map_or(0, |d| u64::from(d.updates));
    let numbers = [
        updates,
        state.step,
        cursor.epoch,
        cursor.batch,
        state.rollbacks,
        state.d.adam.steps(),
        state.g.live.adam.steps(),
        of_e,
        of_further,
    ];
    let numbers = world.shared(numbers.map(|n| n as i64));
    let [updates, step, epoch, batch, rollbacks, d, g, e, further] = numbers.map(|n| n as u64);
    (state.step, state.rollbacks) = (step, rollbacks);
    if updates > 0 {
        let known = state.pending_d.take();
        let own = known.map_or([0.0; 3], |d| {
            [&d.loss, &d.update.norm, &d.update.fault].map(|value| value.double_value(&[]))
        });
        let device = state.d.params.kinds().1;
        let [loss, norm, fault] = world.sums(own).map(|v| Tensor::from(v as f32).to_device(device));
        let update = Update { norm, fault };
        state.pending_d = Some(PendingDiscriminator { updates: updates as u32, loss, update });
    }
    state.d.adam.set_steps(d);
    state.g.live.adam.set_steps(g);
    for (_, tensors) in checkpoint::contents(&state) {
        tensors.iter().for_each(|(_, tensor)| world.broadcast(tensor));
    }
    state.d.params.rescale();
    state.g.live.params.rescale();
    if let Some(encoder) = &mut state.e {
        encoder.live.adam.set_steps(e);
        encoder.live.params.rescale();
    }
    if let Some(network) = &mut state.further {
        network.adam.set_steps(further);
        network.params.rescale();
    }
    world.check()?;
    verify(world, &state)?;
    Ok(Loaded { state, cursor: Cursor { epoch, batch, ..cursor } })
}

/// Makes sure that all ranks hold the same state, to the bit.
pub(super) fn verify(world: &World, state: &TrainState) -> Result<()> {
    let name =
        |file: &str, name: String| format!("{} of {}", name, file.replace(".safetensors", ""));
    let all = checkpoint::contents(state).into_iter().flat_map(|(file, tensors)| {
        tensors.into_iter().map(move |(tensor, values)| (name(&file, tensor), values))
    });
    Ok(world.verify(&all.collect::<Vec<_>>())?)
}

//! The run: a folder, a loader, a state, and the loop over steps with its chores.

mod chores;
mod evaluate;
mod faults;
mod folder;
mod mirror;
mod ranks;
mod recorder;
mod restore;
mod saving;
mod session;
mod sessions;
mod start;
mod statistics;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bigbigan_model::state::TrainState;
use bigbigan_model::step::{Losses, prepare, train_step};
use common::stop::Stop;
use dist::{Place, World};
use pipeline::{Cursor, Dataset};
use tch::Device;
use torch_ext::stream::Deferred;

use crate::checkpoint::{Guard, Keep, Loaded, Writer};
use crate::config::Config;
use crate::device;
use crate::error::{Error, Result};
use crate::eval::linear;
use crate::feed::Feed;
use crate::log::StatsLine;
use crate::provenance::Provenance;
pub use evaluate::reconstructions;
pub use folder::{open_data, read_config, read_config_as_it_is};
use mirror::Mirror;
use ranks::{rendezvous, verify};
use recorder::Recorder;
pub use restore::{Taken, mirrored, restore};
pub use session::Session;
use sessions::{End, Ending};
pub(crate) use start::evaluated;
use start::{ALL, EVALUATED, begin, forget_evaluated, go_on};

/// What is wanted of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// A new run.
    New,
    /// To go on with the run in it.
    Continue,
    /// To go on with the run in it, or to begin one where there is none: for a command that something
    /// starts again and again.
    Auto,
}

/// What a run did, for its last words.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The run folder.
    pub out: PathBuf,
    /// Steps done, all sessions together.
    pub steps: u64,
    /// Means over this session and the last losses; `None` if no step was done.
    pub stats: Option<StatsLine>,
    /// Why it ended.
    pub ended: Ended,
    /// Which stage of the input limits it, in words.
    pub bottleneck: String,
    /// The linear probe on E's averaged weights and on its initial weights.
    pub probe: Option<(linear::Line, linear::Line)>,
    /// What could not be written beside checkpoints, a sentence each.
    pub troubles: Vec<String>,
    /// Whether some of it is missing now.
    pub incomplete: bool,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// `train.steps` are done.
    Steps,
    /// `train.max_minutes` are over.
    Time,
    /// A signal asked it to; everything is saved.
    Signal,
}

/// Begins the run of a session's folder, or goes on with it from its newest sound checkpoint, with as many
/// ranks as there are now. A finished run stays as it is. `config` is the run's, or what was made of it,
/// and is written back. `stop` is polled between updates, while waiting for images, and in evaluations.
/// Every rank calls this with its own `place`; rank 0 alone reads checkpoints and writes.
///
/// # Errors
/// Any [`Error`]. Wrong input is found before anything is written, and a wish to stop before step 1 of a new
/// run is an error of which [`Error::is_stop`] holds. What ends a run that has begun ends it with its state
/// saved, unless that state is not sound or the ranks have lost each other.
pub fn run(mut session: Session, config: Config, place: Place, stop: &Stop) -> Result<Summary> {
    let (device, data) =
        (device::of_rank(&config.train.device, &place)?, open_data(&config, "train")?);
    let world = rendezvous(&config, place, device, &data, session.awaits, stop)?;
    let work = || {
        prepare(&config.recipe(), device)?;
        session.check_converges(&config)?;
        world.lead("look at checkpoint.mirror", || session.look_at_mirror(&config))?;
        // As rank 0 sees it: the others may not have the folder.
        match world.shared([i64::from(session.before().is_some())]) {
            [1] => go_on(session, config, data, device, &world, stop),
            _ => begin(&mut session, &config, &data, device, &world, stop)
                .and_then(|(feed, loaded)| Run::new(session, config, data, feed, loaded, stop))
                .and_then(Run::run),
        }
    };
    world.conclude(work())
}

/// A run in progress.
#[derive(Debug)]
struct Run {
    config: Config,
    out: PathBuf,
    data: Arc<Dataset>,
    feed: Feed,
    state: TrainState,
    /// Where the next image comes from, as the step before left it.
    cursor: Cursor,
    /// Steps done in this session, those done again too.
    done: u64,
    /// What the last step said of its soundness, with its number: read one step late, so that the
    /// device is not waited for.
    unread: Option<(u64, Deferred)>,
    /// Faulty steps since the last sound one.
    faults: u64,
    /// Whether images ended on one of the ranks, which all of them then know.
    images_gone: bool,
    stop: Stop,
    world: World,
    /// Of rank 0.
    recorder: Option<Recorder>,
    /// Of rank 0.
    checkpoints: Option<Writer>,
    /// Of rank 0.
    mirror: Option<Mirror>,
    /// What stays by the newest checkpoint.
    keep: Keep,
    /// Whether `sessions.jsonl` says in this session that a checkpoint of a step after the first is on the disk.
    saved_later: bool,
    /// What pictures, probes and checkpoints between two steps took in this session.
    aside: Duration,
}

/// What a checkpoint is called where one could not be saved.
const CHECKPOINT: &str = "a checkpoint";
/// What the copy elsewhere is called where it is not up to date.
const MIRROR: &str = "checkpoint.mirror";

/// Since when, from which step of this session, how long the feed had then been waited for, and what chores had taken.
#[derive(Debug, Clone, Copy)]
struct Mark {
    time: Instant,
    done: u64,
    waited: Duration,
    aside: Duration,
}

impl Run {
    fn new(
        mut session: Session,
        config: Config,
        data: Arc<Dataset>,
        feed: Feed,
        loaded: Loaded,
        stop: &Stop,
    ) -> Result<Self> {
        let Loaded { state, cursor } = loaded;
        let world = state.d.params.world().clone();
        let (out, device, at) = (session.out.clone(), feed.device, (state.step, world.size()));
        let provenance = Provenance::here(device);
        let prepare = || {
            let images = out.join("images");
            fs::create_dir_all(&images).map_err(Error::io("create", &images))?;
            let folder = out.join("checkpoints");
            let lock = session.lock.clone().expect("rank 0 writes to a folder that it holds");
            let held = Arc::clone(&lock);
            let guard = Guard::new(move || held.check());
            let mut checkpoints = Writer::new(&folder, &config, provenance.clone(), guard.clone())?;
            checkpoints.prepare(&state)?;
            let mut recorder = Recorder::open(&out, lock, &config, &data, device, at)?;
            forget_evaluated(&out)?;
            recorder.session(&session.begins(&config, at, &provenance));
            // Before the settings themselves: killed between the two, the run is still known to be its own.
            recorder.sync();
            if recorder.told_of_session() {
                session.configure(&config)?;
            } else {
                recorder.say(
                    "WARNING: config.toml stays as it is, as sessions.jsonl cannot be written",
                );
            }
            let mirror = session.mirror.take().map(|copied| Mirror::start(copied, guard));
            Ok::<_, Error>(((checkpoints, mirror.transpose()?), recorder))
        };
        let (kept, recorder) = world.lead("prepare the folder", prepare)?.unzip();
        let (checkpoints, mut mirror) = kept.unzip();
        // That this session is at work is to be known there soon.
        mirror.iter_mut().flatten().for_each(|mirror| mirror.wanted(ALL));
        Ok(Self {
            config,
            out,
            data,
            feed,
            state,
            cursor,
            done: 0,
            unread: None,
            faults: 0,
            images_gone: false,
            stop: stop.clone(),
            world,
            recorder,
            checkpoints,
            mirror: mirror.flatten(),
            keep: ALL,
            saved_later: false,
            aside: Duration::ZERO,
        })
    }

    fn say(&self, text: &str) {
        if let Some(recorder) = &self.recorder {
            recorder.say(text);
        }
    }

    fn run(mut self) -> Result<Summary> {
        let (device, threads) = (self.feed.device, tch::get_num_threads());
        let ranks = match self.world.size() {
            1 => String::new(),
            size => format!(", {size} ranks"),
        };
        self.say(&match device {
            Device::Cpu => {
                let threads =
                    if threads == 1 { "1 thread".into() } else { format!("{threads} threads") };
                format!("training on the CPU, {threads}{ranks} (trainer doctor says why)")
            }
            other => format!("training on {other:?}{ranks}"),
        });
        let ended = torch_ext::caught(|| self.train()).and_then(|(ended, stats)| {
            let bottleneck = self.feed.loader.stats().bottleneck;
            self.save_at_the_end()?;
            Ok((ended, stats, bottleneck))
        });
        match ended {
            Ok((ended, stats, bottleneck)) => self.conclude(ended, stats, bottleneck),
            Err(e) => {
                self.save_before(&e);
                Err(e)
            }
        }
    }

    /// The loop over steps.
    fn train(&mut self) -> Result<(Ended, Option<StatsLine>)> {
        let begun = self.mark();
        let mut tick = begun;
        let mut last = None;
        if self.state.step == 0 && self.state.pending_d.is_none() {
            // What a run that is killed early, or diverges early, goes on from.
            self.save()?;
        } else if self.state.pending_d.is_none() {
            self.chores_owed()?;
        }
        let ended = loop {
            if let Some(ended) = self.should_stop(begun) {
                if self.check_last_step()? && self.check_pending_d()? {
                    break ended;
                }
                tick = self.mark(); // it went back: there is more to do
                continue;
            }
            let Some(losses) = self.advance()? else {
                tick = self.mark();
                continue;
            };
            if let Some(recorder) = &self.recorder {
                recorder.step(self.state.step);
            }
            if self.due(self.config.log.every) {
                if let Some(line) = self.line(tick, &losses)? {
                    self.log_statistics(line);
                }
                tick = self.mark();
            }
            if self.due(self.config.dist.check_every) {
                verify(&self.world, &self.state)?;
            }
            if self.has_chores() {
                // What the device still computes is the step's.
                let _ = losses.d.double_value(&[]);
                let begun = Instant::now();
                self.chores()?;
                self.aside += begun.elapsed();
            }
            last = Some(losses);
        };
        self.world.check()?;
        let stats = last.map(|losses| self.line(begun, &losses)).transpose()?.flatten();
        Ok((ended, stats))
    }

    /// The last evaluation, the report and the last words of a run that is saved.
    fn conclude(
        mut self,
        mut ended: Ended,
        stats: Option<StatsLine>,
        bottleneck: String,
    ) -> Result<Summary> {
        self.checkpoints = None; // what follows may need the memory
        let world = self.world.clone();
        let (mut probe, mut troubles, mut incomplete) = (None, vec![], false);
        let last_words = || {
            match if ended == Ended::Signal {
                Ok(None)
            } else {
                torch_ext::caught(|| self.evaluate())
            } {
                Ok(found) => probe = found,
                Err(e) if e.is_stop() => ended = Ended::Signal,
                Err(e) => {
                    self.end(Ending::Failed, Some(&e));
                    self.mirror_all();
                    return Err(e);
                }
            }
            self.end(
                match ended {
                    Ended::Steps => Ending::Steps,
                    Ended::Time => Ending::Time,
                    Ended::Signal => Ending::Signal,
                },
                None,
            );
            if let Some(recorder) = &mut self.recorder {
                recorder.report();
            }
            self.mirror_all();
            if let Some(recorder) = &mut self.recorder {
                recorder.finish();
                (troubles, incomplete) = (recorder.troubles(), recorder.incomplete());
            }
            Ok(())
        };
        world.lead("evaluate", last_words)?;
        // A signal in the last evaluation is known to rank 0.
        if world.shared([i64::from(ended == Ended::Signal)]) == [1] {
            ended = Ended::Signal;
        }
        let (out, steps) = (self.out, self.state.step);
        Ok(Summary { out, steps, stats, ended, bottleneck, probe, troubles, incomplete })
    }

    /// Writes down that this session ended.
    fn end(&mut self, ended: Ending, error: Option<&Error>) {
        let line = End {
            event: "end",
            ended,
            step: self.state.step,
            config_sha256: sessions::hash_of(&self.config),
            computes_sha256: self.config.computes_sha256(),
            error: error.map(ToString::to_string),
        };
        if let Some(recorder) = &mut self.recorder {
            recorder.session(&line);
            recorder.sync();
        }
    }

    /// Saves what there is before an error ends the run, where that is sound and all ranks know of the end.
    fn save_before(&mut self, error: &Error) {
        let diverged = matches!(error, Error::Diverged { .. });
        // An operator that fails leaves an update half made.
        let halved = matches!(error, Error::Memory { .. } | Error::Torch { .. });
        let together = self.world.size() == 1 || self.images_gone;
        if !diverged && !halved && together && self.done > 0 {
            self.say(&format!("{error}: saving step {} before the end", self.state.step));
            // That this fails too was said, and the error at hand is the reason of all.
            let _ = self
                .check_last_step()
                .and_then(|sound| if sound { self.save_at_the_end() } else { Ok(()) });
        }
        self.end(if diverged { Ending::Diverged } else { Ending::Failed }, Some(error));
        self.mirror_all();
        if let Some(recorder) = &mut self.recorder {
            recorder.finish();
            for trouble in recorder.troubles() {
                recorder.say(&trouble);
            }
        }
    }

    /// Why the loop is to end now, if it is.
    fn should_stop(&self, begun: Mark) -> Option<Ended> {
        if self.state.step >= self.config.train.steps {
            return Some(Ended::Steps);
        }
        let late = self.config.time_limit().is_some_and(|limit| begun.time.elapsed() >= limit);
        let wish = if self.stop.wanted() { 2 } else { i64::from(late) };
        // One rank's wish is all ranks', at the same step.
        match self.world.largest(wish) {
            0 => None,
            1 => Some(Ended::Time),
            _ => {
                self.say("asked to stop: saving (Ctrl-C again leaves at once)");
                Some(Ended::Signal)
            }
        }
    }

    /// One step; `None` if the step before it proves faulty and training went back, or if the run is to
    /// end between the updates of the step.
    fn advance(&mut self) -> Result<Option<Losses>> {
        self.world.step(self.state.step + 1);
        let (feed, world, stop) = (&mut self.feed, &self.world, &self.stop);
        // Ranks end together: one that waits for images alone does not end alone, and one that gets none
        // tells the others.
        let (ours, alone) = (Stop::default(), world.size() == 1);
        let mut gone = false;
        let next = || {
            if world.largest(i64::from(stop.wanted())) > 0 {
                return Err(Error::Data(pipeline::Error::Stopped));
            }
            world.enter("wait for images");
            let images = feed.next(if alone { stop } else { &ours });
            world.enter("compute");
            if !alone {
                gone = world.largest(i64::from(images.is_err())) > 0;
                if gone && images.is_ok() {
                    let reason = "one of them reads no more images, and says why".to_owned();
                    return Err(dist::Error::Lost { reason }.into());
                }
            }
            images
        };
        let losses = train_step(&self.config.recipe(), &mut self.state, next);
        self.images_gone = gone;
        self.world.check()?;
        self.cursor = self.feed.cursor;
        let losses = match losses {
            Err(e) if e.is_stop() => return Ok(None),
            losses => losses?,
        };
        self.done += 1;
        let earlier = self.unread.replace((self.state.step, Deferred::of(&losses.faults)?));
        Ok(self.act_on_faults(earlier)?.then_some(losses))
    }
}

#[cfg(test)]
mod tests;

//! The run: a folder, a loader, a state, and the loop over steps with its chores.

mod evaluate;
mod ranks;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipeline::{Cursor, Dataset, RemoteOptions};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{self, Keep, Saved, Writer};
use crate::config::{CheckpointConfig, Config, HealthConfig, OnFault};
use crate::device::{self, Coming};
use crate::dist::{Place, World};
use crate::error::{Error, Result};
use crate::eval::linear;
use crate::feed::Feed;
use crate::inspect::{self, Cost, Counts};
use crate::log::{Lines, Progress, StatsLine};
use crate::measure;
use crate::monitor::Monitor;
use crate::peak;
use crate::report;
use crate::state::TrainState;
use crate::step::{Losses, NETWORKS, prepare, train_step};
use crate::stop::Stop;
pub use evaluate::reconstructions;
use ranks::{meet, share, verify};

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

/// A line of `incidents.jsonl`.
#[derive(Debug, Serialize)]
struct Incident<'a> {
    step: u64,
    network: &'a str,
    incident: &'a str,
    done: OnFault,
}

/// Starts a new run in `out`, which must not exist or be empty. `stop` is polled between updates, while
/// waiting for images, and in evaluations. Every rank calls this with its own `place`; rank 0 alone writes.
///
/// # Errors
/// Any [`Error`]. Wrong input is found before anything is written, and a wish to stop before step 1 is an
/// error of which [`Error::is_stop`] holds.
pub fn start(config: Config, out: &Path, place: Place, stop: &Stop) -> Result<Summary> {
    let (device, data) =
        (device::of_rank(&config.train.device, &place)?, open_data(&config, "train")?);
    let world = meet(&config, place, device, &data, stop)?;
    let begin = || {
        prepare(&config, device)?;
        let occupied = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
        if world.leads() && (out.is_file() || occupied) {
            let reason = "it is not empty; name a new folder, or go on with --resume";
            return Err(Error::Output { path: out.to_owned(), reason: reason.into() });
        }
        let mut feed = Feed::start(&config, &data, Cursor::default(), device, &world)?;
        feed.prime(stop)?;
        let state = TrainState::in_world(&config, &world, (Kind::Float, device), true);
        if world.leads() {
            create(out, &config)?;
        }
        stop.check()?;
        share(&world, state).and_then(|state| Run::new(config, out, data, feed, state, stop)?.run())
    };
    world.conclude(begin())
}

fn create(out: &Path, config: &Config) -> Result<()> {
    let writable = |source: std::io::Error| {
        let reason = format!("{source}; name a folder that can be written to");
        Error::Output { path: out.to_owned(), reason }
    };
    fs::create_dir_all(out).map_err(writable)?;
    fs::write(out.join("config.toml"), config.to_toml()).map_err(writable)
}

/// Goes on with the run in `out` from its newest sound checkpoint, with as many ranks as there are now. A
/// finished run stays as it is. `config` is the run's, or what was made of it, and is written back; rank 0
/// alone reads the checkpoint.
///
/// # Errors
/// Any [`Error`].
pub fn resume(config: Config, out: &Path, place: Place, stop: &Stop) -> Result<Summary> {
    let (device, data) =
        (device::of_rank(&config.train.device, &place)?, open_data(&config, "train")?);
    let world = meet(&config, place, device, &data, stop)?;
    let go_on = || {
        prepare(&config, device)?;
        let state = load(&config, out, &data, device, &world)?;
        // As rank 0 sees it: the others may not have the folder.
        let complete = state.step >= config.train.steps && evaluated(out) == Some(state.step);
        if world.shared([i64::from(complete)]) == [1] {
            let (stats, probe, bottleneck) = (None, None, String::new());
            let (out, ended, steps) = (out.to_owned(), Ended::Steps, config.train.steps);
            return Ok(Summary { out, steps, stats, ended, bottleneck, probe });
        }
        let before = if world.leads() { read_config(out)? } else { config.clone() };
        // Other data were refused with the checkpoint, other settings unless they were changed on purpose;
        // then it goes on at the same place of another order, also from a checkpoint of before.
        let feed = Feed::start(&config, &data, state.cursor.unbound(), device, &world)?;
        if config != before {
            let (path, aside) = (out.join("config.toml"), out.join("config.toml.partial"));
            fs::write(&aside, config.to_toml()).map_err(Error::io("write", &aside))?;
            fs::rename(&aside, &path).map_err(Error::io("rename", &aside))?;
        }
        Run::new(config, out, data, feed, state, stop)?.run()
    };
    world.conclude(go_on())
}

/// The file that says which step the last pictures and metrics are of.
const EVALUATED: &str = "evaluated";

/// The step after which a run was last evaluated to the end.
pub(crate) fn evaluated(out: &Path) -> Option<u64> {
    fs::read_to_string(out.join(EVALUATED)).ok()?.trim().parse().ok()
}

/// The newest checkpoint of a run, read by rank 0, on every rank.
fn load(
    config: &Config,
    out: &Path,
    data: &Dataset,
    device: Device,
    world: &World,
) -> Result<TrainState> {
    let (folder, data) = (out.join("checkpoints"), data.fingerprint());
    let read = || {
        let (found, state) = checkpoint::load_newest(&folder, config, device, data, world)?;
        checkpoint::set_aside_after(&folder, &found)?;
        Ok(state)
    };
    let unread = || TrainState::in_world(config, world, (Kind::Float, device), false);
    let state = world.lead("read the checkpoint", read)?.unwrap_or_else(unread);
    share(world, state)
}

/// A log of the run; one that goes nowhere on ranks that do not write.
fn lines(world: &World, out: &Path, name: &str, step: u64) -> Result<Lines> {
    let path = if world.leads() { out.join(name) } else { PathBuf::from("/dev/null") };
    Lines::open(&path, step)
}

/// The resolved configuration of a run.
///
/// # Errors
/// [`Error::Output`] if `out` is not a run folder; [`Error::Config`] if its configuration is not one.
pub fn read_config(out: &Path) -> Result<Config> {
    let text = fs::read_to_string(out.join("config.toml")).map_err(|e| Error::Output {
        path: out.to_owned(),
        reason: format!("no config.toml in it ({e}): not the folder of a run"),
    })?;
    Config::parse(&text)
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

/// A run in progress.
#[derive(Debug)]
struct Run {
    config: Config,
    out: PathBuf,
    data: Arc<Dataset>,
    feed: Feed,
    state: TrainState,
    /// What the last step said of its soundness, with its number: read one step late, so that the
    /// device is not waited for.
    unread: Option<(u64, Coming)>,
    /// Faulty steps since the last sound one.
    faults: u64,
    stop: Stop,
    world: World,
    stats: Lines,
    metrics: Lines,
    incidents: Lines,
    /// Of rank 0.
    checkpoints: Option<Writer>,
    progress: Progress,
    /// On rank 0.
    watched: Option<Watched>,
    /// Held as long as the run lives: a second writer is refused, a dead one does not block.
    _lock: Option<File>,
}

/// What rank 0 measures a run with.
#[derive(Debug)]
struct Watched {
    monitor: Monitor,
    /// Floating-point operations of a step for each image of `train.batch`.
    step_flop: f64,
    /// Those that all ranks' devices do a second at most, where that is known.
    peak: Option<f64>,
}

/// Since when, from which step, and how long the feed had then been waited for.
#[derive(Debug, Clone, Copy)]
struct Mark {
    time: Instant,
    step: u64,
    waited: Duration,
}

impl Run {
    fn new(
        config: Config,
        out: &Path,
        data: Arc<Dataset>,
        feed: Feed,
        state: TrainState,
        stop: &Stop,
    ) -> Result<Self> {
        let world = state.d.params.world().clone();
        let lock = world.leads().then(|| lock(out)).transpose()?;
        if world.leads() {
            let images = out.join("images");
            fs::create_dir_all(&images).map_err(Error::io("create", &images))?;
        }
        let checkpoints = world.leads().then(|| Writer::new(&out.join("checkpoints")));
        let mut checkpoints = checkpoints.transpose()?;
        checkpoints.as_mut().map_or(Ok(()), |writer| writer.prepare(&state))?;
        let stats = lines(&world, out, "stats.jsonl", state.step)?;
        let metrics = lines(&world, out, "metrics.jsonl", state.step)?;
        // What happened stays on record, whatever is done again.
        let incidents = lines(&world, out, "incidents.jsonl", u64::MAX)?;
        let progress = Progress::new(state.step, config.train.steps, !world.leads());
        let watch = || {
            let counts = Counts::of(&config);
            let cost = Cost::of(&config, &counts);
            progress.say(&format!("{}\n{}", config.shown(), inspect::table(&counts, &cost)));
            let monitor = Monitor::new(&config, out, &data, feed.device, state.step)?;
            let peak = peak::of(feed.device, config.train.precision);
            let peak = peak.map(|flops| flops * world.size() as f64);
            Ok(Watched { monitor, step_flop: cost.step_flop, peak })
        };
        let watched = world.lead("measure the model", watch)?;
        let out = out.to_owned();
        Ok(Self {
            config,
            out,
            data,
            feed,
            state,
            unread: None,
            faults: 0,
            stop: stop.clone(),
            world,
            stats,
            metrics,
            incidents,
            checkpoints,
            progress,
            watched,
            _lock: lock,
        })
    }

    fn run(mut self) -> Result<Summary> {
        let (device, threads) = (self.feed.device, tch::get_num_threads());
        let ranks = match self.world.size() {
            1 => String::new(),
            size => format!(", {size} ranks"),
        };
        self.progress.say(&match device {
            Device::Cpu => {
                format!("training on the CPU, {threads} threads{ranks} (trainer doctor says why)")
            }
            other => format!("training on {other:?}{ranks}"),
        });
        let begun = self.mark();
        let mut tick = begun;
        let mut last = None;
        if self.state.step > 0 && self.state.of_d.is_none() {
            self.chores_owed()?;
        }
        let mut ended = loop {
            if let Some(ended) = self.over(begun) {
                if self.settle()? && self.judge_update()? {
                    break ended;
                }
                tick = self.mark(); // it went back: there is more to do
                continue;
            }
            let Some(losses) = self.advance()? else {
                tick = self.mark();
                continue;
            };
            self.progress.step(self.state.step);
            if self.due(self.config.log.every) {
                if let Some(line) = self.line(tick, &losses)? {
                    self.take_down(line)?;
                }
                tick = self.mark();
            }
            last = Some(losses);
            if self.due(self.config.dist.check_every) {
                verify(&self.world, &self.state)?;
            }
            self.chores()?;
        };
        self.world.check()?;
        let stats = last.map(|losses| self.line(begun, &losses)).transpose()?.flatten();
        let bottleneck = self.feed.loader.stats().bottleneck;
        self.save()?;
        self.write_out()?;
        self.saved()?;
        self.checkpoints = None; // what follows may need the memory
        let world = self.world.clone();
        let mut probe = None;
        let last_words = || {
            match if ended == Ended::Signal { Ok(None) } else { self.evaluate() } {
                Ok(found) => probe = found,
                Err(e) if e.is_stop() => ended = Ended::Signal,
                Err(e) => return Err(e),
            }
            report::write(&self.out).map(|_| ())
        };
        world.lead("evaluate", last_words)?;
        self.progress.finish();
        let (out, steps) = (self.out, self.state.step);
        Ok(Summary { out, steps, stats, ended, bottleneck, probe })
    }

    fn take_down(&mut self, mut line: StatsLine) -> Result<()> {
        let saved = self.saved()?;
        line.checkpoint_held_s = saved.as_ref().map(|saved| saved.held.as_secs_f64());
        line.checkpoint_write_s = saved.map(|saved| saved.writing.as_secs_f64());
        self.stats.write(&line)?;
        self.progress.show(&line);
        let Some(watched) = &mut self.watched else { return Ok(()) };
        for alarm in watched.monitor.take(&line)? {
            self.progress.say(&format!("step {}: {}", alarm.step, alarm.text));
            self.incidents.write(&alarm)?;
        }
        Ok(())
    }

    /// Says what the checkpoint took that reached the disk since the last call, if one did.
    fn saved(&mut self) -> Result<Option<Saved>> {
        let saved = self.checkpoints.as_mut().map_or(Ok(None), Writer::saved)?;
        if let Some(Saved { name, bytes, held, writing }) = &saved {
            self.progress.say(&format!(
                "{name}: {:.2} GB saved; training held up {:.2} s, written in {:.2} s",
                *bytes as f64 / 1e9,
                held.as_secs_f64(),
                writing.as_secs_f64()
            ));
        }
        Ok(saved)
    }

    /// Why the loop is to end now, if it is.
    fn over(&self, begun: Mark) -> Option<Ended> {
        let limit = Duration::from_secs_f64(60.0 * self.config.train.max_minutes);
        if self.state.step >= self.config.train.steps {
            return Some(Ended::Steps);
        }
        let late = !limit.is_zero() && begun.time.elapsed() >= limit;
        let wish = if self.stop.wanted() { 2 } else { i64::from(late) };
        // One rank's wish is all ranks', at the same step.
        match self.world.largest(wish) {
            0 => None,
            1 => Some(Ended::Time),
            _ => Some(Ended::Signal),
        }
    }

    /// One step; `None` if the step before it proves faulty and training went back, or if the run is to
    /// end between the updates of the step.
    fn advance(&mut self) -> Result<Option<Losses>> {
        self.world.step(self.state.step + 1);
        let (feed, world, stop) = (&mut self.feed, &self.world, &self.stop);
        // Ranks end together: one that waits for images alone does not end alone.
        let (ours, alone) = (Stop::default(), world.size() == 1);
        let next = || {
            if world.largest(i64::from(stop.wanted())) > 0 {
                return Err(Error::Data(pipeline::Error::Stopped));
            }
            world.enter("wait for images");
            let images = feed.next(if alone { stop } else { &ours });
            world.enter("compute");
            images
        };
        let losses = train_step(&self.config, &mut self.state, next);
        self.world.check()?;
        self.state.cursor = self.feed.cursor;
        let losses = match losses {
            Err(e) if e.is_stop() => return Ok(None),
            losses => losses?,
        };
        let earlier = self.unread.replace((self.state.step, Coming::of(&losses.faults)?));
        Ok(self.judge(earlier)?.then_some(losses))
    }

    /// Reads what the last step said of itself: before anything is saved, and at the end. False if
    /// training went back.
    fn settle(&mut self) -> Result<bool> {
        let last = self.unread.take();
        self.judge(last)
    }

    /// As [`Run::settle`], of the updates of D of a step that is not done. A fault that is left out is
    /// judged with the whole step.
    fn judge_update(&mut self) -> Result<bool> {
        let Some(d) = &self.state.of_d else { return Ok(true) };
        let faults = Tensor::stack(&[&d.update.fault], 0);
        match self.config.health.on_fault {
            OnFault::Skip => Ok(true),
            OnFault::Halt | OnFault::Rollback => {
                self.judge(Some((self.state.step + 1, Coming::of(&faults)?)))
            }
        }
    }

    /// Does what `health.on_fault` says about a faulty step. False if training went back.
    fn judge(&mut self, step: Option<(u64, Coming)>) -> Result<bool> {
        let Some((step, faults)) = step else { return Ok(true) };
        let faults = Vec::<f32>::try_from(faults.read())?;
        let faulty = NETWORKS.into_iter().zip(faults).find(|(_, fault)| *fault != 0.0);
        let Some((network, _)) = faulty else {
            self.faults = 0;
            return Ok(true);
        };
        self.faults += 1;
        let HealthConfig { on_fault, patience } = self.config.health;
        let given_up = match on_fault {
            OnFault::Halt => true,
            OnFault::Skip => self.faults > patience,
            OnFault::Rollback => self.state.rollbacks >= patience,
        };
        let what = if given_up { OnFault::Halt } else { on_fault };
        let incident = Incident { step, network, incident: "not_finite", done: what };
        self.incidents.write(&incident)?;
        match what {
            OnFault::Halt => Err(Error::Diverged { network, step }),
            OnFault::Skip => {
                self.progress.say(&format!("step {step}: loss_{network} not finite: left out"));
                Ok(true)
            }
            OnFault::Rollback => self.go_back(step, network).map(|()| false),
        }
    }

    /// Takes up the newest checkpoint again, and goes on with the images that come next.
    fn go_back(&mut self, step: u64, network: &str) -> Result<()> {
        self.write_out()?;
        let rollbacks = self.state.rollbacks + 1;
        self.state = load(&self.config, &self.out, &self.data, self.feed.device, &self.world)?;
        self.state.rollbacks = rollbacks;
        self.state.cursor = self.feed.cursor;
        self.unread = None;
        self.stats = lines(&self.world, &self.out, "stats.jsonl", self.state.step)?;
        self.metrics = lines(&self.world, &self.out, "metrics.jsonl", self.state.step)?;
        if let Some(watched) = &mut self.watched {
            watched.monitor.go_back(self.state.step)?;
        }
        self.progress.say(&format!(
            "step {step}: loss_{network} not finite: back to step {}",
            self.state.step
        ));
        self.progress.step(self.state.step);
        Ok(())
    }

    /// Checkpoints and pictures between the first and the last step.
    fn chores(&mut self) -> Result<()> {
        if self.state.step >= self.config.train.steps {
            return Ok(());
        }
        let (draw, measure) =
            (self.due(self.config.images.every), self.due(self.config.eval.every));
        // What may prove the best must be there to be kept.
        let candidate = measure && !self.config.checkpoint.best.is_empty();
        if self.due(self.config.checkpoint.every) || candidate {
            if !self.settle()? {
                return Ok(());
            }
            self.save()?;
        }
        if draw || measure { self.pictures_and_probes(draw, measure) } else { Ok(()) }
    }

    /// What the session before was stopped in: pictures and probes of the step it ended with.
    fn chores_owed(&mut self) -> Result<()> {
        let step = self.state.step;
        if step >= self.config.train.steps {
            return Ok(());
        }
        let drawn = self.out.join(format!("images/live-{step:08}.png")).exists();
        let draw = self.due(self.config.images.every) && !drawn;
        let measure = self.due(self.config.eval.every) && !self.metrics.has(step)?;
        self.pictures_and_probes(draw, measure)
    }

    fn pictures_and_probes(&mut self, draw: bool, measure: bool) -> Result<()> {
        let world = self.world.clone();
        let work = || match self.evaluate_now(draw, measure) {
            // The loop sees it too; what was left out is owed.
            Err(e) if e.is_stop() => Ok(()),
            done => done,
        };
        world.lead("pictures and probes", work).map(|_| ())
    }

    fn due(&self, every: u64) -> bool {
        every > 0 && self.state.step.is_multiple_of(every)
    }

    /// Begins to write a checkpoint.
    fn save(&mut self) -> Result<()> {
        let CheckpointConfig { keep: last, keep_every: every, best, .. } = &self.config.checkpoint;
        let (metrics, state) = (&self.metrics, &self.state);
        let (writer, data) = (self.checkpoints.as_mut(), self.data.fingerprint());
        let save = || {
            let best = if best.is_empty() { None } else { metrics.best(best)? };
            let keep = Keep { last: *last, every: *every, best };
            writer.map_or(Ok(()), |writer| writer.save(state, data, keep))
        };
        self.world.lead("save", save).map(|_| ())
    }

    /// Waits until all checkpoints are on the disk.
    fn write_out(&mut self) -> Result<()> {
        let writer = self.checkpoints.as_mut();
        self.world.lead("save", || writer.map_or(Ok(()), Writer::finish)).map(|_| ())
    }

    fn mark(&self) -> Mark {
        Mark { time: Instant::now(), step: self.state.step, waited: self.feed.waited }
    }

    /// Reads the losses back (with the faults, the only wait for the device) and the clock since
    /// `from`. Only rank 0 gets a line.
    fn line(&self, from: Mark, losses: &Losses) -> Result<Option<StatsLine>> {
        let step = self.state.step;
        let [loss_d, loss_g] = [&losses.d, &losses.g].map(|loss| loss.double_value(&[]));
        let loss_e = losses.e.as_ref().map(|loss| loss.double_value(&[]));
        let seconds = from.time.elapsed().as_secs_f64();
        let step_seconds = seconds / (step - from.step) as f64;
        let images_per_s = self.config.train.batch as f64 / step_seconds;
        let waited = (self.feed.waited - from.waited).as_secs_f64();
        let [waited, bad] = self.world.sums([waited, self.feed.loader.stats().bad as f64]);
        let (waited, bad_images) = (waited / self.world.size() as f64, bad as u64);
        let watched = self.watched.as_ref();
        let measure = || watched.map(|w| Ok((w.monitor.signals(&self.state)?, w))).transpose();
        let Some((health, watched)) = self.world.lead("measure health", measure)?.flatten() else {
            return Ok(None);
        };
        let device = device::peak_memory(self.feed.device)?;
        let memory = device.map_or_else(measure::resident_bytes, |bytes| bytes as f64);
        let flops = images_per_s * watched.step_flop;
        Ok(Some(StatsLine {
            step,
            loss_d,
            loss_g,
            loss_e,
            images_per_s,
            images_read_per_s: images_per_s * f64::from(self.config.train.d_steps + 1),
            data_wait_percent: 100.0 * waited / seconds,
            step_seconds,
            bad_images,
            epoch: self.state.cursor.epoch,
            remote: self.data.traffic(),
            gflop_per_s: flops / 1e9,
            mfu_percent: watched.peak.map(|peak| 100.0 * flops / peak),
            memory_gb: memory / 1e9,
            checkpoint_held_s: None,
            checkpoint_write_s: None,
            health,
        }))
    }
}

pub(crate) fn lock(out: &Path) -> Result<File> {
    let path = out.join("lock");
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            let reason = "another trainer is writing to it; wait for it or stop it";
            Err(Error::Output { path: out.to_owned(), reason: reason.into() })
        }
        Err(fs::TryLockError::Error(e)) => Err(Error::io("lock", &path)(e)),
    }
}

#[cfg(test)]
mod tests;

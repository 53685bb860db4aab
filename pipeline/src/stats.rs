//! Seconds busy, starved and blocked, per stage, and the stage that limits in words.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use serde::{Deserialize, Serialize};

use crate::SampleId;
use crate::remote::Traffic;

/// How one stage spent its time, all its threads together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Threads in this stage.
    pub threads: usize,
    /// Seconds of work.
    pub busy: f64,
    /// Seconds waiting for something to work on.
    pub starved: f64,
    /// Seconds waiting for room to put the result.
    pub blocked: f64,
}

/// What a loader has done so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Seconds since the start.
    pub seconds: f64,
    /// Choosing samples and asking for their bytes; behind a URL, waiting for them as well.
    /// Starved: no batch memory is free.
    pub fetch: Stage,
    /// Decoding and resizing. Starved: no bytes to decode.
    pub decode: Stage,
    /// The caller. Starved: no batch was ready when asked for one.
    pub consumer: Stage,
    /// Images decoded.
    pub images: u64,
    /// Compressed bytes of those images.
    pub bytes: u64,
    /// Batches handed out.
    pub batches: u64,
    /// Samples waiting to be decoded, now.
    pub queued_samples: usize,
    /// Batches ready and waiting, now.
    pub queued_batches: usize,
    /// What reading from a URL took since the data set was opened, by all its loaders together;
    /// none for a folder of this machine.
    pub remote: Option<Traffic>,
    /// Bad samples that were replaced.
    pub bad: u64,
    /// The first of them, at most [`Stats::QUARANTINE`].
    pub quarantine: Vec<Quarantined>,
    /// The stage that limits, in words.
    pub bottleneck: String,
}

/// A bad sample that was replaced by another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Position in the split.
    pub sample: SampleId,
    /// The whole report: shard, key, offset and cause.
    pub report: String,
}

impl Stats {
    /// Most bad samples that are kept by name.
    pub const QUARANTINE: usize = 1000;

    /// Images decoded a second since the start.
    pub fn images_per_second(&self) -> f64 {
        self.images as f64 / self.seconds.max(1e-9)
    }

    /// Compressed bytes decoded a second since the start.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-9)
    }

    pub(crate) fn with_bottleneck(mut self) -> Self {
        let share =
            |part: f64, stage: Stage| part / (self.seconds * stage.threads as f64).max(1e-9);
        let waiting = share(self.consumer.starved, self.consumer);
        let idle = share(self.decode.starved, self.decode);
        self.bottleneck = if waiting < 0.02 {
            format!("the consumer: it waited {:.1} % of the time", 100.0 * waiting)
        } else if idle < 0.2 {
            format!(
                "decoding: {} threads busy {:.0} % of the time while the consumer waited {:.0} %; \
                 more threads or cores would help",
                self.decode.threads,
                100.0 * share(self.decode.busy, self.decode),
                100.0 * waiting
            )
        } else if share(self.fetch.busy, self.fetch) > 0.5 {
            let busy = 100.0 * share(self.fetch.busy, self.fetch);
            match self.remote {
                None => format!("fetching: busy {busy:.0} % of the time"),
                Some(Traffic { requests, retries, bytes, .. }) => format!(
                    "the network: waited for {busy:.0} % of the time; {:.1} MB/s in {requests} \
                     requests of {:.0} kB, {retries} of them repeated",
                    bytes as f64 * 1e-6 / self.seconds.max(1e-9),
                    bytes as f64 * 1e-3 / (requests as f64).max(1.0)
                ),
            }
        } else {
            format!(
                "hand-over: decode threads idle {:.0} % of the time while the consumer \
                 waited {:.0} %; more batches ahead, or fewer programs on these cores, would help",
                100.0 * idle,
                100.0 * waiting
            )
        };
        self
    }
}

/// Nanoseconds of one stage, added up by its threads.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    busy: CachePadded<AtomicU64>,
    starved: CachePadded<AtomicU64>,
    blocked: CachePadded<AtomicU64>,
}

impl Clock {
    pub(crate) fn busy(&self, time: Duration) {
        add(&self.busy, time);
    }

    pub(crate) fn starved(&self, time: Duration) {
        add(&self.starved, time);
    }

    pub(crate) fn blocked(&self, time: Duration) {
        add(&self.blocked, time);
    }

    pub(crate) fn stage(&self, threads: usize) -> Stage {
        let seconds = |nanos: &AtomicU64| nanos.load(Ordering::Relaxed) as f64 * 1e-9;
        let (busy, starved) = (seconds(&self.busy), seconds(&self.starved));
        Stage { threads, busy, starved, blocked: seconds(&self.blocked) }
    }
}

fn add(counter: &AtomicU64, time: Duration) {
    counter.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Cuts time into pieces: each call gives what passed since the one before.
#[derive(Debug)]
pub(crate) struct Lap(Instant);

impl Lap {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn take(&mut self) -> Duration {
        let now = Instant::now();
        let time = now - self.0;
        self.0 = now;
        time
    }
}

//! Seconds busy, starved and blocked, per stage, and the stage that limits in words.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use serde::{Deserialize, Serialize};

use crate::SampleId;
use crate::address::Traffic;

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
    /// Decoding and resizing. Starved: waiting for bytes, of the disk or from a URL. Blocked: no
    /// batch memory is free.
    pub decode: Stage,
    /// The caller. Starved: no batch was ready when asked for one.
    pub consumer: Stage,
    /// Images decoded.
    pub images: u64,
    /// Compressed bytes of those images.
    pub bytes: u64,
    /// Batches handed out.
    pub batches: u64,
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
        let percent = |part: f64, stage: Stage| 100.0 * share(part, stage);
        let waiting = percent(self.consumer.starved, self.consumer);
        let starved = percent(self.decode.starved, self.decode);
        let blocked = percent(self.decode.blocked, self.decode);
        self.bottleneck = if waiting < 2.0 {
            format!("the consumer: it waited {waiting:.1} % of the time")
        } else if starved >= 20.0 {
            match self.remote {
                None => {
                    format!("reading: decode threads waited {starved:.0} % of the time for files")
                }
                Some(Traffic { requests, retries, bytes, .. }) => format!(
                    "the network: waited for {starved:.0} % of the time; {:.1} MB/s in {requests} \
                     requests of {:.0} kB, {retries} of them repeated",
                    bytes as f64 * 1e-6 / self.seconds.max(1e-9),
                    bytes as f64 * 1e-3 / (requests as f64).max(1.0)
                ),
            }
        } else if blocked < 20.0 {
            format!(
                "decoding: {} threads busy {:.0} % of the time while the consumer waited \
                 {waiting:.0} %; more threads or cores would help",
                self.decode.threads,
                percent(self.decode.busy, self.decode),
            )
        } else {
            format!(
                "hand-over: decode threads idle {blocked:.0} % of the time while the consumer \
                 waited {waiting:.0} %; more batches ahead, or fewer programs on these cores, would \
                 help"
            )
        };
        self
    }
}

/// What one thread did so far. Others only read it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    busy: AtomicU64, // nanoseconds
    starved: AtomicU64,
    blocked: AtomicU64,
    images: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    pub(crate) fn busy(&self, time: Duration) {
        add(&self.busy, nanoseconds(time));
    }

    pub(crate) fn starved(&self, time: Duration) {
        add(&self.starved, nanoseconds(time));
    }

    pub(crate) fn blocked(&self, time: Duration) {
        add(&self.blocked, nanoseconds(time));
    }

    /// Counts decoded images and their compressed bytes.
    pub(crate) fn decoded(&self, images: u64, bytes: u64) {
        add(&self.images, images);
        add(&self.bytes, bytes);
    }

    /// The threads of a stage together, their images and their bytes.
    pub(crate) fn sum(tallies: &[CachePadded<Self>]) -> (Stage, u64, u64) {
        let sum = |part: fn(&Self) -> &AtomicU64| {
            tallies.iter().map(|tally| part(tally).load(Ordering::Relaxed)).sum::<u64>()
        };
        let seconds = |part| sum(part) as f64 * 1e-9;
        let stage = Stage {
            threads: tallies.len(),
            busy: seconds(|tally| &tally.busy),
            starved: seconds(|tally| &tally.starved),
            blocked: seconds(|tally| &tally.blocked),
        };
        (stage, sum(|tally| &tally.images), sum(|tally| &tally.bytes))
    }
}

/// One thread writes, so this need not be one operation.
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed) + value, Ordering::Relaxed);
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
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

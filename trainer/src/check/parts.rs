//! What one process of a check does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bigbigan_model::config::Precision;
use common::stop::Stop;
use dist::World;
use pipeline::{Cursor, Dataset};
use serde::{Deserialize, Serialize};
use tch::Device;
use torch_ext::profile::Profile;

use super::{Record, Row, Sink, Timed, compare, evaluate};
use crate::config::{Config, Origin};
use crate::device;
use crate::error::{Error, Result};
use crate::feed::Feed;
use crate::inspect::{Cost, Counts};
use crate::peak;
use crate::provenance::Provenance;
use crate::run::open_data;
use crate::timing::{on_feed, on_images, one_step};

/// Steps that are timed, with images that are there and from a loader.
const fn steps_on(device: Device) -> usize {
    if matches!(device, Device::Cpu) { 4 } else { 20 }
}
/// Rows of a profile that are kept.
const PROFILED: usize = 40;
/// How long the loader runs alone.
const ALONE: Duration = Duration::from_secs(3);

/// A part of a check, which a process of its own does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Which device this is.
    Device,
    /// Comparisons, from number `first` on.
    Cases {
        /// Number of the first.
        first: usize,
        /// Whether those are enough that `--quick` has.
        quick: bool,
    },
    /// The comparison that cuBLAS wants a variable of the environment for.
    Deterministic,
    /// The comparison of evaluations.
    Evaluations,
    /// Steps on images that are there, then a profile of one if wanted.
    Steps {
        /// Of what.
        of: Timed,
        /// Whether it is wanted.
        profile: bool,
    },
    /// Steps on batches of a loader.
    Feed {
        /// Of what.
        of: Timed,
        /// The data folder.
        data: PathBuf,
    },
}

impl Part {
    /// What it is, in words.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Device => "the device".to_owned(),
            Self::Cases { first, quick } => {
                let at = (*first..).zip(compare::cases().skip(*first));
                let name = at.filter_map(|(_, number)| compare::name(number, *quick)).next();
                format!("comparisons from {:?} on", name.unwrap_or("the end"))
            }
            Self::Deterministic => "deterministic".to_owned(),
            Self::Evaluations => "evaluations".to_owned(),
            Self::Steps { of, .. } => format!("steps of {of}"),
            Self::Feed { of, .. } => format!("steps on shards of {of}"),
        }
    }

    /// Does it. What it finds goes to `sink` as it is found.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Config`], those of the data, and `stop`; after a comparison that libtorch
    /// refused, for what comes after it in this process tells nothing, [`Error::Torch`].
    ///
    /// # Panics
    /// Where libtorch refuses, with its words.
    pub fn run(&self, device: &str, sink: &mut Sink, stop: &Stop) -> Result<()> {
        let device = device::parse(device)?;
        match self {
            Self::Device => sink.put(&describe(device)),
            Self::Cases { first, quick } => {
                for number in compare::cases().skip(*first) {
                    if let Some(name) = compare::name(number, *quick) {
                        stop.check()?;
                        put_row(name, sink, || compare::compare(number, device, stop))?;
                    }
                }
                Ok(())
            }
            Self::Deterministic => {
                put_row("deterministic", sink, || compare::compare_deterministic(device, stop))
            }
            Self::Evaluations => put_row("evaluations", sink, || {
                evaluate::compare(device, compare::threads(device), stop)
            }),
            Self::Steps { of, profile } => steps(of, *profile, device, sink, stop),
            Self::Feed { of, data } => feed(of, data, device, sink, stop),
        }
    }
}

fn describe(device: Device) -> Record {
    Record::Device {
        by: Provenance::here(device),
        threads: tch::get_num_threads(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        peak_bf16_tflops: peak::of(device, Precision::Bf16).map(|flops| flops * 1e-12),
    }
}

/// A comparison that fails is a row too.
fn put_row(name: &str, sink: &mut Sink, row: impl FnOnce() -> Result<Row>) -> Result<()> {
    match torch_ext::caught(row) {
        Ok(row) => sink.put(&Record::Row(row)),
        Err(e) if e.is_stop() => Err(e),
        Err(e) => {
            sink.put(&Record::Row(Row::failed(name, e.to_string())))?;
            // After a refusal a device may answer nothing any more.
            if matches!(e, Error::Torch { .. }) { Err(e) } else { Ok(()) }
        }
    }
}

impl Timed {
    fn config(&self, more: &[String]) -> Result<Config> {
        let mut keys = vec![
            format!("train.batch={}", self.batch),
            "train.micro_batch=0".to_owned(),
            format!("train.precision={}", self.precision),
            format!("train.graphs={}", self.graphs),
        ];
        keys.extend(more.iter().cloned());
        Config::resolve(&Origin::Preset(&self.preset), &keys)
    }

    /// What this device makes no difference for.
    fn idle_on(&self, device: Device) -> Option<Record> {
        let idle = device == Device::Cpu && (self.graphs || self.precision == "tf32");
        let why = "on the CPU it is the same as without".to_owned();
        idle.then(|| Record::Missing { part: format!("steps of {self}"), why })
    }
}

fn steps(of: &Timed, profile: bool, device: Device, sink: &mut Sink, stop: &Stop) -> Result<()> {
    if let Some(missing) = of.idle_on(device) {
        return sink.put(&missing);
    }
    let config = of.config(&[])?;
    let (took, mut state) =
        match torch_ext::caught(|| on_images(&config, device, steps_on(device), stop)) {
            Err(Error::Memory { .. }) => return sink.put(&Record::TooLarge { of: of.clone() }),
            done => done?,
        };
    let images_per_s = of.batch as f64 / took.step_s;
    let gflop_per_image = Cost::of(&config, &Counts::of(&config)).step_flop / 1e9;
    let peak = peak::of(device, config.train.precision);
    let mfu = peak.map(|flops| 1e9 * gflop_per_image * images_per_s / flops);
    let of = of.clone();
    sink.put(&Record::Steps { of: of.clone(), took, images_per_s, gflop_per_image, mfu })?;
    if !profile {
        return Ok(());
    }
    let found = Profile::of(device.is_cuda(), || one_step(&config, &mut state));
    match found {
        Ok((done, found)) => {
            done?;
            sink.put(&Record::Profile { of, profile: found.shortened(PROFILED) })
        }
        Err(why) => sink.put(&Record::Missing { part: format!("a profile of {of}"), why }),
    }
}

fn feed(of: &Timed, data: &Path, device: Device, sink: &mut Sink, stop: &Stop) -> Result<()> {
    let begun = Instant::now();
    let config = of.config(&[format!("data.dir={}", data.display())])?;
    let data = open_data(&config, "train")?;
    put_row("batches on the device", sink, || batches(&config, &data, device, stop))?;
    let mut alone = Feed::start(&config, &data, Cursor::default(), device, &World::alone())?;
    alone.prime(stop)?;
    for _ in 0..config.data.depth + 1 {
        alone.next(stop)?; // made while nothing was timed
    }
    let (from, mut taken) = (Instant::now(), 0);
    while from.elapsed() < ALONE {
        taken += alone.next(stop)?.len();
    }
    let alone_images_per_s = taken as f64 / from.elapsed().as_secs_f64();
    drop(alone);
    let took = on_feed(&config, &data, device, (steps_on(device) as u64, begun), stop)?;
    let decode_threads = crate::eval::loader_config(&config).threads;
    let (of, images) = (of.clone(), data.len());
    sink.put(&Record::Feed { of, images, decode_threads, alone_images_per_s, took })
}

/// The first batches of a loader, on the device and on the CPU.
fn batches(config: &Config, data: &Arc<Dataset>, device: Device, stop: &Stop) -> Result<Row> {
    let begun = Instant::now();
    let start = |device| Feed::start(config, data, Cursor::default(), device, &World::alone());
    let (mut ours, mut theirs) = (start(device)?, start(Device::Cpu)?);
    let mut most = 0f64;
    for _ in 0..2 {
        let (a, b) = (ours.next(stop)?, theirs.next(stop)?);
        for (a, b) in [(&a.large, &b.large), (&a.small, &b.small)] {
            most = most.max(compare::relative(a, b));
        }
    }
    let mut row = Row::new("batches on the device");
    row.add("pixels", most, 1e-6);
    row.seconds = begun.elapsed().as_secs_f64();
    Ok(row)
}

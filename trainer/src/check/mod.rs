//! `trainer check-device`: whether a device computes what the CPU does, and how fast.
//!
//! Each part runs in a process of its own, so that none takes the others with it: a fault of CUDA spoils all that
//! its process does later. What a part finds goes line by line to a file that outlives it, and from there into the
//! result, which is therefore whole at any moment.

mod compare;
mod evaluate;
mod parts;
mod watch;

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use torch_ext::profile::Profile;

use crate::error::{Error, Result};
use crate::provenance::Provenance;
use crate::say;
use crate::timing::{OnFeed, OnImages};
pub use parts::Part;
pub use watch::{Ended, Peer, Plan};

/// How far the device is off the CPU in one respect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quantity {
    /// Its name, such as `losses`.
    pub name: String,
    /// How far; none where it is not a number.
    pub off: Option<f64>,
    /// The most that it may be.
    pub tolerance: f64,
}

impl Quantity {
    fn agrees(&self) -> bool {
        self.off.is_some_and(|off| off <= self.tolerance)
    }
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The model and its switches.
    pub name: String,
    /// Whether the device does what the CPU does.
    pub agrees: bool,
    /// In what respects.
    pub quantities: Vec<Quantity>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// What it took.
    pub seconds: f64,
}

impl Row {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), agrees: true, quantities: vec![], failed: None, seconds: 0.0 }
    }

    fn failed(name: &str, why: String) -> Self {
        Self { agrees: false, failed: Some(why), ..Self::new(name) }
    }

    fn add(&mut self, name: &str, off: f64, tolerance: f64) {
        let off = Some(off).filter(|off| off.is_finite());
        let quantity = Quantity { name: name.to_owned(), off, tolerance };
        self.agrees &= quantity.agrees();
        self.quantities.push(quantity);
    }
}

impl fmt::Display for Row {
    /// One line: the verdict, the name, and of each quantity how far it is off and, after a stroke, may be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:<22}", if self.agrees { "agrees" } else { "WRONG " }, self.name)?;
        if let Some(why) = &self.failed {
            return write!(f, " {why}");
        }
        for q in &self.quantities {
            match q.off {
                Some(0.0) => write!(f, " {} 0", q.name)?,
                Some(off) => write!(f, " {} {off:.0e}", q.name)?,
                None => write!(f, " {} none", q.name)?,
            }
            if q.tolerance > 0.0 {
                write!(f, "/{:.0e}", q.tolerance)?;
            }
            if !q.agrees() {
                f.write_str("!")?;
            }
        }
        Ok(())
    }
}

/// A configuration that was timed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timed {
    /// Preset.
    pub preset: String,
    /// Images an update, in one pass.
    pub batch: i64,
    /// `train.precision`.
    pub precision: String,
    /// `train.graphs`.
    pub graphs: bool,
}

impl fmt::Display for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { preset, batch, precision, graphs } = self;
        write!(f, "{preset} at {batch}, {precision}{}", if *graphs { ", graphs" } else { "" })
    }
}

/// What a part finds: a line of its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// What computes.
    Device {
        /// Program, machine, device.
        #[serde(flatten)]
        by: Provenance,
        /// Threads of libtorch on the CPU.
        threads: i32,
        /// Cores that this process may use.
        cores: usize,
        /// 10¹² floating-point operations a second that the card does at most, in bfloat16; none where it is not
        /// known.
        peak_bf16_tflops: Option<f64>,
    },
    /// A comparison.
    Row(Row),
    /// Steps on random images that are on the device.
    Steps {
        /// Of what.
        #[serde(flatten)]
        of: Timed,
        /// How long.
        #[serde(flatten)]
        took: OnImages,
        /// Images of a batch over the seconds of a step.
        images_per_s: f64,
        /// 10⁹ floating-point operations of a step for each image, counted.
        gflop_per_image: f64,
        /// Model FLOP utilisation; none where the device's peak is not known.
        mfu: Option<f64>,
    },
    /// Where the time of one more step went.
    Profile {
        /// Of what.
        #[serde(flatten)]
        of: Timed,
        /// Where.
        #[serde(flatten)]
        profile: Profile,
    },
    /// Steps on batches of a loader.
    Feed {
        /// Of what.
        #[serde(flatten)]
        of: Timed,
        /// Images in the data folder.
        images: usize,
        /// Decode threads.
        decode_threads: usize,
        /// Images that the loader gives while nothing else is done.
        alone_images_per_s: f64,
        /// How long, and how long it waited.
        #[serde(flatten)]
        took: OnFeed,
    },
    /// What another program said of itself.
    Peer {
        /// The last line that it printed.
        said: serde_json::Value,
    },
    /// It did not fit the device's memory.
    TooLarge {
        /// What.
        #[serde(flatten)]
        of: Timed,
    },
    /// A part that was left out, or not finished.
    Missing {
        /// Which.
        part: String,
        /// Why.
        why: String,
    },
}

impl fmt::Display for Record {
    /// One line for people, or a short table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { by, threads, cores, .. } => {
                let Provenance { version, commit, libtorch, host, device, time } = by;
                write!(
                    f,
                    "{device} on {host}, {cores} cores, {threads} threads; trainer {version} \
                     ({commit}), libtorch {libtorch}; {time}"
                )
            }
            Self::Row(row) => row.fmt(f),
            Self::Steps { of, took, images_per_s, gflop_per_image, mfu } => {
                let OnImages { steps, first_s, step_s, given_s, peak_bytes } = took;
                write!(
                    f,
                    "steps  {of}: {step_s:.4} s (median of {steps}; the host was done after {given_s:.4}, \
                     the first took {first_s:.2}), {images_per_s:.1} images/s, {:.1} TFLOP/s, ",
                    1e-3 * gflop_per_image * images_per_s
                )?;
                match mfu {
                    Some(mfu) => write!(f, "MFU {:.1} %, ", 100.0 * mfu)?,
                    None => f.write_str("MFU unknown, ")?,
                }
                write!(f, "{:.2} GB", peak_bytes / 1e9)
            }
            Self::Profile { of, profile } => write!(f, "{}", profile.table(&of.to_string())),
            Self::Feed { of, images, decode_threads, alone_images_per_s, took } => write!(
                f,
                "data   {of}: {:.4} s a step, {:.2} % of it waiting ({:.2} % for the loader); {:.0} images/s \
                 read of {images} by {decode_threads} threads, {alone_images_per_s:.0} while nothing else is done",
                took.step_s,
                100.0 * took.wait_share,
                100.0 * took.loading_share,
                took.images_read_per_s,
            ),
            Self::Peer { said } => write!(f, "peer   {said}"),
            Self::TooLarge { of } => write!(f, "steps  {of}: does not fit the memory"),
            Self::Missing { part, why } => write!(f, "not done: {part}: {why}"),
        }
    }
}

/// Where a part's records go: to a file, and as text to standard output.
#[derive(Debug)]
pub struct Sink {
    file: File,
    path: PathBuf,
}

impl Sink {
    /// Goes on with `path`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        Ok(Self { file: file.map_err(Error::io("open", path))?, path: path.to_owned() })
    }

    fn put(&mut self, record: &Record) -> Result<()> {
        say::print(record)?;
        let line = serde_json::to_string(record).expect("records are plain") + "\n";
        self.file.write_all(line.as_bytes()).map_err(Error::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_agrees_only_where_all_of_it_is_within_and_a_number() {
        let mut row = Row::new("f32");
        row.add("losses", 1e-6, 1e-4);
        assert!(row.agrees);
        let mut other = row.clone();
        other.add("weights", 2e-3, 1e-3);
        assert!(!other.agrees && other.to_string().contains("weights 2e-3/1e-3!"), "{other}");
        row.add("again", f64::NAN, 1.0);
        assert!(!row.agrees && row.quantities[1].off.is_none());
    }

    #[test]
    fn a_record_reads_back() {
        let of = Timed { preset: "demo".into(), batch: 4, precision: "bf16".into(), graphs: true };
        for record in [
            Record::Row(Row::failed("bf16", "no kernel".into())),
            Record::TooLarge { of: of.clone() },
            Record::Missing { part: "steps".into(), why: "no time left".into() },
        ] {
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record, "{text}");
        }
    }
}

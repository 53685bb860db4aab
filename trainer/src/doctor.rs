//! `trainer doctor`: what this machine offers and whether the data folder is sound.

use std::path::Path;

use pipeline::Dataset;
use pipeline::index::SplitRecord;

use crate::device;
use crate::measure;
use crate::provenance;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// What was found.
    pub found: String,
    /// Whether training can work with it.
    pub fine: bool,
}

/// Looks at libtorch, CUDA, cores, memory and, where given, a data folder.
#[must_use]
pub fn examine(data: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![
        Finding { what: "libtorch", found: libtorch(), fine: true },
        match device::cuda() {
            Ok(count) => Finding { what: "CUDA", found: format!("{count} devices"), fine: true },
            Err(reason) => {
                let found = format!("none: {reason}. Training runs on the CPU");
                Finding { what: "CUDA", found, fine: true }
            }
        },
        Finding { what: "cores", found: cores(), fine: true },
        Finding { what: "memory", found: memory(), fine: true },
    ];
    findings.extend(data.map(examine_data));
    findings
}

/// Version of libtorch that tch was built for, and the library in use.
fn libtorch() -> String {
    let (version, used) = provenance::libtorch();
    format!("{version} ({used}); tch 0.24 expects 2.11.0")
}

fn cores() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores}; libtorch uses {} threads", tch::get_num_threads())
}

fn memory() -> String {
    const GIB: f64 = 1_073_741_824.0;
    match (measure::total_bytes(), measure::free_bytes()) {
        (Some(total), Some(free)) => {
            format!("{:.1} GiB, {:.1} GiB available", total / GIB, free / GIB)
        }
        _ => "unknown (no /proc/meminfo)".into(),
    }
}

fn examine_data(dir: &Path) -> Finding {
    let what = "data";
    let open = |split: &str| Dataset::open(dir, split);
    match open("train") {
        Err(e) => Finding { what, found: e.to_string(), fine: false },
        Ok(train) => {
            let count = |split: &SplitRecord| {
                open(&split.name).map(|d| format!("{} {}", d.len(), split.name))
            };
            let counts: Result<Vec<_>, _> = train.index().splits().iter().map(count).collect();
            match counts {
                Err(e) => Finding { what, found: e.to_string(), fine: false },
                Ok(counts) => {
                    let classes = train.classes().len();
                    let checked = match pipeline::is_url(dir) {
                        true => "index and manifest were read, no shard yet",
                        false => "index and shard lengths agree",
                    };
                    let found = format!(
                        "{} images, {classes} classes; {checked} (shard-imagenet verify checks \
                         every byte)",
                        counts.join(", ")
                    );
                    Finding { what, found, fine: true }
                }
            }
        }
    }
}

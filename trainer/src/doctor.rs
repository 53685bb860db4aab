//! `trainer doctor`: what this machine offers, what keeps training from it or slow, and how to mend that.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use pipeline::Dataset;
use pipeline::index::SplitRecord;
use torch_ext::cuda::load_library;
use torch_ext::measure;

use crate::device;
use crate::provenance;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// What was found.
    pub found: String,
    /// Whether training can work with it, as it was meant to.
    pub fine: bool,
    /// How to mend it, or make it faster, where there is a way.
    pub cure: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl ToString) -> Self {
        Self { what, found: found.to_string(), fine: true, cure: None }
    }

    /// Works, and could do so better.
    fn advice(what: &'static str, found: impl ToString, cure: impl ToString) -> Self {
        Self { cure: Some(cure.to_string()), ..Self::good(what, found) }
    }

    fn bad(what: &'static str, found: impl ToString, cure: impl ToString) -> Self {
        let cure = Some(cure.to_string()).filter(|cure| !cure.is_empty());
        Self { fine: false, cure, ..Self::good(what, found) }
    }
}

/// The least driver that libtorch's CUDA 13.0 runs with.
///
/// # Source
/// NVIDIA's CUDA 13.0 release notes, table "CUDA Toolkit and Corresponding Driver Versions".
const DRIVER: u64 = 580;
const GIB: f64 = 1_073_741_824.0;

/// Where a machine is looked at.
#[derive(Debug)]
struct Host {
    /// `/`, or a folder like it.
    root: PathBuf,
    variables: BTreeMap<String, String>,
}

/// Looks at libtorch, CUDA, cores, memory, disk and, where given, a data folder.
#[must_use]
pub fn examine(data: Option<&Path>) -> Vec<Finding> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let host = Host { root: "/".into(), variables: std::env::vars_os().filter_map(text).collect() };
    let (version, used) = provenance::libtorch();
    let mut findings = vec![
        libtorch(&version, &used),
        host.cuda(device::cuda(), || load_library(c"libcuda.so.1").map(drop)),
        host.cores(tch::get_num_threads()),
        host.waiting(),
        host.memory(measure::total_bytes(), measure::free_bytes()),
        shared_memory(room(Path::new("/dev/shm"), |disk| disk.f_blocks)),
        disk(room(Path::new("."), |disk| disk.f_bavail)),
    ];
    findings.extend(host.ranks());
    findings.extend(data.map(examine_data));
    findings
}

/// The library in use, which must be the one that tch was built for.
fn libtorch(version: &str, used: &str) -> Finding {
    let (what, found) = ("libtorch", format!("{version} ({used})"));
    if version.starts_with("2.11.0") {
        return Finding::good(what, found);
    }
    let cure = "tch 0.24 is for libtorch 2.11.0: run make setup, and take other copies out of LD_LIBRARY_PATH";
    Finding::bad(what, found, cure)
}

impl Host {
    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// NVIDIA cards on the bus.
    fn cards(&self) -> usize {
        let Ok(devices) = fs::read_dir(self.root.join("sys/bus/pci/devices")) else { return 0 };
        let is = |path: &Path, name: &str, begin: &str| {
            fs::read_to_string(path.join(name)).is_ok_and(|text| text.starts_with(begin))
        };
        let card = |path: &Path| is(path, "vendor", "0x10de") && is(path, "class", "0x03");
        devices.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| card(path)).count()
    }

    /// Version of the driver that the kernel has loaded.
    fn driver(&self) -> Option<String> {
        let text = self.read("proc/driver/nvidia/version")?;
        let words = text.lines().next()?.split_whitespace();
        let version = |word: &&str| {
            word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.')
        };
        words.into_iter().find(version).map(str::to_owned)
    }

    /// Devices, or why there are none.
    fn cuda(
        &self,
        devices: Result<usize, String>,
        load_driver: impl FnOnce() -> Result<(), String>,
    ) -> Finding {
        let what = "CUDA";
        let driver = self.driver();
        let said =
            driver.as_ref().map_or_else(String::new, |version| format!(", driver {version}"));
        let reason = match devices {
            Ok(count) => return Finding::good(what, format!("{count} devices{said}")),
            Err(reason) => reason,
        };
        let cards = self.cards();
        if cards == 0 && driver.is_none() {
            return Finding::good(what, "no NVIDIA card here: training runs on the CPU");
        }
        let bad = |found: &str, cure: &str| {
            Finding::bad(
                what,
                format!("{found}; training would run on the CPU ({cards} cards{said})"),
                cure,
            )
        };
        let hidden = self.variable("CUDA_VISIBLE_DEVICES").filter(|shown| {
            !shown
                .split(',')
                .next()
                .unwrap_or_default()
                .trim()
                .starts_with(|c: char| c.is_ascii_alphanumeric())
        });
        if let Some(shown) = hidden {
            let found = format!("hidden by CUDA_VISIBLE_DEVICES={shown:?}");
            return bad(
                &found,
                "unset CUDA_VISIBLE_DEVICES, or name the devices in it, such as 0,1",
            );
        }
        let Some(version) = driver else {
            let cure =
                format!("install NVIDIA's driver, {DRIVER} or newer, and start the machine again");
            return bad("the kernel has no NVIDIA driver loaded", &cure);
        };
        let major = version.split('.').next().and_then(|major| major.parse::<u64>().ok());
        if major.is_some_and(|major| major < DRIVER) {
            let cure = format!("install NVIDIA's driver {DRIVER} or newer");
            return bad("the driver is too old for libtorch's CUDA 13.0", &cure);
        }
        self.no_device(&reason, load_driver, &bad)
    }

    /// Why there is no CUDA device beside a driver that is loaded and new enough.
    fn no_device(
        &self,
        reason: &str,
        load_driver: impl FnOnce() -> Result<(), String>,
        bad: &dyn Fn(&str, &str) -> Finding,
    ) -> Finding {
        match File::open(self.root.join("dev/nvidiactl")) {
            Err(e) if e.kind() == ErrorKind::NotFound => bad(
                "the devices' files are missing (/dev/nvidiactl)",
                "in a container: docker run --gpus all, with NVIDIA's container toolkit; else run nvidia-modprobe as root",
            ),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => bad(
                "this user may not open the devices' files (/dev/nvidiactl)",
                "add the user to the group that they belong to (ls -l /dev/nvidia*)",
            ),
            _ => match load_driver() {
                Err(e) => bad(
                    &format!("the driver's library does not load ({e})"),
                    "install libcuda of the driver's version; in a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility",
                ),
                Ok(()) if reason.contains("does not load") => bad(
                    reason,
                    "this libtorch is without CUDA, or its libraries are missing: run make setup",
                ),
                Ok(()) => bad(
                    reason,
                    "see what nvidia-smi says; a device may be in use alone, or have fallen off the bus",
                ),
            },
        }
    }

    fn cores(&self, threads: i32) -> Finding {
        let what = "cores";
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let info = self.read("proc/cpuinfo").unwrap_or_default();
        let units = ["avx512_bf16", "amx_bf16"].iter().any(|unit| info.contains(unit));
        let units = if units { "with" } else { "without" };
        let found = format!("{cores} {units} bfloat16 units; libtorch uses {threads} threads");
        let load = self.read("proc/loadavg");
        let load: Option<f64> =
            load.and_then(|text| text.split_whitespace().next().and_then(|word| word.parse().ok()));
        match (self.variable("OMP_NUM_THREADS"), load) {
            (Some(set), _) if (threads as usize) < cores => {
                let cure = format!(
                    "OMP_NUM_THREADS={set} leaves the others idle: unset it, unless that is meant"
                );
                Finding::advice(what, found, cure)
            }
            (_, Some(load)) if load > cores as f64 / 2.0 => {
                let cure = "other programs want the cores: steps take longer the fewer are free";
                Finding::advice(what, format!("{found}; a load of {load:.1} now"), cure)
            }
            _ => Finding::good(what, found),
        }
    }

    /// How threads that have nothing to do wait for the others.
    fn waiting(&self) -> Finding {
        let what = "waiting";
        let spins = self.variable("GOMP_SPINCOUNT").unwrap_or("300000");
        match self.variable("OMP_WAIT_POLICY") {
            Some(policy) if policy.eq_ignore_ascii_case("active") => Finding::advice(
                what,
                "OMP_WAIT_POLICY=active: threads spin and never sleep",
                "unset it: where another program wants a core, a step takes several times as long (docs/cpu.md)",
            ),
            Some(policy) => Finding::good(what, format!("OMP_WAIT_POLICY={policy}")),
            None => Finding::good(what, format!("threads look {spins} times before they sleep")),
        }
    }

    fn memory(&self, total: Option<f64>, free: Option<f64>) -> Finding {
        let what = "memory";
        let (Some(total), Some(free)) = (total, free) else {
            return Finding::good(what, "unknown (no /proc/meminfo)");
        };
        let mut found = format!("{:.1} GiB, {:.1} GiB available", total / GIB, free / GIB);
        let limits = ["sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let limit = limits.iter().find_map(|path| self.read(path)?.trim().parse::<f64>().ok());
        let limit = limit.filter(|limit| *limit < total);
        if let Some(limit) = limit {
            found = format!("{found}, {:.1} GiB for this container", limit / GIB);
        }
        let least = limit.map_or(free, |limit| limit.min(free));
        if least < 2.0 * GIB {
            let cure =
                "make room, or take less at a time: train.micro_batch, data.depth, data.threads";
            return Finding::advice(what, found, cure);
        }
        Finding::good(what, found)
    }

    /// What `torchrun`, `trainer launch` or a scheduler left in the environment.
    fn ranks(&self) -> Option<Finding> {
        let (what, size) = ("ranks", self.variable("WORLD_SIZE")?);
        let rank = self.variable("RANK").unwrap_or("unset");
        let found = format!("WORLD_SIZE={size}, RANK={rank}");
        if size == "1" {
            return Some(Finding::good(what, found));
        }
        let cure =
            "a run started here waits for the others; for a run alone unset WORLD_SIZE and RANK";
        Some(Finding::advice(what, found, cure))
    }
}

/// Bytes of the disk that `path` is on.
fn room(path: &Path, blocks: impl FnOnce(&rustix::fs::StatVfs) -> u64) -> Option<f64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(blocks(&disk) as f64 * disk.f_frsize as f64)
}

fn shared_memory(bytes: Option<f64>) -> Finding {
    let what = "shm";
    match bytes {
        None => Finding::good(what, "no /dev/shm"),
        // A container of Docker has 64 MiB unless told otherwise.
        Some(bytes) if bytes < 0.5 * GIB => Finding::advice(
            what,
            format!("/dev/shm has {:.0} MiB", bytes / 1_048_576.0),
            "too little for several ranks over NCCL or for worker processes of Python: docker run --shm-size=8g, or --ipc=host",
        ),
        Some(bytes) => Finding::good(what, format!("/dev/shm has {:.1} GiB", bytes / GIB)),
    }
}

fn disk(bytes: Option<f64>) -> Finding {
    let what = "disk";
    match bytes {
        None => Finding::good(what, "unknown"),
        Some(bytes) => {
            let found = format!("{:.1} GiB free here", bytes / GIB);
            if bytes >= 5.0 * GIB {
                return Finding::good(what, found);
            }
            let cure = "checkpoints of the larger presets take gigabytes: make room, name an --out on another disk, or lower \
                checkpoint.keep";
            Finding::advice(what, found, cure)
        }
    }
}

fn examine_data(dir: &Path) -> Finding {
    let what = "data";
    let open = |split: &str| Dataset::open(dir, split);
    match open("train") {
        Err(e) => Finding::bad(what, e, ""),
        Ok(train) => {
            let count = |split: &SplitRecord| {
                open(&split.name).map(|d| format!("{} {}", d.len(), split.name))
            };
            let counts: Result<Vec<_>, _> = train.index().splits().iter().map(count).collect();
            match counts {
                Err(e) => Finding::bad(what, e, ""),
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
                    Finding::good(what, found)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)], variables: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let host = Host { root: folder.path().to_owned(), variables };
        (folder, host)
    }

    const CARD: [(&str, &str); 2] = [
        ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n"),
        ("sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n"),
    ];
    const NEW: (&str, &str) = (
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder)\n",
    );
    const OLD: (&str, &str) = (
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n",
    );
    const NODES: (&str, &str) = ("dev/nvidiactl", "");
    const NONE: &str = "libtorch has CUDA, but shows no device";

    #[test]
    fn why_there_is_no_cuda_is_said_with_its_cure() {
        let visible = |value| vec![("CUDA_VISIBLE_DEVICES", value)];
        let loads = Ok(());
        let missing = Err("libcuda.so.1: cannot open shared object file".to_owned());
        let with = |more: &[(&'static str, &'static str)]| [&CARD[..], more].concat();
        type Pairs = Vec<(&'static str, &'static str)>;
        type Loaded = Result<(), String>;
        let none = || vec![];
        let cases: [(Pairs, Pairs, &str, &str, Loaded, &str, &str); 8] = [
            (with(&[]), none(), NONE, "no NVIDIA driver loaded", loads.clone(), "580", "driver"),
            (with(&[OLD, NODES]), none(), NONE, "too old", loads.clone(), "580", "535.183.01"),
            (
                with(&[NEW]),
                none(),
                NONE,
                "files are missing",
                loads.clone(),
                "--gpus all",
                "580.95.05",
            ),
            (with(&[NEW, NODES]), visible(""), NONE, "hidden by", loads.clone(), "unset", ""),
            (with(&[NEW, NODES]), visible("-1"), NONE, "hidden by", loads.clone(), "unset", ""),
            (
                with(&[NEW, NODES]),
                visible("0"),
                NONE,
                "library does not load",
                missing,
                "libcuda",
                "",
            ),
            (
                with(&[NEW, NODES]),
                none(),
                "libtorch's CUDA half does not load (no such file)",
                "half does not load",
                loads.clone(),
                "make setup",
                "",
            ),
            (with(&[NEW, NODES]), none(), NONE, "shows no device", loads, "nvidia-smi", ""),
        ];
        for (files, variables, reason, found, library, cure, also) in cases {
            let (_folder, host) = host(&files, &variables);
            let finding = host.cuda(Err(reason.to_owned()), || library);
            assert!(!finding.fine, "{finding:?}");
            assert!(finding.found.contains(found) && finding.found.contains(also), "{finding:?}");
            assert!(finding.found.contains("1 cards"), "{finding:?}");
            assert!(finding.cure.as_ref().unwrap().contains(cure), "{finding:?}");
        }
        // Nothing is wrong where there is no card, or where devices are there.
        let (_folder, none) = host(&[], &[]);
        assert!(none.cuda(Err(NONE.to_owned()), || Ok(())).fine);
        let (_folder, fine) = host(&with(&[NEW, NODES]), &[]);
        let finding = fine.cuda(Ok(2), || Ok(()));
        assert_eq!(finding.found, "2 devices, driver 580.95.05");
        assert!(finding.fine && finding.cure.is_none());
    }

    #[test]
    fn what_makes_training_slow_is_said_with_its_cure() {
        let finding = |files: &[_], variables: &[_], of: &dyn Fn(&Host) -> Finding| {
            let (_folder, host) = host(files, variables);
            of(&host)
        };
        let cores = |host: &Host| host.cores(0);
        let waiting = |host: &Host| host.waiting();
        let memory = |host: &Host| host.memory(Some(64.0 * GIB), Some(32.0 * GIB));
        let ranks = |host: &Host| host.ranks().unwrap();
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        type Look<'a> = &'a dyn Fn(&Host) -> Finding;
        let cases: [(Pairs<'_>, Pairs<'_>, Look<'_>, &str); 5] = [
            (&[], &[("OMP_NUM_THREADS", "0")], &cores, "leaves the others idle"),
            (&[("proc/loadavg", "900.5 1 1 2/3 4\n")], &[], &cores, "other programs"),
            (&[], &[("OMP_WAIT_POLICY", "ACTIVE")], &waiting, "unset it"),
            (&[("sys/fs/cgroup/memory.max", "1073741824\n")], &[], &memory, "train.micro_batch"),
            (&[], &[("WORLD_SIZE", "8"), ("RANK", "3")], &ranks, "waits for the others"),
        ];
        for (files, variables, of, cure) in cases {
            let found = finding(files, variables, of);
            assert!(found.fine && found.cure.as_ref().unwrap().contains(cure), "{found:?}");
        }
        let quiet = [("proc/loadavg", "0.0 0 0 1/2 3\n"), ("sys/fs/cgroup/memory.max", "max\n")];
        for of in [&cores as &dyn Fn(&Host) -> Finding, &waiting, &memory] {
            assert_eq!(finding(&quiet, &[], of).cure, None);
        }
        assert!(shared_memory(Some(64.0 * 1_048_576.0)).cure.unwrap().contains("--shm-size"));
        assert!(shared_memory(Some(GIB)).cure.is_none());
        assert!(disk(Some(GIB)).cure.unwrap().contains("checkpoint.keep"));
        assert!(!libtorch("2.10.0", "/usr/lib/libtorch_cpu.so").fine);
    }
}

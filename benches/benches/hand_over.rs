//! What the hand-over costs alone: rows that nobody decodes, from the counter to the caller and back.
//!
//! `cargo bench -p benches --bench hand_over [-- --threads N,…] [--batch N] [--run N] [--rows N]`
//!
//! The loader's own file, `pipeline/src/handover.rs`, with locks and atomics that count themselves.
//! For each number of threads: CPU nanoseconds a row of all threads together, and how often a row
//! writes to a cache line that other threads use, and enters a lock. The last line is one JSON object.

#[allow(dead_code, unreachable_pub, reason = "the benchmark drives a part of the module")]
#[path = "../../pipeline/src/handover.rs"]
mod handover;

/// As in the pipeline's root, but writes are counted, each thread's in a cell of its own.
mod sync {
    use std::cell::Cell;
    use std::time::Duration;

    pub(crate) use std::sync::PoisonError;

    thread_local! {
        /// Writes to shared atomics, and locks taken.
        pub(crate) static WRITES: Cell<u64> = const { Cell::new(0) };
        pub(crate) static LOCKS: Cell<u64> = const { Cell::new(0) };
    }

    fn count(counter: &'static std::thread::LocalKey<Cell<u64>>) {
        counter.with(|count| count.set(count.get() + 1));
    }

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(std::sync::Mutex<T>);
    pub(crate) type MutexGuard<'a, T> = std::sync::MutexGuard<'a, T>;

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> std::sync::LockResult<MutexGuard<'_, T>> {
            count(&LOCKS);
            self.0.lock()
        }
    }

    #[derive(Debug)]
    pub(crate) struct Condvar(std::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(std::sync::Condvar::new())
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
        ) -> std::sync::LockResult<MutexGuard<'a, T>> {
            self.0.wait(guard)
        }

        pub(crate) fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            patience: Duration,
        ) -> std::sync::LockResult<(MutexGuard<'a, T>, std::sync::WaitTimeoutResult)> {
            self.0.wait_timeout(guard, patience)
        }
    }

    pub(crate) mod atomic {
        pub(crate) use std::sync::atomic::Ordering;

        macro_rules! counted {
            ($($name:ident, $value:ty);*) => {$(
                #[derive(Debug)]
                pub(crate) struct $name(std::sync::atomic::$name);

                #[allow(dead_code, reason = "not each of them is used in each way")]
                impl $name {
                    pub(crate) fn new(value: $value) -> Self {
                        Self(std::sync::atomic::$name::new(value))
                    }

                    pub(crate) fn load(&self, order: Ordering) -> $value {
                        self.0.load(order)
                    }

                    pub(crate) fn store(&self, value: $value, order: Ordering) {
                        super::count(&super::WRITES);
                        self.0.store(value, order);
                    }
                }
            )*};
        }
        counted!(AtomicBool, bool; AtomicU64, u64; AtomicUsize, usize);

        impl AtomicU64 {
            pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
                super::count(&super::WRITES);
                self.0.fetch_add(value, order)
            }
        }

        impl AtomicUsize {
            pub(crate) fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
                super::count(&super::WRITES);
                self.0.fetch_sub(value, order)
            }
        }
    }
}

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use handover::{Event, HandOver, Runs};

/// The hand-over of rows between threads, alone.
#[derive(Debug, Parser)]
#[command(name = "hand_over")]
struct Arguments {
    /// Numbers of threads to try.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    threads: Vec<usize>,
    /// Rows of a batch.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Rows taken at a time: large images, small images.
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    run: Vec<usize>,
    /// Rows in all.
    #[arg(long, default_value_t = 4_000_000)]
    rows: u64,
    /// Cargo passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut lines = Vec::new();
    for &run in &arguments.run {
        for &threads in &arguments.threads {
            let line = measure(arguments.batch, run, arguments.rows, threads);
            eprintln!("{line}");
            lines.push(line);
        }
    }
    println!(
        "{}",
        serde_json::json!({ "bench": "hand_over", "batch": arguments.batch, "lines": lines })
    );
    Ok(())
}

fn measure(batch: usize, run: usize, rows: u64, threads: usize) -> serde_json::Value {
    let batches = rows / batch as u64;
    let runs = Runs { rows: batch, last: batch, batches, first: 0, run };
    let hand_over = Arc::new(HandOver::<()>::new(runs, batches, 4));
    let counts =
        || (sync::WRITES.with(std::cell::Cell::get), sync::LOCKS.with(std::cell::Cell::get));
    let (before, cpu, started) = (counts(), cpu_seconds(), Instant::now());
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let hand_over = Arc::clone(&hand_over);
            std::thread::spawn(move || {
                while let Some((batch, rows)) = hand_over.take() {
                    if hand_over.enter(batch).is_none() {
                        break;
                    }
                    hand_over.leave(batch, rows.len());
                }
                counts()
            })
        })
        .collect();
    for _ in 0..batches {
        let slab = loop {
            if let Some(Event::Whole(_, slab)) = hand_over.next(Duration::from_secs(1)) {
                break slab;
            }
        };
        hand_over.give_back(slab);
    }
    let all = workers.into_iter().filter_map(|worker| worker.join().ok());
    let own = counts();
    let (writes, locks) =
        all.fold((own.0 - before.0, own.1 - before.1), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let done = (batches * batch as u64) as f64;
    serde_json::json!({
        "threads": threads,
        "run": run,
        "cpu_ns_per_row": 1e9 * (cpu_seconds() - cpu) / done,
        "ns_per_row": 1e9 * started.elapsed().as_secs_f64() / done,
        "shared_writes_per_row": writes as f64 / done,
        "locks_per_row": locks as f64 / done,
    })
}

/// CPU time of this process so far, all threads.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 =
        after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
    ticks / 100.0
}

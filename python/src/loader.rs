//! `bigbigan.Loader`.

mod batch;
mod options;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pipeline::{
    BadSamples, Cursor, Dataset, Error, Fingerprint, Heap, HostMemory, LastBatch, LoaderConfig,
    RemoteOptions, Shuffle, Stats,
};
use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use self::batch::state_of;
pub(crate) use self::batch::{Batch, Epoch};
use self::options::Order;
pub(crate) use self::options::{FILTERS, ORIENTATIONS, mode, word};
use crate::ending::detached;
use crate::error::{in_python, raised};
use crate::memory::Given;
use crate::warnings;

/// Time between looks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(50);

/// Whole batches of a data folder: the same ones in the same order for every number of threads and, row by row,
/// for every number of ranks.
///
/// `for batch in loader` gives the rest of the epoch at hand: all of it the first time, the next epoch the next
/// time, and what was left where the loop before was left early. Threads start with the first of these.
///
/// Parameters
/// ----------
/// source: path or URL (http, https, s3, gs, az) of a data folder, or of a folder of WebDataset shards
/// split: "train", "val", or another that the folder has
/// batch: rows of a batch on this rank
/// size: pixels a side of `images`
/// small: pixels a side of `small`, the same views: `size`, its half or quarter; None for none
/// mode: which part of an image is seen: "random-resized-crop", "resize-centre-crop", "eval", "full", …
/// scale, ratio, law, flip: of "random-resized-crop": shares of the area (0.08, 1), width over height (3/4, 4/3),
///     "torchvision" or "tensorflow", True
/// resize: of "resize-centre-crop": pixels of the short side
/// filter: "bicubic" or "bilinear" (torchvision's default), antialiased
/// orientation: what a JPEG's EXIF says of it: "ignore", as ImageNet recipes do, or "apply"
/// seed: of order and views
/// rank, world: this process's number, and the number of processes that share an epoch
/// threads: decode threads; None for one a core
/// shuffle: "global", "shards" or "none"; True and False are the first and the last
/// last: "drop", "pad" or "keep": what becomes of rows that fill no batch
/// epochs: the loader ends before this epoch, counted from 0; None for no end
/// bad: largest share of images that cannot be decoded, which others stand in for; 0 ends with the first
/// depth: batches made ahead of the one in use; two more are held
/// held_s: seconds to wait for a batch while the caller holds all; then RuntimeError
/// cache, cache_bytes, read_ahead: of URLs: a folder that keeps what was read, its most bytes, and bytes asked
///     for ahead
/// memory: a function, number of bytes to a writable buffer of as many bytes that nothing else uses, called a few
///     times as threads start; None for ordinary memory. A method of what holds the loader keeps both until `close`
///
/// Raises ValueError (OverflowError, TypeError) for options that cannot be, FileNotFoundError, OSError, DataError.
///
/// After any exception the next loop goes on where it was. Warnings go to Python's logger "bigbigan".
#[pyclass(module = "bigbigan", frozen, weakref)]
#[derive(Debug)]
pub(crate) struct Loader {
    data: Arc<Dataset>,
    config: LoaderConfig,
    memory: Arc<dyn HostMemory>,
    given: Option<Arc<Given>>,
    state: Mutex<State>,
    /// The thread that has the state; 0 for none.
    holder: AtomicUsize,
    /// Threads that wait for it.
    waiting: AtomicU32,
    batches: u64,
    /// Who made it.
    process: u32,
    /// Whose the threads are; 0 where there are none.
    owner: AtomicU32,
}

#[derive(Debug)]
struct State {
    /// Made with the first batch: a process may fork before. On the heap, as it wants an alignment that objects
    /// of Python do not have.
    loader: Option<Box<pipeline::Loader>>,
    /// The position where none is made.
    at: Cursor,
    /// What the last one counted.
    last: Option<Stats>,
    closed: bool,
}

impl State {
    /// Takes the loader, whose threads end as it goes.
    fn end(&mut self) -> Option<Box<pipeline::Loader>> {
        let loader = self.loader.take()?;
        self.last = Some(loader.stats());
        Some(loader)
    }

    fn cursor(&self) -> Cursor {
        self.loader.as_ref().map_or(self.at, |loader| loader.cursor())
    }
}

/// Why there is no batch.
enum Not {
    /// The loader says so.
    Failed(Error),
    Closed,
    /// It was asked for by what it waits for.
    Within,
}

impl From<Not> for PyErr {
    fn from(why: Not) -> Self {
        match why {
            Not::Failed(error) => raised(&error),
            Not::Closed => PyRuntimeError::new_err("the loader is closed"),
            Not::Within => {
                PyRuntimeError::new_err("the loader is used by memory=, which it waits for")
            }
        }
    }
}

impl Loader {
    /// The state, for whoever comes to have it: waited for without the interpreter's lock, which its holder may
    /// want for memory.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        use_it: impl FnOnce(&mut State) -> Result<T, Not> + Send,
    ) -> Result<T, Not> {
        thread_local! {
            static THREAD: u8 = const { 0 };
        }
        let thread = THREAD.with(|here| std::ptr::from_ref(here).addr());
        detached(py, || {
            if self.holder.load(Ordering::Relaxed) == thread {
                return Err(Not::Within);
            }
            let (me, owner) = (std::process::id(), self.owner.load(Ordering::Relaxed));
            let forked = || Not::Failed(Error::Forked { process: self.process });
            if me != self.process && self.data.traffic().is_some() {
                return Err(forked()); // the threads that read from the URL stayed behind
            }
            let wait = || {
                self.waiting.fetch_add(1, Ordering::Relaxed);
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                state
            };
            let mut state = match (me == self.process || me == owner, owner) {
                (true, _) => wait(),
                // Nothing was started before the fork, but a thread that stayed behind may hold the lock.
                (false, 0) => self.state.try_lock().map_err(|_| forked())?,
                (false, _) => return Err(forked()),
            };
            self.holder.store(thread, Ordering::Relaxed);
            let used = use_it(&mut state);
            self.holder.store(0, Ordering::Relaxed);
            self.owner.store(if state.loader.is_some() { me } else { 0 }, Ordering::Relaxed);
            used
        })
    }

    fn cursor(&self, py: Python<'_>) -> PyResult<Cursor> {
        Ok(self.with(py, |state| Ok(state.cursor()))?)
    }

    /// Starts the threads if there are none.
    fn start(&self, state: &mut State) -> Result<(), Error> {
        if state.loader.is_none() {
            let (data, memory) = (Arc::clone(&self.data), Arc::clone(&self.memory));
            if std::process::id() != self.process {
                warnings::say(&format!(
                    "a loader that was made before a fork begins at epoch {}: a worker of a DataLoader that is \
                     forked anew for each epoch gives the same one each time; give it persistent_workers=True",
                    state.at.epoch
                ));
            }
            let loader = pipeline::Loader::start(data, self.config.clone(), state.at, memory)?;
            state.loader = Some(Box::new(loader));
        }
        Ok(())
    }

    /// The next batch of this epoch; none at its end.
    fn next_of(&self, py: Python<'_>, epoch: u64) -> PyResult<Option<Batch>> {
        loop {
            let (next, ended) = self.with(py, |state| {
                if state.closed {
                    return Err(Not::Closed);
                }
                if state.cursor().epoch != epoch {
                    return Ok((Ok(None), None));
                }
                // Those that wait for the state look for Ctrl-C only when they have it.
                let look = LOOK / (1 + self.waiting.load(Ordering::Relaxed));
                let next = self.start(state).and_then(|()| {
                    state.loader.as_mut().and_then(|loader| loader.next_timeout(look)).transpose()
                });
                let over = |error: &Error| !matches!(error, Error::TimedOut { .. });
                // It has ended its threads: the next call begins again here, and is told again.
                let ended = next.as_ref().is_err_and(over).then(|| {
                    state.at = state.cursor();
                    state.end()
                });
                Ok((next, ended))
            })?;
            detached(py, || drop(ended));
            warnings::pass_on(py);
            match next {
                Err(Error::TimedOut { .. }) => {
                    py.check_signals()?;
                    // The lock is the first comer's: whoever asks again at once has it again, and those that sleep
                    // for it, the thread that hears Ctrl-C among them, would wait for ever.
                    if self.waiting.load(Ordering::Relaxed) > 0 {
                        detached(py, || std::thread::sleep(Duration::from_millis(1)));
                    }
                }
                Err(error) => return Err(self.raised(&error)),
                Ok(next) => {
                    let batch = |batch: pipeline::Batch| Batch::new(batch, Arc::clone(&self.data));
                    return Ok(next.map(batch));
                }
            }
        }
    }

    /// The exception of an error; of memory that Python should have given, Python's own.
    fn raised(&self, error: &Error) -> PyErr {
        match (error, &self.given) {
            (Error::Memory { .. }, Some(given)) => given.raised().unwrap_or_else(|| raised(error)),
            _ => raised(error),
        }
    }

    /// Goes to a position. Threads that work elsewhere are stopped.
    fn go_to(&self, py: Python<'_>, to: impl FnOnce(Cursor) -> Cursor + Send) -> PyResult<()> {
        let ended = self.with(py, |state| {
            let now = state.cursor();
            let then = to(now);
            state.at = then;
            let elsewhere = (now.epoch, now.batch) != (then.epoch, then.batch);
            Ok(elsewhere.then(|| state.end()))
        })?;
        detached(py, || drop(ended)); // not while others wait for the state: it joins threads
        Ok(())
    }
}

#[pymethods]
impl Loader {
    #[new]
    #[pyo3(signature = (
        source, split="train", *, batch, size=224, small=None, mode="random-resized-crop", scale=None,
        ratio=None, law=None, flip=None, resize=None, filter="bicubic", orientation="ignore", seed=0, rank=0, world=1, threads=None,
        shuffle=Order(Shuffle::Global), last="drop", epochs=None, bad=0.0, depth=2, held_s=30, cache=None,
        cache_bytes=None, read_ahead=None, memory=None
    ))]
    #[allow(clippy::too_many_arguments, reason = "Python names them")]
    fn new(
        py: Python<'_>,
        source: PathBuf,
        split: &str,
        batch: usize,
        size: usize,
        small: Option<usize>,
        mode: &str,
        scale: Option<[f64; 2]>,
        ratio: Option<[f64; 2]>,
        law: Option<&str>,
        flip: Option<bool>,
        resize: Option<usize>,
        filter: &str,
        orientation: &str,
        seed: u64,
        rank: usize,
        world: usize,
        threads: Option<usize>,
        shuffle: Order,
        last: &str,
        epochs: Option<u64>,
        bad: f64,
        depth: usize,
        held_s: Option<u64>,
        cache: Option<PathBuf>,
        cache_bytes: Option<u64>,
        read_ahead: Option<u64>,
        memory: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        warnings::listen();
        let usual = LoaderConfig::default();
        let config = LoaderConfig {
            batch,
            large: size,
            small,
            mode: self::mode(mode, [scale, ratio], (law, flip, resize))?,
            filter: word("filter", filter, FILTERS)?,
            orientation: word("orientation", orientation, ORIENTATIONS)?,
            seed,
            rank,
            world,
            threads: threads.unwrap_or(usual.threads),
            shuffle: shuffle.0,
            last: word::<LastBatch>("last", last, "\"drop\", \"pad\" or \"keep\"")?,
            epochs,
            bad: match bad {
                0.0 => BadSamples::Halt,
                max_share => BadSamples::Skip { max_share },
            },
            depth,
            held_s,
            ..usual
        };
        let remote = RemoteOptions::default();
        let remote = RemoteOptions {
            cache,
            cache_bytes: cache_bytes.unwrap_or(remote.cache_bytes),
            read_ahead: read_ahead.unwrap_or(remote.read_ahead),
            ..remote
        };
        let made = detached(py, || -> Result<_, Error> {
            let data = Arc::new(Dataset::open_with(&source, split, &remote)?);
            let batches = config.batches_per_epoch(&data)?;
            Ok((data, batches))
        });
        let (data, batches) = made.map_err(|error| raised(&error))?;
        if memory.as_ref().is_some_and(|memory| !memory.bind(py).is_callable()) {
            return Err(PyValueError::new_err(
                "memory = a function, of a number of bytes, or None",
            ));
        }
        let given = memory.map(|function| Arc::new(Given::new(function)));
        let memory: Arc<dyn HostMemory> = match &given {
            Some(given) => Arc::clone(given) as _,
            None => Arc::new(Heap),
        };
        warnings::pass_on(py);
        let at = Cursor::default();
        let state = Mutex::new(State { loader: None, at, last: None, closed: false });
        let process = std::process::id();
        let (owner, holder, waiting) = (AtomicU32::new(0), AtomicUsize::new(0), AtomicU32::new(0));
        Ok(Self { data, config, memory, given, state, holder, waiting, batches, process, owner })
    }

    /// The rest of the epoch at hand.
    fn __iter__(slf: Bound<'_, Self>) -> PyResult<Epoch> {
        let this = slf.get();
        let (epoch, started) = this.with(slf.py(), |state| {
            if state.closed {
                return Err(Not::Closed);
            }
            let epoch = state.cursor().epoch;
            let over = this.config.epochs.is_some_and(|end| epoch >= end);
            Ok((epoch, if over { Ok(()) } else { this.start(state) }))
        })?;
        started.map_err(|error| this.raised(&error))?;
        warnings::pass_on(slf.py());
        Ok(Epoch::new(slf.unbind(), epoch))
    }

    /// Batches of an epoch, the same on every rank.
    fn __len__(&self) -> usize {
        self.batches as usize
    }

    fn __repr__(&self) -> String {
        let LoaderConfig { batch, large, rank, world, mode, .. } = &self.config;
        let (split, samples) = (self.data.split(), self.data.len());
        let folder = pipeline::without_secrets(self.data.index().dir());
        format!(
            "Loader({:?}, {split:?}: {samples} images, batch={batch}, size={large}, mode={:?}, rank={rank}, world={world})",
            folder.display().to_string(),
            mode.to_string(),
        )
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }

    /// Ends the threads. Batches that are held stay what they are.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let ended = self.with(py, |state| {
            state.at = state.cursor();
            state.closed = true;
            Ok(state.end())
        })?;
        detached(py, || drop(ended));
        Ok(())
    }

    /// Goes to the first batch of an epoch, counted from 0.
    fn set_epoch(&self, py: Python<'_>, epoch: u64) -> PyResult<()> {
        let at = Cursor::new(epoch, 0);
        self.config.check_cursor(&self.data, at).map_err(|error| raised(&error))?;
        self.go_to(py, |now| Cursor { epoch, batch: 0, ..now })
    }

    /// The epoch of the batch that comes next.
    #[getter]
    fn epoch(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.cursor(py)?.epoch)
    }

    /// Number of samples of the split.
    #[getter]
    fn samples(&self) -> usize {
        self.data.len()
    }

    /// Names of the classes, by label.
    #[getter]
    fn classes(&self) -> Vec<String> {
        self.data.classes().to_vec()
    }

    /// The position of the batch that comes next, as numbers and dicts of these: to be kept with a checkpoint.
    /// Where a loop prefetches, keep `Batch.state_dict` of the last batch that was used instead.
    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let mut at = self.cursor(py)?;
        at.made_for = Some(self.config.fingerprint(&self.data));
        state_of(py, at)
    }

    /// Goes on at a position that `state_dict` gave, of a loader with any number of threads and ranks. ValueError
    /// where data, seed, order, views or rows of all ranks together are others.
    fn load_state_dict(&self, py: Python<'_>, state: &Bound<'_, PyDict>) -> PyResult<()> {
        let number = |dict: &Bound<'_, PyDict>, name: &str| -> PyResult<u64> {
            let value = dict.get_item(name)?;
            value
                .ok_or_else(|| PyKeyError::new_err(format!("{name:?} is not in the state")))?
                .extract()
        };
        let made_for = match state.get_item("made_for")? {
            Some(made_for) if !made_for.is_none() => {
                let made_for = made_for.cast_into::<PyDict>()?;
                let of = |name| number(&made_for, name);
                Some(Fingerprint {
                    data: of("data")?,
                    batch: of("batch")?,
                    seed: of("seed")?,
                    order: of("order")?,
                    views: of("views")?,
                })
            }
            _ => None,
        };
        let at =
            Cursor { epoch: number(state, "epoch")?, batch: number(state, "batch")?, made_for };
        self.config.check_cursor(&self.data, at).map_err(|error| raised(&error))?;
        self.go_to(py, |_| at)
    }

    /// What happened since the threads started, or while they ran last; nothing before: seconds, images, bytes, batches, batches that are ready, the
    /// share of the time the caller waited, bad images and the first of them, and which stage limits, in words.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        let stats = self.with(py, |state| {
            Ok(state.loader.as_ref().map(|loader| loader.stats()).or_else(|| state.last.clone()))
        })?;
        let Some(stats) = stats else { return Ok(dict) };
        dict.set_item("seconds", stats.seconds)?;
        dict.set_item("images", stats.images)?;
        dict.set_item("images_per_second", stats.images_per_second())?;
        dict.set_item("bytes", stats.bytes)?;
        dict.set_item("batches", stats.batches)?;
        dict.set_item("ready", stats.queued_batches)?;
        dict.set_item("waited", stats.consumer.starved / stats.seconds.max(1e-9))?;
        dict.set_item("bad", stats.bad)?;
        let bad: Vec<_> = stats.quarantine.iter().map(|bad| in_python(&bad.report)).collect();
        dict.set_item("first_bad", bad)?;
        dict.set_item("limit", stats.bottleneck)?;
        Ok(dict)
    }
}

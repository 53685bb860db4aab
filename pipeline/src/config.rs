//! The options of a loader, and what follows from them alone.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::SampleId;
use crate::augment::{Mode, OwnView, Scene, View};
use crate::cursor::{Cursor, Fingerprint};
use crate::dataset::Dataset;
use crate::decode::{DecodeOptions, Filter, Orientation, Scaling};
use crate::error::Error;
use crate::sampler::{LastBatch, Plan, Shuffle};

/// Bytes of files that a decode thread takes at a time: one photograph, or many small pictures,
/// whose taking and handing over would else cost as much as a part of their decoding.
const TAKEN: u64 = 64 << 10;

/// What to do with a sample that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadSamples {
    /// End with an error that names it.
    #[default]
    Halt,
    /// Put another sample in its row, chosen by (seed, epoch, sample), and count it.
    Skip {
        /// Most bad samples, as a share of this rank's samples of an epoch; more end the run.
        max_share: f64,
    },
}

/// How a [`Loader`](crate::Loader) works. Build it from [`LoaderConfig::default`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// Rows of a batch on this rank.
    pub batch: usize,
    /// Encoder size: pixels a side.
    pub large: usize,
    /// Generator size: pixels a side; `large`, or its half or quarter. None makes large rows only.
    pub small: Option<usize>,
    /// Which part of an image is seen.
    pub mode: Mode,
    /// A view of one's own in place of `mode`.
    #[serde(skip)]
    pub own_view: Option<OwnView>,
    /// The resampling filter.
    pub filter: Filter,
    /// Reduced-size decoding of large crops.
    pub scaling: Scaling,
    /// Whether EXIF orientation counts.
    pub orientation: Orientation,
    /// Most pixels an image header may claim.
    pub max_pixels: u64,
    /// Order of the samples.
    pub shuffle: Shuffle,
    /// Seed of order and views.
    pub seed: u64,
    /// Decode threads. The batches do not depend on it.
    pub threads: usize,
    /// Whether each decode thread is kept on one core; an error where the system forbids it.
    pub pin: bool,
    /// This process's number among `world`.
    pub rank: usize,
    /// Number of processes that share an epoch.
    pub world: usize,
    /// What becomes of the last samples of an epoch.
    pub last: LastBatch,
    /// The loader ends before this epoch, counted from the first of the run; none for no end.
    pub epochs: Option<u64>,
    /// What to do with bad samples.
    pub bad: BadSamples,
    /// Batches made ahead of the one in use. Two more slabs are made: one for the caller, one
    /// being filled.
    pub depth: usize,
    /// Seconds that a call for the next batch waits while the caller holds every batch that there
    /// is memory for: none can come before one is dropped, by another thread then. After that it
    /// is an error, which ends the loader; none waits for ever.
    pub held_s: Option<u64>,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        let decode = DecodeOptions::default();
        Self {
            batch: 64,
            large: 256,
            small: Some(128),
            mode: Mode::default(),
            own_view: None,
            filter: decode.filter,
            scaling: decode.scaling,
            orientation: decode.orientation,
            max_pixels: decode.max_pixels,
            shuffle: Shuffle::default(),
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            pin: false,
            rank: 0,
            world: 1,
            last: LastBatch::default(),
            epochs: None,
            bad: BadSamples::default(),
            depth: 2,
            held_s: Some(30),
        }
    }
}

impl LoaderConfig {
    /// Says everything that is wrong with the options, at once.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let mut problems = Vec::new();
        let mut require = |good: bool, problem: String| {
            if !good {
                problems.push(problem);
            }
        };
        let Self { batch, large, small, threads, rank, world, depth, .. } = *self;
        require((1..=1 << 20).contains(&batch), format!("batch = {batch}: 1 to 1048576 rows"));
        require((1..=4096).contains(&large), format!("large = {large}: 1 to 4096 pixels"));
        require(
            small.is_none_or(|small| [1, 2, 4].iter().any(|by| small * by == large)),
            format!(
                "small = {}: must be large = {large}, or its half or quarter",
                small.unwrap_or_default()
            ),
        );
        require((1..=1024).contains(&threads), format!("threads = {threads}: 1 to 1024"));
        require((1..=1 << 20).contains(&world), format!("world = {world}: 1 to 1048576 processes"));
        require(rank < world, format!("rank = {rank}: must be below world = {world}"));
        require((1..=1024).contains(&depth), format!("depth = {depth}: 1 to 1024 batches"));
        if let Err(problem) = self.mode.check(large) {
            require(false, problem);
        }
        if let BadSamples::Skip { max_share } = self.bad {
            let good = (0.0..=1.0).contains(&max_share);
            require(good, format!("max_share = {max_share}: 0 to 1"));
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::Config { problem: problems.join("; ") }),
        }
    }

    /// What `sample` shows in `epoch` of a source of `width` by `height` pixels: a function of the
    /// options, the seed and these numbers.
    pub fn view(&self, sample: SampleId, epoch: u64, (width, height): (usize, usize)) -> View {
        let key = (self.seed, epoch, sample);
        let mut scene = Scene::new(key, (width, height), self.large);
        match &self.own_view {
            Some(own) => own.choose(&mut scene),
            None => scene.by(self.mode),
        }
    }

    /// The samples of this rank's part of the batch at `at`, row by row. No image is read.
    ///
    /// # Errors
    /// As [`Loader::start`](crate::Loader::start): options that do not hold together, too few samples.
    pub fn draws(&self, data: &Dataset, at: Cursor) -> Result<Vec<SampleId>, Error> {
        self.check()?;
        Ok(self.plan(data)?.epoch(at.epoch).samples(at.batch))
    }

    /// Batches of an epoch, the same on every rank.
    ///
    /// # Errors
    /// As [`Loader::start`](crate::Loader::start): options that do not hold together, too few samples.
    pub fn batches_per_epoch(&self, data: &Dataset) -> Result<u64, Error> {
        self.check()?;
        Ok(self.plan(data)?.batches())
    }

    /// Whether a loader may start there.
    ///
    /// # Errors
    /// As [`Loader::start`](crate::Loader::start).
    pub fn check_cursor(&self, data: &Dataset, cursor: Cursor) -> Result<(), Error> {
        if let Some(made_for) = cursor.made_for {
            let differences = self.fingerprint(data).differences(&made_for);
            if !differences.is_empty() {
                return Err(Error::Cursor { differences: differences.join("; ") });
            }
        }
        if cursor.epoch > 1 << 48 {
            let problem = format!("cursor at epoch {}: 2^48 is the last", cursor.epoch);
            return Err(Error::Config { problem });
        }
        let batches = self.batches_per_epoch(data)?;
        if cursor.batch >= batches {
            let problem = format!(
                "cursor at batch {} of an epoch of {batches}: was it made with another batch size or data?",
                cursor.batch
            );
            return Err(Error::Config { problem });
        }
        Ok(())
    }

    pub(crate) fn decode(&self) -> DecodeOptions {
        let Self { filter, scaling, orientation, max_pixels, .. } = *self;
        DecodeOptions { filter, scaling, orientation, max_pixels }
    }

    /// What the cursors of such a loader's batches are made for.
    ///
    /// # Panics
    /// Never.
    pub fn fingerprint(&self, data: &Dataset) -> Fingerprint {
        /// What changes no batch, and what the fingerprint names by itself.
        const APART: [&str; 13] = [
            "batch",
            "rank",
            "world",
            "seed",
            "shuffle",
            "last",
            "threads",
            "pin",
            "depth",
            "held_s",
            "epochs",
            "bad",
            "max_pixels",
        ];
        /// What was there when fingerprints began. What is added later counts where it is not as it
        /// was before there was a choice: so cursors stay good.
        const VIEWS: [&str; 6] = ["mode", "large", "small", "filter", "scaling", "orientation"];
        let values = |config: &Self| {
            serde_json::to_value(config).expect("options are numbers, words and lists of these")
        };
        let (ours, usual) = (values(self), values(&Self::default()));
        let hash = |names: &mut dyn Iterator<Item = &String>| {
            let mut hash = Xxh3::new();
            names.for_each(|name| hash.update(format!("{name} = {}\n", ours[name]).as_bytes()));
            hash
        };
        let names = || ours.as_object().into_iter().flat_map(|options| options.keys());
        let views = names().filter(|&name| {
            let name = name.as_str();
            !APART.contains(&name) && (VIEWS.contains(&name) || ours[name] != usual[name])
        });
        let order = hash(&mut names().filter(|name| ["shuffle", "last"].contains(&name.as_str())));
        let mut seen = hash(&mut { views });
        if let Some(own) = &self.own_view {
            seen.update(own.name().as_bytes());
        }
        Fingerprint {
            data: data.fingerprint(),
            batch: (self.batch * self.world) as u64,
            seed: self.seed,
            order: order.digest(),
            views: seen.digest(),
        }
    }

    /// Rows that a decode thread takes at a time: of so many bytes, and few enough that all threads
    /// have some of a batch. Behind a URL it is one: a thread that waited for the bytes of a later
    /// row while it held those of earlier ones would keep the budget that these are to come from.
    pub(crate) fn run(&self, data: &Dataset) -> usize {
        if data.remote().is_some() {
            return 1;
        }
        let rows = TAKEN / data.mean_bytes().max(1);
        usize::try_from(rows).unwrap_or(usize::MAX).min(self.batch / (2 * self.threads)).max(1)
    }

    /// What becomes of a call that all batches have been held during since then: told of after a
    /// while, and an error in the end.
    pub(crate) fn held_for(&self, (since, told): &mut (Instant, bool)) -> Option<Error> {
        let seconds = since.elapsed().as_secs();
        if seconds >= 2 && !*told {
            *told = true;
            tracing::warn!(
                "the next batch cannot come: all {} that there is memory for are held; drop one, or \
                 raise depth",
                self.depth + 2
            );
        }
        let slabs = self.depth + 2;
        self.held_s.filter(|&most| seconds >= most).map(|_| Error::AllHeld { slabs, seconds })
    }

    pub(crate) fn plan(&self, data: &Dataset) -> Result<Arc<Plan>, Error> {
        let Self { batch: rows, rank, world, seed, shuffle, last, .. } = *self;
        let shards = data.shard_sizes();
        let samples = data.len();
        let plan = Plan { shards, samples, rows, rank, world, seed, shuffle, last };
        if plan.batches() == 0 {
            let split = data.split().to_string();
            return Err(Error::TooFew { split, samples, batch: rows, world });
        }
        Ok(Arc::new(plan))
    }
}

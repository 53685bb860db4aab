//! Starts and joins the decode threads, and hands out batches in order.
//!
//! There is no stage before decoding: a decode thread takes the next rows of the order by a counter,
//! draws their samples, reads their files into memory of its own and decodes each straight into its
//! row. Files behind a URL come from `read_ahead`, which asks for them long before.
//!
//! # Bounds, and why nothing can deadlock
//! There are `depth + 2` slabs, made at the start, and a batch is made only on a slab. Decode threads
//! wait for a slab of the batch whose rows they took, and for bytes, and for nothing else; slabs are
//! lent in the order of the batches (`handover`) and bytes come in the order of the draws
//! (`read_ahead`), which threads take in one order with the rows. So the oldest unfinished batch
//! always goes on. The one thing that can hold the loader up is a caller who keeps all slabs as live
//! batches, and after [`LoaderConfig::held_s`] that is an error.
//!
//! # Ends
//! *Done*: no rows are left, the decode threads end, the last batch is handed out. *Failed*: the
//! error comes in its batch's place, after all earlier batches; a panic comes at once. *Cancelled*:
//! the loader is dropped and tells its threads. In all three every thread is joined.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

use crate::batch::Batch;
use crate::config::{BadSamples, LoaderConfig};
use crate::cursor::{Cursor, Fingerprint};
use crate::dataset::Dataset;
use crate::error::{Error, report};
use crate::read_ahead::ReadAhead;
use crate::sampler::Shuffle;
use crate::slab::{Filled, HostMemory, Next, Pool};
use crate::stats::{Lap, Quarantined, Stats, Tally};
use crate::worker::{Bad, Shared, spawn};

/// Time between looks at whether the next batch is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// An endless (or counted) stream of batches. Dropping it stops and joins all threads.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    memory: Arc<dyn HostMemory>,
    fingerprint: Fingerprint,
    started: Instant,
    lap: Lap,
    consumer: CachePadded<Tally>,
    /// The batch that comes next.
    at: Cursor,
    /// Batches of rows that were handed out, and all batches.
    published: u64,
    batches: u64,
    bad_this_epoch: (u64, u64), // epoch, count
    bad_total: u64,
    quarantine: Vec<Quarantined>,
    /// Since when, over calls that gave up, the caller has held all batches, and whether it was told.
    all_out: Option<(Instant, bool)>,
    threads: Vec<JoinHandle<()>>,
    process: u32,
}

impl Loader {
    /// Starts loading at `cursor`. The first batch is on its way when this returns.
    ///
    /// # Errors
    /// [`Error::Config`] for options or a cursor that make no sense, [`Error::Cursor`] for one of
    /// another order, [`Error::TooFew`] when an epoch holds no batch, [`Error::Memory`] when batch
    /// memory cannot be had, and [`Error::Io`] when a thread cannot be started.
    pub fn start(
        data: Arc<Dataset>,
        config: LoaderConfig,
        cursor: Cursor,
        memory: Arc<dyn HostMemory>,
    ) -> Result<Self, Error> {
        config.check()?;
        let plan = config.plan(&data)?;
        config.check_cursor(&data, cursor)?;
        let fingerprint = config.fingerprint(&data);
        if data.remote().is_some() && config.shuffle == Shuffle::Global {
            tracing::warn!(
                "shuffle = \"global\" over {} takes a request for each image; \"shards\" reads \
                 neighbours together",
                data.index().dir().display()
            );
        }
        let cursor = Cursor { made_for: Some(fingerprint), ..cursor };
        let end = config.epochs.unwrap_or(u64::MAX);
        let deal = plan.deal(cursor, end, config.run(&data));
        let sides = (config.large, config.small.unwrap_or(0));
        let pool = Pool::new(&*memory, config.depth + 2, (deal.runs, deal.end), sides)?;
        let ahead = ReadAhead::start(&data, &plan, cursor, end);
        let tallies = (0..config.threads).map(|_| CachePadded::default()).collect();
        let bad = Mutex::default();
        let shared = Arc::new(Shared { data, config, plan, deal, pool, ahead, tallies, bad });
        let mut loader = Self {
            shared,
            memory,
            fingerprint,
            started: Instant::now(),
            lap: Lap::start(),
            consumer: CachePadded::default(),
            at: cursor,
            published: 0,
            batches: 0,
            bad_this_epoch: (0, 0),
            bad_total: 0,
            quarantine: Vec::new(),
            all_out: None,
            threads: Vec::new(),
            process: std::process::id(),
        };
        for number in 0..loader.shared.config.threads {
            let thread = spawn(&loader.shared, number)?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// What happened so far, and which stage limits.
    pub fn stats(&self) -> Stats {
        let Shared { data, pool, tallies, .. } = &*self.shared;
        let (decode, images, bytes) = Tally::sum(tallies);
        let (consumer, ..) = Tally::sum(std::slice::from_ref(&self.consumer));
        Stats {
            seconds: self.started.elapsed().as_secs_f64(),
            decode,
            consumer,
            images,
            bytes,
            batches: self.batches,
            queued_batches: if self.is_forked() { 0 } else { pool.hand_over().ready() },
            remote: data.traffic(),
            bad: self.bad_total,
            quarantine: self.quarantine.clone(),
            bottleneck: String::new(),
        }
        .with_bottleneck()
    }

    /// Batches in an epoch, the same on every rank.
    pub fn batches_per_epoch(&self) -> u64 {
        self.shared.plan.batches()
    }

    /// What the cursors of this loader's batches are made for.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The position of the batch that comes next.
    pub fn cursor(&self) -> Cursor {
        self.at
    }

    /// Goes to the first batch of an epoch: the next one is that. Where it would come next anyway,
    /// nothing happens; else batches made ahead are thrown away and the loader starts again there,
    /// also one that has ended, its [`Stats`] with it. `config.epochs` still counts from epoch 0.
    ///
    /// # Errors
    /// As [`Loader::start`], and [`Error::Forked`].
    pub fn set_epoch(&mut self, epoch: u64) -> Result<(), Error> {
        if self.is_forked() {
            return Err(Error::Forked { process: self.process });
        }
        if (self.at.epoch, self.at.batch) == (epoch, 0) && !self.threads.is_empty() {
            return Ok(());
        }
        self.stop();
        let Shared { data, config, .. } = &*self.shared;
        let at = Cursor { epoch, batch: 0, ..self.at };
        *self = Self::start(Arc::clone(data), config.clone(), at, Arc::clone(&self.memory))?;
        Ok(())
    }

    /// Counts the bad samples of a batch; too many in an epoch end the run.
    fn count_bad(&mut self, batch: u64, epoch: u64) -> Result<(), Error> {
        if self.bad_this_epoch.0 != epoch {
            self.bad_this_epoch = (epoch, 0);
        }
        let mut bad: Vec<_> = self.shared.bad().extract_if(.., |bad| bad.batch == batch).collect();
        bad.sort_by_key(|bad| bad.row);
        let mut last = None;
        for Bad { sample, error, .. } in bad {
            self.bad_total += 1;
            self.bad_this_epoch.1 += 1;
            if self.quarantine.len() < Stats::QUARANTINE {
                self.quarantine.push(Quarantined { sample, report: report(&error) });
            }
            last = Some(error);
        }
        let (bad, drawn) = (self.bad_this_epoch.1, self.shared.plan.epoch_rows());
        match (self.shared.config.bad, last) {
            (BadSamples::Skip { max_share }, Some(error))
                if bad as f64 > max_share * drawn as f64 =>
            {
                Err(Error::TooManyBad { bad, drawn, max_share, source: Box::new(error) })
            }
            _ => Ok(()),
        }
    }

    /// The next batch, as the iterator gives it, while `go_on` holds, which is looked at ten times a
    /// second. Then [`Error::Stopped`], and the batch comes with the next call.
    pub fn next_while(&mut self, go_on: impl Fn() -> bool) -> Option<Result<Batch, Error>> {
        self.next_unless(LOOK, |_| (!go_on()).then_some(Error::Stopped))
    }

    /// The next batch, as the iterator gives it, if it comes within `patience`: with none, if it is there. Else
    /// [`Error::TimedOut`], and the batch comes with a later call.
    pub fn next_timeout(&mut self, patience: Duration) -> Option<Result<Batch, Error>> {
        let over = |waited| (waited >= patience).then_some(Error::TimedOut { patience });
        self.next_unless(LOOK.min(patience), over)
    }

    /// Looks up from waiting every `look`.
    fn next_unless(
        &mut self,
        look: Duration,
        give_up: impl Fn(Duration) -> Option<Error>,
    ) -> Option<Result<Batch, Error>> {
        if self.threads.is_empty() {
            return None; // ended before
        }
        if self.is_forked() {
            self.stop();
            return Some(Err(Error::Forked { process: self.process }));
        }
        self.consumer.busy(self.lap.take());
        let received = self.receive(look, give_up);
        self.consumer.starved(self.lap.take());
        if matches!(received, None | Some(Err(_)))
            && !matches!(received, Some(Err(Error::Stopped | Error::TimedOut { .. })))
        {
            self.stop();
        }
        received.map(|batch| {
            let filled = batch?;
            self.batches += 1;
            let config = &self.shared.config;
            let data = Arc::clone(&self.shared.data);
            Ok(Batch::new(filled, data, (config.large, config.small), self.at))
        })
    }

    /// Waits for the next batch in order, and goes on behind it; none at the end.
    fn receive(
        &mut self,
        look: Duration,
        give_up: impl Fn(Duration) -> Option<Error>,
    ) -> Option<Result<Option<Filled>, Error>> {
        let shared = Arc::clone(&self.shared);
        let Shared { config, plan, pool, .. } = &*shared;
        if config.epochs.is_some_and(|end| self.at.epoch >= end) {
            return None;
        }
        let epoch = self.at.epoch;
        if plan.rows_of(self.at.batch) == 0 {
            self.at = plan.after(self.at);
            return Some(Ok(None));
        }
        let asked = Instant::now();
        let result = loop {
            match pool.next(look) {
                Some(Next::Batch(filled)) => break Ok(filled),
                Some(Next::Failed(error)) => break Err(error),
                Some(Next::Broken(error)) => return Some(Err(error)),
                None => {}
            }
            if pool.hand_over().all_out() {
                let since = self.all_out.get_or_insert_with(|| (Instant::now(), false));
                if let Some(error) = config.held_for(since) {
                    return Some(Err(error));
                }
            } else {
                self.all_out = None;
            }
            if let Some(error) = give_up(asked.elapsed()) {
                return Some(Err(error));
            }
        };
        self.all_out = None;
        let counted = self.count_bad(self.published, epoch);
        self.published += 1;
        let batch = counted.and(result);
        if batch.is_ok() {
            self.at = plan.after(self.at);
        }
        Some(batch.map(Some))
    }

    fn is_forked(&self) -> bool {
        self.process != std::process::id()
    }

    fn stop(&mut self) {
        if self.is_forked() {
            // The threads are the other process's.
            self.threads.drain(..).for_each(std::mem::forget);
            return;
        }
        self.shared.pool.hand_over().stop();
        if let Some(ahead) = &self.shared.ahead {
            ahead.stop();
        }
        for thread in self.threads.drain(..) {
            // A panic was caught inside the thread and told as an error.
            let _ = thread.join();
        }
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_unless(LOOK, |_| None)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of four small pictures.
    fn data(dir: &std::path::Path) -> Arc<Dataset> {
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(9, 9).write_to(&mut png, image::ImageFormat::Png).unwrap();
        let mut index = crate::index::IndexWriter::new();
        index.begin_split("train").unwrap();
        let mut shard = crate::shard::ShardWriter::create(&dir.join("train-000000.tar")).unwrap();
        for key in ["a", "b", "c", "d"] {
            let entry = shard.append(key, "png", png.get_ref(), None).unwrap();
            index.sample(key, entry, None, crate::index::Format::Png, (9, 9));
        }
        index.end_shard("train-000000.tar", shard.finish().unwrap()).unwrap();
        index.write(dir).unwrap();
        Arc::new(Dataset::open(dir, "train").unwrap())
    }

    /// A loader and all slabs there are, so that no batch can be filled.
    fn all_held(dir: &std::path::Path) -> (Loader, Vec<Batch>) {
        let config = LoaderConfig { batch: 2, depth: 1, ..LoaderConfig::default() };
        let memory = Arc::new(crate::slab::Heap);
        let mut loader = Loader::start(data(dir), config, Cursor::default(), memory).unwrap();
        let held = (0..3).map(|_| loader.next().unwrap().unwrap()).collect();
        (loader, held)
    }

    #[test]
    fn a_decode_thread_that_panics_ends_the_run_with_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let data = data(dir.path());
        for threads in [1, 4] {
            let config = LoaderConfig { batch: 4, threads, ..LoaderConfig::default() };
            let memory = Arc::new(crate::slab::ThreadBound::new());
            let mut loader =
                Loader::start(Arc::clone(&data), config, Cursor::default(), memory).unwrap();
            let error = loader.next().unwrap().unwrap_err();
            let Error::Panic { stage: "decode", ref message } = error else { panic!("{error:?}") };
            assert!(message.contains("used on another thread"), "{message}");
            assert!(loader.next().is_none());
        }
    }

    #[test]
    fn a_batch_that_is_not_waited_for_any_more_comes_with_the_next_call() {
        let dir = tempfile::tempdir().unwrap();
        let (mut loader, mut held) = all_held(dir.path());
        for _ in 0..2 {
            let error = loader.next_while(|| false).unwrap().unwrap_err();
            assert!(matches!(error, Error::Stopped) && !error.is_input());
        }
        let last = held.last().unwrap().cursor();
        held.clear();
        let next = loader.next_while(|| true).unwrap().unwrap();
        let order = |cursor: Cursor| (cursor.epoch, cursor.batch);
        assert_eq!(order(next.cursor()), (last.epoch + last.batch, (last.batch + 1) % 2));
    }

    #[test]
    fn a_batch_that_is_not_there_is_not_waited_for_where_there_is_no_patience() {
        let dir = tempfile::tempdir().unwrap();
        let (mut loader, mut held) = all_held(dir.path());
        let (asked, times) = (Instant::now(), 20);
        for _ in 0..times {
            let error = loader.next_timeout(Duration::ZERO).unwrap().unwrap_err();
            assert!(matches!(error, Error::TimedOut { .. }));
        }
        assert!(asked.elapsed() < times * LOOK / 2, "{:?}", asked.elapsed());
        held.clear();
        assert!(loader.next().unwrap().is_ok());
    }

    #[test]
    fn a_caller_that_keeps_all_batches_is_told_and_one_that_gives_some_back_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let data = data(dir.path());
        let config =
            LoaderConfig { batch: 2, depth: 1, held_s: Some(1), ..LoaderConfig::default() };
        let start = || {
            let memory = Arc::new(crate::slab::Heap);
            Loader::start(Arc::clone(&data), config.clone(), Cursor::default(), memory).unwrap()
        };
        let all: Vec<_> = start().take(10).collect();
        assert_eq!(all.iter().filter(|batch| batch.is_ok()).count(), 3);
        let Err(Error::AllHeld { slabs: 3, .. }) = &all[3] else { panic!("{:?}", all[3]) };
        assert!(all[3].as_ref().is_err_and(Error::is_input) && all.len() == 4);

        // Of one that asks again and again, too.
        let mut loader = start();
        let held: Vec<_> = (0..3).map(|_| loader.next().unwrap().unwrap()).collect();
        let asked = Instant::now();
        let error = loop {
            match loader.next_timeout(Duration::from_millis(5)).unwrap().unwrap_err() {
                Error::TimedOut { .. } => assert!(asked.elapsed() < Duration::from_secs(60)),
                error => break error,
            }
        };
        assert!(matches!(error, Error::AllHeld { slabs: 3, .. }), "{error}");
        drop(held);

        let mut loader = start();
        let held: Vec<_> = (0..3).map(|_| loader.next().unwrap().unwrap()).collect();
        let mut clones = held.clone();
        drop(held); // the clones are the same batches
        let error = loader.next_timeout(Duration::from_millis(200)).unwrap().unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }) && !error.is_input());
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            let cursor = clones.pop().unwrap().cursor();
            (clones, cursor)
        });
        let next = loader.next().unwrap().unwrap();
        let (clones, last) = other.join().unwrap();
        assert_eq!(loader.shared.plan.after(last), next.cursor());
        drop(loader);
        assert_eq!(clones[0].labels(), [-1, -1], "a batch outlives its loader");
    }

    #[test]
    fn a_loader_goes_to_the_epoch_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let data = data(dir.path());
        let config = LoaderConfig { batch: 2, epochs: Some(4), seed: 3, ..LoaderConfig::default() };
        let memory = || Arc::new(crate::slab::Heap);
        let ids = |loader: &mut Loader, count| -> Vec<_> {
            loader.by_ref().take(count).flat_map(|batch| batch.unwrap().ids().to_vec()).collect()
        };
        let start = |at| Loader::start(Arc::clone(&data), config.clone(), at, memory()).unwrap();
        let mut loader = start(Cursor::default());
        let whole = ids(&mut loader, 99);
        assert_eq!(whole.len(), 16);
        assert!(loader.next().is_none());
        for epoch in [0, 1, 3, 2] {
            loader.set_epoch(epoch).unwrap();
            let images = loader.stats().images;
            loader.set_epoch(epoch).unwrap();
            assert!(loader.stats().images >= images, "it is there already and starts nothing");
            assert_eq!(loader.cursor().unbound(), Cursor::new(epoch, 0));
            let rows = 4 * epoch as usize;
            let count = loader.batches_per_epoch() as usize;
            assert_eq!(ids(&mut loader, count), whole[rows..rows + 4], "epoch {epoch}");
        }
        loader.set_epoch(4).unwrap();
        assert!(loader.next().is_none());
    }
}

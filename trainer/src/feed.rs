//! Batches on the way from the loader to the step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bigbigan_model::images::Images;
use common::stop::Stop;
use dist::World;
use pipeline::{Cursor, Dataset, Loader, LoaderConfig};
use tch::Device;
use torch_ext::stream::{Event, Stream};

use crate::config::Config;
use crate::device;
use crate::error::Result;
use crate::eval::{loader_config, sides};

/// What rank `rank` of `ranks` reads of every batch.
pub(crate) fn part(config: &Config, rank: usize, ranks: usize) -> Result<LoaderConfig> {
    let (batch, whole) = (config.rows(ranks)?, loader_config(config));
    Ok(LoaderConfig { rank, world: ranks, batch, ..whole })
}

/// Batches on the device, and how long the step waited for them. The run and the benchmark of loading
/// take them through here.
#[derive(Debug)]
pub struct Feed {
    /// Where they come from.
    pub loader: Loader,
    first: Option<pipeline::Batch>,
    sides: (i64, i64),
    /// Where they go.
    pub device: Device,
    /// How long they were waited for: for the loader, and for what of the upload this thread does.
    pub waited: Duration,
    /// Of that, how long for the loader.
    pub loading: Duration,
    /// Behind the batch in use.
    pub cursor: Cursor,
    stream: Option<Stream>,
    /// With a stream: the batch after the one in use where it was there in time, and the copy that may still be
    /// read from.
    ahead: Option<Result<Sent>>,
    copying: Option<(Event, pipeline::Batch)>,
}

impl Feed {
    /// Starts loading at `at`; this rank's part of every batch.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config), [`Error::Data`](crate::error::Error::Data) or
    /// [`Error::Torch`](crate::error::Error::Torch).
    pub fn start(
        config: &Config,
        data: &Arc<Dataset>,
        at: Cursor,
        device: Device,
        world: &World,
    ) -> Result<Self> {
        let mut loader_config = part(config, world.rank(), world.size())?;
        if config.data.threads == 0 {
            loader_config.threads = world.part_of_cores(loader_config.threads);
        }
        let sides = sides(&loader_config);
        // Before memory is page-locked: that is done in the name of a device that is in use, else the first.
        let stream = Stream::new(device)?;
        let loader = Loader::start(data.clone(), loader_config, at, device::memory(device))?;
        let (first, ahead, copying) = (None, None, None);
        let (waited, loading, cursor) = (Duration::ZERO, Duration::ZERO, at);
        Ok(Self { loader, first, sides, device, waited, loading, cursor, stream, ahead, copying })
    }

    /// Waits for the first batch, so that data that cannot be read stops a run before it begins.
    ///
    /// # Errors
    /// [`Error::Data`](crate::error::Error::Data), also where `stop` comes first.
    pub fn prime(&mut self, stop: &Stop) -> Result<()> {
        self.first = Some(self.take(stop)?);
        Ok(())
    }

    fn take(&mut self, stop: &Stop) -> Result<pipeline::Batch> {
        if let Some(batch) = self.first.take() {
            return Ok(batch);
        }
        let next = self.loader.next_while(|| !stop.wanted());
        Ok(next.expect("the training loader is endless")?)
    }

    /// Waits for the next batch and starts its way to the device.
    fn await_and_send(&mut self, stop: &Stop) -> Result<Sent> {
        let asked = Instant::now();
        let batch = self.take(stop)?;
        self.loading += asked.elapsed();
        self.send(batch)
    }

    /// The same where the next batch is there.
    fn send_if_there(&mut self) -> Option<Result<Sent>> {
        match self.loader.next_timeout(Duration::ZERO).expect("the training loader is endless") {
            Err(pipeline::Error::TimedOut { .. }) => None,
            batch => Some(batch.map_err(Into::into).and_then(|batch| self.send(batch))),
        }
    }

    /// Starts the way of a batch to the device, beside the step's work where the device has a stream for it.
    fn send(&self, batch: pipeline::Batch) -> Result<Sent> {
        let upload = || device::pixels_later(&batch, self.sides.0, self.sides.1, self.device);
        let (images, mark) = match &self.stream {
            None => (upload(), None),
            Some(stream) => stream.run(upload).map(|(images, mark)| (images, Some(mark)))?,
        };
        Ok(Sent { images, mark, batch })
    }

    /// The next batch, in the order of the loader. Where `stop` comes before it, that is an error, and the
    /// batch is the next call's.
    ///
    /// # Errors
    /// [`Error::Data`](crate::error::Error::Data) or [`Error::Torch`](crate::error::Error::Torch).
    pub fn next(&mut self, stop: &Stop) -> Result<Images> {
        let asked = Instant::now();
        let Sent { images, mark, batch } = match self.ahead.take() {
            Some(sent) => sent?,
            None => self.await_and_send(stop)?,
        };
        self.cursor = batch.cursor();
        if let Some(mark) = mark {
            mark.wait(&[&images.large, &images.small])?;
            // Its copy is done when the next one's is asked for, and only then its rows are reused.
            self.copying = Some((mark, batch));
            // The step need not wait for a batch that only the next one needs.
            self.ahead = self.send_if_there();
        }
        self.waited += asked.elapsed();
        Ok(images)
    }
}

/// A batch on its way to the device. The mark comes before the batch: dropped, it waits for the copy.
#[derive(Debug)]
struct Sent {
    images: Images,
    mark: Option<Event>,
    batch: pipeline::Batch,
}

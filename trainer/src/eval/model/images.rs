//! The images that a model is evaluated on.

use std::sync::Arc;

use bigbigan_model::images::Images;
use pipeline::{Cursor, Dataset, LastBatch, Loader, LoaderConfig, Mode, Shuffle};
use tch::Device;
use torch_ext::stream::{Event, Stream};

use super::{Model, loader_config, pass, sides};
use crate::device;
use crate::error::{Error, Result};

impl Model {
    /// The first `count` images of a split in a fixed shuffled order, in batches.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn images<'a>(
        &'a self,
        data: &Arc<Dataset>,
        mode: Mode,
        count: i64,
    ) -> Result<impl Iterator<Item = Result<Images>> + use<'a>> {
        Ok(self.labelled(data, mode, count)?.map(|r| r.map(|(images, _)| images)))
    }

    /// As [`Model::images`], with labels (−1 for none).
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn labelled<'a>(
        &'a self,
        data: &Arc<Dataset>,
        mode: Mode,
        count: i64,
    ) -> Result<impl Iterator<Item = Result<(Images, Vec<i64>)>> + use<'a>> {
        let mut config = loader_config(&self.config);
        config.mode = mode;
        config.shuffle = Shuffle::Global;
        self.epoch(data, config, count)
    }

    /// All images of a split in the order of its shards, in the crop of `eval.mode`.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn in_order<'a>(
        &'a self,
        data: &Arc<Dataset>,
    ) -> Result<impl Iterator<Item = Result<(Images, Vec<i64>)>> + use<'a>> {
        let mut config = loader_config(&self.config);
        config.mode = self.config.eval.mode;
        config.shuffle = Shuffle::None;
        self.epoch(data, config, i64::MAX)
    }

    /// As [`Model::labelled`], but both views R_G wide and made from the whole short side: the images that
    /// generated ones are compared with.
    ///
    /// # Errors
    /// [`Error::Data`].
    ///
    /// # Source
    /// Paper App. A.
    pub fn references<'a>(
        &'a self,
        data: &Arc<Dataset>,
        count: i64,
    ) -> Result<impl Iterator<Item = Result<(Images, Vec<i64>)>> + use<'a>> {
        let mut config = loader_config(&self.config);
        config.mode = Mode::Full;
        config.large = self.config.g.res as usize;
        config.shuffle = Shuffle::Global;
        self.epoch(data, config, count)
    }

    fn epoch<'a>(
        &'a self,
        data: &Arc<Dataset>,
        mut config: LoaderConfig,
        count: i64,
    ) -> Result<impl Iterator<Item = Result<(Images, Vec<i64>)>> + use<'a>> {
        let count = count.min(data.len() as i64);
        config.last = LastBatch::Keep;
        config.epochs = Some(1);
        config.batch = pass(&self.config).min(count) as usize;
        let mut uploads = Uploads::of(&config, self.device)?;
        let mut loader =
            Loader::start(data.clone(), config, Cursor::default(), device::memory(self.device))?;
        let mut left = count;
        Ok(std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let batch = loader.next_while(|| !self.stop.wanted())?;
            let mut read = |batch: std::result::Result<pipeline::Batch, pipeline::Error>| {
                self.stop.check()?;
                let (images, mut labels) = uploads.begin(batch?)?;
                let rows = left.min(images.len());
                left -= rows;
                labels.truncate(rows as usize);
                Ok((images.rows(0, rows), labels))
            };
            Some(read(batch))
        }))
    }

    /// Batches of `batch` images and labels without end, each epoch in another order and each image
    /// seen afresh in the training's mode.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn endless<'a>(
        &'a self,
        data: &Arc<Dataset>,
        batch: i64,
    ) -> Result<impl Iterator<Item = Result<(Images, Vec<i64>)>> + use<'a>> {
        let mut config = loader_config(&self.config);
        config.shuffle = Shuffle::Global;
        config.batch = batch.min(data.len() as i64) as usize;
        let mut uploads = Uploads::of(&config, self.device)?;
        let mut loader =
            Loader::start(data.clone(), config, Cursor::default(), device::memory(self.device))?;
        Ok(std::iter::from_fn(move || {
            let batch = loader.next_while(|| !self.stop.wanted())?;
            Some(batch.map_err(Error::from).and_then(|batch| uploads.begin(batch)))
        }))
    }
}

/// Batches on their way to a device, beside its work on the one before.
#[derive(Debug)]
struct Uploads {
    device: Device,
    sides: (i64, i64),
    stream: Option<Stream>,
    /// The last one, whose rows may still be read from. The event comes before it: dropped, it waits for the copy.
    copying: Option<(Event, pipeline::Batch)>,
}

impl Uploads {
    fn of(config: &LoaderConfig, device: Device) -> Result<Self> {
        Ok(Self { device, sides: sides(config), stream: Stream::new(device)?, copying: None })
    }

    /// Images and labels of a batch.
    fn begin(&mut self, batch: pipeline::Batch) -> Result<(Images, Vec<i64>)> {
        let labels = batch.labels().to_vec();
        let upload = || device::pixels_later(&batch, self.sides.0, self.sides.1, self.device);
        let pixels = match &self.stream {
            None => upload(),
            Some(stream) => {
                let (pixels, copied) = stream.run(upload)?;
                copied.wait(&[&pixels.large, &pixels.small])?;
                self.copying = Some((copied, batch));
                pixels
            }
        };
        Ok((pixels.normalised(), labels))
    }
}

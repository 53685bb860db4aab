//! Bytes for draws. tokio waits here, threads compute elsewhere.

use std::sync::Arc;

use bytes::Bytes;

use crate::SampleId;
use crate::cursor::Cursor;
use crate::dataset::Dataset;
use crate::error::Error;
use crate::read_ahead::ReadAhead;
use crate::sampler::{Deal, Plan};
use crate::slab::{Free, Row};
use crate::stats::{Clock, Lap};

/// One sample to decode, and where its pixels go.
#[derive(Debug)]
pub(crate) struct Draw {
    pub(crate) sample: SampleId,
    pub(crate) epoch: u64,
    /// Its image file, or why that cannot be had.
    pub(crate) bytes: Result<Bytes, Error>,
    pub(crate) row: Row,
    /// The batch it belongs to, counted from the loader's start.
    pub(crate) batch: u64,
    /// The cursor after that batch.
    pub(crate) after: Cursor,
}

/// Sends every draw from `cursor` up to the epoch `end`, each as soon as there is a slab for its
/// batch and its bytes are there. Ends early when a channel closes.
///
/// Bytes of local shards are read here. Those behind a URL are read ahead, whether or not a slab is free.
pub(crate) async fn fetch(
    (data, plan, clock): (Arc<Dataset>, Arc<Plan>, Arc<Clock>),
    (cursor, end): (Cursor, u64),
    free: async_channel::Receiver<Free>,
    draws: async_channel::Sender<Draw>,
) {
    let mut ahead = ReadAhead::start(&data, &plan, cursor, end);
    let mut lap = Lap::start();
    for (batch, deal) in (0..).zip(plan.batches_from(cursor, end)) {
        let Deal { epoch, samples, after } = deal;
        clock.busy(lap.take());
        let Ok(slab) = free.recv().await else { return };
        clock.starved(lap.take());
        for (row, sample) in slab.lend(samples.len()).zip(samples) {
            let bytes = match &mut ahead {
                Some(ahead) => ahead.next(sample).await,
                None => data.bytes(sample),
            };
            // There is room for every row there is; this fails only when the loader is gone.
            if draws.try_send(Draw { sample, epoch, bytes, row, batch, after }).is_err() {
                return;
            }
        }
    }
}

//! Bytes for draws. This is the only place with an async runtime: tokio waits, threads compute.

use std::sync::Arc;

use crate::SampleId;
use crate::cursor::Cursor;
use crate::dataset::Dataset;
use crate::sampler::Plan;
use crate::slab::{Free, Row};
use crate::stats::{Clock, Lap};

/// One sample to decode, and where its pixels go.
#[derive(Debug)]
pub(crate) struct Draw {
    pub(crate) sample: SampleId,
    pub(crate) epoch: u64,
    pub(crate) row: Row,
    /// The batch it belongs to, counted from the loader's start.
    pub(crate) batch: u64,
    /// The cursor after that batch.
    pub(crate) after: Cursor,
}

/// Sends every draw from `cursor` up to the epoch `end`, batch by batch, each as soon as a slab is
/// free. Ends early when a channel closes.
///
/// Local shards are mapped, so here their bytes are only asked for, a batch ahead; the decode
/// thread touches them.
pub(crate) async fn fetch(
    (data, plan, clock): (Arc<Dataset>, Arc<Plan>, Arc<Clock>),
    (mut cursor, end): (Cursor, u64),
    free: async_channel::Receiver<Free>,
    draws: async_channel::Sender<Draw>,
) {
    let (mut batch, mut lap) = (0, Lap::start());
    while cursor.epoch < end {
        let order = plan.epoch(cursor.epoch);
        let epoch = cursor.epoch;
        while cursor.epoch == epoch {
            let samples: Vec<_> = order.samples(cursor.batch).collect();
            cursor = plan.after(cursor);
            if samples.is_empty() {
                continue; // a short last batch that leaves this rank nothing
            }
            clock.busy(lap.take());
            let Ok(slab) = free.recv().await else { return };
            clock.starved(lap.take());
            for &sample in &samples {
                data.will_need(sample);
            }
            for (row, sample) in slab.lend(samples.len()).zip(samples) {
                // There is room for every row there is; this fails only when the loader is gone.
                let draw = Draw { sample, epoch, row, batch, after: cursor };
                if draws.try_send(draw).is_err() {
                    return;
                }
            }
            batch += 1;
        }
    }
}

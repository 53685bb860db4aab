//! Reading a remote data set ahead of its decode threads, within a budget of bytes.
//!
//! The order of draws is known for all time, so what comes next is asked for long before it is
//! needed. Draws are taken together in *groups*, as many as a quarter of the budget holds; the bytes that a
//! group needs are joined into *spans* wherever little lies between them, and each span is one
//! request. A group of `shuffle = "shards"` holds most samples of its window, so its spans are whole
//! parts of 4 MiB; one of `shuffle = "global"`, or of one rank of many, is scattered, and its spans
//! are single samples. The first groups are small, so that the first batch does not wait for much.
//!
//! # Bounds, and why nothing can deadlock
//! A span holds permits for its bytes, and for those of its draws where a small data set comes round
//! often, from before it is asked for until the last of its samples is decoded. Spans get their permits
//! strictly in the order of the draws that need them first. When one has to wait, everything before its
//! group has been asked for, and comes, and is decoded, and gives its permits back; and its own group
//! fits into the budget: spans, draws and rounding take a quarter each at most. (A span larger than that
//! is a group of its own, and takes at most the whole budget.)

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Shared;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::SampleId;
use crate::cursor::Cursor;
use crate::dataset::{Dataset, Place};
use crate::error::Error;
use crate::remote::{Failure, REQUESTS};
use crate::sampler::Plan;

/// Bytes between two samples that are read along rather than asked around: what a request costs
/// a server and the network is worth as many.
const GAP: u64 = 128 << 10;

/// Bytes of the first group; each that follows is twice as large, up to a quarter of the budget.
const FIRST: u64 = 4 << 20;

/// Permits count blocks of so many bytes, for there are at most 2^32 of them. A draw counts as one at least.
const BLOCK: u64 = 4096;

type Answer = Result<Bytes, Failure>;
type Fetched = Shared<oneshot::Receiver<Answer>>;

/// A draw's bytes: where in which span.
pub(crate) struct Piece {
    sample: SampleId,
    span: Fetched,
    range: Range<usize>,
}

/// The bytes of the draws from a cursor on, in order.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    data: Arc<Dataset>,
    /// In the order of the draws.
    pieces: Mutex<mpsc::UnboundedReceiver<Piece>>,
    driver: AbortHandle,
    /// Says to whom it may concern that the loader stops.
    stop: watch::Sender<bool>,
}

impl ReadAhead {
    /// Starts to read; none for a data set of this machine, whose bytes are at hand.
    pub(crate) fn start(
        data: &Arc<Dataset>,
        plan: &Arc<Plan>,
        from: Cursor,
        end: u64,
    ) -> Option<Self> {
        let remote = data.remote()?;
        // Unbounded, but the pieces that wait in it have permits, but for those of one group.
        let (send, pieces) = mpsc::unbounded_channel();
        let driver = remote.spawn(drive(Arc::clone(data), Arc::clone(plan), (from, end), send));
        let (data, driver) = (Arc::clone(data), driver.abort_handle());
        Some(Self { data, pieces: Mutex::new(pieces), driver, stop: watch::Sender::new(false) })
    }

    /// Takes something that so many draws belong to, by `take`, and their pieces, so that both are
    /// taken in one order. The pieces are fewer where reading has ended.
    pub(crate) fn take<T>(
        &self,
        pieces: &mut Vec<Piece>,
        take: impl FnOnce() -> Option<(T, usize)>,
    ) -> Option<T> {
        // Receiving cannot panic.
        let mut queue = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let (taken, count) = take()?;
        pieces.extend((0..count).map_while(|_| queue.blocking_recv()));
        Some(taken)
    }

    /// The bytes of a draw, which must be of `sample`. Waits for them.
    pub(crate) fn bytes(&self, piece: Option<Piece>, sample: SampleId) -> Result<Bytes, Error> {
        let piece = piece.ok_or_else(broken)?;
        debug_assert_eq!(piece.sample, sample);
        let remote = self.data.remote().ok_or_else(broken)?;
        let bytes = remote.block_on(piece.span).map_err(|_| broken())??;
        self.data.open_sample(sample, bytes.slice(piece.range))
    }

    /// The bytes of a sample that was not drawn. Waits for them.
    pub(crate) fn read(&self, sample: SampleId) -> Result<Bytes, Error> {
        let mut stopped = self.stop.subscribe();
        self.data.bytes_unless(sample, async move {
            let _ = stopped.wait_for(|&stopped| stopped).await;
        })
    }

    /// Ends reading. Whoever waits for bytes gets an error.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
        self.driver.abort(); // and with it all that it spawned
    }
}

fn broken() -> Error {
    Error::Panic { stage: "remote", message: "reading ahead ended".into() }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sample, range, .. } = self;
        f.debug_struct("Piece").field("sample", sample).field("range", range).finish()
    }
}

/// Plans group after group, and starts its spans as the budget allows.
async fn drive(
    data: Arc<Dataset>,
    plan: Arc<Plan>,
    (from, end): (Cursor, u64),
    send: mpsc::UnboundedSender<Piece>,
) {
    let Some(remote) = data.remote() else { return };
    let budget = remote.options.read_ahead;
    let blocks = (budget / BLOCK) as u32;
    let (held, requests) =
        (Arc::new(Semaphore::new(blocks as usize)), Arc::new(Semaphore::new(REQUESTS)));
    let mut running = JoinSet::new();
    let mut limit = FIRST;
    let mut draws = plan.draws(from, end).peekable();
    while draws.peek().is_some() {
        let mut group = Group::default();
        while let Some(&sample) = draws.peek() {
            let place = data.place(sample);
            let kept = remote.cache().is_none_or(|cache| {
                cache.part(data.shard_file(&place).0, place.part.start).exists()
            });
            let want = if kept { place.range.clone() } else { place.part.clone() };
            if !group.add(sample, place, want, limit.min(budget / 4)) {
                break;
            }
            draws.next();
        }
        limit = (limit * 2).min(budget / 4);
        for (span, bytes, start) in group.cut(&send) {
            let count = bytes.div_ceil(BLOCK).min(blocks.into());
            // The semaphores are never closed.
            let Ok(permit) = Arc::clone(&held).acquire_many_owned(count as u32).await else {
                return;
            };
            let Ok(request) = Arc::clone(&requests).acquire_owned().await else { return };
            while running.try_join_next().is_some() {}
            let data = Arc::clone(&data);
            running.spawn(async move {
                let fetched = fetch(&data, span, permit).await;
                drop(request);
                let _ = start.send(fetched); // fails when nobody wants it any more
            });
        }
    }
    while running.join_next().await.is_some() {}
}

async fn fetch(
    data: &Dataset,
    span: Place,
    permit: OwnedSemaphorePermit,
) -> Result<Bytes, Failure> {
    /// Bytes with their share of the budget.
    struct Held {
        bytes: Vec<u8>,
        _permit: OwnedSemaphorePermit,
    }
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    let (name, length) = data.shard_file(&span);
    let Some(remote) = data.remote().map(Arc::clone) else { unreachable!("a remote data set") };
    let bytes = remote.cached(name, span.part, span.range, length).await?;
    Ok(Bytes::from_owner(Held { bytes, _permit: permit }))
}

/// Draws in a row, and the spans of shards that hold their bytes.
#[derive(Debug, Default)]
struct Group {
    draws: Vec<(SampleId, Place)>,
    /// By shard and first byte of the part, then first byte of the span: one beyond its last byte, and
    /// the bytes of its draws.
    spans: BTreeMap<(usize, u64, u64), (u64, u64)>,
    /// Bytes of the spans.
    bytes: u64,
    /// Bytes of the draws: more than those of the spans where a small data set comes round again.
    drawn: u64,
}

impl Group {
    /// Takes a draw in that needs the bytes `want`, unless that would take the group beyond `limit`
    /// bytes; the first one always fits.
    fn add(&mut self, sample: SampleId, place: Place, want: Range<u64>, limit: u64) -> bool {
        let part = (place.shard, place.part.start);
        let of_part = self.spans.range((part.0, part.1, 0)..=(part.0, part.1, u64::MAX));
        let near: Vec<_> = of_part
            .map(|(key, span)| (*key, *span))
            .filter(|(key, (end, _))| key.2 <= want.end + GAP && want.start <= end + GAP)
            .collect();
        let start = near.iter().map(|(key, _)| key.2).chain([want.start]).min().unwrap_or(0);
        let end = near.iter().map(|&(_, (end, _))| end).chain([want.end]).max().unwrap_or(0);
        let joined: u64 = near.iter().map(|(key, (end, _))| end - key.2).sum();
        let bytes = self.bytes - joined + (end - start);
        let own = (place.range.end - place.range.start).max(BLOCK);
        let drawn = self.drawn + own;
        if bytes.max(drawn) > limit && !self.draws.is_empty() {
            return false;
        }
        let of_span = own + near.iter().map(|(_, (_, drawn))| drawn).sum::<u64>();
        for (key, _) in near {
            self.spans.remove(&key);
        }
        self.spans.insert((part.0, part.1, start), (end, of_span));
        (self.bytes, self.drawn) = (bytes, drawn);
        self.draws.push((sample, place));
        true
    }

    /// Sends the draws' pieces, in their order, and gives the spans in the order in which draws
    /// need them, each with the bytes that it counts for and the sender that its own go to.
    fn cut(
        self,
        send: &mpsc::UnboundedSender<Piece>,
    ) -> Vec<(Place, u64, oneshot::Sender<Answer>)> {
        let mut known: BTreeMap<(usize, u64, u64), Fetched> = BTreeMap::new();
        let mut spans = Vec::with_capacity(self.spans.len());
        for (sample, place) in self.draws {
            let key = (place.shard, place.part.start, place.range.start);
            let Some((&key, &(end, drawn))) = self.spans.range(..=key).next_back() else {
                unreachable!("the group's spans hold its draws")
            };
            let range = key.2..end;
            let within = place.range.start - range.start..place.range.end - range.start;
            let span = known.entry(key).or_insert_with(|| {
                let (start, fetched) = oneshot::channel();
                spans.push((Place { range, ..place }, drawn.max(end - key.2), start));
                fetched.shared()
            });
            let range = within.start as usize..within.end as usize;
            // Fails when the reader is gone; then this task is about to end as well.
            let _ = send.send(Piece { sample, span: span.clone(), range });
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data set of two small samples that comes round again and again: pieces are bounded by their
    /// number, for the bytes that they share are few.
    #[test]
    fn draws_of_a_small_data_set_count_each_time() {
        let (send, mut pieces) = mpsc::unbounded_channel();
        let (limit, mut group, mut count) = (1 << 20, Group::default(), 0);
        let place = |n: u64| Place { shard: 0, part: 0..3000, range: 1500 * n..1500 * (n + 1) };
        while group.add(count % 2, place(count % 2), 0..3000, limit) {
            count += 1;
        }
        assert_eq!(count, limit / BLOCK);
        let spans = group.cut(&send);
        assert_eq!(spans.len(), 1);
        assert_eq!((spans[0].0.range.clone(), spans[0].1), (0..3000, limit));
        assert_eq!(pieces.len() as u64, count);
        let piece = pieces.try_recv().unwrap();
        assert_eq!((piece.sample, piece.range), (0, 0..1500));
    }
}

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::stop::Stop;
use tch::{Device, Kind, Tensor};
use torch_ext::c10d::{Group, Reduce, Work};

use crate::error::{Error, Failure, join};
use crate::place::Place;
use crate::rendezvous::{Groups, Link, own_address};
use crate::watch::{Limits, leave};

/// Margin that the watcher has to name a rank before a collective gives up by itself.
const MARGIN: Duration = Duration::from_secs(15);
/// Longest single wait for rank 0's work; c10d warns of each that was in vain.
const WAIT: Duration = Duration::from_secs(3600);
/// The processes of a run and this one's place among them. A process alone is a world of one, in which
/// collectives do nothing.
///
/// A collective that fails makes every later one do nothing; [`World::check`] then says so. So layers need
/// no error path of their own, and nothing computed after a failure is kept.
#[derive(Debug, Clone)]
pub struct World(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    place: Place,
    link: Option<Link>,
    collectives: AtomicU64,
    bytes: AtomicU64,
}

/// What a rank gave to collectives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Their number.
    pub collectives: u64,
    /// Bytes of the tensors, each counted once.
    pub bytes: u64,
}

impl World {
    /// A world of one.
    #[must_use]
    pub fn alone() -> Self {
        Self::new(Place::alone(), None)
    }

    /// Rank 0 of `size` ranks of which no other is there: collectives are counted and do nothing. For finding
    /// out what a step exchanges; its numbers mean nothing.
    #[must_use]
    pub fn rehearsal(size: usize) -> Self {
        Self::new(Place { size, ..Place::alone() }, None)
    }

    fn new(place: Place, link: Option<Link>) -> Self {
        let (collectives, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(Inner { place, link, collectives, bytes }))
    }

    /// Meets the other ranks, and makes sure that all run the same program on the same `facts` (name and
    /// value). Tensors on a CUDA `device` will be reduced by NCCL, all others by Gloo. `stop` is looked at while
    /// this waits, and set on rank 0 where it leads and any rank is asked to end ([`World::lead`]).
    ///
    /// # Errors
    /// [`Error::Join`] if they do not come together within `limits.join`; [`Error::Disagree`] with the
    /// first fact that differs; [`Error::Stopped`] if work is to end.
    pub fn join(
        place: Place,
        device: Device,
        limits: Limits,
        facts: Vec<(String, String)>,
        stop: &Stop,
    ) -> crate::error::Result<Self> {
        if place.size == 1 {
            return Ok(Self::alone());
        }
        let size = ("the number of ranks".to_owned(), place.size.to_string());
        let facts: Vec<_> = [size].into_iter().chain(facts).collect();
        let mut link = Link::open(&place, limits, stop)?;
        link.agree(&place, &facts, limits, stop)?;
        link.pulse.enter("connect");
        let address = own_address(&place.store)?;
        let whole = limits.timeout + MARGIN;
        let own = (place.rank, place.size);
        let host = Group::gloo(&link.store, own, &address, whole).map_err(join)?;
        let device = match device {
            Device::Cuda(index) => Some(Group::nccl(&link.store, own, index, whole).map_err(join)?),
            _ => None,
        };
        link.groups = Some(Groups { host, device });
        Ok(Self::new(place, Some(link)))
    }

    /// This process's number.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.0.place.rank
    }

    /// Number of processes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.place.size
    }

    /// This process's part of the `seen` cores that it may run on: at most as many as its launcher gave to
    /// it alone, else an equal part for each process of the machine.
    #[must_use]
    pub fn part_of_cores(&self, seen: usize) -> usize {
        let place = &self.0.place;
        place.cores.map_or_else(|| seen.div_ceil(place.local_size), |own| own.clamp(1, seen))
    }

    /// Number of processes that compute together now: 1 inside [`World::lead`].
    #[must_use]
    pub fn together(&self) -> usize {
        let leading = |link: &Link| link.pulse.is_leading();
        if self.0.link.as_ref().is_some_and(leading) { 1 } else { self.size() }
    }

    /// Whether this is the process that writes.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.0.place.rank == 0
    }

    /// Says which step is under way, for the others to name should this rank fail.
    pub fn step(&self, step: u64) {
        if let Some(link) = &self.0.link {
            link.pulse.step(step);
        }
    }

    /// Says what of a step is under way.
    pub fn enter(&self, phase: &'static str) {
        if let Some(link) = &self.0.link {
            link.pulse.enter(phase);
        }
    }

    /// Sums a contiguous tensor over all ranks, in place.
    pub fn sum(&self, tensor: &Tensor) {
        self.collective(tensor, |group| group.all_reduce(tensor, Reduce::Sum)?.wait());
    }

    /// Begins to sum a contiguous tensor over all ranks, in place: it is to be left alone until
    /// [`Pending::wait`] returns.
    pub fn sum_later(&self, tensor: &Tensor) -> Pending {
        let mut work = None;
        self.collective(tensor, |group| {
            work = Some(group.all_reduce(tensor, Reduce::Sum)?);
            Ok(())
        });
        Pending { world: self.clone(), work }
    }

    /// Makes a contiguous tensor what it is on rank 0.
    pub fn broadcast(&self, tensor: &Tensor) {
        self.collective(tensor, |group| group.broadcast(tensor, 0));
    }

    /// The sums of some numbers over all ranks.
    #[must_use]
    pub fn sums<const N: usize>(&self, values: [f64; N]) -> [f64; N] {
        let tensor = Tensor::from_slice(&values);
        self.sum(&tensor);
        std::array::from_fn(|i| tensor.double_value(&[i as i64]))
    }

    /// The largest of a number over all ranks.
    #[must_use]
    pub fn largest(&self, value: i64) -> i64 {
        let tensor = Tensor::from_slice(&[value]);
        self.collective(&tensor, |group| group.all_reduce(&tensor, Reduce::Max)?.wait());
        tensor.int64_value(&[0])
    }

    /// Rank 0's numbers.
    #[must_use]
    pub fn shared<const N: usize>(&self, values: [i64; N]) -> [i64; N] {
        let tensor = Tensor::from_slice(&values);
        self.broadcast(&tensor);
        std::array::from_fn(|i| tensor.int64_value(&[i as i64]))
    }

    /// What this rank gave to collectives so far; nothing in a world of one.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let Inner { collectives, bytes, .. } = &*self.0;
        let [collectives, bytes] = [collectives, bytes].map(|n| n.load(Ordering::Relaxed));
        Traffic { collectives, bytes }
    }

    fn collective(&self, tensor: &Tensor, run: impl FnOnce(&Group) -> Result<(), String>) {
        if self.size() > 1 {
            let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
            self.0.collectives.fetch_add(1, Ordering::Relaxed);
            self.0.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        let Some(link) = &self.0.link else { return };
        let Some(groups) = &link.groups else { return };
        link.pulse.collective(|| run(groups.of(tensor)));
    }

    /// Whether all collectives so far did their work. Where one failed, this waits until the rank to blame
    /// is found and the process ends with its name.
    ///
    /// # Errors
    /// [`Error::Lost`] if none is found.
    pub fn check(&self) -> crate::error::Result<()> {
        let Some(link) = &self.0.link else { return Ok(()) };
        let Some(reason) = link.pulse.failure() else { return Ok(()) };
        thread::sleep(MARGIN);
        Err(Error::Lost { reason: reason.to_owned() })
    }

    /// Lets rank 0 do `work`, however long it takes, while the others wait; they get `None`. Batch norms see
    /// rank 0's own batch meanwhile, and collectives must not be called. A rank that is asked to end while it waits
    /// has rank 0 asked too.
    ///
    /// # Errors
    /// Rank 0's own, or [`Error::Lost`] on the others if the store fails.
    pub fn lead<T, E: From<Error>>(
        &self,
        phase: &'static str,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let Some(link) = &self.0.link else { return work().map(Some) };
        self.enter(phase);
        let key = format!("led/{}", link.led.fetch_add(1, Ordering::Relaxed));
        let lost = |reason| E::from(Error::Lost { reason });
        if self.leads() {
            let value = link.pulse.lead(work)?;
            link.store.set(&key, b"done").map_err(lost)?;
            return Ok(Some(value));
        }
        // No deadline: a rank 0 that dies is the watcher's affair.
        let done = link.pulse.idle(|| {
            while !link.store.wait(&key, WAIT)? {}
            Ok(())
        });
        link.watching().hurry();
        done.map(|()| None).map_err(lost)
    }

    /// Calls to the store so far, its watcher's too.
    #[must_use]
    pub fn store_calls(&self) -> u64 {
        self.0.link.as_ref().map_or(0, |link| link.store.calls() + link.watching().calls())
    }

    /// Makes sure that tensors are bit-equal on all ranks.
    ///
    /// # Errors
    /// [`Error::Drift`] naming the first that is not.
    pub fn verify(&self, tensors: &[(String, Tensor)]) -> crate::error::Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let sums: Vec<_> = tensors.iter().map(|(_, tensor)| checksum(tensor)).collect();
        // The largest sum and, negated, the smallest.
        let both: Vec<_> = sums.iter().copied().chain(sums.iter().map(|sum| -sum)).collect();
        let both = Tensor::from_slice(&both);
        self.collective(&both, |group| group.all_reduce(&both, Reduce::Max)?.wait());
        self.check()?;
        let both = Vec::<i64>::try_from(&both).map_err(torch_ext::Error::from)?;
        let (largest, smallest) = both.split_at(sums.len());
        match largest.iter().zip(smallest).position(|(largest, smallest)| *largest != -smallest) {
            None => Ok(()),
            Some(first) => Err(Error::Drift { tensor: tensors[first].0.clone() }),
        }
    }

    /// Ends this rank's part. An error is posted, so that the others end with its text; on success they are
    /// told that this rank's silence is no death.
    ///
    /// # Errors
    /// Those of `outcome`, in a world of one; a rank of several ends the process here.
    pub fn conclude<T, E: Failure>(&self, outcome: Result<T, E>) -> Result<T, E> {
        let Some(link) = &self.0.link else { return outcome };
        match outcome {
            Ok(value) => {
                link.finish(&self.0.place);
                Ok(value)
            }
            Err(e) => {
                let name = link.pulse.name();
                let text =
                    if e.is_stop() { "stopped by a signal".to_owned() } else { e.to_string() };
                link.post(&format!("{name}: {text}"), e.exit_code(), self.rank());
                leave(e.exit_code(), &text)
            }
        }
    }
}

/// A sum over ranks that is under way.
#[derive(Debug)]
#[must_use = "the tensor may be read after `wait` alone"]
pub struct Pending {
    world: World,
    work: Option<Work>,
}

impl Pending {
    /// Waits for its end, or for a failure, as of any collective.
    pub fn wait(mut self) {
        if let (Some(work), Some(link)) = (self.work.take(), &self.world.0.link) {
            link.pulse.collective(|| work.wait());
        }
    }
}

impl Drop for Pending {
    /// One that nobody waited for, as a step ended early, leaves the ranks at different places.
    fn drop(&mut self) {
        if let (Some(_), Some(link)) = (self.work.take(), &self.world.0.link) {
            link.pulse.fail("a sum over ranks was begun and not waited for".to_owned());
        }
    }
}

/// The sum of a tensor's bit patterns: equal for equal tensors whatever the order of summing.
fn checksum(tensor: &Tensor) -> i64 {
    let bits = match tensor.kind() {
        Kind::Double | Kind::Int64 => Kind::Int64,
        _ => Kind::Int,
    };
    tensor.detach().view_dtype(bits).sum(Kind::Int64).int64_value(&[])
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::time::Instant;

    use super::*;

    fn ones() -> Tensor {
        Tensor::ones([3], (Kind::Float, Device::Cpu))
    }

    /// Runs two ranks, until both are done.
    fn two(body: impl Fn(&World) + Send + Sync + 'static) {
        several(2, body);
    }

    /// Runs ranks, until all are done.
    fn several(ranks: usize, body: impl Fn(&World) + Send + Sync + 'static) {
        let second = Duration::from_secs(60);
        let limits = Limits { join: second, timeout: second, silence: second };
        let (body, both) = (Arc::new(body), Arc::new(Barrier::new(ranks)));
        let ranks = Place::threads(ranks).into_iter().map(|place| {
            let (body, both) = (body.clone(), both.clone());
            thread::spawn(move || {
                let world =
                    World::join(place, Device::Cpu, limits, vec![], &Stop::default()).unwrap();
                body(&world);
                both.wait();
            })
        });
        ranks.collect::<Vec<_>>().into_iter().for_each(|rank| rank.join().unwrap());
    }

    #[test]
    fn a_rank_that_waits_for_a_store_listens_to_a_signal() {
        let place = Place::threads(2).remove(1); // nobody is rank 0
        let minute = Duration::from_secs(60);
        let limits = Limits { join: minute, timeout: minute, silence: minute };
        let stop = Stop::default();
        let wish = stop.clone();
        let begun = Instant::now();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            wish.flag().store(true, Ordering::Relaxed);
        });
        let error = World::join(place, Device::Cpu, limits, vec![], &stop).unwrap_err();
        assert!(error.is_stop() && begun.elapsed() < Duration::from_secs(10), "{error}");
        let short = Limits { join: Duration::from_millis(500), ..limits };
        let place = Place::threads(2).remove(1);
        let error = World::join(place, Device::Cpu, short, vec![], &Stop::default()).unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
    }

    #[test]
    fn ranks_that_wait_for_rank_0_hardly_call_the_store_and_end_with_it_at_once() {
        const WORK: Duration = Duration::from_secs(12);
        several(8, |world| {
            let work = || {
                thread::sleep(WORK);
                Ok::<_, Error>(Instant::now())
            };
            // A short one first: it takes no longer than itself.
            let begun = Instant::now();
            let short = || {
                thread::sleep(Duration::from_millis(5));
                Ok::<_, Error>(())
            };
            world.lead("short", short).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
            let waiting = world.clone();
            let count = move || {
                thread::sleep(Duration::from_secs(1));
                let before = waiting.store_calls();
                thread::sleep(Duration::from_secs(10));
                waiting.store_calls() - before
            };
            let counter = (!world.leads()).then(|| thread::spawn(count));
            let begun = Instant::now();
            world.lead("long", work).unwrap();
            let took = begun.elapsed();
            assert!(took < WORK + Duration::from_millis(500), "{took:?}");
            if let Some(counter) = counter {
                let calls = counter.join().unwrap();
                assert!((2..=10).contains(&calls), "{calls} calls of an idle rank in 10 s");
            }
        });
    }

    #[test]
    fn sums_under_way_end_each_with_its_own() {
        two(|world| {
            let all: Vec<_> = (0..20).map(|i| ones() * i).collect();
            let under_way: Vec<_> = all.iter().map(|t| world.sum_later(t)).collect();
            let beside = ones();
            world.sum(&beside);
            under_way.into_iter().rev().for_each(Pending::wait);
            assert_eq!(beside, ones() * 2);
            for (i, t) in all.iter().enumerate() {
                assert_eq!(t, &(ones() * (2 * i as i64)));
            }
        });
    }

    /// All groups of a process share libtorch's flight recorder, which does not expect them all at once.
    #[test]
    fn ranks_that_are_threads_may_all_begin_their_first_sum_at_once() {
        const RANKS: usize = 16;
        for _ in 0..4 {
            let all = Barrier::new(RANKS);
            several(RANKS, move |world| {
                let x = ones();
                all.wait();
                world.sum(&x);
                assert_eq!(x, ones() * RANKS as i64);
            });
        }
    }

    #[test]
    fn after_a_sum_that_nobody_waited_for_no_collective_is_trusted() {
        two(|world| {
            drop(world.sum_later(&ones()));
            let later = ones();
            world.sum(&later);
            assert_eq!(later, ones());
        });
    }
}

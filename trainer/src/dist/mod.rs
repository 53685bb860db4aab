//! Many processes as one run: torch.distributed's store and process groups, who is which rank, what
//! all ranks must agree on, and what happens when one of them fails.

pub mod c10d;
mod launch;
mod nccl;
mod place;
mod watch;

use std::io;
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::stop::Stop;
use c10d::{Group, Reduce, Store, Work};
pub use launch::launch;
pub use place::Place;
use watch::{Pulse, Verdict, Watch, leave};

/// How long ranks wait for each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// For all ranks to come together at the start.
    pub join: Duration,
    /// For a rank that is alive but does not come to a collective.
    pub timeout: Duration,
    /// For a sign of life.
    pub silence: Duration,
}

/// Margin that the watcher has to name a rank before a collective gives up by itself.
const MARGIN: Duration = Duration::from_secs(15);
/// Longest single wait for rank 0's work; c10d warns of each that was in vain.
const WAIT: Duration = Duration::from_secs(3600);
/// Pauses between looks at a key of a rank that may not have come yet, from the first to the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_secs(1)];

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

#[derive(Debug)]
struct Link {
    store: Store,
    pulse: Arc<Pulse>,
    watch: Mutex<Watch>,
    groups: Option<Groups>,
    /// Times that rank 0 worked for all.
    led: AtomicU64,
}

/// The ways between the ranks, by where tensors are.
#[derive(Debug)]
struct Groups {
    /// Gloo, for those in host memory.
    host: Group,
    /// NCCL, where this rank computes on a CUDA device.
    device: Option<Group>,
}

impl Groups {
    fn of(&self, tensor: &Tensor) -> &Group {
        match &self.device {
            Some(group) if tensor.device().is_cuda() => group,
            _ => &self.host,
        }
    }
}

impl Drop for Link {
    /// The watcher must not outlive a store served here. A group with a failed collective would wait for
    /// it: that one is left to the end of the process.
    fn drop(&mut self) {
        self.watch.get_mut().unwrap_or_else(PoisonError::into_inner).stop();
        if self.pulse.failure().is_some() {
            std::mem::forget(self.groups.take());
        }
    }
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
    /// first fact that differs; one of which [`Error::is_stop`] holds if work is to end.
    pub fn join(
        place: Place,
        device: Device,
        limits: Limits,
        facts: Vec<(String, String)>,
        stop: &Stop,
    ) -> Result<Self> {
        if place.size == 1 {
            return Ok(Self::alone());
        }
        let facts: Vec<_> = of_the_program(&place)?.into_iter().chain(facts).collect();
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

    fn collective(
        &self,
        tensor: &Tensor,
        run: impl FnOnce(&Group) -> std::result::Result<(), String>,
    ) {
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
    pub fn check(&self) -> Result<()> {
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
    pub fn lead<T>(
        &self,
        phase: &'static str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<Option<T>> {
        let Some(link) = &self.0.link else { return work().map(Some) };
        self.enter(phase);
        let key = format!("led/{}", link.led.fetch_add(1, Ordering::Relaxed));
        let lost = |reason| Error::Lost { reason };
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
    pub fn verify(&self, tensors: &[(String, Tensor)]) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let sums: Vec<_> = tensors.iter().map(|(_, tensor)| checksum(tensor)).collect();
        // The largest sum and, negated, the smallest.
        let both: Vec<_> = sums.iter().copied().chain(sums.iter().map(|sum| -sum)).collect();
        let both = Tensor::from_slice(&both);
        self.collective(&both, |group| group.all_reduce(&both, Reduce::Max)?.wait());
        self.check()?;
        let both = Vec::<i64>::try_from(&both)?;
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
    pub fn conclude<T>(&self, outcome: Result<T>) -> Result<T> {
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

impl Link {
    /// Comes to the store and starts beating.
    fn open(place: &Place, limits: Limits, stop: &Stop) -> Result<Self> {
        let deadline = Instant::now() + limits.join;
        let (host, port) = (&place.store.0, place.store.1);
        let open = |serve| {
            let left = deadline.saturating_duration_since(Instant::now());
            Store::open((host, port), serve, &place.prefix, left).map_err(|reason| {
                join(format!("no store at {host}:{port} (MASTER_ADDR:MASTER_PORT): {reason}"))
            })
        };
        if !place.serve {
            wait_for_listener((host, port), deadline, stop)?;
        }
        let store = open(place.serve)?;
        if place.rank == 0 {
            Verdict::none_yet(&store).map_err(join)?;
            store.set("server", &[u8::from(place.serve)]).map_err(join)?;
        }
        let tell = |e: &Error| {
            if e.is_stop() {
                let text = format!("rank {}: stopped by a signal", place.rank);
                let _ = Verdict { text, code: e.exit_code(), by: Some(place.rank) }.post(&store);
            }
        };
        let served_by_rank_0 = wait_for(&store, "server", deadline, stop)
            .inspect_err(tell)?
            .ok_or_else(|| join("rank 0 did not come: waited in vain (dist.join)".to_owned()))?
            == [1];
        let pulse = Pulse::new((place.rank, place.size), served_by_rank_0, limits, stop);
        let pulse = Arc::new(pulse);
        if store.add(&format!("here/{}", place.rank), 1).map_err(join)? > 1 {
            return Err(join(format!("two processes say that they are rank {}", place.rank)));
        }
        let beat = serde_json::to_vec(&pulse.beat(0)).map_err(|e| join(e.to_string()))?;
        store.set(&watch::beat_key(place.rank), &beat).map_err(join)?;
        let watch = Watch::start(pulse.clone(), open(false)?).map_err(|e| join(e.to_string()))?;
        let (watch, led) = (Mutex::new(watch), AtomicU64::new(0));
        Ok(Self { store, pulse, watch, groups: None, led })
    }

    fn watching(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares the facts with rank 0's, and waits until every rank has.
    fn agree(
        &self,
        place: &Place,
        facts: &[(String, String)],
        limits: Limits,
        stop: &Stop,
    ) -> Result<()> {
        let deadline = Instant::now() + limits.join;
        // The others are told: they would wait in vain for a rank that leaves.
        let wait = |key| {
            wait_for(&self.store, key, deadline, stop).inspect_err(|e| {
                if e.is_stop() {
                    let text = format!("{}: stopped by a signal", self.pulse.name());
                    self.post(&text, e.exit_code(), place.rank);
                }
            })
        };
        let missing = || join(self.missing(place.size, limits));
        if place.rank == 0 {
            let text = serde_json::to_vec(facts).map_err(|e| join(e.to_string()))?;
            self.store.set("facts", &text).map_err(join)?;
        } else {
            let text = wait("facts")?.ok_or_else(missing)?;
            let theirs: Vec<(String, String)> =
                serde_json::from_slice(&text).map_err(|e| join(e.to_string()))?;
            if let Some((name, ours, theirs)) = first_difference(facts, &theirs) {
                let rank = place.rank;
                let error = Error::Disagree { name, rank, ours, theirs };
                self.post(&error.to_string(), error.exit_code(), rank);
                return Err(error);
            }
        }
        if self.count("agreed", place.size).map_err(join)? {
            self.store.set("go", b"go").map_err(join)?;
        }
        wait("go")?.map(drop).ok_or_else(missing)
    }

    /// Counts ranks that came somewhere. Whether all have.
    fn count(&self, key: &str, size: usize) -> std::result::Result<bool, String> {
        Ok(self.store.add(key, 1)? == size as i64)
    }

    fn missing(&self, size: usize, limits: Limits) -> String {
        let absent = |rank: &usize| !matches!(self.store.add(&format!("here/{rank}"), 0), Ok(1..));
        let ranks: Vec<_> = (0..size).filter(absent).map(|rank| rank.to_string()).collect();
        let (ranks, seconds) = (ranks.join(", "), limits.join.as_secs());
        format!("of {size} ranks these did not come within {seconds} s (dist.join): {ranks}")
    }

    fn post(&self, text: &str, code: u8, by: usize) {
        let _ = Verdict { text: text.to_owned(), code, by: Some(by) }.post(&self.store);
        self.pulse.linger();
    }

    /// Says that this rank leaves in good order. Where it serves the store, it waits until all have said so.
    fn finish(&self, place: &Place) {
        self.watching().finish();
        if self.count("finished", place.size) == Ok(true) {
            let _ = self.store.set("all finished", b"all");
        }
        if place.serve {
            let _ = self.store.wait("all finished", self.pulse.limits().silence);
        }
    }
}

fn of_the_program(place: &Place) -> Result<[(String, String); 3]> {
    let path = Path::new("/proc/self/exe");
    let program = std::fs::read(path).map_err(Error::io("read", path))?;
    let hash: String = Sha256::digest(program).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([
        ("the number of ranks".to_owned(), place.size.to_string()),
        ("trainer's version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("the program's SHA-256".to_owned(), hash),
    ])
}

/// What differs first, with both values.
fn first_difference(
    ours: &[(String, String)],
    theirs: &[(String, String)],
) -> Option<(String, String, String)> {
    let value = |facts: &[(String, String)], name: &str| {
        let found = facts.iter().find(|(n, _)| n == name);
        found.map_or("nothing".to_owned(), |(_, value)| value.clone())
    };
    let mut names = theirs.iter().chain(ours).map(|(name, _)| name);
    names.find_map(|name| {
        let (ours, theirs) = (value(ours, name), value(theirs, name));
        (ours != theirs).then(|| (name.clone(), ours, theirs))
    })
}

/// Waits for another rank to set a key; `None` if none does.
fn wait_for(store: &Store, key: &str, deadline: Instant, stop: &Stop) -> Result<Option<Vec<u8>>> {
    let [mut pause, longest] = PAUSES;
    loop {
        stop.check()?;
        let value = store.get(key).map_err(join)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if value.is_some() || left.is_zero() {
            return Ok(value);
        }
        thread::sleep(pause.min(left));
        pause = (pause * 3 / 2).min(longest);
    }
}

/// Waits until somebody listens where the store is to be: c10d would wait too, but deaf to `stop`.
fn wait_for_listener((host, port): (&str, u16), deadline: Instant, stop: &Stop) -> Result<()> {
    let [mut pause, longest] = PAUSES;
    loop {
        stop.check()?;
        let reached = (host, port).to_socket_addrs().and_then(|addresses| {
            let mut outcome = Err(io::Error::other("it has no address"));
            for address in addresses {
                outcome = TcpStream::connect_timeout(&address, longest).map(drop);
                if outcome.is_ok() {
                    break;
                }
            }
            outcome
        });
        let Err(error) = reached else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(join(format!(
                "no store at {host}:{port} (MASTER_ADDR:MASTER_PORT): {error}; waited in vain (dist.join)"
            )));
        }
        thread::sleep(pause.min(left));
        pause = (pause * 3 / 2).min(longest);
    }
}

/// The address of this machine on the way to the store: one that the other ranks can reach.
fn own_address(store: &(String, u16)) -> Result<String> {
    let find = || {
        let target = (store.0.as_str(), store.1).to_socket_addrs()?.next();
        let target = target.ok_or_else(|| std::io::Error::other("it has no address"))?;
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(target)?;
        socket.local_addr().map(|address| address.ip().to_string())
    };
    find().map_err(|e| join(format!("no way to MASTER_ADDR = {}: {e}", store.0)))
}

/// The sum of a tensor's bit patterns: equal for equal tensors whatever the order of summing.
fn checksum(tensor: &Tensor) -> i64 {
    let bits = match tensor.kind() {
        Kind::Double | Kind::Int64 => Kind::Int64,
        _ => Kind::Int,
    };
    tensor.detach().view_dtype(bits).sum(Kind::Int64).int64_value(&[])
}

fn join(reason: String) -> Error {
    Error::Join { reason }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

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
                Ok(Instant::now())
            };
            // A short one first: it takes no longer than itself.
            let begun = Instant::now();
            let short = || {
                thread::sleep(Duration::from_millis(5));
                Ok(())
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

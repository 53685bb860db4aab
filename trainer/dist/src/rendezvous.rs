//! How ranks find each other, and make sure that they run the same.

use std::io;
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::stop::Stop;
use tch::Tensor;
use torch_ext::c10d::{Group, Store};

use crate::error::{Error, Failure, Result, join};
use crate::place::Place;
use crate::watch::{self, Limits, Pulse, Verdict, Watch};

/// Pauses between looks at a key of a rank that may not have come yet, from the first to the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_secs(1)];

/// The ways between the ranks, by where tensors are.
#[derive(Debug)]
pub(crate) struct Groups {
    /// Gloo, for those in host memory.
    pub(crate) host: Group,
    /// NCCL, where this rank computes on a CUDA device.
    pub(crate) device: Option<Group>,
}

impl Groups {
    pub(crate) fn of(&self, tensor: &Tensor) -> &Group {
        match &self.device {
            Some(group) if tensor.device().is_cuda() => group,
            _ => &self.host,
        }
    }
}

/// This rank's connection to the others.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) store: Store,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) watch: Mutex<Watch>,
    pub(crate) groups: Option<Groups>,
    /// Times that rank 0 worked for all.
    pub(crate) led: AtomicU64,
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

impl Link {
    /// Comes to the store and starts beating.
    pub(crate) fn open(place: &Place, limits: Limits, stop: &Stop) -> Result<Self> {
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

    pub(crate) fn watching(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares the facts with rank 0's, and waits until every rank has.
    pub(crate) fn agree(
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
    pub(crate) fn count(&self, key: &str, size: usize) -> std::result::Result<bool, String> {
        Ok(self.store.add(key, 1)? == size as i64)
    }

    pub(crate) fn missing(&self, size: usize, limits: Limits) -> String {
        let absent = |rank: &usize| !matches!(self.store.add(&format!("here/{rank}"), 0), Ok(1..));
        let ranks: Vec<_> = (0..size).filter(absent).map(|rank| rank.to_string()).collect();
        let (ranks, seconds) = (ranks.join(", "), limits.join.as_secs());
        format!("of {size} ranks these did not come within {seconds} s (dist.join): {ranks}")
    }

    pub(crate) fn post(&self, text: &str, code: u8, by: usize) {
        let _ = Verdict { text: text.to_owned(), code, by: Some(by) }.post(&self.store);
        self.pulse.linger();
    }

    /// Says that this rank leaves in good order. Where it serves the store, it waits until all have said so.
    pub(crate) fn finish(&self, place: &Place) {
        self.watching().finish();
        if self.count("finished", place.size) == Ok(true) {
            let _ = self.store.set("all finished", b"all");
        }
        if place.serve {
            let _ = self.store.wait("all finished", self.pulse.limits().silence);
        }
    }
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
pub(crate) fn own_address(store: &(String, u16)) -> Result<String> {
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

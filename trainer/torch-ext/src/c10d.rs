//! Handles of the C++ half of torch.distributed.

use std::ffi::{CString, c_char, c_int, c_void};
use std::net::{IpAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tch::Tensor;

use crate::nccl;
use crate::shim::outcome;

unsafe extern "C" {
    fn ext_store_open(
        host: *const c_char,
        port: u16,
        serve: c_int,
        listener: c_int,
        timeout: i64,
        out: *mut *mut c_void,
        bound: *mut u16,
    ) -> *mut c_char;
    fn ext_store_close(store: *mut c_void);
    fn ext_store_set(
        store: *mut c_void,
        key: *const c_char,
        data: *const u8,
        length: usize,
    ) -> *mut c_char;
    fn ext_store_set_first(
        store: *mut c_void,
        key: *const c_char,
        data: *const u8,
        length: usize,
    ) -> *mut c_char;
    fn ext_store_get(
        store: *mut c_void,
        key: *const c_char,
        data: *mut *mut u8,
        length: *mut usize,
    ) -> *mut c_char;
    fn ext_store_get_all(
        store: *mut c_void,
        keys: *const *const c_char,
        count: usize,
        lengths: *mut usize,
        data: *mut *mut u8,
    ) -> *mut c_char;
    fn ext_store_wait(
        store: *mut c_void,
        key: *const c_char,
        timeout: i64,
        there: *mut c_int,
    ) -> *mut c_char;
    fn ext_store_add(
        store: *mut c_void,
        key: *const c_char,
        amount: i64,
        sum: *mut i64,
    ) -> *mut c_char;
    fn ext_gloo_open(
        store: *mut c_void,
        prefix: *const c_char,
        rank: c_int,
        size: c_int,
        address: *const c_char,
        timeout: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn ext_group_close(group: *mut c_void);
    fn ext_group_all_reduce(
        group: *mut c_void,
        tensor: *const c_void,
        op: c_int,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn ext_pending_wait(pending: *mut c_void) -> *mut c_char;
    fn ext_pending_close(pending: *mut c_void);
    fn ext_group_broadcast(group: *mut c_void, tensor: *const c_void, root: c_int) -> *mut c_char;
}

/// A value, or what c10d said.
pub type Outcome<T> = Result<T, String>;

/// Whether a host's name or address stands for this machine alone, on every machine.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn c_text(text: &str) -> Outcome<CString> {
    CString::new(text).map_err(|_| format!("{text:?} has a zero in it"))
}

/// Keys and values that all ranks see: torch's TCPStore, served here or elsewhere.
#[derive(Debug)]
pub struct Store {
    handle: *mut c_void,
    prefix: String,
    port: u16,
    calls: AtomicU64,
}

// SAFETY: the handle belongs to the object alone, and TCPStore may be used from any thread.
unsafe impl Send for Store {}
// SAFETY: TCPStore holds a lock of its own around every operation.
unsafe impl Sync for Store {}

impl Store {
    /// Serves a store (port 0: any free one), or connects to the one there, within `timeout`. `prefix` goes before
    /// every key. One served at a loopback address listens there alone, one at any other address on every interface
    /// of the machine: c10d knows no names of users and no passwords.
    ///
    /// # Errors
    /// c10d's, as in every call here: the port is taken, the host is unknown, nobody answers, the connection is lost.
    pub fn open(
        (host, port): (&str, u16),
        serve: bool,
        prefix: &str,
        timeout: Duration,
    ) -> Outcome<Self> {
        let (mut handle, mut bound) = (null_mut(), 0);
        let listener = (serve && is_loopback(host)).then(|| TcpListener::bind((host, port)));
        let listener = listener.transpose().map_err(|e| e.to_string())?;
        let port = match &listener {
            Some(listener) => listener.local_addr().map_err(|e| e.to_string())?.port(),
            None => port,
        };
        let listener = listener.map_or(-1, IntoRawFd::into_raw_fd);
        let (host, timeout) = (c_text(host)?, milliseconds(timeout));
        // SAFETY: `host` is a text that outlives the call; the shim takes the socket over and writes a handle
        // that we own.
        outcome(unsafe {
            let (out, bound) = (&raw mut handle, &raw mut bound);
            ext_store_open(host.as_ptr(), port, c_int::from(serve), listener, timeout, out, bound)
        })?;
        Ok(Self { handle, prefix: prefix.to_owned(), port: bound, calls: AtomicU64::new(0) })
    }

    /// Calls so far: each is a message to the store, or two.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The handle, for a call that counts.
    fn called(&self) -> *mut c_void {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.handle
    }

    /// The port it is served at.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    fn key(&self, key: &str) -> Outcome<CString> {
        c_text(&format!("{}{key}", self.prefix))
    }

    /// Sets the value of a key: any but the single byte 255, which means that there is none.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub fn set(&self, key: &str, value: &[u8]) -> Outcome<()> {
        let key = self.key(key)?;
        // SAFETY: the handle is open, key and value outlive the call.
        outcome(unsafe { ext_store_set(self.called(), key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// Sets the value of a key that has none yet, and leaves any other alone.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub fn set_first(&self, key: &str, value: &[u8]) -> Outcome<()> {
        let key = self.key(key)?;
        // SAFETY: the handle is open, key and value outlive the call.
        outcome(unsafe {
            ext_store_set_first(self.called(), key.as_ptr(), value.as_ptr(), value.len())
        })
    }

    /// The value of a key, if it has one yet. Does not wait.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub fn get(&self, key: &str) -> Outcome<Option<Vec<u8>>> {
        let (key, mut data, mut length) = (self.key(key)?, null_mut(), 0);
        // SAFETY: the handle is open; the shim writes a pointer to bytes that we free.
        outcome(unsafe {
            ext_store_get(self.called(), key.as_ptr(), &raw mut data, &raw mut length)
        })?;
        if data.is_null() {
            return Ok(None);
        }
        // SAFETY: the shim wrote `length` bytes there.
        let value = unsafe { std::slice::from_raw_parts(data, length) }.to_vec();
        // SAFETY: they come from malloc and are ours.
        unsafe { libc::free(data.cast()) };
        Ok(Some(value))
    }

    /// The values of keys that all have one, in one call. Waits for those that have none.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub fn get_all(&self, keys: &[String]) -> Outcome<Vec<Vec<u8>>> {
        let keys = keys.iter().map(|key| self.key(key)).collect::<Outcome<Vec<_>>>()?;
        let names: Vec<_> = keys.iter().map(|key| key.as_ptr()).collect();
        let (mut lengths, mut data) = (vec![0; keys.len()], null_mut());
        // SAFETY: the handle is open, the keys outlive the call; the shim writes a length for each and a pointer
        // to bytes that we free.
        outcome(unsafe {
            let lengths = lengths.as_mut_ptr();
            ext_store_get_all(self.called(), names.as_ptr(), names.len(), lengths, &raw mut data)
        })?;
        // SAFETY: the shim wrote so many bytes there.
        let mut all = unsafe { std::slice::from_raw_parts(data, lengths.iter().sum()) };
        let values =
            lengths.iter().filter_map(|length| all.split_off(..*length)).map(<[u8]>::to_vec);
        let values = values.collect();
        // SAFETY: they come from malloc and are ours.
        unsafe { libc::free(data.cast()) };
        Ok(values)
    }

    /// Waits, at most `timeout`, until a key has a value. Returns whether it has. Other calls through this
    /// connection wait meanwhile.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub fn wait(&self, key: &str, timeout: Duration) -> Outcome<bool> {
        let (key, mut there) = (self.key(key)?, 0);
        let timeout = milliseconds(timeout).max(1);
        // SAFETY: the handle is open, the key outlives the call.
        outcome(unsafe { ext_store_wait(self.called(), key.as_ptr(), timeout, &raw mut there) })?;
        Ok(there != 0)
    }

    /// Adds to a counter that starts at 0. Returns the sum.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub fn add(&self, key: &str, amount: i64) -> Outcome<i64> {
        let (key, mut sum) = (self.key(key)?, 0);
        // SAFETY: the handle is open, the key outlives the call.
        outcome(unsafe { ext_store_add(self.called(), key.as_ptr(), amount, &raw mut sum) })?;
        Ok(sum)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: open, and closed once.
        unsafe { ext_store_close(self.handle) }
    }
}

/// How values of all ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// Their sum.
    Sum = 0,
    /// The largest, element by element.
    Max = 1,
}

/// A process group.
#[derive(Debug)]
pub struct Group(*mut c_void);

// SAFETY: the handle belongs to the object alone, and process groups may be used from any thread.
unsafe impl Send for Group {}
// SAFETY: collectives queue up inside the group; that all ranks call them in one order is the caller's
// affair, and a mistake there is an error or a wrong number, not a data race.
unsafe impl Sync for Group {}

impl Group {
    /// Connects `size` ranks over Gloo, for tensors on the CPU: all call this, with stores of one prefix. `address` is
    /// this machine's, as the others reach it; a collective fails after `timeout`.
    ///
    /// # Errors
    /// As all collectives: a rank does not come or goes away.
    pub fn gloo(
        store: &Store,
        (rank, size): (usize, usize),
        address: &str,
        timeout: Duration,
    ) -> Outcome<Self> {
        let (prefix, address) = (c_text(&format!("{}gloo/", store.prefix))?, c_text(address)?);
        let (rank, size, timeout) = (rank as c_int, size as c_int, milliseconds(timeout));
        let mut group = null_mut();
        // SAFETY: the store is open, the texts outlive the call; the shim writes a handle that we own
        // and that keeps the store alive.
        outcome(unsafe {
            let (prefix, address) = (prefix.as_ptr(), address.as_ptr());
            ext_gloo_open(store.handle, prefix, rank, size, address, timeout, &raw mut group)
        })?;
        Ok(Self(group))
    }

    /// Meets the other ranks over NCCL, for tensors of one CUDA device. Arguments as of [`Group::gloo`].
    ///
    /// # Errors
    /// As there; and where there is no GPU.
    pub fn nccl(
        store: &Store,
        (rank, size): (usize, usize),
        device: usize,
        timeout: Duration,
    ) -> Outcome<Self> {
        let open = nccl::open()?;
        let prefix = c_text(&format!("{}nccl/", store.prefix))?;
        let (rank, size, device) = (rank as c_int, size as c_int, device as c_int);
        let (timeout, mut group) = (milliseconds(timeout), null_mut());
        // SAFETY: as above.
        outcome(unsafe {
            open(store.handle, prefix.as_ptr(), rank, size, device, timeout, &raw mut group)
        })?;
        Ok(Self(group))
    }

    /// Begins to make a contiguous tensor the sum or maximum over all ranks, in place: nobody is to read or
    /// write it until that was waited for.
    ///
    /// # Errors
    /// See [`Group::gloo`].
    pub fn all_reduce(&self, tensor: &Tensor, how: Reduce) -> Outcome<Work> {
        let mut work = null_mut();
        // SAFETY: the group is open; c10d holds the tensor until the work is done. The shim writes a handle
        // that we own.
        outcome(unsafe {
            ext_group_all_reduce(self.0, tensor.as_ptr().cast(), how as c_int, &raw mut work)
        })?;
        Ok(Work(work))
    }

    /// Makes a contiguous tensor what it is on rank `root`, and waits for it.
    ///
    /// # Errors
    /// See [`Group::gloo`].
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Outcome<()> {
        // SAFETY: as above.
        outcome(unsafe { ext_group_broadcast(self.0, tensor.as_ptr().cast(), root as c_int) })
    }
}

/// A collective under way.
#[derive(Debug)]
pub struct Work(*mut c_void);

// SAFETY: the handle belongs to the object alone, and c10d's work may be waited for from any thread.
unsafe impl Send for Work {}

impl Work {
    /// Waits for its end. On a CUDA device it is the device's stream that waits.
    ///
    /// # Errors
    /// See [`Group::gloo`].
    pub fn wait(self) -> Outcome<()> {
        // SAFETY: open, as it is closed only when dropped.
        outcome(unsafe { ext_pending_wait(self.0) })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: open, and closed once.
        unsafe { ext_pending_close(self.0) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: open, and closed once.
        unsafe { ext_group_close(self.0) }
    }
}

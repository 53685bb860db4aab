//! Streams and events of a CUDA device. On a CPU there are none, and nothing here waits.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;
use std::time::Instant;

use tch::{Device, Tensor};

use crate::error::Error;
use crate::shim::{Callback, outcome, through};

type Result<T> = std::result::Result<T, Error>;

/// A CUDA stream beside the one that computes, for copies that run while it does.
#[derive(Debug)]
pub struct Stream(*mut c_void);

/// A point in a stream that was reached when the work before it is done.
#[derive(Debug)]
pub struct Event(*mut c_void);

unsafe extern "C" {
    fn ext_stream_new(index: c_int, stream: *mut *mut c_void) -> *mut c_char;
    fn ext_stream_drop(stream: *mut c_void);
    fn ext_stream_run(
        stream: *mut c_void,
        body: Callback,
        context: *mut c_void,
        event: *mut *mut c_void,
    ) -> *mut c_char;
    fn ext_event_wait(
        event: *const c_void,
        tensors: *const *const c_void,
        count: usize,
    ) -> *mut c_char;
    fn ext_event_finish(event: *mut c_void) -> *mut c_char;
    fn ext_event_now(index: c_int, event: *mut *mut c_void) -> *mut c_char;
    fn ext_event_timed(index: c_int, event: *mut *mut c_void) -> *mut c_char;
    fn ext_event_between(
        first: *const c_void,
        second: *const c_void,
        seconds: *mut f64,
    ) -> *mut c_char;
}

fn torch(reason: String) -> Error {
    Error::said(&reason)
}

impl Stream {
    /// A stream of `device`; `None` on the CPU, where copies are not worth a thread of their own.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(device: Device) -> Result<Option<Self>> {
        let Device::Cuda(index) = device else { return Ok(None) };
        let mut stream = null_mut();
        // SAFETY: the shim writes a handle of its own, which `drop` gives back.
        outcome(unsafe { ext_stream_new(index as c_int, &raw mut stream) }).map_err(torch)?;
        Ok(Some(Self(stream)))
    }

    /// Starts `body`'s work in this stream, and marks its end.
    ///
    /// # Errors
    /// [`Error`].
    ///
    /// # Panics
    /// As `body`.
    pub fn run<T>(&self, body: impl FnOnce() -> T) -> Result<(T, Event)> {
        let mut event = null_mut();
        let value = through(body, |function, context| {
            // SAFETY: the stream is alive, and so is the context while the function runs.
            unsafe { ext_stream_run(self.0, function, context, &raw mut event) }
        });
        Ok((value.map_err(torch)?, Event(event)))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the handle of `ext_stream_new`, given back once.
        unsafe { ext_stream_drop(self.0) }
    }
}

impl Event {
    /// The work that was given to a device's current stream so far; `None` on the CPU.
    ///
    /// # Errors
    /// [`Error`].
    fn now(device: Device) -> Result<Option<Self>> {
        let Device::Cuda(index) = device else { return Ok(None) };
        let mut event = null_mut();
        // SAFETY: the shim writes a handle of its own, which `drop` gives back.
        outcome(unsafe { ext_event_now(index as c_int, &raw mut event) }).map_err(torch)?;
        Ok(Some(Self(event)))
    }

    /// Lets the stream that computes wait for this point before it reads `tensors`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn wait(&self, tensors: &[&Tensor]) -> Result<()> {
        let handles: Vec<_> = tensors.iter().map(|t| t.as_ptr().cast()).collect();
        // SAFETY: the event is alive; the handles are of live tensors.
        let error = unsafe { ext_event_wait(self.0, handles.as_ptr(), handles.len()) };
        outcome(error).map_err(torch)
    }
}

/// A tensor on its way from the device: reading it waits for the work that makes it, and for nothing that
/// was begun later.
#[derive(Debug)]
pub struct Deferred {
    value: Tensor,
    mark: Option<Event>,
}

impl Deferred {
    /// Begins to copy `value` to host memory.
    ///
    /// # Errors
    /// [`Error`].
    pub fn of(value: &Tensor) -> Result<Self> {
        let copy = value.to_device_(Device::Cpu, value.kind(), true, false);
        Ok(Self { value: copy, mark: Event::now(value.device())? })
    }

    /// The tensor, on the CPU.
    pub fn read(self) -> Tensor {
        drop(self.mark); // waits
        self.value
    }
}

impl Drop for Event {
    /// Waits for this point: what the work before it reads may be changed afterwards.
    fn drop(&mut self) {
        // SAFETY: the handle of `ext_stream_run` or `ext_event_now`, given back once.
        let error = unsafe { ext_event_finish(self.0) };
        if let Err(reason) = outcome(error) {
            tracing::error!("a copy to or from the device failed: {reason}");
        }
    }
}

/// Waits until a device has done what was given to its current stream so far.
///
/// # Errors
/// [`Error`].
pub fn synchronize(device: Device) -> Result<()> {
    Event::now(device).map(drop) // waits
}

/// When a device came to a point of its work. Taking one waits for nothing.
#[derive(Debug)]
pub enum Moment {
    /// The CPU is where the program is.
    Now(Instant),
    /// By the device's own clock.
    Reached(Event),
}

impl Moment {
    /// When `device` has done all that it was given so far.
    ///
    /// # Errors
    /// [`Error`].
    pub fn of(device: Device) -> Result<Self> {
        let Device::Cuda(index) = device else { return Ok(Self::Now(Instant::now())) };
        let mut event = null_mut();
        // SAFETY: the shim writes a handle of its own, which `Event` gives back.
        outcome(unsafe { ext_event_timed(index as c_int, &raw mut event) }).map_err(torch)?;
        Ok(Self::Reached(Event(event)))
    }

    /// Seconds since an earlier moment of the same device. Waits until both have come.
    ///
    /// # Errors
    /// [`Error`].
    pub fn since(&self, earlier: &Self) -> Result<f64> {
        match (earlier, self) {
            (Self::Now(from), Self::Now(to)) => Ok((*to - *from).as_secs_f64()),
            (Self::Reached(from), Self::Reached(to)) => {
                let mut seconds = 0.0;
                // SAFETY: both events are alive and keep the time; the shim writes one number.
                let error = unsafe { ext_event_between(from.0, to.0, &raw mut seconds) };
                outcome(error).map_err(torch)?;
                Ok(seconds)
            }
            _ => Err(torch("moments of two devices".to_owned())),
        }
    }
}

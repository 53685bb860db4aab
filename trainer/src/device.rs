//! Between the input pipeline and libtorch: which device, and u8 batches as normalised tensors.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::time::Instant;

use pipeline::{Batch, Heap, HostBlock, HostMemory};
use tch::{Device, Kind, Tensor};

use crate::cuda::devices;
use crate::dist::Place;
use crate::error::{Error, Result};
use crate::shim::{Callback, outcome, pinned, through};

/// One batch on the device, the same views at two sides: pixels as the pipeline gives them, u8 (N, R, R, 3), or
/// images (N, 3, R, R) in [-1, 1]. The step makes images of pixels a micro-batch at a time ([`normalised`]): a whole
/// batch of them takes four times the memory.
#[derive(Debug)]
pub struct Images {
    /// What E sees, of side R_E.
    pub large: Tensor,
    /// What D sees, of side R_G.
    pub small: Tensor,
}

impl Images {
    /// Copies a batch to `device` as u8 and makes images of it there.
    #[must_use]
    pub fn upload(batch: &Batch, large: i64, small: i64, device: Device) -> Self {
        Self::of_pixels(batch.large(), batch.small(), (large, small), device)
    }

    /// Copies a batch to `device` and leaves it pixels. From page-locked memory the copy may still be under way
    /// when this returns: the batch must live until it is done.
    #[must_use]
    pub fn pixels_later(batch: &Batch, large: i64, small: i64, device: Device) -> Self {
        Self {
            large: pixels(batch.large(), large, (device, true)),
            small: pixels(batch.small(), small, (device, true)),
        }
    }

    /// Pixels made images; images stay as they are.
    #[must_use]
    pub fn normalised(&self) -> Self {
        Self { large: normalised(&self.large), small: normalised(&self.small) }
    }

    /// As [`Images::upload`], of pixels (N, S, S, 3) at both sides.
    #[must_use]
    pub fn of_pixels(
        large: &[u8],
        small: &[u8],
        (large_side, small_side): (i64, i64),
        device: Device,
    ) -> Self {
        Self {
            large: normalised(&pixels(large, large_side, (device, false))),
            small: normalised(&pixels(small, small_side, (device, false))),
        }
    }

    /// Rows `first..first + rows` (views).
    #[must_use]
    pub fn rows(&self, first: i64, rows: i64) -> Self {
        Self { large: self.large.narrow(0, first, rows), small: self.small.narrow(0, first, rows) }
    }

    /// N.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> i64 {
        self.small.size()[0]
    }
}

/// A CUDA stream beside the one that computes, for copies that run while it does.
#[derive(Debug)]
pub struct Lane(*mut c_void);

/// A point in a stream that was reached when the work before it is done.
#[derive(Debug)]
pub struct Reached(*mut c_void);

unsafe extern "C" {
    fn bb_lane_new(index: c_int, lane: *mut *mut c_void) -> *mut c_char;
    fn bb_lane_drop(lane: *mut c_void);
    fn bb_lane_run(
        lane: *mut c_void,
        body: Callback,
        context: *mut c_void,
        event: *mut *mut c_void,
    ) -> *mut c_char;
    fn bb_event_wait(
        event: *const c_void,
        tensors: *const *const c_void,
        count: usize,
    ) -> *mut c_char;
    fn bb_event_finish(event: *mut c_void) -> *mut c_char;
    fn bb_event_now(index: c_int, event: *mut *mut c_void) -> *mut c_char;
    fn bb_event_timed(index: c_int, event: *mut *mut c_void) -> *mut c_char;
    fn bb_event_between(
        first: *const c_void,
        second: *const c_void,
        seconds: *mut f64,
    ) -> *mut c_char;
    fn bb_device_peak(index: c_int, bytes: *mut i64) -> *mut c_char;
    fn bb_device_name(index: c_int, name: *mut c_char, room: c_int) -> *mut c_char;
}

fn torch(reason: String) -> Error {
    Error::torch(&reason)
}

impl Lane {
    /// A stream of `device`; `None` on the CPU, where copies are not worth a thread of their own.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn new(device: Device) -> Result<Option<Self>> {
        let Device::Cuda(index) = device else { return Ok(None) };
        let mut lane = null_mut();
        // SAFETY: the shim writes a handle of its own, which `drop` gives back.
        outcome(unsafe { bb_lane_new(index as c_int, &raw mut lane) }).map_err(torch)?;
        Ok(Some(Self(lane)))
    }

    /// Starts `body`'s work in this stream, and marks its end.
    ///
    /// # Errors
    /// [`Error::Torch`].
    ///
    /// # Panics
    /// As `body`.
    pub fn run<T>(&self, body: impl FnOnce() -> T) -> Result<(T, Reached)> {
        let mut event = null_mut();
        let value = through(body, |function, context| {
            // SAFETY: the lane is alive, and so is the context while the function runs.
            unsafe { bb_lane_run(self.0, function, context, &raw mut event) }
        });
        Ok((value.map_err(torch)?, Reached(event)))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // SAFETY: the handle of `bb_lane_new`, given back once.
        unsafe { bb_lane_drop(self.0) }
    }
}

impl Reached {
    /// The work that was given to a device's current stream so far; `None` on the CPU.
    ///
    /// # Errors
    /// [`Error::Torch`].
    fn now(device: Device) -> Result<Option<Self>> {
        let Device::Cuda(index) = device else { return Ok(None) };
        let mut event = null_mut();
        // SAFETY: the shim writes a handle of its own, which `drop` gives back.
        outcome(unsafe { bb_event_now(index as c_int, &raw mut event) }).map_err(torch)?;
        Ok(Some(Self(event)))
    }

    /// Lets the stream that computes wait for this point before it reads `tensors`.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn before(&self, tensors: &[&Tensor]) -> Result<()> {
        let handles: Vec<_> = tensors.iter().map(|t| t.as_ptr().cast()).collect();
        // SAFETY: the event is alive; the handles are of live tensors.
        let error = unsafe { bb_event_wait(self.0, handles.as_ptr(), handles.len()) };
        outcome(error).map_err(torch)
    }
}

/// A tensor on its way from the device: reading it waits for the work that makes it, and for nothing that
/// was begun later.
#[derive(Debug)]
pub struct Coming {
    value: Tensor,
    mark: Option<Reached>,
}

impl Coming {
    /// Begins to copy `value` to host memory.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn of(value: &Tensor) -> Result<Self> {
        let copy = value.to_device_(Device::Cpu, value.kind(), true, false);
        Ok(Self { value: copy, mark: Reached::now(value.device())? })
    }

    /// The tensor, on the CPU.
    pub fn read(self) -> Tensor {
        drop(self.mark); // waits
        self.value
    }
}

impl Drop for Reached {
    /// Waits for this point: what the work before it reads may be changed afterwards.
    fn drop(&mut self) {
        // SAFETY: the handle of `bb_lane_run` or `bb_event_now`, given back once.
        let error = unsafe { bb_event_finish(self.0) };
        if let Err(reason) = outcome(error) {
            tracing::error!("a copy to or from the device failed: {reason}");
        }
    }
}

/// Waits until a device has done what was given to its current stream so far.
///
/// # Errors
/// [`Error::Torch`].
pub(crate) fn reached(device: Device) -> Result<()> {
    Reached::now(device).map(drop) // waits
}

/// When a device came to a point of its work. Taking one waits for nothing.
#[derive(Debug)]
pub enum Moment {
    /// The CPU is where the program is.
    Now(Instant),
    /// By the device's own clock.
    Reached(Reached),
}

impl Moment {
    /// When `device` has done all that it was given so far.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn of(device: Device) -> Result<Self> {
        let Device::Cuda(index) = device else { return Ok(Self::Now(Instant::now())) };
        let mut event = null_mut();
        // SAFETY: the shim writes a handle of its own, which `Reached` gives back.
        outcome(unsafe { bb_event_timed(index as c_int, &raw mut event) }).map_err(torch)?;
        Ok(Self::Reached(Reached(event)))
    }

    /// Seconds since an earlier moment of the same device. Waits until both have come.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn since(&self, earlier: &Self) -> Result<f64> {
        match (earlier, self) {
            (Self::Now(from), Self::Now(to)) => Ok((*to - *from).as_secs_f64()),
            (Self::Reached(from), Self::Reached(to)) => {
                let mut seconds = 0.0;
                // SAFETY: both events are alive and keep the time; the shim writes one number.
                let error = unsafe { bb_event_between(from.0, to.0, &raw mut seconds) };
                outcome(error).map_err(torch)?;
                Ok(seconds)
            }
            _ => Err(torch("moments of two devices".to_owned())),
        }
    }
}

/// The most memory that tensors took on a CUDA device since the process began, in bytes; `None` on
/// the CPU.
///
/// # Errors
/// [`Error::Torch`].
pub fn peak_memory(device: Device) -> Result<Option<u64>> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let mut bytes = 0;
    // SAFETY: the shim writes one number.
    outcome(unsafe { bb_device_peak(index as c_int, &raw mut bytes) }).map_err(torch)?;
    Ok(Some(bytes as u64))
}

/// The name of a CUDA device, as its driver gives it; `None` for the CPU.
///
/// # Errors
/// [`Error::Torch`].
pub fn name(device: Device) -> Result<Option<String>> {
    const ROOM: usize = 256;
    let Device::Cuda(index) = device else { return Ok(None) };
    let mut name = [0u8; ROOM];
    // SAFETY: the shim writes a zero-terminated text into the room that is there.
    let error = unsafe { bb_device_name(index as c_int, name.as_mut_ptr().cast(), ROOM as c_int) };
    outcome(error).map_err(torch)?;
    let text = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    Ok(Some(text.to_string_lossy().into_owned()))
}

/// Pixels (N, S, S, 3) on the device, in memory of their own. `later`: without waiting for the copy, where it is
/// from page-locked memory.
fn pixels(pixels: &[u8], side: i64, (device, later): (Device, bool)) -> Tensor {
    let row = side * side * 3;
    let shape = [pixels.len() as i64 / row, side, side, 3];
    // SAFETY: `pixels` outlives `view`, whose (N, S, S, 3) bytes lie within it; the copy is one on a CPU too.
    let view = unsafe { Tensor::from_blob(pixels.as_ptr(), &shape, &[], Kind::Uint8, Device::Cpu) };
    view.to_device_(device, Kind::Uint8, later, true)
}

/// Pixels, u8 (N, S, S, 3), as images (N, 3, S, S): x / 127.5 − 1 in single precision, channels_last in memory as
/// convolutions want it. What is no pixels is given back as it is.
pub fn normalised(pixels: &Tensor) -> Tensor {
    if pixels.kind() != Kind::Uint8 {
        return pixels.shallow_clone();
    }
    let mut images = pixels.to_kind(Kind::Float).permute([0, 3, 1, 2]);
    let _ = images.g_div_scalar_(127.5).g_sub_scalar_(1.0);
    images
}

/// Images in [-1, 1] as u8, rounded to nearest, same shape, on the CPU.
pub fn to_u8(images: &Tensor) -> Tensor {
    let scaled = (images.to_kind(Kind::Float) + 1.0) * 127.5;
    scaled.round().clamp(0.0, 255.0).to_kind(Kind::Uint8).to_device(Device::Cpu)
}

/// Where batches of a run on `device` are made: page-locked memory for a CUDA device, which copies
/// from it without a detour, else the heap.
#[must_use]
pub fn memory(device: Device) -> Arc<dyn HostMemory> {
    match device {
        Device::Cuda(_) => Arc::new(PageLocked),
        _ => Arc::new(Heap),
    }
}

#[derive(Debug)]
struct PageLocked;

impl HostMemory for PageLocked {
    fn allocate(&self, bytes: usize) -> std::result::Result<Box<dyn HostBlock>, pipeline::Error> {
        let refuse = |reason: String| pipeline::Error::Memory { bytes, reason };
        let plain = Tensor::f_zeros([bytes as i64], (Kind::Uint8, Device::Cpu));
        let locked = pinned(&plain.map_err(|e| refuse(e.to_string()))?).map_err(refuse)?;
        let pointer = NonNull::new(locked.data_ptr().cast())
            .ok_or(pipeline::Error::Memory { bytes, reason: "libtorch gave no address".into() })?;
        Ok(Box::new(Locked { _owner: locked, pointer, bytes }))
    }
}

#[derive(Debug)]
struct Locked {
    _owner: Tensor,
    pointer: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the tensor is only held to keep its memory and dropped by whoever drops the block; the
// pointer is to memory that no other thread frees.
unsafe impl Send for Locked {}
// SAFETY: through a shared reference only the address and the length can be read.
unsafe impl Sync for Locked {}

// SAFETY: the tensor owns `bytes` initialised bytes at `pointer` until it is dropped with the block,
// and nobody else has a handle to it.
unsafe impl HostBlock for Locked {
    fn pointer(&self) -> NonNull<u8> {
        self.pointer
    }

    fn len(&self) -> usize {
        self.bytes
    }
}

/// The device that "cpu", "cuda", "cuda:N" or "auto" means here. "auto" is the first CUDA device
/// where there is one, else the CPU.
///
/// # Errors
/// [`Error::Device`] for another word, or CUDA where there is none (with the reason).
pub fn parse(name: &str) -> Result<Device> {
    let fail = |reason: String| Err(Error::Device { device: name.to_owned(), reason });
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" => return Ok(if cuda().is_ok() { Device::Cuda(0) } else { Device::Cpu }),
        "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()),
    };
    let Some(index) = index else {
        return fail("give cpu, cuda, cuda:N or auto".into());
    };
    match cuda() {
        Err(reason) => fail(format!("{reason}; use --device cpu")),
        Ok(count) if index >= count => fail(format!("there are {count} CUDA devices, from 0")),
        Ok(_) => Ok(Device::Cuda(index)),
    }
}

/// The device of one rank of a run: where [`parse`] gives the first of several CUDA devices because
/// `name` names none, each rank of a machine takes the one of its own number.
///
/// # Errors
/// As [`parse`]; [`Error::Device`] too if ranks of a machine would share a device, which NCCL does not bear.
pub fn of_rank(name: &str, place: &Place) -> Result<Device> {
    match parse(name)? {
        Device::Cuda(named) => {
            let own = own_device(name.contains(':').then_some(named), cuda().unwrap_or(0), place);
            let fail = |reason| Error::Device { device: name.to_owned(), reason };
            own.map(Device::Cuda).map_err(fail)
        }
        device => Ok(device),
    }
}

/// The number of a rank's device among the `count` that it sees.
fn own_device(
    named: Option<usize>,
    count: usize,
    place: &Place,
) -> std::result::Result<usize, String> {
    let ranks = place.local_size;
    match named {
        Some(named) if ranks == 1 || !place.same_devices => Ok(named),
        Some(_) => {
            Err(format!("it is one device for {ranks} ranks; give cuda, and each takes its own"))
        }
        None if place.local_rank < count => Ok(place.local_rank),
        // Perhaps each rank is shown one device, of its own.
        None if count == 1 && !place.same_devices => Ok(0),
        None => {
            let seen = if count == 1 { "device" } else { "devices" };
            Err(format!("{ranks} ranks on a machine of {count} CUDA {seen}; start one a device"))
        }
    }
}

/// Number of CUDA devices, or why there are none. Loads libtorch's CUDA half, which the linker
/// leaves out because nothing names it: a run on the CPU starts without its weight.
///
/// # Errors
/// The reason, in words.
pub fn cuda() -> std::result::Result<usize, String> {
    devices()
}

#[cfg(test)]
mod tests {
    use super::own_device;
    use crate::dist::Place;

    #[test]
    fn no_two_ranks_of_a_machine_share_a_device() {
        let mut place = Place::alone();
        (place.local_rank, place.local_size) = (1, 2);
        assert_eq!(own_device(None, 2, &place), Ok(1));
        assert!(own_device(None, 1, &place).unwrap_err().contains("2 ranks on a machine of 1"));
        assert!(own_device(Some(0), 2, &place).unwrap_err().contains("give cuda"));
        place.same_devices = false; // shown one each
        assert_eq!(own_device(None, 1, &place), Ok(0));
        assert_eq!(own_device(Some(0), 1, &place), Ok(0));
        assert_eq!(own_device(Some(3), 4, &Place::alone()), Ok(3));
        assert_eq!(own_device(None, 4, &Place::alone()), Ok(0));
    }
}

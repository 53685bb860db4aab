//! Between the input pipeline and libtorch: which device, and u8 batches as normalised tensors.

use std::ptr::NonNull;
use std::sync::Arc;

use bigbigan_model::images::{Images, normalised};
use dist::Place;
use pipeline::{Batch, Heap, HostBlock, HostMemory};
use tch::{Device, Kind, Tensor};
use torch_ext::cuda::device_count;
use torch_ext::memory::pin_memory;

use crate::error::{Error, Result};

/// A batch copied to `device` as u8 and made images there, of these sides.
#[must_use]
pub fn upload(batch: &Batch, large: i64, small: i64, device: Device) -> Images {
    of_pixels(batch.large(), batch.small(), (large, small), device)
}

/// A batch copied to `device` that stays pixels. From page-locked memory the copy may still be under way
/// when this returns: the batch must live until it is done.
#[must_use]
pub fn pixels_later(batch: &Batch, large: i64, small: i64, device: Device) -> Images {
    Images {
        large: pixels(batch.large(), large, (device, true)),
        small: pixels(batch.small(), small, (device, true)),
    }
}

/// As [`upload`], of pixels (N, S, S, 3) at both sides.
#[must_use]
pub fn of_pixels(
    large: &[u8],
    small: &[u8],
    (large_side, small_side): (i64, i64),
    device: Device,
) -> Images {
    Images {
        large: normalised(&pixels(large, large_side, (device, false))),
        small: normalised(&pixels(small, small_side, (device, false))),
    }
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
        let locked = pin_memory(&plain.map_err(|e| refuse(e.to_string()))?).map_err(refuse)?;
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
    device_count()
}

#[cfg(test)]
mod tests {
    use dist::Place;

    use super::{cuda, of_rank, own_device};

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

    #[test]
    fn a_rank_on_the_cpu_hides_no_device_from_what_comes_after_it() {
        of_rank("cpu", &Place::alone()).unwrap();
        if let Err(reason) = cuda() {
            assert!(reason.contains("CUDA"), "{reason}");
        }
    }
}

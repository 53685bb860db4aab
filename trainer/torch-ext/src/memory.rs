//! Copies between host memory and a device that nobody waits for.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

use tch::{Device, Tensor};

use crate::shim::{must, outcome};

unsafe extern "C" {
    fn ext_pinned(tensor: *const c_void, copy: *mut *mut c_void) -> *mut c_char;
    fn ext_copy_later(to: *const c_void, from: *const c_void) -> *mut c_char;
}

/// A copy of a tensor of host memory, in page-locked memory.
///
/// # Errors
/// Where there is no device, in words.
pub fn pin_memory(tensor: &Tensor) -> Result<Tensor, String> {
    let mut copy = null_mut();
    // SAFETY: the tensor is alive; the shim writes one that is ours.
    outcome(unsafe { ext_pinned(tensor.as_ptr().cast(), &raw mut copy) })?;
    // SAFETY: as above; it is taken over once.
    Ok(unsafe { Tensor::from_ptr(copy.cast()) })
}

/// A tensor of host memory on `device`, without waiting for what that is at. (libtorch keeps the page-locked copy
/// until the device has read it.)
pub fn to_device_non_blocking(tensor: &Tensor, device: Device) -> Tensor {
    if !device.is_cuda() {
        return tensor.to_device(device);
    }
    must(pin_memory(tensor)).to_device_(device, tensor.kind(), true, false)
}

/// Copies `from` to `to`, of the same shape and type, without waiting for the copy where one of them is in page-locked
/// memory and the other on a device.
pub fn copy_non_blocking(to: &Tensor, from: &Tensor) {
    // SAFETY: both are alive; the copy writes to the first alone.
    must(outcome(unsafe { ext_copy_later(to.as_ptr().cast(), from.as_ptr().cast()) }));
}

//! libtorch's CUDA half, which a run on the CPU does not load, and the shim's parts that name it: a shared object
//! of its own, which is part of the program's file and is loaded from there. Both when first asked for.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, memfd_create};

use tch::Device;

use crate::error::Error;
use crate::shim::outcome;

unsafe extern "C" {
    fn ext_device_peak(index: c_int, bytes: *mut i64) -> *mut c_char;
    fn ext_device_name(index: c_int, name: *mut c_char, room: c_int) -> *mut c_char;
}

/// What the build script made; empty where it found no headers.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cuda.so"));

/// Number of CUDA devices, at least one. Nothing else asks libtorch for them: asked before its CUDA half is
/// loaded, it says 0 for as long as the process lives. A backward pass asks too, on the CPU as well: who wants both
/// devices in one process calls this first.
///
/// # Errors
/// Why there are none, in words.
pub fn device_count() -> Result<usize, String> {
    load_half()?;
    #[expect(clippy::disallowed_methods, reason = "its CUDA half is loaded")]
    let count = tch::Cuda::device_count();
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("libtorch has CUDA, but shows no device: the driver has none, or this process took gradients on \
            the CPU before it asked for CUDA"
            .into()),
    }
}

fn load_half() -> Result<(), String> {
    load_library(c"libtorch_cuda.so")
        .map(|_| ())
        .map_err(|reason| format!("libtorch's CUDA half does not load ({reason})"))
}

/// The address of a function of the object, which is never unloaded.
///
/// # Errors
/// Why libtorch's CUDA half or the object does not load, in words.
pub(crate) fn entry(name: &CStr) -> Result<NonNull<c_void>, String> {
    static HANDLE: OnceLock<Result<usize, String>> = OnceLock::new();
    let handle = HANDLE.get_or_init(|| load().map(|handle| handle.as_ptr() as usize)).clone()?;
    // SAFETY: an open library and the name of a function in it.
    let address = unsafe { libc::dlsym(handle as *mut c_void, name.as_ptr()) };
    NonNull::new(address)
        .ok_or_else(|| format!("the parts over CUDA have no {}", name.to_string_lossy()))
}

fn load() -> Result<NonNull<c_void>, String> {
    if OBJECT.is_empty() {
        let mend = "run `make setup`, which installs them beside libtorch, and build again";
        return Err(format!("this program was built without the headers of CUDA and NCCL; {mend}"));
    }
    load_half()?;
    let memory = || -> std::io::Result<File> {
        let mut file = File::from(memfd_create("cuda", MemfdFlags::CLOEXEC)?);
        file.write_all(OBJECT)?;
        Ok(file)
    };
    let file = memory().map_err(|e| format!("no memory file for the parts over CUDA: {e}"))?;
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("no zero in it");
    load_library(&path).map_err(|reason| format!("the parts over CUDA do not load ({reason})"))
}

/// Loads a shared object for good; all that is loaded later sees its symbols.
///
/// # Errors
/// Why not, in words.
pub fn load_library(name: &CStr) -> std::result::Result<NonNull<c_void>, String> {
    // SAFETY: initialisers of libtorch's and the shim's objects only register things.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    NonNull::new(handle).ok_or_else(|| {
        // SAFETY: dlerror returns null or a string that lives until the next dl call of this thread.
        let reason = unsafe {
            let text = libc::dlerror();
            if text.is_null() { None } else { Some(CStr::from_ptr(text)) }
        };
        reason.map_or("unknown".into(), |text| text.to_string_lossy().into_owned())
    })
}

/// The most memory that tensors took on a CUDA device since the process began, in bytes; `None` on
/// the CPU.
///
/// # Errors
/// [`Error`].
pub fn max_memory_allocated(device: Device) -> Result<Option<u64>, Error> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let mut bytes = 0;
    // SAFETY: the shim writes one number.
    outcome(unsafe { ext_device_peak(index as c_int, &raw mut bytes) })
        .map_err(|reason| Error::said(&reason))?;
    Ok(Some(bytes as u64))
}

/// The name of a CUDA device, as its driver gives it; `None` for the CPU.
///
/// # Errors
/// [`Error`].
pub fn device_name(device: Device) -> Result<Option<String>, Error> {
    const ROOM: usize = 256;
    let Device::Cuda(index) = device else { return Ok(None) };
    let mut name = [0u8; ROOM];
    // SAFETY: the shim writes a zero-terminated text into the room that is there.
    let error = unsafe { ext_device_name(index as c_int, name.as_mut_ptr().cast(), ROOM as c_int) };
    outcome(error).map_err(|reason| Error::said(&reason))?;
    let text = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    Ok(Some(text.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    /// Says something where there is a device alone.
    #[test]
    fn gradients_on_the_cpu_leave_the_device_s_as_they_are() {
        let gradient = |device| {
            let x = Tensor::ones([3], (Kind::Float, device)).set_requires_grad(true);
            let loss = x.square().sum(Kind::Float);
            Tensor::run_backward(&[loss], &[&x], false, false)[0].sum(Kind::Float).double_value(&[])
        };
        let found = super::device_count();
        assert_eq!(gradient(Device::Cpu), 6.0);
        if found.is_ok() {
            assert_eq!(gradient(Device::Cuda(0)), 6.0);
        }
    }
}

//! libtorch's CUDA half, which a run on the CPU does not load, and the shim's parts that name it: a shared object
//! of its own, which is part of the program's file and is loaded from there. Both when first asked for.

use std::ffi::{CStr, CString, c_void};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::shim::load_library;

/// What the build script made; empty where it found no headers.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cuda.so"));

/// Number of CUDA devices, at least one. Nothing else asks libtorch for them: asked before its CUDA half is
/// loaded, it says 0 for as long as the process lives. A backward pass asks too, on the CPU as well: who wants both
/// devices in one process calls this first.
///
/// # Errors
/// Why there are none, in words.
pub(crate) fn devices() -> Result<usize, String> {
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

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use crate::device::of_rank;
    use crate::dist::Place;

    #[test]
    fn a_rank_on_the_cpu_hides_no_device_from_what_comes_after_it() {
        of_rank("cpu", &Place::alone()).unwrap();
        if let Err(reason) = super::devices() {
            assert!(reason.contains("CUDA"), "{reason}");
        }
    }

    /// Says something where there is a device alone.
    #[test]
    fn gradients_on_the_cpu_leave_the_device_s_as_they_are() {
        let gradient = |device| {
            let x = Tensor::ones([3], (Kind::Float, device)).set_requires_grad(true);
            let loss = x.square().sum(Kind::Float);
            Tensor::run_backward(&[loss], &[&x], false, false)[0].sum(Kind::Float).double_value(&[])
        };
        let found = super::devices();
        assert_eq!(gradient(Device::Cpu), 6.0);
        if found.is_ok() {
            assert_eq!(gradient(Device::Cuda(0)), 6.0);
        }
    }
}

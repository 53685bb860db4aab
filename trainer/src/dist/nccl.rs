//! The shim's part over NCCL, loaded when ranks meet on CUDA devices.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::shim;

/// The shared object that the build script made of `shim/nccl.cpp`; empty where it found no headers.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nccl.so"));

/// `bb_nccl_open`: store, prefix, rank, size, device, timeout in ms, where the group's handle goes.
pub(super) type Open = unsafe extern "C" fn(
    *mut c_void,
    *const c_char,
    c_int,
    c_int,
    c_int,
    i64,
    *mut *mut c_void,
) -> *mut c_char;

/// Its entry. Loads libtorch's CUDA half, then the object.
pub(super) fn open() -> Result<Open, String> {
    static ENTRY: OnceLock<Result<Open, String>> = OnceLock::new();
    ENTRY.get_or_init(load).clone()
}

fn load() -> Result<Open, String> {
    if OBJECT.is_empty() {
        let mend = "run `make setup`, which installs them beside libtorch, and build again";
        return Err(format!("this program was built without the headers of CUDA and NCCL; {mend}"));
    }
    shim::load_cuda()?;
    let memory = || -> std::io::Result<File> {
        let mut file = File::from(memfd_create("nccl", MemfdFlags::CLOEXEC)?);
        file.write_all(OBJECT)?;
        Ok(file)
    };
    let file = memory().map_err(|e| format!("no memory file for NCCL's part: {e}"))?;
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("no zero in it");
    let object = shim::load_library(&path)
        .map_err(|reason| format!("the part over NCCL does not load ({reason})"))?;
    // SAFETY: an open library and the name of a function in it.
    let entry = unsafe { libc::dlsym(object.as_ptr(), c"bb_nccl_open".as_ptr()) };
    if entry.is_null() {
        return Err("the part over NCCL has no entry".to_owned());
    }
    // SAFETY: the object declares the function so, and is never unloaded.
    Ok(unsafe { std::mem::transmute::<*mut c_void, Open>(entry) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tch::{Cuda, Device, Kind, Tensor};

    use super::super::c10d::{Group, Reduce, Store};

    /// On a machine without a GPU too the object is there, everything that it names is found, and NCCL's
    /// answer comes back as an error.
    #[test]
    fn a_group_over_nccl_opens_where_there_is_a_gpu_and_says_where_there_is_none() {
        super::open().unwrap();
        let limit = Duration::from_secs(20);
        let store = Store::open(("127.0.0.1", 0), true, "", limit).unwrap();
        let group = Group::nccl(&store, (0, 1), 0, limit);
        if Cuda::device_count() == 0 {
            let reason = group.unwrap_err();
            assert!(reason.contains("GPU"), "{reason}");
            return;
        }
        let x = Tensor::ones([3], (Kind::Float, Device::Cuda(0)));
        group.unwrap().all_reduce(&x, Reduce::Sum).unwrap();
        assert_eq!(x.sum(Kind::Double).double_value(&[]), 3.0);
    }
}

//! The entry of the shim's part over NCCL.

use std::ffi::{c_char, c_int, c_void};

use crate::cuda::entry;

/// `ext_nccl_open`: store, prefix, rank, size, device, timeout in ms, where the group's handle goes.
pub(crate) type Open = unsafe extern "C" fn(
    *mut c_void,
    *const c_char,
    c_int,
    c_int,
    c_int,
    i64,
    *mut *mut c_void,
) -> *mut c_char;

/// The function. Loads libtorch's CUDA half, then the shim's parts over it.
pub(crate) fn open() -> Result<Open, String> {
    let address = entry(c"ext_nccl_open")?;
    // SAFETY: the object declares the function so, and is never unloaded.
    Ok(unsafe { std::mem::transmute::<*mut c_void, Open>(address.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tch::{Device, Kind, Tensor};

    use crate::c10d::{Group, Reduce, Store};

    /// On a machine without a GPU too the object is there, everything that it names is found, and NCCL's
    /// answer comes back as an error.
    #[test]
    fn a_group_over_nccl_opens_where_there_is_a_gpu_and_says_where_there_is_none() {
        super::open().unwrap();
        let limit = Duration::from_secs(20);
        let store = Store::open(("127.0.0.1", 0), true, "", limit).unwrap();
        let group = Group::nccl(&store, (0, 1), 0, limit);
        if crate::cuda::device_count().is_err() {
            let reason = group.unwrap_err();
            assert!(reason.contains("GPU"), "{reason}");
            return;
        }
        let x = Tensor::ones([3], (Kind::Float, Device::Cuda(0)));
        let group = group.unwrap();
        group.all_reduce(&x, Reduce::Sum).unwrap().wait().unwrap();
        assert_eq!(x.sum(Kind::Double).double_value(&[]), 3.0);
    }
}

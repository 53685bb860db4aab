//! How long libtorch's threads spin for each other, settled before any library of the process starts.
//!
//! A thread of GNU's OpenMP (libgomp) that waits for the others spins for a while before it sleeps. Where
//! something else wants the cores, spinning takes them from the thread that is waited for (docs/cpu.md).

use std::ffi::{CStr, c_char, c_int};
use std::ptr::null;

/// How often a waiting thread looks before it sleeps; libgomp's own number is 300,000. Ours, measured.
const SPINS: &CStr = c"GOMP_SPINCOUNT=1000";
/// Where one of these begins a variable, the user has said what is wanted, or there is one thread.
const DECIDED: [&[u8]; 3] = [b"GOMP_SPINCOUNT=", b"OMP_WAIT_POLICY=", b"OMP_NUM_THREADS=1\0"];
/// Variables that there is room for; with more of them all stays as it is.
const MOST: usize = 4096;

/// libgomp reads its variables when it is loaded, and the C library has none of ours before its own start:
/// so the program starts itself once more with them, from the section of functions that come before the
/// initialisers of all libraries. In every program and test that links this crate.
#[used]
#[unsafe(link_section = ".preinit_array")]
static BEFORE_LIBRARIES: Function = limit_spinning;

type Function = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

extern "C" fn limit_spinning(
    _: c_int,
    arguments: *const *const c_char,
    variables: *const *const c_char,
) {
    let mut all = [null(); MOST + 2];
    let mut count = 0;
    loop {
        // SAFETY: the system ends the list of variables with a null, and each with a zero.
        let variable = unsafe { *variables.add(count) };
        if variable.is_null() {
            break;
        }
        // SAFETY: as above.
        let text = unsafe { CStr::from_ptr(variable) }.to_bytes_with_nul();
        if count == MOST || DECIDED.iter().any(|begin| text.starts_with(begin)) {
            return;
        }
        all[count] = variable;
        count += 1;
    }
    all[count] = SPINS.as_ptr();
    let mut program = [0; libc::PATH_MAX as usize];
    // SAFETY: neither call needs the C library to have started. The path is shorter than its place and so
    // ends with a zero, as both lists end with a null. Where the second call returns, it could not be done,
    // and the program goes on with libgomp's own number.
    unsafe {
        let own = c"/proc/self/exe".as_ptr();
        if libc::readlink(own, program.as_mut_ptr(), program.len() - 1) > 0 {
            libc::execve(program.as_ptr(), arguments, all.as_ptr());
        }
    }
}

//! TorchScript files of what Rust computes, which plain PyTorch opens.

use std::ffi::{CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::null;

use tch::Tensor;

use crate::shim::outcome;

/// A tensor of a module.
#[derive(Debug)]
pub struct Named {
    /// Dotted: submodules, then the tensor's own name.
    pub name: String,
    /// Its values.
    pub tensor: Tensor,
    /// A parameter, or a buffer.
    pub trainable: bool,
}

/// A module to be.
#[derive(Debug)]
pub struct Module<'a> {
    /// Its class.
    pub name: &'a str,
    /// What it calls its one argument.
    pub argument: &'a str,
    /// Keys of the dictionary that it returns; none where it returns one tensor.
    pub outputs: &'a [&'a str],
    /// Its tensors.
    pub tensors: &'a [Named],
    /// Name and text of an extra file within the module's.
    pub note: (&'a str, &'a str),
}

/// From the input to the outputs, in order.
pub type Forward<'a> = dyn Fn(&Tensor) -> Vec<Tensor> + 'a;

impl Module<'_> {
    /// Runs `forward` once on `example` and saves what it did at `path`, on the CPU. `forward` must read the very
    /// tensors of `self`.
    ///
    /// # Errors
    /// In words: `forward` did what cannot be written down, or the file cannot be written.
    pub fn save(&self, path: &Path, example: &Tensor, forward: &Forward<'_>) -> Result<(), String> {
        let text = |s: &str| CString::new(s).map_err(|_| format!("{s:?} has a zero in it"));
        let texts = |all: &[&str]| all.iter().map(|s| text(s)).collect::<Result<Vec<_>, _>>();
        let names: Vec<_> = self.tensors.iter().map(|t| t.name.as_str()).collect();
        let (names, keys) = (texts(&names)?, texts(self.outputs)?);
        let raw: Vec<RawNamed> = (names.iter().zip(self.tensors))
            .map(|(name, t)| RawNamed {
                name: name.as_ptr(),
                tensor: t.tensor.as_ptr().cast(),
                trainable: c_int::from(t.trainable),
            })
            .collect();
        let key_pointers: Vec<*const c_char> = keys.iter().map(|key| key.as_ptr()).collect();
        let (name, argument) = (text(self.name)?, text(self.argument)?);
        let [note_name, note] = [text(self.note.0)?, text(self.note.1)?];
        let file = CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
        let context = Context { forward, outputs: self.outputs.len().max(1) };
        // SAFETY: every pointer is to something that lives in this frame or in `self`; the shim calls
        // `run` with `context` within this call alone.
        outcome(unsafe {
            ext_script(
                name.as_ptr(),
                raw.as_ptr(),
                raw.len(),
                argument.as_ptr(),
                example.as_ptr().cast(),
                run,
                (&raw const context).cast(),
                if keys.is_empty() { null() } else { key_pointers.as_ptr() },
                context.outputs,
                note_name.as_ptr(),
                note.as_ptr(),
                file.as_ptr(),
            )
        })
    }
}

struct Context<'a> {
    forward: &'a Forward<'a>,
    outputs: usize,
}

/// The layout of `ext_named`.
#[repr(C)]
struct RawNamed {
    name: *const c_char,
    tensor: *const c_void,
    trainable: c_int,
}

unsafe extern "C" {
    fn ext_script(
        name: *const c_char,
        tensors: *const RawNamed,
        count: usize,
        argument: *const c_char,
        example: *const c_void,
        forward: extern "C" fn(*const c_void, *mut c_void, *mut *mut c_void) -> c_int,
        context: *const c_void,
        outputs: *const *const c_char,
        count_outputs: usize,
        note_name: *const c_char,
        note: *const c_char,
        path: *const c_char,
    ) -> *mut c_char;
}

extern "C" fn run(context: *const c_void, input: *mut c_void, out: *mut *mut c_void) -> c_int {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `context` is the one of `Module::save`, which waits for this call.
        let context = unsafe { &*context.cast::<Context<'_>>() };
        // SAFETY: `input` is a live tensor; the clone shares it.
        let input = unsafe { Tensor::clone_from_ptr(input.cast()) };
        let outputs = (context.forward)(&input);
        assert_eq!(outputs.len(), context.outputs, "one tensor for each key");
        for (i, mut output) in outputs.into_iter().enumerate() {
            // SAFETY: `out` has room for that many pointers. The C++ side owns the tensor from here.
            unsafe { *out.add(i) = output.as_mut_ptr().cast() };
            std::mem::forget(output);
        }
    }));
    c_int::from(outcome.is_err())
}

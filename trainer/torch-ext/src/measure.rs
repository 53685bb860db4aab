//! How much memory tensors take, and how much work operators do.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;

use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use tch::Tensor;

use crate::shim::outcome;

unsafe extern "C" {
    fn ext_memory_start(meter: *mut *mut c_void) -> *mut c_char;
    fn ext_memory_stop(meter: *mut c_void, peak: *mut i64) -> *mut c_char;
    fn ext_meta(shape: *const i64, dims: usize, out: *mut *mut c_void) -> *mut c_char;
    fn ext_observe_start(observer: *mut *mut c_void) -> *mut c_char;
    fn ext_observe_stop(
        observer: *mut c_void,
        work: *mut Work,
        take: Option<Take>,
        context: *mut c_void,
    ) -> *mut c_char;
}

/// Counts the bytes of CPU tensors that the current thread allocates and frees.
#[derive(Debug)]
pub struct Meter {
    handle: *mut c_void,
    /// It belongs to the thread that started it.
    _thread: PhantomData<*const ()>,
}

impl Meter {
    /// Counts from now on.
    ///
    /// # Panics
    /// If libtorch refuses.
    #[must_use]
    pub fn start() -> Self {
        let mut handle = null_mut();
        // SAFETY: the shim writes a handle of its own, which `stop` gives back.
        let error = unsafe { ext_memory_start(&raw mut handle) };
        outcome(error).expect("counting memory needs no more than memory");
        Self { handle, _thread: PhantomData }
    }

    /// The most bytes that were live at once, over what was live at the start.
    ///
    /// # Panics
    /// If libtorch refuses.
    #[must_use]
    pub fn stop(self) -> f64 {
        let mut peak = 0;
        // SAFETY: the handle is the one of `start`, given back once: `self` is consumed.
        let error = unsafe { ext_memory_stop(self.handle, &raw mut peak) };
        outcome(error).expect("counting memory needs no more than memory");
        peak as f64
    }
}

/// Bytes of memory that this process holds; NaN where the system does not say.
#[must_use]
pub fn resident_bytes() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<f64>().ok());
    pages.map_or(f64::NAN, |pages| pages * rustix::param::page_size() as f64)
}

/// Bytes of memory that programs could still take; `None` where the system does not say.
#[must_use]
pub fn free_bytes() -> Option<f64> {
    memory_field("MemAvailable:")
}

/// Bytes of memory that the machine has; `None` where the system does not say.
#[must_use]
pub fn total_bytes() -> Option<f64> {
    memory_field("MemTotal:")
}

fn memory_field(name: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| 1024.0 * kib)
}

/// A single-precision tensor that has a shape and no memory.
///
/// # Panics
/// If libtorch refuses, as for a negative side.
pub fn shape_only(shape: &[i64]) -> Tensor {
    let mut out = null_mut();
    // SAFETY: `shape` holds as many numbers as said; the shim writes a tensor that we own.
    let error = unsafe { ext_meta(shape.as_ptr(), shape.len(), &raw mut out) };
    outcome(error).expect("a shape of sides above zero");
    // SAFETY: see above.
    unsafe { Tensor::from_ptr(out.cast()) }
}

/// What operators amount to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
pub struct Work {
    /// Floating-point operations of convolutions and matrix products; a multiply-add counts as two.
    pub flop: f64,
    /// Bytes of all operators' results.
    pub written: f64,
    /// Operators called, views not counted.
    pub operators: i64,
}

impl Work {
    /// What `body` calls on this thread, and what backward passes that it starts call on whatever thread.
    ///
    /// # Panics
    /// If called within itself.
    pub fn of<T>(body: impl FnOnce() -> T) -> (T, Self) {
        let (value, audit) = Audit::of(body);
        (value, audit.work)
    }
}

/// An operator that calls no other, copies aside, and all its calls in one direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    /// Its name, such as `aten::native_batch_norm`.
    pub name: String,
    /// Whether the calls were made by backward passes; a block that is computed again is part of one.
    pub backward: bool,
    /// Number of calls.
    pub calls: i64,
    /// Bytes of the tensors that they read.
    pub read: f64,
    /// Bytes of those that they wrote.
    pub written: f64,
}

/// Which kernels a piece of work comes down to, and what they read and write. On a GPU most of them are
/// bound by these bytes. Caches are not looked at: what is read twice counts twice.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Audit {
    /// The same by operators as they are called.
    pub work: Work,
    /// Kernels, by name and direction.
    pub kernels: Vec<Kernel>,
    /// Inputs and gradients of convolutions that have at least 8 channels and are not channels_last in
    /// memory, in words, with how often.
    pub layouts: Vec<(String, i64)>,
    /// Operators to which CUDA's autocast would give other kinds than the CPU's (or a result of another
    /// kind): the name, the kinds of the inputs on a CPU, and on CUDA.
    pub casts: Vec<[String; 3]>,
}

impl Audit {
    /// As [`Work::of`].
    ///
    /// # Panics
    /// If called within itself.
    pub fn of<T>(body: impl FnOnce() -> T) -> (T, Self) {
        struct Observer(*mut c_void);
        impl Observer {
            fn stop(&mut self, audit: Option<&mut Audit>) -> Result<Work, String> {
                let (mut work, handle) =
                    (Work::default(), std::mem::replace(&mut self.0, null_mut()));
                let context: *mut c_void =
                    audit.map_or(null_mut(), |audit| (&raw mut *audit).cast());
                let take = (!context.is_null()).then_some(take as Take);
                // SAFETY: the handle of `ext_observe_start`, given back once; `take` is called with the
                // audit, which outlives the call.
                outcome(unsafe { ext_observe_stop(handle, &raw mut work, take, context) })?;
                Ok(work)
            }
        }
        impl Drop for Observer {
            fn drop(&mut self) {
                if !self.0.is_null() {
                    let _ = self.stop(None); // `body` panicked
                }
            }
        }
        let mut observer = Observer(null_mut());
        // SAFETY: the shim writes a handle of its own, which `stop` gives back.
        outcome(unsafe { ext_observe_start(&raw mut observer.0) }).expect("counts do not nest");
        let value = body();
        let mut audit = Self::default();
        audit.work = observer.stop(Some(&mut audit)).expect("the count is under way");
        (value, audit)
    }

    /// Kernels and the bytes that they read and write, forward or backward.
    #[must_use]
    pub fn total(&self, backward: bool) -> (i64, f64) {
        let all = self.kernels.iter().filter(|kernel| kernel.backward == backward);
        all.fold((0, 0.0), |(calls, moved), k| (calls + k.calls, moved + k.read + k.written))
    }

    /// Bytes that all kernels read and write.
    #[must_use]
    pub fn moved(&self) -> f64 {
        self.total(false).1 + self.total(true).1
    }

    /// The kernels that move most, as a table for people.
    #[must_use]
    pub fn table(&self, most: usize) -> String {
        let mut table = Table::new();
        let head = ["kernel", "pass", "calls", "read MB", "written MB", "share"];
        table.load_style(UTF8_HORIZONTAL_ONLY).set_header(head);
        let mut kernels: Vec<_> = self.kernels.iter().collect();
        kernels.sort_by(|a, b| (b.read + b.written).total_cmp(&(a.read + a.written)));
        for k in kernels.into_iter().take(most) {
            let pass = if k.backward { "backward" } else { "forward" };
            let share = 100.0 * (k.read + k.written) / self.moved();
            let [read, written] = [k.read, k.written].map(|bytes| format!("{:.1}", bytes / 1e6));
            let name = k.name.trim_start_matches("aten::").to_owned();
            let share = format!("{share:.1} %");
            table.add_row([name, pass.to_owned(), k.calls.to_string(), read, written, share]);
        }
        let line = |backward| {
            let (calls, moved) = self.total(backward);
            format!("{calls} kernels, {:.3} GB", moved / 1e9)
        };
        format!("{table}\nforward {}; backward {}", line(false), line(true))
    }
}

/// A line of an audit; the layout is that of `ext_line`.
#[repr(C)]
struct Line {
    kind: c_int,
    words: *const c_char,
    backward: c_int,
    calls: i64,
    read: f64,
    written: f64,
}

type Take = extern "C" fn(*mut c_void, *const Line);

extern "C" fn take(context: *mut c_void, line: *const Line) {
    // SAFETY: the shim calls this with the audit that it was given, which nobody else uses meanwhile, and
    // with a line that lives until this returns.
    let (audit, line) = unsafe { (&mut *context.cast::<Audit>(), &*line) };
    // SAFETY: the words are a zero-terminated text.
    let words = unsafe { CStr::from_ptr(line.words) }.to_string_lossy().into_owned();
    match line.kind {
        0 => audit.kernels.push(Kernel {
            name: words,
            backward: line.backward != 0,
            calls: line.calls,
            read: line.read,
            written: line.written,
        }),
        1 => audit.layouts.push((words, line.calls)),
        _ => {
            let mut parts = words.split(' ').map(str::to_owned);
            audit.casts.push([(); 3].map(|()| parts.next().unwrap_or_default()));
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::kind::FLOAT_CPU;

    use super::*;

    #[test]
    fn a_convolution_and_a_product_count_as_computed_by_hand() {
        let (x, w) =
            (Tensor::zeros([2, 3, 9, 9], FLOAT_CPU), Tensor::zeros([4, 3, 3, 3], FLOAT_CPU));
        let m = Tensor::zeros([200, 5], FLOAT_CPU);
        let (y, work) = Work::of(|| {
            let y = x.conv2d(&w, None::<Tensor>, [2, 2], [1, 1], [1, 1], 1);
            y.view([1, 200]).matmul(&m)
        });
        assert_eq!(y.size(), [1, 5]);
        let expected = 2.0 * (2.0 * 25.0 * 108.0 + 200.0 * 5.0);
        assert_eq!((work.flop, work.operators), (expected, 2));
        assert_eq!(work.written, 4.0 * (200.0 + 5.0));
    }

    fn of<'a>(audit: &'a Audit, name: &str, backward: bool) -> Option<&'a Kernel> {
        audit.kernels.iter().find(|k| k.name == format!("aten::{name}") && k.backward == backward)
    }

    #[test]
    fn kernels_count_as_computed_by_hand_and_what_only_calls_them_does_not() {
        let x = Tensor::zeros([4, 8, 6, 6], FLOAT_CPU).set_requires_grad(true);
        let gain = Tensor::ones([8], FLOAT_CPU);
        let (_, audit) = Audit::of(|| {
            let y = x.batch_norm(
                Some(&gain),
                Some(&gain),
                None::<&Tensor>,
                None::<&Tensor>,
                true,
                0.0,
                1e-3,
                true,
            );
            let z = y.transpose(2, 3).contiguous();
            let loss = (&z + &z.narrow(0, 0, 1)).sum(tch::Kind::Float);
            Tensor::run_backward(&[loss], &[&x], false, false)
        });
        let image = f64::from(4 * 8 * 36 * 4);
        let norm = of(&audit, "native_batch_norm", false).unwrap();
        assert_eq!((norm.calls, norm.read), (1, image + 2.0 * 32.0));
        assert!(norm.written >= image && norm.written <= image + 4.0 * 32.0, "{norm:?}");
        let copy = of(&audit, "copy_", false).unwrap();
        assert_eq!((copy.calls, copy.read, copy.written), (1, image, image));
        let add = of(&audit, "add", false).unwrap();
        assert_eq!((add.read, add.written), (1.25 * image, image));
        for composed in ["batch_norm", "contiguous", "clone", "transpose", "sum"] {
            assert_eq!(of(&audit, composed, false).is_some(), composed == "sum", "{composed}");
        }
        let backward = |way| of(&audit, "native_batch_norm_backward", way).is_some();
        assert!(backward(true) && !backward(false), "{audit:?}");
    }

    /// Autograd runs backward passes within backward passes on threads of its own from the 60th on: as it
    /// does with all of a CUDA device.
    #[test]
    fn what_backward_passes_call_on_other_threads_counts_too() {
        fn nest(depth: i64, x: Tensor) -> Tensor {
            crate::autograd::with_backward(x.detach(), &[x], move |gradient| {
                let inner = gradient.ones_like().set_requires_grad(true);
                let y = tch::with_grad(|| match depth {
                    0 => inner.cos(),
                    _ => nest(depth - 1, inner.sin()),
                });
                crate::autograd::grad(&y, &y.ones_like(), &[inner])
            })
        }
        let x = Tensor::ones([3], FLOAT_CPU).set_requires_grad(true);
        let ((), audit) = Audit::of(|| {
            let loss = nest(99, x.sin()).sum(tch::Kind::Float);
            let _ = Tensor::run_backward(&[loss], &[&x], false, false);
        });
        let calls = |name, backward| of(&audit, name, backward).map_or(0, |k| k.calls);
        assert_eq!((calls("sin", false), calls("sin", true), calls("cos", true)), (1, 99 + 1, 101));
    }
}

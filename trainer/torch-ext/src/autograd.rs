//! Functions of one's own in autograd, and hooks on leaves.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use common::panic_text;
use tch::Tensor;

use crate::context::{autocast, is_autocast};
use crate::shim::{message, must, outcome};

thread_local! {
    static AGAIN: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside the backward function of a block ([`with_backward`]).
pub fn in_backward() -> bool {
    AGAIN.get()
}

/// Computes the gradients of a block's inputs from the gradient of its output.
type Backward = Box<dyn Fn(&Tensor) -> Vec<Tensor> + Send>;

unsafe extern "C" {
    fn ext_attach(
        output: *mut c_void,
        inputs: *const *mut c_void,
        count: usize,
        context: *mut c_void,
        backward: extern "C" fn(*mut c_void, *mut c_void, *mut *mut c_void) -> *mut c_char,
        drop: extern "C" fn(*mut c_void),
    ) -> *mut c_char;
    fn ext_grad(
        output: *const c_void,
        gradient: *const c_void,
        inputs: *const *mut c_void,
        count: usize,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn ext_watch(
        leaf: *const c_void,
        context: *mut c_void,
        arrived: extern "C" fn(*mut c_void, *const c_void) -> c_int,
        drop: extern "C" fn(*mut c_void),
    ) -> *mut c_char;
}

/// The gradients of `inputs`, which want them, given that of `output`; undefined where `output` does not
/// depend on one.
///
/// # Panics
/// If libtorch refuses.
pub fn grad(output: &Tensor, gradient: &Tensor, inputs: &[Tensor]) -> Vec<Tensor> {
    let pointers: Vec<*mut c_void> = inputs.iter().map(|t| t.as_ptr().cast_mut().cast()).collect();
    let mut out = vec![null_mut(); inputs.len()];
    // SAFETY: all pointers are to live tensors, and `out` has room for one an input, which are ours.
    let error = unsafe {
        let (output, gradient) = (output.as_ptr().cast(), gradient.as_ptr().cast());
        ext_grad(output, gradient, pointers.as_ptr(), pointers.len(), out.as_mut_ptr())
    };
    must(outcome(error));
    let owned = |t: *mut c_void| match t.is_null() {
        true => Tensor::new(),
        // SAFETY: as above; each is taken over once.
        false => unsafe { Tensor::from_ptr(t.cast()) },
    };
    out.into_iter().map(owned).collect()
}

struct Context {
    backward: Backward,
    /// Whether the forward pass ran in bfloat16: what is computed again must be so too.
    bf16: bool,
    count: usize,
}

/// Makes `output`, computed under `no_grad`, a function of `inputs`: autograd will call `backward` with
/// the gradient of `output` and take one gradient for each input, in order. This is how a block keeps
/// nothing of its inside for the backward pass.
///
/// `backward` runs while the caller waits inside the backward pass, under `no_grad`, at most once; it is
/// dropped with the graph. `inputs` must require gradients.
///
/// # Panics
/// If libtorch refuses.
pub fn with_backward(
    output: Tensor,
    inputs: &[Tensor],
    backward: impl Fn(&Tensor) -> Vec<Tensor> + Send + 'static,
) -> Tensor {
    let mut output = output.detach();
    let mut handles: Vec<Tensor> = inputs.iter().map(Tensor::shallow_clone).collect();
    let pointers: Vec<*mut c_void> = handles.iter_mut().map(|t| t.as_mut_ptr().cast()).collect();
    let context = Box::new(Context {
        backward: Box::new(backward),
        bf16: is_autocast(),
        count: inputs.len(),
    });
    // SAFETY: all pointers are to live tensors; the shim takes `context` over and gives it back to
    // `drop_context` exactly once. It may do so, and call `run_backward`, on a thread of autograd's, which
    // the closure's type allows.
    let error = unsafe {
        ext_attach(
            output.as_mut_ptr().cast(),
            pointers.as_ptr(),
            pointers.len(),
            Box::into_raw(context).cast(),
            run_backward,
            drop_context,
        )
    };
    must(outcome(error));
    output
}

extern "C" fn run_backward(
    context: *mut c_void,
    gradient: *mut c_void,
    out: *mut *mut c_void,
) -> *mut c_char {
    let outer = AGAIN.replace(true);
    // Autograd passes what it says on to whoever started the pass.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `context` is the box made in `with_backward`, still owned by the node that calls.
        let context = unsafe { &*context.cast::<Context>() };
        // SAFETY: `gradient` is a live tensor; the clone shares it.
        let gradient = unsafe { Tensor::clone_from_ptr(gradient.cast()) };
        let gradients = autocast(context.bf16, || (context.backward)(&gradient));
        assert_eq!(gradients.len(), context.count, "one gradient for each input");
        for (i, mut gradient) in gradients.into_iter().enumerate() {
            if gradient.defined() {
                // SAFETY: `out` has room for `count` pointers. The C++ side owns the tensor from here.
                unsafe { *out.add(i) = gradient.as_mut_ptr().cast() };
                std::mem::forget(gradient);
            }
        }
    }));
    AGAIN.set(outer);
    let Err(panic) = outcome else { return null_mut() };
    // What it says matters: that memory ran out, for one.
    let said = CString::new(message(panic_text(&*panic)).replace('\0', " ")).unwrap_or_default();
    // SAFETY: a zero-terminated text, copied to memory that the C++ side frees.
    unsafe { libc::strdup(said.as_ptr()) }
}

extern "C" fn drop_context(context: *mut c_void) {
    // SAFETY: called exactly once, with the box made in `with_backward`.
    drop(unsafe { Box::from_raw(context.cast::<Context>()) });
}

/// What is called with the gradient of a weight.
type Hook = Box<dyn Fn(&Tensor) + Send + Sync>;

/// Has every backward pass that comes by `leaf` call `hook` with its gradient, on whatever thread it
/// runs, as long as the tensor lives.
///
/// # Panics
/// If libtorch refuses.
pub fn register_hook(leaf: &Tensor, hook: impl Fn(&Tensor) + Send + Sync + 'static) {
    let context: Box<Hook> = Box::new(Box::new(hook));
    let wanted = leaf.requires_grad();
    let leaf = leaf.set_requires_grad(true);
    // SAFETY: the tensor is live; the shim takes `context` over and gives it back to `drop_hook`
    // exactly once. It may call `call_hook` from another thread, which the function's type allows.
    let error = unsafe {
        ext_watch(leaf.as_ptr().cast(), Box::into_raw(context).cast(), call_hook, drop_hook)
    };
    let _ = leaf.set_requires_grad(wanted);
    must(outcome(error));
}

extern "C" fn call_hook(context: *mut c_void, gradient: *const c_void) -> c_int {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the box made in `register_hook`, which the tensor still owns.
        let hook = unsafe { &*context.cast::<Hook>() };
        // SAFETY: `gradient` is a live tensor; the clone shares it.
        hook(&unsafe { Tensor::clone_from_ptr(gradient.cast_mut().cast()) });
    }));
    c_int::from(outcome.is_err())
}

extern "C" fn drop_hook(context: *mut c_void) {
    // SAFETY: called exactly once, with the box made in `register_hook`.
    drop(unsafe { Box::from_raw(context.cast::<Hook>()) });
}

#[cfg(test)]
mod tests {
    use tch::{Kind, kind::DOUBLE_CPU, no_grad};

    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_given_backward_is_part_of_the_graph_and_is_dropped_with_it() {
        let x = Tensor::randn([5], DOUBLE_CPU).set_requires_grad(true);
        let inner = &x * 3.0;
        let alive = Arc::new(());
        let (saved, token) = (inner.detach(), alive.clone());
        let square = with_backward(no_grad(|| inner.square()), &[inner], move |g| {
            let _ = &token;
            vec![g * &saved * 2.0]
        });
        let loss = square.sum(Kind::Double);
        let g = Tensor::run_backward(&[loss], &[&x], false, false).remove(0);
        assert!((g - &x * 18.0).abs().max().double_value(&[]) < 1e-12);
        drop(square);
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[test]
    fn a_panic_in_the_backward_pass_is_an_error_of_libtorch() {
        let x = Tensor::ones([1], DOUBLE_CPU).set_requires_grad(true);
        let y = with_backward(x.detach(), &[x.shallow_clone()], |_| panic!("on purpose"));
        let outcome = Tensor::f_run_backward(&[y.sum(Kind::Double)], &[&x], false, false);
        assert!(outcome.unwrap_err().to_string().contains("recomputed block failed: on purpose"));
    }
}

//! A function with a backward pass of its own, one update of Adam, and what both read and wrote:
//!
//!     cargo run --release -p torch-ext --example function

use tch::{Kind, Tensor, kind::FLOAT_CPU, no_grad};
use torch_ext::autograd::with_backward;
use torch_ext::kernels::{AdamConfig, AdamTensors, adam};
use torch_ext::measure::Audit;
use torch_ext::{Error, caught};

/// x², whose gradient is cut off at ±1.
fn clipped_square(x: &Tensor) -> Tensor {
    let kept = x.detach();
    let backward = move |gradient: &Tensor| vec![(gradient * &kept * 2.0).clamp(-1.0, 1.0)];
    with_backward(no_grad(|| x.square()), &[x.shallow_clone()], backward)
}

pub(crate) fn main() -> Result<(), Error> {
    let x = Tensor::arange(4, FLOAT_CPU).set_requires_grad(true);
    let (gradient, audit) = Audit::of(|| {
        let loss = clipped_square(&x).sum(Kind::Float);
        Tensor::run_backward(&[loss], &[&x], false, false).remove(0)
    });
    println!("gradient {gradient}\n{}", audit.table(5));

    let [m, v] = [x.zeros_like(), x.zeros_like()];
    let (steps, factor) = (Tensor::from(0f32), Tensor::from(1f64));
    let parameters = &x.detach();
    let config = AdamConfig { rate: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    let tensors = AdamTensors { parameters, m: &m, v: &v, steps: &steps };
    adam(tensors, config, &gradient, &factor, None);
    println!("after one update of Adam {x}");

    // What libtorch refuses is an error, not a panic.
    let refused: Result<Tensor, Error> = caught(|| Ok(x.matmul(&Tensor::zeros([3], FLOAT_CPU))));
    println!("{}", refused.expect_err("four and three do not go together"));
    Ok(())
}

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Tensor, no_grad, with_grad};
use torch_ext::autograd::{grad, with_backward};

use super::Statistics;

/// A part of a network that backward passes use on threads of autograd's, too.
#[derive(Debug)]
pub struct Shared<B>(Arc<Mutex<B>>);

impl<B> Shared<B> {
    /// Of a part that nobody else has.
    pub fn new(part: B) -> Self {
        Self(Arc::new(Mutex::new(part)))
    }

    /// The part, for one pass.
    pub fn lock(&self) -> MutexGuard<'_, B> {
        // A pass that panicked changed nothing of it but statistics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Clone for Shared<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A part of a network whose inside can be computed again instead of kept.
pub trait Recompute {
    /// Its output.
    fn run(&self, inputs: &[Tensor], statistics: Statistics) -> Tensor;

    /// The weights that `run` reads.
    fn parameters(&self) -> Vec<Tensor>;
}

/// As [`Recompute::run`], but nothing of the block's inside is kept for the backward pass, which runs the
/// block once more from its inputs. Output, gradients and stored statistics are the same.
///
/// # Source
/// Chen et al. 2016, a segment a block.
///
/// # Panics
/// As [`Recompute::run`].
pub fn recomputed<B: Recompute + Send + 'static>(
    block: &Shared<B>,
    inputs: Vec<Tensor>,
    statistics: Statistics,
) -> Tensor {
    let parameters = block.lock().parameters();
    let tracked = |inputs: &[Tensor], parameters: &[Tensor]| -> Vec<Tensor> {
        let all = inputs.iter().chain(parameters).filter(|t| t.requires_grad());
        all.map(Tensor::shallow_clone).collect()
    };
    let wanted = tracked(&inputs, &parameters);
    // A leaf wants gradients under `no_grad` too; what is made of it does not.
    if !wanted.first().is_some_and(|t| t.view_as(t).requires_grad()) {
        return block.lock().run(&inputs, statistics);
    }
    let output = no_grad(|| block.lock().run(&inputs, statistics));
    let block = block.clone();
    with_backward(output, &wanted, move |gradient| {
        let cut = |t: &Tensor| t.detach().set_requires_grad(t.requires_grad());
        let inputs: Vec<Tensor> = inputs.iter().map(cut).collect();
        let output = with_grad(|| block.lock().run(&inputs, statistics.again()));
        grad(&output, gradient, &tracked(&inputs, &parameters))
    })
}

//! Work that libtorch does in one call, or in a few, where tch would need many.

use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};

use tch::Tensor;

use crate::shim::{must, outcome};

unsafe extern "C" {
    fn ext_upsample(x: *const c_void, out: *mut *mut c_void) -> *mut c_char;
    fn ext_adam(
        parameters: *const c_void,
        gradient: *const c_void,
        m: *const c_void,
        v: *const c_void,
        steps: *const c_void,
        factor: *const c_void,
        rate: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        fault: *const c_void,
    ) -> *mut c_char;
    fn ext_norm_backward(
        gradient: *const c_void,
        x: *const c_void,
        gain: *const c_void,
        mean: *const c_void,
        var: *const c_void,
        eps: f64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn ext_spectral_advance(
        layers: *const Layer,
        count: usize,
        iterations: i64,
        eps: f64,
    ) -> *mut c_char;
    fn ext_spectral_pull_back(
        layers: *const Layer,
        count: usize,
        gradients: *const *const c_void,
    ) -> *mut c_char;
}

/// (N, C, H, W) to (N, C, 2H, 2W), each value four times, in the kind that it has.
///
/// # Panics
/// If libtorch refuses, as for other shapes.
pub fn upsample(x: &Tensor) -> Tensor {
    let mut out = null_mut();
    // SAFETY: the tensor is alive; the shim writes one that is ours.
    must(outcome(unsafe { ext_upsample(x.as_ptr().cast(), &raw mut out) }));
    // SAFETY: as above; it is taken over once.
    unsafe { Tensor::from_ptr(out.cast()) }
}

/// What [`adam`] updates and keeps between updates.
#[derive(Debug, Clone, Copy)]
pub struct AdamTensors<'a> {
    /// Parameters, flat.
    pub parameters: &'a Tensor,
    /// First moment, of their shape.
    pub m: &'a Tensor,
    /// Second moment, of their shape.
    pub v: &'a Tensor,
    /// Updates done, a float scalar.
    pub steps: &'a Tensor,
}

/// Settings of [`adam`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// Learning rate.
    pub rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// One update of Adam by libtorch's fused kernel, at `factor` (a scalar: double on the CPU, single on CUDA) times the rate.
/// Where `fault` (a float scalar) is not 0, nothing changes.
///
/// # Panics
/// If the tensors do not fit together.
///
/// # Source
/// Kingma & Ba 2014.
pub fn adam(
    tensors: AdamTensors<'_>,
    config: AdamConfig,
    gradient: &Tensor,
    factor: &Tensor,
    fault: Option<&Tensor>,
) {
    let AdamTensors { parameters, m, v, steps } = tensors;
    let AdamConfig { rate, beta1, beta2, eps } = config;
    let fault = fault.map_or(null(), |t| t.as_ptr().cast());
    // SAFETY: the tensors live through the call; the shim keeps none of them.
    let error = unsafe {
        ext_adam(
            parameters.as_ptr().cast(),
            gradient.as_ptr().cast(),
            m.as_ptr().cast(),
            v.as_ptr().cast(),
            steps.as_ptr().cast(),
            factor.as_ptr().cast(),
            rate,
            beta1,
            beta2,
            eps,
            fault,
        )
    };
    must(outcome(error));
}

/// Gradients of x, gain and shift through a batch norm with constant `statistics` (mean, variance, ε).
///
/// # Panics
/// If libtorch refuses.
pub fn batch_norm_backward(
    gradient: &Tensor,
    x: &Tensor,
    gain: Option<&Tensor>,
    (mean, var, eps): (&Tensor, &Tensor, f64),
) -> [Tensor; 3] {
    let pointer = |t: &Tensor| t.as_ptr().cast::<c_void>();
    let gain = gain.map_or(null(), pointer);
    let mut out = [null_mut(); 3];
    // SAFETY: all tensors outlive the call, and a null gain is none; the shim writes three tensors that
    // are ours.
    let error = unsafe {
        let (g, x, m, v) = (pointer(gradient), pointer(x), pointer(mean), pointer(var));
        ext_norm_backward(g, x, gain, m, v, eps, out.as_mut_ptr())
    };
    must(outcome(error));
    // SAFETY: as above; each is taken over once.
    out.map(|t: *mut c_void| unsafe { Tensor::from_ptr(t.cast()) })
}

/// The layout is that of `ext_layer`.
#[repr(C)]
struct Layer {
    weight: *const c_void,
    u: *const c_void,
    v: *const c_void,
    sigma: *const c_void,
    scaled: *const c_void,
}

impl Layer {
    fn of(norm: &SpectralNorm<'_>) -> Self {
        let pointer = |t: &Tensor| t.as_ptr().cast();
        let SpectralNorm { weight, u, v, sigma, scaled } = norm;
        let [weight, u, v, sigma, scaled] = [weight, u, v, sigma, scaled].map(|t| pointer(t));
        Self { weight, u, v, sigma, scaled }
    }
}

/// The spectral norm of one weight W, (out, …), read as a matrix (out, rest).
#[derive(Debug, Clone, Copy)]
pub struct SpectralNorm<'a> {
    /// W.
    pub weight: &'a Tensor,
    /// Left singular vector, (out).
    pub u: &'a Tensor,
    /// Right singular vector, (rest).
    pub v: &'a Tensor,
    /// σ, a scalar.
    pub sigma: &'a Tensor,
    /// W/σ.
    pub scaled: &'a Tensor,
}

/// `iterations` power iterations of every layer, v ← Wᵀu/‖Wᵀu‖, u ← Wv/‖Wv‖, then σ = ‖Wv‖ and W/σ afresh; `eps` bounds
/// what is divided by from below.
///
/// # Errors
/// In words, as libtorch has them.
///
/// # Source
/// Miyato et al. 2018, algorithm 1.
pub fn spectral_advance(
    layers: &[SpectralNorm<'_>],
    iterations: usize,
    eps: f64,
) -> Result<(), String> {
    let layers: Vec<_> = layers.iter().map(Layer::of).collect();
    // SAFETY: the handles are of live tensors.
    outcome(unsafe { ext_spectral_advance(layers.as_ptr(), layers.len(), iterations as i64, eps) })
}

/// Makes gradients with respect to W/σ those with respect to W, in place. u and v are constants: (g − ⟨g, W/σ⟩ u vᵀ) / σ.
///
/// # Panics
/// If there is not one gradient a layer, contiguous and of the weight's shape.
pub fn spectral_pull_back(layers: &[SpectralNorm<'_>], gradients: &[Tensor]) {
    assert_eq!(gradients.len(), layers.len(), "one gradient a layer");
    let layers: Vec<_> = layers.iter().map(Layer::of).collect();
    let pointers: Vec<_> = gradients.iter().map(|g| g.as_ptr().cast()).collect();
    // SAFETY: all handles are of live tensors, one gradient a layer.
    must(outcome(unsafe {
        ext_spectral_pull_back(layers.as_ptr(), layers.len(), pointers.as_ptr())
    }));
}

//! Parity with PyTorch: pieces of the model, filled by a hash of their parameters' names, against the
//! golden files that `tests/golden/make.py` makes the textbook way.

use std::collections::BTreeMap;

use golden::{close, hashed, norm, sketch};
use serde::Deserialize;
use tch::{Device, Kind, Tensor, no_grad};

use crate::nn::{Fill, Params, Scope};

const ITERATIONS: usize = 3;

#[derive(Debug, Deserialize)]
struct Case {
    out: Vec<f64>,
    inputs: BTreeMap<String, Vec<f64>>,
    parameters: BTreeMap<String, Vec<f64>>,
}

fn parameter_value(name: &str, shape: &[i64]) -> Tensor {
    let h = hashed(name, shape);
    if name.ends_with("weight") {
        h * (3.0 / shape[1..].iter().product::<i64>() as f64).sqrt()
    } else if name.ends_with("gain") {
        h * 0.2 + 1.0
    } else {
        h * 0.2
    }
}

/// Fills a network as the golden script does.
pub(crate) fn fill(params: &mut Params) {
    no_grad(|| {
        for (name, tensor) in params.parameters() {
            tensor.shallow_clone().copy_(&parameter_value(name, &tensor.size()));
        }
        for (name, norm) in params.norms() {
            let u = hashed(&format!("{name}.u"), &norm.u.size());
            norm.u.shallow_clone().copy_(&(&u / u.norm()));
        }
    });
    for _ in 0..ITERATIONS {
        params.advance_norms();
    }
}

/// Compares one piece with its golden case, in double and single precision: its output and the
/// gradients of every input and parameter.
pub(crate) fn check<N>(
    case: &str,
    inputs: &[(&str, &[i64])],
    build: impl Fn(&Scope<'_>) -> N,
    forward: impl Fn(&N, &[Tensor]) -> Tensor,
) {
    let text = include_str!("../../../tests/golden/blocks.json");
    let mut cases: BTreeMap<String, Case> = serde_json::from_str(text).expect("a golden file");
    let golden = cases.remove(case).expect("a golden case");
    // Outputs to 1e-10 and 1e-5; a gradient in single precision is a sum of rounded terms.
    for (kind, tolerance, gradients) in [(Kind::Double, 1e-10, 1e-10), (Kind::Float, 1e-5, 1e-4)] {
        let (net, mut params) = Params::build((kind, Device::Cpu), Fill::Unset, &build);
        fill(&mut params);
        params.use_weights(crate::nn::Weights::Train);
        let draw = |(name, shape): &(&str, &[i64])| {
            hashed(&format!("input.{name}"), shape).to_kind(kind).set_requires_grad(true)
        };
        let x: Vec<_> = inputs.iter().map(draw).collect();
        let out = forward(&net, &x);
        let direction = hashed("direction", &out.size()).to_kind(kind);
        let loss = (&out * direction).sum(kind);
        close(&format!("{case} {kind:?} out"), &sketch(&out), &golden.out, tolerance, 0.0);

        let of_inputs = Tensor::run_backward(&[&loss], &x, true, false);
        let of_parameters = params.unflatten(&params.gradient(&loss));
        let names: Vec<_> = of_parameters.iter().map(|(name, _)| name.clone()).collect();
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(sorted, golden.parameters.keys().cloned().collect::<Vec<_>>(), "{case}");
        // A gradient that is truly zero (a bias before a batch norm) is rounding noise.
        let floor = golden.parameters.values().map(|g| norm(g)).fold(0.0, f64::max) * 1e-2;
        for ((name, _), gradient) in inputs.iter().zip(&of_inputs) {
            let what = format!("{case} {kind:?} gradient of input {name}");
            close(&what, &sketch(gradient), &golden.inputs[*name], gradients, 0.0);
        }
        for (name, gradient) in &of_parameters {
            let what = format!("{case} {kind:?} gradient of {name}");
            close(&what, &sketch(gradient), &golden.parameters[name], gradients, floor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Attention, ConditionalBatchNorm, Mlp, MlpConfig, Statistics};

    #[test]
    fn conditional_batch_norm_agrees_with_pytorch() {
        check(
            "conditional_norm",
            &[("x", &[4, 8, 3, 3]), ("c", &[4, 5])],
            |s| ConditionalBatchNorm::new(s, 8, 5, (1e-4, 1e-4), 0.1),
            |net, x| net.forward(&x[0], &x[1], Statistics::Batch),
        );
    }

    #[test]
    fn attention_agrees_with_pytorch() {
        for deterministic in [false, true] {
            check(
                "attention",
                &[("x", &[2, 16, 8, 8])],
                |s| Attention::new(&s.deterministic(deterministic), 16, 1e-4),
                |net, x| net.forward(&x[0]),
            );
        }
    }

    #[test]
    fn residual_mlps_agree_with_pytorch() {
        let c = MlpConfig { layers: 4, width: 12 };
        let inputs = [("x", &[5i64, 7][..])];
        check(
            "mlp_discriminating",
            &inputs,
            |s| Mlp::discriminating(s, 7, c, 1e-4),
            |net, x| net.forward(&x[0]),
        );
        check("mlp_encoding", &inputs, |s| Mlp::encoding(s, 7, c), |net, x| net.forward(&x[0]));
    }
}

use tch::{Kind, Tensor};
use torch_ext::context::autocast;

/// NT-Xent: each of the 2N rows is to find its partner among the 2N − 1 others, by the cosine over `temperature`.
///
/// # Shapes
/// Two views' projections, (N, width) each, to a scalar, the mean over rows.
///
/// # Source
/// Chen et al. 2020 (SimCLR), equation 1.
pub(super) fn loss(one: &Tensor, two: &Tensor, temperature: f64) -> Tensor {
    let n = one.size()[0];
    let all = to_length_1(&Tensor::cat(&[one, two], 0));
    let scores = autocast(false, || all.matmul(&all.tr())) / temperature;
    let itself = Tensor::eye(2 * n, (Kind::Bool, scores.device()));
    let partner = Tensor::arange(2 * n, (Kind::Int64, scores.device())).roll([n], [0]);
    scores.masked_fill(&itself, f64::NEG_INFINITY).cross_entropy_for_logits(&partner)
}

/// x / ‖x‖₂ of each row.
fn to_length_1(x: &Tensor) -> Tensor {
    let length = x.norm_scalaropt_dim(2.0, [1i64].as_slice(), true);
    x / length.clamp_min(1e-8)
}

#[cfg(test)]
mod tests {
    use golden::hashed;
    use tch::Device;

    use super::*;

    #[test]
    fn loss_and_gradient_are_pytorch_s() {
        let text = include_str!("../../../../tests/golden/contrast.json");
        let golden: serde_json::Value = serde_json::from_str(text).unwrap();
        let [one, two] = ["one", "two"].map(|name| hashed(name, &[5, 7]).to_kind(Kind::Float));
        let one = one.set_requires_grad(true);
        let found = loss(&one, &two, 0.2);
        let expected = golden["loss"].as_f64().unwrap();
        assert!((found.double_value(&[]) - expected).abs() < 1e-5, "{found} not {expected}");
        let gradient = Tensor::run_backward(&[found], &[&one], false, false).remove(0);
        let expected: Vec<f32> = serde_json::from_value(golden["gradient"].clone()).unwrap();
        let off = (gradient.view([-1]) - Tensor::from_slice(&expected)).abs().max();
        assert!(off.double_value(&[]) < 1e-5, "{off}");
    }

    #[test]
    fn views_that_say_nothing_cost_the_logarithm_of_their_number() {
        let same = Tensor::ones([8, 4], (Kind::Float, Device::Cpu));
        let found = loss(&same, &same, 0.1).double_value(&[]);
        assert!((found - 15f64.ln()).abs() < 1e-5, "{found}");
    }
}

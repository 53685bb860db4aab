use golden::hashed;

use super::*;

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// As `probe` of tests/golden/metrics.py.
fn set(name: &str, rows: i64) -> Features {
    let y = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(3);
    let centres = hashed("probe.centres", &[3, 6]).index_select(0, &y);
    let x = (centres + hashed(name, &[rows, 6]) * 1.2).to_kind(Kind::Float);
    Features::from_rows(Feature::AvePool, x, Vec::try_from(y).unwrap())
}

fn golden() -> serde_json::Value {
    serde_json::from_str(include_str!("../../../../tests/golden/probe.json")).unwrap()
}

#[test]
fn the_svm_s_weights_are_scikit_learn_s() {
    let (train, test) = (set("probe.train", 6000), set("probe.test", 4000));
    let sets = Sets::new(&train, &test, Feature::AvePool, 3);
    let Least { at: weight, left } = sets.svm_weight(0.01, &Stop::default()).unwrap();
    assert!(left <= ARRIVED, "{left}");
    let expected: Vec<Vec<f64>> =
        serde_json::from_value(golden()["svm"]["weight"].clone()).unwrap();
    let expected = Tensor::from_slice(&expected.concat()).view([3, 7]);
    let off = (weight - expected).abs().max().double_value(&[]);
    assert!(off < 2e-4, "{off}");
    let (top1, _) = sets.svm(0.01, &Stop::default()).unwrap();
    let expected = golden()["svm"]["top1"].as_f64().unwrap();
    assert!((top1 - expected).abs() < 0.051, "{top1} not {expected}");
}

#[test]
fn the_mlp_s_scores_and_gradients_are_pytorch_s() {
    let x = hashed("mlp.x", &[8, 6]).to_kind(Kind::Float);
    let protocol = Protocol { units: 5, dropout: 0.0, ..Protocol::new(1) };
    let mlp = Mlp::new(&x, 3, &protocol);
    for (i, (weight, _)) in mlp.weights.iter().enumerate() {
        no_grad(|| weight.shallow_clone().copy_(&hashed(&format!("mlp.{i}"), &weight.size())));
    }
    let floats = |t: &Tensor| Vec::<f32>::try_from(t.to_kind(Kind::Float).view([-1])).unwrap();
    let close = |got: &Tensor, key: &str| {
        let expected: Vec<f32> = serde_json::from_value(golden()["mlp"][key].clone()).unwrap();
        let off = floats(got).into_iter().zip(&expected).map(|(a, b)| (a - b).abs());
        assert_eq!(got.numel(), expected.len());
        assert!(off.fold(0f32, f32::max) < 1e-5, "{key}: {got}");
    };
    let scores = mlp.scores(&x, Some(0));
    let y = Tensor::from_slice(&[0i64, 1, 2, 0, 1, 2, 0, 1]);
    let loss = scores.cross_entropy_for_logits(&y);
    let first = Tensor::run_backward(&[&loss], &[&mlp.weights[0].0], false, false).remove(0);
    close(&scores.detach(), "scores");
    close(&first, "gradient");
    close(&no_grad(|| mlp.scores(&x, None)), "stored");
}

#[test]
fn dropped_units_are_as_many_as_said_others_each_step_and_the_mean_stays() {
    let x = Tensor::zeros([64, 6], FLOAT);
    let mlp = Mlp::new(&x, 3, &Protocol::new(1));
    let mask = mlp.mask(&x, 0);
    assert_eq!(mask.size(), [64, 200]);
    let kept = mask.gt(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    assert!((kept - 0.9).abs() < 0.01, "{kept}");
    assert!((mask.mean(Kind::Double).double_value(&[]) - 1.0).abs() < 0.02);
    assert_ne!(mask, mlp.mask(&x, 1));
}

/// What no line through the middle tells apart.
#[test]
fn the_mlp_learns_what_the_svm_cannot() {
    let ring = |name: &str, rows: i64| {
        let x = hashed(name, &[rows, 2]).to_kind(Kind::Float);
        let radius = x.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let y = radius.gt_tensor(&radius.median()).to_kind(Kind::Int64);
        Features::from_rows(Feature::AvePool, x, Vec::try_from(y).unwrap())
    };
    let (train, test) = (ring("ring.train", 2000), ring("ring.test", 1000));
    let sets = Sets::new(&train, &test, Feature::AvePool, 2);
    let protocol = Protocol { rate: 1e-2, epochs: 6, ..Protocol::new(3) };
    let (svm, mlp) = (sets.svm(1.0, &Stop::default()), sets.mlp(&protocol, &Stop::default()));
    let ((svm, _), mlp) = (svm.unwrap(), mlp.unwrap());
    assert!(svm < 65.0 && mlp > 93.0, "{svm} {mlp}");
    assert_eq!(sets.mlp(&protocol, &Stop::default()).unwrap(), mlp);
}

use golden::hashed;

use super::*;

fn set(name: &str, rows: i64, spread: f64) -> Features {
    let y = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(3);
    let centres = hashed("probe.centres", &[3, 6]).index_select(0, &y);
    let x = (centres + hashed(name, &[rows, 6]) * spread).to_kind(Kind::Float);
    Features::from_rows(Feature::AvePool, x, Vec::try_from(y).unwrap())
}

fn short(rates: &[f64], steps: u64) -> Protocol {
    Protocol { rates: rates.to_vec(), steps, ..Protocol::table1(3) }
}

const BOTH: [Feature; 2] = [Feature::AvePool, Feature::BnCrelu];

/// bigbigan.md §7, item 26.
#[test]
fn a_zero_initialised_probe_is_uniform_and_its_batch_norm_whitens() {
    let x = hashed("x", &[300, 40]).to_kind(Kind::Float) * 3.0 + 2.0;
    let set = Features::from_rows(Feature::AvePool, x.shallow_clone(), (0..300).collect());
    let protocol = short(&[0.01, 0.1], 0);
    for feature in BOTH {
        let head = Head::new(feature, &set, 1000, &protocol);
        let loss = head.loss(&x, &labels(&set)).double_value(&[]);
        assert!((loss / 2.0 - 6.907755).abs() < 1e-5, "{feature}: {loss}");
        let scores = head.expand(&x).matmul(&head.weight.tr());
        assert_eq!(scores.abs().max().double_value(&[]), 0.0);
    }
    let head = Head::new(Feature::BnCrelu, &set, 1000, &protocol);
    let h = head.normalise(&x).unwrap().to_kind(Kind::Double);
    let over = [0i64];
    let mean = h.mean_dim(over.as_slice(), false, Kind::Double).abs().max();
    let var = (h.var_dim(over.as_slice(), false, false) - 1.0).abs().max();
    assert!(mean.double_value(&[]) < 1e-5 && var.double_value(&[]) < 1e-4);
    let seen = head.expand(&x);
    assert_eq!(seen.size(), [300, 81]);
    let halves = seen.narrow(1, 0, 40) + seen.narrow(1, 40, 40);
    assert!((halves - h.abs()).abs().max().double_value(&[]) < 1e-5, "relu(h) + relu(-h) = |h|");
}

#[test]
fn accuracy_is_within_a_third_of_a_point_of_scikit_learn_s() {
    let text = include_str!("../../../../tests/golden/probe.json");
    let golden: serde_json::Value = serde_json::from_str(text).unwrap();
    let (train, test) = (set("probe.train", 6000, 1.2), set("probe.test", 4000, 1.2));
    let source = Source::Cached(&train);
    let found =
        probe(&[Feature::AvePool], source, None, &test, 3, &short(&[0.1], 400), &Stop::default())
            .unwrap();
    let expected = golden["top1"].as_f64().unwrap();
    assert!((found[0].top1 - expected).abs() < 0.3, "{} not {expected}", found[0].top1);
    assert_eq!(found[0].top5, 100.0);
}

#[test]
fn each_rate_of_a_sweep_learns_as_if_it_were_alone_and_the_best_is_chosen() {
    let (train, test) = (set("probe.train", 900, 2.0), set("probe.test", 300, 2.0));
    let select = set("probe.select", 300, 2.0);
    let run = |rates: &[f64]| {
        let protocol = Protocol { batch: 128, ..short(rates, 60) };
        probe(&BOTH, Source::Cached(&train), Some(&select), &test, 3, &protocol, &Stop::default())
            .unwrap()
    };
    let rates = [1e-7, 0.03, 0.1];
    let together = run(&rates);
    for (feature, together) in together.iter().enumerate() {
        let alone: Vec<_> = rates.iter().map(|rate| run(&[*rate]).swap_remove(feature)).collect();
        let best: Vec<_> = alone.iter().map(|found| found.selection[0]).collect();
        assert_eq!(together.selection, best);
        let winner = alone.iter().find(|found| found.rate == together.rate).unwrap();
        assert_eq!((winner.top1, winner.stopped), (together.top1, together.stopped));
        assert_eq!(winner.selection[0], best.iter().copied().fold(0.0, f64::max));
    }
    assert_eq!(run(&rates), together);
}

#[test]
fn fresh_batches_teach_as_well_as_cached_ones() {
    let test = set("probe.test", 1000, 1.2);
    let first = set("probe.train", 1000, 1.2);
    let batches = (0..).map(|i| Ok(set(&format!("fresh{i}"), 300, 1.2)));
    let source = Source::Fresh { first: &first, batches: Box::new(batches) };
    let found =
        probe(&BOTH, source, None, &test, 3, &short(&[0.1], 200), &Stop::default()).unwrap();
    assert!(found.iter().all(|found| (found.top1 - 86.3).abs() < 4.0), "{found:?}");
}

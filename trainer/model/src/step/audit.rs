//! What the kernels of a step read and write, held to a budget at the shapes of `base` and `hi_e`.

use std::collections::BTreeSet;

use tch::{Device, Kind};
use torch_ext::measure::Audit;

use super::*;

/// The preset's sides, blocks and attention, at the least width at which every layer but the first sees
/// 8 channels.
fn narrow(preset: &str, more: &[&str]) -> Recipe {
    let small =
        ["g.ch=16", "f.ch=16", "h.width=64", "j.width=64", "e.mlp_width=64", "train.batch=2"];
    let all: Vec<_> = small.iter().chain(more).map(|s| (*s).to_owned()).collect();
    Recipe::preset(preset, &all).unwrap()
}

fn audited(config: &Recipe) -> Audit {
    let mut state = TrainState::new(config, Device::Cpu, true);
    let image = |side: i64| {
        let pixels =
            Tensor::randint(256, [config.train.batch, side, side, 3], (Kind::Uint8, Device::Cpu));
        (pixels.to_kind(Kind::Float) / 127.5 - 1.0).permute([0, 3, 1, 2])
    };
    let images = || Images { large: image(config.e.res), small: image(config.g.res) };
    let given: Vec<_> = (0..=config.train.d_steps).map(|_| images()).collect();
    let mut given = given.into_iter();
    Audit::of(|| train_step(config, &mut state, || given.next().ok_or(())).unwrap()).1
}

/// Kernels, and megabytes that they read and write: forward, then backward.
type Budget = [(i64, f64); 2];

/// What is measured now. Whoever lowers it writes the new figure here; docs/step.md says what they are of.
const BUDGETS: [(&str, Budget); 2] =
    [("base", [(3987, 3846.8), (1041, 1113.0)]), ("hi_e", [(3987, 5761.4), (1041, 1971.7)])];

#[test]
fn a_step_moves_what_its_budget_says_and_feeds_convolutions_channels_last() {
    let mut over = String::new();
    for (preset, budget) in BUDGETS {
        let audit = audited(&narrow(preset, &[]));
        assert_eq!(audit.layouts, [], "{preset}");
        for (backward, (kernels, megabytes)) in [false, true].into_iter().zip(budget) {
            let (calls, moved) = audit.total(backward);
            let share = moved / 1e6 / megabytes;
            // Several threads make a few kernels more: 4 of 3,987 were seen.
            let most = kernels + if tch::get_num_threads() > 1 { kernels / 500 } else { 0 };
            if calls > most || calls * 20 < kernels * 19 || !(0.98..1.01).contains(&share) {
                over += &format!("{preset}, backward {backward}: ({calls}, {:.1})\n", moved / 1e6);
                over += &format!("{}\n", audit.table(25));
            }
        }
    }
    assert!(over.is_empty(), "{over}");
}

/// A step in bfloat16 on a CPU shows nothing of what CUDA does otherwise: whoever changes this list looks
/// whether the step should do without.
#[test]
fn the_operators_of_a_step_that_autocast_treats_otherwise_on_cuda_are_known() {
    // What is called does not depend on sides; a CPU is slow at bfloat16.
    let audit = audited(&narrow("hi_e", &["train.precision=bf16", "e.res=128"]));
    let differ: BTreeSet<_> = audit.casts.iter().map(|cast| cast.join(" ")).collect();
    let known = [
        // Gain and shift of a conditional batch norm come from products; the sum is as wide on a CPU.
        "addcmul BFloat16,Float,BFloat16 Float,Float,Float",
        // What is joined is made one kind by `cat` itself on CUDA.
        "cat Float,Float Float,BFloat16",
        // σ of the code, and F's sum over positions: in single precision, as it should be.
        "softplus BFloat16 Float",
        "sum BFloat16 Float",
    ];
    assert_eq!(differ.iter().map(String::as_str).collect::<Vec<_>>(), known);
}

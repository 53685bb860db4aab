//! Trains the networks of the preset `demo`, made smaller, for three steps on images of noise:
//!
//!     cargo run --release -p bigbigan-model --example steps

use bigbigan_model::config::Recipe;
use bigbigan_model::images::Images;
use bigbigan_model::nn::Statistics;
use bigbigan_model::presets::Problems;
use bigbigan_model::state::TrainState;
use bigbigan_model::step::{prepare, train_step};
use tch::{Device, Kind, Tensor, no_grad};

pub(crate) fn main() -> Result<(), Problems> {
    let smaller = ["train.batch=8", "g.ch=4", "f.ch=4", "e.depth=8"];
    let (recipe, device) = (Recipe::preset("demo", &smaller)?, Device::Cpu);
    prepare(&recipe, device)?;
    let mut state = TrainState::new(&recipe, device, true);
    // x as E sees it and as D does, in [-1, 1]: a fresh batch for each update of a step.
    let batch = || {
        let side = recipe.e.res;
        let large =
            Tensor::rand([recipe.train.batch, 3, side, side], (Kind::Float, device)) * 2 - 1;
        let small = large.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
        Ok::<_, Problems>(Images { large, small })
    };
    for step in 1..=3 {
        let losses = train_step(&recipe, &mut state, batch)?;
        let e = losses.e.map_or(f64::NAN, |e| e.double_value(&[]));
        let [d, g] = [losses.d, losses.g].map(|loss| loss.double_value(&[]));
        println!("step {step}: loss_d {d:.3}, loss_g {g:.3}, loss_e {e:.3}");
    }
    let z = Tensor::randn([4, recipe.latent.dim], (Kind::Float, device));
    let images = no_grad(|| state.g.live.net.forward(&z, Statistics::Batch));
    println!("G(z): {:?}", images.size());
    Ok(())
}

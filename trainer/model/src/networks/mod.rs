//! The three networks of the paper. Shape letters: N batch, Z latent width, R_G side of generated
//! images (and of what D sees), R_E side of what E sees.

mod discriminator;
mod encoder;
mod further;
mod generator;
mod resnet;
mod revnet;
mod small;

pub use discriminator::{Discriminator, DiscriminatorConfig, ImageConfig, Pair, Scores, Terms};
pub use encoder::{Code, Encoded, Encoder, EncoderConfig, Family, RootPad};
pub use further::{Augment, Further, Seen, Sight};
pub use generator::{Generator, GeneratorConfig, LatentConfig};

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};
    use torch_ext::measure::Meter;

    use crate::config::Recipe;
    use crate::nn::{Fill, Params, Scope, Statistics, Weights};

    /// Gradients of weights and of the input, statistics, and the most memory of the forward pass.
    fn trained<N>(
        build: impl FnOnce(&Scope<'_>) -> N,
        forward: impl FnOnce(&N, &Tensor) -> Tensor,
        input: &Tensor,
    ) -> (Vec<Tensor>, f64) {
        let (net, mut params) = Params::build((Kind::Float, Device::Cpu), Fill::Unset, build);
        crate::parity::fill(&mut params);
        params.use_weights(Weights::Train);
        let meter = Meter::start();
        let x = input.copy().set_requires_grad(true);
        let y = forward(&net, &x);
        let peak = meter.stop();
        let loss = (&y * golden::hashed("direction", &y.size())).sum(Kind::Float);
        let weights = params.folded().map(|(_, weight)| weight.shallow_clone());
        let wanted: Vec<_> = weights.chain([x]).collect();
        let mut all = Tensor::run_backward(&[loss], &wanted, false, false);
        // Not every weight has a part in it.
        all.retain(Tensor::defined);
        all.extend(params.buffers().into_iter().map(|(_, buffer)| buffer));
        (all, peak)
    }

    fn config(recompute: bool, more: &str) -> Recipe {
        let switch = ["g", "f", "e"].map(|net| format!("{net}.recompute={recompute}"));
        let sizes = ["g.attn_res=8", "f.attn_res=8", "e.depth=14", more].map(str::to_owned);
        let all: Vec<_> = switch.into_iter().chain(sizes).collect();
        Recipe::preset("demo", &all).unwrap()
    }

    fn check(name: &str, run: impl Fn(&Recipe) -> (Vec<Tensor>, f64), more: &str) {
        let (kept, again) = (run(&config(false, more)), run(&config(true, more)));
        assert_eq!(kept.0, again.0, "{name}");
        assert!(again.1 < 0.8 * kept.1, "{name}: {} of {} bytes", again.1, kept.1);
    }

    #[test]
    fn recomputed_blocks_give_bit_equal_gradients_and_statistics_for_less_memory() {
        let kinds = (Kind::Float, Device::Cpu);
        let z = Tensor::randn([24, 60], kinds);
        let of_g = |c: &Recipe| {
            let build = |s: &Scope<'_>| super::Generator::new(s, c.g, c.latent);
            trained(build, |g, z| g.forward(z, Statistics::Batch), &z)
        };
        check("G", of_g, "g.ch=16");
        let x = Tensor::randn([8, 3, 64, 64], kinds);
        let of_f = |c: &Recipe| {
            let mut d = c.discriminator();
            (d.f.res, d.f.attn_res) = (64, 16);
            let build = |s: &Scope<'_>| super::Discriminator::new(s, d, c.latent);
            trained(build, |d, x| d.image_features(x), &x)
        };
        check("F", of_f, "f.ch=8");
        let x = Tensor::randn([24, 3, 32, 32], kinds);
        let of_e = |c: &Recipe| {
            let build = |s: &Scope<'_>| super::Encoder::new(s, c.e, c.latent);
            trained(build, |e, x| e.features(x, Statistics::Batch), &x)
        };
        check("small E", of_e, "e.mlp_layers=4");
    }
}

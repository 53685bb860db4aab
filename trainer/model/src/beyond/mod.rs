//! What goes past the paper, all off by default (`[beyond]`, docs/beyond.md). The paper's path knows the traits
//! [`Further`] and [`Augment`] and nothing of this: `state` makes what `[beyond]` asks for.

mod augment;
mod contrast;
mod views;

use tch::{Kind, Tensor, no_grad};

use crate::config::{BeyondConfig, Recipe};
use crate::networks::{Augment, Further, Seen};
use crate::nn::{Linear, Scope, Statistics, single};

/// The network of the losses that `config.beyond` asks for.
pub fn network(s: &Scope<'_>, config: &Recipe) -> Box<dyn Further> {
    let (c, hidden) = (config.beyond, 2 * config.beyond.width);
    let linear = |name, input, output| Linear::new(&s.sub(name), input, output, None);
    let projection =
        [linear("first", config.e.features(), hidden), linear("second", hidden, c.width)];
    Box::new(Beyond { config: c, side: config.e.res, projection })
}

/// What `config.beyond` does to the images that D sees.
pub fn augment(config: &Recipe) -> Option<Box<dyn Augment>> {
    let config = config.beyond.augment;
    config.any().then(|| Box::new(augment::DiffAugment(config)) as Box<dyn Augment>)
}

/// `contrast` · InfoNCE between two views of each image, x as the pipeline gave it and one made of it, which E is to tell
/// from those of the other images of its pass (with micro-batches or several ranks: of its own part of the batch); plus
/// `codes` · the mean over dimensions of (μ(G(z)) − z)², G(z) being as large as E sees images; plus `reconstruct` ·
/// |F(G(μ(x))) − F(x)|² / |F(x)|², both as D sees images of this pass.
///
/// # Source
/// `contrast`: Chen et al. 2020 (SimCLR), [`contrast::loss`]. `codes`: the latent regressor that Donahue et al. 2017 (BiGAN,
/// §4) compare with, here beside the adversarial game; G is not taught by it. `reconstruct`: the feature loss of Larsen et al.
/// 2016 (VAE/GAN, eq. 8) in D's own features, relative; E and G are taught by it, D is not. The projection, linear, ReLU,
/// linear, is as in SimCLR; its widths are ours. Batch norms take these passes' own statistics and store none of them.
#[derive(Debug)]
struct Beyond {
    config: BeyondConfig,
    /// R_E.
    side: i64,
    /// Of pooled features, to what is compared.
    projection: [Linear; 2],
}

impl Beyond {
    /// (N, features) to (N, width).
    fn project(&self, features: &Tensor) -> Tensor {
        let [first, second] = &self.projection;
        single(&second.forward(&first.forward(features).relu()))
    }

    fn contrast(&self, seen: &Seen<'_>) -> Tensor {
        let BeyondConfig { temperature, least_area, colour, .. } = self.config;
        let other = views::another(seen.x, seen.uniforms, least_area, colour);
        let other = seen.e.features(&other, Statistics::Repeat);
        let [one, two] = [seen.features, &other].map(|features| self.project(features));
        contrast::loss(&one, &two, temperature)
    }

    fn codes(&self, seen: &Seen<'_>) -> Tensor {
        let side = [self.side; 2];
        let large = no_grad(|| {
            single(seen.generated).upsample_bilinear2d(side, false, None::<f64>, None::<f64>)
        });
        let mean = single(seen.e.forward(&large, Statistics::Repeat).code.mean());
        (mean - seen.prior).square().mean(None::<Kind>)
    }

    fn reconstruct(&self, seen: &Seen<'_>) -> Tensor {
        let again = single(&seen.d.features(&seen.g.forward(seen.code.mean(), Statistics::Repeat)));
        let f = single(seen.f);
        (again - &f).square().sum(None::<Kind>) / f.square().sum(None::<Kind>).clamp_min(1e-8)
    }
}

impl Further for Beyond {
    fn uniforms(&self) -> i64 {
        if self.config.contrast > 0.0 { views::UNIFORMS } else { 0 }
    }

    fn loss(&self, seen: &Seen<'_>) -> Tensor {
        let BeyondConfig { contrast, codes, reconstruct, .. } = self.config;
        let weighed = |weight: f64, loss: fn(&Self, &Seen<'_>) -> Tensor| {
            (weight > 0.0).then(|| loss(self, seen) * weight)
        };
        let contrast = weighed(contrast, Self::contrast);
        let codes = weighed(codes, Self::codes);
        let reconstruct = weighed(reconstruct, Self::reconstruct);
        let all = [contrast, codes, reconstruct].into_iter().flatten().reduce(|a, b| a + b);
        all.expect("a checked config asks for one of them")
    }
}

//! How large a configured model is and what a step of it costs.

use bigbigan_model::beyond;
use bigbigan_model::networks::{Discriminator, Encoder, Further, Generator};
use bigbigan_model::nn::{Fill, Params, Statistics};
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use dist::World;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::measure::Work;

use crate::config::Config;

/// One part of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// `g`, `e.trunk`, `e.mlp`, `e.head`, `f`, `h`, `j`, `theta_x`, `theta_z` or `theta_xz`.
    pub name: String,
    /// Trainable values: weights, biases, BN gains and shifts; no singular vectors or statistics.
    pub parameters: usize,
    /// Whether its weights are spectrally normalised.
    pub spectral_norm: bool,
}

/// A network (G, E) or a part of D, run forward on one image or latent.
#[derive(Debug, Clone, PartialEq)]
pub struct Module {
    /// `G`, `E`, `F`, `H` or `J`.
    pub name: &'static str,
    /// Its output for a batch of one.
    pub output: Vec<i64>,
    /// Floating-point operations forward, a multiply-add counting as two.
    pub flop: f64,
    /// Bytes of its operators' results forward, in single precision.
    pub written: f64,
}

/// The parameters of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    /// Parts, in the order G, E, F, H, J, θ, further.
    pub parts: Vec<Part>,
    /// Sum of G's parameters.
    pub g: usize,
    /// Sum of E's, 0 without an encoder.
    pub e: usize,
    /// Sum of D's.
    pub d: usize,
    /// Sum of a further loss's network, 0 without one.
    pub further: usize,
    /// Bytes of the tensors in a checkpoint.
    pub checkpoint_bytes: usize,
}

impl Counts {
    /// Counts the model of a configuration. No weight is allocated.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let nets = Nets::build(config, Fill::Shape);
        let mut parts = by_head(Some("g"), &nets.g.1);
        parts.extend(
            nets.e
                .iter()
                .flat_map(|(_, params)| by_head(None, params))
                .map(|part| Part { name: format!("e.{}", part.name), ..part }),
        );
        parts.extend(by_head(None, &nets.d.1));
        parts.extend(nets.further.iter().flat_map(|(_, params)| by_head(Some("further"), params)));
        let e_params = nets.e.as_ref().map(|(_, params)| params);
        let (g, e, d) = (nets.g.1.count(), e_params.map_or(0, Params::count), nets.d.1.count());
        let further_params = nets.further.as_ref().map(|(_, params)| params);
        let further = further_params.map_or(0, Params::count);
        let state = [Some(&nets.g.1), e_params, Some(&nets.d.1), further_params];
        let state = state.into_iter().flatten().flat_map(Params::state);
        let values: usize = state.map(|(_, tensor)| tensor.numel()).sum();
        // Moments of all, averages of G and E.
        let checkpoint_bytes = 4 * (values + 2 * (g + e + d + further) + g + e);
        Self { parts, g, e, d, further, checkpoint_bytes }
    }

    /// All parameters.
    #[must_use]
    pub fn total(&self) -> usize {
        self.g + self.e + self.d + self.further
    }

    fn sums(&self) -> impl Iterator<Item = (&'static str, usize)> {
        [("G", self.g), ("E", self.e), ("D", self.d), ("all", self.total())].into_iter()
    }
}

/// What a step of a configuration costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// G, E, F, H, J, those that exist.
    pub modules: Vec<Module>,
    /// Floating-point operations of a whole step for each image of `train.batch`.
    pub step_flop: f64,
    /// A rough upper estimate of device memory for one micro-batch in single precision, in bytes:
    /// weights, W/σ, gradients (twice while they are gathered), moments, averages, two batches of pixels
    /// (a step's and the next) and everything that operators write in the larger of the two updates.
    pub memory_bytes: f64,
    /// Of these images and what operators write: the part that ranks share out among themselves.
    pub activation_bytes: f64,
}

impl Cost {
    /// Runs each module forward on the CPU, once, on one image, with weights that are allocated but
    /// never filled.
    #[must_use]
    pub fn of(config: &Config, counts: &Counts) -> Self {
        let run = |config: &Config| {
            let nets = Nets::build(config, Fill::Unset);
            modules(config, &nets.g.0, nets.e.as_ref().map(|(e, _)| e), &nets.d.0)
        };
        let mut modules = run(config);
        if config.g.attn_res + config.f.attn_res > 0 && !config.train.deterministic {
            // Fused kernels of attention are given wider heads than the model has: what counts as its work is
            // what it takes without.
            let mut plain = config.clone();
            plain.train.deterministic = true;
            for (module, plain) in modules.iter_mut().zip(run(&plain)) {
                module.flop = plain.flop;
            }
        }
        let activation_bytes = activations(config, &modules);
        let held = 4 * (6 * counts.total() + counts.g + counts.e);
        let memory_bytes = held as f64 + activation_bytes;
        Self { step_flop: step_flop(config, &modules), memory_bytes, activation_bytes, modules }
    }

    /// [`Cost::memory_bytes`] of each of several ranks.
    #[must_use]
    pub fn memory_bytes_of(&self, ranks: usize) -> f64 {
        self.memory_bytes - self.activation_bytes + self.activation_bytes / ranks as f64
    }
}

/// One JSON object: `parameters` (of each part, then the sums `G`, `E`, `D`, `all`), `modules`,
/// `step_gflop_per_image`, `checkpoint_bytes`, `memory_bytes`.
#[must_use]
pub fn json(counts: &Counts, cost: &Cost) -> String {
    let parts = counts.parts.iter().map(|part| (part.name.clone(), part.parameters.into()));
    let sums = counts.sums().map(|(name, count)| (name.to_owned(), count.into()));
    let parameters: serde_json::Map<String, Value> = parts.chain(sums).collect();
    let modules = cost
        .modules
        .iter()
        .map(|m| json!({"name": m.name, "output": m.output, "gflop_per_image": m.flop / 1e9}));
    json!({
        "parameters": parameters,
        "modules": modules.collect::<Vec<_>>(),
        "step_gflop_per_image": cost.step_flop / 1e9,
        "checkpoint_bytes": counts.checkpoint_bytes,
        "memory_bytes": cost.memory_bytes.round() as u64,
    })
    .to_string()
}

/// Tables for people.
#[must_use]
pub fn table(counts: &Counts, cost: &Cost) -> String {
    let mut parts = Table::new();
    parts.load_style(UTF8_HORIZONTAL_ONLY).set_header(["part", "parameters", "spectral norm"]);
    for part in &counts.parts {
        let norm = if part.spectral_norm { "yes" } else { "no" };
        parts.add_row([part.name.clone(), grouped(part.parameters), norm.into()]);
    }
    for (name, count) in counts.sums() {
        parts.add_row([name.to_owned(), grouped(count), String::new()]);
    }
    let mut modules = Table::new();
    modules.load_style(UTF8_HORIZONTAL_ONLY).set_header(["module", "output", "GFLOP an image"]);
    for m in &cost.modules {
        let sides: Vec<_> = m.output[1..].iter().map(i64::to_string).collect();
        let gflop = format!("{:.4}", m.flop / 1e9);
        modules.add_row([m.name.into(), sides.join(" x "), gflop]);
    }
    format!(
        "{parts}\n{modules}\na step costs {:.2} GFLOP an image of train.batch; a checkpoint takes \
         {:.2} GB; one micro-batch needs about {:.1} GB (single precision, upper estimate)",
        cost.step_flop / 1e9,
        counts.checkpoint_bytes as f64 / 1e9,
        cost.memory_bytes / 1e9,
    )
}

/// The networks of a configuration and their tensors.
pub(crate) struct Nets {
    pub(crate) g: (Generator, Params),
    pub(crate) e: Option<(Encoder, Params)>,
    pub(crate) d: (Discriminator, Params),
    pub(crate) further: Option<(Box<dyn Further>, Params)>,
}

impl Nets {
    fn build(config: &Config, fill: Fill) -> Self {
        Self::build_in(&World::alone(), config, fill)
    }

    /// As one rank of several.
    pub(crate) fn build_in(world: &World, config: &Config, fill: Fill) -> Self {
        let kinds = (Kind::Float, Device::Cpu);
        let (latent, same) = (config.latent, config.train.deterministic);
        Self {
            g: Params::build_in(world, kinds, fill, |s| {
                Generator::new(&s.deterministic(same), config.g, latent)
            }),
            e: (config.loss.encode()).then(|| {
                Params::build_in(world, kinds, fill, |s| Encoder::new(s, config.e, latent))
            }),
            d: Params::build_in(world, kinds, fill, |s| {
                Discriminator::new(&s.deterministic(same), config.recipe().discriminator(), latent)
            }),
            further: (config.beyond.any()).then(|| {
                Params::build_in(world, kinds, fill, |s| beyond::network(s, &config.recipe()))
            }),
        }
    }
}

fn modules(c: &Config, g: &Generator, e: Option<&Encoder>, d: &Discriminator) -> Vec<Module> {
    let mut all = vec![];
    let mut run = |name, forward: &dyn Fn() -> Option<Tensor>| {
        let (output, work) = Work::of(|| no_grad(forward));
        output.inspect(|output| {
            let (flop, written) = (work.flop, work.written);
            all.push(Module { name, output: output.size(), flop, written });
        })
    };
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let (z, stored) = (zeros(&[1, c.latent.dim]), Statistics::Stored);
    let x = run("G", &|| Some(g.forward(&z, stored)));
    let large = zeros(&[1, 3, c.e.res, c.e.res]);
    let _ = run("E", &|| e.map(|e| e.forward(&large, stored).code.mean().shallow_clone()));
    let f = run("F", &|| x.as_ref().map(|x| d.image_features(x)));
    let h = run("H", &|| d.latent_features(&z));
    let _ = run("J", &|| f.as_ref().zip(h.as_ref()).and_then(|(f, h)| d.joint_features(f, h)));
    all
}

/// Forward is 1, forward and backward 3. A D update: G and E forward, D trained on a real and a
/// generated image. The joint update: G and E trained; D forward on both, and backward to its input
/// on the generated side alone.
fn step_flop(config: &Config, modules: &[Module]) -> f64 {
    let sum = |names: &[&str]| {
        modules.iter().filter(|m| names.contains(&m.name)).map(|m| m.flop).sum::<f64>()
    };
    let (players, d) = (sum(&["G", "E"]), sum(&["F", "H", "J"]));
    // Forward and backward once more for each; the projections are too small to count.
    let mut further = 3.0 * config.beyond.passes() * sum(&["E"]);
    if config.beyond.reconstruct > 0.0 {
        further += 3.0 * sum(&["G"]) + 2.0 * sum(&["F"]);
    }
    f64::from(config.train.d_steps) * (players + 6.0 * d) + 3.0 * players + 3.0 * d + further
}

fn activations(config: &Config, modules: &[Module]) -> f64 {
    let written = |name| modules.iter().find(|m| m.name == name).map_or(0.0, |m| m.written);
    let of_d = 2.0 * written("F");
    let passes = 1.0 + config.beyond.passes();
    let mut of_players = written("G") + passes * written("E") + written("F");
    if config.beyond.reconstruct > 0.0 {
        of_players += written("G") + written("F");
    }
    let sides = [if config.loss.encode() { config.e.res } else { config.g.res }, config.g.res];
    // The step's batch and the next one are pixels of a byte; those of a micro-batch are made floats.
    let pixels: i64 = sides.iter().map(|side| 3 * side * side).sum();
    let images = ((2 * config.train.batch + 4 * config.recipe().micro_batch()) * pixels) as f64;
    images + config.recipe().micro_batch() as f64 * of_d.max(of_players)
}

/// Sums by the first word of the parameters' names, in order of appearance, or all under `name`.
fn by_head(name: Option<&str>, params: &Params) -> Vec<Part> {
    let normed: Vec<_> = params.norms().map(|(name, _)| name.to_owned()).collect();
    let mut parts: Vec<Part> = vec![];
    for (parameter, tensor) in params.parameters() {
        let head = name.unwrap_or_else(|| parameter.split('.').next().unwrap_or(parameter));
        let (count, norm) = (tensor.numel(), normed.iter().any(|n| n == parameter));
        match parts.iter_mut().find(|part| part.name == head) {
            Some(part) => {
                part.parameters += count;
                part.spectral_norm |= norm;
            }
            None => {
                parts.push(Part { name: head.to_owned(), parameters: count, spectral_norm: norm });
            }
        }
    }
    parts
}

/// 1234567 as 1,234,567.
#[must_use]
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use bigbigan_model::presets::PRESETS;

    use super::*;
    use crate::config::Origin;

    fn counts(preset: &str, overrides: &[&str]) -> Counts {
        let overrides: Vec<_> = overrides.iter().map(|s| (*s).to_owned()).collect();
        Counts::of(&Config::resolve(&Origin::Preset(preset), &overrides).unwrap())
    }

    fn part(counts: &Counts, name: &str) -> usize {
        counts.parts.iter().find(|part| part.name == name).unwrap().parameters
    }

    #[test]
    fn the_base_model_has_the_papers_parameters() {
        let base = counts("base", &[]);
        assert_eq!(base.g, 70_306_116);
        assert_eq!(part(&base, "f"), 86_444_833);
        assert_eq!(part(&base, "h"), 29_622_272 + 245_760);
        assert_eq!(part(&base, "j"), 36_716_544 + 7_340_032);
        let thetas = ["theta_x", "theta_z", "theta_xz"].map(|t| part(&base, t));
        assert_eq!(thetas, [1_537, 2_049, 2_049]);
        assert_eq!(base.d, 160_375_076);
        assert_eq!(part(&base, "e.trunk"), 23_500_352);
        assert_eq!(base.e, 91_608_880);
    }

    #[test]
    fn the_other_rows_have_theirs() {
        for (preset, overrides, g) in [
            ("small_g64", &[][..], 31_850_756),
            ("small_g32", &[], 8_415_428),
            ("hi_e_g64", &[], 70_111_236),
            ("hi_e_g256", &[], 81_969_732),
            // A thousand classes have a thousand embedding rows instead of one.
            ("base", &["g.shared_dim=128"], 70_433_988 - 999 * 128),
        ] {
            assert_eq!(counts(preset, overrides).g, g, "{preset}");
        }
        for (preset, trunk) in [
            ("r101", 42_492_480),
            ("r50x2", 93_891_712),
            ("rev50", 5_408_640),
            ("rev50x2", 21_505_792),
            ("rev50x4", 85_765_632),
        ] {
            assert_eq!(part(&counts(preset, &[]), "e.trunk"), trunk, "{preset}");
        }
        assert_eq!(counts("rev50x4", &[]).e, 204_205_808);
        assert_eq!(part(&counts("hi_e_g256", &[]), "f"), 97_688_353);
        assert_eq!(part(&counts("hi_e_g64", &[]), "f"), 43_974_433);
        assert_eq!(part(&counts("det_e", &[]), "e.head"), 491_640);
    }

    #[test]
    fn a_plain_gan_has_no_encoder_and_no_latent_parts() {
        let plain = counts("no_e", &[]);
        let names: Vec<_> = plain.parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!((plain.e, names), (0, vec!["g", "f", "theta_x"]));
    }

    #[test]
    fn a_step_of_the_high_resolution_model_costs_what_was_worked_out_by_hand() {
        let config = Config::resolve(&Origin::Preset("hi_e"), &[]).unwrap();
        let counts = Counts::of(&config);
        let hi_e = Cost::of(&config, &counts);
        let flop = |name| hi_e.modules.iter().find(|m| m.name == name).unwrap().flop / 1e9;
        // Published counts, whose shortcuts run at the high resolution; ours at the low one.
        assert!((39.5..42.3).contains(&flop("G")), "{}", flop("G"));
        assert!((20.5..21.7).contains(&flop("F")), "{}", flop("F"));
        assert!((10.4..10.9).contains(&flop("E")), "{}", flop("E"));
        assert!((570.0..595.0).contains(&(hi_e.step_flop / 1e9)), "{}", hi_e.step_flop);
        assert!((4.3e9..4.6e9).contains(&(counts.checkpoint_bytes as f64)));
    }

    #[test]
    fn the_parameters_of_every_preset_are_as_they_were() {
        let mut lines = String::new();
        for (name, _) in PRESETS {
            let counts = counts(name, &[]);
            lines.push_str(name);
            for part in &counts.parts {
                lines.push_str(&format!(" {}={}", part.name, part.parameters));
            }
            lines.push_str(&format!(" checkpoint={}\n", counts.checkpoint_bytes));
        }
        insta::assert_snapshot!(lines);
    }

    #[test]
    fn digits_are_grouped_in_threes() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}

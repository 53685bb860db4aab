//! How large a configured model is, without building its weights.

use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use tch::{Device, Kind};

use crate::config::Config;
use crate::model::{Discriminator, Encoder, Generator};
use crate::nn::{Fill, Params};

/// Trainable values of each part. Weights, biases and BN gains and shifts count; singular vectors
/// and running statistics do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Part and number of parameters, in the order G, E, F, H, J, θ.
    pub parts: Vec<(String, usize)>,
    /// Sum of G.
    pub g: usize,
    /// Sum of E, 0 without an encoder.
    pub e: usize,
    /// Sum of D.
    pub d: usize,
}

impl Counts {
    /// Counts the model of a configuration. Memory is reserved but never touched.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let kinds = (Kind::Float, Device::Cpu);
        let (_, g) =
            Params::build(kinds, Fill::Unset, |s| Generator::new(s, config.g, config.latent));
        let e = config.loss.encode().then(|| {
            Params::build(kinds, Fill::Unset, |s| Encoder::new(s, config.e, config.latent)).1
        });
        let (_, d) = Params::build(kinds, Fill::Unset, |s| {
            Discriminator::new(s, config.discriminator(), config.latent)
        });
        let mut parts = vec![("g".to_owned(), g.count())];
        parts.extend(e.iter().flat_map(|e| by_head("e.", e)));
        parts.extend(by_head("", &d));
        Self { parts, g: g.count(), e: e.map_or(0, |e| e.count()), d: d.count() }
    }

    /// All parameters.
    #[must_use]
    pub fn total(&self) -> usize {
        self.g + self.e + self.d
    }

    /// One JSON object: each part's count, then the sums `G`, `E`, `D` and `all`, as integers.
    #[must_use]
    pub fn json(&self) -> String {
        let sums = [("G", self.g), ("E", self.e), ("D", self.d), ("all", self.total())];
        let sums = sums.into_iter().map(|(name, count)| (name.to_owned(), count.into()));
        let parts = self.parts.iter().map(|(name, count)| (name.clone(), (*count).into()));
        serde_json::Value::Object(parts.chain(sums).collect()).to_string()
    }

    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_HORIZONTAL_ONLY).set_header(["part", "parameters"]);
        let sums = [("G", self.g), ("E", self.e), ("D", self.d), ("all", self.total())];
        let parts = self.parts.iter().map(|(name, count)| (name.as_str(), *count));
        for (name, count) in parts.chain(sums) {
            table.add_row([name.to_owned(), grouped(count)]);
        }
        table.to_string()
    }
}

/// Sums by the first word of the parameters' names, in order of appearance.
fn by_head(prefix: &str, params: &Params) -> Vec<(String, usize)> {
    let mut parts: Vec<(String, usize)> = vec![];
    for (name, tensor) in params.parameters() {
        let head = format!("{prefix}{}", name.split('.').next().unwrap_or(name));
        match parts.iter_mut().find(|(part, _)| *part == head) {
            Some((_, sum)) => *sum += tensor.numel(),
            None => parts.push((head, tensor.numel())),
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
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Origin, PRESETS};

    fn counts(preset: &str, overrides: &[&str]) -> Counts {
        let overrides: Vec<_> = overrides.iter().map(|s| (*s).to_owned()).collect();
        Counts::of(&Config::resolve(&Origin::Preset(preset), &overrides).unwrap())
    }

    fn part(counts: &Counts, name: &str) -> usize {
        counts.parts.iter().find(|(n, _)| n == name).unwrap().1
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
        let names: Vec<_> = plain.parts.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!((plain.e, names), (0, vec!["g", "f", "theta_x"]));
    }

    #[test]
    fn every_preset_can_be_counted() {
        for (name, _) in PRESETS {
            assert!(counts(name, &[]).total() > 0);
        }
    }

    #[test]
    fn digits_are_grouped_in_threes() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}

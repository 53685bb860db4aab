use serde::{Deserialize, Serialize};

/// Losses past the paper; all off unless a weight is above 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct BeyondConfig {
    pub contrast: f64,
    pub codes: f64,
    pub temperature: f64,
    pub least_area: f64,
    pub colour: f64,
    pub width: i64,
    pub rate: f64,
}

impl BeyondConfig {
    /// Whether any of them counts.
    #[must_use]
    pub fn any(&self) -> bool {
        self.contrast > 0.0 || self.codes > 0.0
    }

    /// Passes of E, forward and backward, that they add to a step.
    #[must_use]
    pub fn passes(&self) -> f64 {
        [self.contrast, self.codes].into_iter().filter(|weight| *weight > 0.0).count() as f64
    }

    /// What is wrong with it, for a model that has an encoder or not.
    pub(super) fn problems(&self, encodes: bool) -> Vec<String> {
        let mut problems = vec![];
        let mut require = |ok: bool, problem: String| {
            if !ok {
                problems.push(problem);
            }
        };
        for (key, weight) in [("contrast", self.contrast), ("codes", self.codes)] {
            let good = weight >= 0.0 && weight.is_finite();
            require(good, format!("beyond.{key} = {weight} is not a weight from 0 on"));
        }
        let (temperature, rate) = (self.temperature, self.rate);
        let good = (1e-3..=1e3).contains(&temperature);
        require(good, format!("beyond.temperature = {temperature} is not from 0.001 to 1000"));
        let good = rate > 0.0 && rate.is_finite();
        require(good, format!("beyond.rate = {rate} is not above 0"));
        let (area, colour) = (self.least_area, self.colour);
        let good = area > 0.0 && area <= 1.0;
        require(good, format!("beyond.least_area = {area} is not above 0 and at most 1"));
        let good = (0.0..=1.0).contains(&colour);
        require(good, format!("beyond.colour = {colour} is not in [0, 1]"));
        let good = (1..=65_536).contains(&self.width);
        require(good, format!("beyond.width = {} is not from 1 to 65536", self.width));
        let problem =
            "beyond.contrast and beyond.codes teach E, which loss.sxz and loss.sz switch off";
        require(encodes || !self.any(), problem.to_owned());
        problems
    }
}

use serde::{Deserialize, Serialize};

/// What DiffAugment does to the images D sees; in the configuration their names with commas between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[allow(missing_docs, reason = "docs/beyond.md says what each does")]
pub struct AugmentConfig {
    pub colour: bool,
    pub translation: bool,
    pub cutout: bool,
}

impl AugmentConfig {
    /// Whether it does anything.
    #[must_use]
    pub fn any(&self) -> bool {
        self.colour || self.translation || self.cutout
    }
}

impl TryFrom<String> for AugmentConfig {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut config = Self { colour: false, translation: false, cutout: false };
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let part = match name {
                "colour" => &mut config.colour,
                "translation" => &mut config.translation,
                "cutout" => &mut config.cutout,
                _ => {
                    return Err(format!(
                        "no {name:?} is known: some of \"colour,translation,cutout\", or \"\""
                    ));
                }
            };
            *part = true;
        }
        Ok(config)
    }
}

impl From<AugmentConfig> for String {
    fn from(config: AugmentConfig) -> Self {
        let AugmentConfig { colour, translation, cutout } = config;
        let all = [(colour, "colour"), (translation, "translation"), (cutout, "cutout")];
        let names: Vec<_> = all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
        names.join(",")
    }
}

/// Losses past the paper; all off unless a weight is above 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct BeyondConfig {
    pub contrast: f64,
    pub codes: f64,
    pub reconstruct: f64,
    pub augment: AugmentConfig,
    pub temperature: f64,
    pub least_area: f64,
    pub colour: f64,
    pub width: i64,
    pub rate: f64,
}

impl BeyondConfig {
    /// The weights, by key.
    fn weights(&self) -> [(&'static str, f64); 3] {
        let Self { contrast, codes, reconstruct, .. } = *self;
        [("contrast", contrast), ("codes", codes), ("reconstruct", reconstruct)]
    }

    /// Whether any loss counts.
    #[must_use]
    pub fn any(&self) -> bool {
        self.weights().iter().any(|(_, weight)| *weight > 0.0)
    }

    /// Passes of E, forward and backward, that the losses add to a step.
    #[must_use]
    pub fn passes(&self) -> f64 {
        [self.contrast, self.codes].into_iter().filter(|weight| *weight > 0.0).count() as f64
    }

    /// What is wrong with it, for a model that has an encoder or not.
    pub(crate) fn problems(&self, encodes: bool) -> Vec<String> {
        let mut problems = vec![];
        let mut require = |ok: bool, problem: String| {
            if !ok {
                problems.push(problem);
            }
        };
        for (key, weight) in self.weights() {
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
        let problem = "the losses of [beyond] teach E, which loss.sxz and loss.sz switch off";
        require(encodes || !self.any(), problem.to_owned());
        problems
    }
}

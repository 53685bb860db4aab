use bigbigan_model::config::{
    BeyondConfig, EncoderConfig, GeneratorConfig, ImageConfig, LatentConfig, MlpConfig, OptConfig,
    Precision, Terms,
};
use serde::{Deserialize, Serialize};

/// The whole configuration of a run. Every key has its meaning in `presets/base.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// z.
    pub latent: LatentConfig,
    /// The generator.
    pub g: GeneratorConfig,
    /// D's image part.
    pub f: ImageConfig,
    /// D's latent part.
    pub h: MlpConfig,
    /// D's joint part.
    pub j: MlpConfig,
    /// The encoder.
    pub e: EncoderConfig,
    /// Which terms count.
    pub loss: Terms,
    /// Losses past the paper.
    pub beyond: BeyondConfig,
    /// Optimisers and averages.
    pub opt: OptConfig,
    /// The training loop.
    pub train: TrainConfig,
    /// The input pipeline.
    pub data: DataConfig,
    /// What to do when numbers go wrong.
    pub health: HealthConfig,
    /// Several processes.
    pub dist: DistConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
    /// Statistics.
    pub log: LogConfig,
    /// Pictures.
    pub images: ImagesConfig,
    /// Evaluation inside the run.
    pub eval: EvalConfig,
}

/// The loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct TrainConfig {
    pub batch: i64,
    pub micro_batch: i64,
    pub steps: u64,
    pub d_steps: u32,
    pub seed: u64,
    pub max_minutes: f64,
    pub device: String,
    pub precision: Precision,
    pub graphs: bool,
    pub deterministic: bool,
}

/// What becomes of a run whose numbers go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct HealthConfig {
    pub on_fault: OnFault,
    pub patience: u64,
}

/// What to do about a loss, gradient or weight that is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFault {
    /// End the run.
    Halt,
    /// Leave the update out.
    Skip,
    /// Go back to the newest checkpoint and on with other images and latents.
    Rollback,
}

/// The input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct DataConfig {
    pub dir: String,
    pub mode: pipeline::Mode,
    pub filter: pipeline::Filter,
    pub shuffle: pipeline::Shuffle,
    pub threads: usize,
    pub depth: usize,
    pub max_bad_share: f64,
    pub read_ahead_mb: u64,
    pub cache: String,
    pub cache_mb: u64,
}

/// Several processes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct DistConfig {
    pub join: f64,
    pub timeout: f64,
    pub silence: f64,
    pub check_every: u64,
}

/// Checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct CheckpointConfig {
    pub every: u64,
    pub keep: usize,
    pub keep_every: u64,
    pub best: String,
    pub mirror: String,
}

/// Statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct LogConfig {
    pub every: u64,
}

/// Pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct ImagesConfig {
    pub every: u64,
    pub columns: i64,
    pub rows: i64,
    pub standing_images: i64,
}

/// Evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "every key has its meaning in presets/base.toml")]
pub struct EvalConfig {
    #[serde(default)] // runs of before it have none
    pub every: u64,
    pub mode: pipeline::Mode,
    pub split: String,
    pub probe_images: usize,
    pub probe_steps: u64,
}

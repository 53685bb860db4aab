//! What follows from a configuration, and what does not hold together in it.

use std::time::Duration;

use bigbigan_model::config::{Recipe, StepConfig};
use bigbigan_model::presets::refuse;
use dist::Limits;

use super::secrets::without_secrets;
use super::{Config, OnFault};
use crate::error::{Error, Result};

impl Config {
    /// What state and step need of it.
    #[must_use]
    pub fn recipe(&self) -> Recipe {
        let Self { latent, g, f, h, j, e, loss, beyond, opt, .. } = *self;
        let t = &self.train;
        let train = StepConfig {
            batch: t.batch,
            micro_batch: t.micro_batch,
            steps: t.steps,
            d_steps: t.d_steps,
            seed: t.seed,
            precision: t.precision,
            graphs: t.graphs,
            deterministic: t.deterministic,
        };
        let skip_faults = self.health.on_fault == OnFault::Skip;
        Recipe { latent, g, f, h, j, e, loss, beyond, opt, train, skip_faults }
    }

    /// How long a session may train; none without a bound, or with one that no clock reaches.
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        let minutes = Some(self.train.max_minutes).filter(|minutes| *minutes > 0.0)?;
        Duration::try_from_secs_f64(60.0 * minutes).ok()
    }

    /// How long ranks wait for each other.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let [join, timeout, silence] =
            [self.dist.join, self.dist.timeout, self.dist.silence].map(Duration::from_secs_f64);
        Limits { join, timeout, silence }
    }

    /// Images of a batch that each of `ranks` processes takes.
    ///
    /// # Errors
    /// [`Error::Config`] if they do not divide, or have graphs.
    pub fn rows(&self, ranks: usize) -> Result<usize> {
        let (batch, micro, ranks) = (self.train.batch, self.recipe().micro_batch(), ranks as i64);
        if self.train.graphs && ranks > 1 {
            let problem = "train.graphs = true is for a process alone; say false for several ranks";
            return Err(Error::Config { problems: vec![problem.to_owned()] });
        }
        if micro % ranks == 0 {
            return Ok((batch / ranks) as usize);
        }
        let problem = format!(
            "{ranks} ranks do not divide a pass of {micro} images (train.batch = {batch}, \
             train.micro_batch = {}); change one of them",
            self.train.micro_batch
        );
        Err(Error::Config { problems: vec![problem] })
    }

    pub(super) fn check(&self) -> Result<()> {
        let mut problems = self.recipe().problems();
        let mut require = |ok: bool, problem: String| {
            if !ok {
                problems.push(problem);
            }
        };
        let side = if self.loss.encode() { self.e.res } else { self.g.res };
        for (key, mode) in [("data.mode", self.data.mode), ("eval.mode", self.eval.mode)] {
            let fits = mode.check(side.max(1) as usize);
            require(fits.is_ok(), format!("{key}: {}", fits.err().unwrap_or_default()));
        }
        require(
            self.train.max_minutes >= 0.0,
            format!("train.max_minutes = {} < 0", self.train.max_minutes),
        );
        require(self.health.patience > 0, "health.patience = 0; give a number of faults".into());
        require(self.log.every > 0, "log.every = 0; give a number of steps".into());
        require(self.checkpoint.keep > 0, "checkpoint.keep = 0 would keep none".into());
        let best = &self.checkpoint.best;
        require(
            best.is_empty() || best.contains('.'),
            format!(
                "checkpoint.best = {best:?} is not METRIC.KEY, such as \"linear_probe_bn_crelu.top1\""
            ),
        );
        let (mirror, kinds) = (&self.checkpoint.mirror, ["s3://", "gs://", "az://", "file:///"]);
        require(
            mirror.is_empty() || kinds.iter().any(|kind| mirror.starts_with(kind)),
            format!(
                "checkpoint.mirror = {:?} is not an s3://, gs://, az:// or file:/// URL",
                without_secrets(mirror)
            ),
        );
        require(self.images.columns > 0, "images.columns = 0".into());
        require(self.images.rows > 0, "images.rows = 0".into());
        let megabytes = 16..=1 << 30;
        for (key, value) in
            [("read_ahead_mb", self.data.read_ahead_mb), ("cache_mb", self.data.cache_mb)]
        {
            let problem = format!("data.{key} = {value} is not from 16 to 2^30");
            require(megabytes.contains(&value), problem);
        }
        require(self.data.depth > 0, "data.depth = 0; a batch ahead is the least".into());
        require(
            (0.0..1.0).contains(&self.data.max_bad_share),
            format!("data.max_bad_share = {} is not in [0, 1)", self.data.max_bad_share),
        );
        let d = &self.dist;
        for (key, value) in
            [("dist.join", d.join), ("dist.timeout", d.timeout), ("dist.silence", d.silence)]
        {
            let good = (1.0..=86_400.0).contains(&value);
            require(good, format!("{key} = {value} is not 1 to 86400 seconds"));
        }
        Ok(refuse(problems)?)
    }
}

//! How long to wait for an answer.

use std::time::Duration;

/// How long answers that came whole or stalled were silent: a mean and a mean deviation over the last ones, as TCP
/// keeps them of its round trips.
#[derive(Debug, Default)]
pub(super) struct Silence {
    mean: Option<Duration>,
    deviation: Duration,
}

impl Silence {
    /// No patience is shorter: a lost packet or a busy machine takes as long by itself.
    pub(super) const LEAST: Duration = Duration::from_millis(500);

    pub(super) fn heard(&mut self, silence: Duration) {
        let mean = self.mean.unwrap_or(silence);
        self.deviation = (3 * self.deviation + mean.abs_diff(silence)) / 4;
        self.mean = Some((7 * mean + silence) / 8);
    }

    /// How long to wait for a byte, `most` at most.
    pub(super) fn patience(&self, most: Duration) -> Duration {
        self.mean.map_or(most, |mean| (mean + 4 * self.deviation).max(Self::LEAST).min(most))
    }
}

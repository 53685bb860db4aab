//! What a run says of its steps.

use std::time::Instant;

use bigbigan_model::step::Losses;
use tch::Tensor;
use torch_ext::measure;

use super::{Mark, Run};
use crate::error::{Error, Result};
use crate::log::StatsLine;

impl Run {
    pub(super) fn mark(&self) -> Mark {
        Mark { time: Instant::now(), done: self.done, waited: self.feed.waited, aside: self.aside }
    }

    /// Reads the losses back (with the faults, the only wait for the device) and the clock since
    /// `from`. Only rank 0 gets a line, and none where no step was done since.
    pub(super) fn line(&self, from: Mark, losses: &Losses) -> Result<Option<StatsLine>> {
        let (step, steps) = (self.state.step, self.done - from.done);
        if steps == 0 {
            return Ok(None);
        }
        let [loss_d, loss_g] = [&losses.d, &losses.g].map(|loss| loss.double_value(&[]));
        let of = |loss: &Option<Tensor>| loss.as_ref().map(|loss| loss.double_value(&[]));
        let (loss_e, loss_further) = (of(&losses.e), of(&losses.further));
        let aside = self.aside - from.aside;
        let seconds = (from.time.elapsed() - aside).as_secs_f64();
        let step_seconds = seconds / steps as f64;
        let images_per_s = self.config.train.batch as f64 / step_seconds;
        let waited = (self.feed.waited - from.waited).as_secs_f64();
        let [waited, bad] = self.world.sums([waited, self.feed.loader.stats().bad as f64]);
        let (waited, bad_images) = (waited / self.world.size() as f64, bad as u64);
        let recorder = self.recorder.as_ref();
        let measure = || recorder.map(|r| Ok::<_, Error>((r.signals(&self.state)?, r))).transpose();
        let Some((health, recorder)) = self.world.lead("measure health", measure)?.flatten() else {
            return Ok(None);
        };
        let device = torch_ext::cuda::max_memory_allocated(self.feed.device)?;
        let memory = device.map_or_else(measure::resident_bytes, |bytes| bytes as f64);
        let flops = images_per_s * recorder.step_flop;
        let opt = &self.config.opt;
        // Of the step that was made.
        let rate = |of: f64| of * self.config.recipe().rate_factor(step - 1);
        Ok(Some(StatsLine {
            step,
            loss_d,
            loss_g,
            loss_e,
            lr_d: Some(rate(opt.lr_d)),
            lr_g: Some(rate(opt.lr_g)),
            lr_e: loss_e.map(|_| rate(opt.lr_g * opt.e_lr_mult)),
            lr_further: loss_further.map(|_| rate(self.config.beyond.rate)),
            loss_further,
            images_per_s,
            images_read_per_s: images_per_s * f64::from(self.config.train.d_steps + 1),
            data_wait_percent: 100.0 * waited / seconds,
            step_seconds,
            bad_images,
            epoch: self.cursor.epoch,
            remote: self.data.traffic(),
            gflop_per_s: flops / 1e9,
            mfu_percent: recorder.peak.map(|peak| 100.0 * flops / peak),
            memory_gb: memory / 1e9,
            checkpoint_held_s: None,
            aside_s: (!aside.is_zero()).then_some(aside.as_secs_f64()),
            checkpoint_write_s: None,
            mirrored_step: None,
            write_errors: 0,
            health,
        }))
    }

    pub(super) fn log_statistics(&mut self, mut line: StatsLine) {
        let saved = self.saved();
        line.checkpoint_held_s = saved.as_ref().map(|saved| saved.held.as_secs_f64());
        line.checkpoint_write_s = saved.map(|saved| saved.writing.as_secs_f64());
        line.mirrored_step = self.mirrored();
        if let Some(recorder) = &mut self.recorder {
            recorder.statistics(line);
        }
    }
}

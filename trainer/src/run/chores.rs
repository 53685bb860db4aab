//! What is due between two steps: checkpoints, pictures and probes.

use super::Run;
use crate::error::Result;

impl Run {
    /// Whether something is due between this step and the next.
    pub(super) fn has_chores(&self) -> bool {
        let c = &self.config;
        let some = [c.images.every, c.eval.every, c.checkpoint.every];
        self.state.step < c.train.steps && some.into_iter().any(|every| self.due(every))
    }

    /// Checkpoints, pictures and probes between the first and the last step: those that are due.
    pub(super) fn chores(&mut self) -> Result<()> {
        let (draw, measure) =
            (self.due(self.config.images.every), self.due(self.config.eval.every));
        // What may prove the best must be there to be kept.
        let candidate = measure && !self.config.checkpoint.best.is_empty();
        if self.due(self.config.checkpoint.every) || candidate {
            if !self.check_last_step()? {
                return Ok(());
            }
            self.save()?;
        }
        if draw || measure { self.pictures_and_probes(draw, measure) } else { Ok(()) }
    }

    /// What the session before was stopped in: pictures and probes of the step it ended with.
    pub(super) fn chores_owed(&mut self) -> Result<()> {
        let step = self.state.step;
        if step >= self.config.train.steps {
            return Ok(());
        }
        let drawn = self.out.join(format!("images/live-{step:08}.png")).exists();
        let draw = self.due(self.config.images.every) && !drawn;
        let measured = self.recorder.as_mut().is_some_and(|r| r.has_metrics(step));
        let measure = self.due(self.config.eval.every) && !measured;
        self.pictures_and_probes(draw, measure)
    }

    fn pictures_and_probes(&mut self, draw: bool, measure: bool) -> Result<()> {
        let world = self.world.clone();
        let work = || {
            let done = self.evaluate_now(draw, measure);
            match (done, &mut self.recorder) {
                // The loop sees it too; what was left out is owed.
                (Err(e), _) if e.is_stop() => {}
                (done, Some(recorder)) => drop(recorder.tried("pictures and probes", done)),
                _ => {}
            }
            Ok(())
        };
        world.lead("pictures and probes", work).map(|_| ())
    }

    pub(super) fn due(&self, every: u64) -> bool {
        every > 0 && self.state.step.is_multiple_of(every)
    }
}

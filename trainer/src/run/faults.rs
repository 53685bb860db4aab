//! What becomes of a step whose numbers are not finite.

use bigbigan_model::step::faulty;
use serde::Serialize;
use tch::Tensor;
use torch_ext::stream::Deferred;

use super::Run;
use super::recorder::Recorder;
use super::start::{load, set_aside_after};
use crate::config::{HealthConfig, OnFault};
use crate::error::{Error, Result};

/// A line of `incidents.jsonl`.
#[derive(Debug, Serialize)]
pub(super) struct Incident<'a> {
    step: u64,
    network: &'a str,
    incident: &'a str,
    done: OnFault,
}

impl Run {
    /// Reads what the last step said of itself: before anything is saved, and at the end. False if
    /// training went back.
    pub(super) fn check_last_step(&mut self) -> Result<bool> {
        let last = self.unread.take();
        self.act_on_faults(last)
    }

    /// As [`Run::check_last_step`], of the updates of D of a step that is not done. A fault that is left out is
    /// judged with the whole step.
    pub(super) fn check_pending_d(&mut self) -> Result<bool> {
        let Some(d) = &self.state.pending_d else { return Ok(true) };
        let faults = Tensor::stack(&[&d.update.fault], 0);
        match self.config.health.on_fault {
            OnFault::Skip => Ok(true),
            OnFault::Halt | OnFault::Rollback => {
                self.act_on_faults(Some((self.state.step + 1, Deferred::of(&faults)?)))
            }
        }
    }

    /// Does what `health.on_fault` says about a faulty step. False if training went back.
    pub(super) fn act_on_faults(&mut self, step: Option<(u64, Deferred)>) -> Result<bool> {
        let Some((step, faults)) = step else { return Ok(true) };
        let faults = Vec::<f32>::try_from(faults.read())?;
        let Some(network) = faulty(&faults) else {
            self.faults = 0;
            return Ok(true);
        };
        self.faults += 1;
        let HealthConfig { on_fault, patience } = self.config.health;
        let given_up = match on_fault {
            OnFault::Halt => true,
            OnFault::Skip => self.faults > patience,
            OnFault::Rollback => self.state.rollbacks >= patience,
        };
        let what = if given_up { OnFault::Halt } else { on_fault };
        let incident = Incident { step, network, incident: "not_finite", done: what };
        if let Some(recorder) = &mut self.recorder {
            recorder.incident(&incident);
        }
        match what {
            OnFault::Halt => Err(Error::Diverged { network, step }),
            OnFault::Skip => {
                self.say(&format!("step {step}: loss_{network} not finite: left out"));
                Ok(true)
            }
            OnFault::Rollback => self.go_back(step, network).map(|()| false),
        }
    }

    /// Takes up the newest checkpoint again, and goes on with the images that come next.
    pub(super) fn go_back(&mut self, step: u64, network: &str) -> Result<()> {
        self.write_out()?;
        let rollbacks = self.state.rollbacks + 1;
        let world = self.world.clone();
        let ours = || self.recorder.as_ref().map_or(Ok(()), Recorder::ours);
        world.lead("look at the folder", ours)?;
        let (found, loaded) =
            load(&self.config, &self.out, &self.data, self.feed.device, &world, |_| Ok(()))?;
        self.state = loaded.state;
        let set_aside = || set_aside_after(&self.out, found.as_deref());
        world.lead("set aside what does not load", set_aside)?;
        self.state.rollbacks = rollbacks;
        self.cursor = self.feed.cursor;
        self.unread = None;
        let step_now = self.state.step;
        if let Some(writer) = &mut self.checkpoints {
            writer.go_back();
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.go_back(step_now);
            recorder
                .say(&format!("step {step}: loss_{network} not finite: back to step {step_now}"));
        }
        Ok(())
    }
}

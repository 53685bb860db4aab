//! What a run shows and measures of its model: pictures and probes.

use std::sync::Arc;

use common::files::replace_file;
use pipeline::Dataset;
use tch::Tensor;

use super::recorder::Recorder;
use super::{EVALUATED, Run, open_data};
use crate::error::{Error, Result};
use crate::eval::features::Feature;
use crate::eval::linear::{self, Protocol, Selection};
use crate::eval::{Model, pictures};

impl Run {
    /// Pictures and probes of the averaged weights as they are.
    pub(super) fn evaluate_now(&mut self, draw: bool, measure: bool) -> Result<()> {
        if !draw && !measure {
            return Ok(());
        }
        let model = Model::averaged(&self.config, &self.state, Some(&self.data), &self.stop)?;
        if draw {
            self.pictures(&model, &format!("-{:08}", self.state.step))?;
        }
        // Models are chosen on trainval where there is one (paper App. A).
        let split = if self.has_split("trainval") { "trainval" } else { &self.config.eval.split };
        if measure && let Some(task) = self.probing(split)? {
            self.probe(&task, &model)?;
        }
        Ok(())
    }

    /// The last pictures and, where asked for, the probe.
    pub(super) fn evaluate(&mut self) -> Result<Option<(linear::Line, linear::Line)>> {
        let model = Model::averaged(&self.config, &self.state, Some(&self.data), &self.stop)?;
        self.pictures(&model, "")?;
        let mut probe = None;
        if let Some(task) = self.probing(&self.config.eval.split)? {
            self.say("probing the encoder's features with a linear classifier …");
            // What the session before was stopped in is done again, not once more.
            let owed = self.done == 0 && self.state.step >= self.config.train.steps;
            if owed && let Some(recorder) = &mut self.recorder {
                recorder.metrics_again(self.state.step, &self.config.eval.split);
            }
            let trained = self.probe(&task, &model)?;
            let (device, stop) = (model.device(), &self.stop);
            let untrained = Model::untrained(&self.config, device, &self.data, stop)?;
            probe = Some((trained, self.probe(&task, &untrained)?));
        }
        // Where something of it is not on the disk, going on makes it again.
        if self.recorder.as_ref().is_some_and(|recorder| !recorder.incomplete()) {
            let path = self.out.join(EVALUATED);
            let step = self.state.step.to_string();
            self.recorder.as_ref().map_or(Ok(()), Recorder::ours)?;
            replace_file(&path, step.as_bytes()).map_err(Error::io("write", &path))?;
        }
        Ok(probe)
    }

    /// What the run's own probes do, tested on `split`; `None`, with the reason said, where none can
    /// be made.
    fn probing(&self, split: &str) -> Result<Option<linear::Task>> {
        let c = &self.config;
        if c.eval.probe_images == 0 || !c.loss.encode() {
            return Ok(None);
        }
        let Some(test) = self.split(split)? else {
            self.say(&format!("no split {split:?} in the data: no probe"));
            return Ok(None);
        };
        if self.data.label(0).is_none() || test.label(0).is_none() {
            self.say("the images have no labels: no probe");
            return Ok(None);
        }
        Ok(Some(linear::Task {
            features: vec![Feature::AvePool, Feature::BnCrelu],
            protocol: Protocol { steps: c.eval.probe_steps, ..Protocol::table1(c.train.seed) },
            train: self.data.clone(),
            images: c.eval.probe_images,
            fresh_crops: false,
            selection: Selection::None,
            test,
        }))
    }

    /// Writes the probes' lines; returns that of BN+CReLU.
    fn probe(&mut self, task: &linear::Task, model: &Model) -> Result<linear::Line> {
        let mut lines = task.run(model)?;
        for line in &mut lines {
            line.subject.step = self.state.step; // of the initial weights too: resuming drops by step
            if let Some(recorder) = &mut self.recorder {
                recorder.metric(line);
            }
        }
        Ok(lines.pop().expect("a line for each feature"))
    }

    fn pictures(&mut self, model: &Model, suffix: &str) -> Result<()> {
        let (c, step) = (&self.config, self.state.step);
        let columns = c.images.columns as u32;
        let samples = model.generate(&model.latents(0, c.images.columns * c.images.rows));
        let mut all = vec![("samples", pictures::grid(&samples, columns))];
        if c.loss.encode() {
            let split = self.split(&c.eval.split)?.unwrap_or_else(|| {
                let missing = &c.eval.split;
                self.say(&format!(
                    "no split {missing:?} in the data: reconstructions show training images"
                ));
                self.data.clone()
            });
            all.push(("reconstructions", reconstructions(model, &split, false)?));
        }
        let Some(recorder) = &mut self.recorder else { return Ok(()) };
        for (name, picture) in all {
            recorder.picture(step, name, suffix, &picture);
        }
        recorder.live(&self.state, suffix);
        Ok(())
    }

    /// A split, if the data folder has it.
    fn split(&self, name: &str) -> Result<Option<Arc<Dataset>>> {
        self.has_split(name).then(|| open_data(&self.config, name)).transpose()
    }

    fn has_split(&self, name: &str) -> bool {
        self.data.index().splits().iter().any(|split| split.name == name)
    }
}

/// Tiles x | G(μ(x)) of the first images of a split, in the grid of `images`; with `sampled` also G(ẑ)
/// of a draw ẑ from the code.
///
/// # Errors
/// [`Error::Data`], or [`Error::Config`] without an encoder.
pub fn reconstructions(
    model: &Model,
    split: &Arc<Dataset>,
    sampled: bool,
) -> Result<image::RgbImage> {
    let c = model.config().images;
    let columns = (c.columns / 2).max(1);
    let mut tiles = vec![];
    for images in model.images(split, model.config().eval.mode, columns * c.rows)? {
        let images = images?;
        let mut tile = pictures::pairs(&images.small, &model.reconstruct(&images)?);
        if sampled {
            tile = pictures::pairs(&tile, &model.reconstruct_sampled(&images)?);
        }
        tiles.push(tile);
    }
    Ok(pictures::grid(&Tensor::cat(&tiles, 0), columns as u32))
}

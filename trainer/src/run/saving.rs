//! Checkpoints of a run, and its copy elsewhere.

use super::session::newest_of;
use super::sessions::HasSaved;
use super::{CHECKPOINT, MIRROR, Run};
use crate::checkpoint::{Keep, Position, Saved, Writer};
use crate::config::CheckpointConfig;
use crate::error::{Error, Result};

impl Run {
    /// Says what the checkpoint took that reached the disk since the last call, if one did, and why one did
    /// not.
    pub(super) fn saved(&mut self) -> Option<Saved> {
        let (Some(writer), Some(recorder)) = (&mut self.checkpoints, &mut self.recorder) else {
            return None;
        };
        let saved = match writer.saved() {
            Ok(saved) => saved?,
            Err(e) => {
                recorder.tried(CHECKPOINT, Err::<(), _>(e));
                return None;
            }
        };
        recorder.tried(CHECKPOINT, Ok(()));
        recorder.say(&format!(
            "{}: {:.2} GB saved; training held up {:.2} s, written in {:.2} s",
            saved.name,
            saved.bytes as f64 / 1e9,
            saved.held.as_secs_f64(),
            saved.writing.as_secs_f64()
        ));
        let removed = saved.not_removed.clone().map_or(Ok(()), |reason| {
            Err(Error::Checkpoint { path: self.out.join("checkpoints"), reason })
        });
        recorder.tried("removal of old checkpoints", removed);
        if let Some(mirror) = &mut self.mirror {
            mirror.wanted(self.keep);
        }
        Some(saved)
    }

    /// Begins to write a checkpoint. Where that fails it is said, the ones before stay, and the next
    /// interval tries again.
    pub(super) fn save(&mut self) -> Result<()> {
        let world = self.world.clone();
        let save = || {
            let mut begun = self.begin_save();
            if begun.is_err() {
                // Of the checkpoint before; this one was not begun for it.
                self.failed(begun);
                begun = self.begin_save();
            }
            self.failed(begun);
            Ok(())
        };
        world.lead("save", save).map(|_| ())
    }

    /// Writes a checkpoint and waits until it is on the disk.
    pub(super) fn save_at_the_end(&mut self) -> Result<()> {
        let world = self.world.clone();
        let save = || {
            let mut saved = self.save_whole();
            if saved.is_err() {
                self.failed(saved);
                saved = self.save_whole();
            }
            saved
        };
        world.lead("save", save)?;
        self.saved();
        Ok(())
    }

    pub(super) fn save_whole(&mut self) -> Result<()> {
        self.begin_save()?;
        self.checkpoints.as_mut().map_or(Ok(()), Writer::finish)
    }

    pub(super) fn begin_save(&mut self) -> Result<()> {
        let (Some(writer), Some(recorder)) = (&mut self.checkpoints, &mut self.recorder) else {
            return Ok(());
        };
        // Where all checkpoints are gone later, it was not by this run.
        if !self.saved_later
            && let Some(step) = newest_of(&self.out).filter(|step| *step > 0)
        {
            recorder.session(&HasSaved { event: "saved", step });
            self.saved_later = true;
        }
        let CheckpointConfig { keep: last, keep_every: every, best, .. } = &self.config.checkpoint;
        recorder.sync();
        // Where nobody can tell which is the best, none is removed this time.
        let (last, best) = recorder.best(best).map_or((usize::MAX, None), |best| (*last, best));
        self.keep = Keep { last, every: *every, best };
        let (fingerprint, cursor) = (self.data.fingerprint(), self.cursor);
        writer.save(&self.state, Position { fingerprint, cursor }, self.keep)
    }

    pub(super) fn failed(&mut self, saved: Result<()>) {
        if let (Err(e), Some(recorder)) = (saved, &mut self.recorder) {
            recorder.tried(CHECKPOINT, Err::<(), _>(e));
        }
    }

    /// Waits until all checkpoints are on the disk.
    pub(super) fn write_out(&mut self) -> Result<()> {
        let world = self.world.clone();
        let finish = || {
            let finished = self.checkpoints.as_mut().map_or(Ok(()), Writer::finish);
            self.failed(finished);
            Ok(())
        };
        world.lead("save", finish).map(|_| ())
    }

    /// The step of the newest checkpoint in the mirror, where it was brought up to date since the last call.
    pub(super) fn mirrored(&mut self) -> Option<u64> {
        let (Some(mirror), Some(recorder)) = (&self.mirror, &mut self.recorder) else {
            return None;
        };
        let passed = mirror.passed()?;
        recorder.tried(MIRROR, passed)?.step
    }

    /// Brings all that there is to the mirror, and waits for it.
    pub(super) fn mirror_all(&mut self) {
        if let (Some(mirror), Some(recorder)) = (self.mirror.take(), &mut self.recorder) {
            recorder.say(&format!("bringing all to {}", mirror.url().display()));
            recorder.tried(MIRROR, mirror.finish(self.keep));
        }
    }
}

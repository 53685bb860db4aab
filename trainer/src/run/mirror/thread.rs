//! The thread that keeps a copy up to date.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::{Copied, Passed};
use crate::checkpoint::{Guard, Keep};
use crate::error::{Error, Result};

/// After a pass that took longer, no other is made at the end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pass that is asked for, and what stays by it.
type Wish = (u64, Keep);

/// A thread that keeps the copy up to date. It ends with the process; a pass that is cut short is nothing worse than one
/// that fails.
#[derive(Debug)]
pub(in crate::run) struct Mirror {
    url: PathBuf,
    wishes: Sender<Wish>,
    asked: u64,
    /// Which wish, and those before it, was done.
    done: Receiver<(u64, Result<Passed>)>,
}

impl Mirror {
    /// Nothing is brought there before [`Mirror::wanted`]. `guard` is asked before every pass.
    ///
    /// # Errors
    /// [`Error::Io`] where no thread starts.
    pub(in crate::run) fn start(mut copied: Copied, guard: Guard) -> Result<Self> {
        let (wishes, wanted) = channel::<Wish>();
        let (tell, done) = channel();
        let url = copied.url().to_owned();
        let work = move || {
            while let Ok(mut wish) = wanted.recv() {
                // What is there now is what counts.
                while let Ok(newer) = wanted.try_recv() {
                    wish = newer;
                }
                let passed = torch_ext::caught(|| guard.ask().and_then(|()| copied.pass(wish.1)));
                if tell.send((wish.0, passed)).is_err() {
                    return;
                }
            }
        };
        let spawned = std::thread::Builder::new().name("mirror".into()).spawn(work);
        spawned.map_err(Error::io("start a thread for", &url))?;
        Ok(Self { url, wishes, asked: 0, done })
    }

    /// Where the copy is, for people.
    pub(in crate::run) fn url(&self) -> &Path {
        &self.url
    }

    /// Asks for a pass, by which `keep` says what stays.
    pub(in crate::run) fn wanted(&mut self, keep: Keep) {
        self.asked += 1;
        // A thread that is gone is noticed where its outcome is waited for.
        let _ = self.wishes.send((self.asked, keep));
    }

    /// What came of the newest pass since the last call, if one ended.
    pub(in crate::run) fn passed(&self) -> Option<Result<Passed>> {
        self.done.try_iter().last().map(|(_, passed)| passed)
    }

    /// Waits for one more pass, and for another one where that fails soon.
    ///
    /// # Errors
    /// Those of the last pass.
    pub(in crate::run) fn finish(mut self, keep: Keep) -> Result<Passed> {
        let begun = Instant::now();
        match self.pass(keep) {
            // Where the network is away, it was waited for.
            Err(_) if begun.elapsed() < PATIENCE => self.pass(keep),
            passed => passed,
        }
    }

    fn pass(&mut self, keep: Keep) -> Result<Passed> {
        self.wanted(keep);
        loop {
            match self.done.recv() {
                Ok((of, passed)) if of == self.asked => return passed,
                Ok(_) => {}
                Err(_) => {
                    let reason =
                        "the thread that keeps it is gone: this is a bug; please report it";
                    let path = self.url.clone();
                    return Err(Error::Output { path, reason: reason.to_owned() });
                }
            }
        }
    }
}

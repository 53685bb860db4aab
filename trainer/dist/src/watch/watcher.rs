//! What the watching thread does at each tick.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use common::exit;
use torch_ext::c10d::Store;

use super::{Beat, DEAD, Pulse, SEARCH, TICK, VERDICT, Verdict, WISH, beat_key, leave};

/// Another rank as last seen.
#[derive(Debug)]
struct Seen {
    beat: Beat,
    /// When it last moved.
    moved: Instant,
}

#[derive(Debug)]
pub(super) struct Watcher {
    pulse: Arc<Pulse>,
    store: Arc<Store>,
    beats: u64,
    seen: BTreeMap<usize, Seen>,
    searching: Option<Instant>,
    wished: bool,
}

impl Watcher {
    pub(super) fn new(pulse: Arc<Pulse>, store: Arc<Store>) -> Self {
        Self { pulse, store, beats: 0, seen: BTreeMap::new(), searching: None, wished: false }
    }

    pub(super) fn run(mut self) {
        loop {
            let stop = self.pulse.stop.load(Ordering::Relaxed);
            let pause = self.pulse.pause();
            match self.tick(pause) {
                Ok(None) => {}
                Ok(Some(verdict)) => {
                    // The guard is not to take the pause for a store that is silent.
                    self.pulse.stop.store(true, Ordering::Relaxed);
                    self.pulse.linger();
                    leave(verdict.code, &verdict.text)
                }
                Err(_) if stop => return,
                Err(reason) => leave(exit::FAILED, &self.store_gone(&reason)),
            }
            if stop {
                return;
            }
            self.pulse.slow.store(pause > TICK, Ordering::Relaxed);
            thread::park_timeout(pause);
        }
    }

    /// Shows itself, says when it will again, and looks at others.
    fn tick(&mut self, pause: Duration) -> Result<Option<Verdict>, String> {
        self.beats += 1;
        let mut mine = self.pulse.beat(self.beats);
        mine.late = pause.saturating_sub(TICK);
        let text = serde_json::to_vec(&mine).map_err(|e| e.to_string())?;
        self.store.set(&beat_key(self.pulse.rank), &text)?;
        self.carry_wish()?;
        let waiting = self.pulse.now().waiting.map_or(Duration::ZERO, |since| since.elapsed());
        let stuck = waiting > self.pulse.limits.timeout;
        let all = 0..self.pulse.size;
        let ranks: BTreeSet<_> = if self.pulse.failure().is_some() || stuck {
            self.searching.get_or_insert_with(Instant::now);
            all.collect()
        } else {
            let server = self.pulse.served_by_rank_0.then_some(0);
            [(self.pulse.rank + 1) % self.pulse.size].into_iter().chain(server).collect()
        };
        let verdict = self.look_at(&ranks)?;
        self.pulse.now().ticked = Instant::now();
        if verdict.is_some() || mine.finished {
            return Ok(verdict);
        }
        let found = self
            .silent()
            .or_else(|| self.failed())
            .or_else(|| stuck.then(|| self.laggard(&mine, waiting)));
        let Some(text) = found else { return Ok(None) };
        let verdict = Verdict { text, code: exit::FAILED, by: Some(self.pulse.rank) };
        verdict.post(&self.store)?;
        Ok(Some(verdict))
    }

    /// While rank 0 works for all, a wish that another rank ends is one that rank 0 does.
    fn carry_wish(&mut self) -> Result<(), String> {
        let wanted = &self.pulse.stop_wanted;
        if self.pulse.is_leading() && !wanted.wanted() && self.store.get(WISH)?.is_some() {
            wanted.flag().store(true, Ordering::Relaxed);
        }
        let idle = self.pulse.now().idle.is_some();
        if idle && !self.wished && wanted.wanted() {
            self.store.set(WISH, b"end")?;
            self.wished = true;
        }
        Ok(())
    }

    /// Reads the beats of ranks, and a verdict of somebody else's.
    fn look_at(&mut self, ranks: &BTreeSet<usize>) -> Result<Option<Verdict>, String> {
        let keys: Vec<_> = ranks.iter().map(|rank| beat_key(*rank)).collect();
        let (verdict, beats) = if ranks.iter().all(|rank| self.seen.contains_key(rank)) {
            let keys: Vec<_> = [VERDICT.to_owned()].into_iter().chain(keys).collect();
            let mut values = self.store.get_all(&keys)?.into_iter().map(Some);
            (values.next().flatten(), values.collect::<Vec<_>>())
        } else {
            // Some may not have come yet.
            let beats = keys.iter().map(|key| self.store.get(key));
            (self.store.get(VERDICT)?, beats.collect::<Result<_, _>>()?)
        };
        for (rank, text) in ranks.iter().zip(beats) {
            text.map_or(Ok(()), |text| self.see(*rank, &text))?;
        }
        let verdict = verdict.map_or(Ok(None), |text| Verdict::read(&text))?;
        Ok(verdict.filter(|verdict| verdict.by != Some(self.pulse.rank)))
    }

    fn see(&mut self, rank: usize, text: &[u8]) -> Result<(), String> {
        let beat: Beat = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let now = Instant::now();
        let seen = self.seen.entry(rank).or_insert_with(|| Seen { beat: beat.clone(), moved: now });
        if seen.beat.beat != beat.beat {
            seen.moved = now;
        }
        seen.beat = beat;
        Ok(())
    }

    fn silent(&self) -> Option<String> {
        let longest = if self.searching.is_some() { DEAD } else { self.pulse.limits.silence };
        let silent = |(_, seen): &(&usize, &Seen)| {
            !seen.beat.finished && seen.moved.elapsed() > longest + seen.beat.late
        };
        let (rank, seen) = self.seen.iter().find(silent)?;
        Some(format!(
            "{} died, stopped or was cut off: silent for {:.0} s; last seen in {}",
            seen.beat.name(*rank),
            seen.moved.elapsed().as_secs_f64(),
            seen.beat.whereabouts()
        ))
    }

    /// After a search that found every rank alive.
    fn failed(&self) -> Option<String> {
        let (since, reason) = (self.searching?, self.pulse.failure()?);
        let me = self.pulse.beat(0);
        let late = self.seen.values().map(|seen| seen.beat.late).max().unwrap_or_default();
        (since.elapsed() > SEARCH + late).then(|| {
            format!(
                "ranks can no longer talk to each other: in {} of {}: {reason}",
                me.whereabouts(),
                me.name(self.pulse.rank)
            )
        })
    }

    /// Who keeps the others waiting.
    fn laggard(&self, mine: &Beat, waiting: Duration) -> String {
        let seconds = waiting.as_secs();
        let late = |(_, seen): &(&usize, &Seen)| {
            let beat = &seen.beat;
            beat.calls < mine.calls || (beat.calls == mine.calls && !beat.waiting)
        };
        match self.seen.iter().find(late) {
            Some((rank, seen)) => format!(
                "{} is alive, but the others have waited for it for {seconds} s (dist.timeout); it is \
                 in {}",
                seen.beat.name(*rank),
                seen.beat.whereabouts()
            ),
            None => format!(
                "all ranks have waited for each other for {seconds} s (dist.timeout) in {}: the \
                 network between them is blocked",
                mine.whereabouts()
            ),
        }
    }

    fn store_gone(&self, reason: &str) -> String {
        let me = self.pulse.beat(0);
        let server = match self.seen.get(&0) {
            Some(seen) if self.pulse.served_by_rank_0 => {
                let (name, place) = (seen.beat.name(0), seen.beat.whereabouts());
                format!("{name} died, last seen in {place}, and its store with it")
            }
            _ => "the launcher died, and its store with it".to_owned(),
        };
        format!("{server}; {} was in {} ({reason})", me.name(self.pulse.rank), me.whereabouts())
    }
}

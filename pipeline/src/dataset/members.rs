//! The files of a sample beside its image.

use bytes::Bytes;

use super::{Dataset, Source};
use crate::SampleId;
use crate::container::{Broken, KeyEnd, Kind, Members, split_name};
use crate::error::Error;
use crate::index::Record;
use crate::shard::{Entry, padded};

/// One file of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleMember {
    /// Its name without the extension, as the archive has it.
    pub key: String,
    /// What follows the dot that ends the key, such as `jpg`, `cls` or `json`.
    pub extension: String,
    /// Where its bytes lie in the shard.
    pub entry: Entry,
    /// Which archive of the shard it is in, for archives may be joined end to end.
    archive: u32,
}

/// The way out where a shard is damaged.
const BUILD_AGAIN: &str = "build the folder again";

impl Dataset {
    /// The files that a sample consists of, in the order of the archive: its image, its label, and
    /// whatever else has its key (`.json`, `.txt`, …). The members of a shard of this machine are
    /// listed when first asked for, and kept: some 100 bytes each. Behind a URL those are found that
    /// stand beside the image, as the WebDataset convention has them.
    ///
    /// # Errors
    /// As [`Dataset::bytes`]; [`Error::Format`] where the shard is damaged.
    ///
    /// # Panics
    /// When `sample` is not below [`Dataset::len`].
    pub fn members(&self, sample: SampleId) -> Result<Vec<SampleMember>, Error> {
        let record = self.record(sample);
        let (shards, lists) = match &self.source {
            Source::Local { shards, members, .. } => (shards, members),
            Source::Remote { .. } => return self.members_beside(sample),
        };
        let shard = record.shard - self.split.shards.start;
        let list = match lists[shard].get() {
            Some(list) => list,
            None => {
                let all = |broken: Broken| broken.of(shards[shard].path(), BUILD_AGAIN);
                let members = Members::seek(shards[shard].reader()).map_err(|e| all(e.into()))?;
                let list = self.listed(members, 0).map_err(all)?;
                lists[shard].get_or_init(|| list)
            }
        };
        Ok(of_sample(list, record.entry).cloned().collect())
    }

    /// One file of a sample by its extension: `member(sample, "json")`; none where it has none.
    /// Upper and lower case are the same.
    ///
    /// # Errors
    /// As [`Dataset::members`].
    ///
    /// # Panics
    /// When `sample` is not below [`Dataset::len`].
    pub fn member(&self, sample: SampleId, extension: &str) -> Result<Option<Bytes>, Error> {
        let members = self.members(sample)?;
        let wanted = |m: &&SampleMember| m.extension.eq_ignore_ascii_case(extension);
        let Some(member) = members.iter().find(wanted) else { return Ok(None) };
        let shard = self.record(sample).shard;
        match &self.source {
            Source::Local { shards, .. } => {
                shards[shard - self.split.shards.start].read(member.entry).map(Some)
            }
            Source::Remote { remote, .. } => {
                let Entry { offset, length } = member.entry;
                let bytes = self.fetch(remote, shard, offset..offset + u64::from(length))?;
                Ok(Some(bytes.into()))
            }
        }
    }

    /// The members of a sample among the bytes between the images before and behind its own.
    fn members_beside(&self, sample: SampleId) -> Result<Vec<SampleMember>, Error> {
        let Source::Remote { remote, .. } = &self.source else { return Ok(Vec::new()) };
        let Record { shard, entry, .. } = self.record(sample);
        let file = &self.index.shards()[shard];
        let others = || file.samples.clone().map(|other| self.index.record(other).entry);
        let ends = others().map(|other| padded(other.offset + u64::from(other.length)));
        let start = ends.filter(|&end| end <= entry.offset).max().unwrap_or(0);
        let starts = others().map(|other| other.offset).filter(|&start| start > entry.offset);
        let end = starts.min().unwrap_or(file.bytes);
        let bytes = self.fetch(remote, shard, start..end)?;
        let broken = |e: Broken| e.of(&self.index.shard_path(shard), BUILD_AGAIN);
        let list = self.listed(Members::stream(&bytes[..]), start).map_err(broken)?;
        // A label of the sample before may stand here too.
        Ok(of_sample(&list, entry).cloned().collect())
    }

    /// The regular files of an archive that begins at byte `start` of a shard, with their keys. Where
    /// it is a part of one, its end is inside of the next member.
    fn listed(&self, mut members: Members<'_>, start: u64) -> Result<Vec<SampleMember>, Broken> {
        let last_dot = self.index.scan().is_some_and(|scan| scan.choice.last_dot);
        let end = if last_dot { KeyEnd::LastDot } else { KeyEnd::FirstDot };
        let mut list = Vec::new();
        loop {
            let member = match members.next_member() {
                Ok(Some(member)) => member,
                Ok(None) => return Ok(list),
                Err(Broken::Cut { .. }) if start > 0 || !list.is_empty() => return Ok(list),
                Err(broken) => return Err(broken),
            };
            let (Kind::File, Ok(length)) = (member.kind, u32::try_from(member.size)) else {
                continue;
            };
            let Some((key, extension)) = split_name(&member.name, end) else { continue };
            list.push(SampleMember {
                archive: member.archive,
                key: key.to_owned(),
                extension: extension.to_owned(),
                entry: Entry { offset: start + member.offset, length },
            });
        }
    }
}

/// Those of `list` that have the key of the image at `image`.
fn of_sample(list: &[SampleMember], image: Entry) -> impl Iterator<Item = &SampleMember> {
    let own = list.iter().find(|member| member.entry == image);
    let same = move |other: &&SampleMember| {
        own.is_some_and(|own| (own.archive, &own.key) == (other.archive, &other.key))
    };
    list.iter().filter(same)
}

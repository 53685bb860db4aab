//! The samples of one shard that another program wrote, by its headers and labels.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::{MEND, MEND_BY_OPTION, Stamp, foreign};
use crate::container::{
    self, Choice, ImageKind, Label, MAX_JSON_BYTES, MAX_NUMBER_BYTES, Member, Members, Samples,
    Skipped, passed_over,
};
use crate::error::Error;
use crate::index::Format;
use crate::shard::Entry;

/// What a shard holds, and what the system says of its file.
pub(super) struct Shard {
    pub(super) samples: Vec<Found>,
    pub(super) skipped: Skipped,
    pub(super) bytes: u64,
    pub(super) stamp: Stamp,
}

/// A sample.
pub(super) struct Found {
    pub(super) key: String,
    pub(super) archive: u32,
    pub(super) entry: Entry,
    pub(super) label: Option<u32>,
    pub(super) format: Format,
}

/// Reads headers and labels of a shard.
pub(super) fn read_shard(path: &Path, choice: &Choice) -> Result<Shard, Error> {
    // Of a pipe, the opening would wait for a writer.
    if !std::fs::metadata(path).map_err(Error::io("open", path))?.is_file() {
        return Err(foreign(path, "it is no regular file", "move it out of the folder"));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    let system = || file.metadata().map_err(Error::io("read the length of", path));
    let before = system()?;
    let members = Members::seek(&file).map_err(Error::io("read", path))?;
    let read = |entry: Entry| {
        let mut bytes = vec![0; entry.length as usize];
        let read = file.read_exact_at(&mut bytes, entry.offset);
        read.map(|()| bytes).map_err(Error::io("read", path))
    };
    let (samples, skipped) = read_members(path, members, &read, choice)?;
    let after = system()?;
    if (Stamp::of(&before), before.len()) != (Stamp::of(&after), after.len()) {
        let problem = "it changed while its headers were read";
        return Err(foreign(path, problem, "open the folder when its shards are written"));
    }
    let stamp = Stamp { hash: hash(&samples), ..Stamp::kept(&before) };
    Ok(Shard { samples, skipped, bytes: before.len(), stamp })
}

/// What gives the bytes of a member.
pub(super) type Read<'a> = &'a dyn Fn(Entry) -> Result<Vec<u8>, Error>;

/// The samples of an archive, and what else is in it.
pub(super) fn read_members(
    path: &Path,
    mut members: Members<'_>,
    read: Read<'_>,
    choice: &Choice,
) -> Result<(Vec<Found>, Skipped), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut skipped = Skipped::new();
    let mut samples = Samples::default();
    while let Some(member) = members.next_member().map_err(|broken| broken.of(path, MEND))? {
        let Member { name: member_name, kind, archive, offset, size } = member;
        let example = || format!("{name}: {member_name}");
        if kind.refused().is_some() {
            skipped.add(kind.plural(), example);
            continue;
        }
        let (key, extension) = match choice.part(&member_name) {
            Ok(part) => part,
            Err(kind) => {
                skipped.add(kind, example);
                continue;
            }
        };
        let bad = |what: &str| {
            Error::format(path, offset, format!("member {member_name:?} {what}; {MEND}"))
        };
        if key.split('/').any(|part| part == "..") {
            return Err(bad("points out of the archive"));
        }
        let length = u32::try_from(size).map_err(|_| bad("has more than 4 GiB"))?;
        if !samples.add(archive, key, extension, Entry { offset, length }) {
            return Err(bad("is there twice"));
        }
    }
    let end = members.end();
    if !end.marked {
        skipped.add("missing end markers", || name.to_string());
    }
    if let Some(junk) = end.junk {
        let example = || format!("{name} from byte {junk} on");
        skipped.add("archives with bytes after the end marker that are no archive", example);
    }
    let mut found = Vec::new();
    for sample in samples.finish() {
        let (image, unused) = find(path, read, &sample, choice)?;
        for extension in unused {
            let example = || format!("{name}: {}.{extension}", sample.key);
            skipped.add(passed_over(extension), example);
        }
        found.extend(image);
    }
    Ok((found, skipped))
}

/// Image and label of one sample, and the extensions of its members that are neither.
fn find<'a>(
    path: &Path,
    read: Read<'_>,
    sample: &'a container::Sample<Entry>,
    choice: &'a Choice,
) -> Result<(Option<Found>, Vec<&'a str>), Error> {
    let bad = |entry: &Entry, what: String, mend: &str| {
        Error::format(path, entry.offset, format!("sample {:?} {what}; {mend}", sample.key))
    };
    let Some((_, first)) = sample.parts.first() else { return Ok((None, Vec::new())) };
    let chosen = match sample.choose(choice) {
        Ok(Some(chosen)) => chosen,
        Ok(None) => return Ok((None, sample.parts.iter().map(|(part, _)| &**part).collect())),
        Err(what) => {
            let mend = if what.contains("(--") { MEND_BY_OPTION } else { MEND };
            return Err(bad(first, what, mend));
        }
    };
    let format = match chosen.kind {
        Some(ImageKind::Jpeg) => Format::Jpeg,
        Some(ImageKind::Png) => Format::Png,
        // By its extension it could be anything, and was chosen.
        None => Format::Unknown,
        Some(ImageKind::Other) => {
            let what = "is no JPEG or PNG, so it cannot be read in place".to_owned();
            return Err(bad(chosen.image, what, MEND));
        }
    };
    let read = |entry: &Entry, most: u64| match u64::from(entry.length) > most {
        true => Err(bad(entry, format!("has a label of {} bytes", entry.length), MEND)),
        false => read(*entry),
    };
    let mut unused = chosen.unused;
    let label = match chosen.label {
        None => None,
        Some(Label::Number(entry)) => {
            let label = container::read_label(&read(entry, MAX_NUMBER_BYTES)?);
            Some(label.map_err(|what| bad(entry, format!("has a label, but {what}"), MEND))?)
        }
        Some(Label::Json(entry, field)) => {
            let label = match field.is_none() && u64::from(entry.length) > MAX_JSON_BYTES {
                true => None,
                false => container::read_json_label(&read(entry, MAX_JSON_BYTES)?, field)
                    .map_err(|what| bad(entry, format!("has a .json that {what}"), MEND))?,
            };
            if label.is_none() {
                unused.extend(sample.extension_of(entry));
            }
            label
        }
    };
    let (key, entry) = (sample.key.clone(), *chosen.image);
    let found = Found { key, archive: sample.archive, entry, label, format };
    Ok((Some(found), unused))
}

/// A hash of all that an index says of a shard's samples.
pub(super) fn hash(samples: &[Found]) -> u64 {
    let mut hash = Xxh3::new();
    for Found { key, archive, entry, label, format } in samples {
        hash.update(key.as_bytes());
        hash.update(&[0, *format as u8]);
        hash.update(&archive.to_le_bytes());
        hash.update(&entry.offset.to_le_bytes());
        hash.update(&entry.length.to_le_bytes());
        hash.update(&label.unwrap_or(u32::MAX).to_le_bytes());
    }
    hash.digest()
}

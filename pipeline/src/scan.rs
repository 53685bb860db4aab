//! An index for shards that somebody else wrote: WebDataset tar files with no index of ours.
//!
//! It is made when a folder is first opened and kept beside the shards, or in the user's cache
//! where the folder cannot be written. Only headers and labels are read, so the shards' hashes stay
//! unknown (0); a shard whose length changed makes the index stale, and it is made again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::error::Error;
use crate::folder::Folder;
use crate::index::{Format, INDEX_FILE, Index, IndexWriter};
use crate::shard::{Entry, Shard, Written, write_atomically};

/// Opens the folder's index, or makes one where the folder holds shards only.
///
/// # Errors
/// As [`Index::open`]; and for a scan [`Error::Format`], [`Error::ShardTruncated`] or
/// [`Error::DuplicateKey`] where the shards break the WebDataset convention.
pub(crate) fn open_or_scan(folder: &Folder) -> Result<Index, Error> {
    let dir = match folder {
        Folder::Local(dir) => dir.as_path(),
        Folder::Remote(remote) => {
            return match Index::open_in(folder) {
                Err(Error::EmptyFolder { .. }) => Err(no_index(remote.url())),
                other => other,
            };
        }
    };
    match Index::open_in(folder) {
        Ok(index) if index.is_scanned() && is_stale(&index)? => {}
        Err(Error::EmptyFolder { .. }) => {}
        other => return other,
    }
    let splits = shards_by_split(dir)?;
    if splits.is_empty() {
        return Err(Error::EmptyFolder { dir: dir.to_path_buf() });
    }
    let cached = cache_path(dir);
    if let Some(index) = cached.as_deref().filter(|path| path.exists())
        && let Ok(index) = Index::open_at(folder, index)
        && !is_stale(&index)?
    {
        return Ok(index);
    }
    let bytes = scan(dir, &splits)?;
    let beside = dir.join(INDEX_FILE);
    let refused = match write_atomically(&beside, &bytes) {
        Ok(()) => return Index::open_in(folder),
        Err(error) => error,
    };
    let cached = cached.ok_or(refused)?;
    if let Some(parent) = cached.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    write_atomically(&cached, &bytes)?;
    Index::open_at(folder, &cached)
}

/// Shards behind a URL cannot be listed, and reading them all to make an index would take as long
/// as an epoch.
fn no_index(url: &Path) -> Error {
    Error::Remote {
        url: url.join(INDEX_FILE),
        problem: "it is not there, and without it nothing is known of the shards".into(),
        mend: "check the URL; for shards that another program wrote, open the folder once where it \
               lies (`trainer doctor --data DIR`) and copy the index.bin that this makes beside them",
        input: true,
    }
}

/// Where the index of a folder that cannot be written is kept.
fn cache_path(dir: &Path) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home)?;
    let dir = dir.canonicalize().ok()?;
    let name = format!("{:016x}.bin", xxh3_64(dir.as_os_str().as_encoded_bytes()));
    Some(cache.join("bigbigan").join("indexes").join(name))
}

/// Whether the folder's shards are no longer those the index was made of.
fn is_stale(index: &Index) -> Result<bool, Error> {
    let there: Vec<_> = shards_by_split(index.dir())?.into_values().flatten().collect();
    let known = index.shards();
    Ok(there.len() != known.len()
        || known.iter().enumerate().any(|(number, shard)| {
            let length = std::fs::metadata(index.shard_path(number)).map(|file| file.len());
            length.ok() != Some(shard.bytes)
        }))
}

/// The folder's tar files by split, in the order of their names.
fn shards_by_split(dir: &Path) -> Result<BTreeMap<&'static str, Vec<String>>, Error> {
    let mut splits: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let name = entry.map_err(Error::io("list", dir))?.file_name();
        if let Some(name) = name.to_str()
            && let Some(stem) = name.strip_suffix(".tar")
            && !name.starts_with('.')
        {
            splits.entry(split_of(stem)).or_default().push(name.to_string());
        }
    }
    splits.values_mut().for_each(|names| names.sort());
    Ok(splits)
}

/// The split that a shard's name tells: the last of its words that is one. Else "train".
fn split_of(stem: &str) -> &'static str {
    let words = stem.rsplit(['-', '_', '.']);
    let known = words.filter_map(|word| match word {
        "train" => Some("train"),
        "trainval" => Some("trainval"),
        "val" | "valid" | "validation" => Some("val"),
        "test" => Some("test"),
        _ => None,
    });
    known.into_iter().next().unwrap_or("train")
}

fn scan(dir: &Path, splits: &BTreeMap<&'static str, Vec<String>>) -> Result<Vec<u8>, Error> {
    let mut index = IndexWriter::new();
    for (split, names) in splits {
        index.begin_split(split)?;
        let (mut labelled, mut found) = (None, false);
        for name in names {
            let shard = Shard::open(&dir.join(name))?;
            for sample in samples(&shard)? {
                if *labelled.get_or_insert(sample.label.is_some()) != sample.label.is_some() {
                    let what = format!(
                        "sample {:?}: some samples of the split have a label (.cls) and some have none",
                        sample.key
                    );
                    return Err(Error::format(shard.path(), sample.entry.offset, what));
                }
                found = true;
                index.sample(&sample.key, sample.entry, sample.label, sample.format, (0, 0));
            }
            let bytes = shard.len();
            index.end_shard(name, Written { bytes, xxh3: 0 })?;
        }
        if !found {
            let what = "no shard of the split holds a KEY.jpg or KEY.png (ImageNet's own archives \
                        become shards by `shard-imagenet build`)";
            return Err(Error::format(&dir.join(&names[0]), 0, what));
        }
    }
    index.check_keys(dir)?;
    Ok(index.scanned().to_bytes())
}

struct Sample {
    key: String,
    entry: Entry,
    label: Option<u32>,
    format: Format,
}

/// The samples of a shard: members with the same key, side by side, one of them an image. Members
/// of other kinds (`.json`, `.txt` ...) are passed over.
fn samples(shard: &Shard) -> Result<Vec<Sample>, Error> {
    let members = shard.members()?;
    let mut samples = Vec::with_capacity(members.len() / 2);
    let keys = |a: &crate::shard::Member, b: &crate::shard::Member| {
        a.key_and_extension().0 == b.key_and_extension().0
    };
    for group in members.chunk_by(keys) {
        let key = group[0].key_and_extension().0;
        let bad = |entry: Entry, what: String| Err(Error::format(shard.path(), entry.offset, what));
        if key.starts_with('/') || key.split('/').any(|part| part == "..") {
            return bad(group[0].entry, format!("member {key:?} points out of the archive"));
        }
        let (mut image, mut label) = (None, None);
        for member in group {
            let extension = member.key_and_extension().1.to_ascii_lowercase();
            let format = match extension.as_str() {
                "jpg" | "jpeg" => Format::Jpeg,
                "png" => Format::Png,
                "cls" => {
                    if label.replace(read_label(shard, member.entry)?).is_some() {
                        return bad(member.entry, format!("sample {key:?} has two labels"));
                    }
                    continue;
                }
                _ => continue,
            };
            if image.replace((member.entry, format)).is_some() {
                return bad(member.entry, format!("sample {key:?} has two images"));
            }
        }
        match (image, label) {
            (Some((entry, format)), label) => {
                samples.push(Sample { key: key.to_string(), entry, label, format });
            }
            (None, Some(_)) => {
                return bad(group[0].entry, format!("label of {key:?}, but no image beside it"));
            }
            (None, None) => {}
        }
    }
    Ok(samples)
}

/// Class numbers are below this: there is a name in memory for each.
const MAX_CLASSES: u32 = 1 << 20;

/// A class number in ASCII decimal; white space around it is let pass.
fn read_label(shard: &Shard, entry: Entry) -> Result<u32, Error> {
    let text = shard.read(entry)?;
    let text = String::from_utf8_lossy(&text);
    text.trim().parse().ok().filter(|&label| label < MAX_CLASSES).ok_or_else(|| {
        let start: String = text.chars().take(20).collect();
        let what =
            format!("label {start:?} is not a class number, 0 to {} in decimal", MAX_CLASSES - 1);
        Error::format(shard.path(), entry.offset, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_split() {
        for (stem, split) in [
            ("train-000000", "train"),
            ("imagenet1k-validation-03", "val"),
            ("val_0001", "val"),
            ("trainval-000000", "trainval"),
            ("shard7", "train"),
            ("training", "train"),
        ] {
            assert_eq!(split_of(stem), split, "{stem}");
        }
    }
}

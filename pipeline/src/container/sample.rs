//! Members become samples: those with the same key, an image and maybe a label among them.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::name::{ImageKind, KeyEnd, image_kind, no_data, split_name};

/// Which members of a sample are its image and its label, for shards where that is not plain. The
/// default takes the only image there is, and the only `.cls` or else a field of the `.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Choice {
    /// The extension of the image, such as `left.jpg`; in whatever case.
    pub image: Option<String>,
    /// The extension of the member that holds the label as a number, such as `cls2`, or of a JSON
    /// member and behind a colon its field, such as `json:class_id`.
    pub label: Option<String>,
    /// Keys end at the last dot of a name, not at the first as WebDataset has it.
    pub last_dot: bool,
}

impl Choice {
    /// Key and extension of a member that may be a part of a sample, the extension in lower case.
    ///
    /// # Errors
    /// The kind of files that it is one of, in words, where it is to be passed over.
    pub fn part<'a>(&self, name: &'a str) -> Result<(&'a str, String), String> {
        if let Some(kind) = no_data(name) {
            return Err(kind.to_owned());
        }
        let end = if self.last_dot { KeyEnd::LastDot } else { KeyEnd::FirstDot };
        let Some((key, extension)) = split_name(name, end) else {
            return Err("files without an extension".to_owned());
        };
        let extension = extension.to_ascii_lowercase();
        match self.wants(&extension) {
            true => Ok((key.trim_start_matches('/'), extension)),
            false => Err(passed_over(&extension)),
        }
    }

    /// Whether an extension may be that of an image or a label.
    fn wants(&self, extension: &str) -> bool {
        let image = match &self.image {
            Some(image) => image.eq_ignore_ascii_case(extension),
            None => image_kind(extension).is_some(),
        };
        let label = match self.label() {
            Some((label, _)) => label.eq_ignore_ascii_case(extension),
            None => ["cls", "json"].contains(&last(extension)),
        };
        image || label
    }

    /// Extension and field of the label that was chosen.
    fn label(&self) -> Option<(&str, Option<&str>)> {
        let label = self.label.as_deref()?;
        Some(match label.split_once(':') {
            Some((extension, field)) => (extension, Some(field)),
            None => (label, None),
        })
    }
}

/// The last part of an extension.
fn last(extension: &str) -> &str {
    extension.rsplit('.').next().unwrap_or(extension)
}

/// The kind of files that have this extension, in words.
pub fn passed_over(extension: &str) -> String {
    const NOT_READ: [&str; 20] = [
        "avif", "heic", "heif", "jxl", "jp2", "j2k", "jpx", "svg", "ico", "icns", "tga", "psd",
        "eps", "exr", "hdr", "dds", "qoi", "pcx", "pfm", "pam",
    ];
    let extension = extension.to_ascii_lowercase();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if NOT_READ.contains(&last(&extension)) {
        format!("images .{extension}, which are not read")
    } else if (1..=24).contains(&extension.len()) && extension.bytes().all(plain) {
        format!("files .{extension}")
    } else {
        "files of unusual extensions".to_owned()
    }
}

/// The members with one key. `T` is what is known of each: where its bytes lie, or the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample<T> {
    /// The key.
    pub key: String,
    /// Which archive of the file it is in.
    pub archive: u32,
    /// Extension, in lower case, and member, in the order of the archive.
    pub parts: Vec<(String, T)>,
}

/// What a sample is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen<'a, T> {
    /// The image.
    pub image: &'a T,
    /// Its format, as its extension claims it, where that is known.
    pub kind: Option<ImageKind>,
    /// The label.
    pub label: Option<Label<'a, T>>,
    /// Extensions of the members that are neither.
    pub unused: Vec<&'a str>,
}

/// Where a label is.
#[derive(Debug, PartialEq, Eq)]
pub enum Label<'a, T> {
    /// A member that is a number.
    Number(&'a T),
    /// A field of a JSON member: the one named, or one of
    /// [`JSON_FIELDS`](super::JSON_FIELDS).
    Json(&'a T, Option<&'a str>),
}

impl<T> Clone for Label<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Label<'_, T> {}

impl<'a, T> Label<'a, T> {
    /// The member that holds it.
    pub fn part(self) -> &'a T {
        match self {
            Self::Number(part) | Self::Json(part, _) => part,
        }
    }
}

impl<T> Sample<T> {
    fn new(archive: u32, key: &str) -> Self {
        Self { key: key.to_owned(), archive, parts: Vec::new() }
    }

    fn has(&self, extension: &str) -> bool {
        self.parts.iter().any(|(known, _)| known == extension)
    }

    /// The extension of a member.
    pub fn extension_of(&self, part: &T) -> Option<&str>
    where
        T: PartialEq,
    {
        self.parts.iter().find(|(_, known)| known == part).map(|(extension, _)| &**extension)
    }

    /// The image and the label. None where the sample has neither.
    ///
    /// # Errors
    /// What is wrong, in words that follow the sample's name: an image is missing, or there are
    /// several and none was chosen.
    pub fn choose<'a>(&'a self, choice: &'a Choice) -> Result<Option<Chosen<'a, T>>, String> {
        let is_image = |extension: &str| match &choice.image {
            Some(image) => image.eq_ignore_ascii_case(extension),
            None => image_kind(extension).is_some(),
        };
        let images: Vec<usize> =
            (0..self.parts.len()).filter(|&part| is_image(&self.parts[part].0)).collect();
        if images.len() > 1 {
            return Err(self.ambiguous("image", "--image", &images));
        }
        let label = self.label(choice)?;
        let image = match (images.first(), &choice.image, label) {
            (Some(&image), ..) => image,
            (None, None, Some((_, Label::Number(_)))) => {
                return Err("has a label but no image".to_owned());
            }
            (None, None, _) => return Ok(None),
            (None, Some(image), _) => {
                return Err(format!("has no .{image}, only {}", self.extensions()));
            }
        };
        let (extension, place) = &self.parts[image];
        let used = |part: &usize| *part != image && label.is_none_or(|(label, _)| label != *part);
        let unused = (0..self.parts.len()).filter(used).map(|part| &*self.parts[part].0).collect();
        let kind = image_kind(extension);
        Ok(Some(Chosen { image: place, kind, label: label.map(|(_, label)| label), unused }))
    }

    /// The position of the label's member, and how it is read.
    fn label<'a>(&'a self, choice: &'a Choice) -> Result<Option<(usize, Label<'a, T>)>, String> {
        let found = |test: &dyn Fn(&str) -> bool| -> Vec<usize> {
            (0..self.parts.len()).filter(|&part| test(&self.parts[part].0)).collect()
        };
        if let Some((extension, field)) = choice.label() {
            let Some(&part) = found(&|known| known.eq_ignore_ascii_case(extension)).first() else {
                return Err(format!(
                    "has no .{extension} for its label, only {}",
                    self.extensions()
                ));
            };
            let place = &self.parts[part].1;
            let number = field.is_none() && last(extension) != "json";
            let label = if number { Label::Number(place) } else { Label::Json(place, field) };
            return Ok(Some((part, label)));
        }
        match &found(&|known| last(known) == "cls")[..] {
            &[part] => Ok(Some((part, Label::Number(&self.parts[part].1)))),
            [] => match found(&|known| last(known) == "json")[..] {
                [] => Ok(None),
                [part] => Ok(Some((part, Label::Json(&self.parts[part].1, None)))),
                // That of the sample, beside one of a part of it.
                ref several => match several.iter().find(|&&part| self.parts[part].0 == "json") {
                    Some(&part) => Ok(Some((part, Label::Json(&self.parts[part].1, None)))),
                    None => Err(self.ambiguous("label", "--label", several)),
                },
            },
            several => Err(self.ambiguous("label", "--label", several)),
        }
    }

    /// Says which parts could be meant, and how to choose one of them.
    fn ambiguous(&self, what: &str, option: &str, parts: &[usize]) -> String {
        let names: Vec<_> = parts.iter().map(|&part| &*self.parts[part].0).collect();
        let (first, dotted) = (names[0], names.iter().any(|name| name.contains('.')));
        let keys = if dotted { ", or let keys end at the last dot (--last-dot)" } else { "" };
        let names: Vec<_> = names.iter().map(|name| format!(".{name}")).collect();
        let (last, others) = names.split_last().map_or(("", &names[..]), |(l, o)| (&**l, o));
        format!(
            "has {} {what}s, {} and {last}: choose one ({option} {first}){keys}",
            names.len(),
            others.join(", ")
        )
    }

    fn extensions(&self) -> String {
        let extensions: Vec<_> = self.parts.iter().map(|(part, _)| format!(".{part}")).collect();
        extensions.join(", ")
    }
}

/// Gathers the members of a shard into samples. Those of a sample need not stand side by side; a
/// name that comes again later, apart from its sample, begins another one, as does a key in another
/// archive of the same file.
#[derive(Debug)]
pub struct Samples<T> {
    list: Vec<Sample<T>>,
    newest: HashMap<(u32, String), usize>,
    latest: usize,
}

impl<T> Default for Samples<T> {
    fn default() -> Self {
        Self { list: Vec::new(), newest: HashMap::new(), latest: 0 }
    }
}

impl<T> Samples<T> {
    /// Adds a member. False where the same name stands right beside it.
    pub fn add(&mut self, archive: u32, key: &str, extension: String, part: T) -> bool {
        let mut sample = self.newest.get(&(archive, key.to_owned())).copied();
        if let Some(known) = sample.filter(|&known| self.list[known].has(&extension)) {
            if known == self.latest {
                return false;
            }
            sample = None;
        }
        let sample = sample.unwrap_or_else(|| {
            self.list.push(Sample::new(archive, key));
            self.newest.insert((archive, key.to_owned()), self.list.len() - 1);
            self.list.len() - 1
        });
        self.list[sample].parts.push((extension, part));
        self.latest = sample;
        true
    }

    /// The samples, in the order of their first members.
    pub fn finish(self) -> Vec<Sample<T>> {
        self.list
    }
}

/// Gathers members that stand side by side into samples, one at a time, as a stream brings them.
#[derive(Debug)]
pub struct InTurn<T> {
    current: Option<Sample<T>>,
    archive: u32,
    /// Hashes of the keys and of the names of this archive.
    keys: HashSet<u64>,
    names: HashSet<u64>,
}

impl<T> Default for InTurn<T> {
    fn default() -> Self {
        Self { current: None, archive: 0, keys: HashSet::new(), names: HashSet::new() }
    }
}

/// What became of a member that was added to [`InTurn`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added<T> {
    /// It is one more of the sample in work.
    More,
    /// It begins another sample; the one before, if any, is complete.
    Next(Option<Sample<T>>),
    /// The same name stands right beside it.
    Twice,
    /// Other members of its sample stand apart from it, and have gone by.
    Apart,
}

impl<T> InTurn<T> {
    /// Adds a member.
    pub fn add(&mut self, archive: u32, key: &str, extension: String, part: T) -> Added<T> {
        if archive != self.archive {
            (self.keys, self.names) = (HashSet::new(), HashSet::new());
            self.archive = archive;
        }
        let name = xxh3_64(format!("{key}.{extension}").as_bytes());
        if let Some(sample) = &mut self.current
            && sample.archive == archive
            && sample.key == key
        {
            if sample.has(&extension) {
                return Added::Twice;
            }
            self.names.insert(name);
            sample.parts.push((extension, part));
            return Added::More;
        }
        let known = !self.keys.insert(xxh3_64(key.as_bytes()));
        let again = !self.names.insert(name);
        if known && !again {
            return Added::Apart;
        }
        let mut sample = Sample::new(archive, key);
        sample.parts.push((extension, part));
        Added::Next(self.current.replace(sample))
    }

    /// The last sample, at the end.
    pub fn finish(&mut self) -> Option<Sample<T>> {
        self.current.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(extensions: &[&'static str]) -> Sample<usize> {
        let mut sample = Sample::new(0, "k");
        for (number, extension) in extensions.iter().enumerate() {
            sample.parts.push((extension.to_string(), number));
        }
        sample
    }

    fn choice(image: &str, label: &str) -> Choice {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Choice { image: some(image), label: some(label), last_dot: false }
    }

    #[test]
    fn a_sample_is_an_image_and_a_label_that_are_plain_or_chosen() {
        use Label::{Json, Number};
        for (extensions, image, label, expected) in [
            (&["jpg", "cls"][..], "", "", Ok(Some((0, Some(Number(&1)), 0)))),
            (&["cls", "left.jpg"], "", "", Ok(Some((1, Some(Number(&0)), 0)))),
            (&["1.jpg", "1.cls"], "", "", Ok(Some((0, Some(Number(&1)), 0)))),
            (&["jpg", "json"], "", "", Ok(Some((0, Some(Json(&1, None)), 0)))),
            (&["json", "jpg", "cls"], "", "", Ok(Some((1, Some(Number(&2)), 1)))),
            (&["jpg"], "", "", Ok(Some((0, None, 0)))),
            (&["jpg", "seg.png", "cls"], "jpg", "", Ok(Some((0, Some(Number(&2)), 1)))),
            (&["jpg", "seg.png", "cls"], "SEG.PNG", "", Ok(Some((1, Some(Number(&2)), 1)))),
            (&["jpg", "cls", "cls2"], "", "cls2", Ok(Some((0, Some(Number(&2)), 1)))),
            (&["jpg", "cls", "json"], "", "json:id", Ok(Some((0, Some(Json(&2, Some("id"))), 1)))),
            (&["json"], "", "", Ok(None)),
            (&["jpg", "seg.json", "json"], "", "", Ok(Some((0, Some(Json(&2, None)), 1)))),
            (
                &["jpg", "a.json", "b.json"],
                "",
                "",
                Err("has 2 labels, .a.json and .b.json: choose one (--label a.json)"),
            ),
            (&["cls"], "", "", Err("has a label but no image")),
            (
                &["jpg", "seg.png"],
                "",
                "",
                Err(".jpg and .seg.png: choose one (--image jpg), or let"),
            ),
            (&["jpg", "png"], "", "", Err("has 2 images, .jpg and .png: choose one (--image jpg)")),
            (
                &["1.jpg", "1.cls", "2.cls"],
                "",
                "",
                Err(".1.cls and .2.cls: choose one (--label 1.cls)"),
            ),
            (&["jpg", "cls"], "left.jpg", "", Err("has no .left.jpg, only .jpg, .cls")),
            (&["jpg", "cls"], "", "cls2", Err("has no .cls2 for its label, only .jpg, .cls")),
        ] {
            let (sample, choice) = (sample(extensions), choice(image, label));
            let found = sample.choose(&choice);
            let found = found.map(|found| found.map(|c| (*c.image, c.label, c.unused.len())));
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{extensions:?}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{extensions:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn names_are_parts_of_samples_or_of_a_kind_that_is_passed_over() {
        let (plain, last_dot) = (Choice::default(), Choice { last_dot: true, ..Choice::default() });
        assert_eq!(plain.part("/a/b.L.JPG"), Ok(("a/b", "l.jpg".into())));
        assert_eq!(last_dot.part("a/b.L.JPG"), Ok(("a/b.L", "jpg".into())));
        assert_eq!(choice("left.jpg", "").part("a.right.jpg"), Err("files .right.jpg".into()));
        assert_eq!(choice("", "txt").part("a.txt"), Ok(("a", "txt".into())));
        for (name, kind) in [
            ("._a.jpg", "AppleDouble files (._*)"),
            ("a", "files without an extension"),
            ("a.TXT", "files .txt"),
            ("a.b.avif", "images .b.avif, which are not read"),
            ("a.", "files of unusual extensions"),
            ("a.b c", "files of unusual extensions"),
        ] {
            assert_eq!(plain.part(name), Err(kind.into()));
        }
    }

    fn keys<T>(samples: &[Sample<T>]) -> Vec<(&str, usize)> {
        samples.iter().map(|sample| (&*sample.key, sample.parts.len())).collect()
    }

    #[test]
    fn members_apart_are_one_sample_and_names_that_come_again_are_others() {
        let mut samples = Samples::default();
        let add = |samples: &mut Samples<()>, archive, name: &str| {
            let (key, extension) = name.split_once('.').unwrap();
            samples.add(archive, key, extension.into(), ())
        };
        for name in ["a.jpg", "b.jpg", "a.cls", "b.cls"] {
            assert!(add(&mut samples, 0, name));
        }
        assert!(!add(&mut samples, 0, "b.cls"));
        assert!(add(&mut samples, 0, "a.jpg"));
        assert!(add(&mut samples, 1, "a.jpg") && add(&mut samples, 1, "a.cls"));
        let samples = samples.finish();
        assert_eq!(keys(&samples), [("a", 2), ("b", 2), ("a", 1), ("a", 2)]);
    }

    #[test]
    fn a_stream_gives_samples_as_they_are_complete_and_says_what_stands_apart() {
        let mut samples = InTurn::default();
        let mut add = |archive, name: &str| {
            let (key, extension) = name.split_once('.').unwrap();
            match samples.add(archive, key, extension.into(), ()) {
                Added::More => "more".to_owned(),
                Added::Next(None) => "first".to_owned(),
                Added::Next(Some(done)) => format!("{} {}", done.key, done.parts.len()),
                Added::Twice => "twice".to_owned(),
                Added::Apart => "apart".to_owned(),
            }
        };
        for (archive, name, expected) in [
            (0, "a.jpg", "first"),
            (0, "a.jpg", "twice"),
            (0, "a.cls", "more"),
            (0, "b.jpg", "a 2"),
            (0, "a.json", "apart"),
            (0, "a.jpg", "b 1"),
            (1, "a.cls", "a 1"),
            (1, "a.jpg", "more"),
        ] {
            assert_eq!(add(archive, name), expected, "{archive} {name}");
        }
        assert_eq!(samples.finish().map(|sample| sample.parts.len()), Some(2));
    }
}

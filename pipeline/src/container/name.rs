//! What the names of files and members say: keys, extensions, formats, and what is no data at all.

/// The extensions of tar shards, in lower case, and whether their bytes can be read in place.
const SHARDS: [(&str, bool); 10] = [
    (".tar", true),
    (".tar.gz", false),
    (".tgz", false),
    (".tar.zst", false),
    (".tzst", false),
    (".tar.zstd", false),
    (".tar.bz2", false),
    (".tbz2", false),
    (".tar.xz", false),
    (".txz", false),
];

/// The name of a file that is a tar shard by its extension, in whatever case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardName<'a> {
    /// What stands before the extension.
    pub stem: &'a str,
    /// Whether it is compressed, so that its members cannot be read where they are.
    pub compressed: bool,
}

impl<'a> ShardName<'a> {
    /// What a file name says; none where it is of no shard. Names that begin with a dot are of none.
    pub fn of(name: &'a str) -> Option<Self> {
        let split = |(extension, plain): &(&str, bool)| {
            let at = name.len().checked_sub(extension.len())?;
            let (stem, end) = name.split_at_checked(at)?;
            end.eq_ignore_ascii_case(extension).then_some(Self { stem, compressed: !plain })
        };
        let found = SHARDS.iter().find_map(split);
        found.filter(|shard| !shard.stem.is_empty() && !name.starts_with('.'))
    }
}

/// Where a member's key ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyEnd {
    /// At the first dot of the last part of its path, as WebDataset has it: `a/b.left.jpg` is
    /// `left.jpg` of the sample `a/b`.
    #[default]
    FirstDot,
    /// At the last dot: `jpg` of the sample `a/b.left`.
    LastDot,
}

/// The key and the extension of a member in the WebDataset convention; none where its name has no
/// dot in the last part of its path, or begins with one there.
pub fn split_name(name: &str, end: KeyEnd) -> Option<(&str, &str)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = match end {
        KeyEnd::FirstDot => name[base..].find('.'),
        KeyEnd::LastDot => name[base..].rfind('.'),
    };
    let dot = base + dot.filter(|dot| *dot > 0)?;
    Some((&name[..dot], &name[dot + 1..]))
}

/// Why a file of this path, in an archive or a folder, is no data, in words that name its kind; none
/// where it may be.
pub fn no_data(path: &str) -> Option<&'static str> {
    let base = path.rsplit('/').next().unwrap_or(path);
    let top = path.trim_start_matches("./").split('/').next().unwrap_or(path);
    let managers = [".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini"];
    if path.split('/').any(|part| part == "__MACOSX") {
        Some("files of __MACOSX folders")
    } else if base.starts_with("._") {
        Some("AppleDouble files (._*)")
    } else if managers.iter().any(|known| base.eq_ignore_ascii_case(known)) {
        Some("files of file managers (.DS_Store, Thumbs.db)")
    } else if base.starts_with('.') {
        Some("hidden files")
    } else if top.len() > 4 && top.starts_with("__") && top.ends_with("__") {
        Some("files of metadata (__*__)")
    } else {
        None
    }
}

/// What a file is by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// A JPEG file.
    Jpeg,
    /// A PNG file.
    Png,
    /// An image of another format, which `shard-imagenet build` stores as one of these.
    Other,
}

/// Which kind of image an extension claims, in whatever case; none for another file. Of an
/// extension of several parts the last one counts.
pub fn image_kind(extension: &str) -> Option<ImageKind> {
    let last = extension.rsplit('.').next().unwrap_or(extension);
    match last.to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" | "jpe" | "jfif" => Some(ImageKind::Jpeg),
        "png" | "apng" => Some(ImageKind::Png),
        "webp" | "bmp" | "dib" | "ppm" | "pgm" | "pbm" | "pnm" | "tif" | "tiff" | "gif" => {
            Some(ImageKind::Other)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_known_by_their_extension() {
        for (name, expected) in [
            ("train-0.tar", Some(("train-0", false))),
            ("Train-0.TAR", Some(("Train-0", false))),
            ("a.b.tar", Some(("a.b", false))),
            ("a.tar.gz", Some(("a", true))),
            ("a.tgz", Some(("a", true))),
            ("a.tar.zst", Some(("a", true))),
            ("a.tar.xz", Some(("a", true))),
            ("a.tar.tmp", None),
            (".a.tar", None),
            (".tar", None),
            ("tar", None),
            ("é.tar", Some(("é", false))),
            ("é", None),
        ] {
            let found = ShardName::of(name).map(|shard| (shard.stem, shard.compressed));
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn keys_end_where_webdataset_ends_them_or_at_the_last_dot() {
        for (name, first, last) in [
            ("a.jpg", Some(("a", "jpg")), Some(("a", "jpg"))),
            ("x/y.z/a.b.JPG", Some(("x/y.z/a", "b.JPG")), Some(("x/y.z/a.b", "JPG"))),
            ("./a.cls", Some(("./a", "cls")), Some(("./a", "cls"))),
            ("a.", Some(("a", "")), Some(("a", ""))),
            ("a", None, None),
            ("x.y/a", None, None),
            ("._a.jpg", None, Some(("._a", "jpg"))),
            ("x/.jpg", None, None),
            ("", None, None),
        ] {
            assert_eq!(split_name(name, KeyEnd::FirstDot), first, "{name}");
            assert_eq!(split_name(name, KeyEnd::LastDot), last, "{name}");
        }
    }

    #[test]
    fn what_is_no_data_is_known_by_its_name() {
        for (path, expected) in [
            ("a.jpg", None),
            ("__a.jpg", None),
            ("x/__meta__.json", None),
            ("._a.jpg", Some("AppleDouble files (._*)")),
            ("x/._a.jpg", Some("AppleDouble files (._*)")),
            ("__MACOSX/x/._a.jpg", Some("files of __MACOSX folders")),
            ("x/.DS_Store", Some("files of file managers (.DS_Store, Thumbs.db)")),
            ("x/thumbs.DB", Some("files of file managers (.DS_Store, Thumbs.db)")),
            ("x/.jpg", Some("hidden files")),
            ("__meta__/a.json", Some("files of metadata (__*__)")),
            ("./__index__", Some("files of metadata (__*__)")),
        ] {
            assert_eq!(no_data(path), expected, "{path}");
        }
    }

    #[test]
    fn extensions_claim_formats() {
        for (extension, kind) in [
            ("JPEG", Some(ImageKind::Jpeg)),
            ("left.jpg", Some(ImageKind::Jpeg)),
            ("seg.PNG", Some(ImageKind::Png)),
            ("webp", Some(ImageKind::Other)),
            ("jpg.txt", None),
            ("cls", None),
            ("", None),
        ] {
            assert_eq!(image_kind(extension), kind, "{extension}");
        }
    }
}

use std::cmp::Reverse;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{Markup, html};

use super::none;

/// Where a page has its pictures from.
pub(crate) enum Source<'a> {
    /// They are within it; of many some.
    Inline,
    /// From under this address.
    Address(&'a str),
}

/// Bytes of the pictures within a page, at most; but the newest of each kind are always there.
const ROOM: u64 = 16 << 20;
/// Pictures of a kind within a page, at most, and kinds.
const MOST: usize = 40;
/// Bytes of a picture, at most.
const LARGEST: u64 = 64 << 20;

/// Pictures of a kind, by step.
struct Kind {
    name: String,
    /// Step and file; the one that has no step is the newest.
    all: Vec<(Option<u64>, PathBuf)>,
}

fn kinds(folder: &Path) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = vec![];
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let is_picture =
        |p: &PathBuf| p.extension().is_some_and(|e| e == "png") && is_file(p).is_some();
    for path in paths.into_iter().filter(is_picture) {
        let stem = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        let numbered = stem
            .rsplit_once('-')
            .and_then(|(kind, step)| Some((kind.to_owned(), Some(step.parse().ok()?))));
        let (name, step) = numbered.unwrap_or((stem, None));
        match kinds.iter_mut().find(|kind| kind.name == name) {
            Some(kind) => kind.all.push((step, path)),
            None => kinds.push(Kind { name, all: vec![(step, path)] }),
        }
    }
    for kind in &mut kinds {
        kind.all.sort_by_key(|(step, _)| (step.is_none(), *step));
    }
    kinds
}

impl Kind {
    /// The newest and, evenly, as many before it as there is room for.
    fn some(&self, room: u64) -> Vec<&(Option<u64>, PathBuf)> {
        let sizes = self.all.iter().map(|(_, path)| fs::metadata(path).map_or(0, |of| of.len()));
        let largest = sizes.max().unwrap_or(0).max(1);
        let count = ((room / largest) as usize).clamp(1, MOST).min(self.all.len());
        let last = self.all.len() - 1;
        let place = |i: usize| if count == 1 { last } else { i * last / (count - 1) };
        (0..count).map(|i| &self.all[place(i)]).collect()
    }
}

/// The pictures of a run: one of each kind at a time, chosen by a slider over their steps.
pub(super) fn of(folder: &Path, source: &Source<'_>) -> Markup {
    let mut kinds = kinds(folder);
    if kinds.is_empty() {
        return none("none yet");
    }
    // What has most steps comes first, then by name.
    kinds.sort_by_key(|kind| Reverse(kind.all.len() > 1));
    let more = kinds.len().saturating_sub(MOST);
    kinds.truncate(MOST);
    let room = ROOM / kinds.len() as u64;
    html! {
        div.pictures { @for kind in &kinds { (frames(kind, source, room)) } }
        @if more > 0 { (none(&format!("and {more} kinds more, in images/"))) }
    }
}

fn frames(kind: &Kind, source: &Source<'_>, room: u64) -> Markup {
    let all = match source {
        Source::Inline => kind.some(room),
        Source::Address(_) => kind.all.iter().collect(),
    };
    let shown: Vec<_> = all
        .iter()
        .filter_map(|(step, path)| {
            let name = match step {
                Some(step) => format!("step {step}"),
                None => "newest".to_owned(),
            };
            let file = path.file_name()?.to_string_lossy().into_owned();
            Some((name, file, address(path, source)?))
        })
        .collect();
    let last = shown.len().saturating_sub(1);
    // Those of an address are asked for when they are shown.
    let lazy = matches!(source, Source::Address(_)).then_some("lazy");
    html! {
        @if !shown.is_empty() {
            figure.frames data-kind=(kind.name) {
                figcaption { b { (kind.name) } " " output { (shown[last].0) } }
                @for (i, (name, file, address)) in shown.iter().enumerate() {
                    img alt=(name) data-step=(file) src=(address) loading=[lazy] hidden[i < last];
                }
                @if last > 0 {
                    input type="range" min="0" max=(last) value=(last) step="1"
                        aria-label={ "step of " (kind.name) };
                }
                @if shown.len() < kind.all.len() {
                    (none(&format!("{} of {}, evenly; all are in images/", shown.len(), kind.all.len())))
                }
            }
        }
    }
}

fn address(path: &Path, source: &Source<'_>) -> Option<String> {
    match source {
        Source::Inline => data_uri(path),
        Source::Address(base) => {
            let name = path.file_name()?.to_str().filter(|name| plain(name))?;
            // A picture that is written anew has another address, or a browser shows the one it has.
            let of = is_file(path)?;
            let time = of.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            Some(format!("{base}{name}?v={}-{}", time.as_nanos(), of.len()))
        }
    }
}

/// Whether a name is its own address.
pub(crate) fn plain(name: &str) -> bool {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.starts_with('.') && name.chars().all(letters)
}

/// What is known of a file that may be shown: no link, which could lead anywhere, no pipe, which could never end.
fn is_file(path: &Path) -> Option<Metadata> {
    fs::symlink_metadata(path).ok().filter(|of| of.is_file() && of.len() <= LARGEST)
}

/// The bytes of a file that may be shown.
pub(crate) fn bytes(path: &Path) -> Option<Vec<u8>> {
    is_file(path)?;
    fs::read(path).ok()
}

fn data_uri(path: &Path) -> Option<String> {
    let bytes = STANDARD.encode(bytes(path)?);
    Some(format!("data:image/png;base64,{bytes}"))
}

/// A picture with a name, within the page; none if there is no such file.
pub(crate) fn picture(name: &str, path: &Path) -> Option<Markup> {
    let address = data_uri(path)?;
    Some(html! { figure { img alt=(name) src=(address); figcaption { (name) } } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(count: u64, bytes: usize) -> (tempfile::TempDir, Kind) {
        let folder = tempfile::tempdir().unwrap();
        for step in 1..=count {
            let name = format!("samples-{:08}.png", step * 10);
            fs::write(folder.path().join(name), vec![0; bytes]).unwrap();
        }
        fs::write(folder.path().join("samples.png"), vec![0; bytes]).unwrap();
        let kind = kinds(folder.path()).remove(0);
        (folder, kind)
    }

    #[test]
    fn pictures_are_in_the_order_of_their_steps_and_the_one_without_is_the_newest() {
        let (_folder, kind) = kind(12, 1);
        let steps: Vec<_> = kind.all.iter().map(|(step, _)| *step).collect();
        let expected = (1..=12).map(|i| Some(10 * i)).chain([None]);
        assert_eq!(steps, expected.collect::<Vec<_>>());
    }

    #[test]
    fn of_many_pictures_a_page_has_as_many_as_fit_the_first_and_the_newest_among_them() {
        let (_folder, kind) = kind(99, 100);
        for (room, count) in [(1, 1), (250, 2), (1000, 10), (1 << 20, MOST)] {
            let some = kind.some(room);
            assert_eq!(some.len(), count);
            assert_eq!(some[count - 1].0, None, "the newest");
            assert!(count == 1 || some[0].0 == Some(10), "the first");
            assert!(some.windows(2).all(|pair| pair[0].1 != pair[1].1));
        }
    }

    #[test]
    fn links_and_pipes_are_no_pictures_and_a_picture_written_anew_has_another_address() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::os::unix::fs::symlink("/etc/passwd", at("samples.png")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(at("reals.png")).status().unwrap();
        assert!(made.success());
        assert!(kinds(folder.path()).is_empty());
        assert!(bytes(&at("samples.png")).is_none() && bytes(&at("reals.png")).is_none());
        fs::write(at("live.png"), "1").unwrap();
        let address = || address(&at("live.png"), &Source::Address("images/")).unwrap();
        let before = address();
        assert!(before.starts_with("images/live.png?v="), "{before}");
        fs::write(at("live.png"), "22").unwrap();
        assert_ne!(before, address());
    }

    #[test]
    fn of_very_many_kinds_some_are_shown_and_the_others_counted() {
        let folder = tempfile::tempdir().unwrap();
        for kind in 0..MOST + 7 {
            fs::write(folder.path().join(format!("k{kind}.png")), "1").unwrap();
        }
        let html = of(folder.path(), &Source::Inline).0;
        assert_eq!(html.matches("<img ").count(), MOST);
        assert!(html.contains("and 7 kinds more"), "{html}");
    }

    #[test]
    fn an_address_is_a_plain_name() {
        assert!(plain("samples-00000010.png"));
        for name in ["../x.png", ".hidden", "a b.png", "a/b", "a%20b", "ä.png"] {
            assert!(!plain(name), "{name}");
        }
    }
}

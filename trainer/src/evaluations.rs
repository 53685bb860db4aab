//! `evaluations.jsonl`: what commands found of a run, a JSON object a line. What the run measures of itself
//! is in its `metrics.jsonl`, which goes back with it when it resumes; this file only grows.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Its name in the folder of a run or of an exported model.
pub const FILE: &str = "evaluations.jsonl";

/// An object and when it was written.
#[derive(Serialize)]
struct Timed<'a, T> {
    #[serde(flatten)]
    line: &'a T,
    /// As RFC 3339 writes it.
    time: String,
}

/// Adds an object to a file of JSON lines, with the `time` it is now; makes the file where there is none.
/// The line is on the disk when the call returns. Many processes may do so at once: each line is one write
/// at the file's end, and behind a line that a full disk cut off a new one begins.
///
/// # Errors
/// [`Error::Io`].
pub fn append(path: &Path, line: &impl Serialize) -> Result<()> {
    let line = Timed { line, time: common::now() };
    let line =
        serde_json::to_string(&line).map_err(|e| Error::io("write", path)(io::Error::other(e)))?;
    let new = !path.exists();
    let mut file = open(path).map_err(Error::io("open", path))?;
    let write = |file: &mut File| {
        // Another's line that is on its way looks cut off. Where files cannot be locked, the new line then
        // begins with an empty one.
        let _ = file.lock();
        let cut_off = if ends_a_line(file)? { "" } else { "\n" };
        let bytes = format!("{cut_off}{line}\n").into_bytes();
        // Where there is room for a part alone, the rest is what fails.
        let written = file.write(&bytes)?;
        file.write_all(&bytes[written..])?;
        file.sync_data()?;
        if new { common::files::sync_folder_of(path) } else { Ok(()) }
    };
    write(&mut file).map_err(Error::io("write", path))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).open(path)
}

/// Whether a file is empty, or its last line is whole.
fn ends_a_line(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// The file of a folder, once it is sure that it can be added to.
///
/// # Errors
/// [`Error::Io`] where it cannot be opened or made.
pub fn check(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(FILE);
    open(&path).map_err(Error::io("write to", &path))?;
    Ok(path)
}

/// All that was measured of a run: by itself (`metrics.jsonl`, which in folders of earlier versions has
/// the lines of commands, too), then by commands.
#[must_use]
pub fn of(run: &Path) -> Vec<Map<String, Value>> {
    [run.join("metrics.jsonl"), run.join(FILE)].iter().flat_map(|path| lines(path)).collect()
}

/// The objects of a file of JSON lines; a line being written, or no file, is none.
pub(crate) fn lines(path: &Path) -> Vec<Map<String, Value>> {
    let mut all = vec![];
    each_line(path, |line| all.extend(serde_json::from_slice::<Map<String, Value>>(line)));
    all
}

/// Gives each line of a file to `take`, in memory for one line. What cannot be read is no line.
pub(crate) fn each_line(path: &Path, mut take: impl FnMut(&[u8])) {
    let Ok(file) = File::open(path) else { return };
    let (mut file, mut line) = (BufReader::new(file), vec![]);
    while file.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        take(&line);
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lines_of_many_at_once_are_whole_and_have_their_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let long = "x".repeat(9000);
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let (path, long) = (&path, &long);
                scope.spawn(move || {
                    for number in 0..20 {
                        let line = serde_json::json!({"w": writer, "n": number, "long": long});
                        append(path, &line).unwrap();
                    }
                });
            }
        });
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 160);
        let found = lines(&path);
        assert_eq!(found.len(), 160);
        for line in &found {
            assert_eq!(line["long"], long.as_str());
            let time = line["time"].as_str().unwrap();
            assert!(humantime(time), "{time}");
        }
    }

    /// 2019-07-04T12:00:00Z
    fn humantime(text: &str) -> bool {
        let pattern = "dddd-dd-ddTdd:dd:ddZ";
        text.len() == pattern.len()
            && text.bytes().zip(pattern.bytes()).all(|(byte, wanted)| match wanted {
                b'd' => byte.is_ascii_digit(),
                _ => byte == wanted,
            })
    }

    #[test]
    fn a_line_that_was_cut_off_takes_no_other_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        fs::write(&path, "{\"step\":1}\n{\"step\":2,\"met").unwrap();
        append(&path, &serde_json::json!({"step": 3})).unwrap();
        append(&path, &serde_json::json!({"step": 4})).unwrap();
        let steps: Vec<_> = lines(&path).iter().map(|line| line["step"].as_u64()).collect();
        assert_eq!(steps, [Some(1), Some(3), Some(4)]);
    }

    #[test]
    fn what_an_earlier_version_s_commands_found_is_read_with_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        put("metrics.jsonl", "{\"metric\":\"fid\",\"step\":1}\n{\"metric\":\"knn\",\"step\":2}\n");
        append(&folder.path().join(FILE), &serde_json::json!({"metric": "is"})).unwrap();
        let found = of(folder.path());
        let metrics: Vec<_> = found.iter().map(|line| line["metric"].as_str()).collect();
        assert_eq!(metrics, [Some("fid"), Some("knn"), Some("is")]);
        // A folder as an earlier version left it.
        let run = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/9d001b8/run");
        assert_eq!(of(Path::new(run)).len(), 4);
    }

    #[test]
    fn a_file_that_cannot_be_added_to_is_found_before_there_is_something_to_add() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(check(folder.path()).unwrap(), folder.path().join(FILE));
        fs::remove_file(folder.path().join(FILE)).unwrap();
        fs::create_dir(folder.path().join(FILE)).unwrap();
        let error = check(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cannot write to") && error.contains(FILE), "{error}");
        assert!(append(&folder.path().join(FILE), &serde_json::json!({})).is_err());
    }
}

use std::path::PathBuf;

use serde_json::json;
use trainer::checkpoint::{self, Manifest};
use trainer::error::{Error, Result};
use trainer::say;

use super::table;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer checkpoints demo/run --verify\n\n\
    With --verify the exit code is 2 where one is damaged.")]
pub(crate) struct Args {
    /// Folder of a run
    #[arg(value_name = "DIR")]
    run: PathBuf,
    /// Read every file and compare it with its hash
    #[arg(long)]
    verify: bool,
    /// A JSON object a line: step, path, bytes, time, commit, state ("sound", "damaged" or "not read"), problem
    #[arg(long)]
    json: bool,
}

/// A checkpoint, and what is known of it.
struct Row {
    step: u64,
    path: PathBuf,
    /// What the manifest says, if it can be read.
    manifest: Option<Manifest>,
    read: Result<()>,
}

impl Row {
    fn state(&self, verified: bool) -> &'static str {
        match &self.read {
            Ok(()) if verified => "sound",
            Ok(()) => "not read",
            Err(_) => "damaged",
        }
    }

    /// What is wrong with it.
    fn problem(&self) -> String {
        match &self.read {
            Ok(()) => String::new(),
            Err(Error::Checkpoint { path, reason }) => match path.strip_prefix(&self.path) {
                Ok(file) if !file.as_os_str().is_empty() => format!("{}: {reason}", file.display()),
                _ => reason.clone(),
            },
            Err(e) => e.to_string(),
        }
    }

    /// Of all its files together.
    fn bytes(&self) -> u64 {
        let of = self.manifest.iter().flat_map(|manifest| manifest.files.values());
        of.map(|file| file.bytes).sum()
    }

    /// When it was saved, and by which commit.
    fn made(&self) -> [String; 2] {
        let of = self.manifest.as_ref().and_then(|manifest| manifest.provenance.as_ref());
        of.map_or_else(Default::default, |of| [of.time.clone(), of.commit.clone()])
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = args.run.join("checkpoints");
    if !folder.is_dir() {
        let reason =
            "no checkpoints in it: not the folder of a run, or of one that has saved nothing";
        return Err(Error::Output { path: args.run.clone(), reason: reason.to_owned() });
    }
    let mut rows = vec![];
    for (step, path) in checkpoint::list(&folder)? {
        let (manifest, read) = match checkpoint::read_manifest(&path) {
            Err(e) => (None, Err(e)),
            Ok(manifest) if args.verify => (Some(manifest), checkpoint::verify(&path).map(|_| ())),
            Ok(manifest) => (Some(manifest), Ok(())),
        };
        // One that training removed meanwhile is none.
        if !checkpoint::is_gone(&path) {
            rows.push(Row { step, path, manifest, read });
        }
    }
    show(args, &rows)?;
    rows.into_iter().filter(|_| args.verify).try_for_each(|row| row.read)
}

fn show(args: &Args, rows: &[Row]) -> Result<()> {
    if args.json {
        return rows.iter().try_for_each(|row| {
            let ([time, commit], state) = (row.made(), row.state(args.verify));
            let (step, path, problem) = (row.step, row.path.display().to_string(), row.problem());
            say::print(json!({
                "step": step, "path": path, "bytes": row.bytes(), "time": time, "commit": commit,
                "state": state, "problem": problem,
            }))
        });
    }
    if rows.is_empty() {
        return say::print("none");
    }
    let mut table = table(["step", "MB", "saved", "by commit", "state"]);
    for row in rows {
        let [time, commit] = row.made();
        let commit = commit.chars().take(10).collect::<String>();
        let megabytes = format!("{:.1}", row.bytes() as f64 / 1e6);
        let name = row.path.file_name().unwrap_or_default().to_string_lossy();
        let step = name.trim_start_matches("step-").trim_start_matches('0');
        let step = if step.is_empty() { "0" } else { step };
        let state = [row.state(args.verify), &row.problem()].join(" ");
        table.add_row([step.to_owned(), megabytes, time, commit, state]);
    }
    say::print(table)
}

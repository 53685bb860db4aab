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
    /// A JSON object a line: step, path, bytes, time, commit, state
    #[arg(long)]
    json: bool,
}

/// A checkpoint, and what is known of it.
struct Row {
    step: u64,
    path: PathBuf,
    bytes: u64,
    read: Result<Manifest>,
}

impl Row {
    fn state(&self, verified: bool) -> String {
        match &self.read {
            Ok(_) if verified => "sound".to_owned(),
            Ok(_) => "not read".to_owned(),
            Err(Error::Checkpoint { path, reason }) => match path.strip_prefix(&self.path) {
                Ok(file) if file.as_os_str().len() > 0 => format!("{}: {reason}", file.display()),
                _ => reason.clone(),
            },
            Err(e) => e.to_string(),
        }
    }

    /// When it was saved, and by which commit.
    fn made(&self) -> [String; 2] {
        let of = self.read.as_ref().ok().and_then(|manifest| manifest.provenance.as_ref());
        of.map_or_else(Default::default, |of| [of.time.clone(), of.commit.clone()])
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = args.run.join("checkpoints");
    let mut rows = vec![];
    for (step, path) in checkpoint::list(&folder)? {
        let read = match args.verify {
            true => checkpoint::verify(&path),
            false => checkpoint::read_manifest(&path),
        };
        // One that training removed meanwhile is none.
        if !checkpoint::is_gone(&path) {
            let bytes = read
                .as_ref()
                .map_or(0, |manifest| manifest.files.values().map(|file| file.bytes).sum());
            rows.push(Row { step, path, bytes, read });
        }
    }
    if args.json {
        for row in &rows {
            let ([time, commit], state) = (row.made(), row.state(args.verify));
            let (step, path, bytes) = (row.step, row.path.display().to_string(), row.bytes);
            say::print(json!({
                "step": step, "path": path, "bytes": bytes, "time": time, "commit": commit, "state": state
            }))?;
        }
    } else if rows.is_empty() {
        say::print("none")?;
    } else {
        let mut table = table(["step", "MB", "saved", "by commit", "state"]);
        for row in &rows {
            let [time, commit] = row.made();
            let commit = commit.chars().take(10).collect::<String>();
            let megabytes = format!("{:.1}", row.bytes as f64 / 1e6);
            let name = row.path.file_name().unwrap_or_default().to_string_lossy();
            let step = name.trim_start_matches("step-").trim_start_matches('0');
            let step = if step.is_empty() { "0" } else { step };
            table.add_row([step.to_owned(), megabytes, time, commit, row.state(args.verify)]);
        }
        say::print(table)?;
    }
    rows.into_iter().filter(|_| args.verify).try_for_each(|row| row.read.map(|_| ()))
}

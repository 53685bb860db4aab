//! README.md and docs/: links lead somewhere, commands are ones that the programs take, and those of the first hour run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::trainer::config::{Config, Origin};
use integration::{ONE_THREAD, TINY, data, program, repository, shard_imagenet, text, trainer};

/// Documents for people, by their paths from the repository's root.
fn documents() -> Vec<PathBuf> {
    let mut all = vec![];
    for folder in ["", "docs", "python", "benches", "benches/remote", "fuzz"] {
        let entries = fs::read_dir(repository().join(folder)).into_iter().flatten().flatten();
        all.extend(entries.map(|entry| Path::new(folder).join(entry.file_name())));
    }
    all.retain(|path| path.extension().is_some_and(|of| of == "md"));
    all.sort();
    assert!(all.len() > 20, "{all:?}");
    all
}

fn read(document: &Path) -> String {
    fs::read_to_string(repository().join(document)).unwrap()
}

/// Lines within fences of these languages, those that end in `\` joined with the next.
fn commands(text: &str) -> Vec<String> {
    let (mut found, mut fence): (Vec<String>, Option<bool>) = (vec![], None);
    let mut open = false;
    for line in text.lines() {
        if let Some(language) = line.trim().strip_prefix("```") {
            fence = match fence {
                None => Some(["", "sh", "bash"].contains(&language)),
                Some(_) => None,
            };
            open = false;
        } else if fence == Some(true) {
            let (line, goes_on) = match line.trim().strip_suffix('\\') {
                Some(line) => (line.trim(), true),
                None => (line.trim(), false),
            };
            match found.last_mut().filter(|_| open) {
                Some(last) => *last = format!("{last} {line}"),
                None => found.push(line.to_owned()),
            }
            open = goes_on;
        }
    }
    found
}

/// What a line asks of which of our programs: behind launchers and paths; nothing if it asks none.
fn asked(line: &str) -> Option<(&'static str, Vec<&str>)> {
    let words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
    let words: Vec<_> = words.collect();
    for name in ["trainer", "shard-imagenet"] {
        let is = |word: &&str| *word == name || word.strip_prefix("target/release/") == Some(name);
        let launched = ["torchrun", "srun"].contains(words.first()?);
        let Some(place) = words.iter().position(is) else { continue };
        if place == 0 || launched {
            return Some((name, words[place + 1..].to_vec()));
        }
    }
    None
}

/// Every command that documents have of a program of ours.
fn all_commands() -> Vec<(PathBuf, String)> {
    let of =
        |path: PathBuf| commands(&read(&path)).into_iter().map(move |line| (path.clone(), line));
    documents().into_iter().flat_map(of).collect()
}

#[test]
fn links_lead_to_files() {
    let mut broken = vec![];
    for document in documents() {
        let text = read(&document);
        for link in text.split("](").skip(1) {
            let link = link.split([')', '#']).next().unwrap();
            let here = repository().join(document.parent().unwrap()).join(link);
            if !link.is_empty() && !link.contains("://") && !here.exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn readme_is_short() {
    assert!(read(Path::new("README.md")).lines().count() <= 120);
}

/// The parser reads up to `--help`, and stops at what it does not know.
#[test]
fn every_command_is_one_that_the_programs_take() {
    let (mut wrong, mut seen) = (vec![], BTreeSet::new());
    let mut check = |document: &Path, line: &str, name: &'static str, words: &[&str]| {
        let words: Vec<_> = words.iter().copied().take_while(|word| *word != "…").collect();
        let mut all: Vec<&str> = words.clone();
        all.push("--help");
        if !seen.insert((name, words.join(" "))) {
            return;
        }
        let said = if name == "trainer" { trainer(&all) } else { shard_imagenet(&all) };
        if said.code != 0 {
            wrong.push(format!("{}: {line}\n{}", document.display(), said.err));
        }
        let of = |option: &str| -> Vec<String> {
            let pairs = words.windows(2).filter(|pair| pair[0] == option);
            pairs.map(|pair| pair[1].to_owned()).collect()
        };
        let (presets, changes) = (of("--preset"), of("--set"));
        if let Some(preset) = presets.first().filter(|name| **name != "NAME" && **name != "PRESET")
            && let Err(e) = Config::resolve(&Origin::Preset(preset), &changes)
        {
            wrong.push(format!("{}: {line}\n{e}", document.display()));
        }
    };
    let mut count = 0;
    for (document, line) in all_commands() {
        let Some((name, words)) = asked(&line) else { continue };
        count += 1;
        // A launcher of ours hands on what stands behind the stroke.
        match words.iter().position(|word| *word == "--") {
            Some(stroke) if words[0] == "launch" => {
                check(&document, &line, name, &words[..stroke]);
                check(&document, &line, name, &words[stroke + 1..]);
            }
            _ => check(&document, &line, name, &words),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 60, "{count} commands alone were found");
}

#[test]
fn scripts_and_targets_that_documents_name_are_there() {
    let makefile = fs::read_to_string(repository().join("Makefile")).unwrap();
    let mut missing = BTreeSet::new();
    for (document, line) in all_commands() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if first == "make" {
            let targets =
                words.filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
            let there = |target: &&str| !makefile.contains(&format!("\n{target}:"));
            missing
                .extend(targets.filter(there).map(|t| format!("{}: make {t}", document.display())));
        } else if (first.starts_with("scripts/") || first.starts_with("benches/"))
            && !repository().join(first).exists()
        {
            missing.insert(format!("{}: {first}", document.display()));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Photographs as somebody has them: `photos/{train,val}/CLASS/NAME.jpg`, and `cat.jpg`.
fn photos(folder: &Path) {
    let shown = |key: &str, to: &Path| {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let said = shard_imagenet(&["cat", &text(data()), key, "--png", &text(to)]);
        assert_eq!(said.code, 0, "{}", said.err);
    };
    let split = pipeline::Dataset::open(data(), "train").unwrap();
    for sample in 0..split.len() as u64 {
        let part = if sample % 4 == 3 { "val" } else { "train" };
        let name = format!("photos/{part}/class{}/{sample}.png", sample % 3);
        shown(&split.key(sample).to_string(), &folder.join(name));
    }
    fs::copy(folder.join("photos/train/class0/0.png"), folder.join("cat.jpg")).unwrap();
}

/// The commands of README.md and of the cookbook, in order, as written, but for sizes: of data a person has not yet, or that are
/// elsewhere, of CUDA and of what goes on for ever there are none.
#[test]
fn the_commands_of_the_first_hour_run() {
    let (mut run, mut left_out) = (0, vec![]);
    for document in ["README.md", "docs/cookbook.md"] {
        let folder = tempfile::tempdir().unwrap();
        photos(folder.path());
        fs::create_dir_all(folder.path().join("demo")).unwrap();
        std::os::unix::fs::symlink(data(), folder.path().join("demo/data-cifar10")).unwrap();
        for line in commands(&read(Path::new(document))) {
            let Some((name, words)) = asked(&line) else { continue };
            let elsewhere = ["cuda", "s3://", "inception", " watch "];
            if elsewhere.iter().any(|what| line.contains(what)) {
                left_out.push(line);
                continue;
            }
            follow(folder.path(), document, &line, name, &words);
            run += 1;
        }
        let made = match document {
            "README.md" => ["samples.png", "pairs.png", "runs/first/report.html"],
            _ => ["compare.html", "photos.npy", "exported/encoder.pt"],
        };
        for made in made {
            assert!(folder.path().join(made).exists(), "{made}");
        }
    }
    assert!(run >= 18 && left_out.len() <= 6, "{run} run, left out: {left_out:#?}");
}

/// Runs a command in a folder, with less to do than it says.
fn follow(folder: &Path, document: &str, line: &str, name: &str, words: &[&str]) {
    let smaller = words.iter().map(|word| match *word {
        "50000" => "4",
        "500" => "8",
        other => other,
    });
    let mut args: Vec<String> = smaller.map(str::to_owned).collect();
    let trains = words.contains(&"run") && !words.contains(&"--dry-run");
    if trains && !words.contains(&"--resume") {
        for change in TINY.iter().chain(&["images.every=0", "eval.probe_images=0"]) {
            args.extend(["--set".to_owned(), (*change).to_owned()]);
        }
    }
    let mut command = Command::new(program(name));
    let said = command.args(&args).current_dir(folder).envs(ONE_THREAD).output().unwrap();
    let err = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{document}: {line}\n{args:?}\n{err}");
}

//! Rules about the code itself.

use std::fs;
use std::path::{Path, PathBuf};

use integration::repository;

fn files(under: &Path, found: &mut Vec<PathBuf>) {
    let ignored = fs::read_to_string(repository().join(".gitignore")).unwrap();
    for entry in fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // What commands make there, such as runs.
        let made = name == ".git" || ignored.lines().any(|line| line == format!("/{name}/"));
        if path.is_symlink()
            || made && under == repository()
            || ["target", "Cargo.lock", "corpus", "artifacts"].contains(&name.as_str())
        {
            continue;
        }
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn no_file_names_a_machine_s_paths_or_a_registry_s_host() {
    let words = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("npmjs", ".org"),
        concat!("pypi", ".org"),
        concat!("crates", ".io"),
        concat!("debian", ".org"),
        concat!("pythonhosted", ".org"),
    ];
    let mut all = vec![];
    files(repository(), &mut all);
    assert!(all.len() > 40);
    for path in all {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for word in words {
            assert!(!text.contains(word), "{} contains {word}", path.display());
        }
    }
}

#[test]
fn every_script_builds_the_programs_by_the_same_words() {
    // Another selection compiles what both need with other features, again: minutes of a first `make demo`.
    let mut all = vec![];
    files(&repository().join("scripts"), &mut all);
    let mut built = 0;
    for script in all {
        let name = script.file_name().unwrap().to_string_lossy().into_owned();
        // Programs of a commit of before, in a folder of their own; all that a check of a card wants.
        if ["loss-compare", "gpu-check"].contains(&name.as_str()) {
            continue;
        }
        let Ok(text) = fs::read_to_string(&script) else { continue };
        for line in text.lines().filter(|line| line.contains("cargo build --release")) {
            assert_eq!(line.trim(), "cargo build --release", "{name}");
            built += 1;
        }
    }
    assert!(built >= 4, "{built}");
}

/// Lines of a file of code.
const MOST_LINES: usize = 500;

#[test]
fn no_file_is_too_long_to_be_read_at_a_time() {
    let mut all = vec![];
    files(repository(), &mut all);
    let code = |path: &PathBuf| {
        ["rs", "py", "cpp", "h", "c", "js"]
            .iter()
            .any(|e| path.extension().is_some_and(|x| x == *e))
    };
    all.retain(code);
    assert!(all.len() > 300);
    for path in all {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(
            lines <= MOST_LINES,
            "{} has {lines} lines: divide it by what it does",
            path.display()
        );
    }
}

/// In each crate a file imports only from files above it in this list.
const LAYERS: [(&str, &[&str]); 4] = [
    (
        "trainer/torch-ext",
        &[
            "openmp", "shim", "error", "context", "kernels", "memory", "autograd", "cuda", "graph",
            "stream", "nccl", "c10d", "measure", "profile", "script",
        ],
    ),
    ("trainer/dist", &["error", "place", "watch", "rendezvous", "world"]),
    (
        "trainer/model",
        &[
            "presets", "random", "nn", "networks", "images", "loss", "optim", "config", "beyond",
            "state", "step",
        ],
    ),
    (
        "trainer",
        &[
            "error",
            "say",
            "lock",
            "supervisor",
            "launch",
            "device",
            "provenance",
            "config",
            "peak",
            "fit",
            "checkpoint",
            "eval",
            "evaluations",
            "export",
            "health",
            "log",
            "tensorboard",
            "inspect",
            "report",
            "watch",
            "monitor",
            "feed",
            "timing",
            "scale",
            "run",
            "study",
            "doctor",
            "check",
        ],
    ),
];

/// What a crate calls what only its tests use.
const OF_TESTS: [&str; 2] = ["parity", "toy"];

#[test]
fn imports_go_one_way() {
    for (member, order) in LAYERS {
        let source = repository().join(member).join("src");
        let mut all = vec![];
        files(&source, &mut all);
        // Tests may look up at what comes later.
        let code = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
        let of_tests = |path: &PathBuf| {
            let inside = path.strip_prefix(&source).unwrap();
            inside.ends_with("tests.rs") || inside.iter().any(|part| part == "tests")
        };
        all.retain(|path| code(path) && !of_tests(path));
        for path in all {
            let relative = path.strip_prefix(&source).unwrap();
            let layer = relative.iter().next().unwrap().to_string_lossy().replace(".rs", "");
            let Some(own) = order.iter().position(|l| *l == layer) else {
                let known = ["lib", "main", "commands"].contains(&layer.as_str());
                assert!(known || OF_TESTS.contains(&layer.as_str()), "{layer} has no place");
                continue;
            };
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for line in code.lines().filter_map(|l| l.trim().strip_prefix("use crate::")) {
                let used = line.split([':', ';', '{', ' ']).next().unwrap();
                let position = order.iter().position(|l| *l == used).unwrap_or(usize::MAX);
                assert!(position <= own, "{} imports {used}", path.display());
            }
            // What is past the paper is made where a state is, and counted; nothing else knows it.
            let may = ["beyond", "state", "inspect"].contains(&layer.as_str());
            let knows =
                ["crate::beyond", "bigbigan_model::beyond"].iter().any(|w| code.contains(w));
            assert!(may || !knows, "{} knows what is past the paper", path.display());
        }
    }
}

/// What a crate's manifest says that it needs, of the repository's own crates; not for tests.
fn needs(member: &str) -> Vec<String> {
    let manifest = fs::read_to_string(repository().join(member).join("Cargo.toml")).unwrap();
    let needed = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let own = ["common", "pipeline", "torch-ext", "dist", "bigbigan-model", "trainer", "tools"];
    let names = needed.lines().filter_map(|line| line.split(['.', ' ']).next());
    names.filter(|name| own.contains(name)).map(str::to_owned).collect()
}

#[test]
fn below_the_program_each_crate_knows_those_below_it_alone() {
    assert_eq!(needs("common"), [""; 0]);
    assert_eq!(needs("trainer/torch-ext"), ["common"]);
    assert_eq!(needs("trainer/dist"), ["common", "torch-ext"]);
    assert_eq!(needs("trainer/model"), ["dist", "torch-ext"]);
    let mut all = vec![];
    files(&repository().join("trainer/torch-ext"), &mut all);
    for path in all {
        let text = fs::read_to_string(&path).unwrap().to_lowercase();
        assert!(!text.contains("bigbigan"), "{} knows what it is for", path.display());
    }
}

#[test]
fn pipeline_and_tools_need_no_torch() {
    for member in ["common", "pipeline", "tools", "python"] {
        let manifest = fs::read_to_string(repository().join(member).join("Cargo.toml")).unwrap();
        assert!(!manifest.contains("\ntch"), "{member} depends on tch");
    }
}

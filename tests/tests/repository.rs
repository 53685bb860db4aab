//! Rules about the code itself.

use std::collections::BTreeMap;
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

/// In each crate a file imports only from files above it in this list.
#[test]
fn imports_go_one_way() {
    let layers: BTreeMap<&str, &[&str]> = BTreeMap::from([(
        "trainer",
        &[
            "openmp",
            "shim",
            "error",
            "say",
            "stop",
            "lock",
            "supervisor",
            "cuda",
            "graph",
            "measure",
            "profile",
            "dist",
            "random",
            "nn",
            "model",
            "device",
            "provenance",
            "loss",
            "optim",
            "config",
            "beyond",
            "peak",
            "state",
            "step",
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
        ][..],
    )]);
    for (member, order) in layers {
        let mut all = vec![];
        files(&repository().join(member).join("src"), &mut all);
        // Tests may look up at what comes later.
        let code = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
        all.retain(|path| code(path) && !path.ends_with("tests.rs"));
        for path in all {
            let relative = path.strip_prefix(repository().join(member).join("src")).unwrap();
            let layer = relative.iter().next().unwrap().to_string_lossy().replace(".rs", "");
            let Some(own) = order.iter().position(|l| *l == layer) else {
                assert!(
                    ["lib", "main", "commands", "golden", "toy"].contains(&layer.as_str()),
                    "{layer} has no place in the order"
                );
                continue;
            };
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for line in code.lines().filter_map(|l| l.trim().strip_prefix("use crate::")) {
                let used = line.split([':', ';', '{', ' ']).next().unwrap();
                let position = order.iter().position(|l| *l == used).unwrap_or(usize::MAX);
                assert!(position <= own, "{} imports {used}", path.display());
                // What is past the paper is made where a state is, and counted; nothing else knows it.
                let may = ["beyond", "state", "inspect"].contains(&layer.as_str());
                assert!(used != "beyond" || may, "{} imports {used}", path.display());
            }
        }
    }
}

#[test]
fn pipeline_and_tools_need_no_torch() {
    for member in ["common", "pipeline", "tools", "python"] {
        let manifest = fs::read_to_string(repository().join(member).join("Cargo.toml")).unwrap();
        assert!(!manifest.contains("\ntch"), "{member} depends on tch");
    }
}

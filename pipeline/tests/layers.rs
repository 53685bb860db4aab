//! The order of the parts: each imports only from those above it, so there are no cycles.

const ORDER: [&str; 25] = [
    "error",
    "container",
    "cursor",
    "shard",
    "address",
    "cache",
    "remote",
    "store",
    "folder",
    "index",
    "handover",
    "sampler",
    "stats",
    "augment",
    "jpeg",
    "decode",
    "seek",
    "dataset",
    "writer",
    "slab",
    "batch",
    "read_ahead",
    "config",
    "worker",
    "loader",
];

/// The files of Rust under a folder, those of tests aside.
fn code(under: &std::path::Path, found: &mut Vec<std::path::PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(under)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "tests" {
            code(&path, found)?;
        } else if path.extension().is_some_and(|kind| kind == "rs") && name != "tests" {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn each_part_imports_only_from_parts_above_it() -> std::io::Result<()> {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut parts) = (Vec::new(), std::collections::BTreeSet::new());
    code(&source, &mut files)?;
    for file in files {
        let inside = file.strip_prefix(&source).expect("it is in there");
        let part = inside.iter().next().and_then(|name| name.to_str()).unwrap_or_default();
        let part = part.trim_end_matches(".rs").to_owned();
        // The root, and what stands in for `remote`, `read_ahead` and `store`.
        if part == "lib" || part == "no_remote" {
            continue;
        }
        let place = ORDER.iter().position(|&known| known == part);
        let place = place.unwrap_or_else(|| panic!("{part} has no place in the order"));
        for line in std::fs::read_to_string(&file)?.lines() {
            let line = line.trim().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
            let Some(used) = line.strip_prefix("use crate::") else { continue };
            let used = used.split([':', ';']).next().unwrap_or_default();
            // What starts with a capital letter is a name of the crate's root.
            // `sync` is in the root as well, and a part may name itself.
            if used.starts_with(|first: char| first.is_lowercase())
                && used != "sync"
                && used != part
            {
                assert!(ORDER[..place].contains(&used), "{}: {line}", inside.display());
            }
        }
        parts.insert(part);
    }
    assert_eq!(parts.len(), ORDER.len());
    Ok(())
}

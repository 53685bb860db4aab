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

#[test]
fn each_part_imports_only_from_parts_above_it() -> std::io::Result<()> {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = 0;
    for entry in std::fs::read_dir(&source)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        // The root, and what stands in for `remote`, `read_ahead` and `store`.
        if name == "lib" || name == "no_remote" {
            continue;
        }
        files += 1;
        let place = ORDER.iter().position(|&part| part == name);
        let place = place.unwrap_or_else(|| panic!("{name} has no place in the order"));
        let file = if path.is_dir() { path.join("mod.rs") } else { path.clone() };
        for line in std::fs::read_to_string(file)?.lines() {
            let Some(used) = line.strip_prefix("use crate::") else { continue };
            let used = used.split([':', ';']).next().unwrap_or_default();
            // What starts with a capital letter is a name of the crate's root.
            // `sync` is in the root as well.
            if used.starts_with(|first: char| first.is_lowercase()) && used != "sync" {
                assert!(ORDER[..place].contains(&used), "{name}.rs: {line}");
            }
        }
    }
    assert_eq!(files, ORDER.len());
    Ok(())
}

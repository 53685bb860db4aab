//! Writes libtorch's folder into the binaries, and the list of presets.

use std::fs;
use std::path::PathBuf;

#[path = "../../scripts/rpath.rs"]
mod rpath;

fn main() {
    let _ = rpath::write();
    println!("cargo:rerun-if-changed=../presets");
    let folder = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let files = fs::read_dir(folder.join("../presets")).expect("presets are part of this crate");
    let mut files: Vec<_> = files.map(|file| file.expect("a folder that stays").path()).collect();
    // Absolute, as the list lies elsewhere.
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let entry = |path: &PathBuf| {
        format!("    ({:?}, include_str!({path:?})),\n", path.file_stem().expect("a name"))
    };
    let list: String = files.iter().map(entry).collect();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("presets.rs"), format!("&[\n{list}]\n")).expect("OUT_DIR is ours");
}

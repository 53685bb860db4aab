//! Compiles the unit that drives libjpeg-turbo, against the headers that turbojpeg-sys installed.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(fuzzing)");
    println!("cargo:rerun-if-changed=shim/jpeg.c");
    println!("cargo:rerun-if-env-changed=DEP_TURBOJPEG_INCLUDE");
    let include = std::env::var("DEP_TURBOJPEG_INCLUDE").unwrap_or_default();
    let folders = include.split(',').filter(|folder| !folder.is_empty());
    cc::Build::new().std("c11").includes(folders).file("shim/jpeg.c").compile("pipeline_jpeg");
}

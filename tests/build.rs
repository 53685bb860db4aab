//! Compiles the library that stands between a program and its files, for the tests that hurt it.

use std::path::PathBuf;

#[path = "../scripts/rpath.rs"]
mod rpath;

fn main() {
    let _ = rpath::write();
    println!("cargo:rerun-if-changed=faults");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("faults.so");
    let mut build = cc::Build::new();
    build.std("c11").warnings(true).extra_warnings(true).pic(true);
    let mut compiler = build.get_compiler().to_command();
    let made = compiler.args(["-shared", "faults/preload.c", "-o"]).arg(&out).status();
    assert!(made.is_ok_and(|status| status.success()), "faults/preload.c does not compile");
    println!("cargo:rustc-env=FAULTS={}", out.display());
}

//! Shared by the build scripts of every crate that links libtorch: writes the library's folder into
//! the binary, so that it starts with no environment variable, from wherever it is copied to.

use std::path::PathBuf;

/// Tells the linker where libtorch is. Returns that folder, or `None` (with a warning) if there is none.
pub(crate) fn write() -> Option<PathBuf> {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_LIB");
    let root = std::env::var_os("LIBTORCH_LIB").or_else(|| std::env::var_os("LIBTORCH"));
    let library = root.map(|root| PathBuf::from(root).join("lib"));
    let found = library.as_ref().and_then(|folder| folder.canonicalize().ok());
    match &found {
        Some(folder) => println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display()),
        None => println!(
            "cargo:warning=no libtorch at {library:?}: run `make setup`, or set LIBTORCH to an \
             unpacked libtorch 2.11.0"
        ),
    }
    found
}

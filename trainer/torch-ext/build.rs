//! Compiles the C++ shim against libtorch and writes libtorch's folder into the binaries.

use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../../scripts/cuda_headers.rs"]
mod cuda_headers;
#[path = "../../scripts/rpath.rs"]
mod rpath;

fn main() {
    let Some(library) = rpath::write() else { return };
    let include = library.with_file_name("include");
    println!("cargo:rerun-if-changed=shim");
    // Stand-ins for Gloo's headers are among the shim's.
    let folders = [include.join("torch/csrc/api/include"), include, "shim".into()];
    let files = ["shim", "observe", "runtime", "export", "dist", "profile"]
        .map(|f| format!("shim/{f}.cpp"));
    compiler(&folders).files(files).compile("torch_ext_shim");
    cuda(&library, &folders);
}

fn compiler(folders: &[PathBuf]) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // As libtorch was built: the layout of some of its classes depends on these.
        .define("NDEBUG", None)
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        .includes(folders)
        .warnings(false);
    build
}

/// Makes `cuda.so` of the parts that name libtorch's CUDA half; an empty file where the headers are not
/// beside libtorch, as Python's packages put them.
fn cuda(library: &Path, folders: &[PathBuf]) {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("cuda.so");
    let Some(headers) = cuda_headers::beside(library) else {
        println!(
            "cargo:warning=no headers of CUDA and NCCL: ranks cannot meet on CUDA devices, no CUDA graphs"
        );
        std::fs::write(&out, "").expect("OUT_DIR is ours");
        return;
    };
    let mut build = compiler(folders);
    build.define("USE_C10D_NCCL", None).includes(headers).pic(true);
    let mut command: Command = build.get_compiler().to_command();
    let made =
        command.args(["-shared", "shim/nccl.cpp", "shim/graph.cpp", "-o"]).arg(&out).status();
    assert!(made.is_ok_and(|status| status.success()), "the parts over CUDA do not compile");
}

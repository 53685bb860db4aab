//! Compiles the C++ shim against libtorch and writes libtorch's folder into the binaries.

#[path = "../scripts/rpath.rs"]
mod rpath;

fn main() {
    let Some(library) = rpath::write() else { return };
    let include = library.with_file_name("include");
    println!("cargo:rerun-if-changed=shim");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // As libtorch was built: the layout of some of its classes depends on these.
        .define("NDEBUG", None)
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        // Stand-ins for Gloo's headers.
        .include("shim")
        .warnings(false)
        .files(["shim/shim.cpp", "shim/runtime.cpp", "shim/export.cpp", "shim/dist.cpp"])
        .compile("bigbigan_shim");
}

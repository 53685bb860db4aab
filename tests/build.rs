//! Compiles what the tests put between a program and the machine: the library that hurts its calls on files,
//! and the CUDA device without a GPU.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../scripts/cuda_headers.rs"]
mod cuda_headers;
#[path = "../scripts/rpath.rs"]
mod rpath;

fn main() {
    let library = rpath::write();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    faults(&out);
    let device = library.and_then(|library| fake_cuda(&library, &out));
    println!("cargo:rustc-env=FAKE_CUDA={}", device.unwrap_or_default().display());
}

fn faults(out: &Path) {
    println!("cargo:rerun-if-changed=faults");
    let out = out.join("faults.so");
    let mut build = cc::Build::new();
    build.std("c11").warnings(true).extra_warnings(true).pic(true);
    let mut compiler = build.get_compiler().to_command();
    let made = compiler.args(["-shared", "faults/preload.c", "-o"]).arg(&out).status();
    assert!(made.is_ok_and(|status| status.success()), "faults/preload.c does not compile");
    println!("cargo:rustc-env=FAULTS={}", out.display());
}

/// A folder with the device as `libtorch_cuda.so`, and as the driver's library; `None` where the headers are
/// not beside libtorch.
fn fake_cuda(library: &Path, out: &Path) -> Option<PathBuf> {
    println!("cargo:rerun-if-changed=fake_cuda");
    let operators = library.join("../../torchgen/packaged/ATen/native/native_functions.yaml");
    println!("cargo:rerun-if-changed={}", operators.display());
    let headers = cuda_headers::beside(library)?;
    let kernels = kernels(&fs::read_to_string(operators).ok()?);
    let folder = out.join("fake_cuda");
    fs::create_dir_all(&folder).expect("OUT_DIR is ours");

    let include = library.with_file_name("include");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        // Twenty seconds; with more it takes longer than the tests win.
        .opt_level(1)
        .debug(false)
        // As libtorch was built, like the shim of torch-ext, whose stand-ins for Gloo's headers serve here.
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .define("NDEBUG", None)
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        .includes([
            include.join("torch/csrc/api/include"),
            include,
            "../trainer/torch-ext/shim".into(),
        ])
        .includes(headers)
        .include(&folder)
        .pic(true)
        .warnings(false);
    let mut command: Command = build.get_compiler().to_command();
    command
        .args(["-shared", "fake_cuda/fake_cuda.cpp", "-Wl,-soname,libtorch_cuda.so", "-L"])
        .arg(library)
        .args(["-ltorch_cpu", "-lc10", "-o"])
        .arg(folder.join("libtorch_cuda.so"));

    // A change to something else that this script makes costs no twenty seconds.
    let mut made_of: Vec<OsString> = command.get_args().map(Into::into).collect();
    for file in ["fake_cuda.cpp", "operators.h", "device.h"] {
        let text = fs::read_to_string(Path::new("fake_cuda").join(file));
        made_of.push(text.expect("a source of the device").into());
    }
    made_of.push((&kernels).into());
    let (made_of, stamp) = (format!("{made_of:?}"), folder.join("made_of"));
    if fs::read_to_string(&stamp).is_ok_and(|before| before == made_of) {
        return Some(folder);
    }
    let _ = fs::remove_file(&stamp);
    fs::write(folder.join("kernels.inc"), kernels).expect("OUT_DIR is ours");
    assert!(command.status().is_ok_and(|status| status.success()), "fake_cuda does not compile");
    let driver = folder.join("libcuda.so.1");
    let _ = fs::remove_file(&driver);
    std::os::unix::fs::symlink("libtorch_cuda.so", driver).expect("OUT_DIR is ours");
    fs::write(stamp, made_of).expect("OUT_DIR is ours");
    Some(folder)
}

/// Rows `{"NAME", whether it takes a scalar of host memory},` of the operators that CUDA has a kernel for, from
/// `native_functions.yaml`, which is written in one form throughout.
fn kernels(yaml: &str) -> String {
    let entries: Vec<(&str, &str)> =
        yaml.split("\n- func: ").skip(1).filter_map(|entry| entry.split_once('(')).collect();
    let own = |text: &str| {
        let dispatch = |line: &str| {
            line.strip_prefix("    ")?
                .split_once(':')
                .map(|(keys, _)| keys.split(',').any(|key| key.trim() == "CUDA"))
        };
        text.contains("\n  ufunc_inner_loop:") || text.lines().filter_map(dispatch).any(|on| on)
    };
    let with_kernel: std::collections::HashSet<&str> =
        entries.iter().filter(|(_, text)| own(text)).map(|(name, _)| *name).collect();
    let delegate = |text: &str| {
        let of = text.lines().find_map(|line| line.strip_prefix("  structured_delegate: "));
        of.is_some_and(|name| with_kernel.contains(name.trim()))
    };
    let rows = entries.iter().filter(|(name, text)| with_kernel.contains(name) || delegate(text));
    let rows = rows.map(|(name, text)| {
        let scalars = text.contains("\n  device_check: NoCheck");
        format!("{{\"{name}\", {scalars}}},\n")
    });
    let rows: String = rows.collect();
    assert!(rows.lines().count() > 1000, "native_functions.yaml is written in another form");
    rows
}

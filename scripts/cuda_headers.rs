//! Shared by the build scripts that compile against libtorch's CUDA half: where CUDA's headers are.

use std::path::{Path, PathBuf};

/// The folders of NCCL's and CUDA's headers, where Python's packages have put them beside libtorch's folder
/// `library`; `None` if one is missing.
pub(crate) fn beside(library: &Path) -> Option<[PathBuf; 3]> {
    let packages = library.join("../../nvidia");
    let headers = ["nccl/include", "cu13/include", "cu13/include/cccl"].map(|f| packages.join(f));
    let needed = [headers[0].join("nccl.h"), headers[1].join("crt/host_config.h")];
    for file in &needed {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    (headers[2].is_dir() && needed.iter().all(|file| file.exists())).then_some(headers)
}

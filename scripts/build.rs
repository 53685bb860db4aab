//! Build script of the crates that link libtorch but compile nothing themselves.

mod rpath;

fn main() {
    let _ = rpath::write();
}

//! `trainer`.
fn main() {}

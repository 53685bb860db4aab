//! `shard-imagenet`.
fn main() {}

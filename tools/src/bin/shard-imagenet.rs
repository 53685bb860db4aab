//! `shard-imagenet`: image archives to tar shards.

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::cli::run(std::env::args_os()).into()
}

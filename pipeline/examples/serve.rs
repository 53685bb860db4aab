//! Serves a data folder over HTTP, as slow and as faulty as asked: for figures and for a first try.
//!
//! `cargo run --release -p pipeline --example serve -- DIR [PORT [LATENCY_MS [FAILING_SHARE]]]`
//!
//! DIR may be the `HOST:PORT` of another server (S3, say), which it then stands before. `/served`
//! tells what was served so far, and the CPU seconds that took.

#[path = "../tests/support/server.rs"]
mod server;

use std::error::Error;
use std::time::Duration;

use server::{Faults, Origin, Server};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: f64| -> Result<f64, _> {
        arguments.get(at).map_or(Ok(default), |text| text.parse())
    };
    let from =
        arguments.first().ok_or("give the folder to serve, or the HOST:PORT to stand before")?;
    let origin = match from.parse() {
        Ok(address) => Origin::Server(address),
        Err(_) => Origin::Folder(from.into()),
    };
    let latency = Duration::from_secs_f64(number(2, 0.0)? / 1000.0);
    let faults = Faults { latency, failing: number(3, 0.0)?, ..Faults::default() };
    let server = Server::start(origin, faults, number(1, 0.0)? as u16)?;
    println!("{}", server.url);
    loop {
        std::thread::park();
    }
}

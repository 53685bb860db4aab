//! Seconds of nearest neighbours by each distance, on random features, and the most memory they took.
//!
//! `cargo bench -p benches --bench knn -- [--queries N] [--bank N] [--width N] [--distance l1]`.
//! The last line is one JSON object.

use std::collections::BTreeMap;
use std::time::Instant;

use benches::peak_rss;
use clap::Parser;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use trainer::eval::knn::{DISTANCES, nearest};

#[derive(Debug, Parser)]
struct Args {
    /// Images that are classified
    #[arg(long, default_value_t = 10_000)]
    queries: i64,
    /// Images that vote
    #[arg(long, default_value_t = 50_000)]
    bank: i64,
    /// Width of the features
    #[arg(long, default_value_t = 2048)]
    width: i64,
    /// Only this one: l1, l2 or cosine
    #[arg(long)]
    distance: Option<String>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    tch::manual_seed(0);
    let random = |rows| Tensor::rand([rows, args.width], (Kind::Float, Device::Cpu));
    let (bank, queries) = (random(args.bank), random(args.queries));
    let labels = Tensor::arange(args.bank, (Kind::Int64, Device::Cpu)).remainder(10);
    let mut seconds = BTreeMap::new();
    let wanted = |name: &str| args.distance.as_ref().is_none_or(|only| only == name);
    for distance in DISTANCES.into_iter().filter(|d| wanted(&d.to_string())) {
        let begun = Instant::now();
        let found = nearest(&bank, Some(&labels), &queries, distance, 50);
        assert_eq!(found.rows.size(), [args.queries, 50.min(args.bank)]);
        seconds.insert(distance.to_string(), begun.elapsed().as_secs_f64());
        println!("{distance}: {:.1} s", seconds[&distance.to_string()]);
    }
    println!(
        "{}",
        json!({
            "bench": "knn",
            "queries": args.queries,
            "bank": args.bank,
            "width": args.width,
            "threads": tch::get_num_threads(),
            "seconds": seconds,
            "peak_rss_bytes": peak_rss(),
        })
    );
}

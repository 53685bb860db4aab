//! Reads one epoch and says how fast: `cargo run --release -p pipeline --example epoch -- DIR`.

use std::{path::PathBuf, sync::Arc, time::Instant};

use pipeline::{Cursor, Dataset, Error, Heap, Loader, LoaderConfig};

fn main() -> Result<(), Error> {
    let dir = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "data".into()));
    let data = Arc::new(Dataset::open(&dir, "train")?);
    eprintln!("{} images of {} classes", data.len(), data.classes().len());
    let config = LoaderConfig { batch: 64, epochs: Some(1), ..LoaderConfig::default() };
    let (started, mut images) = (Instant::now(), 0);
    let mut loader = Loader::start(data, config, Cursor::default(), Arc::new(Heap))?;
    for batch in loader.by_ref() {
        let batch = batch?;
        images += batch.rows(); // batch.large(), batch.small() and batch.labels() are the data
    }
    eprintln!("{:.0} images/s", images as f64 / started.elapsed().as_secs_f64());
    eprintln!("{}", loader.stats().bottleneck);
    Ok(())
}

//! Prints a line for each batch of a data folder: epoch and batch that come next, and hashes of what it holds.
//! `hashes DIR SPLIT OPTIONS EPOCH BATCH COUNT`, with [`LoaderConfig`]'s options as JSON.

use std::path::Path;
use std::sync::Arc;

use pipeline::{Cursor, Dataset, Heap, Loader, LoaderConfig};
use xxhash_rust::xxh3::xxh3_64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, split, options, epoch, batch, count] = &args[..] else {
        return Err("usage: hashes DIR SPLIT OPTIONS EPOCH BATCH COUNT".into());
    };
    let config: LoaderConfig = serde_json::from_str(options)?;
    let at = Cursor::new(epoch.parse()?, batch.parse()?);
    let data = Arc::new(Dataset::open(Path::new(dir), split)?);
    for batch in Loader::start(data, config, at, Arc::new(Heap))?.take(count.parse()?) {
        let batch = batch?;
        let numbers =
            |all: &mut dyn Iterator<Item = [u8; 8]>| xxh3_64(&all.collect::<Vec<_>>().concat());
        println!(
            "{} {} {} {:016x} {:016x} {:016x} {:016x}",
            batch.cursor().epoch,
            batch.cursor().batch,
            batch.rows(),
            xxh3_64(batch.large()),
            xxh3_64(batch.small()),
            numbers(&mut batch.labels().iter().map(|label| label.to_le_bytes())),
            numbers(&mut batch.ids().iter().map(|id| id.to_le_bytes())),
        );
    }
    Ok(())
}

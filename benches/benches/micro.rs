//! The parts of the input pipeline one by one, on pictures made on the spot.
//!
//! `cargo bench -p benches --bench micro [NAME]`
//!
//! Every figure is of one picture; `row` is of 100 batches of 64, with rows a second beside it. The parts are reached through
//! the crate's public functions, so each figure holds what comes before it: `view` - `decode` is
//! the resize and the mean, `small_side` 256 - 128 the mean alone.

use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use pipeline::decode::{DecodeOptions, Decoder};
use pipeline::index::{Class, Classes, Format, IndexWriter};
use pipeline::shard::ShardWriter;
use pipeline::{Crop, Cursor, Dataset, Filter, Heap, Loader, LoaderConfig, Mode, Scaling, View};
use tools::catalog::Raw;
use tools::recode::{Coding, Recoder};
use turbojpeg::{Image, PixelFormat, Subsamp};

/// About the mean of ImageNet's photographs.
const SIZE: (usize, usize) = (472, 400);
const SIDE: usize = 256;
/// Batches that `row` takes at a time.
const BATCHES: usize = 100;

fn main() {
    divan::main();
}

/// Waves and grain, so that the codes are about as long as a photograph's.
fn jpeg((width, height): (usize, usize)) -> Vec<u8> {
    let mut noise = 1_u64;
    let mut pixels = Vec::with_capacity(width * height * 3);
    for at in 0..width * height {
        let (x, y) = ((at % width) as f64, (at / width) as f64);
        for channel in 0..3 {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let wave = (x / 19.0 + f64::from(channel)).sin() + (y / 17.0).cos();
            pixels.push((110.0 + 35.0 * wave + (noise >> 60) as f64) as u8);
        }
    }
    let image =
        Image { pixels: &pixels[..], width, pitch: width * 3, height, format: PixelFormat::RGB };
    turbojpeg::compress(image, 90, Subsamp::None).expect("a picture").to_vec()
}

/// The same picture with restart markers and optimised tables, as `shard-imagenet build` stores it.
fn with_restarts(bytes: Vec<u8>) -> Vec<u8> {
    let mut recoder = Recoder::new(Coding::default()).expect("a recoder");
    recoder.recode(Raw::Encoded, bytes).expect("memory").expect("a picture").bytes
}

fn decoder(scaling: Scaling) -> Decoder {
    let filter = Filter::Bilinear;
    Decoder::new(DecodeOptions { filter, scaling, ..DecodeOptions::default() }).expect("a decoder")
}

/// Times the view of a crop, at 256 and `small` pixels a side.
fn view(bencher: Bencher, bytes: &[u8], crop: Crop, small: usize, scaling: Scaling) {
    let mut decoder = decoder(scaling);
    let (mut large, mut small) = (vec![0; SIDE * SIDE * 3], vec![0; small * small * 3]);
    bencher.bench_local(|| {
        let choose = |_, _| View::of(crop);
        decoder.view(bytes, choose, SIDE, (&mut large, &mut small)).expect("a picture");
    });
}

const WHOLE: Crop = Crop { x: 0, y: 0, width: SIZE.0, height: SIZE.1 };
/// Half of the area, in the middle.
const MIDDLE: Crop = Crop { x: 68, y: 58, width: 336, height: 284 };
/// The last pixels: nearly everything before them is passed over.
const LAST: Crop = Crop { x: SIZE.0 - 8, y: SIZE.1 - 8, width: 8, height: 8 };

/// The headers alone.
#[divan::bench]
fn header(bencher: Bencher) {
    let (bytes, mut decoder) = (jpeg(SIZE), decoder(Scaling::Off));
    bencher.bench_local(|| decoder.size(&bytes).expect("a picture"));
}

/// Every coefficient and every pixel.
#[divan::bench]
fn decode(bencher: Bencher) {
    let (bytes, mut decoder) = (jpeg(SIZE), decoder(Scaling::Off));
    bencher.bench_local(|| decoder.decode(&bytes).expect("a picture"));
}

/// Passing over the codes of the whole picture; `true`: jumping over its restart intervals.
#[divan::bench(args = [false, true])]
fn pass_over(bencher: Bencher, restarts: bool) {
    let bytes = if restarts { with_restarts(jpeg(SIZE)) } else { jpeg(SIZE) };
    view(bencher, &bytes, LAST, SIDE / 2, Scaling::Off);
}

/// A crop of half of the area to both resolutions; `true`: with restart markers.
#[divan::bench(args = [false, true])]
fn crop(bencher: Bencher, restarts: bool) {
    let bytes = if restarts { with_restarts(jpeg(SIZE)) } else { jpeg(SIZE) };
    view(bencher, &bytes, MIDDLE, SIDE / 2, Scaling::Off);
}

/// The whole picture to both resolutions: decoding, the resize and the mean.
#[divan::bench]
fn view_whole(bencher: Bencher) {
    view(bencher, &jpeg(SIZE), WHOLE, SIDE / 2, Scaling::Off);
}

/// A large picture to both resolutions; `true`: decoded at half its size.
#[divan::bench(args = [false, true])]
fn view_large(bencher: Bencher, scaled: bool) {
    let scaling = if scaled { Scaling::Dct } else { Scaling::Off };
    let crop = Crop { x: 0, y: 0, width: 900, height: 700 };
    view(bencher, &jpeg((900, 700)), crop, SIDE / 2, scaling);
}

/// The side of the second resolution: 256 is a copy, 128 the 2x2 mean, 64 the 4x4 mean.
#[divan::bench(args = [256, 128, 64])]
fn small_side(bencher: Bencher, small: usize) {
    view(
        bencher,
        &jpeg((SIDE, SIDE)),
        Crop { x: 0, y: 0, width: 8, height: 8 },
        small,
        Scaling::Off,
    );
}

/// A row through sampler, fetch, decode thread, collate and queue, of a picture of 8 x 8.
#[divan::bench(args = [1, 2], sample_count = 20, sample_size = 1)]
fn row(bencher: Bencher, threads: usize) {
    let dir = tempfile::tempdir().expect("a folder");
    let image = jpeg((8, 8));
    let mut index = IndexWriter::new();
    index.begin_split("train").expect("a split");
    let mut shard = ShardWriter::create(&dir.path().join("train-000000.tar")).expect("a shard");
    for number in 0..640 {
        let key = format!("s{number:04}");
        let entry = shard.append(&key, "jpg", &image, Some(0)).expect("a member");
        index.sample(&key, entry, Some(0), Format::Unknown, (0, 0));
    }
    index.end_shard("train-000000.tar", shard.finish().expect("a shard")).expect("a shard");
    index.write(dir.path()).expect("an index");
    Classes(vec![Class { class: 0, name: "c0".into(), words: None }])
        .save(dir.path())
        .expect("classes");
    let data = Arc::new(Dataset::open(dir.path(), "train").expect("a data folder"));
    let config = LoaderConfig {
        mode: Mode::Small,
        large: 32,
        small: Some(16),
        threads,
        ..LoaderConfig::default()
    };
    let mut loader =
        Loader::start(data, config, Cursor::default(), Arc::new(Heap)).expect("a loader");
    // Many at a time: what lies ready in the queue when the clock starts is little of it.
    bencher.counter(ItemsCount::new(64 * BATCHES)).bench_local(|| {
        loader.by_ref().take(BATCHES).map(|batch| batch.expect("a batch").rows()).sum::<usize>()
    });
}

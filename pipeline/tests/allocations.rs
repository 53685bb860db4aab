//! What decoding takes from the heap: nothing once it is warm, and little however much a file
//! claims. Alone in its process, for it counts what the process allocates.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pipeline::decode::{DecodeOptions, Decoder};
use pipeline::{Crop, Filter, View};
use turbojpeg::{Image, PixelFormat, Subsamp};

thread_local! {
    /// Allocations of this thread, the bytes that it holds, and the most that it held.
    static COUNTS: Cell<(usize, isize, isize)> = const { Cell::new((0, 0, 0)) };
}

struct Counting;

fn count(times: usize, bytes: isize) {
    // A thread that ends may have no counts any more.
    let _ = COUNTS.try_with(|counts| {
        let (all, held, most) = counts.get();
        counts.set((all + times, held + bytes, most.max(held + bytes)));
    });
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, size as isize - layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What `work` allocated: times, and the most bytes at once.
fn allocated(work: impl FnOnce()) -> (usize, isize) {
    let (before, held, _) = COUNTS.get();
    COUNTS.set((before, held, held));
    work();
    let (after, _, most) = COUNTS.get();
    (after - before, most - held)
}

fn jpeg((width, height): (usize, usize), quality: i32, subsamp: Subsamp) -> Vec<u8> {
    let pixels: Vec<u8> =
        (0..width * height * 3).map(|n| (n * 7 + n / width * 13 + n * n / 977) as u8).collect();
    let mut compressor = turbojpeg::Compressor::new().unwrap();
    compressor.set_quality(quality).unwrap();
    compressor.set_subsamp(subsamp).unwrap();
    compressor.set_optimize(quality % 2 == 1).unwrap();
    let (pixels, pitch, format) = (&pixels[..], width * 3, PixelFormat::RGB);
    compressor.compress_to_vec(Image { pixels, width, pitch, height, format }).unwrap()
}

#[test]
fn a_warm_decoder_of_baseline_jpegs_allocates_nothing() {
    let files: Vec<_> = [
        ((500, 375), 90, Subsamp::None),
        ((375, 500), 91, Subsamp::None),
        ((640, 480), 75, Subsamp::Sub2x2),
        ((333, 250), 85, Subsamp::Sub2x1),
        ((300, 200), 60, Subsamp::Gray),
        ((20, 30), 95, Subsamp::None),
    ]
    .map(|(size, quality, subsamp)| jpeg(size, quality, subsamp))
    .to_vec();
    for filter in [Filter::Bicubic, Filter::Bilinear] {
        let options = DecodeOptions { filter, ..DecodeOptions::default() };
        let mut decoder = Decoder::new(options).unwrap();
        let mut rows = [vec![0; 128 * 128 * 3], vec![0; 64 * 64 * 3]];
        let mut all = |shift: usize| {
            for file in &files {
                for flip in [false, true] {
                    let [large, small] = &mut rows;
                    let view = |w: usize, h: usize| {
                        let (x, y) = (w / 8 * shift, h / 8 * (2 - shift));
                        let crop = Crop { x, y, width: w - x - w / 9, height: h - y - h / 7 };
                        View { flip, ..View::of(crop) }
                    };
                    decoder.size(file).unwrap();
                    decoder.view(file, view, 128, (large, small)).unwrap();
                }
            }
        };
        (0..3).for_each(&mut all);
        let (times, _) = allocated(|| (0..3).for_each(&mut all));
        // Elsewhere the resize is a library's.
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            assert_eq!(times, 0, "allocations of a warm decoder, {filter:?}");
        }
    }
}

/// A PNG of 2 x 2 red pixels with a chunk whose compressed data are `deflated`.
fn hostile(kind: [u8; 4], head: &[u8], deflated: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, 2, 2);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::ChunkType(kind), &[head, deflated].concat()).unwrap();
    writer.write_image_data(&[255, 0, 0].repeat(4)).unwrap();
    writer.finish().unwrap();
    file
}

#[test]
fn a_chunk_of_a_png_that_inflates_without_end_takes_no_memory() {
    // 64 MB of zeros, deflated, are the data of a black picture.
    let mut black = Vec::new();
    let mut encoder = png::Encoder::new(&mut black, 8191, 8192);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&vec![0; 8191 * 8192]).unwrap();
    writer.finish().unwrap();
    let (mut at, mut deflated) = (8, Vec::new());
    while at < black.len() {
        let length = u32::from_be_bytes(black[at..at + 4].try_into().unwrap()) as usize;
        if &black[at + 4..at + 8] == b"IDAT" {
            deflated.extend_from_slice(&black[at + 8..at + 8 + length]);
        }
        at += 12 + length;
    }
    for (kind, head) in
        [(*b"iCCP", &b"name\0\0"[..]), (*b"zTXt", b"name\0\0"), (*b"iTXt", b"name\0\x01\0\0\0")]
    {
        let file = hostile(kind, head, &deflated);
        assert!(file.len() < 1 << 20, "{} bytes", file.len());
        let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
        let (_, most) = allocated(|| {
            assert_eq!(decoder.size(&file).unwrap(), (2, 2));
            assert_eq!(decoder.decode(&file).unwrap().pixels, [255, 0, 0].repeat(4));
        });
        assert!(most < 2 << 20, "{most} bytes for {} of a file", file.len());
    }
}

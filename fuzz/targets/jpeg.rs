//! Any bytes as a picture: an error or pixels. Where the whole decodes, every crop of it does, with
//! or without restart markers, and shows the same pixels.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pipeline::decode::{DecodeOptions, Decoder};
use pipeline::{Crop, View};

const SIDE: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[x, y, w, h], picture)) = bytes.split_first_chunk() else { return };
    let options = DecodeOptions { max_pixels: 1 << 16, ..DecodeOptions::default() };
    let mut decoder = Decoder::new(options).expect("a decoder");
    let whole = decoder.decode(picture);
    let (mut large, mut small) = ([0; SIDE * SIDE * 3], [0; SIDE * SIDE * 3]);
    let choose = |width: usize, height: usize| {
        let (x, y) = (usize::from(x) % width, usize::from(y) % height);
        let (w, h) = (1 + usize::from(w) % (width - x), 1 + usize::from(h) % (height - y));
        // A crop of the row's size is copied, not resampled.
        let (width, height) = (if w >= SIDE { SIDE } else { w }, if h >= SIDE { SIDE } else { h });
        View::of(Crop { x, y, width, height })
    };
    let seen = decoder.view(picture, choose, SIDE, (&mut large, &mut small));
    let Ok(whole) = whole else { return };
    seen.expect("a part of a good picture is good");
    let crop = choose(whole.width, whole.height).crop;
    if (crop.width, crop.height) == (SIDE, SIDE) {
        for (row, line) in large.chunks_exact(SIDE * 3).enumerate() {
            let start = ((crop.y + row) * whole.width + crop.x) * 3;
            assert_eq!(line, &whole.pixels[start..start + SIDE * 3], "{crop:?}");
        }
    }
});

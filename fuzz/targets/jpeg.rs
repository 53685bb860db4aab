//! Any bytes as a picture: an error or pixels. Where the whole decodes, every crop of it does, with
//! or without restart markers and seek points, and shows the same pixels. Any bytes as seek points: a
//! fault or pixels.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pipeline::decode::{DecodeOptions, Decoder, SeekPoints};
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
    let (every, mut points) = (1 + u16::from(x ^ w) % 9, Vec::new());
    let has_points = decoder.seek_points(picture, every, &mut points);
    let mut seek = |records: &[u8]| {
        let mut rows = ([0; SIDE * SIDE * 3], [0; SIDE * SIDE * 3]);
        let file = (picture, SeekPoints::new(every, records));
        let seen = decoder.view_seeking(file, choose, SIDE, (&mut rows.0, &mut rows.1));
        seen.map(|()| rows.0)
    };
    // As many bytes as there should be, and of no meaning; or any number of them.
    let noise: Vec<u8> = picture.iter().rev().copied().cycle().take(points.len()).collect();
    let _ = seek(if noise.is_empty() { picture } else { &noise });
    let Ok(whole) = whole else { return };
    seen.expect("a part of a good picture is good");
    has_points.expect("a good picture has points or needs none");
    assert_eq!(seek(&points).expect("its own points are good"), large);
    let crop = choose(whole.width, whole.height).crop;
    if (crop.width, crop.height) == (SIDE, SIDE) {
        for (row, line) in large.chunks_exact(SIDE * 3).enumerate() {
            let start = ((crop.y + row) * whole.width + crop.x) * 3;
            assert_eq!(line, &whole.pixels[start..start + SIDE * 3], "{crop:?}");
        }
    }
});

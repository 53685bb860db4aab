//! Flips, shifts, and decodes at a reduced size.

use super::*;

fn view_of(bytes: &[u8], options: DecodeOptions, view: View, side: usize) -> Vec<u8> {
    let mut row = vec![0; side * side * 3];
    let mut small = row.clone();
    let mut decoder = Decoder::new(options).unwrap();
    decoder.view(bytes, |_, _| view, side, (&mut row, &mut small)).unwrap();
    row
}

#[test]
fn a_flip_mirrors_and_a_shift_moves() {
    let bytes = encode_png(&image::RgbImage::from_raw(8, 8, picture(8, 8, 1)).unwrap().into());
    let crop = Crop { x: 0, y: 0, width: 8, height: 8 };
    let still = View::of(crop);
    let options = DecodeOptions::default();
    let plain = view_of(&bytes, options, still, 8);
    assert!(plain == picture(8, 8, 1), "the same size is no resize");
    let pixel = |row: &[u8], x: usize, y: usize| row[(y * 8 + x) * 3..][..3].to_vec();
    let flipped = view_of(&bytes, options, View { flip: true, ..still }, 8);
    let moved = view_of(&bytes, options, View { shift: (2, -1), ..still }, 8);
    for (x, y) in (0..64).map(|at| (at % 8, at / 8)) {
        assert_eq!(pixel(&flipped, x, y), pixel(&plain, 7 - x, y));
        let from = (x.abs_diff(2), if y == 7 { 6 } else { y + 1 });
        assert_eq!(pixel(&moved, x, y), pixel(&plain, from.0, from.1), "{x}, {y}");
    }
}

#[test]
fn nothing_outside_the_crop_shows() {
    // A white square on black: a filter that reached over the crop's edge would darken it.
    let mut picture = image::RgbImage::new(90, 90);
    for (x, y) in (0..900).map(|at| (30 + at % 30, 30 + at / 30)) {
        picture.put_pixel(x, y, image::Rgb([255; 3]));
    }
    let bytes = encode_png(&picture.into());
    let crop = Crop { x: 30, y: 30, width: 30, height: 30 };
    for filter in [Filter::Bicubic, Filter::Bilinear] {
        let options = DecodeOptions { filter, ..DecodeOptions::default() };
        for side in [8, 64] {
            let row = view_of(&bytes, options, View::of(crop), side);
            assert!(row.iter().all(|&value| value == 255), "{filter:?} {side}");
        }
    }
}

#[test]
fn scaled_decoding_stays_close_and_only_where_the_crop_is_large() {
    let bytes = encode((640, 600), tj::TJSAMP_TJSAMP_420, &[]);
    let scaled = DecodeOptions { scaling: Scaling::Dct, ..DecodeOptions::default() };
    let rms = |crop: Crop| {
        let view = View::of(crop);
        let one = view_of(&bytes, DecodeOptions::default(), view, 64);
        let two = view_of(&bytes, scaled, view, 64);
        let squares = one.iter().zip(&two).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2));
        (squares.sum::<f64>() / one.len() as f64).sqrt()
    };
    assert_eq!(rms(Crop { x: 33, y: 21, width: 127, height: 100 }), 0.0);
    for crop in [
        Crop { x: 33, y: 21, width: 129, height: 140 },
        Crop { x: 101, y: 77, width: 300, height: 290 },
        Crop { x: 0, y: 0, width: 640, height: 600 },
    ] {
        let rms = rms(crop);
        assert!(rms > 0.0 && rms < 6.0, "{crop:?}: error {rms} of 255");
    }
}

#[test]
fn a_reduced_decode_equals_libjpeg_s() {
    use turbojpeg::{Decompressor, Image, PixelFormat, ScalingFactor};
    for subsamp in SUBSAMPLINGS {
        let bytes = encode((131, 97), subsamp, &[]);
        let header = jpeg::Header::read(&bytes).unwrap();
        for (divisor, factor) in [
            (2, ScalingFactor::ONE_HALF),
            (4, ScalingFactor::ONE_QUARTER),
            (8, ScalingFactor::ONE_EIGHTH),
        ] {
            let (width, height) = (131_usize.div_ceil(divisor), 97_usize.div_ceil(divisor));
            let mut wanted = vec![0; width * height * 3];
            let mut judge = Decompressor::new().unwrap();
            judge.set_scaling_factor(factor).unwrap();
            let (pixels, pitch, format) = (&mut wanted[..], width * 3, PixelFormat::RGB);
            judge.decompress(&bytes, Image { pixels, width, pitch, height, format }).unwrap();
            // Of a decoder that is new, so that no table is there from before.
            let records = points_of(&bytes, 3);
            for points in [SeekPoints::NONE, SeekPoints::new(3, &records)] {
                let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
                let whole = Crop { x: 0, y: 0, width: 131, height: 97 };
                decoder.decode_jpeg((&bytes, points), &header, whole, divisor).unwrap();
                assert!(decoder.pixels[..wanted.len()] == wanted, "{subsamp} 1/{divisor}");
            }
        }
    }
}

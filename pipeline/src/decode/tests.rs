mod views;

use std::io::Cursor;

use turbojpeg_sys as tj;

use super::libjpeg::{Block, Coefficients};
use super::*;
use crate::augment::Mode;
use crate::jpeg;
use crate::sampler::{Purpose, Stream};

/// Sampling factors of the first component; the others have 1 x 1.
const SUBSAMPLINGS: [tj::TJSAMP; 7] = [
    tj::TJSAMP_TJSAMP_444,
    tj::TJSAMP_TJSAMP_422,
    tj::TJSAMP_TJSAMP_420,
    tj::TJSAMP_TJSAMP_GRAY,
    tj::TJSAMP_TJSAMP_440,
    tj::TJSAMP_TJSAMP_411,
    tj::TJSAMP_TJSAMP_441,
];

fn picture(width: usize, height: usize, seed: u64) -> Vec<u8> {
    let mut random = Stream::new(seed, 0, 0, Purpose::Order);
    let mut pixels = Vec::with_capacity(width * height * 3);
    for at in 0..width * height {
        let (x, y) = ((at % width) as f64, (at / width) as f64);
        for channel in 0..3 {
            let phase = seed as f64 + 2.0 * f64::from(channel);
            let wave = (x / 5.0 + phase).sin() + (y / 4.0 - phase).cos();
            pixels.push((90.0 + 40.0 * wave + random.range(0.0, 60.0)).clamp(0.0, 255.0) as u8);
        }
    }
    pixels
}

/// A JPEG of `width` x `height` with the given parameters set.
fn encode(
    (width, height): (usize, usize),
    subsamp: tj::TJSAMP,
    parameters: &[(tj::TJPARAM, i32)],
) -> Vec<u8> {
    let cmyk = parameters
        .iter()
        .any(|p| p.0 == tj::TJPARAM_TJPARAM_COLORSPACE && p.1 >= tj::TJCS_TJCS_CMYK as i32);
    let mut pixels = picture(width, height, 3);
    let mut format = tj::TJPF_TJPF_RGB;
    if cmyk {
        pixels.extend_from_slice(&picture(width, height, 4)[..width * height]);
        format = tj::TJPF_TJPF_CMYK;
    }
    // SAFETY: the handle is checked; the pixels fill width x height; the buffer that the
    // library allocates is copied within the length it gives, and freed once.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as libc::c_int);
        assert!(!handle.is_null());
        let base = [(tj::TJPARAM_TJPARAM_QUALITY, 92), (tj::TJPARAM_TJPARAM_SUBSAMP, subsamp)];
        for &(parameter, value) in base.iter().chain(parameters) {
            assert_eq!(tj::tj3Set(handle, parameter as libc::c_int, value), 0);
        }
        let (mut out, mut length) = (std::ptr::null_mut(), 0);
        let (w, h) = (width as libc::c_int, height as libc::c_int);
        let data = pixels.as_ptr();
        let answer = tj::tj3Compress8(handle, data, w, 0, h, format, &mut out, &mut length);
        assert_eq!(answer, 0);
        let bytes = std::slice::from_raw_parts(out, length as usize).to_vec();
        tj::tj3Free(out.cast());
        tj::tj3Destroy(handle);
        bytes
    }
}

/// The whole picture by libjpeg-turbo, without any code of ours.
fn reference(bytes: &[u8]) -> Vec<u8> {
    turbojpeg::decompress(bytes, turbojpeg::PixelFormat::RGB).unwrap().pixels
}

fn cut_out(pixels: &[u8], width: usize, crop: Crop) -> Vec<u8> {
    (crop.y..crop.y + crop.height)
        .flat_map(|y| &pixels[(y * width + crop.x) * 3..][..crop.width * 3])
        .copied()
        .collect()
}

/// The seek points of a file, at every so many MCUs.
fn points_of(bytes: &[u8], every: u16) -> Vec<u8> {
    let mut records = Vec::new();
    let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
    decoder.seek_points(bytes, every, &mut records).unwrap();
    records
}

/// Decodes every crop of a list by the short roads, without seek points and with some near and far apart,
/// and compares it with the long one.
fn check_crops(bytes: &[u8], size: (usize, usize), what: &str) {
    let whole = reference(bytes);
    let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
    let mut random = Stream::new(9, 0, 0, Purpose::View);
    let records = [1, 2, 5, 8, 300].map(|every| (every, points_of(bytes, every)));
    for number in 0..60 {
        let mut side = |most: usize| match number {
            0 => (0, most),
            1 => (most - 1, 1),
            2 => (0, 1),
            _ => {
                let length = 1 + random.below(most as u64) as usize;
                (random.below((most - length) as u64 + 1) as usize, length)
            }
        };
        let ((x, width), (y, height)) = (side(size.0), side(size.1));
        let crop = Crop { x, y, width, height };
        let wanted = cut_out(&whole, size.0, crop);
        let points = records.iter().map(|(every, records)| SeekPoints::new(*every, records));
        for points in [SeekPoints::NONE].into_iter().chain(points) {
            let window = decoder.window((bytes, points), |_, _| crop).unwrap();
            let got = cut_out(&decoder.pixels, window.width, window.inner);
            assert!(got == wanted, "{what} {size:?} {crop:?} {}", points.every());
        }
    }
}

const SIZES: [(usize, usize); 8] =
    [(1, 1), (1, 40), (40, 1), (16, 16), (17, 33), (128, 96), (131, 97), (250, 70)];

#[test]
fn a_cropped_decode_equals_the_full_one_cut() {
    for subsamp in SUBSAMPLINGS {
        for size in SIZES {
            check_crops(&encode(size, subsamp, &[]), size, &format!("subsampling {subsamp}"));
        }
    }
}

#[test]
fn progressive_and_arithmetic_files_crop_alike() {
    for subsamp in [tj::TJSAMP_TJSAMP_444, tj::TJSAMP_TJSAMP_420] {
        for kind in [tj::TJPARAM_TJPARAM_PROGRESSIVE, tj::TJPARAM_TJPARAM_ARITHMETIC] {
            let bytes = encode((131, 97), subsamp, &[(kind, 1)]);
            check_crops(&bytes, (131, 97), &format!("kind {kind} subsampling {subsamp}"));
        }
    }
}

#[test]
fn a_decode_that_jumps_over_restart_intervals_equals_the_full_one_cut() {
    for subsamp in SUBSAMPLINGS {
        for size in SIZES {
            for interval in [1, 2, 3, 4, 7, 8, 100] {
                let restart = [(tj::TJPARAM_TJPARAM_RESTARTBLOCKS, interval)];
                let what = format!("subsampling {subsamp}, interval {interval}");
                check_crops(&encode(size, subsamp, &restart), size, &what);
            }
        }
    }
}

#[test]
fn short_and_long_codes_decode_alike() {
    // At quality 100 the standard tables' codes of 16 bits come up; optimised tables are all others.
    for subsamp in [tj::TJSAMP_TJSAMP_444, tj::TJSAMP_TJSAMP_420, tj::TJSAMP_TJSAMP_GRAY] {
        for (quality, optimised) in [(100, 0), (100, 1), (60, 1), (5, 0), (5, 1)] {
            let parameters =
                [(tj::TJPARAM_TJPARAM_QUALITY, quality), (tj::TJPARAM_TJPARAM_OPTIMIZE, optimised)];
            let what = format!("subsampling {subsamp}, quality {quality}, optimised {optimised}");
            check_crops(&encode((131, 97), subsamp, &parameters), (131, 97), &what);
        }
    }
}

#[test]
fn a_panic_in_a_source_of_coefficients_comes_through() {
    struct Broken;
    impl Coefficients for Broken {
        fn next(&mut self, _: &mut [Block]) -> Result<(), Fault> {
            panic!("broken source")
        }
    }
    let bytes = encode((70, 50), tj::TJSAMP_TJSAMP_420, &[]);
    let mut picture = Picture::new().unwrap();
    let mut out = Pixels::default();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        picture.start(&bytes, (70, 50), 1).unwrap().read(Some(&mut Broken), &mut out)
    }));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"broken source"));
    // The decompressor is as good as new.
    picture.start(&bytes, (70, 50), 1).unwrap().read(None, &mut out).unwrap();
    let all = reference(&bytes);
    assert!(out[..all.len()] == all);
}

#[test]
fn rows_begin_where_libjpeg_turbo_writes_to_the_cache() {
    let mut pixels = Pixels::default();
    // Where a row has an odd number of bytes, every sixteenth row begins so, wherever the first does.
    for pitch in (2..400).step_by(2).map(|width| 3 * width) {
        let rows = pixels.rows(pitch, 40 * pitch);
        let first = rows[..40 * pitch].as_ptr().addr();
        let past = (0..40).filter(|row| (first + row * pitch).is_multiple_of(16)).count();
        assert_eq!(past, 0, "rows of {pitch}");
    }
}

#[test]
fn restart_intervals_outside_the_window_are_jumped_over() {
    let restart = [(tj::TJPARAM_TJPARAM_RESTARTBLOCKS, 2)];
    let bytes = encode((256, 256), tj::TJSAMP_TJSAMP_420, &restart);
    let scan = jpeg::Header::read(&bytes).unwrap().scan;
    let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
    let window = Crop { x: 70, y: 100, width: 40, height: 30 };
    let mut decode = |bytes: &[u8], crop| {
        let window = decoder.window((bytes, SeekPoints::NONE), |_, _| crop)?;
        Ok::<_, Fault>(cut_out(&decoder.pixels, window.width, window.inner))
    };
    let wanted = decode(&bytes, window).unwrap();
    let starts: Vec<usize> =
        (scan..bytes.len() - 1).filter(|&at| bytes[at] == 0xff && bytes[at + 1] >= 0xd0).collect();
    // Intervals of 32 x 16 pixels, eight in a row. Nonsense in the first row shows nowhere else.
    let mut nonsense = bytes.clone();
    nonsense[scan..starts[0]].fill(0x55);
    assert!(decode(&nonsense, window).unwrap() == wanted);
    assert!(decode(&nonsense, Crop { x: 0, y: 0, ..window }).is_err());
    // A marker that is out of turn is a fault above the window and none below it.
    let mut wrong = bytes.clone();
    wrong[starts[8] + 1] ^= 4;
    let error = decode(&wrong, window).unwrap_err();
    assert!(matches!(error, Fault::Jpeg(_)), "{error:?}");
    let mut wrong = bytes.clone();
    wrong[starts[9 * 8] + 1] ^= 4;
    assert!(decode(&wrong, window).unwrap() == wanted);
    assert!(decode(&wrong, Crop { x: 0, y: 0, width: 256, height: 256 }).is_err());
}

#[test]
fn cmyk_and_ycck_come_out_as_pillow_would() {
    for space in [tj::TJCS_TJCS_CMYK, tj::TJCS_TJCS_YCCK] {
        let parameters = [(tj::TJPARAM_TJPARAM_COLORSPACE, space as i32)];
        let bytes = encode((60, 40), tj::TJSAMP_TJSAMP_444, &parameters);
        let decoded = Decoder::new(DecodeOptions::default()).unwrap().decode(&bytes).unwrap();
        // The stored values are inverted inks: r = c · k / 255.
        let (inks, black) = (picture(60, 40, 3), picture(60, 40, 4));
        let all: Vec<u8> = inks.into_iter().chain(black).take(60 * 40 * 4).collect();
        let errors = decoded.pixels.chunks_exact(3).zip(all.chunks_exact(4)).map(|(rgb, ink)| {
            let wanted = |n: usize| f64::from(ink[n]) * f64::from(ink[3]) / 255.0;
            (0..3).map(|n| (f64::from(rgb[n]) - wanted(n)).abs()).fold(0.0, f64::max)
        });
        let mean = errors.sum::<f64>() / (60.0 * 40.0);
        assert!(mean < 8.0, "colour space {space}: mean error {mean} beyond JPEG's own loss");
    }
    let mut rgb = [0; 6];
    cmyk_to_rgb(&[255, 0, 128, 255, 10, 20, 30, 0], &mut rgb);
    assert_eq!(rgb, [255, 0, 128, 0, 0, 0]);
}

#[test]
fn a_file_cut_anywhere_is_called_truncated() {
    let restart = [(tj::TJPARAM_TJPARAM_RESTARTBLOCKS, 2)];
    for parameters in [&[][..], &restart, &[(tj::TJPARAM_TJPARAM_PROGRESSIVE, 1)]] {
        let bytes = encode((64, 48), tj::TJSAMP_TJSAMP_420, parameters);
        let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
        decoder.decode(&bytes).unwrap();
        // Of the end marker alone, `differential` speaks.
        for length in 1..bytes.len() - 2 {
            let error = decoder.decode(&bytes[..length]).unwrap_err();
            assert!(matches!(error, Fault::Truncated(_)), "{length} bytes: {error:?}");
        }
        assert!(matches!(decoder.decode(&[]), Err(Fault::Empty)));
        // A hole in the middle, with the end in place, shows where the hole is decoded.
        let mut holed = bytes[..bytes.len() / 2].to_vec();
        holed.extend_from_slice(&[0xff, 0xd9]);
        assert!(decoder.decode(&holed).is_err());
    }
}

#[test]
fn junk_that_hides_no_damage_is_let_pass() {
    let bytes = encode((64, 48), tj::TJSAMP_TJSAMP_420, &[]);
    let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
    let wanted = decoder.decode(&bytes).unwrap();
    let insert = |at: usize, junk: &[u8]| [&bytes[..at], junk, &bytes[at..]].concat();
    let end = bytes.len();
    let mut zeros = bytes.clone();
    let scan = jpeg::Header::read(&bytes).unwrap().scan;
    assert_eq!(zeros[scan - 3..scan], [0, 63, 0]);
    zeros[scan - 2] = 0;
    let mut future = bytes.clone();
    assert_eq!(future[6..12], *b"JFIF\0\x01");
    future[11] = 7;
    for (what, file) in [
        ("after the end", insert(end, b"trailing \xff\xd8\xff garbage")),
        ("before the end marker", insert(end - 2, &[0, 0, 0, 0])),
        ("between headers", insert(20, b"junk\xff\0junk")),
        ("fill bytes", insert(20, &[0xff; 9])),
        ("a JFIF version to come", future),
        (
            "a transform of Adobe's that is not",
            insert(20, b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07"),
        ),
        ("zeros in the scan's header", zeros),
        ("an EXIF block of nonsense", insert(2, b"\xff\xe1\0\x10Exif\0\0II*\0\xff\xff\xff\xff")),
    ] {
        let got = decoder.decode(&file);
        assert_eq!(got.as_ref().ok(), Some(&wanted), "{what}: {:?}", got.as_ref().err());
    }
    // Junk in the header must not hide damage to the picture.
    let mut damaged = insert(20, b"junk");
    let middle = damaged.len() / 2;
    damaged[middle..middle + 40].fill(0xff);
    assert!(decoder.decode(&damaged).is_err());
}

#[test]
fn what_is_no_picture_is_named() {
    let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
    for (bytes, name) in [
        (&b"just some text\n"[..], "text"),
        (b"<!doctype html><html></html>", "HTML or XML"),
        (b"GIF89a\x01\0\x01\0", "GIF"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
        (b"\x01\x02\x80\xfe", "an unknown format"),
        (&[0; 100], "nothing but zeros"),
    ] {
        let error = decoder.decode(bytes).unwrap_err();
        assert!(matches!(error, Fault::Unsupported(found) if found == name), "{error}");
    }
}

#[test]
fn sizes_beyond_the_limit_are_refused_by_the_header() {
    let options = DecodeOptions { max_pixels: 3000, ..DecodeOptions::default() };
    let mut decoder = Decoder::new(options).unwrap();
    let mut bytes = encode((60, 50), tj::TJSAMP_TJSAMP_444, &[]);
    decoder.decode(&bytes).unwrap();
    let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    for (height, width) in [(65_500u16, 65_500u16), (0, 60), (50, 0), (51, 60)] {
        bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
        let error = decoder.decode(&bytes).unwrap_err();
        assert!(matches!(error, Fault::Pixels { .. }), "{width} x {height}: {error}");
    }
    assert!(decoder.pixels.capacity() < 20_000);
}

fn encode_png(picture: &image::DynamicImage) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    picture.write_to(&mut out, image::ImageFormat::Png).unwrap();
    out.into_inner()
}

#[test]
fn png_of_every_kind_becomes_rgb() {
    let rgb = image::RgbImage::from_raw(9, 7, picture(9, 7, 1)).unwrap();
    let all = image::DynamicImage::ImageRgb8(rgb.clone());
    let mut rgba = all.to_rgba8();
    rgba.pixels_mut().enumerate().for_each(|(n, pixel)| pixel[3] = n as u8);
    let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
    let wide = image::DynamicImage::ImageRgb16(all.to_rgb16());
    for picture in [all.clone(), rgba.into(), wide] {
        let decoded = decoder.decode(&encode_png(&picture)).unwrap();
        assert_eq!((decoded.width, decoded.height), (9, 7));
        assert!(decoded.pixels == *rgb, "{:?}", picture.color());
    }
    let grey = all.to_luma8();
    let decoded = decoder.decode(&encode_png(&grey.clone().into())).unwrap();
    assert!(decoded.pixels.chunks_exact(3).zip(grey.iter()).all(|(p, &g)| p == [g; 3]));
    let bytes = encode_png(&all);
    for length in [9, 40, bytes.len() / 2, bytes.len() - 13] {
        assert!(decoder.decode(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
    }
}

#[test]
fn orientation_is_ignored_unless_asked_for() {
    let plain = encode((40, 24), tj::TJSAMP_TJSAMP_444, &[]);
    let apply = DecodeOptions { orientation: Orientation::Apply, ..DecodeOptions::default() };
    let upright = reference(&plain);
    for (big, value) in (0..=9u8).flat_map(|value| [(false, value), (true, value)]) {
        let mut exif = b"\xff\xe1\0\x22Exif\0\0".to_vec();
        exif.extend_from_slice(if big {
            b"MM\0*\0\0\0\x08\0\x01"
        } else {
            b"II*\0\x08\0\0\0\x01\0"
        });
        exif.extend_from_slice(if big {
            b"\x01\x12\0\x03\0\0\0\x01\0"
        } else {
            b"\x12\x01\x03\0\x01\0\0\0"
        });
        exif.push(value);
        exif.resize(36, 0);
        let bytes = [&plain[..2], &exif, &plain[2..]].concat();
        let ignored = Decoder::new(DecodeOptions::default()).unwrap().decode(&bytes).unwrap();
        assert!(ignored.pixels == upright);
        let mut decoder = Decoder::new(apply).unwrap();
        let turned = decoder.decode(&bytes).unwrap();
        let size = if (5..=8).contains(&value) { (24, 40) } else { (40, 24) };
        assert_eq!((turned.width, turned.height), size, "orientation {value}");
        assert_eq!(decoder.size(&bytes).unwrap(), size);
        // Where the stored picture's first pixel goes, as the EXIF standard says.
        let corner = match value {
            2 => 39,
            3 => 40 * 24 - 1,
            4 => 40 * 23,
            6 => 23,
            7 => 24 * 40 - 1,
            8 => 24 * 39,
            _ => 0,
        };
        assert_eq!(turned.pixels[corner * 3..][..3], upright[..3], "orientation {value}");
    }
}

#[test]
fn up_to_63_bits_may_be_left_over_before_a_restart_marker() {
    let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
    for quality in [60, 75, 90] {
        let parameters =
            [(tj::TJPARAM_TJPARAM_RESTARTBLOCKS, 1), (tj::TJPARAM_TJPARAM_QUALITY, quality)];
        let bytes = encode((64, 48), tj::TJSAMP_TJSAMP_420, &parameters);
        let wanted = decoder.decode(&bytes).unwrap();
        let scan = jpeg::Header::read(&bytes).unwrap().scan;
        let markers: Vec<usize> = (scan..bytes.len() - 1)
            .filter(|&at| bytes[at] == 0xff && (0xd0..0xd8).contains(&bytes[at + 1]))
            .collect();
        assert_eq!(markers.len(), 11);
        for (at, junk) in markers.iter().flat_map(|&at| (0..12).map(move |junk| (at, junk))) {
            let file = [&bytes[..at], &vec![0; junk], &bytes[at..]].concat();
            match decoder.decode(&file) {
                Ok(read) => assert!(junk < 8 && read == wanted, "{junk} bytes at {at}"),
                Err(fault) => {
                    let text = fault.to_string();
                    assert!(junk > 7 && text.contains("left over"), "{junk} at {at}: {text}");
                }
            }
        }
    }
}

#[test]
fn every_mode_works_on_every_size() {
    let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
    let (mut large, mut small) = (vec![0; 32 * 32 * 3], vec![0; 16 * 16 * 3]);
    for size in SIZES {
        let bytes = encode(size, tj::TJSAMP_TJSAMP_420, &[]);
        for mode in [Mode::Resnet, Mode::Distorted, Mode::Biggan, Mode::Eval, Mode::Small] {
            let mut random = Stream::new(1, 0, 0, Purpose::View);
            let view = |w, h| crate::augment::view(mode, (w, h), 32, &mut random);
            decoder.view(&bytes, view, 32, (&mut large, &mut small)).unwrap();
        }
    }
}

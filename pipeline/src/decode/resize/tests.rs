use proptest::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::*;
use crate::augment::{Mode, Scene, View};
use crate::decode::{DecodeOptions, Decoder, Scaling, rows};
use crate::sampler::{Purpose, Stream};

/// What `tests/golden/pillow.py` writes of a resize.
#[derive(Debug, Deserialize)]
struct Case {
    kind: String,
    size: [usize; 2],
    crop: [usize; 4],
    r#box: Option<[f64; 4]>,
    side: usize,
    flip: bool,
    /// Of the row, and of its mean where the side is even.
    bicubic: Vec<String>,
    bilinear: Vec<String>,
}

/// A picture as `tests/golden/pillow.py` makes it.
fn picture(kind: &str, [width, height]: [usize; 2], seed: u64) -> Vec<u8> {
    let splitmix = |x: u64| {
        let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    };
    let value = |at: u64| {
        let bits = splitmix(at + (seed << 32));
        let (x, y, c) = (at / 3 % width as u64, at / 3 / width as u64, at % 3);
        let slope = (2 * x + y * (c + 1) + seed) % 360;
        let slope = if slope < 180 { slope } else { 360 - slope };
        let edge = (x / 23 + y / 17).is_multiple_of(5);
        match kind {
            "noise" => bits >> 56,
            "extremes" => (bits >> 63) * 255,
            _ => (if edge { 250 - slope } else { slope }) + (bits >> 60),
        }
    };
    (0..(width * height * 3) as u64).map(|at| value(at).min(255) as u8).collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// A resizer as this machine has it, and one by plain loops.
fn ways(filter: Filter) -> [Resizer; 2] {
    let mut plain = Resizer::new(filter);
    #[cfg(target_arch = "x86_64")]
    {
        plain.fast = None;
    }
    [Resizer::new(filter), plain]
}

#[test]
fn rows_and_means_equal_pillow_s_to_the_bit() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../../../tests/golden/pillow.json")).unwrap();
    assert_eq!(cases.len(), 409);
    for (number, case) in cases.iter().enumerate() {
        let pixels = picture(&case.kind, case.size, number as u64);
        let [x, y, width, height] = case.crop;
        let mut window = Window::whole(case.size[0], case.size[1], Crop { x, y, width, height });
        window.fraction =
            case.r#box.map(|[left, top, right, bottom]| [left, top, right - left, bottom - top]);
        for (filter, wanted) in
            [(Filter::Bicubic, &case.bicubic), (Filter::Bilinear, &case.bilinear)]
        {
            let by = if wanted.len() == 2 { 2 } else { 1 };
            for mut resizer in ways(filter) {
                let mut large = vec![0; case.side * case.side * 3];
                let mut small = vec![0; large.len() / (by * by)];
                let both = (&mut large[..], &mut small[..]);
                let mut from = Pixels::default();
                from.fill(&pixels);
                resizer.resize(&mut from, &window, case.flip, case.side, both);
                let got = [digest(&large), digest(&small)];
                assert_eq!(&got[..wanted.len()], wanted, "{filter:?} {case:?}");
            }
        }
    }
}

/// What `tests/golden/crops.py` writes of torchvision's `Resize` and `CenterCrop`.
#[derive(Debug, Deserialize)]
struct Golden {
    resized: Vec<Resized>,
}

#[derive(Debug, Deserialize)]
struct Resized {
    size: [usize; 2],
    resize: usize,
    side: usize,
    bicubic: String,
    bilinear: String,
}

#[test]
fn a_resized_picture_s_centre_equals_torchvision_s_to_the_bit() {
    let golden: Golden =
        serde_json::from_str(include_str!("../../../../tests/golden/crops.json")).unwrap();
    assert_eq!(golden.resized.len(), 27);
    for (number, case) in golden.resized.iter().enumerate() {
        let [width, height] = case.size;
        let pixels = picture("slopes", case.size, number as u64);
        let picture = image::RgbImage::from_raw(width as u32, height as u32, pixels).unwrap();
        let mut png = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
        for (filter, wanted) in
            [(Filter::Bicubic, &case.bicubic), (Filter::Bilinear, &case.bilinear)]
        {
            // Reduced decoding has no say here.
            let options =
                DecodeOptions { filter, scaling: Scaling::Dct, ..DecodeOptions::default() };
            for resizer in ways(filter) {
                let mut decoder = Decoder::new(options).unwrap();
                decoder.resizer = resizer;
                let mut large = vec![0; case.side * case.side * 3];
                let mut small = vec![0; large.len() / 4];
                let mode = Mode::ResizeCentreCrop { resize: case.resize };
                let choose = |width, height| {
                    let mut scene = Scene::new((1, 0, 0), (width, height), case.side);
                    scene.by(mode)
                };
                let rows = (&mut large[..], &mut small[..]);
                decoder.view(png.get_ref(), choose, case.side, rows).unwrap();
                assert_eq!(&digest(&large), wanted, "{filter:?} {case:?}");
            }
        }
    }
}

#[test]
fn a_view_of_one_s_own_that_does_not_fit_is_an_error_and_no_panic() {
    let picture = image::RgbImage::new(20, 10);
    let mut png = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
    let rows = (&mut [0; 48][..], &mut [0; 12][..]);
    let view = View::of(Crop { x: 15, y: 0, width: 6, height: 10 });
    let error = decoder.view(png.get_ref(), |_, _| view, 4, rows).unwrap_err();
    assert!(error.to_string().contains("not within 20 x 10 pixels"), "{error}");
}

proptest! {
    /// Of crops of any size and place, to rows of any side, of both filters and both ways round.
    #[test]
    fn both_resizers_make_the_same_pixels(
        (width, height) in (1..400usize, 1..90usize),
        side in prop_oneof![1..140usize, (1..9usize).prop_map(|n| 16 * n)],
        (left, top, across, down) in (0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64),
        (fraction, bicubic, mirrored) in any::<(bool, bool, bool)>(),
        noise in any::<u64>(),
    ) {
        let mut random = Stream::new(noise, 0, 0, Purpose::Order);
        let whole = |share: f64, of: usize| (share * of as f64) as usize;
        let (x, y) = (whole(left, width), whole(top, height));
        let inner = Crop {
            x,
            y,
            width: whole(across, width - x - 1) + 1,
            height: whole(down, height - y - 1) + 1,
        };
        let mut window = Window::whole(width, height, inner);
        if fraction {
            let (width, height) = (inner.width as f64, inner.height as f64);
            let (left, top) = (0.9 * left, 0.9 * top);
            window.fraction = Some([left, top, width - left, height - top]);
        }
        // Extremes make filters ring.
        let pixels: Vec<u8> = (0..width * height * 3)
            .map(|_| [0, 255, (random.range(0.0, 256.0)) as u8][random.range(0.0, 3.0) as usize])
            .collect();
        let mut resizer = Resizer::new(if bicubic { Filter::Bicubic } else { Filter::Bilinear });
        let [mut row, mut portable] = [(); 2].map(|()| vec![0; side * side * 3]);
        resizer.portable(&pixels, &window, &mut portable, side);
        if mirrored {
            rows::flip(&mut portable, side);
        }
        // Of a side without a mean, the row itself.
        let by = if side % 2 == 0 { 2 } else { 1 };
        let [mut mean, mut portable_mean] = [(); 2].map(|()| vec![0; row.len() / (by * by)]);
        rows::shrink(&portable, side, &mut portable_mean);
        let both = (&mut row[..], &mut mean[..]);
        let mut from = Pixels::default();
        from.fill(&pixels);
        resizer.resize(&mut from, &window, mirrored, side, both);
        prop_assert!(row == portable && mean == portable_mean);
    }
}

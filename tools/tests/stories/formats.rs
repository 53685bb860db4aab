//! Image formats other than JPEG: the pixels are Pillow's, whatever the name says. The files and
//! Pillow's verdicts are tests/golden/formats.json, made by the script beside it; docs/formats.md is
//! the table of them.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tools::catalog::Raw;
use tools::recode::{Coded, Coding, Recoder};

/// A file, and what Pillow's `.convert("RGB")` makes of it: none where it cannot read it.
struct Golden {
    name: String,
    file: Vec<u8>,
    rgb: Option<([u64; 2], Vec<u8>)>,
}

fn golden() -> Vec<Golden> {
    let bytes = |value: &serde_json::Value| {
        BASE64_STANDARD.decode(value.as_str().expect("text")).expect("base64")
    };
    let text = include_str!("../../../tests/golden/formats.json");
    let all: Vec<serde_json::Value> = serde_json::from_str(text).expect("JSON");
    let entry = |value: &serde_json::Value| Golden {
        name: value["name"].as_str().expect("a name").to_owned(),
        file: bytes(&value["file"]),
        rgb: value.get("rgb").map(|rgb| {
            let size = [0, 1].map(|at| value["size"][at].as_u64().expect("a number"));
            (size, bytes(rgb))
        }),
    };
    all.iter().map(entry).collect()
}

fn recode(file: &[u8], coding: Coding) -> Result<Coded, String> {
    let mut recoder = Recoder::new(coding).expect("a recoder");
    recoder.recode(Raw::Encoded, file.to_vec()).expect("memory")
}

/// What is read otherwise than by Pillow, as docs/formats.md says.
const REFUSED: [&str; 1] = ["lab.tif"];
const GREY_OF_16_BITS: [&str; 2] = ["16_bits.pgm", "16_bits_grey.tif"];
/// Formats that lose something, by a decoder that is not Pillow's: how many levels they may differ.
const LOSSY: [(&str, u8); 4] =
    [("lossy.webp", 0), ("lossy_alpha.webp", 0), ("animated_lossy.webp", 0), ("jpeg.tif", 2)];

#[test]
fn every_format_has_the_pixels_that_pillow_gives() {
    let all = golden();
    assert!(all.len() > 70);
    let mut wrong = Vec::new();
    for Golden { name, file, rgb } in &all {
        let stored = recode(file, Coding::default());
        if REFUSED.contains(&&**name) {
            assert!(stored.is_err(), "{name} is read after all: mend docs/formats.md");
            continue;
        }
        let (coded, ([width, height], pixels)) = match (stored, rgb) {
            (Ok(coded), Some(rgb)) => (coded, rgb),
            (Err(_), None) => continue,
            (Ok(_), None) => {
                wrong.push(format!("{name}: Pillow refuses it"));
                continue;
            }
            (Err(reason), Some(_)) => {
                wrong.push(format!("{name}: {reason}"));
                continue;
            }
        };
        assert_eq!((u64::from(coded.width), u64::from(coded.height)), (*width, *height), "{name}");
        let lossy = LOSSY.iter().find(|(lossy, _)| lossy == name);
        // A PNG becomes a JPEG unless --png says otherwise.
        let png = lossy.is_none() && !name.ends_with(".png") || name == "named_wrongly.png";
        assert_eq!(coded.extension, if png { "png" } else { "jpg" }, "{name}");
        let exact = Coding { png: true, ..Coding::default() };
        let exact = recode(file, exact).expect("read before");
        let own = image::load_from_memory(&exact.bytes).expect("a PNG").into_rgb8().into_raw();
        let worst = own.iter().zip(pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or_default();
        let bound = lossy.map_or(0, |(_, bound)| *bound);
        if !GREY_OF_16_BITS.contains(&&**name) && worst > bound {
            wrong.push(format!("{name}: {worst} levels from Pillow's"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_cut_or_changed_anywhere_is_refused_or_read_and_never_a_panic() {
    let mut recoder = Recoder::new(Coding::default()).expect("a recoder");
    let mut read =
        |bytes: &[u8]| recoder.recode(Raw::Encoded, bytes.to_vec()).expect("memory").is_ok();
    let (mut sound, mut refused) = (0, 0);
    for (number, Golden { file, .. }) in golden().into_iter().enumerate() {
        let step = (file.len() / 24).max(1);
        for cut in (0..file.len()).step_by(step) {
            let mut changed = file.clone();
            changed[(cut + number) % file.len()] ^= 1 << (cut % 8);
            changed[cut] = 0xFF;
            for bytes in [&file[..cut], &changed[..]] {
                *(if read(bytes) { &mut sound } else { &mut refused }) += 1;
            }
        }
    }
    assert!(sound > 300 && refused > 1000, "{sound} read, {refused} refused");
}

//! Image formats other than JPEG: the pixels are Pillow's, whatever the name says. The files and
//! Pillow's verdicts are tests/golden/formats.json, made by the script beside it; docs/formats.md is
//! the table of them.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tools::catalog::Raw;
use tools::recode::{Coded, Coding, Recoder};

use crate::support::{build, jpeg, report, run, samples, text, write};

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
    let long = std::env::var_os("BIGBIGAN_TESTS").is_some_and(|counts| counts == "long");
    for (number, Golden { file, .. }) in golden().into_iter().enumerate() {
        let step = if long { 1 } else { (file.len() / 24).max(1) };
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

#[test]
fn a_format_that_is_not_read_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let media = |brand: &[u8]| [b"\0\0\0\x18ftyp", brand, b"\0\0\0\0"].concat();
    for (at, (bytes, format)) in [
        (media(b"avif"), "is AVIF, which is not read"),
        (media(b"heic"), "is HEIC, which is not read"),
        (b"\xFF\x0A\0\0".to_vec(), "is JPEG XL, which is not read"),
        (b"\0\0\0\x0CjP  \r\n".to_vec(), "is JPEG 2000, which is not read"),
        (b"P7\nWIDTH 1\n".to_vec(), "is PAM, which is not read"),
    ]
    .into_iter()
    .enumerate()
    {
        write(dir.path().join(format!("in/{at}.jpg")), bytes);
        write(dir.path().join("in/sound.jpg"), jpeg(20, 20, 1));
        let output = dir.path().join(format!("out{at}"));
        build("flat", &dir.path().join("in"), &output, &[]).ok();
        let rejected = report(&output, "rejected.jsonl");
        let name = format!("/{at}.jpg");
        let (_, reason) =
            rejected.iter().find(|(n, _)| n.ends_with(&name)).expect("it is rejected");
        assert_eq!(reason, format);
    }
}

#[test]
fn a_folder_of_formats_is_stored_and_what_became_of_each_is_listed() {
    let dir = tempfile::tempdir().expect("a folder");
    let names = [
        "rgb.bmp",
        "rgb.ppm",
        "palette.gif",
        "lossless.webp",
        "lossy.webp",
        "pages.tif",
        "16_bits.pgm",
    ];
    let files: Vec<Golden> =
        golden().into_iter().filter(|golden| names.contains(&&*golden.name)).collect();
    for Golden { name, file, .. } in &files {
        write(dir.path().join("in/a").join(name), file);
    }
    let output = dir.path().join("out");
    let out = build("imagefolder", &dir.path().join("in"), &output, &[]).ok().out;
    assert!(out.contains("7 images were out of the ordinary, all in odd.jsonl, such as "), "{out}");
    let mut odd: Vec<(String, String)> = report(&output, "odd.jsonl");
    odd.iter_mut().for_each(|(name, _)| *name = name.rsplit('/').next().unwrap_or("").to_owned());
    odd.sort();
    let expected = [
        ("16_bits.pgm", "was PNM, of 16-bit grey, scaled to 8, stored as PNG"),
        ("lossless.webp", "was WebP, stored as PNG"),
        ("lossy.webp", "was WebP, stored as JPEG"),
        ("pages.tif", "was TIFF, the first of several pages, stored as PNG"),
        ("palette.gif", "was GIF, stored as PNG"),
        ("rgb.bmp", "was BMP, stored as PNG"),
        ("rgb.ppm", "was PNM, stored as PNG"),
    ];
    assert_eq!(odd, expected.map(|(name, what)| (name.to_owned(), what.to_owned())));
    for sample in samples(&output) {
        let lossy = sample.key == "a_lossy";
        assert_eq!(sample.extension, if lossy { "jpg" } else { "png" }, "{}", sample.key);
    }
    run(&["verify", "--deep", text(&output)]).ok();
    // Untouched they cannot be stored, and are not dropped without a word.
    write(dir.path().join("in/a/ok.jpg"), jpeg(20, 20, 1));
    let keep = dir.path().join("keep");
    build("imagefolder", &dir.path().join("in"), &keep, &["--keep"]).ok();
    let rejected = report(&keep, "rejected.jsonl");
    assert_eq!(rejected.len(), 7);
    assert!(
        rejected
            .iter()
            .all(|(_, reason)| reason.contains("--keep stores nothing but JPEG and PNG"))
    );
}

#[test]
fn a_giant_of_any_format_is_rejected_before_any_memory_is_taken() {
    let side = 60_000u32;
    let mut bmp = golden().into_iter().find(|g| g.name == "rgb.bmp").expect("a BMP").file;
    bmp[18..22].copy_from_slice(&side.to_le_bytes());
    bmp[22..26].copy_from_slice(&side.to_le_bytes());
    let mut gif = golden().into_iter().find(|g| g.name == "palette.gif").expect("a GIF").file;
    gif[6..10].copy_from_slice(&[0xFF; 4]);
    let ppm = format!("P6 {side} {side} 255\n").into_bytes();
    let mut tiff = golden().into_iter().find(|g| g.name == "strips.tif").expect("a TIFF").file;
    // Width and length are the first entries, of type LONG, wherever the directory lies.
    for tag in [256u16, 257] {
        let entry = [tag.to_le_bytes(), 4u16.to_le_bytes()].concat();
        let short = [tag.to_le_bytes(), 3u16.to_le_bytes()].concat();
        let at = tiff.windows(4).position(|w| w == entry || w == short).expect("an entry");
        tiff[at + 2] = 4;
        tiff[at + 8..at + 12].copy_from_slice(&side.to_le_bytes());
    }
    for (name, file) in [("BMP", bmp), ("GIF", gif), ("PNM", ppm), ("TIFF", tiff)] {
        let reason = recode(&file, Coding::default()).expect_err("a giant");
        assert!(reason.starts_with(name), "{reason}");
        // A TIFF of that size has more strips than this one lists.
        let large = reason.contains("more memory than 40 million");
        assert!(large || reason.contains("inconsistent sizes"), "{name}: {reason}");
    }
}

/// docs/formats.md is a table of what is tested, no more and no less.
#[test]
fn every_row_of_the_documents_table_names_what_shows_it_and_every_case_has_a_row() {
    let document = include_str!("../../../docs/formats.md");
    let document = document.split("## Tar").next().expect("the part about folders");
    let tests = [include_str!("layouts.rs"), include_str!("formats.rs"), include_str!("coding.rs")]
        .concat();
    let folders = include_str!("../../../tests/golden/folders.json");
    let folders: Vec<serde_json::Value> = serde_json::from_str(folders).expect("JSON");
    let mut cases: Vec<String> = golden().into_iter().map(|golden| golden.name).collect();
    cases.extend(folders.iter().map(|case| case["name"].as_str().expect("a name").to_owned()));
    let mut named = Vec::new();
    let rows = document.lines().filter(|line| line.starts_with('|') && !line.starts_with("|--"));
    for row in rows.filter(|row| !row.ends_with("| shown by |")) {
        let last = row.trim_end_matches('|').rsplit('|').next().expect("a column");
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty() || last.contains("the tests of decoding"), "{row}");
        for name in names {
            let known =
                cases.iter().any(|case| case == name) || tests.contains(&format!("fn {name}()"));
            assert!(known, "{name} shows nothing");
            named.push(name);
        }
    }
    for case in &cases {
        assert!(named.contains(&&**case), "{case} has no row in docs/formats.md");
    }
}

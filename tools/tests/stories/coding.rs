//! What is stored: lossless rewrites, conversions, and files left alone.

use std::path::Path;

use tempfile::tempdir;
use turbojpeg::Subsamp;

use crate::support::{
    Sample, build, cmyk, decode, jpeg, jpeg_of, pixels, png, png_of, report, run, samples, text,
    write,
};

/// Builds a flat folder of the files and returns what is stored, by key.
fn stored(files: &[(&str, Vec<u8>)], more: &[&str]) -> Vec<Sample> {
    let dir = tempdir().expect("a folder");
    stored_in(dir.path(), files, more)
}

fn stored_in(dir: &Path, files: &[(&str, Vec<u8>)], more: &[&str]) -> Vec<Sample> {
    for (name, bytes) in files {
        write(dir.join("in").join(name), bytes);
    }
    build("flat", &dir.join("in"), &dir.join("out"), more).ok();
    let mut all = samples(&dir.join("out"));
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all
}

/// The marker codes of a JPEG before its image data, and the restart interval.
fn markers(jpeg: &[u8]) -> (Vec<u8>, u16) {
    let (mut at, mut codes, mut interval) = (2, Vec::new(), 0);
    while jpeg[at + 1] != 0xDA {
        codes.push(jpeg[at + 1]);
        if jpeg[at + 1] == 0xDD {
            interval = u16::from_be_bytes([jpeg[at + 4], jpeg[at + 5]]);
        }
        at += 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
    }
    (codes, interval)
}

#[test]
fn a_rewrite_keeps_every_pixel_and_adds_restart_markers_that_divide_the_row() {
    use Subsamp::{Gray, None, Sub1x2, Sub2x1, Sub2x2, Sub4x1};
    let mut sources = Vec::new();
    for (at, subsamp) in [None, Sub2x2, Sub2x1, Sub1x2, Sub4x1, Gray].into_iter().enumerate() {
        for progressive in [false, true] {
            // Odd sizes, so that the last units are partial.
            let name = format!("{at}{}.jpg", u8::from(progressive));
            sources.push((name, jpeg_of(333 + at, 201, at, subsamp, progressive)));
        }
    }
    let files: Vec<_> =
        sources.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let all = stored(&files, &[]);
    assert_eq!(all.len(), 12);
    for (sample, (name, source)) in all.iter().zip(&sources) {
        assert_eq!(decode(&sample.image), decode(source), "{name}");
        let (codes, interval) = markers(&sample.image);
        assert!(codes.contains(&0xC0) && !codes.contains(&0xC2), "{name} is not baseline");
        let unit = [8, 16, 16, 8, 32, 8][usize::from(name.as_bytes()[0] - b'0')];
        let row = (333 + usize::from(name.as_bytes()[0] - b'0')).div_ceil(unit);
        assert!(interval > 0 && row.is_multiple_of(interval.into()), "{name}: {interval} of {row}");
    }
}

#[test]
fn restart_off_and_keep_leave_the_bytes_of_a_jpeg_alone() {
    let photo = jpeg(200, 180, 3);
    for more in [&["--restart", "off"][..], &["--keep"], &["--restart", "off", "--check", "off"]] {
        let all = stored(&[("a.jpg", photo.clone())], more);
        assert_eq!(all[0].image, photo, "{more:?}");
    }
    let picture = png(40, 40, 1);
    let all = stored(&[("a.png", picture.clone()), ("b.jpg", cmyk(30, 30, 2))], &["--keep"]);
    assert_eq!((&all[0].image, all[0].extension.as_str()), (&picture, "png"));
    assert_eq!(all[1].image, cmyk(30, 30, 2));
}

#[test]
fn a_png_becomes_a_close_jpeg_or_stays_exact_with_png() {
    let dir = tempdir().expect("a folder");
    let source = pixels(150, 140, 4);
    let files = [("a.jpg", png_of(&source, 150, 140))];
    let all = stored_in(dir.path(), &files, &[]);
    assert_eq!(all[0].extension, "jpg");
    let decoded = decode(&all[0].image);
    let worst = decoded.iter().zip(&source).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst.is_some_and(|worst| worst < 24), "{worst:?}");
    assert!(report(&dir.path().join("out"), "odd.jsonl")[0].1.contains("PNG"));

    let all = stored(&files, &["--png"]);
    assert_eq!(all[0].extension, "png");
    let decoded = image::load_from_memory(&all[0].image).expect("a PNG").into_rgb8();
    assert_eq!(decoded.into_raw(), source);
}

#[test]
fn what_a_png_loses_beside_its_format_is_told() {
    let dir = tempdir().expect("a folder");
    let mut deep = Vec::new();
    let samples: Vec<u8> = (0..64 * 48 * 3u32).flat_map(|n| (n as u16).to_ne_bytes()).collect();
    image::ImageEncoder::write_image(
        image::codecs::png::PngEncoder::new(&mut deep),
        &samples,
        64,
        48,
        image::ExtendedColorType::Rgb16,
    )
    .expect("a PNG");
    // A chunk that says that there is one picture, played for ever, between the header and the data.
    let mut moving = png(64, 48, 1);
    let data = [&b"acTL"[..], &1u32.to_be_bytes(), &0u32.to_be_bytes()].concat();
    let chunk = [&8u32.to_be_bytes()[..], &data, &png_checksum(&data)].concat();
    moving.splice(33..33, chunk);
    let source = dir.path().join("in");
    write(source.join("deep.png"), deep);
    write(source.join("moving.png"), moving);
    write(source.join("plain.png"), png(64, 48, 2));
    let odd = |name: &str, more: &[&str]| {
        let output = dir.path().join(name);
        build("flat", &source, &output, more).ok();
        let mut odd: Vec<_> =
            report(&output, "odd.jsonl").into_iter().map(|(_, reason)| reason).collect();
        odd.sort();
        odd
    };
    let notes = ["16 bits a sample, stored as 8", "the first frame of an animation"];
    let [deep, moving] = notes.map(|note| format!("was PNG, {note}, stored as PNG"));
    assert_eq!(odd("png", &["--png"]), [deep, moving]);
    let [deep, moving] = notes.map(|note| format!("was PNG, {note}, converted to JPEG"));
    assert_eq!(odd("jpeg", &[]), [deep, "was PNG, converted to JPEG".to_owned(), moving]);
    assert!(odd("keep", &["--keep"]).is_empty());
}

#[test]
fn cmyk_becomes_the_rgb_that_its_inks_mean() {
    let all = stored(&[("a.jpg", cmyk(64, 64, 5))], &[]);
    let inks = pixels(64, 64, 5);
    for (got, ink) in decode(&all[0].image).iter().zip(inks) {
        // Inverted inks, 255 for none: what is left of the light after black, 230 of 255.
        let expected = u32::from(ink) * 230 / 255;
        assert!(u32::from(*got).abs_diff(expected) < 28, "{got} for {expected}");
    }
}

#[test]
fn max_side_scales_only_what_is_larger_and_keeps_the_aspect() {
    let files = [("a.jpg", jpeg(400, 100, 1)), ("b.jpg", jpeg(150, 200, 2))];
    let all = stored(&files, &["--max-side", "200", "--quality", "95"]);
    let size = |at: usize| {
        let header = turbojpeg::read_header(&all[at].image).expect("a header");
        (header.width, header.height)
    };
    assert_eq!([size(0), size(1)], [(200, 50), (150, 200)]);
    assert_eq!(decode(&all[1].image), decode(&files[1].1));
}

#[test]
fn an_image_longer_than_any_jpeg_is_rejected_unless_it_is_kept_or_scaled_down() {
    let dir = tempdir().expect("a folder");
    let files = [("a.png", png(70_000, 8, 1)), ("b.jpg", jpeg(64, 64, 1))];
    assert_eq!(stored_in(dir.path(), &files, &[]).len(), 1);
    let rejected = report(&dir.path().join("out"), "rejected.jsonl");
    assert!(rejected[0].0.contains("a.png") && rejected[0].1.contains("65500"), "{rejected:?}");
    assert_eq!(stored(&files, &["--png"])[0].extension, "png");
    let scaled = stored(&files, &["--max-side", "65000"]);
    let header = turbojpeg::read_header(&scaled[0].image).expect("a header");
    assert_eq!((header.width, header.height), (65_000, 7));
}

#[test]
fn quality_is_that_asked_for() {
    let size =
        |quality| stored(&[("a.png", png(200, 150, 4))], &["--quality", quality])[0].image.len();
    assert!(2 * size("50") < size("95"));
}

#[test]
fn junk_that_harms_no_pixel_is_noted_and_damage_is_not_stored() {
    let dir = tempdir().expect("a folder");
    let whole = jpeg(200, 160, 6);
    let mut junk = whole.clone();
    let end = junk.len() - 2;
    junk.splice(end..end, [1; 40]);
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 40].fill(0xFF);
    let cut = |share: usize| whole[..whole.len() * share / 1000].to_vec();
    let files = [
        ("a.jpg", junk),
        ("b.jpg", damaged),
        ("c.jpg", cut(999)),
        ("d.jpg", cut(900)),
        ("e.jpg", cut(500)),
        ("f.jpg", cut(10)),
    ];
    let all = stored_in(dir.path(), &files, &["--check", "off"]);
    let keys: Vec<&str> = all.iter().map(|sample| sample.key.as_str()).collect();
    assert_eq!(keys, ["a"]);
    assert_eq!(decode(&all[0].image), decode(&whole));
    assert!(report(&dir.path().join("out"), "odd.jsonl")[0].1.contains("extraneous bytes"));
    assert_eq!(report(&dir.path().join("out"), "rejected.jsonl").len(), 5);
}

#[test]
fn a_missing_end_marker_is_forgiven_where_every_mcu_is_there_and_no_cut_is() {
    let whole = jpeg(200, 160, 6);
    let end = whole.len() - 2;
    let files = [
        ("a.jpg", whole[..end].to_vec()),
        ("b.jpg", [&whole[..end], b"\0trailer\0trailer"].concat()),
        ("c.jpg", [&whole[..], b"SEFT", &whole[..]].concat()),
        ("d.jpg", whole[..end - 1].to_vec()),
        ("e.jpg", [&whole[..end - 9], b"\xFF\xFE\0\x09trailer"].concat()),
    ];
    let off = ["--restart", "off"];
    let unchecked = ["--restart", "off", "--check", "off"];
    for more in [&[][..], &["--check", "off"], &off, &unchecked, &["--keep"]] {
        let dir = tempdir().expect("a folder");
        let all = stored_in(dir.path(), &files, more);
        let keys: Vec<&str> = all.iter().map(|sample| sample.key.as_str()).collect();
        assert_eq!(keys, ["a", "b", "c"], "{more:?}");
        assert_eq!(report(&dir.path().join("out"), "rejected.jsonl").len(), 2, "{more:?}");
        for (sample, (_, source)) in all.iter().zip(&files) {
            match more.contains(&"off") && more.contains(&"--restart") || more == ["--keep"] {
                true => assert_eq!(&sample.image, source),
                false => assert_eq!(decode(&sample.image), decode(&whole)),
            }
        }
        let out = dir.path().join("out");
        run(&["verify", "--deep", text(&out)]).ok();
    }
}

#[test]
fn a_rewrite_keeps_metadata_and_the_colour_space() {
    let mut compressor = turbojpeg::Compressor::new().expect("a compressor");
    compressor.set_subsamp(Subsamp::None).expect("subsampling");
    compressor.set_colorspace(turbojpeg::Colorspace::RGB).expect("colour space");
    let source = pixels(200, 150, 8);
    let format = turbojpeg::PixelFormat::RGB;
    let image =
        turbojpeg::Image { pixels: &source[..], width: 200, pitch: 600, height: 150, format };
    let rgb = compressor.compress_to_vec(image).expect("a JPEG");
    let mut noted = jpeg(200, 150, 9);
    let exif = b"\xFF\xE1\x00\x0AExif\0\0AB";
    noted.splice(2..2, exif.iter().copied());
    let all = stored(&[("a.jpg", rgb.clone()), ("b.jpg", noted.clone())], &[]);
    assert_eq!(decode(&all[0].image), decode(&rgb));
    let space = turbojpeg::read_header(&all[0].image).expect("a header").colorspace;
    assert_eq!(space, turbojpeg::Colorspace::RGB);
    assert_eq!(decode(&all[1].image), decode(&noted));
    assert!(all[1].image.windows(exif.len()).any(|part| part == exif));
}

#[test]
fn a_header_that_claims_a_giant_is_rejected_before_any_memory_is_taken() {
    let dir = tempdir().expect("a folder");
    let mut giant = jpeg(64, 64, 1);
    let frame = giant.windows(2).position(|w| w == [0xFF, 0xC0]).expect("a frame header");
    giant[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xDC, 0xFF, 0xDC]);
    let mut picture = png(16, 16, 1);
    picture[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    // Within the limit by its pixels, but not by their 16 bits.
    let mut deep = png(16, 16, 1);
    deep[16..25].copy_from_slice(&[0, 0, 0x20, 0, 0, 0, 0x10, 0, 16]);
    let crc = png_checksum(&deep[12..29]);
    deep[29..33].copy_from_slice(&crc);
    let files = [("a.jpg", jpeg(64, 64, 2)), ("b.jpg", giant), ("c.png", picture), ("d.png", deep)];
    for more in [&[][..], &["--keep"], &["--restart", "off"], &["--max-side", "100"]] {
        let _ = std::fs::remove_dir_all(dir.path().join("out"));
        let all = stored_in(dir.path(), &files, more);
        assert_eq!(all.len(), 1, "{more:?}");
        let rejected = report(&dir.path().join("out"), "rejected.jsonl");
        assert_eq!(rejected.len(), 3);
        assert!(rejected.iter().any(|(_, reason)| reason.contains("16 bits")), "{rejected:?}");
    }
}

/// The CRC-32 of a PNG chunk's type and data.
fn png_checksum(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_be_bytes()
}

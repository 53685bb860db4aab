//! Our decoder held to libjpeg-turbo on files of many encoders. This file is compiled twice: with
//! the crate's own tests, where the entropy decoder's buffer is tiny (`BUFFER`), and in
//! `tests/differential.rs`, where it has its real size.

use pipeline::decode::judge::Judge;
use pipeline::decode::{DecodeOptions, Decoder};
use turbojpeg_sys as tj;

use super::BUFFER;

const SUBSAMPLINGS: [tj::TJSAMP; 7] = [
    tj::TJSAMP_TJSAMP_444,
    tj::TJSAMP_TJSAMP_422,
    tj::TJSAMP_TJSAMP_420,
    tj::TJSAMP_TJSAMP_GRAY,
    tj::TJSAMP_TJSAMP_440,
    tj::TJSAMP_TJSAMP_411,
    tj::TJSAMP_TJSAMP_441,
];

/// Counts for every run, or for `BIGBIGAN_TESTS=long`.
fn count(short: usize, long: usize) -> usize {
    if std::env::var_os("BIGBIGAN_TESTS").is_some_and(|value| value == "long") {
        long
    } else {
        short
    }
}

/// Numbers that look random, after xorshift.
fn noise(seed: u64) -> impl FnMut() -> u8 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    }
}

/// A JPEG of noise over waves.
fn encode(
    (width, height): (usize, usize),
    seed: u64,
    parameters: &[(tj::TJPARAM, i32)],
) -> Vec<u8> {
    let asked = |wanted| parameters.iter().rfind(|p| p.0 == wanted).map(|p| p.1);
    let cmyk = asked(tj::TJPARAM_TJPARAM_COLORSPACE)
        .is_some_and(|space| space >= tj::TJCS_TJCS_CMYK as i32);
    let grey = asked(tj::TJPARAM_TJPARAM_SUBSAMP) == Some(tj::TJSAMP_TJSAMP_GRAY);
    let (format, channels) = match (cmyk, grey) {
        (true, _) => (tj::TJPF_TJPF_CMYK, 4),
        (_, true) => (tj::TJPF_TJPF_GRAY, 1),
        _ => (tj::TJPF_TJPF_RGB, 3),
    };
    let mut next = noise(seed);
    let pixels: Vec<u8> = (0..width * height * channels)
        .map(|at| {
            let place = at / channels;
            let wave = (place % width * 5 + place / width * 3 + at % channels * 40) as u8;
            (wave / 2).wrapping_add(next() / 3)
        })
        .collect();
    // SAFETY: the handle is checked; the pixels fill width x height; the buffer that the library
    // allocates is copied within the length it gives, and freed once.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as i32);
        assert!(!handle.is_null());
        let base = [(tj::TJPARAM_TJPARAM_QUALITY, 90), (tj::TJPARAM_TJPARAM_SUBSAMP, 0)];
        for &(parameter, value) in base.iter().chain(parameters) {
            assert_eq!(tj::tj3Set(handle, parameter as i32, value), 0, "{parameter} {value}");
        }
        let (mut out, mut length) = (std::ptr::null_mut(), 0);
        let (w, h) = (width as i32, height as i32);
        let answer =
            tj::tj3Compress8(handle, pixels.as_ptr(), w, 0, h, format, &mut out, &mut length);
        assert_eq!(answer, 0, "{parameters:?}");
        let bytes = std::slice::from_raw_parts(out, length as usize).to_vec();
        tj::tj3Free(out.cast());
        tj::tj3Destroy(handle);
        bytes
    }
}

/// A decoder and its judge.
fn court() -> (Judge, Decoder) {
    let options = DecodeOptions::default();
    (Judge::new(options.max_pixels).unwrap(), Decoder::new(options).unwrap())
}

/// Holds the decoder to a file that libjpeg-turbo reads without a warning.
fn sound((judge, decoder): &mut (Judge, Decoder), bytes: &[u8], what: &str) {
    let warnings = judge.pixels(bytes).unwrap_or_else(|fault| panic!("{what}: {fault}")).1;
    assert_eq!(warnings, Default::default(), "{what}");
    judge.hold(decoder, bytes).unwrap_or_else(|problem| panic!("{what}: {problem}"));
    decoder.decode(bytes).unwrap_or_else(|fault| panic!("{what}: {fault}"));
}

/// Bytes of the longest restart interval, without the stuffed ones.
fn interval(bytes: &[u8]) -> usize {
    let scan = &bytes[pipeline::jpeg::Header::read(bytes).unwrap().scan..];
    let (mut at, mut length, mut longest) = (0, 0, 0);
    while at + 1 < scan.len() {
        match (scan[at], scan[at + 1]) {
            (0xff, 0) => (at, length) = (at + 2, length + 1),
            (0xff, _) => (at, length, longest) = (at + 2, 0, longest.max(length)),
            _ => (at, length) = (at + 1, length + 1),
        }
    }
    longest
}

#[test]
fn every_length_of_a_scan_around_three_buffers_decodes_as_libjpeg_does() {
    let mut court = court();
    let grey = |height: usize, seed, restart: usize| {
        let parameters = [
            (tj::TJPARAM_TJPARAM_SUBSAMP, tj::TJSAMP_TJSAMP_GRAY),
            (tj::TJPARAM_TJPARAM_QUALITY, 24),
            (tj::TJPARAM_TJPARAM_RESTARTBLOCKS, restart as i32),
        ];
        encode((8, 8 * height), seed, &parameters)
    };
    let (mut files, mut edges) = (0, [0; 3]);
    for (seed, buffers) in (1..=count(if BUFFER > 8192 { 8 } else { 16 }, 64) as u64)
        .flat_map(|seed| [(seed, 1), (seed, 2), (seed, 3)])
    {
        // The most blocks of which the data fit into so many buffers.
        let (mut low, mut high) = (1usize, 65_500 / 8);
        while low < high {
            let middle = (low + high).div_ceil(2);
            let fits = interval(&grey(middle, seed, 0)) <= buffers * BUFFER;
            (low, high) = if fits { (middle, high) } else { (low, middle - 1) };
        }
        assert!(
            low < 65_500 / 8 - 5,
            "the data of {low} blocks are shorter than {buffers} buffers"
        );
        for blocks in low - 5..low + 6 {
            for (height, restart) in [(blocks, 0), ((blocks + 40).min(65_500 / 8), blocks)] {
                let bytes = grey(height, seed, restart);
                let length = interval(&bytes);
                edges[buffers - 1] +=
                    usize::from((buffers * BUFFER - 6..buffers * BUFFER).contains(&length));
                sound(&mut court, &bytes, &format!("seed {seed}, {length} bytes, {restart}"));
                files += 1;
            }
        }
    }
    assert!(files >= 500, "{files} files");
    // Where 1 to 6 bytes are left in the last buffer, a refill once read from the wrong place.
    assert!(edges.iter().all(|&edge| edge > 2), "{edges:?} files at the edges");
}

#[test]
fn what_twenty_settings_write_decodes_as_libjpeg_does() {
    let mut court = court();
    let quality = |n| (tj::TJPARAM_TJPARAM_QUALITY, n);
    let optimise = (tj::TJPARAM_TJPARAM_OPTIMIZE, 1);
    let progressive = (tj::TJPARAM_TJPARAM_PROGRESSIVE, 1);
    let arithmetic = (tj::TJPARAM_TJPARAM_ARITHMETIC, 1);
    let space = |n: tj::TJCS| (tj::TJPARAM_TJPARAM_COLORSPACE, n as i32);
    let settings: [&[_]; 22] = [
        &[quality(1)],
        &[quality(10)],
        &[quality(35)],
        &[quality(50)],
        &[quality(75)],
        &[quality(85)],
        &[quality(92)],
        &[quality(97)],
        &[quality(100)],
        &[quality(5), optimise],
        &[quality(60), optimise],
        &[quality(95), optimise],
        &[quality(100), optimise],
        &[quality(40), progressive],
        &[quality(95), progressive],
        &[quality(75), arithmetic],
        &[quality(98), arithmetic],
        &[quality(90), progressive, arithmetic],
        &[quality(90), space(tj::TJCS_TJCS_CMYK)],
        &[quality(90), space(tj::TJCS_TJCS_YCCK)],
        &[quality(90), space(tj::TJCS_TJCS_RGB)],
        &[quality(90), space(tj::TJCS_TJCS_YCCK), progressive],
    ];
    let mut files = 0;
    for (number, setting) in settings.iter().enumerate() {
        for subsampling in SUBSAMPLINGS {
            let odd = setting.iter().any(|p| p.0 == tj::TJPARAM_TJPARAM_COLORSPACE);
            if odd && subsampling == tj::TJSAMP_TJSAMP_GRAY {
                continue; // a grey picture has one colour space
            }
            let rgb = setting.contains(&space(tj::TJCS_TJCS_RGB));
            if rgb && subsampling != tj::TJSAMP_TJSAMP_444 {
                continue; // RGB has no chroma
            }
            for restart in [0, 1, 5, 64] {
                let mut parameters = setting.to_vec();
                parameters.push((tj::TJPARAM_TJPARAM_SUBSAMP, subsampling));
                parameters.push((tj::TJPARAM_TJPARAM_RESTARTBLOCKS, restart));
                for size in [(67, 45), (1, 130)] {
                    let bytes = encode(size, number as u64, &parameters);
                    sound(&mut court, &bytes, &format!("{parameters:?} {size:?}"));
                    files += 1;
                }
            }
        }
    }
    assert!(files > 1000, "{files} files");
}

/// A JPEG written by hand: components of any sampling factors, one scan or one for each.
fn odd_factors(factors: &[(u8, u8)], interleaved: bool, restart: u8) -> Vec<u8> {
    let [across, down] = [|f: &(u8, u8)| f.0, |f: &(u8, u8)| f.1]
        .map(|factor| usize::from(factors.iter().map(factor).max().unwrap()));
    let (width, height) = (53, 39);
    let mut file = vec![0xff, 0xd8, 0xff, 0xdb, 0, 67, 0];
    file.extend([3; 64]);
    file.extend([0xff, 0xc0, 0, 8 + 3 * factors.len() as u8, 8, 0, height, 0, width]);
    file.push(factors.len() as u8);
    for (id, &(h, v)) in factors.iter().enumerate() {
        file.extend([id as u8 + 1, h << 4 | v, 0]);
    }
    // DC: sizes 0 to 3 in two bits but the last, which has three. AC: the block's end, a run of 0
    // and sizes 1 and 2, likewise.
    for (class, symbols) in [(0, [0, 1, 2, 3]), (0x10, [0, 1, 2, 0x21])] {
        file.extend([0xff, 0xc4, 0, 23, class, 0, 3, 1]);
        file.extend([0; 13]);
        file.extend(symbols);
    }
    file.extend([0xff, 0xdd, 0, 4, 0, restart]);
    let mut next = noise(factors.iter().map(|f| u64::from(f.0 * 7 + f.1)).sum());
    let mut scan = |file: &mut Vec<u8>, components: &[usize]| {
        file.extend([0xff, 0xda, 0, 6 + 2 * components.len() as u8, components.len() as u8]);
        components.iter().for_each(|&n| file.extend([n as u8 + 1, 0]));
        file.extend([0, 63, 0]);
        let blocks = |size: u8, factor: u8, most: usize| {
            (usize::from(size) * usize::from(factor)).div_ceil(8 * most)
        };
        let (mcus, each) = if let &[n] = components {
            (blocks(width, factors[n].0, across) * blocks(height, factors[n].1, down), 1)
        } else {
            let each = components.iter().map(|&n| usize::from(factors[n].0 * factors[n].1)).sum();
            (blocks(width, 1, 1).div_ceil(across) * blocks(height, 1, 1).div_ceil(down), each)
        };
        let (mut bits, mut count) = (0u64, 0);
        for mcu in 0..mcus {
            if restart > 0 && mcu > 0 && mcu % usize::from(restart) == 0 {
                flush(file, &mut bits, &mut count);
                file.extend([0xff, 0xd0 + (mcu / usize::from(restart) - 1) as u8 % 8]);
            }
            for _ in 0..each {
                let size = next() % 4;
                put(file, &mut bits, &mut count, if size < 3 { size } else { 6 }, 2 + size / 3);
                put(file, &mut bits, &mut count, next() & ((1 << size) - 1), size);
                for _ in 0..next() % 4 {
                    let code = 1 + next() % 2;
                    put(file, &mut bits, &mut count, code, 2);
                    put(file, &mut bits, &mut count, next() & ((1 << code) - 1), code);
                }
                put(file, &mut bits, &mut count, 0, 2);
            }
        }
        flush(file, &mut bits, &mut count);
    };
    if interleaved {
        scan(&mut file, &(0..factors.len()).collect::<Vec<_>>());
    } else {
        (0..factors.len()).for_each(|n| scan(&mut file, &[n]));
    }
    file.extend([0xff, 0xd9]);
    file
}

fn put(file: &mut Vec<u8>, bits: &mut u64, count: &mut u8, value: u8, size: u8) {
    (*bits, *count) = (*bits << size | u64::from(value), *count + size);
    while *count >= 8 {
        *count -= 8;
        let byte = (*bits >> *count) as u8;
        file.push(byte);
        if byte == 0xff {
            file.push(0);
        }
    }
}

fn flush(file: &mut Vec<u8>, bits: &mut u64, count: &mut u8) {
    if *count > 0 {
        let rest = 8 - *count;
        put(file, bits, count, ((1u16 << rest) - 1) as u8, rest);
    }
}

#[test]
fn odd_sampling_factors_and_separate_scans_decode_as_libjpeg_does() {
    let mut court = court();
    let all: [&[(u8, u8)]; 12] = [
        &[(1, 1)],
        &[(2, 2)],
        &[(1, 4)],
        &[(3, 2)],
        &[(1, 1), (1, 1), (1, 1)],
        &[(2, 1), (2, 1), (2, 1)],
        &[(2, 2), (2, 1), (1, 2)],
        &[(1, 1), (2, 2), (1, 1)],
        &[(4, 1), (1, 1), (2, 1)],
        &[(1, 3), (1, 1), (1, 1)],
        &[(3, 1), (1, 1), (3, 1)],
        &[(2, 1), (1, 1), (1, 1), (2, 1)],
    ];
    for factors in all {
        for (interleaved, restart) in [(true, 0), (true, 1), (true, 3), (false, 0), (false, 4)] {
            let bytes = odd_factors(factors, interleaved, restart);
            sound(&mut court, &bytes, &format!("{factors:?} {interleaved} {restart}"));
        }
    }
}

/// The file without its segments of a kind.
fn without(bytes: &[u8], kind: u8) -> Vec<u8> {
    let mut file = bytes.to_vec();
    let segments = pipeline::jpeg::Segments::of(bytes).map(|segment| segment.unwrap());
    for segment in segments.collect::<Vec<_>>().iter().rev().filter(|s| s.code == kind) {
        file.drain(segment.range.clone());
    }
    file
}

#[test]
fn no_picture_is_decoded_by_the_tables_of_the_one_before() {
    let (mut judge, mut decoder) = court();
    let kinds = kinds();
    let plain = &kinds[0];
    // Motion JPEG leaves the standard Huffman tables out.
    let wanted = decoder.decode(plain).unwrap();
    for before in &kinds {
        decoder.decode(before).unwrap();
        assert!(decoder.decode(&without(plain, 0xc4)).unwrap() == wanted);
        decoder.decode(before).unwrap();
        let fault = decoder.decode(&without(plain, 0xdb)).map(|read| read.width).unwrap_err();
        assert!(fault.to_string().contains("Quantization table"), "{fault}");
        judge.read(before).unwrap();
        judge.hold(&mut decoder, &without(plain, 0xc4)).unwrap();
    }
}

/// Kinds of files that are cut, damaged or grown, each with a picture to begin with.
fn kinds() -> Vec<Vec<u8>> {
    let restart = (tj::TJPARAM_TJPARAM_RESTARTBLOCKS, 3);
    let sub420 = (tj::TJPARAM_TJPARAM_SUBSAMP, tj::TJSAMP_TJSAMP_420);
    let optimise = (tj::TJPARAM_TJPARAM_OPTIMIZE, 1);
    let mut kinds: Vec<_> = [
        &[][..],
        &[sub420],
        &[restart],
        &[restart, sub420],
        &[optimise, sub420],
        &[(tj::TJPARAM_TJPARAM_PROGRESSIVE, 1), sub420],
    ]
    .iter()
    .map(|parameters| encode((70, 50), 5, parameters))
    .collect();
    kinds.push(odd_factors(&[(2, 1), (1, 1), (1, 1)], false, 0));
    kinds.push(odd_factors(&[(2, 1), (1, 1), (1, 1)], false, 3));
    kinds
}

#[test]
fn damage_is_judged_as_libjpeg_does() {
    let (mut judge, mut decoder) = court();
    let kinds = kinds();
    for seed in 0..count(3000, 100_000) as u64 {
        let mut next = noise(seed + 77);
        let mut bytes = kinds[seed as usize % kinds.len()].clone();
        let scan = pipeline::jpeg::Header::read(&bytes).unwrap().scan;
        let from = if next().is_multiple_of(4) { 2 } else { scan };
        let mut place = |length: usize| {
            from + (usize::from(next()) << 8 | usize::from(next())) % (length - from)
        };
        for _ in 0..1 + seed % 3 {
            let (at, other) = (place(bytes.len()), place(bytes.len()));
            match seed % 7 {
                0 => bytes[at] ^= 1 << (other % 8),
                1 => bytes[at] = 0xff,
                2 => drop(bytes.drain(at..(at + 1 + other % 40).min(bytes.len()))),
                3 => bytes.insert(at, other as u8),
                4 => drop(bytes.splice(at..at, [0xff, 0xd0 + (other % 10) as u8])),
                5 => bytes.truncate(at.max(from + 4)),
                _ => bytes[at] = other as u8,
            }
        }
        if let Err(problem) = judge.hold(&mut decoder, &bytes) {
            panic!("seed {seed}: {problem}");
        }
    }
}

#[test]
fn every_marker_before_and_behind_the_picture_is_judged_as_libjpeg_does() {
    let (mut judge, mut decoder) = court();
    for (kind, bytes) in kinds().iter().enumerate() {
        let scan = pipeline::jpeg::Header::read(bytes).unwrap().scan;
        let frame = bytes.windows(2).position(|two| two[0] == 0xff && two[1] & 0xfc == 0xc0);
        for (code, at) in (1..0xff)
            .flat_map(|code| [2, frame.unwrap(), scan, bytes.len() - 2].map(|at| (code, at)))
        {
            let file = [&bytes[..at], &[0xff, code, 0, 4, 0, 0], &bytes[at..]].concat();
            let held = judge.hold(&mut decoder, &file);
            held.unwrap_or_else(|problem| panic!("{kind}, {code:#x} at {at}: {problem}"));
        }
    }
}

#[test]
fn only_what_is_all_there_may_lack_its_end_marker() {
    let (mut judge, mut decoder) = court();
    for (kind, bytes) in kinds().into_iter().enumerate() {
        let wanted = decoder.decode(&bytes).unwrap();
        let last = bytes.len() - 2;
        for (what, tail) in [
            ("cut off", &[][..]),
            ("half cut off", &[0xff]),
            ("other bytes in its place", b"\0trailer\0trailer"),
            ("fill bytes in its place", &[0xff, 0xff, 0xff]),
            ("bytes before it", b"\0\0\0\xff\xd9"),
            ("bytes behind it", b"\xff\xd9SEFT\xff\xff\x07"),
            ("a restart marker before it", &[0xff, 0xd0, 0xff, 0xd9]),
            ("a restart marker in its place", &[0xff, 0xd3]),
        ] {
            let file = [&bytes[..last], tail].concat();
            judge.hold(&mut decoder, &file).unwrap_or_else(|p| panic!("{kind}, {what}: {p}"));
            let got = decoder.decode(&file).unwrap_or_else(|f| panic!("{kind}, {what}: {f}"));
            assert!(got == wanted, "{kind}, {what}");
        }
        let second = [&bytes[..], &bytes[..]].concat();
        assert!(decoder.decode(&second).unwrap() == wanted);
        // A byte less, and codes are missing: refused whole, and in a view of the top alone.
        for less in 1..40 {
            let file = &bytes[..last - less];
            judge.hold(&mut decoder, file).unwrap_or_else(|p| panic!("{kind}, -{less}: {p}"));
            for tail in [&b""[..], b"\xff\xfe\0\x06tail"] {
                let file = [file, tail].concat();
                let what = format!("{kind}, -{less}");
                let whole = decoder.decode(&file).map(|read| read.width).expect_err(&what);
                let crop = pipeline::Crop { x: 8, y: 0, width: 16, height: 8 };
                let view = |_, _| pipeline::View::of(crop);
                let mut rows = [vec![0; 8 * 8 * 3], vec![0; 8 * 8 * 3]];
                let [large, small] = &mut rows;
                let top = decoder.view(&file, view, 8, (large, small)).expect_err(&what);
                if tail.is_empty() {
                    for fault in [whole, top] {
                        let cut = matches!(fault, pipeline::Fault::Truncated(_));
                        assert!(cut, "{what}: {fault}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_the_fuzzer_found_decodes_as_libjpeg_does() {
    use base64::Engine;
    // 56 bits or more at hand before a marker, after the last code: libjpeg-turbo drops them.
    let found = [
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAH0DAgID4gAAAAAAAAADBAUIBQUEBAUKBwcGCAwKDAwLCgsLDQ4SEA0OEQ4\
         LCxAWEBETFBUVFQwPFxgWFBgSFRUU/8AACwgAAQARAQERAP8BAgMABBEFEiE1QQAB/f8BAf/aAAgBAQAAAy9tSMlw3Vaq\
         b0vzrW6BDmkl55fvV+Uf/9Sm5PLu+y4DrYs1EOBrP2uAACY=",
    ];
    let (mut judge, mut decoder) = court();
    for text in found {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        judge.hold(&mut decoder, &bytes).unwrap();
        decoder.decode(&bytes).unwrap();
    }
}

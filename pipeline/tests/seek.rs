//! Seek points: they change no pixel, and points that are not a picture's are never believed in silence.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pipeline::decode::{DecodeOptions, Decoder, SeekPoints};
use pipeline::index::Index;
use pipeline::seek::{SEEK_FILE, SeekFile, SeekReport};
use pipeline::{BadSamples, Crop, Cursor, Error, LoaderConfig, Mode, View};
use support::{Sample, batches, config, open, picture, with_causes};
use turbojpeg_sys as tj;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

/// A JPEG with restart markers, or of several scans.
fn special(width: usize, height: usize, seed: u64, parameter: (tj::TJPARAM, i32)) -> Vec<u8> {
    let pixels = picture(width, height, seed);
    // SAFETY: the handle is checked; the pixels fill width x height; the buffer that the library
    // allocates is copied within the length it gives, and freed once.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as i32);
        assert!(!handle.is_null());
        let subsampling = tj::TJSAMP_TJSAMP_420;
        for (parameter, value) in [
            (tj::TJPARAM_TJPARAM_QUALITY, 90),
            (tj::TJPARAM_TJPARAM_SUBSAMP, subsampling),
            parameter,
        ] {
            assert_eq!(tj::tj3Set(handle, parameter as i32, value), 0);
        }
        let (mut out, mut length) = (std::ptr::null_mut(), 0);
        let (w, h) = (width as i32, height as i32);
        let format = tj::TJPF_TJPF_RGB;
        let data = pixels.as_ptr();
        assert_eq!(tj::tj3Compress8(handle, data, w, 0, h, format, &mut out, &mut length), 0);
        let bytes = std::slice::from_raw_parts(out, length as usize).to_vec();
        tj::tj3Free(out.cast());
        tj::tj3Destroy(handle);
        bytes
    }
}

/// Photographs with points (4 of 6) and without.
fn samples(count: usize) -> Vec<Sample> {
    use turbojpeg::Subsamp;
    let sample = |number: usize| {
        let (width, height) = (200 + number * 37 % 150, 180 + number * 53 % 120);
        let seed = number as u64;
        let (extension, image) = match number % 6 {
            0 => ("jpg", support::jpeg(width, height, seed, Subsamp::Sub2x2)),
            1 => ("jpg", support::jpeg(width, height, seed, Subsamp::None)),
            2 => ("jpg", special(width, height, seed, (tj::TJPARAM_TJPARAM_RESTARTBLOCKS, 30))),
            3 => ("jpg", special(width, height, seed, (tj::TJPARAM_TJPARAM_PROGRESSIVE, 1))),
            4 => ("png", support::png(60, 50, seed)),
            _ => ("jpg", support::jpeg(width, height, seed, Subsamp::Gray)),
        };
        Sample { key: format!("s{number:04}"), extension, image, label: Some(number as u32 % 7) }
    };
    (0..count).map(sample).collect()
}

fn folder(count: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    support::write(dir.path(), &samples(count), 10);
    dir
}

fn make(dir: &Path, threads: usize) -> SeekReport {
    let images = AtomicU64::new(0);
    let index = Index::open(dir).unwrap();
    let count = |_| {
        images.fetch_add(1, Ordering::Relaxed);
    };
    let report = SeekFile::make(&index, threads, &AtomicBool::new(false), &count).unwrap();
    assert_eq!(images.into_inner(), index.len() as u64);
    report
}

fn opened(dir: &Path) -> Option<SeekFile> {
    SeekFile::open(&Index::open(dir).unwrap())
}

#[test]
fn batches_are_the_same_with_seek_points_and_without() {
    let dir = folder(90);
    let modes = [Mode::Resnet, Mode::Distorted, Mode::Biggan, Mode::Eval, Mode::Full];
    let all = || {
        modes.map(|mode| {
            let config = LoaderConfig { mode, epochs: Some(2), ..config() };
            batches(&open(dir.path()), config, Cursor::default())
        })
    };
    let wanted = all();
    let report = make(dir.path(), 2);
    let bytes = fs::read(dir.path().join(SEEK_FILE)).unwrap();
    assert_eq!((report.pictures, report.without, report.damaged), (60, 30, 0));
    assert_eq!(report.bytes, bytes.len() as u64);
    let file = opened(dir.path()).unwrap();
    assert_eq!((file.pictures(), file.size()), (60, report.bytes));
    let data = open(dir.path());
    let with = (0..90).filter(|&sample| !data.seek_record(sample).is_empty()).count();
    assert_eq!(with, 60);
    assert!(all() == wanted);
    // Whatever the threads, the file is the same to the byte.
    make(dir.path(), 7);
    assert!(fs::read(dir.path().join(SEEK_FILE)).unwrap() == bytes);
    let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
    for sample in 0..90 {
        file.verify(sample, &data.bytes(sample as u64).unwrap(), Some(&mut decoder)).unwrap();
    }
    let other = data.bytes(6).unwrap();
    let problem = file.verify(0, &other, None).unwrap_err();
    assert!(problem.contains("of another image"), "{problem}");
}

/// The file with its sums made true again, of the header and ends, and of one sample's points.
fn signed(mut bytes: Vec<u8>, samples: usize) -> Vec<u8> {
    let table = bytes.len() - 8 - 8 * samples;
    let mut hash = Xxh3::new();
    hash.update(&bytes[..32]);
    hash.update(&bytes[table..bytes.len() - 8]);
    let end = bytes.len() - 8;
    bytes[end..].copy_from_slice(&hash.digest().to_le_bytes());
    bytes
}

#[test]
fn a_file_that_is_not_the_folder_s_is_not_used() {
    let dir = folder(12);
    let path = dir.path().join(SEEK_FILE);
    assert!(opened(dir.path()).is_none());
    make(dir.path(), 1);
    let sound = fs::read(&path).unwrap();
    let length = sound.len();
    let with = |at: usize, value: u8| {
        let mut bytes = sound.clone();
        bytes[at] ^= value;
        bytes
    };
    let other = {
        let dir = folder(11);
        make(dir.path(), 1);
        fs::read(dir.path().join(SEEK_FILE)).unwrap()
    };
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("cut", sound[..length - 1].to_vec()),
        ("cut in the records", sound[..length / 2].to_vec()),
        ("the header alone", sound[..32].to_vec()),
        ("longer", [&sound[..], &[0; 8]].concat()),
        ("another file", with(0, 1)),
        ("another version", signed(with(8, 2), 12)),
        ("no step", signed(with(12, 8), 12)),
        ("a step beyond", signed(with(15, 1), 12)),
        ("another count", signed(with(16, 1), 12)),
        ("another index", signed(with(24, 1), 12)),
        ("ends out of order", signed(with(length - 8 - 8 * 12 + 3, 1), 12)),
        ("a wrong end", with(length - 10, 1)),
        ("a wrong sum", with(length - 1, 1)),
        ("another folder's", other),
    ] {
        fs::write(&path, bytes).unwrap();
        assert!(opened(dir.path()).is_none(), "{what}");
        // And the data are read as without it.
        let batches = batches(
            &open(dir.path()),
            LoaderConfig { epochs: Some(1), ..config() },
            Cursor::default(),
        );
        assert_eq!(batches.len(), 1, "{what}");
    }
    fs::write(&path, &sound).unwrap();
    assert!(opened(dir.path()).is_some());
    // A folder that was built anew has another index.
    support::write(dir.path(), &samples(11), 10);
    assert!(opened(dir.path()).is_none());
}

/// All batches of two epochs; what bad samples are stood in for by is in them.
fn seen(data: &std::sync::Arc<pipeline::Dataset>) -> Result<Vec<(Vec<u64>, u64)>, String> {
    let bad = BadSamples::Skip { max_share: 1.0 };
    let config = LoaderConfig { bad, mode: Mode::Resnet, epochs: Some(2), ..config() };
    let batch = |batch: Result<pipeline::Batch, Error>| {
        let batch = batch.map_err(|error| with_causes(&error))?;
        Ok((batch.ids().to_vec(), xxh3_64_with_seed(batch.large(), 0)))
    };
    support::start(data, config, Cursor::default()).map(batch).collect()
}

#[test]
fn points_that_are_damaged_or_of_another_image_change_nothing() {
    let dir = folder(12);
    let wanted = seen(&open(dir.path())).unwrap();
    make(dir.path(), 1);
    let path = dir.path().join(SEEK_FILE);
    let sound = fs::read(&path).unwrap();
    let index = Index::open(dir.path()).unwrap();
    let image = open(dir.path()).bytes(0).unwrap();
    let problem = |what: &str| {
        let file = SeekFile::open(&index).unwrap();
        let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
        let said = file.verify(0, &image, Some(&mut decoder)).unwrap_err();
        assert!(said.contains(what) && said.contains("shard-imagenet seek-points"), "{said}");
    };
    for at in [32, 36, 40, 500] {
        let mut bytes = sound.clone();
        bytes[at] ^= 4;
        fs::write(&path, bytes).unwrap();
        if at < 500 {
            problem("are damaged, or of another image");
        }
        assert_eq!(seen(&open(dir.path())).unwrap(), wanted, "{at}");
    }
    // Every level of the first picture's points is another, and their sum is true.
    let mut bytes = sound.clone();
    let table = bytes.len() - 8 - 8 * 12;
    let end = u64::from_le_bytes(bytes[table..table + 8].try_into().unwrap()) as usize;
    for point in bytes[36..32 + end].chunks_exact_mut(10) {
        point[4] ^= 1;
    }
    let seed = xxh3_64_with_seed(&image[image.len() - 64..], image.len() as u64);
    let sum = xxh3_64_with_seed(&bytes[36..32 + end], seed) as u32;
    bytes[32..36].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    problem("are others than its image has");
    assert_eq!(seen(&open(dir.path())).unwrap(), wanted);
    // The file was cut after it was opened.
    fs::write(&path, &sound).unwrap();
    let data = open(dir.path());
    fs::write(&path, &sound[..40]).unwrap();
    assert_eq!(seen(&data).unwrap(), wanted);
}

#[test]
fn an_image_that_was_damaged_since_is_what_it_is_without_points() {
    let dir = folder(30);
    let path = dir.path().join(SEEK_FILE);
    make(dir.path(), 1);
    let points = fs::read(&path).unwrap();
    let data = open(dir.path());
    // One bit of some images, in the middle, and of some near the end, which few views come to.
    for (number, shard) in ["train-000000.tar", "train-000001.tar"].iter().enumerate() {
        let mut bytes = fs::read(dir.path().join(shard)).unwrap();
        for sample in (number * 10..number * 10 + 10).step_by(2) {
            let entry = data.record(sample as u64).entry;
            let place = entry.length as usize / 2 * (1 + sample % 4 / 2) - 20;
            bytes[entry.offset as usize + place] ^= 0x20;
        }
        fs::write(dir.path().join(shard), bytes).unwrap();
    }
    fs::remove_file(&path).unwrap();
    let plain = seen(&open(dir.path())).unwrap();
    for points in [None, Some(points)] {
        match points {
            Some(points) => fs::write(&path, points).unwrap(),
            None => drop(make(dir.path(), 2)),
        }
        assert_eq!(seen(&open(dir.path())).unwrap(), plain);
    }
}

#[test]
fn fill_bytes_in_the_data_decode_as_without_points() {
    let dir = tempfile::tempdir().unwrap();
    // Before a stuffed zero any number of them may stand.
    let grown = |mut sample: Sample, fill: usize| {
        let scan = match pipeline::jpeg::Header::read(&sample.image) {
            Ok(header) => header.scan,
            Err(_) => return sample,
        };
        let mut image = sample.image[..scan].to_vec();
        for pair in sample.image[scan..].windows(2) {
            image.push(pair[0]);
            if pair == [0xff, 0] {
                image.extend(std::iter::repeat_n(0xff, fill));
            }
        }
        image.extend(sample.image.last());
        sample.image = image;
        sample
    };
    // Everywhere, or in the last of them alone, which is behind the last point.
    let mut last = samples(1).remove(0);
    let at = last.image.windows(2).rposition(|pair| pair == [0xff, 0]).unwrap();
    last.image.splice(at..at, [0xff; 40]);
    last.key = "last".into();
    let samples = samples(24).into_iter().enumerate();
    let samples = samples.map(|(n, sample)| grown(sample, [0, 1, 40][n % 3])).chain([last]);
    support::write(dir.path(), &samples.collect::<Vec<_>>(), 10);
    let config = LoaderConfig { epochs: Some(4), ..config() };
    let wanted = batches(&open(dir.path()), config.clone(), Cursor::default());
    assert!(make(dir.path(), 2).pictures > 0);
    assert!(batches(&open(dir.path()), config, Cursor::default()) == wanted);
}

#[test]
fn what_cannot_be_used_is_passed_over_and_nothing_hangs() {
    let dir = folder(12);
    let path = dir.path().join(SEEK_FILE);
    let temporary = dir.path().join(format!(".{SEEK_FILE}.tmp"));
    let pipe = |path: &Path| {
        let done = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(done.success());
    };
    pipe(&path);
    assert!(opened(dir.path()).is_none());
    assert!(
        SeekFile::find(&Index::open(dir.path()).unwrap()).unwrap_err().contains("no regular file")
    );
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(opened(dir.path()).is_none());
    fs::remove_dir(&path).unwrap();
    // Neither a pipe nor what a link leads to is written to.
    let precious = dir.path().join("precious");
    fs::write(&precious, "kept").unwrap();
    let index = Index::open(dir.path()).unwrap();
    let made = || SeekFile::make(&index, 1, &AtomicBool::new(false), &|_| {});
    pipe(&temporary);
    made().unwrap_err();
    fs::remove_file(&temporary).unwrap();
    std::os::unix::fs::symlink(&precious, &temporary).unwrap();
    made().unwrap_err();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
    fs::remove_file(&temporary).unwrap();
    made().unwrap();
    // A table that asks for more than an image can have.
    let mut bytes = fs::read(&path).unwrap();
    let (length, huge) = (bytes.len(), 1_u64 << 42);
    let file = fs::File::options().write(true).open(&path).unwrap();
    let table = length - 8 - 8 * 12;
    for end in bytes[table..length - 8].chunks_exact_mut(8) {
        end.copy_from_slice(&huge.to_le_bytes());
    }
    let tail = signed(bytes, 12)[table..].to_vec();
    file.set_len(32 + huge).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &tail, 32 + huge).unwrap();
    assert!(opened(dir.path()).is_none());
}

#[test]
fn no_points_make_a_panic() {
    let images = samples(6);
    let mut decoder = Decoder::new(DecodeOptions::default()).unwrap();
    let (mut noise, mut faults, mut same) = (1u64, 0, 0);
    let mut next = |below: usize| {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        (noise >> 20) as usize % below
    };
    let mut wrong = 0;
    for round in 0..4000 {
        let image = &images[[0, 1, 2, 5][round % 4]].image;
        let mut records = Vec::new();
        decoder.seek_points(image, 8, &mut records).unwrap();
        let (width, height) = decoder.size(image).unwrap();
        let (x, y) = (next(width - 90), next(height - 90));
        let crop = Crop { x, y, width: 88, height: 88 };
        let mut rows = [vec![0; 88 * 88 * 3], vec![0; 88 * 88 * 3]];
        let [large, small] = &mut rows;
        decoder.view(image, |_, _| View::of(crop), 88, (&mut *large, &mut *small)).unwrap();
        let wanted = large.clone();
        match round % 5 {
            0 => {
                let at = next(records.len());
                records[at] ^= 1 << next(8);
            }
            1 => records.iter_mut().for_each(|byte| *byte = next(256) as u8),
            2 => records.truncate(next(records.len())),
            3 => {
                let (from, to) = (next(records.len() / 10) * 10, next(records.len() / 10) * 10);
                records.copy_within(from..(from + 6).min(from + 10), to);
            }
            _ => records.rotate_left(10),
        }
        let every = if next(4) == 0 { 1 + next(9) as u16 } else { 8 };
        let points = SeekPoints::new(every, &records);
        let choose = |_, _| View::of(crop);
        match decoder.view_seeking((image, points), choose, 88, (large, small)) {
            Err(_) => faults += 1,
            Ok(()) if rows[0] == wanted => same += 1,
            Ok(()) => wrong += 1,
        }
    }
    // A checksum stands before this in the file. Without it, few wrong points pass.
    assert!(faults > 5 * wrong && same > 100, "{faults} {same} {wrong}");
}

#[test]
fn a_stop_leaves_the_old_file_and_nothing_else() {
    let dir = folder(12);
    make(dir.path(), 1);
    let before = fs::read(dir.path().join(SEEK_FILE)).unwrap();
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let files = names();
    let (stop, index) = (AtomicBool::new(false), Index::open(dir.path()).unwrap());
    let each = |_| stop.store(true, Ordering::Relaxed);
    let error = SeekFile::make(&index, 3, &stop, &each).unwrap_err();
    assert!(matches!(error, Error::Stopped), "{error}");
    assert!(fs::read(dir.path().join(SEEK_FILE)).unwrap() == before);
    assert_eq!(names(), files);
}

#[test]
fn a_folder_of_small_pictures_gets_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let sample = |number: u64| Sample {
        key: format!("s{number:04}"),
        extension: "jpg",
        image: support::jpeg(60, 56, number, turbojpeg::Subsamp::None),
        label: None,
    };
    support::write(dir.path(), &(0..20).map(sample).collect::<Vec<_>>(), 10);
    let report = make(dir.path(), 2);
    assert_eq!((report.pictures, report.without, report.bytes), (0, 20, 0));
    assert!(!dir.path().join(SEEK_FILE).exists());
}

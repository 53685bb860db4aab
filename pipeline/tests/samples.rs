//! Bad samples: they end the run, or are replaced and counted, as asked; and nothing ever hangs.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

mod support;

use std::sync::Arc;

use pipeline::{
    BadSamples, Cursor, Error, Fault, Heap, HostBlock, HostMemory, Loader, LoaderConfig,
};
use support::{Sample, batches, config, copy, first_error, open, samples, start, with_causes};

/// A folder of 40 samples, those at `bad` replaced by `bytes`.
fn with_bad(bad: &[usize], bytes: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut samples: Vec<Sample> = samples(40);
    for &at in bad {
        samples[at].image = bytes.to_vec();
    }
    support::write(dir.path(), &samples, 10);
    dir
}

fn in_order() -> LoaderConfig {
    LoaderConfig { shuffle: pipeline::Shuffle::None, epochs: Some(1), ..config() }
}

#[test]
fn a_bad_sample_ends_the_run_in_its_place_with_its_name() {
    let image = samples(1).remove(0).image;
    for (bytes, said) in [
        (&b"this is a text file"[..], "this is text, not JPEG or PNG"),
        (b"", "the file is empty"),
        (&image[..image.len() / 2], "the file is cut short"),
        (b"GIF89a", "this is GIF"),
    ] {
        let dir = with_bad(&[21], bytes);
        for threads in [1, 2, 5] {
            let config = LoaderConfig { threads, ..in_order() };
            let (good, error) = first_error(&open(dir.path()), config);
            assert_eq!(good, 2, "the batches before it come first");
            let Error::Sample { sample: 21, ref key, offset, .. } = error else {
                panic!("{error:?}")
            };
            assert!(key == "s0021" && offset > 0 && error.is_input());
            let words = with_causes(&error);
            assert!(words.contains("train-000002.tar") && words.contains(said), "{words}");
        }
    }
}

#[test]
fn a_replaced_sample_keeps_the_batch_whole_and_is_counted() {
    let bad = [3, 21, 22];
    let dir = with_bad(&bad, b"not a picture");
    let data = open(dir.path());
    let skip = |max_share, threads| LoaderConfig {
        bad: BadSamples::Skip { max_share },
        threads,
        ..in_order()
    };
    let one = batches(&data, skip(0.25, 1), Cursor::default());
    assert_eq!(one, batches(&data, skip(0.25, 4), Cursor::default()));
    assert_eq!(one.iter().map(|batch| batch.ids.len()).collect::<Vec<_>>(), [8; 5]);
    for (position, (&id, &label)) in
        one.iter().flat_map(|batch| batch.ids.iter().zip(&batch.labels)).enumerate()
    {
        assert_eq!(id != position as u64, bad.contains(&position), "row {position} shows {id}");
        assert!(!bad.contains(&(id as usize)));
        assert_eq!(data.label(id).unwrap_or(-1), label);
    }
    let mut loader = start(&data, skip(0.25, 2), Cursor::default());
    assert_eq!(loader.by_ref().filter(|batch| batch.is_ok()).count(), 5);
    let stats = loader.stats();
    assert!(stats.bad >= 3, "{stats:?}");
    let named = |sample| stats.quarantine.iter().any(|q| q.sample == sample);
    assert!(bad.iter().all(|&sample| named(sample as u64)));
    assert!(stats.quarantine[0].report.contains("s0003"), "{stats:?}");
}

#[test]
fn too_many_bad_samples_end_the_run() {
    let dir = with_bad(&[3, 5, 12, 21, 22, 30], b"not a picture");
    let config = LoaderConfig { bad: BadSamples::Skip { max_share: 0.06 }, ..in_order() };
    let (good, error) = first_error(&open(dir.path()), config);
    // 2 of 40 are allowed; the third is in the second batch.
    assert_eq!(good, 1);
    assert!(matches!(error, Error::TooManyBad { drawn: 40, .. }), "{error:?}");
    assert!(with_causes(&error).contains("s0012"), "{}", with_causes(&error));
}

#[test]
fn a_set_of_nothing_but_bad_samples_ends_and_does_not_hang() {
    let dir = with_bad(&(0..40).collect::<Vec<_>>(), b"not a picture");
    let config = LoaderConfig { bad: BadSamples::Skip { max_share: 1.0 }, ..in_order() };
    let (good, error) = first_error(&open(dir.path()), config);
    assert!(
        good == 0 && matches!(error, Error::Sample { .. } | Error::TooManyBad { .. }),
        "{error}"
    );
}

#[test]
fn options_that_make_no_sense_are_refused_all_at_once() {
    let dir = with_bad(&[], b"");
    let data = open(dir.path());
    let wrong = LoaderConfig { batch: 0, small: Some(10), threads: 0, rank: 3, ..config() };
    let error = Loader::start(Arc::clone(&data), wrong, Cursor::default(), Arc::new(Heap));
    let text = with_causes(&error.unwrap_err());
    for option in ["batch = 0", "small = 10", "threads = 0", "rank = 3"] {
        assert!(text.contains(option), "{text}");
    }
    let too_big = LoaderConfig { batch: 41, ..config() };
    let error = Loader::start(Arc::clone(&data), too_big, Cursor::default(), Arc::new(Heap));
    assert!(matches!(error, Err(Error::TooFew { samples: 40, .. })));
    let cursor = Cursor::new(0, 5);
    let error = Loader::start(data, config(), cursor, Arc::new(Heap));
    assert!(matches!(error, Err(Error::Config { .. })));
}

/// Memory that panics or refuses at the n-th block.
#[derive(Debug)]
struct Short;

impl HostMemory for Short {
    fn allocate(&self, bytes: usize) -> Result<Box<dyn HostBlock>, Error> {
        Err(Error::Memory { bytes, reason: "none is left".into() })
    }
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    let dir = with_bad(&[], b"");
    let error = Loader::start(open(dir.path()), config(), Cursor::default(), Arc::new(Short));
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Memory { .. }) && !error.is_input(), "{error:?}");
}

#[test]
fn a_header_that_claims_too_much_is_refused_before_memory_is_taken() {
    let mut huge = samples(1).remove(0).image;
    let frame = huge.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    huge[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
    let dir = with_bad(&[0], &huge);
    let (_, error) = first_error(&open(dir.path()), in_order());
    let Error::Sample { source: Fault::Pixels { width: 65_500, .. }, .. } = error else {
        panic!("{error:?}")
    };
}

#[test]
fn a_slow_caller_sees_the_same_batches_and_bounded_memory() {
    let dir = with_bad(&[], b"");
    let data = open(dir.path());
    let config = LoaderConfig { epochs: Some(4), depth: 1, ..in_order() };
    let quick = batches(&data, config.clone(), Cursor::default());
    let mut loader = start(&data, config, Cursor::default());
    let mut slow = Vec::new();
    while let Some(batch) = loader.next() {
        std::thread::yield_now();
        slow.push(copy(&batch.unwrap()));
        let ready = loader.stats().queued_batches;
        assert!(ready <= 3, "{ready} batches ready of 3 slabs");
    }
    assert_eq!(slow, quick);
}

//! What other programs build on: cursors that know their order, members, one size, batches that go
//! where they like, epochs, and forks.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use pipeline::{
    Cursor, Dataset, Error, Filter, Heap, LastBatch, Loader, LoaderConfig, Mode, Shuffle,
};
use support::{batches, config, copy, folder, jpeg, open, start, with_causes};

#[test]
fn a_cursor_of_another_order_is_refused_with_what_differs() {
    let dir = folder(50);
    let data = open(dir.path());
    let cursor = start(&data, config(), Cursor::default()).next().unwrap().unwrap().cursor();
    let refused = |data: &Arc<Dataset>, config: LoaderConfig, what: &str| {
        let error = Loader::start(Arc::clone(data), config, cursor, Arc::new(Heap)).unwrap_err();
        assert!(matches!(error, Error::Cursor { .. }) && error.is_input(), "{error}");
        assert!(error.to_string().contains(what), "{what}: {error}");
    };
    let base = config();
    refused(&data, LoaderConfig { seed: 12, ..base.clone() }, "the seed: 12, not 11");
    refused(&data, LoaderConfig { batch: 4, ..base.clone() }, "4 rows over all ranks, not 8");
    refused(&data, LoaderConfig { shuffle: Shuffle::None, ..base.clone() }, "the order");
    refused(&data, LoaderConfig { last: LastBatch::Pad, ..base.clone() }, "the order");
    for views in [
        LoaderConfig { mode: Mode::Eval, ..base.clone() },
        LoaderConfig { large: 64, small: Some(32), ..base.clone() },
        LoaderConfig { small: Some(8), ..base.clone() },
        LoaderConfig { small: None, ..base.clone() },
        LoaderConfig { filter: Filter::Bilinear, ..base.clone() },
        LoaderConfig { scaling: pipeline::Scaling::Dct, ..base.clone() },
        LoaderConfig { orientation: pipeline::Orientation::Apply, ..base.clone() },
    ] {
        refused(&data, views, "the views");
    }
    let other = folder(40);
    refused(&open(other.path()), base.clone(), "the data");
    refused(&data, LoaderConfig { seed: 12, batch: 4, ..base.clone() }, "not 8; the seed");

    // What changes no batch does not matter, nor where a cursor's order is left open.
    let same = LoaderConfig { threads: 5, depth: 7, batch: 4, world: 2, rank: 1, ..base.clone() };
    start(&data, LoaderConfig { held_s: None, epochs: Some(9), ..same }, cursor);
    start(&data, LoaderConfig { seed: 12, ..base }, cursor.unbound());
}

#[test]
fn cursors_survive_a_file_and_those_of_before_still_open() {
    let dir = folder(50);
    let data = open(dir.path());
    let all = batches(&data, LoaderConfig { epochs: Some(1), ..config() }, Cursor::default());
    let cursor = all[1].cursor;
    let text = serde_json::to_string(&cursor).unwrap();
    assert_eq!(serde_json::from_str::<Cursor>(&text).unwrap(), cursor);
    // As commit 9d001b8 wrote it into checkpoints.
    let old: Cursor = serde_json::from_str(r#"{"epoch":0,"batch":2}"#).unwrap();
    for at in [cursor, old] {
        let rest = batches(&data, LoaderConfig { epochs: Some(1), ..config() }, at);
        assert_eq!(rest, all[2..]);
    }
}

#[test]
fn all_members_of_a_sample_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let image = jpeg(40, 30, 1, turbojpeg::Subsamp::None);
    let mut tar = tar::Builder::new(std::fs::File::create(dir.path().join("train-0.tar")).unwrap());
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let long = "k".repeat(150);
    for (key, class) in [("a", "3"), (&long, "4"), ("c", "5")] {
        put(&format!("{key}.JSON"), format!("{{\"of\": \"{class}\"}}").as_bytes());
        put(&format!("{key}.jpg"), &image);
        put(&format!("{key}.cls"), class.as_bytes());
        put(&format!("{key}.txt"), b"a caption");
    }
    tar.into_inner().unwrap();
    let look = |data: &Dataset| {
        for (sample, class) in (0..3).zip(["3", "4", "5"]) {
            let members = data.members(sample).unwrap();
            let names: Vec<_> = members.iter().map(|m| &*m.extension).collect();
            assert_eq!(names, ["JSON", "jpg", "cls", "txt"], "{sample}");
            let json = data.member(sample, "json").unwrap().unwrap();
            assert_eq!(json, format!("{{\"of\": \"{class}\"}}").as_bytes());
            assert_eq!(data.member(sample, "txt").unwrap().unwrap(), &b"a caption"[..]);
            assert_eq!(data.member(sample, "jpg").unwrap().unwrap(), data.bytes(sample).unwrap());
            assert_eq!(data.member(sample, "npy").unwrap(), None);
        }
    };
    look(&open(dir.path()));
    #[cfg(feature = "remote")]
    {
        let server = server::Server::folder(dir.path(), server::Faults::default());
        look(&Dataset::open(std::path::Path::new(&server.url), "train").unwrap());
    }
}

#[cfg(feature = "remote")]
#[path = "support/server.rs"]
mod server;

#[test]
fn one_size_is_a_choice() {
    let dir = folder(20);
    let data = open(dir.path());
    for mode in [Mode::Resnet, Mode::Small] {
        let two = LoaderConfig { mode, epochs: Some(1), ..config() };
        let one = LoaderConfig { small: None, ..two.clone() };
        let both = batches(&data, two, Cursor::default());
        for (number, batch) in start(&data, one, Cursor::default()).enumerate() {
            let batch = batch.unwrap();
            assert_eq!((batch.large(), batch.small().len()), (&both[number].large[..], 0));
            assert_eq!((batch.sides(), batch.small_array()), ((32, None), None));
        }
    }
}

#[test]
fn batches_tell_other_programs_where_their_memory_is() {
    let dir = folder(20);
    let data = open(dir.path());
    let mut loader = start(&data, config(), Cursor::default());
    let batch = loader.next().unwrap().unwrap();
    drop(loader);
    let (large, shape) = batch.large_array();
    assert_eq!((large.as_ptr().cast_const(), shape), (batch.large().as_ptr(), [8, 32, 32, 3]));
    let (small, shape) = batch.small_array().unwrap();
    assert_eq!((small.as_ptr().cast_const(), shape), (batch.small().as_ptr(), [8, 16, 16, 3]));
    let expected: Vec<_> = batch.ids().iter().map(|&id| data.key(id)).collect();
    let keys = std::thread::spawn(move || batch.keys()).join().unwrap();
    assert_eq!(keys, expected);
}

#[test]
fn a_rank_that_is_left_nothing_makes_as_many_batches_as_the_others() {
    let dir = folder(10);
    let data = open(dir.path());
    let rows = |samples: LoaderConfig| -> Vec<(usize, Cursor)> {
        start(&data, samples, Cursor::default())
            .map(|batch| batch.map(|batch| (batch.rows(), batch.cursor())).unwrap())
            .collect()
    };
    // 10 samples over 4 ranks of 2 rows: the last batch has 2 samples. Over 16 ranks: 6 have none.
    for (world, expected) in [(4, [vec![2, 1], vec![2, 0]]), (16, [vec![1], vec![0]])] {
        let (last, epochs, batch) = (LastBatch::Keep, Some(2), 2);
        let ranks: Vec<_> = (0..world)
            .map(|rank| rows(LoaderConfig { rank, world, last, epochs, batch, ..config() }))
            .collect();
        for (rank, batches) in ranks.iter().enumerate() {
            let cursors = |of: &[(usize, Cursor)]| of.iter().map(|b| b.1).collect::<Vec<_>>();
            assert_eq!(cursors(batches), cursors(&ranks[0]), "rank {rank} of {world}");
            let rows: Vec<_> = batches.iter().map(|batch| batch.0).collect();
            let empty = usize::from(if world == 4 { rank >= 2 } else { rank >= 10 });
            assert_eq!(rows, expected[empty].repeat(2), "rank {rank} of {world}");
        }
    }
    // Without an end it does not hang either, and goes on from its own cursors.
    let endless = LoaderConfig { rank: 15, world: 16, last: LastBatch::Keep, batch: 2, ..config() };
    let empty = start(&data, endless.clone(), Cursor::default()).nth(5).unwrap().unwrap();
    assert_eq!((empty.rows(), empty.large().len(), empty.keys().len()), (0, 0, 0));
    assert!(start(&data, endless, empty.cursor()).next().unwrap().is_ok());
}

#[test]
fn a_shard_that_is_cut_under_a_running_loader_is_an_error_and_no_signal() {
    let dir = folder(40);
    let data = open(dir.path());
    let config = LoaderConfig { shuffle: Shuffle::None, depth: 1, ..config() };
    let mut loader = start(&data, config, Cursor::default());
    assert!(loader.next().unwrap().is_ok());
    for number in 0..4 {
        let path = dir.path().join(format!("train-{number:06}.tar"));
        std::fs::File::options().write(true).open(path).unwrap().set_len(600).unwrap();
    }
    let error = loader.find_map(Result::err).unwrap();
    assert!(matches!(error, Error::ShardTruncated { .. }), "{error:?}");
    assert!(loader.next().is_none());
}

#[test]
fn a_batch_that_is_late_comes_with_a_later_call() {
    let dir = folder(20);
    let data = open(dir.path());
    let config = LoaderConfig { depth: 1, ..config() };
    let expected: Vec<_> = start(&data, config.clone(), Cursor::default())
        .take(4)
        .map(|b| copy(&b.unwrap()))
        .collect();
    let mut loader = start(&data, config, Cursor::default());
    let mut held: Vec<_> = (0..3).map(|_| loader.next().unwrap().unwrap()).collect();
    let error = loader.next_timeout(Duration::from_millis(50)).unwrap().unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    held.pop();
    let fourth = loader.next_timeout(Duration::from_secs(60)).unwrap().unwrap();
    assert_eq!(copy(&fourth), expected[3]);
}

#[test]
fn a_use_after_a_fork_is_an_error_and_does_not_hang() {
    let dir = folder(20);
    let data = open(dir.path());
    let mut loader = start(&data, config(), Cursor::default());
    let batch = loader.next().unwrap().unwrap();
    // SAFETY: the child does little, allocates (which glibc allows) and leaves by `_exit`.
    match unsafe { libc::fork() } {
        0 => {
            let next = matches!(loader.next(), Some(Err(Error::Forked { .. })));
            let told = matches!(loader.set_epoch(3), Err(Error::Forked { .. }));
            drop(batch);
            drop(loader);
            // Files of this machine can be read.
            let good = next && told && data.bytes(3).is_ok();
            // SAFETY: ends the process and nothing else.
            unsafe { libc::_exit(if good { 0 } else { 1 }) }
        }
        child => {
            let mut status = -1;
            let begun = std::time::Instant::now();
            // SAFETY: `status` is ours.
            while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == 0 {
                if begun.elapsed() > Duration::from_secs(30) {
                    // SAFETY: our own child.
                    unsafe { libc::kill(child, libc::SIGKILL) };
                    panic!("the child hangs");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(status, 0, "the child's exit");
        }
    }
    drop(batch);
    assert!(loader.next().unwrap().is_ok(), "the parent goes on");
}

#[test]
fn what_cannot_be_decoded_says_why_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut samples = support::samples(10);
    samples[5].image = b"this is a text file".to_vec();
    support::write(dir.path(), &samples, 10);
    let config = LoaderConfig { shuffle: Shuffle::None, ..config() };
    let (_, error) = support::first_error(&open(dir.path()), config);
    let text = error.to_string();
    assert!(text.contains("sample 5") && text.contains("this is text, not JPEG"), "{text}");
    assert!(text.contains("data.max_bad_share") && text.contains("s0005"), "{text}");
    assert!(with_causes(&error).contains(&text));
}

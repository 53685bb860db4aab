//! A folder behind a URL gives the same batches as on this machine, whatever the network does.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its data should stop there")]

#[path = "support/server.rs"]
mod server;
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipeline::index::{Format, IndexWriter};
use pipeline::shard::{Entry, Written};
use pipeline::{BadSamples, Cursor, Dataset, Error, LoaderConfig, RemoteOptions, Shuffle};
use server::{Faults, Server};
use support::{batches, config, copy, first_error, folder, open, start};

/// Quick to give up on a stalled answer, and with the smallest budget.
fn options() -> RemoteOptions {
    RemoteOptions { read_ahead: 16 << 20, stall_ms: 200, ..RemoteOptions::default() }
}

fn open_url(url: &str, options: &RemoteOptions) -> Arc<Dataset> {
    Arc::new(Dataset::open_with(Path::new(url), "train", options).unwrap())
}

#[test]
fn batches_are_those_of_the_local_folder_however_often_answers_fail() {
    let dir = folder(90);
    let local = open(dir.path());
    let failing = Faults { failing: 0.2, latency: Duration::from_millis(2), ..Faults::default() };
    for faults in [Faults::default(), failing, Faults { tags: false, ..failing }] {
        let server = Server::folder(dir.path(), faults);
        let remote = open_url(&server.url, &options());
        assert_eq!(remote.fingerprint(), local.fingerprint());
        assert_eq!(remote.classes(), local.classes());
        for shuffle in [Shuffle::Global, Shuffle::Shards, Shuffle::None] {
            let config = LoaderConfig { shuffle, epochs: Some(2), ..config() };
            let expected = batches(&local, config.clone(), Cursor::default());
            assert!(batches(&remote, config, Cursor::default()) == expected, "{shuffle:?}");
        }
        let traffic = remote.traffic().unwrap();
        assert_eq!(traffic.requests, server.served.requests());
        let faulty = faults.failing > 0.0;
        assert_eq!(traffic.retries > 0, faulty, "{traffic:?}");
        assert_eq!(server.served.faults() > 3, faulty, "{:?}", server.served);
    }
}

#[test]
fn shards_are_asked_for_by_their_names_whatever_letters_they_have() {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["", "d é#"] {
        let inside = dir.path().join(folder);
        std::fs::create_dir_all(&inside).unwrap();
        let mut index = IndexWriter::new();
        index.begin_split("train").unwrap();
        let names = ["a#b.tar", "c?d.tar", "e%20f.tar", "g h.tar", "été.tar"];
        for (number, name) in names.iter().enumerate() {
            let key = number.to_string();
            let mut shard = pipeline::shard::ShardWriter::create(&inside.join(name)).unwrap();
            let entry = shard.append(&key, "jpg", name.as_bytes(), Some(0)).unwrap();
            index.sample(&key, entry, Some(0), Format::Jpeg, (9, 9));
            index.end_shard(name, shard.finish().unwrap()).unwrap();
        }
        index.write(&inside).unwrap();
        let server = Server::folder(dir.path(), Faults::default());
        let url = format!("{}/{}", server.url, folder.replace(' ', "%20").replace('#', "%23"));
        let remote = open_url(&url, &options());
        for (sample, name) in names.iter().enumerate() {
            assert_eq!(&*remote.bytes(sample as u64).unwrap(), name.as_bytes());
        }
    }
}

#[test]
fn neighbours_are_read_together() {
    let dir = folder(90);
    let server = Server::folder(dir.path(), Faults::default());
    let remote = open_url(&server.url, &options());
    let before = remote.traffic().unwrap();
    let config = LoaderConfig { shuffle: Shuffle::None, epochs: Some(1), ..config() };
    assert_eq!(batches(&remote, config, Cursor::default()).len(), 11);
    let after = remote.traffic().unwrap();
    // 88 samples of 9 small shards; a request for each shard.
    assert_eq!(after.requests - before.requests, 9);
    assert!(after.bytes > before.bytes);
}

#[test]
fn a_cache_answers_the_second_loader_and_the_second_process() {
    let dir = folder(60);
    let config = || LoaderConfig { epochs: Some(1), ..config() };
    let expected = batches(&open(dir.path()), config(), Cursor::default());
    let cache = tempfile::tempdir().unwrap();
    let options = RemoteOptions { cache: Some(cache.path().into()), ..options() };
    let server = Server::folder(dir.path(), Faults::default());
    for process in 0..2 {
        let remote = open_url(&server.url, &options);
        for loader in 0..2 {
            let before = remote.traffic().unwrap();
            assert!(batches(&remote, config(), Cursor::default()) == expected);
            let after = remote.traffic().unwrap();
            let missed = after.cache_misses - before.cache_misses;
            assert_eq!(missed, if (process, loader) == (0, 0) { 6 } else { 0 }, "{after:?}");
            assert_eq!(after.requests - before.requests, missed);
            assert!(after.cache_hits > before.cache_hits || missed > 0);
        }
    }
}

#[test]
fn a_damaged_or_vanished_part_of_the_cache_is_read_again() {
    let dir = folder(40);
    let cache = tempfile::tempdir().unwrap();
    let options = RemoteOptions { cache: Some(cache.path().into()), ..options() };
    let server = Server::folder(dir.path(), Faults::default());
    let config = || LoaderConfig { epochs: Some(1), ..config() };
    let expected = batches(&open(dir.path()), config(), Cursor::default());
    let run = || batches(&open_url(&server.url, &options), config(), Cursor::default());
    assert!(run() == expected);
    let folder = std::fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap().path();
    let parts: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(parts.len(), 4);
    let mut bytes = std::fs::read(&parts[0]).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&parts[0], bytes).unwrap();
    std::fs::write(&parts[1], b"short").unwrap();
    std::fs::remove_file(&parts[2]).unwrap();
    assert!(run() == expected);
}

#[test]
fn a_cache_stays_below_its_limit() {
    let dir = folder(200);
    let cache = tempfile::tempdir().unwrap();
    let cache_bytes = 150_000;
    let options = RemoteOptions { cache: Some(cache.path().into()), cache_bytes, ..options() };
    let stranger = cache.path().join("holiday.jpg");
    std::fs::write(&stranger, [0; 1000]).unwrap();
    let server = Server::folder(dir.path(), Faults::default());
    let size = || {
        let folder = std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path());
        let folder = folder.into_iter().find(|path| path.is_dir()).unwrap();
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap());
        files.map(|file| file.metadata().unwrap().len()).sum::<u64>()
    };
    // Two at once, as two processes would.
    let run = || {
        let remote = open_url(&server.url, &options);
        let config = LoaderConfig { shuffle: Shuffle::None, epochs: Some(1), ..config() };
        batches(&remote, config, Cursor::default()).len()
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(run);
        assert_eq!((run(), other.join().unwrap()), (25, 25));
    });
    drop(open_url(&server.url, &options)); // opening measures the folder
    // Two that make room at once may each remove some.
    assert!(size() <= cache_bytes && size() > cache_bytes / 4, "{} bytes", size());
    assert!(stranger.exists());
}

#[test]
fn a_loader_on_a_dead_network_ends_at_once() {
    let dir = folder(60);
    let stalled = Faults { failing: 1.0, latency: Duration::from_secs(3), ..Faults::default() };
    let healthy = Server::folder(dir.path(), Faults::default());
    let port: u16 = healthy.url.rsplit(':').next().unwrap().parse().unwrap();
    let remote = open_url(&healthy.url, &RemoteOptions { stall_ms: 60_000, ..options() });
    drop(healthy);
    let origin = server::Origin::Folder(dir.path().into());
    let _dead = Server::start(origin, stalled, port).unwrap();
    let loader = start(&remote, config(), Cursor::default());
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    drop(loader);
    drop(remote);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn stalls_are_given_up_long_before_the_most_patience_there_is() {
    let dir = folder(200);
    let healthy = Server::folder(dir.path(), Faults::default());
    let port: u16 = healthy.url.rsplit(':').next().unwrap().parse().unwrap();
    // Opening tells how soon this server answers.
    let remote = open_url(&healthy.url, &RemoteOptions { stall_ms: 60_000, ..options() });
    drop(healthy);
    let origin = server::Origin::Folder(dir.path().into());
    let faulty = Server::start(origin, Faults { failing: 0.5, ..Faults::default() }, port).unwrap();
    let begun = Instant::now();
    let config = LoaderConfig { shuffle: Shuffle::Global, epochs: Some(1), ..config() };
    let expected = batches(&open(dir.path()), config.clone(), Cursor::default());
    assert!(batches(&remote, config, Cursor::default()) == expected);
    assert!(faulty.served.faults() >= 3, "{:?}", faulty.served);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
}

#[test]
fn a_server_that_is_gone_ends_the_run_in_its_batch_with_the_url() {
    let dir = folder(60);
    let server = Server::folder(dir.path(), Faults::default());
    let remote = open_url(&server.url, &RemoteOptions { retries: 2, ..options() });
    let url = server.url.clone();
    drop(server);
    let bad = BadSamples::Skip { max_share: 1.0 };
    let (_, error) = first_error(&remote, LoaderConfig { bad, ..config() });
    assert!(matches!(error, Error::Remote { input: false, .. }), "{error:?}");
    let words = error.to_string();
    assert!(words.contains(&url) && words.contains("3 tries in a row"), "{words}");
}

#[test]
fn refusals_name_the_url_and_a_way_out() {
    let dir = folder(10);
    let told = |status| Faults { status: Some(status), ..Faults::default() };
    let cases = [
        (told(404), "index.bin", "copy the index.bin"),
        (told(403), "index.bin", "credentials"),
        (told(400), "index.bin", "check the URL"),
        (Faults { ranges: false, ..Faults::default() }, "index.bin", "range requests"),
    ];
    for (faults, file, mend) in cases {
        let server = Server::folder(dir.path(), faults);
        let begun = Instant::now();
        let error = Dataset::open(Path::new(&server.url), "train").unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(2), "{error}");
        let words = error.to_string();
        assert!(error.is_input() && words.contains(&format!("{}/{file}", server.url)), "{words}");
        assert!(words.contains(mend), "{words}");
    }
    for (url, what) in [("ftp://host/data", "ftp://"), ("http://", "http://"), ("s3://", "s3://")] {
        let error = Dataset::open(Path::new(url), "train").unwrap_err();
        assert!(error.is_input() && error.to_string().contains(what), "{error}");
    }
}

#[test]
fn what_may_be_missing_may_be_refused_where_nothing_may_be_listed() {
    let dir = folder(10);
    let local = Dataset::open(dir.path(), "train").unwrap();
    for name in ["manifest.json", "classes.json"] {
        let path = dir.path().join(name);
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
    let unlisted = Faults { unlisted: true, ..Faults::default() };
    let server = Server::folder(dir.path(), unlisted);
    let remote = Dataset::open(Path::new(&server.url), "train").unwrap();
    assert_eq!(remote.len(), local.len());
    std::fs::remove_file(dir.path().join("index.bin")).unwrap();
    let error = Dataset::open(Path::new(&server.url), "train").unwrap_err();
    assert!(error.to_string().contains("credentials"), "{error}");
}

#[test]
fn a_shard_that_was_replaced_is_noticed() {
    let dir = folder(30);
    let shard = |number: usize| dir.path().join(format!("train-{number:06}.tar"));
    let server = Server::folder(dir.path(), Faults::default());
    let remote = open_url(&server.url, &options());
    let config = || LoaderConfig { shuffle: Shuffle::None, ..config() };
    let mut whole = std::fs::read(shard(0)).unwrap();

    // The same length, but another sample first.
    whole[..5].copy_from_slice(b"other");
    let mut header = tar::Header::from_byte_slice(&whole[..512]).clone();
    header.set_cksum();
    whole[..512].copy_from_slice(header.as_bytes());
    std::fs::write(shard(0), &whole).unwrap();
    let (_, error) = first_error(&remote, config());
    assert!(error.to_string().contains("other"), "{error}");

    whole.truncate(whole.len() - 512);
    std::fs::write(shard(0), &whole).unwrap();
    let (_, error) = first_error(&remote, config());
    assert!(error.to_string().contains("it was replaced"), "{error}");

    std::fs::remove_file(shard(0)).unwrap();
    let (_, error) = first_error(&remote, config());
    assert!(error.to_string().contains("not there"), "{error}");
}

#[test]
fn resumed_and_shared_epochs_are_those_of_the_local_folder() {
    let dir = folder(64);
    let server = Server::folder(dir.path(), Faults { failing: 0.1, ..Faults::default() });
    let remote = open_url(&server.url, &options());
    let local = open(dir.path());
    let config = || LoaderConfig { shuffle: Shuffle::Shards, epochs: Some(2), ..config() };
    let whole = batches(&local, config(), Cursor::default());
    for cut in [1, 7, 8, 11] {
        let mut loader = start(&remote, config(), Cursor::default());
        let mut drawn: Vec<_> = loader.by_ref().take(cut).map(|b| copy(&b.unwrap())).collect();
        drop(loader);
        drawn.extend(batches(&remote, config(), drawn[cut - 1].cursor));
        assert!(drawn == whole, "cut at {cut}");
    }
    for rank in 0..2 {
        let part = || LoaderConfig { batch: 4, rank, world: 2, ..config() };
        let expected = batches(&local, part(), Cursor::default());
        assert!(batches(&remote, part(), Cursor::default()) == expected, "rank {rank}");
    }
}

#[test]
fn lengths_that_an_index_claims_are_not_believed_before_the_server_sends_them() {
    let dir = tempfile::tempdir().unwrap();
    let name = "train-000000.tar";
    std::fs::write(dir.path().join(name), vec![0; 4096]).unwrap();
    let mut index = IndexWriter::new();
    index.begin_split("train").unwrap();
    let entry = Entry { offset: 1 << 40, length: u32::MAX };
    index.sample("a", entry, None, Format::Jpeg, (0, 0));
    index.end_shard(name, Written { bytes: 1 << 50, xxh3: 0 }).unwrap();
    index.write(dir.path()).unwrap();
    let server = Server::folder(dir.path(), Faults::default());
    let cache = tempfile::tempdir().unwrap();
    let options = RemoteOptions { cache: Some(cache.path().into()), ..options() };
    let remote = open_url(&server.url, &options);
    for error in [remote.bytes(0).unwrap_err(), remote.index().shard(0).unwrap_err()] {
        let words = error.to_string();
        assert!(words.contains(name) && error.is_input(), "{words}");
    }
}

#[test]
fn nobody_listening_is_said_within_five_seconds() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let begun = Instant::now();
    let url = format!("http://127.0.0.1:{port}/data");
    let error = Dataset::open(Path::new(&url), "train").unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let words = error.to_string();
    assert!(matches!(error, Error::Remote { input: false, .. }), "{error:?}");
    assert!(words.contains(&url) && words.contains("onnection refused"), "{words}");
}

#[test]
fn a_password_in_a_url_is_never_shown() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = folder(10);
    let refused = Server::folder(dir.path(), Faults { status: Some(403), ..Faults::default() });
    let missing = Server::folder(dir.path(), Faults { status: Some(404), ..Faults::default() });
    let sound = Server::folder(dir.path(), Faults::default());
    let with = |url: &str| url.replace("http://", "http://me:hunt%20er2@");
    let mut shown = String::new();
    for url in [
        format!("http://me:hunt%20er2@127.0.0.1:{port}/data"),
        with(&refused.url),
        with(&missing.url),
        "ftp://me:hunt%20er2@host/data".into(),
        "http://me:hunt%20er2@/data".into(),
        "s3://me:hunt%20er2@host:x/data".into(),
        format!("{}?sig=hunt%20er2", refused.url),
    ] {
        let error = Dataset::open(Path::new(&url), "train").unwrap_err();
        shown += &format!("{error}\n{error:?}\n{}\n", pipeline::report(&error));
    }
    let data = open_url(&with(&sound.url), &options());
    let loader = start(&data, config(), Cursor::default());
    shown += &format!("{data:?}\n{}\n{loader:?}", data.index().dir().display());
    drop(sound);
    let (_, error) = first_error(&data, LoaderConfig { shuffle: Shuffle::Global, ..config() });
    shown += &format!("{error}\n{error:?}");
    let at = shown.find("er2").map(|at| &shown[at.saturating_sub(300)..at + 3]);
    assert_eq!(at, None);
    assert!(shown.contains("me:***@"), "{shown}");
}

/// A decode thread that took several rows at a time held the bytes that the budget was waiting for.
#[test]
fn a_small_budget_beside_a_cache_is_enough_for_many_small_images_of_many_parts() {
    let mut image = std::io::Cursor::new(Vec::new());
    let noise = |x: u32, y: u32| {
        image::Rgb([x, y, x ^ y].map(|v| (v.wrapping_mul(2_654_435_761) >> 13) as u8))
    };
    image::RgbImage::from_fn(36, 36, noise).write_to(&mut image, image::ImageFormat::Png).unwrap();
    let image = image.into_inner();
    let count = (28 << 20) / image.len();
    let sample = |number| support::Sample {
        key: format!("s{number:06}"),
        extension: "png",
        image: image.clone(),
        label: None,
    };
    let dir = tempfile::tempdir().unwrap();
    support::write(dir.path(), &(0..count).map(sample).collect::<Vec<_>>(), count);
    let server = Server::folder(dir.path(), Faults::default());
    let cache = tempfile::tempdir().unwrap();
    let options = RemoteOptions { cache: Some(cache.path().into()), ..options() };
    let remote = open_url(&server.url, &options);
    let config = LoaderConfig { batch: 256, threads: 2, epochs: Some(1), ..config() };
    let mut loader = start(&remote, config, Cursor::default());
    let mut rows = 0;
    while let Some(batch) = loader.next_timeout(Duration::from_secs(30)) {
        rows += batch.unwrap().rows();
    }
    assert_eq!(rows, count / 256 * 256);
}

//! Data that are not what they say: files of a data folder, and tars of any origin, cut, flipped, doubled,
//! exchanged and forged.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration::{Background, ONE_THREAD, copy_folder, data, program, text};

use super::{
    assert_same_end, finished, newest, same_end, saved, steps, tell, times, unattended, undisturbed,
};

/// Numbers that are the same each time.
pub(super) struct Seeded(pub(super) u64);

impl Seeded {
    pub(super) fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as usize % most.max(1)
    }

    /// Bytes with something wrong, and what.
    pub(super) fn spoil(&mut self, bytes: &mut Vec<u8>) -> &'static str {
        let at = self.below(bytes.len());
        let most = bytes.len() - at;
        let some = 1 + self.below(most.min(4096));
        match self.below(7) {
            0 => {
                bytes[at] ^= 1 << self.below(8);
                "a bit flipped"
            }
            1 => {
                bytes.truncate(at);
                "cut"
            }
            2 => {
                bytes[at..at + some].fill(0);
                "zeros"
            }
            3 => {
                bytes.drain(at..at + some);
                "a part left out"
            }
            4 => {
                let part = bytes[at..at + some].to_vec();
                bytes.splice(at..at, part);
                "a part twice"
            }
            5 => {
                for byte in &mut bytes[at..at + some] {
                    *byte = self.below(256) as u8;
                }
                "noise"
            }
            _ => {
                bytes.clear();
                "empty"
            }
        }
    }
}

/// What `program` says and how it ends, which it must within a minute and 4 GiB of memory of its own.
fn ends(name: &str, args: &[String]) -> (i32, String) {
    // Addresses, not memory: libtorch alone takes more than a gigabyte of them.
    let script = "ulimit -v 12000000; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(program(name)).args(args).envs(ONE_THREAD);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = child.stderr.take().unwrap();
    let words = std::thread::spawn(move || {
        let mut bytes = vec![];
        std::io::Read::read_to_end(&mut said, &mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{name} {args:?} hangs: {}", words.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let words = words.join().unwrap();
    assert!(!words.contains("panicked"), "{name} {args:?}: {words}");
    let code = status.code();
    assert!(code.is_some(), "{name} {args:?} died: {status} {words}");
    (code.unwrap(), words)
}

/// A data folder of a few shards.
fn shards(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("shards");
    let options = "synth --images 40 --classes 4 --size 32 --shard-bytes 32K --output";
    let args = options.split(' ').map(str::to_owned).chain([text(&path)]).collect::<Vec<_>>();
    assert_eq!(ends("shard-imagenet", &args).0, 0);
    path
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

const KEYS: [&str; 4] =
    ["train.steps=12", "checkpoint.every=4", "eval.probe_images=0", "images.every=1000"];

#[test]
fn a_spoiled_file_of_a_data_folder_is_named_and_with_the_sound_one_the_same_command_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let sound = shards(folder.path());
    let straight = undisturbed(folder.path(), &sound, &KEYS);
    let (rounds, mut random) = (times(8, 120), Seeded(1));
    let (mut named, mut begun, mut unseen) = (0, 0, 0);
    for round in 0..rounds {
        let (copy, run) = (folder.path().join("data"), folder.path().join("run"));
        copy_folder(&sound, &copy);
        let all = names(&copy);
        // Every second time a shard, which are the most of it.
        let which =
            if round % 2 == 0 { random.below(all.len()) } else { all.len() - 1 - round % 3 };
        let file = copy.join(&all[which]);
        let whole = fs::read(&file).unwrap();
        let mut bytes = whole.clone();
        let how = if round % 5 == 4 {
            // Another file's place.
            bytes = fs::read(copy.join(&all[random.below(all.len())])).unwrap();
            "exchanged"
        } else {
            random.spoil(&mut bytes)
        };
        fs::write(&file, &bytes).unwrap();
        let story = format!("{round}: {} {how}", all[which]);
        let verify = ["verify", "--deep", &text(&copy)].map(str::to_owned);
        let (verified, said) = ends("shard-imagenet", &verify);
        assert!(matches!(verified, 0 | 2), "{story}: {verified} {said}");
        let args = unattended(&copy, &run, &KEYS);
        let (code, said) = ends("trainer", &args);
        assert!(matches!(code, 0..=2), "{story}: {code} {said}");
        if code != 0 {
            // The file, or the folder where it is not the file that is wrong.
            assert!(said.contains(&text(&copy)), "{story}: {said}");
            named += 1;
            begun += usize::from(run.exists());
            fs::write(&file, &whole).unwrap();
            finished(&args);
            assert_same_end(&run, &straight);
        } else if !same_end(&run, &straight) {
            // An image that decodes, to other pixels: a trainer does not know it from what it should be.
            assert!(all[which].ends_with(".tar") && verified == 2, "{story}: {verified} {said}");
            unseen += 1;
        }
        let _ = (fs::remove_dir_all(&run), fs::remove_dir_all(&copy));
    }
    assert!(named > 0 && begun > 0, "{named} of {rounds} noticed, {begun} of them by a run");
    let what = "a data folder with one file cut, bit-flipped, noisy, doubled or exchanged";
    let outcome = "exit code 2 or 1, naming it; with the sound file the same command goes on";
    tell(what, named, outcome, "nothing; the end is bit-equal");
    let what = "a shard of which an image is changed and still decodes";
    let outcome = "trains on it; `shard-imagenet verify` names the shard";
    tell(what, unseen, outcome, "nothing of the run, which has seen other pixels");
}

#[test]
fn what_changes_under_a_run_ends_it_saved_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let sound = shards(folder.path());
    let keys = ["train.steps=60", "checkpoint.every=1000", "eval.probe_images=0"];
    let (rounds, mut random) = (times(4, 60), Seeded(2));
    for round in 0..rounds {
        let (copy, run) = (folder.path().join("data"), folder.path().join("run"));
        copy_folder(&sound, &copy);
        let args = unattended(&copy, &run, &keys);
        let mut child = Background::start(&args);
        child.until(|_| steps(&run) > random.0 % 8);
        let all = names(&copy);
        let which = &all[random.below(all.len())];
        let file = copy.join(which);
        let whole = fs::read(&file).unwrap();
        let mut bytes = whole.clone();
        let how = random.spoil(&mut bytes);
        match round % 3 {
            // In place, and as an editor or rsync does it.
            0 => fs::write(&file, &bytes).unwrap(),
            1 => {
                fs::write(folder.path().join("aside"), &bytes).unwrap();
                fs::rename(folder.path().join("aside"), &file).unwrap();
            }
            _ => fs::remove_file(&file).unwrap(),
        }
        let (said, _) = child.wait();
        let story = format!("{round}: {which} {how}: {} {}", said.code, said.err);
        assert!(matches!(said.code, 0..=2) && !said.err.contains("panicked"), "{story}");
        newest(&run);
        if said.code != 0 {
            assert!(said.err.contains(&text(&copy)), "{story}");
            assert!(saved(&run).unwrap() >= steps(&run), "{story}");
            fs::write(&file, &whole).unwrap();
            finished(&args);
        }
        fs::remove_dir_all(&run).unwrap();
        fs::remove_dir_all(&copy).unwrap();
    }
    let what = "a file of the data folder rewritten, replaced or removed under a run";
    let outcome = "goes on with what it reads, or is saved and ends naming it";
    tell(what, rounds, outcome, "nothing");
}

/// A header's checksum, made right again.
fn signed(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// What a tar's header may claim: its place, and what stands there.
const CLAIMS: [(usize, &[u8]); 14] = [
    (124, b"77777777777\0"),                              // a length of 8 GiB
    (124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"), // of 8 EiB, base 256
    (124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), // -1
    (124, b"00000000000\0"),                              // none
    (124, b"-0000000001\0"),
    (156, b"x"), // a pax header
    (156, b"g"), // one for all that follow
    (156, b"L"), // a long name
    (156, b"S"), // sparse
    (156, b"2"), // a link
    (156, b"5"), // a folder
    (0, b"../../outside.jpg\0"),
    (0, b"/outside.jpg\0"),
    (0, b"\0"), // no name
];

#[test]
fn a_hostile_tar_ends_in_words_and_touches_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let source = fs::read(data().join("train-000000.tar")).unwrap();
    let (rounds, mut random) = (times(CLAIMS.len() + 3, CLAIMS.len() + 200), Seeded(3));
    for round in 0..rounds {
        let inside = folder.path().join("a/b");
        let (tars, built, run) = (inside.join("tars"), inside.join("built"), inside.join("run"));
        fs::create_dir_all(&tars).unwrap();
        let mut bytes = source.clone();
        let how = match CLAIMS.get(round) {
            Some((at, claim)) => {
                // The third member's header, where its index in 512-byte blocks is known by looking for it.
                let is_header = |block: &[u8]| &block[257..262] == b"ustar";
                let blocks: Vec<_> = bytes.chunks_exact(512).map(is_header).collect();
                let third = blocks.iter().enumerate().filter(|(_, is)| **is).nth(2).unwrap().0;
                let header = &mut bytes[third * 512..(third + 1) * 512];
                header[*at..at + claim.len()].copy_from_slice(claim);
                signed(header);
                "forged"
            }
            None => random.spoil(&mut bytes),
        };
        fs::write(tars.join("train-000000.tar"), &bytes).unwrap();
        let (tars, built) = (text(&tars), text(&built));
        let build = ["build", "--layout", "webdataset", "--input", &tars, "--output", &built];
        let commands: [(&str, Vec<String>); 4] = [
            ("shard-imagenet", ["inspect", &tars].map(str::to_owned).into()),
            ("shard-imagenet", ["verify", "--deep", &tars].map(str::to_owned).into()),
            ("shard-imagenet", build.map(str::to_owned).into()),
            ("trainer", unattended(Path::new(&tars), &run, &["train.steps=1", "train.batch=2"])),
        ];
        for (program, args) in &commands {
            let (code, said) = ends(program, args);
            assert!(matches!(code, 0 | 2), "{round} {how} {args:?}: {code} {said}");
            // Not one of them without a cause.
            assert!(code == 0 || said.contains(&text(&inside)), "{round} {how} {args:?}: {said}");
        }
        assert_eq!(names(folder.path()), ["a"], "{round} {how}");
        assert_eq!(names(&folder.path().join("a")), ["b"], "{round} {how}");
        fs::remove_dir_all(folder.path().join("a")).unwrap();
    }
    let what = "a tar with forged headers, or cut, bit-flipped, noisy or doubled, in every program";
    tell(what, rounds, "read as far as it goes, or exit code 2, naming it", "nothing");
}

//! Seek points of data folders and of other programs' shards.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::tempdir;
use turbojpeg::Subsamp;

use crate::support::{
    build, contents, jpeg_of, names, png, program, run, samples, tar_of, text, write,
};

const FILE: &str = "seek-points.bin";

/// Images that gain by seek points, one that is progressive, one that is no JPEG.
fn images(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count)
        .map(|n| match n % 4 {
            3 if n % 8 == 3 => (format!("{n:03}.jpg"), jpeg_of(200, 160, n, Subsamp::None, true)),
            3 => (format!("{n:03}.png"), png(40, 30, n)),
            _ => (format!("{n:03}.jpg"), jpeg_of(200 + n, 160, n, Subsamp::Sub2x2, false)),
        })
        .collect()
}

#[test]
fn a_build_that_keeps_its_files_makes_seek_points_and_rewritten_files_need_none() {
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    for (name, bytes) in images(16) {
        write(source.join("class").join(name), bytes);
    }
    let (kept, rewritten) = (dir.path().join("kept"), dir.path().join("rewritten"));
    build("imagefolder", &source, &kept, &["--keep"]).ok();
    assert!(names(&kept).contains(&FILE.to_owned()));
    build("imagefolder", &source, &rewritten, &[]).ok();
    assert!(!names(&rewritten).contains(&FILE.to_owned()));
    // Made again it is the same, and nothing else is.
    let before = contents(&kept);
    let ran = run(&["seek-points", text(&kept)]).ok();
    assert!(ran.out.contains("12 JPEGs have seek points"), "{}", ran.out);
    assert!(ran.out.contains("4 images need none, or can have none"), "{}", ran.out);
    assert!(ran.out.contains(text(&kept.join(FILE))), "{}", ran.out);
    assert_eq!(contents(&kept), before);
    let ran = run(&["verify", "--deep", text(&kept)]).ok();
    assert!(ran.out.contains("12 have seek points"), "{}", ran.out);
    let ran = run(&["inspect", text(&kept), "--json"]).ok();
    let json: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(json["seek_points"], 12);
    assert!(run(&["inspect", text(&kept)]).ok().out.contains("12 images have seek points"));
    // One that is damaged, or of another folder, is told of, and how to mend it.
    let mut other = before[FILE].clone();
    other[40] ^= 1;
    for (bytes, what) in
        [(&other[..], "the points of sample 0 are damaged"), (&before[FILE][..100], "it is cut")]
    {
        write(kept.join(FILE), bytes);
        for depth in [&["verify"][..], &["verify", "--deep"]] {
            let ran = run(&[depth, &[text(&kept)]].concat()).refused(what);
            assert!(
                ran.err.contains("or remove it") && !ran.err.contains("build the folder again"),
                "{}",
                ran.err
            );
        }
    }
    let ran = run(&["inspect", text(&kept)]).ok();
    assert!(
        ran.err.contains("not used") && ran.err.contains("shard-imagenet seek-points"),
        "{}",
        ran.err
    );
    run(&["seek-points", text(&kept)]).ok();
    assert_eq!(contents(&kept), before);
}

#[test]
fn shards_of_another_program_get_seek_points_and_stay_as_they_are() {
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    let files: Vec<(String, Vec<u8>)> = images(8)
        .into_iter()
        .flat_map(|(name, bytes)| {
            let label = format!("{}.cls", name.split_once('.').expect("an extension").0);
            [(name, bytes), (label, b"3".to_vec())]
        })
        .collect();
    let files: Vec<_> = files.iter().map(|(name, bytes)| (&**name, bytes.clone())).collect();
    write(source.join("train-0.tar"), tar_of(&files));
    let before = samples(&source);
    let ran = run(&["seek-points", text(&source)]).ok();
    assert!(ran.out.contains("6 JPEGs have seek points"), "{}", ran.out);
    assert_eq!(names(&source), ["index.bin", FILE, "train-0.tar"]);
    assert_eq!(samples(&source), before);
    run(&["verify", "--deep", text(&source)]).ok();
    // A home that is none, as of many services, stops nothing.
    for home in ["/dev/null", "/nowhere"] {
        let mut command = program(&["verify", text(&source)]);
        let output =
            command.env_remove("XDG_CACHE_HOME").env("HOME", home).output().expect("it starts");
        assert!(output.status.success(), "{output:?}");
    }
    run(&["seek-points", "http://127.0.0.1:9/x"]).refused("folders of this machine");
    run(&["seek-points", text(&dir.path().join("nothing"))]).refused("nothing");
}

#[test]
fn a_killed_or_doubled_seek_points_leaves_what_the_next_one_mends() {
    let dir = tempdir().expect("a folder");
    let source = dir.path().join("in");
    for (name, bytes) in images(400) {
        write(source.join("class").join(name), bytes);
    }
    let kept = dir.path().join("kept");
    build("imagefolder", &source, &kept, &["--keep"]).ok();
    let whole = contents(&kept);
    fs::remove_file(kept.join(FILE)).expect("removed");
    let start = || {
        let mut command = program(&["seek-points", text(&kept), "--threads", "1"]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
    };
    let mut killed = 0;
    for kill in 0..8 {
        let mut child = start();
        std::thread::sleep(Duration::from_millis(5 * kill));
        killed += u32::from(child.try_wait().expect("asked").is_none());
        child.kill().expect("killed");
        child.wait().expect("ended");
        let there = fs::read(kept.join(FILE)).ok();
        assert!(there.is_none_or(|there| there == whole[FILE]), "half a file under its own name");
        run(&["verify", "--deep", text(&kept)]).ok();
    }
    assert!(killed > 0);
    // Several at once: each ends well or says that another one is at it, and the file is whole.
    let children: Vec<_> = (0..4).map(|_| start()).collect();
    for child in children {
        let output = child.wait_with_output().expect("ended");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || err.contains("another process is making it"), "{err}");
    }
    assert_eq!(contents(&kept), whole);
    // A stop leaves nothing.
    fs::remove_file(kept.join(FILE)).expect("removed");
    let child = start();
    std::thread::sleep(Duration::from_millis(30));
    let pid = child.id().to_string();
    let sent = std::process::Command::new("kill").args(["-TERM", &pid]).status();
    assert!(sent.expect("kill starts").success());
    let output = child.wait_with_output().expect("ended");
    if output.status.code() == Some(75) {
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(err.contains("interrupted; nothing was changed"), "{err}");
        assert!(!names(&kept).iter().any(|name| name.contains("seek")));
    } else {
        assert!(output.status.success() || output.status.code().is_none(), "{output:?}");
    }
}

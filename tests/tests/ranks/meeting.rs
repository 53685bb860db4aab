//! How ranks find each other, or say why they do not.

use super::*;

#[test]
fn ranks_with_different_configurations_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (out, port) = (folder.path().join("run"), free_port());
    let rates = ["opt.lr_d=0.25", "opt.lr_d=0.5"];
    let ranks = ["0", "1"].map(|rank| {
        let rate = rates[rank.parse::<usize>().unwrap()];
        by_hand(rank, &port, &tiny_run(data(), &out, &[rate]))
    });
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        let words = "rank 1 has opt.lr_d = 0.5, rank 0 has 0.25";
        assert!(said.contains(words), "{said}");
    }
    assert!(!out.exists());
}

#[test]
fn ranks_that_cannot_meet_say_so_in_one_line_and_do_not_hang() {
    let folder = tempfile::tempdir().unwrap();
    let args = tiny_run(data(), &folder.path().join("run"), &["dist.join=2"]);
    // Rank 1 finds no store, rank 0 no rank 1.
    for (rank, words) in [("1", "no store at 127.0.0.1:"), ("0", "did not come within 2 s")] {
        let begun = Instant::now();
        let output = by_hand(rank, &free_port(), &args).wait_with_output().unwrap();
        let said = said(&output);
        assert!(begun.elapsed() < Duration::from_secs(8), "{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_rank_that_lives_but_does_not_come_to_a_collective_is_named() {
    // Rank 1 waits for images that never come.
    let server = Server::folder(data(), Faults { held: Some(".tar"), ..Faults::default() });
    let folder = tempfile::tempdir().unwrap();
    let (out, port) = (folder.path().join("run"), free_port());
    let ranks = [("0", data()), ("1", Path::new(&server.url))]
        .map(|(rank, data)| by_hand(rank, &port, &tiny_run(data, &out, &["dist.timeout=3"])));
    let begun = Instant::now();
    let pid = ranks[1].id();
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        let said = said(&output);
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}: {said}", begun.elapsed());
        assert_eq!(output.status.code(), Some(1), "{said}");
        let words = format!("pid {pid}) is alive, but the others have waited for it for 3 s");
        assert!(said.contains("error: rank 1 (host ") && said.contains(&words), "{said}");
    }
}

#[test]
fn a_fake_world_says_what_each_rank_would_do_and_refuses_what_a_real_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let fake = |ranks: &str, overrides: &[&str]| {
        let mut args = tiny_run(data(), &out, overrides);
        args.extend(["--dry-run", "--fake-world", ranks].map(str::to_owned));
        trainer(&borrowed(&args))
    };
    let said = fake("1,4", &["train.micro_batch=4"]);
    assert_eq!(said.code, 0, "{}", said.err);
    for words in [
        "as 1 ranks: an update of 8 images is 2 pass(es) of 4 on each rank",
        "as 4 ranks: an update of 8 images is 2 pass(es) of 1 on each rank",
        "rank 0 reads positions 0, 4; rank 3 3, 7",
        "gradient of D: 2 sum(s) a step, ",
        "gradient of E: 1 sum(s) a step, ",
        "in the first 3 batches the ranks together read what one process reads",
    ] {
        assert!(said.out.contains(words), "{words} is not in {}", said.out);
    }
    // In the words of a real start.
    let refused = fake("4,3", &[]);
    let real = launch(3, &tiny_run(data(), &out, &[]));
    let words = "3 ranks do not divide a pass of 8 images";
    for said in [&refused, &real] {
        assert!(said.code == 2 && said.err.contains(words), "{} {}", said.code, said.err);
    }
    assert_eq!((fake("0", &[]).code, fake("2", &["train.batch=64"]).code), (2, 2));
    assert!(!out.exists());
}

use super::*;

#[test]
fn a_log_that_was_moved_away_is_told_of_and_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let [path, moved] = ["a.jsonl", "b.jsonl"].map(|name| folder.path().join(name));
    let mut lines = Lines::open(&path, 0).unwrap();
    let write = |lines: &mut Lines, step: u64| {
        lines.write(&serde_json::json!({"step": step})).unwrap();
    };
    write(&mut lines, 1);
    lines.sync().unwrap();
    type Hurt = fn(&Path, &Path) -> std::io::Result<()>;
    let hurts: [Hurt; 2] = [|from, to| fs::rename(from, to), |from, _| fs::remove_file(from)];
    for hurt in hurts {
        hurt(&path, &moved).unwrap();
        write(&mut lines, 2);
        let error = lines.sync().unwrap_err().to_string();
        assert!(error.contains("removed or moved"), "{error}");
        write(&mut lines, 3);
        lines.sync().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"step\":3") && !text.contains("\"step\":2"), "{text}");
    }
    let text = fs::read_to_string(&moved).unwrap();
    assert!(text.contains("\"step\":1") && text.contains("\"step\":2"), "{text}");
}

#[test]
fn a_line_cut_off_hides_no_other_and_what_cannot_be_read_is_not_taken_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = Lines::open(&folder.path().join("metrics.jsonl"), 0).unwrap();
    lines.write(&serde_json::json!({"metric": "fd", "step": 3, "fd": 1})).unwrap();
    let of_commands = folder.path().join(evaluations::FILE);
    let mut text = br#"{"metric":"knn","step":8,"top1":9,"checkpoint":"3f"}"#.to_vec();
    text.extend(b"\n{\"host\":\"b\xc3"); // half a letter
    fs::write(&of_commands, text).unwrap();
    assert_eq!(lines.best("knn.top1").unwrap(), Some(8));
    fs::remove_file(&of_commands).unwrap();
    fs::create_dir(&of_commands).unwrap();
    assert!(matches!(lines.best("fd.fd").unwrap_err(), Error::Io { .. }));
}

#[test]
fn the_best_step_is_that_of_the_metric_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = Lines::open(&folder.path().join("metrics.jsonl"), 0).unwrap();
    let found = [("knn", 1, 30.0), ("knn", 2, 50.0), ("fd", 3, 9.0), ("fd", 4, 7.0)];
    for (metric, step, top1) in found {
        let line = serde_json::json!({"metric": metric, "step": step, "top1": top1});
        lines.write(&line).unwrap();
    }
    for weights in ["initial", "live"] {
        let other = serde_json::json!(
            {"metric": "knn", "step": 9, "top1": 99, "weights": weights}
        );
        lines.write(&other).unwrap();
    }
    let by_command = serde_json::json!(
        {"metric": "knn", "step": 8, "top1": 98, "checkpoint": "3f", "weights": "average"}
    );
    lines.write(&by_command).unwrap();
    let elsewhere = serde_json::json!({"metric": "knn", "step": 7, "top1": 97, "split": "val"});
    lines.write(&elsewhere).unwrap();
    let alone = serde_json::json!({"metric": "is", "step": 6, "best": 1, "checkpoint": "3f"});
    lines.write(&alone).unwrap();
    for (measure, step) in [
        ("knn.top1", Some(2)),
        ("-knn.top1", Some(1)),
        ("-fd.top1", Some(4)),
        ("is.top1", None),
        ("is.best", Some(6)),
    ] {
        assert_eq!(lines.best(measure).unwrap(), step, "{measure}");
    }
}

#[test]
fn the_panel_says_speed_losses_and_time_left() {
    let line = r#"{"step": 100, "loss_d": 4.217, "loss_g": -0.5, "loss_e": 1.0,
        "images_per_s": 128.0, "images_read_per_s": 384.0, "data_wait_percent": 0.25,
        "step_seconds": 0.5, "bad_images": 0, "epoch": 0, "gflop_per_s": 41.0, "memory_gb": 1.26,
        "saturation_real": 0.5, "saturation_fake": 0.75, "pixel_spread": 1, "feature_spread": 1,
        "nearest": 0.8, "roughness": 1, "latent_spread": 1, "reconstruction": 0.375,
        "sigma_g": 1, "sigma_d": 1, "grad_g": 1, "grad_e": 1, "grad_d": 1}"#;
    let mut line: StatsLine = serde_json::from_str(line).unwrap();
    let seconds = Duration::from_secs;
    let [speed, model] = progress(&line, seconds(120), None);
    assert_eq!(speed, "128 images/s  41 GFLOP/s  wait 0.2 %  1.3 GB  2 minutes left");
    assert_eq!(
        model,
        "D 4.22 G -0.50 E 1.00  variety 0.80  reconstruction 0.38  saturated 50/75 %  gradients 1/1/1"
    );
    let later = progress(&line, seconds(240), Some(seconds(180)));
    assert!(later[0].ends_with("4 minutes left  saved 3 minutes ago"), "{}", later[0]);
    line.mfu_percent = Some(25.04);
    assert!(progress(&line, seconds(120), None)[0].contains("41 GFLOP/s (25.0 % MFU)  wait"));
}

#[test]
fn the_time_left_is_that_of_the_steps_or_of_the_run_s_minutes() {
    let left = |limit| Progress::new(0, 340, limit).left(100, 0.5).as_secs();
    assert_eq!(left(None), 120);
    assert_eq!(left(Some(Duration::from_secs(600))), 120);
    assert!((25..=30).contains(&left(Some(Duration::from_secs(30)))));
    assert_eq!(left(Some(Duration::ZERO)), 0);
}

#[test]
fn a_resumed_log_drops_what_came_after_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats.jsonl");
    fs::write(&path, b"{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n\xff\n{\"ste\xc3").unwrap();
    let mut lines = Lines::open(&path, 2).unwrap();
    lines.write(&serde_json::json!({"step": 3, "again": 1})).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let time = text.split("\"time\":").nth(1).unwrap();
    let expected =
        format!("{{\"step\":1}}\n{{\"step\":2}}\n{{\"again\":1,\"step\":3,\"time\":{time}");
    assert_eq!(text, expected);
}

#[test]
fn what_the_disk_does_not_take_is_written_later_in_order_and_no_line_is_torn() {
    // A file system of 64 KiB would ask for rights; /dev/full is a full disk that all may use.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats.jsonl");
    let mut lines = Lines::open(&path, 0).unwrap();
    lines.write(&serde_json::json!({"step": 1})).unwrap();
    lines.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
    for step in [2, 3] {
        let error = lines.write(&serde_json::json!({"step": step})).unwrap_err().to_string();
        assert!(error.contains("No space left"), "{error}");
        if step == 2 {
            lines.file = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        }
    }
    assert_eq!((lines.missing(), lines.has(3).unwrap()), (2, true));
    lines.write(&serde_json::json!({"step": 4})).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let steps: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].clone())
        .collect();
    assert_eq!(serde_json::json!(steps), serde_json::json!([1, 2, 3, 4]));
    assert_eq!(lines.missing(), 0);
}

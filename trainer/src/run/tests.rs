use std::fs::File;
use std::path::Path;

use pipeline::Cursor;
use tch::Kind;

use super::start::load;
use super::*;
use crate::checkpoint;
use crate::checkpoint::Loaded;
use crate::config::Origin;

/// A folder of one shard with eight pictures of 32 px.
fn shard(folder: &Path) {
    let mut tar = tar::Builder::new(File::create(folder.join("train-000000.tar")).unwrap());
    for i in 0..8u8 {
        let mut jpeg = std::io::Cursor::new(vec![]);
        let picture = image::RgbImage::from_fn(32, 32, |x, y| {
            image::Rgb([(x * 8) as u8, (y * 8) as u8, 30 * i])
        });
        picture.write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
        for (kind, bytes) in [("jpg", jpeg.into_inner()), ("cls", vec![b'0' + i % 2])] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{i}.{kind}"), &bytes[..]).unwrap();
        }
    }
    tar.finish().unwrap();
}

/// Of a tiny run on pictures made in `folder`.
fn config(folder: &Path, more: &str) -> Config {
    let data = folder.join("data");
    fs::create_dir(&data).unwrap();
    shard(&data);
    let keys = ["g.ch=4", "f.ch=4", "h.width=16", "j.width=16", "e.depth=8", "e.mlp_width=16"];
    let fixed = ["train.batch=4", "train.steps=6", "log.every=1", "health.patience=2", more];
    let mut all: Vec<_> = keys.into_iter().chain(fixed).map(str::to_owned).collect();
    all.push(format!("data.dir={}", data.display()));
    Config::resolve(&Origin::Preset("demo"), &all).unwrap()
}

fn begin(config: Config, folder: &Path, world: &World) -> Run {
    let out = folder.join("run");
    let data = open_data(&config, "train").unwrap();
    let mut place = Place::alone();
    place.rank = world.rank();
    let mut session = Session::open(&out, Begin::New, &place).unwrap();
    if world.leads() {
        session.create(&config).unwrap();
    }
    let feed = Feed::start(&config, &data, Cursor::default(), Device::Cpu, world).unwrap();
    let state = TrainState::in_world(&config.recipe(), world, (Kind::Float, Device::Cpu), true);
    let loaded = Loaded { state, cursor: Cursor::default() };
    Run::new(session, config, data, feed, loaded, &Stop::default()).unwrap()
}

fn run(folder: &Path, on_fault: &str) -> Run {
    let config = config(folder, &format!("health.on_fault={on_fault}"));
    begin(config, folder, &World::alone())
}

/// As a bit flipped in memory would.
fn poison(run: &Run) {
    let _ = run.state.d.params.flat().narrow(0, 0, 1).fill_(f64::NAN);
}

fn incidents(folder: &Path) -> Vec<(u64, String)> {
    let text = fs::read_to_string(folder.join("run/incidents.jsonl")).unwrap();
    let parse = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        (value["step"].as_u64().unwrap(), value["done"].as_str().unwrap().to_owned())
    };
    text.lines().map(parse).collect()
}

#[test]
fn a_faulty_run_goes_back_to_the_last_checkpoint_and_ends_sound() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = run(folder.path(), "rollback");
    assert!(run.advance().unwrap().is_some() && run.advance().unwrap().is_some());
    assert!(run.check_last_step().unwrap());
    run.save().unwrap();
    poison(&run);
    // Found in step 3, read during step 4.
    assert!(run.advance().unwrap().is_some());
    assert!(run.advance().unwrap().is_none());
    assert_eq!((run.state.step, run.state.rollbacks), (2, 1));
    // Twelve batches of four were read, two an epoch, and are not read again.
    assert_eq!(run.cursor.batch + 2 * run.cursor.epoch, 12);
    for _ in 0..3 {
        assert!(run.advance().unwrap().is_some());
    }
    assert!(run.check_last_step().unwrap());
    assert_eq!(incidents(folder.path()), [(3, "rollback".to_owned())]);
    run.save().unwrap();
    run.write_out().unwrap();
    let path = checkpoint::newest(&folder.path().join("run/checkpoints")).unwrap();
    assert_eq!(checkpoint::read_manifest(&path).unwrap().rollbacks, 1);
}

#[test]
fn a_halted_run_saves_nothing_faulty_and_a_skipping_one_loses_patience() {
    for (policy, done) in [("halt", vec!["halt"]), ("skip", vec!["skip", "skip", "halt"])] {
        let folder = tempfile::tempdir().unwrap();
        let mut run = run(folder.path(), policy);
        run.save().unwrap();
        poison(&run);
        let error = run.run().unwrap_err().to_string();
        assert!(error.contains("loss_d") && error.contains("step"), "{error}");
        let path = checkpoint::newest(&folder.path().join("run/checkpoints")).unwrap();
        assert_eq!(checkpoint::read_manifest(&path).unwrap().step, 0);
        let steps = (1..).zip(done).map(|(step, what)| (step, what.to_owned()));
        assert_eq!(incidents(folder.path()), steps.collect::<Vec<_>>());
    }
}

/// What two ranks of a run make of a story, rank 0's first.
fn on_two_ranks<T: Send + 'static>(
    folder: &Path,
    more: &str,
    story: fn(Run, &World) -> T,
) -> [T; 2] {
    let config = config(folder, more);
    let ranks = Place::threads(2).into_iter().map(|place| {
        let (config, folder) = (config.clone(), folder.to_owned());
        std::thread::spawn(move || {
            let world =
                World::join(place, Device::Cpu, config.limits(), vec![], &Stop::default()).unwrap();
            let told = story(begin(config, &folder, &world), &world);
            (told, world)
        })
    });
    let ranks: Vec<_> = ranks.collect();
    // Rank 0, which serves the store, goes last.
    let mut ended: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
    let mut next = || ended.pop().unwrap().0;
    let (second, first) = (next(), next());
    [first, second]
}

#[test]
fn a_rank_whose_weights_drift_stops_all_and_the_tensor_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let ranks = on_two_ranks(folder.path(), "dist.check_every=2", |mut run, world| {
        assert!(run.advance().unwrap().is_some());
        let name = run.state.d.params.parameters().next().unwrap().0.to_owned();
        if world.rank() == 1 {
            let _ = run.state.d.params.flat().narrow(0, 0, 1).fill_(0.5);
        }
        (run.run().unwrap_err(), name)
    });
    for (error, name) in ranks {
        let drifted = format!("{name} of discriminator");
        assert!(
            matches!(&error, Error::Ranks(dist::Error::Drift { tensor }) if *tensor == drifted),
            "{error}"
        );
    }
}

#[test]
fn a_fault_on_one_rank_takes_all_back_to_the_checkpoint_and_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let ranks = on_two_ranks(folder.path(), "health.on_fault=rollback", |mut run, world| {
        assert!(run.advance().unwrap().is_some() && run.advance().unwrap().is_some());
        assert!(run.check_last_step().unwrap());
        run.save().unwrap();
        if world.rank() == 1 {
            poison(&run);
        }
        assert!(run.advance().unwrap().is_some());
        assert!(run.advance().unwrap().is_none());
        assert_eq!((run.state.step, run.state.rollbacks), (2, 1));
        let weights = run.state.d.params.flat().shallow_clone();
        assert_eq!(run.run().unwrap().steps, 6);
        Vec::<f32>::try_from(weights).unwrap()
    });
    assert!(ranks[0] == ranks[1] && ranks[0].iter().all(|weight| weight.is_finite()));
    assert_eq!(incidents(folder.path()), [(3, "rollback".to_owned())]);
}

/// The run in `folder` as another session takes it up.
fn again(config: &Config, folder: &Path) -> Run {
    let world = World::alone();
    let session = Session::open(&folder.join("run"), Begin::Continue, &Place::alone()).unwrap();
    let data = open_data(config, "train").unwrap();
    let (_, loaded) = load(config, &session.out, &data, Device::Cpu, &world, |_| Ok(())).unwrap();
    let feed = Feed::start(config, &data, loaded.cursor.unbound(), Device::Cpu, &world).unwrap();
    Run::new(session, config.clone(), data, feed, loaded, &Stop::default()).unwrap()
}

#[test]
fn a_session_that_goes_back_to_its_own_start_and_to_a_checkpoint_step_says_what_is_true() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "health.on_fault=rollback");
    let mut first = begin(config.clone(), folder.path(), &World::alone());
    assert!(first.advance().unwrap().is_some() && first.advance().unwrap().is_some());
    assert!(first.check_last_step().unwrap());
    first.save_at_the_end().unwrap();
    drop(first);
    // The fault shows in the first step of the session, at whose end a checkpoint is due.
    let config = config.with(&["checkpoint.every=3".to_owned()]).unwrap();
    let run = again(&config, folder.path());
    poison(&run);
    let summary = run.run().unwrap();
    assert_eq!((summary.steps, summary.troubles.len()), (6, 0));
    let text = fs::read_to_string(folder.path().join("run/stats.jsonl")).unwrap();
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let speed = line["images_per_s"].as_f64().unwrap();
        assert!(speed > 0.0 && speed < 1e6, "{line}");
    }
    assert_eq!(incidents(folder.path()), [(3, "rollback".to_owned())]);
}

#[test]
fn a_run_that_goes_back_before_its_first_checkpoint_begins_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = run(folder.path(), "rollback");
    run.save().unwrap(); // of step 0, as the loop does
    assert!(run.advance().unwrap().is_some());
    poison(&run);
    let summary = run.run().unwrap();
    assert_eq!(summary.steps, 6);
}

#[test]
fn no_sink_ends_training_and_what_failed_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), "halt");
    let out = folder.path().join("run");
    // Folders in the places of files, and files in those of folders: nothing can be written there.
    fs::remove_dir_all(out.join("images")).unwrap();
    fs::write(out.join("images"), "").unwrap();
    fs::create_dir(out.join("report.html")).unwrap();
    let summary = run.run().unwrap();
    assert_eq!((summary.steps, summary.incomplete), (6, true));
    let told = summary.troubles.join("\n");
    assert!(
        told.contains("picture samples: failed") && told.contains("the report: failed"),
        "{told}"
    );
    // The state is saved, and the last evaluation is owed.
    let newest = checkpoint::newest(&out.join("checkpoints")).unwrap();
    assert_eq!(checkpoint::read_manifest(&newest).unwrap().step, 6);
    assert_eq!(evaluated(&out), None);
}

#[test]
fn a_checkpoint_that_fails_is_tried_again_and_the_last_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = run(folder.path(), "halt");
    run.save_at_the_end().unwrap();
    assert!(run.advance().unwrap().is_some());
    // A file where its folder is to be made.
    let checkpoints = folder.path().join("run/checkpoints");
    let in_the_way = checkpoints.join(".step-00000001.partial");
    fs::write(&in_the_way, "").unwrap();
    run.save().unwrap();
    run.write_out().unwrap();
    assert!(checkpoint::newest(&checkpoints).unwrap().ends_with("step-00000000"));
    assert!(run.save_at_the_end().is_err());
    fs::remove_file(&in_the_way).unwrap();
    run.save().unwrap();
    run.write_out().unwrap();
    assert!(checkpoint::newest(&checkpoints).unwrap().ends_with("step-00000001"));
    let recorder = run.recorder.as_mut().unwrap();
    assert!(recorder.troubles()[0].starts_with("a checkpoint: failed"));
}

#[test]
fn data_that_are_gone_end_a_run_with_its_state_saved() {
    let folder = tempfile::tempdir().unwrap();
    let run = run(folder.path(), "halt");
    let shard = folder.path().join("data/train-000000.tar");
    File::options().write(true).open(shard).unwrap().set_len(100).unwrap();
    let error = run.run().unwrap_err();
    assert!(matches!(error, Error::Data(_)), "{error}");
    let newest = checkpoint::newest(&folder.path().join("run/checkpoints")).unwrap();
    assert!(checkpoint::verify(&newest).is_ok());
    let sessions = fs::read_to_string(folder.path().join("run/sessions.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(sessions.lines().last().unwrap()).unwrap();
    assert_eq!(last["ended"], "failed");
    assert_eq!(checkpoint::read_manifest(&newest).unwrap().step, last["step"].as_u64().unwrap());
}

use super::*;
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
    fs::create_dir_all(&out).unwrap();
    fs::write(out.join("config.toml"), config.to_toml()).unwrap();
    let data = open_data(&config, "train").unwrap();
    let feed = Feed::start(&config, &data, Cursor::default(), Device::Cpu, world).unwrap();
    let state = TrainState::in_world(&config, world, (Kind::Float, Device::Cpu), true);
    Run::new(config, &out, data, feed, state, &Stop::default()).unwrap()
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
    assert!(run.settle().unwrap());
    run.save().unwrap();
    poison(&run);
    // Found in step 3, read during step 4.
    assert!(run.advance().unwrap().is_some());
    assert!(run.advance().unwrap().is_none());
    assert_eq!((run.state.step, run.state.rollbacks), (2, 1));
    // Twelve batches of four were read, two an epoch, and are not read again.
    assert_eq!(run.state.cursor.batch + 2 * run.state.cursor.epoch, 12);
    for _ in 0..3 {
        assert!(run.advance().unwrap().is_some());
    }
    assert!(run.settle().unwrap());
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
        assert!(matches!(&error, Error::Drift { tensor } if *tensor == drifted), "{error}");
    }
}

#[test]
fn a_fault_on_one_rank_takes_all_back_to_the_checkpoint_and_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let ranks = on_two_ranks(folder.path(), "health.on_fault=rollback", |mut run, world| {
        assert!(run.advance().unwrap().is_some() && run.advance().unwrap().is_some());
        assert!(run.settle().unwrap());
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

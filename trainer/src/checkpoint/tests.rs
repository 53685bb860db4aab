mod damage;
mod keeping;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bigbigan_model::images::Images;
use bigbigan_model::random::{Key, Purpose};
use bigbigan_model::state::{PendingDiscriminator, Update};
use bigbigan_model::step::train_step;
use tch::{Tensor, no_grad};

use super::*;
use crate::config::Origin;
use crate::provenance::Provenance;

fn config() -> Config {
    let keys = ["g.ch=4", "f.ch=4", "h.width=16", "j.width=16", "e.depth=8", "e.mlp_width=16"];
    let keys: Vec<_> = keys.map(str::to_owned).into();
    Config::resolve(&Origin::Preset("demo"), &keys).unwrap()
}

const AT: Position = Position { fingerprint: 7, cursor: Cursor::new(0, 0) };

/// As [`super::load_newest`], the state alone.
fn load_newest(
    folder: &Path,
    config: &Config,
    device: Device,
    data: u64,
    world: &World,
    own: impl Fn(&Path) -> Result<()>,
) -> Result<(PathBuf, TrainState)> {
    let found = super::load_newest(folder, config, device, data, world, own);
    found.map(|(path, loaded)| (path, loaded.state))
}

fn writer(folder: &Path) -> Writer {
    let guard = Guard::new(|| Ok(()));
    Writer::new(folder, &config(), Provenance::here(Device::Cpu), guard).unwrap()
}

fn save(folder: &Path, state: &mut TrainState, step: u64, keep: Keep) {
    let mut writer = writer(folder);
    state.step = step;
    writer.save(state, AT, keep).unwrap();
    writer.finish().unwrap();
}

const ALL: Keep = Keep { last: 99, every: 0, best: None };

/// A batch, another for every number.
fn images(number: u64) -> Images {
    let key = Key { seed: number, purpose: Purpose::Evaluate, step: 0, update: 0 };
    let large = key.normal(0..8, 3 * 32 * 32, Device::Cpu).view([8, 3, 32, 32]).tanh();
    let small = large.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
    Images { large, small }
}

#[test]
fn a_run_that_ends_between_any_updates_goes_on_as_if_it_had_not() {
    let keys = ["g.ch=4", "f.ch=4", "h.width=16", "j.width=16", "e.depth=8", "e.mlp_width=16"];
    let keys = keys.into_iter().chain(["train.batch=8", "train.d_steps=3", "beyond.contrast=1"]);
    let keys: Vec<_> = keys.map(str::to_owned).collect();
    let config = Config::resolve(&Origin::Preset("demo"), &keys).unwrap();
    let steps = |state: &mut TrainState, batches: std::ops::Range<u64>| {
        let mut batches = batches;
        let mut next = || batches.next().map(images).ok_or(());
        let mut last = None;
        while let Ok(losses) = train_step(&config.recipe(), state, &mut next) {
            last = Some([losses.d, losses.g, losses.norms, losses.faults]);
        }
        last.map(|all| all.map(|t| Vec::<f32>::try_from(t.reshape([-1])).unwrap()))
    };
    // Two steps of four batches.
    let mut straight = TrainState::new(&config.recipe(), Device::Cpu, true);
    let said = steps(&mut straight, 0..8);
    for end in 4..8 {
        let folder = tempfile::tempdir().unwrap();
        let mut state = TrainState::new(&config.recipe(), Device::Cpu, true);
        let _ = steps(&mut state, 0..end);
        save(folder.path(), &mut state, 1, ALL);
        let (path, mut state) =
            load_newest(folder.path(), &config, Device::Cpu, 7, &World::alone(), |_| Ok(()))
                .unwrap();
        assert!(path.ends_with(name_of(1, end as u32 - 4)), "{}", path.display());
        assert_eq!(steps(&mut state, end..8), said, "ended after {end} updates");
        assert_eq!(state.step, 2);
        let all = contents(&state).into_iter().zip(contents(&straight));
        for ((_, found), (file, expected)) in all {
            for ((name, a), (_, b)) in found.iter().zip(&expected) {
                assert!(a.equal(b), "{name} of {file} after {end} updates");
            }
        }
    }
}

#[test]
fn losses_past_the_paper_can_join_a_run_and_leave_it() {
    let (plain, folder) = (config(), tempfile::tempdir().unwrap());
    let further = plain.with(&["beyond.contrast=1".to_owned()]).unwrap();
    let loaded = |config: &Config| {
        load_newest(folder.path(), config, Device::Cpu, 7, &World::alone(), |_| Ok(())).unwrap().1
    };
    let mut state = TrainState::new(&plain.recipe(), Device::Cpu, true);
    state.step = 3;
    save(folder.path(), &mut state, 1, ALL);
    let joined = loaded(&further);
    let fresh = TrainState::new(&further.recipe(), Device::Cpu, true);
    let [a, b] = [&joined, &fresh].map(|state| state.further.as_ref().unwrap());
    assert_eq!((a.params.flat(), a.adam.steps()), (b.params.flat(), 0));
    assert_eq!(joined.g.live.params.flat(), state.g.live.params.flat());
    assert_eq!(a.adam.v.abs().max().double_value(&[]), 0.0);
    let mut state = joined;
    state.step = 4;
    state.further.as_mut().unwrap().adam.set_steps(5);
    save(folder.path(), &mut state, 1, ALL);
    assert_eq!(loaded(&further).further.unwrap().adam.steps(), 5);
    assert!(loaded(&plain).further.is_none());
}

#[test]
fn a_checkpoint_between_updates_is_newer_than_that_of_its_step_and_is_not_kept_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    let part = || {
        let number = |value: f32| Tensor::from(value);
        let update = Update { norm: number(f32::NAN), fault: number(1.0) };
        Some(PendingDiscriminator { updates: 1, loss: number(0.5), update })
    };
    let mut writer = writer(folder.path());
    state.step = 1;
    writer.save(&state, AT, ALL).unwrap();
    writer.finish().unwrap();
    assert_eq!(writer.saved().unwrap().unwrap().name, "step-00000001");
    assert_eq!(writer.saved().unwrap(), None);
    state.pending_d = part();
    save(folder.path(), &mut state, 1, ALL);
    let newest = newest(folder.path()).unwrap();
    assert!(newest.ends_with("step-00000001+1"), "{}", newest.display());
    let found = load(&newest, &config(), Device::Cpu, 7, &World::alone()).unwrap().state;
    let d = found.pending_d.unwrap();
    let numbers = [&d.loss, &d.update.norm, &d.update.fault].map(|t| t.double_value(&[]));
    assert!(numbers[0] == 0.5 && numbers[1].is_nan() && numbers[2] == 1.0, "{numbers:?}");
    state.pending_d = None;
    save(folder.path(), &mut state, 2, Keep { last: 1, every: 1, best: Some(1) });
    let names: Vec<_> = list(folder.path()).unwrap().into_iter().map(|(_, p)| p).collect();
    assert_eq!(names, [1, 2].map(|step| folder.path().join(name_of(step, 0))));
}

#[test]
fn the_second_checkpoint_of_a_writer_holds_the_state_of_its_own_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    let mut writer = writer(folder.path());
    writer.prepare(&state).unwrap();
    for step in 1..=3 {
        state.step = step;
        let _ = no_grad(|| state.d.params.flat().shallow_clone().g_add_scalar_(1.0));
        writer.save(&state, AT, ALL).unwrap();
    }
    writer.finish().unwrap();
    let (_, found) =
        load_newest(folder.path(), &config(), Device::Cpu, 7, &World::alone(), |_| Ok(())).unwrap();
    assert!(found.step == 3 && found.d.params.flat().equal(state.d.params.flat()));
}

#[test]
fn a_checkpoint_written_again_is_never_missing_and_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    for rollbacks in 0..2 {
        state.rollbacks = rollbacks;
        save(folder.path(), &mut state, 3, ALL);
        let newest = newest(folder.path()).unwrap();
        assert_eq!(read_manifest(&newest).unwrap().rollbacks, rollbacks);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn what_the_system_does_not_read_is_tried_again_and_is_no_damage() {
    let failing = |times: usize| {
        let mut tries = 0;
        move || {
            tries += 1;
            let stale = std::io::Error::from_raw_os_error(rustix::io::Errno::STALE.raw_os_error());
            if tries <= times { Err(unread(Path::new("a"), stale)) } else { Ok(tries) }
        }
    };
    assert_eq!(patiently(failing(3)).unwrap(), 4);
    assert!(matches!(patiently(failing(99)).unwrap_err(), Error::Io { .. }));
    // The newest cannot be read for a reason of the system: none before it is taken, none set aside.
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    save(folder.path(), &mut state, 1, ALL);
    save(folder.path(), &mut state, 2, ALL);
    let manifest = folder.path().join(name_of(2, 0)).join("manifest.json");
    fs::remove_file(&manifest).unwrap();
    std::os::unix::fs::symlink("manifest.json", &manifest).unwrap(); // ELOOP
    let loaded = load_newest(folder.path(), &config(), Device::Cpu, 7, &World::alone(), |_| Ok(()));
    assert!(matches!(loaded.unwrap_err(), Error::Io { .. }));
    assert!(matches!(newest(folder.path()).unwrap_err(), Error::Io { .. }));
    fs::remove_file(&manifest).unwrap();
    assert!(newest(folder.path()).unwrap().ends_with(name_of(1, 0)));
}

#[test]
fn the_newest_is_found_while_others_come_and_go() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    save(folder.path(), &mut state, 1, ALL);
    let path = |step| folder.path().join(name_of(step, 0));
    let begun = std::time::Instant::now();
    verify(&path(1)).unwrap();
    let verified = begun.elapsed();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            // As a run that keeps one, a little more often than one is read.
            for step in 1.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let aside = folder.path().join("aside");
                fs::create_dir(&aside).unwrap();
                for file in fs::read_dir(path(step)).unwrap() {
                    let file = file.unwrap();
                    fs::hard_link(file.path(), aside.join(file.file_name())).unwrap();
                }
                let mut manifest = read_manifest(&aside).unwrap();
                manifest.step += 1;
                write_manifest(&aside, &mut manifest).unwrap();
                fs::rename(&aside, path(step + 1)).unwrap();
                writer::remove(&path(step)).unwrap();
                // On a machine that has become slower, too, one is read at last.
                std::thread::sleep(verified.mul_f64(1.5 + step as f64 / 20.0));
            }
        });
        let found: Vec<_> = (0..20).map(|_| newest(folder.path())).collect();
        done.store(true, Ordering::Relaxed);
        assert!(found.iter().all(Result::is_ok), "{found:?}");
    });
}

#[test]
fn one_that_cannot_be_looked_at_is_passed_over_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    save(folder.path(), &mut state, 1, ALL);
    std::os::unix::fs::symlink("/nowhere", folder.path().join(name_of(2, 0))).unwrap();
    assert!(newest(folder.path()).unwrap().ends_with(name_of(1, 0)));
}

#[test]
fn a_name_is_of_a_step_or_of_updates_of_one_and_of_nothing_else() {
    for (step, updates) in [(0, 0), (7, 1), (123_456_789, 2)] {
        assert_eq!(place_of(&name_of(step, updates)), Some((step, updates)));
    }
    let others = ["00000007+1.damaged", "00000007.damaged", "00000007+", "7", "00000007+01", ""];
    for name in others {
        assert_eq!(place_of(&format!("step-{name}")), None, "{name}");
    }
}

#[test]
fn a_manifest_says_what_was_trained_by_which_program_and_where() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    save(folder.path(), &mut state, 1, ALL);
    let manifest = verify(&newest(folder.path()).unwrap()).unwrap();
    assert_eq!(Config::parse(&manifest.config).unwrap(), config());
    assert_eq!(manifest.config_sha256, common::files::sha256(manifest.config.as_bytes()));
    let provenance = manifest.provenance.unwrap();
    assert_eq!((provenance.host, provenance.device), (common::host(), "cpu".to_owned()));
}

#[test]
fn the_tenth_update_is_newer_than_the_second() {
    let folder = tempfile::tempdir().unwrap();
    for updates in [10, 2, 0] {
        fs::create_dir(folder.path().join(name_of(5, updates))).unwrap();
    }
    let names: Vec<_> = list(folder.path()).unwrap().into_iter().map(|(_, path)| path).collect();
    assert_eq!(names, [0, 2, 10].map(|updates| folder.path().join(name_of(5, updates))));
}

#[test]
fn what_is_refused_changes_nothing_in_the_folder() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let folder = tempfile::tempdir().unwrap();
    let held = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&held);
    let guard = Guard::new(move || match asked.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err(fault(Path::new("run"), "another's")),
    });
    let provenance = Provenance::here(Device::Cpu);
    let mut writer = Writer::new(folder.path(), &config(), provenance, guard).unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    let keep = Keep { last: 1, every: 0, best: None };
    let mut save = |step| {
        state.step = step;
        writer.save(&state, AT, keep).and_then(|()| writer.finish())
    };
    save(1).unwrap();
    held.store(false, Ordering::Relaxed);
    let error = save(2).unwrap_err().to_string();
    assert!(error.contains("another's"), "{error}");
    let names = || {
        let all = fs::read_dir(folder.path()).unwrap();
        all.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    assert_eq!(names(), [folder.path().join(name_of(1, 0))]);
    held.store(true, Ordering::Relaxed);
    save(2).unwrap();
    assert_eq!(names(), [folder.path().join(name_of(2, 0))]);
}

#[test]
fn what_cannot_be_removed_stops_no_run() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".step-notes.txt"), "mine").unwrap();
    fs::create_dir(folder.path().join(".step-00000001.partial")).unwrap();
    drop(writer(folder.path()));
    assert!(folder.path().join(".step-notes.txt").exists());
    assert!(!folder.path().join(".step-00000001.partial").exists());
}

#[test]
fn a_checkpoint_that_was_passed_over_takes_no_sound_one_s_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    let keep = Keep { last: 1, every: 0, best: None };
    for step in [2, 3] {
        save(folder.path(), &mut state, step, ALL);
    }
    fs::write(folder.path().join("step-00000003/manifest.json"), "{").unwrap();
    for step in [3, 4] {
        let world = World::alone();
        let (found, _) =
            load_newest(folder.path(), &config(), Device::Cpu, 7, &world, |_| Ok(())).unwrap();
        set_aside_after(folder.path(), &found).unwrap();
        assert_eq!(list(folder.path()).unwrap().len(), 1);
        save(folder.path(), &mut state, step, keep);
        assert!(newest(folder.path()).unwrap().ends_with(name_of(step, 0)));
    }
    assert!(folder.path().join("step-00000003.damaged").exists());
}

#[test]
fn a_checkpoint_that_does_not_fit_on_the_disk_is_refused_with_figures() {
    let folder = tempfile::tempdir().unwrap();
    let error = room_for(folder.path(), 1 << 60).unwrap_err();
    assert!(error.is_full() && error.exit_code() == 1, "{error}");
    assert!(error.to_string().contains("checkpoint.keep"), "{error}");
    room_for(folder.path(), 1).unwrap();
}

#[test]
fn an_averaged_network_holds_the_averages_and_a_live_one_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    let average = state.g.live.params.flat() + 1.0;
    no_grad(|| state.g.average.copy_(&average));
    save(folder.path(), &mut state, 1, ALL);
    let path = folder.path().join(name_of(1, 0));
    let mut other = TrainState::new(&config().recipe(), Device::Cpu, false);
    load_average(&path, "generator", &mut other.g.live.params).unwrap();
    assert!(other.g.live.params.flat().equal(&average));
    load_live(&path, "generator", &mut other.g.live.params).unwrap();
    assert!(other.g.live.params.flat().equal(state.g.live.params.flat()));
}

#[test]
fn a_step_that_is_not_there_is_refused_with_those_that_are() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["step-00000002", "step-00000004", "step-00000004+1"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let error = of_step(folder.path(), 3).unwrap_err().to_string();
    assert!(error.contains("there are those of 2, 4"), "{error}");
    assert_eq!(of_step(folder.path(), 4).unwrap(), folder.path().join("step-00000004"));
}

#[test]
fn where_none_loads_the_newest_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    for step in [1, 2] {
        save(folder.path(), &mut state, step, ALL);
        fs::remove_file(folder.path().join(name_of(step, 0)).join("generator.safetensors"))
            .unwrap();
    }
    let world = World::alone();
    let load = || load_newest(folder.path(), &config(), Device::Cpu, 7, &world, |_| Ok(()));
    let error = load().unwrap_err().to_string();
    assert!(error.contains("step-00000002/generator.safetensors"), "{error}");
}

#[test]
fn only_halves_of_checkpoints_are_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let [half, note, other] = [".step-00000003.partial", ".step-note", "thesis.partial"]
        .map(|name| folder.path().join(name));
    for folder in [&half, &note, &other] {
        fs::create_dir(folder).unwrap();
    }
    let _ = writer(folder.path());
    assert!(!half.exists() && note.exists() && other.exists());
}

#[test]
fn a_checkpoint_that_failed_is_told_of_by_the_next_which_is_then_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    let asked = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&asked);
    // It is asked as a save begins, and again in the background.
    let guard = Guard::new(move || match counted.fetch_add(1, Ordering::Relaxed) {
        1 => Err(Error::Output { path: "x".into(), reason: "on purpose".to_owned() }),
        _ => Ok(()),
    });
    let mut writer =
        Writer::new(folder.path(), &config(), Provenance::here(Device::Cpu), guard).unwrap();
    state.step = 1;
    writer.save(&state, AT, ALL).unwrap();
    state.step = 2;
    assert!(writer.save(&state, AT, ALL).unwrap_err().to_string().contains("on purpose"));
    assert_eq!(list(folder.path()).unwrap(), []);
    writer.save(&state, AT, ALL).unwrap();
    writer.finish().unwrap();
    assert!(newest(folder.path()).unwrap().ends_with(name_of(2, 0)));
}

#[test]
fn a_checkpoint_is_told_of_once_it_is_on_the_disk_and_is_not_written_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    let mut writer = writer(folder.path());
    state.step = 1;
    writer.save(&state, AT, ALL).unwrap();
    let begun = Instant::now();
    let told = loop {
        match writer.saved().unwrap() {
            Some(told) => break told,
            None => assert!(begun.elapsed() < Duration::from_secs(60), "never told of"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let path = folder.path().join(&told.name);
    assert!(path.ends_with(name_of(1, 0)));
    let files = read_manifest(&path).unwrap().files;
    let bytes: u64 = files.values().map(|file| file.bytes).sum();
    // Of a network this small, names and shapes are a part.
    assert!(told.bytes <= 2 * bytes && bytes <= 2 * told.bytes, "{} of {bytes}", told.bytes);
    let written = fs::metadata(path.join("manifest.json")).unwrap().modified().unwrap();
    writer.save(&state, AT, ALL).unwrap();
    writer.finish().unwrap();
    assert_eq!(fs::metadata(path.join("manifest.json")).unwrap().modified().unwrap(), written);
    assert_eq!(writer.saved().unwrap(), None);
}

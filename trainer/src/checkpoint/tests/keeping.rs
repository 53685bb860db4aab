//! Which checkpoints stay.

use super::*;

#[test]
fn the_newest_the_milestones_and_the_best_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    let keep = Keep { last: 2, every: 4, best: Some(1) };
    fs::create_dir(folder.path().join(".step-00000009.partial")).unwrap();
    for step in 1..=7 {
        save(folder.path(), &mut state, step, keep);
    }
    let steps: Vec<_> = list(folder.path()).unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [1, 4, 6, 7]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
}

#[test]
fn that_of_step_0_stays_until_another_is_there_and_is_no_milestone() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    let keep = Keep { last: 2, every: 5, best: Some(0) };
    let steps =
        || list(folder.path()).unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
    for (step, left) in [(0, vec![0]), (1, vec![1]), (2, vec![1, 2]), (3, vec![2, 3])] {
        save(folder.path(), &mut state, step, keep);
        assert_eq!(steps(), left);
    }
}

#[test]
fn what_makes_room_is_the_oldest_but_never_the_newest_nor_what_stays_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let keep = Keep { last: 9, every: 4, best: Some(5) };
    for step in 3..=8 {
        fs::create_dir(folder.path().join(name_of(step, 0))).unwrap();
    }
    let mut gone = vec![];
    while let Some(spare) = writer::oldest_spare(folder.path(), keep).unwrap() {
        gone.extend(list(folder.path()).unwrap().into_iter().find(|(_, path)| *path == spare));
        fs::remove_dir(spare).unwrap();
    }
    assert_eq!(gone.into_iter().map(|(step, _)| step).collect::<Vec<_>>(), [3, 6, 7]);
}

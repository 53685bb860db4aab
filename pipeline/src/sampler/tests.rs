use super::*;
use proptest::prelude::*;

fn plan(samples: usize, rows: usize, world: usize, shuffle: Shuffle) -> Plan {
    let shards = vec![samples / 2, 0, samples - samples / 2];
    Plan { shards, samples, rows, rank: 0, world, seed: 7, shuffle, last: LastBatch::Pad }
}

fn epoch(plan: &Plan, epoch: u64) -> Vec<SampleId> {
    let plan = Arc::new(plan.clone());
    let mut order = plan.epoch(epoch);
    (0..plan.batches()).flat_map(|batch| order.samples(batch)).collect()
}

#[test]
fn a_permutation_reaches_every_number_once() {
    for n in (1..200).chain([1000, 4097, 65_536]) {
        let permutation = Permutation::new(n, Stream::new(1, 2, 3, Purpose::Order));
        let mut seen: Vec<_> = (0..n).map(|position| permutation.at(position)).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..n), "n = {n}");
    }
}

#[test]
fn positions_are_spread_evenly_over_epochs() {
    // Sample 3 of 16 over 4,000 epochs: 250 visits a position, standard deviation 15.
    let mut visits = [0; 16];
    for epoch in 0..4000 {
        let permutation = Permutation::new(16, Stream::new(5, epoch, 0, Purpose::Order));
        visits[permutation.at(3)] += 1;
    }
    assert!(visits.iter().all(|visits| (180..320).contains(visits)), "{visits:?}");
}

#[test]
fn neighbours_do_not_stay_neighbours() {
    let permutation = Permutation::new(10_000, Stream::new(5, 0, 0, Purpose::Order));
    let close =
        (1..10_000).filter(|&p| permutation.at(p).abs_diff(permutation.at(p - 1)) <= 10).count();
    assert!(close < 60, "{close} of 9,999 pairs stayed close; 20 are expected by chance");
}

#[test]
fn more_samples_than_a_window_come_once_an_epoch_too() {
    for samples in [WINDOW, WINDOW + 1, 2 * WINDOW + 900] {
        let mut seen = epoch(&plan(samples, 1, 1, Shuffle::Shards), 1);
        assert!(!seen.iter().copied().eq(0..samples as u64));
        // What is read together lies together: a window's samples are of at most two stretches.
        let mut window = seen[..WINDOW].to_vec();
        window.sort_unstable();
        let gaps = window.windows(2).filter(|pair| pair[0] + 1 < pair[1]).count();
        assert!(gaps <= 1, "{gaps} gaps");
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..samples as u64), "{samples} samples");
    }
}

/// Checkpoints and other programs' states rest on it: it never changes. (Hashes of what it was.)
#[test]
fn the_order_is_what_it_always_was() {
    let hash = |samples, shuffle| {
        let ids = epoch(&plan(samples, 1, 1, shuffle), 2);
        let bytes: Vec<u8> = ids.into_iter().flat_map(u64::to_le_bytes).collect();
        xxhash_rust::xxh3::xxh3_64(&bytes)
    };
    let all = [1, 2, 3, 49, 64, 100, 1000, 2 * WINDOW + 900]
        .map(|samples| [hash(samples, Shuffle::Global), hash(samples, Shuffle::Shards)]);
    let was = [
        [14374147212387527897, 14374147212387527897],
        [935533381143019749, 2806482627441532945],
        [14915489147650565433, 11865779135772897219],
        [16717379186523497475, 13451313804921193409],
        [4123120023529437101, 14319336079489140490],
        [7906288326942256499, 2693736865842343794],
        [3469553846526600057, 18062706087087073924],
        [2902284758601551859, 13385119598615249410],
    ];
    assert_eq!(all, was);
}

#[test]
fn ranks_that_are_left_nothing_have_nothing_to_read() {
    // 2 samples of 5 ranks: one batch an epoch, of a row on two of them.
    for rank in 0..5 {
        let plan = Plan { rank, last: LastBatch::Keep, ..plan(2, 3, 5, Shuffle::Global) };
        assert_eq!((plan.batches(), plan.rows_of(0)), (1, usize::from(rank < 2)));
        let end = if rank < 2 { 4 } else { 0 };
        assert_eq!(plan.deal(Cursor::new(1, 0), 5, 2).end, end, "rank {rank}");
    }
}

#[test]
fn epochs_and_seeds_differ() {
    let base = plan(100, 10, 1, Shuffle::Global);
    let other = Plan { seed: 8, ..base.clone() };
    assert_ne!(epoch(&base, 0), epoch(&base, 1));
    assert_ne!(epoch(&base, 0), epoch(&other, 0));
    assert_ne!(epoch(&base, 1), epoch(&other, 0), "seed and epoch must not add up");
}

proptest! {
    #[test]
    fn every_sample_comes_once_an_epoch(
        samples in 1..300usize, rows in 1..20usize, number in 0..5u64, kind in 0..3usize,
    ) {
        let shuffle = [Shuffle::Global, Shuffle::Shards, Shuffle::None][kind];
        let plan = Plan { last: LastBatch::Keep, ..plan(samples, rows, 1, shuffle) };
        let mut seen = epoch(&plan, number);
        seen.sort_unstable();
        prop_assert!(seen.into_iter().eq(0..samples as u64));
    }

    #[test]
    fn ranks_together_draw_the_same_global_batches(
        samples in 48..300usize, kind in 0..3usize, world in prop::sample::select(vec![2, 4, 8]),
    ) {
        let shuffle = [Shuffle::Global, Shuffle::Shards, Shuffle::None][kind];
        let one = Arc::new(plan(samples, 16, 1, shuffle));
        for batch in 0..one.batches() {
            let whole = one.epoch(3).samples(batch);
            let mut merged = vec![0; 16];
            for rank in 0..world {
                let part = Plan { rank, ..plan(samples, 16 / world, world, shuffle) };
                let part = Arc::new(part);
                prop_assert_eq!(part.batches(), one.batches());
                for (row, sample) in part.epoch(3).samples(batch).into_iter().enumerate() {
                    merged[row * world + rank] = sample;
                }
            }
            prop_assert_eq!(&merged, &whole);
        }
    }

    #[test]
    fn runs_are_the_rows_of_the_batches_in_order(
        samples in 1..40usize, rows in 1..7usize, world in 1..5usize, rank in 0..5usize,
        last in 0..3usize, run in 1..9usize, from in 0..20u64,
    ) {
        let last = [LastBatch::Drop, LastBatch::Pad, LastBatch::Keep][last];
        let (shuffle, rank) = (Shuffle::Global, rank % world);
        let plan = Arc::new(Plan { rank, last, ..plan(samples, rows, world, shuffle) });
        prop_assume!(plan.batches() > 0);
        let from = Cursor::new(2 + from / plan.batches(), from % plan.batches());
        let deal = plan.deal(from, 5, run);
        let mut cursor = from;
        let (mut number, mut ticket) = (0, 0);
        let mut drawn = Vec::new();
        while cursor.epoch < 5 {
            let order = plan.epoch(cursor.epoch).samples(cursor.batch);
            prop_assert_eq!(order.len(), plan.rows_of(cursor.batch));
            let mut row = 0;
            while row < order.len() {
                let (batch, of_run) = deal.runs.run(ticket);
                prop_assert_eq!((batch, of_run.start), (number, row));
                prop_assert!(of_run.len() == run || of_run.end == order.len());
                (ticket, row) = (ticket + 1, of_run.end);
            }
            if !order.is_empty() {
                prop_assert_eq!(deal.runs.rows_of(number), order.len());
                prop_assert_eq!(deal.place(number), (cursor.epoch, cursor.batch));
                number += 1;
            }
            drawn.extend(order);
            cursor = plan.after(cursor);
        }
        prop_assert_eq!(deal.end, number);
        prop_assert_eq!(plan.draws(from, 5).collect::<Vec<_>>(), drawn);
    }
}

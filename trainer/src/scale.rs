//! What each of several ranks would do in a step, worked out in one process.

use std::iter::once;
use std::ops::RangeInclusive;

use bigbigan_model::networks::{Seen, Sight};
use bigbigan_model::nn::{Fill, Params, Statistics, Weights};
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use dist::{Traffic, World};
use pipeline::{Cursor, Dataset};
use tch::{Device, Kind, Tensor, no_grad};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::feed::part;
use crate::inspect::{Cost, Nets, grouped};

/// The gradients of a network on their way to all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    /// "D", "G" or "E".
    pub network: &'static str,
    /// How often a step sums them.
    pub updates: u32,
    /// Values of each bucket, in order.
    pub buckets: Vec<usize>,
}

impl Sums {
    fn of(network: &'static str, updates: u32, params: &Params) -> Self {
        let buckets = params.sums().into_iter().map(|(_, length)| length as usize).collect();
        Self { network, updates, buckets }
    }

    fn traffic(&self) -> Traffic {
        let buckets = (self.buckets.len(), self.buckets.iter().sum());
        times(self.updates.into(), sums(buckets))
    }
}

/// What every rank of a step sums with the others; the same whatever their number, if it is above 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// D's, G's and, where there is one, E's.
    pub gradients: Vec<Sums>,
    /// Sums of batch norms, forward and backward.
    pub statistics: Traffic,
    /// Losses.
    pub losses: Traffic,
}

impl Exchange {
    /// Runs G and E forward and backward on the CPU, on one image, with weights that are allocated but never
    /// filled, and counts what their batch norms sum.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let updates = config.train.d_steps;
        let passes = (config.train.batch / config.recipe().micro_batch()) as u64;
        let world = World::rehearsal(2);
        let nets = Nets::build_in(&world, config, Fill::Unset);
        let (of_d, of_players) = statistics(config, &world, &nets);
        let mut gradients = vec![Sums::of("D", updates, &nets.d.1), Sums::of("G", 1, &nets.g.1)];
        gradients.extend(nets.e.iter().map(|(_, params)| Sums::of("E", 1, params)));
        let further = nets.further.iter();
        gradients.extend(further.map(|(_, params)| Sums::of("the further loss", 1, params)));
        let of_losses = sums((1, gradients.len() - 1));
        Self {
            gradients,
            statistics: times(passes, add(times(updates.into(), of_d), of_players)),
            losses: add(times(updates.into(), sums((1, 1))), of_losses),
        }
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> Traffic {
        let gradients = self.gradients.iter().map(Sums::traffic);
        gradients.chain([self.statistics, self.losses]).fold(Traffic::default(), add)
    }

    /// In lines for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let line = |what: &str, t: Traffic| {
            let each = grouped((t.bytes / t.collectives.max(1)) as usize);
            format!("{what}: {} sum(s) a step, {each} bytes on average\n", t.collectives)
        };
        let of = |sums: &Sums| line(&format!("gradient of {}", sums.network), sums.traffic());
        let gradients = self.gradients.iter().map(of);
        let total = self.total();
        format!(
            "several ranks exchange, each of them:\n{}{}{}in all {} sums of {:.1} MB a step",
            gradients.collect::<String>(),
            line("batch norms", self.statistics),
            line("losses", self.losses),
            grouped(total.collectives as usize),
            total.bytes as f64 / 1e6,
        )
    }
}

fn add(a: Traffic, b: Traffic) -> Traffic {
    Traffic { collectives: a.collectives + b.collectives, bytes: a.bytes + b.bytes }
}

fn times(n: u64, t: Traffic) -> Traffic {
    Traffic { collectives: n * t.collectives, bytes: n * t.bytes }
}

/// So many sums of so many single-precision values together.
fn sums((collectives, values): (usize, usize)) -> Traffic {
    Traffic { collectives: collectives as u64, bytes: 4 * values as u64 }
}

/// What batch norms sum in one pass of an update of D, and in one of the joint update.
fn statistics(config: &Config, world: &World, nets: &Nets) -> (Traffic, Traffic) {
    let Nets { g: (g, of_g), e, further, .. } = nets;
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let (z, x) = (zeros(&[1, config.latent.dim]), zeros(&[1, 3, config.e.res, config.e.res]));
    let generate = || g.forward(&z, Statistics::Batch);
    let since = |before: Traffic| {
        let Traffic { collectives, bytes } = world.traffic();
        Traffic { collectives: collectives - before.collectives, bytes: bytes - before.bytes }
    };
    let learn = |params: &Params, output: &dyn Fn() -> Tensor| {
        params.use_weights(Weights::Train);
        let _ = params.gradient(&output().sum(Kind::Float));
    };
    let before = world.traffic();
    let _ = no_grad(generate);
    if let Some((e, _)) = e {
        let _ = no_grad(|| e.forward(&x, Statistics::Batch));
    }
    let of_d = since(before);
    let before = world.traffic();
    learn(of_g, &generate);
    if let Some((e, of_e)) = e {
        learn(of_e, &|| {
            let encoded = e.forward(&x, Statistics::Batch);
            let code = encoded.code.sample(&z);
            let Some((further, _)) = further else { return code };
            let (x, prior, side) = (&x, &z, config.g.res);
            let (features, of_x) = (&encoded.features, &encoded.code);
            let (generated, uniforms) =
                (&zeros(&[1, 3, side, side]), &zeros(&[1, further.uniforms()]));
            let d = Sight { net: &nets.d.0, augment: None };
            let f = &no_grad(|| d.features(generated));
            let seen = Seen { e, g, d, x, features, code: of_x, f, generated, prior, uniforms };
            code + further.loss(&seen)
        });
    }
    (of_d, since(before))
}

/// Makes sure that the ranks' parts of the batches of the first step are together, row by row, what one process
/// reads. Returns the number of batches.
///
/// # Errors
/// [`Error::Config`] if `ranks` do not divide a pass; [`Error::Data`] if there are too few samples;
/// [`Error::Split`] if the parts are not the whole, which would be a fault of this program.
pub fn check_split(config: &Config, data: &Dataset, ranks: usize) -> Result<u64> {
    let batches = u64::from(config.train.d_steps) + 1;
    let epoch = data.len() as u64 / config.train.batch as u64;
    for number in 0..batches {
        // An epoch may be shorter than a step.
        let at = Cursor::new(number / epoch.max(1), number % epoch.max(1));
        let whole = part(config, 0, 1)?.draws(data, at)?;
        let parts = (0..ranks).map(|rank| Ok(part(config, rank, ranks)?.draws(data, at)?));
        if !deals(&whole, &parts.collect::<Result<Vec<_>>>()?) {
            return Err(Error::Split { ranks, batch: number });
        }
    }
    Ok(batches)
}

/// Whether every row of the whole is dealt out exactly once, in turn.
fn deals(whole: &[u64], parts: &[Vec<u64>]) -> bool {
    let rows = whole.len() / parts.len();
    let turn = (0..rows).flat_map(|row| parts.iter().map(move |part| part.get(row)));
    parts.iter().all(|part| part.len() == rows) && whole.iter().map(Some).eq(turn)
}

/// The speeds of a machine of GPUs that a step is predicted from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speeds {
    /// Floating-point operations a second of a rank.
    pub flop: f64,
    /// Bytes a second that a rank sends in a ring, at its slowest link.
    pub bandwidth: f64,
    /// Seconds of a message from rank to rank.
    pub latency: f64,
}

/// Seconds of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Of the rank's own work.
    pub compute: f64,
    /// Of gradients' and losses' way to all ranks.
    pub gradients: f64,
    /// Of batch norms' sums.
    pub statistics: f64,
}

impl Prediction {
    /// For each of `ranks`: work divides among them; a sum of b bytes takes 2 (n − 1)/n · b / bandwidth, as a ring
    /// does, and 2 ⌈log₂ n⌉ messages, as a tree does.
    #[must_use]
    pub fn of(config: &Config, cost: &Cost, exchange: &Exchange, ranks: usize, at: Speeds) -> Self {
        let n = ranks as f64;
        let time = |t: Traffic| {
            let hops = 2.0 * n.log2().ceil() * t.collectives as f64;
            2.0 * (n - 1.0) / n * t.bytes as f64 / at.bandwidth + hops * at.latency
        };
        let compute = config.train.batch as f64 / n * cost.step_flop / at.flop;
        let gradients = exchange.gradients.iter().map(Sums::traffic);
        Self {
            compute,
            gradients: gradients.chain(once(exchange.losses)).map(time).sum(),
            statistics: time(exchange.statistics),
        }
    }

    /// The whole step, from all gradients' way hidden behind the rank's own work to none of it. (They go while
    /// backward passes are under way; how much of it that hides is not modelled.)
    #[must_use]
    pub fn step(&self) -> RangeInclusive<f64> {
        let hidden = self.compute.max(self.gradients) + self.statistics;
        hidden..=self.compute + self.gradients + self.statistics
    }
}

/// What `ranks` ranks would read, in lines for people.
///
/// # Errors
/// [`Error::Config`] if they do not divide a pass.
pub fn describe(config: &Config, ranks: usize) -> Result<String> {
    let rows = config.rows(ranks)?;
    let (pass, last) = (config.recipe().micro_batch() as usize / ranks, ranks - 1);
    let reads = |rank: usize| {
        let all: Vec<_> = (0..rows).map(|row| (rank + row * ranks).to_string()).collect();
        match all.as_slice() {
            [first, second, _, .., end] => format!("{first}, {second}, … {end}"),
            few => few.join(", "),
        }
    };
    let mut text = format!(
        "as {ranks} ranks: an update of {} images is {} pass(es) of {pass} on each rank\n\
         of a global batch rank 0 reads positions {}",
        config.train.batch,
        rows / pass,
        reads(0),
    );
    if last > 0 {
        text += &format!("; rank {last} {}", reads(last));
    }
    Ok(text)
}

/// A row for every number of ranks: memory of a rank, and with speeds the seconds of a step, its parts, and what
/// share of the work of so many ranks is done.
#[must_use]
pub fn table(
    config: &Config,
    cost: &Cost,
    exchange: &Exchange,
    ranks: &[usize],
    speeds: Option<Speeds>,
) -> String {
    let mut table = Table::new();
    let predicted =
        ["compute s", "gradients s", "batch norms s", "step s", "images/s", "efficiency"];
    let header = ["ranks", "images of a pass", "GB a rank"].into_iter();
    let header = header.chain(predicted.into_iter().filter(|_| speeds.is_some()));
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(header);
    for &n in ranks {
        let images = config.recipe().micro_batch() as usize / n;
        let gigabytes = format!("{:.1}", cost.memory_bytes_of(n) / 1e9);
        let mut row = vec![n.to_string(), images.to_string(), gigabytes];
        if let Some(speeds) = speeds {
            let p = Prediction::of(config, cost, exchange, n, speeds);
            let seconds = [p.compute, p.gradients, p.statistics];
            row.extend(seconds.map(|seconds| format!("{seconds:.3}")));
            let (least, most) = p.step().into_inner();
            row.push(format!("{least:.3} to {most:.3}"));
            let images = config.train.batch as f64;
            row.push(format!("{:.0} to {:.0}", images / most, images / least));
            let share = 100.0 * p.compute;
            row.push(format!("{:.0} to {:.0} %", share / most, share / least));
        }
        table.add_row(row);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use bigbigan_model::images::Images;
    use bigbigan_model::state::TrainState;
    use bigbigan_model::step::train_step;
    use common::stop::Stop;
    use dist::Place;

    use super::*;
    use crate::config::Origin;
    use crate::inspect::Counts;

    fn tiny(overrides: &[&str]) -> Config {
        let small = ["g.ch=4", "f.ch=4", "h.width=16", "j.width=16", "e.depth=8", "e.mlp_width=16"];
        let all = small.iter().chain(overrides).map(|s| (*s).to_owned());
        Config::resolve(&Origin::Preset("demo"), &all.collect::<Vec<_>>()).unwrap()
    }

    /// What a step of two ranks gave to collectives.
    fn measured(config: &Config) -> Traffic {
        let ranks = Place::threads(2).into_iter().map(|place| {
            let config = config.clone();
            thread::spawn(move || {
                let world =
                    World::join(place, Device::Cpu, config.limits(), vec![], &Stop::default())
                        .unwrap();
                let kinds = (Kind::Float, Device::Cpu);
                let mut state = TrainState::in_world(&config.recipe(), &world, kinds, true);
                let rows = config.rows(2).unwrap() as i64;
                let image = |side| Tensor::rand([rows, 3, side, side], kinds);
                let images = || Images { large: image(config.e.res), small: image(config.g.res) };
                let before = world.traffic();
                let _ =
                    train_step(&config.recipe(), &mut state, || Ok::<_, Error>(images())).unwrap();
                let after = world.traffic();
                world.conclude(Ok::<_, dist::Error>(())).unwrap();
                let collectives = after.collectives - before.collectives;
                Traffic { collectives, bytes: after.bytes - before.bytes }
            })
        });
        let both: Vec<_> =
            ranks.collect::<Vec<_>>().into_iter().map(|r| r.join().unwrap()).collect();
        assert_eq!(both[0], both[1]);
        both[0]
    }

    #[test]
    fn the_exchange_foretold_is_the_one_of_a_real_step_of_two_ranks() {
        bigbigan_model::nn::set_bucket_bytes(1 << 10);
        for overrides in [
            &["train.batch=4"][..],
            &["train.batch=8", "train.micro_batch=4", "train.d_steps=3"],
            &["train.batch=4", "g.recompute=true", "e.recompute=true"],
        ] {
            let config = tiny(overrides);
            let exchange = Exchange::of(&config);
            assert_eq!(exchange.total(), measured(&config), "{overrides:?}");
            assert!(exchange.statistics.collectives > 0);
        }
    }

    #[test]
    fn a_wrong_deal_is_noticed() {
        let whole = [7, 3, 5, 1];
        assert!(deals(&whole, &[vec![7, 5], vec![3, 1]]));
        for parts in [[vec![7, 3], vec![5, 1]], [vec![7, 5], vec![7, 1]], [vec![7, 5], vec![3]]] {
            assert!(!deals(&whole, &parts), "{parts:?}");
        }
        assert!(!deals(&whole, &[vec![7], vec![3], vec![5]]));
    }

    #[test]
    fn a_prediction_is_what_its_formula_gives_by_hand() {
        let config = tiny(&["train.batch=8"]);
        let counts = Counts::of(&config);
        let (cost, exchange) = (Cost::of(&config, &counts), Exchange::of(&config));
        let speeds = Speeds { flop: 1e9, bandwidth: 1e6, latency: 1e-3 };
        let of = |ranks| Prediction::of(&config, &cost, &exchange, ranks, speeds);
        let alone = of(1);
        assert_eq!((alone.gradients, alone.statistics), (0.0, 0.0));
        let (eight, total) = (of(8), exchange.total());
        assert!((alone.compute / eight.compute - 8.0).abs() < 1e-9);
        let by_hand = 1.75 * total.bytes as f64 / 1e6 + 6e-3 * total.collectives as f64;
        assert!((eight.gradients + eight.statistics - by_hand).abs() < 1e-9 * by_hand);
        let (least, most) = eight.step().into_inner();
        assert!((most - eight.compute - by_hand).abs() < 1e-9 * by_hand);
        assert!((most - least - eight.compute.min(eight.gradients)).abs() < 1e-9 * by_hand);
    }
}

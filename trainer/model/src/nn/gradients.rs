use std::iter::repeat_with;
use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dist::{Pending, World};
use tch::Tensor;
use torch_ext::autograd::{in_backward, register_hook};

use super::Params;

/// Bytes from which on a sum over ranks is begun: PyTorch's data parallel uses as many. In tests few, so that
/// small networks have several buckets.
static BUCKET_BYTES: AtomicUsize = AtomicUsize::new(if cfg!(test) { 1 << 10 } else { 25 << 20 });

/// Bytes of a bucket of gradients, for networks that are built from now on: few, so that those of a test have several.
pub fn set_bucket_bytes(bytes: usize) {
    BUCKET_BYTES.store(bytes, Ordering::Relaxed);
}

/// The gradients of an update: sums over its passes and, where there are several ranks, over theirs. A rank
/// gives a bucket of gradients to the others as soon as the last backward pass has come by all of them, and
/// goes on with the pass meanwhile.
///
/// What is summed are gradients with respect to what layers read, W/σ where a spectral norm is held; the
/// step from there to W is linear, so it is taken once, at the end.
///
/// # Source
/// Li et al. 2020 (PyTorch Distributed), §3.2.
#[derive(Debug)]
pub struct Gradients<'a> {
    networks: Vec<&'a Params>,
    /// One for each network once there was a pass, flat as [`Params::flat`] is.
    sums: Vec<Tensor>,
    under_way: Vec<Pending>,
}

impl<'a> Gradients<'a> {
    /// Of these networks, which go through the same backward passes.
    pub fn of(networks: impl IntoIterator<Item = &'a Params>) -> Self {
        Self { networks: networks.into_iter().collect(), sums: vec![], under_way: vec![] }
    }

    /// Adds the gradients of the scalar `loss`. With the `last` pass of an update, the sums over ranks begin.
    pub fn add(&mut self, loss: &Tensor, last: bool) {
        let reducer = |network: &'a Params| network.reducer().filter(|_| last);
        let earlier = mem::take(&mut self.sums).into_iter().map(Some);
        let mut earlier: Vec<_> =
            earlier.chain(repeat_with(|| None)).take(self.networks.len()).collect();
        for (network, sum) in self.networks.iter().zip(&mut earlier) {
            if let Some(reducer) = reducer(network) {
                reducer.open(sum.take(), network.flat());
            }
        }
        let weights: Vec<_> = self.networks.iter().flat_map(|network| network.weights()).collect();
        let mut gradients = Tensor::run_backward(&[loss], &weights, false, false).into_iter();
        for (network, sum) in self.networks.iter().zip(earlier) {
            let own = network.or_zeros(&mut gradients);
            self.sums.push(match reducer(network) {
                Some(reducer) => reducer.close(own, &mut self.under_way),
                None => {
                    let own = Tensor::cat(&own, 0);
                    match sum {
                        Some(mut sum) => {
                            sum += own;
                            sum
                        }
                        None => own,
                    }
                }
            });
        }
    }

    /// Of each network the gradient with respect to all parameters, flat, (total): after all sums have
    /// ended. Parameters that no loss reached have zeros. Singular vectors count as constants.
    #[must_use]
    pub fn finish(self) -> Vec<Tensor> {
        self.under_way.into_iter().for_each(Pending::wait);
        for (network, sum) in self.networks.iter().zip(&self.sums) {
            network.pull_back(sum);
        }
        self.sums
    }
}

/// Neighbouring parameters whose gradients are summed over ranks at once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bucket {
    parameters: Range<usize>,
    /// Their place in the flat gradient.
    values: Range<i64>,
}

/// Buckets in the order in which they are sent, about that in which backward passes come by: parameters
/// made last first.
fn buckets(lengths: &[i64], bytes_each: usize) -> Vec<Bucket> {
    let mut all = vec![];
    let (mut end, mut values_end) = (lengths.len(), lengths.iter().sum::<i64>());
    let mut start = values_end;
    for (i, length) in lengths.iter().enumerate().rev() {
        start -= length;
        if (values_end - start) as usize * bytes_each >= BUCKET_BYTES.load(Ordering::Relaxed)
            || i == 0
        {
            all.push(Bucket { parameters: i..end, values: start..values_end });
            (end, values_end) = (i, start);
        }
    }
    all
}

/// Where the gradients of a network wait for the rest of their bucket.
#[derive(Debug)]
pub(super) struct Reducer {
    world: World,
    buckets: Vec<Bucket>,
    parameters: usize,
    /// Of the backward pass under way.
    pass: Mutex<Option<Pass>>,
}

#[derive(Debug)]
struct Pass {
    /// What is there and not sent yet, by parameter.
    arrived: Vec<Option<Tensor>>,
    /// Number of buckets sent.
    sent: usize,
    flat: Tensor,
    /// Whether `flat` holds the sums of earlier passes.
    adds: bool,
    under_way: Vec<Pending>,
}

impl Reducer {
    /// For weights that lie side by side in a flat gradient in this order.
    pub(super) fn new(world: &World, weights: &[Tensor]) -> Arc<Self> {
        let lengths: Vec<_> = weights.iter().map(|weight| weight.numel() as i64).collect();
        let bytes_each = weights.first().map_or(4, |weight| weight.kind().elt_size_in_bytes());
        let (buckets, parameters) = (buckets(&lengths, bytes_each), lengths.len());
        let all = Self { world: world.clone(), buckets, parameters, pass: Mutex::new(None) };
        let all = Arc::new(all);
        for (number, weight) in weights.iter().enumerate() {
            let reducer = all.clone();
            register_hook(weight, move |gradient| reducer.take(number, gradient));
        }
        all
    }

    /// Places in the flat gradient, (start, length), in the order in which they are summed over ranks.
    pub(super) fn places(&self) -> Vec<(i64, i64)> {
        let place = |b: &Bucket| (b.values.start, b.values.end - b.values.start);
        self.buckets.iter().map(place).collect()
    }

    fn pass(&self) -> MutexGuard<'_, Option<Pass>> {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the last backward pass: `sum` is that of the earlier ones, `like` a tensor of its shape.
    fn open(&self, sum: Option<Tensor>, like: &Tensor) {
        let adds = sum.is_some();
        let flat = sum.unwrap_or_else(|| like.empty_like());
        let arrived = (0..self.parameters).map(|_| None).collect();
        *self.pass() = Some(Pass { arrived, sent: 0, flat, adds, under_way: vec![] });
    }

    /// The backward pass has come by a weight.
    fn take(&self, number: usize, gradient: &Tensor) {
        // Inside a block that is computed again it is one of the block's gradients, not the weight's.
        if in_backward() {
            return;
        }
        let mut pass = self.pass();
        let Some(pass) = &mut *pass else { return };
        pass.arrived[number] = Some(gradient.shallow_clone());
        while let Some(bucket) = self.buckets.get(pass.sent)
            && pass.arrived[bucket.parameters.clone()].iter().all(Option::is_some)
        {
            pass.send(&self.world, bucket);
        }
    }

    /// After the pass, whose gradients are all given: sends what is left.
    fn close(&self, gradients: Vec<Tensor>, under_way: &mut Vec<Pending>) -> Tensor {
        let mut pass = self.pass().take().expect("it was opened");
        for bucket in &self.buckets[pass.sent..] {
            for i in bucket.parameters.clone() {
                pass.arrived[i].get_or_insert_with(|| gradients[i].shallow_clone());
            }
            pass.send(&self.world, bucket);
        }
        under_way.append(&mut pass.under_way);
        pass.flat
    }
}

impl Pass {
    fn send(&mut self, world: &World, bucket: &Bucket) {
        let parts = self.arrived[bucket.parameters.clone()].iter_mut();
        let parts: Vec<_> =
            parts.map(|part| part.take().expect("all are there").reshape([-1])).collect();
        let Range { start, end } = bucket.values;
        let mut place = self.flat.narrow(0, start, end - start);
        if self.adds {
            place += Tensor::cat(&parts, 0);
        } else {
            let _ = Tensor::cat_out(&place, &parts, 0);
        }
        self.under_way.push(world.sum_later(&place));
        self.sent += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use tch::{Device, Kind};
    use torch_ext::autograd::with_backward;

    use super::*;
    use crate::nn::{Fill, Init, Recompute, Shared, Statistics, Weights, recomputed};

    const ROWS: i64 = 16;

    /// y = (x W₁) W₂, and a weight that nothing reads.
    #[derive(Debug)]
    struct Net {
        first: Tensor,
        second: Tensor,
    }

    impl Recompute for Net {
        fn run(&self, inputs: &[Tensor], _: Statistics) -> Tensor {
            inputs[0].matmul(&self.first).matmul(&self.second).tanh()
        }

        fn parameters(&self) -> Vec<Tensor> {
            vec![self.first.shallow_clone(), self.second.shallow_clone()]
        }
    }

    fn net(world: &World) -> (Shared<Net>, Params) {
        let fill = Fill::Seed { seed: 1, network: 0 };
        let (net, params) = Params::build_in(world, (Kind::Float, Device::Cpu), fill, |s| {
            let weight = |name| s.normed(name, &[ROWS, ROWS], Init::Normal(1.0), 1e-12);
            let _ = weight("unread");
            Shared::new(Net { first: weight("first"), second: weight("second") })
        });
        params.use_weights(Weights::Train);
        (net, params)
    }

    fn x() -> Tensor {
        Tensor::arange(4 * ROWS, (Kind::Float, Device::Cpu)).sin().view([4, ROWS])
    }

    #[test]
    fn a_bucket_is_on_its_way_before_the_backward_pass_is_over() {
        let world = World::rehearsal(2);
        let (net, params) = net(&world);
        // Between the two weights: the pass has come by the second and not by the first.
        let sent = Arc::new(AtomicU64::new(0));
        let (counter, watched) = (sent.clone(), world.clone());
        let [first, second] = net.lock().parameters().try_into().unwrap();
        let inner = x().matmul(&first);
        let inner = with_backward(inner.detach(), &[inner], move |gradient| {
            counter.store(watched.traffic().collectives, Ordering::Relaxed);
            vec![gradient.shallow_clone()]
        });
        let mut gradients = Gradients::of([&params]);
        gradients.add(&inner.matmul(&second).sum(Kind::Float), true);
        assert_eq!(sent.load(Ordering::Relaxed), 1);
        assert_eq!((world.traffic().collectives, gradients.under_way.len()), (3, 3));
    }

    #[test]
    fn gradients_on_their_way_are_those_of_a_process_alone() {
        let alone = |recompute: bool, passes: usize| of(&World::alone(), recompute, passes);
        for recompute in [false, true] {
            for passes in [1, 3] {
                let ours = of(&World::rehearsal(2), recompute, passes);
                assert_eq!(ours, alone(false, passes), "recompute {recompute}, {passes} passes");
                let [unread, read] = [0, 1].map(|i| ours.narrow(0, i * ROWS * ROWS, ROWS * ROWS));
                let most = |t: Tensor| t.abs().max().double_value(&[]);
                assert!(most(unread) == 0.0 && most(read) > 0.0);
            }
        }
    }

    /// The gradient after some passes over different rows.
    fn of(world: &World, recompute: bool, passes: usize) -> Tensor {
        let (net, params) = net(world);
        let mut gradients = Gradients::of([&params]);
        for pass in 0..passes {
            // Twice, so that one block's gradients are not yet the weights'.
            let run = |times: f64| match recompute {
                true => recomputed(&net, vec![x() * times], Statistics::Batch),
                false => net.lock().run(&[x() * times], Statistics::Batch),
            };
            let y = run((pass + 1) as f64) * run(0.1);
            gradients.add(&y.sum(Kind::Float), pass + 1 == passes);
        }
        gradients.finish().remove(0)
    }

    #[test]
    fn buckets_cover_every_parameter_once_from_the_last_to_the_first() {
        let lengths = [3, 300, 1, 200, 70, 256];
        let all = buckets(&lengths, 4);
        let of = |parameters: Range<usize>, values: Range<i64>| Bucket { parameters, values };
        assert_eq!(all, [of(5..6, 574..830), of(3..5, 304..574), of(1..3, 3..304), of(0..1, 0..3)]);
        assert_eq!(buckets(&[], 4), []);
    }

    #[test]
    fn a_watched_tensor_lets_go_of_what_watches_it() {
        let world = World::rehearsal(2);
        let held = Arc::new(());
        let (token, weight) = (held.clone(), Tensor::ones([2], (Kind::Float, Device::Cpu)));
        register_hook(&weight, move |_| {
            let _ = &token;
        });
        assert_eq!(Arc::strong_count(&held), 2);
        drop(weight);
        assert_eq!(Arc::strong_count(&held), 1);
        let (net, params) = net(&world);
        let reducer = Arc::downgrade(params.reducer().unwrap());
        drop((net, params));
        assert!(reducer.upgrade().is_none());
    }
}

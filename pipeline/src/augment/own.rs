//! Views of one's own.

use std::fmt;
use std::sync::Arc;

use super::{Mode, View, view};
use crate::SampleId;
use crate::sampler::{Purpose, Stream};

/// The image that a view of one's own is chosen for, and the random numbers that are its own.
#[derive(Debug)]
pub struct Scene {
    /// The image's place in its split.
    pub sample: SampleId,
    /// The epoch, from 0.
    pub epoch: u64,
    /// Pixels across, upright where the options say so.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// Pixels a side of the row it will fill, R.
    pub side: usize,
    random: Stream,
}

impl Scene {
    pub(crate) fn new(
        (seed, epoch, sample): (u64, u64, SampleId),
        (width, height): (usize, usize),
        side: usize,
    ) -> Self {
        let random = Stream::new(seed, epoch, sample, Purpose::View);
        Self { sample, epoch, width, height, side, random }
    }

    /// 64 random bits, the next of those that follow from (seed, epoch, sample).
    pub fn bits(&mut self) -> u64 {
        self.random.bits()
    }

    /// The next random number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.random.unit()
    }

    /// The next random number in 0..n; 0 where n is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.random.below(n)
    }

    /// The view that a mode would choose, with the random numbers that come next.
    pub fn by(&mut self, mode: Mode) -> View {
        view(mode, (self.width, self.height), self.side, &mut self.random)
    }
}

type Choose = dyn Fn(&mut Scene) -> View + Send + Sync;

/// A view of one's own, in place of a [`Mode`]: a function of the [`Scene`] alone, so that batches
/// do not depend on threads and a run can go on where it stopped. One that depends on anything else
/// gives other batches each time.
///
/// A view that does not fit its image, or a crop of no pixels, counts as an image that cannot be
/// decoded.
///
/// ```
/// use pipeline::{Crop, LoaderConfig, Mode, OwnView, View};
///
/// // The left half, and in every second epoch the crop of `eval`.
/// let own = OwnView::new("halves", |scene| match scene.epoch % 2 {
///     0 => {
///         let (width, height) = (scene.width.div_ceil(2), scene.height);
///         let flip = scene.bits() & 1 == 1;
///         View { flip, ..View::of(Crop { x: 0, y: 0, width, height }) }
///     }
///     _ => scene.by(Mode::Eval),
/// });
/// let config = LoaderConfig { own_view: Some(own), ..LoaderConfig::default() };
/// let view = config.view(7, 0, (500, 375));
/// assert_eq!(view.crop, Crop { x: 0, y: 0, width: 250, height: 375 });
/// assert_eq!(config.view(7, 1, (500, 375)).crop.width, 333);
/// ```
#[derive(Clone)]
pub struct OwnView {
    name: Arc<str>,
    choose: Arc<Choose>,
}

impl OwnView {
    /// A view under a name, which stands for what the function does where runs are compared.
    pub fn new(name: &str, choose: impl Fn(&mut Scene) -> View + Send + Sync + 'static) -> Self {
        Self { name: name.into(), choose: Arc::new(choose) }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn choose(&self, scene: &mut Scene) -> View {
        (self.choose)(scene)
    }
}

impl fmt::Debug for OwnView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnView").field(&self.name).finish()
    }
}

impl PartialEq for OwnView {
    /// Whether they have one name and are one function.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.choose, &other.choose)
    }
}

//! Key and image size to a view: which rectangle is seen, and whether it is flipped. Pure geometry.

mod own;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::own::{OwnView, Scene};
use crate::sampler::{Purpose, Stream};

/// Which part of an image a sample shows, at encoder size R.
///
/// In TOML, JSON and on the command line a mode is a word: `"resnet"`, `"tpu"`, and so on, or with
/// options `"random-resized-crop,scale=0.2..1,ratio=0.75..1.333,law=tensorflow,flip=false"`, of
/// which those left out are of [`RandomResizedCrop::default`].
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Mode {
    /// [`RandomResizedCrop::default`]: torchvision's random resized crop, flipped with probability
    /// 1/2.
    #[default]
    Resnet,
    /// The same by TensorFlow's law, as the paper's own code draws it.
    Tpu,
    /// Random square of 50 to 100 % of the area by torchvision's law, no flip.
    Distorted,
    /// The square on the short side, at a random place on the long side; flipped with
    /// probability 1/2.
    Biggan,
    /// The central square of side ⌊min(H, W) · R / (R + 32)⌋; an odd pixel goes to the left and
    /// above.
    Eval,
    /// The central square on the short side; of an odd number of pixels beside it, such that those
    /// on the left and above are even in number.
    Full,
    /// For sets of small images: the view of `full`, padded by R/8 with its mirror image on all
    /// sides, a random R by R crop of that; flipped with probability 1/2.
    Small,
    /// A random resized crop of one's own.
    RandomResizedCrop(RandomResizedCrop),
    /// The image resized so that its short side is `resize` pixels, at least R, and the central R
    /// by R of that, as torchvision's `Resize` and `CenterCrop` make it:
    /// `"resize-centre-crop,resize=288"`.
    ResizeCentreCrop {
        /// The short side, pixels.
        resize: usize,
    },
}

/// The modes without options, by name.
const NAMES: [(&str, Mode); 7] = [
    ("resnet", Mode::Resnet),
    ("tpu", Mode::Tpu),
    ("distorted", Mode::Distorted),
    ("biggan", Mode::Biggan),
    ("eval", Mode::Eval),
    ("full", Mode::Full),
    ("small", Mode::Small),
];

/// A random rectangle of the image, by [`CropLaw`], to be resized to R by R.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomResizedCrop {
    /// Smallest and largest share of the image's area.
    pub scale: (f64, f64),
    /// Smallest and largest width over height.
    pub ratio: (f64, f64),
    /// How area and aspect are drawn.
    pub law: CropLaw,
    /// Whether left and right are exchanged with probability 1/2.
    pub flip: bool,
}

impl Default for RandomResizedCrop {
    /// 8 to 100 % of the area, aspect 3/4 to 4/3, torchvision's law, flipped.
    fn default() -> Self {
        let law = CropLaw::default();
        Self { scale: (0.08, 1.0), ratio: (0.75, 4.0 / 3.0), law, flip: true }
    }
}

/// How a random crop's area and aspect are drawn. Of a photograph of 500 x 375 pixels, by the
/// ranges of [`RandomResizedCrop::default`], torchvision's crops have 43 % of the area in the mean
/// and TensorFlow's 39 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CropLaw {
    /// Area uniform, aspect log-uniform, 10 tries; then the largest central crop whose aspect is
    /// in the range.
    ///
    /// # Source
    /// `RandomResizedCrop.get_params` of torchvision.
    #[default]
    Torchvision,
    /// Aspect uniform; then height uniform among those whose area is in the range, and at least
    /// 10 % of the image; 10 tries. Where none fits, or the crop is the whole image, the crop of
    /// [`Mode::Eval`]. The last place to the right and below is never drawn.
    ///
    /// # Source
    /// `sample_distorted_bounding_box` of TensorFlow and what tensorflow/tpu's
    /// `resnet_preprocessing.py` makes of it, in single precision as there.
    Tensorflow,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::RandomResizedCrop(crop) = self {
            let RandomResizedCrop { scale, ratio, law, flip } = crop;
            let law = match law {
                CropLaw::Torchvision => "torchvision",
                CropLaw::Tensorflow => "tensorflow",
            };
            let ((a, b), (c, d)) = (scale, ratio);
            return write!(
                f,
                "random-resized-crop,scale={a}..{b},ratio={c}..{d},law={law},flip={flip}"
            );
        }
        if let Self::ResizeCentreCrop { resize } = self {
            return write!(f, "resize-centre-crop,resize={resize}");
        }
        let name = NAMES.iter().find(|(_, mode)| mode == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        mode.to_string()
    }
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, mode)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(*mode);
        }
        let mut parts = text.split(',').map(str::trim);
        let name = parts.next();
        if name == Some("resize-centre-crop") {
            let resize = parts.next().and_then(|part| part.strip_prefix("resize=")?.parse().ok());
            return match (resize, parts.next()) {
                (Some(resize), None) => Ok(Self::ResizeCentreCrop { resize }),
                _ => Err(format!("mode {text:?}: write it as resize-centre-crop,resize=PIXELS")),
            };
        }
        if name != Some("random-resized-crop") {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "unknown mode {text:?}: one of {}, random-resized-crop[,scale=A..B][,ratio=A..B]\
                 [,law=torchvision|tensorflow][,flip=true|false], resize-centre-crop,resize=PIXELS",
                names.join(", ")
            ));
        }
        let mut crop = RandomResizedCrop::default();
        for part in parts {
            let wrong = || format!("{part:?} of mode {text:?} is no option of it");
            let (key, value) = part.split_once('=').ok_or_else(wrong)?;
            let range = || {
                let (low, high) = value.split_once("..").ok_or_else(wrong)?;
                Ok::<_, String>((
                    low.parse().map_err(|_| wrong())?,
                    high.parse().map_err(|_| wrong())?,
                ))
            };
            match (key, value) {
                ("scale", _) => crop.scale = range()?,
                ("ratio", _) => crop.ratio = range()?,
                ("law", "torchvision") => crop.law = CropLaw::Torchvision,
                ("law", "tensorflow") => crop.law = CropLaw::Tensorflow,
                ("flip", _) => crop.flip = value.parse().map_err(|_| wrong())?,
                _ => return Err(wrong()),
            }
        }
        crop.check()?;
        Ok(Self::RandomResizedCrop(crop))
    }
}

impl Mode {
    /// What is wrong with it for rows of `side` pixels a side.
    ///
    /// # Errors
    /// In words: an option that cannot be, or that does not go with this size.
    pub fn check(&self, side: usize) -> Result<(), String> {
        match self {
            Self::Small if side < 8 => Err(format!("mode = small needs large >= 8, not {side}")),
            Self::RandomResizedCrop(crop) => crop.check(),
            Self::ResizeCentreCrop { resize } if !(side..=1 << 16).contains(resize) => {
                Err(format!("mode = {self}: resize must be {side} (large) to 65536 pixels"))
            }
            _ => Ok(()),
        }
    }
}

impl Mode {
    /// The view of an image of this width and height at `side` by `side` pixels, where chance has no part in it;
    /// else none.
    #[must_use]
    pub fn still(self, size: (usize, usize), side: usize) -> Option<View> {
        match self {
            Self::Eval | Self::Full | Self::ResizeCentreCrop { .. } => {
                Some(view(self, size, side, &mut Stream::new(0, 0, 0, Purpose::View)))
            }
            _ => None,
        }
    }
}

impl RandomResizedCrop {
    fn check(&self) -> Result<(), String> {
        let Self { scale, ratio, .. } = self;
        if !(0.0 < scale.0 && scale.0 <= scale.1 && scale.1 <= 1.0) {
            return Err(format!(
                "scale = {}..{} of a random crop: shares of the area, above 0, at most 1, the \
                 smaller first",
                scale.0, scale.1
            ));
        }
        if !(0.0 < ratio.0 && ratio.0 <= ratio.1 && ratio.1.is_finite()) {
            return Err(format!(
                "ratio = {}..{} of a random crop: width over height, above 0, the smaller first",
                ratio.0, ratio.1
            ));
        }
        Ok(())
    }

    fn view(&self, size: (usize, usize), side: usize, random: &mut Stream) -> View {
        let crop = match self.law {
            CropLaw::Torchvision => torchvision(self, size, random),
            CropLaw::Tensorflow => tensorflow(self, size, random)
                .filter(|crop| (crop.width, crop.height) != size)
                .unwrap_or_else(|| eval_crop(size, side)),
        };
        let flip = self.flip && random.bits() >> 63 == 1;
        View { flip, ..View::of(crop) }
    }
}

/// A rectangle in pixels of the source image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// Left edge.
    pub x: usize,
    /// Top edge.
    pub y: usize,
    /// Width, at least 1.
    pub width: usize,
    /// Height, at least 1.
    pub height: usize,
}

/// What one sample shows this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The part of the source image, or of the resized one.
    pub crop: Crop,
    /// Whether left and right are exchanged.
    pub flip: bool,
    /// How far the resized picture is moved right and down, mirrored at its borders; pixels.
    pub shift: (isize, isize),
    /// Where given, the image is resized to this width and height first, and `crop`, of R by R
    /// pixels, cut out of that: filters see what lies beyond the crop. Where not, the crop is cut
    /// out and resized to R by R.
    pub resized: Option<(usize, usize)>,
}

impl View {
    /// The crop, resized, and no more.
    #[must_use]
    pub fn of(crop: Crop) -> Self {
        Self { crop, flip: false, shift: (0, 0), resized: None }
    }

    /// What is wrong with it for an image of this width and height and rows of `side` pixels.
    pub(crate) fn check(&self, size: (usize, usize), side: usize) -> Result<(), String> {
        let Self { crop, shift, resized, .. } = self;
        let (width, height) = resized.unwrap_or(size);
        let within = |at: usize, length: usize, all: usize| {
            length > 0 && at.checked_add(length).is_some_and(|end| end <= all)
        };
        if !within(crop.x, crop.width, width) || !within(crop.y, crop.height, height) {
            return Err(format!("the view's {crop:?} is not within {width} x {height} pixels"));
        }
        if resized.is_some() && (crop.width, crop.height) != (side, side) {
            return Err(format!("the view's {crop:?} of the resized image is not {side} x {side}"));
        }
        if width.max(height) > 1 << 20 {
            return Err(format!("the view resizes to {width} x {height}: at most 1048576 pixels"));
        }
        let far = |by: isize| by.unsigned_abs() >= side.max(2);
        match far(shift.0) || far(shift.1) {
            true => Err(format!("the view's shift {shift:?} leaves nothing of {side} pixels")),
            false => Ok(()),
        }
    }
}

/// The view of an image of `width` x `height` pixels, to be shown at `side` x `side`.
///
/// # Source
/// `tpu` and `eval`: the ResNet preprocessing of tensorflow/tpu, July 2019, which the BigBiGAN
/// paper uses (appendix A); `resnet`: torchvision's, of the same ranges. `distorted`: compare_gan,
/// as S3GAN, by torchvision's law instead of TensorFlow's. `biggan` and `full`: BigGAN-PyTorch,
/// with torchvision's `center_crop`; `resize-centre-crop`: torchvision.
pub(crate) fn view(
    mode: Mode,
    (width, height): (usize, usize),
    side: usize,
    random: &mut Stream,
) -> View {
    let short = width.min(height);
    let still = View::of;
    match mode {
        Mode::Resnet => RandomResizedCrop::default().view((width, height), side, random),
        Mode::Tpu => {
            let crop = RandomResizedCrop { law: CropLaw::Tensorflow, ..Default::default() };
            crop.view((width, height), side, random)
        }
        Mode::Distorted => {
            let (scale, ratio) = ((0.5, 1.0), (1.0, 1.0));
            let crop = RandomResizedCrop { scale, ratio, flip: false, ..Default::default() };
            crop.view((width, height), side, random)
        }
        Mode::RandomResizedCrop(crop) => crop.view((width, height), side, random),
        Mode::ResizeCentreCrop { resize } => {
            let long = |length: usize| (resize as f64 * length as f64 / short as f64) as usize;
            let resized =
                if width <= height { (resize, long(height)) } else { (long(width), resize) };
            let offset = |length: usize| centre_offset(length, side);
            let (x, y) = (offset(resized.0), offset(resized.1));
            let crop = Crop { x, y, width: side, height: side };
            View { resized: Some(resized), ..still(crop) }
        }
        Mode::Biggan => {
            let x = random.below((width - short) as u64 + 1) as usize;
            let y = random.below((height - short) as u64 + 1) as usize;
            let crop = Crop { x, y, width: short, height: short };
            View { flip: random.bits() >> 63 == 1, ..still(crop) }
        }
        Mode::Eval => still(eval_crop((width, height), side)),
        Mode::Full => still(full_crop((width, height))),
        Mode::Small => {
            let pad = side / 8;
            let mut shift = || random.below(2 * pad as u64 + 1) as isize - pad as isize;
            let shift = (shift(), shift());
            let flip = random.bits() >> 63 == 1;
            View { flip, shift, ..still(full_crop((width, height))) }
        }
    }
}

/// See [`CropLaw::Torchvision`].
fn torchvision(
    RandomResizedCrop { scale, ratio, .. }: &RandomResizedCrop,
    (width, height): (usize, usize),
    random: &mut Stream,
) -> Crop {
    let area = width as f64 * height as f64;
    for _ in 0..10 {
        let target = area * random.range(scale.0, scale.1);
        let aspect = random.range(ratio.0.ln(), ratio.1.ln()).exp();
        let w = (target * aspect).sqrt().round_ties_even() as usize;
        let h = (target / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let x = random.below((width - w) as u64 + 1) as usize;
            let y = random.below((height - h) as u64 + 1) as usize;
            return Crop { x, y, width: w, height: h };
        }
    }
    central(*ratio, (width, height))
}

/// The largest central crop whose aspect is in the range.
fn central(ratio: (f64, f64), (width, height): (usize, usize)) -> Crop {
    let aspect = width as f64 / height as f64;
    let at_least_one = |length: f64| (length.round_ties_even() as usize).max(1);
    let (w, h) = if aspect < ratio.0 {
        (width, at_least_one(width as f64 / ratio.0).min(height))
    } else if aspect > ratio.1 {
        (at_least_one(height as f64 * ratio.1).min(width), height)
    } else {
        (width, height)
    };
    Crop { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h }
}

/// See [`CropLaw::Tensorflow`]. None where 10 tries do not fit.
fn tensorflow(
    RandomResizedCrop { scale, ratio, .. }: &RandomResizedCrop,
    (width, height): (usize, usize),
    random: &mut Stream,
) -> Option<Crop> {
    let whole = |length: f32| length.round_ties_even() as i64;
    let (w, h) = (width as i64, height as i64);
    let least_area = scale.0 as f32 * w as f32 * h as f32;
    let most_area = scale.1 as f32 * w as f32 * h as f32;
    for _ in 0..10 {
        let aspect = random.range(f64::from(ratio.0 as f32), f64::from(ratio.1 as f32)) as f32;
        let wide = |height: i64| whole(height as f32 * aspect);
        let least = whole((least_area / aspect).sqrt());
        let mut most = whole((most_area / aspect).sqrt());
        if wide(most) > w {
            most = ((w as f64 + 0.5 - f64::from(1e-7_f32)) / f64::from(aspect)) as i64;
            most -= i64::from(wide(most) > w);
        }
        let most = most.min(h);
        let mut height = least.min(most);
        if height < most {
            height += random.below((most - height) as u64 + 1) as i64;
        }
        // One pixel more or less where rounding brought the area out of its range.
        if ((wide(height) * height) as f32) < least_area {
            height += 1;
        }
        if (wide(height) * height) as f32 > most_area {
            height -= 1;
        }
        let width = wide(height);
        let area = (width * height) as f32;
        if area < least_area || area > most_area || width > w || height > h {
            continue;
        }
        if width <= 0 || height <= 0 {
            continue;
        }
        let mut place = |room: i64| if room > 0 { random.below(room as u64) as usize } else { 0 };
        let (y, x) = (place(h - height), place(w - width));
        if area / (w * h) as f32 >= 0.1 {
            return Some(Crop { x, y, width: width as usize, height: height as usize });
        }
    }
    None
}

/// See [`Mode::Eval`]; in single precision as there.
fn eval_crop((width, height): (usize, usize), side: usize) -> Crop {
    let share = (side as f64 / (side as f64 + 32.0)) as f32;
    let square = ((share * width.min(height) as f32) as usize).max(1);
    let offset = |length: usize| (length - square).div_ceil(2);
    Crop { x: offset(width), y: offset(height), width: square, height: square }
}

/// See [`Mode::Full`].
fn full_crop((width, height): (usize, usize)) -> Crop {
    let square = width.min(height);
    let (x, y) = (centre_offset(width, square), centre_offset(height, square));
    Crop { x, y, width: square, height: square }
}

/// What lies before the central `part` of a length, as torchvision's `center_crop` has it.
fn centre_offset(length: usize, part: usize) -> usize {
    (length.saturating_sub(part) as f64 / 2.0).round_ties_even() as usize
}

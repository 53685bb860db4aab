//! Key and image size to a view: which rectangle is seen, and whether it is flipped. Pure geometry.

use serde::{Deserialize, Serialize};

use crate::sampler::Stream;

/// Which part of an image a sample shows, at encoder size R.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Random resized crop: area 8 to 100 %, aspect 3/4 to 4/3 log-uniform, 10 tries, else the
    /// crop of `eval`; flipped with probability 1/2.
    #[default]
    Resnet,
    /// Random square of 50 to 100 % of the area, no flip.
    Distorted,
    /// The square on the short side, at a random place on the long side; flipped with
    /// probability 1/2.
    Biggan,
    /// The central square of side ⌊min(H, W) · R / (R + 32)⌋.
    Eval,
    /// The central square on the short side: short side to R, then centre crop.
    Full,
    /// For sets of small images: the view of `full`, padded by R/8 with its mirror image on all
    /// sides, a random R by R crop of that; flipped with probability 1/2.
    Small,
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
    /// The part of the source image.
    pub crop: Crop,
    /// Whether left and right are exchanged.
    pub flip: bool,
    /// How far the resized picture is moved right and down, mirrored at its borders; pixels.
    pub shift: (isize, isize),
}

/// The view of an image of `width` x `height` pixels, to be shown at `side` x `side`.
///
/// # Source
/// `resnet` and `eval`: the ResNet preprocessing of tensorflow/tpu, July 2019, as the BigBiGAN
/// paper uses it (appendix A), with the aspect drawn log-uniformly as torchvision does;
/// `distorted`: compare_gan, as S3GAN; `biggan`: BigGAN-PyTorch.
pub(crate) fn view(
    mode: Mode,
    (width, height): (usize, usize),
    side: usize,
    random: &mut Stream,
) -> View {
    let short = width.min(height);
    let still = |crop| View { crop, flip: false, shift: (0, 0) };
    match mode {
        Mode::Resnet => {
            let crop = random_crop((width, height), (0.08, 1.0), (0.75, 4.0 / 3.0), random);
            let crop = crop.unwrap_or_else(|| eval_crop((width, height), side));
            View { flip: random.bits() >> 63 == 1, ..still(crop) }
        }
        Mode::Distorted => {
            let crop = random_crop((width, height), (0.5, 1.0), (1.0, 1.0), random);
            still(crop.unwrap_or_else(|| centre((width, height), short)))
        }
        Mode::Biggan => {
            let x = random.below((width - short) as u64 + 1) as usize;
            let y = random.below((height - short) as u64 + 1) as usize;
            let crop = Crop { x, y, width: short, height: short };
            View { flip: random.bits() >> 63 == 1, ..still(crop) }
        }
        Mode::Eval => still(eval_crop((width, height), side)),
        Mode::Full => still(centre((width, height), short)),
        Mode::Small => {
            let pad = side / 8;
            let mut shift = || random.below(2 * pad as u64 + 1) as isize - pad as isize;
            let shift = (shift(), shift());
            let flip = random.bits() >> 63 == 1;
            View { crop: centre((width, height), short), flip, shift }
        }
    }
}

/// A rectangle of random area and aspect at a random place; none when 10 tries do not fit.
fn random_crop(
    (width, height): (usize, usize),
    share: (f64, f64),
    aspect: (f64, f64),
    random: &mut Stream,
) -> Option<Crop> {
    let area = width as f64 * height as f64;
    for _ in 0..10 {
        let target = area * random.range(share.0, share.1);
        let ratio = random.range(aspect.0.ln(), aspect.1.ln()).exp();
        let w = (target * ratio).sqrt().round() as usize;
        let h = (target / ratio).sqrt().round() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let x = random.below((width - w) as u64 + 1) as usize;
            let y = random.below((height - h) as u64 + 1) as usize;
            return Some(Crop { x, y, width: w, height: h });
        }
    }
    None
}

fn eval_crop((width, height): (usize, usize), side: usize) -> Crop {
    let short = width.min(height);
    centre((width, height), (short * side / (side + 32)).max(1))
}

/// The central square; an odd pixel goes to the right and below.
fn centre((width, height): (usize, usize), side: usize) -> Crop {
    Crop { x: (width - side) / 2, y: (height - side) / 2, width: side, height: side }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::Purpose;

    fn views(mode: Mode, size: (usize, usize)) -> impl Iterator<Item = View> {
        (0..4000)
            .map(move |item| view(mode, size, 256, &mut Stream::new(1, 0, item, Purpose::View)))
    }

    const MODES: [Mode; 6] =
        [Mode::Resnet, Mode::Distorted, Mode::Biggan, Mode::Eval, Mode::Full, Mode::Small];

    #[test]
    fn every_view_lies_inside_the_image() {
        for mode in MODES {
            for size in [(1, 1), (1, 500), (500, 1), (2, 3), (300, 200), (4000, 17)] {
                for View { crop, .. } in views(mode, size).take(300) {
                    assert!(crop.width > 0 && crop.height > 0, "{mode:?} {size:?}");
                    assert!(crop.x + crop.width <= size.0, "{mode:?} {size:?} {crop:?}");
                    assert!(crop.y + crop.height <= size.1, "{mode:?} {size:?} {crop:?}");
                }
            }
        }
    }

    #[test]
    fn resnet_crops_follow_their_law() {
        let (mut areas, mut flips, mut wide) = (Vec::new(), 0, 0);
        for View { crop, flip, .. } in views(Mode::Resnet, (1000, 1000)) {
            areas.push((crop.width * crop.height) as f64 / 1e6);
            flips += usize::from(flip);
            wide += usize::from(crop.width > crop.height);
            let aspect = crop.width as f64 / crop.height as f64;
            assert!((0.745..1.342).contains(&aspect), "{crop:?}");
        }
        areas.sort_by(f64::total_cmp);
        // Crops near the whole area that are not square do not fit and are drawn again, so the
        // median lies a little under the middle of 8 and 100 %.
        assert!((0.079..0.09).contains(&areas[0]), "smallest {}", areas[0]);
        assert!((0.45..0.54).contains(&areas[2000]), "median {}", areas[2000]);
        assert!((1880..2120).contains(&flips), "{flips} flips of 4000");
        assert!((1880..2120).contains(&wide), "{wide} of 4000 are wide: not log-uniform");
    }

    #[test]
    fn eval_takes_the_centre() {
        let seen = views(Mode::Eval, (500, 375)).next().map(|view| view.crop);
        // floor(375 * 256 / 288) = 333
        assert_eq!(seen, Some(Crop { x: 83, y: 21, width: 333, height: 333 }));
        let seen = views(Mode::Full, (500, 375)).next().map(|view| view.crop);
        assert_eq!(seen, Some(Crop { x: 62, y: 0, width: 375, height: 375 }));
    }

    #[test]
    fn distorted_crops_are_square_and_never_flipped() {
        for View { crop, flip, .. } in views(Mode::Distorted, (400, 300)) {
            assert!(!flip && crop.width == crop.height);
        }
    }

    #[test]
    fn biggan_squares_reach_both_ends() {
        let xs: Vec<_> = views(Mode::Biggan, (310, 300)).map(|view| view.crop.x).collect();
        assert_eq!((xs.iter().min(), xs.iter().max()), (Some(&0), Some(&10)));
    }

    #[test]
    fn small_views_shift_both_ways() {
        let shifts: Vec<_> = views(Mode::Small, (32, 32)).map(|view| view.shift.1).collect();
        assert_eq!((shifts.iter().min(), shifts.iter().max()), (Some(&-32), Some(&32)));
    }
}

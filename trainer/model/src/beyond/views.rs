use tch::{Kind, Tensor, no_grad};
use torch_ext::context::autocast;

use crate::nn::channels_last;

/// Uniform numbers that another view of an image takes.
pub(super) const UNIFORMS: i64 = 12;

/// Another view of each image: a part of it at the image's own size, mirrored or not, in other colours or grey.
///
/// # Shapes
/// x (N, 3, R, R) in [-1, 1], `uniforms` (N, 12) in [-1, 1], to (N, 3, R, R).
///
/// # Source
/// Chen et al. 2020 (SimCLR), appendix A: the area of the part is uniform from `least_area` to 1, the mirror image has
/// even chances, colours change with chance 0.8 and are dropped with 0.2. Ours: the part is a square, and colours change by
/// brightness, contrast, saturation and a shift of each channel, not by hue; `colour` scales all that.
pub(super) fn another(x: &Tensor, uniforms: &Tensor, least_area: f64, colour: f64) -> Tensor {
    // bfloat16 would move places by up to a third of a pixel.
    let view = || coloured(&part(x, uniforms, least_area), uniforms, colour);
    autocast(false, || no_grad(view))
}

/// Column `i` of the uniform numbers, (N).
fn column(uniforms: &Tensor, i: i64) -> Tensor {
    uniforms.select(1, i)
}

/// Columns 0 to 3.
fn part(x: &Tensor, uniforms: &Tensor, least_area: f64) -> Tensor {
    let area = (column(uniforms, 0) + 1.0) * (0.5 * (1.0 - least_area)) + least_area;
    let side = area.sqrt();
    let room = 1f64 - &side;
    let mirror = column(uniforms, 3).ge(0.0).to_kind(Kind::Float) * 2.0 - 1.0;
    let none = side.zeros_like();
    let across =
        Tensor::stack(&[&side * mirror, none.shallow_clone(), column(uniforms, 1) * &room], 1);
    let down = Tensor::stack(&[none, side, column(uniforms, 2) * room], 1);
    let places = Tensor::affine_grid_generator(&Tensor::stack(&[across, down], 1), x.size(), false);
    // Bilinear; beyond the border, its values.
    x.grid_sampler(&places, 0, 1, false)
}

/// Columns 4 to 11.
fn coloured(x: &Tensor, uniforms: &Tensor, colour: f64) -> Tensor {
    let each = |i: i64| column(uniforms, i).view([-1, 1, 1, 1]);
    let by = |i: i64, most: f64| each(i) * (most * colour);
    let brighter = x + by(5, 0.4);
    let over_all = [1i64, 2, 3];
    let middle = brighter.mean_dim(over_all.as_slice(), true, None::<Kind>);
    let contrasted = (brighter - &middle) * (by(6, 0.4) + 1.0) + middle;
    let grey = grey(&contrasted);
    let saturated = (contrasted - &grey) * (by(7, 0.6) + 1.0) + grey;
    let shifted = saturated + uniforms.narrow(1, 8, 3).view([-1, 3, 1, 1]) * (0.15 * colour);
    // u < 0.6 has chance 0.8, u < -1 + 0.4 c has 0.2 c.
    let changed = shifted.where_self(&each(4).lt(0.6), x);
    let dropped = self::grey(&changed).expand_as(&changed);
    let all = dropped.where_self(&each(11).lt(0.4 * colour - 1.0), &changed);
    channels_last(&all.clamp(-1.0, 1.0))
}

/// The mean over the channels, (N, 1, R, R).
fn grey(x: &Tensor) -> Tensor {
    x.mean_dim([1i64].as_slice(), true, None::<Kind>)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::random::{Key, Prior, Purpose};

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn uniforms(rows: i64) -> Tensor {
        let key = Key { seed: 5, purpose: Purpose::Views, step: 0, update: 0 };
        key.latents(Prior::Uniform, 0..rows, UNIFORMS, Device::Cpu)
    }

    fn ramp(rows: i64) -> Tensor {
        let across = Tensor::arange(32, FLOAT) / 16.0 - 1.0 + 1.0 / 32.0;
        let down = across.view([32, 1]).expand([32, 32], false);
        let across = across.view([1, 32]).expand([32, 32], false);
        let x = Tensor::stack(&[across.shallow_clone(), down, across * 0.0], 0);
        x.unsqueeze(0).expand([rows, 3, 32, 32], false).contiguous()
    }

    /// The channels of a ramp say where each value was taken.
    #[test]
    fn a_view_is_a_part_of_its_image_as_large_as_said_and_mirrored_half_the_time() {
        let (rows, x) = (400, ramp(400));
        let view = part(&x, &uniforms(rows), 0.25);
        let ends = |channel: i64, dim: i64| {
            let line = view.select(1, channel).mean_dim([3 - dim].as_slice(), false, Kind::Float);
            let first = line.select(1, 0);
            (line.select(1, 31) - &first, first)
        };
        let (wide, left) = ends(0, 2);
        let (high, top) = ends(1, 1);
        assert!((wide.abs() - &high).abs().max().double_value(&[]) < 0.05, "a square");
        assert!(high.min().double_value(&[]) > 0.9, "a quarter of the area at least");
        let sides = high / (2.0 * 31.0 / 32.0);
        let areas = sides.square();
        assert!((areas.mean(Kind::Float).double_value(&[]) - 0.625).abs() < 0.03);
        for edge in [left, top] {
            assert!(edge.abs().max().double_value(&[]) <= 1.0);
        }
        let mirrored = wide.lt(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        assert!((mirrored - 0.5).abs() < 0.08, "{mirrored}");
        // Places are as even as the room allows: the middle is in the middle.
        let middle = view.mean_dim([0i64, 2, 3].as_slice(), false, Kind::Float);
        assert!(middle.abs().max().double_value(&[]) < 0.05, "{middle}");
    }

    #[test]
    fn colours_change_four_times_in_five_and_are_dropped_once_in_five() {
        let x = Tensor::randn([500, 3, 8, 8], FLOAT).clamp(-1.0, 1.0) * 0.3;
        let view = coloured(&x, &uniforms(500), 1.0);
        let over = [1i64, 2, 3];
        let share = |t: Tensor| t.to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        let changed = (&view - &x).abs().amax(over.as_slice(), false).gt(1e-4);
        // Grey, or changed and not grey: 0.2 + 0.8 · 0.8.
        assert!((share(changed) - 0.84).abs() < 0.04);
        let grey = (&view - grey(&view)).abs().amax(over.as_slice(), false).lt(1e-5);
        assert!((share(grey) - 0.2).abs() < 0.05);
        let off = (coloured(&x, &uniforms(500), 0.0) - &x).abs().max().double_value(&[]);
        assert!(off < 1e-6, "{off}");
    }

    #[test]
    fn a_view_depends_on_its_own_image_and_numbers_alone() {
        let (x, u) = (Tensor::randn([6, 3, 16, 16], FLOAT).tanh(), uniforms(6));
        let whole = another(&x, &u, 0.3, 1.0);
        let rows = another(&x.narrow(0, 2, 3), &u.narrow(0, 2, 3), 0.3, 1.0);
        assert_eq!(whole.narrow(0, 2, 3), rows);
        assert!(whole.abs().max().double_value(&[]) <= 1.0);
        assert_eq!(
            autocast(true, || another(&x, &u, 0.3, 1.0)),
            whole,
            "in single precision always"
        );
    }
}

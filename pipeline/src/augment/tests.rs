use super::*;
use crate::sampler::Purpose;

fn views(mode: Mode, size: (usize, usize)) -> impl Iterator<Item = View> {
    (0..4000).map(move |item| view(mode, size, 256, &mut Stream::new(1, 0, item, Purpose::View)))
}

#[test]
fn every_view_lies_inside_the_image() {
    let (scale, ratio) = ((0.01, 0.3), (0.2, 7.0));
    let own = [CropLaw::Torchvision, CropLaw::Tensorflow]
        .map(|law| Mode::RandomResizedCrop(RandomResizedCrop { scale, ratio, law, flip: true }));
    let own = own.into_iter().chain([Mode::ResizeCentreCrop { resize: 300 }]);
    for mode in NAMES.map(|(_, mode)| mode).into_iter().chain(own) {
        for size in [(1, 1), (1, 500), (500, 1), (2, 3), (300, 200), (4000, 17)] {
            for view in views(mode, size).take(300) {
                assert_eq!(view.check(size, 256), Ok(()), "{mode:?} {size:?} {view:?}");
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

/// What `tests/golden/crops.py` writes.
#[derive(Debug, Deserialize)]
struct Golden {
    fallbacks: Vec<Place>,
    full: Vec<Place>,
    eval: Vec<Place>,
    torchvision: Vec<Statistics>,
    tensorflow: Vec<Statistics>,
}

#[derive(Debug, Deserialize)]
struct Place {
    size: (usize, usize),
    #[serde(default)]
    ratio: (f64, f64),
    #[serde(default)]
    side: usize,
    crop: [usize; 4],
}

#[derive(Debug, Deserialize)]
struct Statistics {
    size: (usize, usize),
    area: f64,
    deciles: Vec<f64>,
    aspect: f64,
    x: f64,
    y: f64,
    whole: f64,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../tests/golden/crops.json")).unwrap()
}

#[test]
fn central_crops_are_torchvision_s_and_tensorflow_s() {
    let numbers = |crop: Crop| [crop.x, crop.y, crop.width, crop.height];
    let golden = golden();
    assert!(golden.fallbacks.len() > 15 && golden.full.len() == 10 && golden.eval.len() == 35);
    for place in golden.fallbacks {
        assert_eq!(numbers(central(place.ratio, place.size)), place.crop, "{place:?}");
    }
    for place in golden.full {
        let mut random = Stream::new(1, 0, 0, Purpose::View);
        let seen = view(Mode::Full, place.size, 256, &mut random);
        assert_eq!(numbers(seen.crop), place.crop, "{place:?}");
    }
    for place in golden.eval {
        let mut random = Stream::new(1, 0, 0, Purpose::View);
        let seen = view(Mode::Eval, place.size, place.side, &mut random);
        assert_eq!(numbers(seen.crop), place.crop, "{place:?}");
    }
}

/// Holds 4,000 crops to the statistics of 40,000: within 4.5 standard errors.
fn check_law(wanted: &Statistics, law: CropLaw) {
    let size = wanted.size;
    let mode = Mode::RandomResizedCrop(RandomResizedCrop { law, ..Default::default() });
    // The fallback of tensorflow/tpu, which the statistics have as the whole image.
    let fallback = eval_crop(size, 256);
    let crops: Vec<_> = views(mode, size)
        .map(|view| match law {
            CropLaw::Tensorflow if view.crop == fallback => {
                Crop { x: 0, y: 0, width: size.0, height: size.1 }
            }
            _ => view.crop,
        })
        .collect();
    let place = |at: usize, length: usize, size: usize| at as f64 / (size - length).max(1) as f64;
    let all = (size.0 * size.1) as f64;
    let area = |crop: &Crop| (crop.width * crop.height) as f64 / all;
    let check = |name: &str, wanted: f64, of: &dyn Fn(&Crop) -> f64| {
        let count = crops.len() as f64;
        let mean = crops.iter().map(of).sum::<f64>() / count;
        let variance = crops.iter().map(|crop| (of(crop) - mean).powi(2)).sum::<f64>() / count;
        let error = 4.5 * (variance * (1.0 / count + 1.0 / 40_000.0)).sqrt() + 1e-3;
        assert!((mean - wanted).abs() < error, "{name} of {size:?}, {law:?}: {mean}, {wanted}");
    };
    check("area", wanted.area, &area);
    check("aspect", wanted.aspect, &|crop| (crop.width as f64 / crop.height as f64).ln());
    check("x", wanted.x, &|crop| place(crop.x, crop.width, size.0));
    check("y", wanted.y, &|crop| place(crop.y, crop.height, size.1));
    check("whole", wanted.whole, &|crop| f64::from(u8::from((crop.width, crop.height) == size)));
    // Where many crops have one area, a decile may lie anywhere among them.
    for (n, &decile) in wanted.deciles.iter().enumerate() {
        let share = |of: &dyn Fn(f64) -> bool| {
            crops.iter().filter(|crop| of(area(crop))).count() as f64 / crops.len() as f64
        };
        let (below, up_to) = (share(&|area| area < decile), share(&|area| area <= decile));
        let wanted = (n + 1) as f64 / 10.0;
        assert!(
            below - 0.04 < wanted && wanted < up_to + 0.04,
            "decile of {size:?}, {law:?}: {below} to {up_to}, {wanted}"
        );
    }
}

#[test]
fn random_crops_follow_torchvision_s_law_or_tensorflow_s() {
    let golden = golden();
    assert_eq!((golden.torchvision.len(), golden.tensorflow.len()), (7, 7));
    golden.torchvision.iter().for_each(|wanted| check_law(wanted, CropLaw::Torchvision));
    golden.tensorflow.iter().for_each(|wanted| check_law(wanted, CropLaw::Tensorflow));
    // The two are not alike.
    let [one, other] = [&golden.torchvision[0], &golden.tensorflow[0]];
    assert!(one.area - other.area > 0.04, "{} and {}", one.area, other.area);
}

#[test]
fn tensorflow_s_law_shows_the_crop_of_eval_where_nothing_fits() {
    // 75 of 8,000 pixels can be seen at most, less than 8 % of the area.
    let seen = views(Mode::Tpu, (75, 8000)).map(|view| view.crop);
    assert!(seen.into_iter().all(|crop| crop == eval_crop((75, 8000), 256)));
    let seen = views(Mode::Resnet, (75, 8000)).map(|view| view.crop);
    let central = Crop { x: 0, y: 3950, width: 75, height: 100 };
    assert!(seen.into_iter().all(|crop| crop == central));
}

#[test]
fn a_resized_picture_is_cut_in_its_centre() {
    let seen = |size, side| {
        let mut random = Stream::new(1, 0, 0, Purpose::View);
        let view = view(Mode::ResizeCentreCrop { resize: 288 }, size, side, &mut random);
        (view.resized, [view.crop.x, view.crop.y, view.crop.width, view.crop.height])
    };
    // int(288 * 500 / 375) = 384
    assert_eq!(seen((500, 375), 256), (Some((384, 288)), [64, 16, 256, 256]));
    // int(288 * 501 / 333) = 433; round(177 / 2) is even
    assert_eq!(seen((333, 501), 256), (Some((288, 433)), [16, 88, 256, 256]));
    assert_eq!(seen((1, 1), 288), (Some((288, 288)), [0, 0, 288, 288]));
    let mode = Mode::ResizeCentreCrop { resize: 100 };
    assert!(mode.check(101).unwrap_err().contains("101 (large) to 65536"));
    assert_eq!((mode.check(100), mode.to_string().parse()), (Ok(()), Ok(mode)));
    for text in
        ["resize-centre-crop", "resize-centre-crop,resize=x", "resize-centre-crop,resize=1,2"]
    {
        assert!(text.parse::<Mode>().unwrap_err().contains("resize=PIXELS"), "{text}");
    }
}

#[test]
fn a_view_that_does_not_fit_is_refused() {
    let crop = |x, y, width, height| View::of(Crop { x, y, width, height });
    let resized = |view: View, to| View { resized: Some(to), ..view };
    let check = |view: View| view.check((50, 40), 16);
    for good in [crop(0, 0, 50, 40), crop(49, 39, 1, 1), resized(crop(84, 4, 16, 16), (100, 20))] {
        assert_eq!(check(good), Ok(()), "{good:?}");
    }
    for bad in [
        crop(0, 0, 51, 40),
        crop(50, 0, 1, 1),
        crop(0, 0, 0, 40),
        crop(usize::MAX, 0, 2, 2),
        resized(crop(0, 0, 16, 15), (100, 20)),
        resized(crop(85, 4, 16, 16), (100, 20)),
        resized(crop(0, 0, 16, 16), (1 << 21, 20)),
        View { shift: (0, 16), ..crop(0, 0, 50, 40) },
        View { shift: (isize::MIN, 0), ..crop(0, 0, 50, 40) },
    ] {
        assert!(check(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn modes_are_words_and_come_back_from_them() {
    for (name, mode) in NAMES {
        assert_eq!((mode.to_string().as_str(), name.parse()), (name, Ok(mode)));
        assert_eq!(serde_json::to_value(mode).unwrap(), name);
    }
    assert_eq!(serde_json::from_value::<Mode>("resnet".into()).unwrap(), Mode::Resnet);
    let crop = RandomResizedCrop::default();
    let mode = |text: &str| text.parse::<Mode>();
    assert_eq!(mode("random-resized-crop"), Ok(Mode::RandomResizedCrop(crop)));
    let own = RandomResizedCrop {
        scale: (0.2, 1.0),
        ratio: (0.5, 2.0),
        law: CropLaw::Tensorflow,
        flip: false,
    };
    let text = "random-resized-crop, scale=0.2..1, ratio=0.5..2, law=tensorflow, flip=false";
    assert_eq!(mode(text), Ok(Mode::RandomResizedCrop(own)));
    for mode in [own, crop].map(Mode::RandomResizedCrop) {
        assert_eq!(mode.to_string().parse(), Ok(mode));
    }
    for (text, names) in [
        ("resnt", "resnet, tpu"),
        ("resnet,scale=1..1", "unknown mode"),
        ("random-resized-crop,scale=0.2", "scale=0.2"),
        ("random-resized-crop,scale=0..1", "above 0"),
        ("random-resized-crop,scale=0.5..0.2", "the smaller first"),
        ("random-resized-crop,scale=0.5..2", "at most 1"),
        ("random-resized-crop,ratio=0..1", "width over height"),
        ("random-resized-crop,ratio=1..inf", "width over height"),
        ("random-resized-crop,ratio=NaN..1", "width over height"),
        ("random-resized-crop,law=pytorch", "law=pytorch"),
        ("random-resized-crop,size=3", "size=3"),
    ] {
        let error = mode(text).unwrap_err();
        assert!(error.contains(names), "{text}: {error}");
    }
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

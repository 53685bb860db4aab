//! Pictures of what a model holds: neighbours, ways through its codes, its first filters.

use std::path::PathBuf;

use tch::Tensor;
use trainer::error::Result;
use trainer::eval::features::Feature;
use trainer::eval::{Model, knn, pictures};
use trainer::run::open_data;
use trainer::say;

use super::{ModelArgs, usage};

/// Where a picture goes.
#[derive(Debug, clap::Args)]
pub(crate) struct Picture {
    #[command(flatten)]
    source: ModelArgs,
    /// PNG to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Picture {
    fn save(&self, images: &Tensor, columns: i64) -> Result<()> {
        pictures::save(&pictures::grid(images, columns as u32), &self.out)?;
        say::print(self.out.display())?;
        Ok(())
    }

    fn model(&self) -> Result<Model> {
        super::pictures::check_place(&self.out)?;
        self.source.model(&self.source.config()?, self.source.variant())
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer neighbors --run demo/run --split val --out neighbors.png")]
pub(crate) struct NeighborsArgs {
    #[command(flatten)]
    picture: Picture,
    /// Split of the images that neighbours are sought of [default: the run's eval.split]
    #[arg(long)]
    split: Option<String>,
    /// How many of them, a row each
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i64).range(1..=256))]
    count: i64,
    /// Training images beside each
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(i64).range(1..=50))]
    k: i64,
    /// avepool, mu, map, stage1, stage2, … or pixels
    #[arg(long, default_value = "avepool")]
    feature: Feature,
    /// l1, l2 or cosine
    #[arg(long, default_value = "l1", value_parser = super::embed::distance)]
    distance: knn::Distance,
}

pub(crate) fn neighbors(args: &NeighborsArgs) -> Result<()> {
    if args.feature == Feature::BnCrelu {
        return Err(usage(
            "neighbours are found by avepool, mu, map, a stage or pixels, not bn_crelu",
        ));
    }
    let config = args.picture.source.config()?;
    let (train, split) = (
        open_data(&config, "train")?,
        open_data(&config, args.split.as_ref().unwrap_or(&config.eval.split))?,
    );
    let model = args.picture.model()?;
    let by = (args.feature, args.distance);
    let images = pictures::neighbours(&model, &train, &split, by, (args.count, args.k))?;
    args.picture.save(&images, args.k.min(train.len() as i64) + 1)
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer interpolate --run demo/run --codes --out ways.png")]
pub(crate) struct InterpolateArgs {
    #[command(flatten)]
    picture: Picture,
    /// Between the codes of images, rather than between latents
    #[arg(long)]
    codes: bool,
    /// Split of --codes [default: the run's eval.split]
    #[arg(long, requires = "codes")]
    split: Option<String>,
    /// Ways, a row each
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i64).range(1..=256))]
    rows: i64,
    /// Images on each, ends included
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i64).range(2..=64))]
    steps: i64,
    /// Which latents; those of `sample` with the same number
    #[arg(long, default_value_t = 0)]
    draw: u64,
}

pub(crate) fn interpolate(args: &InterpolateArgs) -> Result<()> {
    let model = args.picture.model()?;
    let codes = if args.codes {
        let split = args.split.as_ref().unwrap_or(&model.config().eval.split);
        let split = open_data(model.config(), split)?;
        let mut codes = vec![];
        for images in model.images(&split, model.config().eval.mode, 2 * args.rows)? {
            codes.push(model.encode(&images?)?.1.code.mean().shallow_clone());
        }
        Tensor::cat(&codes, 0)
    } else {
        model.latents(args.draw, 2 * args.rows)
    };
    let rows = codes.size()[0] / 2;
    if rows == 0 {
        return Err(usage("a way needs two images, and the split has one"));
    }
    let (from, to) = (codes.narrow(0, 0, rows), codes.narrow(0, rows, rows));
    let images = pictures::interpolations(&model, &from, &to, args.steps);
    args.picture.save(&images, args.steps)
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer traverse --run demo/run --out chunks.png\n\n\
    Row i changes the latents that feed layer i of the generator, and no others.")]
pub(crate) struct TraverseArgs {
    #[command(flatten)]
    picture: Picture,
    /// Images of a row, from one latent to another
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i64).range(2..=64))]
    steps: i64,
    /// Which latents; the first two of `sample` with the same number
    #[arg(long, default_value_t = 0)]
    draw: u64,
}

pub(crate) fn traverse(args: &TraverseArgs) -> Result<()> {
    let model = args.picture.model()?;
    let z = model.latents(args.draw, 2);
    let images = pictures::traversals(&model, &z.narrow(0, 0, 1), &z.narrow(0, 1, 1), args.steps);
    args.picture.save(&images, args.steps)
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer filters --run demo/run --out filters.png")]
pub(crate) struct FiltersArgs {
    #[command(flatten)]
    picture: Picture,
}

pub(crate) fn filters(args: &FiltersArgs) -> Result<()> {
    let filters = pictures::filters(&args.picture.model()?)?;
    let columns = (filters.size()[0] as f64).sqrt().ceil() as i64;
    args.picture.save(&filters, columns)
}

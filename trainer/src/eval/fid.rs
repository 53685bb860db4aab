//! Generated images against real ones: Fréchet distance, Inception score, kernel distance, precision,
//! recall, density and coverage, all in one pass over the images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::files;
use pipeline::{Dataset, Mode};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::extractor::Extractor;
use super::metrics::{Moments, frechet, inception_score, kernel_distance, prdc};
use super::resize::Resizer;
use super::{Model, Subject};
use crate::checkpoint::{Named, read_tensors, write_tensors};
use crate::device::to_u8;
use crate::error::{Error, Result};

/// Rows of a part of the kernel distance.
pub const KERNEL_PART: i64 = 1000;
/// Neighbour that a ball of precision and its kin reaches to (Naeem et al. 2020).
pub const NEAREST: i64 = 5;
/// Images generated at a time.
const BATCH: i64 = 64;
/// Latents that scores are made of; pictures use 0, standing statistics small numbers.
const DRAW: u64 = 1 << 32;

/// A whole comparison.
#[derive(Debug)]
pub struct Task {
    /// What images are compared by.
    pub extractor: Extractor,
    /// How they reach it.
    pub resizer: Resizer,
    /// Generated images.
    pub images: i64,
    /// Real images.
    pub reference: Arc<Dataset>,
    /// How many of them.
    pub reference_images: i64,
    /// Images of either side behind kernel distance, precision, recall, density and coverage.
    pub manifold_images: i64,
    /// Parts of the Inception score.
    pub splits: i64,
    /// Which latents: of the same number the same images.
    pub draw: u64,
    /// Folder of reference statistics made before; none to make them anew. One that cannot be read or
    /// written is warned of, and done without.
    pub cache: Option<PathBuf>,
}

/// What came out, with all that is needed to find it again: a line of `evaluations.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// `fid` if the extractor is the Inception of 2015, else `fd-EXTRACTOR`.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// All scores by name. Only those of the Inception of 2015 are called fid, is and kid; others are
    /// fd, cs (class score) and kd with the extractor's name behind them.
    pub scores: BTreeMap<String, f64>,
    /// What was evaluated.
    #[serde(flatten)]
    pub subject: Subject,
    /// Split of the real images.
    pub split: String,
    /// How many of them.
    pub reference_images: i64,
    /// How they were cropped: the whole short side, resized to R_G.
    pub crop: Mode,
    /// Generated images, rounded to u8.
    pub images: i64,
    /// Images of either side behind kernel distance, precision, recall, density and coverage.
    pub manifold_images: i64,
    /// Rows of a part of the kernel distance.
    pub kernel_part: i64,
    /// k of precision, recall, density and coverage.
    pub nearest: i64,
    /// Parts of the Inception score.
    pub splits: i64,
    /// Which latents.
    pub draw: u64,
    /// `train.seed`, which is part of their key.
    pub seed: u64,
    /// SHA-256 of the extractor's file.
    pub extractor: String,
    /// How images reached it.
    pub resizer: Resizer,
}

/// Statistics of one side.
#[derive(Debug)]
struct Side {
    mean: Tensor,
    covariance: Tensor,
    /// Features of the first images, (manifold images, D).
    rows: Tensor,
    /// Class probabilities of all, (N, K).
    probabilities: Option<Tensor>,
}

/// What reference statistics follow from; its hash names their file.
#[derive(Debug, Serialize)]
struct Provenance<'a> {
    format: u32,
    data: u64,
    split: &'a str,
    images: i64,
    side: i64,
    filter: pipeline::Filter,
    crop: Mode,
    manifold_images: i64,
    extractor: &'a str,
    resizer: Resizer,
}

impl Task {
    /// Scores the model at each truncation (none: the whole prior).
    ///
    /// # Errors
    /// [`Error::Data`], [`Error::Torch`] from a script;
    /// [`Error::Config`] for counts that are too small, and truncations a run cannot have.
    pub fn run(&self, model: &mut Model, truncations: &[Option<f64>]) -> Result<Vec<Line>> {
        let reference_images = self.reference_images.min(self.reference.len() as i64);
        let manifold_images = self.manifold_images.min(self.images).min(reference_images);
        let refuse = |problem: String| Err(Error::Config { problems: vec![problem] });
        if manifold_images <= NEAREST {
            return refuse(format!(
                "{manifold_images} images a side; precision and its kin need more than {NEAREST}"
            ));
        }
        if self.splits < 1 || self.splits > self.images {
            return refuse(format!("{} splits of {} images", self.splits, self.images));
        }
        let real = self.reference(model, reference_images, manifold_images)?;
        let mut lines = vec![];
        for truncation in truncations {
            model.truncate(*truncation)?;
            let fake = self.generated(model, manifold_images)?;
            let scores = self.scores(&real, &fake);
            let metric = self.name("fid");
            lines.push(Line {
                value: scores[&metric],
                metric,
                scores,
                subject: model.subject().clone(),
                split: self.reference.split().to_owned(),
                reference_images,
                crop: Mode::Full,
                images: self.images,
                manifold_images,
                kernel_part: KERNEL_PART.min(manifold_images),
                nearest: NEAREST,
                splits: self.splits,
                draw: self.draw,
                seed: model.config().train.seed,
                extractor: self.extractor.sha256.clone(),
                resizer: self.resizer,
            });
        }
        Ok(lines)
    }

    /// A score's name with this extractor.
    fn name(&self, score: &str) -> String {
        if self.extractor.name == "inception" {
            return score.to_owned();
        }
        let general = match score {
            "fid" => "fd",
            "kid" => "kd",
            "kid_std" => "kd_std",
            "is" => "cs",
            "is_std" => "cs_std",
            other => other,
        };
        format!("{general}-{}", self.extractor.name)
    }

    fn scores(&self, real: &Side, fake: &Side) -> BTreeMap<String, f64> {
        let distance = frechet((&real.mean, &real.covariance), (&fake.mean, &fake.covariance));
        let kernel = kernel_distance(&real.rows, &fake.rows, KERNEL_PART);
        let p = prdc(&real.rows, &fake.rows, NEAREST);
        let mut all = vec![
            ("fid", distance),
            ("kid", kernel.mean),
            ("kid_std", kernel.std),
            ("precision", p.precision),
            ("recall", p.recall),
            ("density", p.density),
            ("coverage", p.coverage),
        ];
        if let Some(probabilities) = &fake.probabilities {
            let score = inception_score(probabilities, self.splits);
            all.extend([("is", score.mean), ("is_std", score.std)]);
        }
        all.into_iter().map(|(name, value)| (self.name(name), value)).collect()
    }

    fn generated(&self, model: &Model, manifold_images: i64) -> Result<Side> {
        let batches = (0..self.images).step_by(BATCH as usize).map(|first| {
            model.stop().check()?;
            let rows = BATCH.min(self.images - first);
            let z = model.latents_from(DRAW + self.draw, first, rows);
            Ok(to_u8(&model.generate(&z)))
        });
        self.gather(batches, manifold_images)
    }

    fn reference(&self, model: &Model, count: i64, manifold_images: i64) -> Result<Side> {
        let provenance = Provenance {
            format: 2,
            data: self.reference.fingerprint(),
            split: self.reference.split(),
            images: count,
            side: model.config().g.res,
            filter: model.config().data.filter,
            crop: Mode::Full,
            manifold_images,
            extractor: &self.extractor.sha256,
            resizer: self.resizer,
        };
        let text = serde_json::to_string(&provenance).expect("plain values");
        let path = self
            .cache
            .as_ref()
            .map(|dir| dir.join(format!("{}.safetensors", files::sha256(text.as_bytes()))));
        let warn = |doing: &str, path: &Path, error: Error| {
            let path = path.display();
            tracing::warn!("{path}: reference statistics cannot be {doing}: {error}");
        };
        if let Some(path) = path.as_ref().filter(|path| path.exists()) {
            match self.read(path, manifold_images) {
                Ok(side) => return Ok(side),
                Err(error) => warn("used, and are made anew", path, error),
            }
        }
        let images =
            model.references(&self.reference, count)?.map(|batch| Ok(to_u8(&batch?.0.small)));
        let side = self.gather(images, manifold_images)?;
        if let Some(path) = path
            && let Err(error) = write(&path, &side, provenance)
        {
            warn("kept for the next time", &path, error);
        }
        Ok(side)
    }

    fn read(&self, path: &Path, manifold_images: i64) -> Result<Side> {
        let about = path.with_extension("json");
        let about_bytes = std::fs::read(&about).map_err(Error::io("read", &about))?;
        let damaged = |path: &Path, what: String| {
            Error::io("use", path)(std::io::Error::new(std::io::ErrorKind::InvalidData, what))
        };
        let kept: Kept = serde_json::from_slice(&about_bytes)
            .map_err(|e| damaged(&about, format!("{e}: it is damaged")))?;
        let hash = std::fs::File::open(path).and_then(files::sha256_of);
        if hash.map_err(Error::io("read", path))?.1 != kept.sha256 {
            return Err(damaged(path, "it is damaged (another SHA-256 than it had)".into()));
        }
        let width = self.extractor.width()?;
        let empty = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
        let mut tensors = vec![
            ("mean".to_owned(), empty(&[width], Kind::Double)),
            ("covariance".to_owned(), empty(&[width, width], Kind::Double)),
            ("rows".to_owned(), empty(&[manifold_images, width], Kind::Float)),
        ];
        read_tensors(path, &mut tensors)?;
        let mut take = || tensors.remove(0).1;
        Ok(Side { mean: take(), covariance: take(), rows: take(), probabilities: None })
    }

    fn gather(
        &self,
        images: impl Iterator<Item = Result<Tensor>>,
        manifold_images: i64,
    ) -> Result<Side> {
        let mut moments = None;
        let (mut rows, mut probabilities) = (vec![], vec![]);
        let mut kept = 0;
        for images in images {
            let side = self.extractor.input().0;
            for images in images?.split(BATCH, 0) {
                let found = self.extractor.extract(&self.resizer.apply(&images, side))?;
                let features = found.features.to_device(Device::Cpu);
                let (n, width) = features.size2()?;
                moments.get_or_insert_with(|| Moments::new(width)).add(&features);
                let keep = n.min(manifold_images - kept);
                rows.push(features.narrow(0, 0, keep));
                kept += keep;
                probabilities.extend(found.probabilities.map(|p| p.to_device(Device::Cpu)));
            }
        }
        let moments = moments.unwrap_or_else(|| Moments::new(0));
        Ok(Side {
            mean: moments.mean(),
            covariance: moments.covariance(),
            rows: Tensor::cat(&rows, 0),
            probabilities: (!probabilities.is_empty()).then(|| Tensor::cat(&probabilities, 0)),
        })
    }
}

/// What is beside the statistics and says whether they are whole.
#[derive(Debug, Deserialize)]
struct Kept {
    sha256: String,
}

/// The statistics and, beside them, what they follow from and their hash.
fn write(path: &Path, side: &Side, provenance: Provenance<'_>) -> Result<()> {
    #[derive(Serialize)]
    struct Record<'a> {
        #[serde(flatten)]
        provenance: Provenance<'a>,
        sha256: String,
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let named: Named =
        [("mean", &side.mean), ("covariance", &side.covariance), ("rows", &side.rows)]
            .map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()))
            .into();
    let aside = path.with_extension(format!("partial.{}", std::process::id()));
    let attempt = || {
        let sha256 = write_tensors(&aside, &named)?.sha256;
        files::rename(&aside, path).map_err(Error::io("rename", &aside))?;
        let about = serde_json::to_vec(&Record { provenance, sha256 }).expect("plain values");
        let json = path.with_extension("json");
        files::replace_file(&json, &about).map_err(Error::io("write", &json))
    };
    attempt().inspect_err(|_| drop(std::fs::remove_file(&aside)))
}

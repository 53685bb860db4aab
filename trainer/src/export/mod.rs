//! Trained networks for other programs: safetensors, and TorchScript that plain PyTorch opens.
//!
//! Weights are the averages, with W/σ in place of W where a spectral norm is held, and batch norm
//! reads standing statistics: nothing of training is left in them. Both files of a network hold the
//! same tensors under the same names, on the CPU, in single precision.

mod card;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bigbigan_model::networks::{Code, Encoder};
use bigbigan_model::nn::{Params, Statistics};
use common::files;
use pipeline::Dataset;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;
use serde_json::Value;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::script::{Forward, Module, Named};

use crate::checkpoint::note_of;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::eval::linear::BN_EPS;
use crate::eval::{Model, Subject};
use crate::provenance::Provenance;
pub use card::Card;

/// Keys of what an exported encoder returns, those of the published module.
///
/// - `z_sample`, `z_mean`, `z_stdev` (N, Z): a draw from the code, its mean and deviation (0 for a
///   deterministic encoder). The draw uses PyTorch's own random numbers.
/// - `avepool_feat` (N, features): a, the pooled trunk feature.
/// - `bn_crelu_feat` (N, 2 · features): [ReLU(h), ReLU(−h)] of h = BN(a).
pub const OUTPUTS: [&str; 5] = ["z_sample", "z_mean", "z_stdev", "avepool_feat", "bn_crelu_feat"];

/// What says what made an export.
const ABOUT: &str = "export.json";
/// The model card, where hubs look for it.
const CARD: &str = "README.md";
/// Where it goes beside one that was edited.
const NEW_CARD: &str = "README.md.new";

/// Writes `generator.safetensors`, `generator.pt` and, where `model` has an encoder, the same of
/// `encoder` into `out`, then the model card `README.md`, and `export.json`, which says what made them, of which
/// checkpoint, and their SHA-256. A card that was edited stays; the new one is `README.md.new` then. What an
/// earlier export left there and this one does not make goes, ONNX of other weights too. Every file is whole before the first appears, and on the disk in the end. The step is noted in
/// them, `train` is the training split. The same checkpoint and configuration give the same files, but for `export.json`. Returns
/// what was written.
///
/// # Shapes
/// The generator takes z (N, Z) and returns images (N, 3, R_G, R_G) in [-1, 1]. The encoder takes
/// images (N, 3, R_E, R_E) in [-1, 1] and returns a dictionary with the keys [`OUTPUTS`].
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] if images cannot be read; [`Error::Torch`] if libtorch refuses.
pub fn export(
    model: &Model,
    train: &Arc<Dataset>,
    card: Card<'_>,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    make_folder(out)?;
    let aside = out.join(format!(".export.{}.tmp", std::process::id()));
    fs::create_dir_all(&aside).map_err(Error::io("create", &aside))?;
    let name = if is_edited(out)? { NEW_CARD } else { CARD };
    let written = write(model, train, (card, name), &aside);
    let written = written.and_then(|written| publish(written, out));
    // Empty by then, or of no use.
    let removed = fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside));
    written.and_then(|written| removed.map(|()| written))
}

/// Makes the folder that is exported to, where it is not there. An earlier export in it may be replaced, nothing else.
///
/// # Errors
/// [`Error::Output`].
pub fn make_folder(out: &Path) -> Result<()> {
    if out.is_dir() {
        let there = |name: &&str| out.join(name).exists();
        let format = |name: &str| note_of(&out.join(name)).ok()?.remove("format");
        let ours = ["generator.safetensors", "encoder.safetensors"]
            .iter()
            .any(|name| format(name).is_some_and(|format| format.starts_with("bigbigan ")));
        let about = fs::read(out.join(ABOUT)).ok();
        let about = about.and_then(|t| serde_json::from_slice::<BTreeMap<String, Value>>(&t).ok());
        let keys = ["checkpoint", "files"];
        let ours = ours || about.is_some_and(|about| keys.iter().all(|k| about.contains_key(*k)));
        let others =
            ["generator", "encoder"].map(|n| ["pt", "safetensors"].map(|k| format!("{n}.{k}")));
        let mut others = others.into_iter().flatten().chain([ABOUT.to_owned()]);
        let other = others.find(|name| there(&name.as_str()));
        return match other {
            Some(name) if !ours => Err(Error::Output {
                path: out.to_owned(),
                reason: format!("it holds a {name} that is of no export: name another"),
            }),
            _ => Ok(()),
        };
    }
    let made = fs::create_dir_all(out).and_then(|()| files::sync_folder_of(out));
    made.map_err(|e| Error::Output { path: out.to_owned(), reason: format!("{e}: name another") })
}

/// Gives the files in a folder in `out` their place there.
fn publish(written: Vec<PathBuf>, out: &Path) -> Result<Vec<PathBuf>> {
    for path in &written {
        files::sync_file(path).map_err(Error::io("sync", path))?;
    }
    let named = |path: PathBuf| {
        let to = out.join(path.file_name().unwrap_or_default());
        fs::rename(&path, &to).map_err(Error::io("write", &to))?;
        Ok(to)
    };
    let named: Vec<PathBuf> = written.into_iter().map(named).collect::<Result<_>>()?;
    // Of an earlier export: an encoder of another generator, and what scripts/export-onnx made of other weights.
    let old = ["encoder.safetensors", "encoder.pt", "generator.onnx", "encoder.onnx"];
    for old in old.map(|name| out.join(name)) {
        if !named.contains(&old) && old.exists() {
            fs::remove_file(&old).map_err(Error::io("remove", &old))?;
        }
    }
    files::sync_folder(out).map_err(Error::io("sync", out))?;
    Ok(named)
}

/// Whether the card in a folder is another than the export there wrote: somebody's words.
fn is_edited(out: &Path) -> Result<bool> {
    let card = &out.join(CARD);
    let now = match File::open(card).and_then(files::sha256_of) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        now => now.map_err(Error::io("read", card))?.1,
    };
    let about: Option<Value> =
        fs::read(out.join(ABOUT)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let before = about.and_then(|about| Some(about["files"][CARD].as_str()?.to_owned()));
    Ok(before != Some(now))
}

fn write(
    model: &Model,
    train: &Arc<Dataset>,
    (card, card_name): (Card<'_>, &str),
    out: &Path,
) -> Result<Vec<PathBuf>> {
    let (c, step) = (model.config(), model.subject().step);
    let (g, params) = model.generator();
    let network = Network {
        name: "generator",
        argument: "z",
        outputs: &[],
        tensors: tensors(params),
        note: note(c, step, "z (N, Z)", "images (N, 3, R_G, R_G), RGB in [-1, 1]"),
    };
    let z = model.latents(0, 2);
    let mut written = network.write(out, &z, &|z| vec![g.forward(z, Statistics::Stored)])?;
    if let Some((e, params)) = model.encoder_and_params() {
        let norm = FeatureNorm::collect(model, train)?;
        let mut network = Network {
            name: "encoder",
            argument: "x",
            outputs: &OUTPUTS,
            tensors: tensors(params),
            note: note(c, step, "images (N, 3, R_E, R_E), RGB in [-1, 1]", &OUTPUTS.join(" ")),
        };
        for (name, tensor) in [("mean", &norm.mean), ("var", &norm.var)] {
            let name = format!("feature_norm.{name}");
            network.tensors.push(Named { name, tensor: tensor.shallow_clone(), trainable: false });
        }
        let x = Tensor::zeros([2, 3, c.e.res, c.e.res], (Kind::Float, model.device()));
        written.extend(network.write(out, &x, &|x| encoded(e, &norm, x))?);
    }
    let path = out.join(card_name);
    fs::write(&path, card.text(model, train)?).map_err(Error::io("write", &path))?;
    written.push(path);
    written.push(Record::of(model, &written)?.write(out)?);
    Ok(written)
}

/// What is exported, and what made it: `export.json`.
#[derive(Debug, Serialize)]
struct Record<'a> {
    step: u64,
    /// SHA-256 of the checkpoint's manifest.
    checkpoint: Option<&'a str>,
    /// SHA-256 of each file.
    files: BTreeMap<String, String>,
    #[serde(flatten)]
    provenance: Provenance,
}

impl<'a> Record<'a> {
    fn of(model: &'a Model, written: &[PathBuf]) -> Result<Self> {
        let Subject { step, checkpoint, .. } = model.subject();
        let (step, checkpoint) = (*step, checkpoint.as_deref());
        let mut files = BTreeMap::new();
        for path in written {
            let hash = File::open(path).and_then(files::sha256_of);
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, hash.map_err(Error::io("read", path))?.1);
        }
        Ok(Self { step, checkpoint, files, provenance: Provenance::here(model.device()) })
    }

    fn write(&self, out: &Path) -> Result<PathBuf> {
        let path = out.join(ABOUT);
        let mut text = serde_json::to_string_pretty(self).expect("plain values");
        text.push('\n');
        fs::write(&path, text).map_err(Error::io("write", &path))?;
        Ok(path)
    }
}

/// Mean and biased variance of a over training images, each (features): what the parameter-free batch
/// norm of `bn_crelu_feat` reads.
#[derive(Debug)]
struct FeatureNorm {
    mean: Tensor,
    var: Tensor,
}

impl FeatureNorm {
    /// Over `images.standing_images` images under the crop of evaluation. Ours: the paper does not
    /// say which statistics its feature uses at test time.
    fn collect(model: &Model, train: &Arc<Dataset>) -> Result<Self> {
        let c = model.config();
        let count = c.images.standing_images.min(train.len() as i64);
        let mut features = vec![];
        for images in model.images(train, c.eval.mode, count)? {
            features.push(model.features(&images?)?);
        }
        let (a, rows) = (Tensor::cat(&features, 0), [0i64]);
        Ok(Self {
            mean: a.mean_dim(rows.as_slice(), false, Kind::Float),
            var: a.var_dim(rows.as_slice(), false, false),
        })
    }

    /// (N, features) to (N, 2 · features).
    fn crelu(&self, a: &Tensor) -> Tensor {
        let (none, mean, var) = (None::<&Tensor>, Some(&self.mean), Some(&self.var));
        let h = a.batch_norm(none, none, mean, var, false, 0.0, BN_EPS, true);
        Tensor::cat(&[h.relu(), (-h).relu()], 1)
    }
}

/// [`OUTPUTS`] of images x.
fn encoded(e: &Encoder, norm: &FeatureNorm, x: &Tensor) -> Vec<Tensor> {
    let encoded = e.forward(x, Statistics::Stored);
    let (mean, stdev) = match encoded.code {
        Code::Gaussian { mean, stdev } => (mean, stdev),
        Code::Point(z) => (z.shallow_clone(), z.zeros_like()),
    };
    let sample = mean.addcmul(&mean.randn_like(), &stdev);
    let crelu = norm.crelu(&encoded.features);
    vec![sample, mean, stdev, encoded.features, crelu]
}

fn tensors(params: &Params) -> Vec<Named> {
    let folded = params.folded().map(|(name, t)| (name.to_owned(), t.shallow_clone(), true));
    let buffers = params.buffers().into_iter().map(|(name, t)| (name, t, false));
    let named = |(name, tensor, trainable)| Named { name, tensor, trainable };
    folded.chain(buffers).map(named).collect()
}

/// What the files say of themselves. Where data, cache and mirror lie is this machine's own business.
fn note(config: &Config, step: u64, input: &str, output: &str) -> BTreeMap<String, String> {
    let mut config = config.clone();
    for place in [&mut config.data.dir, &mut config.data.cache, &mut config.checkpoint.mirror] {
        place.clear();
    }
    let entries = [
        ("format", "bigbigan 1".to_owned()),
        ("step", step.to_string()),
        ("weights", "average, spectral norms folded in".to_owned()),
        ("input", input.to_owned()),
        ("output", output.to_owned()),
        ("config", config.to_toml()),
    ];
    entries.map(|(key, value)| (key.to_owned(), value)).into()
}

/// A network to be written.
struct Network {
    name: &'static str,
    argument: &'static str,
    /// Keys of the returned dictionary; none where it returns one tensor.
    outputs: &'static [&'static str],
    tensors: Vec<Named>,
    note: BTreeMap<String, String>,
}

impl Network {
    /// Both files. `forward` reads the tensors of `self`; it runs once, on `example`.
    fn write(self, out: &Path, example: &Tensor, forward: &Forward<'_>) -> Result<Vec<PathBuf>> {
        let [tensors, script] =
            ["safetensors", "pt"].map(|kind| out.join(format!("{}.{kind}", self.name)));
        self.write_safetensors(&tensors)?;
        no_grad(|| self.write_script(&script, example, forward))?;
        Ok(vec![tensors, script])
    }

    fn write_safetensors(&self, path: &Path) -> Result<()> {
        let refused = |e| Error::io("write", path)(std::io::Error::other(e));
        let mut raw = Vec::with_capacity(self.tensors.len());
        for Named { name, tensor, .. } in &self.tensors {
            let host = tensor.to_device(Device::Cpu).contiguous();
            let mut bytes = vec![0; 4 * host.numel()];
            host.f_copy_data_u8(&mut bytes, host.numel())?;
            raw.push((name, host.size().iter().map(|s| *s as usize).collect::<Vec<_>>(), bytes));
        }
        let mut views = Vec::with_capacity(raw.len());
        for (name, shape, bytes) in &raw {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(refused)?;
            views.push((name.as_str(), view));
        }
        let note = Some(self.note.clone().into_iter().collect());
        let mut bytes = safetensors::serialize(views, note).map_err(refused)?;
        in_order(&mut bytes).map_err(std::io::Error::from).map_err(Error::io("write", path))?;
        fs::write(path, bytes).map_err(Error::io("write", path))
    }

    fn write_script(&self, path: &Path, example: &Tensor, forward: &Forward<'_>) -> Result<()> {
        let note = serde_json::to_string(&self.note).expect("a map of texts");
        let Self { name, argument, outputs, tensors, .. } = self;
        let note = ("bigbigan.json", note.as_str());
        let module = Module { name, argument, outputs, tensors, note };
        let ended = module.save(path, example, forward);
        ended.map_err(|e| Error::io("write", path)(std::io::Error::other(e)))
    }
}

/// Puts the header of a safetensors file in order: the library leaves the note's entries in that of a hash map, another
/// one each time.
fn in_order(file: &mut [u8]) -> serde_json::Result<()> {
    let (length, rest) = file.split_at_mut(8);
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes are split off"));
    let header = &mut rest[..length as usize];
    let mut entries: BTreeMap<String, Value> = serde_json::from_slice(header)?;
    if let Some(Value::Object(note)) = entries.get_mut("__metadata__") {
        note.sort_keys();
    }
    let sorted = serde_json::to_vec(&entries)?;
    header[..sorted.len()].copy_from_slice(&sorted);
    header[sorted.len()..].fill(b' ');
    Ok(())
}

#[cfg(test)]
mod tests {
    use bigbigan_model::nn::Fill;
    use tch::{CModule, IValue};

    use super::*;
    use crate::config::Origin;

    #[test]
    fn a_script_of_every_encoder_says_what_the_encoder_says_for_any_batch() {
        let folder = tempfile::tempdir().unwrap();
        let kinds = (Kind::Float, Device::Cpu);
        let fill = Fill::Seed { seed: 1, network: 0 };
        for overrides in [
            &["e.depth=8"][..],
            &["e.depth=8", "e.stochastic=false", "latent.prior=uniform"],
            &["e.family=resnet_v2", "e.depth=50"],
            &["e.family=revnet", "e.depth=50"],
        ] {
            let overrides: Vec<_> = overrides.iter().map(|s| (*s).to_owned()).collect();
            let c = Config::resolve(&Origin::Preset("demo"), &overrides).unwrap();
            let (e, mut params) = Params::build(kinds, fill, |s| Encoder::new(s, c.e, c.latent));
            // No bias and no gain stays as it begins.
            let noise = params.flat().randn_like() * 0.05;
            let _ = no_grad(|| params.flat().shallow_clone().g_add_(&noise));
            params.rescale();
            let x = Tensor::randn([3, 3, 32, 32], kinds);
            let features = no_grad(|| e.features(&x, Statistics::Stored));
            let width = [features.size()[1]];
            let (mean, var) = (Tensor::rand(width, kinds), Tensor::rand(width, kinds) + 0.5);
            let norm = FeatureNorm { mean, var };
            let mut tensors = tensors(&params);
            for (name, tensor) in [("n.mean", &norm.mean), ("n.var", &norm.var)] {
                let tensor = tensor.shallow_clone();
                tensors.push(Named { name: name.into(), tensor, trainable: false });
            }
            let (name, argument, note) = ("encoder", "x", BTreeMap::new());
            let network = Network { name, argument, outputs: &OUTPUTS, tensors, note };
            let forward = |x: &Tensor| encoded(&e, &norm, x);
            let one = Tensor::zeros([1, 3, 32, 32], kinds);
            let files = network.write(folder.path(), &one, &forward).unwrap();

            let script = CModule::load(&files[1]).unwrap();
            let said = script.forward_is(&[IValue::Tensor(x.shallow_clone())]).unwrap();
            let IValue::GenericDict(said) = said else { panic!("{said:?}") };
            let expected = no_grad(|| forward(&x));
            for ((key, value), (name, expected)) in said.iter().zip(OUTPUTS.iter().zip(&expected)) {
                let IValue::Tensor(value) = value else { panic!("{value:?}") };
                assert_eq!(key, &IValue::String((*name).to_owned()));
                assert_eq!(value.size(), expected.size());
                let off = (value - expected).abs().max().double_value(&[]);
                // Samples are drawn anew, unless the code is a point.
                assert!(off < 1e-5 || (*name == "z_sample" && c.e.stochastic), "{name}: {off}");
            }
        }
    }

    #[test]
    fn a_panic_within_a_trace_is_an_error_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let x = Tensor::zeros([1], (Kind::Float, Device::Cpu));
        let weight = || Named { name: "w".into(), tensor: x.shallow_clone(), trainable: true };
        let network = || Network {
            name: "generator",
            argument: "z",
            outputs: &[],
            tensors: vec![weight()],
            note: BTreeMap::new(),
        };
        let error = network().write(folder.path(), &x, &|_| panic!("on purpose")).unwrap_err();
        assert!(error.to_string().contains("forward pass of an exported network"), "{error}");
        assert!(!folder.path().join("generator.pt").exists());
        // The next trace is not disturbed by it.
        network().write(folder.path(), &x, &|x| vec![x + 1.0]).unwrap();
    }
}

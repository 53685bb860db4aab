//! Networks of others whose features scores of generated images are made of.

use std::path::Path;

use tch::{CModule, Device, IValue, Kind, Tensor, no_grad};

use super::resize::Resizer;
use crate::checkpoint::read_tensors;
use crate::error::{Error, Result};

/// SHA-256 of NVIDIA's TorchScript translation of the Inception network of 2015, which FID and IS are
/// defined by (`inception-2015-12-05.pt`).
pub const INCEPTION: &str = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4";

/// A frozen image network.
#[derive(Debug)]
pub struct Extractor {
    network: Network,
    device: Device,
    /// `inception`, `efflite0` or `custom`; scores carry it in their names.
    pub name: &'static str,
    /// Of its file.
    pub sha256: String,
}

#[derive(Debug)]
enum Network {
    /// A module with `forward(images, return_features: bool)`, and the weight of its last layer.
    Script(CModule, Option<Tensor>),
    Lite0(Lite0),
}

/// What an extractor says of images.
#[derive(Debug)]
pub struct Extracted {
    /// (N, D), single precision.
    pub features: Tensor,
    /// Class probabilities (N, K), where the extractor has a classifier.
    pub probabilities: Option<Tensor>,
}

impl Extractor {
    /// Opens a `.safetensors` file as EfficientNet-Lite0 (made by `scripts/efflite0`), any other as
    /// TorchScript. A script is code: it is opened only if its SHA-256 is [`INCEPTION`], or on the user's
    /// word (`trust`). Its `forward(images, return_features)` takes images (N, 3, H, W) in u8 or, from 0 to
    /// 255, in single precision, and returns features (N, D) when the second argument is true.
    ///
    /// # Errors
    /// [`Error::Extractor`] if the file cannot be read, is not trusted, or is not such a network.
    pub fn open(path: &Path, trust: bool, device: Device) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| fault(path, e))?;
        let sha256 = common::files::sha256(&bytes);
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let network = Network::Lite0(Lite0::open(path, device)?);
            return Ok(Self { network, device, name: "efflite0", sha256 });
        }
        let known = sha256 == INCEPTION;
        if !known && !trust {
            return Err(fault(
                path,
                format!(
                    "its SHA-256 is {sha256}, not that of inception-2015-12-05.pt ({INCEPTION}); \
                 TorchScript is code, so open it with --trust-extractor only if you know where it is from"
                ),
            ));
        }
        let mut module = CModule::load_data_on_device(&mut bytes.as_slice(), device)
            .map_err(|e| fault(path, first_line(&e)))?;
        module.f_set_eval()?;
        let parameters = module.named_parameters()?;
        let last = parameters.into_iter().find(|(name, _)| name == "output.weight").map(|(_, w)| w);
        let name = if known { "inception" } else { "custom" };
        let extractor = Self { network: Network::Script(module, last), device, name, sha256 };
        let probe = Tensor::zeros([1, 3, 32, 32], (Kind::Uint8, device));
        match extractor.try_features(&probe) {
            Ok(features) if features.dim() == 2 => Ok(extractor),
            Ok(features) => {
                let found = features.size();
                Err(fault(path, format!("forward(images, True) returned {found:?}, not (N, D)")))
            }
            Err(e) => {
                let reason =
                    format!("forward(images, return_features=True) failed: {}", first_line(&e));
                Err(fault(path, reason))
            }
        }
    }

    /// The side that images are resized to, and by what unless the user says otherwise. NVIDIA's
    /// Inception resizes by itself, as TensorFlow 1 did.
    #[must_use]
    pub fn input(&self) -> (i64, Resizer) {
        match self.network {
            Network::Script(..) => (299, Resizer::Extractor),
            Network::Lite0(_) => (Lite0::SIDE, Resizer::PilBicubic),
        }
    }

    /// D.
    ///
    /// # Errors
    /// [`Error::Torch`] if a script fails.
    pub fn width(&self) -> Result<i64> {
        let image =
            Tensor::zeros([1, 3, self.input().0, self.input().0], (Kind::Uint8, self.device));
        Ok(self.try_features(&image)?.size()[1])
    }

    /// Features and probabilities of images (N, 3, H, W), u8 or 0 to 255.
    ///
    /// # Errors
    /// [`Error::Torch`] if a script fails.
    ///
    /// # Source
    /// Probabilities of a script leave the bias of its last layer out, as those of the Inception score
    /// always have.
    pub fn extract(&self, images: &Tensor) -> Result<Extracted> {
        let images = images.to_device(self.device);
        let features = self.try_features(&images)?.to_kind(Kind::Float);
        let scores = no_grad(|| match &self.network {
            Network::Script(_, last) => last.as_ref().map(|weight| features.matmul(&weight.tr())),
            Network::Lite0(net) => Some(net.classes(&features)),
        });
        let probabilities = scores.map(|s| s.softmax(1, Kind::Double));
        Ok(Extracted { features, probabilities })
    }

    fn try_features(&self, images: &Tensor) -> std::result::Result<Tensor, tch::TchError> {
        no_grad(|| match &self.network {
            Network::Script(module, _) => {
                let arguments = [IValue::Tensor(images.shallow_clone()), IValue::Bool(true)];
                Tensor::try_from(module.forward_is(&arguments)?)
            }
            Network::Lite0(net) => Ok(net.features(images)),
        })
    }
}

fn fault(path: &Path, reason: impl ToString) -> Error {
    Error::Extractor { path: path.to_owned(), reason: reason.to_string() }
}

fn first_line(error: &tch::TchError) -> String {
    let text = error.to_string();
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.chars().take(200).collect()
}

/// EfficientNet-Lite0 with batch norms folded into its convolutions.
///
/// # Source
/// Tan & Le 2019 and the "lite" variants: ReLU6, no squeeze-and-excitation.
#[derive(Debug)]
struct Lite0 {
    tensors: Vec<(String, Tensor)>,
}

/// Kernel, stride, expansion, output channels and number of blocks of each stage.
const STAGES: [(i64, i64, i64, i64, usize); 7] = [
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
];

impl Lite0 {
    const SIDE: i64 = 224;

    /// Names and shapes of its tensors, each a weight; biases are as long as its first dimension.
    fn shapes() -> Vec<(String, Vec<i64>)> {
        let mut all = vec![("stem".to_owned(), vec![32, 3, 3, 3])];
        let mut cin = 32;
        let blocks = STAGES.iter().flat_map(|stage| std::iter::repeat_n(stage, stage.4));
        for (i, (kernel, _, expansion, cout, _)) in blocks.enumerate() {
            let mid = cin * expansion;
            if *expansion > 1 {
                all.push((format!("blocks.{i}.expand"), vec![mid, cin, 1, 1]));
            }
            all.push((format!("blocks.{i}.depthwise"), vec![mid, 1, *kernel, *kernel]));
            all.push((format!("blocks.{i}.project"), vec![*cout, mid, 1, 1]));
            cin = *cout;
        }
        all.push(("head".to_owned(), vec![1280, cin, 1, 1]));
        all.push(("classifier".to_owned(), vec![1000, 1280]));
        all
    }

    fn empty(device: Device) -> Self {
        let float = (Kind::Float, device);
        let both = Self::shapes().into_iter().flat_map(|(name, shape)| {
            let bias = Tensor::zeros(&shape[..1], float);
            let weight = Tensor::zeros(shape.as_slice(), float);
            [(format!("{name}.weight"), weight), (format!("{name}.bias"), bias)]
        });
        Self { tensors: both.collect() }
    }

    fn open(path: &Path, device: Device) -> Result<Self> {
        let mut net = Self::empty(device);
        read_tensors(path, &mut net.tensors)?;
        Ok(net)
    }

    fn get(&self, name: &str) -> &Tensor {
        let found = self.tensors.iter().find(|(own, _)| own == name);
        &found.expect("a tensor of the list of shapes").1
    }

    /// A convolution padded as TensorFlow's "SAME": an odd pixel goes to the right and below.
    fn conv(&self, name: &str, x: &Tensor, stride: i64) -> Tensor {
        let weight = self.get(&format!("{name}.weight"));
        let kernel = weight.size()[2];
        let pad = |side: i64| (((side + stride - 1) / stride - 1) * stride + kernel - side).max(0);
        let (_, channels, h, w) = x.size4().expect("a map");
        let (h, w) = (pad(h), pad(w));
        let x = x.constant_pad_nd([w / 2, w - w / 2, h / 2, h - h / 2]);
        let groups = channels / weight.size()[1];
        let bias = Some(self.get(&format!("{name}.bias")));
        x.conv2d(weight, bias, [stride, stride], [0, 0], [1, 1], groups)
    }

    fn features(&self, images: &Tensor) -> Tensor {
        let relu6 = |x: Tensor| x.clamp(0.0, 6.0);
        let x = (images.to_kind(Kind::Float) - 127.0) / 128.0;
        let mut x = relu6(self.conv("stem", &x, 2));
        let mut i = 0;
        for (_, stride, expansion, cout, count) in STAGES {
            for block in 0..count {
                let name = |part: &str| format!("blocks.{i}.{part}");
                let stride = if block == 0 { stride } else { 1 };
                let mut h = x.shallow_clone();
                if expansion > 1 {
                    h = relu6(self.conv(&name("expand"), &h, 1));
                }
                h = relu6(self.conv(&name("depthwise"), &h, stride));
                h = self.conv(&name("project"), &h, 1);
                x = if stride == 1 && x.size()[1] == cout { h + x } else { h };
                i += 1;
            }
        }
        let over = [2i64, 3];
        relu6(self.conv("head", &x, 1)).mean_dim(over.as_slice(), false, Kind::Float)
    }

    fn classes(&self, features: &Tensor) -> Tensor {
        features.linear(self.get("classifier.weight"), Some(self.get("classifier.bias")))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use golden::{close, hashed, sketch};

    use super::*;

    fn images(name: &str, side: i64) -> Tensor {
        ((hashed(name, &[2, 3, side, side]) + 1.0) * 128.0).floor().to_kind(Kind::Uint8)
    }

    fn golden() -> serde_json::Value {
        serde_json::from_str(include_str!("../../../tests/golden/extractors.json")).unwrap()
    }

    fn numbers(value: &serde_json::Value) -> Vec<f64> {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn tests() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
    }

    #[test]
    fn efficientnet_lite0_agrees_with_pytorch() {
        let net = Lite0::empty(Device::Cpu);
        for (name, tensor) in &net.tensors {
            let shape = tensor.size();
            let h = hashed(name, &shape);
            let scale = (6.0 / shape[1..].iter().product::<i64>() as f64).sqrt();
            let value = if name.ends_with("weight") { h * scale } else { h * 0.2 };
            no_grad(|| tensor.shallow_clone().copy_(&value));
        }
        let features = net.features(&images("lite0", Lite0::SIDE));
        close("features", &sketch(&features), &numbers(&golden()["lite0"]), 1e-5, 0.0);
        let classes = net.classes(&features);
        close("classes", &sketch(&classes), &numbers(&golden()["lite0_classes"]), 1e-5, 0.0);
    }

    #[test]
    fn a_script_is_opened_on_the_user_s_word_and_gives_python_s_features() {
        let path = tests().join("extractor.pt");
        let error = Extractor::open(&path, false, Device::Cpu).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("--trust-extractor"), "{error}");
        let extractor = Extractor::open(&path, true, Device::Cpu).unwrap();
        assert_eq!(extractor.name, "custom");
        let found = extractor.extract(&images("script", 20)).unwrap();
        close("features", &sketch(&found.features), &numbers(&golden()["script"]), 1e-6, 0.0);
        let p = found.probabilities.unwrap();
        close("probabilities", &sketch(&p), &numbers(&golden()["script_probabilities"]), 1e-6, 0.0);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x.pt", "x.safetensors"] {
            let path = folder.path().join(name);
            assert!(Extractor::open(&path, true, Device::Cpu).is_err(), "missing");
            std::fs::write(&path, "this is not a network").unwrap();
            let error = Extractor::open(&path, true, Device::Cpu).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(name), "{error}");
        }
    }

    /// Needs the pinned PyTorch's Python, which `make setup` installs.
    #[test]
    fn a_random_inception_of_2015_says_the_same_in_rust_and_in_python() {
        let libtorch = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.libtorch");
        let python = libtorch.canonicalize().map(|path| path.join("../../../../bin/python"));
        let Some(python) = python.ok().filter(|path| path.exists()) else {
            eprintln!("no Python beside libtorch: not run");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let script = tests().join("inception.py");
        let done = Command::new(python).arg(script).arg(folder.path()).status().unwrap();
        assert!(done.success());
        let path = folder.path().join("inception.pt");
        let extractor = Extractor::open(&path, true, Device::Cpu).unwrap();
        let text = std::fs::read_to_string(folder.path().join("inception.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let found = extractor.extract(&images("inception", 32)).unwrap();
        assert_eq!(found.features.size(), [2, 2048]);
        close("features", &sketch(&found.features), &numbers(&golden["features"]), 1e-5, 0.0);
        let p = found.probabilities.unwrap();
        close("probabilities", &sketch(&p), &numbers(&golden["probabilities"]), 1e-5, 0.0);
    }
}

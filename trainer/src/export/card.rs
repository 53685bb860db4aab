//! The model card of an export: `README.md` as model hubs read it, with what is known of the model and what is not.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use pipeline::Dataset;
use serde_json::{Map, Value, json};

use crate::checkpoint;
use crate::config::{Config, Origin};
use crate::error::Result;
use crate::eval::Model;
use crate::evaluations;

/// What a card says beside what the model knows of itself.
#[derive(Debug, Clone, Copy)]
pub struct Card<'a> {
    /// Folder of the run, whose metrics of the exported step go into the card.
    pub run: &'a Path,
    /// Licence of the weights, as the hub names it ("apache-2.0"); "unknown" where nobody said.
    pub license: &'a str,
}

/// Keys of what this machine is, and not the model.
const PRIVATE: [&str; 7] =
    ["data.dir", "data.cache", "data.threads", "train.device", "checkpoint.", "dist.", "log."];

impl Card<'_> {
    /// The card's text.
    ///
    /// # Errors
    /// None that a model can cause: [`Error::Config`](crate::error::Error::Config) if the preset `base` were broken.
    pub(super) fn text(&self, model: &Model, train: &Dataset) -> Result<String> {
        let (config, step) = (model.config(), model.subject().step);
        let found: Vec<_> = self.metrics(step);
        let title = title(config);
        let mut text = format!("---\n{}---\n\n# {title}\n\n", self.head(config, &title, &found));
        let (g, z) = (config.g.res, config.latent.dim);
        let encoder = config.loss.encode();
        let encodes = match encoder {
            true => format!(" and an encoder of {e} × {e} px images", e = config.e.res),
            false => String::new(),
        };
        let _ = write!(
            text,
            "A BigBiGAN (Donahue & Simonyan 2019, \"Large Scale Adversarial Representation Learning\"): a generator of {g} × \
             {g} px images from {z} latent numbers{encodes}, trained on images without labels. The weights are the averages \
             after {step} steps of {batch} images, spectral norms folded in, with standing statistics of batch norm.\n\n",
            batch = config.train.batch,
        );
        text.push_str(&files(encoder));
        text.push_str(&data(config, train));
        text.push_str(&self.training(config, step)?);
        text.push_str(&results(&found, encoder));
        text.push_str(USE);
        let _ = match self.license {
            "unknown" => writeln!(
                text,
                "Nobody has stated one. Who publishes the model says here under which it is, with regard to the images that it \
                 was trained on, and in the first lines of this file."
            ),
            license => writeln!(text, "`{license}`, as stated by who exported the model."),
        };
        Ok(text)
    }

    /// What hubs read. JSON is YAML.
    fn head(&self, config: &Config, title: &str, found: &[Map<String, Value>]) -> String {
        let mut tags = vec!["bigbigan", "gan", "self-supervised-learning", "safetensors"];
        if config.loss.encode() {
            tags.push("image-feature-extraction");
        }
        let mut lines = vec![
            ("license", json!(self.license)),
            ("library_name", json!("bigbigan")),
            ("pipeline_tag", json!("unconditional-image-generation")),
            ("tags", json!(tags)),
        ];
        let measured: Vec<Value> = found.iter().flat_map(measured).collect();
        if !measured.is_empty() {
            lines.push(("model-index", json!([{"name": title, "results": measured}])));
        }
        lines.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
    }

    /// What was measured of the averaged weights after `step`.
    fn metrics(&self, step: u64) -> Vec<Map<String, Value>> {
        let ours = |line: &Map<String, Value>| {
            line.get("step").and_then(Value::as_u64) == Some(step)
                && line.get("weights").is_none_or(|weights| weights != "live")
        };
        evaluations::of(self.run).into_iter().filter(ours).collect()
    }

    fn training(&self, config: &Config, step: u64) -> Result<String> {
        let mut text = "## Training\n\n".to_owned();
        let path = checkpoint::of_step(&self.run.join("checkpoints"), step);
        let manifest = path.and_then(|path| checkpoint::read_manifest(&path));
        if let Some(by) = manifest.ok().and_then(|manifest| manifest.provenance) {
            let _ = writeln!(
                text,
                "By the trainer {} (commit {}) with libtorch {} on {}, saved {}.\n",
                by.version, by.commit, by.libtorch, by.device, by.time
            );
        }
        let base = Config::resolve(&Origin::Preset("base"), &[])?;
        let private = |key: &str| {
            PRIVATE.iter().any(|of| key == *of || of.ends_with('.') && key.starts_with(*of))
        };
        let changes: Vec<_> =
            base.changes(config).into_iter().filter(|change| !private(&change.key)).collect();
        text.push_str(match changes.is_empty() {
            true => "The settings are those of the preset `base`.\n\n",
            false => {
                "The settings are those of the preset `base` but for these; `config` in the note of each safetensors file \
                 has all.\n\n| key | value | base |\n|---|---|---|\n"
            }
        });
        for change in &changes {
            let _ = writeln!(text, "| `{}` | `{}` | `{}` |", change.key, change.to, change.from);
        }
        text.push('\n');
        Ok(text)
    }
}

fn title(config: &Config) -> String {
    format!("BigBiGAN, {} px", config.g.res)
}

fn files(encoder: bool) -> String {
    let mut text = "## Files and use\n\n| file | what |\n|---|---|\n\
        | `generator.safetensors`, `generator.pt` | z (N, Z) from N(0, 1) to images (N, 3, R, R) in [-1, 1]; weights, and TorchScript |\n"
        .to_owned();
    if encoder {
        text.push_str(
            "| `encoder.safetensors`, `encoder.pt` | images (N, 3, R, R) in [-1, 1] to `z_sample`, `z_mean`, `z_stdev`, \
             `avepool_feat`, `bn_crelu_feat` |\n",
        );
    }
    text.push_str(
        "| `export.json` | which program made them, of which checkpoint, and their SHA-256 |\n\n\
         ```python\nimport torch\n\ngenerator = torch.jit.load(\"generator.pt\").eval()\n",
    );
    if encoder {
        text.push_str("encoder = torch.jit.load(\"encoder.pt\").eval()\n");
    }
    text.push_str("```\n\n");
    text
}

fn data(config: &Config, train: &Dataset) -> String {
    format!(
        "## Data\n\n{} training images, split `{}`, labels not used; index fingerprint `{:016x}`; views by `data.mode = \
         \"{}\"`. The card cannot know where the images come from: name the data set and its terms here.\n\n",
        train.len(),
        train.split(),
        train.fingerprint(),
        config.data.mode,
    )
}

/// Where a line of metrics holds its value: a number, or numbers by k.
fn values(line: &Map<String, Value>) -> Vec<(String, f64)> {
    let metric = line.get("metric").and_then(Value::as_str).unwrap_or_default();
    let by_k = |(k, value): (&String, &Value)| Some((k.parse::<u64>().ok()?, value.as_f64()?));
    match line.get("top1").or(line.get("value")) {
        Some(Value::Object(of)) => {
            let sorted: BTreeMap<u64, f64> = of.iter().filter_map(by_k).collect();
            sorted.into_iter().map(|(k, value)| (format!("{metric}, k = {k}"), value)).collect()
        }
        Some(value) => value.as_f64().map(|value| (metric.to_owned(), value)).into_iter().collect(),
        None => vec![],
    }
}

/// A line as hubs read it.
fn measured(line: &Map<String, Value>) -> Vec<Value> {
    let text = |key: &str| line.get(key).and_then(Value::as_str).unwrap_or("unknown");
    if text("weights") == "initial" {
        return vec![];
    }
    let accuracy = line.contains_key("top1");
    let (task, kind) = match accuracy {
        true => ("image-classification", "accuracy"),
        false => ("unconditional-image-generation", "score"),
    };
    let split = text("split").to_owned();
    let result = |(name, value): (String, f64)| {
        json!({
            "task": {"type": task},
            "dataset": {"name": "data folder of the run", "type": "unknown", "split": split},
            "metrics": [{"type": kind, "name": name, "value": value}],
        })
    };
    values(line).into_iter().map(result).collect()
}

fn results(found: &[Map<String, Value>], encoder: bool) -> String {
    let mut text = "## Metrics\n\n".to_owned();
    if found.is_empty() {
        text.push_str("None were measured of this step.\n\n");
        return text;
    }
    if encoder {
        text.push_str(
            "Accuracies in percent, on images of the named split; lines of `initial` weights are the untrained encoder.\n\n",
        );
    }
    text.push_str("| metric | value | weights | protocol |\n|---|---|---|---|\n");
    let said = ["metric", "value", "top1", "weights", "step", "time", "checkpoint", "scores"];
    for line in found {
        let weights = line.get("weights").and_then(Value::as_str).unwrap_or("average");
        let protocol = line.iter().filter(|(key, value)| {
            !said.contains(&key.as_str()) && !value.is_array() && !value.is_object()
        });
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let protocol: Vec<_> =
            protocol.map(|(key, value)| format!("{key} {}", plain(value))).collect();
        let protocol = protocol.join(", ").replace('|', "\\|");
        for (name, value) in values(line) {
            let _ = writeln!(text, "| {name} | {value:.2} | {weights} | {protocol} |");
        }
    }
    text.push('\n');
    text
}

const USE: &str = "## Intended use and limits\n\n\
    For research on representations and on generation. What it makes and what its features tell apart follows the training \
    images, with their gaps and their biases; nothing filters what it makes, and it may make images like some that it was \
    trained on. It is not for decisions about people, nor for telling who somebody is.\n\n\
    ## Licence\n\n";

//! Weights that others published, brought here by `scripts/import-bigbigan`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::stop::Stop;
use integration::{data, repository, text, trainer};
use tch::{CModule, Device, Tensor};
use trainer::eval::Model;

use super::export::python;

/// A file of the published form with random weights, and a table of what the public formulas make of it.
fn published(folder: &Path) -> (PathBuf, Vec<(String, Tensor)>) {
    let [weights, table] = ["weights.pth", "table.pt"].map(|name| folder.join(name));
    let made = Command::new(python())
        .arg(repository().join("tests/tests/weights.py"))
        .args([&weights, &table])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (weights, CModule::load(table).unwrap().named_parameters().unwrap())
}

fn import(args: &[&str]) -> Output {
    Command::new(repository().join("scripts/import-bigbigan")).args(args).output().unwrap()
}

/// Imports and says what was refused.
fn refused(args: &[&str]) -> String {
    let output = import(args);
    assert!(!output.status.success(), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_published_generator_makes_here_the_images_that_it_makes_there() {
    let folder = tempfile::tempdir().unwrap();
    let (weights, table) = published(folder.path());
    let entry = |name: &str| &table.iter().find(|(entry, _)| entry == name).unwrap().1;
    let weights = text(&weights);
    let mut images = vec![];
    for (eps, args) in [("last_1e_4", &[][..]), ("last_1e_5", &["--last-eps", "1e-5"])] {
        let model = folder.path().join(eps);
        let output = import(&[&[weights.as_str(), &text(&model)], args].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let config = Model::exported_config(&model).unwrap();
        let model = Model::exported(&model, &config, Device::Cpu, &Stop::default()).unwrap();
        let made = model.generate(entry("z"));
        assert_eq!(made.size(), [3, 3, 128, 128]);
        let off = (&made - entry(eps)).abs().max().double_value(&[]);
        assert!(off < 2e-5, "{eps}: {off}");
        images.push(made);
    }
    let apart = (&images[0] - &images[1]).abs().max().double_value(&[]);
    assert!(apart > 1e-3, "the last epsilon changes nothing: {apart}");
    // The commands that need no encoder take it.
    let run = text(&folder.path().join("last_1e_4"));
    for (command, args) in [
        ("sample", &[][..]),
        ("interpolate", &["--rows", "1", "--steps", "2"]),
        ("traverse", &["--steps", "2"]),
    ] {
        let out = text(&folder.path().join(format!("{command}.png")));
        let common = [command, "--run", &run, "--device", "cpu", "--out", &out];
        let said = trainer(&[&common[..], args].concat());
        assert_eq!(said.code, 0, "{command}: {}", said.err);
        assert!(fs::metadata(out).unwrap().len() > 1000);
    }
    let no_encoder =
        trainer(&["eval", "knn", "--run", &run, "--device", "cpu", "--data", &text(data())]);
    assert!(
        no_encoder.code == 2 && no_encoder.err.contains("has no encoder"),
        "{}",
        no_encoder.err
    );
}

#[test]
fn what_is_no_such_generator_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (weights, _) = published(folder.path());
    let at = |name: &str| text(&folder.path().join(name));
    let (weights, model) = (text(&weights), at("model"));
    assert!(refused(&[&at("nowhere.pth"), &model]).contains("no such file"));
    assert!(refused(&[&weights, &text(folder.path())]).contains("is not empty"));
    assert!(
        refused(&[&weights, &model, "--last-eps", "1e-3"]).contains("as in the released graph")
    );
    assert!(refused(&[&weights]).contains("usage"));
    let change = |name: &str, change: &str| {
        let code = format!(
            "import torch\nt = torch.load({weights:?})\n{change}\ntorch.save(t, {:?})",
            at(name)
        );
        let changed = Command::new(python()).args(["-c", &code]).output().unwrap();
        assert!(changed.status.success(), "{}", String::from_utf8_lossy(&changed.stderr));
        refused(&[&at(name), &model])
    };
    for (name, code, why) in [
        ("missing", "del t['blocks.2.0.conv1.bias']", "no tensor blocks.2.0.conv1.bias"),
        ("shape", "t['output_layer.2.bias'] = t['output_layer.2.bias'][:2]", "[3] is expected"),
        ("nan", "t['linear.bias'][0] = float('nan')", "not finite"),
        ("zero", "t['blocks.3.1.o.weight'] *= 0", "nothing can be divided by it"),
        ("var", "t['blocks.1.0.bn2.stored_var'][3] = -1", "a negative variance"),
        ("complex", "t['linear.bias'] = t['linear.bias'] + 1j", "no plain tensor"),
        ("rows", "t['shared.weight'] = t['shared.weight'][:0]", "no generator of that form"),
        ("number", "t['linear.weight'] = 3", "no generator of that form"),
        ("classes", "t['shared.weight'][1] += 1", "this is a BigGAN"),
        ("more", "t['blocks.1.1.gamma'] = torch.zeros(())", "does not know: blocks.1.1.gamma"),
        ("list", "t = [1, 2]", "holds no table of tensors"),
    ] {
        let said = change(name, code);
        assert!(said.contains(why), "{name}: {said}");
    }
    // A pickle that would run code runs none.
    let mark = at("ran");
    let code = format!(
        "import pickle, os\nclass Bad:\n    def __reduce__(self): return (os.mkdir, ({mark:?},))\n\
         pickle.dump(Bad(), open({:?}, 'wb'))",
        at("bad.pth")
    );
    assert!(Command::new(python()).args(["-c", &code]).status().unwrap().success());
    assert!(refused(&[&at("bad.pth"), &model]).contains("no file of tensors alone"));
    assert!(!Path::new(&mark).exists() && !Path::new(&model).exists());
}

//! Checkpoints that are damaged, forged or of another program.

use safetensors::{Dtype, SafeTensors};

use super::*;

#[test]
fn a_manifest_that_lists_other_files_than_a_checkpoint_s_verifies_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    save(folder.path(), &mut state, 1, ALL);
    let path = folder.path().join(name_of(1, 0));
    let good = verify(&path).unwrap();
    let record = FileRecord { bytes: 0, sha256: common::files::sha256(b"") };
    let forged: [&dyn Fn(&mut Manifest); 4] = [
        &|m| m.files.clear(),
        &|m| drop(m.files.remove("encoder.safetensors")),
        &|m| drop(m.files.insert("/dev/zero".into(), record.clone())),
        &|m| drop(m.files.insert("../../secret".into(), record.clone())),
    ];
    for forge in forged {
        let mut manifest = good.clone();
        forge(&mut manifest);
        write_manifest(&path, &mut manifest).unwrap();
        let error = verify(&path).unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
        assert!(error.to_string().contains("not the files of a checkpoint"), "{error}");
    }
    // A device in a file's place is not read, whatever its length is said to be.
    write_manifest(&path, &mut good.clone()).unwrap();
    let file = path.join("generator.safetensors");
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
    assert!(verify(&path).unwrap_err().to_string().contains("not a plain file"));
}

/// A manifest holds the step, the place in the data and Adam's counts: one wrong digit would train on from elsewhere.
#[test]
fn no_byte_of_a_manifest_can_change_unnoticed() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    save(folder.path(), &mut state, 1, ALL);
    let path = newest(folder.path()).unwrap();
    let file = path.join("manifest.json");
    let good = fs::read(&file).unwrap();
    for place in 0..good.len() {
        for bit in [0, 1, 4] {
            let mut bad = good.clone();
            bad[place] ^= 1 << bit;
            fs::write(&file, &bad).unwrap();
            let error = read_manifest(&path).unwrap_err();
            assert!(matches!(error, Error::Checkpoint { .. }), "{place}: {error}");
        }
    }
    // Judged by others: what is said is the hash of what is left.
    let text = String::from_utf8(good).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let own = manifest["own_sha256"].as_str().unwrap();
    fs::write(&file, text.replace(own, "")).unwrap();
    let sum = std::process::Command::new("sha256sum").arg(&file).output().unwrap().stdout;
    assert!(sum.starts_with(own.as_bytes()));
    // Those of format 1 had none.
    let without = text.replace(&format!("  \"own_sha256\": \"{own}\",\n"), "");
    fs::write(&file, &without).unwrap();
    assert!(read_manifest(&path).is_err());
    fs::write(&file, without.replace("\"format\": 2", "\"format\": 1")).unwrap();
    assert_eq!(read_manifest(&path).unwrap().step, 1);
    fs::write(&file, &text).unwrap();
    verify(&path).unwrap();
    let moved = folder.path().join(name_of(2, 0));
    fs::rename(&path, &moved).unwrap();
    let error = verify(&moved).unwrap_err().to_string();
    assert!(error.contains("belongs into step-00000001"), "{error}");
}

#[test]
fn a_checkpoint_of_a_newer_trainer_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = TrainState::new(&config().recipe(), Device::Cpu, true);
    save(folder.path(), &mut state, 1, ALL);
    save(folder.path(), &mut state, 2, ALL);
    let path = newest(folder.path()).unwrap();
    let file = path.join("manifest.json");
    let good = fs::read_to_string(&file).unwrap();
    // Another format, and a field that is not known, each with its true hash.
    for (old, new) in
        [("\"format\": 2", "\"format\": 3"), ("\"rollbacks\"", "\"mood\": 1,\n  \"rollbacks\"")]
    {
        let own = read_manifest(&path).unwrap().own_sha256.unwrap();
        let text = good.replace(&own, "").replace(old, new);
        let hash = common::files::sha256(text.as_bytes());
        fs::write(
            &file,
            text.replacen("\"own_sha256\": \"", &format!("\"own_sha256\": \"{hash}"), 1),
        )
        .unwrap();
        let load =
            || load_newest(folder.path(), &config(), Device::Cpu, 7, &World::alone(), |_| Ok(()));
        let error = load().unwrap_err();
        assert!(matches!(error, Error::Output { .. }), "{error}");
        assert!(error.to_string().contains("newer trainer"), "{error}");
        fs::write(&file, &good).unwrap();
        assert_eq!(load().unwrap().1.step, 2);
    }
}

/// Puts other bytes in a file and its true record into the manifest: wrong, but not damaged.
fn forge(path: &Path, name: &str, bytes: &[u8]) {
    fs::write(path.join(name), bytes).unwrap();
    let mut manifest = read_manifest(path).unwrap();
    manifest.files.insert(name.to_owned(), record(&path.join(name)).unwrap());
    write_manifest(path, &mut manifest).unwrap();
}

/// The file with one tensor's name, shape or kind changed.
fn altered(bytes: &[u8], change: &str) -> Vec<u8> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let mut views: Vec<_> = file.tensors();
    let (name, view) = views.pop().unwrap();
    let (mut shape, mut dtype, mut data) =
        (view.shape().to_vec(), view.dtype(), view.data().to_vec());
    let mut renamed = name.clone(); // what is pushed again in the end
    match change {
        "name" => renamed.push('x'),
        "missing" => return safetensors::serialize(views, None).unwrap(),
        "extra" => {
            views.push((format!("{name}x"), view.clone()));
            renamed = name.clone();
        }
        "shape" => shape.insert(0, 1),
        "kind" => {
            dtype = Dtype::F64;
            data = [&data[..], &data[..]].concat();
        }
        _ => unreachable!(),
    }
    let view = safetensors::tensor::TensorView::new(dtype, shape, &data).unwrap();
    views.push((renamed, view));
    safetensors::serialize(views, None).unwrap()
}

fn bytes_of<'a>(folder: &Path, names: impl Iterator<Item = &'a str>) -> Vec<(PathBuf, Vec<u8>)> {
    names.map(|name| (folder.join(name), fs::read(folder.join(name)).unwrap())).collect()
}

#[test]
fn each_bad_checkpoint_is_a_typed_error_and_the_one_before_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let config = config();
    let mut state = TrainState::new(&config.recipe(), Device::Cpu, true);
    save(folder.path(), &mut state, 1, ALL);
    save(folder.path(), &mut state, 2, ALL);
    let path = folder.path().join(name_of(2, 0));
    let names: Vec<_> = read_manifest(&path).unwrap().files.into_keys().collect();
    let good = bytes_of(&path, names.iter().map(String::as_str).chain(["manifest.json"]));
    let newest =
        |data| load_newest(folder.path(), &config, Device::Cpu, data, &World::alone(), |_| Ok(()));
    let mut count = 0;
    let mut check = |what: &str| {
        count += 1;
        let error = load(&path, &config, Device::Cpu, 7, &World::alone()).unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{what}: {error}");
        let (used, state) = newest(7).unwrap();
        assert_eq!((state.step, used), (1, folder.path().join(name_of(1, 0))), "{what}");
        for (file, bytes) in &good {
            fs::write(file, bytes).unwrap();
        }
    };
    let pickle = b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01K\x01s.";
    for (name, (file, bytes)) in names.iter().zip(&good) {
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 4;
        fs::write(file, flipped).unwrap();
        check("a flipped bit");
        fs::write(file, &bytes[..bytes.len() / 3]).unwrap();
        check("a cut");
        fs::remove_file(file).unwrap();
        check("a missing file");
        forge(&path, name, &bytes[..bytes.len() - 4]);
        check("a cut that the manifest knows of");
        forge(&path, name, pickle);
        check("a pickle");
    }
    for (change, name) in ["name", "missing", "shape", "kind", "extra"].into_iter().zip(&names) {
        forge(&path, name, &altered(&fs::read(path.join(name)).unwrap(), change));
        check(change);
    }
    let manifest = path.join("manifest.json");
    for text in ["", "{", "[]", "{\"format\": 99}", "null", "\u{fffd}"] {
        fs::write(&manifest, text).unwrap();
        check("a manifest that is none");
    }
    // The right bytes, elsewhere.
    let (file, _) = &good[0];
    let elsewhere = folder.path().join("elsewhere");
    fs::rename(file, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, file).unwrap();
    check("a symbolic link");
    fs::remove_file(file).unwrap();
    fs::rename(&elsewhere, file).unwrap();
    assert_eq!(count, 52);
    assert_eq!(newest(7).unwrap().1.step, 2);
    let other = newest(8).unwrap_err().to_string();
    assert!(other.contains("data folder"), "{other}");
}

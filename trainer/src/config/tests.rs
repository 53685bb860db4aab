use bigbigan_model::networks::RootPad;
use bigbigan_model::presets::PRESETS;

use super::*;

fn problem(overrides: &[&str]) -> String {
    let overrides: Vec<_> = overrides.iter().map(|s| (*s).to_owned()).collect();
    Config::resolve(&Origin::Preset("demo"), &overrides).unwrap_err().to_string()
}

#[test]
fn every_preset_file_is_compiled_in_resolves_and_survives_a_round_trip() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("presets");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(PRESETS.iter().any(|(n, _)| *n == name), "{name} is not in PRESETS");
        let config = Config::resolve(&Origin::Preset(&name), &[]).unwrap();
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
    }
}

#[test]
fn minutes_that_no_clock_reaches_are_no_limit() {
    let limit = |minutes: &str| {
        let key = format!("train.max_minutes={minutes}");
        Config::resolve(&Origin::Preset("demo"), &[key]).unwrap().time_limit()
    };
    assert_eq!(limit("0.5"), Some(std::time::Duration::from_secs(30)));
    assert_eq!([limit("0"), limit("1e300"), limit("inf")], [None; 3]);
    assert!(problem(&["train.max_minutes=nan"]).contains("train.max_minutes"));
}

#[test]
fn a_configuration_written_before_a_key_existed_gets_the_key_of_base() {
    let config = Config::resolve(&Origin::Preset("demo"), &[]).unwrap();
    let text = config.to_toml();
    let older = text.lines().filter(|line| !line.starts_with("warmup_images"));
    let older = older.collect::<Vec<_>>().join("\n");
    assert!(older.len() < text.len());
    assert_eq!(Config::parse(&older).unwrap(), config);
    assert!(Config::parse(&format!("{text}\nnonsense = 1")).is_err());
}

#[test]
fn a_configuration_written_before_a_key_existed_computes_what_it_did() {
    let config = Config::resolve(&Origin::Preset("hi_e"), &[]).unwrap();
    assert_eq!(config.e.root_pad, RootPad::Zero);
    let text = config.to_toml();
    let older: Vec<_> = text.lines().filter(|line| !line.starts_with("root_pad")).collect();
    let older = Config::parse(&older.join("\n")).unwrap();
    assert_eq!(older.e.root_pad, RootPad::Lowest);
    assert!(!config.changes(&older)[0].is_free());
}

#[test]
fn ranks_share_a_pass_evenly_and_have_no_graphs() {
    let of = |overrides: &[&str]| {
        let all: Vec<_> = overrides.iter().map(|s| (*s).to_owned()).collect();
        Config::resolve(&Origin::Preset("demo"), &all).unwrap()
    };
    let config = of(&["train.batch=12"]);
    assert_eq!(config.rows(4).unwrap(), 3);
    assert!(config.rows(5).unwrap_err().to_string().contains("5 ranks do not divide"));
    let graphs = of(&["train.batch=12", "train.graphs=true"]);
    assert_eq!(graphs.rows(1).unwrap(), 12);
    assert!(graphs.rows(4).unwrap_err().to_string().contains("train.graphs"));
}

#[test]
fn a_mistyped_name_is_refused_with_the_nearest_one() {
    assert!(problem(&["train.bacth=3"]).contains("did you mean \"batch\"?"));
    let error = Config::resolve(&Origin::Preset("dmo"), &[]).unwrap_err().to_string();
    assert!(error.contains("did you mean \"demo\"?"), "{error}");
    assert!(problem(&["data.mode=resnt"]).contains("resnet"));
}

#[test]
fn crops_of_one_s_own_are_words_of_a_configuration() {
    let own = [
        "data.mode=random-resized-crop,scale=0.2..1,law=tensorflow",
        "eval.mode=resize-centre-crop,resize=40",
    ];
    let config = Config::resolve(&Origin::Preset("demo"), &own.map(str::to_owned)).unwrap();
    let pipeline::Mode::RandomResizedCrop(crop) = config.data.mode else {
        panic!("{:?}", config.data.mode)
    };
    assert_eq!((crop.scale, crop.law), ((0.2, 1.0), pipeline::CropLaw::Tensorflow));
    assert_eq!(config.eval.mode, pipeline::Mode::ResizeCentreCrop { resize: 40 });
    assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
    let wrong = problem(&["data.mode=random-resized-crop,scale=2..3"]);
    assert!(wrong.contains("at most 1"), "{wrong}");
    // It would end the run at its first evaluation.
    let small = problem(&["eval.mode=resize-centre-crop,resize=16"]);
    assert!(small.contains("eval.mode") && small.contains("32"), "{small}");
}

#[test]
fn attention_over_too_few_channels_is_refused_with_two_ways_out() {
    let of = |set: &[&str]| {
        let set: Vec<_> = set.iter().map(|s| (*s).to_owned()).collect();
        Config::resolve(&Origin::Preset("base"), &set)
    };
    let said = of(&["g.ch=2", "f.ch=4"]).unwrap_err().to_string();
    for words in ["g.ch = 2", "not 4 ", "f.ch = 4", "f.attn_res = 0"] {
        assert!(said.contains(words), "{said}");
    }
    of(&["g.ch=2", "f.ch=4", "g.attn_res=0", "f.attn_res=0"]).unwrap();
    of(&["g.ch=4", "f.ch=8"]).unwrap();
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = problem(&["train.batch=1", "opt.beta2=2", "f.res=32"]);
    for key in ["train.batch", "opt.beta2", "f.res"] {
        assert!(text.contains(key), "{text}");
    }
    let text = problem(&["train.batch=true", "nonsense"]);
    assert!(text.contains("expected integer") && text.contains("key=value"), "{text}");
}

#[test]
fn an_override_changes_its_key_alone() {
    let base = Config::resolve(&Origin::Preset("demo"), &[]).unwrap();
    let changed = Config::resolve(&Origin::Preset("demo"), &["opt.lr_d=1".to_owned()]).unwrap();
    assert_eq!(changed.opt.lr_d, 1.0);
    assert_eq!(Config { opt: base.opt, ..changed }, base);
}

#[test]
fn changes_are_listed_and_those_that_move_the_numbers_are_told_apart() {
    let config = Config::resolve(&Origin::Preset("demo"), &[]).unwrap();
    assert_eq!(config.changes(&config), []);
    let keys = ["train.steps=3", "opt.lr_d=0.5", "checkpoint.best=a.b", "data.depth=9"];
    let later = config.with(&keys.map(str::to_owned)).unwrap();
    let said: Vec<_> =
        config.changes(&later).iter().map(|c| (c.to_string(), c.is_free())).collect();
    let expected = [
        ("checkpoint.best from \"\" to \"a.b\"", true),
        ("data.depth from 3 to 9", true),
        ("opt.lr_d from 0.0008 to 0.5", false),
        ("train.steps from 1500 to 3", true),
    ];
    assert_eq!(said, expected.map(|(text, free)| (text.to_owned(), free)));
    assert!(config.with(&["nonsense=1".to_owned()]).is_err());
    let computes = |key: &str| config.with(&[key.to_owned()]).unwrap().computes_sha256();
    for same in ["data.dir=elsewhere", "log.every=7", "train.steps=3", "data.threads=2"] {
        assert_eq!(computes(same), config.computes_sha256(), "{same}");
    }
    for other in ["opt.lr_d=0.5", "train.seed=1", "health.on_fault=skip"] {
        assert_ne!(computes(other), config.computes_sha256(), "{other}");
    }
}

#[test]
fn passwords_of_urls_are_in_no_text_that_is_shown_also_where_it_is_no_configuration() {
    let text = "[data]\ndir = \"https://user:hunter2@host/x?sig=abc\" # mine\n[newer]\nkey = 'https://a:b1@c'\ncut = \"s3://u:p9@b";
    let shown = text_without_secrets(text);
    for secret in ["hunter2", "abc", "b1", "p9"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(shown.contains("host/x") && shown.contains("# mine\n[newer]\nkey = '"), "{shown}");
}

#[test]
fn a_file_extends_a_preset() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, "extends = \"demo\"\n[train]\nseed = 9\n").unwrap();
    let config = Config::resolve(&Origin::File(&path), &[]).unwrap();
    assert_eq!((config.train.seed, config.g.res), (9, 16));
}

#[test]
fn losses_past_the_paper_are_off_unless_asked_for_and_checked() {
    let of = |overrides: &[&str]| {
        let all: Vec<_> = overrides.iter().map(|s| (*s).to_owned()).collect();
        Config::resolve(&Origin::Preset("demo"), &all).unwrap()
    };
    for (preset, _) in PRESETS {
        let any = Config::resolve(&Origin::Preset(preset), &[]).unwrap().beyond.any();
        assert_eq!(any, preset.ends_with("_beyond"), "{preset}");
    }
    let of_both = of(&["beyond.contrast=1", "beyond.codes=0.5"]).beyond;
    assert_eq!((of_both.any(), of_both.passes()), (true, 2.0));
    assert_eq!(of(&["beyond.codes=0.5"]).beyond.passes(), 1.0);
    let alone = of(&["beyond.reconstruct=0.5"]).beyond;
    assert_eq!((alone.any(), alone.passes()), (true, 0.0), "its pass is G's");
    let augmented = of(&["beyond.augment=cutout, colour"]).beyond;
    assert!(augmented.augment.any() && !augmented.any(), "it has no loss");
    assert!(of(&["beyond.augment=cutout, colour"]).to_toml().contains("\"colour,cutout\""));
    // What a run of before the table wrote.
    let text = of(&[]).to_toml();
    let (before, after) = text.split_once("[beyond]").unwrap();
    let older = format!("{before}{}", &after[after.find("\n[").unwrap()..]);
    assert_eq!(Config::parse(&older).unwrap(), of(&[]));
    for (wrong, words) in [
        ("beyond.contrast=-1", "not a weight from 0 on"),
        ("beyond.codes=inf", "not a weight from 0 on"),
        ("beyond.codes=nan", "not a weight from 0 on"),
        ("beyond.reconstruct=-0.1", "not a weight from 0 on"),
        ("beyond.augment=color", "some of \"colour,translation,cutout\""),
        ("beyond.temperature=0", "not from 0.001 to 1000"),
        ("beyond.rate=0", "not above 0"),
        ("beyond.least_area=0", "not above 0 and at most 1"),
        ("beyond.colour=1.5", "not in [0, 1]"),
        ("beyond.width=0", "not from 1 to 65536"),
        ("beyond.width=9223372036854775807", "not from 1 to 65536"),
    ] {
        let said = problem(&[wrong]);
        assert!(said.contains(words) && said.contains(wrong.split('=').next().unwrap()), "{said}");
    }
    let said = problem(&["beyond.codes=1", "loss.sxz=false", "loss.sz=false"]);
    assert!(said.contains("teach E"), "{said}");
    let fine = of(&["beyond.augment=cutout", "loss.sxz=false", "loss.sz=false"]);
    assert!(fine.beyond.augment.any(), "D needs no E for it");
}

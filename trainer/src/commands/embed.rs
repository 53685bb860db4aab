//! Features of images for other programs, and the search among them.

use std::path::PathBuf;

use trainer::error::Result;
use trainer::eval::Model;
use trainer::eval::embed::{Embedding, UNREAD, image_files};
use trainer::eval::features::Feature;
use trainer::eval::knn::{DISTANCES, Distance, nearest};
use trainer::run::open_data;
use trainer::{checkpoint, device, say};

use super::{ModelArgs, Networks, config_of, stop, table, usage};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer embed --run demo/run --folder photos --out photos\n\n\
    Writes NAME.npy (a row an image), NAME.jsonl (its key or path, and label) and NAME.json (what the\n\
    rows are). Files that cannot be read have no row: NAME.unread.jsonl lists them.")]
pub(crate) struct EmbedArgs {
    #[command(flatten)]
    source: ModelArgs,
    /// Folder of JPEG and PNG files, searched whole
    #[arg(long, value_name = "DIR", conflicts_with = "split")]
    folder: Option<PathBuf>,
    /// With --folder: end where more than this share of the files cannot be read
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    max_unread: f64,
    /// A split of the data folder instead [default: the run's eval.split]
    #[arg(long)]
    split: Option<String>,
    /// avepool, mu, map, stage1, stage2, … or pixels
    #[arg(long, default_value = "avepool")]
    feature: Feature,
    /// Path and name of the files to write, without their extensions
    #[arg(long, value_name = "NAME")]
    out: PathBuf,
}

pub(crate) fn embed(args: &EmbedArgs) -> Result<()> {
    if args.feature == Feature::BnCrelu {
        return Err(usage("bn_crelu depends on all rows: embed avepool and normalise them"));
    }
    let config = args.source.config()?;
    let mut rows = args.out.clone().into_os_string();
    rows.push(".npy");
    super::pictures::check_place(rows.as_ref())?;
    let files = args.folder.as_deref().map(image_files).transpose()?;
    let model = args.source.model(&config, args.source.variant())?;
    let (embedding, unread) = match &files {
        Some((files, _)) => Embedding::of_files(&model, files, args.feature, args.max_unread)?,
        None => {
            let split = args.split.as_ref().unwrap_or(&config.eval.split);
            let data = open_data(&config, split)?;
            (Embedding::of_split(&model, &data, args.feature)?, vec![])
        }
    };
    embedding.write(&args.out, &unread)?;
    let (rows, width) = (embedding.about.images, embedding.about.width);
    say::print(format_args!("{rows} rows of {width}: {}.npy, .jsonl, .json", args.out.display()))?;
    if let Some(first) = unread.first() {
        let (count, all) = (unread.len(), unread.len() + embedding.items.len());
        let list = format!("{}.{UNREAD}", args.out.display());
        say::note(format_args!(
            "warning: {count} of {all} files cannot be read, all in {list}, such as {} ({})",
            first.path, first.reason
        ));
    }
    for (kind, count, example) in files.iter().flat_map(|(_, skipped)| skipped.iter()) {
        say::print(format_args!("passed over: {count} {kind}, such as {example}"))?;
    }
    Ok(())
}

/// 0 to 1.
fn share(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("give a share of 0 to 1".to_owned()),
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: trainer search --run demo/run --among photos --query cat.jpg")]
pub(crate) struct SearchArgs {
    /// Folder of the run that embedded them; the same checkpoint is read
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Data folder, if not the run's own
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "auto")]
    device: String,
    /// Path and name that `trainer embed` wrote
    #[arg(long, value_name = "NAME")]
    among: PathBuf,
    /// Image file
    #[arg(long, value_name = "FILE")]
    query: PathBuf,
    /// How many to show
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(i64).range(1..))]
    k: i64,
    /// l1, l2 or cosine
    #[arg(long, default_value = "l1", value_parser = distance)]
    distance: Distance,
}

pub(crate) fn search(args: &SearchArgs) -> Result<()> {
    let among = Embedding::read(&args.among)?;
    let feature = among.about.feature.parse::<Feature>().map_err(|e| usage(&e))?;
    let wanted = &among.about.model;
    let config = config_of(&args.run, args.data.as_deref())?;
    let device = device::parse(&args.device)?;
    let other = || {
        let (among, run) = (args.among.display(), args.run.display());
        usage(&format!("{among} was embedded by another model than is in {run}; embed it again"))
    };
    let model = if Model::is_exported(&args.run) {
        let of = Networks { run: args.run.clone(), step: None, device: args.device.clone() };
        of.load(&config, wanted.weights, false)?
    } else {
        let hash = |path: &PathBuf| checkpoint::hash_of(&path.join("manifest.json")).ok();
        let all = checkpoint::list(&args.run.join("checkpoints"))?.into_iter();
        let path = all.map(|(_, path)| path).find(|path| hash(path) == wanted.checkpoint);
        let (path, train) = (path.ok_or_else(other)?, open_data(&config, "train")?);
        let model = Model::load(&path, &config, device, wanted.weights, Some(&train), &stop()?);
        // Training may go on, and this one be no longer kept.
        model.map_err(|e| if checkpoint::is_gone(&path) { other() } else { e })?
    };
    if model.subject() != wanted {
        return Err(other());
    }
    let (query, _) = Embedding::of_files(&model, std::slice::from_ref(&args.query), feature, 0.0)?;
    let found = nearest(&among.rows, None, &query.rows, args.distance, args.k);
    let mut table = table(["distance", "key", "label"]);
    for i in 0..found.rows.size()[1] {
        let item = &among.items[found.rows.int64_value(&[0, i]) as usize];
        let distance = format!("{:.4}", found.distances.double_value(&[0, i]));
        let label = if item.label < 0 { "-".into() } else { item.label.to_string() };
        table.add_row([distance, item.key.clone(), label]);
    }
    say::print(&table)?;
    Ok(())
}

/// l1, l2 or cosine.
pub(super) fn distance(text: &str) -> std::result::Result<Distance, String> {
    let found = DISTANCES.into_iter().find(|distance| distance.to_string() == text);
    found.ok_or_else(|| "give l1, l2 or cosine".to_owned())
}

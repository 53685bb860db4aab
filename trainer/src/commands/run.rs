use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use bigbigan_model::optim::Decay;
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use dist::Place;
use pipeline::Dataset;
use trainer::config::Config;
use trainer::error::{Error, Result};
use trainer::inspect::{self, Cost, Counts};
use trainer::run::{self, Begin, Ended, Session, Summary};
use trainer::say;
use trainer::scale::{self, Exchange, Speeds};

use super::{Source, stop, usage};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: trainer run --preset demo --data demo/data-cifar10 --out runs/first \
                        --set train.steps=200"
)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Data folder made by shard-imagenet; its train split is read
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder of the run; new, unless --resume
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from the newest checkpoint in --out, with its own configuration and what --set changes of it; with
    /// =auto, begin the run if there is none to go on with: the same command starts, goes on, or is done
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "auto",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "always",
        requires = "out"
    )]
    resume: Option<Resume>,
    /// With --resume: also change keys that change what the run computes
    #[arg(long, requires = "resume")]
    allow_change: bool,
    /// cpu, cuda, cuda:N or auto
    #[arg(long)]
    device: Option<String>,
    /// Print the resolved configuration and what the run would cost, write nothing
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: the speed to predict the time by, in GFLOP/s (see benches: step)
    #[arg(long, value_name = "N", requires = "dry_run")]
    gflops: Option<f64>,
    /// With --dry-run: what each of N ranks would read, hold and exchange; with --data the split is checked over its
    /// index. --gflops is then a rank's speed
    #[arg(long, value_name = "N[,N…]", requires = "dry_run", value_delimiter = ',')]
    fake_world: Vec<NonZeroUsize>,
    /// With --fake-world and --gflops: what a rank sends at its slowest link, in GB/s, to predict a step by
    #[arg(long, value_name = "N", requires_all = ["fake_world", "gflops"])]
    bandwidth: Option<f64>,
    /// With --bandwidth: microseconds of a message between ranks
    #[arg(long, value_name = "N", requires = "bandwidth", default_value_t = 20.0)]
    latency: f64,
}

/// Whether there must be something to go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Resume {
    /// There must.
    Always,
    /// A run is begun where there is none.
    Auto,
}

impl Args {
    fn out(&self) -> Result<&Path> {
        self.out.as_deref().ok_or_else(|| usage("give --out DIR, a folder for the run"))
    }

    /// --device and --data.
    fn relocate(&self, config: &mut Config) {
        if let Some(device) = &self.device {
            config.train.device.clone_from(device);
        }
        if let Some(dir) = &self.data {
            let absolute =
                (!pipeline::is_url(dir)).then(|| std::path::absolute(dir).ok()).flatten();
            let dir = absolute.unwrap_or_else(|| dir.clone());
            config.data.dir = dir.to_string_lossy().into_owned();
        }
    }
}

/// The configuration to go on with. Changes are listed; those of what the run computes need a word more.
fn changed(args: &Args, session: &Session, before: &Config, place: &Place) -> Result<Config> {
    if let (Some(differs), false) = (session.edited(), args.allow_change) {
        return Err(usage(&format!(
            "the run's config.toml is not as the trainer wrote it ({differs}, against the newest checkpoint): put it \
             back, each checkpoint's manifest.json holds it as \"config\"; change keys by --set; or add \
             --allow-change to go on with it as it is"
        )));
    }
    let config = allowed(args, before)?;
    if place.rank == 0 {
        let changes = before.changes(&config);
        changes.iter().for_each(|change| say::note(format_args!("changed: {}", change.shown())));
    }
    Ok(config)
}

/// A run's configuration with what the command changes of it, where that may be.
fn allowed(args: &Args, before: &Config) -> Result<Config> {
    let mut config = before.with(&args.source.set)?;
    args.relocate(&mut config);
    let changes = before.changes(&config);
    // Rates that go down to the last step are others where that is another.
    let decays = |key: &str| key == "train.steps" && before.opt.decay != Decay::None;
    let moved = changes.iter().filter(|c| !c.is_free() || decays(&c.key));
    let moved: Vec<_> = moved.map(ToString::to_string).collect();
    if !moved.is_empty() && !args.allow_change {
        let moved = moved.join(", ");
        return Err(usage(&format!(
            "{moved}: this changes what the run computes; add --allow-change if that is meant"
        )));
    }
    Ok(config)
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let stop = stop()?;
    let place = Place::from_env()?;
    let begin = match args.resume {
        None => Begin::New,
        Some(Resume::Always) => Begin::Continue,
        Some(Resume::Auto) => Begin::Auto,
    };
    if begin == Begin::Continue && (args.source.origin().is_some() || args.dry_run) {
        return Err(usage("--resume takes no --preset, --config or --dry-run; --resume=auto may"));
    }
    if begin == Begin::Continue {
        let mut session = Session::open(args.out()?, begin, &place)?;
        session.any_checkpoint = args.allow_change;
        let before = session.before().expect("a run that is gone on with has a configuration");
        let config = changed(args, &session, before, &place)?;
        return finish(&place, run::run(session, config, place.clone(), &stop));
    }
    let origin =
        args.source.origin().ok_or_else(|| usage("give --preset NAME or --config FILE"))?;
    let mut config = Config::resolve(&origin, &args.source.set)?;
    args.relocate(&mut config);
    if args.dry_run {
        return dry_run(args, &config);
    }
    // Where a machine was lost, its run comes back first.
    let (out, mirror) = (args.out()?, config.checkpoint.mirror.clone());
    let lost = match begin == Begin::Auto && !mirror.is_empty() {
        true => match run::mirrored(out, &mirror) {
            // Rank 0 alone needs it, and says why.
            Err(_) if place.rank > 0 => None,
            found => found?,
        },
        false => None,
    };
    let mut taken = None;
    if let Some(theirs) = &lost {
        let wanted = allowed(args, theirs)?;
        same_run(&wanted, &config, "mirror")?;
        if place.rank == 0 {
            // What cannot start here takes the mirror from nobody.
            trainer::device::of_rank(&wanted.train.device, &place)?;
            run::open_data(&wanted, "train")?;
            taken = Some(run::restore(out, &mirror, &stop)?);
        }
    }
    let mut session = Session::open(out, begin, &place)?;
    session = match (taken, lost) {
        (Some(taken), _) => session.brought_back(taken),
        (None, Some(theirs)) => session.awaiting(theirs),
        (None, None) => session,
    };
    session.any_checkpoint = args.allow_change;
    if let Some(before) = session.before() {
        config = same_or_changed(args, &session, before, &config, &place)?;
    }
    finish(&place, run::run(session, config, place.clone(), &stop))
}

/// What --resume=auto goes on with: the folder's configuration and what --set changes of it. A command
/// that names another run than the folder's is refused.
fn same_or_changed(
    args: &Args,
    session: &Session,
    before: &Config,
    asked: &Config,
    place: &Place,
) -> Result<Config> {
    let config = changed(args, session, before, place)?;
    same_run(&config, asked, "folder").map(|()| config)
}

/// Refuses a run that computes something else than the command asks for.
fn same_run(config: &Config, asked: &Config, place: &str) -> Result<()> {
    let others: Vec<_> = config.changes(asked).into_iter().filter(|c| !c.is_free()).collect();
    if others.is_empty() {
        return Ok(());
    }
    let others: Vec<_> = others.iter().map(ToString::to_string).collect();
    Err(usage(&format!(
        "the run in this {place} is another than the command's ({}); give its preset and changes, or name \
         a new --out{}",
        others.join(", "),
        if place == "mirror" { " and checkpoint.mirror" } else { "" }
    )))
}

/// Images of ImageNet's training split, which the presets are for.
const IMAGENET: usize = 1_281_167;

fn dry_run(args: &Args, config: &Config) -> Result<()> {
    let positive = |number: f64| number.is_finite() && number > 0.0;
    if !args.gflops.is_none_or(positive) {
        return Err(usage("--gflops wants a speed above 0"));
    }
    let waits = args.latency.is_finite() && args.latency >= 0.0;
    if !(waits && args.bandwidth.is_none_or(positive)) {
        return Err(usage("--bandwidth wants a speed above 0, --latency a time from 0 on"));
    }
    let ranks: Vec<_> = args.fake_world.iter().map(|ranks| ranks.get()).collect();
    ranks.iter().try_for_each(|ranks| config.rows(*ranks).map(drop))?;
    let data =
        (!config.data.dir.is_empty()).then(|| run::open_data(config, "train")).transpose()?;
    say::print(format_args!("{}", config.shown()))?;
    let counts = Counts::of(config);
    let cost = Cost::of(config, &counts);
    say::print(format_args!("{}", inspect::table(&counts, &cost)))?;
    let (images, of) = match &data {
        None => (IMAGENET, " of ImageNet, as no --data is given"),
        Some(data) => (data.len(), ""),
    };
    let steps = config.train.steps as f64;
    let seen = steps * config.train.batch as f64;
    let epochs = seen / images as f64;
    say::print(format_args!(
        "{images} training images{of}; {steps} steps are {epochs:.1} epochs for G and E"
    ))?;
    if let Some(speed) = args.gflops {
        let step = config.train.batch as f64 * cost.step_flop / (1e9 * speed);
        say::print(format_args!(
            "at {speed} GFLOP/s a step takes {step:.3} s ({:.1} images/s) and the run {:.2} days, \
             pictures and evaluations not counted",
            config.train.batch as f64 / step,
            step * steps / 86_400.0
        ))?;
    }
    if !ranks.is_empty() {
        fake_world(args, config, &cost, data.as_deref(), &ranks)?;
    }
    Ok(())
}

fn fake_world(
    args: &Args,
    config: &Config,
    cost: &Cost,
    data: Option<&Dataset>,
    ranks: &[usize],
) -> Result<()> {
    let exchange = Exchange::of(config);
    for &ranks in ranks {
        say::print(format_args!("\n{}", scale::describe(config, ranks)?))?;
        if let Some(data) = data {
            let batches = scale::check_split(config, data, ranks)?;
            say::print(format_args!(
                "in the first {batches} batches the ranks together read what one process reads"
            ))?;
        }
    }
    say::print(format_args!("\n{}", exchange.describe()))?;
    let speeds = args.gflops.zip(args.bandwidth).map(|(gflops, bandwidth)| Speeds {
        flop: 1e9 * gflops,
        bandwidth: 1e9 * bandwidth,
        latency: 1e-6 * args.latency,
    });
    say::print(format_args!("\n{}", scale::table(config, cost, &exchange, ranks, speeds)))?;
    Ok(())
}

/// A run's last words: where its results are, and one table. A run that was stopped, or of which something
/// could not be written, is an error to who started it.
fn finish(place: &Place, ended: Result<Summary>) -> Result<()> {
    // What cannot be printed is in the folder all the same.
    let print = |text: &str| drop(say::print(text));
    let summary = ended.inspect_err(|e| {
        if e.is_stop() {
            print("stopped by a signal before the first step; the same command begins again");
        }
    })?;
    if place.rank == 0 {
        print(&last_words(&summary).join("\n"));
    }
    if summary.ended == Ended::Signal {
        return Err(Error::Data(pipeline::Error::Stopped));
    }
    if summary.incomplete {
        let reason = summary.troubles.join("; ");
        return Err(Error::Unwritten { path: summary.out, reason });
    }
    Ok(())
}

fn last_words(summary: &Summary) -> Vec<String> {
    let probe = summary.probe.as_ref().map(|(trained, initial)| {
        format!(
            "linear probe     {:.1} % top-1 on {} images ({:.1} % with the initial encoder)",
            trained.result.top1, trained.result.test_images, initial.result.top1
        )
    });
    let Some(s) = &summary.stats else {
        let (out, steps) = (summary.out.display(), summary.steps);
        let ended = match summary.ended {
            Ended::Steps => format!("{out} is finished: {steps} steps"),
            Ended::Time | Ended::Signal => {
                format!("{out} was stopped after {steps} steps, none of them now; --resume goes on")
            }
        };
        return [ended].into_iter().chain(probe).collect();
    };
    let why = match summary.ended {
        Ended::Steps => "all steps done",
        Ended::Time => "train.max_minutes are over; --resume goes on",
        Ended::Signal => "stopped by a signal; --resume goes on",
    };
    let at = |name: &str| summary.out.join(name).display().to_string();
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header([
        "steps",
        "images/s",
        "data wait",
        "loss D",
        "loss G",
        "loss E",
    ]);
    table.add_row([
        summary.steps.to_string(),
        format!("{:.0}", s.images_per_s),
        format!("{:.2} %", s.data_wait_percent),
        format!("{:.3}", s.loss_d),
        format!("{:.3}", s.loss_g),
        s.loss_e.map_or("-".into(), |e| format!("{e:.3}")),
    ]);
    let mut words = vec![why.to_owned()];
    if summary.ended != Ended::Signal {
        words.push(format!("samples          {}", at("images/samples.png")));
        if s.loss_e.is_some() {
            words.push(format!("reconstructions  {}", at("images/reconstructions.png")));
        }
    }
    words.push(format!("report           {}", at("report.html")));
    words.push(format!("statistics       {}", at("stats.jsonl")));
    words.push(format!("metrics          {}", at("metrics.jsonl")));
    words.push(format!("checkpoints      {}", at("checkpoints")));
    words.push(format!("input            {}", summary.bottleneck));
    words.extend(probe);
    words.push(table.to_string());
    let troubles = summary.troubles.iter();
    words.extend(troubles.map(|trouble| format!("not as it should be: {trouble}")));
    words
}

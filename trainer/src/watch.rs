//! Runs in a browser while they go on: the pages of [`crate::report`], served on this machine alone, which ask for themselves
//! again when a run has written something.
//!
//! Nothing is written, and nothing of a request reaches the file system but names that were found there before.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::extract::{Path as Segments, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use common::stop::Stop;
use futures_util::stream::{Stream, unfold};
use maud::{Markup, html};

use crate::error::{Error, Result};
use crate::evaluations;
use crate::report::{self, Chart, History, Page, Series, Source};

/// Folders between the one that is watched and a run, at most.
const DEPTH: usize = 4;
/// Runs, at most.
const MOST: usize = 500;
/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// What a run writes that a page shows.
const FILES: [&str; 7] = [
    "config.toml",
    "stats.jsonl",
    "incidents.jsonl",
    "metrics.jsonl",
    "evaluations.jsonl",
    "sessions.jsonl",
    "images",
];

/// A run under what is watched.
#[derive(Debug, Clone)]
struct Found {
    /// Its address: of letters and digits, the same as long as it stays where it is.
    id: String,
    /// Its folder from what is watched on.
    name: String,
    folder: PathBuf,
}

/// Every run under `root`, or `root` itself, by name.
fn runs(root: &Path) -> Vec<Found> {
    let mut found = vec![];
    search(root, root, DEPTH, &mut found);
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Whether an entry is a folder; of most kinds of file systems no file is looked at for it.
fn is_folder(entry: &fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|of| of.is_dir() || (of.is_symlink() && entry.path().is_dir()))
}

fn search(root: &Path, folder: &Path, depth: usize, found: &mut Vec<Found>) {
    if found.len() > MOST {
        return;
    }
    if folder.join("config.toml").is_file() && report::configuration(folder).is_ok() {
        let name = folder.strip_prefix(root).unwrap_or(folder).display().to_string();
        let name = if name.is_empty() { report::name_of(folder) } else { name };
        let id = common::files::sha256(name.as_bytes())[..16].to_owned();
        found.push(Found { id, name, folder: folder.to_owned() });
        return;
    }
    if depth == 0 {
        return;
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let hidden = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b".");
    let folders = entries.filter(|entry| !hidden(entry) && is_folder(entry));
    let mut folders: Vec<_> = folders.map(|entry| entry.path()).collect();
    folders.sort();
    for folder in folders {
        search(root, &folder, depth - 1, found);
    }
}

/// When and how large each of its files was, and whether a trainer is at work in it.
type Stamp = (Vec<Option<(SystemTime, u64)>>, crate::lock::Held);

fn stamp(run: &Path) -> Stamp {
    let of = |name: &&str| {
        let meta = fs::metadata(run.join(name)).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    (FILES.iter().map(of).collect(), crate::lock::held(run))
}

/// A run's line in the table of all.
#[derive(Debug, Clone)]
struct Summary {
    state: String,
    steps: String,
    trained: String,
    speed: String,
    newest: String,
    loss: Vec<report::Point>,
    reconstruction: Vec<report::Point>,
}

impl Summary {
    fn read(run: &Path) -> Result<Self> {
        let config = report::configuration(run)?;
        let stats = Series::read(
            &run.join("stats.jsonl"),
            &["loss_d", "reconstruction", "images_per_s", "step_seconds", "time"],
        );
        let history = History::read(run, &config, &stats);
        let of = history
            .steps
            .map_or_else(String::new, |steps| format!(" of {}", report::compact(steps)));
        let speed = report::number(&stats.last, "images_per_s");
        let found = evaluations::of(run);
        let probe = report::of_metric(&found, "linear_probe_bn_crelu", &["top1"], |_| 0.0);
        let best = probe.iter().map(|point| point.mean).reduce(f64::max);
        Ok(Self {
            state: history.status(),
            steps: format!("{}{of}", report::compact(history.done)),
            trained: report::time(history.minutes),
            speed: speed.map_or_else(String::new, report::short),
            newest: best.map_or_else(String::new, |best| format!("{} %", report::short(best))),
            loss: stats.points("loss_d"),
            reconstruction: stats.points("reconstruction"),
        })
    }
}

/// What is watched.
#[derive(Debug)]
struct Watched {
    root: PathBuf,
    /// The runs, and when they were looked for.
    found: Mutex<Option<(Instant, Arc<Vec<Found>>)>>,
    /// Summaries by folder, and of when they are.
    summaries: Mutex<HashMap<PathBuf, (Stamp, Summary)>>,
}

impl Watched {
    fn new(root: PathBuf) -> Self {
        Self { root, found: Mutex::default(), summaries: Mutex::default() }
    }

    /// The runs as they were a moment ago: all who ask within it share a search.
    fn runs(&self) -> Arc<Vec<Found>> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match &*found {
            Some((when, runs)) if when.elapsed() < EVERY => Arc::clone(runs),
            _ => {
                let runs = Arc::new(runs(&self.root));
                *found = Some((Instant::now(), Arc::clone(&runs)));
                runs
            }
        }
    }

    fn find(&self, id: &str) -> Option<Found> {
        self.runs().iter().find(|run| run.id == id).cloned()
    }

    fn summary(&self, run: &Path) -> Option<Summary> {
        let stamp = stamp(run);
        let known = || self.summaries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, summary)) = known().get(run)
            && *of == stamp
        {
            return Some(summary.clone());
        }
        let summary = Summary::read(run).ok()?;
        known().insert(run.to_owned(), (stamp, summary.clone()));
        Some(summary)
    }

    /// The table of all runs.
    fn index(&self) -> Page {
        let mut page = Page::new(format!("Runs in {}", self.root.display()));
        let runs = self.runs();
        let rows: Vec<_> = runs
            .iter()
            .take(MOST)
            .filter_map(|run| Some(row(&mut page, run, &self.summary(&run.folder)?)))
            .collect();
        let heads =
            ["run", "state", "step", "trained", "images/s", "probe", "loss of D", "reconstruction"];
        let content = html! {
            @if rows.is_empty() { p.muted { "no run yet" } } @else {
                div.scroll tabindex="0" {
                    table {
                        thead { tr { @for head in heads { th { (head) } } } }
                        tbody { @for row in &rows { (row) } }
                    }
                }
                @if runs.len() > MOST { p.muted { "the first " (MOST) " alone" } }
            }
        };
        page.part("runs", &content);
        page
    }

    /// The page of a run.
    fn run(&self, id: &str) -> Option<Page> {
        let run = self.find(id)?;
        let page = report::of_run(&run.folder, &Source::Address("images/"));
        page.ok().map(|page| page.titled(run.name))
    }
}

fn row(page: &mut Page, run: &Found, of: &Summary) -> Markup {
    let spark = |name: &str, points: &[report::Point]| {
        Chart::spark(format!("{name} of {}", run.name)).line(name, points)
    };
    let loss = page.spark(spark("loss of D", &of.loss));
    let reconstruction = page.spark(spark("reconstruction", &of.reconstruction));
    html! {
        tr {
            th { a href={ "/run/" (run.id) "/" } { (run.name) } }
            td { (of.state) } td.number { (of.steps) } td.number { (of.trained) }
            td.number { (of.speed) } td.number { (of.newest) }
            td { (loss) } td { (reconstruction) }
        }
    }
}

type Shared = State<Arc<Watched>>;

/// What `work` says, made beside the threads that answer; nothing is "not found".
async fn made(
    watched: Arc<Watched>,
    work: impl FnOnce(&Watched) -> Option<Response> + Send + 'static,
) -> Response {
    let made = tokio::task::spawn_blocking(move || work(&watched)).await;
    match made {
        Ok(Some(response)) => response,
        Ok(None) => (StatusCode::NOT_FOUND, "no such run or picture").into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

fn json(page: &Page) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], page.to_json().to_string()).into_response()
}

async fn index(State(watched): Shared) -> Response {
    made(watched, |watched| Some(Html(watched.index().to_html(Some(""))).into_response())).await
}

async fn index_json(State(watched): Shared) -> Response {
    made(watched, |watched| Some(json(&watched.index()))).await
}

async fn run(State(watched): Shared, Segments(id): Segments<String>) -> Response {
    let work =
        move |watched: &Watched| Some(Html(watched.run(&id)?.to_html(Some(&id))).into_response());
    made(watched, work).await
}

async fn run_json(State(watched): Shared, Segments(id): Segments<String>) -> Response {
    made(watched, move |watched| Some(json(&watched.run(&id)?))).await
}

async fn image(
    State(watched): Shared,
    Segments((id, name)): Segments<(String, String)>,
) -> Response {
    let work = move |watched: &Watched| {
        let run = watched.find(&id)?;
        let is_picture = report::is_plain(&name) && name.ends_with(".png");
        let path = run.folder.join("images").join(&name);
        let bytes = is_picture.then(|| report::picture_bytes(&path))??;
        Some(([(header::CONTENT_TYPE, "image/png")], bytes).into_response())
    };
    made(watched, work).await
}

/// Names of runs that have written something, as it happens.
async fn events(
    State(watched): Shared,
) -> Sse<impl Stream<Item = std::result::Result<Event, Infallible>>> {
    let stamps = |watched: &Watched| -> BTreeMap<String, Stamp> {
        watched.runs().iter().map(|run| (run.id.clone(), stamp(&run.folder))).collect()
    };
    let before = stamps(&watched);
    let changes = unfold((watched, before), move |(watched, before)| async move {
        loop {
            tokio::time::sleep(EVERY).await;
            let of = Arc::clone(&watched);
            let now = tokio::task::spawn_blocking(move || stamps(&of)).await.ok()?;
            let new = now.iter().filter(|(id, stamp)| before.get(*id) != Some(stamp));
            let gone = before.keys().filter(|id| !now.contains_key(*id));
            let changed: Vec<_> = new.map(|(id, _)| id).chain(gone).collect();
            if !changed.is_empty() {
                let event = Event::default().data(serde_json::json!(changed).to_string());
                return Some((Ok(event), (watched, now)));
            }
        }
    });
    Sse::new(changes).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}

/// Refuses a page of elsewhere that has this machine's name lead here (DNS rebinding).
async fn of_this_machine(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let name = host.map_or("", |host| {
        let port = host.rfind(':').filter(|at| !host[*at..].contains(']'));
        &host[..port.unwrap_or(host.len())]
    });
    if !["127.0.0.1", "localhost", "[::1]"].contains(&name) {
        let text =
            "this page is for this machine: use localhost or 127.0.0.1, by ssh -L from elsewhere";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

fn router(root: PathBuf) -> Router {
    let watched = Arc::new(Watched::new(root));
    Router::new()
        .route("/", get(index))
        .route("/page.json", get(index_json))
        .route("/events", get(events))
        .route("/run/{id}/", get(run))
        .route("/run/{id}/page.json", get(run_json))
        .route("/run/{id}/images/{name}", get(image))
        .layer(middleware::from_fn(of_this_machine))
        .with_state(watched)
}

/// Serves the pages of every run under `root` at a port of this machine's loopback address (0 for any that is free) until
/// `stop`. `ready` is told the address.
///
/// # Errors
/// [`Error::Output`] if there is no such folder; [`Error::Io`] if the port is taken; what `ready` says.
pub fn serve(
    root: &Path,
    port: u16,
    stop: &Stop,
    ready: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    if !root.is_dir() {
        let reason = "it is no folder: give that of a run or one that has runs in it";
        return Err(Error::Output { path: root.to_owned(), reason: reason.to_owned() });
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let at = |action| Error::io(action, Path::new("the page's port"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(at("open"))?;
    let served = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await.map_err(|e| {
            let problem = format!("{address} is taken: choose another --port, or 0 for any");
            match e.kind() {
                ErrorKind::AddrInUse => Error::Usage { problem },
                _ => at("open")(e),
            }
        })?;
        ready(listener.local_addr().map_err(at("open"))?)?;
        let ends = async {
            while !stop.wanted() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            served = async { axum::serve(listener, router(root.to_owned())).await } => served.map_err(at("serve")),
            () = ends => Ok(()),
        }
    });
    // Pages that are open keep nothing up.
    runtime.shutdown_background();
    served
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(folder: &Path) {
        fs::create_dir_all(folder.join("images")).unwrap();
        fs::write(folder.join("config.toml"), "[train]\nsteps = 4\n").unwrap();
        let line = "{\"step\":2,\"loss_d\":5,\"step_seconds\":3}\n";
        fs::write(folder.join("stats.jsonl"), line).unwrap();
    }

    #[test]
    fn runs_are_found_in_folders_of_folders_and_not_within_runs() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for name in ["b", "a/runs/x-0", "b/checkpoints/old", ".hidden/run", "1/2/3/4/deep"] {
            run(&at(name));
        }
        fs::create_dir_all(at("other")).unwrap();
        fs::write(at("other/config.toml"), "[server]\nport = 80\n").unwrap();
        let found = runs(root.path());
        let names: Vec<_> = found.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names, ["a/runs/x-0", "b"]);
        let alone = runs(&at("b"));
        assert_eq!((alone.len(), &*alone[0].name), (1, "b"));
        assert!(found.iter().all(|run| run.id.chars().all(|c| c.is_ascii_hexdigit())));
    }

    #[test]
    fn what_a_run_writes_is_a_change_and_its_summary_is_read_again() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run");
        run(&folder);
        let watched = Watched::new(root.path().to_owned());
        let before = stamp(&folder);
        assert_eq!(before, stamp(&folder));
        assert_eq!(watched.summary(&folder).unwrap().steps, "2 of 4");
        let line = "{\"step\":4,\"loss_d\":4,\"step_seconds\":3}\n";
        let text = fs::read_to_string(folder.join("stats.jsonl")).unwrap() + line;
        fs::write(folder.join("stats.jsonl"), text).unwrap();
        assert_ne!(before, stamp(&folder));
        let summary = watched.summary(&folder).unwrap();
        assert_eq!((&*summary.steps, &*summary.state), ("4 of 4", "finished"));
        assert_eq!(summary.trained, "12 seconds");
        fs::remove_dir_all(&folder).unwrap();
        assert!(watched.summary(&folder).is_none() && watched.run("nothing").is_none());
        let later = Watched::new(root.path().to_owned());
        assert!(later.index().to_html(Some("")).contains("no run yet"));
    }
}

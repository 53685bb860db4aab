//! A small HTTP server over a folder, or in front of another server, that can be as slow and as
//! faulty as a real one on a bad day. Plain tokio; of a folder it answers GET with ranges and nothing else.

#![allow(dead_code, unreachable_pub, reason = "each user takes its own part")]
#![allow(clippy::unwrap_used, reason = "a test's server may stop at what it did not expect")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Waited before each answer.
    pub latency: Duration,
    /// Share of requests that fail: in turn with status 500, with a body cut in half, and with a
    /// body that stops half way for `stall` before the connection closes.
    pub failing: f64,
    pub stall: Duration,
    /// Whether ranges are answered.
    pub ranges: bool,
    /// Whether answers carry an ETag.
    pub tags: bool,
    /// The status of every answer, where it is not to be 206.
    pub status: Option<u16>,
    /// Requests whose path contains this are never answered.
    pub held: Option<&'static str>,
    /// What is not there is refused, as S3 does where it may not be listed.
    pub unlisted: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            failing: 0.0,
            stall: Duration::from_secs(60),
            ranges: true,
            tags: true,
            status: None,
            held: None,
            unlisted: false,
        }
    }
}

/// Where answers come from.
#[derive(Debug, Clone)]
pub enum Origin {
    Folder(PathBuf),
    Server(SocketAddr),
}

/// What was served.
#[derive(Debug, Default)]
pub struct Served {
    pub requests: AtomicU64,
    pub faults: AtomicU64,
    pub bytes: AtomicU64,
}

impl Served {
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// All of it as JSON, with the CPU seconds of the process.
    fn told(&self) -> String {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // After the name in brackets, fields 12 and 13 are user and system time in 1/100 s.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
        let ticks: u64 = fields.take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let (requests, faults, bytes) = (self.requests(), self.faults(), self.bytes());
        let cpu = ticks as f64 / 100.0;
        format!(
            "{{\"requests\":{requests},\"faults\":{faults},\"bytes\":{bytes},\"cpu_s\":{cpu}}}\n"
        )
    }
}

/// A server on a thread of its own until it is dropped.
#[derive(Debug)]
pub struct Server {
    pub url: String,
    pub served: Arc<Served>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub fn folder(dir: &Path, faults: Faults) -> Self {
        Self::start(Origin::Folder(dir.to_path_buf()), faults, 0).unwrap()
    }

    pub fn start(origin: Origin, faults: Faults, port: u16) -> io::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, port)))?;
        let url = format!("http://{}", listener.local_addr()?);
        let served = Arc::new(Served::default());
        runtime.spawn(accept(listener, Arc::new(origin), faults, Arc::clone(&served)));
        Ok(Self { url, served, _runtime: runtime })
    }
}

async fn accept(listener: TcpListener, origin: Arc<Origin>, faults: Faults, served: Arc<Served>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let (origin, served) = (Arc::clone(&origin), Arc::clone(&served));
        tokio::spawn(async move {
            // The other end may close a connection at any time.
            let _ = connection(stream, &origin, faults, &served).await;
        });
    }
}

/// Answers one request after the other.
async fn connection(
    mut stream: TcpStream,
    origin: &Origin,
    faults: Faults,
    served: &Served,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut buffer).await? {
        if head.starts_with("GET /served ") {
            let told = served.told();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", told.len());
            stream.write_all((head + &told).as_bytes()).await?;
            continue;
        }
        let number = served.requests.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(faults.latency).await;
        if faults.held.is_some_and(|part| head.lines().next().unwrap_or_default().contains(part)) {
            std::future::pending::<()>().await;
        }
        let (head, body) = match origin {
            Origin::Folder(dir) => answer(&head, dir, faults),
            Origin::Server(address) => {
                let length = header(&head, "content-length").and_then(|length| length.parse().ok());
                let length: usize = length.unwrap_or(0);
                while buffer.len() < length && stream.read_buf(&mut buffer).await? > 0 {}
                let sent: Vec<u8> = buffer.drain(..length.min(buffer.len())).collect();
                match faults.status {
                    Some(status) => {
                        let head =
                            format!("HTTP/1.1 {status} as told\r\nContent-Length: 0\r\n\r\n");
                        (head, Vec::new())
                    }
                    None => forward(&head, &sent, *address).await?,
                }
            }
        };
        let fault = if unit(number) < faults.failing {
            served.faults.fetch_add(1, Ordering::Relaxed) % 3 + 1
        } else {
            0
        };
        if fault == 1 {
            let text = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(text.as_bytes()).await?;
            continue;
        }
        let sent = if fault == 0 { &body[..] } else { &body[..body.len() / 2] };
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(sent).await?;
        served.bytes.fetch_add(sent.len() as u64, Ordering::Relaxed);
        match fault {
            0 => {}
            2 => return Ok(()),
            _ => {
                tokio::time::sleep(faults.stall).await;
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The next request's head; none when the other end closes.
async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = buffer.drain(..end + 4).collect();
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// A path without its %XX.
fn unescaped(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let code = behind.get(..2).filter(|_| first == b'%');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The answer to a request for a file.
fn answer(head: &str, dir: &Path, faults: Faults) -> (String, Vec<u8>) {
    let plain =
        |status: &str| (format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"), Vec::new());
    if let Some(status) = faults.status {
        return plain(&format!("{status} as told"));
    }
    let path = head.split(' ').nth(1).unwrap_or("/").trim_start_matches('/');
    let path = unescaped(path);
    if path.split('/').any(|part| part == "..") {
        return plain("404 Not Found");
    }
    let Ok(file) = std::fs::File::open(dir.join(path)) else {
        return plain(if faults.unlisted { "403 Forbidden" } else { "404 Not Found" });
    };
    let size = file.metadata().unwrap().len();
    let range = header(head, "range").filter(|_| faults.ranges);
    let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let (start, end) = match range {
        None => (0, size),
        Some((start, end)) => {
            let end = end.parse::<u64>().map_or(size, |end| (end + 1).min(size));
            (start.parse().unwrap_or(0), end)
        }
    };
    if start >= end {
        return plain("416 Range Not Satisfiable");
    }
    let mut body = vec![0; (end - start) as usize];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut body, start).unwrap();
    let status = match range {
        None => "HTTP/1.1 200 OK\r\n".to_string(),
        Some(_) => format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{size}\r\n",
            end - 1
        ),
    };
    let tag = if faults.tags { format!("ETag: \"{size:x}\"\r\n") } else { String::new() };
    let date = "Last-Modified: Tue, 24 Nov 2026 00:00:00 GMT\r\n";
    (format!("{status}{tag}{date}Content-Length: {}\r\n\r\n", body.len()), body)
}

/// The answer of another server to the same request.
async fn forward(head: &str, body: &[u8], server: SocketAddr) -> io::Result<(String, Vec<u8>)> {
    let mut upstream = TcpStream::connect(server).await?;
    // Its end is the answer's.
    let kept = |line: &&str| !line.to_ascii_lowercase().starts_with("connection:");
    let lines: Vec<&str> = head.trim_end().lines().filter(kept).collect();
    let head = format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n"));
    upstream.write_all(head.as_bytes()).await?;
    upstream.write_all(body).await?;
    let mut buffer = Vec::new();
    let head = read_head(&mut upstream, &mut buffer).await?.unwrap_or_default();
    while upstream.read_buf(&mut buffer).await? > 0 {}
    Ok((head, buffer))
}

/// A number in [0, 1) from another one: the finaliser of SplitMix64.
fn unit(number: u64) -> f64 {
    let x = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

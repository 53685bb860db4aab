//! TensorBoard's event files: scalars, images and histograms.
//!
//! # Source
//! The records of TFRecord (length, masked CRC-32C, bytes, masked CRC-32C) and the messages of
//! `event.proto`, `summary.proto` and `histogram.proto`, of which only what is written is declared.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use image::RgbImage;
use prost::Message;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Buckets of a histogram.
const BUCKETS: i64 = 64;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    /// 1 for START.
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
    #[prost(oneof = "Content", tags = "2, 4, 5, 8")]
    content: Option<Content>,
}

/// Which of TensorBoard's plugins shows a value.
#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin: Option<Plugin>,
}

#[derive(Clone, PartialEq, Message)]
struct Plugin {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Content {
    #[prost(float, tag = "2")]
    Scalar(f32),
    #[prost(message, tag = "4")]
    Image(Image),
    #[prost(message, tag = "5")]
    Histogram(Histogram),
    #[prost(message, tag = "8")]
    Text(Text),
}

/// A tensor of one string.
#[derive(Clone, PartialEq, Message)]
struct Text {
    /// 7 for strings.
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    strings: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "2")]
    sides: Vec<Side>,
}

#[derive(Clone, PartialEq, Message)]
struct Side {
    #[prost(int64, tag = "1")]
    size: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// 3 for RGB.
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(double, tag = "1")]
    min: f64,
    #[prost(double, tag = "2")]
    max: f64,
    #[prost(double, tag = "3")]
    num: f64,
    #[prost(double, tag = "4")]
    sum: f64,
    #[prost(double, tag = "5")]
    sum_squares: f64,
    /// Upper ends of the buckets.
    #[prost(double, repeated, tag = "6")]
    bucket_limit: Vec<f64>,
    #[prost(double, repeated, tag = "7")]
    bucket: Vec<f64>,
}

/// What the names of event files begin with.
const PREFIX: &str = "events.out.tfevents.";
/// Most bytes of records that wait for a disk that does not take them.
const WAITING: usize = 16 << 20;

/// One session's event file. What the disk does not take is kept and tried again with the next record.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: Option<File>,
    /// Length of the whole records on the disk.
    whole: u64,
    waiting: VecDeque<Vec<u8>>,
    /// Records given up because too much waited.
    lost: u64,
}

impl Events {
    /// A new file in `folder`, behind those of earlier sessions, which marks as void what they say of steps
    /// after `step`: TensorBoard then drops it. What cannot be written waits from the first record on.
    #[must_use]
    pub fn new(folder: &Path, step: u64) -> Self {
        let (mut earlier, mut time) = (0, now() as u64);
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let of = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('.').next());
            // Readers take the files of a folder in the order of their names, and clocks are set back.
            time = time.max(of.and_then(|of| of.parse().ok()).unwrap_or(0));
            earlier += 1;
        }
        let path = folder.join(format!("{PREFIX}{time:010}.{earlier:06}"));
        let mut events = Self { path, file: None, whole: 0, waiting: VecDeque::new(), lost: 0 };
        let began = events.write(0, What::FileVersion("brain.Event:2".into()));
        let voided = events.go_back(step);
        if let Err(e) = began.and(voided) {
            tracing::warn!("{e}; it is tried again");
        }
        events
    }

    /// Marks as void what was said of steps after `step`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn go_back(&mut self, step: u64) -> Result<()> {
        self.write(step + 1, What::SessionLog(SessionLog { status: 1 }))
    }

    /// Records that are not on the disk: those that wait and those that were given up.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.waiting.len() as u64 + self.lost
    }

    /// Writes numbers under their tags; those that are not finite too.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        let value = |(tag, value)| (tag, Content::Scalar(value as f32));
        self.summary(step, values.into_iter().map(value))
    }

    /// Writes text, Markdown, for TensorBoard's page of texts.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<()> {
        let shape = Some(Shape { sides: vec![Side { size: 1 }] });
        let text = Text { kind: 7, shape, strings: vec![text.as_bytes().to_vec()] };
        let metadata = Some(Metadata { plugin: Some(Plugin { name: "text".to_owned() }) });
        let content = Some(Content::Text(text));
        let value = Value { tag: tag.to_owned(), metadata, content };
        self.write(step, What::Summary(Summary { value: vec![value] }))
    }

    /// Writes a picture.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn image(&mut self, step: u64, tag: &str, picture: &RgbImage) -> Result<()> {
        let mut png = std::io::Cursor::new(vec![]);
        picture
            .write_to(&mut png, image::ImageFormat::Png)
            .map_err(|source| Error::Picture { path: self.path.clone(), source })?;
        let image = Image {
            height: picture.height() as i32,
            width: picture.width() as i32,
            colorspace: 3,
            encoded: png.into_inner(),
        };
        self.summary(step, [(tag, Content::Image(image))])
    }

    /// Writes the distribution of a tensor's values; nothing where one of them is not finite.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Torch`].
    pub fn histogram(&mut self, step: u64, tag: &str, values: &Tensor) -> Result<()> {
        let content = histogram(values)?.map(Content::Histogram);
        self.summary(step, content.map(|content| (tag, content)))
    }

    fn summary<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, Content)>,
    ) -> Result<()> {
        let one = |(tag, content): (&str, _)| Value {
            tag: tag.to_owned(),
            metadata: None,
            content: Some(content),
        };
        self.write(step, What::Summary(Summary { value: values.into_iter().map(one).collect() }))
    }

    fn write(&mut self, step: u64, what: What) -> Result<()> {
        let event = Event { wall_time: now(), step: step as i64, what: Some(what) };
        self.waiting.push_back(record(&event.encode_to_vec()));
        self.flush().map_err(Error::io("write", &self.path))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        while let Some(record) = self.waiting.pop_front() {
            if let Err(e) = self.append(&record) {
                self.waiting.push_front(record);
                while self.waiting.iter().map(Vec::len).sum::<usize>() > WAITING {
                    self.waiting.pop_front();
                    self.lost += 1;
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// Writes a whole record, or leaves the file as it was: nothing behind half a record can be read.
    fn append(&mut self, record: &[u8]) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                if let Some(folder) = self.path.parent() {
                    fs::create_dir_all(folder)?;
                }
                none.insert(File::options().create(true).append(true).open(&self.path)?)
            }
        };
        if let Err(e) = file.write_all(record) {
            let _ = file.set_len(self.whole);
            self.file = None;
            return Err(e);
        }
        self.whole += record.len() as u64;
        Ok(())
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn histogram(values: &Tensor) -> Result<Option<Histogram>> {
    // On the CPU: histc adds up in no fixed order on CUDA, which `train.deterministic` forbids.
    let flat = values.detach().reshape([-1]).to_kind(Kind::Float).to_device(Device::Cpu);
    let [min, max] = [flat.min(), flat.max()].map(|t| t.to_kind(Kind::Double));
    let [sum, squares] = [flat.sum(Kind::Double), flat.square().sum(Kind::Double)];
    let head = Vec::<f64>::try_from(Tensor::stack(&[min, max, sum, squares], 0))?;
    if head.iter().any(|value| !value.is_finite()) {
        return Ok(None);
    }
    // As histc: around a constant the buckets reach from one below to one above.
    let (min, max) = (head[0], head[1]);
    let (low, high) = if min < max { (min, max) } else { (min - 1.0, max + 1.0) };
    let width = (high - low) / BUCKETS as f64;
    let bucket = Vec::<f64>::try_from(flat.histc(BUCKETS).to_kind(Kind::Double))?;
    Ok(Some(Histogram {
        min,
        max,
        num: flat.numel() as f64,
        sum: head[2],
        sum_squares: head[3],
        bucket_limit: (1..=BUCKETS).map(|i| low + width * i as f64).collect(),
        bucket,
    }))
}

/// A TFRecord of these bytes.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(bytes.len() + 16);
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(bytes);
    out.extend(masked(bytes).to_le_bytes());
    out
}

/// The CRC-32C of TFRecord: rotated and moved, so that a checksum of data that hold one is sound.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All events of a folder, its files in order.
    fn read(folder: &Path) -> Vec<Event> {
        let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        let mut events = vec![];
        for path in paths {
            let bytes = fs::read(path).unwrap();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
                let body = &rest[12..12 + length];
                assert_eq!(&record(body), &rest[..length + 16]);
                events.push(Event::decode(body).unwrap());
                rest = &rest[length + 16..];
            }
        }
        events
    }

    #[test]
    fn a_record_is_framed_as_tensorflow_frames_it() {
        // The two checksums are what TensorBoard's reader asks for.
        let mut expected = vec![9, 0, 0, 0, 0, 0, 0, 0];
        expected.extend(0x3971_f937_u32.to_le_bytes());
        expected.extend(b"123456789");
        expected.extend(0xc78a_b0e5_u32.to_le_bytes());
        assert_eq!(record(b"123456789"), expected);
    }

    #[test]
    fn a_resumed_session_voids_what_came_after_its_step() {
        let folder = tempfile::tempdir().unwrap();
        for (from, steps) in [(0, 1..5), (2, 3..6)] {
            let mut events = Events::new(folder.path(), from);
            for step in steps {
                events.scalars(step, [("loss/d", step as f64)]).unwrap();
            }
        }
        let mut seen: Vec<i64> = vec![];
        for event in read(folder.path()) {
            match event.what.unwrap() {
                What::SessionLog(_) => seen.retain(|step| *step < event.step),
                What::Summary(_) => seen.push(event.step),
                What::FileVersion(version) => assert_eq!(version, "brain.Event:2"),
            }
        }
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_session_after_a_clock_was_set_back_comes_after_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("events.out.tfevents.9999999999.000000"), "").unwrap();
        let events = Events::new(folder.path(), 0);
        assert!(events.path.ends_with("events.out.tfevents.9999999999.000001"), "{events:?}");
    }

    #[test]
    fn what_the_disk_does_not_take_is_written_later_in_whole_records() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::new(folder.path(), 0);
        for step in 1..5 {
            if step % 2 == 0 {
                events.file = Some(File::options().write(true).open("/dev/full").unwrap());
            }
            assert_eq!(events.scalars(step, [("loss/d", 1.0)]).is_ok(), step % 2 == 1);
            assert_eq!(events.missing(), 1 - step % 2);
        }
        events.go_back(3).unwrap();
        let steps: Vec<_> = read(folder.path()).into_iter().map(|event| event.step).collect();
        assert_eq!(steps, [0, 1, 1, 2, 3, 4, 4]);
    }

    #[test]
    fn a_histogram_counts_every_value_once() {
        let values = Tensor::linspace(-1.0, 3.0, 1000, (Kind::Float, tch::Device::Cpu));
        let h = histogram(&values).unwrap().unwrap();
        assert_eq!((h.min, h.max, h.num, h.bucket.iter().sum()), (-1.0, 3.0, 1000.0, 1000.0));
        assert_eq!((h.bucket_limit[63], h.bucket.len()), (3.0, 64));
        assert!((h.sum - 1000.0).abs() < 1e-3);
        let of = |value: f64| Tensor::full([5], value, (Kind::Float, tch::Device::Cpu));
        let constant = histogram(&of(1.0)).unwrap().unwrap();
        assert_eq!((constant.min, constant.bucket.iter().sum()), (1.0, 5.0));
        assert_eq!(constant.bucket_limit[63], 2.0);
        assert_eq!(histogram(&of(f64::NAN)).unwrap(), None);
    }
}

//! Pictures, archives, and the program itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use image::ImageEncoder;
use turbojpeg::{Colorspace, Compressor, Image, PixelFormat, Subsamp};

/// What a run of the program left.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Exit 0, else a panic with what was said.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self
    }

    /// Exit 2 and one line of error that says `what`.
    pub(crate) fn refused(self, what: &str) -> Self {
        let errors: Vec<&str> = self.err.lines().filter(|l| l.starts_with("error:")).collect();
        assert_eq!(self.code, Some(2), "{}{}", self.out, self.err);
        assert_eq!(errors.len(), 1, "{}", self.err);
        assert!(errors[0].contains(what), "{what:?} is not in: {}", errors[0]);
        self
    }
}

pub(crate) fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shard-imagenet"));
    command.args(args);
    command
}

pub(crate) fn run(args: &[&str]) -> Ran {
    let output = program(args).output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// `build` with a layout, an input and an output.
pub(crate) fn build(layout: &str, input: &Path, output: &Path, more: &[&str]) -> Ran {
    let (input, output) = (text(input), text(output));
    run(&[&["build", "--layout", layout, "--input", input, "--output", output], more].concat())
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Pixels that no two seeds share, smooth enough for JPEG: (height, width, 3).
pub(crate) fn pixels(width: usize, height: usize, seed: usize) -> Vec<u8> {
    let wave = |v: usize, k: usize| ((v * (k + 3) + seed * 29) as f32 * 0.05).sin() * 60.0;
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                let noise = (x * 7 + y * 13 + (x * y) % 11 + c * 5 + seed) % 9;
                pixels.push((128.0 + wave(x, c) + wave(y, 2 - c) + noise as f32) as u8);
            }
        }
    }
    pixels
}

/// An ordinary JPEG, 4:2:0.
pub(crate) fn jpeg(width: usize, height: usize, seed: usize) -> Vec<u8> {
    jpeg_of(width, height, seed, Subsamp::Sub2x2, false)
}

pub(crate) fn jpeg_of(
    width: usize,
    height: usize,
    seed: usize,
    subsamp: Subsamp,
    progressive: bool,
) -> Vec<u8> {
    let mut compressor = Compressor::new().expect("a compressor");
    compressor.set_quality(90).expect("quality");
    compressor.set_subsamp(subsamp).expect("subsampling");
    compressor.set_progressive(progressive).expect("progressive");
    let pixels = pixels(width, height, seed);
    let format = PixelFormat::RGB;
    let image = Image { pixels: &pixels[..], width, pitch: width * 3, height, format };
    compressor.compress_to_vec(image).expect("a JPEG")
}

/// A JPEG of four inks.
pub(crate) fn cmyk(width: usize, height: usize, seed: usize) -> Vec<u8> {
    let mut compressor = Compressor::new().expect("a compressor");
    compressor.set_quality(95).expect("quality");
    compressor.set_subsamp(Subsamp::None).expect("subsampling");
    compressor.set_colorspace(Colorspace::CMYK).expect("colour space");
    let inks: Vec<u8> =
        pixels(width, height, seed).chunks(3).flat_map(|p| [p[0], p[1], p[2], 230]).collect();
    let format = PixelFormat::CMYK;
    let image = Image { pixels: &inks[..], width, pitch: width * 4, height, format };
    compressor.compress_to_vec(image).expect("a JPEG")
}

pub(crate) fn png(width: usize, height: usize, seed: usize) -> Vec<u8> {
    png_of(&pixels(width, height, seed), width, height)
}

pub(crate) fn png_of(pixels: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(pixels, width as u32, height as u32, image::ExtendedColorType::Rgb8)
        .expect("a PNG");
    bytes
}

/// A full decode by libjpeg-turbo, without any code of ours.
pub(crate) fn decode(jpeg: &[u8]) -> Vec<u8> {
    turbojpeg::decompress(jpeg, PixelFormat::RGB).expect("a readable JPEG").pixels
}

/// A tar archive of files in the order given.
pub(crate) fn tar_of(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        append(&mut builder, name, bytes);
    }
    builder.into_inner().expect("an archive in memory")
}

pub(crate) fn append(builder: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, bytes).expect("memory");
}

pub(crate) fn write(path: PathBuf, bytes: impl AsRef<[u8]>) -> PathBuf {
    fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    fs::write(&path, bytes).expect("a file");
    path
}

/// An image of a data folder as any WebDataset reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) shard: String,
    pub(crate) key: String,
    pub(crate) extension: String,
    pub(crate) image: Vec<u8>,
    pub(crate) label: Option<u32>,
}

/// Reads the shards with the tar crate alone: `KEY.jpg`, then `KEY.cls` if there is a label.
pub(crate) fn samples(dir: &Path) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    for shard in names(dir).into_iter().filter(|name| name.ends_with(".tar")) {
        let mut archive = tar::Archive::new(Cursor::new(fs::read(dir.join(&shard)).expect("read")));
        for entry in archive.entries().expect("an archive") {
            let mut entry = entry.expect("a member");
            let name = entry.path().expect("a name").to_str().expect("UTF-8").to_owned();
            let (key, extension) = name.split_once('.').expect("an extension");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("bytes");
            if extension == "cls" {
                let last = samples.last_mut().expect("an image comes first");
                assert_eq!(last.key, key, "a label follows its image");
                last.label = Some(String::from_utf8_lossy(&bytes).parse().expect("a number"));
            } else {
                let (shard, key) = (shard.clone(), key.to_owned());
                let (extension, image) = (extension.to_owned(), bytes);
                samples.push(Sample { shard, key, extension, image, label: None });
            }
        }
    }
    samples
}

/// The files of a folder by name.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

/// Every byte of a folder.
pub(crate) fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    names(dir)
        .into_iter()
        .map(|name| (name.clone(), fs::read(dir.join(name)).expect("a file")))
        .collect()
}

/// The lines of a report, as (name, reason).
pub(crate) fn report(dir: &Path, file: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    let field =
        |value: &serde_json::Value, name: &str| value[name].as_str().expect("text").to_owned();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .map(|value| (field(&value, "name"), field(&value, "reason")))
        .collect()
}

pub(crate) fn json(dir: &Path, file: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(dir.join(file)).expect("a file")).expect("JSON")
}

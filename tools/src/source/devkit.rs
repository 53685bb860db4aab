//! `meta.mat` of ImageNet's devkit: which synset each of its numbers means.
//!
//! It is a MATLAB 5 file with one array of structures, `synsets`, whose fields `ILSVRC2012_ID`, `WNID`
//! and `words` are read here.
//!
//! # Source
//! MathWorks, "MAT-File Format", level 5: data elements (1-9), arrays (1-14), structures (1-25).

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use crate::Error;

/// A class: its synset, and its words where they are known.
pub(super) type Synset = (String, Option<String>);

/// What a level 5 file begins with.
pub(super) const MAGIC: &[u8] = b"MATLAB 5.0 MAT-file";

const HEADER: usize = 128;
const COMPRESSED: u32 = 15;
const MATRIX: u32 = 14;
const CHARS: u8 = 4;
const STRUCTURES: u8 = 2;

/// More than `meta.mat` unpacks to by far.
const MAX_BYTES: u64 = 64 << 20;

/// The synset and the words of each number, from 1 on.
///
/// # Errors
/// The file is not the devkit's, or its numbers have gaps.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Vec<Synset>, Error> {
    let mut synsets = BTreeMap::new();
    let mut left = bytes.get(HEADER..).unwrap_or_default();
    while let Some((kind, data)) = element(&mut left) {
        let mut unpacked = Vec::new();
        let mut inner = data;
        let matrix = if kind == COMPRESSED {
            let reader = flate2::read::ZlibDecoder::new(data);
            if reader.take(MAX_BYTES).read_to_end(&mut unpacked).is_err() {
                break;
            }
            inner = &unpacked;
            element(&mut inner)
        } else {
            Some((kind, inner))
        };
        if let Some((MATRIX, matrix)) = matrix {
            synsets.extend(structures(matrix).unwrap_or_default());
        }
    }
    let whole = synsets.keys().copied().eq(1..=synsets.len() as u64);
    if synsets.is_empty() || !whole {
        let problem = "holds no synsets with the numbers 1, 2, 3 and so on";
        return Err(Error::input(path, problem, "give the devkit's meta.mat, or a list as text"));
    }
    Ok(synsets.into_values().collect())
}

/// The next data element, its type and its bytes; `left` moves past it and its padding.
fn element<'a>(left: &mut &'a [u8]) -> Option<(u32, &'a [u8])> {
    let word = |at: usize| {
        left.get(at..at + 4)
            .map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let (kind, start, size): (u32, usize, usize) = match word(0)? {
        // Up to four bytes are packed into the tag.
        tag if tag >> 16 != 0 => (tag & 0xFFFF, 4, (tag >> 16) as usize),
        kind => (kind, 8, word(4)? as usize),
    };
    let data = left.get(start..start.checked_add(size)?)?;
    // Compressed elements are not padded, all others to eight bytes.
    let end = if kind == COMPRESSED { start + size } else { (start + size).next_multiple_of(8) };
    *left = left.get(end..).unwrap_or_default();
    Some((kind, data))
}

/// The class of an array and what follows its flags, dimensions and name.
fn array(mut matrix: &[u8]) -> Option<(u8, &[u8])> {
    let (_, flags) = element(&mut matrix)?;
    element(&mut matrix)?;
    element(&mut matrix)?;
    Some((*flags.first()?, matrix))
}

/// The number, synset and words of every structure of an array; `None` if it is none of ours.
fn structures(matrix: &[u8]) -> Option<Vec<(u64, Synset)>> {
    let (class, mut left) = array(matrix)?;
    let (_, length) = (class == STRUCTURES).then(|| element(&mut left))??;
    let length = usize::from(*length.first()?).max(1);
    let (_, names) = element(&mut left)?;
    let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    let names: Vec<String> = names.chunks(length).map(name).collect();
    let place = |name: &str| names.iter().position(|known| known == name);
    let [id, synset, words] = ["ILSVRC2012_ID", "WNID", "words"].map(place);
    let (id, synset) = (id?, synset?);
    let mut found = Vec::new();
    while !left.is_empty() {
        let fields: Vec<&[u8]> =
            (0..names.len()).map_while(|_| Some(element(&mut left)?.1)).collect();
        let field = |at: usize| fields.get(at).copied();
        let words = words.and_then(field).and_then(text);
        found.push((number(field(id)?)?, (text(field(synset)?)?, words)));
    }
    Some(found)
}

/// The characters of a character array.
fn text(matrix: &[u8]) -> Option<String> {
    let (class, mut left) = array(matrix)?;
    let (kind, data) = (class == CHARS).then(|| element(&mut left))??;
    Some(match kind {
        // Of 16 bits each, or of 8.
        4 | 17 => {
            let (pairs, _) = data.as_chunks::<2>();
            let units: Vec<u16> = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
            String::from_utf16_lossy(&units)
        }
        _ => String::from_utf8_lossy(data).into_owned(),
    })
}

/// The first number of an array; MATLAB stores whole numbers in as few bytes as they need.
fn number(matrix: &[u8]) -> Option<u64> {
    let (_, mut left) = array(matrix)?;
    let (kind, data) = element(&mut left)?;
    let mut bytes = [0; 8];
    let size = [0, 1, 1, 2, 2, 4, 4, 4, 0, 8, 0, 0, 8, 8].get(kind as usize).copied()?;
    bytes[..size].copy_from_slice(data.get(..size)?);
    Some(match kind {
        7 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as u64,
        9 => f64::from_le_bytes(bytes) as u64,
        _ => u64::from_le_bytes(bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn matrix(class: u8, rest: &[u8]) -> Vec<u8> {
        let flags = tagged(6, &[class, 0, 0, 0, 0, 0, 0, 0]);
        let dimensions = tagged(5, &[1, 0, 0, 0, 1, 0, 0, 0]);
        tagged(MATRIX, &[&flags, &dimensions, &tagged(1, b""), rest].concat())
    }

    /// A file in the devkit's form: every second text of 16 bits, numbers packed into their tags.
    fn meta(synsets: &[(u8, &str, &str)]) -> Vec<u8> {
        let mut names = Vec::new();
        for name in ["ILSVRC2012_ID", "WNID", "words"] {
            names.extend(name.bytes().chain(std::iter::repeat(0)).take(32));
        }
        let mut rest = [&[5, 0, 4, 0][..], &[32, 0, 0, 0], &tagged(1, &names)].concat();
        for (number, synset, words) in synsets {
            rest.extend(matrix(6, &[2, 0, 1, 0, *number, 0, 0, 0]));
            let wide: Vec<u8> = synset.encode_utf16().flat_map(u16::to_le_bytes).collect();
            rest.extend(matrix(CHARS, &tagged(4, &wide)));
            rest.extend(matrix(CHARS, &tagged(16, words.as_bytes())));
        }
        let mut packed =
            flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut packed, &matrix(STRUCTURES, &rest)).expect("memory");
        let packed = packed.finish().expect("memory");
        let mut file = MAGIC.to_vec();
        file.resize(HEADER, b' ');
        file.extend(COMPRESSED.to_le_bytes());
        file.extend((packed.len() as u32).to_le_bytes());
        file.extend(packed);
        file
    }

    #[test]
    fn numbers_give_their_synsets_whatever_the_order_of_the_file() {
        let file = meta(&[(2, "n02", "kit fox"), (1, "n09", "tench, Tinca tinca")]);
        let synsets = read(Path::new("meta.mat"), &file).expect("a devkit");
        let expected = [("n09", "tench, Tinca tinca"), ("n02", "kit fox")]
            .map(|(synset, words)| (synset.to_owned(), Some(words.to_owned())));
        assert_eq!(synsets, expected);
    }

    #[test]
    fn gaps_and_damage_are_errors_and_never_panics() {
        let gap = meta(&[(1, "n01", "a"), (3, "n03", "c")]);
        assert!(read(Path::new("meta.mat"), &gap).is_err());
        let whole = meta(&[(1, "n01", "a"), (2, "n02", "b")]);
        for cut in 0..whole.len() {
            assert!(read(Path::new("meta.mat"), &whole[..cut]).is_err(), "cut at {cut}");
        }
        for at in HEADER..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            // Whatever it is taken for, it comes back.
            let _ = read(Path::new("meta.mat"), &damaged);
        }
    }
}

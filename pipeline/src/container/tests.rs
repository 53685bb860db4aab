//! Archives read by seeking and as streams.

use std::io::{self, Cursor, Read, Seek};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// An archive by the tar crate.
fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The same without its end marker.
fn bare(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = tar_of(files);
    bytes.truncate(bytes.len() - 1024);
    bytes
}

type All = Result<(Vec<Member>, End), String>;

fn all(mut members: Members<'_>) -> All {
    let mut list = Vec::new();
    loop {
        match members.next_member() {
            Ok(Some(member)) => list.push(member),
            Ok(None) => return Ok((list, members.end())),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// All members, however they are read.
fn read(bytes: &[u8]) -> All {
    let sought = all(Members::seek(Cursor::new(bytes.to_vec())).unwrap());
    let streamed = all(Members::stream(Cursor::new(bytes.to_vec())));
    assert_eq!(sought, streamed);
    sought
}

fn names(all: All) -> Vec<(String, u32)> {
    all.unwrap().0.into_iter().map(|member| (member.name, member.archive)).collect()
}

#[test]
fn members_are_listed_with_their_places() {
    let bytes = tar_of(&[("a/one.jpg", b"11"), ("a/one.cls", b""), ("two.jpg", &[7; 512])]);
    let (members, end) = read(&bytes).unwrap();
    assert_eq!(end, End { marked: true, junk: None });
    let member = |name: &str, offset, size| {
        let (name, kind) = (name.to_owned(), Kind::File);
        Member { name, kind, archive: 0, offset, size }
    };
    let expected =
        [member("a/one.jpg", 512, 2), member("a/one.cls", 1536, 0), member("two.jpg", 2048, 512)];
    assert_eq!(members, expected);
}

#[test]
fn an_archive_cut_anywhere_is_refused_or_lacks_its_end_marker() {
    let files: [(&str, &[u8]); 2] = [("a.jpg", &[1; 600]), ("b.jpg", &[0; 512])];
    let whole = tar_of(&files);
    // The members' data and the ends of their padding.
    let (first, second) = ((512 + 600, 512 + 1024), (2 * 512 + 1024 + 512, 2 * 512 + 1024 + 512));
    for length in 0..=whole.len() {
        let found = read(&whole[..length]);
        let ended = [(first, 1), (second, 2)].into_iter().find_map(|((data, padded), count)| {
            let marker = if count == 2 { 511 } else { 0 };
            (data..=padded + marker).contains(&length).then_some(count)
        });
        match (found, ended) {
            (Ok((members, end)), Some(count)) => {
                assert_eq!((members.len(), end.marked), (count, false), "cut at {length}");
            }
            (Ok((members, end)), None) => {
                assert!(members.len() == 2 && end.marked, "cut at {length}");
                assert!(length >= second.1 + 512);
            }
            (Err(error), None) => assert!(error.starts_with("ends in"), "cut at {length}: {error}"),
            (Err(error), Some(_)) => panic!("cut at {length}: {error}"),
        }
    }
}

#[test]
fn archives_that_are_joined_are_read_to_the_last() {
    let one: &[(&str, &[u8])] = &[("a.jpg", b"1")];
    let two: &[(&str, &[u8])] = &[("a.jpg", b"2"), ("b.jpg", b"3")];
    let expected = [("a.jpg".to_owned(), 0), ("a.jpg".to_owned(), 1), ("b.jpg".to_owned(), 1)];
    assert_eq!(names(read(&[tar_of(one), tar_of(two)].concat())), expected);
    // Python's tar pads to 10,240 bytes.
    let mut padded = tar_of(one);
    padded.resize(10_240, 0);
    assert_eq!(names(read(&[padded, tar_of(two)].concat())), expected);
    // Members that were put behind the last one without an end marker between are of one archive.
    assert_eq!(names(read(&[bare(one), tar_of(two)].concat())).pop(), Some(("b.jpg".into(), 0)));
}

#[test]
fn bytes_behind_the_end_marker_are_told_from_a_damaged_archive() {
    let whole = tar_of(&[("a.jpg", b"1")]);
    let at = whole.len() as u64;
    for junk in [&b"x"[..], &[b'x'; 512], &[0xff; 5000]] {
        let (members, end) = read(&[&whole[..], junk].concat()).unwrap();
        assert_eq!((members.len(), end.junk), (1, Some(at)), "{} bytes", junk.len());
    }
    let mut second = whole.clone();
    second[130] ^= 1;
    let error = read(&[&whole[..], &second].concat()).unwrap_err();
    assert_eq!(error, format!("is no sound tar archive after a.jpg (at byte {at})"));
    second.truncate(300);
    // Not even a whole header: it may have been one.
    assert_eq!(read(&[&whole[..], &second].concat()).unwrap().1.junk, Some(at));
}

#[test]
fn an_archive_inside_another_is_entered_and_left() {
    let class = |files: &[(&str, &[u8])], more: usize| {
        let mut bytes = tar_of(files);
        bytes.resize(bytes.len() + more, 0);
        bytes
    };
    // A length that is no multiple of a block, an inner archive without an end marker.
    let (one, two) = (class(&[("x", b"1"), ("y", b"2")], 100), bare(&[("z", b"3")]));
    let outer = tar_of(&[("1.tar", &one), ("2.tar", &two), ("3.txt", b"text")]);
    for mut members in [
        Members::seek(Cursor::new(outer.clone())).unwrap(),
        Members::stream(Cursor::new(outer.clone())),
    ] {
        let mut found = Vec::new();
        while let Some(member) = members.next_member().unwrap() {
            found.push((member.name.clone(), member.archive));
            if !member.name.ends_with(".tar") {
                assert_eq!(members.data(100).unwrap(), b"text");
                continue;
            }
            members.enter();
            while let Some(member) = members.next_member().unwrap() {
                let bytes = members.data(100).unwrap();
                assert_eq!(bytes, outer[member.offset as usize..][..member.size as usize]);
                found.push((member.name, member.archive));
            }
            assert_eq!(members.end().marked, member.name == "1.tar");
        }
        let expected = ["1.tar", "x", "y", "2.tar", "z", "3.txt"].map(|name| (name.to_owned(), 0));
        assert_eq!(found, expected);
        assert!(members.end().marked);
    }
    // What is inside may not reach out.
    let mut out = bare(&[("x", &[1; 600])]);
    out.truncate(1024);
    let error = {
        let bytes = tar_of(&[("1.tar", &out)]);
        let mut members = Members::seek(Cursor::new(bytes)).unwrap();
        members.next_member().unwrap();
        members.enter();
        members.next_member().unwrap_err().to_string()
    };
    assert!(error.starts_with("ends inside x"), "{error}");
}

/// Counts the bytes that are read of a file.
struct Counted(Cursor<Vec<u8>>, Arc<AtomicU64>);

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        self.1.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Seek for Counted {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn data_are_not_read_where_a_file_can_be_sought() {
    let bytes = tar_of(&[("a.jpg", &vec![1; 5 << 20]), ("b.jpg", &vec![2; 5 << 20])]);
    let read = Arc::new(AtomicU64::new(0));
    let members = Members::seek(Counted(Cursor::new(bytes), Arc::clone(&read))).unwrap();
    assert_eq!(all(members).unwrap().0.len(), 2);
    assert!(read.load(Ordering::Relaxed) < 64 << 10, "{read:?}");
}

#[test]
fn what_is_compressed_is_told_by_its_first_bytes() {
    for (bytes, expected) in [
        (&[0x1f, 0x8b, 8, 0, 0, 0][..], Some(Compression::Gzip)),
        (&[0x28, 0xb5, 0x2f, 0xfd, 0, 0], Some(Compression::Zstd)),
        (&[0x5a, 0x2a, 0x4d, 0x18, 0, 0], Some(Compression::Zstd)),
        (b"BZh91AY&SY", Some(Compression::Bzip2)),
        (b"\xfd7zXZ\0", Some(Compression::Xz)),
        (b"BZh.jpg", None),
        (b"a.jpg", None),
        (b"", None),
    ] {
        assert_eq!(Compression::of_bytes(bytes), expected, "{bytes:?}");
        if let Some(compression) = expected {
            let error = read(bytes).unwrap_err();
            assert_eq!(error, format!("is compressed with {compression}"));
            let error = read(&[bytes, &[1; 1000]].concat()).unwrap_err();
            assert_eq!(error, format!("is compressed with {compression}"));
        }
    }
}

/// An archive of one member, after an extended header of these records.
fn extended(records: &[u8]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (kind, name, data) in [
        (::tar::EntryType::XHeader, "x", records),
        (::tar::EntryType::Regular, "short.jpg", &b"1"[..]),
    ] {
        let mut header = ::tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(name).unwrap();
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn records_of_extended_headers_end_where_their_lengths_say() {
    for (records, name) in [
        (&b"18 path=long1.jpg\n"[..], "long1.jpg"),
        // A comment that looks like a record.
        (b"32 comment=a\n18 path=other.jpg\n\n", "short.jpg"),
        (b"18 path=long1.jpg\n32 comment=a\n18 path=other.jpg\n\n", "long1.jpg"),
        (b"18 path=long1.jpg\n18 path=long2.jpg\n", "long2.jpg"),
        (b"16 path=a\nb.jpg\n", "a\nb.jpg"),
        // What is no record is passed over.
        (b"no record\n99 path=x\n0 a=b\n18 path=long1.jpg\n", "long1.jpg"),
        (b"18 path=long1.jpg", "long1.jpg"),
    ] {
        let found = names(read(&extended(records)));
        assert_eq!(found, [(name.to_owned(), 0)], "{:?}", String::from_utf8_lossy(records));
    }
}

#[test]
fn names_that_are_no_text_stay_apart() {
    let mut bytes = bare(&[("aa.jpg", b"1"), ("aa.jpg", b"1")]);
    for (at, byte) in [(0, 0xe9), (1024, 0xe8)] {
        bytes[at] = byte;
        let mut header = ::tar::Header::from_byte_slice(&bytes[at..at + 512]).clone();
        header.set_cksum();
        bytes[at..at + 512].copy_from_slice(header.as_bytes());
    }
    let found = names(read(&bytes));
    assert_eq!(found, [("\\xe9a.jpg".to_owned(), 0), ("\\xe8a.jpg".to_owned(), 0)]);
}

proptest::proptest! {
    #[test]
    fn any_bytes_give_members_inside_them_or_an_error(
        bytes in proptest::collection::vec(0..=255u8, 0..3000),
        at in 0..2048usize,
    ) {
        let mut archive = tar_of(&[("a.jpg", &[3; 700]), ("b.cls", b"4")]);
        let length = archive.len();
        for (place, byte) in bytes.iter().take(40).enumerate() {
            archive[(at + place * 37) % length] ^= byte;
        }
        for bytes in [&bytes, &archive] {
            if let Ok((members, _)) = read(bytes) {
                for Member { offset, size, .. } in members {
                    assert!(offset + size <= bytes.len() as u64);
                }
            }
        }
    }
}

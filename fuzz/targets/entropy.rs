//! Any bytes as a JPEG, decoded whole by our entropy decoder and by libjpeg-turbo alone: what both
//! decode is equal, and what libjpeg-turbo finds damaged is never let pass.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pipeline::Fault;
use pipeline::decode::{DecodeOptions, Decoder};
use turbojpeg::PixelFormat;

fuzz_target!(|bytes: &[u8]| {
    // Where a fill byte stands in the data, libjpeg-turbo decodes an MCU twice without clearing it.
    if !bytes.starts_with(&[0xff, 0xd8]) || bytes.windows(2).any(|pair| pair == [0xff, 0xff]) {
        return;
    }
    let options = DecodeOptions { max_pixels: 1 << 14, ..DecodeOptions::default() };
    let mut decoder = Decoder::new(options).expect("a decoder");
    let ours = match decoder.decode(bytes) {
        Err(Fault::Pixels { .. }) => return,
        ours => ours,
    };
    let theirs = turbojpeg::decompress(bytes, PixelFormat::RGB);
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => assert!(ours.pixels == theirs.pixels, "other pixels"),
        // Their first complaint may be of junk that does no harm, such as a note behind the picture
        // that claims to be longer than the file ("premature end of JPEG file"), or of inks.
        (Ok(_), Err(theirs)) => {
            let text = theirs.to_string().to_lowercase();
            assert!(
                !["bad huffman code", "premature end of data"].iter().any(|w| text.contains(w)),
                "{text}"
            );
        }
        // The other way round we are the stricter ones; the unit tests say where.
        (Err(_), _) => {}
    }
});

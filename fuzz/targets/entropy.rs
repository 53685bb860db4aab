//! Any bytes as a JPEG, read whole by our decoder and by libjpeg-turbo alone: coefficients and pixels
//! of what the library reads without complaint are equal, and what it finds damaged is a fault. The
//! exceptions are those that `pipeline::decode` names, and no others: `Judge::hold` knows them.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use pipeline::decode::judge::Judge;
use pipeline::decode::{DecodeOptions, Decoder};

/// Enough for data of more than two of the entropy decoder's real buffers.
const MAX_PIXELS: u64 = 1 << 16;

thread_local! {
    static COURT: RefCell<(Judge, Decoder)> = RefCell::new({
        let options = DecodeOptions { max_pixels: MAX_PIXELS, ..DecodeOptions::default() };
        (Judge::new(MAX_PIXELS).expect("a judge"), Decoder::new(options).expect("a decoder"))
    });
}

fuzz_target!(|bytes: &[u8]| {
    if !bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        return;
    }
    COURT.with_borrow_mut(|(judge, decoder)| {
        if let Err(problem) = judge.hold(decoder, bytes) {
            panic!("{problem}");
        }
    });
});

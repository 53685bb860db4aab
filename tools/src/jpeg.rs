//! The restart interval that suits a JPEG. Its markers are read by [`pipeline::jpeg`].

use pipeline::jpeg::Header;

/// Shorter intervals cost more bytes than a crop saves.
const LEAST_INTERVAL: usize = 4;

/// Below this many pixels on a side an image has no restart markers, nor Huffman tables of its own where it is
/// encoded.
pub(crate) const SMALL_SIDE: u32 = 128;

/// The restart interval in MCUs that makes crops cheap to decode, 0 for none: the largest divisor
/// of a row that spans at most 128 pixels and at least four MCUs, else the whole row. Crops of small
/// images save nothing.
///
/// # Source
/// Ours, measured: a divisor lets whole columns be left out, and shorter intervals cost bytes.
pub fn restart_interval(header: &Header) -> u16 {
    if header.width.min(header.height) < SMALL_SIDE as usize {
        return 0;
    }
    let (across, _) = header.unit();
    let row = header.width.div_ceil(across);
    let most = (128 / across).min(row);
    let divisor = (LEAST_INTERVAL..=most).rev().find(|interval| row.is_multiple_of(*interval));
    divisor.unwrap_or(row) as u16 // a row has at most 65,500 / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_divides_the_row_and_spans_at_most_128_pixels() {
        for (width, sampling, expected) in [
            (512, &[0x11, 0x11, 0x11][..], 16), // 64 MCUs of 8 px
            (512, &[0x22, 0x11, 0x11], 8),      // 32 MCUs of 16 px
            (500, &[0x11, 0x11, 0x11], 9),      // 63 MCUs
            (424, &[0x11, 0x11, 0x11], 53),     // 53 is prime: the whole row
            (496, &[0x11, 0x11, 0x11], 62),     // 2 x 31: two MCUs would be too short
            (500, &[0x22], 9),                  // grey: blocks, whatever the factor
            (100, &[0x11, 0x11, 0x11], 0),      // small
        ] {
            let mut jpeg = vec![0xFF, 0xD8, 0xFF, 0xC0, 0, 8 + 3 * sampling.len() as u8, 8, 1, 119];
            jpeg.extend(u16::to_be_bytes(width));
            jpeg.push(sampling.len() as u8);
            for (id, factors) in sampling.iter().enumerate() {
                jpeg.extend([id as u8 + 1, *factors, 0]);
            }
            jpeg.extend([0xFF, 0xDA, 0, 3, 0]);
            let header = Header::read(&jpeg).expect("headers");
            assert_eq!(restart_interval(&header), expected, "{width} {sampling:?}");
        }
    }
}

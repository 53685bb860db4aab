//! A JPEG's frame header: what has to be known before its coefficients are touched.

/// What the frame header (SOF) and the Adobe marker say.
///
/// # Source
/// ITU-T T.81, B.2.2 (frame header), A.2.3 (MCU); Adobe technical note 5116 (APP14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Columns of pixels.
    pub width: u16,
    /// Rows of pixels.
    pub height: u16,
    /// Bits a sample.
    pub precision: u8,
    /// Components: 1 grey, 3 colour, 4 CMYK or YCCK.
    pub components: u8,
    /// Minimum coded units from the left edge to the right.
    pub mcus_per_row: u16,
    /// Pixels across one of them.
    pub mcu_width: u16,
    /// The marker's second byte: 0xC0 baseline, 0xC1 extended, 0xC2 progressive, 0xC9 arithmetic...
    pub process: u8,
}

impl Frame {
    /// Reads markers up to the frame header.
    ///
    /// # Errors
    /// The inner text says what is wrong with the file.
    pub fn read(jpeg: &[u8]) -> Result<Self, &'static str> {
        if !jpeg.starts_with(&[0xFF, 0xD8]) {
            return Err("is no JPEG");
        }
        let mut at = 2;
        loop {
            // Any number of fill bytes may stand before a marker; libjpeg also skips stray bytes.
            let gap = jpeg[at..].windows(2).position(|w| w[0] == 0xFF && !matches!(w[1], 0 | 0xFF));
            at += gap.ok_or("ends before its frame header")? + 2;
            let marker = jpeg[at - 1];
            match marker {
                0x01 | 0xD0..=0xD8 => continue,
                0xD9 | 0xDA => return Err("has no frame header before its image data"),
                _ => {}
            }
            let length = match jpeg.get(at..at + 2) {
                Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
                _ => return Err("ends before its frame header"),
            };
            let body =
                jpeg.get(at + 2..at + length.max(2)).ok_or("ends before its frame header")?;
            if matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC) {
                return Self::parse(marker, body);
            }
            at += length.max(2);
        }
    }

    fn parse(process: u8, body: &[u8]) -> Result<Self, &'static str> {
        let &[precision, h0, h1, w0, w1, components, ref rest @ ..] = body else {
            return Err("has a frame header that is too short");
        };
        if rest.len() < usize::from(components) * 3 || components == 0 {
            return Err("has a frame header that is too short");
        }
        let (height, width) = (u16::from_be_bytes([h0, h1]), u16::from_be_bytes([w0, w1]));
        if width == 0 || height == 0 {
            return Err("has no pixels");
        }
        let across = rest.chunks_exact(3).take(components.into()).map(|c| u16::from(c[1] >> 4));
        // A scan of one component is coded block by block, whatever its sampling factor.
        let blocks = if components == 1 { 1 } else { across.max().unwrap_or(1) };
        if !(1..=4).contains(&blocks) {
            return Err("has sampling factors outside 1 to 4");
        }
        let mcu_width = 8 * blocks;
        let mcus_per_row = width.div_ceil(mcu_width);
        Ok(Self { width, height, precision, components, mcus_per_row, mcu_width, process })
    }

    /// True for the lossless processes, SOF3, 7, 11 and 15.
    pub fn is_lossless(&self) -> bool {
        self.process & 3 == 3
    }

    /// Pixels in all.
    pub fn area(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// The restart interval in MCUs that makes crops cheap to decode, 0 for none: the largest divisor
    /// of a row that spans at most 128 pixels and at least four MCUs, else the whole row. Crops of small images save nothing.
    ///
    /// # Source
    /// Ours, measured: a divisor lets whole columns be left out, and shorter intervals cost bytes.
    pub fn restart_interval(&self) -> u16 {
        if self.width.min(self.height) < SMALL_SIDE {
            return 0;
        }
        let most = (128 / self.mcu_width).min(self.mcus_per_row);
        let divisor = (LEAST_INTERVAL..=most)
            .rev()
            .find(|interval| self.mcus_per_row.is_multiple_of(*interval));
        divisor.unwrap_or(self.mcus_per_row)
    }
}

/// Shorter intervals cost more bytes than a crop saves.
const LEAST_INTERVAL: u16 = 4;

/// Below this many pixels on a side an image has no restart markers.
const SMALL_SIDE: u16 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(width: u16, height: u16, sampling: &[u8]) -> Vec<u8> {
        let mut jpeg = vec![0xFF, 0xD8, 0xFF, 0xFF, 0xE0, 0, 4, 1, 2, 0xFF, 0xC0];
        jpeg.extend((8 + 3 * sampling.len() as u16).to_be_bytes());
        jpeg.push(8);
        jpeg.extend(height.to_be_bytes());
        jpeg.extend(width.to_be_bytes());
        jpeg.push(sampling.len() as u8);
        for (id, factors) in sampling.iter().enumerate() {
            jpeg.extend([id as u8 + 1, *factors, 0]);
        }
        jpeg
    }

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
            let frame = Frame::read(&frame(width, 375, sampling)).expect("a frame");
            assert_eq!(frame.restart_interval(), expected, "{width} {sampling:?}");
        }
    }

    #[test]
    fn a_header_cut_anywhere_is_an_error_and_never_a_panic() {
        let whole = frame(64, 64, &[0x21, 0x11, 0x11]);
        assert!(Frame::read(&whole).is_ok());
        for cut in 0..whole.len() {
            assert!(Frame::read(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for wrong in
            [&frame(0, 9, &[0x11])[..], &frame(9, 9, &[0x01, 0x01, 0x01]), &frame(9, 9, &[])]
        {
            assert!(Frame::read(wrong).is_err());
        }
    }
}

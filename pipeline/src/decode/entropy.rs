//! The entropy-coded data of sequential Huffman JPEGs, for a window of the picture: what lies above
//! it and beside it is walked over several symbols at a time, what lies below is not looked at, and
//! restart intervals without a part in it are jumped over; with [seek points](super::seek) reading begins at
//! the one before each of its rows. Safe code on untrusted bytes.
//!
//! Damage is a fault wherever a code was read: an unknown code, a run past the end of its block, a
//! DC value beyond 16 bits, data that end before or, at a restart marker, after their MCUs, a
//! restart marker out of turn, after the last MCU what cannot follow a scan. Of what was not read
//! only the restart markers up to the window are checked, or none with seek points; where a file has no
//! end marker ([`crate::jpeg::Header::ended`]), [`Scan::finish`] goes on to its last MCU. A seek point that is
//! passed must have the DC levels that were read.
//!
//! # Source
//! ITU-T T.81 annex F.2.

mod bits;

use memchr::memchr;

use self::bits::{Bits, Damage};
use super::libjpeg::{Block, Coefficients, Layout};
use super::lookup::{LONGEST, Lookup};
use super::seek::{Point, SeekPoints};
use crate::error::Fault;
use crate::jpeg::{Part, next_marker};

/// No MCU is longer: 10 blocks of 64 codes and values.
const LONGEST_MCU: usize = 10 * 64 * LONGEST as usize / 8;
/// Bytes that a refill reads.
const WORD: usize = 8;
/// Bytes of data from one on that refills may ask for while it is read, every one stuffed.
const AHEAD: usize = 2 * (WORD + 2);
/// Bytes of data made ready at once. Tests and fuzzers take the least that holds an MCU, so that
/// every file crosses the buffer's edges many times.
pub(super) const CHUNK: usize =
    if cfg!(any(test, fuzzing)) { LONGEST_MCU + WORD + 1 } else { 16 << 10 };
const _: () = assert!(CHUNK > LONGEST_MCU + WORD);

/// Data made ready, and behind them room for a refill that begins with the last byte or behind it.
type Ready = [u8; CHUNK + WORD];

/// Memory of the decoder, kept between pictures.
#[derive(Debug)]
pub(super) struct Entropy {
    dc: Vec<Lookup>,
    ac: Vec<Lookup>,
    /// Data of the current restart interval, without the stuffed bytes.
    clean: Box<Ready>,
}

/// The coefficients of a part of a picture.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    data: &'a [u8],
    part: Part,
    layout: Layout,
    memory: &'a mut Entropy,
    bits: Bits,
    /// Bytes of `memory.clean` in use.
    filled: usize,
    /// The next byte of `data`; where `ended`, the marker's.
    raw: usize,
    ended: bool,
    dc: [i32; 4],
    /// The next MCU of the picture, and the restart interval that it is in.
    mcu: usize,
    segment: usize,
    /// MCUs given out.
    given: usize,
    points: SeekPoints<'a>,
    /// The MCU of the point that comes next.
    point_mcu: usize,
    /// No byte of the data from here on is needed before the next jump.
    goal: usize,
    /// Where in the data reading began, or went on behind a marker or at a point, and how many bytes from
    /// there on, without the stuffed ones, `memory.clean` does not hold any more.
    began: usize,
    passed: usize,
}

impl Entropy {
    pub(super) fn new() -> Self {
        let lookups = || vec![Lookup::NONE; 4];
        Self { dc: lookups(), ac: lookups(), clean: Box::new([0; CHUNK + WORD]) }
    }

    /// A reader of the MCUs of `part`, row after row, in the data behind the scan's header.
    ///
    /// # Errors
    /// [`Fault::SeekPoints`] where there are more or fewer points than such a picture has.
    pub(super) fn scan<'a>(
        &'a mut self,
        data: &'a [u8],
        (part, points): (Part, SeekPoints<'a>),
        layout: &Layout,
    ) -> Result<Scan<'a>, Fault> {
        points.check(&part, components(layout))?;
        let skips = part.first != (0, 0) || part.width < part.columns || !part.ended;
        let used = |table: fn(&super::libjpeg::BlockLayout) -> u8, n: usize| {
            layout.blocks().iter().any(|block| usize::from(table(block)) == n)
        };
        let thin = layout.blocks().iter().any(|block| block.detail == 0);
        let blocks = part.columns * part.rows * layout.blocks().len();
        for n in 0..4 {
            if used(|block| block.dc, n) {
                self.dc[n].prepare(&layout.dc[n], true, blocks, false);
            }
            if used(|block| block.ac, n) {
                self.ac[n].prepare(&layout.ac[n], false, blocks, skips || thin);
            }
        }
        Ok(Scan {
            data,
            part,
            layout: *layout,
            memory: self,
            bits: Bits::default(),
            filled: 0,
            raw: 0,
            ended: false,
            dc: [0; 4],
            mcu: 0,
            segment: 0,
            given: 0,
            points,
            point_mcu: if points.every() == 0 { usize::MAX } else { points.every() },
            goal: usize::MAX,
            began: 0,
            passed: 0,
        })
    }
}

/// Components of the scan.
fn components(layout: &Layout) -> usize {
    layout.blocks().iter().map(|block| usize::from(block.component) + 1).max().unwrap_or(0).min(4)
}

impl Coefficients for Scan<'_> {
    fn next(&mut self, blocks: &mut [Block]) -> Result<(), Fault> {
        let Part { columns, rows, first, width, .. } = self.part;
        let (row, column) = (self.given / width, self.given % width);
        let mcu = (first.1 + row) * columns + first.0 + column;
        if column == 0 {
            self.jump(mcu, mcu + width);
        }
        self.seek(mcu)?;
        self.given += 1;
        self.read(Some(blocks))?;
        if self.mcu < columns * rows { Ok(()) } else { self.end() }
    }
}

impl Scan<'_> {
    /// Goes on to an MCU.
    fn seek(&mut self, mcu: usize) -> Result<(), Fault> {
        if let Some(segment) = mcu.checked_div(self.part.interval) {
            while self.segment < segment {
                self.restart()?;
            }
        }
        while self.mcu < mcu {
            self.read(None)?;
        }
        Ok(())
    }

    /// Goes to the last seek point before an MCU or at it, where that is ahead; from there on all MCUs up to
    /// `end` will be read.
    fn jump(&mut self, mcu: usize, end: usize) {
        let every = self.points.every();
        if every == 0 {
            return;
        }
        let components = components(&self.layout);
        let behind = self.points.get(end.div_ceil(every), components);
        self.goal = behind.map_or(usize::MAX, |point| point.byte + AHEAD);
        let number = mcu / every;
        let Some(Point { byte, bit, dc }) = self.points.get(number, components) else { return };
        if number * every <= self.mcu {
            return;
        }
        self.mcu = number * every;
        self.segment = self.mcu.checked_div(self.part.interval).unwrap_or(0);
        self.begin(byte.min(self.data.len()), dc);
        self.fill();
        self.bits.refill(&self.memory.clean);
        self.bits.consume(bit);
    }

    /// Begins to read at a byte of the data.
    fn begin(&mut self, raw: usize, dc: [i32; 4]) {
        (self.raw, self.began, self.dc) = (raw, raw, dc);
        (self.bits, self.filled, self.passed, self.ended) = (Bits::default(), 0, 0, false);
        if let Some(number) = self.mcu.checked_next_multiple_of(self.points.every()) {
            self.point_mcu = number;
        }
    }

    /// Holds the levels that were read to the seek point that is reached.
    fn compare(&mut self) -> Result<(), Fault> {
        let components = components(&self.layout);
        let known = self.points.get(self.mcu / self.points.every(), components);
        if known.is_some_and(|point| point.dc != self.dc) {
            return Err(Fault::SeekPoints(format!("MCU {} has other levels", self.mcu)));
        }
        self.point_mcu += self.points.every();
        Ok(())
    }

    /// Reads the whole picture and writes its seek points, one at every so many MCUs; none where fill bytes
    /// stand in the data or these are beyond 512 MiB.
    pub(super) fn write_points(&mut self, every: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        let components = components(&self.layout);
        // A byte of the data, and how many there are before it without the stuffed ones.
        let (mut raw, mut clean, mut segment) = (0, 0, 0);
        for mcu in (every..self.part.columns * self.part.rows).step_by(every) {
            self.seek(mcu)?;
            if self.segment != segment {
                segment = self.segment;
                (raw, clean) = (self.began, 0);
            }
            let bits = 8 * (self.passed + self.bits.at) - self.bits.count as usize;
            while clean < bits / 8 {
                raw = behind(self.data, raw);
                clean += 1;
            }
            let point = Point { byte: raw, bit: (bits % 8) as u32, dc: self.dc };
            if point.write(components, out).is_none() {
                out.clear();
                break;
            }
        }
        self.finish()?;
        if has_fill(self.data) {
            out.clear(); // how many bytes stand for so many codes could not be said
        }
        Ok(())
    }

    /// Goes on to the next restart interval.
    fn restart(&mut self) -> Result<(), Fault> {
        let wanted = 0xd0 + (self.segment % 8) as u8;
        match next_marker(self.data, self.raw) {
            None => return Err(Fault::Truncated("the data end before the picture".into())),
            Some((_, code)) if code != wanted => {
                return Err(self.fault(format!("marker {code:#x} in place of {wanted:#x}")));
            }
            Some((at, _)) => self.raw = at + 2,
        }
        self.segment += 1;
        let finished = self.mcu == self.segment * self.part.interval;
        if finished && !self.is_used_up() {
            return Err(self.fault("data left over before a restart marker".into()));
        }
        self.mcu = self.segment * self.part.interval;
        self.begin(self.raw, [0; 4]);
        Ok(())
    }

    /// Goes on to the end of a picture without an end marker, where the part ends above it: only
    /// its last MCU tells whether it was cut.
    pub(super) fn finish(&mut self) -> Result<(), Fault> {
        let all = self.part.columns * self.part.rows;
        if self.part.ended || self.mcu >= all {
            return Ok(());
        }
        self.jump(all - 1, all);
        self.seek(all - 1)?;
        self.read(None)?;
        self.end()
    }

    /// Looks behind the last MCU. Junk may stand there, and whatever may follow a scan of a file
    /// of one; or nothing at all, for every MCU was there.
    fn end(&self) -> Result<(), Fault> {
        match next_marker(self.data, self.raw) {
            None | Some((_, 0x01 | 0xc4 | 0xcc | 0xd9 | 0xdb..=0xdd | 0xe0..=0xef | 0xfe)) => {
                Ok(())
            }
            Some((_, 0xd0..=0xd7)) if self.is_used_up() => Ok(()),
            Some((_, code)) => Err(self.fault(format!("marker {code:#x} behind the picture"))),
        }
    }

    /// Whether the data up to a marker are read. libjpeg-turbo fills a word of 64 bits, of which the last
    /// code took one or more; the others it can drop without a word. Of more it always warns.
    fn is_used_up(&self) -> bool {
        self.ended && self.left() < 64
    }

    /// Bits ready and not read; negative where more were read than there are.
    fn left(&self) -> isize {
        (8 * self.filled + self.bits.count as usize) as isize - 8 * self.bits.at as isize
    }

    fn fault(&self, what: String) -> Fault {
        Fault::Jpeg(format!("{what} (MCU {})", self.mcu))
    }

    /// Reads an MCU, or passes over it.
    fn read(&mut self, blocks: Option<&mut [Block]>) -> Result<(), Fault> {
        if self.mcu == self.point_mcu {
            self.compare()?;
        }
        if self.more() && self.filled < self.bits.at + LONGEST_MCU + WORD {
            self.fill();
        }
        let done = self.blocks(blocks);
        // What lies behind the end has no meaning, so a wrong code there is no damage of its own.
        if self.ended && self.left() < 0 {
            return Err(Fault::Truncated("premature end of the picture's data".into()));
        }
        if !self.ended && self.bits.at > self.filled {
            return Err(Fault::SeekPoints(format!("MCU {} ends elsewhere", self.mcu)));
        }
        let what = match done {
            Ok(()) => {
                self.mcu += 1;
                return Ok(());
            }
            Err(Damage::Code) => "an unknown code",
            Err(Damage::Run) => "coefficients beyond the end of a block",
            Err(Damage::Dc) => "a DC coefficient beyond 16 bits",
        };
        Err(self.fault(what.into()))
    }

    fn blocks(&mut self, mut blocks: Option<&mut [Block]>) -> Result<(), Damage> {
        let Self { layout, memory: Entropy { dc, ac, clean }, .. } = self;
        let (data, mut bits) = (&**clean, self.bits);
        let mut done = Ok(());
        for (n, plan) in layout.blocks().iter().enumerate() {
            let (dc, ac) = (&dc[usize::from(plan.dc)], &ac[usize::from(plan.ac)]);
            let last = &mut self.dc[usize::from(plan.component)];
            done = bits.difference(data, dc).and_then(|difference| {
                *last += difference;
                let level = i16::try_from(*last).map_err(|_| Damage::Dc)?;
                let Some(blocks) = &mut blocks else { return bits.pass(data, ac) };
                blocks[n][0] = level;
                if plan.detail == 0 {
                    return bits.pass(data, ac);
                }
                bits.coefficients(data, ac, &mut blocks[n])
            });
            if done.is_err() {
                break;
            }
        }
        self.bits = bits;
        done
    }

    /// Whether there are data to make ready that are needed.
    fn more(&self) -> bool {
        !self.ended && self.raw < self.goal
    }

    /// Makes more data ready, up to the next marker or the goal.
    fn fill(&mut self) {
        let clean = &mut self.memory.clean;
        clean.copy_within(self.bits.at..self.filled, 0);
        self.passed += self.bits.at;
        (self.filled, self.bits.at) = (self.filled - self.bits.at, 0);
        while self.filled < CHUNK && self.raw < self.goal {
            let end = self.data.len().min(self.raw + CHUNK - self.filled).min(self.goal);
            let rest = &self.data[self.raw..end];
            let plain = memchr(0xff, rest).unwrap_or(rest.len());
            clean[self.filled..self.filled + plain].copy_from_slice(&rest[..plain]);
            (self.filled, self.raw) = (self.filled + plain, self.raw + plain);
            if plain < rest.len() {
                let mut next = self.raw + 1;
                while self.data.get(next) == Some(&0xff) {
                    next += 1;
                }
                match self.data.get(next) {
                    Some(0) => {
                        clean[self.filled] = 0xff;
                        (self.filled, self.raw) = (self.filled + 1, next + 1);
                    }
                    _ => {
                        self.ended = true;
                        return;
                    }
                }
            } else if end == self.data.len() {
                self.ended = true;
                return;
            }
        }
    }
}

/// The byte behind one of the data: behind the zero that is stuffed behind 255.
fn behind(data: &[u8], raw: usize) -> usize {
    if data.get(raw) != Some(&0xff) {
        return raw + 1;
    }
    let fill = data[raw..].iter().take_while(|&&byte| byte == 0xff).count();
    raw + fill + 1
}

/// Whether fill bytes stand before a stuffed zero, as no encoder writes them.
fn has_fill(data: &[u8]) -> bool {
    let mut at = 0;
    while let Some(found) = memchr(0xff, &data[at..]) {
        at += found + 1;
        let fill = data[at..].iter().take_while(|&&byte| byte == 0xff).count();
        at += fill;
        match data.get(at) {
            None | Some(0xd9) => return false,
            Some(0) if fill > 0 => return true,
            Some(_) => at += 1,
        }
    }
    false
}

//! Huffman tables made ready to be looked up: by the next bits, the code, its run and its value at once.
//!
//! # Source
//! ITU-T T.81 annex F.2. That a table gives code, run and value at once is after stb_image.

use super::libjpeg::Table;

/// Bits that index a lookup table.
pub(super) const PEEK: u32 = 10;
/// Most bits of a code and its value.
pub(super) const LONGEST: u32 = 31;
/// Most bits that an entry of [`Lookup::many`] of an AC table consumes.
const LIMIT: u32 = 18;
/// Entries of [`Lookup::many`] that the bits of one refill are enough for.
pub(super) const READY: u32 = 56 / LIMIT;
/// Blocks that a table is for, of one picture or of several that follow each other, from which on
/// [`Lookup::many`] of an AC table is filled. Ours: below, at the 24 to 48 of 32 x 32 pixels, filling was seen to
/// cost more than it saves; where it begins to pay is a guess.
const WORTH_PAIRS: usize = 128;
/// Coefficients passed where an entry knows none: beyond any block.
const NONE_KNOWN: u32 = 127;
/// What [`Lookup::second`] marks a coefficient with.
const PAIRED: u64 = 1 << 7;

/// The lowest bits of every entry: how many to consume, or of a code alone, 0 where it is longer than [`PEEK`].
const LENGTH: u32 = 63;
/// The bit above: of [`One`], not a whole coefficient; of [`Many`] and [`Skip`], the last symbol ends the block.
const MARK: u32 = 1 << 6;

/// By the next bits, one coefficient or one symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct One(u32);

impl One {
    const SYMBOL: u32 = 8;
    const VALUE: u32 = 16;
    /// A code longer than [`PEEK`], or none.
    const UNKNOWN: Self = Self(MARK);

    /// Of a symbol that is no whole coefficient here, with the length of its code.
    const fn special(symbol: u32, length: u32) -> Self {
        Self(symbol << Self::SYMBOL | MARK | length)
    }

    /// Of a coefficient, with the length of code and value.
    const fn whole(value: u32, run: u32, length: u32) -> Self {
        Self(value << Self::VALUE | run << Self::SYMBOL | length)
    }

    /// Bits of code and value; of a special one, of the code.
    #[inline(always)]
    pub(super) fn length(self) -> u32 {
        self.0 & LENGTH
    }

    /// Whether it is not a whole coefficient: its symbol says what it is.
    #[inline(always)]
    pub(super) fn is_special(self) -> bool {
        self.0 & MARK != 0
    }

    /// Of a special one.
    #[inline(always)]
    pub(super) fn symbol(self) -> u32 {
        self.0 >> Self::SYMBOL & 255
    }

    /// Zeros ahead of a coefficient.
    #[inline(always)]
    pub(super) fn run(self) -> u32 {
        self.0 >> Self::SYMBOL & 15
    }

    /// A coefficient, in the lower 16 bits.
    #[inline(always)]
    pub(super) fn value(self) -> u32 {
        self.0 >> Self::VALUE
    }
}

/// By the next bits, one or two coefficients and the end of the block, as far as their codes and signs are in sight; of DC
/// tables one, at place 0. One coefficient alone stands for both. Long values so take no branch of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Many(u64);

impl Many {
    const FIRST_PLACE: u32 = 8;
    /// How many bits are still to be added to the second.
    const REST: u32 = 12;
    const SECOND_PLACE: u32 = 16;
    const PASSED: u32 = 24;
    const FIRST: u32 = 32;
    const SECOND: u32 = 48;
    /// For bits that [`Lookup::one`] must be asked about.
    pub(super) const UNKNOWN: Self = Self((NONE_KNOWN as u64) << Self::PASSED);

    /// The part below the values.
    #[inline(always)]
    fn low(self) -> u32 {
        self.0 as u32
    }

    /// Bits to consume.
    #[inline(always)]
    pub(super) fn length(self) -> u32 {
        self.low() & LENGTH
    }

    /// Whether the block ends with it.
    #[inline(always)]
    pub(super) fn ends(self) -> bool {
        self.low() & MARK != 0
    }

    /// Coefficients passed, the end counting as one.
    #[inline(always)]
    pub(super) fn passed(self) -> u32 {
        self.low() >> Self::PASSED
    }

    /// Where the first value goes, and where the second.
    #[inline(always)]
    pub(super) fn places(self) -> (u32, u32) {
        (self.low() >> Self::FIRST_PLACE & 15, self.low() >> Self::SECOND_PLACE & 31)
    }

    /// Bits that are still to be added to the second value.
    #[inline(always)]
    pub(super) fn rest(self) -> u32 {
        self.low() >> Self::REST & 15
    }

    /// The first value, in the lower 16 bits.
    #[inline(always)]
    pub(super) fn first(self) -> u32 {
        (self.0 >> Self::FIRST) as u32
    }

    /// The second value.
    #[inline(always)]
    pub(super) fn second(self) -> u32 {
        (self.0 >> Self::SECOND) as u32
    }
}

/// Of AC tables, by the next bits, all symbols whose codes are in sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Skip(u16);

impl Skip {
    const PASSED: u32 = 7;
    const UNKNOWN: Self = Self((NONE_KNOWN << Self::PASSED) as u16);

    /// Bits to consume.
    #[inline(always)]
    pub(super) fn length(self) -> u32 {
        u32::from(self.0) & LENGTH
    }

    /// Whether the block ends with it.
    #[inline(always)]
    pub(super) fn ends(self) -> bool {
        u32::from(self.0) & MARK != 0
    }

    /// Coefficients passed, the end counting as one.
    #[inline(always)]
    pub(super) fn passed(self) -> u32 {
        u32::from(self.0) >> Self::PASSED
    }
}

/// A coefficient of which the code and the sign are known.
struct Partly {
    /// Zeros ahead of it.
    run: u32,
    /// Bits of code and value.
    length: u32,
    /// The last bits, which are still to be added to `value`; none where it is known.
    size: u32,
    value: i32,
}

/// The values of an entry of [`Lookup::many`].
fn pack(first: i32, second: i32) -> u64 {
    u64::from(second as u16) << Many::SECOND | u64::from(first as u16) << Many::FIRST
}

/// A Huffman table made ready.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    /// Whether it is made ready, and `many` of an AC table and `skip` as well.
    set: bool,
    pairs: bool,
    skips: bool,
    /// Blocks that it was made ready for.
    blocks: usize,
    pub(super) one: [One; 1 << PEEK],
    pub(super) many: [Many; 1 << PEEK],
    pub(super) skip: [Skip; 1 << PEEK],
    /// The first 16 bits that are above all codes of a length.
    above: [u32; 17],
    /// What to add to a code of a length for its symbol's place.
    offset: [i32; 17],
    /// The table.
    lengths: [u8; 16],
    symbols: [u8; 256],
}

/// The value that `size` bits stand for.
#[inline(always)]
pub(super) fn extend(bits: u32, size: u32) -> i32 {
    let (bits, half) = (bits as i32, (1 << size) >> 1);
    if bits < half { bits - (1 << size) + 1 } else { bits }
}

impl Lookup {
    pub(super) const NONE: Self = Self {
        set: false,
        pairs: false,
        skips: false,
        blocks: 0,
        one: [One::UNKNOWN; 1 << PEEK],
        many: [Many::UNKNOWN; 1 << PEEK],
        skip: [Skip::UNKNOWN; 1 << PEEK],
        above: [0; 17],
        offset: [0; 17],
        lengths: [0; 16],
        symbols: [0; 256],
    };

    /// Makes a table ready for so many blocks, and of an AC table `skip` if asked, and `many` where that pays:
    /// without it, each code is read by `one`. Nothing is done twice where it is the last picture's.
    pub(super) fn prepare(&mut self, table: &Table, dc: bool, blocks: usize, skip: bool) {
        if !self.set || self.lengths != table.lengths || self.symbols != table.symbols {
            self.set(table, dc);
            if dc {
                self.set_levels();
            } else {
                self.many.fill(Many::UNKNOWN);
            }
            (self.set, self.pairs, self.skips, self.blocks) = (true, false, false, 0);
        }
        self.blocks = self.blocks.saturating_add(blocks);
        if !dc && self.blocks >= WORTH_PAIRS && !self.pairs {
            self.set_pairs();
            self.pairs = true;
        }
        if skip && !self.skips {
            self.set_skip();
            self.skips = true;
        }
    }

    /// Fills `one`. libjpeg-turbo has checked that the codes fit their lengths.
    fn set(&mut self, table: &Table, dc: bool) {
        (self.lengths, self.symbols) = (table.lengths, table.symbols);
        self.one.fill(One::UNKNOWN);
        let (mut code, mut place) = (0u32, 0usize);
        for length in 1..=16 {
            self.offset[length] = place as i32 - code as i32;
            for _ in 0..table.lengths[length - 1] {
                if length <= PEEK as usize {
                    let span = 1 << (PEEK as usize - length);
                    let start = code as usize * span;
                    let slots = self.one.get_mut(start..start + span).unwrap_or_default();
                    set_fast(slots, table.symbols[place % 256], length as u32, dc);
                }
                (code, place) = (code + 1, place + 1);
            }
            self.above[length] = code << (16 - length);
            code <<= 1;
        }
    }

    /// Fills `many` of a DC table, after [`Lookup::set`].
    fn set_levels(&mut self) {
        let mut bits = 0;
        while bits < 1 << PEEK {
            let (first, alike) = self.first(bits, LONGEST);
            let entry = first.map_or(Many::UNKNOWN, |Partly { length, size, value, .. }| {
                Many(pack(0, value) | u64::from(size << Many::REST | length))
            });
            self.many[bits..bits + alike].fill(entry);
            bits += alike;
        }
    }

    /// Fills `many` of an AC table, after [`Lookup::set`].
    fn set_pairs(&mut self) {
        // Of the bits behind a first coefficient, n in sight: at 2^n and on, by these bits.
        let mut seconds = [0; 1 << PEEK];
        for sight in 0..PEEK {
            for (bits, second) in seconds[1 << sight..2 << sight].iter_mut().enumerate() {
                *second = self.second(bits << (PEEK - sight), sight);
            }
        }
        let mut bits = 0;
        while bits < 1 << PEEK {
            let (first, alike) = self.first(bits, LIMIT);
            let slots = bits..bits + alike;
            bits = slots.end;
            let Some(Partly { run, length, size, value }) = first else {
                let end = self.end(slots.start, PEEK);
                self.many[slots].fill(end.map_or(Many::UNKNOWN, |length| Many(block_end(length))));
                continue;
            };
            let passed = (run + 1) << Many::PASSED | run << Many::FIRST_PLACE | length;
            let second = run << Many::SECOND_PLACE | size << Many::REST;
            let alone = pack(0, value) | u64::from(passed | second);
            if size > 0 {
                self.many[slots].fill(Many(alone));
                continue;
            }
            let paired =
                (pack(value, 0) | u64::from(passed | (run + 1) << Many::SECOND_PLACE)) - PAIRED;
            for (entry, &second) in self.many[slots].iter_mut().zip(&seconds[alike..]) {
                *entry = Many(second + if second & PAIRED == 0 { alone } else { paired });
            }
        }
    }

    /// What adds to an entry of `many` the coefficient or the end that `bits` begin with, of which
    /// `sight` count, behind another; a coefficient marked `PAIRED`.
    fn second(&self, bits: usize, sight: u32) -> u64 {
        if let Some(Partly { run, length, size, value }) =
            self.partly(bits, sight, LIMIT - PEEK + sight)
        {
            let place = run << Many::SECOND_PLACE;
            let low = (run + 1) << Many::PASSED | place | size << Many::REST | length;
            return pack(0, value) | PAIRED | u64::from(low);
        }
        self.end(bits, sight).map_or(0, block_end)
    }

    /// The coefficient that `bits` begin with, and how many indices from there on begin the same.
    fn first(&self, bits: usize, most: u32) -> (Option<Partly>, usize) {
        let first = self.partly(bits, PEEK, most);
        let seen = first.as_ref().map_or(PEEK, |first| match first.size {
            0 => first.length,
            size => first.length - size + 1,
        });
        (first, 1 << (PEEK - seen))
    }

    /// The length of the code that ends a block, where `bits`, of which `sight` count, begin so.
    fn end(&self, bits: usize, sight: u32) -> Option<u32> {
        let entry = self.one[bits];
        let ends = entry.is_special() && entry.symbol() == 0;
        (ends && (1..=sight).contains(&entry.length())).then_some(entry.length())
    }

    /// The coefficient that `bits` begin with, of which `sight` count, where its code and its sign
    /// are in sight, and code and value take no more than `most` bits.
    fn partly(&self, bits: usize, sight: u32, most: u32) -> Option<Partly> {
        let entry = self.one[bits];
        let (code, run, size) = apart(entry);
        let length = code + size;
        if !entry.is_special() && length <= sight.min(most) {
            return Some(Partly { run, length, size: 0, value: i32::from(entry.value() as i16) });
        }
        if code == 0 || size == 0 || code >= sight || length > most {
            return None;
        }
        let positive = bits >> (PEEK - code - 1) & 1 == 1;
        let value = if positive { 0 } else { 1 - (1 << size) };
        Some(Partly { run, length, size, value })
    }

    /// Fills `skip`, after [`Lookup::set`] for AC.
    fn set_skip(&mut self) {
        // Of n bits in sight: at 2^n and on, by these bits.
        let mut sights = [0; 2 << PEEK];
        for sight in 0..=PEEK {
            let (shorter, entries) = sights.split_at_mut(1 << sight);
            let mut bits = 0;
            while bits < 1 << sight {
                let (code, run, size) = apart(self.one[bits << (PEEK - sight)]);
                // The code must be in sight, its value need not. Runs without a value end the
                // block or are of 16.
                if code == 0 || code > sight || (size == 0 && run % 15 != 0) {
                    bits += 1;
                    continue;
                }
                let slots = &mut entries[bits..bits + (1 << (sight - code))];
                bits += slots.len();
                let entry = ((run + 1) << Skip::PASSED | (code + size)) as u16;
                if (run, size) == (0, 0) {
                    slots.fill(entry | MARK as u16);
                } else if code + size >= sight {
                    slots.fill(entry);
                } else {
                    let rest = 1 << (sight - code - size);
                    for slots in slots.chunks_exact_mut(rest) {
                        for (slot, more) in slots.iter_mut().zip(&shorter[rest..]) {
                            *slot = entry + more;
                        }
                    }
                }
            }
        }
        for (skip, &entry) in self.skip.iter_mut().zip(&sights[1 << PEEK..]) {
            *skip = if entry == 0 { Skip::UNKNOWN } else { Skip(entry) };
        }
    }

    /// The symbol at the front of 16 bits, and the length of its code, where that is longer than
    /// `PEEK`.
    #[cold]
    pub(super) fn long(&self, bits: u32) -> Option<(u32, u32)> {
        let length = (PEEK as usize + 1..17).find(|&length| bits < self.above[length])?;
        let place = (bits >> (16 - length)) as i32 + self.offset[length];
        Some((u32::from(*self.symbols.get(place as usize)?), length as u32))
    }
}

/// The end of a block, as an entry of [`Lookup::many`] has it.
fn block_end(length: u32) -> u64 {
    u64::from(1 << Many::PASSED | MARK | length)
}

/// The length of the code, the run and the size of the value of an entry of [`Lookup::one`].
fn apart(entry: One) -> (u32, u32, u32) {
    let (length, symbol) = (entry.length(), entry.symbol());
    if entry.is_special() {
        return (length, symbol >> 4, symbol & 15);
    }
    let size = 32 - i32::from(entry.value() as i16).unsigned_abs().leading_zeros();
    (length - size, symbol, size)
}

/// Fills the slots of [`Lookup::one`] that begin with a code of this length.
fn set_fast(slots: &mut [One], symbol: u8, length: u32, dc: bool) {
    let size = u32::from(symbol & 15);
    let each = slots.len() >> size; // slots of one value
    if each == 0 || (size == 0 && !dc) {
        slots.fill(One::special(u32::from(symbol), length));
        return;
    }
    for (bits, slots) in slots.chunks_exact_mut(each).enumerate() {
        let value = extend(bits as u32, size) as u32;
        slots.fill(One::whole(value, u32::from(symbol >> 4), length + size));
    }
}

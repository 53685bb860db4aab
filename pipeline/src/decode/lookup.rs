//! Huffman tables made ready to be looked up: by the next bits, the code, its run and its value at once.
//!
//! # Source
//! ITU-T T.81 annex F.2. That a table gives code, run and value at once is after stb_image.

use super::libjpeg::Table;

/// Bits that index a lookup table.
pub(super) const PEEK: u32 = 10;
/// Most bits of a code and its value.
pub(super) const LONGEST: u32 = 31;
/// An entry of [`Lookup::one`] that is not a whole coefficient.
pub(super) const SPECIAL: u32 = 1 << 6;
/// An entry of [`Lookup::many`] or [`Lookup::skip`] whose last symbol ends the block.
pub(super) const END: u32 = 1 << 6;
/// Most bits that an entry of [`Lookup::many`] of an AC table consumes.
const LIMIT: u32 = 18;
/// Entries of [`Lookup::many`] that the bits of one refill are enough for.
pub(super) const READY: u32 = 56 / LIMIT;
/// Blocks that a table is for, of one picture or of several that follow each other, from which on
/// [`Lookup::many`] of an AC table is filled. Ours: below, at the 24 to 48 of 32 x 32 pixels, filling was seen to
/// cost more than it saves; where it begins to pay is a guess.
const WORTH_PAIRS: usize = 128;
/// The entry of [`Lookup::many`] for bits that [`Lookup::one`] must be asked about.
pub(super) const UNKNOWN: u64 = 127 << 24;
/// What [`Lookup::second`] marks a coefficient with.
const PAIRED: u64 = 1 << 7;

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
    u64::from(second as u16) << 48 | u64::from(first as u16) << 32
}

/// A Huffman table made ready. The lowest 6 bits of every entry are the bits to consume.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    /// Whether it is made ready, and `many` of an AC table and `skip` as well.
    set: bool,
    pairs: bool,
    skips: bool,
    /// Blocks that it was made ready for.
    blocks: usize,
    /// By the next bits: value << 16 | run << 8 | length of code and value, where they are no
    /// longer than the bits; else symbol << 8 | `SPECIAL` | length of the code, 0 where that is
    /// longer. Of AC tables the symbols without a value are special too.
    pub(super) one: [u32; 1 << PEEK],
    /// By the next bits, one or two coefficients and the end of the block, as far as their codes
    /// and signs are in sight; of DC tables one, at place 0. Second value << 48 | first value << 32
    /// | coefficients passed << 24, the end counting as one | the second's place << 16 | how many
    /// bits are still to be added to the second << 12 | the first's place << 8 | `END`; or
    /// `UNKNOWN`. One coefficient alone stands for both. Long values so take no branch of their own.
    pub(super) many: [u64; 1 << PEEK],
    /// Of AC tables, by the next bits, all symbols whose codes are in sight: coefficients passed,
    /// the end counting as one, or 127 where there is none << 7 | `END`.
    pub(super) skip: [u16; 1 << PEEK],
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
        one: [SPECIAL; 1 << PEEK],
        many: [0; 1 << PEEK],
        skip: [0; 1 << PEEK],
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
                self.many.fill(UNKNOWN);
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
        self.one.fill(SPECIAL);
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
            let entry = first.map_or(UNKNOWN, |Partly { length, size, value, .. }| {
                pack(0, value) | u64::from(size << 12 | length)
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
                self.many[slots].fill(end.map_or(UNKNOWN, |n| u64::from(1 << 24 | END | n)));
                continue;
            };
            let passed = (run + 1) << 24 | run << 8 | length;
            let alone = pack(0, value) | u64::from(passed | run << 16 | size << 12);
            if size > 0 {
                self.many[slots].fill(alone);
                continue;
            }
            let paired = (pack(value, 0) | u64::from(passed | (run + 1) << 16)) - PAIRED;
            for (entry, &second) in self.many[slots].iter_mut().zip(&seconds[alike..]) {
                *entry = second + if second & PAIRED == 0 { alone } else { paired };
            }
        }
    }

    /// What adds to an entry of `many` the coefficient or the end that `bits` begin with, of which
    /// `sight` count, behind another; a coefficient marked `PAIRED`.
    fn second(&self, bits: usize, sight: u32) -> u64 {
        if let Some(Partly { run, length, size, value }) =
            self.partly(bits, sight, LIMIT - PEEK + sight)
        {
            let low = (run + 1) << 24 | run << 16 | size << 12 | length;
            return pack(0, value) | PAIRED | u64::from(low);
        }
        self.end(bits, sight).map_or(0, |length| u64::from(1 << 24 | END | length))
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
        let length = entry & 63;
        (entry & SPECIAL != 0 && entry >> 8 == 0 && (1..=sight).contains(&length)).then_some(length)
    }

    /// The coefficient that `bits` begin with, of which `sight` count, where its code and its sign
    /// are in sight, and code and value take no more than `most` bits.
    fn partly(&self, bits: usize, sight: u32, most: u32) -> Option<Partly> {
        let entry = self.one[bits];
        let (code, run, size) = apart(entry);
        let length = code + size;
        if entry & SPECIAL == 0 && length <= sight.min(most) {
            return Some(Partly { run, length, size: 0, value: entry as i32 >> 16 });
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
                let entry = ((run + 1) << 7 | (code + size)) as u16;
                if (run, size) == (0, 0) {
                    slots.fill(entry | END as u16);
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
            *skip = if entry == 0 { 127 << 7 } else { entry };
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

/// The length of the code, the run and the size of the value of an entry of [`Lookup::one`].
fn apart(entry: u32) -> (u32, u32, u32) {
    let (length, symbol) = (entry & 63, entry >> 8 & 255);
    if entry & SPECIAL != 0 {
        return (length, symbol >> 4, symbol & 15);
    }
    let size = 32 - (entry as i32 >> 16).unsigned_abs().leading_zeros();
    (length - size, symbol, size)
}

/// Fills the slots of [`Lookup::one`] that begin with a code of this length.
fn set_fast(slots: &mut [u32], symbol: u8, length: u32, dc: bool) {
    let size = u32::from(symbol & 15);
    let each = slots.len() >> size; // slots of one value
    if each == 0 || (size == 0 && !dc) {
        slots.fill(u32::from(symbol) << 8 | SPECIAL | length);
        return;
    }
    for (bits, slots) in slots.chunks_exact_mut(each).enumerate() {
        let value = extend(bits as u32, size) as u32;
        slots.fill(value << 16 | u32::from(symbol >> 4) << 8 | (length + size));
    }
}

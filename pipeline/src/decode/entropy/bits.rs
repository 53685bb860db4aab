//! The bits of an MCU, and the coefficients that they stand for: variant 4 of Giesen, "Reading bits in far too many
//! ways", 2018.

use super::super::libjpeg::Block;
use super::super::lookup::{Lookup, Many, One, PEEK, READY, extend};
use super::{CHUNK, Ready, WORD};

/// Natural order of the coefficients; runs from the last may go 16 places too far.
const NATURAL: [u8; 128] = {
    let mut order = [63; 128];
    let (mut at, mut x, mut y) = (0, 0usize, 0usize);
    while at < 64 {
        order[at] = (8 * y + x) as u8;
        at += 1;
        let up = (x + y) % 2 == 0;
        match (up, x, y) {
            (true, 7, _) => y += 1,
            (true, _, 0) => x += 1,
            (true, ..) => (x, y) = (x + 1, y - 1),
            (false, _, 7) => x += 1,
            (false, 0, _) => y += 1,
            (false, ..) => (x, y) = (x - 1, y + 1),
        }
    }
    order
};

/// What is wrong with the data of an MCU.
#[derive(Debug, Clone, Copy)]
pub(super) enum Damage {
    Code,
    Run,
    Dc,
}

/// A reader of bits, first the highest.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bits {
    /// The next bits, in the highest places.
    window: u64,
    /// How many of them count, below 64.
    pub(super) count: u32,
    /// The next byte of the data.
    pub(super) at: usize,
}

impl Bits {
    /// Makes at least 56 bits ready. Past the data they have no meaning.
    #[inline(always)]
    pub(super) fn refill(&mut self, data: &Ready) {
        let at = self.at.min(CHUNK); // no byte at or beyond CHUNK counts
        let next: [u8; WORD] = std::array::from_fn(|n| data[at + n]);
        self.window |= u64::from_be_bytes(next) >> self.count;
        self.at += (63 - self.count as usize) >> 3;
        self.count |= 56;
    }

    /// The next bits, 1 to 32.
    #[inline(always)]
    fn peek(&self, count: u32) -> u32 {
        (self.window >> (64 - count)) as u32
    }

    #[inline(always)]
    pub(super) fn consume(&mut self, count: u32) {
        self.window <<= count;
        self.count -= count;
    }

    /// The value in the next `size` bits, at most 15.
    #[inline(always)]
    fn value(&mut self, size: u32) -> i32 {
        let bits = (self.window >> 1 >> (63 - size)) as u32;
        self.consume(size);
        extend(bits, size)
    }

    /// The second value of an entry of [`Lookup::many`], before its bits are consumed.
    #[inline(always)]
    fn last_of(&self, entry: Many) -> u32 {
        let ahead = self.window >> 1 >> (63 - entry.length());
        let rest = ahead as u32 & ((1 << entry.rest()) - 1);
        entry.second().wrapping_add(rest)
    }

    /// The symbol of a special entry.
    #[inline(always)]
    fn symbol(&mut self, entry: One, lookup: &Lookup) -> Result<u32, Damage> {
        let known = Some((entry.symbol(), entry.length()));
        let found = if entry.length() == 0 { lookup.long(self.peek(16)) } else { known };
        // Of an unknown code, all 16 bits were read.
        self.consume(found.map_or(16, |(_, length)| length));
        found.map(|(symbol, _)| symbol).ok_or(Damage::Code)
    }

    #[inline(always)]
    pub(super) fn difference(&mut self, data: &Ready, dc: &Lookup) -> Result<i32, Damage> {
        self.refill(data);
        let index = self.peek(PEEK) as usize;
        let entry = dc.many[index];
        if entry != Many::UNKNOWN {
            let value = self.last_of(entry) as i16;
            self.consume(entry.length());
            return Ok(i32::from(value));
        }
        let size = self.symbol(dc.one[index], dc)?;
        Ok(self.value(size & 15))
    }

    /// Reads the AC coefficients of a block.
    #[inline(always)]
    pub(super) fn coefficients(
        &mut self,
        data: &Ready,
        ac: &Lookup,
        block: &mut Block,
    ) -> Result<(), Damage> {
        let mut put = |at: u32, value: u32| {
            block[NATURAL[at as usize & 127] as usize & 63] = value as i16;
        };
        let mut at = 1;
        while at < 64 {
            self.refill(data);
            let mut index = 0;
            let mut ready = 0;
            while ready < READY {
                index = self.peek(PEEK) as usize;
                let entry = ac.many[index];
                if at + entry.passed() > 64 {
                    break;
                }
                // The first before the second, which may be in the same place.
                let (first, second) = entry.places();
                put(at + first, entry.first());
                put(at + second, self.last_of(entry));
                self.consume(entry.length());
                if entry.ends() {
                    return Ok(());
                }
                at += entry.passed();
                ready += 1;
            }
            if ready == READY || at == 64 {
                continue;
            }
            self.refill(data);
            let entry = ac.one[index];
            if !entry.is_special() {
                self.consume(entry.length());
                at += entry.run();
                put(at, entry.value());
                at += 1;
                continue;
            }
            match self.symbol(entry, ac)? {
                0x00 => return Ok(()),
                0xf0 => at += 16,
                symbol if symbol & 15 == 0 => return Err(Damage::Code),
                symbol => {
                    at += symbol >> 4;
                    put(at, self.value(symbol & 15) as u32);
                    at += 1;
                }
            }
        }
        if at == 64 { Ok(()) } else { Err(Damage::Run) }
    }

    /// Passes over the AC coefficients of a block.
    #[inline(always)]
    pub(super) fn pass(&mut self, data: &Ready, ac: &Lookup) -> Result<(), Damage> {
        let mut at = 1;
        while at < 64 {
            self.refill(data);
            // There are bits for two entries of `skip`, each of at most PEEK + 15.
            let mut index = 0;
            let mut ready = 0;
            while ready < 2 {
                index = self.peek(PEEK) as usize;
                let entry = ac.skip[index];
                // Symbols beyond the last coefficient belong to the next block.
                if at + entry.passed() > 64 {
                    break;
                }
                self.consume(entry.length());
                if entry.ends() {
                    return Ok(());
                }
                at += entry.passed();
                ready += 1;
            }
            if ready == 2 || at == 64 {
                continue;
            }
            self.refill(data);
            let entry = ac.one[index];
            if !entry.is_special() {
                self.consume(entry.length());
                at += entry.run() + 1;
                continue;
            }
            match self.symbol(entry, ac)? {
                0x00 => return Ok(()),
                0xf0 => at += 16,
                symbol if symbol & 15 == 0 => return Err(Damage::Code),
                symbol => {
                    self.consume(symbol & 15);
                    at += (symbol >> 4) + 1;
                }
            }
        }
        if at == 64 { Ok(()) } else { Err(Damage::Run) }
    }
}

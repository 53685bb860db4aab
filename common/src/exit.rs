//! The exit codes of `trainer` and `shard-imagenet`.
//!
//! # Source
//! Ours; 75 is `EX_TEMPFAIL` of BSD's `sysexits.h`, which batch systems take for "try again".

/// Done: the work is finished, or the time that was given for it is over.
pub const DONE: u8 = 0;
/// It failed, by no fault of what was asked for: a full disk, a lost rank, a broken machine.
pub const FAILED: u8 = 1;
/// What was typed, configured or given to read is wrong. The same command fails again.
pub const USAGE: u8 = 2;
/// Training diverged. The same command diverges again: do not queue it again.
pub const DIVERGED: u8 = 3;
/// Stopped by a signal with everything saved. The same command, or `--resume`, goes on.
pub const STOPPED: u8 = 75;

//! Turns image archives into tar shards.

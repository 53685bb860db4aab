//! Stories across the crates.

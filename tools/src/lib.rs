//! Turns image archives into tar shards that decode fast, and checks and shows such shards.
//!
//! ```text
//! source ──> catalog ──> order ──> build ──> a data folder ──> verify, inspect
//! headers    items       seeded    read, re-code, write
//! ```
//! A [`source`] lists every image without reading pixels; [`order`] puts the list into the order of
//! writing. An archive on a pipe cannot be listed beforehand: [`source::Stream`] gives its images as
//! they come. [`build`] is the one way from there to a folder, for real sources and for [`synth`].

pub mod build;
pub mod catalog;
pub mod cli;
mod error;
mod formats;
pub mod inspect;
mod journal;
pub mod jpeg;
pub mod order;
mod progress;
pub mod recode;
pub mod seek;
pub mod sheet;
pub mod source;
pub mod synth;
mod transform;
pub mod verify;

pub use error::Error;
pub use journal::Existing;

//! BigBiGAN: the networks, losses, optimiser and step of Donahue & Simonyan 2019, over libtorch.
//!
//! [`config::Recipe`] says what is trained, [`state::TrainState`] is all that a step changes, [`step::train_step`] is the step.
//! Where images come from, and where weights go, is the caller's affair.

#![forbid(unsafe_code)]

pub mod beyond;
pub mod config;
pub mod images;
pub mod loss;
pub mod networks;
pub mod nn;
pub mod optim;
#[cfg(test)]
mod parity;
pub mod presets;
pub mod random;
pub mod state;
pub mod step;
#[cfg(test)]
mod toy;

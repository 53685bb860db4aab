//! BigBiGAN: networks, losses, step, run.

pub mod model;
pub mod nn;
pub mod random;
pub mod config;
pub mod device;
pub mod error;
pub mod loss;
pub mod optim;
pub mod state;
pub mod step;
pub mod checkpoint;
pub mod doctor;
pub mod eval;
pub mod inspect;
pub mod log;
pub mod run;

//! The program around the model: configuration, input, checkpoints, evaluation, runs and studies.

pub mod check;
pub mod checkpoint;
pub mod config;
pub mod device;
pub mod doctor;
pub mod error;
pub mod eval;
pub mod evaluations;
pub mod export;
pub mod feed;
pub mod fit;
pub mod health;
pub mod inspect;
mod launch;
pub mod lock;
pub mod log;
pub mod monitor;
pub mod peak;
pub mod provenance;
pub mod report;
pub mod run;
pub mod say;
pub mod scale;
pub mod study;
mod supervisor;
pub mod tensorboard;
pub mod timing;
pub mod watch;

pub use launch::launch;

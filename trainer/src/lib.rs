//! BigBiGAN: networks, losses, step, run.

mod beyond;
pub mod check;
pub mod checkpoint;
pub mod config;
mod cuda;
pub mod device;
pub mod dist;
pub mod doctor;
pub mod error;
pub mod eval;
pub mod evaluations;
pub mod export;
pub mod feed;
pub mod fit;
#[cfg(test)]
mod golden;
pub mod graph;
pub mod health;
pub mod inspect;
pub mod lock;
pub mod log;
pub mod loss;
pub mod measure;
pub mod model;
pub mod monitor;
pub mod nn;
mod openmp;
pub mod optim;
pub mod peak;
pub mod profile;
pub mod provenance;
pub mod random;
pub mod report;
pub mod run;
pub mod say;
pub mod scale;
mod shim;
pub mod state;
pub mod step;
pub mod stop;
pub mod study;
mod supervisor;
pub mod tensorboard;
pub mod timing;
#[cfg(test)]
mod toy;
pub mod watch;

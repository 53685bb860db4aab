//! What tch lacks of libtorch, for any program that uses it.
//!
//! - [`mod@autograd`]: functions with a backward pass of one's own, and hooks on leaves.
//! - [`context`]: autocast, TF32, cuDNN's trials, deterministic algorithms.
//! - [`kernels`]: fused Adam, spectral norms of a whole network, and the backward pass of a batch norm, in one call each.
//! - [`stream`], [`graph`], [`memory`], [`cuda`]: streams, events, CUDA graphs, page-locked memory; loaded when asked for.
//! - [`c10d`]: the store and the process groups of torch.distributed.
//! - [`measure`], [`profile`]: bytes and operations of operators, and where time goes.
//! - [`script`]: TorchScript files of what Rust computes.
//!
//! What libtorch refuses is a panic in tch, and here; [`caught`] makes an [`Error`] of it.

pub mod autograd;
pub mod c10d;
pub mod context;
pub mod cuda;
mod error;
pub mod graph;
pub mod kernels;
pub mod measure;
pub mod memory;
mod nccl;
mod openmp;
pub mod profile;
pub mod script;
mod shim;
pub mod stream;

pub use error::{Error, caught};
pub use shim::must;

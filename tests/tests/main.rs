//! Stories: what a person does from the command line, and rules about the repository itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod check_device;
mod cuda;
mod determinism;
mod documents;
mod durability;
mod evaluation;
mod export;
mod fixtures;
mod hosts;
mod pages;
mod pipes;
mod programs;
mod ranks;
mod remote;
mod repository;
mod scripts;
mod seeing;
mod study;
mod training;
mod weights;

//! Stories: what a person does from the command line, and rules about the repository itself.

mod bad_input;
mod determinism;
mod repository;
mod training;

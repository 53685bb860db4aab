//! The example runs.

#[path = "../examples/steps.rs"]
mod steps;

#[test]
fn three_steps() {
    steps::main().unwrap();
}

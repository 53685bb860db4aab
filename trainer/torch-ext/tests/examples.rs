//! The example runs.

#[path = "../examples/function.rs"]
mod function;

#[test]
fn a_function_and_an_update() {
    function::main().unwrap();
}

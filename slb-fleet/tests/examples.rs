//! The program of `examples/` runs, so that what a reader copies works.

#[path = "../examples/rollout.rs"]
mod rollout;

#[test]
fn a_configuration_reaches_a_node() {
    rollout::main().unwrap();
}

//! The programs of `examples/` build and run, so that what a reader copies works.

#[path = "../examples/client_side.rs"]
mod client_side;
#[path = "../examples/embed.rs"]
mod embed;

#[test]
fn a_mux_is_embedded_and_reloaded_twice() {
    embed::main().unwrap();
}

#[test]
fn a_client_chooses_its_server() {
    client_side::main().unwrap();
}

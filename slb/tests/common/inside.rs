//! Threads in a machine's network namespace.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::world::World;

/// Runs something on a thread that is in a machine's network namespace.
pub fn inside<T: Send + 'static>(
    world: &World,
    machine: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let space = File::open(format!("/var/run/netns/{}", world.space(machine))).unwrap();
    thread::spawn(move || {
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        run()
    })
}

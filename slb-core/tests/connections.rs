//! How connections of the host agent and the proxy begin, begin anew and end: the numbers and the
//! timers that count, in each role, family and direction.

mod direct;
mod names;
mod packets;
mod resets;
mod reuse;
mod setup;
mod timers;
mod world;

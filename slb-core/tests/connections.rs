//! Connections of the host agent and the proxy, which begin, begin again and end: the numbers and
//! timers that count, in each role, family and direction.

mod direct;
mod edges;
mod names;
mod packets;
mod resets;
mod reuse;
mod setup;
mod timers;
mod world;

//! The parts of a balancer outside of its dataplane, which need `std`: its configuration, and the
//! health of backends.
//!
//! ```
//! let text = r#"
//!     [node]
//!     role = "mux"
//!     underlay = "172.16.0.11"
//!     [[frontend]]
//!     name = "web"
//!     address = "20.20.20.100"
//!     [[pool]]
//!     name = "servers"
//!     vni = 5001
//!     backends = [{ name = "vm1", address = "10.10.1.11", host = "172.16.0.101" }]
//!     [[rule]]
//!     name = "http"
//!     frontend = "web"
//!     pool = "servers"
//!     protocol = "tcp"
//!     frontend_port = 80
//! "#;
//! let config = slb_control::Config::parse("web.toml", text)?;
//! let key = slb_core::Key::new([1, 2]); // yours: random, and secret
//! let mut mux = slb_core::Mux::with_capacity(config.snapshot(None)?, 1 << 16, key)?;
//! # let _ = &mut mux;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(unnameable_types, unreachable_pub)]
#![forbid(unsafe_code)]

#[cfg(feature = "azure")]
pub mod azure;
pub mod config;
mod diff;
mod document;
mod duration;
mod error;
mod file;
mod holders;
pub mod lasting;
mod memory;
mod passive;
pub mod ports;
#[cfg(feature = "probe")]
pub mod probe;
mod slow_start;
mod validate;

pub use config::{Config, Role, read_text};
pub use diff::{Diff, PortMove, ReachChange, RuleDiff};
pub use duration::{format_duration, parse_duration};
pub use error::{ConfigError, ConfigErrors};
pub use file::{is_descriptor, open_file};
pub use holders::{InboundPort, OutboundPorts};
pub use memory::HugePages;
pub use passive::{PassiveHealth, Turned};
pub use slow_start::SlowStart;

/// The crate's README, whose examples run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct CrateReadme;

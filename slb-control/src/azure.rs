//! Conversion of Azure's JSON into a configuration.
//!
//! ```text
//!  JSON, with comments ─► tree ─► expressions worked out ─► load balancers ─► TOML
//!                         json         template                  read         write
//!  inventory (TOML): what Azure knows and its JSON does not say ──┘
//! ```
//! The input may be load balancers as resources, whole ARM templates (`resources`, with the
//! addresses and network interfaces that they have, and parameter files), and parts of a load
//! balancer, such as one rule. Every property is either mapped, known to mean nothing here, or a
//! warning by name.

mod expression;
mod functions;
mod inventory;
mod json;
mod model;
mod networks;
mod read;
mod resources;
mod template;
mod write;
mod zones;

use std::fmt;

pub use self::inventory::Inventory;

use self::json::Notes;
use crate::config::Config;
use crate::error::{ConfigError, ConfigErrors};

/// The first words of every imported configuration.
pub const FIRST_WORDS: &str = "# Made by `slb import` from";

/// An imported configuration, and the parts that were left out.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The configuration as a file.
    pub toml: String,
    /// Warnings: parts that were left out, with the reason and the place in the JSON.
    pub warnings: Vec<ConfigError>,
    /// The reason why the configuration is incomplete: the input has only parts, and others are
    /// missing.
    pub missing: Option<ConfigErrors>,
    /// True if the JSON has neither a load balancer nor a part of one, such as when all conditions
    /// are false.
    pub is_empty: bool,
}

/// A text and its name in messages.
#[derive(Clone, Copy, Debug)]
pub struct Input<'t> {
    /// The file's name.
    pub file: &'t str,
    /// The text of the JSON.
    pub text: &'t str,
}

/// Converts load balancers, templates, parameter files and parts of load balancers together into a
/// configuration.
///
/// # Errors
/// All faults: invalid JSON, invalid values, and values that neither the JSON nor the inventory
/// has. Faults of the configuration as a whole are reported at the line of the JSON that causes
/// them, with the path of the value, such as `resources[2].properties.probes[0]`.
pub fn import(inputs: &[Input<'_>], inventory: &Inventory) -> Result<Imported, ConfigErrors> {
    let notes = Notes::default();
    let mut trees = Vec::new();
    for input in inputs {
        match json::parse(input) {
            Ok(tree) => trees.push(tree),
            Err(error) => notes.add_error(error),
        }
    }
    let found = resources::gather(&trees, &notes);
    let inventory = &inventory.unused();
    let model = read::read(&found, inventory, &notes);
    let (errors, mut warnings) = notes.finish();
    warnings.extend(inventory.warnings());
    if !errors.is_empty() {
        return Err(ConfigErrors(errors));
    }
    let written = write::write(&model, inventory, &Sources(inputs));
    let missing = Config::parse("the imported configuration", &written.toml).err();
    let missing = missing.map(|ConfigErrors(faults)| {
        let located = faults.into_iter().map(|fault| written.locate(fault));
        ConfigErrors(located.collect())
    });
    let toml = written.toml;
    match missing {
        Some(errors) if !found.has_parts() && !found.is_empty() => Err(errors),
        missing => Ok(Imported {
            toml,
            warnings,
            missing: missing.filter(|_| !found.is_empty()),
            is_empty: found.is_empty(),
        }),
    }
}

/// The files' names, as a list.
struct Sources<'i>(&'i [Input<'i>]);

impl fmt::Display for Sources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, input) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            // The name is part of a one-line comment.
            let name: String = input.file.chars().filter(|c| !c.is_control()).collect();
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}

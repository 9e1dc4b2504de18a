//! `slb schema`: the JSON schema of the configuration, for editors.
//!
//! The schema is a file beside this one, and not made from types: the reader gives each fault its line and reads a
//! document field by field, so no types have the shape of the file. A test asks the reader for its fields, ranges,
//! choices and defaults, and compares.

use serde_json::{Map, Value};

use crate::Failure;
use crate::cli::SchemaOptions;

/// The schema of a node's configuration.
const NODE: &str = include_str!("schema.json");
/// Fields of `[node]` that a fleet's configuration has in `[fleet]`.
const COMMON: [&str; 5] = ["hash", "hash_key", "hash_seed", "inside", "muxes"];
/// Sections of one node.
const OF_A_NODE: [&str; 3] = ["node", "port", "source_rewrite"];

pub(crate) fn run(options: &SchemaOptions) -> Result<(), Failure> {
    let text = match options.fleet {
        false => NODE.to_owned(),
        true => fleet()?,
    };
    crate::manual::print(text.as_bytes())
}

/// The kinds of sections that a fleet's configuration can have.
#[cfg(feature = "live")]
pub(crate) fn kinds_of_fleet() -> Result<Vec<String>, Failure> {
    let root: Value = serde_json::from_str(&fleet()?).map_err(Failure::failed)?;
    let sections = root.get("properties").and_then(Value::as_object);
    Ok(sections
        .into_iter()
        .flatten()
        .map(|(kind, _)| kind.clone())
        .collect())
}

/// The schema of a fleet's configuration: without the sections of one node, and with `[fleet]`.
fn fleet() -> Result<String, Failure> {
    let mut root: Map<String, Value> = serde_json::from_str(NODE).map_err(Failure::failed)?;
    let mut common = Map::new();
    if let Some(Value::Object(sections)) = root.get_mut("properties") {
        let node = sections.get("node").and_then(|node| node.get("properties"));
        for field in COMMON {
            let known = node.and_then(|node| node.get(field)).cloned();
            common.insert(field.to_owned(), known.unwrap_or_default());
        }
        let address = serde_json::json!({
            "type": "string",
            "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }],
        });
        let hosts = serde_json::json!({
            "type": "object",
            "description": "Addresses that each host agent speaks for, by its name. Without it, those that it reports.",
            "additionalProperties": { "anyOf": [address, { "type": "array", "items": address }] },
        });
        common.insert("hosts".to_owned(), hosts);
        sections.retain(|name, _| !OF_A_NODE.contains(&name.as_str()));
        let fleet = serde_json::json!({
            "type": "object",
            "description": "Fields of [node] that are the same on all nodes, and who speaks for which hosts.",
            "properties": common,
            "additionalProperties": false,
        });
        sections.insert("fleet".to_owned(), fleet);
    }
    root.insert("title".to_owned(), "Configuration of a fleet of slb".into());
    root.remove("required");
    root.remove("if");
    root.remove("then");
    // A fleet has muxes and host agents, so what they require is required.
    if let Some(required) = root.remove("else") {
        root.insert("allOf".to_owned(), Value::Array(vec![required]));
    }
    let text = serde_json::to_string_pretty(&root).map_err(Failure::failed)?;
    Ok(text + "\n")
}

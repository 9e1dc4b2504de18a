//! The configuration of a whole fleet, with `[fleet]` instead of `[node]`.

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::{Config, parse_document};
use crate::document::{Faults, described};
use crate::error::ConfigErrors;

/// Name of the section.
const FLEET: &str = "fleet";
const NODE: &str = "node";

/// The fields of a fleet's section, which apply to all nodes.
#[derive(Clone, Copy, Debug)]
pub struct Common<'c> {
    /// Fields of `[node]` that the section may have.
    pub shared: &'c [&'c str],
    /// Further fields, which no node has.
    pub own: &'c [&'c str],
    /// Fields of the node that the configuration is checked for, as TOML: its role and addresses.
    pub node: &'c str,
}

impl Config {
    /// Reads and checks the configuration of a whole fleet, with `[fleet]` instead of `[node]`.
    /// `file` is its name in errors.
    ///
    /// # Errors
    /// All faults, each with its line.
    pub fn parse_fleet(file: &str, text: &str, common: &Common<'_>) -> Result<Self, ConfigErrors> {
        let faults = Faults::new(file, text);
        let parsed = parse_document(text, &faults).zip(parse_document(common.node, &faults));
        let Some((mut document, node)) = parsed else {
            return Err(faults.into_errors());
        };
        let (span, fleet) = match document.get_mut().remove(FLEET) {
            None => (0..0, DeTable::new()),
            Some(fleet) => (fleet.span(), table(fleet, &faults).unwrap_or_default()),
        };
        let mut fields = node.into_inner();
        for (field, value) in fleet {
            let name = field.get_ref();
            if common.shared.contains(&name.as_ref()) {
                fields.insert(field, value);
            } else if !common.own.contains(&name.as_ref()) {
                let mut known = [common.shared, common.own].concat();
                known.sort_unstable();
                let message = format!("expected one of {}", known.join(", "));
                faults.add(&field.span(), format!("{FLEET}: {name}"), message);
            }
        }
        let name = Spanned::new(span.clone(), DeString::from(NODE));
        let node = Spanned::new(span, DeValue::Table(fields));
        document.get_mut().insert(name, node);
        Self::of_document(&document, faults).map_err(|mut errors| {
            for error in &mut errors.0 {
                let rest = error.place.strip_prefix(NODE);
                if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with(':')) {
                    error.place = format!("{FLEET}{rest}");
                }
            }
            errors
        })
    }
}

/// Returns the fields of `[fleet]`; reports a fault if it is not a table.
fn table<'t>(fleet: Spanned<DeValue<'t>>, faults: &Faults<'_>) -> Option<DeTable<'t>> {
    let span = fleet.span();
    match fleet.into_inner() {
        DeValue::Table(table) => Some(table),
        other => {
            let message = format!("expected one section [fleet], got {}", described(&other));
            faults.add(&span, FLEET, message);
            None
        }
    }
}

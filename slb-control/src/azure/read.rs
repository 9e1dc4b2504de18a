//! Conversion of load balancers into the model: ids become names, and the inventory supplies data
//! that the JSON lacks.

mod frontends;
mod nat;
mod pools;
mod references;
mod rules;
mod security;

use std::collections::HashMap;

use self::references::{balancer_of, check_references, wrong_type};
pub(super) use self::references::{last_of, machine_of};
use super::inventory::Inventory;
use super::json::{Node, Notes, Object};
use super::model::Model;
use super::resources::{Balancer, Found, Kind};

/// The maximum number of backends in a pool of a Basic load balancer, by Azure's limit.
const MOST_OF_BASIC: usize = 300;

pub(super) fn read(found: &Found, inventory: &Inventory, notes: &Notes) -> Model {
    let names = Names::of(found);
    let mut model = Model::default();
    check_references(found, notes);
    for balancer in &found.balancers {
        let mut reader = Reader {
            balancer,
            found,
            inventory,
            notes,
            names: &names,
            prefixes: HashMap::new(),
            is_public: HashMap::new(),
            model: &mut model,
        };
        // Items that others refer to come first.
        for kind in [
            Kind::Frontend,
            Kind::Pool,
            Kind::Probe,
            Kind::Rule,
            Kind::NatRule,
            Kind::NatPool,
            Kind::Outbound,
        ] {
            let parts = balancer.parts.iter().filter(|(own, _)| *own == kind);
            for (_, node) in parts {
                reader.part(kind, node);
            }
        }
    }
    security::read(found, inventory, notes, &mut model);
    model
}

/// The number of uses of each name: a name in several load balancers is prefixed with the load
/// balancer's name.
struct Names(HashMap<(Kind, String), usize>);

impl Names {
    fn of(found: &Found) -> Self {
        let mut counts = HashMap::new();
        let parts = found.balancers.iter().flat_map(|balancer| &balancer.parts);
        for (kind, node) in parts {
            let name = node.get("name").and_then(Node::as_str).unwrap_or_default();
            *counts.entry((*kind, name.to_lowercase())).or_insert(0) += 1;
        }
        Self(counts)
    }

    fn of_part(&self, balancer: &Balancer, kind: Kind, name: &str) -> String {
        let count = self.0.get(&(kind, name.to_lowercase()));
        if count.is_some_and(|&count| count > 1) && !balancer.name.is_empty() {
            format!("{}/{name}", balancer.name)
        } else {
            name.to_owned()
        }
    }
}

struct Reader<'r> {
    balancer: &'r Balancer,
    found: &'r Found,
    inventory: &'r Inventory,
    notes: &'r Notes,
    names: &'r Names,
    /// The frontends that each prefix was converted to.
    prefixes: HashMap<String, Vec<String>>,
    /// Frontends by name: true if the frontend is public.
    is_public: HashMap<String, bool>,
    model: &'r mut Model,
}

impl<'r> Reader<'r> {
    fn part(&mut self, kind: Kind, node: &'r Node) {
        match kind {
            Kind::Frontend => self.frontend(node),
            Kind::Pool => self.pool(node),
            Kind::Probe => self.probe(node),
            Kind::Rule => self.rule(node),
            Kind::NatRule => self.nat_rule(node),
            Kind::NatPool => self.nat_pool(node),
            Kind::Outbound => self.outbound(node),
        }
    }

    /// Returns the name of the item that a reference refers to.
    fn refer(&self, object: &Object<'_>, name: &'static str, kind: Kind) -> Option<String> {
        let (at, id) = object.reference(name)?;
        self.part_of_id(object, at, name, kind, id)
    }

    /// Returns the name of the part of this load balancer that an id refers to.
    fn part_of_id(
        &self,
        object: &Object<'_>,
        at: &Node,
        name: &str,
        kind: Kind,
        id: &str,
    ) -> Option<String> {
        if let Some(message) = wrong_type(id, kind.list()) {
            object.error(at, name, message);
            return None;
        }
        let (own, balancer) = (last_of(id), &self.balancer.name);
        if let Some(other) = balancer_of(id)
            && !balancer.is_empty()
            && !other.eq_ignore_ascii_case(balancer)
        {
            let message =
                format!("expected a {kind} of load balancer {balancer:?}, got one of {other:?}");
            object.error(at, name, message);
            return None;
        }
        if self.balancer.is_declared && !self.balancer.has(kind, own) {
            object.error(
                at,
                name,
                format!("load balancer {balancer:?} has no {kind} {own:?}"),
            );
            return None;
        }
        Some(self.names.of_part(self.balancer, kind, own))
    }

    fn require(&self, object: &Object<'_>, name: &'static str, kind: Kind) -> Option<String> {
        if object.get(name).is_none() {
            object.error(object.node, name, "is missing");
        }
        self.refer(object, name, kind)
    }
}

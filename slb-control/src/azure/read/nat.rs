//! Inbound NAT rules and pools.

use super::Reader;
use super::references::last_of;
use super::rules::{protocol_of, terms_of};
use crate::azure::json::{Node, Object};
use crate::azure::model::{Backend, Nat, Pool, Target};
use crate::azure::resources::{Configuration, Interface, Kind};

impl<'r> Reader<'r> {
    pub(super) fn nat_rule(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "inbound NAT rule", self.notes);
        let name = self.names.of_part(self.balancer, Kind::NatRule, &own);
        let frontend = self.require(&object, "frontendIPConfiguration", Kind::Frontend);
        let protocol = protocol_of(&object, false);
        let backend_port = object.required_number("backendPort", 1..=65_535);
        let terms = terms_of(&object);
        let first = object.number("frontendPortRangeStart", 1..=65_535);
        let last = object.number("frontendPortRangeEnd", 1..=65_535);
        let of_pool = self.refer(&object, "backendAddressPool", Kind::Pool);
        if of_pool.is_some() {
            let all = [
                ("frontendPortRangeStart", first),
                ("frontendPortRangeEnd", last),
            ];
            for (name, _) in all.iter().filter(|(_, port)| port.is_none()) {
                object.error(
                    node,
                    name,
                    "is missing: instances of a pool have a port each",
                );
            }
        }
        let configuration = object.reference("backendIPConfiguration");
        let leads_to = |i: &&Interface| i.nat_rules.iter().any(|id| self.is_own(id, &own));
        let interface = self.found.interfaces.iter().find(leads_to);
        let id = configuration.or_else(|| Some((node, interface?.id.as_str())));
        let found = match (of_pool, first.zip(last), id) {
            (Some(pool), Some((first, last)), _) => {
                object.ignore(&["frontendPort"]);
                Some((pool, Target::Pool { first, last }))
            }
            (_, _, Some((at, id))) => {
                let port = object.required_number("frontendPort", 1..=65_535);
                let found = self.nat_backend(&object, at, id, &name);
                found
                    .zip(port)
                    .map(|((pool, backend), port)| (pool, Target::Backend { port, backend }))
            }
            (_, _, None) => {
                object.ignore(&["frontendPort"]);
                object.warning(
                    node,
                    "backendIPConfiguration",
                    "is missing: without it the rule has no effect, and is left out",
                );
                None
            }
        };
        object.finish();
        if let (Some(frontend), Some((pool, target)), Some(protocol), Some(backend_port)) =
            (frontend, found, protocol, backend_port)
        {
            self.model.nat.push(Nat {
                origin: node.origin(),
                name,
                frontend,
                pool,
                target,
                protocol,
                backend_port,
                terms,
            });
        }
    }

    /// Returns the pool and the name of the backend that an id refers to. A backend that is in no
    /// pool gets a pool of its own.
    fn nat_backend(
        &mut self,
        object: &Object<'_>,
        at: &Node,
        id: &str,
        name: &str,
    ) -> Option<(String, String)> {
        let backend = self.backend_by_id(object, at, id)?;
        for pool in &self.model.pools {
            let is_same = |own: &&Backend| {
                let same_id = own
                    .id
                    .as_deref()
                    .is_some_and(|own| own.eq_ignore_ascii_case(id));
                same_id || own.address == backend.address
            };
            if let Some(known) = pool.backends.iter().find(is_same) {
                return Some((pool.name.clone(), known.name.clone()));
            }
        }
        let (pool, found) = (format!("of {name}"), backend.name.clone());
        let subnet = backend.seat.subnet.clone();
        let networks: Vec<&str> = subnet.as_deref().into_iter().collect();
        self.model.pools.push(Pool {
            origin: object.node.origin(),
            name: pool.clone(),
            vni: self.vni(object, &networks),
            subnet: subnet.clone(),
            network: None,
            lists: Vec::new(),
            backends: vec![backend],
        });
        Some((pool, found))
    }

    pub(super) fn nat_pool(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "inbound NAT pool", self.notes);
        let frontend = self.require(&object, "frontendIPConfiguration", Kind::Frontend);
        let protocol = protocol_of(&object, false);
        let backend_port = object.required_number("backendPort", 1..=65_535);
        let terms = terms_of(&object);
        let first = object.required_number("frontendPortRangeStart", 1..=65_535);
        let last = object.required_number("frontendPortRangeEnd", 1..=65_535);
        let pools = self
            .balancer
            .parts
            .iter()
            .filter(|(kind, _)| *kind == Kind::Pool);
        let mut pools = pools.filter_map(|(_, node)| node.get("name")?.as_str());
        let only = pools.next().filter(|_| pools.next().is_none());
        let configurations = self
            .found
            .scale_sets
            .iter()
            .flat_map(|set| &set.configurations);
        let has_it = |c: &&Configuration| c.nat_pools.iter().any(|id| self.is_own(id, &own));
        let of_set = configurations.filter(has_it).flat_map(|c| c.pools.first());
        let mut of_set: Vec<&str> = of_set.map(|id| last_of(id)).collect();
        of_set.dedup_by(|left, right| left.eq_ignore_ascii_case(right));
        if let [_, _, ..] = of_set.as_slice() {
            let message = format!(
                "expected instances of one pool, got those of {}",
                of_set.join(" and ")
            );
            object.error(node, "pool", message);
        }
        let pool = self
            .inventory
            .nat_pool(&own)
            .or(of_set.first().copied())
            .or(only);
        if pool.is_none() {
            let message = format!(
                "the JSON does not say whose instances have its ports, so the inventory has to: \
                 [[nat_pool]] with id = {own:?} and pool"
            );
            object.error(node, "pool", message);
        }
        object.finish();
        if let (
            Some(frontend),
            Some(pool),
            Some(protocol),
            Some(backend_port),
            Some((first, last)),
        ) = (frontend, pool, protocol, backend_port, first.zip(last))
        {
            self.model.nat.push(Nat {
                origin: node.origin(),
                name: self.names.of_part(self.balancer, Kind::NatPool, &own),
                frontend,
                pool: self.names.of_part(self.balancer, Kind::Pool, pool),
                target: Target::Pool { first, last },
                protocol,
                backend_port,
                terms,
            });
        }
    }
}

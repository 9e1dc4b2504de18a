//! Frontend IP configurations, and the public addresses and prefixes that they refer to.

use super::Reader;
use super::references::{last_of, wrong_type};
use crate::azure::inventory::PublicAddress;
use crate::azure::json::{Node, Object};
use crate::azure::model::Frontend;
use crate::azure::resources::Kind;
use crate::azure::zones::zones_of;

impl<'r> Reader<'r> {
    pub(super) fn frontend(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "frontend", self.notes);
        let name = self.names.of_part(self.balancer, Kind::Frontend, &own);
        object.ignore(&["privateIPAllocationMethod"]);
        let is_inside = object.get("subnet").is_some();
        object.ignore(&[
            "inboundNatRules",
            "inboundNatPools",
            "outboundRules",
            "loadBalancingRules",
        ]);
        let why = "chains through a Gateway load balancer are not supported";
        object.refuse("gatewayLoadBalancer", why);
        let private = object.address("privateIPAddress");
        let version = object.choice(
            "privateIPAddressVersion",
            &[("IPv4", false), ("IPv6", true)],
        );
        let public = self.public_address(&object);
        let is_public = public.is_some() || (private.is_none() && !is_inside);
        let mut zones = zones_of(&object);
        if zones.is_empty() {
            // A public address has zones of its own.
            zones = self.zones_of_public(&object);
        }
        let address = match (private, public) {
            (Some(first), _) => Some(PublicAddress { first, count: 1 }),
            (None, Some(public)) => public,
            // Reported already.
            (None, None) if object.get("privateIPAddress").is_some() => None,
            (None, None) => {
                let message = "expected privateIPAddress or publicIPAddress; where the address is \
                               given by Azure, the inventory says it: [[public_ip]] with this name as id";
                let given = self.inventory.public(&own);
                if given.is_none() {
                    object.error(node, "address", message);
                }
                given
            }
        };
        if let (Some((at, is_ipv6)), Some(address)) = (version, address)
            && is_ipv6 != address.first.is_ipv6()
        {
            let message = format!("is not the version of {}", address.first);
            object.error(at, "privateIPAddressVersion", message);
        }
        let subnet = object.get("subnet").and_then(|node| node.get("id"));
        let subnet = subnet.and_then(Node::as_str).map(str::to_owned);
        object.finish();
        self.is_public.insert(name.to_lowercase(), is_public);
        let Some(address) = address else { return };
        let mut all = Vec::new();
        for (place, address_of) in address.addresses().enumerate() {
            let name = match address.count {
                1 => name.clone(),
                _ => format!("{name}/{place}"),
            };
            all.push(name.clone());
            self.model.frontends.push(Frontend {
                origin: node.origin(),
                name,
                address: address_of,
                zones: zones.clone(),
                subnet: subnet.clone().filter(|_| !is_public),
                network: None,
            });
        }
        self.prefixes.insert(name, all);
    }

    /// Returns the zones of the public address or prefix that a frontend refers to.
    fn zones_of_public(&self, object: &Object<'_>) -> Vec<String> {
        let nodes = ["publicIPAddress", "publicIPPrefix"].map(|name| object.get(name));
        let nodes = nodes.into_iter().flatten();
        let zones = nodes.map(|node| {
            let inner = Object::new(node, object.place.clone(), self.notes);
            let zones = zones_of(&inner);
            let id = node.get("id").and_then(Node::as_str);
            match id {
                Some(id) if zones.is_empty() => self.found.zones.of_address(last_of(id)).to_vec(),
                _ => zones,
            }
        });
        zones.flatten().collect()
    }

    /// Resolves `publicIPAddress` or `publicIPPrefix`: inline, as another resource, or in the
    /// inventory. The inner option is `None` if it is in none of them.
    fn public_address(&self, object: &Object<'_>) -> Option<Option<PublicAddress>> {
        object.ignore(&["publicIPAddress", "publicIPPrefix"]);
        for name in ["publicIPAddress", "publicIPPrefix"] {
            let Some(node) = object.get(name) else {
                continue;
            };
            let inner = Object::new(node, object.place.clone(), self.notes);
            if let Some(first) = inner.address("ipAddress") {
                return Some(Some(PublicAddress { first, count: 1 }));
            }
            let Some((at, id)) = object.reference(name) else {
                return Some(None); // reported already
            };
            let kind = match name {
                "publicIPAddress" => "publicIPAddresses",
                _ => "publicIPPrefixes",
            };
            if let Some(message) = wrong_type(id, kind) {
                object.error(at, name, message);
                return Some(None);
            }
            let last = last_of(id);
            let addresses = &self.found.addresses;
            let beside = addresses
                .iter()
                .find(|(own, _)| own.eq_ignore_ascii_case(last));
            let beside = beside.map(|&(_, address)| address);
            let known = self.inventory.public(id).or(beside);
            if known.is_none() {
                let message = format!(
                    "the JSON does not say its address, so the inventory has to: [[public_ip]] with \
                     id = {last:?} and address"
                );
                object.error(at, name, message);
            }
            return Some(known);
        }
        None
    }
}

//! Network interfaces of vms and scale sets: which pools and NAT rules have them, and where they are.

use std::net::IpAddr;

use super::Found;
use crate::azure::json::{Node, Notes, Object, Value};
use crate::azure::zones::zones_of;

/// An IP configuration of a vm's network interface.
#[derive(Debug)]
pub(in crate::azure) struct Interface {
    /// Both names, as at the end of the id.
    pub(in crate::azure) id: String,
    pub(in crate::azure) node: Node,
    pub(in crate::azure) address: Option<IpAddr>,
    /// True if its network interface has no other IP configuration.
    pub(in crate::azure) is_only: bool,
    /// The ids of its pools, and of the NAT rules that lead to it.
    pub(in crate::azure) pools: Vec<String>,
    pub(in crate::azure) nat_rules: Vec<String>,
    pub(in crate::azure) seat: Seat,
}

/// The subnet of an IP configuration, and the network security group of its network interface.
#[derive(Clone, Debug, Default)]
pub(in crate::azure) struct Seat {
    /// The id of a subnet, or of a virtual network; `None` if the files do not say it.
    pub(in crate::azure) subnet: Option<String>,
    pub(in crate::azure) group: Option<(Node, String)>,
    /// The end of the network interface's id, if a pool has only its address.
    pub(in crate::azure) interface: Option<String>,
}

impl Seat {
    /// Reads an IP configuration whose network interface has an id that ends like this.
    fn of_interface(id: String, interface: &Object<'_>, configuration: &Object<'_>) -> Self {
        Self {
            interface: Some(id),
            ..Self::read(interface, configuration)
        }
    }

    /// Reads an IP configuration, and its network interface.
    fn read(interface: &Object<'_>, configuration: &Object<'_>) -> Self {
        let id = |node: &Node| node.get("id").and_then(Node::as_str).map(str::to_owned);
        let group = interface.reference("networkSecurityGroup");
        Self {
            subnet: configuration.get("subnet").and_then(id),
            group: group.map(|(node, id)| (node.clone(), id.to_owned())),
            interface: None,
        }
    }
}

/// A scale set with some instances' addresses in pools.
#[derive(Debug)]
pub(in crate::azure) struct ScaleSet {
    pub(in crate::azure) name: String,
    pub(in crate::azure) node: Node,
    /// The number of instances; `None` if it was refused.
    pub(in crate::azure) capacity: Option<u32>,
    pub(in crate::azure) configurations: Vec<Configuration>,
    pub(in crate::azure) zones: Vec<String>,
}

impl ScaleSet {
    /// The zone of all instances; `None` where they have none, or are spread over several.
    pub(in crate::azure) fn zone(&self) -> Option<&str> {
        match self.zones.as_slice() {
            [zone] => Some(zone),
            _ => None,
        }
    }
}

/// The ids that an IP configuration refers to.
#[derive(Debug)]
pub(in crate::azure) struct Configuration {
    pub(in crate::azure) pools: Vec<String>,
    pub(in crate::azure) nat_rules: Vec<String>,
    pub(in crate::azure) nat_pools: Vec<String>,
    pub(in crate::azure) seat: Seat,
}

impl Configuration {
    fn read(interface: &Object<'_>, own: &Object<'_>) -> Self {
        let ids = |list| {
            let references = own.references(list).into_iter();
            references.map(|(_, id)| id.to_owned()).collect()
        };
        Self {
            pools: ids("loadBalancerBackendAddressPools"),
            nat_rules: ids("loadBalancerInboundNatRules"),
            nat_pools: ids("loadBalancerInboundNatPools"),
            seat: Seat::read(interface, own),
        }
    }

    /// Returns true if a load balancer leads to an IP configuration.
    fn is_of_use(own: &Object<'_>) -> bool {
        let lists = [
            "loadBalancerBackendAddressPools",
            "loadBalancerInboundNatRules",
            "loadBalancerInboundNatPools",
        ];
        lists.iter().any(|list| {
            let list = own.get(list);
            list.is_some_and(|list| !matches!(&list.value, Value::Array(all) if all.is_empty()))
        })
    }
}

impl Found {
    pub(super) fn take_interface(&mut self, node: &Node, notes: &Notes) {
        let (object, name) = Object::named(node, "network interface", notes);
        if name.is_empty() {
            return; // reported already
        }
        let list = object.list("ipConfigurations");
        for node in list {
            let (own, inner) = Object::named(node, "IP configuration", notes);
            let machine = format!("networkInterfaces/{name}");
            if !Configuration::is_of_use(&own) {
                let address = own.get("privateIPAddress").and_then(Node::as_str);
                let address = address.and_then(|address| address.parse().ok());
                let seat =
                    address.map(|address| (address, Seat::of_interface(machine, &object, &own)));
                self.seats.extend(seat);
                continue;
            }
            let configuration = Configuration::read(&object, &own);
            let address = own.address("privateIPAddress");
            self.interfaces.push(Interface {
                id: format!("{machine}/ipConfigurations/{inner}"),
                node: node.clone(),
                address,
                is_only: list.len() == 1,
                pools: configuration.pools,
                nat_rules: configuration.nat_rules,
                seat: configuration.seat,
            });
        }
    }

    /// Reads a vm that is created with its network interfaces, or whose zone is known; returns false
    /// for any other.
    pub(super) fn take_machine(&mut self, node: &Node, notes: &Notes) -> bool {
        let (object, machine) = Object::named(node, "vm", notes);
        if machine.is_empty() {
            return true; // reported already
        }
        let mut is_one = self.zones.take_machine(&object, &machine);
        for node in object.list("networkInterfaceConfigurations") {
            is_one = true;
            let interface = Object::new(node, object.place.clone(), notes);
            let list = interface.list("ipConfigurations");
            for node in list {
                let (own, inner) = Object::named(node, "IP configuration", notes);
                let configuration = Configuration::read(&interface, &own);
                self.interfaces.push(Interface {
                    id: format!("virtualMachines/{machine}/ipConfigurations/{inner}"),
                    node: node.clone(),
                    address: None,
                    is_only: list.len() == 1,
                    pools: configuration.pools,
                    nat_rules: configuration.nat_rules,
                    seat: configuration.seat,
                });
            }
        }
        is_one
    }

    pub(super) fn take_scale_set(&mut self, node: &Node, notes: &Notes) {
        let (object, name) = Object::named(node, "scale set", notes);
        if name.is_empty() {
            return; // reported already
        }
        let mut configurations = Vec::new();
        for node in object.list("networkInterfaceConfigurations") {
            let interface = Object::new(node, object.place.clone(), notes);
            for node in interface.list("ipConfigurations") {
                let own = Object::new(node, object.place.clone(), notes);
                if Configuration::is_of_use(&own) {
                    configurations.push(Configuration::read(&interface, &own));
                }
            }
        }
        if configurations.is_empty() {
            return;
        }
        let sku = object.get("sku");
        let capacity = sku.and_then(|sku| {
            let sku = Object::new(sku, object.place.clone(), notes);
            sku.number("capacity", 0..=1000)
        });
        let says_none = sku.is_none_or(|sku| sku.get("capacity").is_none());
        if says_none {
            object.error(
                node,
                "sku: capacity",
                "is missing: how many instances there are",
            );
        }
        self.scale_sets.push(ScaleSet {
            name,
            node: node.clone(),
            capacity,
            configurations,
            zones: zones_of(&object),
        });
    }
}

//! Networks and access lists of backends: virtual networks, network security groups, and what they are associated
//! with.

mod groups;

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use slb_core::spec::Prefix;

use super::references::last_of;
use crate::azure::inventory::Inventory;
use crate::azure::json::{Node, Notes, Object};
use crate::azure::model::{Model, Network, Pool, Vm};
use crate::azure::networks::{Group, properties_of};
use crate::azure::resources::{Found, Seat};
use crate::config::addresses::{prefix_or_address, range};

const NO_PEERINGS: &str =
    "peerings are not supported: the addresses of the other network would be inside";

/// The fields of a backend that say which vm it is.
const OF_VM: [&str; 4] = ["host", "mac", "next_hop", "port"];

/// Reads the networks of the backends and their access lists, into a model of load balancers.
pub(super) fn read(found: &Found, inventory: &Inventory, notes: &Notes, model: &mut Model) {
    let mut reader = Reader {
        found,
        inventory,
        notes,
        networks: Vec::new(),
        groups: Vec::new(),
        missing: RefCell::default(),
    };
    let mut pools = std::mem::take(&mut model.pools);
    let mut vms: Vec<Vm> = Vec::new();
    for pool in &mut pools {
        reader.pool(pool, &mut vms);
    }
    model.pools = pools;
    for frontend in &mut model.frontends {
        let known = frontend.subnet.as_deref().and_then(network_of);
        let known = known.and_then(|name| reader.network_named(name));
        let own = known.filter(|network| reader.is_imported(network));
        frontend.network = own.map(|network| network.name.clone());
    }
    model.vms = vms;
    let used: Vec<&Group> = reader.networks.clone();
    model.networks = used
        .iter()
        .filter_map(|group| reader.network(group))
        .collect();
    let lists = reader.groups.clone();
    let lists = lists.iter().filter(|_| !inventory.is_proxy());
    let lists = lists.filter_map(|group| reader.list(group));
    model.lists = lists.collect();
    reader.peerings();
    reader.leftovers();
}

struct Reader<'r> {
    found: &'r Found,
    inventory: &'r Inventory,
    notes: &'r Notes,
    /// The virtual networks that become networks of the configuration.
    networks: Vec<&'r Group>,
    /// The network security groups that a backend has.
    groups: Vec<&'r Group>,
    /// Names of groups that were reported as missing.
    missing: RefCell<HashSet<String>>,
}

impl<'r> Reader<'r> {
    /// Reads the network of a pool and the access lists of its backends.
    fn pool(&mut self, pool: &mut Pool, vms: &mut Vec<Vm>) {
        let mut lists: Vec<Vec<String>> = Vec::new();
        let mut own: Option<&'r Group> = None;
        for backend in &pool.backends {
            let subnet = backend.seat.subnet.as_deref().or(pool.subnet.as_deref());
            let network = self.network_at(subnet, backend.address);
            let other = network
                .zip(own)
                .filter(|(one, own)| !std::ptr::eq(*one, *own));
            if let Some((place, (one, own))) = other.and_then(|of| Some((of.0.place()?, of))) {
                let message = format!(
                    "pool {:?} has backends in virtual networks {:?} and {:?}: expected one",
                    pool.name, own.name, one.name
                );
                self.notes.error(place, "virtual network", message);
            }
            own = own.or(network);
            let mut groups = Vec::new();
            if let Some(network) = network {
                let subnet = self.subnet_at(network, subnet, backend.address);
                groups.extend(subnet.and_then(|subnet| self.group_of_subnet(network, subnet)));
            }
            let seat = match backend.id {
                Some(_) => &backend.seat,
                None => self
                    .seat_at(network, backend.address)
                    .unwrap_or(&backend.seat),
            };
            let by_interface = match &seat.group {
                Some((at, id)) => self.group_by_id(at, id),
                None => {
                    let id = backend.id.as_deref().or(seat.interface.as_deref());
                    id.and_then(|id| self.group_that_names(id))
                }
            };
            groups.extend(by_interface);
            groups.dedup_by_key(|group| group.name.to_lowercase());
            lists.push(groups.iter().map(|group| group.name.clone()).collect());
            for group in groups {
                if !self.groups.iter().any(|known| std::ptr::eq(*known, group)) {
                    self.groups.push(group);
                }
            }
        }
        if self.inventory.is_proxy() {
            return;
        }
        let has_lists = lists.iter().any(|lists| !lists.is_empty());
        let Some(network) = own else {
            // Without a network, the addresses of the network are those of [node]'s `inside`.
            pool.lists = match lists.first() {
                Some(first) if lists.iter().all(|lists| lists == first) => first.clone(),
                _ => return self.tell_apart(pool, has_lists),
            };
            return;
        };
        if !has_lists && !self.has_own_vni(network) {
            return;
        }
        if let Some(place) = network.place().filter(|_| self.vni(network) != pool.vni) {
            let message = format!(
                "pool {:?} has another VXLAN network: expected [[network]] with id = {:?} and vni in the inventory",
                pool.name, network.name
            );
            self.notes.error(
                place,
                &format!("virtual network {:?}", network.name),
                message,
            );
            return;
        }
        if !self
            .networks
            .iter()
            .any(|known| std::ptr::eq(*known, network))
        {
            self.networks.push(network);
        }
        pool.network = Some(network.name.clone());
        if lists.iter().all(|own| Some(own) == lists.first()) {
            pool.lists = lists.into_iter().next().unwrap_or_default();
            return;
        }
        for (backend, lists) in pool.backends.iter().zip(lists) {
            let is_known = |vm: &Vm| vm.address == backend.address && vm.network == network.name;
            if lists.is_empty() || vms.iter().any(is_known) {
                continue;
            }
            let fields = backend.fields.iter();
            let fields = fields.filter(|(name, _)| OF_VM.contains(&name.as_str()));
            let is_taken = |name: &String| {
                let mut others = vms.iter().filter(|vm| vm.network == network.name);
                others.any(|vm| vm.name == *name)
            };
            let numbered = (2..).map(|number| format!("{}-{number}", backend.name));
            let mut names = std::iter::once(backend.name.clone()).chain(numbered);
            let name = names.find(|name| !is_taken(name)).unwrap_or_default();
            vms.push(Vm {
                origin: backend.origin.clone(),
                name,
                network: network.name.clone(),
                address: backend.address,
                fields: fields.map(|(k, v)| (k.clone(), v.clone())).collect(),
                lists,
            });
        }
    }

    /// Reports a pool whose backends have different access lists, in no virtual network of the files.
    fn tell_apart(&self, pool: &Pool, has_lists: bool) {
        let node = self.groups.last().and_then(|group| group.place());
        if let (Some(node), true) = (node, has_lists) {
            let message = format!(
                "only some backends of pool {:?} have it: expected their virtual network among the files",
                pool.name
            );
            self.notes.error(node, "network security group", message);
        }
    }

    fn network_named(&self, name: &str) -> Option<&'r Group> {
        let mut networks = self.found.networks.networks.iter();
        networks.find(|own| own.name.eq_ignore_ascii_case(name))
    }

    fn is_imported(&self, network: &Group) -> bool {
        self.networks
            .iter()
            .any(|known| std::ptr::eq(*known, network))
    }

    /// Returns the virtual network of an address: the one that an id names, or else the only one with a subnet for it.
    fn network_at(&self, id: Option<&str>, address: IpAddr) -> Option<&'r Group> {
        if let Some(name) = id.and_then(network_of) {
            return self.network_named(name);
        }
        let networks = self.found.networks.networks.iter();
        let mut networks =
            networks.filter(|network| network.members.iter().any(|subnet| has(subnet, address)));
        let network = networks.next()?;
        networks.next().is_none().then_some(network)
    }

    /// Returns the place of the network interface with an address, for a pool that has only the address.
    fn seat_at(&self, network: Option<&Group>, address: IpAddr) -> Option<&'r Seat> {
        let is_here = |seat: &Seat| {
            let named = seat.subnet.as_deref().and_then(network_of);
            let names = named.zip(network);
            names.is_none_or(|(named, network)| network.name.eq_ignore_ascii_case(named))
        };
        let pooled = self.found.interfaces.iter();
        let pooled = pooled.filter_map(|own| Some((own.address?, &own.seat)));
        let others = self.found.seats.iter().map(|(own, seat)| (*own, seat));
        let mut seats = pooled.chain(others);
        let found = seats.find(|(own, seat)| *own == address && is_here(seat));
        found.map(|(_, seat)| seat)
    }

    /// Returns the subnet of an address. A subnet that the network does not have is an error.
    fn subnet_at(&self, network: &'r Group, id: Option<&str>, address: IpAddr) -> Option<&'r Node> {
        let id = id.filter(|id| id.to_ascii_lowercase().contains("/subnets/"));
        let Some(name) = id.map(last_of) else {
            return network.members.iter().find(|subnet| has(subnet, address));
        };
        let subnet = network.member(name);
        let mut missing = self.missing.borrow_mut();
        if let (None, Some(at)) = (subnet, network.place())
            && missing.insert(format!("{}/{name}", network.name).to_lowercase())
        {
            let place = format!("virtual network {:?}", network.name);
            let message = format!(
                "subnet {name:?} of {address} is not among the files given, and may have an access list"
            );
            self.notes.error(at, &place, message);
        }
        subnet
    }

    fn group_of_subnet(&self, network: &'r Group, subnet: &'r Node) -> Option<&'r Group> {
        let place = format!("virtual network {:?}: subnet", network.name);
        let object = Object::new(subnet, place, self.notes);
        if let Some((at, id)) = object.reference("networkSecurityGroup") {
            return self.group_by_id(at, id);
        }
        let name = subnet.get("name").and_then(Node::as_str)?;
        self.group_that_names(&format!("virtualNetworks/{}/subnets/{name}", network.name))
    }

    fn group_by_id(&self, at: &Node, id: &str) -> Option<&'r Group> {
        let mut segments = id.rsplit('/');
        let name = segments.next().unwrap_or(id);
        if let Some(kind) = segments.next()
            && !kind.eq_ignore_ascii_case("networkSecurityGroups")
        {
            let message = format!("expected the id of a network security group, got {id:?}");
            self.notes.error(at, "networkSecurityGroup", message);
            return None;
        }
        let mut groups = self.found.networks.groups.iter();
        let group = groups.find(|own| own.name.eq_ignore_ascii_case(name) && own.node.is_some());
        let mut missing = self.missing.borrow_mut();
        if group.is_none() && missing.insert(name.to_lowercase()) {
            let message = format!(
                "network security group {name:?} is not among the files given, and backends would be open without it"
            );
            self.notes.error(at, "networkSecurityGroup", message);
        }
        group
    }

    /// Returns the group whose own lists name a subnet or a network interface, as Azure exports them.
    fn group_that_names(&self, id: &str) -> Option<&'r Group> {
        let id = id.to_lowercase();
        let machine = match id.find("/ipconfigurations/") {
            Some(at) => id.get(..at).unwrap_or(&id),
            None => &id,
        };
        let mut groups = self.found.networks.groups.iter();
        groups.find(|group| {
            let properties = group.node.as_ref().map(properties_of);
            let lists = ["subnets", "networkInterfaces"].into_iter();
            let lists = lists.filter_map(|list| properties?.get(list));
            let mut ids = lists.flat_map(Node::as_array).filter_map(|own| {
                let own = own.get("id").and_then(Node::as_str)?;
                Some(own.to_lowercase())
            });
            ids.any(|own| is_end_of(machine, &own) || is_end_of(&own, machine))
        })
    }

    fn has_own_vni(&self, network: &Group) -> bool {
        self.inventory.has_network(&path_of(network))
    }

    fn vni(&self, network: &Group) -> Option<u32> {
        self.inventory.vni(Some(&path_of(network)))
    }

    /// Converts a virtual network.
    fn network(&self, group: &Group) -> Option<Network> {
        let place = format!("virtual network {:?}", group.name);
        let Some(node) = &group.node else {
            let node = group.place()?;
            let message = "is not among the files given, and its address space is needed";
            self.notes.error(node, &place, message);
            return None;
        };
        self.once(group, &place);
        if let Some(message) = group.unnamed() {
            self.notes.error(node, "virtual network", message);
            return None;
        }
        let object = Object::new(node, place.clone(), self.notes);
        object.refuse("virtualNetworkPeerings", NO_PEERINGS);
        if let Some(node) = group.unresolved("subnets") {
            object.unlisted(node, "subnets");
        }
        let space = object.get("addressSpace");
        let prefixes = space.map(|space| {
            let space = object.inner(space, "addressSpace");
            let texts = space.texts("addressPrefixes").into_iter();
            texts.map(|(_, text)| text.to_owned()).collect()
        });
        let address_spaces: Vec<String> = prefixes.unwrap_or_default();
        if address_spaces.is_empty() {
            object.error(node, "addressSpace", "expected addressPrefixes, got none");
        }
        let gateways = group.members.iter().flat_map(|subnet| {
            let prefixes = prefixes_of(subnet).into_iter();
            prefixes.filter_map(gateway)
        });
        Some(Network {
            origin: node.origin(),
            name: group.name.clone(),
            vni: self.vni(group)?,
            address_spaces,
            gateways: gateways.map(|address| address.to_string()).collect(),
        })
    }

    /// Reports peerings that are resources of their own, or properties of other virtual networks, if a network is
    /// converted.
    fn peerings(&self) {
        if self.networks.is_empty() {
            return;
        }
        let others = self.found.networks.networks.iter();
        let others = others.filter(|group| !self.is_imported(group));
        let lists = others
            .filter_map(|group| properties_of(group.node.as_ref()?).get("virtualNetworkPeerings"));
        let lists = lists.flat_map(Node::as_array);
        for peering in self.found.networks.peerings.iter().chain(lists) {
            let name = peering
                .get("name")
                .and_then(Node::as_str)
                .unwrap_or_default();
            self.notes
                .error(peering, &format!("peering {name:?}"), NO_PEERINGS);
        }
    }

    /// Reports a resource or a part of one that is declared twice.
    fn once(&self, group: &Group, place: &str) {
        if let Some(again) = &group.again {
            let name = again.get("name").and_then(Node::as_str).unwrap_or_default();
            let message = format!("{name:?} is declared twice");
            self.notes.error(again, place, message);
        }
    }

    /// Warns about what no backend has.
    fn leftovers(&self) {
        let networks = &self.found.networks;
        let is_used = |used: &[&Group], own: &Group| used.iter().any(|one| std::ptr::eq(*one, own));
        for group in &networks.networks {
            let Some(node) = group.place().filter(|_| !is_used(&self.networks, group)) else {
                continue;
            };
            let message = "a Microsoft.Network/virtualNetworks is no part of a load balancer, and left out; with a \
                           [[network]] in the inventory, those of backends become a [[network]]";
            self.notes
                .warning(node.get("type").unwrap_or(node), "resource", message);
        }
        for group in &networks.groups {
            let Some(node) = group.place() else { continue };
            let message = match is_used(&self.groups, group) {
                true if self.inventory.is_proxy() => {
                    "is left out: a proxy enforces no access lists"
                }
                true => continue,
                false => "no backend has it, so it is left out",
            };
            let place = format!("network security group {:?}", group.name);
            self.notes.warning(node, &place, message);
        }
    }
}

/// Returns true if the last segments of an id are those of another.
fn is_end_of(tail: &str, id: &str) -> bool {
    let (tail, id) = (tail.trim_start_matches('/'), id.trim_start_matches('/'));
    let before = id.strip_suffix(tail);
    before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
}

/// The end of a virtual network's id.
fn path_of(network: &Group) -> String {
    format!("virtualNetworks/{}", network.name)
}

/// Returns the name of the virtual network in an id of it or of one of its subnets.
fn network_of(id: &str) -> Option<&str> {
    let mut segments = id.split('/');
    segments.find(|segment| segment.eq_ignore_ascii_case("virtualNetworks"))?;
    segments.next()
}

/// Returns the prefixes of a subnet.
fn prefixes_of(subnet: &Node) -> Vec<Prefix> {
    let properties = subnet.get("properties").unwrap_or(subnet);
    let one = properties.get("addressPrefix").and_then(Node::as_str);
    let several = properties.get("addressPrefixes");
    let several = several.map_or(&[][..], Node::as_array).iter();
    let all = several.filter_map(Node::as_str).chain(one);
    let all = all.filter(|text| text.contains('/'));
    all.filter_map(prefix_or_address).collect()
}

fn has(subnet: &Node, address: IpAddr) -> bool {
    prefixes_of(subnet).into_iter().any(|prefix| {
        let [first, last] = range(prefix);
        first <= address && address <= last
    })
}

/// Returns the address of a subnet's router: Azure has the second address of each IPv4 subnet for it.
fn gateway(prefix: Prefix) -> Option<IpAddr> {
    let IpAddr::V4(first) = range(prefix)[0] else {
        return None;
    };
    let router = Ipv4Addr::from_bits(first.to_bits().checked_add(1)?);
    (prefix.len <= 30).then_some(IpAddr::V4(router))
}

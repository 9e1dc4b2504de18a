//! Backend pools: addresses, network interfaces and scale sets.

use std::cmp::Ordering;
use std::net::IpAddr;

use super::references::{last_of, machine_of};
use super::{MOST_OF_BASIC, Reader};
use crate::azure::inventory::Entry;
use crate::azure::json::{Node, Object};
use crate::azure::model::{Backend, Pool};
use crate::azure::resources::{Interface, Kind, ScaleSet, Seat, Sku};

/// The field of a backend with its zone.
const ZONE: &str = "zone";

impl<'r> Reader<'r> {
    pub(super) fn pool(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "pool", self.notes);
        let name = self.names.of_part(self.balancer, Kind::Pool, &own);
        object.ignore(&[
            "loadBalancingRules",
            "outboundRule",
            "outboundRules",
            "inboundNatRules",
        ]);
        object.ignore(&["syncMode"]);
        object.refuse(
            "tunnelInterfaces",
            "tunnels of a Gateway load balancer are not supported",
        );
        let drain = object.number("drainPeriodInSeconds", 0..=u32::MAX);
        if let (Some(at), Some(period @ 1..)) = (object.get("drainPeriodInSeconds"), drain) {
            let why = format!(
                "slb does not end the flows of a draining backend after {period} s: they last until they end by themselves"
            );
            object.warning(at, "drainPeriodInSeconds", why);
        }
        let mut networks: Vec<&str> = Vec::new();
        networks.extend(object.reference("virtualNetwork").map(|(_, id)| id));
        let mut backends: Vec<Backend> = Vec::new();
        for (at, id) in object.references("backendIPConfigurations") {
            let backend = self.backend_by_id(&object, at, id);
            self.add(&object, &mut backends, backend);
        }
        for element in object.list("loadBalancerBackendAddresses") {
            let backend = self.backend_address(element, &object.place, &mut networks);
            self.add(&object, &mut backends, backend);
        }
        let is_in = |interface: &&Interface| interface.pools.iter().any(|id| self.is_own(id, &own));
        for interface in self.found.interfaces.iter().filter(is_in) {
            let backend = self.backend_by_id(&object, &interface.node, &interface.id);
            self.add(&object, &mut backends, backend);
        }
        let before = backends.len();
        let zone = self.zone_of_instances(&own);
        let seat = self.seat_of_instances(&own, &object);
        for entry in self.inventory.of_pool([&own, &name]) {
            let mut backend = self.backend(&object.place, node, (None, None, None), Some(entry));
            if let (Some(backend), Some(zone)) = (&mut backend, zone) {
                backend.fields.entry(ZONE).or_insert_with(|| zone.into());
            }
            if let Some(backend) = &mut backend {
                backend.seat = seat.clone();
            }
            self.add(&object, &mut backends, backend);
        }
        // A backend that is listed twice counts once.
        self.instances(&object, &own, backends.len() - before);
        if self.balancer.sku == Sku::Basic && backends.len() > MOST_OF_BASIC {
            let message = format!(
                "a Basic load balancer has at most {MOST_OF_BASIC} backends, got {}",
                backends.len()
            );
            object.error(node, "backends", message);
        }
        let own: Vec<String> = backends
            .iter()
            .filter_map(|backend| backend.seat.subnet.clone())
            .collect();
        let mut known: Vec<&str> = networks;
        known.extend(own.iter().map(String::as_str));
        let vni = self.vni(&object, &known);
        object.finish();
        self.model.pools.push(Pool {
            origin: node.origin(),
            name,
            vni,
            subnet: known.first().map(|&id| id.to_owned()),
            network: None,
            lists: Vec::new(),
            backends,
        });
    }

    /// Adds a backend to a pool, once. Two network interfaces with one address are an error.
    fn add(&self, pool: &Object<'_>, all: &mut Vec<Backend>, backend: Option<Backend>) {
        let Some(mut backend) = backend else { return };
        let Some(known) = all.iter().find(|own| own.address == backend.address) else {
            backend.name = unlike(all, &backend.name);
            all.push(backend);
            return;
        };
        let machines = known.id.as_deref().zip(backend.id.as_deref());
        let machines = machines.map(|(one, other)| (machine_of(one), machine_of(other)));
        if let Some((one, other)) = machines.filter(|(one, other)| !one.eq_ignore_ascii_case(other))
        {
            let message = format!(
                "{one:?} and {other:?} have one address, {}",
                backend.address
            );
            pool.error(pool.node, "backends", message);
        }
    }

    /// Returns the scale sets that have instances in a pool.
    fn scale_sets(&self, pool: &str) -> Vec<&'r ScaleSet> {
        let is_in = |set: &&ScaleSet| {
            let mut ids = set.configurations.iter().flat_map(|c| &c.pools);
            ids.any(|id| self.is_own(id, pool))
        };
        self.found.scale_sets.iter().filter(is_in).collect()
    }

    /// Returns the zone that all instances of a pool's scale sets are in, if that is one.
    fn zone_of_instances(&self, pool: &str) -> Option<&'r str> {
        let sets = self.scale_sets(pool);
        let zone = sets.first()?.zone()?;
        let is_same = |set: &&ScaleSet| set.zone() == Some(zone);
        sets.iter().all(is_same).then_some(zone)
    }

    /// Returns the subnet and the network security group of a pool's instances, which have to have the same ones.
    fn seat_of_instances(&self, pool: &str, object: &Object<'_>) -> Seat {
        let sets = self.scale_sets(pool);
        let seats = sets.iter().flat_map(|set| {
            let configurations = set.configurations.iter();
            let own = configurations.filter(|own| own.pools.iter().any(|id| self.is_own(id, pool)));
            own.map(move |own| (*set, &own.seat))
        });
        let id = |seat: &Seat| {
            let group = seat.group.as_ref().map(|(_, id)| id.to_lowercase());
            (group, seat.subnet.as_deref().map(str::to_lowercase))
        };
        let mut seats = seats;
        let Some((_, first)) = seats.next() else {
            return Seat::default();
        };
        if let Some((set, _)) = seats.find(|(_, seat)| id(seat) != id(first)) {
            let message = format!(
                "scale sets with different subnets or network security groups have instances in pool {pool:?}, and the \
                 inventory does not tell which is of which: expected one of each"
            );
            object.error(&set.node, "backends", message);
        }
        first.clone()
    }

    /// Compares the number of scale sets' instances in a pool with the number in the inventory,
    /// which alone knows their addresses.
    fn instances(&self, object: &Object<'_>, pool: &str, listed: usize) {
        let sets = self.scale_sets(pool);
        let Some(&first) = sets.first() else { return };
        let Some(expected) = sets.iter().map(|set| set.capacity).sum::<Option<u32>>() else {
            return; // reported already
        };
        let names = sets.iter().map(|set| format!("{:?}", set.name));
        let names = names.collect::<Vec<_>>().join(" and ");
        let message = format!(
            "scale set {names} has {expected} instances in it, and the inventory lists {listed}: \
             [[backend]] with pool = {pool:?}, address and host for each"
        );
        match listed.cmp(&(expected as usize)) {
            Ordering::Less => object.error(&first.node, "backends", message),
            Ordering::Equal => {}
            Ordering::Greater => object.warning(&first.node, "backends", message),
        }
    }

    /// Returns the VXLAN network of a pool, which is required.
    pub(super) fn vni(&self, object: &Object<'_>, networks: &[&str]) -> Option<u32> {
        let mut known = networks.iter().map(|&id| self.inventory.vni(Some(id)));
        let first = known.next().unwrap_or_else(|| self.inventory.vni(None));
        let node = object.node;
        if first.is_none() && !self.inventory.is_proxy() {
            let which = match networks.first() {
                Some(id) => format!("[[network]] with id = {:?} and vni", last_of(id)),
                None => "vni".to_owned(),
            };
            let message = format!("the JSON does not say it, so the inventory has to: {which}");
            object.error(node, "VXLAN network", message);
        }
        if known.any(|other| other != first) {
            object.error(
                node,
                "virtualNetwork",
                "expected one for all of its backends",
            );
        }
        first
    }

    fn backend_address(
        &self,
        node: &'r Node,
        place: &str,
        networks: &mut Vec<&'r str>,
    ) -> Option<Backend> {
        let mut object = Object::new(node, format!("{place}: backend"), self.notes);
        let name = object.text("name");
        if let Some(known) = &name {
            object.place = format!("{place}: backend {known:?}");
        }
        // If Azure assigns the address, the inventory may list it under the backend's name.
        let entry = self.inventory.backend(None, name.as_deref(), None);
        let is_said = entry.is_some_and(|entry| entry.address.is_some());
        let is_unresolved = object.is_unresolved("ipAddress");
        let address = if is_unresolved && is_said {
            None
        } else {
            let name = name.as_deref().unwrap_or("its name");
            let or =
                format!(", here or in the inventory ([[backend]] with id = {name:?} and address)");
            object.address_or("ipAddress", if is_unresolved { &or } else { "" })
        };
        if is_unresolved && !is_said {
            return None; // reported already
        }
        if let Some(known) = name.clone().or_else(|| address.map(|a| a.to_string())) {
            object.place = format!("{place}: backend {known:?}");
        }
        let network = object
            .reference("virtualNetwork")
            .or(object.reference("subnet"));
        networks.extend(network.map(|(_, id)| id));
        object.ignore(&["inboundNatRulesPortMapping"]);
        let why = "pools of load balancers, as of a Global one, are not supported";
        object.refuse("loadBalancerFrontendIPConfiguration", why);
        let states = [
            ("None", None),
            ("Up", None),
            ("Down", Some("down")),
            ("Drain", Some("draining")),
        ];
        let state = object
            .choice("adminState", &states)
            .and_then(|(_, state)| state);
        if let Some((at, "Up")) = object
            .get("adminState")
            .and_then(|n| Some((n, n.as_str()?)))
        {
            let why = "\"Up\" would ignore its probes: here they decide its health";
            object.warning(at, "adminState", why);
        }
        let id = object.reference("networkInterfaceIPConfiguration");
        let id = id.map(|(_, id)| id);
        let entry = self.inventory.backend(id, name.as_deref(), address);
        let about = (id, name.as_deref(), address);
        let mut backend = self.backend(place, node, about, entry);
        if let (Some(backend), Some((_, id))) = (&mut backend, network) {
            backend.seat.subnet = Some(id.to_owned());
        }
        if let (Some(backend), Some(state)) = (&mut backend, state) {
            let state = toml::Value::from(state);
            backend.fields.insert("state".to_owned(), state);
        }
        object.finish();
        backend
    }

    pub(super) fn backend_by_id(
        &self,
        object: &Object<'_>,
        at: &Node,
        id: &str,
    ) -> Option<Backend> {
        let entry = self.inventory.backend(Some(id), None, None);
        self.backend(&object.place, at, (Some(id), None, None), entry)
    }

    /// Combines a backend's id, name and address in the JSON with its network interface and the
    /// inventory. `place` names the backend in errors.
    fn backend(
        &self,
        place: &str,
        at: &Node,
        (id, name, address): (Option<&str>, Option<&str>, Option<IpAddr>),
        entry: Option<&Entry>,
    ) -> Option<Backend> {
        let interface = id.and_then(|id| self.interface(id));
        let address = address.or(entry.and_then(|entry| entry.address));
        let address = address.or_else(|| interface.and_then(|interface| interface.address));
        // Look it up by the interface's address if the name is not found.
        let by_address = || self.inventory.backend(None, None, Some(address?));
        let entry = entry.or_else(by_address);
        let machine = id.map(machine_of);
        let said = entry.and_then(|entry| entry.name.as_deref());
        let known = said.or(name).or(machine).map(str::to_owned);
        let known = known.or_else(|| Some(address?.to_string()))?;
        let lacks = |what: &str, how: String| {
            let message = format!(
                "backend {known:?}: the JSON does not say its {what}, so the inventory has to: \
                 [[backend]] with {how}"
            );
            self.notes.error(at, place, message);
        };
        let is_one_of_several = interface.is_some_and(|interface| !interface.is_only);
        let key = match (machine, name, address) {
            (Some(machine), ..) if is_one_of_several => {
                let configuration = last_of(id.unwrap_or_default());
                format!("id = \"{machine}/ipConfigurations/{configuration}\"")
            }
            (Some(machine), ..) => format!("id = {machine:?}"),
            (None, Some(name), _) => format!("id = {name:?}"),
            (None, None, Some(address)) => format!("address = \"{address}\""),
            (None, None, None) => "its address".to_owned(),
        };
        let Some(address) = address else {
            lacks("address", format!("{key} and address"));
            return None;
        };
        let mut fields = entry.map(|entry| entry.fields.clone()).unwrap_or_default();
        if let Some(zone) = id.and_then(|id| self.found.zone_of(id)) {
            fields.entry(ZONE).or_insert_with(|| zone.into());
        }
        if !self.inventory.is_proxy() && !fields.contains_key("host") {
            lacks("host", format!("{key} and host"));
        }
        Some(Backend {
            origin: at.origin(),
            name: known,
            id: id.map(str::to_owned),
            address,
            fields,
            seat: interface
                .map(|interface| interface.seat.clone())
                .unwrap_or_default(),
        })
    }

    fn interface(&self, id: &str) -> Option<&'r Interface> {
        let id = id.to_ascii_lowercase();
        let is_same = |own: &str| id.ends_with(&own.to_ascii_lowercase());
        self.found.interfaces.iter().find(|i| is_same(&i.id))
    }

    /// Returns true if an id is that of a part of this load balancer.
    pub(super) fn is_own(&self, id: &str, name: &str) -> bool {
        let mut segments = id.rsplit('/');
        let is_named = segments
            .next()
            .is_some_and(|s| s.eq_ignore_ascii_case(name));
        let balancer = segments.nth(1);
        let own = &self.balancer.name;
        is_named && (own.is_empty() || balancer.is_none_or(|b| b.eq_ignore_ascii_case(own)))
    }
}

/// Returns a name that no other backend has, with an appended number if necessary.
fn unlike(others: &[Backend], name: &str) -> String {
    let is_free = |name: &String| others.iter().all(|other| other.name != *name);
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let mut free = std::iter::once(name.to_owned())
        .chain(numbered)
        .filter(is_free);
    free.next().unwrap_or_default()
}

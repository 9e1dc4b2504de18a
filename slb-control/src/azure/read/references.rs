//! Resource ids, and checks that each refers to an existing part.

use crate::azure::json::{Node, Notes};
use crate::azure::resources::{Balancer, Found, Kind};

/// Returns the name of the load balancer in a part's id.
pub(super) fn balancer_of(id: &str) -> Option<&str> {
    let mut segments = id.split('/');
    segments.find(|segment| segment.eq_ignore_ascii_case("loadBalancers"))?;
    let name = segments.next()?;
    // The following segments identify the part.
    segments.next().map(|_| name)
}

/// The kind of thing that an id names, as its last but one segment says: `frontendIPConfigurations`. None for a name
/// alone.
fn type_of(id: &str) -> Option<&str> {
    id.rsplit('/').nth(1).filter(|kind| !kind.is_empty())
}

/// Says that an id is one of another type than is wanted; `None` where it is of the type, or a name alone.
pub(super) fn wrong_type(id: &str, expected: &str) -> Option<String> {
    // Other types than these in an abbreviated id are parts of a path.
    const KNOWN: [&str; 14] = [
        "backendAddressPools",
        "frontendIPConfigurations",
        "inboundNatPools",
        "inboundNatRules",
        "ipConfigurations",
        "loadBalancers",
        "loadBalancingRules",
        "networkInterfaces",
        "outboundRules",
        "probes",
        "publicIPAddresses",
        "publicIPPrefixes",
        "subnets",
        "virtualNetworks",
    ];
    let is_whole = id.to_ascii_lowercase().contains("/providers/");
    let is_known =
        |own: &&str| is_whole || KNOWN.iter().any(|known| own.eq_ignore_ascii_case(known));
    let own = type_of(id).filter(|own| !own.eq_ignore_ascii_case(expected));
    let own = own.filter(is_known)?;
    Some(format!(
        "expected the id of one of {expected}, got one of {own}: {id:?}"
    ))
}

/// Checks that the references of network interfaces and scale sets exist: otherwise an item that is
/// in no known pool would be lost silently.
pub(super) fn check_references(found: &Found, notes: &Notes) {
    let check = |node: &Node, place: &str, kind: Kind, id: &str| {
        if let Some(message) = wrong_type(id, kind.list()) {
            notes.error(node, place, message);
            return;
        }
        let Some(name) = balancer_of(id) else { return };
        let own = |balancer: &&Balancer| balancer.name.eq_ignore_ascii_case(name);
        match found.balancers.iter().find(own) {
            None => {
                let message = format!("load balancer {name:?} is not among the files given");
                notes.warning(node, place, message);
            }
            Some(balancer) if balancer.is_declared && !balancer.has(kind, last_of(id)) => {
                let own = last_of(id);
                notes.error(
                    node,
                    place,
                    format!("load balancer {name:?} has no {kind} {own:?}"),
                );
            }
            Some(_) => {}
        }
    };
    for interface in &found.interfaces {
        let place = format!("network interface {:?}", machine_of(&interface.id));
        let all = [
            (Kind::Pool, &interface.pools),
            (Kind::NatRule, &interface.nat_rules),
        ];
        for (kind, ids) in all {
            ids.iter()
                .for_each(|id| check(&interface.node, &place, kind, id));
        }
    }
    for set in &found.scale_sets {
        let place = format!("scale set {:?}", set.name);
        for configuration in &set.configurations {
            let all = [
                (Kind::Pool, &configuration.pools),
                (Kind::NatRule, &configuration.nat_rules),
                (Kind::NatPool, &configuration.nat_pools),
            ];
            for (kind, ids) in all {
                ids.iter().for_each(|id| check(&set.node, &place, kind, id));
            }
        }
    }
}

/// Returns the last segment of an id: a name.
pub(in crate::azure) fn last_of(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

/// Returns the name of the machine, or of its network interface, that an IP configuration belongs
/// to.
pub(in crate::azure) fn machine_of(id: &str) -> &str {
    let lower = id.to_ascii_lowercase();
    let parent = lower
        .rfind("/ipconfigurations/")
        .and_then(|at| id.get(..at));
    last_of(parent.unwrap_or(id))
}

//! Frontends that become private or public, or move to another network.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use slb_core::wire::vxlan::Vni;

use crate::config::{Config, Frontend, Network};

/// A frontend that others can call than before: it becomes private or public, or moves to another network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachChange {
    /// Name of the frontend.
    pub frontend: String,
    /// The other frontend that had the address; `None` if the frontend keeps its name.
    pub instead_of: Option<String>,
    /// Address of the frontend.
    pub address: IpAddr,
    /// The network whose vms could call it; `None` if it was public.
    pub from: Option<String>,
    /// The network whose vms can call it; `None` if it becomes public.
    pub to: Option<String>,
    /// The frontend gets another address too, so all of its connections end.
    pub has_other_address: bool,
}

impl fmt::Display for ReachChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frontend {:?}", self.frontend)?;
        if let Some(former) = &self.instead_of {
            write!(f, " in place of {former:?} at {}", self.address)?;
        }
        f.write_str(": ")?;
        match (&self.from, &self.to) {
            (None, Some(to)) => write!(f, "public before, now for vms of network {to:?} only")?,
            (Some(from), None) => write!(f, "for vms of network {from:?} before, now public")?,
            (Some(from), Some(to)) => {
                write!(
                    f,
                    "for vms of network {from:?} before, now for those of {to:?}"
                )?;
            }
            (None, None) => write!(f, "public")?,
        }
        if self.has_other_address {
            return write!(f, "; its address changes too, so all connections end");
        }
        match (&self.from, &self.to) {
            (None, Some(_)) => f.write_str(
                "; connections from elsewhere end, and those of vms that call from SNAT ports",
            ),
            (Some(from), None) => {
                write!(
                    f,
                    "; connections of vms of {from:?} pass a mux from then on"
                )
            }
            (Some(from), Some(_)) => write!(f, "; connections of vms of {from:?} end"),
            (None, None) => Ok(()),
        }
    }
}

/// Returns the frontends that others can call than before: those of both configurations, and new ones that have the
/// address of one that is gone.
pub(super) fn changes(old: &Config, new: &Config) -> Vec<ReachChange> {
    let before: HashMap<&str, &Frontend> = old
        .frontends
        .iter()
        .map(|frontend| (&*frontend.name, frontend))
        .collect();
    let change = |was: &Frontend, is: &Frontend| {
        let (from, to) = (old.network_of_frontend(was), new.network_of_frontend(is));
        // A network that only gets another name is the one that it was.
        let is_other = from.map(|network| network.vni) != to.map(|network| network.vni);
        let name = |network: &Network| network.name.clone();
        is_other.then(|| ReachChange {
            frontend: is.name.clone(),
            instead_of: (was.name != is.name).then(|| was.name.clone()),
            address: is.address,
            from: from.map(name),
            to: to.map(name),
            has_other_address: was.address != is.address,
        })
    };
    let of_name = |is: &Frontend| before.get(&*is.name).copied();
    let kept = new
        .frontends
        .iter()
        .filter_map(|is| change(of_name(is)?, is));
    let (places, new_places) = (places(old), places(new));
    let mut gone: HashMap<IpAddr, &Frontend> = HashMap::new();
    for (place, was) in &places {
        if !new_places.contains_key(place) {
            gone.insert(place.1, was);
        }
    }
    let mut others: Vec<ReachChange> = new_places
        .iter()
        .filter(|(place, is)| {
            let keeps = of_name(is).is_some_and(|was| was.address == is.address);
            !keeps && !places.contains_key(place)
        })
        .filter_map(|(place, is)| change(gone.get(&place.1)?, is))
        .collect();
    others.sort_by(|a, b| a.frontend.cmp(&b.frontend));
    kept.chain(others).collect()
}

/// Returns the frontends by the VNIs of their networks and by their addresses.
fn places(config: &Config) -> HashMap<(Option<Vni>, IpAddr), &Frontend> {
    let all = config.frontends.iter().map(|frontend| {
        let network = config.network_of_frontend(frontend);
        let vni = network.map(|network| network.vni);
        ((vni, frontend.address), frontend)
    });
    all.collect()
}

//! Frontends that become private or public, or move to another network.

use std::collections::HashMap;
use std::fmt;

use crate::config::{Config, Frontend, Network};

/// A frontend that others can call than before: it becomes private or public, or moves to another network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachChange {
    /// Name of the frontend.
    pub frontend: String,
    /// The network whose vms could call it; `None` if it was public.
    pub from: Option<String>,
    /// The network whose vms can call it; `None` if it becomes public.
    pub to: Option<String>,
    /// The frontend gets another address too, so all of its connections end.
    pub has_other_address: bool,
}

impl fmt::Display for ReachChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frontend {:?}: ", self.frontend)?;
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

/// Returns the frontends of both configurations that others can call than before.
pub(super) fn changes(old: &Config, new: &Config) -> Vec<ReachChange> {
    let before: HashMap<&str, &Frontend> = old
        .frontends
        .iter()
        .map(|frontend| (&*frontend.name, frontend))
        .collect();
    let changes = new.frontends.iter().filter_map(|is| {
        let was = *before.get(&*is.name)?;
        let (from, to) = (old.network_of_frontend(was), new.network_of_frontend(is));
        // A network that only gets another name is the one that it was.
        let is_other = from.map(|network| network.vni) != to.map(|network| network.vni);
        let name = |network: &Network| network.name.clone();
        is_other.then(|| ReachChange {
            frontend: is.name.clone(),
            from: from.map(name),
            to: to.map(name),
            has_other_address: was.address != is.address,
        })
    });
    changes.collect()
}

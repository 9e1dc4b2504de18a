//! Data that Azure's JSON lacks: the addresses behind ids, and the hosts of backends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use toml::de::DeTable;

use crate::config::read_text;
use crate::document::{Faults, Section};
use crate::error::{ConfigError, ConfigErrors};
use crate::file::open_file;

/// An inventory: a TOML file.
///
/// ```
/// # use slb_control::azure::Inventory;
/// let inventory = Inventory::parse("inventory.toml", r#"
///     vni = 5001                       # of networks that have no [[network]]
///     [node]                           # becomes the configuration's
///     role = "mux"
///     underlay = "172.16.0.11"
///     [[public_ip]]                    # the end of its id in the JSON
///     id = "WebPublicIP"
///     address = "40.50.60.70"          # or of a prefix: "40.50.60.72/30"
///     [[network]]
///     id = "MyVNet"
///     vni = 5002
///     [[backend]]                      # by `id`, the end of its id or its name, or by `address`
///     id = "VM1-NIC"
///     address = "10.0.1.4"
///     host = "172.16.0.101"
///     [[backend]]                      # one that the JSON does not list
///     pool = "WebServers"
///     address = "10.0.1.5"
///     host = "172.16.0.102"
///     [[nat_pool]]                     # which pool's instances have its ports
///     id = "SSH-Pool"
///     pool = "WebServers"
/// "#)?;
/// # Ok::<(), slb_control::ConfigErrors>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub(super) node: toml::Table,
    vni: Option<u32>,
    public: Vec<(String, PublicAddress)>,
    networks: Vec<(String, u32)>,
    backends: Vec<Entry>,
    nat_pools: Vec<(String, String)>,
    file: String,
    /// The entries of each kind: where the file has them, and their names in messages.
    entries: Vec<(Kind, usize, String)>,
    uses: Uses,
}

/// Kind of an inventory's entry, with its section in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Public,
    Network,
    Backend,
    NatPool,
}

impl Kind {
    const fn section(self) -> &'static str {
        match self {
            Self::Public => "public_ip",
            Self::Network => "network",
            Self::Backend => "backend",
            Self::NatPool => "nat_pool",
        }
    }
}

/// The entries that an import found something for: kinds, and places among those of a kind.
#[derive(Debug, Default)]
struct Uses(Mutex<BTreeSet<(Kind, usize)>>);

impl Clone for Uses {
    /// A copy has found nothing yet.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Uses {
    fn add(&self, kind: Kind, place: usize) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert((kind, place));
    }

    fn has(&self, kind: Kind, place: usize) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.contains(&(kind, place))
    }
}

/// A public IP resource, as frontends refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PublicAddress {
    pub(super) first: IpAddr,
    /// The number of addresses from the first one on.
    pub(super) count: u32,
}

/// `[[backend]]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    id: Option<String>,
    pub(super) pools: Vec<String>,
    pub(super) name: Option<String>,
    pub(super) address: Option<IpAddr>,
    /// The fields that are copied into the configuration unchanged.
    pub(super) fields: toml::Table,
}

/// Fields of a backend that are copied into the configuration.
const FIELDS: [&str; 9] = [
    "host",
    "mac",
    "next_hop",
    "weight",
    "state",
    "instance",
    "port",
    "backend_port",
    "zone",
];

impl Inventory {
    /// Reads a file.
    ///
    /// # Errors
    /// All faults, each with its line. An unreadable file is a fault on line 1.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self, ConfigErrors> {
        let file = path.as_ref().display().to_string();
        match read_text(open_file(&path)) {
            Ok(text) => Self::parse(&file, &text),
            Err(error) => Err(ConfigErrors(vec![ConfigError {
                file,
                line: 1,
                place: String::new(),
                message: error,
            }])),
        }
    }

    /// Returns the inventory, with a `[node]` of documentation addresses (RFC 5737, RFC 3849) if it has none: a
    /// fleet's configuration has no node, and is checked with any.
    pub fn with_any_node(mut self) -> Self {
        if self.node.is_empty() {
            let addresses = ["192.0.2.1", "2001:db8::1"].map(toml::Value::from);
            self.node.insert("role".to_owned(), "mux".into());
            let underlay = toml::Value::Array(addresses.to_vec());
            self.node.insert("underlay".to_owned(), underlay);
        }
        self
    }

    /// Reads a text; `file` is its name in errors.
    ///
    /// # Errors
    /// All faults, each with its line.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        let faults = Faults::new(file, text);
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            faults.add(&error.span().unwrap_or(0..0), "", error.message());
        }
        if !faults.is_empty() {
            return Err(faults.into_errors());
        }
        let values: toml::Table = text.parse().unwrap_or_default();
        let inventory = {
            let root = Section::root(&document, &faults);
            let inventory = Self::read(&root, &values, &faults);
            root.finish();
            inventory
        };
        if faults.is_empty() {
            Ok(Self {
                file: file.to_owned(),
                ..inventory
            })
        } else {
            Err(faults.into_errors())
        }
    }

    fn read(root: &Section<'_>, values: &toml::Table, faults: &Faults<'_>) -> Self {
        let mut inventory = Self::default();
        if root.has("node") {
            let node = values.get("node").and_then(toml::Value::as_table);
            inventory.node = node.cloned().unwrap_or_default();
        }
        let vnis = 0..=0xff_ffff;
        if root.has("vni") {
            inventory.vni = root.integer("vni", vnis.clone(), 0).map(|v| v.0 as u32);
        }
        for section in root.sections("public_ip") {
            let id = section.name("id");
            let expected = "an address, or a prefix such as \"40.50.60.72/30\"";
            let address = section.required("address", expected, public_address);
            if let (Some((id, _)), Some((address, _))) = (id, address) {
                inventory.note(Kind::Public, faults.line(section.span()), &id);
                inventory.public.push((id, address));
            }
            section.finish();
        }
        for section in root.sections("network") {
            let (id, vni) = (
                section.name("id"),
                section.required_integer("vni", vnis.clone()),
            );
            if let (Some((id, _)), Some((vni, _))) = (id, vni) {
                inventory.note(Kind::Network, faults.line(section.span()), &id);
                inventory.networks.push((id, vni as u32));
            }
            section.finish();
        }
        for section in root.sections("nat_pool") {
            if let (Some((id, _)), Some((pool, _))) = (section.name("id"), section.name("pool")) {
                inventory.note(Kind::NatPool, faults.line(section.span()), &id);
                inventory.nat_pools.push((id, pool));
            }
            section.finish();
        }
        let tables = values.get("backend").and_then(toml::Value::as_array);
        for (place, section) in root.sections("backend").into_iter().enumerate() {
            let table = tables.and_then(|tables| tables.get(place)?.as_table());
            let entry = Entry::read(&section, table);
            let name = entry.id.clone().or_else(|| entry.name.clone());
            let name = name.or_else(|| Some(entry.address?.to_string()));
            let line = faults.line(section.span());
            inventory.note(Kind::Backend, line, &name.unwrap_or_default());
            inventory.backends.push(entry);
            section.finish();
        }
        inventory
    }

    /// Returns true for a proxy: its backends need no hosts.
    pub(super) fn is_proxy(&self) -> bool {
        self.node.get("role").and_then(toml::Value::as_str) == Some("proxy")
    }

    pub(super) fn public(&self, id: &str) -> Option<PublicAddress> {
        self.of_id(Kind::Public, &self.public, id).copied()
    }

    pub(super) fn vni(&self, network: Option<&str>) -> Option<u32> {
        let known = network.and_then(|id| self.of_id(Kind::Network, &self.networks, id).copied());
        known.or(self.vni)
    }

    /// Returns true if a virtual network has a VXLAN network of its own.
    pub(super) fn has_network(&self, id: &str) -> bool {
        self.networks.iter().any(|(own, _)| is_end_of(own, id))
    }

    /// Returns the pool of a NAT pool's instances.
    pub(super) fn nat_pool(&self, name: &str) -> Option<&str> {
        let found = self.of_id(Kind::NatPool, &self.nat_pools, name);
        found.map(String::as_str)
    }

    /// Finds a backend of the JSON by its id, its name, or its address.
    pub(super) fn backend(
        &self,
        id: Option<&str>,
        name: Option<&str>,
        address: Option<IpAddr>,
    ) -> Option<&Entry> {
        let is_meant = |entry: &&Entry| {
            let own = entry.id.as_deref();
            let by_id = own.is_some_and(|own| {
                id.is_some_and(|id| is_end_of(own, id)) || name.is_some_and(|name| name == own)
            });
            by_id || (own.is_none() && address.is_some() && entry.address == address)
        };
        let place = self.backends.iter().position(|entry| is_meant(&entry))?;
        self.uses.add(Kind::Backend, place);
        self.backends.get(place)
    }

    /// The backends that the inventory puts into a pool, by one of its names.
    pub(super) fn of_pool(&self, names: [&str; 2]) -> Vec<&Entry> {
        let all = self.backends.iter().enumerate();
        let listed = all.filter(|(_, entry)| {
            names
                .iter()
                .any(|name| entry.pools.iter().any(|pool| pool == name))
        });
        let listed = listed.map(|(place, entry)| {
            self.uses.add(Kind::Backend, place);
            entry
        });
        listed.collect()
    }

    fn of_id<'a, T>(&self, kind: Kind, all: &'a [(String, T)], id: &str) -> Option<&'a T> {
        let place = all.iter().position(|(own, _)| is_end_of(own, id))?;
        self.uses.add(kind, place);
        all.get(place).map(|(_, value)| value)
    }

    fn note(&mut self, kind: Kind, line: usize, name: &str) {
        self.entries.push((kind, line, name.to_owned()));
    }

    /// A copy of which no entry was used yet.
    pub(super) fn unused(&self) -> Self {
        self.clone()
    }

    /// A warning for each entry that nothing in the JSON needed: most are misspelt.
    pub(super) fn warnings(&self) -> Vec<ConfigError> {
        let mut counts = [0; 4];
        let mut warnings = Vec::new();
        for (kind, line, name) in &self.entries {
            let place = counts[*kind as usize];
            counts[*kind as usize] += 1;
            if !self.uses.has(*kind, place) {
                warnings.push(ConfigError {
                    file: self.file.clone(),
                    line: *line,
                    place: format!("{} {name:?}", kind.section()),
                    message: "matches nothing in the JSON, and is left out".to_owned(),
                });
            }
        }
        warnings
    }
}

impl Entry {
    fn read(section: &Section<'_>, table: Option<&toml::Table>) -> Self {
        let address = section.optional("address", "an IPv4 or IPv6 address", |t| t.parse().ok());
        let pools = section.any("pool", "a pool's name", |text| Some(text.to_owned()));
        let mut fields = toml::Table::new();
        for field in FIELDS {
            let value = table.and_then(|table| table.get(field));
            if section.has(field)
                && let Some(value) = value
            {
                fields.insert(field.to_owned(), value.clone());
            }
        }
        Self {
            id: section.text("id").map(|(id, _)| id),
            pools: pools.into_iter().map(|(pool, _)| pool).collect(),
            name: section.text("name").map(|(name, _)| name),
            address: address.map(|(address, _)| address),
            fields,
        }
    }
}

pub(super) fn public_address(text: &str) -> Option<PublicAddress> {
    const MOST: u32 = 256;
    let Some((first, bits)) = text.split_once('/') else {
        return Some(PublicAddress {
            first: text.parse().ok()?,
            count: 1,
        });
    };
    let first: IpAddr = first.parse().ok()?;
    let (all, bits) = (
        if first.is_ipv4() { 32 } else { 128 },
        bits.parse::<u32>().ok()?,
    );
    let count = 1u32.checked_shl(u32::checked_sub(all, bits)?)?;
    (count <= MOST).then_some(PublicAddress { first, count })
}

impl PublicAddress {
    pub(super) fn addresses(self) -> impl Iterator<Item = IpAddr> {
        (0..self.count).map(move |place| match self.first {
            IpAddr::V4(first) => IpAddr::from((first.to_bits().wrapping_add(place)).to_be_bytes()),
            IpAddr::V6(first) => {
                IpAddr::from((first.to_bits().wrapping_add(u128::from(place))).to_be_bytes())
            }
        })
    }
}

/// Returns true if a path is the end of an id, with or without the name of the configuration or
/// subnet at its end: `VM1-NIC` of `.../networkInterfaces/VM1-NIC/ipConfigurations/ipconfig1`.
fn is_end_of(path: &str, id: &str) -> bool {
    let ends = |id: &str| {
        let start = id.len().checked_sub(path.len());
        let tail = start.and_then(|start| Some((start, id.get(start..)?)));
        tail.is_some_and(|(start, tail)| {
            let is_segment = start == 0 || id.as_bytes().get(start - 1) == Some(&b'/');
            is_segment && tail.eq_ignore_ascii_case(path)
        })
    };
    let parent = |inner: &str| {
        let at = id.to_ascii_lowercase().rfind(inner)?;
        id.get(..at)
    };
    ends(id)
        || ["/ipconfigurations/", "/subnets/"]
            .into_iter()
            .any(|inner| parent(inner).is_some_and(ends))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_by_its_end() {
        let id = "/subscriptions/x/networkInterfaces/VM1-NIC/ipConfigurations/ipconfig1";
        for (path, known) in [
            ("VM1-NIC", true),
            ("vm1-nic", true),
            ("networkInterfaces/VM1-NIC", true),
            ("VM1-NIC/ipConfigurations/ipconfig1", true),
            ("ipconfig1", true),
            ("1-NIC", false),
            ("x", false),
            ("", false),
        ] {
            assert_eq!(is_end_of(path, id), known, "{path}");
        }
        assert!(is_end_of("VM1", "VM1"));
    }

    #[test]
    fn prefixes_are_their_addresses() {
        let four = public_address("40.50.60.72/30").expect("a prefix");
        let last = four.addresses().last();
        assert_eq!(last, Some(IpAddr::from([40, 50, 60, 75])));
        assert_eq!(public_address("40.50.60.72/8"), None);
        assert_eq!(public_address("40.50.60.72/33"), None);
        assert_eq!(public_address("2001:db8::/64"), None);
    }
}

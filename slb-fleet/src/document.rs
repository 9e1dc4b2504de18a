//! Specs, as the text of a configuration and as objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_control::config::Common;
use slb_control::{Config, ConfigErrors};
use toml::{Table, Value};

use crate::object::{Backends, CHUNK, Digest, Fields, Index, Item, Keys, Object as _, ObjectError};

/// The section with the fields that all nodes share; it is merged into each node's `[node]`.
pub const COMMON: &str = "fleet";
/// Fields of [`COMMON`], which have to be the same on all nodes.
const COMMON_FIELDS: [&str; 5] = ["hash", "hash_key", "hash_seed", "inside", "muxes"];

/// The field of a pool with its backends, and the kind of their objects.
const BACKENDS: &str = "backends";

/// The field of [`COMMON`] with the addresses that each host agent may report for. Nodes do not
/// need it.
const HOSTS: &str = "hosts";

/// A spec.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    root: Table,
    /// True if the spec was checked, and has not changed since.
    is_checked: bool,
}

/// A part of a spec, stored as an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// The fields of a section, except a pool's backends.
    Section(Table),
    /// Some of a pool's backends.
    Backends(Vec<Value>),
}

impl PartialEq for Spec {
    fn eq(&self, other: &Self) -> bool {
        self.root == other.root
    }
}

impl Spec {
    /// Reads a configuration without `[node]`; `file` is its name in errors.
    ///
    /// # Errors
    /// All faults, each with its line, or the fault that the text is no configuration of a fleet.
    pub fn parse(file: &str, text: &str) -> Result<Self, ObjectError> {
        let root = text.parse::<Table>();
        let root = root.map_err(|error| ObjectError::Spec(format!("{file}: {error}")))?;
        for kind in ["node", "port", "source_rewrite"] {
            if root.contains_key(kind) {
                let message = format!("{file}: {kind}: belongs to one node, and not to a fleet");
                return Err(ObjectError::Spec(message));
            }
        }
        let mut spec = Self {
            root,
            is_checked: false,
        };
        let node = spec.any_node().to_string();
        let common = Common {
            shared: &COMMON_FIELDS,
            own: &[HOSTS],
            node: &node,
        };
        let parsed = Config::parse_fleet(file, text, &common);
        parsed.map_err(|errors| ObjectError::Spec(errors.to_string()))?;
        spec.hosts()
            .map_err(|error| ObjectError::Spec(format!("{file}: {error}")))?;
        spec.is_checked = true;
        Ok(spec)
    }

    /// Reads a configuration with its `[node]`, of which only [`COMMON`] fields are used; `file` is
    /// its name in errors.
    ///
    /// # Errors
    /// All faults.
    pub fn of_configuration(file: &str, text: &str) -> Result<Self, ObjectError> {
        let root = text.parse::<Table>();
        let mut root = root.map_err(|error| ObjectError::Spec(format!("{file}: {error}")))?;
        if let Some(Value::Table(mut node)) = root.remove("node") {
            node.retain(|field, _| COMMON_FIELDS.contains(&field));
            if !node.is_empty() {
                root.insert(COMMON.to_owned(), Value::Table(node));
            }
        }
        let mut spec = Self {
            root,
            is_checked: false,
        };
        spec.check(file)?;
        spec.is_checked = true;
        Ok(spec)
    }

    /// Returns all sections: kind, name and text of each.
    pub fn list(&self) -> BTreeSet<(String, String, String)> {
        let kinds = self.kinds().map(|kind| (kind, self.all(kind)));
        kinds
            .flat_map(|(kind, all)| {
                all.into_iter().map(move |section| {
                    let name = name_of(section).to_owned();
                    (kind.to_owned(), name, section.to_string())
                })
            })
            .collect()
    }

    /// Returns a spec of the sections of one kind, or of one section by name; `None` if there is
    /// none.
    pub fn only(&self, kind: &str, name: Option<&str>) -> Option<Self> {
        let mut value = self.root.get(kind)?.clone();
        if let (Some(all), Some(name)) = (value.as_array_mut(), name) {
            all.retain(|own| own.as_table().is_some_and(|own| name_of(own) == name));
            if all.is_empty() {
                return None;
            }
        }
        let root = std::iter::once((kind.to_owned(), value)).collect();
        Some(Self {
            root,
            is_checked: false,
        })
    }

    /// Returns the sections of a kind, including a single section without a name.
    fn all(&self, kind: &str) -> Vec<&Table> {
        match self.root.get(kind) {
            Some(Value::Table(table)) => vec![table],
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_table).collect(),
            _ => Vec::new(),
        }
    }

    /// Checks the spec like every node, unless it is already checked.
    ///
    /// # Errors
    /// All faults.
    pub fn check(&self, file: &str) -> Result<(), ObjectError> {
        match self.is_checked {
            true => Ok(()),
            false => self.checked(file).map(|_| ()),
        }
    }

    /// Checks the spec like every node, and returns the configuration of a node without fields of
    /// its own.
    ///
    /// # Errors
    /// All faults.
    pub(crate) fn checked(&self, file: &str) -> Result<Config, ObjectError> {
        self.hosts()?;
        self.config(file, &self.any_node())
    }

    /// Returns a `[node]` for checking the spec: a mux, with addresses for documentation (RFC 5737,
    /// RFC 3849) that the spec does not contain.
    pub(crate) fn any_node(&self) -> Table {
        let mut taken = BTreeSet::new();
        for value in self.root.values() {
            addresses_in(value, &mut taken);
        }
        let ipv4 = (1..u8::MAX).map(|last| Ipv4Addr::new(192, 0, 2, last));
        let ipv6 = (1..u16::MAX).map(|last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last));
        let is_free = |address: &IpAddr| !taken.contains(address);
        let chosen = [
            ipv4.map(IpAddr::from).find(is_free),
            ipv6.map(IpAddr::from).find(is_free),
        ];
        let underlay = chosen.iter().flatten().map(|own| own.to_string().into());
        let mut node = Table::new();
        node.insert("role".to_owned(), "mux".into());
        node.insert("underlay".to_owned(), Value::Array(underlay.collect()));
        node
    }

    /// Returns the addresses that each host agent may report for, by its name; `None` if the spec
    /// has no such field, so that an agent may report for its own addresses.
    ///
    /// # Errors
    /// The field is not a table of addresses, or two agents have one address.
    pub fn hosts(&self) -> Result<Option<BTreeMap<String, Vec<IpAddr>>>, ObjectError> {
        let fleet = self.root.get(COMMON).and_then(Value::as_table);
        let Some(hosts) = fleet.and_then(|fleet| fleet.get(HOSTS)) else {
            return Ok(None);
        };
        let fault = |place: &str, message: &str| {
            ObjectError::Spec(format!("{COMMON}: {HOSTS}{place}: {message}"))
        };
        let hosts = hosts.as_table().ok_or_else(|| {
            fault(
                "",
                "expected a table such as { host1 = [\"172.16.0.101\"] }",
            )
        })?;
        let (mut all, mut owners) = (BTreeMap::new(), BTreeMap::new());
        for (name, value) in hosts {
            let place = format!(": {name}");
            let values = value
                .as_array()
                .map_or(std::slice::from_ref(value), Vec::as_slice);
            let mut addresses = Vec::new();
            for value in values {
                let address = value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
                let address = address.ok_or_else(|| {
                    fault(
                        &place,
                        &format!("expected a list of addresses, got {value}"),
                    )
                })?;
                if let Some(other) = owners.insert(address, name).filter(|other| *other != name) {
                    return Err(fault(&place, &format!("{address} is {other}'s too")));
                }
                addresses.push(address);
            }
            all.insert(name.clone(), addresses);
        }
        Ok(Some(all))
    }

    /// Returns the sections that refer to a section, or to a backend `POOL/NAME`: kind and name of
    /// each.
    pub fn users(&self, kind: &str, name: &str) -> Vec<(String, String)> {
        let (pool, name) = match name.split_once('/') {
            Some((pool, name)) if kind == "backend" => (Some(pool), name),
            _ => (None, name),
        };
        let names = |section: &Table, field: &str, name: &str| match section.get(field) {
            Some(Value::String(own)) => own == name,
            Some(Value::Array(all)) => all.iter().any(|own| own.as_str() == Some(name)),
            _ => false,
        };
        let refers = |section: &Table| {
            let is_here = pool.is_none_or(|pool| names(section, "pool", pool));
            is_here && (names(section, kind, name) || names(section, &format!("{kind}s"), name))
        };
        let sections = self.kinds().flat_map(|of| {
            let all = self.all(of).into_iter().filter(|section| refers(section));
            all.map(move |section| (of.to_owned(), name_of(section).to_owned()))
        });
        sections.collect()
    }

    /// Returns the spec as text.
    pub fn text(&self) -> String {
        toml::to_string_pretty(&self.root).unwrap_or_default()
    }

    /// The sections of a kind.
    pub fn sections(&self, kind: &str) -> impl Iterator<Item = &Table> {
        let all = self.root.get(kind).and_then(Value::as_array);
        all.into_iter().flatten().filter_map(Value::as_table)
    }

    /// Yields the kinds of sections in the spec.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.root.keys().map(String::as_str)
    }

    /// Removes a section, or a backend of a pool. Returns true if it was there.
    pub fn remove(&mut self, kind: &str, name: &str) -> bool {
        self.is_checked = false;
        if kind == "backend" {
            let Some((pool, name)) = name.split_once('/') else {
                return false;
            };
            let mut pools = self.tables_mut("pool");
            let pool = pools.find(|own| name_of(own) == pool);
            let backends = pool.and_then(|pool| pool.get_mut("backends")?.as_array_mut());
            return backends.is_some_and(|all| take_out(all, name));
        }
        let all = self.root.get_mut(kind).and_then(Value::as_array_mut);
        all.is_some_and(|all| take_out(all, name))
    }

    /// Adds all sections of another spec, replacing sections of the same kind and name.
    pub fn merge(&mut self, other: &Self) {
        self.is_checked = false;
        for (kind, value) in &other.root {
            let (Some(new), Some(own)) = (
                value.as_array(),
                self.root.get_mut(kind).and_then(Value::as_array_mut),
            ) else {
                self.root.insert(kind.clone(), value.clone());
                continue;
            };
            for section in new {
                let name = section.as_table().map(name_of).unwrap_or_default();
                let same = |own: &&mut Value| own.as_table().is_some_and(|t| name_of(t) == name);
                match own.iter_mut().find(same) {
                    Some(own) => own.clone_from(section),
                    None => own.push(section.clone()),
                }
            }
        }
    }

    fn tables_mut(&mut self, kind: &str) -> impl Iterator<Item = &mut Table> {
        self.is_checked = false;
        let all = self.root.get_mut(kind).and_then(Value::as_array_mut);
        all.into_iter().flatten().filter_map(Value::as_table_mut)
    }

    /// Returns the whole configuration of a node as text: the spec, and the node's own `[node]`.
    ///
    /// # Errors
    /// The node has a field of [`COMMON`] with another value.
    pub fn with_node(&self, node: &Table) -> Result<String, ObjectError> {
        let mut root = self.root.clone();
        let mut node = node.clone();
        let common = match root.remove(COMMON) {
            None => None,
            Some(Value::Table(common)) => Some(common),
            Some(other) => {
                return Err(ObjectError::Spec(format!(
                    "fleet: expected one section [fleet], got {}",
                    other.type_str()
                )));
            }
        };
        if let Some(common) = common {
            for (field, value) in common {
                if field == HOSTS {
                    continue;
                }
                if !COMMON_FIELDS.contains(&field.as_str()) {
                    let known = COMMON_FIELDS.join(", ");
                    return Err(ObjectError::Spec(format!(
                        "fleet: {field}: expected one of {known}"
                    )));
                }
                let own = node.insert(field.clone(), value.clone());
                if own.is_some_and(|own| own != value) {
                    return Err(ObjectError::Spec(format!(
                        "node: {field}: differs from the fleet's {field}: leave it out"
                    )));
                }
            }
        }
        root.insert("node".to_owned(), Value::Table(node));
        toml::to_string(&root).map_err(|error| ObjectError::Spec(error.to_string()))
    }

    /// Returns the whole configuration of a node; `file` is its name in errors.
    ///
    /// # Errors
    /// The errors of [`with_node`](Self::with_node), and all faults of the whole configuration.
    pub fn config(&self, file: &str, node: &Table) -> Result<Config, ObjectError> {
        let text = self.with_node(node)?;
        Config::parse(file, &text).map_err(|errors| ObjectError::Spec(unnumbered(&errors)))
    }

    /// Returns the spec's objects by their keys, and the index of them. `leaving` are backends that
    /// stay only until their connections have ended.
    ///
    /// # Errors
    /// An object would be too long.
    pub fn objects(&self, keys: &Keys, leaving: Vec<String>) -> Result<Objects, ObjectError> {
        let mut made = Objects::default();
        for kind in self.root.keys() {
            for section in self.all(kind) {
                let name = name_of(section);
                let mut section = section.clone();
                let chunks = match (kind.as_str(), section.remove(BACKENDS)) {
                    ("pool", Some(Value::Array(backends))) => backends
                        .chunks(CHUNK)
                        .map(|chunk| {
                            let backends: Result<_, _> = chunk.iter().map(json).collect();
                            let bytes = Backends {
                                backends: backends?,
                            }
                            .write();
                            made.add(keys, BACKENDS, name, bytes)
                        })
                        .collect::<Result<Vec<Digest>, ObjectError>>()?,
                    (_, Some(other)) => {
                        section.insert("backends".to_owned(), other);
                        Vec::new()
                    }
                    (_, None) => Vec::new(),
                };
                let fields = section
                    .iter()
                    .map(|(field, value)| Ok((field.clone(), json(value)?)))
                    .collect::<Result<_, ObjectError>>()?;
                let digest = made.add(keys, kind, name, Fields { fields }.write())?;
                made.index.sections.push(Item {
                    kind: kind.clone(),
                    name: name.to_owned(),
                    digest,
                    backends: chunks,
                });
            }
        }
        made.index.leaving = leaving;
        let bytes = made.index.write();
        made.digest = Some(Digest::of(&bytes));
        let key = keys.index(&Digest::of(&bytes));
        too_long(&key, &bytes)?;
        made.objects.insert(key, bytes);
        Ok(made)
    }

    /// Assembles a spec from its parts, which `find` returns by their keys.
    ///
    /// # Errors
    /// A part is missing or invalid.
    pub fn join<'p>(
        keys: &Keys,
        index: &Index,
        mut find: impl FnMut(&str) -> Option<&'p Part>,
    ) -> Result<Self, ObjectError> {
        let mut root = Table::new();
        for item in &index.sections {
            let key = keys.section(&item.kind, &item.name, &item.digest);
            let Some(Part::Section(section)) = find(&key) else {
                return Err(ObjectError::Missing(key));
            };
            let mut section = section.clone();
            if !item.backends.is_empty() {
                let mut all = Vec::new();
                for digest in &item.backends {
                    let key = keys.section(BACKENDS, &item.name, digest);
                    let Some(Part::Backends(backends)) = find(&key) else {
                        return Err(ObjectError::Missing(key));
                    };
                    all.extend_from_slice(backends);
                }
                section.insert(BACKENDS.to_owned(), Value::Array(all));
            }
            if item.kind == COMMON {
                root.insert(item.kind.clone(), Value::Table(section));
                continue;
            }
            let kind = root.entry(item.kind.clone());
            if let Value::Array(all) = kind.or_insert_with(|| Value::Array(Vec::new())) {
                all.push(Value::Table(section));
            }
        }
        Ok(Self {
            root,
            is_checked: false,
        })
    }

    /// Returns the spec with the removed backends of `former` specs, drained: without weight, and
    /// for removed pools with their rules. Also returns the leaving backends, each as `POOL/NAME`.
    ///
    /// If the result is not a valid configuration, for example because a new rule uses the port of
    /// a removed one, only backends of remaining pools are kept; if that is not valid either, none
    /// are.
    pub fn with_leavers(&self, former: &[&Self]) -> (Self, Vec<String>) {
        for keeps_pools in [true, false] {
            let (spec, leaving) = self.leavers(former, keeps_pools);
            if leaving.is_empty() || spec.check("leaving").is_ok() {
                return (spec, leaving);
            }
        }
        (self.clone(), Vec::new())
    }

    fn leavers(&self, former: &[&Self], keeps_pools: bool) -> (Self, Vec<String>) {
        let (mut spec, mut leaving) = (self.clone(), Vec::new());
        let mut gone = BTreeSet::new();
        for former in former {
            for pool in former.sections("pool") {
                let name = name_of(pool);
                let known = spec.sections("pool").find(|own| name_of(own) == name);
                if known.is_none() && !keeps_pools {
                    continue;
                }
                if known.is_none() {
                    let mut empty = pool.clone();
                    empty.insert("backends".to_owned(), Value::Array(Vec::new()));
                    spec.push("pool", empty);
                    gone.insert(name.to_owned());
                }
                let kept: BTreeSet<String> = spec
                    .sections("pool")
                    .filter(|own| name_of(own) == name)
                    .flat_map(backends_of)
                    .map(|backend| name_of(backend).to_owned())
                    .collect();
                for backend in backends_of(pool).filter(|own| !kept.contains(name_of(own))) {
                    leaving.push(format!("{name}/{}", name_of(backend)));
                    let mut backend = backend.clone();
                    backend.insert("weight".to_owned(), Value::Integer(0));
                    let mut pools = spec.tables_mut("pool");
                    let own = pools.find(|own| name_of(own) == name);
                    let backends = own.and_then(|own| own.get_mut("backends")?.as_array_mut());
                    if let Some(backends) = backends {
                        backends.push(Value::Table(backend));
                    }
                }
            }
            let leads_there = |section: &Table| {
                let text = |field| section.get(field).and_then(Value::as_str);
                let pool = text("pool").unwrap_or_default();
                let backend = text("backend").map(|backend| format!("{pool}/{backend}"));
                gone.contains(pool) || backend.is_some_and(|own| leaving.contains(&own))
            };
            for kind in [
                "rule",
                "inbound_nat_rule",
                "inbound_nat_pool",
                "outbound_rule",
            ] {
                for section in former.sections(kind).filter(|own| leads_there(own)) {
                    spec.keep(kind, section);
                    for (field, of) in [
                        ("frontend", "frontend"),
                        ("frontends", "frontend"),
                        ("probe", "probe"),
                    ] {
                        let names = match section.get(field) {
                            Some(Value::String(name)) => vec![name.as_str()],
                            Some(Value::Array(all)) => {
                                all.iter().filter_map(Value::as_str).collect()
                            }
                            _ => Vec::new(),
                        };
                        let referred = former.sections(of);
                        for section in referred.filter(|own| names.contains(&name_of(own))) {
                            spec.keep(of, section);
                        }
                    }
                }
            }
        }
        (spec, leaving)
    }

    /// Adds a section, unless there is one with its name.
    fn keep(&mut self, kind: &str, section: &Table) {
        let name = name_of(section);
        if !self.sections(kind).any(|own| name_of(own) == name) {
            self.push(kind, section.clone());
        }
    }

    fn push(&mut self, kind: &str, section: Table) {
        self.is_checked = false;
        let all = self.root.entry(kind.to_owned());
        if let Value::Array(all) = all.or_insert_with(|| Value::Array(Vec::new())) {
            all.push(Value::Table(section));
        }
    }
}

impl Part {
    /// Reads the object under a key of [`Keys::section`].
    ///
    /// # Errors
    /// The object does not match its key, or has a later version.
    pub fn read(keys: &Keys, key: &str, bytes: &[u8]) -> Result<Self, ObjectError> {
        if keys.is_section(BACKENDS, key) {
            let read = Backends::read(key, bytes)?.backends.into_iter();
            let all = read.map(|backend| toml(key, backend));
            return Ok(Self::Backends(all.collect::<Result<_, _>>()?));
        }
        let fields = Fields::read(key, bytes)?.fields.into_iter();
        let fields = fields.map(|(field, value)| Ok((field, toml(key, value)?)));
        Ok(Self::Section(fields.collect::<Result<_, ObjectError>>()?))
    }
}

/// A node's own file, which contains only `[node]`.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFile {
    node: Table,
}

impl NodeFile {
    /// Reads a file; `file` is its name in errors.
    ///
    /// # Errors
    /// All faults, each with its line, including sections other than `[node]`.
    pub fn parse(file: &str, text: &str) -> Result<Self, ObjectError> {
        let parsed = Config::parse(file, text);
        parsed.map_err(|errors| ObjectError::Spec(errors.to_string()))?;
        let root = text.parse::<Table>();
        let mut root = root.map_err(|error| ObjectError::Spec(format!("{file}: {error}")))?;
        let node = root.remove("node");
        if let Some(kind) = root.keys().next() {
            return Err(ObjectError::Spec(format!(
                "{file}: {kind}: expected [node] and nothing else: the rest is the fleet's"
            )));
        }
        match node {
            Some(Value::Table(node)) => Ok(Self { node }),
            _ => Err(ObjectError::Spec(format!("{file}: node: is missing"))),
        }
    }

    /// Returns the whole configuration of the node; `file` is its name in errors.
    ///
    /// # Errors
    /// All faults of both combined.
    pub fn with(&self, file: &str, spec: &Spec) -> Result<Config, ObjectError> {
        spec.config(file, &self.node)
    }
}

/// The objects of a spec.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// All objects by their keys, including the index.
    pub objects: BTreeMap<String, Vec<u8>>,
    index: Index,
    digest: Option<Digest>,
}

impl Objects {
    /// The digest of the index.
    pub fn index(&self) -> Digest {
        self.digest
            .clone()
            .unwrap_or_else(|| Digest::of(&self.index.write()))
    }

    fn add(
        &mut self,
        keys: &Keys,
        kind: &str,
        name: &str,
        bytes: Vec<u8>,
    ) -> Result<Digest, ObjectError> {
        let digest = Digest::of(&bytes);
        let key = keys.section(kind, name, &digest);
        too_long(&key, &bytes)?;
        self.objects.insert(key, bytes);
        Ok(digest)
    }
}

fn too_long(key: &str, bytes: &[u8]) -> Result<(), ObjectError> {
    let (len, most) = (bytes.len(), crate::store::LONGEST_VALUE);
    match len > most {
        true => Err(ObjectError::Spec(format!(
            "{key}: expected at most {most} bytes, got {len}"
        ))),
        false => Ok(()),
    }
}

/// Formats faults without their lines, which refer to no file.
fn unnumbered(errors: &ConfigErrors) -> String {
    let faults = errors.0.iter().map(|error| {
        let place = match error.place.as_str() {
            "" => String::new(),
            place => format!("{place}: "),
        };
        format!("{}: {place}{}", error.file, error.message)
    });
    faults.collect::<Vec<_>>().join("\n")
}

/// Adds all addresses in a value.
fn addresses_in(value: &Value, all: &mut BTreeSet<IpAddr>) {
    match value {
        Value::String(text) => all.extend(text.parse::<IpAddr>().ok()),
        Value::Array(values) => values.iter().for_each(|value| addresses_in(value, all)),
        Value::Table(table) => table.values().for_each(|value| addresses_in(value, all)),
        _ => {}
    }
}

fn name_of(section: &Table) -> &str {
    let name = section.get("name").and_then(Value::as_str);
    name.unwrap_or_default()
}

fn backends_of(pool: &Table) -> impl Iterator<Item = &Table> {
    let all = pool.get("backends").and_then(Value::as_array);
    all.into_iter().flatten().filter_map(Value::as_table)
}

fn take_out(all: &mut Vec<Value>, name: &str) -> bool {
    let before = all.len();
    all.retain(|own| own.as_table().is_none_or(|own| name_of(own) != name));
    all.len() != before
}

fn json(value: &Value) -> Result<serde_json::Value, ObjectError> {
    serde_json::to_value(value).map_err(|error| ObjectError::Spec(error.to_string()))
}

fn toml(key: &str, value: serde_json::Value) -> Result<Value, ObjectError> {
    serde_json::from_value(value).map_err(|error| ObjectError::Unreadable {
        key: key.to_owned(),
        why: error.to_string(),
    })
}

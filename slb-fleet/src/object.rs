//! Objects in the store, and their keys.
//!
//! ```text
//!  /slb/1/CLUSTER/wanted                      which index is wanted             the operator
//!                 spec/index/DIGEST           the names and digests of a spec   the operator, the leader
//!                 spec/KIND/NAME/DIGEST       a section                         the operator, the leader
//!                 state/leader                which controller leads            the leader, under its lease
//!                 state/rollout               which index hosts and muxes have  the leader
//!                 state/agents                which hosts have an agent         the leader
//!                 state/table/POOL            health and weights                the leader
//!                 forget/NAME                 which agent is to be forgotten    the operator
//!                 node/ROLE/NAME              what a node has in place          the node, under its lease
//!                 health/ROLE/NAME            what its probes found             the node, under its lease
//! ```
//! Objects under `spec/` are named by their content, and never change: a node that reads an index
//! finds its sections, even if another spec is applied or the store is compacted meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ring::digest::{SHA256, digest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::rollout::{Refusal, Release, Rollout};

/// The version of the objects that this program writes, and the latest version that it reads.
pub const SCHEMA: u32 = 1;

/// The maximum number of backends in one object.
pub const CHUNK: usize = 500;

/// The digest of an object: the first half of its SHA-256, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(String);

impl Digest {
    /// The digest of an object's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let whole = digest(&SHA256, bytes);
        let half = whole.as_ref().iter().take(16);
        Self(half.map(|byte| format!("{byte:02x}")).collect())
    }

    /// The digest as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The reason why an object cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ObjectError {
    /// An object does not match its key.
    Unreadable {
        /// The key.
        key: String,
        /// The fault.
        why: String,
    },
    /// An object has a later version.
    Newer {
        /// The key.
        key: String,
        /// The version of the object.
        schema: u32,
    },
    /// A referenced object is missing.
    Missing(String),
    /// A configuration cannot be the wanted state of a fleet.
    Spec(String),
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { key, why } => write!(f, "{key}: cannot be read: {why}"),
            Self::Newer { key, schema } => write!(
                f,
                "{key}: is of schema {schema}, and this program reads schemas up to {SCHEMA}: upgrade it"
            ),
            Self::Missing(key) => write!(f, "{key}: is not in the store"),
            Self::Spec(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ObjectError {}

/// The keys of one fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// The keys of the fleet `cluster`.
    pub fn new(cluster: &str) -> Self {
        let cluster = escape(cluster);
        Self {
            prefix: format!("/slb/1/{cluster}/"),
        }
    }

    /// The prefix of all of them.
    pub fn all(&self) -> &str {
        &self.prefix
    }

    /// A key, or the prefix of several.
    pub fn key(&self, rest: &str) -> String {
        format!("{}{rest}", self.prefix)
    }

    /// The key of the wanted state.
    pub fn wanted(&self) -> String {
        self.key("wanted")
    }

    /// The key of an index.
    pub fn index(&self, digest: &Digest) -> String {
        self.key(&format!("spec/index/{digest}"))
    }

    /// The key of a section of a spec.
    pub fn section(&self, kind: &str, name: &str, digest: &Digest) -> String {
        let (kind, name) = (escape(kind), escape(name));
        self.key(&format!("spec/{kind}/{name}/{digest}"))
    }

    /// Returns true if a key is that of a section of this kind.
    pub(crate) fn is_section(&self, kind: &str, key: &str) -> bool {
        let rest = key.strip_prefix(&self.prefix);
        let rest = rest.and_then(|rest| rest.strip_prefix("spec/")?.strip_prefix(&*escape(kind)));
        rest.is_some_and(|rest| rest.starts_with('/'))
    }

    /// The key of a pool's table.
    pub fn table(&self, pool: &str) -> String {
        self.key(&format!("state/table/{}", escape(pool)))
    }

    /// The key of the wish to forget a host's agent.
    pub fn forget(&self, name: &str) -> String {
        self.key(&format!("forget/{}", escape(name)))
    }

    /// The key of a node's report or health: `kind` is `node` or `health`.
    pub fn of_node(&self, kind: &str, role: &str, name: &str) -> String {
        self.key(&format!("{kind}/{role}/{}", escape(name)))
    }
}

/// Escapes a name for a key: characters other than letters, digits and `.-_:` become `%` and two
/// digits.
pub(crate) fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b':' => {
                escaped.push(byte.into());
            }
            _ => escaped += &format!("%{byte:02x}"),
        }
    }
    escaped
}

/// An object with a schema version.
pub trait Object: Serialize + DeserializeOwned {
    /// The object as bytes.
    fn write(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Versioned<'o, T> {
            schema: u32,
            #[serde(flatten)]
            object: &'o T,
        }
        let versioned = Versioned {
            schema: SCHEMA,
            object: self,
        };
        // Text keys, and no value that JSON lacks.
        serde_json::to_vec(&versioned).unwrap_or_default()
    }

    /// Reads an object; `key` is its name in errors.
    ///
    /// # Errors
    /// The bytes are no such object, or have a later version.
    fn read(key: &str, bytes: &[u8]) -> Result<Self, ObjectError> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let unreadable = |why: &dyn fmt::Display| ObjectError::Unreadable {
            key: key.to_owned(),
            why: why.to_string(),
        };
        if bytes.len() > crate::store::LONGEST_VALUE {
            return Err(unreadable(&format!("{} bytes are too many", bytes.len())));
        }
        // Read the version first: a later one may have other fields. Objects of this program begin
        // with it.
        let own = format!("{{\"schema\":{SCHEMA},");
        if !bytes.starts_with(own.as_bytes()) {
            let Version { schema } =
                serde_json::from_slice(bytes).map_err(|error| unreadable(&error))?;
            if schema > SCHEMA {
                let key = key.to_owned();
                return Err(ObjectError::Newer { key, schema });
            }
        }
        serde_json::from_slice(bytes).map_err(|error| unreadable(&error))
    }
}

/// The spec that the operator wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The index of the spec.
    pub index: Digest,
}

/// The sections of a spec, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Sections.
    pub sections: Vec<Item>,
    /// Backends that stay only until their connections have ended, each as `POOL/NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<String>,
}

/// A section of a spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Kind of the section, such as `pool`.
    pub kind: String,
    /// Name of the section.
    pub name: String,
    /// Digest of its fields.
    pub digest: Digest,
    /// Digests of a pool's backends, [`CHUNK`] in each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Digest>,
}

/// The fields of a section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fields {
    /// The fields as a configuration's.
    pub fields: serde_json::Map<String, serde_json::Value>,
}

/// Some of a pool's backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backends {
    /// The backends as a configuration's.
    pub backends: Vec<serde_json::Value>,
}

/// The controller that leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderName {
    /// Name of the controller.
    pub name: String,
    /// The lease of the controller, which distinguishes controllers with the same name.
    pub lease: i64,
}

/// The hosts that have or had an agent, which reports the health of their vms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agents {
    /// The addresses of each agent's host on the fabric, by its name.
    pub agents: BTreeMap<String, Vec<IpAddr>>,
    /// The zone of each agent that has one, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub zones: BTreeMap<String, String>,
}

impl Agents {
    /// The name of the agent at a host.
    pub fn at(&self, host: IpAddr) -> Option<&str> {
        let mut all = self.agents.iter();
        all.find(|(_, addresses)| addresses.contains(&host))
            .map(|(name, _)| name.as_str())
    }

    /// The addresses of an agent's host; `None` if there is no such agent.
    pub fn of(&self, name: &str) -> Option<&[IpAddr]> {
        self.agents.get(&escape(name)).map(Vec::as_slice)
    }

    /// Forgets the zones of agents that are gone.
    pub(crate) fn tidy(&mut self) {
        let agents = &self.agents;
        self.zones.retain(|name, _| agents.contains_key(name));
    }

    /// Takes an address away from an agent, which is gone with its last one.
    pub(crate) fn release(&mut self, name: &str, address: IpAddr) {
        if let Some(own) = self.agents.get_mut(name) {
            own.retain(|other| *other != address);
            if own.is_empty() {
                self.agents.remove(name);
            }
        }
    }
}

/// A request to forget a host's agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forget {}

/// The state that a node reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Addresses of the node on the fabric.
    pub addresses: Vec<IpAddr>,
    /// Version of the node's program.
    pub version: String,
    /// Zone of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The generation that it holds.
    pub held: u64,
    /// The generation that packets are served by.
    pub live: u64,
    /// The index of that generation, since after the loss of a store its number may come again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// The generation that it refused last, and why.
    pub refused: Option<Refusal>,
    /// Connections on leaving backends of the live generation; `None` if unknown.
    pub left: Option<u64>,
}

impl Report {
    /// Returns true if the node serves a release.
    pub fn serves(&self, release: &Release) -> bool {
        release.is_served(self.live, self.index.as_ref())
    }
}

/// The results of a node's probes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Backends that fail: pool, probe and name of each.
    pub failing: Vec<(String, String, String)>,
}

/// Health and weights of a pool, the same for all nodes. The configuration applies to all other
/// backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Counts the changes of the table.
    pub epoch: u64,
    /// Name of the pool.
    pub pool: String,
    /// Entries for each probe of the pool's rules, and for the backends' own state.
    pub by: Vec<By>,
}

/// The health of a pool's backends by one probe, or by their own state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// Name of the probe; `None`: the backends' own state.
    pub probe: Option<String>,
    /// Backends that fail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<String>,
    /// The weights of all backends of the pool in tenths, while some backend is ramping up.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, u32>,
}

impl Object for Wanted {}
impl Object for Index {}
impl Object for Fields {}
impl Object for Backends {}
impl Object for LeaderName {}
impl Object for Agents {}
impl Object for Forget {}
impl Object for Report {}
impl Object for Health {}
impl Object for Table {}
impl Object for Rollout {}

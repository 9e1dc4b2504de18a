//! The configuration: one TOML file, named as Azure names things, in snake case.
//!
//! A [`Config`] is valid: every reference resolves, no two rules match the same packets, and a
//! snapshot can be built. `docs/configuration.md` lists the fields.

pub(crate) mod addresses;
mod fleet;
mod networks;
mod node;
mod origin;
mod public;
mod read;
mod security;
mod services;
mod spec;
mod standing;
mod vms;
mod warnings;
mod zones;

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use slb_core::mem::Memory;
use slb_core::nat::{DirectFlows, NatOptions};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{BackendHealth, SpecError};
use slb_core::{FragmentRoom, Key, MuxOptions, PortId, SourceLimiter};

use crate::document::{Faults, Section};
use crate::error::{ConfigError, ConfigErrors};
use crate::file::open_file;
use crate::ports::Ports;
use crate::validate;
use toml::Spanned;
use toml::de::DeTable;

pub use slb_core::spec::Protocol;

pub use self::fleet::Common;
pub use self::networks::{Network, NetworkVm};
pub use self::node::{Node, PROBE_SOURCE_IPV4, PROBE_SOURCE_IPV6, Role};
pub use self::origin::Origin;
pub use self::public::PublicAddress;
pub use self::security::{SecurityList, SecurityRule};
pub(crate) use self::security::{direction_name, named, named_ports};
pub use self::services::{
    Backend, Frontend, InboundNat, MAX_IDLE_TIMEOUT, MIN_IDLE_TIMEOUT, NoHealthyBackends, Outbound,
    Pool, Probe, ProbeProtocol, Rule,
};
pub use self::standing::Standing;
pub use self::vms::Vm;
pub(crate) use self::zones::changes as zone_changes;
pub use self::zones::{LONGEST_ZONE, ZoneShare};

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[node]`.
    pub node: Node,
    /// `[[network]]`.
    pub networks: Vec<Network>,
    /// `[[vm]]`.
    pub network_vms: Vec<NetworkVm>,
    /// `[[public_address]]`.
    pub public_addresses: Vec<PublicAddress>,
    /// `[[security_list]]`, each with its `[[security_rule]]`s.
    pub security_lists: Vec<SecurityList>,
    /// `[[frontend]]`.
    pub frontends: Vec<Frontend>,
    /// `[[pool]]`.
    pub pools: Vec<Pool>,
    /// `[[probe]]`.
    pub probes: Vec<Probe>,
    /// `[[rule]]`.
    pub rules: Vec<Rule>,
    /// `[[inbound_nat_rule]]`, then `[[inbound_nat_pool]]`.
    pub inbound_nat: Vec<InboundNat>,
    /// `[[outbound_rule]]`, then the outbound rules that load-balancing rules imply.
    pub outbound: Vec<Outbound>,
    /// `[[port]]` and `[[source_rewrite]]` of a proxy.
    pub ports: Ports,
    /// Health by probes so far, which is not part of the file.
    pub health: Findings,
    /// The text of the configuration.
    pub origin: Arc<Origin>,
}

/// Health of backends by their probes, in addition to their configured state.
///
/// A finding belongs to a pool, a probe and a backend, given by their indexes in the configuration;
/// a rule uses the findings of its own probe. A backend without a finding is healthy.
#[derive(Clone, Debug, Default)]
pub struct Findings(BTreeMap<(usize, usize, usize), BackendHealth>);

impl Findings {
    /// Returns the finding of a probe about a backend of a pool.
    pub fn of(&self, pool: usize, probe: usize, backend: usize) -> BackendHealth {
        let found = self.0.get(&(pool, probe, backend));
        found.copied().unwrap_or_default()
    }

    /// Records a finding.
    pub fn set(&mut self, pool: usize, probe: usize, backend: usize, found: BackendHealth) {
        self.0.insert((pool, probe, backend), found);
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// All faults, each with its line. An unreadable file is a fault on line 1.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self, ConfigErrors> {
        let file = path.as_ref().display().to_string();
        Self::of_bounded(&file, open_file(path))
    }

    /// Reads and checks the text of a reader; `file` is its name in errors.
    ///
    /// # Errors
    /// The same errors as of [`from_path`](Self::from_path).
    pub fn from_reader(file: &str, reader: impl io::Read) -> Result<Self, ConfigErrors> {
        Self::of_bounded(file, Ok(reader))
    }

    fn of_bounded(file: &str, reader: io::Result<impl io::Read>) -> Result<Self, ConfigErrors> {
        match read_text(reader) {
            Ok(text) => Self::parse(file, &text),
            Err(message) => Err(ConfigErrors(vec![ConfigError {
                file: file.to_owned(),
                line: 1,
                place: String::new(),
                message,
            }])),
        }
    }

    /// Reads and checks a text; `file` is its name in errors.
    ///
    /// # Errors
    /// All faults, each with its line.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        let faults = Faults::new(file, text);
        match parse_document(text, &faults) {
            Some(document) => Self::of_document(&document, faults),
            None => Err(faults.into_errors()),
        }
    }

    fn of_document(
        document: &Spanned<DeTable<'_>>,
        faults: Faults<'_>,
    ) -> Result<Self, ConfigErrors> {
        let config = {
            let root = Section::root(document, &faults);
            let origin = Origin::new(faults.file(), faults.text(), document.get_ref());
            let config = read::read(&root, origin);
            root.finish();
            config
        };
        if let Some(config) = config {
            if validate::is_too_large(&config, &faults) {
                return Err(faults.into_errors());
            }
            validate::check(&config, &faults);
            if faults.is_empty() {
                return Ok(config);
            }
        }
        Err(faults.into_errors())
    }

    /// Returns the configuration for a node with another role. A mux out of a host's configuration gets addresses of
    /// its own, as [`Node::become_mux`] says. Sections that the role does not use have no effect.
    ///
    /// # Errors
    /// Everything that the role cannot have, such as private frontends at a proxy, each with its line.
    pub fn in_role(mut self, role: Role) -> Result<Self, ConfigErrors> {
        match (self.node.role, role) {
            (Role::Host, Role::Mux) => self.node.become_mux(),
            (_, role) => self.node.role = role,
        }
        let origin = Arc::clone(&self.origin);
        let faults = Faults::new(&origin.name, origin.text());
        validate::check_role(&self, &faults);
        match faults.is_empty() {
            true => Ok(self),
            false => Err(faults.into_errors()),
        }
    }

    /// Returns the MTU that the node needs for IPv6, with the reason, if it has less: an interface may have got a smaller
    /// MTU than the file was checked with.
    pub fn short_mtu(&self) -> Option<(usize, String)> {
        validate::short_mtu(self)
    }

    /// Compiles the configuration. Pass the installed snapshot as `previous`, so that backends keep
    /// their ids.
    ///
    /// # Errors
    /// Only an error that [`parse`](Self::parse) cannot detect: there are more backends than ids.
    pub fn snapshot(
        &self,
        previous: Option<&Snapshot<'_>>,
    ) -> Result<Arc<Snapshot<'static>>, SpecError> {
        self.with_spec(|spec| Snapshot::new(spec, previous))
            .map(Arc::new)
    }

    /// Makes the limit on the new flows of each source, with buckets from `memory`, if the node has
    /// one; the inner option is `None` if `memory` is used up.
    pub fn source_limit<'m>(
        &self,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Option<Option<SourceLimiter<'m>>> {
        let (rate, at_once) = (
            self.node.flows_per_source,
            self.node.flows_per_source_at_once,
        );
        let build = || SourceLimiter::build(SourceLimiter::BUCKETS, rate, at_once, key, memory);
        (rate > 0).then(build)
    }

    /// Takes the memory for waiting later fragments from `memory`, if the node has any; the inner
    /// option is `None` if `memory` is used up.
    pub fn fragment_room<'m>(
        &self,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Option<Option<FragmentRoom<'m>>> {
        let slots = self.node.waiting_fragments;
        (slots > 0).then(|| FragmentRoom::build(slots, key, memory))
    }

    /// The table of direct flows out of `memory`, if the node has one: of host agents with access lists. The inner
    /// option is `None` if `memory` is used up.
    pub fn direct_flows<'m>(
        &self,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Option<Option<DirectFlows<'m>>> {
        let flows = self.node.direct_flows;
        let is_used = self.node.role == Role::Host && flows > 0;
        is_used.then(|| DirectFlows::build(flows, key, memory))
    }

    /// Returns the options of a mux with this configuration.
    pub fn mux_options(&self) -> MuxOptions {
        MuxOptions {
            answers_per_second: self.node.answers_per_second,
            too_big_per_second: self.node.too_big_per_second,
            errors_per_second: self.node.errors_per_second,
            resets_per_second: self.node.resets_per_second,
            ..MuxOptions::default()
        }
    }

    /// Returns the options of a host agent or a proxy with this configuration.
    pub fn nat_options(&self) -> NatOptions {
        NatOptions {
            answers_per_second: self.node.answers_per_second,
            too_big_per_second: self.node.too_big_per_second,
            errors_per_second: self.node.errors_per_second,
            resets_per_second: self.node.resets_per_second,
            passes_per_second: self.node.passes_per_second,
            passes_at_once: self.node.passes_per_second.div_ceil(10),
            take_ups_per_second: self.node.take_ups_per_second,
            take_ups_at_once: self.node.take_ups_per_second,
            icmp_source_ipv4: self.node.icmp_source_ipv4,
            icmp_source_ipv6: self.node.icmp_source_ipv6,
            clamp_mss: self.node.clamp_mss,
            ..NatOptions::default()
        }
    }

    /// Returns the port by which packets to backends leave: the fabric's port 0, or a proxy's
    /// backend port.
    pub fn backend_port(&self) -> PortId {
        match self.node.role {
            Role::Mux | Role::Host => PortId(0),
            Role::Proxy => self.ports.backend(),
        }
    }

    /// Returns the longest IP packet on the fabric in bytes, as configured or by default.
    pub fn mtu(&self) -> u16 {
        self.node.underlay().mtu
    }

    /// Returns warnings about valid settings that are seldom intended, a line each.
    pub fn warnings(&self) -> Vec<String> {
        warnings::of(self)
    }

    /// Returns the losses against `old` that are seldom intended, a line each: all rules of a VIP,
    /// or half of a pool's backends and more.
    pub fn losses(&self, old: &Self) -> Vec<String> {
        warnings::losses(old, self)
    }

    /// Returns the pools and probes that rules use, each pair once.
    pub fn probed_pools(&self) -> Vec<(usize, usize)> {
        let mut seen = HashSet::new();
        let probed = self.rules.iter();
        let probed = probed.filter_map(|rule| Some((rule.pool, rule.probe?)));
        probed.filter(|&pair| seen.insert(pair)).collect()
    }

    /// Returns the pools that this node probes, each with the probe. A mux is not on the way to
    /// private frontends, and does not probe for their rules.
    pub(crate) fn asked_pools(&self) -> Vec<(usize, usize)> {
        let is_mux = self.node.role == Role::Mux;
        let is_public = |frontend: usize| {
            let frontend = self.frontends.get(frontend);
            frontend.is_none_or(|frontend| frontend.network.is_none())
        };
        let rules = self.rules.iter();
        let asked = rules.filter(|rule| !is_mux || is_public(rule.frontend));
        let mut seen = HashSet::new();
        let asked = asked.filter_map(|rule| Some((rule.pool, rule.probe?)));
        asked.filter(|&pair| seen.insert(pair)).collect()
    }

    /// Returns the first backend with a name, or with its pool's name and its own: `pool/name`.
    pub fn backend_mut(&mut self, name: &str) -> Option<&mut Backend> {
        let (pool, name) = match name.split_once('/') {
            Some((pool, name)) => (Some(pool), name),
            None => (None, name),
        };
        let pools = self
            .pools
            .iter_mut()
            .filter(|p| pool.is_none_or(|pool| p.name == pool));
        pools
            .flat_map(|pool| &mut pool.backends)
            .find(|backend| backend.name == name)
    }
}

/// The maximum size of a file in bytes.
pub const LARGEST_FILE: u64 = 16 << 20;
/// The maximum number of backends in all pools together.
pub const MOST_BACKENDS: usize = 1 << 16;
/// The maximum number of frontends, and of rules of all kinds together.
pub const MOST_RULES: usize = 1 << 14;
/// The maximum number of slots of two bytes in all Maglev tables together. A pool has a table, and
/// another one for each probe that its rules use.
pub const MOST_SLOTS: u64 = 1 << 28;

/// Errors of the TOML itself that are told: one missing bracket may make thousands.
const MOST_TOML_ERRORS: usize = 100;

/// Parses a text as TOML. Reports syntax errors, and returns `None` in that case.
fn parse_document<'t>(text: &'t str, faults: &Faults<'_>) -> Option<Spanned<DeTable<'t>>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if let Some(place) = text.find('\0') {
        let message = "expected text, got a NUL byte: is it another file, or in UTF-16?";
        faults.add(&(place..place + 1), "", message);
        return None;
    }
    for error in errors.iter().take(MOST_TOML_ERRORS) {
        let span = error.span().unwrap_or(0..0);
        let is_duplicate = error.message() == "duplicate key";
        let key = text.get(span.clone()).filter(|_| is_duplicate);
        let message = match key {
            Some(key) => format!("duplicate key {key:?}"),
            None => error.message().to_owned(),
        };
        faults.add(&span, "", message);
    }
    faults.is_empty().then_some(document)
}

/// Reads a file that a user named, such as a configuration, up to one byte more than allowed.
///
/// # Errors
/// The text cannot be read, is too large or is not UTF-8; the message says which.
pub fn read_text(reader: io::Result<impl io::Read>) -> Result<String, String> {
    let read = |mut bytes: Vec<u8>| {
        reader?.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
        Ok::<Vec<u8>, io::Error>(bytes)
    };
    let bytes = read(Vec::new()).map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(format!(
            "expected a file of at most {LARGEST_FILE} bytes, got more"
        ));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("expected text in UTF-8, got UTF-16: save the file as UTF-8".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(place).copied().unwrap_or_default();
        format!("expected text in UTF-8, got byte {byte:#04x} at byte {place}, which is none")
    })
}

//! `[[port]]` and `[[source_rewrite]]`: the ports of a proxy's clients and backends.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use slb_core::PortId;
use slb_core::spec::{FrontendPort, PortMode, ProxyPorts, SourceRewrite};

use crate::config::addresses::{self, Kind};
use crate::document::{Faults, Section, Span};

/// Side of a proxy that a port is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// The side of the clients.
    Frontend,
    /// The side of the backends.
    Backend,
}

/// `[[port]]`.
#[derive(Clone, Debug)]
pub struct Port {
    /// Name of the port.
    pub name: String,
    /// Side that the port is on.
    pub kind: PortKind,
    /// The number of frontend ports; all ports with this field have to agree.
    pub mode: Option<PortMode>,
    /// The address of the client at a frontend port.
    pub address: Option<Ipv4Addr>,
    pub(crate) span: Span,
}

/// The ports of a proxy, numbered in the order of the file.
#[derive(Clone, Debug)]
pub struct Ports {
    /// `[[port]]`; without any, `frontend` and `backend`.
    pub all: Vec<Port>,
    /// `[[source_rewrite]]`.
    pub source_rewrites: Vec<SourceRewrite>,
    pub(crate) rewrite_spans: Vec<Span>,
}

impl Ports {
    /// Returns the number of frontend ports.
    pub fn mode(&self) -> PortMode {
        let said = self.all.iter().find_map(|port| port.mode);
        said.unwrap_or_default()
    }

    /// Returns the number of the port with a name.
    pub fn by_name(&self, name: &str) -> Option<PortId> {
        let place = self.all.iter().position(|port| port.name == name)?;
        Some(PortId(place as u16))
    }

    /// The name of a port.
    pub fn name(&self, port: PortId) -> Option<&str> {
        Some(&self.all.get(usize::from(port.0))?.name)
    }

    /// The number of the backend port.
    pub(crate) fn backend(&self) -> PortId {
        let backend = self.of(PortKind::Backend).next();
        backend.map(|(port, _)| port).unwrap_or_default()
    }

    fn of(&self, kind: PortKind) -> impl Iterator<Item = (PortId, &Port)> {
        let numbered = (0..).map(PortId).zip(&self.all);
        numbered.filter(move |(_, port)| port.kind == kind)
    }

    /// Returns the frontend ports in the dataplane's type.
    pub(crate) fn frontends(&self) -> Vec<FrontendPort> {
        let spec = |(port, of): (PortId, &Port)| FrontendPort {
            port,
            address: of.address,
        };
        self.of(PortKind::Frontend).map(spec).collect()
    }

    /// Returns the ports in the dataplane's type.
    pub(crate) fn spec<'a>(&'a self, frontends: &'a [FrontendPort]) -> ProxyPorts<'a> {
        ProxyPorts {
            mode: self.mode(),
            frontends,
            backend: self.backend(),
            source_rewrites: &self.source_rewrites,
        }
    }
}

/// Reads all ports; `None` if one of them has a fault.
pub(crate) fn read(root: &Section<'_>) -> Option<Ports> {
    let ports: Vec<_> = root.sections("port").into_iter().map(read_port).collect();
    let rewrites = root.sections("source_rewrite").into_iter();
    let rewrites: Vec<_> = rewrites.map(read_source_rewrite).collect();
    let rewrites: Option<Vec<_>> = rewrites.into_iter().collect();
    let mut all: Vec<Port> = ports.into_iter().collect::<Option<_>>()?;
    if all.is_empty() {
        let port = |name: &str, kind| Port {
            name: name.to_owned(),
            kind,
            mode: None,
            address: None,
            span: 0..0,
        };
        all = vec![
            port("frontend", PortKind::Frontend),
            port("backend", PortKind::Backend),
        ];
    }
    let (source_rewrites, rewrite_spans) = rewrites?.into_iter().unzip();
    Some(Ports {
        all,
        source_rewrites,
        rewrite_spans,
    })
}

fn read_port(section: Section<'_>) -> Option<Port> {
    let name = section.name("name");
    let kinds = [
        ("frontend", PortKind::Frontend),
        ("backend", PortKind::Backend),
    ];
    let kind = section.required_choice("type", &kinds);
    let modes = [("single", PortMode::Single), ("multi", PortMode::Multi)];
    let mode = section
        .has("mode")
        .then(|| section.choice("mode", &modes, PortMode::Single));
    let address = addresses::optional(&section, "address", Kind::Ipv4Host);
    if let (Some((PortKind::Backend, _)), Some((_, span))) = (&kind, &address) {
        section.fault(span, "address", "is for frontend ports");
    }
    let is_unreadable = section.has("address") && address.is_none();
    let span = section.span().clone();
    section.finish();
    let port = Port {
        name: name?.0,
        kind: kind?.0,
        mode,
        address: match address {
            Some((IpAddr::V4(address), _)) => Some(address),
            _ => None,
        },
        span,
    };
    (!is_unreadable).then_some(port)
}

fn read_source_rewrite(section: Section<'_>) -> Option<(SourceRewrite, Span)> {
    let from = addresses::required_range(&section, "from", Kind::Host);
    let to = addresses::required_range(&section, "to", Kind::Host);
    let rewrite = from.zip(to).and_then(|((from, _), (to, span))| {
        if from.address.is_ipv6() != to.address.is_ipv6() || from.len != to.len {
            let message = format!("expected a range of the size of {from}, got {to}");
            section.fault(&span, "to", message);
            return None;
        }
        Some(SourceRewrite {
            from: from.address,
            to: to.address,
            prefix_len: from.len,
        })
    });
    let span = section.span().clone();
    section.finish();
    Some((rewrite?, span))
}

/// Reports contradictions between ports that are valid by themselves.
pub(crate) fn check(ports: &Ports, faults: &Faults<'_>) {
    let first = ports.all.iter().find(|port| port.mode.is_some());
    let mode = ports.mode();
    let mut names = HashMap::new();
    for port in &ports.all {
        let place = format!("port {:?}", port.name);
        if names.insert(&port.name, ()).is_some() {
            faults.add(&port.span, place.clone(), "duplicate name");
        }
        if let (Some(own), Some(first)) = (port.mode, first)
            && own != mode
        {
            let message = format!("port {:?} is in another: all are in one", first.name);
            faults.add(&port.span, format!("{place}: mode"), message);
        }
    }
    for (kind, name) in [
        (PortKind::Frontend, "frontend"),
        (PortKind::Backend, "backend"),
    ] {
        let one = kind == PortKind::Backend || mode == PortMode::Single;
        let mut of_kind = ports.of(kind);
        if of_kind.next().is_none() {
            let span = ports.all.first().map_or(0..0, |port| port.span.clone());
            faults.add(&span, "port", format!("expected a {name} port, got none"));
        }
        if let Some((_, second)) = of_kind.next().filter(|_| one) {
            let hint = match kind {
                PortKind::Frontend => " in \"single\" mode: mode = \"multi\" has several",
                PortKind::Backend => "",
            };
            let message = format!("expected one {name} port{hint}");
            faults.add(&second.span, format!("port {:?}", second.name), message);
        }
    }
}

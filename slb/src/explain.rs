//! `slb explain`: the path of one packet, as reported by the pipeline.

#[cfg(feature = "live")]
mod live;

use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use slb_control::config::Vm;
use slb_control::ports::PortKind;
use slb_control::{Config, Role};
use slb_core::observe::{Step, Trail};
use slb_core::snapshot::RuleMatch;
use slb_core::spec::Spec;
use slb_core::wire::ethernet::{self, EtherType, Ethernet, MacAddress};
use slb_core::wire::ipv4::Ipv4;
use slb_core::wire::ipv6::Ipv6;
use slb_core::wire::udp::Udp;
use slb_core::wire::vxlan::Vxlan;
use slb_core::{Burst, Frame, HEADROOM, Instant, PacketIo, PortId, Verdict};
use slb_io_pcap::{Capture, memory_for};

use crate::Failure;
use crate::balancer::Balancer;
use crate::check::load_balancer;
use crate::cli::ExplainOptions;
use crate::replay::{first_frontend, inputs, port_named};

pub(crate) fn run(options: &ExplainOptions) -> Result<(), Failure> {
    #[cfg(feature = "live")]
    if options.live {
        return live::run(options);
    }
    let expected = || {
        Failure::usage(
            "explain: expected a configuration, and PROTOCOL SOURCE DESTINATION or --in FILE --packet N",
        )
    };
    let (path, tuple) = options.read().ok_or_else(expected)?;
    let config = load_balancer(path, &options.balancer)?;
    let from = options.from.as_deref();
    let from = from.map(|name| port_from(&config, name)).transpose()?;
    let mut balancer = Balancer::new(&config)?;
    match options.packet {
        Some(wanted) => {
            let (readers, _) = inputs(&config, &options.input)?;
            let files = options.input.join(", ");
            let title = format!("packet {wanted} of {files}");
            let mut memory = vec![0; memory_for(64)];
            // Bytes cut by a snap length are no fault of the packet.
            let capture: Capture<'_, Vec<u8>> = Capture::of_ports(readers, &mut memory);
            let mut capture = capture.fill_cut();
            let mut burst = Burst::new();
            let mut seen = 0;
            while !capture.is_at_end() {
                capture
                    .receive(&mut burst)
                    .map_err(|error| Failure::failed(format!("{files}: {error}")))?;
                let place = wanted
                    .checked_sub(seen + 1)
                    .map_or(usize::MAX, |n| n as usize);
                let now = capture.now();
                for frame in burst.iter_mut() {
                    match from {
                        Some(port) => frame.set_port(port),
                        None => balancer.set_port(frame),
                    }
                }
                if place < burst.len() {
                    let len = burst[place].len();
                    let cut = cut_text(capture.filled(&burst[place]), len);
                    say_line!("{title}, {len} bytes, at {now}{cut}")?;
                    if from.is_none() {
                        sender(&config, burst[place].bytes())?;
                    }
                    let mut out = String::new();
                    explain(&config, &mut balancer, now, &mut burst, place, &mut out);
                    say!("{out}")?;
                    return Ok(());
                }
                balancer.process(now, &mut burst, &mut ());
                seen += burst.len() as u64;
                capture.transmit(&mut burst).map_err(Failure::failed)?;
            }
            Err(Failure::usage(format!(
                "{title}: the capture has {seen} packets"
            )))
        }
        None => {
            let from = match from {
                None => speaker(&config, tuple)?,
                said => said,
            };
            let packet = made_from(&config, tuple, from)?;
            say_line!("a packet made for it, {} bytes", packet.len())?;
            say!("{}", explain_made(&config, balancer, &packet, from)?)?;
            Ok(())
        }
    }
}

/// Returns a text about the bytes that a snap length cut off.
fn cut_text(missing: usize, len: usize) -> String {
    match missing {
        0 => String::new(),
        _ => format!(
            ", of which the capture has {}: the others count as zeros",
            len.saturating_sub(missing)
        ),
    }
}

/// Returns the port of the only vm of a host agent for which `is_it` is true; `None` if there is
/// none.
///
/// # Errors
/// There are several, for example in two networks.
fn only_vm(
    config: &Config,
    what: &dyn std::fmt::Display,
    is_it: impl Fn(&Vm) -> bool,
) -> Result<Option<PortId>, Failure> {
    if config.node.role != Role::Host {
        return Ok(None);
    }
    let vms = config.vms().into_iter();
    let found: Vec<Vm> = vms.filter(|vm| vm.port.is_some() && is_it(vm)).collect();
    match &found[..] {
        [] => Ok(None),
        [one] => Ok(one.port),
        several => {
            let named = several.iter().map(|vm| {
                let port = vm.port.unwrap_or_default().0;
                format!("{:?} (port {port}, VNI {})", vm.name, vm.vni)
            });
            let named = named.collect::<Vec<_>>().join(" and ");
            Err(Failure::usage(format!(
                "{what} belongs to the vms {named}: give the port of the sending vm with --from"
            )))
        }
    }
}

/// Returns the port of the vm with the source address of a tuple.
///
/// # Errors
/// Several vms match.
pub(crate) fn speaker(config: &Config, tuple: &[String]) -> Result<Option<PortId>, Failure> {
    let Some(source) = tuple.get(1) else {
        return Ok(None);
    };
    let address = source.parse::<IpAddr>().ok();
    let address = address.or_else(|| Some(source.parse::<SocketAddr>().ok()?.ip()));
    match address {
        Some(address) => only_vm(config, &address, |vm| vm.addresses.contains(&address)),
        None => Ok(None),
    }
}

/// Returns the port of the vm with a frame's source MAC address.
///
/// # Errors
/// Several vms match.
pub(crate) fn sender(config: &Config, frame: &[u8]) -> Result<Option<PortId>, Failure> {
    match frame.get(6..).and_then(<[u8]>::first_chunk::<6>) {
        Some(mac) => only_vm(config, &MacAddress(*mac), |vm| vm.mac.0 == *mac),
        None => Ok(None),
    }
}

/// Returns the port that `--from` names, at which packets arrive.
pub(crate) fn port_from(config: &Config, name: &str) -> Result<PortId, Failure> {
    let mut names: Vec<(PortId, String)> = match config.node.role {
        Role::Proxy => {
            let ports = (0..).map(PortId).zip(&config.ports.all);
            ports.map(|(port, own)| (port, own.name.clone())).collect()
        }
        Role::Host | Role::Mux => {
            let vms = config.vms().into_iter();
            vms.filter_map(|vm| Some((vm.port?, vm.name))).collect()
        }
    };
    if config.node.role != Role::Proxy {
        names.push((PortId(0), "0".to_owned()));
    }
    let wanted = port_named(config, name);
    let found = wanted.filter(|wanted| names.iter().any(|(port, _)| port == wanted));
    found.ok_or_else(|| {
        let names: Vec<String> = names.iter().map(|(_, name)| format!("{name:?}")).collect();
        let names = names.join(", ");
        Failure::usage(format!(
            "--from {name:?}: no such port: expected one of {names}"
        ))
    })
}

/// Explains a generated packet. A host agent gets packets from outside through a mux, so the mux's
/// steps come first.
pub(crate) fn explain_made(
    config: &Config,
    mut balancer: Balancer,
    packet: &[u8],
    from: Option<PortId>,
) -> Result<String, Failure> {
    let mut out = String::new();
    let now = Instant::from_secs(1);
    let of_source = packet
        .first_chunk::<12>()
        .and_then(|macs| balancer.port_of(core::array::from_fn(|i| macs[6 + i])));
    let by = from.or(of_source);
    let is_from_vm = by.is_some_and(|port| port != PortId(0));
    let through_mux = config.node.role == Role::Host && !is_from_vm;
    let mut buffer = vec![0; HEADROOM + packet.len() + HEADROOM];
    buffer[HEADROOM..HEADROOM + packet.len()].copy_from_slice(packet);
    let frame = Frame::new(&mut buffer, HEADROOM, packet.len());
    let mut frames = [frame.unwrap_or(Frame::EMPTY)];
    if !through_mux {
        match by {
            Some(port) => frames[0].set_port(port),
            None if config.node.role == Role::Proxy => {
                frames[0].set_port(proxy_port(config, packet));
            }
            None => balancer.set_port(&mut frames[0]),
        }
        explain(config, &mut balancer, now, &mut frames, 0, &mut out);
        return Ok(out);
    }
    let mut at_mux = config.clone();
    at_mux.node.become_mux();
    out += "at a mux with this configuration:\n";
    let mut mux = Balancer::new(&at_mux)?;
    explain(&at_mux, &mut mux, now, &mut frames, 0, &mut out);
    let sent = frames[0].bytes().to_vec();
    let here = match Ethernet::parse(&sent).map(|link| (link.ether_type(), link.payload())) {
        Ok((EtherType::IPV4, ip)) => {
            Ipv4::parse(ip).is_ok_and(|ip| config.node.is(ip.destination().into()))
        }
        Ok((EtherType::IPV6, ip)) => {
            Ipv6::parse(ip).is_ok_and(|ip| config.node.is(ip.destination().into()))
        }
        _ => false,
    };
    if !matches!(frames[0].verdict(), Verdict::Forward(_)) || !here {
        out += "it does not come to this host\n";
        return Ok(out);
    }
    out += "at this host:\n";
    let frame = Frame::new(&mut buffer, 0, sent.len()).unwrap_or(Frame::EMPTY);
    let mut frames = [frame];
    frames[0].bytes_mut().copy_from_slice(&sent);
    balancer.set_port(&mut frames[0]);
    explain(config, &mut balancer, now, &mut frames, 0, &mut out);
    Ok(out)
}

/// Returns the port of a proxy at which a packet arrives: the backend port, if it comes from a
/// backend.
pub(crate) fn proxy_port(config: &Config, packet: &[u8]) -> PortId {
    let link = Ethernet::parse(packet).ok();
    let source: Option<IpAddr> = link.and_then(|link| match link.ether_type() {
        EtherType::IPV4 => Some(Ipv4::parse(link.payload()).ok()?.source().into()),
        _ => Some(Ipv6::parse(link.payload()).ok()?.source().into()),
    });
    let mut backends = config.pools.iter().flat_map(|pool| &pool.backends);
    if backends.any(|backend| Some(backend.address) == source) {
        let all = (0..).map(PortId).zip(&config.ports.all);
        let mut of_backends = all.filter(|(_, port)| port.kind == PortKind::Backend);
        return of_backends.next().map_or(PortId(0), |(port, _)| port);
    }
    first_frontend(config)
}

/// Makes a SYN, a datagram or an echo request with this tuple, from the vm at port `from`, or else
/// the vm with the source address.
pub(crate) fn made_from(
    config: &Config,
    tuple: &[String],
    from: Option<PortId>,
) -> Result<Vec<u8>, Failure> {
    let bad = |what: &str, got: &str| Failure::usage(format!("expected {what}, got {got:?}"));
    let [protocol, source, destination] = tuple else {
        return Err(bad("PROTOCOL SOURCE DESTINATION", &tuple.join(" ")));
    };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "icmp") {
        return Err(bad("tcp, udp or icmp", protocol));
    }
    let has_ports = protocol != "icmp";
    let endpoint = |text: &String| -> Result<SocketAddr, Failure> {
        if has_ports {
            text.parse().map_err(|_| bad("ADDRESS:PORT", text))
        } else {
            let address: Result<IpAddr, _> = text.parse();
            address
                .map(|a| SocketAddr::new(a, 0))
                .map_err(|_| bad("an address", text))
        }
    };
    let (source, destination) = (endpoint(source)?, endpoint(destination)?);
    let vms = config.vms();
    let vm = match from {
        Some(_) => vms.iter().find(|vm| vm.port == from),
        None => vms.iter().find(|vm| vm.addresses.contains(&source.ip())),
    };
    let mac = vm.map_or([2, 0, 0, 0, 0, 3], |vm| vm.mac.0);
    let link = PacketBuilder::ethernet2(mac, [2, 0, 0, 0, 0, 1]);
    let (ip, is_ipv6) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (link.ipv4(a.octets(), b.octets(), 64), false),
        (IpAddr::V6(a), IpAddr::V6(b)) => (link.ipv6(a.octets(), b.octets(), 64), true),
        _ => return Err(bad("two addresses of one family", &tuple.join(" "))),
    };
    let (from, to) = (source.port(), destination.port());
    let mut packet = Vec::new();
    let written = match protocol.as_str() {
        "tcp" => ip.tcp(from, to, 1, 65_535).syn().write(&mut packet, &[]),
        "udp" => ip.udp(from, to).write(&mut packet, &[]),
        "icmp" if is_ipv6 => ip.icmpv6_echo_request(1, 1).write(&mut packet, &[]),
        _ => ip.icmpv4_echo_request(1, 1).write(&mut packet, &[]),
    };
    written.map_err(Failure::failed)?;
    Ok(packet)
}

/// Processes `frames`, and adds to `out` what happens to the one at `place`.
pub(crate) fn explain(
    config: &Config,
    balancer: &mut Balancer,
    now: Instant,
    frames: &mut [Frame<'_>],
    place: usize,
    out: &mut String,
) {
    let mut trail = Trail::new(place);
    balancer.process(now, frames, &mut trail);
    config.with_spec(|spec| {
        for step in trail.steps() {
            let text = step_text(config, spec, step);
            *out += &format!("  {:<10} {text}\n", step.label());
        }
    });
    if let Some(text) = zones_text(config, &trail) {
        *out += &format!("  {:<10} {text}\n", "zone");
    }
    if config.node.role == Role::Mux
        && let Some(Verdict::Forward(_)) = trail.verdict()
        && let Some(frame) = frames.get(place)
        && let Some(text) = outer(frame.bytes())
    {
        *out += &format!("  {:<10} {text}\n", "outer");
        if let Some(text) = former_owners(config, &trail) {
            *out += &format!("  {:<10} {text}\n", "passed on");
        }
    }
}

/// The zones of a packet's frontend and backend; `None` where neither has any.
fn zones_text(config: &Config, trail: &Trail) -> Option<String> {
    let (mut frontend, mut backend) = (None, None);
    let backends = || config.pools.iter().flat_map(|pool| &pool.backends);
    for step in trail.steps() {
        match *step {
            Step::Classified(RuleMatch::Rule(rule)) => {
                let rules = config.rules.iter().map(|rule| rule.frontend);
                let nat = config.inbound_nat.iter().map(|nat| nat.frontend);
                let place = rules.chain(nat).nth(rule as usize);
                frontend = place.and_then(|place| config.frontends.get(place));
            }
            Step::Selected(place) => backend = backends().nth(place as usize),
            _ => {}
        }
    }
    let of_backend = backend.and_then(|own| {
        let zone = own.zone.as_deref()?;
        Some(format!("backend {:?} is in zone {zone}", own.name))
    });
    let of_frontend = frontend.and_then(|own| {
        let name = &own.name;
        let zone = match (own.zone(), own.zones.as_slice()) {
            (Some(zone), _) => zone,
            (None, []) => return None,
            (None, zones) => {
                let zones = zones.join(", ");
                return Some(format!(
                    "frontend {name:?} is zone-redundant (zones {zones})"
                ));
            }
        };
        let elsewhere = match config.node.zone.as_deref() {
            Some(here) if config.node.role == Role::Mux && !config.announces(own) => {
                format!(", so this mux, in zone {here}, does not announce it")
            }
            _ => String::new(),
        };
        Some(format!("frontend {name:?} is of zone {zone}{elsewhere}"))
    });
    let all: Vec<String> = of_frontend.into_iter().chain(of_backend).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// The backends that had the slot of a packet before, by `past` of the pool: the host agent of its backend passes a
/// packet on to their hosts. `None` if there are none.
fn former_owners(config: &Config, trail: &Trail) -> Option<String> {
    if config.pools.iter().all(|pool| pool.past.is_empty()) {
        return None;
    }
    let (mut hashed, mut selected) = (None, None);
    for step in trail.steps() {
        match *step {
            Step::Hashed { rule, slot, .. } => hashed = Some((rule, slot)),
            Step::Selected(backend) => selected = Some(backend),
            _ => {}
        }
    }
    let ((rule, slot), selected) = (hashed?, selected?);
    let backends = config.pools.iter().flat_map(|pool| &pool.backends);
    let backends: Vec<_> = backends.collect();
    let backend = backends.get(selected as usize)?;
    // Only a host agent remembers owners, and only those of its own backends.
    let mut of_host = config.clone();
    of_host.node.role = Role::Host;
    match backend.host {
        IpAddr::V4(host) => of_host.node.ipv4 = Some(host),
        IpAddr::V6(host) => of_host.node.ipv6 = Some(host),
    }
    let snapshot = of_host.snapshot(None).ok()?;
    let owners = snapshot.owners(rule, slot);
    let owners = owners.filter_map(|id| backends.get(snapshot.backend_index(id)? as usize));
    let others = owners.filter(|owner| owner.name != backend.name);
    let others: Vec<String> = others
        .map(|owner| format!("{} ({})", owner.host, owner.name))
        .collect();
    (!others.is_empty()).then(|| {
        format!(
            "by {} ({}), if it has no connection of the packet and the packet opens none: to {}",
            backend.host,
            backend.name,
            others.join(", then ")
        )
    })
}

/// Returns a step as text, with the names of a configuration and its spec.
pub(crate) fn step_text(config: &Config, spec: &Spec<'_>, step: &Step) -> String {
    match *step {
        Step::Done(Verdict::Forward(port)) => forward_text(config, port),
        _ => step.named(spec).to_string(),
    }
}

/// Returns one line for the comment of a captured packet: the role, then all steps except the packet's own
/// headers, which the capture shows.
pub(crate) fn comment(config: &Config, spec: &Spec<'_>, trail: &Trail) -> String {
    let steps = trail.steps();
    let steps = steps.filter(|step| !matches!(step, Step::Parsed(_)));
    let steps = steps.map(|step| format!("{} {}", step.label(), step_text(config, spec, step)));
    let steps: Vec<String> = steps.collect();
    format!("{}: {}", config.node.role.name(), steps.join("; "))
}

/// Returns a verdict with the configured name of a proxy's port.
fn forward_text(config: &Config, port: PortId) -> String {
    let name = config.ports.name(port);
    match name.filter(|_| config.node.role == Role::Proxy) {
        Some(name) => format!("forward, out of port {name:?}"),
        None => Verdict::Forward(port).to_string(),
    }
}

/// The outer headers of an encapsulated frame.
fn outer(frame: &[u8]) -> Option<String> {
    let link = Ethernet::parse(frame).ok()?;
    let (ip, datagram) = match link.ether_type() {
        EtherType::IPV4 => {
            let ip = Ipv4::parse(link.payload()).ok()?;
            let text = format!(
                "IPv4 {} > {}, TTL {}",
                ip.source(),
                ip.destination(),
                ip.ttl()
            );
            (text, ip.payload())
        }
        _ => {
            let ip = Ipv6::parse(link.payload()).ok()?;
            let (source, destination) = (ip.source(), ip.destination());
            let text = format!(
                "IPv6 {source} > {destination}, hop limit {}",
                ip.hop_limit()
            );
            (text, ip.payload())
        }
    };
    let udp = Udp::parse(datagram).ok()?;
    let vxlan = Vxlan::parse(udp.payload()).ok()?;
    let inner = Ethernet::parse(vxlan.payload()).ok()?;
    let _: usize = ethernet::HEADER_LEN;
    Some(format!(
        "{} > {}, {ip}, UDP {} > {}, VNI {}, inner {} > {}",
        link.source(),
        link.destination(),
        udp.source_port(),
        udp.destination_port(),
        vxlan.vni(),
        inner.source(),
        inner.destination()
    ))
}

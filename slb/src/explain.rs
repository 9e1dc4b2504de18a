//! `slb explain`: one packet's whole way, as the pipeline itself reports it.

use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use slb_control::ports::PortKind;
use slb_control::{Config, Role};
use slb_core::flow::FlowState;
use slb_core::nat::ConnectionState;
use slb_core::observe::{ConnectionStep, FlowStep, Handover, Step};
use slb_core::packet::{Packet, Part};
use slb_core::snapshot::RuleMatch;
use slb_core::spec::NatTarget;
use slb_core::wire::ethernet::{self, EtherType, Ethernet};
use slb_core::wire::ipv4::Ipv4;
use slb_core::wire::ipv6::Ipv6;
use slb_core::wire::tcp::Flags;
use slb_core::wire::udp::Udp;
use slb_core::wire::vxlan::Vxlan;
use slb_core::{Burst, DropReason, Frame, HEADROOM, Instant, PacketIo, PortId, Verdict};
use slb_io_pcap::{Capture, memory_for};

use crate::Failure;
use crate::balancer::Balancer;
use crate::check::{load_balancer, taken_by};
use crate::cli::ExplainOptions;
use crate::replay::{first_frontend, inputs, port_named};

pub(crate) fn run(options: &ExplainOptions) -> Result<(), Failure> {
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
            let mut capture: Capture<'_, Vec<u8>> = Capture::of_ports(readers, &mut memory);
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
                    println!("{title}, {} bytes, at {now}", burst[place].len());
                    explain(&config, &mut balancer, now, &mut burst, place);
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
            let packet = made_from(&config, tuple, from)?;
            println!("a packet made for it, {} bytes", packet.len());
            explain_made(&config, balancer, &packet, from)
        }
    }
}

/// The port that `--from` names, which is one that packets come in by.
fn port_from(config: &Config, name: &str) -> Result<PortId, Failure> {
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

/// Explains a packet that was made for it. From the outside a host gets it through a mux, so that
/// one tells its part first.
fn explain_made(
    config: &Config,
    mut balancer: Balancer,
    packet: &[u8],
    from: Option<PortId>,
) -> Result<(), Failure> {
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
        explain(config, &mut balancer, now, &mut frames, 0);
        return Ok(());
    }
    let mut at_mux = config.clone();
    at_mux.node.become_mux();
    println!("at a mux with this configuration:");
    explain(&at_mux, &mut Balancer::new(&at_mux)?, now, &mut frames, 0);
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
        println!("it does not come to this host");
        return Ok(());
    }
    println!("at this host:");
    let frame = Frame::new(&mut buffer, 0, sent.len()).unwrap_or(Frame::EMPTY);
    let mut frames = [frame];
    frames[0].bytes_mut().copy_from_slice(&sent);
    balancer.set_port(&mut frames[0]);
    explain(config, &mut balancer, now, &mut frames, 0);
    Ok(())
}

/// The port of a proxy that a packet comes by: that of the backends, where it is from one.
fn proxy_port(config: &Config, packet: &[u8]) -> PortId {
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

/// A SYN, a datagram or an echo request with this tuple, from the vm at port `from` or else the one that
/// has its source.
fn made_from(config: &Config, tuple: &[String], from: Option<PortId>) -> Result<Vec<u8>, Failure> {
    let bad = |what: &str, got: &str| Failure::usage(format!("expected {what}, got {got:?}"));
    let [protocol, source, destination] = tuple else {
        return Err(bad("PROTOCOL SOURCE DESTINATION", &tuple.join(" ")));
    };
    let has_ports = matches!(protocol.as_str(), "tcp" | "udp");
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
        "icmp" => ip.icmpv4_echo_request(1, 1).write(&mut packet, &[]),
        other => return Err(bad("tcp, udp or icmp", other)),
    };
    written.map_err(Failure::failed)?;
    Ok(packet)
}

/// What a packet is passed on for, where to, and how often it was before.
fn passed_on_text(
    config: &Config,
    balancer: &Balancer,
    (backend, hops, handover): (u32, u8, Handover),
) -> String {
    let why = match handover {
        Handover::PassedOn => "which may have its connection",
        Handover::Asked => "which takes it only if it has its flow",
        Handover::PassedBack => "which takes it: no host has its flow",
        _ => "for another reason",
    };
    let to = backend_text(config, balancer, backend);
    format!("to the host of {to}, {why}; hop {hops} of 8 at most")
}

/// Processes `frames` and prints what happens to the one at `place`.
fn explain(
    config: &Config,
    balancer: &mut Balancer,
    now: Instant,
    frames: &mut [Frame<'_>],
    place: usize,
) {
    let mut steps = Vec::new();
    balancer.process(now, frames, &mut |frame: usize, step: Step| {
        if frame == place {
            steps.push(step);
        }
    });
    // A lookup that a later one corrects, and the hash for it, would name a rule that does not count.
    let is_lookup = |step: &Step| matches!(step, Step::Classified(_));
    let last = steps.iter().rposition(is_lookup).unwrap_or(0);
    let mut rule = None;
    for (number, step) in steps.into_iter().enumerate() {
        if number < last && matches!(step, Step::Classified(_) | Step::Hashed { .. }) {
            continue;
        }
        if let Step::Classified(RuleMatch::Rule(index)) = step {
            rule = config.rules.get(index as usize);
        }
        let (name, text) = describe(config, balancer, rule, step);
        println!("  {name:<10} {text}");
        if config.node.role == Role::Mux
            && let Step::Done(Verdict::Forward(_)) = step
            && let Some(frame) = frames.get(place)
            && let Some(text) = outer(frame.bytes())
        {
            println!("  {:<10} {text}", "outer");
        }
    }
}

fn describe(
    config: &Config,
    balancer: &Balancer,
    rule: Option<&slb_control::config::Rule>,
    step: Step,
) -> (&'static str, String) {
    match step {
        Step::Parsed(packet) => ("packet", packet_text(&packet)),
        Step::FragmentPorts(tuple) => ("fragment", format!("its first one had the ports: {tuple}")),
        Step::QuotedFlow(tuple) => ("quotes", format!("an answer to the flow {tuple}")),
        Step::Classified(RuleMatch::Rule(index)) => ("rule", rule_text(config, index as usize)),
        Step::Classified(RuleMatch::NoRule) => ("rule", "none takes its protocol and port".into()),
        Step::Classified(RuleMatch::NotVip) => ("rule", "it is not for a VIP".into()),
        Step::Hashed { hash, slot } => {
            let hasher = balancer.snapshot().hasher().name();
            let text = match rule {
                Some(rule) => format!(
                    "{hasher} of its {}: {hash:#018x}, slot {slot} of {}",
                    rule.distribution.name(),
                    config.pools[rule.pool].table_size
                ),
                None => "of no matter: the port says which backend".to_owned(),
            };
            ("hash", text)
        }
        Step::Flow(step) => ("flow", flow_text(step).into()),
        Step::Selected(index) => ("backend", backend_text(config, balancer, index)),
        Step::Done(verdict) => ("verdict", verdict_text(config, verdict)),
        Step::Decapsulated { vni, port } => (
            "inner",
            format!("out of VXLAN, VNI {vni}, for port {}", port.0),
        ),
        Step::Connection(step) => ("connection", connection_text(step)),
        Step::PassedOn {
            backend,
            hops,
            handover,
        } => (
            "passed on",
            passed_on_text(config, balancer, (backend, hops, handover)),
        ),
        Step::Translated(tuple) => ("translated", tuple.to_string()),
        other => ("step", format!("{other:?}")),
    }
}

fn packet_text(packet: &Packet) -> String {
    let mut text = packet.tuple().to_string();
    let flags: Vec<&str> = [
        (Flags::SYN, "SYN"),
        (Flags::ACK, "ACK"),
        (Flags::FIN, "FIN"),
        (Flags::RST, "RST"),
        (Flags::PSH, "PSH"),
    ]
    .iter()
    .filter(|(flag, _)| packet.flags().contains(*flag))
    .map(|(_, name)| *name)
    .collect();
    if !flags.is_empty() {
        text += &format!(", {}", flags.join(" "));
    }
    text += match packet.part() {
        Part::Whole => "",
        Part::First => ", first fragment",
        Part::Later => ", later fragment",
    };
    if packet.vlan_tags() > 0 {
        text += &format!(", {} VLAN tags", packet.vlan_tags());
    }
    text + &format!(
        ", {} bytes of IP, TTL {}, DSCP {}, ECN {}",
        packet.ip_len(),
        packet.hop_limit(),
        packet.traffic_class() >> 2,
        packet.traffic_class() & 3
    )
}

fn rule_text(config: &Config, index: usize) -> String {
    let Some(rule) = config.rules.get(index) else {
        return other_rule_text(config, index - config.rules.len());
    };
    let (frontend, pool) = (&config.frontends[rule.frontend], &config.pools[rule.pool]);
    let port = match rule.backend_port {
        0 => String::new(),
        port => format!(", port {port}"),
    };
    format!(
        "{:?}: {} of frontend {:?} ({}), to pool {:?}{port}",
        rule.name,
        taken_by(rule),
        frontend.name,
        frontend.address,
        pool.name
    )
}

/// A rule behind the load-balancing ones: inbound NAT, port by port, then outbound ports.
fn other_rule_text(config: &Config, mut index: usize) -> String {
    for nat in &config.inbound_nat {
        let pool = &config.pools[nat.pool];
        let (first, member, count) = match nat.target {
            NatTarget::Backend { port, backend } => (port, backend, 1),
            NatTarget::Pool { first, .. } => (first, index, pool.backends.len()),
        };
        if let Some(backend) = pool.backends.get(member).filter(|_| index < count) {
            let instance = match nat.target {
                NatTarget::Backend { .. } => 0,
                NatTarget::Pool { .. } => backend.instance.unwrap_or(member as u32),
            };
            return format!(
                "inbound NAT {:?}: {} port {} to backend {:?}, port {}",
                nat.name,
                nat.protocol.name(),
                u32::from(first) + instance,
                backend.name,
                nat.backend_port
            );
        }
        index -= count;
    }
    "outbound: the port is a backend's to call out from".to_owned()
}

fn connection_text(step: ConnectionStep) -> String {
    match step {
        ConnectionStep::Found(ConnectionState::SynSent) => "waits for an answer".to_owned(),
        ConnectionStep::Found(state) => format!("its state is {}", state.name()),
        ConnectionStep::Made => "new".to_owned(),
        ConnectionStep::Missing => "there is none, and this packet begins none".to_owned(),
        ConnectionStep::Reset => "its sender is told with a RST".to_owned(),
        _ => "?".to_owned(),
    }
}

fn flow_text(step: FlowStep) -> &'static str {
    match step {
        FlowStep::Hit(FlowState::HalfOpen) => "pinned, half open",
        FlowStep::Hit(FlowState::Established) => "pinned, established",
        FlowStep::Hit(FlowState::Closing) => "pinned, closing",
        FlowStep::Miss => "not pinned, and this packet pins none",
        FlowStep::Pinned => "new: pinned to Maglev's choice from now on",
        FlowStep::PinnedByEviction => "new: pinned in the place of a half-open or closing flow",
        FlowStep::Refused => "new: the table is full, so Maglev chooses each time",
        FlowStep::Repinned => "pinned to a backend that is gone or takes no new ones: pinned anew",
        _ => "?",
    }
}

fn backend_text(config: &Config, balancer: &Balancer, index: u32) -> String {
    let Some(compiled) = balancer.snapshot().backend(index) else {
        return String::new();
    };
    let pool = &config.pools[compiled.pool()];
    let backend = &pool.backends[compiled.member()];
    let host = match config.node.role {
        Role::Proxy => String::new(),
        Role::Mux | Role::Host => format!(" on host {}", backend.host),
    };
    format!(
        "{:?} ({}){host}, weight {}, {}",
        backend.name,
        backend.address,
        backend.weight,
        backend.state.name()
    )
}

fn verdict_text(config: &Config, verdict: Verdict) -> String {
    match verdict {
        Verdict::Forward(port) => {
            let name = config.ports.name(port);
            match name.filter(|_| config.node.role == Role::Proxy) {
                Some(name) => format!("forward, out of port {name:?}"),
                None => format!("forward, out of port {}", port.0),
            }
        }
        Verdict::Flood => "flood, out of every other port".to_owned(),
        Verdict::Reply => "reply, to where it came from".to_owned(),
        Verdict::Pass => "pass, untouched".to_owned(),
        Verdict::Drop(reason) => format!("drop, {reason}: {}", reason_text(reason)),
    }
}

fn reason_text(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Truncated => "the frame ends before a header that it announces",
        DropReason::Malformed => "a header contradicts itself",
        DropReason::NoRule => "no rule of the VIP takes its protocol and port",
        DropReason::NoBackend => "no backend of the pool takes new flows",
        DropReason::FragmentWithoutFirst => "its first fragment was not seen",
        DropReason::IcmpUnmatched => "it quotes no packet of the VIP",
        DropReason::HopLimit => "its hop limit ran out",
        DropReason::PacketTooBig => "it is too long once encapsulated",
        DropReason::EchoIgnored => "the VIP does not answer echo requests, or not so many",
        DropReason::NoHeadroom => "its buffer has no room for the outer headers",
        DropReason::UnknownPeer => "it comes from neither a mux nor a host",
        DropReason::UnknownVm => "no vm here has its network and MAC address",
        DropReason::OuterChecksum => "its outer UDP checksum is wrong",
        DropReason::Congestion => "it met congestion, and its ends do not know of that",
        DropReason::NoConnection => "it is of no connection, and begins none",
        DropReason::TableFull => "there is no place for another connection",
        DropReason::TupleTaken => "another connection has the name that it would get",
        DropReason::NoOutboundRule => "no outbound rule lets the vm call out",
        DropReason::SnatExhausted => "all SNAT ports are in use towards that destination",
        DropReason::SpoofedSource => "it does not come from the vm's address",
        DropReason::IcmpRedirect => "it would have a host send elsewhere, or slower",
        DropReason::Hairpin => {
            "it comes from the backend that was chosen: with source_nat, a vm can call itself by its VIP"
        }
        DropReason::Astray => {
            "it is of no connection here, and cannot be passed on to who may have its connection"
        }
        DropReason::IcmpChecksum => "its checksum is wrong, or not to be verified",
        DropReason::Martian => "no host sends from its source",
        DropReason::SourceLimit => "its source begins too many flows",
        DropReason::SourceRoute => "its sender chose its route",
        DropReason::BadChecksum => "the checksum of its IPv4 header is wrong",
        DropReason::TinyFragment => "it hides or overwrites a part of a transport header",
        DropReason::FragmentHeld => "a copy of it waits for its first fragment",
        _ => "see the documentation",
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

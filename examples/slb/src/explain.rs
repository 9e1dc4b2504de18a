//! `slb explain`: one packet's whole way, as the pipeline itself reports it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use etherparse::PacketBuilder;
use slb_control::Config;
use slb_core::flow::FlowState;
use slb_core::observe::{FlowStep, Step};
use slb_core::packet::{Packet, Part};
use slb_core::service::{RuleMatch, Snapshot};
use slb_core::wire::ethernet::{self, EtherType, Ethernet};
use slb_core::wire::ipv4::Ipv4;
use slb_core::wire::ipv6::Ipv6;
use slb_core::wire::tcp::Flags;
use slb_core::wire::udp::Udp;
use slb_core::wire::vxlan::Vxlan;
use slb_core::{Burst, DropReason, Frame, HEADROOM, Instant, Mux, PacketIo, Verdict};
use slb_io_pcap::{Capture, memory_for};

use crate::Failure;
use crate::check::load_balancer;
use crate::cli::ExplainOptions;
use crate::replay::{mux, open};

type Balancer = Mux<'static, Arc<Snapshot<'static>>>;

pub(crate) fn run(options: &ExplainOptions) -> Result<(), Failure> {
    let config = load_balancer(&options.balancer)?;
    let mut mux = mux(&config)?;
    match (&options.input, options.packet) {
        (Some(input), Some(wanted)) => {
            let (reader, _) = open(input)?;
            let title = format!("packet {wanted} of {}", input.display());
            let mut memory = vec![0; memory_for(64)];
            let mut capture: Capture<'_, Vec<u8>> = Capture::new(reader, &mut memory);
            let mut burst = Burst::new();
            let mut seen = 0;
            while !capture.is_at_end() {
                capture
                    .receive(&mut burst)
                    .map_err(|error| Failure::failed(format!("{}: {error}", input.display())))?;
                let place = wanted
                    .checked_sub(seen + 1)
                    .map_or(usize::MAX, |n| n as usize);
                let now = capture.now();
                if place < burst.len() {
                    println!("{title}, {} bytes, at {now}", burst[place].len());
                    explain(&config, &mut mux, now, &mut burst, place);
                    return Ok(());
                }
                mux.process(now, &mut burst);
                seen += burst.len() as u64;
                capture.transmit(&mut burst).map_err(Failure::failed)?;
            }
            Err(Failure::usage(format!(
                "{title}: the capture has {seen} packets"
            )))
        }
        _ => {
            let packet = made_from(&options.tuple)?;
            let mut buffer = vec![0; HEADROOM];
            buffer.extend(&packet);
            let frame = Frame::new(&mut buffer, HEADROOM, packet.len());
            let mut frames = [frame.unwrap_or(Frame::EMPTY)];
            println!("a packet made for it, {} bytes", packet.len());
            explain(&config, &mut mux, Instant::from_secs(1), &mut frames, 0);
            Ok(())
        }
    }
}

/// A SYN, a datagram or an echo request with this tuple.
fn made_from(tuple: &[String]) -> Result<Vec<u8>, Failure> {
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
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 1]);
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

/// Processes `frames` and prints what happens to the one at `place`.
fn explain(
    config: &Config,
    mux: &mut Balancer,
    now: Instant,
    frames: &mut [Frame<'_>],
    place: usize,
) {
    let mut steps = Vec::new();
    mux.process_observed(now, frames, &mut |frame: usize, step: Step| {
        if frame == place {
            steps.push(step);
        }
    });
    let mut rule = None;
    for step in steps {
        if let Step::Classified(RuleMatch::Rule(index)) = step {
            rule = config.rules.get(index as usize);
        }
        let (name, text) = describe(config, mux, rule, step);
        println!("  {name:<10} {text}");
        if let Step::Done(Verdict::Forward(_)) = step
            && let Some(frame) = frames.get(place)
            && let Some(text) = outer(frame.bytes())
        {
            println!("  {:<10} {text}", "outer");
        }
    }
}

fn describe(
    config: &Config,
    mux: &Balancer,
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
            let mode = rule.map_or("", |rule| rule.distribution.name());
            let size = rule.map_or(0, |rule| config.pools[rule.pool].table_size);
            let hasher = mux.snapshot().hasher().name();
            (
                "hash",
                format!("{hasher} of its {mode}: {hash:#018x}, slot {slot} of {size}"),
            )
        }
        Step::Flow(step) => ("flow", flow_text(step).into()),
        Step::Selected(index) => ("backend", backend_text(config, mux, index)),
        Step::Done(verdict) => ("verdict", verdict_text(verdict)),
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
        return String::new();
    };
    let (frontend, pool) = (&config.frontends[rule.frontend], &config.pools[rule.pool]);
    let port = match rule.frontend_port {
        0 => "every port".to_owned(),
        port => format!("port {port}"),
    };
    format!(
        "{:?}: {} {port} of frontend {:?} ({}), to pool {:?}, port {}",
        rule.name,
        rule.protocol.name(),
        frontend.name,
        frontend.address,
        pool.name,
        rule.backend_port
    )
}

fn flow_text(step: FlowStep) -> &'static str {
    match step {
        FlowStep::Hit(FlowState::HalfOpen) => "pinned, half open",
        FlowStep::Hit(FlowState::Established) => "pinned, established",
        FlowStep::Hit(FlowState::Closing) => "pinned, closing",
        FlowStep::Miss => "not pinned, and this packet pins none",
        FlowStep::Pinned => "new: pinned to Maglev's choice from now on",
        FlowStep::PinnedByEviction => "new: pinned in the place of a half-open flow",
        FlowStep::Refused => "new: the table is full, so Maglev chooses each time",
        FlowStep::Repinned => "pinned to a backend that is gone or takes no new ones: pinned anew",
        _ => "?",
    }
}

fn backend_text(config: &Config, mux: &Balancer, index: u32) -> String {
    let Some(compiled) = mux.snapshot().backend(index) else {
        return String::new();
    };
    let pool = &config.pools[compiled.pool()];
    let backend = &pool.backends[compiled.member()];
    format!(
        "{:?} ({}) on host {}, weight {}, {}",
        backend.name,
        backend.address,
        backend.host,
        backend.weight,
        backend.state.name()
    )
}

fn verdict_text(verdict: Verdict) -> String {
    match verdict {
        Verdict::Forward(port) => format!("forward, out of port {}", port.0),
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

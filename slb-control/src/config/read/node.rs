//! Reading of `[node]`.

use std::net::IpAddr;

use slb_core::spec::{self, Prefix, UdpChecksum};

use super::hash::read_hasher;
use crate::config::addresses::Kind;
use crate::config::zones::read_zone;
use crate::config::{Node, Role, addresses};
use crate::document::Section;

pub(super) fn read_node(section: Section<'_>) -> Option<Node> {
    let role = section
        .required_choice(
            "role",
            &[
                ("mux", Role::Mux),
                ("host", Role::Host),
                ("proxy", Role::Proxy),
            ],
        )
        .map(|(role, _)| role);
    if role.is_some_and(|role| role != Role::Proxy) && !section.has("underlay") {
        section.fault(section.span(), "underlay", "is missing");
    }
    let (ipv4, ipv6) = addresses::one_of_each_family(&section, "underlay", Kind::Host);
    const SLOTS: u64 = slb_core::FragmentRoom::SLOTS as u64;
    const DIRECT_FLOWS: u64 = slb_core::nat::DirectFlows::FLOWS as u64;
    let rate = |field, most, usual| section.number(field, 0..=most, usual) as u32;
    let defaults = spec::Underlay::default();
    let hash_seed = section.number("hash_seed", 0..=i64::MAX as u64, 0);
    let icmp_source = addresses::one_of_each_family(&section, "icmp_source", Kind::Host);
    let node = Node {
        role: role.unwrap_or(Role::Mux),
        ipv4,
        ipv6,
        mac: addresses::mac(&section, "mac"),
        next_hop: addresses::mac(&section, "next_hop"),
        mtu: {
            let mtu = section.number("mtu", 576..=65_535, defaults.mtu.into());
            section.has("mtu").then_some(mtu as u16)
        },
        hop_limit: section.number("hop_limit", 1..=255, defaults.hop_limit.into()) as u8,
        udp_checksum: section.choice(
            "udp_checksum",
            &[
                ("auto", UdpChecksum::Auto),
                ("zero", UdpChecksum::Zero),
                ("computed", UdpChecksum::Computed),
            ],
            UdpChecksum::Auto,
        ),
        hasher: read_hasher(&section, hash_seed),
        hash_seed,
        flows: section.number("flows", 0..=1 << 32, 1 << 20) as usize,
        answers_per_second: rate("answers_per_second", 1_000_000, 1000),
        too_big_per_second: rate("too_big_per_second", 1_000_000, 1000),
        errors_per_second: rate("errors_per_second", 1_000_000, 1000),
        connections: section.number("connections", 1..=1 << 31, 1 << 18) as usize,
        waiting_fragments: section.number("waiting_fragments", 0..=1 << 20, SLOTS) as usize,
        direct_flows: section.number("direct_flows", 0..=1 << 24, DIRECT_FLOWS) as usize,
        flows_per_source: section.number("flows_per_source", 0..=1_000_000, 0) as u32,
        flows_per_source_at_once: section.number("flows_per_source_at_once", 1..=1_000_000, 100)
            as u32,
        resets_per_second: rate("resets_per_second", 10_000_000, 10_000),
        passes_per_second: rate("passes_per_second", 10_000_000, 1_000_000),
        take_ups_per_second: rate("take_ups_per_second", 10_000_000, 100_000),
        icmp_source_ipv4: icmp_source.0,
        icmp_source_ipv6: icmp_source.1,
        clamp_mss: section.boolean("clamp_mss", false),
        muxes: {
            let muxes = addresses::any(&section, "muxes", Kind::Host);
            muxes.into_iter().map(|(address, _)| address).collect()
        },
        inside: read_inside(&section),
        withdraw_when_down: section.boolean("withdraw_when_down", false),
        probe_sources: {
            let (ipv4, ipv6) =
                addresses::one_of_each_family(&section, "probe_sources", Kind::Station);
            let ipv4 = ipv4.map(IpAddr::V4).into_iter();
            ipv4.chain(ipv6.map(IpAddr::V6)).collect()
        },
        zone: read_zone(&section),
        probing: section.boolean("probing", true),
        span: section.span().clone(),
        unused: {
            let fields = role.map_or(&[][..], unused_fields).iter().copied();
            fields.filter(|field| section.has(field)).collect()
        },
    };
    section.finish();
    role.map(|_| node)
}

/// Returns the fields of `[node]` that have no effect in a role.
fn unused_fields(role: Role) -> &'static [&'static str] {
    match role {
        Role::Mux => &[
            "connections",
            "passes_per_second",
            "take_ups_per_second",
            "icmp_source",
            "clamp_mss",
            "inside",
            "direct_flows",
        ],
        Role::Host => &["flows", "withdraw_when_down"],
        Role::Proxy => &[
            "next_hop",
            "hop_limit",
            "udp_checksum",
            "flows",
            "muxes",
            "inside",
            "withdraw_when_down",
            "passes_per_second",
            "take_ups_per_second",
            "direct_flows",
        ],
    }
}

/// Reads the inside prefixes; a list, even an empty one, replaces the default.
fn read_inside(section: &Section<'_>) -> Vec<Prefix> {
    const FIELD: &str = "inside";
    if !section.has(FIELD) {
        return spec::INSIDE.to_vec();
    }
    if section.is_empty_list(FIELD) {
        return Vec::new();
    }
    let prefixes = addresses::prefixes(section, FIELD, Kind::Station);
    prefixes.into_iter().map(|(prefix, _)| prefix).collect()
}

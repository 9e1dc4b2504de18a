//! Items of a configuration besides backends: this node, frontends, pools, rules, ports.

use core::ffi::c_int;
use core::net::IpAddr;

use slb_core::PortId;
use slb_core::hash::{Distribution, Hasher, MICROSOFT_KEY, SipHash13, Toeplitz, Xxh3};
use slb_core::spec::{
    Echo, Frontend, FrontendPort, InboundNat, NatTarget, Outbound, Pool, PortMode, Prefix, Rule,
    Scheduler, SourceRewrite, UdpChecksum, Underlay,
};
use slb_core::wire::vxlan::Vni;

use super::fault::Fault;
use super::{Parts, PoolEntry, change, slb_builder};
use crate::memory::{array_of, shared};
use crate::spec::{
    idle, protocol, slb_address, slb_frontend, slb_inbound_nat, slb_outbound, slb_pool, slb_rule,
    slb_underlay,
};

/// Sets the hash of flows, the same on every node. 0: XXH3 with `seed`; 1: SipHash-1-3 with a `key`
/// of 16 bytes; 2: Toeplitz with a `key` of 40 bytes, or NULL for Microsoft's. `seed` also
/// determines Maglev's permutations.
///
/// # Safety
/// `builder` is a builder, and `key` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_hash(
    builder: *mut slb_builder,
    hash: u8,
    seed: u64,
    key: *const u8,
    length: usize,
) -> c_int {
    let read = |parts: &mut Parts| {
        let key = if key.is_null() {
            &[]
        } else {
            // SAFETY: guaranteed by the caller.
            unsafe { array_of(key, length) }?
        };
        let of_key = |what| Fault::expected("length", what, key.len() as i64);
        parts.hasher = match hash {
            0 => Hasher::Xxh3(Xxh3::new(seed)),
            1 => Hasher::SipHash13(SipHash13::new(
                key.try_into().map_err(|_| of_key("16 bytes"))?,
            )),
            2 if key.is_empty() => Hasher::Toeplitz(Toeplitz::new(&MICROSOFT_KEY)),
            2 => {
                let key: &[u8; 40] = key.try_into().map_err(|_| of_key("40 bytes, or none"))?;
                Hasher::Toeplitz(Toeplitz::new(key))
            }
            other => return Err(Fault::expected("hash", "0, 1 or 2", other)),
        };
        parts.seed = seed;
        Ok(0)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "hash", read) }
}

/// Sets this node's addresses on the fabric.
///
/// # Safety
/// `builder` is a builder, and `underlay` points to an underlay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_underlay(
    builder: *mut slb_builder,
    underlay: *const slb_underlay,
) -> c_int {
    let set = |parts: &mut Parts| {
        // SAFETY: guaranteed by the caller.
        let given = unsafe { shared(underlay) }?;
        let usual = Underlay::default();
        let ipv4 = match given.ipv4.optional("ipv4")? {
            Some(IpAddr::V6(_)) => return Err(Fault::unfit("ipv4", "an IPv4 address")),
            Some(IpAddr::V4(address)) => Some(address),
            None => None,
        };
        let ipv6 = match given.ipv6.optional("ipv6")? {
            Some(IpAddr::V4(_)) => return Err(Fault::unfit("ipv6", "an IPv6 address")),
            Some(IpAddr::V6(address)) => Some(address),
            None => None,
        };
        parts.underlay = Underlay {
            ipv4,
            ipv6,
            mac: given.mac.optional().unwrap_or(usual.mac),
            next_hop: given.next_hop.optional().unwrap_or(usual.next_hop),
            mtu: if given.mtu == 0 { usual.mtu } else { given.mtu },
            hop_limit: match given.hop_limit {
                0 => usual.hop_limit,
                hop_limit => hop_limit,
            },
            udp_checksum: match given.udp_checksum {
                0 => UdpChecksum::Auto,
                1 => UdpChecksum::Zero,
                2 => UdpChecksum::Computed,
                other => return Err(Fault::expected("udp_checksum", "0, 1 or 2", other)),
            },
            port: PortId(given.port),
        };
        Ok(0)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "underlay", set) }
}

/// Adds a VIP. Returns its index.
///
/// # Safety
/// `builder` is a builder, and `frontend` points to a frontend.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_frontend(
    builder: *mut slb_builder,
    frontend: *const slb_frontend,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: guaranteed by the caller.
        let given = unsafe { shared(frontend) }?;
        // SAFETY: as above.
        let name = unsafe { parts.named(given.name) }?;
        parts.frontends.push(Frontend {
            name,
            address: given.address.required("address")?,
            icmp_echo: match given.icmp_echo {
                0 => Echo::Answer,
                1 => Echo::Forward,
                2 => Echo::Ignore,
                other => return Err(Fault::expected("icmp_echo", "0, 1 or 2", other)),
            },
        })
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "frontend", add) }
}

/// Adds a pool. Returns its index.
///
/// # Safety
/// `builder` is a builder, and `pool` points to a pool.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_pool(
    builder: *mut slb_builder,
    pool: *const slb_pool,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: guaranteed by the caller.
        let given = unsafe { shared(pool) }?;
        // SAFETY: as above.
        let name = unsafe { parts.named(given.name) }?;
        parts.pools.push(PoolEntry {
            name,
            vni: Vni::new(given.vni).ok_or(Fault::expected(
                "vni",
                "at most 16777215",
                given.vni,
            ))?,
            table_size: match given.table_size {
                0 => Pool::default().table_size,
                size => size,
            },
            backends: 0,
        })
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "pool", add) }
}

/// Adds a load-balancing rule. Returns its index.
///
/// # Safety
/// `builder` is a builder, and `rule` points to a rule.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_rule(
    builder: *mut slb_builder,
    rule: *const slb_rule,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: guaranteed by the caller.
        let given = unsafe { shared(rule) }?;
        // SAFETY: as above.
        let name = unsafe { parts.named(given.name) }?;
        parts.rules.push(Rule {
            name,
            frontend: given.frontend,
            pool: given.pool,
            health: None,
            protocol: protocol(given.protocol)?,
            frontend_port: given.frontend_port,
            backend_port: given.backend_port,
            distribution: match given.distribution {
                0 => Distribution::FiveTuple,
                1 => Distribution::SourceIp,
                2 => Distribution::SourceIpProtocol,
                other => return Err(Fault::expected("distribution", "0, 1 or 2", other)),
            },
            scheduler: match given.scheduler {
                0 => Scheduler::Maglev,
                1 => Scheduler::LeastConnections,
                other => return Err(Fault::expected("scheduler", "0 or 1", other)),
            },
            idle_timeout: idle(given.terms.idle_timeout)?,
            terms: given.terms.terms()?,
        })
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "rule", add) }
}

/// Adds an inbound NAT rule or pool. Returns its index.
///
/// # Safety
/// `builder` is a builder, and `nat` points to an inbound NAT rule.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_inbound_nat(
    builder: *mut slb_builder,
    nat: *const slb_inbound_nat,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: guaranteed by the caller.
        let given = unsafe { shared(nat) }?;
        // SAFETY: as above.
        let name = unsafe { parts.named(given.name) }?;
        let target = match usize::try_from(given.backend) {
            Ok(backend) => NatTarget::Backend {
                port: given.first_port,
                backend,
            },
            Err(_) => NatTarget::Pool {
                first: given.first_port,
                last: given.last_port,
            },
        };
        parts.inbound_nat.push(InboundNat {
            name,
            frontend: given.frontend,
            pool: given.pool,
            target,
            protocol: protocol(given.protocol)?,
            backend_port: given.backend_port,
            idle_timeout: idle(given.terms.idle_timeout)?,
            terms: given.terms.terms()?,
        })
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "inbound NAT", add) }
}

/// Adds an outbound rule. Returns its index.
///
/// # Safety
/// `builder` is a builder, and `outbound` points to an outbound rule with as many frontends as it
/// says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_outbound(
    builder: *mut slb_builder,
    outbound: *const slb_outbound,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: guaranteed by the caller.
        let given = unsafe { shared(outbound) }?;
        // SAFETY: as above.
        let name = unsafe { parts.named(given.name) }?;
        // SAFETY: as above.
        let frontends = unsafe { array_of(given.frontends, given.frontend_count) };
        let frontends = frontends.map_err(|error| Fault::from(error).of("frontends"))?;
        let rule = Outbound {
            name,
            frontends: &[],
            pool: given.pool,
            protocol: protocol(given.protocol)?,
            allocated_outbound_ports: (given.allocated_outbound_ports != 0)
                .then_some(given.allocated_outbound_ports),
            idle_timeout: idle(given.idle_timeout)?,
            tcp_reset: given.tcp_reset != 0,
        };
        let first = parts.outbound_frontends.len;
        if parts.outbound.room() == 0 {
            return Err(parts.outbound.full());
        }
        if frontends.len() > parts.outbound_frontends.room() {
            return Err(parts.outbound_frontends.full());
        }
        for &frontend in frontends {
            parts.outbound_frontends.push(frontend)?;
        }
        parts.outbound.push((rule, first, first + frontends.len()))
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "outbound rule", add) }
}

/// Adds a mux's underlay address. A host accepts packets from it, and returns answers through it if
/// a rule says so. Returns its index.
///
/// # Safety
/// `builder` is a builder, and `address` points to an address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_mux(
    builder: *mut slb_builder,
    address: *const slb_address,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: guaranteed by the caller.
        let address = unsafe { shared(address) }?.required("address")?;
        parts.muxes.push(address)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "mux", add) }
}

/// Adds a prefix of `prefix_length` bits to the inside prefixes. Vms reach, and answer, inside addresses with their own
/// addresses; outbound rules translate packets to all others. Without a call, private, shared, link-local and unique
/// local addresses and 168.63.129.16 are inside. The first call removes these; with NULL it adds none, so that only the
/// vms' networks are inside. Returns the number of prefixes before the call.
///
/// # Safety
/// `builder` is a builder, and `address` points to an address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_inside(
    builder: *mut slb_builder,
    address: *const slb_address,
    prefix_length: u8,
) -> c_int {
    let add = |parts: &mut Parts| {
        let before = parts.inside.len;
        if !address.is_null() {
            // SAFETY: guaranteed by the caller.
            let address = unsafe { shared(address) }?.required("address")?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            if prefix_length > most {
                let expected = match most {
                    32 => "at most 32",
                    _ => "at most 128",
                };
                return Err(Fault::expected("prefix_length", expected, prefix_length));
            }
            parts.inside.push(Prefix {
                address,
                len: prefix_length,
            })?;
        }
        parts.has_inside = true;
        Ok(before)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "inside", add) }
}

/// Sets the source address, one of each family, of the caller's probes of a host's vms. Packets
/// from vms to this address are passed, regardless of outbound rules.
///
/// # Safety
/// `builder` is a builder, and `address` points to an address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_probe_source(
    builder: *mut slb_builder,
    address: *const slb_address,
) -> c_int {
    let set = |parts: &mut Parts| {
        // SAFETY: guaranteed by the caller.
        match unsafe { shared(address) }?.required("address")? {
            IpAddr::V4(address) => parts.probe_source.ipv4 = Some(address),
            IpAddr::V6(address) => parts.probe_source.ipv6 = Some(address),
        }
        Ok(0)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "probe source", set) }
}

/// Makes the configuration a proxy's, with its backends at `backend_port`. With 0 in `multi` there
/// is one frontend port; otherwise any number, each with an address.
///
/// # Safety
/// `builder` is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_proxy(
    builder: *mut slb_builder,
    multi: u8,
    backend_port: u16,
) -> c_int {
    let set = |parts: &mut Parts| {
        let mode = match multi {
            0 => PortMode::Single,
            _ => PortMode::Multi,
        };
        parts.proxy = Some((mode, PortId(backend_port)));
        Ok(0)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "proxy", set) }
}

/// Adds a frontend port of a proxy. `address` is the IPv4 address of the client at that port, or
/// NULL. Returns its index.
///
/// # Safety
/// `builder` is a builder, and `address` points to an address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_frontend_port(
    builder: *mut slb_builder,
    port: u16,
    address: *const slb_address,
) -> c_int {
    let add = |parts: &mut Parts| {
        let address = if address.is_null() {
            None
        } else {
            // SAFETY: guaranteed by the caller.
            match unsafe { shared(address) }?.required("address")? {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => return Err(Fault::unfit("address", "an IPv4 address")),
            }
        };
        parts.frontend_ports.push(FrontendPort {
            port: PortId(port),
            address,
        })
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "frontend port", add) }
}

/// Adds a source rewrite of a proxy: backends see clients in the range of `prefix_length` bits that
/// begins at `from` with the addresses that begin at `to`. Returns its index.
///
/// # Safety
/// `builder` is a builder, and both point to addresses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_source_rewrite(
    builder: *mut slb_builder,
    from: *const slb_address,
    to: *const slb_address,
    prefix_length: u8,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: guaranteed by the caller.
        let (from, to) = unsafe { (shared(from)?, shared(to)?) };
        parts.source_rewrites.push(SourceRewrite {
            from: from.required("from")?,
            to: to.required("to")?,
            prefix_len: prefix_length,
        })
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "source rewrite", add) }
}

//! Contents of the flow and connection tables.

use core::ffi::c_int;

use slb_core::Dataplane;
use slb_core::flow::table::SLOTS;
use slb_core::flow::{Flow, FlowProtocol};
use slb_core::nat::{ConnectionView, NatTable};
use slb_core::packet::Tuple;
use slb_core::snapshot::BackendId;

use crate::error::slb_error::*;
use crate::error::{Error, guard};
use crate::handle::role;
use crate::host::slb_host;
use crate::memory::{array, exclusive};
use crate::mux::slb_mux;
use crate::proxy::slb_proxy;
use crate::spec::slb_address;

/// Source and destination.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct slb_tuple {
    /// Source address.
    pub source: slb_address,
    /// Destination of the flow.
    pub destination: slb_address,
    /// Source port in host byte order; 0 for a protocol without ports.
    pub source_port: u16,
    /// Destination port in host byte order.
    pub destination_port: u16,
}

/// A flow of a mux.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_flow {
    /// The five-tuple of the flow's packets.
    pub tuple: slb_tuple,
    /// Index of the flow's backend, counted over all pools; `UINT32_MAX` if the backend was
    /// removed.
    pub backend: u32,
    /// The protocol's number: 6, 17, or 0 for all others.
    pub protocol: u8,
    /// 1: SYNs only; 2: established; 3: FIN or RST was seen.
    pub state: u8,
}

/// A connection of a host or a proxy.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_connection {
    /// The five-tuple of packets from outside.
    pub outside: slb_tuple,
    /// The five-tuple of the server's packets.
    pub inside: slb_tuple,
    /// The protocol's number.
    pub protocol: u8,
    /// 1: SYN or first packet seen; 2: answered; 3: established; 4 and 5: the outside or the inside
    /// end sent a FIN; 6: both did; 7: reset.
    pub state: u8,
}

impl slb_tuple {
    fn of(tuple: &Tuple) -> Self {
        Self {
            source: slb_address::of(tuple.source),
            destination: slb_address::of(tuple.destination),
            source_port: tuple.source_port,
            destination_port: tuple.destination_port,
        }
    }
}

/// Cursors with this bit are in the table of IPv6.
const IPV6: u64 = 1 << 63;

/// Copies flows to `out`, which has room for `count` of them, 3 or more, and advances `cursor`,
/// which begins at 0. Returns the number of copied flows; 0: there are no more. Changes between
/// calls may be missed.
///
/// # Safety
/// `mux` is a mux, and `out` has `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_flows(
    mux: *mut slb_mux,
    cursor: *mut u64,
    out: *mut slb_flow,
    count: usize,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let (mux, cursor, out) = unsafe {
            let mux = role::<crate::mux::Inner, _>(mux)?;
            (mux, exclusive(cursor)?, array(out, count)?)
        };
        if count < SLOTS {
            return Err(SLB_ERROR_SHORT);
        }
        let Some(flows) = mux.flows() else {
            return Ok(0);
        };
        let show = |flow: &Flow| {
            let id = BackendId::from_value(flow.value);
            slb_flow {
                tuple: slb_tuple {
                    source: slb_address::of(flow.source),
                    destination: slb_address::of(flow.destination),
                    source_port: flow.ports.0,
                    destination_port: flow.ports.1,
                },
                backend: Dataplane::snapshot(mux)
                    .backend_index(id)
                    .unwrap_or(u32::MAX),
                protocol: match flow.protocol {
                    FlowProtocol::Tcp => 6,
                    FlowProtocol::Udp => 17,
                    _ => 0,
                },
                state: flow.state as u8,
            }
        };
        let mut copied = 0;
        if *cursor & IPV6 == 0 {
            let first = *cursor as usize;
            let next = copy(flows.ipv4().iter_from(first), out, &mut copied, show);
            *cursor = next.map_or(IPV6, |bucket| bucket as u64);
        }
        if *cursor & IPV6 != 0 {
            let first = (*cursor & !IPV6) as usize;
            let next = copy(flows.ipv6().iter_from(first), out, &mut copied, show);
            // At the end, the cursor points to a place without flows.
            *cursor = IPV6 | next.map_or(u64::MAX >> 1, |bucket| bucket as u64);
        }
        Ok(copied)
    })
}

/// Copies whole buckets; returns the next bucket if it does not fit.
fn copy<T>(
    flows: impl Iterator<Item = (usize, Flow)>,
    out: &mut [T],
    copied: &mut usize,
    show: impl Fn(&Flow) -> T,
) -> Option<usize> {
    let mut last = None;
    for (bucket, flow) in flows {
        if last != Some(bucket) && out.len() - *copied < SLOTS {
            return Some(bucket);
        }
        last = Some(bucket);
        if let Some(place) = out.get_mut(*copied) {
            *place = show(&flow);
            *copied += 1;
        }
    }
    None
}

fn connections(
    table: &NatTable<'_>,
    cursor: &mut u64,
    out: &mut [slb_connection],
) -> Result<usize, Error> {
    let mut copied = 0;
    let mut take = |all: &mut dyn Iterator<Item = (usize, ConnectionView)>| {
        for (place, connection) in all {
            let Some(to) = out.get_mut(copied) else {
                return Some(place);
            };
            *to = slb_connection {
                outside: slb_tuple::of(&connection.outside),
                inside: slb_tuple::of(&connection.inside),
                protocol: connection.outside.protocol,
                state: connection.state as u8,
            };
            copied += 1;
        }
        None
    };
    if *cursor & IPV6 == 0 {
        let next = take(&mut table.ipv4_from(*cursor as usize));
        *cursor = next.map_or(IPV6, |place| place as u64);
    }
    if *cursor & IPV6 != 0 {
        let next = take(&mut table.ipv6_from((*cursor & !IPV6) as usize));
        *cursor = IPV6 | next.map_or(u64::MAX >> 1, |place| place as u64);
    }
    Ok(copied)
}

/// Copies connections to `out`, which has room for `count` of them, and advances `cursor`, which begins at 0. Returns
/// the number of copied connections; 0: there are no more.
///
/// # Safety
/// `host` is a host agent, and `out` has `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_connections(
    host: *mut slb_host,
    cursor: *mut u64,
    out: *mut slb_connection,
    count: usize,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let host = role::<crate::host::Inner, _>(host)?;
            connections(host.connections(), exclusive(cursor)?, array(out, count)?)
        }
    })
}

/// Copies connections of a proxy, like `slb_host_connections`.
///
/// # Safety
/// `proxy` is a proxy, and `out` has `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_connections(
    proxy: *mut slb_proxy,
    cursor: *mut u64,
    out: *mut slb_connection,
    count: usize,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let proxy = role::<crate::proxy::Inner, _>(proxy)?;
            connections(proxy.connections(), exclusive(cursor)?, array(out, count)?)
        }
    })
}

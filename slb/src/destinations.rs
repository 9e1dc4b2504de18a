//! Services in a capture: address, protocol and port of called ends.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use slb_core::packet::{Packet, Parsed, Part};
use slb_core::wire::protocol;
use slb_core::wire::tcp::Flags;
use slb_io_pcap::{FRAME_LEN, LinkType, Next};

use crate::Failure;
use crate::replay::open;
use crate::report::{counted, left_out_for_link};

/// The maximum number of flows and services: a larger capture counts only the first ones.
const MOST: usize = 1 << 18;

/// An address and port that others call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Service {
    pub(crate) address: IpAddr,
    pub(crate) protocol: u8,
    /// Zero for a protocol without ports.
    pub(crate) port: u16,
}

impl Service {
    /// Returns the name of the service's protocol, or the number.
    pub(crate) fn protocol_name(&self) -> String {
        match self.protocol {
            protocol::TCP => "tcp".to_owned(),
            protocol::UDP => "udp".to_owned(),
            protocol::ICMP => "icmp".to_owned(),
            protocol::ICMPV6 => "icmpv6".to_owned(),
            other => other.to_string(),
        }
    }
}

/// The service as tuples are written: `tcp 192.0.2.1:80`.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.protocol_name();
        match self.port {
            0 => write!(f, "{name} {}", self.address),
            port => write!(f, "{name} {}", SocketAddr::new(self.address, port)),
        }
    }
}

/// The numbers of packets and flows of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) packets: u64,
    pub(crate) flows: u64,
    /// Bytes of the longest IP packet.
    pub(crate) longest: usize,
}

/// The two ends of a flow.
type Ends = [(IpAddr, u16); 2];

/// The services that packets are for.
#[derive(Debug, Default)]
pub(crate) struct Services {
    all: HashMap<Service, Count>,
    /// Flows by protocol and ends, the lesser end first; true if that end is called.
    flows: HashMap<(u8, Ends), bool>,
    /// Packets that were left out, with the reason, by file.
    left_out: Vec<String>,
}

impl Services {
    /// Reads captures to their end, or to the first damage.
    ///
    /// # Errors
    /// A file cannot be read, or is no capture.
    pub(crate) fn of(paths: &[&Path]) -> Result<Self, Failure> {
        let mut services = Self::default();
        let mut buffer = vec![0; FRAME_LEN];
        for path in paths {
            let (mut reader, _) = open(path)?;
            let mut links: BTreeMap<LinkType, u64> = BTreeMap::new();
            let (mut too_long, mut unknown_time) = (0, 0);
            let damage = loop {
                match reader.next(&mut buffer, None) {
                    Ok(Next::Packet { len, .. }) => {
                        services.note(buffer.get(..len).unwrap_or_default());
                    }
                    Ok(Next::UnknownLink(link)) => *links.entry(link).or_default() += 1,
                    Ok(Next::TooLong) => too_long += 1,
                    Ok(Next::UnknownTime) => unknown_time += 1,
                    Ok(Next::Later) => {}
                    Ok(Next::End) => break None,
                    Err(error) => break Some(format!("the rest was not read: {error}")),
                }
            };
            let links = links.into_iter();
            let mut lines: Vec<String> = links
                .map(|(link, count)| format!("left out: {}", left_out_for_link(link, count)))
                .collect();
            for (count, why) in [
                (too_long, "too long"),
                (
                    unknown_time,
                    "whose time is before 1970 or after 2554-07-21",
                ),
            ] {
                if count > 0 {
                    lines.push(format!("left out: {} {why}", counted(count, "packet")));
                }
            }
            lines.extend(damage);
            let lines = lines.iter();
            let lines = lines.map(|line| format!("{}: {line}", path.display()));
            services.left_out.extend(lines);
        }
        Ok(services)
    }

    /// Returns a line for each reason and file of packets that were left out.
    pub(crate) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    fn note(&mut self, frame: &[u8]) {
        let Parsed::Ip(packet) = Packet::parse(frame) else {
            return;
        };
        // A later fragment has no ports.
        if packet.part() == Part::Later {
            return;
        }
        let tuple = packet.tuple();
        let (source, destination) = match packet.has_ports() {
            true => (
                (tuple.source, tuple.source_port),
                (tuple.destination, tuple.destination_port),
            ),
            false => ((tuple.source, 0), (tuple.destination, 0)),
        };
        let is_turned = source < destination;
        let ends = if is_turned {
            [source, destination]
        } else {
            [destination, source]
        };
        let key = (tuple.protocol, ends);
        let is_new = !self.flows.contains_key(&key);
        if is_new && self.flows.len() >= MOST {
            return;
        }
        let is_lesser = *self.flows.entry(key).or_insert_with(|| {
            let called = called(tuple.protocol, packet.flags(), source, destination);
            called == ends[0]
        });
        let (address, port) = if is_lesser { ends[0] } else { ends[1] };
        let service = Service {
            address,
            protocol: tuple.protocol,
            port,
        };
        let count = self.all.entry(service).or_default();
        count.flows += u64::from(is_new);
        if destination == (address, port) {
            count.packets += 1;
            count.longest = count.longest.max(packet.ip_len());
        }
    }

    /// Returns the services, the most frequent first.
    pub(crate) fn by_packets(&self) -> Vec<(Service, Count)> {
        let mut all: Vec<(Service, Count)> = self
            .all
            .iter()
            .map(|(&service, &count)| (service, count))
            .collect();
        all.retain(|(_, count)| count.packets > 0);
        all.sort_by_key(|&(service, count)| {
            (std::cmp::Reverse((count.packets, count.flows)), service)
        });
        all
    }
}

/// Returns the called end of a flow, by its first packet: the destination of a SYN, the source of a
/// SYN-ACK, or else the end with the lower port.
fn called(
    number: u8,
    flags: Flags,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
) -> (IpAddr, u16) {
    let is_tcp = number == protocol::TCP;
    match (
        is_tcp && flags.contains(Flags::SYN),
        flags.contains(Flags::ACK),
    ) {
        (true, false) => destination,
        (true, true) => source,
        _ if source.1 < destination.1 => source,
        _ => destination,
    }
}

//! ARP for IPv4 over Ethernet (RFC 826).

use core::net::Ipv4Addr;

use super::ethernet::{EtherType, MacAddress};
use super::{WireError, read_array, read_u16, split, write};

/// Bytes of an ARP packet for IPv4 over Ethernet.
pub const PACKET_LEN: usize = 28;

const HARDWARE: usize = 0;
const PROTOCOL: usize = 2;
const LENGTHS: usize = 4;
const OPERATION: usize = 6;
const SENDER_MAC: usize = 8;
const SENDER_IP: usize = 14;
const TARGET_MAC: usize = 18;
const TARGET_IP: usize = 24;

const ETHERNET: u16 = 1;
const MAC_6_IP_4: u16 = 0x0604;

/// An operation of ARP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A request for the target's MAC address.
    Request,
    /// The sender has it.
    Reply,
    /// Any other.
    Other(u16),
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The operation: a request or a reply.
    pub operation: Operation,
    /// The sender's MAC address.
    pub sender_mac: MacAddress,
    /// The sender's IPv4 address.
    pub sender: Ipv4Addr,
    /// The target's MAC address; not yet known in a request.
    pub target_mac: MacAddress,
    /// The target's IPv4 address.
    pub target: Ipv4Addr,
}

impl Packet {
    /// Reads a packet.
    ///
    /// # Errors
    /// It is too short, or not for IPv4 over Ethernet.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let (packet, _) = split::<PACKET_LEN>(bytes)?;
        for (field, at, expected) in [
            ("ARP hardware type", HARDWARE, ETHERNET),
            ("ARP protocol type", PROTOCOL, EtherType::IPV4.0),
            ("ARP address lengths", LENGTHS, MAC_6_IP_4),
        ] {
            let value = read_u16(packet, at);
            if value != expected {
                return Err(WireError::Malformed {
                    field,
                    value: value.into(),
                });
            }
        }
        Ok(Self {
            operation: match read_u16(packet, OPERATION) {
                1 => Operation::Request,
                2 => Operation::Reply,
                other => Operation::Other(other),
            },
            sender_mac: MacAddress(read_array(packet, SENDER_MAC)),
            sender: Ipv4Addr::from(read_array(packet, SENDER_IP)),
            target_mac: MacAddress(read_array(packet, TARGET_MAC)),
            target: Ipv4Addr::from(read_array(packet, TARGET_IP)),
        })
    }

    /// Writes the packet.
    pub fn emit(&self, bytes: &mut [u8; PACKET_LEN]) {
        let operation = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
            Operation::Other(other) => other,
        };
        write(bytes, HARDWARE, ETHERNET.to_be_bytes());
        write(bytes, PROTOCOL, EtherType::IPV4.0.to_be_bytes());
        write(bytes, LENGTHS, MAC_6_IP_4.to_be_bytes());
        write(bytes, OPERATION, operation.to_be_bytes());
        write(bytes, SENDER_MAC, self.sender_mac.0);
        write(bytes, SENDER_IP, self.sender.octets());
        write(bytes, TARGET_MAC, self.target_mac.0);
        write(bytes, TARGET_IP, self.target.octets());
    }
}

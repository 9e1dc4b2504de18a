//! Verdicts: the outcome of each frame.

use core::fmt;

/// A port of the dataplane, where frames arrive and leave. The caller chooses the numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct PortId(pub u16);

/// The outcome of a frame. Every frame gets exactly one.
///
/// The enum is exhaustive on purpose: an I/O has to handle all five variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Send the frame out of this port.
    Forward(PortId),
    /// Send the frame out of every port except the one that it arrived at.
    Flood,
    /// The frame has become an answer: send it out of the port that it arrived at.
    Reply,
    /// The frame is unchanged and not for the balancer: give it to the kernel or another receiver.
    Pass,
    /// Drop the frame, for this reason.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal: $description:literal,)+) => {
        /// The reason why a frame was dropped. Each reason has its own counter in
        /// [`Stats`](crate::Stats).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number of reasons.
            pub const COUNT: usize = Self::ALL.len();

            /// Returns the reason's stable name in reports and metrics, in snake case.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// Returns a description of the reason for operators: a clause in lower case without a
            /// full stop. The text may change between versions.
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$variant => $description,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// The frame ends before a header that it announces.
    Truncated = "truncated":
        "the frame ends before a header that it announces",
    /// A header contradicts itself: an impossible version, header length or total length, or a TCP data offset or a UDP
    /// length below its header or beyond the packet.
    Malformed = "malformed":
        "a header contradicts itself",
    /// The packet is for a VIP, but no rule matches its protocol and port. With an outbound rule:
    /// the port is in no vm's block, or a SYN or a datagram for a port of a block matches no
    /// connection.
    NoRule = "no_rule":
        "no rule of the VIP takes the packet's protocol and port",
    /// The rule's pool has no backend that may take a new flow.
    NoBackend = "no_backend":
        "no backend of the pool takes new flows",
    /// A later fragment whose first fragment did not arrive in time, so its ports and its backend
    /// are unknown.
    FragmentWithoutFirst = "fragment_without_first":
        "the first fragment of the datagram was not seen",
    /// An ICMP error that quotes no packet of the VIP or of the public address that it is for, or a packet that cannot
    /// have left with that address.
    IcmpUnmatched = "icmp_unmatched":
        "the ICMP error quotes no packet that left with the address that it is for",
    /// The hop limit expired, and the sender could not be told: the limit on answers is reached, or
    /// the sender cannot be addressed.
    HopLimit = "hop_limit":
        "the hop limit ran out",
    /// The packet is too long for the underlay once encapsulated, and the sender could not be told.
    PacketTooBig = "packet_too_big":
        "the packet is too long for the fabric once encapsulated",
    /// An ICMP echo request for a VIP that does not answer, or above the limit on answers.
    EchoIgnored = "echo_ignored":
        "the VIP does not answer echo requests, or not so many",
    /// The frame's buffer has too little room before the packet for the outer headers.
    NoHeadroom = "no_headroom":
        "the buffer has no room for the outer headers",
    /// VXLAN from an address that belongs to no mux and no host, or from this node's own address
    /// unless it is listed as a mux.
    UnknownPeer = "unknown_peer":
        "the sender is neither a mux nor a host",
    /// VXLAN for a network or a MAC address that no vm of this node has, or for an address that the vm does not have in
    /// its [network](crate::spec::Network).
    UnknownVm = "unknown_vm":
        "no vm here has this network and MAC address, or the vm has other addresses",
    /// VXLAN whose outer UDP checksum is wrong.
    OuterChecksum = "outer_checksum":
        "the outer UDP checksum is wrong",
    /// A packet was marked for congestion on the fabric, but its ends do not support ECN (RFC 6040
    /// §4.2).
    Congestion = "congestion":
        "the packet met congestion, and its ends do not support ECN",
    /// A packet without a connection that cannot begin one; the sender is not told. Also a late or
    /// unsolicited answer (a TCP segment other than a SYN, or an echo reply) for a port of a vm's
    /// SNAT block.
    NoConnection = "no_connection":
        "the packet belongs to no connection and cannot begin one",
    /// The connection table is full.
    TableFull = "table_full":
        "the connection table is full",
    /// A new connection would get the tuple of another one: a client uses one port towards two
    /// frontends that lead to the same port of one vm.
    TupleTaken = "tuple_taken":
        "another connection has the tuple that this one would get",
    /// A vm's outbound packet that no outbound rule allows.
    NoOutboundRule = "no_outbound_rule":
        "no outbound rule lets the vm call out",
    /// A vm's outbound packet, while all its SNAT ports are in use for that destination.
    SnatExhausted = "snat_exhausted":
        "all SNAT ports of the vm are in use towards that destination",
    /// A vm's packet with a source address that is not the vm's.
    SpoofedSource = "spoofed_source":
        "the source is not the vm's address",
    /// The source of a new flow is an address that no host sends from: multicast, broadcast, reserved, IPv4-mapped (RFC
    /// 6890 §2.2), unspecified, loopback (RFC 1812 §5.3.7) or link-local (RFC 3927 §2.7, RFC 4291 §2.5.6), or equal to
    /// its destination address and port. Also a vm's packet to a reserved or IPv4-mapped address.
    Martian = "martian":
        "the source or destination address can never be a host's",
    /// The source begins too many flows: see [`SourceLimiter`](crate::SourceLimiter).
    SourceLimit = "source_limit":
        "the source begins too many flows",
    /// The packet is source-routed, with hops left (RFC 791 §3.1, RFC 8200 §4.4). Source routes are deprecated (RFC
    /// 5095, RFC 7126 §4.3), and NAT cannot translate the packet, because its checksum covers another destination.
    SourceRoute = "source_route":
        "the packet is source-routed",
    /// An ICMP redirect or source quench for a VIP or about a connection. Anyone can forge one, and a host that accepts
    /// it sends its packets elsewhere (RFC 1122 §3.2.2.2, RFC 6633).
    IcmpRedirect = "icmp_redirect":
        "redirects and source quench are not forwarded",
    /// The checksum of an ICMP error for a VIP or about a connection is wrong (RFC 5508 REQ-3a), or
    /// cannot be verified because the error itself is fragmented.
    IcmpChecksum = "icmp_checksum":
        "the checksum of the ICMP error is wrong or cannot be verified",
    /// The checksum of the IPv4 header is wrong (RFC 1812 §5.2.2): that of a packet for a VIP or of a
    /// connection, or of VXLAN's outer header.
    BadChecksum = "bad_checksum":
        "the checksum of the IPv4 header is wrong",
    /// A fragment that could hide or overwrite a transport header: a first one without the whole
    /// header, or a later TCP fragment that reaches into it (RFC 1858, RFC 3128, RFC 7112).
    TinyFragment = "tiny_fragment":
        "the fragment hides or overwrites a part of a transport header",
    /// A later fragment that arrived before its first one. A copy of it waits (see
    /// [`FragmentRoom`](crate::FragmentRoom)), and is counted again afterwards: as
    /// [released](crate::Stats::released), and with its own outcome.
    FragmentHeld = "fragment_held":
        "a copy of the fragment waits for the first one",
    /// A vm calls a VIP and is itself the chosen backend. It would get a packet from its own address, which no stack
    /// answers. With `source_nat`, the rule's connections come from another address. Or a vm calls its own public
    /// address.
    Hairpin = "hairpin":
        "the vm called its own public address, or a VIP whose chosen backend it is: only a VIP's rule with source_nat lets a vm reach itself",
    /// The packet matches no connection at this host agent, and cannot be passed on to the host
    /// that may have its connection or begins it: the limit
    /// [`passes_per_second`](crate::nat::NatOptions::passes_per_second) is reached, or the packet
    /// has already visited that host.
    Astray = "astray":
        "the packet belongs to no connection here and cannot be passed on to another host",
    /// A vm of a network calls an address of the network, or a private one outside of it, that no other vm of
    /// the network has: see [`Network`](crate::spec::Network).
    NoNeighbour = "no_neighbour":
        "no other vm of the network has the destination's address",
    /// A device dropped the packet, which does not fit its buffers. The dataplane has not seen it;
    /// see [`Stats::count_unseen`](crate::Stats::count_unseen).
    TooLong = "too_long":
        "the packet is longer than the memory that the device has for one",
    /// An access list of the vm denies the connection that the packet begins: see
    /// [`SecurityList`](crate::spec::SecurityList).
    Denied = "denied":
        "an access list of the vm denies the connection",
    /// A packet for a vm's [public address](crate::spec::PublicAddress) from an address that is
    /// [inside](crate::spec::Spec::inside): the vm would answer it with its own address.
    InsideSource = "inside_source":
        "inside addresses reach the vm by its own address, not by its public one",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_its_own_index() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn names_are_distinct_snake_case() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            let name = reason.name();
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{name}"
            );
            assert!(
                DropReason::ALL[..index]
                    .iter()
                    .all(|other| other.name() != name)
            );
        }
    }

    #[test]
    fn descriptions_are_distinct_clauses() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            let text = reason.description();
            assert!(
                text.starts_with(|first: char| first.is_ascii_lowercase()),
                "{text}"
            );
            assert!(!text.ends_with('.'), "{text}");
            assert!(
                DropReason::ALL[..index]
                    .iter()
                    .all(|other| other.description() != text)
            );
        }
    }
}

//! Verdicts: the outcome of each frame.

use core::fmt;

/// A port of the dataplane: where a frame came in, or is to go out. The numbers are the caller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct PortId(pub u16);

/// The one outcome that every frame gets.
///
/// Exhaustive on purpose: whoever moves packets has to handle all five.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Send it out of this port.
    Forward(PortId),
    /// Send it out of every port but the one that it came in by.
    Flood,
    /// The frame has become an answer: send it out of the port it came in by.
    Reply,
    /// Not ours, and untouched: hand it to the kernel, or to whoever else listens.
    Pass,
    /// Not to be sent, for this reason.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal: $description:literal,)+) => {
        /// Why a frame was dropped. Each reason has its own counter in [`Stats`](crate::Stats).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of its counter.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number of reasons.
            pub const COUNT: usize = Self::ALL.len();

            /// The reason's name in reports and metrics: snake case, stable.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The reason in words, for an operator: a clause in lower case without a full stop. The
            /// text may change between versions.
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
    /// A header contradicts itself: a version, a header length or a total length that cannot be, also a
    /// TCP data offset or a UDP length below its header or beyond the packet.
    Malformed = "malformed":
        "a header contradicts itself",
    /// The packet is for a VIP, but no rule takes its protocol and port. With an outbound rule: the
    /// port is in no vm's block, or a SYN or a datagram for a port of a block matches no
    /// connection.
    NoRule = "no_rule":
        "no rule of the VIP takes the packet's protocol and port",
    /// The rule's pool has no backend that may take a new flow.
    NoBackend = "no_backend":
        "no backend of the pool takes new flows",
    /// A later fragment whose first fragment did not come, or not in time: its ports, and so its
    /// backend, are unknown.
    FragmentWithoutFirst = "fragment_without_first":
        "the first fragment of the datagram was not seen",
    /// An ICMP error for a VIP that quotes no packet of that VIP.
    IcmpUnmatched = "icmp_unmatched":
        "the ICMP error quotes no packet of the VIP",
    /// The hop limit ran out here, and the sender could not be told: the limit on answers is
    /// reached, or the sender cannot be addressed.
    HopLimit = "hop_limit":
        "the hop limit ran out",
    /// Too long for the underlay once encapsulated, and the sender could not be told.
    PacketTooBig = "packet_too_big":
        "the packet is too long for the fabric once encapsulated",
    /// An ICMP echo request for a VIP that does not answer, or above the limit on answers.
    EchoIgnored = "echo_ignored":
        "the VIP does not answer echo requests, or not so many",
    /// The frame's buffer has too little room before the packet for the outer headers.
    NoHeadroom = "no_headroom":
        "the buffer has no room for the outer headers",
    /// VXLAN from an address that is neither a mux nor a host, or from this
    /// node's own where that is not one of the muxes'.
    UnknownPeer = "unknown_peer":
        "the sender is neither a mux nor a host",
    /// VXLAN for a network or a MAC address that no vm here has.
    UnknownVm = "unknown_vm":
        "no vm here has this network and MAC address",
    /// VXLAN whose outer UDP checksum is wrong.
    OuterChecksum = "outer_checksum":
        "the outer UDP checksum is wrong",
    /// Congestion was experienced on the fabric by a packet whose ends do not know of it (RFC 6040
    /// §4.2).
    Congestion = "congestion":
        "the packet met congestion, and its ends do not support ECN",
    /// A packet of no connection that begins none, whose sender is not told. Also a TCP segment other
    /// than a SYN, or an echo reply, for a port of a vm's SNAT block: a late answer, or an unsolicited one.
    NoConnection = "no_connection":
        "the packet belongs to no connection and cannot begin one",
    /// There is no place for another connection.
    TableFull = "table_full":
        "the connection table is full",
    /// A new connection would have the name of another: a client uses one port towards two
    /// frontends that lead to the same port of one vm.
    TupleTaken = "tuple_taken":
        "another connection has the tuple that this one would get",
    /// A vm calls out, and no outbound rule lets it.
    NoOutboundRule = "no_outbound_rule":
        "no outbound rule lets the vm call out",
    /// A vm calls out, and all its SNAT ports are in use towards that destination.
    SnatExhausted = "snat_exhausted":
        "all SNAT ports of the vm are in use towards that destination",
    /// A vm's packet does not come from the vm's address.
    SpoofedSource = "spoofed_source":
        "the source is not the vm's address",
    /// A flow would begin from an address that no host sends from: multicast, broadcast, reserved,
    /// IPv4-mapped (RFC 6890 §2.2), none, another's loopback (RFC 1812 §5.3.7) or a link's (RFC 3927 §2.7,
    /// RFC 4291 §2.5.6), or the address and port that it is for. Also a vm's, to a reserved or IPv4-mapped
    /// address.
    Martian = "martian":
        "the source or destination address can never be a host's",
    /// The source begins too many flows: see [`SourceLimiter`](crate::SourceLimiter).
    SourceLimit = "source_limit":
        "the source begins too many flows",
    /// The sender chose further hops (RFC 791 §3.1, RFC 8200 §4.4). A VIP is no hop of a source route,
    /// which is deprecated besides (RFC 5095, RFC 7126 §4.3), and the checksum is about another
    /// destination, so it could not be translated either.
    SourceRoute = "source_route":
        "the packet is source-routed",
    /// An ICMP redirect, or source quench, for a VIP or about a connection: anybody could send one, and
    /// a host that believes it sends its packets elsewhere (RFC 1122 §3.2.2.2, RFC 6633).
    IcmpRedirect = "icmp_redirect":
        "redirects and source quench are not forwarded",
    /// An ICMP error for a VIP or about a connection whose checksum is wrong (RFC 5508 REQ-3a), or
    /// cannot be verified since the error itself is in fragments.
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
    /// A later fragment that came before its first one. A copy of it waits, see
    /// [`FragmentRoom`](crate::FragmentRoom), and is counted once more when that is over: as
    /// [released](crate::Stats::released), with its outcome.
    FragmentHeld = "fragment_held":
        "a copy of the fragment waits for the first one",
    /// A vm calls a VIP, and is the backend that was chosen: it would get a packet from itself, which
    /// no stack answers. With `source_nat`, the rule's connections come from another address.
    Hairpin = "hairpin":
        "the vm called its own VIP and was chosen itself: with source_nat, a vm can reach itself",
    /// The packet matches no connection at this host agent, and cannot be passed on to the host
    /// that may have its connection or is to begin it: more than
    /// [`passes_per_second`](crate::nat::NatOptions::passes_per_second) are passed on, or the
    /// packet has visited that host.
    Astray = "astray":
        "the packet belongs to no connection here and cannot be passed on to another host",
    /// A vm of a network calls an address of the network, or a private one outside of it, that no other vm of
    /// the network has: see [`Network`](crate::spec::Network).
    NoNeighbour = "no_neighbour":
        "no other vm of the network has the destination's address",
    /// A device dropped the packet, which is longer than the memory that it has for one: the dataplane has not
    /// seen it, see [`Stats::count_unseen`](crate::Stats::count_unseen).
    TooLong = "too_long":
        "the packet is longer than the memory that the device has for one",
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

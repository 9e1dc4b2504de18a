//! ICMP messages that are neither errors nor echo messages: a rule for ICMP takes echo requests only.

use crate::translated;

use slb_core::{DropReason, Verdict};
use translated::{BACKENDS, FABRIC, OUTER, ROLES, Role, Setup, What, World};

/// The packet with another ICMP type, and a checksum that is right for it.
fn with_kind(mut frame: Vec<u8>, role: Role, ipv6: bool, kind: u8) -> Vec<u8> {
    let ip = 14 + if role == Role::Host { OUTER } else { 0 };
    let at = ip + if ipv6 { 40 } else { 20 };
    let old = u16::from_be_bytes([frame[at + 2], frame[at + 3]]);
    // RFC 1624 §3: HC' = ~(~HC + ~m + m').
    let mut sum =
        u32::from(!old) + u32::from(!(u16::from(frame[at]) << 8)) + (u32::from(kind) << 8);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[at] = kind;
    frame[at + 2..at + 4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame
}

#[test]
fn a_rule_for_icmp_takes_echo_requests_only() {
    for (role, ipv6) in ROLES {
        let mut world = World::new(Setup::new(role, ipv6));
        let request = world.packet_of(1, 7, What::Echo);
        let kinds: &[u8] = if ipv6 {
            &[139, 140, 144, 160, 200]
        } else {
            &[6, 9, 10, 13, 14, 15, 16, 17, 18, 41, 42]
        };
        for &kind in kinds {
            let bytes = with_kind(request.clone(), role, ipv6, kind);
            let outcome = world.give(FABRIC, &bytes);
            match role {
                Role::Host => assert_eq!(
                    outcome.verdict,
                    Verdict::Drop(DropReason::NoRule),
                    "type {kind}"
                ),
                // A proxy is a bridge for what is none of its own.
                Role::Proxy => {
                    assert_eq!(outcome.verdict, Verdict::Forward(BACKENDS), "type {kind}");
                    assert_eq!(outcome.bytes, bytes, "type {kind} is not translated");
                }
            }
        }
        assert_eq!(world.connections().live, 0, "{role:?}, IPv6: {ipv6}");
        assert!(world.give(FABRIC, &request).is_forwarded());
        assert_eq!(world.connections().live, 1, "{role:?}, IPv6: {ipv6}");
    }
}

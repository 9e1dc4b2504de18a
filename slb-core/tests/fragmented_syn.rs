//! Packets in fragments that open a connection, at a host agent and a proxy: their later fragments are
//! neither an answer nor a sign of one.

use crate::trio;

use slb_core::nat::ConnectionState;
use slb_core::snapshot::BackendId;
use slb_core::stats::BackendCounters;
use slb_core::{Host, Proxy, Verdict};
use trio::{
    FAMILIES, Family, From, NOW, Role, Shared, TCP, UDP, fragments, host, host_for, packet, proxy,
    proxy_for, tcp, udp,
};

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
/// SYN, ACK, FIN, RST, and none.
const FLAGS: [u8; 5] = [SYN, 0x10, 0x11, 0x14, 0];

/// A role that keeps connections.
trait Translator: Role {
    fn states(&self) -> Vec<ConnectionState>;
    fn counters(&self, id: BackendId) -> BackendCounters;
    fn backend(&self, family: Family) -> BackendId;
}

macro_rules! translator {
    ($role:ty) => {
        impl Translator for $role {
            fn states(&self) -> Vec<ConnectionState> {
                let table = self.connections();
                let all = table.ipv4_from(0).chain(table.ipv6_from(0));
                all.map(|(_, connection)| connection.state).collect()
            }

            fn counters(&self, id: BackendId) -> BackendCounters {
                self.backend_counters(id).unwrap()
            }

            fn backend(&self, family: Family) -> BackendId {
                self.snapshot().backends()[usize::from(family.is_ipv6)].id()
            }
        }
    };
}

translator!(Host<'static, Shared>);
translator!(Proxy<'static, Shared>);

/// Data of a SYN of which each later fragment of 64 bytes looks like a TCP header with these flags.
fn like_headers(flags: u8) -> Vec<u8> {
    [0x50, flags].repeat(100)
}

fn a_syn_in_fragments(mut role: impl Translator, family: Family, flags: u8) {
    let id = role.backend(family);
    let counted = |role: &_| {
        let counters = Translator::counters(role, id);
        (counters.accepted, counters.failures)
    };
    let there = (family.client(), family.vip());
    let syn = tcp(there, (5000, 80), SYN, &like_headers(flags));
    // The second one asks again, which its first fragment alone counts.
    for asked_again in [0, 1] {
        for part in fragments(there, TCP, &syn, 64, asked_again) {
            let (verdict, _) = role.give(NOW, From::Outside, &part);
            assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
            assert_eq!(role.states(), [ConnectionState::SynSent]);
            assert_eq!(counted(&role), (0, u64::from(asked_again)));
        }
    }
    let back = (family.dip(), family.client());
    let answer = packet(back, TCP, &tcp(back, (8080, 5000), SYN_ACK, b""));
    role.pass(NOW, From::Inside, &answer);
    assert_ne!(role.states(), [ConnectionState::SynSent]);
    assert_eq!(counted(&role), (1, 1));
}

#[test]
fn a_syn_s_own_later_fragments_are_no_answer_at_a_host_and_a_proxy() {
    for family in FAMILIES {
        for flags in FLAGS {
            a_syn_in_fragments(host(), family, flags);
            a_syn_in_fragments(proxy(), family, flags);
        }
    }
}

#[test]
fn a_vm_s_own_fragmented_syn_is_not_answered_by_itself() {
    for family in FAMILIES {
        for flags in FLAGS {
            let mut host = host();
            let there = (family.dip(), family.client());
            let syn = tcp(there, (5000, 443), SYN, &like_headers(flags));
            for part in fragments(there, TCP, &syn, 64, 1) {
                host.pass(NOW, From::Inside, &part);
                assert_eq!(host.states(), [ConnectionState::SynSent]);
            }
        }
    }
}

/// Places in a small table.
const PLACES: u16 = 8;

/// A flow whose opener goes on after the answer is never evicted. A later fragment of the question is no
/// sign of that, so the flow makes room for a new connection.
fn a_question_in_fragments(mut role: impl Translator, family: Family) {
    let (there, back) = (
        (family.client(), family.vip()),
        (family.dip(), family.client()),
    );
    for port in 1..PLACES {
        let segment = |flags| packet(there, TCP, &tcp(there, (port, 80), flags, b""));
        role.pass(NOW, From::Outside, &segment(SYN));
        let answer = packet(back, TCP, &tcp(back, (8080, port), SYN_ACK, b""));
        role.pass(NOW, From::Inside, &answer);
        role.pass(NOW, From::Outside, &segment(ACK));
    }
    let question = udp(there, (5000, 53), &[7; 200]);
    let mut parts = fragments(there, UDP, &question, 64, 1).into_iter();
    role.pass(NOW, From::Outside, &parts.next().expect("a first one"));
    let answer = packet(back, UDP, &udp(back, (53, 5000), b"answer"));
    role.pass(NOW, From::Inside, &answer);
    for part in parts {
        role.pass(NOW, From::Outside, &part);
    }
    assert_eq!(
        role.states(),
        [ConnectionState::Established; PLACES as usize]
    );
    let syn = packet(there, TCP, &tcp(there, (PLACES, 80), SYN, b""));
    role.pass(NOW, From::Outside, &syn);
}

#[test]
fn a_question_s_own_later_fragments_establish_nothing() {
    for family in FAMILIES {
        a_question_in_fragments(host_for(PLACES.into()), family);
        a_question_in_fragments(proxy_for(PLACES.into()), family);
    }
}

fn a_header_that_a_fragment_cuts(mut role: impl Translator, family: Family) {
    let there = (family.client(), family.vip());
    let mut syn = tcp(there, (5000, 80), SYN, &[1; 20]);
    syn[12] = 0xa0; // 20 bytes of options, of which the first fragment has four
    for part in fragments(there, TCP, &syn, 24, 1) {
        let (verdict, _) = role.give(NOW, From::Outside, &part);
        assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
        assert_eq!(role.states(), [ConnectionState::SynSent]);
    }
}

/// Over IPv6 the first fragment has the whole header (RFC 7112).
#[test]
fn a_syn_whose_options_go_on_in_the_next_ipv4_fragment_opens_a_connection() {
    for family in FAMILIES.into_iter().filter(|family| !family.is_ipv6) {
        a_header_that_a_fragment_cuts(host(), family);
        a_header_that_a_fragment_cuts(proxy(), family);
    }
}

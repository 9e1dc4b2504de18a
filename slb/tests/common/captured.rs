//! Captures through each role, to servers that send everything back.

use slb_control::Config;
use slb_core::packet::{Packet, Parsed};
use slb_core::wire::ethernet::Ethernet;
use slb_core::{Dataplane, Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Proxy, Verdict};

pub const HOST: &str = "172.16.0.101";
/// Steps that packets take.
pub const STEPS: [&str; 6] = [
    "mux",
    "mux without a table",
    "host, to the vm",
    "host, from the vm",
    "proxy",
    "proxy, from the backend",
];

/// A packet at one step.
#[derive(Clone, Copy)]
pub struct Processed<'a> {
    pub step: &'static str,
    pub at: Instant,
    /// The packet as it came into the first role of this direction.
    pub input: &'a [u8],
    pub verdict: Verdict,
    /// The frame afterwards.
    pub output: &'a [u8],
}

impl Processed<'_> {
    pub fn is_sent(&self) -> bool {
        matches!(self.verdict, Verdict::Forward(_) | Verdict::Reply)
    }
}

/// Gives a packet that came by a port to a role.
fn process<'a, D: Dataplane<'a>>(
    role: &mut D,
    at: Instant,
    port: PortId,
    packet: &[u8],
) -> (Verdict, Vec<u8>) {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(packet);
    let mut frames = [Frame::new(&mut buffer, HEADROOM, packet.len()).expect("room")];
    frames[0].set_port(port);
    role.process(at, &mut frames);
    (frames[0].verdict(), frames[0].bytes().to_vec())
}

/// The packet of a server that sends everything back: its ends change places, and every checksum stays as it
/// was.
fn sent_back(packet: &[u8]) -> Option<Vec<u8>> {
    let Parsed::Ip(parsed) = Packet::parse(packet) else {
        return None;
    };
    let ip = packet.len() - Ethernet::parse(packet).ok()?.payload().len();
    let mut packet = packet.to_vec();
    let mut swap = |at: usize, len: usize| {
        if let Some(both) = packet.get_mut(at..at + 2 * len) {
            let (one, other) = both.split_at_mut(len);
            one.swap_with_slice(other);
        }
    };
    swap(0, 6);
    let tuple = parsed.tuple();
    let transport = if tuple.source.is_ipv4() {
        swap(ip + 12, 4);
        ip + usize::from(packet[ip] & 15) * 4
    } else {
        swap(ip + 8, 16);
        ip + 40
    };
    // Extension headers have other fields where ports would be.
    let is_plain = tuple.source.is_ipv4() || matches!(packet[ip + 6], 6 | 17);
    if is_plain && matches!(tuple.protocol, 6 | 17) && tuple.source_port != 0 {
        let mut swap = |at: usize| {
            if packet.len() >= at + 4 {
                let (one, other) = packet[at..at + 4].split_at_mut(2);
                one.swap_with_slice(other);
            }
        };
        swap(transport);
    }
    Some(packet)
}

/// Gives each packet to a mux without a flow table, and to one with a table and the host agent behind it.
/// `text` is [`configuration_text`](super::configuration_text)'s.
pub fn behind_a_mux(
    text: &str,
    packets: &[(Instant, Vec<u8>)],
    seen: &mut impl FnMut(Processed<'_>),
) {
    const KEY: Key = Key::new([1, 2]);
    let parse = |text: &str| Config::parse("captured.toml", text).unwrap();
    let at_host = text
        .replacen("role = \"mux\"", "role = \"host\"", 1)
        .replacen("172.16.0.11\"", &format!("{HOST}\""), 1);
    let config = parse(text);
    let mut stateless = Mux::stateless(config.snapshot(None).unwrap(), KEY).expect("its role");
    let mut mux =
        Mux::with_capacity(config.snapshot(None).unwrap(), 10_000, KEY).expect("its role");
    let mut host = Host::with_capacity(parse(&at_host).snapshot(None).unwrap(), 10_000, KEY)
        .expect("its role");
    for (at, packet) in packets {
        let mut note = |step, input: &[u8], (verdict, output): &(Verdict, Vec<u8>)| {
            let processed = Processed {
                step,
                at: *at,
                input,
                verdict: *verdict,
                output,
            };
            seen(processed);
            processed.is_sent()
        };
        let carried = process(&mut stateless, *at, PortId(0), packet);
        note("mux without a table", packet, &carried);
        let carried = process(&mut mux, *at, PortId(0), packet);
        // A reply is the sender's.
        if !note("mux", packet, &carried) || carried.0 == Verdict::Reply {
            continue;
        }
        let delivered = process(&mut host, *at, PortId(0), &carried.1);
        note("host, to the vm", packet, &delivered);
        let Verdict::Forward(port @ PortId(1..)) = delivered.0 else {
            continue;
        };
        if let Some(answer) = sent_back(&delivered.1) {
            let output = process(&mut host, *at, port, &answer);
            note("host, from the vm", &answer, &output);
        }
    }
}

/// Gives each packet to a proxy with the VIPs of `text`, which is
/// [`configuration_text`](super::configuration_text)'s.
pub fn behind_a_proxy(
    text: &str,
    packets: &[(Instant, Vec<u8>)],
    seen: &mut impl FnMut(Processed<'_>),
) {
    let vips = &text[text.find("[[frontend]]").unwrap_or(text.len())..];
    let mut at_proxy = "[node]\nrole = \"proxy\"\nmtu = 9000\n".to_owned();
    for (pool, network) in [("four", "10.10.1."), ("six", "fd00:10::")] {
        at_proxy += &format!(
            "[[pool]]\nname = \"{pool}\"\nbackends = [{{ name = \"b\", address = \"{network}1\", mac = \
             \"02:00:00:00:00:09\" }}]\n"
        );
    }
    let config = Config::parse("captured.toml", &(at_proxy + vips)).unwrap();
    let mut proxy = Proxy::with_capacity(config.snapshot(None).unwrap(), 10_000, Key::new([1, 2]))
        .expect("its role");
    for (at, packet) in packets {
        let mut note = |step, input: &[u8], (verdict, output): &(Verdict, Vec<u8>)| {
            seen(Processed {
                step,
                at: *at,
                input,
                verdict: *verdict,
                output,
            });
        };
        let forwarded = process(&mut proxy, *at, PortId(0), packet);
        note("proxy", packet, &forwarded);
        let Verdict::Forward(port @ PortId(1..)) = forwarded.0 else {
            continue;
        };
        if let Some(answer) = sent_back(&forwarded.1) {
            let output = process(&mut proxy, *at, port, &answer);
            note("proxy, from the backend", &answer, &output);
        }
    }
}

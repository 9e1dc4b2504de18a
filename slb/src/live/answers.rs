//! Answers to requests about one packet, the configuration and dropped packets.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant as Clock, SystemTime};

use serde_json::{Value, json};
use slb_control::{Config, Role, open_file, read_text};
use slb_core::list::{Ends, Subnet};
use slb_core::packet::{Packet, Parsed, Tuple};
use slb_core::state::Age;
use slb_core::wire::ethernet::Ethernet;
use slb_core::wire::ipv4::Ipv4;
use slb_core::wire::ipv6::Ipv6;
use slb_core::wire::protocol;
use slb_core::wire::udp::Udp;
use slb_core::wire::vxlan::{self, Vxlan};
use slb_core::{DropReason, Frame, HEADROOM, Instant, PortId};

use super::look::{NoPage, Wanted};
use super::request::{Answer, several, text};
use super::status::Shared;
use super::worker::secret;
use crate::balancer::Balancer;
use crate::explain::{explain, explain_made, made_from, port_from, proxy_port, sender, speaker};

/// The maximum time to search the tables for the entries of a packet.
const PATIENCE: Duration = Duration::from_secs(30);
/// The number of flows or connections that fit a copy.
const COPY: usize = 1 << 13;

/// Answers with the installed configuration.
pub(super) fn config(shared: &Shared, out: &mut Answer<'_>) -> io::Result<()> {
    let (config, snapshot) = shared.in_place();
    let origin = &config.origin;
    let on_disk = read_text(open_file(&origin.name)).ok();
    let since = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
    };
    out.line(&json!({
        "role": config.node.role.name(),
        "generation": snapshot.generation(),
        "name": origin.name,
        "read": since(origin.read).as_secs_f64(),
        "age": origin.read.elapsed().unwrap_or_default().as_secs_f64(),
        "is_as_on_disk": on_disk.map(|on_disk| origin.is(&on_disk)),
        "text": origin.shown(),
    }))?;
    out.line(&json!({ "end": {} }))
}

/// Answers with the last dropped packets of each worker.
pub(super) fn drops(shared: &Shared, out: &mut Answer<'_>) -> io::Result<()> {
    let config = shared.config();
    let Some(mut drops) = shared.drops() else {
        return out.line(&json!({ "error": "a worker does not answer" }));
    };
    drops.sort_by_key(|drop| drop.age);
    for drop in &drops {
        // Bytes that were cut off are zeros here: only headers are read.
        let mut bytes = drop.bytes().to_vec();
        bytes.resize(drop.len as usize, 0);
        let tuple = match Packet::parse(&bytes) {
            Parsed::Ip(packet) => Some(packet.tuple().to_string()),
            _ => None,
        };
        out.line(&json!({
            "age": drop.age.as_secs_f64(),
            "reason": drop.reason.name(),
            "description": drop.reason.description(),
            "port": port_name(&config, drop.port),
            "length": drop.len,
            "packet": tuple,
            "bytes": hex(drop.bytes()),
        }))?;
    }
    // The kernel does not deliver these packets.
    let reason = DropReason::TooLong;
    let unseen = shared
        .totals()
        .and_then(|totals| totals.dropped.get(reason.name()).copied());
    if let Some(packets) = unseen.filter(|packets| *packets > 0) {
        out.line(&json!({
            "reason": reason.name(),
            "description": reason.description(),
            "packets": packets,
        }))?;
    }
    out.line(&json!({ "end": { "entries": drops.len() } }))
}

/// Returns the name of a port: a proxy's port name, the name of a host agent's vm, or the number.
pub(super) fn port_name(config: &Config, port: PortId) -> String {
    let own = match config.node.role {
        Role::Proxy => config.ports.name(port).map(str::to_owned),
        Role::Host if port == PortId(0) => Some("fabric".to_owned()),
        Role::Host => {
            let vms = config.vms();
            let vm = vms.into_iter().find(|vm| vm.port == Some(port));
            vm.map(|vm| vm.name)
        }
        Role::Mux => None,
    };
    own.unwrap_or_else(|| port.0.to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| (*byte as char).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    pairs.map(byte).collect()
}

/// Explains a packet by a copy of the balancer, which has the live configuration and the table entries that the
/// packet belongs to.
pub(super) fn explain_live(asked: &Value, shared: &Shared, out: &mut Answer<'_>) -> io::Result<()> {
    match explained(asked, shared) {
        Ok(text) => {
            out.line(&json!({ "text": text }))?;
            out.line(&json!({ "end": {} }))
        }
        Err(error) => out.line(&json!({ "error": error })),
    }
}

fn explained(asked: &Value, shared: &Shared) -> Result<String, String> {
    let (config, snapshot) = shared.in_place();
    let mut config = Config::clone(&config);
    let message = |failure: crate::Failure| {
        let text = failure.to_string();
        text.strip_prefix("slb: ").unwrap_or(&text).to_owned()
    };
    let known = ["ask", "tuple", "packet", "from"];
    let mut keys = asked
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys);
    if let Some(other) = keys.find(|key| !known.contains(&key.as_str())) {
        return Err(format!("explain has no option {other:?}"));
    }
    let from = text(asked, "from")?;
    let mut from = from
        .map(|name| port_from(&config, name))
        .transpose()
        .map_err(message)?;
    let (packet, is_made) = match text(asked, "packet")? {
        Some(hex) => {
            let packet = unhex(hex).ok_or("packet: expected bytes in hexadecimal")?;
            if from.is_none() {
                from = sender(&config, &packet).map_err(message)?;
            }
            (packet, false)
        }
        None => {
            let words = several(asked, "tuple")?;
            let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
            if from.is_none() {
                from = speaker(&config, &words).map_err(message)?;
            }
            (made_from(&config, &words, from).map_err(message)?, true)
        }
    };
    // The tables of a copy are small, and limits have not been used by other packets.
    let node = &mut config.node;
    node.flows = node.flows.min(COPY);
    node.connections = node.connections.min(COPY);
    node.waiting_fragments = node.waiting_fragments.min(16);
    node.direct_flows = node.direct_flows.min(COPY);
    node.flows_per_source = 0;
    let key = secret().map_err(message)?;
    let mut copy = Balancer::with_snapshot(&config, snapshot, key).map_err(message)?;
    let now = Instant::from_secs(1);
    for tuple in tuples(&packet) {
        for wanted in wanted(&tuple, config.node.role) {
            for records in records(shared, &wanted)? {
                let imported = copy.import(now, Age::default(), &records);
                imported.map_err(|error| error.to_string())?;
            }
        }
    }
    if is_made {
        let title = format!("a packet made for it, {} bytes\n", packet.len());
        let text = explain_made(&config, copy, &packet, from).map_err(message)?;
        return Ok(title + &text);
    }
    let mut buffer = vec![0; HEADROOM + packet.len() + HEADROOM];
    buffer[HEADROOM..HEADROOM + packet.len()].copy_from_slice(&packet);
    let frame = Frame::new(&mut buffer, HEADROOM, packet.len());
    let mut frames = [frame.ok_or("the packet is too long")?];
    match from {
        Some(port) => frames[0].set_port(port),
        None if config.node.role == Role::Proxy => {
            frames[0].set_port(proxy_port(&config, &packet));
        }
        None => copy.set_port(&mut frames[0]),
    }
    let mut said = String::new();
    explain(&config, &mut copy, now, &mut frames, 0, &mut said);
    Ok(said)
}

/// Returns the tuples of a packet, and of the packet inside its VXLAN.
fn tuples(frame: &[u8]) -> Vec<Tuple> {
    let tuple = |frame: &[u8]| match Packet::parse(frame) {
        Parsed::Ip(packet) => Some(packet.tuple()),
        _ => None,
    };
    let inner = || {
        let link = Ethernet::parse(frame).ok()?;
        let datagram = match link.payload().first()? >> 4 {
            4 => Ipv4::parse(link.payload()).ok()?.payload(),
            _ => Ipv6::parse(link.payload()).ok()?.payload(),
        };
        let udp = Udp::parse(datagram).ok()?;
        let vxlan = Vxlan::parse(udp.payload()).ok()?;
        (udp.destination_port() == vxlan::PORT).then(|| tuple(vxlan.payload()))?
    };
    tuple(frame).into_iter().chain(inner()).collect()
}

/// Lists the table entries that a packet of this tuple may belong to.
fn wanted(tuple: &Tuple, role: Role) -> Vec<Wanted> {
    let has_ports = matches!(tuple.protocol, protocol::TCP | protocol::UDP);
    let port = |port: u16| has_ports.then_some(port);
    let host = |address: IpAddr| Some(Subnet::host(address));
    let ends = Ends {
        source: host(tuple.source),
        destination: host(tuple.destination),
        source_port: port(tuple.source_port),
        destination_port: port(tuple.destination_port),
    };
    let own = Wanted {
        protocol: Some(tuple.protocol),
        ..Wanted::default()
    };
    let outside = Wanted {
        outside: ends,
        ..own.clone()
    };
    let inside = Wanted {
        inside: ends,
        ..own
    };
    match role {
        Role::Mux => vec![outside],
        Role::Host | Role::Proxy => vec![outside, inside],
    }
}

/// Returns the records of the wanted entries from all workers.
fn records(shared: &Shared, wanted: &Wanted) -> Result<Vec<Vec<u8>>, String> {
    let begin = Clock::now();
    let mut pages = shared.pages(wanted, true);
    let mut all = Vec::new();
    loop {
        match pages.next(Duration::from_millis(100)) {
            Ok(page) => {
                all.push(page.records.clone());
                pages.give_back(page);
            }
            Err(NoPage::Left) => return Ok(all),
            Err(NoPage::Yet) if begin.elapsed() < PATIENCE => {}
            Err(NoPage::Yet) => return Err("a worker does not answer".to_owned()),
            Err(NoPage::Ended) => return Err("a worker ended".to_owned()),
        }
    }
}

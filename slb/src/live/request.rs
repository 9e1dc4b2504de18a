//! Requests at the status socket besides the status: one line of JSON, answered with one line of
//! JSON for each item and a last one that says how many there were.
//!
//! A client without a request gets the status. No request changes any state.

use std::collections::HashMap;
use std::io::{self, Read as _, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use slb_control::{Config, Role};
use slb_core::flow::FlowState;
use slb_core::list::{Entry, EntryState, RuleName, Subnet, backend_identity, rule_names};
use slb_core::nat::{ConnectionState, Direction};
use slb_core::packet::Tuple;
use slb_core::wire::protocol;

use super::look::{NoPage, Wanted};
use super::status::{Shared, Writer};
use super::tell::Tell;

/// The time for a client's request, after which the client gets the status.
const TO_ASK: Duration = Duration::from_millis(100);
/// The maximum length of a request in bytes: one with the longest packet in hexadecimal.
const LONGEST: usize = 160 << 10;
/// The time without output after which an empty line is sent, which detects a client that is gone.
const BEAT: Duration = Duration::from_millis(500);
/// Bytes that are written at once.
const BLOCK: usize = 64 << 10;

/// The request of a client; `None` for the status.
pub(super) fn read(mut client: &UnixStream) -> io::Result<Option<Value>> {
    client.set_read_timeout(Some(TO_ASK))?;
    let mut asked = Vec::new();
    let mut buffer = [0; 4096];
    while !asked.ends_with(b"\n") && asked.len() < LONGEST {
        match client.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => asked.extend(&buffer[..len]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let asked = asked.trim_ascii();
    if asked.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(asked).unwrap_or(Value::Null)))
}

/// Answers a request.
pub(super) fn answer(
    asked: &Value,
    client: &UnixStream,
    told: &dyn Tell,
    writer: &Writer,
) -> io::Result<()> {
    let mut out = Answer::to(client);
    if let Err(error) = check_plain(asked) {
        return out
            .line(&json!({ "error": error }))
            .and_then(|()| out.flush());
    }
    let answered = match asked["ask"].as_str() {
        Some("status") => match writer.status(client, told) {
            None => return Ok(()),
            Some(Ok(document)) => out.line(&document),
            Some(Err(why)) => out.line(&json!({ "error": why })),
        },
        _ => told.answer(asked, &mut out),
    };
    answered.and_then(|()| out.flush())
}

/// Lines on their way to a client.
pub(crate) struct Answer<'c> {
    client: &'c UnixStream,
    bytes: Vec<u8>,
    written: Instant,
}

impl<'c> Answer<'c> {
    fn to(client: &'c UnixStream) -> Self {
        Self {
            client,
            bytes: Vec::with_capacity(2 * BLOCK),
            written: Instant::now(),
        }
    }

    pub(crate) fn line(&mut self, value: &Value) -> io::Result<()> {
        writeln!(self.bytes, "{value}")?;
        self.give_on()
    }

    /// Bytes that are no text, behind a line that says how many they are.
    pub(super) fn block(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        writeln!(self.bytes, "{{\"bytes\":{}}}", bytes.len())?;
        self.bytes.extend_from_slice(bytes);
        self.flush()
    }

    /// Waits for the client to read for as long as it likes.
    pub(super) fn set_patient(&self) -> io::Result<()> {
        self.client.set_write_timeout(None)
    }

    /// Waits so long for the client to read, then gives it up.
    pub(super) fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.client.set_write_timeout(Some(patience))
    }

    /// Returns true if the client has sent another line: it wants the answer to end. One that only closed its
    /// own side still listens.
    pub(super) fn is_to_end(&self) -> bool {
        let mut polled = [PollFd::new(self.client, PollFlags::IN)];
        let now = Timespec::default();
        let is_readable = poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0);
        let mut client = self.client;
        is_readable && client.read(&mut [0; 256]).is_ok_and(|len| len > 0)
    }

    /// Writes what there is, if it is enough for a block.
    fn give_on(&mut self) -> io::Result<()> {
        if self.bytes.len() < BLOCK {
            return Ok(());
        }
        self.flush()
    }

    /// Writes what there is, and an empty line where there has been nothing for a while.
    pub(super) fn beat(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() && self.written.elapsed() >= BEAT {
            self.bytes.push(b'\n');
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.bytes.is_empty() {
            self.client.write_all(&self.bytes)?;
            self.bytes.clear();
            self.written = Instant::now();
        }
        Ok(())
    }
}

/// The backends and rules of a configuration, by identity, as members of an object.
struct Names {
    backends: HashMap<u64, String>,
    rules: HashMap<u64, String>,
}

impl Names {
    fn of(config: &Config) -> Self {
        config.with_spec(|spec| {
            let mut backends = HashMap::new();
            for pool in spec.pools {
                for backend in pool.backends {
                    let (pool_name, name) = (json!(pool.name), json!(backend.name));
                    backends.insert(
                        backend_identity(pool, backend),
                        format!("\"pool\":{pool_name},\"backend\":{name}"),
                    );
                }
            }
            let rules = rule_names(spec).map(|(identity, rule)| {
                let kind = match rule {
                    RuleName::Rule(_) => "rule",
                    RuleName::InboundNat(_) => "inbound_nat",
                    RuleName::Outbound(_) => "outbound",
                };
                (identity, format!("\"{kind}\":{}", json!(rule.name())))
            });
            let rules = rules.collect();
            Self { backends, rules }
        })
    }
}

pub(super) fn list(asked: &Value, shared: &Shared, out: &mut Answer<'_>) -> io::Result<()> {
    let begin = Instant::now();
    let config = shared.config();
    let read = || -> Result<_, String> {
        let amount = (flag(asked, "count")?, number(asked, "limit")?);
        Ok((wanted(asked, &config)?, amount))
    };
    let (wanted, (only_counts, most)) = match read() {
        Ok(read) => read,
        Err(error) => return out.line(&json!({ "error": error })),
    };
    let most = most.unwrap_or(u64::MAX);
    // A list may be read page by page: how long that takes is the reader's business.
    out.set_patient()?;
    let names = Names::of(&config);
    let mut pages = shared.pages(&wanted, false);
    let (mut entries, mut places) = (0, 0);
    let mut is_cut = false;
    loop {
        match pages.next(Duration::from_millis(100)) {
            Ok(page) => {
                places += page.places;
                for entry in &page.entries {
                    if entries >= most {
                        is_cut = true;
                        break;
                    }
                    entries += 1;
                    if !only_counts {
                        write_entry(&mut out.bytes, entry, &names)?;
                    }
                }
                pages.give_back(page);
                out.give_on()?;
                if is_cut {
                    break;
                }
            }
            Err(NoPage::Yet) => out.beat()?,
            Err(NoPage::Left) => break,
            Err(NoPage::Ended) => {
                return out.line(&json!({ "error": "a worker ended before its table did" }));
            }
        }
    }
    out.line(&json!({ "end": {
        "entries": entries,
        "places": places,
        "is_whole": !is_cut,
        "seconds": begin.elapsed().as_secs_f64(),
    } }))
}

fn protocol_name(number: u8) -> Option<&'static str> {
    match number {
        protocol::TCP => Some("tcp"),
        protocol::UDP => Some("udp"),
        protocol::ICMP => Some("icmp"),
        protocol::ICMPV6 => Some("icmpv6"),
        _ => None,
    }
}

fn write_entry(out: &mut Vec<u8>, entry: &Entry, names: &Names) -> io::Result<()> {
    match protocol_name(entry.outside.protocol) {
        Some(name) => write!(out, "{{\"protocol\":\"{name}\"")?,
        None => write!(out, "{{\"protocol\":\"{}\"", entry.outside.protocol)?,
    }
    let Tuple {
        source,
        destination,
        source_port,
        destination_port,
        ..
    } = entry.outside;
    let remote = match entry.opener {
        Direction::Inward => "client",
        Direction::Outward => "remote",
    };
    write!(
        out,
        ",\"{remote}\":\"{source}\",\"{remote}_port\":{source_port},\"vip\":\"{destination}\",\
         \"vip_port\":{destination_port}"
    )?;
    if let Some(inside) = entry.inside {
        write!(
            out,
            ",\"server\":\"{}\",\"server_port\":{}",
            inside.source, inside.source_port
        )?;
        if (inside.destination, inside.destination_port) != (source, source_port) {
            write!(
                out,
                ",\"peer\":\"{}\",\"peer_port\":{}",
                inside.destination, inside.destination_port
            )?;
        }
    }
    if let Some(backend) = entry.backend {
        match names.backends.get(&backend) {
            Some(named) => write!(out, ",{named}")?,
            None => out.extend(b",\"backend\":null"),
        }
    }
    if let Some(named) = entry.rule.and_then(|rule| names.rules.get(&rule)) {
        write!(out, ",{named}")?;
    }
    if let Some(port) = entry.port {
        write!(out, ",\"port\":{}", port.0)?;
    }
    write!(out, ",\"state\":\"{}\"", entry.state.name())?;
    if let (Some(timeout), Some(idle)) = (entry.timeout, entry.idle()) {
        write!(
            out,
            ",\"idle\":{:.3},\"timeout\":{:.3}",
            idle.as_secs_f64(),
            timeout.as_secs_f64()
        )?;
    }
    writeln!(out, ",\"left\":{:.3}}}", entry.left.as_secs_f64())
}

/// The filter of a list, in the words of a request. Members that it does not know are refused, so
/// that no filter is passed over in silence.
fn wanted(asked: &Value, config: &Config) -> Result<Wanted, String> {
    let (role, mut wanted) = (config.node.role, Wanted::default());
    let what = text(asked, "what")?.unwrap_or_default();
    match (what, role) {
        ("flows", Role::Mux) | ("connections", Role::Host | Role::Proxy) => {}
        ("snat", Role::Host) => wanted.opener = Some(Direction::Outward),
        ("flows", role) => {
            let role = role.name();
            return Err(format!(
                "a {role} has connections, not flows: ask for slb connections"
            ));
        }
        ("connections" | "snat", Role::Mux) => {
            return Err("a mux has flows, not connections: ask for slb flows".to_owned());
        }
        ("snat", _) => return Err("a proxy's backends have no SNAT ports".to_owned()),
        _ => {
            return Err(format!(
                "expected \"what\": \"flows\", \"connections\" or \"snat\", got {what:?}"
            ));
        }
    }
    for key in asked
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys)
    {
        let text = || text(asked, key).map(Option::unwrap_or_default);
        match key.as_str() {
            "ask" | "what" | "count" | "limit" => {}
            "client" => (wanted.outside.source, wanted.outside.source_port) = end(text()?)?,
            "vip" => (wanted.outside.destination, wanted.outside.destination_port) = end(text()?)?,
            "vm" if role != Role::Mux => {
                (wanted.inside.source, wanted.inside.source_port) = end(text()?)?;
            }
            "protocol" => wanted.protocol = Some(protocol_number(text()?)?),
            "state" => wanted.state = Some(state(text()?, role)?),
            "backend" => wanted.backends = Some(backends(&several(asked, key)?, config)?),
            "rule" => wanted.rules = Some(rules(&several(asked, key)?, config)?),
            other => return Err(format!("{what} cannot be filtered by {other:?}")),
        }
    }
    Ok(wanted)
}

/// `ADDRESS`, `ADDRESS/BITS`, `ADDRESS:PORT` or `:PORT`, with brackets around an IPv6 address that has a port.
pub(super) fn end(text: &str) -> Result<(Option<Subnet>, Option<u16>), String> {
    let bad = || format!("expected ADDRESS, ADDRESS/BITS, ADDRESS:PORT or :PORT, got {text:?}");
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((Some(Subnet::host(address)), None));
    }
    if let Some(port) = text.strip_prefix(':') {
        return Ok((None, Some(port.parse().map_err(|_| bad())?)));
    }
    if let Ok(both) = text.parse::<std::net::SocketAddr>() {
        return Ok((Some(Subnet::host(both.ip())), Some(both.port())));
    }
    let (address, bits) = text.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let bits: u8 = bits.parse().map_err(|_| bad())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if bits > most {
        return Err(format!(
            "{text:?}: an address of this family has {most} bits"
        ));
    }
    Ok((Some(Subnet { address, bits }), None))
}

pub(super) fn protocol_number(text: &str) -> Result<u8, String> {
    let known = [
        protocol::TCP,
        protocol::UDP,
        protocol::ICMP,
        protocol::ICMPV6,
    ];
    let named = known
        .into_iter()
        .find(|&number| protocol_name(number) == Some(text));
    let number = named.or_else(|| text.parse().ok());
    number.ok_or_else(|| {
        format!("expected tcp, udp, icmp, icmpv6 or a protocol's number, got {text:?}")
    })
}

fn state(text: &str, role: Role) -> Result<EntryState, String> {
    let all: Vec<EntryState> = match role {
        Role::Mux => [
            FlowState::HalfOpen,
            FlowState::Established,
            FlowState::Closing,
        ]
        .map(EntryState::Flow)
        .to_vec(),
        Role::Host | Role::Proxy => ConnectionState::ALL.map(EntryState::Connection).to_vec(),
    };
    let found = all.iter().find(|state| state.name() == text);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|state| state.name()).collect();
        format!("expected a state of {}, got {text:?}", names.join(", "))
    })
}

/// A question that asks for nothing but one thing has no other member.
fn check_plain(asked: &Value) -> Result<(), String> {
    let Some(what @ ("status" | "config" | "drops")) = text(asked, "ask")? else {
        return Ok(());
    };
    let mut keys = asked
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys);
    match keys.find(|key| *key != "ask") {
        None => Ok(()),
        Some(key) => Err(format!("{what} has no option {key:?}")),
    }
}

/// A string, if the question has one of this name.
pub(super) fn text<'v>(asked: &'v Value, key: &str) -> Result<Option<&'v str>, String> {
    match &asked[key] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        other => Err(format!("{key}: expected a string, got {other}")),
    }
}

/// A string or a list of strings.
pub(super) fn several<'v>(asked: &'v Value, key: &str) -> Result<Vec<&'v str>, String> {
    let expected =
        |got: &Value| format!("{key}: expected a string or a list of strings, got {got}");
    match &asked[key] {
        Value::Null => Ok(Vec::new()),
        Value::String(one) => Ok(vec![one]),
        Value::Array(all) => {
            let texts = all
                .iter()
                .map(|one| one.as_str().ok_or_else(|| expected(one)));
            texts.collect()
        }
        other => Err(expected(other)),
    }
}

/// True or false; false where the question does not say.
fn flag(asked: &Value, key: &str) -> Result<bool, String> {
    match &asked[key] {
        Value::Null => Ok(false),
        Value::Bool(flag) => Ok(*flag),
        other => Err(format!("{key}: expected true or false, got {other}")),
    }
}

/// A whole number, if the question has one of this name.
fn number(asked: &Value, key: &str) -> Result<Option<u64>, String> {
    match &asked[key] {
        Value::Null => Ok(None),
        value => value
            .as_u64()
            .map(Some)
            .ok_or_else(|| format!("{key}: expected a whole number, got {value}")),
    }
}

/// The backends of names: `POOL/NAME`, or a name in whatever pool.
fn backends(names: &[&str], config: &Config) -> Result<Vec<u64>, String> {
    let mut identities = Vec::new();
    for &name in names {
        let before = identities.len();
        config.with_spec(|spec| {
            for pool in spec.pools {
                let own = pool.backends.iter().filter(|backend| {
                    let is_pools = name
                        .strip_prefix(pool.name)
                        .and_then(|n| n.strip_prefix('/'));
                    backend.name == name || is_pools == Some(backend.name)
                });
                identities.extend(own.map(|backend| backend_identity(pool, backend)));
            }
        });
        if identities.len() == before {
            return Err(format!("no backend {name:?} is configured"));
        }
    }
    Ok(identities)
}

/// The rules of names: balancing rules, and ports of inbound NAT.
fn rules(names: &[&str], config: &Config) -> Result<Vec<u64>, String> {
    let mut identities = Vec::new();
    for &name in names {
        let before = identities.len();
        config.with_spec(|spec| {
            let own = rule_names(spec).filter(|(_, rule)| rule.name() == name);
            identities.extend(own.map(|(identity, _)| identity));
        });
        if identities.len() == before {
            return Err(format!("no rule {name:?} is configured"));
        }
    }
    Ok(identities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_addresses_subnets_and_ports() {
        let subnet = |address: &str, bits| Subnet {
            address: address.parse().unwrap(),
            bits,
        };
        for (text, expected) in [
            ("192.0.2.1", (Some(subnet("192.0.2.1", 128)), None)),
            ("192.0.2.0/24", (Some(subnet("192.0.2.0", 24)), None)),
            ("192.0.2.1:80", (Some(subnet("192.0.2.1", 128)), Some(80))),
            (":80", (None, Some(80))),
            ("2001:db8::1", (Some(subnet("2001:db8::1", 128)), None)),
            ("2001:db8::/32", (Some(subnet("2001:db8::", 32)), None)),
            (
                "[2001:db8::1]:80",
                (Some(subnet("2001:db8::1", 128)), Some(80)),
            ),
        ] {
            assert_eq!(end(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            ":",
            "192.0.2.0/33",
            "2001:db8::/129",
            ":65536",
            "web",
            "192.0.2.1/",
        ] {
            assert!(end(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        let text = include_str!("../../../examples/web.toml");
        let config = Config::parse("web.toml", text).expect("a good configuration");
        for (asked, why) in [
            (json!({ "what": "connections" }), "slb flows"),
            (json!({ "what": "snat" }), "slb flows"),
            (json!({ "what": "flows", "backend": "nobody" }), "nobody"),
            (json!({ "what": "flows", "rule": "nothing" }), "nothing"),
            (
                json!({ "what": "flows", "state": "time_wait" }),
                "half_open",
            ),
            (json!({ "what": "flows", "vm": "10.0.0.1" }), "vm"),
            (json!({ "what": "flows", "clint": "10.0.0.1" }), "clint"),
            (json!({ "what": "flows", "protocol": "sctp" }), "sctp"),
            (json!({ "what": "names" }), "names"),
            (json!({ "what": 5 }), "what: expected a string, got 5"),
            (
                json!({ "what": "flows", "client": ["10.0.0.1"] }),
                "client: expected a string, got [\"10.0.0.1\"]",
            ),
            (
                json!({ "what": "flows", "protocol": 6 }),
                "protocol: expected a string, got 6",
            ),
            (
                json!({ "what": "flows", "backend": [1] }),
                "backend: expected a string or a list of strings, got 1",
            ),
            (
                json!({ "what": "flows", "rule": true }),
                "rule: expected a string or a list of strings, got true",
            ),
        ] {
            let error = wanted(&asked, &config).expect_err("it makes no sense");
            assert!(error.contains(why), "{asked}: {error}");
        }
        let asked =
            json!({ "ask": "list", "what": "flows", "client": "192.0.2.0/24", "protocol": "132" });
        let wanted = wanted(&asked, &config).expect("a good question");
        assert_eq!(wanted.protocol, Some(132));
    }

    #[test]
    fn members_of_a_wrong_type_are_refused() {
        let asked = json!({ "ask": 5, "limit": "10", "count": 1, "from": {} });
        for (error, why) in [
            (
                number(&asked, "limit").map(drop),
                "limit: expected a whole number, got \"10\"",
            ),
            (
                number(&json!({ "limit": -1 }), "limit").map(drop),
                "limit: expected a whole number, got -1",
            ),
            (
                flag(&asked, "count").map(drop),
                "count: expected true or false, got 1",
            ),
            (
                text(&asked, "from").map(drop),
                "from: expected a string, got {}",
            ),
            (check_plain(&asked), "ask: expected a string, got 5"),
            (
                check_plain(&json!({ "ask": "drops", "reason": "no_rule" })),
                "drops has no option \"reason\"",
            ),
        ] {
            assert_eq!(error.expect_err(why), why);
        }
        let good = json!({ "ask": "config", "limit": 3, "count": true, "rule": ["a", "b"] });
        assert_eq!(number(&good, "limit"), Ok(Some(3)));
        assert_eq!(flag(&good, "count"), Ok(true));
        assert_eq!(several(&good, "rule"), Ok(vec!["a", "b"]));
        assert_eq!(check_plain(&json!({ "ask": "config" })), Ok(()));
        assert_eq!(
            check_plain(&Value::Null),
            Ok(()),
            "it is refused in other words"
        );
    }

    #[test]
    fn a_client_that_does_not_read_is_given_up() {
        let (server, mut client) = UnixStream::pair().expect("sockets");
        let mut out = Answer::to(&server);
        out.set_patience(Duration::from_millis(50))
            .expect("a timeout");
        assert!(!out.is_to_end());
        let block = vec![0; 1 << 20];
        let begin = Instant::now();
        let mut sent = 0;
        while out.block(&block).is_ok() {
            sent += 1;
            assert!(sent < 100, "sockets hold as much as is sent");
        }
        assert!(begin.elapsed() < Duration::from_secs(30));
        client
            .write_all(b"{\"ask\":\"end\"}\n")
            .expect("it is open");
        assert!(out.is_to_end());
        client
            .shutdown(std::net::Shutdown::Write)
            .expect("it is open");
        assert!(!out.is_to_end(), "it only has no more to say");
    }
}

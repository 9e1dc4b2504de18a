//! `slb status`: what a running balancer or controller does, as a table that is renewed each second.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use slb_control::Role;

use crate::Failure;
use crate::ask::connect;
use crate::cli::{Format, StatusOptions};
use crate::fleet::{plain, table as fleet_table};
use crate::live::default_paths;
use crate::report::counted;

/// More than any status has.
const LONGEST: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(5);
/// The role of a fleet's controller, which moves no packets.
pub(crate) const CONTROLLER: &str = "controller";

pub(crate) fn run(options: &StatusOptions) -> Result<(), Failure> {
    let all = ["mux", "host", "proxy", CONTROLLER];
    let path = place_of_any(options.socket.as_deref(), &all)?;
    let mut now = ask(&path)?;
    if options.format == Format::Json {
        say_line!("{now:#}")?;
        return Ok(());
    }
    let mut before: Option<Value> = None;
    loop {
        let table = table(&now, before.as_ref());
        if options.once {
            say!("{table}")?;
            return Ok(());
        }
        // Home, and what was there goes line by line: no flicker.
        if std::io::stdout().is_terminal() {
            say!("\x1b[H{}\x1b[J", table.replace('\n', "\x1b[K\n"))?;
        } else {
            say_line!("{table}")?;
        }
        sleep(Duration::from_secs(1));
        before = Some(now);
        now = ask(&path)?;
    }
}

/// The socket to ask: the one that is said, or that of the balancer that runs here.
pub(crate) fn place(said: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = said {
        return Ok(path.to_owned());
    }
    place_of(None, &[Role::Mux, Role::Host, Role::Proxy])
}

/// Returns the socket of a balancer that has one of these roles.
pub(crate) fn place_of(said: Option<&Path>, roles: &[Role]) -> Result<PathBuf, Failure> {
    let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    place_of_any(said, &names)
}

/// Returns the socket of a process that has one of these roles; a controller counts too.
fn place_of_any(said: Option<&Path>, names: &[&str]) -> Result<PathBuf, Failure> {
    if let Some(path) = said {
        return Ok(path.to_owned());
    }
    let mut paths = names.iter().flat_map(|name| default_paths(name));
    let found = paths.find(|path| UnixStream::connect(path).is_ok());
    found.ok_or_else(|| {
        let names = names.join(" or ");
        Failure::failed(format!(
            "no {names} on this machine has a socket that this user may open: give its path with --socket"
        ))
    })
}

pub(crate) fn ask(path: &Path) -> Result<Value, Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", path.display()));
    let mut stream = connect(path)?;
    // Whoever asks nothing is answered only a moment later.
    let asked = stream.write_all(b"{\"ask\":\"status\"}\n");
    asked.map_err(|error| failed(&error))?;
    let patience = stream.set_read_timeout(Some(PATIENCE));
    patience.map_err(|error| failed(&error))?;
    let mut text = String::new();
    let read = stream.take(LONGEST).read_to_string(&mut text);
    read.map_err(|error| failed(&error))?;
    let answer: Value = serde_json::from_str(&text).map_err(|error| match error.is_eof() {
        true => failed(&"the balancer closed the connection before the end: it may have too many clients, try again"),
        false => failed(&error),
    })?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => Err(failed(&error)),
        None => Ok(answer),
    }
}

pub(crate) fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or(0.0)
}

pub(crate) fn text<'v>(value: &'v Value, path: &str) -> &'v str {
    value.pointer(path).and_then(Value::as_str).unwrap_or("?")
}

/// The table; with rates where there is an earlier status.
fn table(now: &Value, before: Option<&Value>) -> String {
    if text(now, "/role") == CONTROLLER {
        return controller_text(now);
    }
    let mut out = String::new();
    let seconds = before.map(|before| number(now, "/time") - number(before, "/time"));
    let seconds = seconds.filter(|seconds| *seconds > 0.0);
    let rate = |path: &str| match (before, seconds) {
        (Some(before), Some(seconds)) => {
            short((number(now, path) - number(before, path)).max(0.0) / seconds)
        }
        _ => "-".to_owned(),
    };
    let _ = writeln!(
        out,
        "slb {} {}{}: pid {}, up {:.0} s, configuration {}",
        text(now, "/version"),
        text(now, "/role"),
        now["zone"]
            .as_str()
            .map(|zone| format!(" in zone {zone}"))
            .unwrap_or_default(),
        number(now, "/pid"),
        number(now, "/uptime"),
        number(now, "/generation"),
    );
    let trouble = now.get("trouble").and_then(Value::as_array);
    for why in trouble.into_iter().flatten().filter_map(Value::as_str) {
        let _ = writeln!(out, "not ready: {}", plain(why));
    }
    if let Some(late) = now.get("late_probes").filter(|late| late.is_object()) {
        let _ = writeln!(
            out,
            "{} of {} probes are late, by up to {:.1} s, and the health of their backends is old: {}",
            number(late, "/targets"),
            number(late, "/of"),
            number(late, "/seconds"),
            plain(text(late, "/why")),
        );
    }
    let _ = writeln!(
        out,
        "\n{:<28} {:>12} {:>10} {:>12}",
        "", "packets", "per s", "bytes per s"
    );
    let mut line = |name: &str, path: &str| {
        let _ = writeln!(
            out,
            "{name:<28} {:>12} {:>10} {:>12}",
            number(now, &format!("{path}/packets")),
            rate(&format!("{path}/packets")),
            rate(&format!("{path}/bytes")),
        );
    };
    line("in", "/received");
    line("  forwarded", "/forwarded");
    line("  replied", "/replied");
    line("  passed", "/passed");
    for (name, path) in [
        ("  for public addresses", "/public_in"),
        ("  from public addresses", "/public_out"),
    ] {
        if number(now, &format!("{path}/packets")) > 0.0 {
            line(name, path);
        }
    }
    line("  dropped", "/dropped_total");
    let reasons = now.pointer("/dropped").and_then(Value::as_object);
    for reason in reasons.into_iter().flat_map(serde_json::Map::keys) {
        let path = format!("/dropped/{reason}");
        if number(now, &format!("{path}/packets")) > 0.0 {
            line(&format!("    {reason}"), &path);
        }
    }
    let io = now.pointer("/io").and_then(Value::as_object);
    let lost = io.into_iter().flatten().filter(|(name, count)| {
        // What is too long is among the reasons of drops.
        let is_a_loss = !["received", "sent", "passed", "too_long"].contains(&name.as_str());
        is_a_loss && !name.starts_with("frames") && count.as_u64() != Some(0)
    });
    for (name, count) in lost {
        let _ = writeln!(
            out,
            "  I/O: {name:<21} {count:>12} {:>10}",
            rate(&format!("/io/{name}"))
        );
    }
    let table = match text(now, "/role") {
        "mux" => "/flows",
        _ => "/connections",
    };
    let _ = writeln!(
        out,
        "\n{}: {} live of {}, {} made ({} per s), {} refused; {}",
        table.trim_start_matches('/'),
        number(now, &format!("{table}/live")),
        number(now, &format!("{table}/places")),
        number(now, &format!("{table}/made")),
        rate(&format!("{table}/made")),
        number(now, &format!("{table}/refused")),
        counted(number(now, "/syns") as u64, "SYN"),
    );
    if number(now, "/taken_up") > 0.0 {
        let _ = writeln!(
            out,
            "connections from before the start: {} taken up in the middle",
            number(now, "/taken_up")
        );
    }
    if let Some(fleet) = now.get("fleet").filter(|fleet| !fleet.is_null()) {
        out += &fleet_text(fleet);
    }
    if let Some(state) = now.get("state").filter(|state| !state.is_null()) {
        out += &state_text(state);
    }
    let _ = writeln!(
        out,
        "\n{:<20} {:<20} {:<10} {:>7} {:>12} {:>10} {:>10}",
        "pool", "backend", "state", "weight", "packets", "per s", "flows"
    );
    let backends = now.pointer("/backends").and_then(Value::as_array);
    for at in 0..backends.map_or(0, Vec::len) {
        let path = format!("/backends/{at}");
        let _ = writeln!(
            out,
            "{:<20} {:<20} {:<10} {:>7} {:>12} {:>10} {:>10}",
            text(now, &format!("{path}/pool")),
            text(now, &format!("{path}/backend")),
            text(now, &format!("{path}/state")),
            number(now, &format!("{path}/weight")),
            number(now, &format!("{path}/forwarded/packets")),
            rate(&format!("{path}/forwarded/packets")),
            number(now, &format!("{path}/flows")),
        );
    }
    out += &vms_text(now, rate);
    out + &security_text(now, rate)
}

/// The traffic of the vms of a host agent, in bytes.
fn vms_text(now: &Value, rate: impl Fn(&str) -> String) -> String {
    let vms = now.pointer("/vms").and_then(Value::as_array);
    let mut out = String::new();
    for at in 0..vms.map_or(0, Vec::len) {
        if out.is_empty() {
            let _ = writeln!(
                out,
                "\n{:<20} {:<20} {:<10} {:>14} {:>12} {:>14} {:>12}",
                "vm", "network", "with", "bytes in", "per s", "bytes out", "per s"
            );
        }
        for scope in ["network", "internet"] {
            let path = format!("/vms/{at}/traffic/{scope}");
            let (inward, outward) = (format!("{path}/in/bytes"), format!("{path}/out/bytes"));
            let network = now.pointer(&format!("/vms/{at}/network"));
            let _ = writeln!(
                out,
                "{:<20} {:<20} {:<10} {:>14} {:>12} {:>14} {:>12}",
                text(now, &format!("/vms/{at}/vm")),
                network.and_then(Value::as_str).unwrap_or("-"),
                scope,
                number(now, &inward),
                rate(&inward),
                number(now, &outward),
                rate(&outward),
            );
        }
    }
    out
}

/// The rules of access lists that decided about packets.
fn security_text(now: &Value, rate: impl Fn(&str) -> String) -> String {
    let rules = now.pointer("/security_rules").and_then(Value::as_array);
    let paths = (0..rules.map_or(0, Vec::len)).map(|at| format!("/security_rules/{at}"));
    let paths = paths.filter(|path| number(now, &format!("{path}/judged/packets")) > 0.0);
    let mut out = String::new();
    for path in paths {
        if out.is_empty() {
            let _ = writeln!(
                out,
                "\n{:<20} {:<28} {:<9} {:<6} {:>12} {:>10}",
                "access list", "rule", "", "", "packets", "per s"
            );
        }
        let packets = format!("{path}/judged/packets");
        let _ = writeln!(
            out,
            "{:<20} {:<28} {:<9} {:<6} {:>12} {:>10}",
            text(now, &format!("{path}/list")),
            text(now, &format!("{path}/rule")),
            text(now, &format!("{path}/direction")),
            text(now, &format!("{path}/access")),
            number(now, &packets),
            rate(&packets),
        );
    }
    out += &zones_text(now);
    out
}

/// The zones of pools, and the VIPs that this mux leaves to muxes of other zones, as text.
fn zones_text(now: &Value) -> String {
    let list = |name: &str| now.get(name).and_then(Value::as_array);
    let zones = list("zones").into_iter().flatten();
    let mut out = String::new();
    for zone in zones {
        if out.is_empty() {
            let _ = writeln!(
                out,
                "\n{:<20} {:<20} {:>8} {:>8} {:>10} {:>12} {:>10}",
                "pool", "zone", "backends", "serving", "by weight", "packets", "flows"
            );
        }
        let _ = writeln!(
            out,
            "{:<20} {:<20} {:>8} {:>8} {:>9.2}% {:>12} {:>10}",
            text(zone, "/pool"),
            zone["zone"].as_str().unwrap_or("-"),
            number(zone, "/backends"),
            number(zone, "/serving"),
            100.0 * number(zone, "/share_by_weight"),
            number(zone, "/packets"),
            number(zone, "/flows"),
        );
    }
    let others = list("frontends").into_iter().flatten();
    for frontend in others.filter(|own| own["zonal"] == true && own["of_this_mux"] == false) {
        let _ = writeln!(
            out,
            "{} ({}) is left to muxes of zone {}",
            text(frontend, "/frontend"),
            text(frontend, "/address"),
            text(frontend, "/zones/0"),
        );
    }
    out
}

/// The state of a controller, and of the fleet if it leads that, as text.
fn controller_text(now: &Value) -> String {
    let mut out = format!(
        "slb {} controller {}: pid {}, up {:.0} s\n",
        text(now, "/version"),
        plain(text(now, "/name")),
        number(now, "/pid"),
        number(now, "/uptime"),
    );
    let leads = now.get("leads_for").and_then(Value::as_f64);
    out += &match (leads, now.get("leader").and_then(Value::as_str)) {
        (Some(seconds), _) => format!("leads, for {seconds:.0} s\n"),
        (None, Some(other)) => format!("waits: {} leads\n", plain(other)),
        (None, None) => "waits, and knows of no controller that leads\n".to_owned(),
    };
    out += &match now.pointer("/store/away").and_then(Value::as_f64) {
        Some(seconds) => format!("store: away for {seconds:.0} s\n"),
        None => format!(
            "store: answers, for {:.0} s\n",
            number(now, "/store/reached")
        ),
    };
    if let Some(fault) = now.pointer("/store/fault").and_then(Value::as_str) {
        let _ = writeln!(out, "fault: {}", plain(fault));
    }
    if let Some(fleet) = now.get("fleet").filter(|fleet| fleet.is_object()) {
        let _ = write!(out, "\n{}", fleet_table(fleet));
    }
    out
}

/// The node's standing with its fleet, as text.
fn fleet_text(fleet: &Value) -> String {
    let mut text = format!("fleet: generation {}", number(fleet, "/live"));
    if let Some(away) = fleet.get("away").and_then(Value::as_f64) {
        text += &format!(", its store has been unreachable for {away:.0} s");
        if let Some(fault) = fleet.get("fault").and_then(Value::as_str) {
            text += &format!(" ({fault})");
        }
    }
    if fleet.get("autonomous").and_then(Value::as_bool) == Some(true) {
        text += ": autonomous, backends that fail here are taken out";
    }
    if let Some(why) = fleet.pointer("/refused/why").and_then(Value::as_str) {
        text += &format!(", refuses {}: {why}", number(fleet, "/refused/generation"));
    }
    text + "\n"
}

/// The state taken over from the process before this one, and the age of the last checkpoint, as
/// text.
fn state_text(state: &Value) -> String {
    let refused = state.get("refused").and_then(Value::as_object);
    let refused: Vec<(&String, u64)> = refused
        .into_iter()
        .flatten()
        .filter_map(|(reason, count)| Some((reason, count.as_u64()?)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let sum: u64 = refused.iter().map(|(_, count)| count).sum();
    let mut text = format!("state: {} taken over", number(state, "/imported"));
    match state.pointer("/age").and_then(Value::as_f64) {
        Some(age) => {
            let kind = match state.pointer("/is_checkpoint") {
                Some(Value::Bool(true)) => "a checkpoint",
                _ => "all",
            };
            let _ = write!(text, " from an earlier process ({kind}, {age:.1} s old)");
        }
        None => text += ", since no previous process left any",
    }
    let _ = write!(text, ", {sum} refused");
    if sum > 0 {
        let reasons: Vec<String> = refused
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        let _ = write!(text, " ({})", reasons.join(", "));
    }
    match state.get("checkpoint").filter(|last| !last.is_null()) {
        Some(last) => {
            let _ = write!(
                text,
                "; checkpoint: {:.1} s ago, {} bytes, in {:.3} s",
                number(last, "/age"),
                number(last, "/bytes"),
                number(last, "/seconds"),
            );
        }
        None => text += "; no checkpoint yet",
    }
    if let Some(trouble) = state.get("trouble").and_then(Value::as_str) {
        let _ = write!(text, "; cannot be written: {trouble}");
    }
    text + "\n"
}

/// A rate in few digits.
pub(crate) fn short(rate: f64) -> String {
    match rate {
        rate if rate >= 1e9 => format!("{:.2} G", rate / 1e9),
        rate if rate >= 1e6 => format!("{:.2} M", rate / 1e6),
        rate if rate >= 1e4 => format!("{:.1} k", rate / 1e3),
        rate => format!("{rate:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_is_no_status() {
        for (answer, expected) in [
            (
                "{\"error\":\"a worker does not answer\"}\n",
                "a worker does not answer",
            ),
            ("", "it may have too many clients, try again"),
            (
                "{\"version\":\"0.1",
                "it may have too many clients, try again",
            ),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("sock");
            let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
            let server = std::thread::spawn(move || {
                let (mut client, _) = listener.accept().expect("a client");
                let _ = client.read(&mut [0; 100]);
                client.write_all(answer.as_bytes())
            });
            let error = ask(&path).expect_err("no status").to_string();
            assert!(error.ends_with(expected), "{answer:?}: {error}");
            server.join().expect("it ends").expect("it answered");
        }
    }

    #[test]
    fn the_state_is_said_with_its_age_and_what_was_refused() {
        let mut state = json!({
            "imported": 120, "age": 0.42, "is_checkpoint": true,
            "refused": { "expired": 2, "tuple_taken": 1, "malformed": 0 },
            "checkpoint": { "age": 0.31, "seconds": 0.012, "bytes": 11_000 },
            "trouble": null,
        });
        assert_eq!(
            state_text(&state),
            "state: 120 taken over from an earlier process (a checkpoint, 0.4 s old), 3 refused \
             (2 expired, 1 tuple_taken); checkpoint: 0.3 s ago, 11000 bytes, in 0.012 s\n"
        );
        state["trouble"] = "no space left on device".into();
        state["is_checkpoint"] = false.into();
        assert!(state_text(&state).contains("(all, 0.4 s old)"));
        assert!(state_text(&state).ends_with("; cannot be written: no space left on device\n"));
        let none = json!({ "imported": 0, "age": null, "refused": {}, "checkpoint": null });
        assert_eq!(
            state_text(&none),
            "state: 0 taken over, since no previous process left any, 0 refused; no checkpoint yet\n"
        );
        let status = json!({ "role": "host", "state": state, "taken_up": 7 });
        let table = table(&status, None);
        assert!(table.contains("start: 7 taken up") && table.contains("state: 120"));
    }

    #[test]
    fn rates_are_differences() {
        let at = |time: f64, packets: u64| {
            json!({
                "role": "mux", "time": time,
                "received": { "packets": packets, "bytes": packets * 100 },
                "dropped": { "no_rule": { "packets": packets / 10, "bytes": 0 } },
                "io": { "received": packets, "refused": 3, "frames_free": 9 },
                "backends": [{ "pool": "p", "backend": "b1", "state": "healthy", "weight": 2,
                               "forwarded": { "packets": packets }, "flows": 4 }],
            })
        };
        let first = table(&at(10.0, 1000), None);
        assert!(
            first.contains("in                                   1000          -"),
            "{first}"
        );
        let second = table(&at(12.0, 41_000), Some(&at(10.0, 1000)));
        assert!(second.contains("41000     20.0 k       2.00 M"), "{second}");
        assert!(second.contains("    no_rule"), "{second}");
        assert!(second.contains("I/O: refused"), "{second}");
        assert!(!second.contains("frames_free"), "{second}");
        assert!(
            second.contains("b1                   healthy          2        41000     20.0 k"),
            "{second}"
        );
    }
}

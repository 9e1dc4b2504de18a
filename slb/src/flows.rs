//! `slb flows`, `slb connections` and `slb snat`: the entries of a running balancer's table.

use std::io::{self, BufWriter, Write};

use serde_json::{Value, json};
use slb_control::Role;

use crate::Failure;
use crate::ask::{Answer, Line};
use crate::cli::{ConnectionOptions, FlowOptions, ListOptions, Named};
use crate::output::unwritten;
use crate::status::place_of;

/// The number of entries that determine the widths of columns.
const TO_MEASURE: usize = 256;

pub(crate) fn flows(options: &FlowOptions) -> Result<(), Failure> {
    list("flows", &options.list, None)
}

pub(crate) fn connections(options: &ConnectionOptions) -> Result<(), Failure> {
    list("connections", &options.list, options.vm.as_deref())
}

pub(crate) fn snat(options: &ConnectionOptions) -> Result<(), Failure> {
    list("snat", &options.list, options.vm.as_deref())
}

fn question(what: &str, options: &ListOptions, vm: Option<&str>) -> Value {
    let mut question = json!({ "ask": "list", "what": what });
    for (key, value) in [
        ("client", options.client.as_deref()),
        ("vip", options.vip.as_deref()),
        ("protocol", options.protocol.as_deref()),
        ("state", options.state.as_deref()),
        ("vm", vm),
    ] {
        if let Some(value) = value {
            question[key] = value.into();
        }
    }
    let Named { backend, rule } = &options.named;
    for (key, values) in [("backend", backend), ("rule", rule)] {
        if !values.is_empty() {
            question[key] = values.clone().into();
        }
    }
    if options.count {
        question["count"] = true.into();
    }
    if let Some(limit) = options.limit {
        question["limit"] = limit.into();
    }
    question
}

fn list(what: &str, options: &ListOptions, vm: Option<&str>) -> Result<(), Failure> {
    let roles: &[Role] = match what {
        "flows" => &[Role::Mux],
        "snat" => &[Role::Host],
        _ => &[Role::Host, Role::Proxy],
    };
    let path = place_of(options.socket.as_deref(), roles)?;
    let mut answer = Answer::to(&path, &question(what, options, vm))?;
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let end = match options.json {
        true => lines(&mut answer, &mut out)?,
        false => Table::new(columns(what)).print(&mut answer, &mut out)?,
    };
    let count = end["entries"].as_u64().unwrap_or(0);
    match (options.count, options.json) {
        (true, true) => writeln!(out, "{}", json!({ "entries": count })),
        (true, false) => writeln!(out, "{count}"),
        (false, _) => Ok(()),
    }
    .and_then(|()| out.flush())
    .map_err(unwritten)?;
    if end["is_whole"] == Value::Bool(false) {
        tell_line!("slb: the first {count}; there are more");
    }
    Ok(())
}

/// Prints each line unchanged.
fn lines(answer: &mut Answer, out: &mut impl Write) -> Result<Value, Failure> {
    loop {
        match answer.next()? {
            Line::Item(line) => out.write_all(line.as_bytes()).map_err(unwritten)?,
            Line::Beat => {}
            Line::End(end) => return Ok(end),
        }
    }
}

/// A column: its title, and a function that formats an entry.
type Column = (&'static str, fn(&Value) -> String);

fn columns(what: &str) -> &'static [Column] {
    const PROTOCOL: Column = ("protocol", |entry| text(entry, "protocol"));
    const CLIENT: Column = ("client", |entry| {
        let key = if entry["client"].is_null() {
            "remote"
        } else {
            "client"
        };
        end(entry, key)
    });
    const VIP: Column = ("vip", |entry| end(entry, "vip"));
    const SERVER: Column = ("server", |entry| end(entry, "server"));
    const BACKEND: Column = ("backend", |entry| {
        match (entry["pool"].as_str(), entry["backend"].as_str()) {
            (Some(pool), Some(backend)) => format!("{pool}/{backend}"),
            _ => "gone".to_owned(),
        }
    });
    const RULE: Column = ("rule", |entry| {
        let names = ["rule", "inbound_nat", "outbound"];
        let name = names.into_iter().find_map(|key| entry[key].as_str());
        name.unwrap_or("-").to_owned()
    });
    const STATE: Column = ("state", |entry| text(entry, "state"));
    const IDLE: Column = ("idle", |entry| seconds(entry, "idle"));
    const TIMEOUT: Column = ("timeout", |entry| seconds(entry, "timeout"));
    match what {
        "flows" => &[PROTOCOL, CLIENT, VIP, BACKEND, RULE, STATE, IDLE, TIMEOUT],
        "snat" => &[
            PROTOCOL,
            ("vm", |entry| end(entry, "server")),
            ("as", |entry| end(entry, "vip")),
            ("remote", |entry| end(entry, "remote")),
            BACKEND,
            STATE,
            IDLE,
            TIMEOUT,
        ],
        _ => &[
            PROTOCOL,
            CLIENT,
            VIP,
            SERVER,
            BACKEND,
            RULE,
            ("opener", |entry| {
                let opener = if entry["client"].is_null() {
                    "vm"
                } else {
                    "client"
                };
                opener.to_owned()
            }),
            STATE,
            IDLE,
            TIMEOUT,
        ],
    }
}

fn text(entry: &Value, key: &str) -> String {
    entry[key].as_str().unwrap_or("-").to_owned()
}

/// Returns an address, with its port if the protocol has ports.
fn end(entry: &Value, key: &str) -> String {
    let address = entry[key].as_str().unwrap_or("-");
    let port = entry[format!("{key}_port")].as_u64().unwrap_or(0);
    let has_ports = matches!(entry["protocol"].as_str(), Some("tcp" | "udp"));
    match (has_ports, address.contains(':')) {
        (false, _) => address.to_owned(),
        (true, false) => format!("{address}:{port}"),
        (true, true) => format!("[{address}]:{port}"),
    }
}

fn seconds(entry: &Value, key: &str) -> String {
    match entry[key].as_f64() {
        // A table counts in ticks, and rounds timeouts up to them.
        Some(seconds) => format!("{:.0}s", seconds.floor()),
        None => "?".to_owned(),
    }
}

/// A table of entries. The first few are kept back until the widths of columns are known.
struct Table {
    columns: &'static [Column],
    kept: Vec<Vec<String>>,
    widths: Option<Vec<usize>>,
}

impl Table {
    fn new(columns: &'static [Column]) -> Self {
        Self {
            columns,
            kept: Vec::new(),
            widths: None,
        }
    }

    fn print(mut self, answer: &mut Answer, out: &mut impl Write) -> Result<Value, Failure> {
        loop {
            match answer.next()? {
                Line::Item(line) => {
                    let entry: Value = serde_json::from_str(&line).map_err(Failure::failed)?;
                    let row = self.columns.iter().map(|(_, of)| of(&entry)).collect();
                    self.row(row, out).map_err(unwritten)?;
                }
                Line::Beat => {}
                Line::End(end) => {
                    self.measure(out).map_err(unwritten)?;
                    return Ok(end);
                }
            }
        }
    }

    fn row(&mut self, row: Vec<String>, out: &mut impl Write) -> io::Result<()> {
        match &self.widths {
            Some(widths) => write_row(&row, widths, out),
            None => {
                self.kept.push(row);
                if self.kept.len() >= TO_MEASURE {
                    self.measure(out)?;
                }
                Ok(())
            }
        }
    }

    /// Writes the titles and the entries that were kept back; writes nothing if there is no entry.
    fn measure(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        let titles: Vec<String> = self
            .columns
            .iter()
            .map(|(title, _)| (*title).to_owned())
            .collect();
        let mut widths: Vec<usize> = titles.iter().map(String::len).collect();
        for row in &self.kept {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        write_row(&titles, &widths, out)?;
        for row in self.kept.drain(..) {
            write_row(&row, &widths, out)?;
        }
        self.widths = Some(widths);
        Ok(())
    }
}

fn write_row(row: &[String], widths: &[usize], out: &mut impl Write) -> io::Result<()> {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        line += &format!("{cell:<width$}  ");
    }
    writeln!(out, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(what: &str, entries: &[Value]) -> String {
        let (mut table, mut out) = (Table::new(columns(what)), Vec::new());
        for entry in entries {
            let row = table.columns.iter().map(|(_, of)| of(entry)).collect();
            table.row(row, &mut out).unwrap();
        }
        table.measure(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn entries_stand_in_columns() {
        let flow = |client: &str, state: &str| {
            json!({
                "protocol": "tcp", "client": client, "client_port": 50_000, "vip": "20.20.20.100",
                "vip_port": 80, "pool": "web", "backend": "vm1", "rule": "http", "state": state,
                "idle": 3.2, "timeout": 240.5, "left": 237.0,
            })
        };
        let six = flow("2001:db8::1", "half_open");
        assert_eq!(
            printed("flows", &[flow("192.0.2.1", "established"), six]),
            "protocol  client               vip              backend  rule  state        idle  timeout\n\
             tcp       192.0.2.1:50000      20.20.20.100:80  web/vm1  http  established  3s    240s\n\
             tcp       [2001:db8::1]:50000  20.20.20.100:80  web/vm1  http  half_open    3s    240s\n"
        );
        assert_eq!(printed("flows", &[]), "");
    }

    #[test]
    fn what_is_not_known_is_said_so() {
        let flow = json!({
            "protocol": "132", "client": "192.0.2.1", "client_port": 0, "vip": "20.20.20.100",
            "vip_port": 0, "backend": null, "state": "closing", "left": 3.0,
        });
        let text = printed("flows", &[flow]);
        let line = text.lines().nth(1).unwrap_or_default();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            cells,
            [
                "132",
                "192.0.2.1",
                "20.20.20.100",
                "gone",
                "-",
                "closing",
                "?",
                "?"
            ]
        );
    }

    #[test]
    fn after_the_first_entries_lines_come_as_they_are_told() {
        let (mut table, mut out) = (Table::new(columns("flows")), Vec::new());
        let row = || vec!["x".to_owned(); 8];
        for number in 1..=TO_MEASURE + 3 {
            table.row(row(), &mut out).unwrap();
            let lines = String::from_utf8_lossy(&out).lines().count();
            let expected = if number < TO_MEASURE { 0 } else { number + 1 };
            assert_eq!(lines, expected);
        }
    }
}

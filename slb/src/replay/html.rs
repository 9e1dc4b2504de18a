//! The report of a replay as one page of HTML: charts drawn as SVG, without scripts and without other files.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde_json::Value;
use slb_core::DropReason;

use super::history::{History, Interval};
use crate::report::counted;

/// Clients that are listed.
const CLIENTS: usize = 10;
/// Units of the charts' drawing area.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 180.0;
/// Room for the labels of the vertical axis.
const LEFT: f64 = 64.0;
const STYLE: &str = include_str!("report.css");

/// Text with the characters that HTML has a meaning for replaced.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                c if c.is_control() => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A number with a unit prefix: `1.2 M`.
fn short(value: f64) -> String {
    let (value, prefix) = match value {
        v if v >= 1e9 => (v / 1e9, " G"),
        v if v >= 1e6 => (v / 1e6, " M"),
        v if v >= 1e4 => (v / 1e3, " k"),
        v => (v, ""),
    };
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}{prefix}")
    } else {
        format!("{value:.1}{prefix}")
    }
}

/// A time in the unit that suits it.
fn time(value: Duration) -> String {
    let seconds = value.as_secs_f64();
    match seconds {
        s if s >= 172_800.0 => format!("{:.1} d", s / 86_400.0),
        s if s >= 7200.0 => format!("{:.1} h", s / 3600.0),
        s if s >= 120.0 => format!("{:.1} min", s / 60.0),
        s if s >= 1.0 => format!("{s:.1} s"),
        s => format!("{:.0} ms", 1000.0 * s),
    }
}

fn packets(report: &Value, place: &str) -> u64 {
    number(report, &format!("{place}/packets"))
}

fn number(report: &Value, place: &str) -> u64 {
    report.pointer(place).and_then(Value::as_u64).unwrap_or(0)
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_default()
}

/// A line of a chart: its name, its class in the style sheet, and its values.
type Line<'a> = (&'a str, &'a str, Vec<f64>);

/// The page for a report, which `report` holds as JSON.
pub(super) fn page(report: &Value, history: &History, files: &[String]) -> String {
    let files = files.join(", ");
    let mut page = String::new();
    let title = format!("slb replay: {files}");
    let _ = writeln!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width\"/>\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<h1>{}</h1>",
        Escaped(&title),
        Escaped(&title)
    );
    summary(&mut page, report, history);
    over_time(&mut page, history);
    drops(&mut page, report, history);
    backends(&mut page, report);
    rules(&mut page, report);
    clients(&mut page, history);
    destinations(&mut page, report);
    paths(&mut page, history);
    page += "</body>\n</html>\n";
    page
}

fn summary(page: &mut String, report: &Value, history: &History) {
    let span = history.width() * u32::try_from(history.intervals().len()).unwrap_or(u32::MAX);
    let _ = match packets(report, "/received") {
        0 => writeln!(page, "<p>No packets.</p>"),
        received => writeln!(
            page,
            "<p>{} of traffic, {}, {}.</p>",
            time(span),
            counted(received, "packet"),
            counted(number(report, "/syns"), "SYN")
        ),
    };
    *page += "<table>\n<tr><th></th><th>packets</th><th>bytes</th></tr>\n";
    for (name, place) in [
        ("in", "received"),
        ("forwarded", "forwarded"),
        ("replied", "replied"),
        ("passed", "passed"),
        ("dropped", "dropped_total"),
    ] {
        let bytes = number(report, &format!("/{place}/bytes"));
        let _ = writeln!(
            page,
            "<tr><th>{name}</th><td>{}</td><td>{bytes}</td></tr>",
            packets(report, &format!("/{place}"))
        );
    }
    *page += "</table>\n";
}

fn over_time(page: &mut String, history: &History) {
    let seconds = history.width().as_secs_f64();
    let rate = |value: &dyn Fn(&Interval) -> u64| -> Vec<f64> {
        let all = history.intervals().iter();
        all.map(|one| value(one) as f64 / seconds).collect()
    };
    let lines: [Line<'_>; 4] = [
        ("in", "in", rate(&|one| one.received.packets)),
        ("forwarded", "forwarded", rate(&|one| one.forwarded)),
        ("passed", "passed", rate(&|one| one.passed)),
        ("dropped", "dropped", rate(&Interval::dropped_total)),
    ];
    chart(page, "Packets a second", history.width(), &lines);
    let lines: [Line<'_>; 1] = [("in", "in", rate(&|one| one.received.bytes))];
    chart(page, "Bytes a second", history.width(), &lines);
    let lines: [Line<'_>; 1] = [("new", "forwarded", rate(&|one| one.began))];
    chart(page, "New flows a second", history.width(), &lines);
    let live = history.intervals().iter().map(|one| one.live as f64);
    let lines: [Line<'_>; 1] = [("live", "in", live.collect())];
    chart(page, "Live flows", history.width(), &lines);
}

/// Lines over time, of which those that are always zero are left out. Each has a dash pattern of its own and its name
/// beside its highest point, so that colour is not needed.
fn chart(page: &mut String, title: &str, width: Duration, lines: &[Line<'_>]) {
    let highest = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let shown: Vec<&Line<'_>> = lines
        .iter()
        .filter(|(_, _, values)| highest(values) > 0.0)
        .collect();
    let top = shown
        .iter()
        .map(|(_, _, values)| highest(values))
        .fold(0.0, f64::max);
    let _ = writeln!(page, "<h2>{title}</h2>");
    if shown.is_empty() {
        *page += "<p>None.</p>\n";
        return;
    }
    let count = shown.first().map_or(1, |(_, _, values)| values.len());
    let across = (WIDTH - LEFT - 8.0) / count as f64;
    let x = |place: usize| LEFT + across * place as f64;
    let y = |value: f64| HEIGHT - 22.0 - (HEIGHT - 46.0) * value / top;
    let _ = writeln!(
        page,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}, {} at most\">",
        short(top)
    );
    for part in [0.0, 0.5, 1.0] {
        let (at, value) = (y(part * top), short(part * top));
        let _ = writeln!(
            page,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"left\" x=\"{:.1}\" y=\"{:.1}\">{value}</text>",
            WIDTH - 8.0,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for quarter in 0..=4_u32 {
        let at = LEFT + (WIDTH - LEFT - 8.0) * f64::from(quarter) / 4.0;
        let after = width * u32::try_from(count).unwrap_or(u32::MAX) * quarter / 4;
        let class = match quarter {
            0 => "first",
            4 => "left",
            _ => "middle",
        };
        let _ = writeln!(
            page,
            "<text class=\"{class}\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
            HEIGHT - 4.0,
            time(after)
        );
    }
    for (name, class, values) in &shown {
        let mut points = String::new();
        for (place, &value) in values.iter().enumerate() {
            // Steps: a value holds for its whole interval.
            let (from, to, at) = (x(place), x(place + 1), y(value));
            let _ = write!(points, "{from:.1},{at:.1} {to:.1},{at:.1} ");
        }
        let most = highest(values);
        let at = values.iter().position(|&value| value == most).unwrap_or(0);
        let _ = writeln!(
            page,
            "<polyline class=\"{class}\" points=\"{}\"><title>{name}: {} at most</title></polyline>",
            points.trim_end(),
            short(most)
        );
        if shown.len() > 1 {
            let at = x(at).clamp(LEFT + 4.0, WIDTH - 90.0);
            let _ = writeln!(
                page,
                "<text class=\"first {class}\" x=\"{at:.1}\" y=\"{:.1}\">{name}</text>",
                y(most) - 5.0
            );
        }
    }
    *page += "</svg>\n";
    if shown.len() > 1 {
        *page += "<p class=\"legend\">";
        for (name, class, _) in &shown {
            let _ = write!(
                page,
                "<svg class=\"key\" viewBox=\"0 0 40 10\"><line class=\"{class}\" x1=\"0\" y1=\"5\" x2=\"40\" y2=\"5\"/></svg>{name} "
            );
        }
        *page += "</p>\n";
    }
}

/// A row of bars for each reason, over time.
fn drops(page: &mut String, report: &Value, history: &History) {
    *page += "<h2>Drops by reason</h2>\n";
    let rows = DropReason::ALL.iter().enumerate();
    let rows: Vec<(usize, &DropReason, u64)> = rows
        .map(|(place, reason)| {
            (
                place,
                reason,
                packets(report, &format!("/dropped/{}", reason.name())),
            )
        })
        .filter(|&(_, _, total)| total > 0)
        .collect();
    if rows.is_empty() {
        *page += "<p>None.</p>\n";
        return;
    }
    *page += "<table>\n<tr><th>reason</th><th>packets</th><th>over time</th></tr>\n";
    for (place, reason, total) in rows {
        let count = |one: &Interval| one.dropped.get(place).copied().unwrap_or(0);
        let most = history.intervals().iter().map(count).max().unwrap_or(0);
        let across = 480.0 / history.intervals().len().max(1) as f64;
        let mut bars = String::new();
        for (at, one) in history.intervals().iter().enumerate() {
            let count = count(one);
            if count > 0 {
                let tall = 24.0 * count as f64 / most as f64;
                let _ = write!(
                    bars,
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{tall:.1}\"><title>{count} after {}</title></rect>",
                    across * at as f64,
                    24.0 - tall,
                    across.max(1.0),
                    time(history.width() * u32::try_from(at).unwrap_or(u32::MAX))
                );
            }
        }
        let _ = writeln!(
            page,
            "<tr><th title=\"{}\">{reason}</th><td>{total}</td>\
             <td><svg class=\"row\" viewBox=\"0 0 480 24\" role=\"img\" aria-label=\"{reason} over time\">{bars}</svg></td></tr>",
            Escaped(reason.description())
        );
    }
    *page += "</table>\n";
}

/// A bar that is `part` of its room long, with a mark at `mark`.
fn bar(part: f64, mark: Option<f64>) -> String {
    let at = |part: f64| 240.0 * part.clamp(0.0, 1.0);
    let mark = mark.map_or_else(String::new, |mark| {
        let x = at(mark).clamp(1.0, 239.0);
        format!("<line class=\"mark\" x1=\"{x:.1}\" y1=\"0\" x2=\"{x:.1}\" y2=\"16\"/>")
    });
    format!(
        "<svg class=\"bar\" viewBox=\"0 0 240 16\"><rect x=\"0\" y=\"3\" width=\"{:.1}\" height=\"10\"/>{mark}</svg>",
        at(part)
    )
}

fn backends(page: &mut String, report: &Value) {
    *page += "<h2>Backends</h2>\n<p>Each bar is the backend's share of its pool's flows, or of its packets where no \
              flows are pinned. The mark is its share by weight.</p>\n<table>\n<tr><th>pool</th><th>backend</th>\
              <th>state</th><th>weight</th><th>packets</th><th>flows</th><th>share</th><th>by weight</th><th></th></tr>\n";
    for backend in report["backends"].as_array().into_iter().flatten() {
        let share = backend["share"].as_f64().unwrap_or(0.0);
        let expected = backend["share_by_weight"].as_f64().unwrap_or(0.0);
        let _ = writeln!(
            page,
            "<tr><th>{}</th><th>{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.2} %</td><td>{:.2} %</td>\
             <td>{}</td></tr>",
            Escaped(text(backend, "pool")),
            Escaped(text(backend, "backend")),
            Escaped(text(backend, "state")),
            number(backend, "/weight"),
            packets(backend, "/forwarded"),
            number(backend, "/flows"),
            100.0 * share,
            100.0 * expected,
            bar(share, Some(expected))
        );
    }
    *page += "</table>\n";
}

fn rules(page: &mut String, report: &Value) {
    let mut rules: Vec<&Value> = report["rules"].as_array().into_iter().flatten().collect();
    rules.sort_by_key(|rule| std::cmp::Reverse(packets(rule, "/forwarded")));
    let most = rules.first().map_or(0, |rule| packets(rule, "/forwarded"));
    *page += "<h2>Rules and VIPs</h2>\n<table>\n<tr><th>rule</th><th>kind</th><th>frontend</th><th>VIP</th>\
              <th>packets</th><th>flows</th><th></th></tr>\n";
    for rule in rules {
        let packets = packets(rule, "/forwarded");
        let _ = writeln!(
            page,
            "<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td><td>{packets}</td><td>{}</td><td>{}</td></tr>",
            Escaped(text(rule, "rule")),
            Escaped(text(rule, "kind")),
            Escaped(text(rule, "frontend")),
            Escaped(text(rule, "address")),
            number(rule, "/flows"),
            bar(packets as f64 / most.max(1) as f64, None)
        );
    }
    *page += "</table>\n";
}

fn clients(page: &mut String, history: &History) {
    let (clients, count) = history.clients(CLIENTS);
    *page += "<h2>Clients</h2>\n";
    if clients.is_empty() {
        *page += "<p>No packet was for a VIP.</p>\n";
        return;
    }
    let most = clients.first().map_or(0, |(_, count)| count.packets);
    let _ = writeln!(
        page,
        "<p>{} of {count} that sent packets to VIPs.</p>\n<table>\n\
         <tr><th>client</th><th>packets</th><th>bytes</th><th></th></tr>",
        clients.len()
    );
    for (address, count) in clients {
        let _ = writeln!(
            page,
            "<tr><th>{address}</th><td>{}</td><td>{}</td><td>{}</td></tr>",
            count.packets,
            count.bytes,
            bar(count.packets as f64 / most.max(1) as f64, None)
        );
    }
    *page += "</table>\n";
}

/// Where packets go instead, if none was for a VIP.
fn destinations(page: &mut String, report: &Value) {
    let Some(all) = report["destinations"].as_array() else {
        return;
    };
    *page += "<h2>Destinations</h2>\n<p>No packet was for a VIP of the configuration. Most packets are for these; \
              <code>slb init --from FILE</code> writes a configuration to begin with.</p>\n<table>\n\
              <tr><th>protocol</th><th>address</th><th>port</th><th>packets</th><th>flows</th></tr>\n";
    for one in all {
        let _ = writeln!(
            page,
            "<tr><th>{}</th><th>{}</th><td>{}</td><td>{}</td><td>{}</td></tr>",
            Escaped(text(one, "protocol")),
            Escaped(text(one, "address")),
            number(one, "/port"),
            number(one, "/packets"),
            number(one, "/flows")
        );
    }
    *page += "</table>\n";
}

fn paths(page: &mut String, history: &History) {
    *page += "<h2>Paths of packets</h2>\n<p>The first packet of each verdict, and those that <code>--packet N</code> chose. \
              <code>slb explain --in FILE --packet N</code> shows any other.</p>\n";
    for example in history.examples() {
        let (role, steps) = example.path.split_once(": ").unwrap_or_default();
        let _ = writeln!(
            page,
            "<details>\n<summary>{}: packet {}, {}, after {}</summary>\n<ol>\n<li>{} begins</li>",
            Escaped(&example.kind()),
            example.number,
            Escaped(&example.packet),
            time(example.after),
            Escaped(role)
        );
        for step in steps.split("; ") {
            let _ = writeln!(page, "<li>{}</li>", Escaped(step));
        }
        *page += "</ol>\n</details>\n";
    }
}

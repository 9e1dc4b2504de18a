//! The screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Row, Sparkline, Table};
use slb_core::DropReason;

use super::sample::{Backend, Loss, Samples, Vip};
use crate::status::{number, short, text};

/// The order of backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// As they are in the configuration.
    #[default]
    Name,
    Packets,
    Flows,
}

impl Order {
    pub(super) fn after(self) -> Self {
        match self {
            Self::Name => Self::Packets,
            Self::Packets => Self::Flows,
            Self::Flows => Self::Name,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Name => "configuration",
            Self::Packets => "packets",
            Self::Flows => "flows",
        }
    }
}

/// The part of the status that is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Page {
    /// VIPs, backends and drops.
    #[default]
    Overview,
    /// All drops and losses, with their reasons in words.
    Drops,
    /// Events of flows or connections, and the rules that they are of.
    Flows,
    /// The keys.
    Help,
}

#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) is_held: bool,
    pub(super) order: Order,
    pub(super) page: Page,
    /// The first line of the page's list that is shown.
    pub(super) first: usize,
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
/// The least width of a list's first column: further columns go before it is narrower.
const NARROWEST: u16 = 16;
/// The sign of what is cut off.
const CUT: char = '…';

const KEYS: [(&str, &str); 7] = [
    ("q", "end"),
    ("d", "drops and losses with their reasons in words, or back"),
    (
        "f",
        "flows or connections, and the rules that they are of, or back",
    ),
    ("up, down", "move in the list"),
    (
        "s",
        "sort backends: as configured, by packets, by new flows",
    ),
    ("p", "hold the screen, or go on"),
    ("h, ?", "this help, or back"),
];

/// A list with a header, whose first column has the width that the others leave.
struct Listing<'l> {
    names: &'l [&'l str],
    /// Widths of all columns but the first.
    widths: &'l [u16],
    rows: Vec<Vec<(String, Style)>>,
}

impl View {
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, samples: &Samples) {
        let [header, rest] =
            Layout::vertical([Constraint::Length(2), Constraint::Min(0)]).areas(frame.area());
        frame.render_widget(self.header(samples, header.width), header);
        match self.page {
            Page::Overview => self.draw_overview(frame, samples, rest),
            Page::Drops => {
                let losses = samples.losses();
                let title = format!("drops and losses: {}", losses.len());
                let area = titled(frame, rest, &title);
                self.draw_list(frame, area, &listing_of_losses(&losses, true));
            }
            Page::Flows => self.draw_flows(frame, samples, rest),
            Page::Help => {
                let area = titled(frame, rest, "keys");
                let rows = KEYS.iter();
                let rows = rows.map(|(key, what)| plain([format!("{key:<9} {what}")]));
                let listing = Listing {
                    names: &["key       what it does"],
                    widths: &[],
                    rows: rows.collect(),
                };
                self.draw_list(frame, area, &listing);
            }
        }
    }

    fn draw_overview(&mut self, frame: &mut Frame<'_>, samples: &Samples, area: Rect) {
        let (vips, losses) = (samples.vips(), samples.losses());
        let most = usize::from(area.height / 4).max(1);
        let rows = |count: usize| Constraint::Length((count.min(most) + 2) as u16);
        let [line, of_vips, of_backends, of_losses] = Layout::vertical([
            Constraint::Length(5),
            rows(vips.len()),
            Constraint::Min(3),
            rows(losses.len().max(1)),
        ])
        .areas(area);
        let packets: Vec<u64> = newest(samples, line.width);
        let title = format!("packets/s in: {}", short(samples.rate("/received/packets")));
        let sparkline = Sparkline::default()
            .block(Block::new().title(title))
            .data(packets);
        frame.render_widget(sparkline, line);
        draw_listing(frame, of_vips, &listing_of_vips(&vips), 0);
        let backends = self.sorted(samples.backends());
        let title = format!("backends: {}, by {}", backends.len(), self.order.name());
        let of_backends = titled(frame, of_backends, &title);
        self.draw_list(frame, of_backends, &listing_of_backends(&backends));
        draw_listing(frame, of_losses, &listing_of_losses(&losses, false), 0);
    }

    fn draw_flows(&mut self, frame: &mut Frame<'_>, samples: &Samples, area: Rect) {
        let events = samples.flow_events();
        let [of_events, of_rules] = Layout::vertical([
            Constraint::Length((events.len() + 2) as u16),
            Constraint::Min(3),
        ])
        .areas(area);
        let rows = events
            .iter()
            .map(|loss| plain([loss.name.clone(), short(loss.rate), loss.total.to_string()]));
        let listing = Listing {
            names: &[table_of(samples), "per s", "in all"],
            widths: &[10, 14],
            rows: rows.collect(),
        };
        draw_listing(frame, of_events, &listing, 0);
        let rules = samples.rules();
        let title = format!("rules: {}", rules.len());
        let of_rules = titled(frame, of_rules, &title);
        let rows = rules.iter().map(|rule| {
            plain([
                rule.name.clone(),
                short(rule.flows),
                short(rule.syns),
                short(rule.packets),
                short(rule.bytes),
                rule.address.clone(),
            ])
        });
        let listing = Listing {
            names: &["rule", "new/s", "SYNs/s", "packets/s", "bytes/s", "VIP"],
            widths: &[10, 10, 10, 10, 28],
            rows: rows.collect(),
        };
        self.draw_list(frame, of_rules, &listing);
    }

    fn header(&self, samples: &Samples, width: u16) -> ratatui::text::Text<'static> {
        let now = samples.now();
        let first = format!(
            "slb {} {}   pid {}, up {}, configuration {}",
            text(now, "/version"),
            text(now, "/role"),
            number(now, "/pid"),
            time(number(now, "/uptime")),
            number(now, "/generation"),
        );
        let table = table_of(samples);
        // What is most urgent is last to be cut off.
        let mut second = Vec::new();
        if self.is_held {
            second.push(("HELD   ".to_owned(), Style::new().fg(Color::Yellow)));
        }
        if let Some(why) = &samples.lost {
            second.push((format!("{why}   "), Style::new().fg(Color::Red)));
        }
        second.push((
            format!(
                "{table}: {} of {}, {} new/s   out {} packets/s   dropped {}/s",
                number(now, &format!("/{table}/live")),
                number(now, &format!("/{table}/places")),
                short(samples.rate(&format!("/{table}/made"))),
                short(samples.rate("/forwarded/packets")),
                short(samples.rate("/dropped_total/packets")),
            ),
            Style::new(),
        ));
        let keys = "   h help, d drops, f flows, q ends".to_owned();
        vec![
            fitted(vec![(first, BOLD), (keys, DIM)], width),
            fitted(second, width),
        ]
        .into()
    }

    fn sorted(&self, mut backends: Vec<Backend>) -> Vec<Backend> {
        let by = |value: fn(&Backend) -> f64| {
            move |a: &Backend, b: &Backend| value(b).total_cmp(&value(a))
        };
        match self.order {
            Order::Name => {}
            Order::Packets => backends.sort_by(by(|backend| backend.packets)),
            Order::Flows => backends.sort_by(by(|backend| backend.flows)),
        }
        backends
    }

    /// Draws the list that keys move in.
    fn draw_list(&mut self, frame: &mut Frame<'_>, area: Rect, listing: &Listing<'_>) {
        // A header, and a line that says how many more there are.
        let room = usize::from(area.height.saturating_sub(2)).max(1);
        let last = listing.rows.len().saturating_sub(room);
        self.first = self.first.min(last);
        draw_listing(frame, area, listing, self.first);
    }
}

/// The name of the table of flows in the status.
fn table_of(samples: &Samples) -> &'static str {
    match text(samples.now(), "/role") {
        "mux" => "flows",
        _ => "connections",
    }
}

fn plain<const N: usize>(cells: [impl Into<String>; N]) -> Vec<(String, Style)> {
    let cells = cells.into_iter();
    cells.map(|cell| (cell.into(), Style::new())).collect()
}

/// Draws a title, and returns the area under it.
fn titled(frame: &mut Frame<'_>, area: Rect, title: &str) -> Rect {
    let block = Block::new().title(cut(title, area.width));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    inner
}

/// A text that is at most so wide, with a sign where something is cut off.
fn cut(text: &str, width: u16) -> String {
    let width = usize::from(width);
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain([CUT]).take(width).collect()
}

/// A line that is at most so wide, with a sign where something is cut off.
fn fitted(spans: Vec<(String, Style)>, width: u16) -> Line<'static> {
    let mut left = width;
    let mut line = Line::default();
    for (text, style) in spans {
        if left == 0 {
            break;
        }
        let text = cut(&text, left);
        left -= u16::try_from(text.chars().count())
            .unwrap_or(left)
            .min(left);
        line.push_span(Span::styled(text, style));
    }
    line
}

/// Draws a list from its line `first` on. Columns that have no room, cells that are cut and lines that are left out
/// each have a sign.
fn draw_listing(frame: &mut Frame<'_>, area: Rect, listing: &Listing<'_>, first: usize) {
    let Listing {
        names,
        widths,
        rows,
    } = listing;
    let taken = |count: usize| -> u16 { widths.iter().take(count).map(|width| width + 1).sum() };
    let mut columns = widths.len();
    while columns > 0 && taken(columns) + NARROWEST > area.width {
        columns -= 1;
    }
    let mut all = vec![area.width - taken(columns).min(area.width)];
    all.extend(widths.iter().take(columns));
    let mut header: Vec<String> = names
        .iter()
        .zip(&all)
        .map(|(name, width)| cut(name, *width))
        .collect();
    if columns < widths.len()
        && let (Some(last), Some(width)) = (header.last_mut(), all.last())
    {
        *last = cut(&format!("{last} {CUT}"), *width);
    }
    let room = usize::from(area.height.saturating_sub(1));
    let is_cut = rows.len().saturating_sub(first) > room;
    let shown = if is_cut { room.saturating_sub(1) } else { room };
    let cells = rows.iter().skip(first).take(shown).map(|row| {
        let cells = row.iter().zip(&all);
        Row::new(cells.map(|((text, style), width)| Cell::new(cut(text, *width)).style(*style)))
    });
    let mut cells: Vec<Row<'_>> = cells.collect();
    if rows.is_empty() {
        cells.push(Row::new(["nothing"]));
    }
    if is_cut {
        let more = rows.len() - first - shown;
        cells.push(Row::new([cut(&format!("{CUT} {more} more"), all[0])]).style(DIM));
    }
    let widths = all.iter().map(|width| Constraint::Length(*width));
    let table = Table::new(cells, widths).header(Row::new(header).style(DIM));
    frame.render_widget(table, area);
}

/// As many of the newest as there is room for.
fn newest(samples: &Samples, width: u16) -> Vec<u64> {
    let skipped = samples.packets.len().saturating_sub(width.into());
    samples.packets.iter().skip(skipped).copied().collect()
}

fn listing_of_vips(vips: &[Vip]) -> Listing<'static> {
    let rows = vips.iter().map(|vip| {
        plain([
            vip.name.clone(),
            short(vip.packets),
            short(vip.bytes),
            short(vip.syns),
            short(vip.flows),
            vip.address.clone(),
        ])
    });
    Listing {
        names: &["VIP", "packets/s", "bytes/s", "SYNs/s", "new/s", "address"],
        widths: &[10, 10, 10, 10, 28],
        rows: rows.collect(),
    }
}

fn listing_of_backends(backends: &[Backend]) -> Listing<'static> {
    let rows = backends.iter().map(|backend| {
        let colour = match backend.state.as_str() {
            "healthy" => Color::Green,
            "draining" | "partial" => Color::Yellow,
            _ => Color::Red,
        };
        let mut row = plain([
            backend.name.clone(),
            backend.state.clone(),
            short(backend.packets),
            short(backend.flows),
            short(backend.live),
            format!("{:.1} %", 100.0 * backend.share),
            backend.weight.to_string(),
        ]);
        row[1].1 = Style::new().fg(colour);
        row
    });
    Listing {
        names: &[
            "backend",
            "state",
            "packets/s",
            "new/s",
            "now",
            "flows",
            "weight",
        ],
        widths: &[11, 10, 10, 10, 8, 8],
        rows: rows.collect(),
    }
}

/// Drops and losses, in words if asked for.
fn listing_of_losses(losses: &[Loss], has_words: bool) -> Listing<'static> {
    let rows = losses.iter().map(|loss| {
        let reason = DropReason::ALL
            .iter()
            .find(|reason| has_words && reason.name() == loss.name);
        let name = match reason {
            Some(reason) => format!("{reason}: {}", reason.description()),
            None => loss.name.clone(),
        };
        plain([name, short(loss.rate), loss.total.to_string()])
    });
    Listing {
        names: &["dropped", "per s", "in all"],
        widths: &[10, 14],
        rows: rows.collect(),
    }
}

/// A time in two units.
fn time(seconds: f64) -> String {
    let seconds = seconds as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::{Value, json};

    use super::*;

    fn status(seconds: u64, busy: [u64; 2], drops: u64) -> Value {
        let count = |packets: u64| json!({ "packets": packets, "bytes": 100 * packets });
        let backend = |name: &str, state: &str, packets| {
            json!({ "pool": "servers", "backend": name, "state": state, "weight": 1, "share": 0.5,
                    "forwarded": count(packets), "flows": packets / 10, "live": 7 })
        };
        json!({
            "version": "0.1.0", "role": "mux", "pid": 42, "uptime": 3725, "generation": 3,
            "time": 1000.0 + seconds as f64,
            "received": count(busy[0] + busy[1] + drops), "forwarded": count(busy[0] + busy[1]),
            "dropped_total": count(drops),
            "dropped": { "no_rule": count(drops), "malformed": count(0) },
            "io": { "received": 5, "ring_full": 3, "frames_free": 9 },
            "flows": { "live": 12, "places": 1000, "made": busy[0] / 10 },
            "rules": [
                { "kind": "rule", "rule": "a", "frontend": "web", "address": "20.20.20.100",
                  "forwarded": count(busy[0]), "syns": busy[0] / 10, "flows": 0 },
                { "kind": "rule", "rule": "b", "frontend": "web", "address": "20.20.20.100",
                  "forwarded": count(busy[1]), "syns": 0, "flows": 0 },
            ],
            "backends": [backend("vm1", "healthy", busy[0]), backend("vm2", "unhealthy", busy[1])],
        })
    }

    fn drawn(view: &mut View, samples: &Samples, (width, height): (u16, u16)) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal
            .draw(|frame| view.draw(frame, samples))
            .expect("drawn");
        let buffer = terminal.backend().buffer();
        let row = |y| {
            (0..width)
                .map(|x| buffer[(x, y)].symbol())
                .collect::<String>()
        };
        (0..height).map(row).collect()
    }

    #[test]
    fn rates_health_and_drops_are_shown() {
        let mut samples = Samples::default();
        samples.add(status(0, [1000, 10], 0));
        samples.add(status(2, [3000, 5010], 40));
        let mut view = View::default();
        let lines = drawn(&mut view, &samples, (100, 30));
        let find = |words: &[&str]| {
            let has = |line: &&String| words.iter().all(|word| line.contains(word));
            let found = lines.iter().position(|line| has(&line));
            found.unwrap_or_else(|| panic!("{words:?}\n{}", lines.join("\n")))
        };
        find(&["slb 0.1.0 mux", "pid 42", "up 1 h 2 min", "configuration 3"]);
        find(&[
            "flows: 12 of 1000, 100 new/s",
            "out 3500 packets/s",
            "dropped 20/s",
        ]);
        find(&["packets/s in: 3520"]);
        // Both rules of the VIP together.
        find(&["web", "20.20.20.100", "3500", "350.0 k", "100"]);
        find(&["no_rule", "20", "40"]);
        find(&["I/O: ring_full", "3"]);
        assert!(!lines.iter().any(|line| line.contains("malformed")));
        let (one, two) = (
            find(&["servers/vm1", "healthy", "50.0 %", "1000"]),
            find(&["servers/vm2", "unhealthy", "2500", "250"]),
        );
        assert!(one < two);
        // By packets the other one is first.
        view.order = Order::after(view.order);
        view.first = 100;
        let lines = drawn(&mut view, &samples, (100, 30));
        let place = |name: &str| lines.iter().position(|line| line.contains(name));
        assert!(place("servers/vm2") < place("servers/vm1"));
    }

    #[test]
    fn nothing_and_small_terminals_do_not_end_it() {
        let mut samples = Samples::default();
        let views = || {
            let pages = [Page::Overview, Page::Drops, Page::Flows, Page::Help];
            pages.map(|page| View {
                page,
                first: 7,
                ..View::default()
            })
        };
        for size in [(1, 1), (20, 5), (80, 24)] {
            for mut view in views() {
                drawn(&mut view, &samples, size);
            }
        }
        samples.add(status(0, [1, 1], 1));
        samples.lose("gone".to_owned());
        for size in [(1, 1), (10, 3), (300, 2), (3, 100)] {
            for mut view in views() {
                drawn(&mut view, &samples, size);
            }
        }
        let lines = drawn(&mut View::default(), &samples, (100, 30));
        assert!(lines[1].contains("gone"), "{}", lines[1]);
        // Another process: no rates of before.
        let mut other = status(9, [0, 0], 0);
        other["pid"] = json!(43);
        samples.add(other);
        assert_eq!(samples.rate("/received/packets"), 0.0);
    }

    #[test]
    fn nothing_is_cut_off_without_a_sign() {
        let mut many = status(0, [1000, 10], 40);
        let backend = many["backends"][0].clone();
        let backends = (1..=40).map(|n| {
            let mut own = backend.clone();
            own["backend"] = format!("a-backend-with-a-name-that-is-long-{n}").into();
            own
        });
        many["backends"] = backends.collect();
        let mut samples = Samples::default();
        samples.add(many);
        let mut view = View::default();
        let lines = drawn(&mut view, &samples, (100, 24));
        let all = lines.join("\n");
        // Lines, and cells.
        let shown = lines
            .iter()
            .filter(|line| line.contains("servers/a"))
            .count();
        assert!(all.contains(&format!("… {} more", 40 - shown)), "{all}");
        assert!(
            lines
                .iter()
                .any(|line| line.contains("servers/a-backend-with-a-n") && line.contains('…'))
        );
        // The last of them has none after it, and the first none before it.
        view.first = 100;
        let all = drawn(&mut view, &samples, (140, 24)).join("\n");
        assert!(all.contains("long-40 ") && !all.contains(" more"), "{all}");
        // On a narrow terminal columns are left out, the least urgent first, and lines are cut.
        for width in [40, 60, 70] {
            let lines = drawn(&mut View::default(), &samples, (width, 24));
            let all = lines.join("\n");
            let header = lines.iter().find(|line| line.starts_with("backend "));
            let header = header.unwrap_or_else(|| panic!("{all}"));
            assert!(header.contains("state") && header.contains('…'), "{all}");
            assert!(
                lines[0].trim_end().ends_with('…') || lines[0].contains("q ends"),
                "{all}"
            );
        }
    }

    #[test]
    fn drops_flows_and_keys_have_pages() {
        let mut samples = Samples::default();
        samples.add(status(0, [1000, 10], 0));
        samples.add(status(2, [3000, 5010], 40));
        let page = |page| {
            let mut view = View {
                page,
                ..View::default()
            };
            drawn(&mut view, &samples, (110, 24)).join("\n")
        };
        let drops = page(Page::Drops);
        let said = "no_rule: no rule of the VIP takes the packet's protocol and port";
        assert!(
            drops.contains(said) && drops.contains("drops and losses: 2"),
            "{drops}"
        );
        let flows = page(Page::Flows);
        for (name, words) in [("made", ["100", "300"]), ("a ", ["1000", "20.20.20.100"])] {
            let line = flows.lines().find(|line| line.starts_with(name));
            let line = line.unwrap_or_else(|| panic!("{name}: {flows}"));
            assert!(words.iter().all(|word| line.contains(word)), "{line}");
        }
        let help = page(Page::Help);
        for (key, what) in KEYS {
            assert!(help.contains(key) && help.contains(what), "{key}: {help}");
        }
    }
}

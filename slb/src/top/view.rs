//! The screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Row, Sparkline, Table};

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

#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) is_held: bool,
    pub(super) order: Order,
    /// The first backend that is shown.
    pub(super) first: usize,
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);

impl View {
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, samples: &Samples) {
        let (vips, losses) = (samples.vips(), samples.losses());
        let most = usize::from(frame.area().height / 4).max(1);
        let rows = |count: usize| Constraint::Length((count.min(most) + 2) as u16);
        let [header, line, of_vips, of_backends, of_losses] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(5),
            rows(vips.len()),
            Constraint::Min(3),
            rows(losses.len().max(1)),
        ])
        .areas(frame.area());
        frame.render_widget(self.header(samples), header);
        let packets: Vec<u64> = newest(samples, line.width);
        let title = format!("packets/s in: {}", short(samples.rate("/received/packets")));
        let sparkline = Sparkline::default()
            .block(Block::new().title(title))
            .data(packets);
        frame.render_widget(sparkline, line);
        frame.render_widget(table_of_vips(&vips), of_vips);
        self.draw_backends(frame, samples.backends(), of_backends);
        frame.render_widget(table_of_losses(&losses), of_losses);
    }

    fn header(&self, samples: &Samples) -> ratatui::text::Text<'static> {
        let now = samples.now();
        let first = format!(
            "slb {} {}   pid {}, up {}, configuration {}",
            text(now, "/version"),
            text(now, "/role"),
            number(now, "/pid"),
            time(number(now, "/uptime")),
            number(now, "/generation"),
        );
        let table = match text(now, "/role") {
            "mux" => "flows",
            _ => "connections",
        };
        let mut second = vec![Span::raw(format!(
            "{table}: {} of {}, {} new/s   out {} packets/s   dropped {}/s",
            number(now, &format!("/{table}/live")),
            number(now, &format!("/{table}/places")),
            short(samples.rate(&format!("/{table}/made"))),
            short(samples.rate("/forwarded/packets")),
            short(samples.rate("/dropped_total/packets")),
        ))];
        let mut keys = Line::styled(first, BOLD);
        keys.push_span(Span::styled("   q ends, p holds, s sorts", DIM));
        if self.is_held {
            second.push(Span::styled("   HELD", Style::new().fg(Color::Yellow)));
        }
        if let Some(why) = &samples.lost {
            second.push(Span::styled(
                format!("   {why}"),
                Style::new().fg(Color::Red),
            ));
        }
        vec![keys, Line::from(second)].into()
    }

    fn draw_backends(&mut self, frame: &mut Frame<'_>, mut backends: Vec<Backend>, area: Rect) {
        let by = |value: fn(&Backend) -> f64| {
            move |a: &Backend, b: &Backend| value(b).total_cmp(&value(a))
        };
        match self.order {
            Order::Name => {}
            Order::Packets => backends.sort_by(by(|backend| backend.packets)),
            Order::Flows => backends.sort_by(by(|backend| backend.flows)),
        }
        let room = usize::from(area.height.saturating_sub(2));
        self.first = self.first.min(backends.len().saturating_sub(room));
        let title = format!("backends: {}, by {}", backends.len(), self.order.name());
        let shown = backends.iter().skip(self.first).take(room);
        let rows = shown.map(|backend| {
            let colour = match backend.state.as_str() {
                "healthy" => Color::Green,
                "draining" | "partial" => Color::Yellow,
                _ => Color::Red,
            };
            Row::new([
                Cell::new(backend.name.clone()),
                Cell::new(backend.state.clone()).style(Style::new().fg(colour)),
                Cell::new(backend.weight.to_string()),
                Cell::new(format!("{:.1} %", 100.0 * backend.share)),
                Cell::new(short(backend.packets)),
                Cell::new(short(backend.flows)),
                Cell::new(short(backend.live)),
            ])
        });
        let widths = [
            Constraint::Min(16),
            Constraint::Length(10),
            Constraint::Length(8),
            Constraint::Length(8),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(10),
        ];
        let names = [
            "backend",
            "state",
            "weight",
            "flows",
            "packets/s",
            "new/s",
            "now",
        ];
        let table = Table::new(rows, widths)
            .header(Row::new(names).style(DIM))
            .block(Block::new().title(title));
        frame.render_widget(table, area);
    }
}

/// As many of the newest as there is room for.
fn newest(samples: &Samples, width: u16) -> Vec<u64> {
    let skipped = samples.packets.len().saturating_sub(width.into());
    samples.packets.iter().skip(skipped).copied().collect()
}

fn table_of_vips(vips: &[Vip]) -> Table<'static> {
    let rows = vips.iter().map(|vip| {
        Row::new([
            vip.name.clone(),
            vip.address.clone(),
            short(vip.packets),
            short(vip.bytes),
            short(vip.syns),
            short(vip.flows),
        ])
    });
    let rows: Vec<Row<'static>> = rows.collect();
    let widths = [
        Constraint::Min(16),
        Constraint::Length(28),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
    ];
    let names = ["VIP", "address", "packets/s", "bytes/s", "SYNs/s", "new/s"];
    Table::new(rows, widths).header(Row::new(names).style(DIM))
}

fn table_of_losses(losses: &[Loss]) -> Table<'static> {
    let rows = losses
        .iter()
        .map(|loss| Row::new([loss.name.clone(), short(loss.rate), loss.total.to_string()]));
    let rows: Vec<Row<'static>> = if losses.is_empty() {
        vec![Row::new(["nothing"])]
    } else {
        rows.collect()
    };
    let widths = [
        Constraint::Min(30),
        Constraint::Length(10),
        Constraint::Length(14),
    ];
    Table::new(rows, widths).header(Row::new(["dropped", "per s", "in all"]).style(DIM))
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
        for size in [(1, 1), (20, 5), (80, 24)] {
            drawn(&mut View::default(), &samples, size);
        }
        samples.add(status(0, [1, 1], 1));
        samples.lose("gone".to_owned());
        for size in [(1, 1), (10, 3), (300, 2), (3, 100)] {
            drawn(&mut View::default(), &samples, size);
        }
        let lines = drawn(&mut View::default(), &samples, (100, 30));
        assert!(lines[1].contains("gone"), "{}", lines[1]);
        // Another process: no rates of before.
        let mut other = status(9, [0, 0], 0);
        other["pid"] = json!(43);
        samples.add(other);
        assert_eq!(samples.rate("/received/packets"), 0.0);
    }
}

//! `slb top`: what a running balancer does, on the whole terminal, renewed each second.
//!
//! Keys: q ends it, h shows all of them.

mod sample;
mod view;

use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use self::sample::Samples;
use self::view::{Order, Page, View};
use crate::Failure;
use crate::cli::TopOptions;
use crate::status::{CONTROLLER, ask, place, text};

const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn run(options: &TopOptions) -> Result<(), Failure> {
    let path = place(options.socket.as_deref())?;
    // Whoever does not answer is told of before the screen changes.
    let mut samples = Samples::default();
    let first = ask(&path)?;
    if text(&first, "/role") == CONTROLLER {
        return Err(Failure::usage(format!(
            "{}: expected the socket of a mux, a host or a proxy, got a controller's, which moves no packets: slb status \
             shows it",
            path.display()
        )));
    }
    samples.add(first);
    let mut view = View::default();
    let mut asked = Instant::now();
    let mut terminal = ratatui::try_init().map_err(Failure::failed)?;
    let result = loop {
        if let Err(error) = terminal.draw(|frame| view.draw(frame, &samples)) {
            break Err(Failure::failed(error));
        }
        match event::poll(SECOND.saturating_sub(asked.elapsed())) {
            Ok(true) => match event::read() {
                Ok(event) if heed(&event, &mut view) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(Failure::failed(error)),
            },
            Ok(false) => {}
            Err(error) => break Err(Failure::failed(error)),
        }
        if asked.elapsed() >= SECOND {
            asked = Instant::now();
            match ask(&path) {
                Ok(_) if view.is_held => {}
                Ok(status) => samples.add(status),
                // It has ended, or is starting anew.
                Err(failure) => samples.lose(failure.to_string()),
            }
        }
    };
    ratatui::restore();
    result
}

/// Handles a key; returns true if the program is to end.
fn heed(event: &Event, view: &mut View) -> bool {
    let Event::Key(key) = event else {
        return false;
    };
    if key.kind == KeyEventKind::Release {
        return false;
    }
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('q') => return true,
        KeyCode::Esc if view.page == Page::Overview => return true,
        KeyCode::Esc => turn_to(view, Page::Overview),
        KeyCode::Char('d') => turn_to(view, Page::Drops),
        KeyCode::Char('f') => turn_to(view, Page::Flows),
        KeyCode::Char('h' | '?') => turn_to(view, Page::Help),
        KeyCode::Char('c') if is_control => return true,
        KeyCode::Char('p') => view.is_held = !view.is_held,
        KeyCode::Char('s') => view.order = Order::after(view.order),
        KeyCode::Down => view.first += 1,
        KeyCode::Up => view.first = view.first.saturating_sub(1),
        _ => {}
    }
    false
}

/// Shows a page, or the first one if it is shown already.
fn turn_to(view: &mut View, page: Page) {
    view.page = match view.page == page {
        true => Page::Overview,
        false => page,
    };
    view.first = 0;
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn keys_turn_to_pages_and_back() {
        let mut view = View::default();
        let mut press = |code: KeyCode| {
            let ends = heed(&Event::Key(KeyEvent::from(code)), &mut view);
            (view.page, ends)
        };
        for (key, page) in [('d', Page::Drops), ('f', Page::Flows), ('?', Page::Help)] {
            assert_eq!(press(KeyCode::Char(key)), (page, false));
            assert_eq!(press(KeyCode::Char(key)), (Page::Overview, false));
            press(KeyCode::Char(key));
            assert_eq!(press(KeyCode::Esc), (Page::Overview, false));
        }
        assert!(press(KeyCode::Esc).1 && press(KeyCode::Char('q')).1);
    }
}

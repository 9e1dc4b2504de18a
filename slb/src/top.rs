//! `slb top`: what a running balancer does, on the whole terminal, renewed each second.
//!
//! Keys: q ends it, p holds it, s sorts backends by another column, up and down move in the list.

mod sample;
mod view;

use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use self::sample::Samples;
use self::view::{Order, View};
use crate::Failure;
use crate::cli::TopOptions;
use crate::status::{ask, place};

const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn run(options: &TopOptions) -> Result<(), Failure> {
    let path = place(options.socket.as_deref())?;
    // Whoever does not answer is told of before the screen changes.
    let mut samples = Samples::default();
    samples.add(ask(&path)?);
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
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('c') if is_control => return true,
        KeyCode::Char('p') => view.is_held = !view.is_held,
        KeyCode::Char('s') => view.order = Order::after(view.order),
        KeyCode::Down => view.first += 1,
        KeyCode::Up => view.first = view.first.saturating_sub(1),
        _ => {}
    }
    false
}

//! `slb replay`: a capture in, what the balancer would send out.

use std::fs::File;
use std::io::{BufWriter, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use slb_control::ports::PortKind;
use slb_control::{Config, Role};
use slb_core::{BURST, Burst, PacketIo, PortId};
use slb_io_pcap::{Capture, Format as FileFormat, Reader, Writer, memory_for};

use crate::Failure;
use crate::balancer::Balancer;
use crate::check::load_balancer;
use crate::cli::{Format, ReplayOptions};
use crate::report::{Report, Tally};

/// Frames kept ready for packets of the balancer's own.
const SPARE: usize = 16;

pub(crate) fn run(options: &ReplayOptions) -> Result<(), Failure> {
    let config = load_balancer(&options.balancer)?;
    let mut balancer = Balancer::new(&config)?;
    let (readers, size) = inputs(&config, &options.input)?;
    let mut memory = vec![0; memory_for(2 * BURST + SPARE)];
    let mut capture = Capture::of_ports(readers, &mut memory);
    let mut whole = false;
    for text in &options.output {
        let (port, path) = place(&config, text);
        capture = match port {
            Some(port) => capture.write_port(port, create(path)?),
            None if whole => return Err(Failure::usage("--out stands twice without a port")),
            None => {
                whole = true;
                capture.write_sent(create(path)?)
            }
        };
    }
    if let Some(path) = &options.passed {
        capture = capture.write_passed(create(path)?);
    }

    let progress = progress(size);
    let start = Instant::now();
    let mut burst = Burst::new();
    let mut damage = None;
    while !capture.is_at_end() {
        if let Err(error) = capture.receive(&mut burst) {
            damage = Some(error);
        }
        let now = capture.now();
        // What was due before these packets came is sent before them.
        let mut spare = Burst::new();
        capture.reserve(&mut spare, SPARE);
        balancer.advance(now, &mut spare);
        capture.transmit(&mut spare).map_err(Failure::failed)?;
        burst.iter_mut().for_each(|frame| balancer.set_port(frame));
        balancer.process(now, &mut burst, &mut ());
        capture.transmit(&mut burst).map_err(Failure::failed)?;
        progress.set_position(capture.offset());
    }
    let elapsed = start.elapsed();
    progress.finish_and_clear();
    let capture = capture.finish().map_err(Failure::failed)?;

    let report = Report::new(&config, Tally::of(&balancer), &capture, elapsed);
    match options.report {
        Format::Text => print!("{}", report.text()),
        Format::Json => println!("{:#}", report.json()),
    }
    match damage {
        None => Ok(()),
        Some(error) => Err(Failure::failed(format!(
            "{}: {error}",
            options.input.join(", ")
        ))),
    }
}

/// Opens the captures that options name, each at its port; returns their size too.
pub(crate) fn inputs(
    config: &Config,
    options: &[String],
) -> Result<(Vec<(PortId, Reader)>, u64), Failure> {
    let mut readers = Vec::new();
    let mut size = 0;
    for text in options {
        let (port, path) = place(config, text);
        let (reader, len) = open(path)?;
        size += len;
        readers.push((port.unwrap_or_else(|| first_frontend(config)), reader));
    }
    Ok((readers, size))
}

/// The port that an option names, and the rest of it: a file. A file's name may have a `=` itself.
fn place<'t>(config: &Config, text: &'t str) -> (Option<PortId>, &'t Path) {
    if config.node.role == Role::Proxy
        && let Some((name, file)) = text.split_once('=')
        && let Some(port) = config.ports.by_name(name)
    {
        return (Some(port), Path::new(file));
    }
    (None, Path::new(text))
}

/// Where packets come from that are of no port by name.
pub(crate) fn first_frontend(config: &Config) -> PortId {
    let all = (0..).map(PortId).zip(&config.ports.all);
    let mut frontends = all.filter(|(_, port)| port.kind == PortKind::Frontend);
    frontends.next().map_or(PortId(0), |(port, _)| port)
}

/// Opens a capture; returns its size too.
fn open(path: &Path) -> Result<(Reader, u64), Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(|error| failed(&error))?;
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let reader = Reader::new(file).map_err(|error| failed(&error))?;
    Ok((reader, size))
}

fn create(path: &Path) -> Result<Writer<BufWriter<File>>, Failure> {
    File::create(path)
        .and_then(|file| Writer::new(BufWriter::new(file), FileFormat::of(path)))
        .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}

/// A bar on a terminal, for work that takes longer than a moment.
fn progress(size: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr_with_hz(5));
    let template = "{bar:40} {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left)";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

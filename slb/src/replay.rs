//! `slb replay`: a capture in, what the balancer would send out.

mod history;
mod html;

use std::array;
use std::fs::File;
use std::io::{BufWriter, IsTerminal};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use slb_control::ports::PortKind;
use slb_control::{Config, Role, open_file};
use slb_core::observe::{Observe as _, Step, Trail};
use slb_core::{BURST, Burst, Frame, PacketIo, PortId};
use slb_io_pcap::{Capture, CaptureError, Format as FileFormat, Reader, Writer, memory_for};

use crate::Failure;
use crate::balancer::Balancer;
use crate::check::load_balancer;
use crate::cli::{ReplayOptions, ReportFormat};
use crate::destinations::{Count, Service, Services};
use crate::explain::comment;
use crate::output::{Content, Output, create_all, is_standard};
use crate::report::{Report, Tally};

use self::history::History;

/// Frames kept ready for packets of the balancer's own.
const SPARE: usize = 16;

pub(crate) fn run(options: &ReplayOptions) -> Result<(), Failure> {
    if !options.packet.is_empty() && options.report != ReportFormat::Html {
        return Err(Failure::usage(
            "--packet: expected --report html, whose page shows the packet's path; slb explain prints it as text",
        ));
    }
    let config = load_balancer(options.config.path(), &options.balancer)?;
    let mut balancer = Balancer::new(&config)?;
    let (readers, size) = inputs(&config, &options.input)?;
    let mut memory = vec![0; memory_for(2 * BURST + SPARE)];
    let mut capture = Capture::of_ports(readers, &mut memory);
    if options.cut {
        capture = capture.fill_cut();
    }
    let outputs = options.output.iter().map(|text| place(&config, text));
    let outputs: Vec<(Option<PortId>, &Path)> = outputs.collect();
    if outputs.iter().filter(|(port, _)| port.is_none()).count() > 1 {
        return Err(Failure::usage(
            "--out: expected a port before all but one: --out PORT=FILE",
        ));
    }
    let mut files = create_outputs(&config, options, &outputs)?.into_iter();
    for ((port, path), file) in outputs.iter().zip(&mut files) {
        let writer = writer(path, file)?;
        capture = match port {
            Some(port) => capture.write_port(*port, writer),
            None => capture.write_sent(writer),
        };
    }
    if let Some((path, file)) = options.passed.as_deref().zip(files.next()) {
        capture = capture.write_passed(writer(path, file)?);
    }

    let files = outputs.iter().map(|&(_, path)| path);
    let mut files = files.chain(options.passed.as_deref());
    let is_noted = files.any(|path| FileFormat::of(path) == FileFormat::PcapNg);

    let mut history =
        (options.report == ReportFormat::Html).then(|| History::new(&config, &options.packet));

    let progress = progress(size);
    let start = Instant::now();
    let mut burst = Burst::new();
    let mut damage = Vec::new();
    while !capture.is_at_end() {
        if let Err(error) = capture.receive(&mut burst) {
            damage.push(told(&error, &options.input));
        }
        let now = capture.now();
        // What was due before these packets came is sent before them.
        let mut spare = Burst::new();
        capture.reserve(&mut spare, SPARE);
        balancer.advance(now, &mut spare);
        capture.transmit(&mut spare).map_err(Failure::failed)?;
        burst.iter_mut().for_each(|frame| balancer.set_port(frame));
        if is_noted || history.is_some() {
            let mut trails: [Trail; BURST] = array::from_fn(Trail::new);
            let mut see = |frame: usize, step: Step| {
                if let Some(trail) = trails.get_mut(frame) {
                    trail.step(frame, step);
                }
            };
            balancer.process(now, &mut burst, &mut see);
            let sent = config.with_spec(|spec| {
                if let Some(history) = &mut history {
                    history.note((&config, spec), now, &burst, &trails, &balancer.stats());
                }
                let note = |frame: usize| {
                    let trail = trails.get(frame);
                    trail.map_or_else(String::new, |trail| comment(&config, spec, trail))
                };
                capture.transmit_noted(&mut burst, note)
            });
            sent.map_err(Failure::failed)?;
        } else {
            balancer.process(now, &mut burst, &mut ());
            capture.transmit(&mut burst).map_err(Failure::failed)?;
        }
        progress.set_position(capture.offset());
    }
    // What these last packets let go on, fragments that waited for their first one.
    loop {
        let mut spare = Burst::new();
        capture.reserve(&mut spare, SPARE);
        balancer.advance(capture.now(), &mut spare);
        let is_done = spare.iter().all(Frame::is_empty);
        capture.transmit(&mut spare).map_err(Failure::failed)?;
        if is_done {
            break;
        }
    }
    let elapsed = start.elapsed();
    progress.finish_and_clear();
    let capture = capture.finish().map_err(Failure::failed)?;

    let report =
        Report::new(&config, Tally::of(&balancer), &capture, elapsed).fill_cut(options.cut);
    let called = match report.is_for_no_vip() {
        true => called_most(&config, &options.input),
        false => Vec::new(),
    };
    let said = match options.report {
        ReportFormat::Text => {
            let damaged = damage.iter().map(|fault| format!("damaged: {fault}\n"));
            report.text()
                + &damaged.collect::<String>()
                + &called_text(&config, &called, &options.input)
        }
        ReportFormat::Json | ReportFormat::Html => {
            let mut json = report.json();
            json["damaged"] = damage.iter().map(String::as_str).collect();
            if !called.is_empty() {
                json["destinations"] = called.iter().map(destination_json).collect();
            }
            match &history {
                Some(history) => html::page(&json, history, &options.input),
                None => format!("{json:#}\n"),
            }
        }
    };
    let outputs = outputs.iter().map(|&(_, path)| path);
    if outputs.chain(options.passed.as_deref()).any(is_standard) {
        tell!("{said}");
    } else {
        say!("{said}")?;
    }
    let missing = history.as_ref().and_then(History::missing);
    match damage.as_slice() {
        [] if capture.received == 0 => {
            let why = if capture.left_out() == 0 {
                "it holds none"
            } else {
                "all packets were left out"
            };
            let names = options.input.join(", ");
            Err(Failure::failed(format!(
                "{names}: no packet was read: {why}"
            )))
        }
        [] => match missing {
            None => Ok(()),
            Some(number) => Err(Failure::failed(format!(
                "--packet {number}: {} has {} packets",
                options.input.join(", "),
                capture.received
            ))),
        },
        all => Err(Failure::failed(all.join("\n"))),
    }
}

/// Formats the fault of a capture, with the capture's name.
fn told(error: &CaptureError, inputs: &[String]) -> String {
    let input = match error {
        CaptureError::Read(error) => inputs.get(error.input),
        _ => None,
    };
    match input {
        Some(input) => format!("{input}: {error}"),
        None => format!("{}: {error}", inputs.join(", ")),
    }
}

/// Destinations that are listed.
const LISTED: usize = 10;

/// The services that most packets of captures are for. The captures are read again, so there are none of standard
/// input's.
fn called_most(config: &Config, inputs: &[String]) -> Vec<(Service, Count)> {
    let paths: Vec<&Path> = inputs.iter().map(|text| place(config, text).1).collect();
    if paths.iter().any(|path| is_standard(path)) {
        return Vec::new();
    }
    let services = Services::of(&paths).map(|services| services.by_packets());
    let mut services = services.unwrap_or_default();
    services.truncate(LISTED);
    services
}

fn called_text(config: &Config, called: &[(Service, Count)], inputs: &[String]) -> String {
    if called.is_empty() {
        return String::new();
    }
    let mut text =
        String::from("\nno packet was for a VIP of the configuration; most packets are for\n");
    for (service, count) in called {
        text += &format!(
            "  {:<44} {:>12} packets\n",
            service.to_string(),
            count.packets
        );
    }
    let paths = inputs
        .iter()
        .map(|text| place(config, text).1.display().to_string());
    let paths: Vec<String> = paths.collect();
    text + &format!(
        "slb init --from {} writes a configuration to begin with\n",
        paths.join(" --from ")
    )
}

fn destination_json((service, count): &(Service, Count)) -> serde_json::Value {
    serde_json::json!({
        "protocol": service.protocol_name(),
        "address": service.address.to_string(),
        "port": service.port,
        "packets": count.packets,
        "flows": count.flows,
    })
}

/// Opens the captures that options name, each at its port; returns their size too.
pub(crate) fn inputs(
    config: &Config,
    options: &[String],
) -> Result<(Vec<(PortId, Reader)>, u64), Failure> {
    let mut readers = Vec::new();
    let mut size = 0;
    let standard = options
        .iter()
        .filter(|text| is_standard(place(config, text).1));
    if standard.count() > 1 {
        return Err(Failure::usage(
            "--in -: standard input holds one capture, but is named twice",
        ));
    }
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

/// Returns the port of a name: a proxy's own, the vm's of a host agent's backend, or a port number.
pub(crate) fn port_named(config: &Config, name: &str) -> Option<PortId> {
    let number = name.parse().ok().map(PortId);
    config
        .ports
        .by_name(name)
        .filter(|_| config.node.role == Role::Proxy)
        .or_else(|| config.port_of(name))
        .or(number)
}

/// Where packets come from that are of no port by name.
pub(crate) fn first_frontend(config: &Config) -> PortId {
    let all = (0..).map(PortId).zip(&config.ports.all);
    let mut frontends = all.filter(|(_, port)| port.kind == PortKind::Frontend);
    frontends.next().map_or(PortId(0), |(port, _)| port)
}

/// Opens a capture; returns its size too.
pub(crate) fn open(path: &Path) -> Result<(Reader, u64), Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", path.display()));
    let unreadable = |error: std::io::Error| failed(&format_args!("cannot be read: {error}"));
    let file = if is_standard(path) {
        let standard = std::io::stdin().as_fd().try_clone_to_owned();
        File::from(standard.map_err(unreadable)?)
    } else {
        open_file(path).map_err(unreadable)?
    };
    let size = file.metadata().map_err(unreadable)?.len();
    let reader = Reader::new(file).map_err(|error| failed(&error))?;
    Ok((reader, size))
}

/// The files to write: of each `--out`, then of `--passed`.
fn create_outputs(
    config: &Config,
    options: &ReplayOptions,
    outputs: &[(Option<PortId>, &Path)],
) -> Result<Vec<File>, Failure> {
    let inputs = options.input.iter().map(|text| place(config, text).1);
    let read: Vec<&Path> = inputs.chain([options.config.path()]).collect();
    let outputs = outputs.iter().map(|&(_, path)| ("--out", path));
    let passed = options
        .passed
        .iter()
        .map(|path| ("--passed", path.as_path()));
    let outputs: Vec<Output<'_>> = outputs.chain(passed).collect();
    create_all(&read, &outputs, Content::Capture)
}

fn writer(path: &Path, file: File) -> Result<Writer<BufWriter<File>>, Failure> {
    Writer::new(BufWriter::new(file), FileFormat::of(path))
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

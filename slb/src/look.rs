//! `slb drops`, `slb capture` and `slb config`: a look at a running balancer.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use slb_core::DropReason;
use slb_io_pcap::Format;

use crate::Failure;
use crate::ask::{Answer, Line};
use crate::cli::{CaptureOptions, DropsOptions, RunningConfigOptions};
use crate::output::{self, Content, Prepared, is_standard};
use crate::report::counted;
use crate::status::place;

/// Longest wait of an interrupted capture for the balancer's counts.
const TO_END: Duration = Duration::from_secs(3);

pub(crate) fn config(options: &RunningConfigOptions) -> Result<(), Failure> {
    let path = place(options.socket.as_deref())?;
    let mut answer = Answer::to(&path, &json!({ "ask": "config" }))?;
    let Line::Item(line) = answer.next()? else {
        return Err(Failure::failed("the balancer has no configuration to show"));
    };
    if options.json {
        say!("{line}")?;
        return Ok(());
    }
    let config: Value = serde_json::from_str(&line).map_err(Failure::failed)?;
    let differs = match config["is_as_on_disk"] {
        Value::Bool(true) => "",
        Value::Bool(false) => "; the file has changed since",
        _ => "; the file cannot be read now",
    };
    say_line!(
        "# {} of {}, read {:.0} s ago, generation {}{differs}",
        config["role"].as_str().unwrap_or_default(),
        config["name"].as_str().unwrap_or_default(),
        config["age"].as_f64().unwrap_or_default(),
        config["generation"],
    )?;
    say!("{}", config["text"].as_str().unwrap_or_default())?;
    Ok(())
}

pub(crate) fn drops(options: &DropsOptions) -> Result<(), Failure> {
    let path = place(options.socket.as_deref())?;
    let mut answer = Answer::to(&path, &json!({ "ask": "drops" }))?;
    let mut all: Vec<(String, Value)> = Vec::new();
    while let Line::Item(line) = answer.next()? {
        let drop: Value = serde_json::from_str(&line).map_err(Failure::failed)?;
        let reason = drop["reason"].as_str().unwrap_or_default();
        if options.reason.is_empty() || options.reason.iter().any(|wanted| wanted == reason) {
            all.push((line, drop));
        }
    }
    if options.json {
        return all.iter().try_for_each(|(line, _)| say!("{line}"));
    }
    say!("{}", drops_text(&all))?;
    Ok(())
}

/// The drops of each reason under its description, the latest first.
fn drops_text(all: &[(String, Value)]) -> String {
    let mut out = String::new();
    for reason in DropReason::ALL {
        let mut own = all
            .iter()
            .filter(|(_, drop)| drop["reason"] == reason.name())
            .peekable();
        if own.peek().is_none() {
            continue;
        }
        out += &format!("{reason}: {}\n", reason.description());
        for (_, drop) in own {
            if let Some(packets) = drop["packets"].as_u64() {
                out += &format!(
                    "  {} in all, which only the device saw\n",
                    counted(packets, "packet")
                );
                continue;
            }
            let packet = match drop["packet"].as_str() {
                Some(packet) => packet.to_owned(),
                None => format!("bytes {}", drop["bytes"].as_str().unwrap_or_default()),
            };
            out += &format!(
                "  {:>9.1} s ago  port {}  {} bytes  {packet}\n",
                drop["age"].as_f64().unwrap_or_default(),
                drop["port"].as_str().unwrap_or_default(),
                drop["length"],
            );
        }
    }
    out
}

pub(crate) fn capture(options: &CaptureOptions) -> Result<(), Failure> {
    let path = place(options.socket.as_deref())?;
    let mut ends: Vec<&str> = Vec::new();
    ends.extend(options.client.as_deref());
    ends.extend(options.vip.as_deref());
    let mut question = json!({ "ask": "capture", "snaplen": options.snaplen });
    if let [protocol, a, b] = &options.tuple[..] {
        ends.extend([a.as_str(), b.as_str()]);
        question["protocol"] = protocol.as_str().into();
    }
    question["end"] = ends.into();
    question["verdict"] = options.verdict.clone().into();
    question["reason"] = options.reason.clone().into();
    for (key, value) in [
        ("sample", options.sample),
        ("limit_rate", options.limit_rate),
        ("size", options.size),
        ("packets", options.packets),
    ] {
        if let Some(value) = value {
            question[key] = value.into();
        }
    }
    if let Some(seconds) = options.seconds {
        question["seconds"] = seconds.into();
    }
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let registered = signal_hook::flag::register(signal, Arc::clone(&is_over));
        registered.map_err(Failure::failed)?;
    }
    // There is one place for a capture, so one that cannot be written is not asked for; and a question that is
    // refused leaves the file as it was.
    let file = Prepared::open(("--out", &options.out), Content::Capture)?;
    let mut answer = Answer::to(&path, &question)?;
    let mut first = Some(answer.next()?);
    let file = file.begin().map_err(|error| unwritten(options, error))?;
    // It holds others' packets, as the socket does that they come from.
    if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        file.set_permissions(Permissions::from_mode(0o600))
            .map_err(Failure::failed)?;
    }
    let mut out = BufWriter::with_capacity(1 << 16, file);
    let mut asked: Option<Instant> = None;
    let end = loop {
        if is_over.load(Ordering::Relaxed) {
            match asked {
                None if answer.end().is_ok() => asked = Some(Instant::now()),
                Some(asked) if asked.elapsed() < TO_END => {}
                _ => break None,
            }
        }
        let line = match first.take() {
            Some(line) => line,
            None => answer.next_or_beat()?,
        };
        match line {
            Line::Item(line) => pass_on(&mut answer, &line, &mut out, options)?,
            Line::Beat => out.flush().map_err(|error| unwritten(options, error))?,
            Line::End(end) => break Some(end),
        }
    };
    out.flush().map_err(|error| unwritten(options, error))?;
    let mut said = match end {
        Some(end) => counts(&end),
        None => "interrupted; the balancer did not say how many copies were lost".to_owned(),
    };
    if is_standard(&options.out) {
        tell_line!("{said}");
        return Ok(());
    }
    if Format::of(&options.out) != Format::PcapNg {
        said += "; it is in pcapng, whatever its name says";
    }
    say_line!("{}: {said}", options.out.display())
}

/// The failure of a capture whose file cannot be written.
fn unwritten(options: &CaptureOptions, error: io::Error) -> Failure {
    if is_standard(&options.out) {
        return output::unwritten(error);
    }
    Failure::failed(format!("--out {}: {error}", options.out.display()))
}

/// The last line of a capture in words.
fn counts(end: &Value) -> String {
    let mut said = format!(
        "{} in {:.1} s, {} bytes",
        counted(end["packets"].as_u64().unwrap_or_default(), "packet"),
        end["seconds"].as_f64().unwrap_or_default(),
        end["bytes"]
    );
    for (key, what) in [
        ("lost", "copies lost: the capture could not keep up"),
        ("above_rate", "packets above --limit-rate"),
    ] {
        if end[key] != json!(0) {
            said += &format!("; {} {what}", end[key]);
        }
    }
    said
}

/// Writes the bytes that a line announces.
fn pass_on(
    answer: &mut Answer,
    line: &str,
    out: &mut BufWriter<File>,
    options: &CaptureOptions,
) -> Result<(), Failure> {
    let block: Value = serde_json::from_str(line).map_err(Failure::failed)?;
    let len = block["bytes"].as_u64();
    let len = len.ok_or_else(|| Failure::failed(format!("expected a block, got {line}")))?;
    let mut bytes = answer.bytes(len);
    let copied = io::copy(&mut bytes, out).map_err(|error| unwritten(options, error))?;
    match copied == len {
        true => Ok(()),
        false => Err(Failure::failed(
            "the balancer closed the connection before the end",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_stand_under_their_reason() {
        let drop = |reason: &str, packet: Value, age: f64| {
            let drop = json!({
                "age": age, "reason": reason, "port": "0", "length": 54, "packet": packet, "bytes": "0a0b",
            });
            (String::new(), drop)
        };
        let all = [
            drop(
                "source_limit",
                "tcp 192.0.2.1:1 > 20.20.20.100:80".into(),
                0.25,
            ),
            drop("no_rule", "tcp 192.0.2.1:1 > 20.20.20.100:81".into(), 1.0),
            drop("no_rule", Value::Null, 61.0),
        ];
        let text = drops_text(&all);
        let lines: Vec<&str> = text.lines().collect();
        let [first, one, other, second, last] = lines[..] else {
            panic!("{text}");
        };
        assert!(
            first.starts_with("no_rule: ") && second.starts_with("source_limit: "),
            "{text}"
        );
        assert_eq!(
            one,
            "        1.0 s ago  port 0  54 bytes  tcp 192.0.2.1:1 > 20.20.20.100:81"
        );
        assert_eq!(other, "       61.0 s ago  port 0  54 bytes  bytes 0a0b");
        assert_eq!(
            last,
            "        0.2 s ago  port 0  54 bytes  tcp 192.0.2.1:1 > 20.20.20.100:80"
        );
    }
}

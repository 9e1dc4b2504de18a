//! Reading of probes.

use std::time::Duration;

use crate::config::{NoHealthyBackends, Probe, ProbeProtocol};
use crate::document::Section;

pub(super) fn read_probe(section: Section<'_>) -> Option<Probe> {
    let name = section.name("name");
    let choices = [
        ("tcp", ProbeProtocol::Tcp),
        ("http", ProbeProtocol::Http),
        ("https", ProbeProtocol::Https),
    ];
    let protocol = section.required_choice("protocol", &choices);
    let port = section.required_integer("port", 1..=65_535);
    let path = section.text("path");
    let host = section.text("host");
    let is_tcp = matches!(protocol, Some((ProbeProtocol::Tcp, _)));
    for (field, value) in [("path", &path), ("host", &host)] {
        let Some((text, span)) = value else { continue };
        let is_plain = !text.is_empty() && text.bytes().all(|byte| (0x21..0x7f).contains(&byte));
        if is_tcp {
            section.fault(span, field, "is for \"http\" and \"https\"");
        } else if field == "path" && !text.starts_with('/') {
            let message = format!("expected one that begins with /, got {text:?}");
            section.fault(span, field, message);
        } else if !is_plain {
            let message = format!("expected printable ASCII without spaces, got {text:?}");
            section.fault(span, field, message);
        }
    }
    let is_https = matches!(protocol, Some((ProbeProtocol::Https, _)));
    let verify_certificate = section.boolean("verify_certificate", true);
    if section.has("verify_certificate") && !is_https && protocol.is_some() {
        section.fault(section.span(), "verify_certificate", "is for \"https\"");
    }
    let seconds = Duration::from_secs;
    let interval = section.duration("interval", seconds(5)..=seconds(300), seconds(15));
    let usual = interval.min(seconds(5));
    let timeout = section.duration("timeout", seconds(1)..=interval, usual);
    let threshold = section.number("threshold", 1..=100, 2) as u32;
    let choices = [
        ("refuse", NoHealthyBackends::Refuse),
        ("use-all", NoHealthyBackends::UseAll),
    ];
    let refuse = NoHealthyBackends::Refuse;
    let no_healthy_backends = section.choice("no_healthy_backends", &choices, refuse);
    let span = section.span().clone();
    section.finish();
    Some(Probe {
        name: name?.0,
        protocol: protocol?.0,
        port: port?.0 as u16,
        path: path.map_or_else(|| "/".to_owned(), |(path, _)| path),
        interval,
        timeout,
        threshold,
        host: host.map(|(host, _)| host),
        verify_certificate,
        no_healthy_backends,
        span,
    })
}

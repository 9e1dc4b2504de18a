//! `slb explain --live`: asks a running balancer what it would do with a packet.

use serde_json::json;
use slb_core::{Burst, PacketIo, PortId};
use slb_io_pcap::{Capture, memory_for};

use super::cut_text;
use crate::Failure;
use crate::ask::{Answer, Line};
use crate::cli::ExplainOptions;
use crate::replay::open;
use crate::status::place;

pub(super) fn run(options: &ExplainOptions) -> Result<(), Failure> {
    let expected = || {
        Failure::usage(
            "explain --live: expected PROTOCOL SOURCE DESTINATION or --in FILE --packet N, and no configuration: the balancer's own is used",
        )
    };
    let tuple = options.tuple().ok_or_else(expected)?;
    let mut question = json!({ "ask": "explain", "tuple": tuple, "from": options.from });
    if let Some(wanted) = options.packet {
        let [file] = &options.input[..] else {
            return Err(expected());
        };
        let (title, bytes) = packet(file, wanted)?;
        question["packet"] = bytes.into();
        say_line!("{title}")?;
    }
    let path = place(options.socket.as_deref())?;
    let mut answer = Answer::to(&path, &question)?;
    while let Line::Item(line) = answer.next()? {
        let text: serde_json::Value = serde_json::from_str(&line).map_err(Failure::failed)?;
        say!("{}", text["text"].as_str().unwrap_or_default())?;
    }
    Ok(())
}

/// Returns the bytes of a captured packet in hexadecimal, with zeros for bytes that a snap length
/// cut off, and a title that mentions these.
fn packet(file: &str, wanted: u64) -> Result<(String, String), Failure> {
    let (reader, _) = open(file.as_ref())?;
    let mut memory = vec![0; memory_for(64)];
    let capture: Capture<'_, Vec<u8>> = Capture::of_ports(vec![(PortId(0), reader)], &mut memory);
    let mut capture = capture.fill_cut();
    let mut burst = Burst::new();
    let mut seen = 0;
    while !capture.is_at_end() {
        capture
            .receive(&mut burst)
            .map_err(|error| Failure::failed(format!("{file}: {error}")))?;
        for frame in burst.iter() {
            seen += 1;
            if seen == wanted {
                let cut = cut_text(capture.filled(frame), frame.len());
                let title = format!("packet {wanted} of {file}, {} bytes{cut}", frame.len());
                let bytes = frame.bytes().iter();
                return Ok((title, bytes.map(|byte| format!("{byte:02x}")).collect()));
            }
        }
        capture.transmit(&mut burst).map_err(Failure::failed)?;
    }
    Err(Failure::usage(format!(
        "packet {wanted} of {file}: the capture has {seen} packets"
    )))
}

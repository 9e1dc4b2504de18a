//! The headers of an IPv4 packet, and the checksum that is verified with them.

use std::hint::black_box;

use slb_core::packet::{Packet, Parsed};
use slb_core::wire::ipv4;

use super::mux::{Case, FRAMES, Frames};
use crate::Options;
use crate::report::{Report, Sample};

pub(super) fn measure(options: &Options, report: &mut Report) {
    report.group("the headers of an IPv4 packet, for each packet");
    let case = Case::FLOOR;
    let mut memory = vec![0; case.stride() * FRAMES];
    let frames = Frames::new(case).write(&mut memory, false);
    let name = "headers, IPv4 TCP, all read";
    if report.wants(name) {
        let sample = Sample::measure(options.time(), FRAMES, || {
            for frame in &frames {
                let parsed = Packet::parse(black_box(frame.bytes()));
                black_box(matches!(parsed, Parsed::Ip(_)));
            }
        });
        report.show(name, sample, None);
    }
    let name = "headers, IPv4, checksum alone";
    if report.wants(name) {
        let sample = Sample::measure(options.time(), FRAMES, || {
            for frame in &frames {
                let header = black_box(frame.bytes()).get(14..);
                let header = header.and_then(|header| header.first_chunk());
                black_box(header.is_some_and(ipv4::checksum_is_right));
            }
        });
        report.show(name, sample, None);
    }
}

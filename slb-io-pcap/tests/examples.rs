//! The program of `examples/` runs, so that what a reader copies works.

use std::path::Path;
use std::process::Command;

#[path = "../examples/filter.rs"]
mod filter;

/// The times and lengths of packets that tshark's filter leaves; `None` where tshark is not installed.
fn tshark(file: &Path, filter: &str) -> Option<String> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(["-Y", filter]);
    command.args(["-T", "fields", "-e", "frame.time_epoch", "-e", "frame.len"]);
    match command.output() {
        Ok(output) => Some(String::from_utf8(output.stdout).unwrap()),
        Err(_) => {
            assert!(std::env::var_os("SLB_REQUIRE_ALL").is_none(), "no tshark");
            eprintln!("SKIPPED: tshark is not installed");
            None
        }
    }
}

#[test]
fn a_filtered_capture_has_the_packets_that_tshark_filters() {
    let input = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/sample.pcap");
    let output = std::env::temp_dir().join(format!("slb-filter-{}.pcapng", std::process::id()));
    for (address, expected) in [("20.20.20.100", "ip"), ("2001:db8:20::100", "ipv6")] {
        let (copied, all) = filter::filter(&input, address.parse().unwrap(), &output).unwrap();
        assert!(0 < copied && copied < all, "{copied} of {all}");
        let wanted = tshark(&input, &format!("{expected}.addr == {address}"));
        let written = tshark(&output, "frame");
        std::fs::remove_file(&output).unwrap();
        if let (Some(wanted), Some(written)) = (wanted, written) {
            assert_eq!(wanted.lines().count() as u64, copied);
            assert_eq!(wanted, written);
        }
    }
}

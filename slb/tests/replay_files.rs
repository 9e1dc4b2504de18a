//! `slb replay` and `slb generate` with files of every kind, and with pipes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const SLB: &str = env!("CARGO_BIN_EXE_slb");

fn example(name: &str) -> String {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    examples.join(name).display().to_string()
}

struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

fn slb(arguments: &[&str], input: Option<&Path>) -> Output {
    let mut command = Command::new(SLB);
    command.args(arguments);
    match input {
        Some(path) => command.stdin(fs::File::open(path).expect("the input")),
        None => command.stdin(Stdio::null()),
    };
    command.output().expect("it runs")
}

fn replay(input: &str, more: &[&str]) -> Output {
    let config = example("web.toml");
    let arguments = ["replay", "--config", &config, "--in", input];
    slb(&[&arguments[..], more].concat(), None)
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// A pcap file of one kind of link, a record for each packet with its length on the wire.
fn pcap(link: u32, packets: &[(&[u8], usize)]) -> Vec<u8> {
    let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
    file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0]);
    file.extend(link.to_le_bytes());
    for (data, original) in packets {
        file.extend(1_700_000_000_u32.to_le_bytes());
        file.extend(0_u32.to_le_bytes());
        file.extend((data.len() as u32).to_le_bytes());
        file.extend((*original as u32).to_le_bytes());
        file.extend(*data);
    }
    file
}

#[test]
fn standard_input_and_output_are_captures_too() {
    let desk = Desk::new();
    let sample = example("sample.pcap");
    let (config, out) = (example("web.toml"), desk.text("out.pcap"));
    assert!(replay(&sample, &["--out", &out]).status.success());
    let expected = fs::read(&out).expect("written");
    let arguments = ["replay", "--config", &config, "--in", "-", "--out", "-"];
    let piped = slb(&arguments, Some(Path::new(&sample)));
    assert!(piped.status.success(), "{:?}", said(&piped));
    assert!(piped.stdout == expected);
    let (_, report) = said(&piped);
    assert!(
        report.contains("forwarded") && report.contains("packets"),
        "{report}"
    );
    // And packed ones.
    let gzip = Command::new("gzip")
        .args(["-c", &sample])
        .output()
        .expect("gzip");
    fs::write(desk.path("in.pcap.gz"), gzip.stdout).expect("written");
    let packed = replay(&desk.text("in.pcap.gz"), &["--out", "-"]);
    assert!(packed.status.success() && packed.stdout == expected);
    // Each holds one capture.
    for (more, expected) in [
        (
            &["--in", "-", "--in", "-"][..],
            "--in -: standard input holds one capture",
        ),
        (
            &["--in", &sample, "--out", "-", "--passed", "-"],
            "--passed -: standard output takes one capture",
        ),
    ] {
        let refused = slb(&[&["replay", "--config", &config][..], more].concat(), None);
        let (_, error) = said(&refused);
        assert_eq!(refused.status.code(), Some(2), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn generate_writes_to_a_pipe() {
    let desk = Desk::new();
    let arguments = ["generate", "--sessions", "5", "--out"];
    let made = slb(&[&arguments[..], &["-"]].concat(), None);
    assert!(made.status.success());
    assert!(said(&made).1.contains("packets"), "{:?}", said(&made).1);
    let path = desk.text("made.pcap");
    assert!(
        slb(&[&arguments[..], &[&path]].concat(), None)
            .status
            .success()
    );
    assert!(fs::read(&path).expect("written") == made.stdout);
}

#[test]
fn what_cannot_be_read_is_named() {
    let desk = Desk::new();
    for (input, expected) in [
        (
            desk.text(""),
            "cannot be read: expected a regular file, got a directory",
        ),
        (
            desk.text("none.pcap"),
            "cannot be read: No such file or directory",
        ),
        (example("web.toml"), "expected a pcap or pcapng file"),
    ] {
        let output = replay(&input, &[]);
        let (_, error) = said(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains(&input) && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn a_capture_of_which_nothing_is_read_is_a_failure() {
    let desk = Desk::new();
    for (name, file, why, line) in [
        (
            "nflog.pcap",
            pcap(239, &[(&[0; 40], 40), (&[0; 40], 40)]),
            "no packet was read: all packets were left out",
            "left out: 2 packets of link type 239 (NFLOG), which is not supported",
        ),
        (
            "raw.pcap",
            pcap(12, &[(&[0; 40], 40)]),
            "no packet was read: all packets were left out",
            "left out: 1 packet of link type 12 (raw IP), which holds no IP packet",
        ),
        (
            "empty.pcap",
            pcap(1, &[]),
            "no packet was read: it holds none",
            "",
        ),
    ] {
        fs::write(desk.path(name), file).expect("written");
        let input = desk.text(name);
        let output = replay(&input, &[]);
        let (report, error) = said(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {error}");
        assert!(
            error.contains(&format!("{input}: {why}")),
            "{name}: {error}"
        );
        assert!(report.contains(line), "{name}: {report}");
    }
    let output = replay(&desk.text("nflog.pcap"), &["--report", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["left_out"], 2);
    let types =
        serde_json::json!([{ "link_type": 239, "name": "NFLOG", "packets": 2, "is_read": false }]);
    assert_eq!(report["left_out_link_types"], types);
}

#[test]
fn packets_that_a_snap_length_cut_are_replayed_by_their_headers() {
    let desk = Desk::new();
    // The sample's packets, after their TCP headers cut: those that had data.
    let sample = fs::read(example("sample.pcap")).expect("the sample");
    let (mut at, mut packets, mut with_data) = (24, Vec::new(), 0);
    while let Some(header) = sample.get(at..at + 16) {
        let len = u32::from_le_bytes(header[8..12].try_into().expect("four")) as usize;
        let data = &sample[at + 16..at + 16 + len];
        let is_four = data[12..14] == [8, 0];
        let kept = if is_four { 54 } else { 74 };
        with_data += u64::from(len > kept);
        packets.push((&data[..len.min(kept)], len));
        at += 16 + len;
    }
    assert!(with_data > 10);
    fs::write(desk.path("cut.pcap"), pcap(1, &packets)).expect("written");
    let counts = |more: &[&str]| {
        let output = replay(
            &desk.text("cut.pcap"),
            &[&["--report", "json"], more].concat(),
        );
        assert!(output.status.success(), "{:?}", said(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let whole = replay(&example("sample.pcap"), &["--report", "json"]);
    let whole: serde_json::Value = serde_json::from_slice(&whole.stdout).expect("JSON");
    let without = counts(&[]);
    assert_eq!(without["cut"], with_data);
    assert_eq!(without["cut_filled"], false);
    assert!(without["forwarded"]["packets"].as_u64() < whole["forwarded"]["packets"].as_u64());
    let out = desk.text("out.pcap");
    let with = counts(&["--cut", "--out", &out]);
    assert_eq!(with["cut_filled"], true);
    for member in ["forwarded", "received", "dropped", "backends"] {
        assert_eq!(with[member], whole[member], "{member}");
    }
    // What is written ends where it was cut, and says how long it was.
    let written = fs::read(&out).expect("written");
    let record = |at: usize| u32::from_le_bytes(written[at..at + 4].try_into().expect("four"));
    let (mut at, mut cut) = (24, 0);
    while at < written.len() {
        let (captured, original) = (record(at + 8), record(at + 12));
        cut += u64::from(captured < original);
        at += 16 + captured as usize;
    }
    assert!(cut > 10 && cut <= with_data, "{cut} of {with_data}");
    let (text, _) = said(&replay(&desk.text("cut.pcap"), &[]));
    let hint = "dropped if the missing bytes are needed; --cut processes them by their headers";
    assert!(
        text.contains(&format!(
            "cut by a snap length: {with_data} packets, {hint}"
        )),
        "{text}"
    );
    let (text, _) = said(&replay(&desk.text("cut.pcap"), &["--cut"]));
    assert!(
        text.contains("processed by their headers, with zeros for the missing bytes"),
        "{text}"
    );
}

#[test]
fn packets_of_a_time_that_pcap_does_not_have_are_said() {
    use slb_core::Instant;
    use slb_io_pcap::{Format, Writer};
    let desk = Desk::new();
    // The sample's first packet, in 2107.
    let sample = fs::read(example("sample.pcap")).expect("the sample");
    let len = u32::from_le_bytes(sample[32..36].try_into().expect("four")) as usize;
    let mut writer = Writer::new(Vec::new(), Format::PcapNg).expect("memory");
    let at = Instant::from_nanos(4_323_459_661_000_000_000);
    writer
        .write(at, &sample[40..40 + len])
        .expect("pcapng has the time");
    fs::write(desk.path("late.pcapng"), writer.finish().expect("memory")).expect("written");
    for (name, expected) in [("out.pcap", 1), ("out.pcapng", 0)] {
        let more = ["--out", &desk.text(name), "--report", "json"].map(str::to_owned);
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let output = replay(&desk.text("late.pcapng"), &more);
        assert!(output.status.success(), "{:?}", said(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["forwarded"]["packets"], 1);
        assert_eq!(report["not_written_without_time"], expected, "{name}");
    }
    let (text, _) = said(&replay(
        &desk.text("late.pcapng"),
        &["--out", &desk.text("again.pcap")],
    ));
    assert!(
        text.contains("not written: 1 packet after 2106-02-07"),
        "{text}"
    );
}

/// 200 MB of packets, in less than that of address space.
#[test]
fn generate_needs_no_memory_for_what_it_has_written() {
    let script = format!(
        "ulimit -v 150000 && exec {SLB} generate --sessions 60000 --packets 2 --size 1000 --out /dev/null"
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .output()
        .expect("it runs");
    let (text, error) = said(&output);
    assert!(output.status.success(), "{error}");
    assert_eq!(text, "/dev/null: 360000 packets\n");
}

#[test]
fn packets_in_pcapng_say_in_a_comment_what_was_done_with_them() {
    let desk = Desk::new();
    let (sent, passed) = (desk.text("sent.pcapng"), desk.text("passed.pcapng"));
    let output = replay(
        &example("sample.pcap"),
        &["--out", &sent, "--passed", &passed],
    );
    assert!(output.status.success(), "{output:?}");
    let plain = desk.text("sent.pcap");
    let output = replay(&example("sample.pcap"), &["--out", &plain]);
    assert!(output.status.success(), "{output:?}");
    let fields = |file: &str, field: &str| {
        let mut tshark = Command::new("tshark");
        tshark.args(["-T", "fields", "-e", field, "-r", file]);
        let shown = tshark.output().ok()?;
        let (fields, complaints) = said(&shown);
        assert!(shown.status.success(), "{complaints}");
        let fields = fields.lines().map(str::to_owned);
        Some(fields.collect::<Vec<String>>())
    };
    let Some(comments) = fields(&sent, "frame.comment") else {
        println!("SKIPPED: tshark is not installed");
        assert!(std::env::var_os("SLB_REQUIRE_ALL").is_none());
        return;
    };
    // The same packets as without comments.
    assert_eq!(fields(&sent, "frame.len"), fields(&plain, "frame.len"));
    for comment in comments {
        assert!(comment.starts_with("mux: rule "), "{comment}");
        assert!(comment.contains("; backend \"vm"), "{comment}");
        assert!(
            comment.ends_with("; verdict forward, out of port 0"),
            "{comment}"
        );
    }
    let comments = fields(&passed, "frame.comment").expect("tshark is installed");
    assert!(!comments.is_empty());
    for comment in comments {
        assert!(comment.ends_with("; verdict pass, untouched"), "{comment}");
    }
}

/// A packed capture that is cut off, or that other bytes follow: its whole packets are replayed, the rest is told in text
/// and JSON, each file by its name, and the exit status is 1.
#[test]
fn packed_captures_that_do_not_end_well_are_told_and_replayed() {
    let desk = Desk::new();
    let plain = desk.text("plain.pcap");
    fs::write(&plain, pcap(1, &[(&[7; 60], 60), (&[8; 60], 60)])).expect("a file");
    for program in ["gzip", "zstd"] {
        let Ok(packed) = Command::new(program).args(["-c", &plain]).output() else {
            let is_required = std::env::var_os("SLB_REQUIRE_ALL").is_some();
            assert!(!is_required, "{program} is not installed");
            println!("SKIPPED: {program} is not installed");
            continue;
        };
        let packed = packed.stdout;
        let (behind, cut) = (desk.text("behind"), desk.text("cut"));
        fs::write(&behind, [&packed, &b"abc"[..]].concat()).expect("a file");
        fs::write(&cut, &packed[..packed.len() - 2]).expect("a file");
        let told = [
            format!(
                "{behind}: after packet 2: expected {program} data up to the end of the file, got other bytes from \
                 byte {} on, which are left out",
                packed.len()
            ),
            format!("{cut}: after packet 2: the {program} data ends too early"),
        ];
        for (file, told) in [&behind, &cut].into_iter().zip(&told) {
            let output = replay(file, &[]);
            let (text, error) = said(&output);
            assert_eq!(output.status.code(), Some(1));
            assert!(text.contains(&format!("damaged: {told}\n")), "{text}");
            assert_eq!(error, format!("slb: {told}\n"));
        }
        // Of several, each is told.
        let output = replay(&behind, &["--in", &cut, "--report", "json"]);
        let (text, _) = said(&output);
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(report["received"]["packets"], 4);
        let mut damaged: Vec<&str> = report["damaged"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(serde_json::Value::as_str)
            .collect();
        damaged.sort_unstable();
        assert_eq!(damaged, told);
        assert_eq!(output.status.code(), Some(1));
    }
    let whole = replay(&plain, &["--report", "json"]);
    let report: serde_json::Value = serde_json::from_str(&said(&whole).0).expect("JSON");
    assert_eq!(report["damaged"], serde_json::json!([]));
    assert!(whole.status.success());
}

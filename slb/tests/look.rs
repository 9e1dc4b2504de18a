//! A look at running balancers: the page `docs/operate.md`, whose commands print what it says, and a capture of a
//! mux under load that tshark reads without a complaint.
//!
//! A mux, a proxy and a host agent run on one machine, over TUN devices:
//! ```text
//!  curl ──► 20.20.20.100 ──► slb0 ─ mux       198.51.100.10 is the client
//!  curl ──► 10.99.0.80 ────► slb1 ─ proxy ─ slb2 ──► 10.99.1.1:8001
//!  vm ──► vm1 ─ host agent ─ slb3
//! ```
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::world::lacking;

/// The setup for the commands of the page, run by bash in namespaces of its own.
const SETUP: &str = r#"
set -e
mount -t tmpfs none /run
mkdir /run/netns
cd /run
ip link set lo up
sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
cat >web.toml <<'END'
[node]
role = "mux"
underlay = "10.9.0.11"

[[frontend]]
name = "site"
address = "20.20.20.100"

[[pool]]
name = "webs"
vni = 5001
backends = [
  { name = "web1", address = "10.1.0.1", host = "10.9.0.101" },
  { name = "web2", address = "10.1.0.2", host = "10.9.0.102" },
]

[[rule]]
name = "http"
frontend = "site"
pool = "webs"
protocol = "tcp"
frontend_port = 80
END
cat >proxy.toml <<'END'
[node]
role = "proxy"

[[port]]
name = "clients"
type = "frontend"

[[port]]
name = "servers"
type = "backend"

[[frontend]]
name = "web"
address = "10.99.0.80"

[[pool]]
name = "web-servers"
backends = [{ name = "one", address = "10.99.1.1", backend_port = 8001 }]

[[rule]]
name = "http"
frontend = "web"
pool = "web-servers"
protocol = "tcp"
frontend_port = 80
source_nat = "10.99.2.1"
END
cat >host.toml <<'END'
[node]
role = "host"
underlay = "10.9.0.101"
muxes = ["10.9.0.11"]

[[frontend]]
name = "out"
address = "20.20.20.200"

[[pool]]
name = "vms"
vni = 5001
backends = [{ name = "vm1", address = "10.10.1.11", host = "10.9.0.101", mac = "02:00:0a:0a:01:0b" }]

[[outbound_rule]]
name = "updates"
frontends = ["out"]
pool = "vms"
allocated_outbound_ports = 64
END
slb() { "$SLB" "$@"; }
tun() {
    ip tuntap add dev "$1" mode tun
    ip link set "$1" mtu 1600 up
}
for device in slb0 slb1 slb2 slb3; do tun $device; done
ip netns add vm
ip link add to-vm type veth peer name eth0 netns vm
ip tuntap add dev vm1 mode tap
ip link add bridge1 type bridge
ip link set bridge1 up
ip link set vm1 master bridge1 up
ip link set to-vm master bridge1 up
ip netns exec vm ethtool -K eth0 tx off gso off tso off >/dev/null
ip -n vm link set eth0 address 02:00:0a:0a:01:0b up
ip -n vm address add 10.10.1.11/24 dev eth0
ip -n vm route add default via 10.10.1.1
ip -n vm neighbour replace 10.10.1.1 lladdr 02:00:00:00:00:01 nud permanent dev eth0
ip address add 198.51.100.10/32 dev slb0
ip route add 20.20.20.100 dev slb0 src 198.51.100.10
ip route add 10.9.0.0/24 dev slb0
ip address add 10.99.1.1/32 dev lo
ip address add 10.99.2.254/32 dev slb1
ip route add 10.99.0.80/32 dev slb1
ip route add 10.99.2.1/32 dev slb2
python3 -m http.server --bind 10.99.1.1 8001 >/dev/null 2>&1 &
slb mux web.toml --io tun:slb0 >mux.out 2>mux.log &
slb proxy proxy.toml --io clients=tun:slb1 --io servers=tun:slb2 >proxy.out 2>proxy.log &
slb host host.toml --io 0=tun:slb3 --io 1=tap:vm1 >host.out 2>host.log &
for role in mux proxy host; do
    for try in $(seq 100); do
        if grep -q running $role.log && [ -S slb-$role.sock ]; then break; fi
        sleep 0.1
    done
    [ -S slb-$role.sock ] || { cat $role.log; exit 1; }
done
sleep 2
for port in 40001 40002 40003; do
    curl -s -m 0.3 --local-port $port http://20.20.20.100/ || true
done
curl -s -m 0.3 --local-port 40004 http://20.20.20.100:81/ || true
curl -s -m 5 --interface 10.99.2.254 --local-port 40011 http://10.99.0.80/web.toml >/dev/null || true
ip netns exec vm curl -s -m 0.3 --local-port 40021 http://203.0.113.7/ || true
"#;

/// Runs a script behind the setup.
fn run(script: &str) -> String {
    let mut shell = Command::new("unshare");
    shell.args([
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "bash",
        "-c",
    ]);
    shell.arg(format!("{SETUP}\n{script}"));
    shell.env("SLB", env!("CARGO_BIN_EXE_slb"));
    let output = shell.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    said
}

/// The words of a line, without numbers that are another's each time: times, sizes and counts.
fn words(line: &str) -> Vec<String> {
    let is_number = |word: &str| {
        let digits = word.trim_end_matches(['s', ',', ':']);
        !digits.is_empty()
            && digits
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    line.split_whitespace()
        .map(|word| if is_number(word) { "#" } else { word }.to_owned())
        .collect()
}

#[test]
#[ignore = "needs root"]
fn the_commands_of_the_page_print_what_it_says() {
    if let Some(why) = lacking(&["unshare", "mount", "ethtool", "tshark"]) {
        skip!("{why}");
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operate.md");
    let page = fs::read_to_string(page).unwrap();
    let mut blocks: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut parts = page.split("\n```").skip(1);
    while let Some(code) = parts.next() {
        let _ = parts.next();
        match code.split_once('\n') {
            Some(("sh", commands)) => blocks.push((commands, Vec::new())),
            Some(("text", lines)) => blocks.last_mut().unwrap().1 = lines.lines().collect(),
            _ => {}
        }
    }
    assert!(blocks.len() >= 9, "{} blocks", blocks.len());
    let mut script = String::new();
    for (number, (commands, _)) in blocks.iter().enumerate() {
        script += &format!("{commands}\necho '=== {number}'\n");
    }
    let said = run(&script);
    let mut said = said.as_str();
    for (number, (commands, lines)) in blocks.iter().enumerate() {
        let (own, rest) = said.split_once(&format!("=== {number}\n")).unwrap();
        said = rest;
        let own_words: Vec<Vec<String>> = own.lines().map(words).collect();
        for line in lines {
            let is_there = *line == "..." || own_words.contains(&words(line));
            assert!(is_there, "{commands}: {line:?} of:\n{own}");
        }
    }
}

/// A flood from many ports while a capture runs: tshark reads it whole, comments are right, and all packets have
/// come through.
#[test]
#[ignore = "needs root"]
fn a_capture_under_load_loses_no_packet_and_opens_in_tshark() {
    if let Some(why) = lacking(&["unshare", "mount", "ethtool", "tshark"]) {
        skip!("{why}");
    }
    const SENT: usize = 40_000;
    let script = r#"
# The kernel keeps what the mux has not read yet.
ip link set slb0 txqueuelen 50000
before=$(slb status --format json --socket /run/slb-mux.sock)
slb capture --socket /run/slb-mux.sock --out all.pcapng --seconds 8 >capture.out &
capture=$!
sleep 0.5
python3 - <<'END'
import socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(40000):
    if number % 20 == 0:
        time.sleep(0.001)
    # No rule takes UDP.
    sender.sendto(b"x" * 200, ("20.20.20.100", 80 + number % 2))
END
wait $capture
cat capture.out
slb status --format json --socket /run/slb-mux.sock >after.json
echo "$before" >before.json
python3 - <<'END'
import json
before, after = (json.load(open(name)) for name in ("before.json", "after.json"))
count = lambda status, path: status[path]["packets"]
print("received", count(after, "received") - count(before, "received"))
print("dropped", count(after, "dropped_total") - count(before, "dropped_total"))
END
tshark -r all.pcapng -T fields -e frame.comment 2>errors >shown || true
sed -i '/Running as user/d' errors
echo "errors $(wc -l <errors)"
cat errors
echo "shown $(wc -l <shown)"
echo "no_rule $(grep -c 'mux: .*verdict drop, no_rule: ' shown)"
"#;
    let said = run(script);
    println!("{said}");
    let number = |name: &str| -> usize {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        let digits = line.unwrap_or_else(|| panic!("{name}: {said}")).trim();
        digits
            .parse()
            .unwrap_or_else(|_| panic!("{name}: {digits}"))
    };
    assert!(number("received ") >= SENT, "no packet is lost: {said}");
    assert!(number("dropped ") >= SENT, "{said}");
    assert!(said.contains("errors 0"), "{said}");
    let lost = said.lines().find_map(|line| {
        let (_, rest) = line.split_once("; ")?;
        rest.split_once(" copies lost")
            .map(|(count, _)| count.parse::<usize>().unwrap())
    });
    let (shown, lost) = (number("shown "), lost.unwrap_or(0));
    assert!(shown + lost >= SENT, "{said}");
    assert!(number("no_rule ") + lost >= SENT, "{said}");
    assert!(shown > SENT / 100, "{said}");
}

#[test]
#[ignore = "needs root"]
fn a_slow_reader_is_told_what_it_lost_and_packets_have_the_port_they_came_by() {
    if let Some(why) = lacking(&["unshare", "mount", "ethtool", "tshark"]) {
        skip!("{why}");
    }
    let script = r#"
ip link set slb0 txqueuelen 50000
slb capture --socket /run/slb-mux.sock --out - --seconds 2 2>slow.out | (sleep 5; cat) >slow.pcapng &
slow=$!
sleep 0.5
python3 - <<'END'
import socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(40000):
    if number % 20 == 0:
        time.sleep(0.001)
    sender.sendto(b"x" * 200, ("20.20.20.100", 80))
END
wait $slow
cat slow.out
echo "shown $(tshark -r slow.pcapng -Y 'udp.dstport == 80' -T fields -e frame.comment 2>/dev/null | wc -l)"
slb capture --socket /run/slb-proxy.sock --out proxy.pcapng --seconds 2 >/dev/null &
capture=$!
sleep 0.5
curl -sS -m 2 http://10.99.0.80/ >/dev/null
wait $capture
echo "mode $(stat -c %a proxy.pcapng)"
tshark -r proxy.pcapng -Y 'tcp.flags.syn == 1 && tcp.flags.ack == 0' -T fields \
    -e frame.packet_flags_direction -e frame.interface_name 2>/dev/null | sed 's/^/SYN /'
tshark -r proxy.pcapng -Y 'tcp.flags.syn == 1 && tcp.flags.ack == 1' -T fields \
    -e frame.packet_flags_direction -e frame.interface_name 2>/dev/null | sed 's/^/ACK /'
"#;
    let said = run(script);
    println!("{said}");
    let line = said.lines().find(|line| line.contains(" copies lost"));
    let line = line.unwrap_or_else(|| panic!("no loss is said: {said}"));
    let lost = line.split_once("; ").unwrap().1.split_once(' ').unwrap().0;
    let shown = said.lines().find_map(|line| line.strip_prefix("shown "));
    let [lost, shown] = [lost, shown.unwrap()].map(|digits| digits.parse::<usize>().unwrap());
    assert!(shown > 0 && lost > 0, "{said}");
    // The capture ends while packets come, so it saw the most of them.
    assert!(lost + shown > 20_000, "{said}");
    assert!(said.contains("mode 600\n"), "{said}");
    let directions: Vec<Vec<String>> = said
        .lines()
        .filter(|line| line.starts_with("SYN") || line.starts_with("ACK"))
        .map(words)
        .collect();
    let expected = [
        ["SYN", "0x00000001", "clients"],
        ["SYN", "0x00000002", "servers"],
        ["ACK", "0x00000001", "servers"],
        ["ACK", "0x00000002", "clients"],
    ];
    assert_eq!(directions, expected, "{said}");
}

#[test]
#[ignore = "needs root"]
fn an_interrupted_capture_says_its_counts_and_long_packets_are_explained() {
    if let Some(why) = lacking(&["unshare", "mount", "ethtool", "tshark"]) {
        skip!("{why}");
    }
    let script = r#"
"$SLB" capture --socket /run/slb-mux.sock --out one.pcap >one.out 2>&1 &
capture=$!
sleep 0.5
curl -s -m 0.3 --local-port 40031 http://20.20.20.100/ || true
kill -INT $capture
wait $capture && echo "status 0"
cat one.out
"$SLB" capture --socket /run/slb-mux.sock --out two.pcapng --packets 1 >two.out 2>&1 &
capture=$!
sleep 0.5
curl -s -m 0.3 --local-port 40032 http://20.20.20.100/ || true
wait $capture && cat two.out
python3 - <<'END'
import struct
ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40028, 0, 0, 64, 6, 0, bytes([198, 51, 100, 10]), bytes([20, 20, 20, 100]))
total = sum(struct.unpack("!10H", ip))
total = (total & 0xffff) + (total >> 16)
ip = ip[:10] + struct.pack("!H", ~((total & 0xffff) + (total >> 16)) & 0xffff) + ip[12:]
tcp = struct.pack("!HHIIBBHHH", 40033, 80, 1, 0, 0x50, 2, 1000, 0, 0)
frame = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x03\x08\0" + ip + tcp + b"x" * 39988
def capture(kept):
    head = struct.pack("<IHHiIII", 0xa1b2c3d4, 2, 4, 0, 0, 262144, 1)
    return head + struct.pack("<IIII", 1, 0, kept, len(frame)) + frame[:kept]
open("long.pcap", "wb").write(capture(len(frame)))
open("cut.pcap", "wb").write(capture(60))
END
for file in long cut; do
    slb explain --live --socket /run/slb-mux.sock --in $file.pcap --packet 1 | sed "s/^/$file /"
done
ask() { printf '%s\n' "$1" | python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect("/run/slb-mux.sock")
s.sendall(sys.stdin.buffer.read())
print(s.recv(65536).decode().strip())'; }
ask '{"ask":"list","what":"flows","limit":"3"}'
ask '{"ask":"capture","end":5}'
ask '{"ask":"explain","tuple":"tcp"}'
ask '{"ask":"config","text":1}'
"#;
    let said = run(script);
    println!("{said}");
    let line = said.lines().find(|line| line.starts_with("one.pcap: "));
    let line = line.unwrap_or_else(|| panic!("no counts: {said}"));
    assert!(
        line.contains(" packets in ") && !line.starts_with("one.pcap: 0 "),
        "{said}"
    );
    assert!(
        line.ends_with("; it is in pcapng, whatever its name says"),
        "{said}"
    );
    assert!(said.contains("status 0\n"), "{said}");
    assert!(
        said.contains("two.pcapng: 1 packet in"),
        "the place is free again: {said}"
    );
    for expected in [
        "long packet 1 of long.pcap, 40042 bytes\n",
        "cut packet 1 of cut.pcap, 40042 bytes, of which the capture has 60: the others count as zeros\n",
        "limit: expected a whole number, got \\\"3\\\"",
        "end: expected a string or a list of strings, got 5",
        "config has no option \\\"text\\\"",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let parsed = said
        .lines()
        .filter(|line| line.contains("198.51.100.10:40033"));
    assert_eq!(parsed.count(), 2, "{said}");
}

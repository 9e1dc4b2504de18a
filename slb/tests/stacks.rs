//! Two Linux stacks with a proxy between them: ports that are used again, forged RSTs, half-closed
//! connections.

use crate::common;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::world::{Process, World, lacking};

/// The address of the server for its clients, the VIP, in both families.
const VIPS: [&str; 2] = ["10.99.0.1", "fd99::1"];

/// A client, a proxy and a server, in line.
struct Line {
    world: World,
    // Ends before the world does.
    _proxy: Process,
}

fn script(arguments: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stacks.py");
    format!("python3 {} {arguments}", script.display())
}

impl Line {
    /// Tests run beside each other, so each has a tag of its own.
    fn new(tag: &str) -> Self {
        let mut world = World::new(tag, &["c", "lb", "s"]);
        world.plain_cable("c", "eth0", "lb", "front", 1500);
        world.plain_cable("s", "eth0", "lb", "back", 1500);
        for (machine, number) in [("c", 10), ("s", 1)] {
            world.on(
                machine,
                &format!("ip address add 10.0.0.{number}/24 dev eth0"),
            );
            world.on(
                machine,
                &format!("ip address add fd00::{number}/64 dev eth0 nodad"),
            );
        }
        world.on("c", "ip route add 10.99.0.1 via 10.0.0.1");
        world.on("c", "ip route add fd99::1 via fd00::1");
        let mut text = "[node]\nrole = \"proxy\"\nconnections = 1024\n\
             [[port]]\nname = \"front\"\ntype = \"frontend\"\n\
             [[port]]\nname = \"back\"\ntype = \"backend\"\n"
            .to_owned();
        for (name, vip, server) in [("4", VIPS[0], "10.0.0.1"), ("6", VIPS[1], "fd00::1")] {
            text += &format!(
                "[[frontend]]\nname = \"f{name}\"\naddress = \"{vip}\"\n\
                 [[pool]]\nname = \"p{name}\"\nbackends = [{{ name = \"s\", address = \
                 \"{server}\" }}]\n\
                 [[rule]]\nname = \"r{name}\"\nfrontend = \"f{name}\"\npool = \"p{name}\"\n\
                 protocol = \"tcp\"\nfrontend_port = 80\nbackend_port = 8080\n"
            );
        }
        let path = world.path("proxy.toml");
        fs::write(&path, text).unwrap();
        let proxy = format!(
            "{} proxy --config {} --status {} --io front=afxdp:front --io back=afxdp:back",
            env!("CARGO_BIN_EXE_slb"),
            path.display(),
            world.path("proxy.sock").display()
        );
        let proxy = world.start("lb", &proxy);
        world.keep("s", &script("serve"));
        let is_ready = (0..100).any(|_| {
            sleep(Duration::from_millis(100));
            let answers = VIPS.iter().all(|vip| {
                let ping = world.command("c", &format!("ping -q -c 1 -W 1 {vip}"));
                { ping }.output().unwrap().status.success()
            });
            answers && !world.on("s", "ss -Hlnt sport = :8080").is_empty()
        });
        assert!(is_ready);
        Self {
            world,
            _proxy: proxy,
        }
    }

    /// Returns the number of the proxy's connections in each state, without states that have none.
    fn states(&self) -> Vec<(String, u64)> {
        let status = format!(
            "{} status --once --format json --socket {}",
            env!("CARGO_BIN_EXE_slb"),
            self.world.path("proxy.sock").display()
        );
        let status: serde_json::Value =
            serde_json::from_str(&self.world.on("lb", &status)).unwrap();
        let states = status["connections"]["states"].as_object().unwrap();
        let counts = states
            .iter()
            .map(|(name, count)| (name.clone(), count.as_u64().unwrap()));
        counts.filter(|&(_, count)| count > 0).collect()
    }

    /// Waits until the proxy has one connection, in this state.
    #[track_caller]
    fn reaches(&self, state: &str) {
        let expected = [(state.to_owned(), 1)];
        let is_there = (0..50).any(|_| {
            sleep(Duration::from_millis(50));
            self.states() == expected
        });
        assert!(is_there, "{:?}, not {state}", self.states());
    }

    fn play(&self, arguments: &str) -> Play {
        let mut command = self
            .world
            .command("c", &script(&format!("play {arguments}")));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Play {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }
}

/// A client that waits after each of its steps.
struct Play {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Play {
    /// Waits until a step is done.
    #[track_caller]
    fn has_done(&mut self, word: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    }

    fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }

    #[track_caller]
    fn ends_well(&mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn two_stacks_use_a_port_again_over_a_proxy() {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    // Old connections stay in the table: a world for each.
    for (end, old_state) in [
        ("closed", "time_wait"),
        ("half-closed", "fin_wait_inward"),
        ("forgotten-by-client", "established"),
        ("forgotten-by-both", "established"),
    ] {
        for (place, vip) in VIPS.iter().enumerate() {
            // Each end with timestamps and without, each number with both ends.
            let timestamps = u8::from(place == 0) ^ u8::from(end.starts_with('f'));
            let line = Line::new("ka");
            for machine in ["c", "s"] {
                line.world.on(
                    machine,
                    &format!("sysctl -qw net.ipv4.tcp_timestamps={timestamps}"),
                );
            }
            for number in ["lower", "higher"] {
                let name = format!("{vip}, {end}, {number}, timestamps {timestamps}");
                eprintln!("{name}");
                let mut play = line.play(&format!("{vip} 80 reuse {end} {number}"));
                play.has_done("old");
                line.reaches(old_state);
                play.go_on();
                play.has_done("new");
                line.reaches("established");
                play.go_on();
                play.ends_well();
                sleep(Duration::from_millis(300));
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_forged_reset_between_two_stacks_changes_nothing_and_an_exact_one_closes() {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    for vip in VIPS {
        let line = Line::new("kb");
        let mut play = line.play(&format!("{vip} 80 forged"));
        play.has_done("forged");
        line.reaches("established");
        play.go_on();
        play.has_done("exact");
        line.reaches("closed");
        play.go_on();
        play.ends_well();
    }
}

#[test]
#[ignore = "needs root"]
fn a_half_closed_connection_of_two_stacks_pauses_and_goes_on() {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    for vip in VIPS {
        let line = Line::new("kc");
        let mut play = line.play(&format!("{vip} 80 half 3"));
        play.has_done("half");
        line.reaches("fin_wait_inward");
        play.go_on();
        play.has_done("whole");
        line.reaches("time_wait");
        play.go_on();
        play.ends_well();
    }
}

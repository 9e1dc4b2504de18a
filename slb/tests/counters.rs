//! Counters of a running program across a reload: each rule's and backend's are its own, and a
//! configuration with more of them has counters for all. Needs root; without it is skipped.

use crate::common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::world::{Process, World, lacking};

const NETWORK: &str = "20.20.20.100";
const NETWORK6: &str = "2001:db8:20::100";

/// A configuration: its rules, each of which has the port of its number, and the number of backends
/// of each of its two pools.
struct Plan {
    rules: std::ops::Range<u16>,
    backends: u16,
}

impl Plan {
    fn text(&self) -> String {
        let mut text =
            "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\nhash_seed = 7\n".to_owned();
        for (family, vip) in [("4", NETWORK), ("6", NETWORK6)] {
            text += &format!(
                "[[frontend]]\nname = \"v{family}\"\naddress = \"{vip}\"\n\
                 [[pool]]\nname = \"p{family}\"\nvni = 5001\ntable_size = 65537\nbackends = [\n"
            );
            for number in 1..=self.backends {
                let [high, low] = number.to_be_bytes();
                let address = match family {
                    "4" => format!("10.1.{high}.{low}"),
                    _ => format!("fd00::{number:x}"),
                };
                text += &format!(
                    "{{ name = \"b{number}\", address = \"{address}\", host = \"192.0.2.9\" }},\n"
                );
            }
            text += "]\n";
            for number in self.rules.clone() {
                text += &format!(
                    "[[rule]]\nname = \"r{number}-{family}\"\nfrontend = \"v{family}\"\n\
                     pool = \"p{family}\"\nprotocol = \"udp\"\nfrontend_port = {number}\n"
                );
            }
        }
        text
    }
}

struct Mux {
    world: World,
    process: Process,
}

impl Mux {
    /// Tests run beside each other, so each has a tag of its own.
    fn new(tag: &str, plan: &Plan) -> Self {
        let world = World::new(tag, &["m"]);
        fs::write(world.path("m.toml"), plan.text()).unwrap();
        let path = |name: &str| world.path(name).display().to_string();
        let process = world.start(
            "m",
            &format!(
                "{} mux {} --io tun:slb0 --status {} 2>>{}",
                env!("CARGO_BIN_EXE_slb"),
                path("m.toml"),
                path("m.sock"),
                path("m.log")
            ),
        );
        let mux = Self { world, process };
        mux.wait_until("it runs", || mux.log().contains("running"));
        for command in [
            "ip link set slb0 up".to_owned(),
            "ip address add 192.0.2.1/24 dev slb0".to_owned(),
            "ip address add 2001:db8:c::1/64 dev slb0 nodad".to_owned(),
            format!("ip route add {NETWORK}/32 dev slb0"),
            format!("ip -6 route add {NETWORK6}/128 dev slb0"),
        ] {
            mux.world.on("m", &command);
        }
        mux
    }

    fn log(&self) -> String {
        fs::read_to_string(self.world.path("m.log")).unwrap_or_default()
    }

    #[track_caller]
    fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(
                Instant::now() < end,
                "{what}: {}\n{}",
                self.log(),
                self.status()
            );
            sleep(Duration::from_millis(50));
        }
    }

    fn status(&self) -> serde_json::Value {
        let status = format!(
            "{} status --format json --socket {}",
            env!("CARGO_BIN_EXE_slb"),
            self.world.path("m.sock").display()
        );
        serde_json::from_str(&self.world.on("m", &status)).unwrap()
    }

    /// Puts a configuration in place.
    fn reload(&self, plan: &Plan) {
        let before = self.status()["generation"].clone();
        fs::write(self.world.path("new"), plan.text()).unwrap();
        fs::rename(self.world.path("new"), self.world.path("m.toml")).unwrap();
        self.process.signal("HUP");
        self.wait_until("the configuration is in place", || {
            self.status()["generation"] != before
        });
    }

    /// Sends a datagram to each of these ports of both VIPs, from so many ports of the client's, no faster
    /// than the device's queue is emptied.
    fn send(&self, ports: std::ops::Range<u16>, clients: u16) {
        let script = format!(
            "import socket, time\n\
             for family, vip in ((socket.AF_INET, \"{NETWORK}\"), (socket.AF_INET6, \"{NETWORK6}\")):\n \
             for client in range({clients}):\n  \
             s = socket.socket(family, socket.SOCK_DGRAM)\n  \
             for port in range({}, {}):\n   s.sendto(b\"x\", (vip, port))\n   \
             if port % 50 == 0: time.sleep(0.01)\n",
            ports.start, ports.end
        );
        fs::write(self.world.path("send.py"), script).unwrap();
        let script = self.world.path("send.py");
        self.world.on("m", &format!("python3 {}", script.display()));
    }

    /// Packets of a rule, and those of all rules.
    fn of_rule(&self, name: &str) -> Option<u64> {
        let status = self.status();
        let rules = status["rules"].as_array().unwrap();
        let rule = rules.iter().find(|rule| rule["rule"] == name)?;
        rule["forwarded"]["packets"].as_u64()
    }

    /// The sum of all backends' packets, and how many backends got some.
    fn of_backends(&self) -> (u64, usize) {
        let status = self.status();
        let backends = status["backends"].as_array().unwrap();
        let packets = backends
            .iter()
            .map(|backend| backend["forwarded"]["packets"].as_u64().unwrap());
        let busy = packets.clone().filter(|&packets| packets > 0).count();
        (packets.sum(), busy)
    }
}

#[test]
#[ignore = "needs root"]
fn a_rule_counts_for_itself_after_another_one_had_its_slot() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let plan = |rules| Plan { rules, backends: 3 };
    let mux = Mux::new("cs", &plan(80..82));
    mux.send(80..82, 7);
    mux.wait_until("all are counted", || mux.of_rule("r81-6") == Some(7));
    assert_eq!(mux.of_rule("r80-4"), Some(7));
    // One goes, one stays, one comes.
    mux.reload(&plan(81..83));
    for (rule, packets) in [
        ("r80-4", None),
        ("r81-4", Some(7)),
        ("r82-4", Some(0)),
        ("r80-6", None),
        ("r81-6", Some(7)),
        ("r82-6", Some(0)),
    ] {
        assert_eq!(mux.of_rule(rule), packets, "{rule}");
    }
    mux.send(82..83, 2);
    mux.wait_until("the new ones count", || mux.of_rule("r82-6") == Some(2));
    assert_eq!(mux.of_rule("r82-4"), Some(2));
    assert_eq!(mux.of_rule("r81-4"), Some(7));
}

#[test]
#[ignore = "needs root"]
fn a_reload_with_more_rules_and_backends_has_counters_for_all() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let few = Plan {
        rules: 80..81,
        backends: 3,
    };
    let many = Plan {
        rules: 80..280,
        backends: 1500,
    };
    let mux = Mux::new("cm", &few);
    mux.send(80..81, 5);
    mux.wait_until("all are counted", || mux.of_backends().0 == 10);
    mux.reload(&many);
    assert_eq!(mux.of_rule("r80-4"), Some(5));
    mux.send(80..280, 20);
    let sent = 2 * 200 * 20;
    mux.wait_until("all are counted", || mux.of_rule("r279-6") == Some(20));
    for number in [80, 81, 143, 144, 200, 279] {
        for family in ["4", "6"] {
            let earlier = if number == 80 { 5 } else { 0 };
            let rule = format!("r{number}-{family}");
            assert_eq!(mux.of_rule(&rule), Some(earlier + 20), "{rule}");
        }
    }
    // Of the earlier packets, those of backends that are still there count.
    let (packets, busy) = mux.of_backends();
    assert_eq!(packets, sent + 10);
    assert!(busy > 1400, "{busy} of 3000 backends have packets");
}

#[test]
#[ignore = "needs root"]
fn a_status_during_a_reload_is_of_one_configuration() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let plans = [80..82, 81..83].map(|rules| Plan { rules, backends: 3 });
    let mux = Mux::new("cg", &plans[0]);
    // The names of rules in each generation.
    let mut seen: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for turn in 1..=40_u64 {
        fs::write(mux.world.path("m.toml"), plans[(turn % 2) as usize].text()).unwrap();
        mux.process.signal("HUP");
        mux.wait_until("the configuration is in place", || {
            let mut stream = UnixStream::connect(mux.world.path("m.sock")).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            let status: serde_json::Value = serde_json::from_str(&text).unwrap();
            let generation = status["generation"].as_u64().unwrap();
            let rules = status["rules"].as_array().unwrap();
            let rules = rules
                .iter()
                .map(|rule| rule["rule"].as_str().unwrap().to_owned());
            let rules: BTreeSet<String> = rules.collect();
            let first = seen.entry(generation).or_insert_with(|| rules.clone());
            assert_eq!(*first, rules, "generation {generation}");
            seen.len() as u64 > turn
        });
    }
}

//! Reloads of a running program. Needs root; without it is skipped.

use crate::common;

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::world::{World, lacking};

fn configuration(node: &str) -> String {
    format!(
        "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n{node}\n\
         [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
         [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"webs\"\n\
         protocol = \"tcp\"\nfrontend_port = 80\n\
         [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
         {{ name = \"web1\", address = \"10.10.0.1\", host = \"192.0.2.9\" }},\n]\n"
    )
}

#[test]
#[ignore = "needs root"]
fn rates_and_limits_change_by_reload_and_table_sizes_do_not() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let world = World::new("rl", &["m"]);
    let path = |name: &str| world.path(name).display().to_string();
    let put = |node: &str| {
        fs::write(world.path("new"), configuration(node)).unwrap();
        fs::rename(world.path("new"), world.path("m.toml")).unwrap();
    };
    put("answers_per_second = 0");
    let slb = env!("CARGO_BIN_EXE_slb");
    let mux = world.start(
        "m",
        &format!(
            "{slb} mux {} --io tun:slb0 --status {} 2>>{}",
            path("m.toml"),
            path("m.sock"),
            path("m.log")
        ),
    );
    let log = || fs::read_to_string(world.path("m.log")).unwrap_or_default();
    let wait_until = |what: &str, is_so: &mut dyn FnMut() -> bool| {
        let end = Instant::now() + Duration::from_secs(10);
        while !is_so() {
            assert!(Instant::now() < end, "{what}: {}", log());
            sleep(Duration::from_millis(50));
        }
    };
    wait_until("it runs", &mut || log().contains("running"));
    for command in [
        "ip link set slb0 up",
        "ip address add 192.0.2.1/24 dev slb0",
        "ip route add 20.20.20.100/32 dev slb0",
    ] {
        world.on("m", command);
    }
    let reload = |node: &str, times: usize| {
        put(node);
        mux.signal("HUP");
        wait_until(node, &mut || {
            log().matches("configuration in place").count() == times
        });
    };
    let pings = || {
        let ping = "ping -q -c 1 -W 1 20.20.20.100";
        world.command("m", ping).output().unwrap().status.success()
    };
    let all = || {
        world.on(
            "m",
            &format!("{slb} status --once --socket {}", path("m.sock")),
        )
    };
    let dropped = |reason: &str| {
        let said = format!("{slb} status --format json --socket {}", path("m.sock"));
        let said: serde_json::Value = serde_json::from_str(&world.on("m", &said)).unwrap();
        said["dropped"][reason]["packets"].as_u64().unwrap()
    };
    assert!(!pings());
    reload("answers_per_second = 1000", 1);
    assert!(pings());
    // Forty SYNs from as many ports of one address.
    let send = "import socket, sys\n\
                first = int(sys.argv[1])\n\
                for port in range(first, first + 40):\n \
                s = socket.socket(); s.bind((\"192.0.2.1\", port))\n \
                s.setblocking(False); s.connect_ex((\"20.20.20.100\", 80)); s.close()\n";
    fs::write(world.path("send.py"), send).unwrap();
    let send = |first: u16| {
        let before = dropped("source_limit");
        world.on("m", &format!("python3 {} {first}", path("send.py")));
        sleep(Duration::from_millis(200));
        dropped("source_limit") - before
    };
    assert_eq!(send(2000), 0);
    reload(
        "flows_per_source = 1\nflows_per_source_at_once = 10\nflows = 1000",
        2,
    );
    assert!(
        log().contains("flows = 1000 takes effect after a restart; until then it is 1048576"),
        "{}",
        log()
    );
    let limited = send(3000);
    assert!((25..=30).contains(&limited), "{limited}: {}", all());
    // A reload of something else gives no source more than it has.
    reload(
        "flows_per_source = 1\nflows_per_source_at_once = 10\nhop_limit = 9",
        3,
    );
    let limited = send(4000);
    assert!((35..=40).contains(&limited), "{limited}");
    reload("flows_per_source = 0", 4);
    assert_eq!(send(5000), 0);
    mux.signal("TERM");
    assert!(mux.finish().contains("source_limit"));
}

//! The cost of a configuration grows as it does.

use std::fmt::Write as _;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use slb_control::Config;

/// A host with so many vms in one pool.
fn host(vms: u32) -> String {
    let mut text = "[node]\nrole = \"host\"\nunderlay = \"172.16.0.101\"\n\
                    [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
                    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"p\"\n\
                    protocol = \"tcp\"\nfrontend_port = 80\n\
                    [[pool]]\nname = \"p\"\nvni = 5001\nbackends = [\n"
        .to_owned();
    for n in 1..=vms {
        let _ = writeln!(
            text,
            "{{ name = \"b{n}\", address = \"10.0.{}.{}\", host = \"172.16.0.101\" }},",
            n >> 8,
            n & 255
        );
    }
    text + "]\n"
}

/// The least of a few times, each without that of other threads and programs.
fn time(text: &str) -> Duration {
    let spent = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let one = || {
        let begin = spent();
        let config = Config::parse("test.toml", text).unwrap();
        assert!(config.snapshot(None).is_ok());
        spent() - begin
    };
    (0..5).map(|_| one()).min().unwrap_or_default()
}

/// Sixteen times as many vms: a cubic check would take 4096 times as long, a quadratic one 256 times.
/// `cargo test --release -p slb-control --test scale -- --nocapture` prints the time that `slb check` spends on them.
#[test]
fn a_check_of_many_vms_takes_no_more_than_its_share() {
    let (few, many) = (time(&host(125)), time(&host(2000)));
    println!("check of 125 vms of a host: {few:?}, of 2000: {many:?}");
    assert!(many < 80 * few, "{few:?} for 125, {many:?} for 2000");
}

/// A host with so many vms, each with a VIP, a pool, a rule and an outbound rule of its own.
fn tenants(count: u32) -> String {
    let mut text = "[node]\nrole = \"host\"\nunderlay = \"172.16.0.101\"\n".to_owned();
    for n in 1..=count {
        let (high, low) = (n >> 8, n & 255);
        let _ = writeln!(
            text,
            "[[frontend]]\nname = \"f{n}\"\naddress = \"20.0.{high}.{low}\"\n\
             [[pool]]\nname = \"p{n}\"\nvni = 5001\ntable_size = 101\nbackends = [\n\
             {{ name = \"b{n}\", address = \"10.1.{high}.{low}\", host = \"172.16.0.101\" }},\n]\n\
             [[rule]]\nname = \"r{n}\"\nfrontend = \"f{n}\"\npool = \"p{n}\"\n\
             protocol = \"tcp\"\nfrontend_port = 80\n\
             [[outbound_rule]]\nname = \"o{n}\"\nfrontends = [\"f{n}\"]\npool = \"p{n}\""
        );
    }
    text
}

/// Eight times as many outbound rules, VIPs and pools: a cubic search would take 512 times as long. The ports of
/// each VIP are dealt out one by one, beside which the rest has to stay small.
#[test]
fn a_check_of_many_outbound_rules_takes_no_more_than_its_share() {
    let (few, many) = (time(&tenants(250)), time(&tenants(2000)));
    println!("check of 250 tenants of a host: {few:?}, of 2000: {many:?}");
    assert!(many < 40 * few, "{few:?} for 250, {many:?} for 2000");
}

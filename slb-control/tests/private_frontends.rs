//! Private frontends beside what goes by the addresses of VIPs: probes, differences and losses.

use slb_control::probe::{VipProber, targets};
use slb_control::{Config, Diff};

/// Two networks with the same addresses and the same private VIP, and a public VIP in one of them.
fn text(role: &str) -> String {
    let mut text = format!(
        "[node]\nrole = \"{role}\"\nunderlay = \"172.16.0.101\"\n\
         [[probe]]\nname = \"tcp\"\nprotocol = \"tcp\"\nport = 1\n\
         [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
         [[rule]]\nname = \"web\"\nfrontend = \"web\"\npool = \"web\"\nprotocol = \"tcp\"\nfrontend_port = 1\n\
         probe = \"tcp\"\n\
         [[pool]]\nname = \"web\"\nnetwork = \"blue\"\n\
         backends = [{{ name = \"web\", address = \"10.1.0.30\", host = \"172.16.0.101\" }}]\n"
    );
    for (name, vni) in [("blue", 5001), ("red", 5002)] {
        text += &format!(
            "[[network]]\nname = \"{name}\"\nvni = {vni}\naddress_spaces = \"10.1.0.0/16\"\n\
             [[frontend]]\nname = \"{name}\"\naddress = \"10.1.0.100\"\nnetwork = \"{name}\"\n\
             [[rule]]\nname = \"{name}\"\nfrontend = \"{name}\"\npool = \"{name}\"\nprotocol = \"tcp\"\n\
             frontend_port = 2\nprobe = \"tcp\"\n\
             [[inbound_nat_rule]]\nname = \"{name}-ssh\"\nfrontend = \"{name}\"\npool = \"{name}\"\n\
             backend = \"{name}-vm\"\nprotocol = \"tcp\"\nfrontend_port = 22\nbackend_port = 22\n\
             [[pool]]\nname = \"{name}\"\nnetwork = \"{name}\"\nbackends = [\n\
             {{ name = \"{name}-vm\", address = \"10.1.0.21\", host = \"172.16.0.101\" }}]\n"
        );
    }
    text
}

fn read(text: &str) -> Config {
    Config::parse("net.toml", text).unwrap()
}

#[test]
fn a_mux_probes_for_public_rules_only() {
    for (role, expected) in [
        ("mux", &["web"][..]),
        ("host", &["blue-vm", "red-vm", "web"]),
    ] {
        let config = read(&text(role));
        let targets = targets(&config);
        let names = targets.iter().flat_map(|(_, names)| names);
        let mut names: Vec<&str> = names.map(|(_, name)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, expected, "{role}");
    }
    // Backends of two networks with one address cannot be told apart where a mux does ask them.
    let public = text("mux").replace("network = \"red\"\n[[rule]]", "[[rule]]");
    let public = public.replace(
        "address = \"10.1.0.100\"\nnetwork = \"blue\"\n[[rule]]",
        "address = \"20.20.20.101\"\n[[rule]]",
    );
    let said = Config::parse("net.toml", &public).unwrap_err().to_string();
    assert!(said.contains("probing = false"), "{said}");
}

#[test]
fn calls_of_vips_leave_private_ones_out() {
    let config = read(&text("mux"));
    let mut prober = VipProber::start(&[], None).unwrap();
    prober.set(&config);
    let called = prober.results().read();
    let called: Vec<_> = called.iter().map(|(port, ..)| &*port.rule).collect();
    assert_eq!(called, ["web"]);
}

#[test]
fn changes_are_those_of_the_frontends_own_network() {
    let old = read(&text("host"));
    // The red network loses its rules, the blue one with the same VIP keeps them.
    let gone = text("host");
    let (kept, gone) = gone.split_at(gone.find("[[rule]]\nname = \"red\"").unwrap());
    let pool = &gone[gone.find("[[pool]]\nname = \"red\"").unwrap()..];
    let new = read(&format!("{kept}{pool}"));
    let lost =
        "VIP 10.1.0.100 (frontend \"red\") no longer has a rule: all of its packets are dropped";
    assert_eq!(new.losses(&old), [lost]);
    let diff = Diff::between(&old, &new).unwrap();
    let ports: Vec<String> = diff.ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports.len(), 1, "{ports:?}");
    assert!(ports[0].contains("red/red-vm"), "{ports:?}");
    // A frontend that becomes public changes.
    let public = text("host").replace(
        "address = \"10.1.0.100\"\nnetwork = \"red\"",
        "address = \"20.20.20.101\"",
    );
    let diff = Diff::between(&old, &read(&public)).unwrap();
    assert!(diff.to_string().contains("\"red\""), "{diff}");
}

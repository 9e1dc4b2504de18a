//! Private frontends beside what goes by the addresses of VIPs: probes, differences and losses.

use slb_control::probe::{VipProber, targets};
use slb_control::{Config, Diff, Role};

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
}

/// The lines of a difference about frontends that others can call, and the line about each change.
fn reach(old: &str, new: &str) -> (Vec<String>, String) {
    let diff = Diff::between(&read(old), &read(new)).unwrap();
    let lines: Vec<String> = diff.reach.iter().map(ToString::to_string).collect();
    let said = diff.to_string();
    let title = "frontends that others can call than before; install at muxes first:\n";
    for line in &lines {
        let told = format!("  {line}\n");
        let at = said.find(title).expect("a title");
        assert!(said[at..].contains(&told), "{said}");
    }
    assert_eq!(lines.is_empty(), !said.contains(title), "{said}");
    (lines, said)
}

#[test]
fn a_frontend_that_becomes_public_or_private_is_told_with_its_connections() {
    // Public frontends have addresses of their own.
    let private = text("host").replace(
        "address = \"10.1.0.100\"\nnetwork = \"red\"",
        "address = \"10.1.0.101\"\nnetwork = \"red\"",
    );
    let public = private.replace(
        "address = \"10.1.0.101\"\nnetwork = \"red\"",
        "address = \"10.1.0.101\"",
    );
    let (lines, said) = reach(&private, &public);
    let expected = "frontend \"red\": for vms of network \"red\" before, now public; connections of vms of \"red\" \
                    pass a mux from then on";
    assert_eq!(lines, [expected]);
    assert!(
        said.contains("~ frontend \"red\": network red becomes none\n"),
        "{said}"
    );
    let (lines, said) = reach(&public, &private);
    let expected = "frontend \"red\": public before, now for vms of network \"red\" only; connections from \
                    elsewhere end, and those of vms that call from SNAT ports";
    assert_eq!(lines, [expected]);
    assert!(
        said.contains("~ frontend \"red\": network none becomes red\n"),
        "{said}"
    );
    // With another address there is no connection that could go on.
    let moved = public.replace(
        "name = \"red\"\naddress = \"10.1.0.101\"",
        "name = \"red\"\naddress = \"20.20.20.101\"",
    );
    let (lines, said) = reach(&private, &moved);
    let expected = "frontend \"red\": for vms of network \"red\" before, now public; its address changes too, so all \
                    connections end";
    assert_eq!(lines, [expected]);
    let fields =
        "~ frontend \"red\": address 10.1.0.101 becomes 20.20.20.101, network red becomes none\n";
    assert!(said.contains(fields), "{said}");
    assert!(reach(&public, &moved).0.is_empty());
}

#[test]
fn a_frontend_of_another_network_is_told_with_its_connections() {
    let old = text("host");
    // Each of the two frontends, and what leads to it, goes to the other network.
    let swap = |name: &str, other: &str| {
        (
            format!("name = \"{name}\"\naddress = \"10.1.0.100\"\nnetwork = \"{name}\""),
            format!("name = \"{name}\"\naddress = \"10.1.0.100\"\nnetwork = \"{other}\""),
        )
    };
    let pool = |name: &str, other: &str| {
        (
            format!("name = \"{name}\"\nnetwork = \"{name}\"\nbackends"),
            format!("name = \"{name}\"\nnetwork = \"{other}\"\nbackends"),
        )
    };
    let mut new = old.clone();
    for (was, is) in [
        swap("blue", "red"),
        swap("red", "blue"),
        pool("blue", "red"),
        pool("red", "blue"),
    ] {
        assert!(new.contains(&was), "{was}");
        new = new.replace(&was, &is);
    }
    let (lines, _) = reach(&old, &new);
    let expected = [
        "frontend \"blue\": for vms of network \"blue\" before, now for those of \"red\"; connections of vms of \
         \"blue\" end",
        "frontend \"red\": for vms of network \"red\" before, now for those of \"blue\"; connections of vms of \
         \"red\" end",
    ];
    assert_eq!(lines, expected);
    // The network's name is not the frontend's.
    let renamed = old.replace("name = \"red\"\nvni", "name = \"rose\"\nvni");
    let renamed = renamed.replace("network = \"red\"", "network = \"rose\"");
    let (lines, _) = reach(&old, &renamed);
    assert!(lines.is_empty(), "{lines:?}");
}

/// Returns the configuration with other fields of the frontend and of what refers to it.
fn with_frontend(old: &str, name: &str, to: &str, fields: &str) -> String {
    let at = old
        .find(&format!("[[frontend]]\nname = \"{name}\"\n"))
        .unwrap();
    let end = at + old[at + 1..].find("[[").unwrap() + 1;
    let rest = old[end..].replace(
        &format!("frontend = \"{name}\""),
        &format!("frontend = \"{to}\""),
    );
    format!(
        "{}[[frontend]]\nname = \"{to}\"\n{fields}{rest}",
        &old[..at]
    )
}

#[test]
fn a_vip_that_gets_another_frontend_is_told_too() {
    let all = text("host");
    let private = with_frontend(
        &all,
        "red",
        "red",
        "address = \"10.1.0.101\"\nnetwork = \"red\"\n",
    );
    let public = with_frontend(&private, "red", "open", "address = \"10.1.0.101\"\n");
    let (lines, _) = reach(&private, &public);
    let expected = "frontend \"open\" in place of \"red\" at 10.1.0.101: for vms of network \"red\" before, now \
                    public; connections of vms of \"red\" pass a mux from then on";
    assert_eq!(lines, [expected]);
    let (lines, _) = reach(&public, &private);
    let expected = "frontend \"red\" in place of \"open\" at 10.1.0.101: public before, now for vms of network \
                    \"red\" only; connections from elsewhere end, and those of vms that call from SNAT ports";
    assert_eq!(lines, [expected]);
    // The name stays with another address, and another frontend gets the VIP.
    let moved = with_frontend(&private, "red", "red", "address = \"20.20.20.101\"\n")
        + "[[frontend]]\nname = \"open\"\naddress = \"10.1.0.101\"\n";
    let (lines, _) = reach(&private, &moved);
    let expected = [
        "frontend \"red\": for vms of network \"red\" before, now public; its address changes too, so all \
         connections end",
        "frontend \"open\" in place of \"red\" at 10.1.0.101: for vms of network \"red\" before, now public; \
         connections of vms of \"red\" pass a mux from then on",
    ];
    assert_eq!(lines, expected);
    // Another name alone changes nothing for clients, nor does a VIP that another network has as well.
    let renamed = with_frontend(
        &private,
        "red",
        "rose",
        "address = \"10.1.0.101\"\nnetwork = \"red\"\n",
    );
    assert!(reach(&private, &renamed).0.is_empty());
    let renamed = with_frontend(
        &all,
        "red",
        "rose",
        "address = \"10.1.0.100\"\nnetwork = \"red\"\n",
    );
    assert!(reach(&all, &renamed).0.is_empty());
}

#[test]
fn another_role_is_told_what_it_cannot_have_by_name_and_line() {
    let config = read(&text("host"));
    let told = config.clone().in_role(Role::Proxy).unwrap_err().to_string();
    let line = |name: &str| {
        let all = text("host");
        let at = all
            .find(&format!("[[frontend]]\nname = \"{name}\""))
            .unwrap();
        all[..at].lines().count() + 1
    };
    for name in ["blue", "red"] {
        let expected = format!(
            "net.toml:{}: frontend {name:?}: network: expected a public frontend, since a proxy knows no networks, but \
             it belongs to network {name:?}",
            line(name)
        );
        assert!(told.contains(&expected), "{expected}: {told}");
    }
    assert_eq!(told.lines().count(), 2, "{told}");
    let mux = config.in_role(Role::Mux).unwrap();
    assert_eq!(mux.node.role, Role::Mux);
    mux.snapshot(None).unwrap();
}

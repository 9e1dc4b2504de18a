//! Nothing but the prober has the address that probes come from.

use slb_control::Config;

/// The faults of a configuration in one text.
fn faults(text: &str) -> String {
    match Config::parse("f.toml", text) {
        Ok(_) => String::new(),
        Err(errors) => errors.to_string(),
    }
}

fn configuration(node: &str, vip: &str, dip: &str) -> String {
    let (network, host) = match node.contains("proxy") {
        true => ("", ""),
        false => ("vni = 5001\n", ", host = \"172.16.0.101\""),
    };
    format!(
        "[node]\n{node}\n[[frontend]]\nname = \"web\"\naddress = \"{vip}\"\n\
         [[pool]]\nname = \"vms\"\n{network}backends = [\n\
         {{ name = \"vm\", address = \"{dip}\"{host} }},\n]\n\
         [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"vms\"\nprotocol = \"tcp\"\n\
         frontend_port = 80\n"
    )
}

const HOST: &str = "role = \"host\"\nunderlay = [\"172.16.0.101\"]";
const MUX: &str = "role = \"mux\"\nunderlay = [\"172.16.0.11\"]";
const PROXY: &str = "role = \"proxy\"";
const VIP: [&str; 2] = ["20.20.20.100", "2001:db8::100"];
const DIP: [&str; 2] = ["10.0.0.1", "fd00::1"];
/// The sources of a host agent's probes, unless the configuration has others.
const USUAL: [&str; 2] = ["168.63.129.16", "fd73:6c62::a83f:8110"];
const OWN: [&str; 2] = ["10.9.9.9", "fd09::9"];

#[test]
fn a_frontend_or_vm_with_the_probes_address_is_refused() {
    let own = format!("probe_sources = [\"{}\", \"{}\"]", OWN[0], OWN[1]);
    let with = |node: &str, more: &str| format!("{node}\n{more}");
    for family in 0..2 {
        let (vip, dip) = (VIP[family], DIP[family]);
        for (node, source, frontend, backend) in [
            (with(HOST, ""), USUAL[family], true, true),
            (with(HOST, &own), OWN[family], true, true),
            // The usual address is not this node's then.
            (with(HOST, &own), USUAL[family], false, false),
            (with(HOST, "probing = false"), USUAL[family], false, false),
            // The host agents' own.
            (with(MUX, ""), USUAL[family], true, true),
            (with(MUX, "probing = false"), USUAL[family], true, true),
            (with(MUX, &own), OWN[family], true, true),
            (with(PROXY, &own), OWN[family], true, false),
        ] {
            let message = format!(
                "expected an address of its own, but {source} is where probes come from \
                 (probe_sources of [node])"
            );
            let told = faults(&configuration(&node, source, dip));
            let expected = format!("frontend \"web\": address: {message}");
            assert_eq!(
                told.contains(&expected),
                frontend,
                "{node} {source}: {told}"
            );
            assert_eq!(told.is_empty(), !frontend, "{node} {source}: {told}");
            let told = faults(&configuration(&node, vip, source));
            let expected = format!("pool \"vms\": backend \"vm\": address: {message}");
            assert_eq!(told.contains(&expected), backend, "{node} {source}: {told}");
            assert_eq!(told.is_empty(), !backend, "{node} {source}: {told}");
        }
    }
}

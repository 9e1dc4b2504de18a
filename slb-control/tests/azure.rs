//! Azure's JSON into configurations: the reference's own examples, and everything that they lack.

use std::fs;
use std::path::Path;
use std::time::Duration;

use slb_control::azure::{Imported, Input, Inventory, import};
use slb_control::config::{NoHealthyBackends, ProbeProtocol};
use slb_control::{Config, ConfigErrors};
use slb_core::hash::Distribution;
use slb_core::spec::{BackendState, NatTarget, Protocol};

/// Resources that the reference's examples lack.
const INVENTORY: &str = r#"
vni = 5001
[node]
role = "mux"
underlay = "172.16.0.11"
[[public_ip]]
id = "MyPublicIP"
address = "20.50.60.10"
[[public_ip]]
id = "WebPublicIP"
address = "40.50.60.70"
[[public_ip]]
id = "OutboundPublicIP"
address = "40.50.60.70"
[[public_ip]]
id = "ZoneRedundantPublicIP"
address = "40.50.60.70"
[[nat_pool]]
id = "SSH-Pool"
pool = "WebServersPool"
"#;

fn inventory() -> Inventory {
    let mut text = INVENTORY.to_owned();
    let named = [
        ("VM1-NIC", "10.0.1.4"),
        ("VM2-NIC", "10.0.1.5"),
        ("VM3-NIC", "10.0.1.6"),
        ("VM1", "10.0.1.4"),
        ("OnPremServer", "192.168.1.50"),
        ("VM2", "10.0.1.5"),
        ("VM3", "10.0.1.6"),
        ("WebVM1", "10.0.1.4"),
        ("WebVM2", "10.0.1.5"),
        ("WebVM3", "10.0.1.6"),
        ("AppVM1", "10.0.2.4"),
        ("AppVM2", "10.0.2.5"),
        ("AppVM3", "10.0.2.6"),
        ("DBVM1", "10.0.3.4"),
        ("DBVM2", "10.0.3.5"),
    ];
    for (id, address) in named {
        text += &format!(
            "[[backend]]\nid = \"{id}\"\naddress = \"{address}\"\nhost = \"172.16.0.101\"\n"
        );
    }
    for address in ["10.0.1.4", "10.0.1.5", "10.0.1.6"] {
        text += &format!("[[backend]]\naddress = \"{address}\"\nhost = \"172.16.0.101\"\n");
    }
    Inventory::parse("inventory.toml", &text).expect("a good inventory")
}

fn import_one(text: &str, inventory: &Inventory) -> Result<Imported, ConfigErrors> {
    let input = Input {
        file: "lb.json",
        text,
    };
    import(&[input], inventory)
}

fn config(text: &str, inventory: &Inventory) -> (Config, Vec<String>) {
    let imported = import_one(text, inventory).unwrap_or_else(|errors| panic!("{errors}"));
    let toml = &imported.toml;
    let config = Config::parse("imported", toml).unwrap_or_else(|e| panic!("{e}\n{toml}"));
    let warnings = imported.warnings.iter().map(ToString::to_string);
    (config, warnings.collect())
}

fn errors(text: &str, inventory: &Inventory) -> String {
    match import_one(text, inventory) {
        Ok(imported) => panic!("{}", imported.toml),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn every_example_of_the_reference_imports() {
    let path = "../../shared/reference/azure-load-balancer.md";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let Ok(text) = fs::read_to_string(path) else {
        assert!(std::env::var_os("SLB_REQUIRE_ALL").is_none());
        eprintln!("SKIPPED: the reference is not beside this project");
        return;
    };
    let blocks = text.split("```json\n").skip(1);
    let blocks: Vec<&str> = blocks.filter_map(|b| b.split("\n```").next()).collect();
    assert_eq!(blocks.len(), 19);
    let inventory = inventory();
    let (mut wholes, mut warnings) = (0, Vec::new());
    for block in blocks {
        let imported = import_one(block, &inventory);
        let imported = imported.unwrap_or_else(|errors| panic!("{errors}\n{block}"));
        wholes += usize::from(imported.missing.is_none());
        // One inventory for all examples has entries that each of them does not need.
        let of_json = imported.warnings.into_iter();
        warnings.extend(of_json.filter(|warning| warning.file != "inventory.toml"));
    }
    // The resource of section 2, six of section 8, and two parts of section 2 that refer to nothing:
    // frontends; pools; probes.
    assert_eq!(wholes, 6 + 1 + 2 + 2 + 3);
    // The reference has one slip of the pen.
    let [warning] = warnings.as_slice() else {
        panic!("{warnings:?}");
    };
    assert!(
        warning.message.contains(r#"" id" is taken for "id""#),
        "{warning}"
    );
}

/// A load balancer with every property that has a meaning here.
const ALL: &str = r#"{
  "name": "All", "type": "Microsoft.Network/loadBalancers", "apiVersion": "2023-09-01",
  "location": "westeurope", "tags": { "team": "web" }, "etag": "W/\"1\"",
  "sku": { "name": "Standard", "tier": "Regional" },
  "properties": {
    "provisioningState": "Succeeded",
    "frontendIPConfigurations": [
      { "name": "public", "zones": ["1", "2"], "properties": { "publicIPAddress": { "id": "/s/publicIPAddresses/pip" } } },
      { "name": "prefix", "properties": { "publicIPPrefix": { "id": "/s/publicIPPrefixes/pre" } } },
      { "name": "inner", "properties": { "privateIPAddress": "10.0.2.100", "privateIPAddressVersion": "IPv4",
        "privateIPAllocationMethod": "Static", "subnet": { "id": "/s/virtualNetworks/v/subnets/s" } } },
    ],
    "backendAddressPools": [
      { "name": "web", "properties": { "loadBalancerBackendAddresses": [
        { "name": "vm1", "properties": { "ipAddress": "10.0.1.4", "virtualNetwork": { "id": "/s/virtualNetworks/v" }, "adminState": "Drain" } },
        { "name": "vm2", "properties": { "ipAddress": "10.0.1.5", "subnet": { "id": "/s/virtualNetworks/v/subnets/s" }, "adminState": "Down" } },
      ] } },
      { "name": "app", "properties": { "backendIPConfigurations": [
        { "id": "/s/networkInterfaces/app1-nic/ipConfigurations/c" } ] } },
    ],
    "probes": [
      { "name": "p", "properties": { "protocol": "Https", "port": 443, "requestPath": "/h", "intervalInSeconds": 60, "numberOfProbes": 2, "probeThreshold": 4, "noHealthyBackendsBehavior": "AllProbedUp" } },
    ],
    "loadBalancingRules": [
      { "name": "r1", "properties": { "frontendIPConfiguration": { "id": "/s/public" }, "backendAddressPool": { "id": "/s/web" },
        "probe": { "id": "/s/p" }, "protocol": "Tcp", "frontendPort": 443, "backendPort": 8443, "enableFloatingIP": false,
        "idleTimeoutInMinutes": 15, "loadDistribution": "SourceIPProtocol", "enableTcpReset": true, "disableOutboundSnat": true } },
      { "name": "r2", "properties": { "frontendIPConfiguration": { "id": "/s/inner" }, "backendAddressPool": { "id": "/s/app" },
        "protocol": "All", "frontendPort": 0, "backendPort": 0, "enableFloatingIP": true, "loadDistribution": "SourceIP", "idleTimeoutInMinutes": 60 } },
      { "name": "r3", "properties": { "frontendIPConfiguration": { "id": "/s/public" }, "backendAddressPool": { "id": "/s/app" },
        "protocol": "Udp", "frontendPort": 53, "backendPort": 53 } },
    ],
    "inboundNatRules": [
      { "name": "ssh1", "properties": { "frontendIPConfiguration": { "id": "/s/public" }, "protocol": "Tcp", "frontendPort": 50001,
        "backendPort": 22, "backendIPConfiguration": { "id": "/s/networkInterfaces/app1-nic/ipConfigurations/c" } } },
      { "name": "alone", "properties": { "frontendIPConfiguration": { "id": "/s/public" }, "protocol": "Udp", "frontendPort": 50002,
        "backendPort": 23, "backendIPConfiguration": { "id": "/s/networkInterfaces/other-nic/ipConfigurations/c" } } },
      { "name": "range", "properties": { "frontendIPConfiguration": { "id": "/s/public" }, "protocol": "Tcp", "frontendPortRangeStart": 51000,
        "frontendPortRangeEnd": 51009, "backendPort": 22, "backendAddressPool": { "id": "/s/web" } } },
      { "name": "nowhere", "properties": { "frontendIPConfiguration": { "id": "/s/public" }, "protocol": "Tcp", "frontendPort": 50003, "backendPort": 22 } },
    ],
    "inboundNatPools": [
      { "name": "rdp", "properties": { "frontendIPConfiguration": { "id": "/s/public" }, "protocol": "Tcp",
        "frontendPortRangeStart": 52000, "frontendPortRangeEnd": 52099, "backendPort": 3389 } },
    ],
    "outboundRules": [
      { "name": "out", "properties": { "frontendIPConfigurations": [ { "id": "/s/prefix" } ], "backendAddressPool": { "id": "/s/web" },
        "protocol": "All", "allocatedOutboundPorts": 1024, "idleTimeoutInMinutes": 4, "enableTcpReset": true } },
    ],
    "colour": "blue",
  },
}"#;

const ALL_INVENTORY: &str = r#"
[node]
role = "host"
underlay = "172.16.0.101"
muxes = ["172.16.0.11"]
[[public_ip]]
id = "pip"
address = "40.50.60.70"
[[public_ip]]
id = "pre"
address = "40.50.60.72/31"
[[network]]
id = "virtualNetworks/v"
vni = 7001
[[network]]
id = "unused"
vni = 1
[[backend]]
id = "vm1"
host = "172.16.0.101"
weight = 3
[[backend]]
address = "10.0.1.5"
host = "172.16.0.102"
[[backend]]
pool = "web"
name = "vm3"
address = "10.0.1.6"
host = "172.16.0.103"
instance = 7
[[backend]]
id = "app1-nic"
address = "10.0.2.4"
host = "172.16.0.101"
mac = "02:00:0a:00:02:04"
[[backend]]
id = "other-nic"
address = "10.0.2.9"
host = "172.16.0.101"
[[nat_pool]]
id = "rdp"
pool = "web"
"#;

#[test]
fn every_property_is_mapped_or_named() {
    // Pools without a network of their own take the default.
    let text = format!("vni = 7002\n{ALL_INVENTORY}");
    let inventory = Inventory::parse("inventory.toml", &text).expect("good");
    let (config, warnings) = config(ALL, &inventory);

    let frontends: Vec<String> = config
        .frontends
        .iter()
        .map(|f| format!("{} {}", f.name, f.address))
        .collect();
    let expected = [
        "public 40.50.60.70",
        "prefix/0 40.50.60.72",
        "prefix/1 40.50.60.73",
        "inner 10.0.2.100",
    ];
    assert_eq!(frontends, expected);

    let pools: Vec<_> = config
        .pools
        .iter()
        .map(|p| (p.name.as_str(), p.vni.get()))
        .collect();
    assert_eq!(pools, [("web", 7001), ("app", 7002), ("of alone", 7002)]);
    let backends: Vec<_> = config.pools[0]
        .backends
        .iter()
        .map(|b| (b.name.as_str(), b.weight, b.state, b.instance))
        .collect();
    let expected = [
        ("vm1", 3, BackendState::Draining, None),
        ("vm2", 1, BackendState::Down, None),
        ("vm3", 1, BackendState::Up, Some(7)),
    ];
    assert_eq!(backends, expected);
    assert!(config.pools[1].backends[0].mac.is_some());

    let probe = &config.probes[0];
    assert_eq!((probe.protocol, probe.port), (ProbeProtocol::Https, 443));
    assert_eq!((probe.path.as_str(), probe.threshold), ("/h", 4));
    let times = (probe.interval, probe.timeout);
    assert_eq!(times, (Duration::from_secs(60), Duration::from_secs(30)));
    assert!(!probe.verify_certificate);
    assert_eq!(probe.no_healthy_backends, NoHealthyBackends::UseAll);

    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let [r1, r2, r3] = config.rules.as_slice() else {
        panic!("{:?}", config.rules);
    };
    assert_eq!((r1.frontend_port, r1.backend_port), (443, 8443));
    assert_eq!(r1.distribution, Distribution::SourceIpProtocol);
    assert_eq!((r1.idle_timeout, r1.probe), (minutes(15), Some(0)));
    assert!(r1.terms.tcp_reset && !r1.terms.floating_ip && r1.disable_outbound_snat);
    assert_eq!((r2.protocol, r2.idle_timeout), (Protocol::All, minutes(30)));
    assert_eq!(r2.distribution, Distribution::SourceIp);
    assert!(r2.terms.floating_ip && r2.disable_outbound_snat);
    assert_eq!((r3.protocol, r3.frontend_port), (Protocol::Udp, 53));
    assert!(!r3.disable_outbound_snat);

    let nat: Vec<_> = config
        .inbound_nat
        .iter()
        .map(|n| (n.name.as_str(), n.pool, n.target))
        .collect();
    let expected = [
        (
            "ssh1",
            1,
            NatTarget::Backend {
                port: 50001,
                backend: 0,
            },
        ),
        (
            "alone",
            2,
            NatTarget::Backend {
                port: 50002,
                backend: 0,
            },
        ),
        (
            "range",
            0,
            NatTarget::Pool {
                first: 51000,
                last: 51009,
            },
        ),
        (
            "rdp",
            0,
            NatTarget::Pool {
                first: 52000,
                last: 52099,
            },
        ),
    ];
    assert_eq!(nat, expected);

    let out = &config.outbound[0];
    assert_eq!((out.frontends.as_slice(), out.pool), (&[1, 2][..], 0));
    assert_eq!(
        (out.allocated_outbound_ports, out.tcp_reset),
        (Some(1024), true)
    );
    // And the one that rule r3 implies.
    assert_eq!(config.outbound.len(), 2);

    let expected = [
        r#"lb.json:29: rule "r2": idleTimeoutInMinutes: 60 becomes 30"#,
        r#"lb.json:40: inbound NAT rule "nowhere": backendIPConfiguration: is missing"#,
        r#"lb.json:50: load balancer "All": "colour" is unknown, and left out"#,
        r#"inventory.toml:16: network "unused": matches nothing in the JSON, and is left out"#,
    ];
    assert_eq!(warnings.len(), expected.len(), "{warnings:#?}");
    for (warning, expected) in warnings.iter().zip(expected) {
        assert!(warning.starts_with(expected), "{warning}");
    }
}

#[test]
fn all_that_the_inventory_lacks_is_said_at_once() {
    let found = errors(ALL, &Inventory::default());
    for expected in [
        r#"frontend "public": publicIPAddress: the JSON does not say its address, so the inventory has to: [[public_ip]] with id = "pip""#,
        r#"[[network]] with id = "v" and vni"#,
        r#"pool "web": backend "vm1": the JSON does not say its host"#,
        r#"[[backend]] with id = "app1-nic" and address"#,
        r#"[[nat_pool]] with id = "rdp" and pool"#,
    ] {
        assert!(found.contains(expected), "{expected}\n{found}");
    }
}

#[test]
fn values_that_there_are_none_of_are_said_with_their_line() {
    let inventory = inventory();
    for (property, expected) in [
        (
            r#""port": 0"#,
            "lb.json:3: probe \"p\": port: expected 1 to 65535, got 0",
        ),
        (r#""port": "x""#, "port: expected 1 to 65535, got \"x\""),
        (r#""port": [1]"#, "port: expected 1 to 65535, got a list"),
        (
            r#""port": "[parameters('p')]""#,
            r#"got the expression "[parameters('p')]", which cannot be evaluated: no parameter "p" is declared"#,
        ),
        (r#""x": 1"#, "port: is missing"),
    ] {
        let text = format!(
            "{{ \"name\": \"p\", \"properties\": {{\n\"protocol\": \"Tcp\", \"intervalInSeconds\": 5,\n{property} }} }}"
        );
        let found = errors(&text, &inventory);
        assert!(found.contains(expected), "{found}");
    }
    for (text, expected) in [
        ("", "lb.json:1: expected JSON, got nothing"),
        ("{\n\"a\": }", "lb.json:2: "),
        ("{ \"name\": 1 }", "expected a load balancer"),
        (&"[".repeat(100_000), "lb.json:1: "),
        (
            r#"{ "name": "p", "properties": { "protocol": "Sctp", "port": 1, "intervalInSeconds": 5 } }"#,
            r#"protocol: expected "Tcp", "Http" or "Https", got "Sctp""#,
        ),
        (
            r#"{ "name": "f", "properties": { "privateIPAddress": "10.0.0.256" } }"#,
            r#"expected an IPv4 or IPv6 address, got "10.0.0.256""#,
        ),
    ] {
        let found = errors(text, &inventory);
        assert!(found.contains(expected), "{expected}\n{found}");
    }
}

/// A template as one is written by hand: parameters, variables, copies, child resources.
const TEMPLATE: &str = r#"{
  "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
  "contentVersion": "1.0.0.0",
  "parameters": { "lbName": { "type": "string", "defaultValue": "web-lb" }, "vms": { "type": "int", "defaultValue": 2 } },
  "variables": { "pool": "servers", "lbId": "[resourceId('Microsoft.Network/loadBalancers', parameters('lbName'))]" },
  "resources": [
    { "type": "Microsoft.Network/publicIPAddresses", "name": "pip", "properties": { "ipAddress": "40.50.60.70", "publicIPAllocationMethod": "Static" } },
    { "type": "Microsoft.Compute/virtualMachines", "name": "vm0" },
    { "type": "Microsoft.Network/networkInterfaces", "name": "[concat('nic', copyIndex())]",
      "copy": { "name": "nics", "count": "[parameters('vms')]" },
      "properties": { "ipConfigurations": [ { "name": "c", "properties": {
        "privateIPAddress": "[format('10.0.1.{0}', add(copyIndex(), 4))]",
        "loadBalancerBackendAddressPools": [ { "id": "[concat(variables('lbId'), '/backendAddressPools/', variables('pool'))]" } ],
        "loadBalancerInboundNatRules": [ { "id": "[concat(variables('lbId'), '/inboundNatRules/ssh', string(copyIndex()))]" } ] } } ] } },
    { "type": "Microsoft.Network/loadBalancers", "name": "[parameters('lbName')]", "location": "[resourceGroup().location]",
      "properties": {
        "frontendIPConfigurations": [ { "name": "fe", "properties": { "publicIPAddress": { "id": "[resourceId('Microsoft.Network/publicIPAddresses', 'pip')]" } } } ],
        "backendAddressPools": [ { "name": "[variables('pool')]" } ],
        "loadBalancingRules": [ { "name": "http", "properties": {
          "frontendIPConfiguration": { "id": "[resourceId('Microsoft.Network/loadBalancers/frontendIPConfigurations', parameters('lbName'), 'fe')]" },
          "backendAddressPool": { "id": "[resourceId('Microsoft.Network/loadBalancers/backendAddressPools', parameters('lbName'), variables('pool'))]" },
          "protocol": "Tcp", "frontendPort": 80, "backendPort": 80, "disableOutboundSnat": true } } ],
        "inboundNatRules": [ { "name": "ssh0", "properties": { "frontendIPConfiguration": { "id": "[concat(variables('lbId'), '/frontendIPConfigurations/fe')]" },
          "protocol": "Tcp", "frontendPort": 50000, "backendPort": 22 } } ]
      } },
    { "type": "Microsoft.Network/loadBalancers/inboundNatRules", "name": "[concat(parameters('lbName'), '/ssh', copyIndex(1))]",
      "copy": { "name": "rules", "count": "[sub(parameters('vms'), 1)]" },
      "properties": { "frontendIPConfiguration": { "id": "[concat(variables('lbId'), '/frontendIPConfigurations/fe')]" },
        "protocol": "Tcp", "frontendPort": "[copyIndex(50001)]", "backendPort": 22 } },
    { "type": "Microsoft.Network/loadBalancers", "name": "second", "properties": {
        "frontendIPConfigurations": [ { "name": "fe", "properties": { "privateIPAddress": "10.0.2.100" } } ],
        "backendAddressPools": [ { "name": "others", "properties": { "loadBalancerBackendAddresses": [ { "properties": { "ipAddress": "10.0.3.1" } } ] } } ],
        "loadBalancingRules": [ { "name": "http", "properties": { "frontendIPConfiguration": { "id": "x/fe" }, "backendAddressPool": { "id": "x/others" },
          "protocol": "Tcp", "frontendPort": 80 } } ] } }
  ]
}"#;

#[test]
fn a_template_with_all_that_belongs_to_it() {
    let inventory = r#"
        vni = 9
        [node]
        role = "mux"
        underlay = "172.16.0.11"
        [[backend]]
        id = "nic0"
        host = "172.16.0.101"
        [[backend]]
        id = "nic1"
        host = "172.16.0.102"
        [[backend]]
        address = "10.0.1.6"
        host = "172.16.0.103"
        [[backend]]
        address = "10.0.3.1"
        host = "172.16.0.103"
    "#;
    let inventory = Inventory::parse("inventory.toml", inventory).expect("good");
    let parameters = r#"{ "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentParameters.json#",
        "parameters": { "vms": { "value": 3 } } }"#;
    let inputs = [("t.json", TEMPLATE), ("p.json", parameters)];
    let inputs = inputs.map(|(file, text)| Input { file, text });
    let imported = import(&inputs, &inventory).unwrap_or_else(|errors| panic!("{errors}"));
    let config = Config::parse("imported", &imported.toml).expect("good");

    let backends = &config.pools[0].backends;
    let backends: Vec<String> = backends
        .iter()
        .map(|b| format!("{} {}", b.name, b.address))
        .collect();
    assert_eq!(
        backends,
        ["nic0 10.0.1.4", "nic1 10.0.1.5", "nic2 10.0.1.6"]
    );
    let nat: Vec<_> = config
        .inbound_nat
        .iter()
        .map(|n| (n.name.as_str(), n.target))
        .collect();
    let to = |port, backend| NatTarget::Backend { port, backend };
    let expected = [
        ("ssh0", to(50000, 0)),
        ("ssh1", to(50001, 1)),
        ("ssh2", to(50002, 2)),
    ];
    assert_eq!(nat, expected);
    // Two load balancers have names in common.
    let rules: Vec<_> = config
        .rules
        .iter()
        .map(|r| (r.name.as_str(), r.frontend, r.pool))
        .collect();
    assert_eq!(rules, [("web-lb/http", 0, 0), ("second/http", 1, 1)]);
    assert_eq!(config.frontends[1].name, "second/fe");
    // An internal one lets nobody out.
    assert!(config.outbound.is_empty());

    let warnings: Vec<String> = imported.warnings.iter().map(ToString::to_string).collect();
    let [warning] = warnings.as_slice() else {
        panic!("{warnings:#?}");
    };
    assert!(warning.contains("a Microsoft.Compute/virtualMachines is no part of a load balancer"));
}

#[test]
fn a_loop_that_says_too_little_is_refused() {
    let text = r#"{ "name": "p", "properties": { "protocol": "Tcp", "intervalInSeconds": 5,
        "copy": [{ "name": "port", "count": 2 }] } }"#;
    let found = errors(text, &inventory());
    let expected = "lb.json:2: probe \"p\": port: expected 1 to 65535, got the expression \"copy of \\\"port\\\"\", \
                    which cannot be evaluated: input is missing";
    assert!(found.contains(expected), "{found}");
}

#[test]
fn a_faulty_inventory_is_told_with_its_lines() {
    let text = "vnis = 1\n[[public_ip]]\nid = \"a\"\naddress = \"10.0.0.0/40\"\n[[backend]]\nhots = \"x\"\n";
    let found = Inventory::parse("inventory.toml", text)
        .expect_err("faults")
        .to_string();
    for expected in [
        "inventory.toml:1: unknown field \"vnis\"",
        "inventory.toml:4: public_ip 1: address: expected an address, or a prefix",
        "inventory.toml:6: backend 1: unknown field \"hots\": did you mean \"host\"?",
    ] {
        assert!(found.contains(expected), "{expected}\n{found}");
    }
}

#[test]
fn any_text_is_read_or_refused() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        let _ = import_one(&text, &Inventory::default());
    });
}

/// Pieces of JSON in any order and number: more of them are read.
#[test]
fn any_json_is_imported_or_refused() {
    const PIECES: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"name\"",
        "\"properties\"",
        "\"resources\"",
        "\"type\"",
        "null",
        "true",
        "80",
        "\"Tcp\"",
        "\"probes\"",
        "\"port\"",
        "\"id\"",
        "\"a/b\"",
        "\"[variables('a')]\"",
        "\"variables\"",
        "\"a\"",
        "\"frontendIPConfigurations\"",
        "\"Microsoft.Network/loadBalancers\"",
        "\"copy\"",
        "\"count\"",
        "-1",
        "1e9",
    ];
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let pieces = bytes
            .iter()
            .map(|&byte| PIECES[usize::from(byte) % PIECES.len()]);
        let text: String = pieces.collect();
        if let Ok(imported) = import_one(&text, &Inventory::default()) {
            // What is written can be read as TOML, if not as a configuration.
            let table: Result<toml::Table, _> = imported.toml.parse();
            assert!(table.is_ok(), "{}", imported.toml);
        }
    });
}

//! Scale sets and SKUs.

use slb_control::azure::Inventory;
use slb_core::spec::NatTarget;

use super::{around, config, errors, import_one, instances, inventory};

const SCALE_SET: &str = r#", { "type": "Microsoft.Compute/virtualMachineScaleSets", "name": "vmss",
    "sku": { "name": "Standard_B1s", "tier": "Standard" CAPACITY },
    "properties": { "upgradePolicy": { "mode": "Manual" }, "virtualMachineProfile": {
      "osProfile": { "adminPassword": "[parameters('password')]" },
      "networkProfile": { "networkInterfaceConfigurations": [ { "name": "nic", "properties": { "primary": true,
        "ipConfigurations": [ { "name": "ip", "properties": {
          "loadBalancerBackendAddressPools": [ { "id": "[resourceId('Microsoft.Network/loadBalancers/backendAddressPools', 'ss', 'be')]" } ],
          "loadBalancerInboundNatPools": [ { "id": "[resourceId('Microsoft.Network/loadBalancers/inboundNatPools', 'ss', 'ssh')]" } ]
        } } ] } } ] } } } },
  { "type": "Microsoft.Network/loadBalancers", "name": "ss", "sku": { "name": "Standard" }, "properties": {
    "frontendIPConfigurations": [ { "name": "in", "properties": { "privateIPAddress": "10.0.0.99" } } ],
    "backendAddressPools": [ { "name": "other" }, { "name": "be" } ],
    "inboundNatPools": [ { "name": "ssh", "properties": { "frontendIPConfiguration": { "id": "x/in" }, "protocol": "Tcp",
      "frontendPortRangeStart": 50000, "frontendPortRangeEnd": 50009, "backendPort": 22 } } ] } }"#;

#[test]
fn a_scale_sets_instances_are_as_many_as_it_says() {
    let text = |capacity: &str| {
        let set = SCALE_SET.replace("CAPACITY", capacity);
        around(&set, "")
    };
    let three = text(", \"capacity\": 3");
    let config = config(&three, &inventory(&instances("ss/be", 3)));
    let pool = config
        .pools
        .iter()
        .position(|pool| pool.name == "ss/be")
        .expect("the pool");
    assert_eq!(config.pools[pool].backends.len(), 3);
    let nat = &config.inbound_nat[0];
    let ports = NatTarget::Pool {
        first: 50000,
        last: 50009,
    };
    assert_eq!((nat.pool, nat.target), (pool, ports));
    // Fewer than there are would be another load balancer.
    let found = errors(&three, &inventory(&instances("ss/be", 2)));
    let expected = "pool \"be\": backends: scale set \"vmss\" has 3 instances in it, and the inventory lists 2: \
                    [[backend]] with pool = \"be\", address and host for each";
    assert!(found.contains(expected), "{found}");
    // One that is listed twice is one.
    let twice = instances("ss/be", 2) + &instances("ss/be", 1);
    let found = errors(&three, &inventory(&twice));
    assert!(found.contains("the inventory lists 2"), "{found}");
    let more = import_one(&three, &inventory(&instances("ss/be", 4))).expect("more is a warning");
    assert!(
        more.warnings.iter().any(|w| w.message.contains("lists 4")),
        "{:?}",
        more.warnings
    );
    for (capacity, expected) in [
        ("", "sku: capacity: is missing"),
        (
            ", \"capacity\": \"[x()]\"",
            "capacity: expected 0 to 1000, got the expression",
        ),
    ] {
        let found = errors(&text(capacity), &inventory(&instances("ss/be", 3)));
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn what_a_sku_cannot_do_is_refused() {
    let balancer = |sku: &str, frontend: &str, more: &str| {
        format!(
            r#"{{ "resources": [ {{ "type": "Microsoft.Network/loadBalancers", "name": "lb", {sku} "properties": {{
              "frontendIPConfigurations": [ {{ "name": "fe", "properties": {{ {frontend} }} }} ],
              "backendAddressPools": [ {{ "name": "a" }}, {{ "name": "b" }} ], {more} }} }} ] }}"#
        )
    };
    let standard = r#""sku": { "name": "Standard" },"#;
    let inside = r#""privateIPAddress": "10.0.0.100""#;
    let outside = r#""publicIPAddress": { "id": "x/pip" }"#;
    let rule = |members: &str| {
        format!(
            r#""loadBalancingRules": [ {{ "name": "r", "properties": {{ "frontendIPConfiguration": {{ "id": "x/fe" }}, {members} }} }} ]"#
        )
    };
    let ha = rule(
        r#""backendAddressPool": { "id": "x/a" }, "protocol": "All", "frontendPort": 0, "backendPort": 0"#,
    );
    let https =
        r#""probes": [ { "name": "p", "properties": { "protocol": "Https", "port": 443 } } ]"#;
    let outbound = r#""outboundRules": [ { "name": "o", "properties": { "frontendIPConfigurations": [ { "id": "x/fe" } ],
        "backendAddressPool": { "id": "x/a" }, "protocol": "All" } } ]"#;
    let known = inventory("[[public_ip]]\nid = \"pip\"\naddress = \"40.50.60.70\"\n");
    for text in [
        balancer(standard, inside, &ha),
        balancer(standard, inside, https),
        balancer(standard, outside, outbound),
    ] {
        assert!(import_one(&text, &known).is_ok(), "{text}");
    }
    for (text, expected) in [
        (
            balancer("", inside, &ha),
            "rule \"r\": protocol: HA ports need a Standard load balancer, and this one is Basic",
        ),
        (
            balancer(r#""sku": { "name": "Basic" },"#, inside, https),
            "probe \"p\": protocol: HTTPS probes need a Standard",
        ),
        (
            balancer("", outside, outbound),
            "outbound rule \"o\": sku: outbound rules need a Standard",
        ),
        (
            balancer(standard, outside, &ha),
            "rule \"r\": protocol: HA ports are of internal frontends only",
        ),
        (
            balancer(r#""sku": { "name": "Gateway" },"#, inside, ""),
            "load balancer \"lb\": sku: name: Gateway load balancers",
        ),
        (
            balancer(
                r#""sku": { "name": "Standard", "tier": "Global" },"#,
                outside,
                "",
            ),
            "sku: tier: Global load balancers",
        ),
        (
            balancer(
                standard,
                inside,
                &rule(
                    r#""backendAddressPools": [ { "id": "x/a" }, { "id": "x/b" } ], "protocol": "Tcp", "frontendPort": 80"#,
                ),
            ),
            "rule \"r\": backendAddressPools: expected one pool",
        ),
        (
            balancer(
                standard,
                inside,
                &rule(
                    r#""backendAddressPool": { "id": "/loadBalancers/other/backendAddressPools/a" }, "protocol": "Tcp", "frontendPort": 80"#,
                ),
            ),
            "backendAddressPool: expected a pool of load balancer \"lb\", got one of \"other\"",
        ),
        (
            balancer(
                standard,
                r#""privateIPAddress": "10.0.0.100", "gatewayLoadBalancer": { "id": "x" }"#,
                "",
            ),
            "frontend \"fe\": gatewayLoadBalancer: chains through a Gateway load balancer",
        ),
    ] {
        let text = text.replace(", } } ]", " } } ]").replace("],  }", "] }");
        let found = errors(&text, &known);
        assert!(found.contains(expected), "{expected}\n{found}");
    }
    // Azure names the pool twice where it writes a rule out.
    let both = rule(
        r#""backendAddressPool": { "id": "x/a" }, "backendAddressPools": [ { "id": "x/a" } ], "protocol": "Tcp", "frontendPort": 80"#,
    );
    assert!(import_one(&balancer(standard, inside, &both), &known).is_ok());
    // 300 backends are a Basic one's most.
    let many = |sku: &str, count: u32| {
        let address = |n: u32| {
            format!(
                r#"{{ "properties": {{ "ipAddress": "10.1.{}.{}" }} }}"#,
                n / 250,
                n % 250 + 1
            )
        };
        let all: Vec<String> = (0..count).map(address).collect();
        format!(
            r#"{{ "resources": [ {{ "type": "Microsoft.Network/loadBalancers", "name": "lb", {sku} "properties": {{ "backendAddressPools": [
              {{ "name": "a", "properties": {{ "loadBalancerBackendAddresses": [ {} ] }} }} ] }} }} ] }}"#,
            all.join(",")
        )
    };
    let proxy = Inventory::parse("inventory", "[node]\nrole = \"proxy\"\n").expect("good");
    assert!(import_one(&many("", 300), &proxy).is_ok());
    assert!(import_one(&many(standard, 301), &proxy).is_ok());
    assert!(errors(&many("", 301), &proxy).contains("has at most 300 backends, got 301"));
}

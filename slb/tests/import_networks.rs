//! `slb import` of virtual networks and network security groups, and what the configuration does with packets. No root.

use std::fs;
use std::process::Command;

/// Two tiers in two subnets, each with a group; one of the web servers has a group of its own too. The resources have
/// the form of Azure's reference of `Microsoft.Network`, API version 2024-05-01.
const TEMPLATE: &str = r#"{
  "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
  "contentVersion": "1.0.0.0",
  "variables": { "tiers": [ "web", "app" ] },
  "resources": [
    { "type": "Microsoft.Network/networkSecurityGroups", "apiVersion": "2024-05-01", "name": "web-nsg",
      "properties": { "securityRules": [
        { "name": "http", "properties": { "description": "Open to all.", "protocol": "Tcp", "sourcePortRange": "*",
          "destinationPortRange": "80", "sourceAddressPrefix": "Internet", "destinationAddressPrefix": "*",
          "access": "Allow", "priority": 100, "direction": "Inbound" } },
        { "name": "no-test-nets", "properties": { "protocol": "TCP", "sourcePortRange": "*",
          "destinationPortRanges": [ "443", "8000-8010" ],
          "sourceAddressPrefixes": [ "198.51.100.0/24", "203.0.113.9" ], "destinationAddressPrefix": "*",
          "access": "Deny", "priority": 110, "direction": "Inbound" } },
        { "name": "https", "properties": { "protocol": "*", "sourcePortRange": "*", "destinationPortRange": "443",
          "sourceAddressPrefix": "*", "destinationAddressPrefix": "*",
          "access": "Allow", "priority": 120, "direction": "Inbound" } } ] } },
    { "type": "Microsoft.Network/networkSecurityGroups/securityRules", "apiVersion": "2024-05-01",
      "name": "web-nsg/no-mail",
      "properties": { "protocol": "Tcp", "sourcePortRange": "*", "destinationPortRange": "25",
        "sourceAddressPrefix": "VirtualNetwork", "destinationAddressPrefix": "Internet",
        "access": "Deny", "priority": 100, "direction": "Outbound" } },
    { "type": "Microsoft.Network/networkSecurityGroups", "apiVersion": "2024-05-01", "name": "web1-nsg",
      "properties": { "securityRules": [
        { "name": "no-test-net", "properties": { "protocol": "*", "sourcePortRange": "*", "destinationPortRange": "*",
          "sourceAddressPrefix": "203.0.113.0/24", "destinationAddressPrefix": "*",
          "access": "Deny", "priority": 100, "direction": "Inbound" } },
        { "name": "others", "properties": { "protocol": "*", "sourcePortRange": "*", "destinationPortRange": "*",
          "sourceAddressPrefix": "*", "destinationAddressPrefix": "*",
          "access": "Allow", "priority": 200, "direction": "Inbound" } } ] } },
    { "type": "Microsoft.Network/networkSecurityGroups", "apiVersion": "2024-05-01", "name": "app-nsg",
      "properties": { "securityRules": [
        { "name": "from-web", "properties": { "protocol": "Tcp", "sourcePortRange": "*",
          "destinationPortRange": "8080", "sourceAddressPrefix": "10.0.1.0/24",
          "destinationAddressPrefix": "VirtualNetwork",
          "access": "Allow", "priority": 100, "direction": "Inbound" } },
        { "name": "nothing-else", "properties": { "protocol": "*", "sourcePortRange": "*",
          "destinationPortRange": "*", "sourceAddressPrefix": "VirtualNetwork", "destinationAddressPrefix": "*",
          "access": "Deny", "priority": 200, "direction": "Inbound" } } ] } },
    { "type": "Microsoft.Network/virtualNetworks", "apiVersion": "2024-05-01", "name": "shop",
      "properties": { "addressSpace": { "addressPrefixes": [ "10.0.0.0/16" ] },
        "copy": [ { "name": "subnets", "count": 2, "input": {
          "name": "[variables('tiers')[copyIndex('subnets')]]",
          "properties": { "addressPrefix": "[cidrSubnet('10.0.0.0/16', 24, add(copyIndex('subnets'), 1))]",
            "networkSecurityGroup": { "id":
              "[resourceId('Microsoft.Network/networkSecurityGroups', concat(variables('tiers')[copyIndex('subnets')], '-nsg'))]"
            } } } } ] } },
    { "type": "Microsoft.Network/publicIPAddresses", "apiVersion": "2024-05-01", "name": "web-ip",
      "properties": { "ipAddress": "40.50.60.70" } },
    { "type": "Microsoft.Network/loadBalancers", "apiVersion": "2024-05-01", "name": "web-lb",
      "sku": { "name": "Standard" },
      "properties": {
        "frontendIPConfigurations": [ { "name": "web", "properties": {
          "publicIPAddress": { "id": "[resourceId('Microsoft.Network/publicIPAddresses', 'web-ip')]" } } } ],
        "backendAddressPools": [ { "name": "web-servers" } ],
        "copy": [ { "name": "loadBalancingRules", "count": 2, "input": {
          "name": "[concat('port-', createArray(80, 443)[copyIndex('loadBalancingRules')])]",
          "properties": {
            "frontendIPConfiguration": { "id":
              "[resourceId('Microsoft.Network/loadBalancers/frontendIPConfigurations', 'web-lb', 'web')]" },
            "backendAddressPool": { "id":
              "[resourceId('Microsoft.Network/loadBalancers/backendAddressPools', 'web-lb', 'web-servers')]" },
            "protocol": "Tcp", "frontendPort": "[createArray(80, 443)[copyIndex('loadBalancingRules')]]",
            "backendPort": "[createArray(80, 443)[copyIndex('loadBalancingRules')]]",
            "disableOutboundSnat": true } } } ],
        "outboundRules": [ { "name": "out", "properties": { "protocol": "All", "allocatedOutboundPorts": 1024,
          "frontendIPConfigurations": [ { "id":
            "[resourceId('Microsoft.Network/loadBalancers/frontendIPConfigurations', 'web-lb', 'web')]" } ],
          "backendAddressPool": { "id":
            "[resourceId('Microsoft.Network/loadBalancers/backendAddressPools', 'web-lb', 'web-servers')]" } } } ] } },
    { "type": "Microsoft.Network/loadBalancers", "apiVersion": "2024-05-01", "name": "app-lb",
      "sku": { "name": "Standard" },
      "properties": {
        "frontendIPConfigurations": [ { "name": "app", "properties": { "privateIPAddress": "10.0.2.100",
          "subnet": { "id": "[resourceId('Microsoft.Network/virtualNetworks/subnets', 'shop', 'app')]" } } } ],
        "backendAddressPools": [ { "name": "app-servers" } ],
        "loadBalancingRules": [ { "name": "app", "properties": {
          "frontendIPConfiguration": { "id":
            "[resourceId('Microsoft.Network/loadBalancers/frontendIPConfigurations', 'app-lb', 'app')]" },
          "backendAddressPool": { "id":
            "[resourceId('Microsoft.Network/loadBalancers/backendAddressPools', 'app-lb', 'app-servers')]" },
          "protocol": "Tcp", "frontendPort": 8080, "backendPort": 8080, "loadDistribution": "SourceIP" } } ] } },
    { "type": "Microsoft.Network/networkInterfaces", "apiVersion": "2024-05-01", "name": "web1",
      "properties": {
        "networkSecurityGroup": { "id": "[resourceId('Microsoft.Network/networkSecurityGroups', 'web1-nsg')]" },
        "ipConfigurations": [ { "name": "ipconfig", "properties": { "privateIPAddress": "10.0.1.4",
          "subnet": { "id": "[resourceId('Microsoft.Network/virtualNetworks/subnets', 'shop', 'web')]" },
          "loadBalancerBackendAddressPools": [ { "id":
            "[resourceId('Microsoft.Network/loadBalancers/backendAddressPools', 'web-lb', 'web-servers')]" } ] } } ] } },
    { "type": "Microsoft.Network/networkInterfaces", "apiVersion": "2024-05-01", "name": "web2",
      "properties": {
        "ipConfigurations": [ { "name": "ipconfig", "properties": { "privateIPAddress": "10.0.1.5",
          "subnet": { "id": "[resourceId('Microsoft.Network/virtualNetworks/subnets', 'shop', 'web')]" },
          "loadBalancerBackendAddressPools": [ { "id":
            "[resourceId('Microsoft.Network/loadBalancers/backendAddressPools', 'web-lb', 'web-servers')]" } ] } } ] } },
    { "type": "Microsoft.Network/networkInterfaces", "apiVersion": "2024-05-01", "name": "app1",
      "properties": {
        "ipConfigurations": [ { "name": "ipconfig", "properties": { "privateIPAddress": "10.0.2.4",
          "subnet": { "id": "[resourceId('Microsoft.Network/virtualNetworks/subnets', 'shop', 'app')]" },
          "loadBalancerBackendAddressPools": [ { "id":
            "[resourceId('Microsoft.Network/loadBalancers/backendAddressPools', 'app-lb', 'app-servers')]" } ] } } ] } }
  ]
}"#;

const INVENTORY: &str = r#"
[node]
role = "host"
underlay = "172.16.0.101"
muxes = "172.16.0.11"
[[network]]
id = "shop"
vni = 5002
[[backend]]
id = "web1"
host = "172.16.0.101"
[[backend]]
id = "web2"
host = "172.16.0.101"
[[backend]]
id = "app1"
host = "172.16.0.101"
"#;

fn slb(arguments: &[&str]) -> String {
    let mut slb = Command::new(env!("CARGO_BIN_EXE_slb"));
    let output = slb.args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn groups_decide_as_in_azure_once_they_are_imported() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    fs::write(at("shop.json"), TEMPLATE).unwrap();
    fs::write(at("inventory.toml"), INVENTORY).unwrap();
    let out = at("shop.toml");
    slb(&[
        "import",
        &at("shop.json"),
        "--inventory",
        &at("inventory.toml"),
        "--out",
        &out,
    ]);
    let said = slb(&["check", &out]);
    for line in [
        "network \"shop\": VNI 5002, 10.0.0.0/16, 5 addresses of vms, 1 private frontend",
        "security list \"web-nsg\": 4 rules, of vm \"web1\", vm \"web2\"",
        "security list \"web1-nsg\": 2 rules, of vm \"web1\"",
        "security list \"app-nsg\": 2 rules, of pool \"app-servers\"",
        "rule \"app\": tcp port 8080 of 10.0.2.100 in network \"shop\" to pool \"app-servers\"",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let explain = |more: &[&str]| {
        let mut arguments = vec!["explain", &*out];
        arguments.extend(more);
        slb(&arguments)
    };
    // From the Internet through a mux.
    for (source, port, decision) in [
        (
            "192.0.2.1:5000",
            80,
            "list \"web-nsg\", rule \"http\" (priority 100): allow",
        ),
        (
            "198.51.100.7:5000",
            443,
            "list \"web-nsg\", rule \"no-test-nets\" (priority 110): deny",
        ),
        (
            "203.0.113.9:5001",
            443,
            "list \"web-nsg\", rule \"no-test-nets\" (priority 110): deny",
        ),
        (
            "192.0.2.1:5000",
            443,
            "list \"web-nsg\", rule \"https\" (priority 120): allow",
        ),
    ] {
        let said = explain(&["tcp", source, &format!("40.50.60.70:{port}")]);
        let expected = format!("access     inbound: {decision}");
        assert!(said.contains(&expected), "{expected}: {said}");
        let is_denied = said.contains("drop, denied");
        assert_eq!(is_denied, decision.ends_with("deny"), "{said}");
    }
    // The group of a network interface applies to it alone, beside that of its subnet.
    let mut met = [false; 2];
    for port in 6000..6040 {
        let said = explain(&["tcp", &format!("203.0.113.5:{port}"), "40.50.60.70:80"]);
        let is_first = said.contains("backend    \"web1\"");
        assert_ne!(is_first, said.contains("backend    \"web2\""), "{said}");
        let denied =
            "access     inbound: list \"web1-nsg\", rule \"no-test-net\" (priority 100): deny";
        assert_eq!(said.contains(denied), is_first, "{said}");
        assert_eq!(said.contains("drop, denied"), is_first, "{said}");
        met[usize::from(is_first)] = true;
    }
    assert_eq!(met, [true; 2]);
    // Between the subnets, also by the internal load balancer, and out.
    for (from, source, destination, decisions) in [
        (
            "web1",
            "10.0.1.4:1000",
            "10.0.2.4:8080",
            &[
                "outbound: list \"web-nsg\", default rule \"allow-network-outbound\" (priority 65000): allow",
                "inbound: list \"app-nsg\", rule \"from-web\" (priority 100): allow",
            ][..],
        ),
        (
            "web2",
            "10.0.1.5:1000",
            "10.0.2.100:8080",
            &["inbound: list \"app-nsg\", rule \"from-web\" (priority 100): allow"],
        ),
        (
            "web2",
            "10.0.1.5:1000",
            "10.0.2.4:22",
            &["inbound: list \"app-nsg\", rule \"nothing-else\" (priority 200): deny"],
        ),
        (
            "app1",
            "10.0.2.4:1000",
            "10.0.1.5:9000",
            &[
                "inbound: list \"web-nsg\", default rule \"allow-network-inbound\" (priority 65000): allow",
            ],
        ),
        (
            "web2",
            "10.0.1.5:1000",
            "9.9.9.9:25",
            &["outbound: list \"web-nsg\", rule \"no-mail\" (priority 100): deny"],
        ),
        (
            "web2",
            "10.0.1.5:1000",
            "9.9.9.9:80",
            &[
                "outbound: list \"web-nsg\", default rule \"allow-internet-outbound\" (priority 65001): allow",
            ],
        ),
    ] {
        let said = explain(&["--from", from, "tcp", source, destination]);
        for decision in decisions {
            let expected = format!("access     {decision}");
            assert!(said.contains(&expected), "{expected}: {said}");
            let is_denied = decision.ends_with("deny");
            assert_eq!(said.contains("drop, denied"), is_denied, "{said}");
        }
    }
}

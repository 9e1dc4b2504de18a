//! Virtual networks and network security groups: what they become, and which are refused.

use slb_control::azure::{Imported, Input, Inventory, import};
use slb_control::{Config, ConfigErrors};

/// A subnet with a group, a load balancer, and two vms in its pool, of which one has a group of its own.
const TEMPLATE: &str = r#"{ "resources": [
  { "type": "Microsoft.Network/networkSecurityGroups", "name": "subnet-nsg", "properties": {
    "securityRules": [
      { "name": "web", "properties": { "protocol": "Tcp", "sourcePortRange": "*",
        "destinationPortRanges": [ "80", "8000-8010" ], "sourceAddressPrefix": "Internet",
        "destinationAddressPrefix": "*", "access": "Allow", "priority": 100, "direction": "Inbound" } } ],
    "defaultSecurityRules": [ { "name": "DenyAllInBound" } ] } },
  { "type": "Microsoft.Network/networkSecurityGroups", "name": "own-nsg", "properties": { "securityRules": [] } },
  { "type": "Microsoft.Network/networkSecurityGroups/securityRules", "name": "own-nsg/mail", "properties": {
      "protocol": "*", "sourcePortRange": "1024-65535", "destinationPortRange": "25",
      "sourceAddressPrefixes": [ "VirtualNetwork", "10.9.0.0/16" ],
      "destinationAddressPrefix": "192.0.2.25", "access": "Deny", "priority": 4096, "direction": "Outbound" } },
  { "type": "Microsoft.Network/virtualNetworks", "name": "net", "properties": {
    "addressSpace": { "addressPrefixes": [ "10.1.0.0/16", "fd00:1::/48" ] },
    "subnets": [ { "name": "vms", "properties": { "addressPrefix": "10.1.2.0/24",
      "networkSecurityGroup": { "id": "/g/networkSecurityGroups/subnet-nsg" } } } ] } },
  { "type": "Microsoft.Network/loadBalancers", "name": "lb", "sku": { "name": "Standard" }, "properties": {
    "frontendIPConfigurations": [ { "name": "front", "properties": {
      "publicIPAddress": { "properties": { "ipAddress": "20.20.20.100" } } } } ],
    "backendAddressPools": [ { "name": "pool" } ],
    "loadBalancingRules": [ { "name": "http", "properties": {
      "frontendIPConfiguration": { "id": "lb/frontendIPConfigurations/front" },
      "backendAddressPool": { "id": "lb/backendAddressPools/pool" },
      "protocol": "Tcp", "frontendPort": 80, "backendPort": 80, "disableOutboundSnat": true } } ] } },
  { "type": "Microsoft.Network/networkInterfaces", "name": "one", "properties": {
    "networkSecurityGroup": { "id": "/g/networkSecurityGroups/own-nsg" },
    "ipConfigurations": [ { "name": "ip", "properties": { "privateIPAddress": "10.1.2.4",
      "subnet": { "id": "/g/virtualNetworks/net/subnets/vms" },
      "loadBalancerBackendAddressPools": [ { "id": "/loadBalancers/lb/backendAddressPools/pool" } ] } } ] } },
  { "type": "Microsoft.Network/networkInterfaces", "name": "two", "properties": {
    "ipConfigurations": [ { "name": "ip", "properties": { "privateIPAddress": "10.1.2.5",
      "subnet": { "id": "/g/virtualNetworks/net/subnets/vms" },
      "loadBalancerBackendAddressPools": [ { "id": "/loadBalancers/lb/backendAddressPools/pool" } ] } } ] } }
] }"#;

const HOSTS: &str = r#"
[[backend]]
id = "one"
host = "172.16.0.101"
mac = "02:00:00:00:00:04"
[[backend]]
id = "two"
host = "172.16.0.101"
"#;

fn inventory(role: &str, more: &str) -> Inventory {
    let node = format!("[node]\nrole = \"{role}\"\nunderlay = \"172.16.0.101\"\n");
    Inventory::parse("inventory.toml", &format!("{more}{node}{HOSTS}")).expect("a good inventory")
}

fn import_one(text: &str, inventory: &Inventory) -> Result<Imported, ConfigErrors> {
    import(
        &[Input {
            file: "t.json",
            text,
        }],
        inventory,
    )
}

fn imported(text: &str, inventory: &Inventory) -> (Imported, Config) {
    let imported = import_one(text, inventory).unwrap_or_else(|errors| panic!("{errors}"));
    let config = Config::parse("imported", &imported.toml);
    let config = config.unwrap_or_else(|errors| panic!("{errors}\n{}", imported.toml));
    (imported, config)
}

/// The message for the template with a change; its place is the first line of the change.
fn refused(old: &str, new: &str) -> String {
    assert!(TEMPLATE.contains(old), "{old}");
    let changed = TEMPLATE.replacen(old, new, 1);
    match import_one(&changed, &inventory("host", "vni = 5001\n")) {
        Ok(imported) => panic!("{old} as {new}: {}", imported.toml),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn groups_become_access_lists_of_the_vms_that_have_them() {
    let (imported, config) = imported(TEMPLATE, &inventory("host", "vni = 5001\n"));
    assert!(imported.warnings.is_empty(), "{:?}", imported.warnings);
    for part in [
        "[[network]]\nname = \"net\"\nvni = 5001\naddress_spaces = [\"10.1.0.0/16\", \"fd00:1::/48\"]\n\
         gateways = [\"10.1.2.1\"]\n",
        "[[security_list]]\nname = \"subnet-nsg\"\n",
        "[[security_rule]]\nname = \"web\"\nsecurity_list = \"subnet-nsg\"\npriority = 100\n\
         direction = \"inbound\"\naccess = \"allow\"\nprotocol = \"tcp\"\nsources = [\"internet\"]\n\
         destination_ports = [\"80\", \"8000-8010\"]\n\n",
        "[[security_rule]]\nname = \"mail\"\nsecurity_list = \"own-nsg\"\npriority = 4096\n\
         direction = \"outbound\"\naccess = \"deny\"\nprotocol = \"any\"\n\
         sources = [\"network\", \"10.9.0.0/16\"]\nsource_ports = [\"1024-65535\"]\n\
         destinations = [\"192.0.2.25\"]\ndestination_ports = [\"25\"]\n",
        "[[pool]]\nname = \"pool\"\nnetwork = \"net\"\nbackends = [\n",
        "[[vm]]\nname = \"one\"\nnetwork = \"net\"\naddress = \"10.1.2.4\"\nhost = \"172.16.0.101\"\n\
         mac = \"02:00:00:00:00:04\"\nsecurity_list = [\"subnet-nsg\", \"own-nsg\"]\n",
        "[[vm]]\nname = \"two\"\nnetwork = \"net\"\naddress = \"10.1.2.5\"\nhost = \"172.16.0.101\"\n\
         security_list = [\"subnet-nsg\"]\n",
    ] {
        assert!(imported.toml.contains(part), "{part}\n{}", imported.toml);
    }
    // Both vms are the backends, not others.
    assert_eq!(config.vms().len(), 2);
}

#[test]
fn a_list_that_all_backends_have_is_their_pools() {
    let own = r#""networkSecurityGroup": { "id": "/g/networkSecurityGroups/own-nsg" },
    "ipConfigurations""#;
    let text = TEMPLATE.replacen(own, "\"ipConfigurations\"", 1);
    let (imported, config) = imported(&text, &inventory("host", "vni = 5001\n"));
    let part = "[[pool]]\nname = \"pool\"\nnetwork = \"net\"\nsecurity_list = [\"subnet-nsg\"]\n";
    assert!(imported.toml.contains(part), "{}", imported.toml);
    assert!(config.network_vms.is_empty());
    let warnings: Vec<String> = imported.warnings.iter().map(ToString::to_string).collect();
    let expected =
        "t.json:8: network security group \"own-nsg\": no backend has it, so it is left out";
    assert_eq!(warnings, [expected]);
}

#[test]
fn associations_are_also_those_that_groups_list() {
    // As in the JSON of an existing group, while the subnet and the interface do not say it.
    let text = TEMPLATE
        .replacen(
            ",\n      \"networkSecurityGroup\": { \"id\": \"/g/networkSecurityGroups/subnet-nsg\" }",
            "",
            1,
        )
        .replacen(
            "\"networkSecurityGroup\": { \"id\": \"/g/networkSecurityGroups/own-nsg\" },\n",
            "",
            1,
        )
        .replacen(
            "\"defaultSecurityRules\"",
            "\"subnets\": [ { \"id\": \"/s/virtualNetworks/net/subnets/vms\" } ], \"defaultSecurityRules\"",
            1,
        )
        .replacen(
            "{ \"securityRules\": [] }",
            "{ \"securityRules\": [], \"networkInterfaces\": [ { \"id\": \"/s/networkInterfaces/one\" } ] }",
            1,
        );
    let whole = inventory("host", "vni = 5001\n");
    let (imported_text, _) = imported(&text, &whole);
    let (expected, _) = imported(TEMPLATE, &whole);
    assert_eq!(imported_text.toml, expected.toml);
}

#[test]
fn what_is_not_understood_is_an_error_with_its_place() {
    for (old, new, expected) in [
        (
            "\"sourceAddressPrefix\": \"Internet\"",
            "\"sourceAddressPrefix\": \"Storage.WestEurope\"",
            "t.json:5: security rule \"web\": sourceAddressPrefix: expected an address, a prefix or one of the service \
             tags \"VirtualNetwork\", \"AzureLoadBalancer\", \"Internet\", or \"*\" alone, got \"Storage.WestEurope\"",
        ),
        (
            "\"VirtualNetwork\", \"10.9.0.0/16\"",
            "\"VirtualNetwork\", \"*\"",
            "or \"*\" alone, got \"*\"",
        ),
        (
            "\"sourceAddressPrefix\": \"Internet\"",
            "\"sourceApplicationSecurityGroups\": [ { \"id\": \"/asg/web\" } ]",
            "t.json:5: security rule \"web\": sourceApplicationSecurityGroups: application security groups are not \
             supported",
        ),
        (
            "\"sourceAddressPrefix\": \"Internet\"",
            "\"sourceAddressPrefix\": \"Internet\", \"sourceAddressPrefixes\": [ \"10.0.0.0/8\" ]",
            "sourceAddressPrefix: expected it or sourceAddressPrefixes, got both",
        ),
        (
            "\"sourceAddressPrefix\": \"Internet\",",
            "",
            "sourceAddressPrefix: is missing, and so is sourceAddressPrefixes",
        ),
        (
            "\"sourceAddressPrefix\": \"Internet\"",
            "\"sourceAddressPrefix\": \"10.0.0.1/8\"",
            "t.json:4: resources[0].properties.securityRules[0]: security_rule \"web\": sources: expected 10.0.0.0/8",
        ),
        (
            "\"80\", \"8000-8010\"",
            "\"80\", \"8010-8000\"",
            "destinationPortRange: expected a port, a range such as \"8000-8010\", or \"*\" alone, got \"8010-8000\"",
        ),
        (
            "\"priority\": 100,",
            "",
            "security rule \"web\": priority: is missing",
        ),
        (
            "\"priority\": 100,",
            "\"priority\": 99,",
            "priority: expected 100 to 4096, got 99",
        ),
        (
            "\"protocol\": \"Tcp\", \"sourcePortRange\"",
            "\"protocol\": \"Sctp\", \"sourcePortRange\"",
            "protocol: expected \"*\", \"Tcp\", \"Udp\", \"Icmp\", \"Esp\" or \"Ah\", got \"Sctp\"",
        ),
        (
            "\"protocol\": \"Tcp\", \"sourcePortRange\"",
            "\"protocol\": \"Icmp\", \"sourcePortRange\"",
            "destination_ports: expected \"any\", since packets of protocol \"icmp\" have no ports",
        ),
        (
            "\"name\": \"subnet-nsg\", \"properties\"",
            "\"name\": \"other-nsg\", \"properties\"",
            "network security group \"subnet-nsg\" is not among the files given",
        ),
        (
            "\"addressSpace\": {",
            "\"virtualNetworkPeerings\": [ { \"name\": \"p\" } ], \"addressSpace\": {",
            "virtual network \"net\": virtualNetworkPeerings: peerings are not supported",
        ),
        (
            "\"addressPrefixes\": [ \"10.1.0.0/16\", \"fd00:1::/48\" ]",
            "\"ipamPoolPrefixAllocations\": []",
            "virtual network \"net\": addressSpace: expected addressPrefixes, got none",
        ),
        (
            "\"name\": \"own-nsg\", \"properties\": { \"securityRules\": [] }",
            "\"name\": \"own-nsg\", \"properties\": { \"securityRules\": \"[parameters('rules')]\" }",
            "securityRules",
        ),
        (
            "\"name\": \"own-nsg/mail\"",
            "\"name\": \"mail\"",
            "security rule: name: expected GROUP/RULE, got \"mail\"",
        ),
        (
            "/g/networkSecurityGroups/own-nsg",
            "/g/routeTables/own-nsg",
            "networkSecurityGroup: expected the id of a network security group, got \"/g/routeTables/own-nsg\"",
        ),
        (
            "\"subnet\": { \"id\": \"/g/virtualNetworks/net/subnets/vms\" }",
            "\"subnet\": { \"id\": \"/g/virtualNetworks/net/subnets/web\" }",
            "virtual network \"net\": subnet \"web\" of 10.1.2.4 is not among the files given",
        ),
        (
            "10.1.2.5",
            "10.1.2.4",
            "pool \"pool\": backends: \"one\" and \"two\" have one address, 10.1.2.4",
        ),
        (
            "\"defaultSecurityRules\"",
            "\"flushConnections\": 1, \"securityRules\"",
            "\"securityRules\" is named twice",
        ),
    ] {
        let said = refused(old, new);
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    let interface = "  { \"type\": \"Microsoft.Network/networkInterfaces\", \"name\": \"one\"";
    let with = |resource: &str| refused(interface, &format!("{resource},\n{interface}"));
    for (resource, expected) in [
        (
            r#"  { "type": "Microsoft.Network/virtualNetworks/virtualNetworkPeerings", "name": "net/p", "properties": {} }"#,
            "peering \"net/p\": peerings are not supported",
        ),
        (
            r#"  { "type": "Microsoft.Network/virtualNetworks", "name": "hub", "properties": {
                   "virtualNetworkPeerings": [ { "name": "to-net" } ] } }"#,
            "peering \"to-net\": peerings are not supported",
        ),
        (
            r#"  { "type": "Microsoft.Network/virtualNetworks/subnets", "name": "web", "properties": {} }"#,
            "subnet: name: expected NETWORK/SUBNET, got \"web\"",
        ),
    ] {
        let said = with(resource);
        assert!(said.contains(expected), "{expected}\n{said}");
    }
    // One rule in two places, and two of one priority.
    let rule = "{ \"name\": \"web\", \"properties\"";
    let twice = TEMPLATE.replacen(
        "\"name\": \"own-nsg/mail\"",
        "\"name\": \"subnet-nsg/web\"",
        1,
    );
    // A child of that name overrides the group's own rule.
    let (_, config) = imported(&twice, &inventory("host", "vni = 5001\n"));
    let list = config
        .security_lists
        .iter()
        .find(|list| list.name == "subnet-nsg");
    assert_eq!(list.expect("a list").rules[0].priority, 4096);
    let inner = TEMPLATE.find(rule).expect("the rule");
    let end = inner + TEMPLATE[inner..].find("} }").expect("its end") + 3;
    let own = &TEMPLATE[inner..end];
    let said = refused(own, &format!("{own}, {own}"));
    assert!(
        said.contains("network security group \"subnet-nsg\": \"web\" is declared twice"),
        "{said}"
    );
    let other = own.replace("\"web\"", "\"web2\"");
    let said = refused(own, &format!("{own}, {other}"));
    assert!(said.contains("priority"), "{said}");
}

#[test]
fn a_network_is_imported_with_a_vni_of_its_own_or_with_lists() {
    let bare = TEMPLATE
        .replacen("\"networkSecurityGroup\": { \"id\": \"/g/networkSecurityGroups/own-nsg\" },\n", "", 1)
        .replacen(
            ",\n      \"networkSecurityGroup\": { \"id\": \"/g/networkSecurityGroups/subnet-nsg\" }",
            "",
            1,
        );
    let (without, config) = imported(&bare, &inventory("host", "vni = 5001\n"));
    assert!(config.networks.is_empty() && config.security_lists.is_empty());
    let warnings: Vec<String> = without.warnings.iter().map(ToString::to_string).collect();
    let left = |start: &str| warnings.iter().any(|warning| warning.contains(start));
    assert!(left(
        "a Microsoft.Network/virtualNetworks is no part of a load balancer, and left out"
    ));
    assert!(left("\"subnet-nsg\": no backend has it") && left("\"own-nsg\": no backend has it"));
    let entry = "[[network]]\nid = \"net\"\nvni = 5002\n";
    let (_, config) = imported(&bare, &inventory("host", entry));
    assert_eq!(config.networks[0].vni.get(), 5002);
    assert_eq!(config.pools[0].vni.get(), 5002);
    // An internal frontend of it is private to it.
    let public = r#""publicIPAddress": { "properties": { "ipAddress": "20.20.20.100" } }"#;
    let subnet = r#""privateIPAddress": "10.1.2.100", "subnet": { "id": "/g/virtualNetworks/net/subnets/vms" }"#;
    let inside = bare.replacen(public, subnet, 1);
    let (_, config) = imported(&inside, &inventory("host", entry));
    assert_eq!(config.frontends[0].network, Some(0));
    let (_, config) = imported(&inside, &inventory("host", "vni = 5001\n"));
    assert_eq!(config.frontends[0].network, None);
}

#[test]
fn a_backend_that_is_given_by_its_address_has_the_group_of_its_interface() {
    let pools = ",\n      \"loadBalancerBackendAddressPools\": [ { \"id\": \"/loadBalancers/lb/backendAddressPools/pool\" } ]";
    assert_eq!(TEMPLATE.matches(pools).count(), 2);
    let addresses = r#""name": "pool", "properties": { "loadBalancerBackendAddresses": [
      { "name": "one", "properties": { "ipAddress": "10.1.2.4", "virtualNetwork": { "id": "/g/virtualNetworks/net" } } },
      { "name": "two", "properties": { "ipAddress": "10.1.2.5", "virtualNetwork": { "id": "/g/virtualNetworks/net" } } }
    ] }"#;
    let text = TEMPLATE
        .replace(pools, "")
        .replacen("\"name\": \"pool\"", addresses, 1);
    let (imported, _) = imported(&text, &inventory("host", "vni = 5001\n"));
    for part in [
        "[[vm]]\nname = \"one\"\nnetwork = \"net\"\naddress = \"10.1.2.4\"\nhost = \"172.16.0.101\"\n\
         mac = \"02:00:00:00:00:04\"\nsecurity_list = [\"subnet-nsg\", \"own-nsg\"]\n",
        "[[vm]]\nname = \"two\"\nnetwork = \"net\"\naddress = \"10.1.2.5\"\nhost = \"172.16.0.101\"\n\
         security_list = [\"subnet-nsg\"]\n",
    ] {
        assert!(imported.toml.contains(part), "{part}\n{}", imported.toml);
    }
}

#[test]
fn a_group_may_have_its_rules_without_properties_around_them() {
    let flat = TEMPLATE.replacen(
        "\"name\": \"own-nsg\", \"properties\": { \"securityRules\": [] }",
        r#""name": "own-nsg", "securityRules": [ { "name": "flat", "protocol": "*", "sourcePortRange": "*",
           "destinationPortRange": "*", "sourceAddressPrefix": "*", "destinationAddressPrefix": "Internet",
           "access": "Deny", "priority": 100, "direction": "Outbound" } ]"#,
        1,
    );
    assert_ne!(flat, TEMPLATE);
    let (imported, _) = imported(&flat, &inventory("host", "vni = 5001\n"));
    let part = "name = \"flat\"\nsecurity_list = \"own-nsg\"\npriority = 100\ndirection = \"outbound\"\naccess = \"deny\"\n";
    assert!(imported.toml.contains(part), "{}", imported.toml);
}

#[test]
fn a_proxy_is_warned_that_it_enforces_no_lists() {
    let text = "[node]\nrole = \"proxy\"\n[[backend]]\nid = \"one\"\n[[backend]]\nid = \"two\"\n";
    let inventory = Inventory::parse("inventory.toml", text).expect("a good inventory");
    let (imported, config) = imported(TEMPLATE, &inventory);
    assert!(config.security_lists.is_empty());
    let warnings: Vec<String> = imported.warnings.iter().map(ToString::to_string).collect();
    for name in ["subnet-nsg", "own-nsg"] {
        let expected = format!("{name:?}: is left out: a proxy enforces no access lists");
        assert!(
            warnings.iter().any(|one| one.contains(&expected)),
            "{warnings:?}"
        );
    }
}

#[test]
fn instances_of_a_scale_set_have_its_subnet_and_group() {
    let at = TEMPLATE
        .find("  { \"type\": \"Microsoft.Network/networkInterfaces\"")
        .expect("vms");
    let set = r#"  { "type": "Microsoft.Compute/virtualMachineScaleSets", "name": "set", "sku": { "capacity": 2 },
    "properties": { "virtualMachineProfile": { "networkProfile": { "networkInterfaceConfigurations": [
      { "name": "nic", "properties": {
        "networkSecurityGroup": { "id": "/g/networkSecurityGroups/own-nsg" },
        "ipConfigurations": [ { "name": "ip", "properties": {
          "subnet": { "id": "/g/virtualNetworks/net/subnets/vms" },
          "loadBalancerBackendAddressPools": [ { "id": "/loadBalancers/lb/backendAddressPools/pool" } ] } } ] } }
    ] } } } } ] }"#;
    let text = format!("{}{set}", &TEMPLATE[..at]);
    let instance = |last: u8| {
        format!(
            "[[backend]]\npool = \"pool\"\naddress = \"10.1.2.{last}\"\nhost = \"172.16.0.101\"\n"
        )
    };
    let node = "vni = 5001\n[node]\nrole = \"host\"\nunderlay = \"172.16.0.101\"\n";
    let inventory = format!("{node}{}{}", instance(4), instance(5));
    let inventory = Inventory::parse("inventory.toml", &inventory).expect("a good inventory");
    let (imported, _) = imported(&text, &inventory);
    let part = "network = \"net\"\nsecurity_list = [\"subnet-nsg\", \"own-nsg\"]\n";
    assert!(imported.toml.contains(part), "{}", imported.toml);
}

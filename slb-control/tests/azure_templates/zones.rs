//! Zones of frontends, public addresses, vms and scale sets.

use super::{config, import_one, instances, inventory, machines};

/// A template with public addresses in zones, vms with network interfaces, and a scale set.
fn template(zones_of_set: &str) -> String {
    let balancer = "Microsoft.Network/loadBalancers";
    let pool = format!("[resourceId('{balancer}/backendAddressPools', 'lb', 'be')]");
    let address = |name: &str, zones: &str| {
        format!(
            r#"{{ "type": "Microsoft.Network/publicIPAddresses", "name": "{name}"{zones},
               "properties": {{ "publicIPAllocationMethod": "Static" }} }}"#
        )
    };
    let frontend = |name: &str, address: &str| {
        format!(
            r#"{{ "name": "{name}", "properties": {{ "publicIPAddress": {{
               "id": "[resourceId('Microsoft.Network/publicIPAddresses', '{address}')]" }} }} }}"#
        )
    };
    let vm = |number: u8, zones: &str| {
        format!(
            r#"{{ "type": "Microsoft.Network/networkInterfaces", "name": "nic{number}", "properties": {{
                 "ipConfigurations": [ {{ "name": "c", "properties": {{
                   "loadBalancerBackendAddressPools": [ {{ "id": "{pool}" }} ] }} }} ] }} }},
               {{ "type": "Microsoft.Compute/virtualMachines", "name": "vm{number}"{zones}, "properties": {{
                 "networkProfile": {{ "networkInterfaces": [
                   {{ "id": "[resourceId('Microsoft.Network/networkInterfaces', 'nic{number}')]" }} ] }} }} }}"#
        )
    };
    let resources = [
        address("zonal", r#", "zones": ["2"]"#),
        address("wide", r#", "zones": ["[parameters('first')]", "2", "3"]"#),
        address("plain", ""),
        vm(1, r#", "zones": ["[parameters('first')]"]"#),
        vm(2, r#", "zones": ["2"]"#),
        vm(3, ""),
        format!(
            r#"{{ "type": "Microsoft.Compute/virtualMachineScaleSets", "name": "set"{zones_of_set},
               "sku": {{ "name": "s", "capacity": 2 }}, "properties": {{ "virtualMachineProfile": {{
               "networkProfile": {{ "networkInterfaceConfigurations": [ {{ "name": "n", "properties": {{
               "ipConfigurations": [ {{ "name": "c", "properties": {{ "loadBalancerBackendAddressPools": [
               {{ "id": "[resourceId('{balancer}/backendAddressPools', 'lb', 'of-set')]" }} ] }} }} ] }} }} ] }} }} }} }}"#
        ),
        format!(
            r#"{{ "type": "{balancer}", "name": "lb", "sku": {{ "name": "Standard" }}, "properties": {{
               "frontendIPConfigurations": [ {}, {}, {},
                 {{ "name": "inner", "zones": ["3"], "properties": {{ "privateIPAddress": "10.9.0.1" }} }} ],
               "backendAddressPools": [ {{ "name": "be" }}, {{ "name": "of-set" }} ] }} }}"#,
            frontend("f-zonal", "zonal"),
            frontend("f-wide", "wide"),
            frontend("f-plain", "plain"),
        ),
    ];
    format!(
        r#"{{ "parameters": {{ "first": {{ "type": "string", "defaultValue": "1" }} }},
           "resources": [ {} ] }}"#,
        resources.join(",\n")
    )
}

const ADDRESSES: &str = "[[public_ip]]\nid = \"zonal\"\naddress = \"20.0.0.1\"\n\
                         [[public_ip]]\nid = \"wide\"\naddress = \"20.0.0.2\"\n\
                         [[public_ip]]\nid = \"plain\"\naddress = \"20.0.0.3\"\n";

#[test]
fn zones_are_kept() {
    let rest = machines(&["nic1", "nic2", "nic3"]);
    // The addresses behind those of the machines.
    let set = instances("of-set", 2).replace("10.0.0.", "10.0.1.");
    let set = set.replacen("[[backend]]", "[[backend]]\nzone = \"own\"", 1);
    let inventory = inventory(&format!("{ADDRESSES}{rest}{set}"));
    let text = template(r#", "zones": ["3"]"#);
    let config = config(&text, &inventory);
    let frontends: Vec<(&str, Vec<&str>)> = config
        .frontends
        .iter()
        .map(|own| {
            let zones = own.zones.iter().map(String::as_str);
            (own.name.as_str(), zones.collect())
        })
        .collect();
    assert_eq!(
        frontends,
        [
            ("f-zonal", vec!["2"]),
            ("f-wide", vec!["1", "2", "3"]),
            ("f-plain", vec![]),
            ("inner", vec!["3"]),
        ]
    );
    let zones = |pool: usize| -> Vec<Option<&str>> {
        let backends = config.pools[pool].backends.iter();
        backends.map(|own| own.zone.as_deref()).collect()
    };
    assert_eq!(zones(0), [Some("1"), Some("2"), None]);
    // The inventory knows better.
    assert_eq!(zones(1), [Some("own"), Some("3")]);

    // A vm whose zone is known belongs to the load balancer, and one without any is left out.
    let imported = import_one(&text, &inventory).expect("good");
    let left_out = imported.warnings.iter().map(ToString::to_string);
    let left_out: Vec<String> = left_out.filter(|w| w.contains("left out")).collect();
    assert_eq!(left_out.len(), 1, "{left_out:?}");
}

#[test]
fn zones_that_only_azure_knows_are_none() {
    let rest = machines(&["nic1", "nic2", "nic3"]);
    let set = instances("of-set", 2).replace("10.0.0.", "10.0.1.");
    let inventory = inventory(&format!("{ADDRESSES}{rest}{set}"));
    for (zones, is_told) in [
        (r#", "zones": ["1", "2"]"#, false),
        (r#", "zones": null"#, false),
        (r#", "zones": "[providers('x').zones]""#, true),
        (r#", "zones": [1]"#, true),
    ] {
        let text = template(zones);
        let config = config(&text, &inventory);
        let mut backends = config.pools[1].backends.iter();
        assert!(backends.all(|own| own.zone.is_none()), "{zones}");
        let imported = import_one(&text, &inventory).expect("good");
        let mut said = imported.warnings.iter().map(ToString::to_string);
        let said = said.any(|w| w.contains("counted as no zone"));
        assert_eq!(said, is_told, "{zones}");
    }
}

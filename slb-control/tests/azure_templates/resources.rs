//! Loops, conditions, and pools declared twice.

use super::{around, backends, config, errors, inventory, machines, nics};

#[test]
fn a_count_is_what_it_says_or_an_error() {
    let inventory = inventory(&machines(&["nic1", "nic2", "nic3"]));
    for (count, expected) in [
        ("2", 2),
        ("\"[length(range(0, 3))]\"", 3),
        ("\"[parameters('count')]\"", 2),
        ("\"[if(parameters('make'), 3, 1)]\"", 1),
    ] {
        let config = config(&nics(count, ""), &inventory);
        let all = ["nic1 10.0.0.4", "nic2 10.0.0.5", "nic3 10.0.0.6"];
        assert_eq!(backends(&config), all[..expected], "{count}");
    }
    for (count, expected) in [
        (
            "\"[length(providers('x'))]\"",
            "copy: providers(): only Azure knows its result",
        ),
        ("\"many\"", "copy: expected a count of 0 to 800"),
        ("801", "copy: expected a count of 0 to 800"),
        ("-1", "copy: expected a count of 0 to 800"),
        ("null", "copy: count is missing"),
    ] {
        let found = errors(&nics(count, ""), &inventory);
        assert!(found.contains(expected), "{count}: {found}");
        assert!(
            found.starts_with("t.json:11: resource \"[concat('nic', copyIndex(1))]\""),
            "{found}"
        );
    }
}

#[test]
fn a_condition_is_honoured_or_an_error() {
    let inventory = inventory(&machines(&["nic1", "nic2", "nic3"]));
    for (condition, expected) in [
        ("true", 3),
        ("false", 0),
        ("\"[parameters('make')]\"", 0),
        ("\"[not(parameters('make'))]\"", 3),
        ("\"[less(copyIndex(), 2)]\"", 2),
    ] {
        let config = config(
            &nics("3", &format!("\"condition\": {condition},")),
            &inventory,
        );
        assert_eq!(backends(&config).len(), expected, "{condition}");
    }
    for (condition, expected) in [
        (
            "\"[parameters('make').x]\"",
            "condition: expected true or false, got the expression",
        ),
        ("7", "condition: expected true or false, got 7"),
    ] {
        let found = errors(
            &nics("1", &format!("\"condition\": {condition},")),
            &inventory,
        );
        assert!(found.contains(expected), "{condition}: {found}");
    }
    // Of the two of one name, one is made.
    let two = r#", { "condition": "[parameters('make')]", "type": "Microsoft.Network/loadBalancers", "name": "never",
        "properties": { "frontendIPConfigurations": [ { "name": "fe", "properties": { "privateIPAddress": "10.0.0.101" } } ] } }"#;
    let config = config(&around(two, ""), &inventory);
    assert_eq!(config.frontends.len(), 1);
}

#[test]
fn a_loop_makes_properties_of_one_resource() {
    let loops = r#", { "type": "Microsoft.Network/loadBalancers", "name": "many", "sku": { "name": "Standard" }, "properties": {
        "copy": [ { "name": "frontendIPConfigurations", "count": 3, "input": {
            "name": "[concat('fe', copyIndex('frontendIPConfigurations'))]",
            "properties": { "privateIPAddress": "[concat('10.0.1.', copyIndex('frontendIPConfigurations', 10))]" } } } ] } }"#;
    let made = config(&around(loops, ""), &inventory(""));
    let addresses: Vec<String> = made
        .frontends
        .iter()
        .map(|f| f.address.to_string())
        .collect();
    assert_eq!(
        addresses,
        ["10.0.0.100", "10.0.1.10", "10.0.1.11", "10.0.1.12"]
    );
    let bad = loops.replace("\"count\": 3", "\"count\": \"[x]\"");
    let found = errors(&around(&bad, ""), &inventory(""));
    assert!(
        found.contains(
            "load balancer \"many\": frontendIPConfigurations: expected a list, got the expression"
        ),
        "{found}"
    );
}

#[test]
fn a_pool_may_be_said_twice_inline_and_as_a_child() {
    let address = |name: &str, address: &str| {
        format!(r#"{{ "name": "{name}", "properties": {{ "ipAddress": "{address}" }} }}"#)
    };
    let child = |name: &str| {
        format!(
            r#", {{ "type": "Microsoft.Network/loadBalancers/backendAddressPools", "name": "{name}",
              "properties": {{ "loadBalancerBackendAddresses": [ {}, {} ] }} }}"#,
            address("a", "10.0.0.4"),
            address("b", "10.0.0.5")
        )
    };
    let inventory = inventory(&machines(&["a", "b", "old"]));
    let all = ["a 10.0.0.4", "b 10.0.0.5"];
    assert_eq!(
        backends(&config(&around(&child("lb/be"), ""), &inventory)),
        all
    );
    // The child is deployed later, and its backends would replace those of the load balancer.
    let old = format!(
        r#", "properties": {{ "loadBalancerBackendAddresses": [ {} ] }}"#,
        address("old", "10.0.0.6")
    );
    let found = errors(&around(&child("lb/be"), &old), &inventory);
    assert!(
        found.contains("pool \"be\" has other loadBalancerBackendAddresses here"),
        "{found}"
    );
    let twice = child("lb/be") + &child("LB/BE");
    let found = errors(&around(&twice, ""), &inventory);
    assert!(
        found.contains("load balancer \"lb\": pool \"be\" is declared twice"),
        "{found}"
    );
    let unknown = nics("1", "").replace("'lb', 'be'", "'lb', 'bee'");
    let found = errors(&unknown, &inventory);
    assert!(
        found.contains("network interface \"nic1\": load balancer \"lb\" has no pool \"bee\""),
        "{found}"
    );
    assert!(
        found.contains(
            "rule \"http\": backendAddressPool: load balancer \"lb\" has no pool \"bee\""
        ),
        "{found}"
    );
}

//! An import warns of each Azure feature that slb lacks or has in another way, with its place.

use slb_control::azure::{Imported, Input, Inventory, import};

const INVENTORY: &str = "vni = 5001\n[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n";

fn imported(text: &str) -> Imported {
    let inventory = Inventory::parse("inventory.toml", INVENTORY).expect("a good inventory");
    let input = Input {
        file: "t.json",
        text,
    };
    import(&[input], &inventory).unwrap_or_else(|errors| panic!("{errors}"))
}

/// A template of one load balancer with a pool's properties and a probe's path.
fn template(pool: &str, path: &str) -> String {
    format!(
        r#"{{ "resources": [ {{
          "type": "Microsoft.Network/loadBalancers", "name": "lb", "sku": {{ "name": "Standard" }},
          "properties": {{
            "frontendIPConfigurations": [ {{ "name": "fe", "properties": {{ "privateIPAddress": "10.0.0.9" }} }} ],
            "backendAddressPools": [ {{ "name": "p", "properties": {{ {pool} }} }} ],
            "probes": [ {{ "name": "up", "properties": {{ "protocol": "Http", "port": 80, "requestPath": "{path}" }} }} ]
          }} }} ] }}"#
    )
}

fn warnings(imported: &Imported) -> String {
    let all = imported.warnings.iter().map(ToString::to_string);
    all.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_drain_period_is_said_to_have_no_end_here() {
    let said = warnings(&imported(&template("\"drainPeriodInSeconds\": 90", "/")));
    assert!(said.contains("drainPeriodInSeconds"), "{said}");
    assert!(said.contains("draining backend after 90 s"), "{said}");
    for none in ["", "\"drainPeriodInSeconds\": 0"] {
        let said = warnings(&imported(&template(none, "/")));
        assert!(!said.contains("drainPeriodInSeconds"), "{said}");
    }
}

#[test]
fn subscriptions_and_groups_have_stable_stand_ins_which_are_said() {
    for (path, expected) in [
        (
            "[concat('/', subscription().subscriptionId)]",
            "path = \"/00000000-0000-0000-0000-000000000000\"",
        ),
        (
            "[concat('/', resourceGroup().name)]",
            "path = \"/resource-group\"",
        ),
        (
            "[concat('/', toLower(SUBSCRIPTION().displayName))]",
            "path = \"/subscription\"",
        ),
    ] {
        let own = imported(&template("", path));
        assert!(own.toml.contains(expected), "{}", own.toml);
        let said = warnings(&own);
        assert!(said.starts_with("t.json:"), "{said}");
        let again = imported(&template("", path));
        assert_eq!((own.toml, said), (again.toml.clone(), warnings(&again)));
    }
}

#[test]
fn zones_that_azure_picks_are_the_first_ones_which_is_said() {
    let zones = "pickZones('Microsoft.Network', 'publicIPAddresses', 'westeurope'";
    for (more, expected) in [("", "1"), (", 2", "1-2"), (", 3", "1-2-3")] {
        let path = format!("[concat('/', join({zones}{more}), '-'))]");
        let own = imported(&template("", &path));
        let expected = format!("path = \"/{expected}\"");
        assert!(own.toml.contains(&expected), "{}", own.toml);
        let said = warnings(&own);
        assert!(said.starts_with("t.json:"), "{said}");
        assert!(said.contains("the first zones are used instead"), "{said}");
    }
}

//! Faults that only the whole configuration shows have a place in the JSON that they come from.
#![cfg(feature = "azure")]

use slb_control::azure::{Input, Inventory, import};

fn inventory() -> Inventory {
    let text = "vni = 7\n[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
                [[backend]]\npool = \"web\"\naddress = \"10.0.0.4\"\nhost = \"172.16.0.101\"\n";
    Inventory::parse("inventory.toml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// Returns the faults of a template.
fn faults(json: &str) -> String {
    let input = Input {
        file: "lb.json",
        text: json,
    };
    match import(&[input], &inventory()) {
        Ok(imported) => panic!("{}", imported.toml),
        Err(errors) => errors.to_string(),
    }
}

/// A template whose second resource is a load balancer with a frontend, a pool and these lines.
fn template(vip: &str, more: &str) -> String {
    format!(
        r#"{{
"resources": [
{{ "type": "Microsoft.Storage/storageAccounts", "name": "x" }},
{{ "type": "Microsoft.Network/loadBalancers", "name": "lb", "sku": {{ "name": "Standard" }}, "properties": {{
  "frontendIPConfigurations": [ {{ "name": "front", "properties": {{ "privateIPAddress": "{vip}" }} }} ],
  "backendAddressPools": [ {{ "name": "web" }} ],
  {more}
}} }}
] }}"#
    )
}

fn rule(name: &str, port: u16) -> String {
    format!(
        r#"{{ "name": "{name}", "properties": {{
    "frontendIPConfiguration": {{ "id": "/lb/frontendIPConfigurations/front" }},
    "backendAddressPool": {{ "id": "/lb/backendAddressPools/web" }},
    "protocol": "Tcp", "frontendPort": {port}, "backendPort": 80 }} }}"#
    )
}

#[test]
fn rules_that_take_one_port_are_at_their_paths() {
    let rules = format!(
        "\"loadBalancingRules\": [ {},\n{} ]",
        rule("one", 80),
        rule("two", 80)
    );
    assert_eq!(
        faults(&template("10.9.9.9", &rules)),
        "lb.json:11: resources[1].properties.loadBalancingRules[1]: rule \"two\": takes tcp port 80 of frontend \
         \"front\", as rule \"one\" does"
    );
}

#[test]
fn what_an_expression_makes_is_at_the_expression() {
    let rules = format!(
        "\"copy\": [ {{ \"name\": \"loadBalancingRules\", \"count\": 2, \"input\":\n{} }} ]",
        rule("[concat('r', copyIndex())]", 80).replace("\"r", "r")
    );
    let said = faults(&template("10.9.9.9", &rules));
    assert!(
        said.starts_with(
            "lb.json:8: resources[1].properties.copy[0].input: rule \"r1\": takes tcp port 80"
        ),
        "{said}"
    );
}

#[test]
fn backends_and_frontends_are_at_theirs() {
    let said = faults(&template(
        "10.0.0.4",
        &format!("\"loadBalancingRules\": [ {} ]", rule("one", 80)),
    ));
    assert!(
        said.starts_with(
            "lb.json:6: resources[1].properties.backendAddressPools[0]: pool \"web\": backend \"10.0.0.4\": \
             address: expected an address of its own, but 10.0.0.4 is frontend \"front\"'s"
        ),
        "{said}"
    );
    let said = faults(&template(
        "172.16.0.11",
        &format!("\"loadBalancingRules\": [ {} ]", rule("one", 80)),
    ));
    assert!(
        said.starts_with(
            "lb.json:5: resources[1].properties.frontendIPConfigurations[0]: frontend \"front\": address: "
        ),
        "{said}"
    );
}

#[test]
fn what_the_inventory_said_is_no_fault_of_the_json() {
    let json = template(
        "10.9.9.9",
        &format!("\"loadBalancingRules\": [ {} ]", rule("one", 80)),
    );
    let inventory = "vni = 7\n[node]\nrole = \"mux\"\nunderlay = \"127.0.0.1\"\n\
                     [[backend]]\npool = \"web\"\naddress = \"10.0.0.4\"\nhost = \"172.16.0.101\"\n";
    let inventory = Inventory::parse("inventory.toml", inventory).unwrap();
    let input = Input {
        file: "lb.json",
        text: &json,
    };
    let said = import(&[input], &inventory).unwrap_err().to_string();
    assert!(said.starts_with("the imported configuration:"), "{said}");
    assert!(said.contains(": node: underlay: "), "{said}");
}

#[test]
fn a_default_is_of_its_parameters_type() {
    let with = |kind: &str, default: &str| {
        let rules = format!("\"loadBalancingRules\": [ {} ]", rule("one", 80));
        let json = template(
            "10.9.9.9",
            &rules.replace("80 }", "\"[parameters('p')]\" }"),
        );
        let declared = format!(
            "{{\n\"parameters\": {{ \"p\": {{ \"type\": \"{kind}\", \"defaultValue\": {default} }} }},"
        );
        let json = json.replacen('{', &declared, 1);
        let input = Input {
            file: "lb.json",
            text: &json,
        };
        import(&[input], &inventory())
            .map(|_| ())
            .map_err(|errors| errors.to_string())
    };
    assert_eq!(with("int", "80"), Ok(()));
    let said = with("int", "\"80\"").unwrap_err();
    assert!(
        said.contains("parameter \"p\": expected an int as its defaultValue, got \"80\""),
        "{said}"
    );
    let said = with("string", "80").unwrap_err();
    assert!(
        said.contains("parameter \"p\": expected a string as its defaultValue, got 80"),
        "{said}"
    );
}

#[test]
fn a_child_resource_does_not_replace_an_inline_pools_backends() {
    let address = |last: u8| {
        format!(r#"{{ "name": "b{last}", "properties": {{ "ipAddress": "10.0.0.{last}" }} }}"#)
    };
    let with = |inline: u8, child: u8| {
        let pool = |name: &str, list: String| {
            format!(
                r#""name": "{name}", "properties": {{ "loadBalancerBackendAddresses": [ {list} ] }}"#
            )
        };
        let rules = format!("\"loadBalancingRules\": [ {} ]", rule("one", 80));
        let json = template("10.9.9.9", &rules).replace(
            "{ \"name\": \"web\" }",
            &format!("{{ {} }}", pool("web", address(inline))),
        );
        let child = format!(
            "}} }},\n{{ \"type\": \"Microsoft.Network/loadBalancers/backendAddressPools\", {} }}\n] }}",
            pool("lb/web", address(child))
        );
        let json = json.replace("} }\n] }", &child);
        let text = "vni = 7\n[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
                    [[backend]]\naddress = \"10.0.0.4\"\nhost = \"172.16.0.101\"\n\
                    [[backend]]\naddress = \"10.0.0.5\"\nhost = \"172.16.0.101\"\n";
        let inventory = Inventory::parse("inventory.toml", text).unwrap();
        let input = Input {
            file: "lb.json",
            text: &json,
        };
        import(&[input], &inventory).map(|imported| imported.toml)
    };
    let toml = with(4, 4).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(toml.matches("10.0.0.4").count(), 1, "{toml}");
    let said = with(4, 5).unwrap_err().to_string();
    assert!(
        said.contains(
            "load balancer \"lb\": pool \"web\" has other loadBalancerBackendAddresses here than in its load \
             balancer (line 6), and would replace those: expected the backends at one of the two"
        ),
        "{said}"
    );
}

//! Functions of ARM templates: which are worked out, and which stop the import and why.

use slb_control::azure::{Input, Inventory, import};

/// Imports a probe whose path is an expression; gives the configuration, or the faults.
fn path_of(expression: &str) -> Result<String, String> {
    let text = format!(
        "{{ \"resources\": [\n {{ \"type\": \"Microsoft.Network/loadBalancers\", \"name\": \"lb\", \"sku\": {{ \"name\": \"Standard\" }},\n \
         \"properties\": {{ \"probes\": [ {{ \"name\": \"p\", \"properties\": {{ \"protocol\": \"Http\", \"port\": 80,\n \
         \"intervalInSeconds\": 5, \"requestPath\": \"{expression}\" }} }} ] }} }} ] }}"
    );
    let node = "vni = 5001\n[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n";
    let inventory = Inventory::parse("inventory.toml", node).unwrap();
    let input = Input {
        file: "t.json",
        text: &text,
    };
    match import(&[input], &inventory) {
        Ok(imported) => Ok(imported.toml),
        Err(errors) => Err(errors.to_string()),
    }
}

#[test]
fn base64_is_worked_out_both_ways() {
    // RFC 4648 §10, behind the slash that a path begins with.
    for (plain, encoded) in [
        ("", ""),
        ("f", "Zg=="),
        ("fo", "Zm8="),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg=="),
        ("fooba", "Zm9vYmE="),
        ("foobar", "Zm9vYmFy"),
    ] {
        let toml = path_of(&format!("[concat('/', base64('{plain}'))]")).unwrap();
        assert!(
            toml.contains(&format!("path = \"/{encoded}\"")),
            "{plain}: {toml}"
        );
        let toml = path_of(&format!("[concat('/', base64ToString('{encoded}'))]")).unwrap();
        assert!(
            toml.contains(&format!("path = \"/{plain}\"")),
            "{encoded}: {toml}"
        );
    }
    let toml = path_of("[base64ToJson(base64('{\\\"a\\\": \\\"/x\\\"}')).a]").unwrap();
    assert!(toml.contains("path = \"/x\""), "{toml}");
    for bad in ["Zg=", "Zg", "Z===", "Zm9*", "/////w=="] {
        let fault = path_of(&format!("[base64ToString('{bad}')]")).unwrap_err();
        let expected = format!("base64ToString(): expected base64 of a text, got {bad:?}");
        assert!(fault.contains(&expected), "{fault}");
    }
}

#[test]
fn functions_that_are_not_worked_out_say_why_and_where() {
    for (expression, expected) in [
        (
            "[utcNow()]",
            "utcNow(): returns another value at each deployment",
        ),
        (
            "[utcNow('d')]",
            "utcNow(): returns another value at each deployment",
        ),
        (
            "[newGuid()]",
            "newGuid(): returns another value at each deployment",
        ),
        (
            "[dateTimeAdd('2020-04-07 14:53:14Z', 'P3Y')]",
            "dateTimeAdd(): is not supported (dates)",
        ),
        (
            "[listKeys('x', '2020')]",
            "listKeys(): queries a deployed resource",
        ),
        (
            "[listAccountSas('x', '2020').token]",
            "listAccountSas(): queries a deployed resource",
        ),
        (
            "[providers('Microsoft.Web')]",
            "providers(): only Azure knows its result",
        ),
        ("[uriComponent('a b')]", "uriComponent(): is not supported"),
        ("[lst('x')]", "the function \"lst\" is not supported"),
    ] {
        let fault = path_of(expression).unwrap_err();
        assert!(fault.contains(expected), "{expression}: {fault}");
        assert!(
            fault.starts_with("t.json:4: probe \"p\": requestPath: "),
            "{fault}"
        );
        assert_eq!(fault.lines().count(), 1, "{fault}");
    }
}

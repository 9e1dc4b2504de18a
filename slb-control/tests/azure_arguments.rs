//! Functions of templates with arguments of every number and type: each gives a value, or an error that names the
//! function and the line.

use slb_control::azure::{Input, Inventory, import};

/// Each function that is worked out, with arguments that it takes.
const FUNCTIONS: &[(&str, &[&str])] = &[
    ("add", &["1", "2"]),
    ("and", &["true()", "false()"]),
    ("array", &["1"]),
    ("base64", &["'a'"]),
    ("base64ToJson", &["'e30='"]),
    ("base64ToString", &["'YQ=='"]),
    ("bool", &["'true'"]),
    ("cidrHost", &["'10.0.0.0/24'", "1"]),
    ("cidrSubnet", &["'10.0.0.0/16'", "24", "1"]),
    ("coalesce", &["'a'"]),
    ("concat", &["'a'", "'b'"]),
    ("contains", &["'ab'", "'b'"]),
    ("copyIndex", &[]),
    ("createArray", &["1"]),
    ("createObject", &["'a'", "1"]),
    ("deployment", &[]),
    ("div", &["4", "2"]),
    ("empty", &["''"]),
    ("endsWith", &["'ab'", "'b'"]),
    ("equals", &["1", "1"]),
    ("extensionResourceId", &["'/x'", "'a/b'", "'c'"]),
    ("false", &[]),
    ("first", &["'ab'"]),
    ("flatten", &["createArray(createArray(1))"]),
    ("format", &["'{0}'", "1"]),
    ("greater", &["1", "2"]),
    ("greaterOrEquals", &["1", "2"]),
    ("guid", &["'a'"]),
    ("if", &["true()", "1", "2"]),
    ("indexOf", &["'ab'", "'b'"]),
    ("int", &["'1'"]),
    ("intersection", &["createArray(1)", "createArray(1)"]),
    ("items", &["createObject('a', 1)"]),
    ("join", &["createArray('a')", "','"]),
    ("json", &["'1'"]),
    ("last", &["'ab'"]),
    ("lastIndexOf", &["'ab'", "'b'"]),
    ("length", &["'ab'"]),
    ("less", &["1", "2"]),
    ("lessOrEquals", &["1", "2"]),
    ("managementGroupResourceId", &["'a/b'", "'c'"]),
    ("max", &["1", "2"]),
    ("min", &["1", "2"]),
    ("mod", &["4", "2"]),
    ("mul", &["4", "2"]),
    ("not", &["true()"]),
    ("null", &[]),
    ("objectKeys", &["createObject('a', 1)"]),
    ("or", &["true()", "false()"]),
    ("padLeft", &["'a'", "3", "'0'"]),
    ("parameters", &["'p'"]),
    ("pickZones", &["'a'", "'b'", "'c'", "1"]),
    ("range", &["1", "2"]),
    ("reference", &["'lb'", "'2024-01-01'", "'Full'"]),
    ("replace", &["'a'", "'a'", "'b'"]),
    ("resourceGroup", &[]),
    ("resourceId", &["'a/b'", "'c'"]),
    ("resourceInfo", &["'lb'"]),
    ("skip", &["'ab'", "1"]),
    ("split", &["'a,b'", "','"]),
    ("startsWith", &["'ab'", "'a'"]),
    ("string", &["1"]),
    ("sub", &["4", "2"]),
    ("subscription", &[]),
    ("subscriptionResourceId", &["'a/b'", "'c'"]),
    ("substring", &["'abc'", "1", "1"]),
    ("take", &["'ab'", "1"]),
    ("tenantResourceId", &["'a/b'", "'c'"]),
    ("toLower", &["'A'"]),
    ("toUpper", &["'a'"]),
    ("trim", &["' a '"]),
    ("true", &[]),
    ("tryGet", &["createObject('a', 1)", "'a'"]),
    ("union", &["createArray(1)", "createArray(2)"]),
    ("uniqueString", &["'a'"]),
    ("uri", &["'http://a/'", "'b'"]),
    ("variables", &["'v'"]),
];

/// A value of each type, and some of their edges.
const VALUES: [&str; 14] = [
    "'text'",
    "''",
    "7",
    "0",
    "-1",
    "9223372036854775807",
    "true()",
    "null()",
    "createArray()",
    "createArray('a', 1)",
    "createArray(null())",
    "createObject()",
    "createObject('a', createObject('b', 1))",
    "json('1.5')",
];

/// Functions whose result may be null, by Azure's documentation or by the values of their arguments.
const MAY_BE_NULL: [&str; 11] = [
    "base64ToJson",
    "coalesce",
    "first",
    "flatten",
    "if",
    "json",
    "last",
    "null",
    "parameters",
    "tryGet",
    "variables",
];

/// Imports a probe whose path tells the value of an expression, on line 7.
fn worked_out(expression: &str) -> Result<String, String> {
    let text = format!(
        "{{ \"parameters\": {{ \"p\": {{ \"type\": \"string\", \"defaultValue\": \"x\" }} }},\n\
         \"variables\": {{ \"v\": \"y\" }},\n\
         \"resources\": [\n {{ \"type\": \"Microsoft.Network/loadBalancers\", \"name\": \"lb\", \"sku\": {{ \"name\": \
         \"Standard\" }},\n \
         \"properties\": {{ \"probes\": [ {{ \"name\": \"p\", \"properties\": {{ \"protocol\": \"Http\", \"port\": 80,\n \
         \"intervalInSeconds\": 5,\n \"requestPath\": \"[concat('/', if(equals({expression}, null()), 'NULL', 'value'))]\" \
         }} }} ] }} }} ] }}"
    );
    let node = "vni = 5001\n[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n";
    let inventory = Inventory::parse("inventory.toml", node).expect("good");
    let input = Input {
        file: "t.json",
        text: &text,
    };
    match import(&[input], &inventory) {
        Ok(imported) => Ok(imported.toml),
        Err(errors) => Err(errors.to_string()),
    }
}

#[track_caller]
fn value_or_fault(function: &str, arguments: &[&str]) {
    let expression = format!("{function}({})", arguments.join(", "));
    match worked_out(&expression) {
        Ok(toml) => {
            let is_null = toml.contains("path = \"/NULL\"");
            assert!(
                is_null || toml.contains("path = \"/value\""),
                "{expression}: {toml}"
            );
            assert!(
                !is_null || MAY_BE_NULL.contains(&function),
                "{expression} is null without a word"
            );
        }
        Err(told) => {
            assert!(
                told.starts_with("t.json:7: "),
                "{expression} has no place: {told}"
            );
            // Names that are not there are named.
            let names_it =
                told.contains(&format!("{function}(): ")) || told.contains(" is declared");
            let is_of_another = told.contains("is not in the template");
            assert!(names_it || is_of_another, "{expression}: {told}");
        }
    }
}

/// Arguments that a function takes are worked out: the other tests would not see a function that always fails.
#[test]
fn every_function_takes_its_own_arguments() {
    for (function, arguments) in FUNCTIONS {
        let expression = format!("{function}({})", arguments.join(", "));
        let found = worked_out(&expression);
        // There is no loop around it.
        let fails = *function == "copyIndex";
        assert_eq!(found.is_err(), fails, "{expression}: {found:?}");
    }
}

#[test]
fn every_number_of_arguments_is_taken_or_refused() {
    for (function, own) in FUNCTIONS {
        for count in 0..=6 {
            let mut arguments: Vec<&str> = own.iter().copied().take(count).collect();
            arguments.resize(count, "'text'");
            value_or_fault(function, &arguments);
        }
    }
    for (expression, expected) in [
        ("toLower()", "toLower(): expected 1 argument, got 0"),
        ("toLower('a', 'b')", "toLower(): expected 1 argument, got 2"),
        ("if(true(), 1)", "if(): expected 3 arguments, got 2"),
        ("and(true())", "and(): expected 2 arguments or more, got 1"),
        (
            "substring('a')",
            "substring(): expected 2 to 3 arguments, got 1",
        ),
        (
            "resourceGroup('a')",
            "resourceGroup(): expected no arguments, got 1",
        ),
        (
            "copyIndex(1, 2, 3)",
            "copyIndex(): expected at most 2 arguments, got 3",
        ),
        ("equals(1)", "equals(): expected 2 arguments, got 1"),
        (
            "div(1, 0)",
            "div(): expected a number other than 0 as argument 2, got 0",
        ),
        (
            "mod(1, 0)",
            "mod(): expected a number other than 0 as argument 2, got 0",
        ),
        (
            "join('a', ',')",
            "join(): expected a list as argument 1, got \\\"a\\\"",
        ),
        (
            "split('a', 1)",
            "split(): expected a string, or a list of strings as argument 2, got 1",
        ),
        (
            "pickZones('a', 'b', 'c', 4)",
            "pickZones(): expected 1 to 3 zones, got 4",
        ),
        (
            "padLeft('a', 3, '')",
            "padLeft(): expected a string of one character as argument 3, got \\\"\\\"",
        ),
    ] {
        let told = worked_out(expression).expect_err(expression);
        let expected = expected.replace("\\\"", "\"");
        assert!(told.contains(&expected), "{expression}: {told}");
        assert!(told.starts_with("t.json:7: "), "{told}");
    }
}

#[test]
fn every_type_of_argument_is_taken_or_refused() {
    // One argument after the other of another type.
    for (function, own) in FUNCTIONS {
        for place in 0..own.len() {
            for value in VALUES {
                let mut arguments = own.to_vec();
                arguments[place] = value;
                value_or_fault(function, &arguments);
            }
        }
    }
    // All of them.
    bolero::check!()
        .with_iterations(2000)
        .with_type::<(u8, [u8; 6], u8)>()
        .for_each(|&(function, values, count)| {
            let (function, _) = FUNCTIONS[usize::from(function) % FUNCTIONS.len()];
            let values = values.map(|value| VALUES[usize::from(value) % VALUES.len()]);
            value_or_fault(function, &values[..usize::from(count) % 7]);
        });
}

/// Azure's documentation: `union` merges objects within objects, and replaces lists within them.
#[test]
fn union_merges_objects_within_objects() {
    let one = "json('{\\\"a\\\": {\\\"x\\\": 1, \\\"l\\\": [1]}, \\\"b\\\": 2}')";
    let two = "json('{\\\"A\\\": {\\\"y\\\": 3, \\\"l\\\": [4]}, \\\"c\\\": 5}')";
    for (member, expected) in [
        ("a.x", "1"),
        ("a.y", "3"),
        ("a.l", "createArray(4)"),
        ("b", "2"),
        ("c", "5"),
    ] {
        let expression = format!("if(equals(union({one}, {two}).{member}, {expected}), null(), 1)");
        let toml = worked_out(&expression).unwrap_or_else(|told| panic!("{told}"));
        assert!(toml.contains("path = \"/NULL\""), "{member}: {toml}");
    }
}

/// A reference to a thing of another type is refused where it stands, and one of the right type is taken.
#[test]
fn references_are_of_the_type_that_is_wanted() {
    let lb = |rule: &str, frontend: &str| {
        format!(
            "{{ \"type\": \"Microsoft.Network/loadBalancers\", \"name\": \"lb\", \"sku\": {{ \"name\": \"Standard\" }},\n\
             \"properties\": {{ \"frontendIPConfigurations\": [ {{ \"name\": \"x\", \"properties\": {{ {frontend} }} }} ],\n\
             \"backendAddressPools\": [ {{ \"name\": \"x\" }} ], \"probes\": [ {{ \"name\": \"x\", \"properties\": {{ \
             \"protocol\": \"Tcp\", \"port\": 80 }} }} ],\n\
             \"loadBalancingRules\": [ {{ \"name\": \"r\", \"properties\": {{ \"protocol\": \"Tcp\", \"frontendPort\": 80,\n\
             {rule} }} }} ] }} }}"
        )
    };
    let id = |kind: &str| {
        format!(
            "/subscriptions/1/resourceGroups/g/providers/Microsoft.Network/loadBalancers/lb/{kind}/x"
        )
    };
    let rule = |frontend: &str, pool: &str, probe: &str| {
        let [frontend, pool, probe] = [frontend, pool, probe].map(id);
        format!(
            "\"frontendIPConfiguration\": {{ \"id\": \"{frontend}\" }}, \"backendAddressPool\": {{ \"id\": \"{pool}\" }}, \
             \"probe\": {{ \"id\": \"{probe}\" }}"
        )
    };
    let import = |text: &str| {
        let node = "vni = 5001\n[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n";
        let inventory = Inventory::parse("inventory.toml", node).expect("good");
        let imported = import(
            &[Input {
                file: "t.json",
                text,
            }],
            &inventory,
        );
        imported
            .map(|imported| imported.toml)
            .map_err(|told| told.to_string())
    };
    let good = ["frontendIPConfigurations", "backendAddressPools", "probes"];
    let private = "\"privateIPAddress\": \"10.0.0.100\"";
    let text = lb(&rule(good[0], good[1], good[2]), private);
    import(&text).unwrap_or_else(|told| panic!("{told}"));
    let fields = ["frontendIPConfiguration", "backendAddressPool", "probe"];
    for (place, field) in fields.iter().enumerate() {
        for wrong in [
            "frontendIPConfigurations",
            "backendAddressPools",
            "probes",
            "inboundNatRules",
            "things",
        ] {
            if wrong == good[place] {
                continue;
            }
            let mut kinds = good;
            kinds[place] = wrong;
            let told = import(&lb(&rule(kinds[0], kinds[1], kinds[2]), private)).expect_err(wrong);
            let expected = format!(
                "t.json:5: rule \"r\": {field}: expected the id of one of {}, got one of {wrong}: ",
                good[place]
            );
            assert!(told.contains(&expected), "{expected}: {told}");
        }
    }
    let public = format!("\"publicIPAddress\": {{ \"id\": \"{}\" }}", id("probes"));
    let told = import(&lb(&rule(good[0], good[1], good[2]), &public)).expect_err("a probe");
    let expected = "frontend \"x\": publicIPAddress: expected the id of one of publicIPAddresses, got one of probes: ";
    assert!(told.contains(expected), "{told}");
}

/// Each entry of an inventory that the JSON does not need is told with its line, and none that it needs.
#[test]
fn entries_of_an_inventory_that_match_nothing_are_told() {
    let text = "{ \"type\": \"Microsoft.Network/loadBalancers\", \"name\": \"lb\", \"sku\": { \"name\": \"Standard\" },\n\
        \"properties\": { \"frontendIPConfigurations\": [ { \"name\": \"f\", \"properties\": { \"publicIPAddress\": { \"id\": \
        \"/p/publicIPAddresses/web\" } } } ],\n\
        \"backendAddressPools\": [ { \"name\": \"p\", \"properties\": { \"loadBalancerBackendAddresses\": [ { \"name\": \"b1\", \
        \"properties\": { \"ipAddress\": \"10.0.0.1\", \"virtualNetwork\": { \"id\": \"/v/net\" } } } ] } } ] } }";
    let inventory = |more: &str| {
        format!(
            "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
             [[public_ip]]\nid = \"web\"\naddress = \"20.20.20.100\"\n\
             [[network]]\nid = \"net\"\nvni = 5001\n\
             [[backend]]\nid = \"b1\"\nhost = \"172.16.0.101\"\n\
             [[backend]]\npool = \"p\"\naddress = \"10.0.0.2\"\nhost = \"172.16.0.101\"\n{more}"
        )
    };
    for (more, expected) in [
        ("", ""),
        (
            "[[public_ip]]\nid = \"wbe\"\naddress = \"20.20.20.101\"\n",
            "inventory.toml:17: public_ip \"wbe\": matches nothing in the JSON, and is left out",
        ),
        (
            "[[network]]\nid = \"ent\"\nvni = 5002\n",
            "inventory.toml:17: network \"ent\": matches nothing in the JSON, and is left out",
        ),
        (
            "[[backend]]\nid = \"b3\"\nhost = \"172.16.0.101\"\n",
            "inventory.toml:17: backend \"b3\": matches nothing in the JSON, and is left out",
        ),
        (
            "[[backend]]\npool = \"q\"\naddress = \"10.0.0.3\"\nhost = \"172.16.0.101\"\n",
            "inventory.toml:17: backend \"10.0.0.3\": matches nothing in the JSON, and is left out",
        ),
        (
            "[[nat_pool]]\nid = \"n\"\npool = \"p\"\n",
            "inventory.toml:17: nat_pool \"n\": matches nothing in the JSON, and is left out",
        ),
    ] {
        let inventory = Inventory::parse("inventory.toml", &inventory(more)).expect("good");
        // A second import with one inventory begins anew.
        for _ in 0..2 {
            let imported = import(
                &[Input {
                    file: "t.json",
                    text,
                }],
                &inventory,
            )
            .expect("good");
            let told: Vec<String> = imported.warnings.iter().map(ToString::to_string).collect();
            assert_eq!(told.join("\n"), expected);
        }
    }
}

/// JSON that is none, and JSON that says one thing twice, are told with what came and where.
#[test]
fn json_that_is_none_or_says_things_twice_is_refused() {
    for (text, expected) in [
        (
            "{ \"a\":\n NaN }",
            "t.json:2: expected JSON, got \"NaN }\" in column 2: unexpected ",
        ),
        ("{ \"a\": 1", "t.json:1: expected JSON, got "),
        ("", "t.json:1: expected JSON, got nothing"),
        (
            "{ \"resources\": [],\n \"Resources\": [] }",
            "t.json:2: \"Resources\" is named twice in one object",
        ),
        (
            "{ \"resources\": [ {\n \"name\": \"a\",\n \"name\": \"b\" } ] }",
            "t.json:3: \"name\" is named twice in one object",
        ),
    ] {
        let input = Input {
            file: "t.json",
            text,
        };
        let told = import(&[input], &Inventory::default())
            .expect_err(text)
            .to_string();
        assert!(told.contains(expected), "{expected}: {told}");
    }
    let deep = "[".repeat(100_000);
    let input = Input {
        file: "t.json",
        text: &deep,
    };
    let told = import(&[input], &Inventory::default())
        .expect_err("deep")
        .to_string();
    assert!(
        told.starts_with("t.json:1: expected JSON, got ") && told.len() < 300,
        "{told}"
    );
}

/// Tens of thousands of load balancers, or of parts of one, are refused.
#[test]
fn more_parts_than_are_read_are_refused() {
    let lb = |name: usize, parts: &str| {
        format!(
            "{{ \"type\": \"Microsoft.Network/loadBalancers\", \"name\": \"lb{name}\", \"sku\": {{ \"name\": \"Standard\" }}, \
             \"properties\": {{ \"probes\": [ {parts} ] }} }}"
        )
    };
    let balancers: Vec<String> = (0..20_000).map(|name| lb(name, "")).collect();
    let probes: Vec<String> = (0..20_000)
        .map(|n| format!("{{ \"name\": \"p{n}\", \"properties\": {{ \"protocol\": \"Tcp\", \"port\": 80 }} }}"))
        .collect();
    for (text, expected) in [
        (
            format!("[{}]", balancers.join(",")),
            "expected at most 16384 resources",
        ),
        (lb(0, &probes.join(",")), "expected at most 16384 parts"),
    ] {
        let input = Input {
            file: "t.json",
            text: &text,
        };
        let told = import(&[input], &Inventory::default())
            .expect_err("too much")
            .to_string();
        assert!(told.contains(expected), "{}", &told[..told.len().min(500)]);
    }
}

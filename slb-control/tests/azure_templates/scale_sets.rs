//! ARM templates: expressions, loops, conditions, deployments and scale sets, and quickstart templates.

use std::fs;
use std::path::Path;

use slb_control::azure::{Imported, Input, Inventory, import};
use slb_control::{Config, ConfigErrors};
use slb_core::spec::NatTarget;

const NODE: &str = "vni = 5001\n[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n";

fn inventory(more: &str) -> Inventory {
    Inventory::parse("inventory.toml", &format!("{NODE}{more}")).expect("a good inventory")
}

/// Backends by their ids, at 10.0.0.4 and the addresses behind it.
fn machines(ids: &[&str]) -> String {
    let entry = |(place, id): (usize, &&str)| {
        let last = place + 4;
        format!(
            "[[backend]]\nid = \"{id}\"\naddress = \"10.0.0.{last}\"\nhost = \"172.16.0.101\"\n"
        )
    };
    ids.iter().enumerate().map(entry).collect()
}

/// Backends of a pool, which the JSON does not list.
fn instances(pool: &str, count: u8) -> String {
    let entry = |n: u8| {
        let last = 4 + n;
        format!(
            "[[backend]]\npool = \"{pool}\"\naddress = \"10.0.0.{last}\"\nhost = \"172.16.0.101\"\n"
        )
    };
    (0..count).map(entry).collect()
}

fn import_one(text: &str, inventory: &Inventory) -> Result<Imported, ConfigErrors> {
    let input = Input {
        file: "t.json",
        text,
    };
    import(&[input], inventory)
}

fn config(text: &str, inventory: &Inventory) -> Config {
    let imported = import_one(text, inventory).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    let toml = &imported.toml;
    Config::parse("imported", toml).unwrap_or_else(|e| panic!("{e}\n{toml}"))
}

fn errors(text: &str, inventory: &Inventory) -> String {
    match import_one(text, inventory) {
        Ok(imported) => panic!("{}", imported.toml),
        Err(errors) => errors.to_string(),
    }
}

/// A template of one probe, whose path an expression is.
fn template_of(expression: &str) -> String {
    let escaped = expression.replace('"', "\\\"");
    format!(
        r#"{{
          "parameters": {{
            "prefix": {{ "type": "string", "defaultValue": "web" }},
            "count": {{ "type": "int", "defaultValue": 3 }},
            "ports": {{ "type": "array", "defaultValue": [80, 443, 8080] }},
            "make": {{ "type": "bool", "defaultValue": false }},
            "secret": {{ "type": "securestring" }},
            "size": {{ "type": "string", "allowedValues": ["small", "big"], "defaultValue": "medium" }},
            "few": {{ "type": "int", "minValue": 1, "maxValue": 2, "defaultValue": 3 }}
          }},
          "variables": {{
            "lb": "[concat(parameters('prefix'), '-lb')]",
            "loop": "[variables('loop')]",
            "twice": "[concat(variables('lb'), variables('lb'))]",
            "sizes": {{ "small": [1, 2], "copy": [ {{ "name": "inner", "count": 2, "input": "[copyIndex('inner', 7)]" }} ] }},
            "copy": [ {{ "name": "nics", "count": "[parameters('count')]", "input": {{ "name": "[concat('nic', copyIndex('nics', 1))]" }} }} ]
          }},
          "functions": [ {{ "namespace": "own", "members": {{ "name": {{
            "parameters": [ {{ "name": "base", "type": "string" }} ],
            "output": {{ "type": "string", "value": "[concat(parameters('base'), '!')]" }} }} }} }} ],
          "resources": [ {{ "name": "p", "properties": {{ "protocol": "Http", "port": 80, "intervalInSeconds": 5,
            "requestPath": "{escaped}" }} }} ]
        }}"#
    )
}

#[test]
fn expressions_are_worked_out_as_azure_does() {
    for (expression, expected) in [
        ("plain", "plain"),
        ("[[literal]", "[literal]"),
        ("[not an expression", "[not an expression"),
        ("[variables('lb')]", "web-lb"),
        ("[ VARIABLES( 'LB' ) ]", "web-lb"),
        (
            "[concat('it''s ', variables('twice'))]",
            "it's web-lbweb-lb",
        ),
        (
            "[string(add(parameters('count'), variables('sizes').small[1]))]",
            "5",
        ),
        ("[string(length(range(0, parameters('count'))))]", "3"),
        ("[string(range(5, 3)[1])]", "6"),
        ("[string(parameters('ports')[1])]", "443"),
        ("[string(parameters('ports'))]", "[80,443,8080]"),
        ("[string(json('{\"a\": [1, 2]}').a[1])]", "2"),
        (
            "[string(createObject('a', 1, 'b', createArray('x'))['b'])]",
            "[\"x\"]",
        ),
        ("[take('abcdef', 3)]", "abc"),
        ("[string(skip(parameters('ports'), 1))]", "[443,8080]"),
        ("[string(take(parameters('ports'), 9))]", "[80,443,8080]"),
        ("[string(and(true(), not(false())))]", "True"),
        ("[string(or(false(), equals(1, 1)))]", "True"),
        ("[string(equals('1', 1))]", "False"),
        (
            "[string(equals(createArray(1, 2), createArray(1, 2)))]",
            "True",
        ),
        ("[string(less(1, 2))]", "True"),
        ("[string(greaterOrEquals('b', 'a'))]", "True"),
        ("[string(greater(1, 1))]", "False"),
        ("[string(lessOrEquals(1, 1))]", "True"),
        (
            "[if(parameters('make'), parameters('secret'), 'not looked at')]",
            "not looked at",
        ),
        ("[if(bool('true'), 'yes', reference('nothing').x)]", "yes"),
        ("[string(and(false(), reference('nothing').x))]", "False"),
        (
            "[coalesce(null(), json('null'), 'third', parameters('secret'))]",
            "third",
        ),
        ("[substring('abcdef', 2, 3)]", "cde"),
        ("[substring('abcdef', 4)]", "ef"),
        ("[split('a,b;c', createArray(',', ';'))[2]]", "c"),
        ("[join(createArray('a', 'b', 3), '-')]", "a-b-3"),
        ("[join(split('10.0.1.4', '.'), '/')]", "10/0/1/4"),
        ("[toLower('ABC')]", "abc"),
        ("[toUpper(trim('  abc '))]", "ABC"),
        ("[replace('a.b.c', '.', '')]", "abc"),
        ("[padLeft('7', 3, '0')]", "007"),
        ("[format('{0}-{1:D2}-{{x}}', 'a', 7)]", "a-07-{x}"),
        ("[string(indexOf('abc', 'C'))]", "2"),
        ("[string(contains(parameters('ports'), 443))]", "True"),
        ("[string(contains('abc', 'x'))]", "False"),
        ("[string(empty(createArray()))]", "True"),
        ("[first(split('a/b/c', '/'))]", "a"),
        ("[last(split('a/b/c', '/'))]", "c"),
        (
            "[string(union(createArray(1, 2), createArray(2, 3)))]",
            "[1,2,3]",
        ),
        (
            "[string(intersection(createArray(1, 2), createArray(2, 3)))]",
            "[2]",
        ),
        ("[string(min(3, 1, 2))]", "1"),
        ("[string(max(createArray(3, 1)))]", "3"),
        ("[string(mod(div(7, 2), mul(2, sub(3, 1))))]", "3"),
        ("[string(int('42'))]", "42"),
        ("[variables('nics')[2].name]", "nic3"),
        ("[string(variables('sizes').inner)]", "[7,8]"),
        ("[own.name('x')]", "x!"),
        (
            "[string(map(range(0, 3), lambda('i', mul(lambdaVariables('i'), 2))))]",
            "[0,2,4]",
        ),
        (
            "[string(filter(parameters('ports'), lambda('p', less(lambdaVariables('p'), 100))))]",
            "[80]",
        ),
        ("[cidrHost('10.0.1.0/24', 3)]", "10.0.1.4"),
        ("[cidrHost('2001:db8::/64', 0)]", "2001:db8::1"),
        ("[cidrSubnet('10.0.0.0/16', 24, 2)]", "10.0.2.0/24"),
        (
            "[resourceId('Microsoft.Network/loadBalancers/probes', 'lb', 'p')]",
            "/subscriptions/-/providers/Microsoft.Network/loadBalancers/lb/probes/p",
        ),
        (
            "[resourceId('group', 'Microsoft.Network/loadBalancers', 'lb')]",
            "/subscriptions/-/providers/Microsoft.Network/loadBalancers/lb",
        ),
        (
            "[uri('https://x/a/b.json', 'c.json')]",
            "https://x/a/c.json",
        ),
        ("[tryGet(createObject('a', 1), 'b', 'c')]", ""),
    ] {
        let text = template_of(expression);
        let imported =
            import_one(&text, &inventory("")).unwrap_or_else(|e| panic!("{expression}: {e}"));
        let table: toml::Table = imported.toml.parse().expect("TOML");
        let path = table["probe"][0].get("path").and_then(|path| path.as_str());
        assert_eq!(path.unwrap_or_default(), expected, "{expression}");
        assert!(
            imported.warnings.is_empty(),
            "{expression}: {:?}",
            imported.warnings
        );
    }
}

#[test]
fn expressions_without_a_value_say_why_and_where() {
    for (expression, expected) in [
        ("[concat('a'", ""),
        (
            "[concat('a']",
            "character 12: expected \",\" or \")\", got \"]\"",
        ),
        ("[concat('a') 'b']", "character 14: expected \"]\", got 'b'"),
        ("[parameters('none')]", "no parameter \"none\" is declared"),
        ("[variables('none')]", "no variable \"none\" is declared"),
        (
            "[variables('loop')]",
            "it refers to itself, or lies too deep",
        ),
        ("[variables('sizes').large]", "the object has no \"large\""),
        (
            "[variables('lb').x]",
            "expected an object with \"x\", got \"web-lb\"",
        ),
        ("[parameters('ports')[3]]", "a list of 3 has no 3"),
        (
            "[parameters('size')]",
            "parameter \"size\": expected one of \"small\", \"big\", got \"medium\"",
        ),
        (
            "[string(parameters('few'))]",
            "parameter \"few\": expected 1 to 2, got 3",
        ),
        (
            "[string(add(9223372036854775807, 1))]",
            "add(): the result is no integer of 64 bits",
        ),
        (
            "[string(div(1, 0))]",
            "div(): the result is no integer of 64 bits",
        ),
        (
            "[string(add('a', 1))]",
            "add(): expected an integer as argument 1, got \"a\"",
        ),
        (
            "[format('{9}', 'a')]",
            "format(): expected a string, a number, or true or false as argument 11, got nothing",
        ),
        (
            "[if('x', 1, 2)]",
            "if(): expected true or false as argument 1, got \"x\"",
        ),
        (
            "[substring('abc', 2, 5)]",
            "substring(): expected at most 3 characters, got 5 from 2 on",
        ),
        (
            "[string(range(0, 10001))]",
            "range(): expected at most 10000 numbers, got 10001",
        ),
        (
            "[listKeys('x', '2020')]",
            "listKeys(): asks Azure about a deployed resource (keys and the like): what it gives is not in the template",
        ),
        ("[own.other('x')]", "no function \"own.other\" is declared"),
        ("[string(copyIndex())]", "copyIndex(): no loop is around it"),
        (
            "[reference('pip').ipAddress]",
            "\"pip\" is not in the template",
        ),
        (
            "[resourceId('Microsoft.Network/loadBalancers/probes', 'lb')]",
            "expected 2 names for Microsoft.Network/loadBalancers/probes, got 1",
        ),
        (
            "[cidrHost('10.0.0.0/30', 9)]",
            "cidrHost(): 9 is beyond the prefix",
        ),
        ("[json('{')]", "json(): "),
        (
            "[parameters('ports')]",
            "requestPath: expected a string, got a list",
        ),
        (
            "[]",
            "character 2: expected a string, a number or a function, got \"]\"",
        ),
    ] {
        let text = template_of(expression);
        if expected.is_empty() {
            // A text that no bracket closes is a text.
            assert!(import_one(&text, &inventory("")).is_ok());
            continue;
        }
        let found = errors(&text, &inventory(""));
        assert!(found.contains(expected), "{expression}: {found}");
        assert!(
            found.starts_with("t.json:22: probe \"p\": requestPath: "),
            "{found}"
        );
    }
}

#[test]
fn a_parameter_without_a_value_is_the_cause_and_said_once() {
    let text = r#"{ "parameters": {
        "vip": { "type": "string" },
        "unused": { "type": "securestring" } },
      "variables": { "address": "[parameters('vip')]" },
      "resources": [ { "type": "Microsoft.Network/loadBalancers", "name": "lb", "sku": { "name": "Standard" }, "properties": {
        "frontendIPConfigurations": [
          { "name": "a", "properties": { "privateIPAddress": "[variables('address')]" } },
          { "name": "b", "properties": { "privateIPAddress": "[concat(variables('address'), '')]" } } ] } },
        { "type": "Microsoft.Compute/virtualMachines", "name": "vm", "properties": { "password": "[parameters('unused')]" } } ] }"#;
    let found = errors(text, &inventory(""));
    let expected = "t.json:2: parameter \"vip\": has no value and no default: a parameter file has to give one";
    assert_eq!(found, expected);
}

/// A load balancer, and beside it what is put into the template.
fn around(more: &str, pool: &str) -> String {
    format!(
        r#"{{ "parameters": {{ "make": {{ "type": "bool", "defaultValue": false }}, "count": {{ "type": "int", "defaultValue": 2 }} }},
        "variables": {{ "pool": "[resourceId('Microsoft.Network/loadBalancers/backendAddressPools', 'lb', 'be')]" }},
        "resources": [
          {{ "type": "Microsoft.Network/loadBalancers", "name": "lb", "sku": {{ "name": "Standard" }}, "properties": {{
            "frontendIPConfigurations": [ {{ "name": "fe", "properties": {{ "privateIPAddress": "10.0.0.100" }} }} ],
            "backendAddressPools": [ {{ "name": "be"{pool} }} ],
            "loadBalancingRules": [ {{ "name": "http", "properties": {{
              "frontendIPConfiguration": {{ "id": "[resourceId('Microsoft.Network/loadBalancers/frontendIPConfigurations', 'lb', 'fe')]" }},
              "backendAddressPool": {{ "id": "[variables('pool')]" }},
              "protocol": "Tcp", "frontendPort": 80, "backendPort": 80 }} }} ] }} }}{more} ] }}"#
    )
}

const NIC: &str = r#", { "type": "Microsoft.Network/networkInterfaces", "name": "[concat('nic', copyIndex(1))]",
    "copy": { "name": "nics", "count": COUNT }, CONDITION
    "properties": { "ipConfigurations": [ { "name": "c", "properties": {
      "loadBalancerBackendAddressPools": [ { "id": "[variables('pool')]" } ] } } ] } }"#;

fn nics(count: &str, condition: &str) -> String {
    let nic = NIC.replace("COUNT", count);
    around(&nic.replace("CONDITION", condition), "")
}

fn backends(config: &Config) -> Vec<String> {
    let all = config.pools.iter().flat_map(|pool| &pool.backends);
    all.map(|backend| format!("{} {}", backend.name, backend.address))
        .collect()
}

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
            "copy: providers(): what it gives is known to Azure, and not to the template",
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

const DEPLOYMENT: &str = r#", { "type": "Microsoft.Resources/deployments", "name": "inner", "properties": {
    SCOPE "mode": "Incremental", "parameters": { "count": { "value": "[add(parameters('count'), 1)]" } },
    "template": { "parameters": { "count": { "type": "int" } },
      "variables": { "pool": "[resourceId('Microsoft.Network/loadBalancers/backendAddressPools', 'lb', 'be')]" },
      "resources": [ { "type": "Microsoft.Network/networkInterfaces", "name": "[concat('nic', copyIndex(1))]",
        "copy": { "name": "nics", "count": "[parameters('count')]" },
        "properties": { "ipConfigurations": [ { "name": "c", "properties": {
          "privateIPAddress": "[format('10.0.0.{0}', copyIndex(4))]",
          "loadBalancerBackendAddressPools": [ { "id": "[variables('pool')]" } ] } } ] } } ],
      "outputs": { "address": { "type": "string", "value": "10.0.0.77" } } } } }"#;

#[test]
fn a_deployment_within_a_template_is_deployed_in_its_place() {
    let inventory = inventory(&machines(&["nic1", "nic2", "nic3"]));
    // Expressions are the outer template's by default, where the count is 2.
    for (scope, expected) in [
        ("", 2),
        (r#""expressionEvaluationOptions": { "scope": "outer" },"#, 2),
        (r#""expressionEvaluationOptions": { "scope": "inner" },"#, 3),
    ] {
        let text = around(&DEPLOYMENT.replace("SCOPE", scope), "");
        assert_eq!(
            backends(&config(&text, &inventory)).len(),
            expected,
            "{scope}"
        );
    }
    // What it says when it is done.
    let output = r#", { "type": "Microsoft.Network/loadBalancers", "name": "second", "properties": { "frontendIPConfigurations": [
        { "name": "x", "properties": { "privateIPAddress": "[reference('inner').outputs.address.value]" } } ] } }"#;
    let text = around(&(DEPLOYMENT.replace("SCOPE", "") + output), "");
    assert_eq!(
        config(&text, &inventory).frontends[1].address.to_string(),
        "10.0.0.77"
    );
}

#[test]
fn a_linked_template_is_one_of_the_files_or_is_named() {
    let link = r#", { "type": "Microsoft.Resources/deployments", "name": "linked", "properties": {
        "parameters": { "count": { "value": 3 } },
        "templateLink": { "uri": "[uri(deployment().properties.templateLink.uri, 'nested/nics.json?token')]" } } }"#;
    let nested = r#"{ "parameters": { "count": { "type": "int" } }, "resources": [
        { "type": "Microsoft.Network/networkInterfaces", "name": "[concat('nic', copyIndex(1))]", "copy": { "name": "n", "count": "[parameters('count')]" },
          "properties": { "ipConfigurations": [ { "name": "c", "properties": {
            "loadBalancerBackendAddressPools": [ { "id": "[resourceId('Microsoft.Network/loadBalancers/backendAddressPools', 'lb', 'be')]" } ] } } ] } } ] }"#;
    let inventory = inventory(&machines(&["nic1", "nic2", "nic3"]));
    let main = around(link, "");
    let found = errors(&main, &inventory);
    let expected = "deployment \"linked\": templateLink: the template \"nics.json\" is not among the files given";
    assert!(
        found.contains(expected) && found.lines().count() == 1,
        "{found}"
    );
    let inputs = [("dir/nics.json", nested), ("main.json", &main)];
    let inputs = inputs.map(|(file, text)| Input { file, text });
    let imported = import(&inputs, &inventory).unwrap_or_else(|errors| panic!("{errors}"));
    let config = Config::parse("imported", &imported.toml).expect("good");
    assert_eq!(backends(&config).len(), 3);
}

#[test]
fn what_refers_to_itself_ends() {
    let circle = |name: &str, other: &str| {
        format!(
            r#", {{ "type": "Microsoft.Resources/deployments", "name": "{name}", "properties": {{
              "expressionEvaluationOptions": {{ "scope": "inner" }},
              "parameters": {{ "x": {{ "value": "[reference('{other}').outputs.x.value]" }} }},
              "template": {{ "parameters": {{ "x": {{ "type": "string" }} }},
                "resources": [ {{ "type": "Microsoft.Network/loadBalancers", "name": "[parameters('x')]", "properties": {{}} }} ],
                "outputs": {{ "x": {{ "type": "string", "value": "[parameters('x')]" }} }} }} }} }}"#
        )
    };
    let text = around(&(circle("a", "b") + &circle("b", "a")), "");
    let found = errors(&text, &inventory(""));
    assert!(found.contains("the deployment refers to itself"), "{found}");
    let own = r#"{ "resources": [ { "type": "Microsoft.Resources/deployments", "name": "own", "properties": {
        "templateLink": { "relativePath": "t.json" } } } ] }"#;
    let found = errors(own, &inventory(""));
    assert!(found.contains("at most 256 deployments"), "{found}");
}

#[test]
fn a_reference_reads_what_is_in_the_template() {
    let backend = r#", "properties": { "loadBalancerBackendAddresses": [ { "name": "b1", "properties": {
        "ipAddress": "[reference(resourceId('Microsoft.Network/networkInterfaces', 'nic')).ipConfigurations[0].properties.privateIPAddress]" } } ] }"#;
    let nic = |address: &str| {
        format!(
            r#", {{ "type": "Microsoft.Network/networkInterfaces", "name": "nic", "properties": {{ "ipConfigurations": [
              {{ "name": "c", "properties": {{ {address} }} }} ] }} }}"#
        )
    };
    let said = around(&nic(r#""privateIPAddress": "10.0.0.9""#), backend);
    let known = inventory("[[backend]]\nid = \"b1\"\nhost = \"172.16.0.101\"\n");
    assert_eq!(backends(&config(&said, &known)), ["b1 10.0.0.9"]);
    // One that Azure gives is an error that says so, unless the inventory knows it.
    let given = around(&nic(r#""privateIPAllocationMethod": "Dynamic""#), backend);
    let found = errors(&given, &known);
    assert!(found.contains("pool \"be\": backend \"b1\": ipAddress: expected an IPv4 or IPv6 address, here or in the inventory ([[backend]] with id = \"b1\" and address), got the expression"), "{found}");
    assert!(
        found.contains("the object has no \"privateIPAddress\""),
        "{found}"
    );
    let config = config(&given, &inventory(&machines(&["b1"])));
    assert_eq!(backends(&config), ["b1 10.0.0.4"]);
}

#[test]
fn stand_ins_of_azures_own_values_are_stable_and_said() {
    let nic = r#", { "type": "Microsoft.Network/networkInterfaces", "name": "[concat('nic', uniqueString(resourceGroup().id))]",
        "location": "[resourceGroup().location]", "tags": { "x": "[guid('x')]" },
        "properties": { "ipConfigurations": [ { "name": "c", "properties": { "privateIPAddress": "10.0.0.4",
          "loadBalancerBackendAddressPools": [ { "id": "[variables('pool')]" } ] } } ] } }"#;
    let text = around(nic, "");
    let inventory = inventory("[[backend]]\naddress = \"10.0.0.4\"\nhost = \"172.16.0.101\"\n");
    let imported = import_one(&text, &inventory).unwrap_or_else(|errors| panic!("{errors}"));
    let warnings: Vec<String> = imported.warnings.iter().map(ToString::to_string).collect();
    let [first, second] = warnings.as_slice() else {
        panic!("{warnings:#?}");
    };
    assert!(
        first.contains("expression: resourceGroup() is known to Azure alone"),
        "{first}"
    );
    assert!(
        second.contains("expression: uniqueString() is not public"),
        "{second}"
    );
    assert_eq!(
        imported.toml,
        import_one(&text, &inventory).expect("as before").toml
    );
    let config = Config::parse("imported", &imported.toml).expect("good");
    let name = &config.pools[0].backends[0].name;
    assert_eq!((name.len(), &name[..3]), (16, "nic"), "{name}");
}

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
            "rule \"r\": protocol: HA ports take a Standard load balancer, and this is Basic",
        ),
        (
            balancer(r#""sku": { "name": "Basic" },"#, inside, https),
            "probe \"p\": protocol: HTTPS probes take a Standard",
        ),
        (
            balancer("", outside, outbound),
            "outbound rule \"o\": sku: outbound rules take a Standard",
        ),
        (
            balancer(standard, outside, &ha),
            "rule \"r\": protocol: HA ports are of internal frontends only",
        ),
        (
            balancer(r#""sku": { "name": "Gateway" },"#, inside, ""),
            "load balancer \"lb\": sku: name: a Gateway load balancer",
        ),
        (
            balancer(
                r#""sku": { "name": "Standard", "tier": "Global" },"#,
                outside,
                "",
            ),
            "sku: tier: a Global load balancer",
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
            "frontend \"fe\": gatewayLoadBalancer: a chain through a Gateway load balancer",
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

#[test]
fn a_parameter_file_says_what_a_template_asks_for() {
    let template = nics("\"[parameters('count')]\"", "");
    let parameters = r#"{ "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentParameters.json#",
        "parameters": { "count": { "value": "3" }, "colour": { "value": "blue" } } }"#;
    let inputs = [("t.json", &*template), ("p.json", parameters)];
    let inputs = inputs.map(|(file, text)| Input { file, text });
    let inventory = inventory(&machines(&["nic1", "nic2", "nic3"]));
    let imported = import(&inputs, &inventory).unwrap_or_else(|errors| panic!("{errors}"));
    let made = Config::parse("imported", &imported.toml).expect("good");
    assert_eq!(backends(&made).len(), 3);
    let warnings: Vec<String> = imported.warnings.iter().map(ToString::to_string).collect();
    let expected = "p.json:2: parameter \"colour\": is declared by no template, and left out";
    assert_eq!(warnings, [expected]);
}

/// Pieces of expressions in any order: each ends, in a value or an error.
#[test]
fn any_expression_is_worked_out_or_refused() {
    const PIECES: &[&str] = &[
        "(",
        ")",
        "[",
        "]",
        ",",
        ".",
        "'a'",
        "'",
        "0",
        "-1",
        "9223372036854775807",
        "concat(",
        "format('{0}{1:D9}',",
        "string(",
        "range(0,",
        "json('[1,{}]')",
        "parameters('ports')",
        "variables('loop')",
        "variables('nics')",
        "if(",
        "and(",
        "not(",
        "take(",
        "skip(",
        "first(",
        "split('a,b',",
        "join(",
        "substring('abc',",
        "padLeft('a',",
        "union(",
        "createArray(",
        "createObject('a',",
        "map(",
        "filter(",
        "lambda('i',",
        "lambdaVariables('i')",
        "reference(",
        "resourceId('A.B/c',",
        "copyIndex(",
        "cidrHost('10.0.0.0/24',",
        "cidrSubnet('::/0',128,",
        "own.name(",
        "uniqueString(",
        "indexOf('é',",
        "true()",
        "null()",
        "x",
        " ",
        "items(",
    ];
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let pieces = bytes.iter().take(24);
        let pieces = pieces.map(|&byte| PIECES[usize::from(byte) % PIECES.len()]);
        let text = template_of(&format!("[{}]", pieces.collect::<String>()));
        let proxy = Inventory::parse("inventory", "[node]\nrole = \"proxy\"\n").expect("good");
        if let Ok(imported) = import_one(&text, &proxy) {
            let table: Result<toml::Table, _> = imported.toml.parse();
            assert!(table.is_ok(), "{}", imported.toml);
        }
    });
}

#[test]
fn work_without_end_is_refused() {
    // Each variable is the one before it, twice: 2^40 values.
    let variable = |n: u32| {
        format!(
            r#""v{n}": ["[variables('v{}')]", "[variables('v{}')]"]"#,
            n + 1,
            n + 1
        )
    };
    let all: Vec<String> = (0..40).map(variable).collect();
    let text = format!(
        r#"{{ "variables": {{ {}, "v40": 1 }}, "resources": [ {{ "name": "p", "properties": {{ "protocol": "Tcp", "port": "[variables('v0')]" }} }} ] }}"#,
        all.join(", ")
    );
    let found = errors(&text, &inventory(""));
    assert!(found.contains("too much work"), "{found}");
}

/// A quickstart's name, its inventory, and the expected numbers of frontends, backends, rules, NAT rules and
/// pools, and outbound rules; or the expected error, which has one line.
type Quickstart<'q> = (&'q str, String, Result<[usize; 5], &'q str>);

fn public(ids: &[&str]) -> String {
    let entry = |(place, id): (usize, &&str)| {
        let address = if id.ends_with('6') {
            format!("2001:db8::{}", place + 1)
        } else {
            format!("40.50.60.{}", place + 70)
        };
        format!("[[public_ip]]\nid = \"{id}\"\naddress = \"{address}\"\n")
    };
    ids.iter().enumerate().map(entry).collect()
}

fn quickstarts() -> Vec<Quickstart<'static>> {
    include!("quickstart/expected.rs")
}

#[test]
fn quickstart_templates_import_or_name_what_is_missing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quickstart");
    let all = quickstarts();
    let files = fs::read_dir(&folder)
        .expect("the folder")
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_suffix(".json").map(str::to_owned)
        });
    let mut files: Vec<String> = files.collect();
    files.sort();
    let mut names: Vec<&str> = all.iter().map(|(name, ..)| *name).collect();
    names.sort_unstable();
    assert_eq!(files, names, "each file has its line");
    assert!(all.len() >= 20);
    let mut wrong = Vec::new();
    for (name, more, expected) in all {
        let text = fs::read_to_string(folder.join(format!("{name}.json"))).expect("readable");
        let found = comes_to(&text, &inventory(&more));
        let is_right = match (&found, expected) {
            (Ok(found), Ok(expected)) => *found == expected,
            (Err(said), Err(expected)) => said.lines().count() == 1 && said.contains(expected),
            _ => false,
        };
        if !is_right {
            wrong.push(format!("{name}: expected {expected:?}, got {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Frontends, backends, rules, NAT rules and pools, outbound rules; or what is said instead.
fn comes_to(text: &str, inventory: &Inventory) -> Result<[usize; 5], String> {
    let imported = import_one(text, inventory).map_err(|errors| errors.to_string())?;
    if let Some(missing) = imported.missing {
        return Err(missing.to_string());
    }
    let config = Config::parse("imported", &imported.toml).map_err(|errors| errors.to_string())?;
    config.snapshot(None).map_err(|error| error.to_string())?;
    Ok([
        config.frontends.len(),
        config.pools.iter().map(|pool| pool.backends.len()).sum(),
        config.rules.len(),
        config.inbound_nat.len(),
        config.outbound.len(),
    ])
}

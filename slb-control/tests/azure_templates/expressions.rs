//! Expressions: the results that Azure documents, and errors that say where.

use slb_control::azure::Inventory;

use super::{errors, import_one, inventory, template_of};

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
            "it refers to itself, or is nested too deeply",
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
            "add(): the result does not fit a 64-bit integer",
        ),
        (
            "[string(div(1, 0))]",
            "div(): expected a number other than 0 as argument 2, got 0",
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
            "listKeys(): queries a deployed resource (keys and the like): its result is not in the template",
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

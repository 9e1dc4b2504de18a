//! Deployments, references and parameter files.

use slb_control::Config;
use slb_control::azure::{Input, import};

use super::{around, backends, config, errors, import_one, inventory, machines, nics};

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

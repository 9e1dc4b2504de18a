//! ARM templates: expressions, loops, conditions, deployments and scale sets, and quickstart templates.

mod deployments;
mod expressions;
mod quickstarts;
mod resources;
mod scale_sets;
mod zones;

use slb_control::azure::{Imported, Input, Inventory, import};
use slb_control::{Config, ConfigErrors};

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

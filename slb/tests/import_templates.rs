//! `slb import` of ARM templates, and what the configuration does with a packet.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const INVENTORY: &str = r#"
vni = 5001
[node]
role = "mux"
underlay = "172.16.0.11"
[[public_ip]]
id = "demo-lbPublicIP"
address = "40.50.60.70"
[[public_ip]]
id = "demo-lbPublicIPOutbound"
address = "40.50.60.71"
"#;

struct Desk(tempfile::TempDir);

impl Desk {
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).expect("written");
        self.path(name)
    }

    /// The inventory with so many vms of the template.
    fn inventory(&self, vms: u8) -> String {
        let vm = |n: u8| {
            format!(
                "[[backend]]\nid = \"demo-vm{n}-networkInterface\"\naddress = \"10.0.0.{}\"\nhost = \"172.16.0.101\"\n",
                n + 3
            )
        };
        let vms: String = (1..=vms).map(vm).collect();
        self.write("inventory.toml", &format!("{INVENTORY}{vms}"))
    }
}

fn desk() -> Desk {
    Desk(tempfile::tempdir().expect("a folder"))
}

fn slb(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
    command.args(arguments).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn template() -> String {
    let quickstarts = "../slb-control/tests/quickstart/load-balancer-standard-create.json";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(quickstarts);
    fs::read_to_string(path).expect("the template")
}

#[test]
fn a_quickstart_template_balances() {
    let desk = desk();
    let (json, inventory) = (desk.write("lb.json", &template()), desk.inventory(3));
    let out = desk.path("web.toml");
    let made = slb(&["import", &json, "--inventory", &inventory, "--out", &out]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let checked = slb(&["check", &out]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    let told = slb(&[
        "explain",
        "--config",
        &out,
        "tcp",
        "198.51.100.7:40000",
        "40.50.60.70:80",
    ]);
    let told = text(&told.stdout);
    assert!(
        told.contains("myHTTPRule") && told.contains("demo-vm"),
        "{told}"
    );
}

#[test]
fn what_is_not_understood_writes_nothing_and_ends_with_2() {
    let count = r#""count": "[length(range(0, 3))]""#;
    assert!(template().contains(count));
    for (old, new, expected) in [
        (
            count,
            r#""count": "[length(providers('Microsoft.Network'))]""#,
            "copy: providers(): only Azure knows its result",
        ),
        (
            r#""sku": {"name": "Standard"}"#,
            r#""condition": "[parameters('make')]", "sku": {"name": "Standard"}"#,
            "condition: expected true or false, got the expression",
        ),
        (
            "'LoadBalancerBackEndPool'",
            "'LoadBalancerBackendPools'",
            "has no pool \"LoadBalancerBackendPools\"",
        ),
        (
            r#""allocatedOutboundPorts": 10000"#,
            r#""allocatedOutboundPorts": "[parameters('ports')]""#,
            "no parameter \"ports\" is declared",
        ),
    ] {
        let desk = desk();
        let changed = template().replace(old, new);
        assert_ne!(changed, template(), "{old}");
        let (json, inventory) = (desk.write("lb.json", &changed), desk.inventory(3));
        let out = desk.path("web.toml");
        let refused = slb(&["import", &json, "--inventory", &inventory, "--out", &out]);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(
            said.contains(expected) && said.contains("lb.json:"),
            "{expected}\n{said}"
        );
        assert!(!Path::new(&out).exists());
    }
    // Nor is it another load balancer where the inventory knows too little.
    let desk = desk();
    let (json, inventory) = (desk.write("lb.json", &template()), desk.inventory(2));
    let refused = slb(&["import", &json, "--inventory", &inventory]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("demo-vm3-networkInterface"));
    assert_eq!(text(&refused.stdout), "");
}

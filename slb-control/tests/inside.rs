//! `inside` of `[node]`: which prefixes vms reach under their own addresses.

use slb_control::{Config, Diff};
use slb_core::spec::INSIDE;

fn node(inside: &str) -> String {
    format!("[node]\nrole = \"host\"\nunderlay = \"172.16.0.101\"\n{inside}\n")
}

fn prefixes(inside: &str) -> Vec<String> {
    let config = Config::parse("host.toml", &node(inside)).expect("a good configuration");
    config.node.inside.iter().map(ToString::to_string).collect()
}

#[test]
fn a_list_replaces_the_usual_one() {
    let usual: Vec<String> = INSIDE.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes(""), usual);
    assert_eq!(prefixes("inside = []"), [""; 0]);
    assert_eq!(prefixes("inside = \"10.1.0.0/16\""), ["10.1.0.0/16"]);
    assert_eq!(
        prefixes("inside = [\"198.51.100.0/24\", \"2001:db8::/32\"]"),
        ["198.51.100.0/24", "2001:db8::/32"]
    );
}

#[test]
fn what_is_no_prefix_is_refused_with_its_line() {
    for bad in [
        "10.0.0.0",
        "10.0.0.0/33",
        "fd00::/129",
        "10.0.0/8",
        "inside/8",
        "10.0.0.0/-1",
    ] {
        let text = node(&format!("inside = [\"{bad}\"]"));
        let errors = Config::parse("host.toml", &text)
            .expect_err(bad)
            .to_string();
        let expected = format!(
            "host.toml:4: node: inside: expected an address and a length, such as \"10.1.0.0/16\", got \
             {bad:?}"
        );
        assert!(errors.contains(&expected), "{errors}");
    }
}

#[test]
fn a_change_is_shown() {
    let parse = |text: &str| Config::parse("host.toml", text).expect("a good configuration");
    let (old, new) = (parse(&node("")), parse(&node("inside = []")));
    let diff = Diff::between(&old, &new).expect("both are good");
    assert!(
        diff.changed.iter().any(|part| part.contains("inside")),
        "{diff:?}"
    );
}

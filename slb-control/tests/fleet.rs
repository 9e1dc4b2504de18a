//! Configurations of whole fleets: `[fleet]` in the place of `[node]`.

use slb_control::Config;
use slb_control::config::Common;

const COMMON: Common<'static> = Common {
    shared: &["hash_seed", "muxes"],
    own: &["hosts"],
    node: "role = \"mux\"\nunderlay = \"192.0.2.1\"\n",
};

fn faults(text: &str) -> Vec<String> {
    let faults = Config::parse_fleet("web.toml", text, &COMMON).unwrap_err();
    faults.0.iter().map(ToString::to_string).collect()
}

#[test]
fn what_all_nodes_share_is_the_nodes() {
    let text = "[fleet]\nhash_seed = 7\nhosts = { a = 1 }\n";
    let config = Config::parse_fleet("web.toml", text, &COMMON).unwrap();
    assert_eq!(config.node.hash_seed, 7);
    assert_eq!(config.node.ipv4, Some([192, 0, 2, 1].into()));
    assert!(config.origin.is(text));
    let config = Config::parse_fleet("web.toml", "", &COMMON).unwrap();
    assert_eq!(config.node.ipv4, Some([192, 0, 2, 1].into()));
}

#[test]
fn faults_have_the_lines_of_the_text_wherever_the_section_is() {
    let pool = "[[pool]]\nname = \"p\"\nvni = 1\nbackend = 3\n";
    let fleet = "[fleet]\nhash_seed = -1\n";
    for (text, lines) in [
        (
            format!("{fleet}{pool}"),
            [("fleet: hash_seed", 2), ("pool \"p\"", 6)],
        ),
        (
            format!("{pool}{fleet}"),
            [("fleet: hash_seed", 6), ("pool \"p\"", 4)],
        ),
        (
            format!("fleet = {{ hash_seed = -1 }}\n{pool}"),
            [("fleet: hash_seed", 1), ("pool \"p\"", 5)],
        ),
        (
            format!("fleet.hash_seed = -1\n{pool}"),
            [("fleet: hash_seed", 1), ("pool \"p\"", 5)],
        ),
    ] {
        let faults = faults(&text);
        for (place, line) in lines {
            let begin = format!("web.toml:{line}: {place}");
            assert!(
                faults.iter().any(|fault| fault.starts_with(&begin)),
                "{begin}: {faults:?}"
            );
        }
    }
}

#[test]
fn a_field_of_one_node_is_refused_with_its_line() {
    assert_eq!(
        faults("[fleet]\nhash_seed = 1\nflows = 3\n"),
        ["web.toml:3: fleet: flows: expected one of hash_seed, hosts, muxes"]
    );
    assert_eq!(
        faults("# none\nfleet = 3\n"),
        ["web.toml:2: fleet: expected one section [fleet], got 3"]
    );
    assert_eq!(
        faults("[[fleet]]\nhash_seed = 1\n"),
        ["web.toml:1: fleet: expected one section [fleet], got a list"]
    );
}

//! Seats of backends in files.

use slb_control::{Config, Diff};

fn file(backends: &[&str]) -> String {
    let backends: String = (1..).zip(backends).map(|(number, rest)| {
        format!("{{ name = \"b{number}\", address = \"10.0.0.{number}\", host = \"172.16.0.10{number}\"{rest} }},\n")
    }).collect();
    format!(
        "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
         [[frontend]]\nname = \"v\"\naddress = \"20.20.20.100\"\n\
         [[pool]]\nname = \"p\"\nvni = 5001\nbackends = [\n{backends}]\n\
         [[rule]]\nname = \"r\"\nfrontend = \"v\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80\n"
    )
}

fn faults(backends: &[&str]) -> String {
    let text = file(backends);
    Config::parse("f.toml", &text)
        .expect_err("a fault")
        .to_string()
}

fn config(backends: &[&str]) -> Config {
    Config::parse("f.toml", &file(backends)).expect("good")
}

#[test]
fn a_replacement_in_the_seat_of_another_moves_only_that_ones_flows() {
    let old = config(&["", "", "", ", weight = 0"]);
    assert_eq!(old.pools[0].backends[3].seat(), "b4");
    let changed = |fourth: &str| {
        let new = config(&["", "", ", weight = 0", fourth]);
        let diff = Diff::between(&old, &new).expect("good");
        diff.rules[0].changed
    };
    let (seated, not) = (changed(", seat = \"b3\""), changed(""));
    assert!((seated - 1.0 / 3.0).abs() < 0.001, "{seated}");
    assert!(not > seated + 0.01, "{not}");
}

#[test]
fn two_backends_in_one_seat_are_a_fault_unless_one_drains() {
    let taken = faults(&["", ", seat = \"b1\""]);
    assert_eq!(
        taken,
        "f.toml:12: pool \"p\": backend \"b2\": seat: backend \"b1\" has seat \"b1\" already: expected one of \
         the two to have weight 0, or to drain"
    );
    for rest in ["weight = 0", "state = \"draining\""] {
        config(&["", &format!(", seat = \"b1\", {rest}")]);
    }
    let empty = faults(&["", ", seat = \"\""]);
    assert!(
        empty.contains("seat: expected a name, got an empty string"),
        "{empty}"
    );
    let number = faults(&["", ", seat = 1"]);
    assert!(number.contains("seat"), "{number}");
}

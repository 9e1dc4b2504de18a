//! Weights that backends had before, and the detours that a change makes.

use slb_control::{Config, Diff};
use slb_core::snapshot::Snapshot;

/// The file of a node with these backends, of which the second's vm is at the first host, and a past.
fn file(role: &str, backends: &[(&str, u32)], past: &str) -> String {
    let backends: String = backends
        .iter()
        .map(|(name, weight)| {
            let number: u8 = name[1..].parse().expect("a number");
            format!(
                "{{ name = \"{name}\", address = \"10.0.0.{number}\", host = \"172.16.0.10{number}\", weight = {weight} }},\n"
            )
        })
        .collect();
    format!(
        "[node]\nrole = \"{role}\"\nunderlay = \"172.16.0.101\"\n\
         [[frontend]]\nname = \"v\"\naddress = \"20.20.20.100\"\n\
         [[pool]]\nname = \"p\"\nvni = 5001\n{past}\nbackends = [\n{backends}]\n\
         [[rule]]\nname = \"r\"\nfrontend = \"v\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80\n"
    )
}

fn read(text: &str) -> Config {
    Config::parse("f.toml", text).expect("good")
}

fn fault(past: &str) -> String {
    let text = file("host", &[("b1", 1), ("b2", 1)], past);
    Config::parse("f.toml", &text)
        .expect_err("a fault")
        .to_string()
}

/// For each slot the names of its present and former owners.
fn owners(snapshot: &Snapshot<'_>) -> Vec<Vec<usize>> {
    let slots = 0..snapshot.pool_table(0).expect("a pool").len();
    let of_slot = |slot| {
        let all = snapshot.owners(0, slot);
        all.map(slb_core::snapshot::BackendId::slot).collect()
    };
    slots.map(of_slot).collect()
}

#[test]
fn a_host_that_starts_with_the_past_knows_the_owners_that_one_that_saw_it_knows() {
    let saw = read(&file("host", &[("b1", 1), ("b2", 1), ("b3", 0)], ""));
    let first = saw.snapshot(None).expect("good");
    let drained = read(&file("host", &[("b1", 1), ("b2", 0), ("b3", 1)], ""));
    let second = drained.snapshot(Some(&first)).expect("good");
    let past = "past = [{ b1 = 1, b2 = 1 }]";
    let given = read(&file("host", &[("b1", 1), ("b2", 0), ("b3", 1)], past));
    assert_eq!(given.pools[0].past, [[1, 1, 0]]);
    let started = given.snapshot(None).expect("good");
    let known = owners(&started);
    assert_eq!(known, owners(&second));
    let count = known.iter().filter(|owners| owners.len() == 2).count();
    assert!(count > known.len() / 3, "{count} slots had another owner");
    // Nothing else of the snapshot is another.
    assert_eq!(started.pool_table(0), second.pool_table(0));
}

#[test]
fn what_a_past_cannot_be_is_said_with_its_line() {
    for (past, expected) in [
        (
            "past = 1",
            "pool \"p\": past: expected a list of tables, got 1",
        ),
        ("past = [1]", "pool \"p\": past: expected a table, got 1"),
        (
            "past = [{ b1 = -1 }]",
            "pool \"p\": past 1: b1: expected 0 to 1000000, got -1",
        ),
        (
            "past = [{ b1 = 1 }, { b22 = 1 }]",
            "pool \"p\": past 2: b22: no such backend; did you mean \"b2\"?",
        ),
        (
            "past = [{ elsewhere = 1 }]",
            "pool \"p\": past 1: elsewhere: no backend of the pool has this name",
        ),
    ] {
        assert_eq!(fault(past), format!("f.toml:10: {expected}"), "{past}");
    }
    let many = format!("past = [{}]", "{ b1 = 1 },".repeat(33));
    assert!(fault(&many).contains("past: expected 32 entries at most, got 33"));
    let most = format!("past = [{}]", "{ b1 = 1 },".repeat(32));
    read(&file("host", &[("b1", 1)], &most))
        .snapshot(None)
        .expect("good");
}

fn diff(role: &str, new: &[(&str, u32)]) -> Diff {
    let old = read(&file(
        role,
        &[("b1", 1), ("b2", 1), ("b3", 1), ("b4", 0)],
        "",
    ));
    Diff::between(&old, &read(&file(role, new, ""))).expect("good")
}

#[test]
fn a_diff_says_how_many_connections_take_a_detour_and_how_many_end() {
    let third = |share: f64| (share - 1.0 / 3.0).abs() < 0.001;
    for role in ["mux", "host"] {
        let drained = diff(role, &[("b1", 1), ("b2", 1), ("b3", 0), ("b4", 0)]);
        let rule = &drained.rules[0];
        assert!(third(rule.detour - rule.changed + rule.bereft), "{drained}");
        assert_eq!((rule.detour, rule.ended), (rule.changed, 0.0));
        let text = drained.to_string();
        let line = format!(
            "  rule \"r\": {:.2} % take a detour through the host that has them\n",
            100.0 * rule.detour
        );
        assert!(text.contains(&line), "{text}");

        let removed = diff(role, &[("b1", 1), ("b2", 1), ("b4", 0)]);
        let rule = &removed.rules[0];
        assert!(third(rule.ended), "{removed}");
        assert!(rule.detour < 0.01, "{removed}");
        assert!(
            removed
                .to_string()
                .contains("% end: their backend is removed\n")
        );

        // Whoever had no slots leaves without a connection.
        let unused = diff(role, &[("b1", 1), ("b2", 1), ("b3", 1)]);
        assert!(!unused.to_string().contains("detour"), "{unused}");
    }
}

#[test]
fn hosts_find_nothing_in_a_table_that_is_hashed_anew() {
    let old = file("mux", &[("b1", 1), ("b2", 1)], "");
    let new = old.replace(
        "frontend_port = 80",
        "frontend_port = 80\ndistribution = \"source-ip\"",
    );
    let diff = Diff::between(&read(&old), &read(&new)).expect("good");
    let rule = &diff.rules[0];
    assert!(
        rule.detour == 0.0 && (rule.ended - 0.5).abs() < 0.01,
        "{diff}"
    );
    assert!(
        diff.to_string()
            .contains("hosts look them up in other slots"),
        "{diff}"
    );
}

//! `slb replay --report html`: a page that needs nothing else, and says the same as the report in JSON. No root.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn slb(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = command.args(arguments).current_dir(root).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn page_of(capture: &str) -> (String, Value) {
    let replay = |report| {
        slb(&[
            "replay",
            "examples/web.toml",
            "--in",
            capture,
            "--report",
            report,
        ])
    };
    (
        replay("html"),
        serde_json::from_str(&replay("json")).unwrap(),
    )
}

/// Makes a capture of sessions with a service.
fn generate(path: &Path, service: &str) -> String {
    let path = path.display().to_string();
    slb(&[
        "generate",
        "--out",
        &path,
        "--tcp",
        service,
        "--sessions",
        "20",
    ]);
    path
}

/// Asserts that each element ends, in the right order, and that no text is taken for an element.
#[track_caller]
fn assert_well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let body = page.strip_prefix("<!DOCTYPE html>\n").unwrap();
    // The style sheet is no HTML.
    let (head, rest) = body.split_once("<style>").unwrap();
    let (_, rest) = rest.split_once("</style>").unwrap();
    for part in [head, rest] {
        for piece in part.split('<').skip(1) {
            let (tag, text) = piece.split_once('>').unwrap_or_else(|| panic!("{piece}"));
            assert!(!text.contains('>'), "{piece}");
            let name = tag.split([' ', '/']).next().unwrap();
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{piece}");
            } else if !tag.ends_with('/') {
                assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
                open.push(name);
            }
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[track_caller]
fn assert_stands_alone(page: &str) {
    for other in [
        "<script", "<link", "src=", "href=", "url(", "@import", "://",
    ] {
        assert!(!page.contains(other), "{other}");
    }
}

#[test]
fn the_page_says_what_the_report_in_json_says() {
    let (page, json) = page_of("examples/sample.pcap");
    assert_well_formed(&page);
    assert_stands_alone(&page);
    for place in ["received", "forwarded", "passed"] {
        let count = &json[place];
        let row = format!(
            "<td>{}</td><td>{}</td></tr>",
            count["packets"], count["bytes"]
        );
        assert!(page.contains(&row), "{place}: {row}");
    }
    for backend in json["backends"].as_array().unwrap() {
        let name = backend["backend"].as_str().unwrap();
        let share = 100.0 * backend["share"].as_f64().unwrap();
        let row = page.lines().find(|line| {
            line.contains(&format!("<th>{name}</th>"))
                && line.contains(&format!("<th>{}</th>", backend["pool"].as_str().unwrap()))
        });
        assert!(row.unwrap().contains(&format!("{share:.2} %")), "{name}");
    }
    for rule in json["rules"].as_array().unwrap() {
        assert!(page.contains(&format!("<tr><th>{}</th>", rule["rule"].as_str().unwrap())));
    }
    for chart in [
        "Packets a second",
        "Bytes a second",
        "New flows a second",
        "Live flows",
    ] {
        assert!(page.contains(&format!("aria-label=\"{chart}")), "{chart}");
    }
    // Lines differ without colour too: each has its name beside it, and in the legend.
    for name in ["in", "forwarded", "passed"] {
        assert!(page.contains(&format!("</svg>{name} ")), "{name}");
    }
    assert!(page.contains("stroke-dasharray") && page.contains("prefers-color-scheme: dark"));
    assert!(page.contains("<summary>forwarded: packet 1, "));
    assert!(page.contains("<li>verdict forward"));
}

#[test]
fn a_chosen_packet_has_its_path_as_explain_prints_it() {
    let folder = tempfile::tempdir().unwrap();
    let capture = generate(&folder.path().join("x.pcap"), "20.20.20.100:80");
    let arguments = ["examples/web.toml", "--in", &capture];
    let page = |packets: &[&str]| {
        let mut all = vec!["replay"];
        all.extend(arguments);
        all.extend(["--report", "html"]);
        packets
            .iter()
            .for_each(|packet| all.extend(["--packet", packet]));
        slb(&all)
    };
    let usual = page(&[]);
    assert!(!usual.contains("packet 7, "));
    let chosen = page(&["7", "23"]);
    assert_well_formed(&chosen);
    for number in ["7", "23"] {
        let mut explain = vec!["explain"];
        explain.extend(arguments);
        explain.extend(["--packet", number]);
        let explained = slb(&explain);
        let tuple = explained
            .lines()
            .find_map(|line| line.trim().strip_prefix("packet  "));
        let tuple = tuple.unwrap().trim().split(',').next().unwrap();
        let title = format!("<summary>forwarded: packet {number}, ");
        let at = chosen.find(&title).unwrap_or_else(|| panic!("{number}"));
        let (path, _) = chosen[at..].split_once("</details>").unwrap();
        assert!(
            path.contains(&tuple.replace('>', "&gt;")),
            "{tuple}: {path}"
        );
        let backend = explained
            .lines()
            .find_map(|line| line.trim().strip_prefix("backend "));
        let backend = backend.unwrap().trim().split(' ').next().unwrap();
        assert!(
            path.contains(&backend.replace('"', "&quot;")),
            "{backend}: {path}"
        );
    }
}

#[test]
fn drops_have_a_row_for_each_reason() {
    let folder = tempfile::tempdir().unwrap();
    let capture = generate(&folder.path().join("x.pcap"), "20.20.20.100:81");
    let (page, json) = page_of(&capture);
    assert_well_formed(&page);
    let dropped = json["dropped"]["no_rule"]["packets"].as_u64().unwrap();
    assert!(dropped > 0);
    let description = format!("</th><td>{dropped}</td>");
    let row = page
        .lines()
        .find(|line| line.contains("class=\"row\""))
        .unwrap();
    assert!(row.contains(&description) && row.contains("<rect"), "{row}");
    assert!(page.contains("<summary>dropped: "));
}

#[test]
fn a_page_of_nothing_says_so_and_one_is_no_plural() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pcap");
    generate(&path, "20.20.20.100:80");
    let file = std::fs::read(&path).unwrap();
    let cut = |len: usize| {
        let path = folder.path().join(format!("{len}.pcap"));
        std::fs::write(&path, &file[..len]).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
        command.args(["replay", "examples/web.toml", "--report", "html", "--in"]);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let output = command.arg(path).current_dir(root).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // The header of the file, and that of its first packet, a SYN.
    let len = u32::from_le_bytes(file[32..36].try_into().unwrap());
    let (none, one) = (cut(24), cut(40 + len as usize));
    assert_well_formed(&none);
    assert!(none.contains("<p>No packets.</p>"), "{none}");
    assert!(!none.contains("of traffic"), "{none}");
    assert!(one.contains(" of traffic, 1 packet, 1 SYN.</p>"), "{one}");
}

#[test]
fn names_of_files_are_text() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("<script>alert(1)&\"'.pcap");
    let (page, _) = page_of(&generate(&path, "203.0.113.9:443"));
    assert_well_formed(&page);
    assert_stands_alone(&page);
    assert!(page.contains("&lt;script&gt;alert(1)&amp;&quot;"));
    // None of its packets is for a VIP, and the page says where they go.
    assert!(page.contains("<h2>Destinations</h2>") && page.contains("203.0.113.9"));
    assert!(page.contains("No packet was for a VIP"));
}

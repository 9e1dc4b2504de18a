//! `slb schema` against the reader of configurations: the same fields, types, ranges, choices and defaults. The
//! reader says what it expects in its errors, so it is asked by documents with one fault each. No root.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use slb_control::Config;

/// A field that no section has, and that resembles none.
const UNKNOWN: &str = "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";

/// A mux with a section of each kind that a mux has.
const MUX: &str = r#"
[node]
role = "mux"
underlay = ["172.16.0.11", "fd00:16::11"]
muxes = ["172.16.0.11", "172.16.0.12"]
inside = []

[[network]]
name = "red"
vni = 7001
address_spaces = ["10.10.0.0/16"]
gateways = "10.10.0.1"

[[vm]]
name = "other"
network = "red"
address = ["10.10.9.9"]
host = "172.16.0.102"
mac = "02:00:0a:0a:09:09"

[[security_list]]
name = "closed"

[[security_rule]]
name = "out"
security_list = "closed"
priority = 100
direction = "outbound"
access = "deny"
protocol = "tcp"
sources = "any"
destinations = ["internet", "10.9.0.0/16"]
destination_ports = ["25", "6000-6063"]

[[public_address]]
address = "20.20.20.50"
network = "red"
vm = "10.10.9.9"

[[frontend]]
name = "web"
address = "20.20.20.100"

[[frontend]]
name = "out"
address = "20.20.20.200"

[[probe]]
name = "health"
protocol = "https"
port = 80

[[pool]]
name = "servers"
network = "red"
slow_start = "10s"
backends = [
  { name = "vm1", address = "10.10.1.11", host = "172.16.0.101", mac = "02:00:0a:0a:01:0b", instance = 0 },
  { name = "vm2", address = "10.10.1.12", host = "172.16.0.102", mac = "02:00:0a:0a:01:0c", backend_port = 8080 },
]
past = [{ vm1 = 1 }, { vm1 = 1, vm2 = 2 }]

[[rule]]
name = "http"
frontend = "web"
pool = "servers"
probe = "health"
protocol = "tcp"
frontend_port = 80
backend_port = 8080

[[inbound_nat_rule]]
name = "console"
frontend = "web"
pool = "servers"
backend = "vm1"
protocol = "tcp"
frontend_port = 5000
backend_port = 22

[[inbound_nat_pool]]
name = "ssh"
frontend = "web"
pool = "servers"
protocol = "tcp"
frontend_port_start = 2200
frontend_port_end = 2299
backend_port = 22

[[outbound_rule]]
name = "updates"
frontends = ["out"]
pool = "servers"
"#;

/// A proxy with the sections that only a proxy has.
const PROXY: &str = r#"
[node]
role = "proxy"

[[port]]
name = "frontend"
type = "frontend"

[[port]]
name = "backend"
type = "backend"

[[source_rewrite]]
from = "192.0.2.0/24"
to = "10.99.2.0/24"

[[frontend]]
name = "web"
address = "20.20.20.100"

[[pool]]
name = "servers"
backends = [{ name = "one", address = "10.10.1.11" }]

[[rule]]
name = "http"
frontend = "web"
pool = "servers"
protocol = "tcp"
frontend_port = 80
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn schema(more: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
    let output = command.arg("schema").args(more).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The schema of each section by its name, and of a backend.
fn sections(schema: &Value) -> BTreeMap<String, Value> {
    let resolve = |of: &Value| match of.pointer("/items/$ref").and_then(Value::as_str) {
        Some(place) => schema
            .pointer(place.trim_start_matches('#'))
            .unwrap()
            .clone(),
        None => of.clone(),
    };
    let properties = schema["properties"].as_object().unwrap().iter();
    let mut all: BTreeMap<String, Value> = properties
        .map(|(name, of)| (name.clone(), resolve(of)))
        .collect();
    let backend = all["pool"]["properties"]["backends"]["items"].clone();
    all.insert("backend".to_owned(), backend);
    all
}

/// All faults of a document, a line each; none where it is good.
fn faults(text: &str) -> Vec<String> {
    match Config::parse("t", text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
    }
}

/// The base document that has the section.
fn base(section: &str) -> &'static str {
    match section {
        "port" | "source_rewrite" => PROXY,
        _ => MUX,
    }
}

/// A base document in which the first section of a kind has another field in place of its own, or one more. Also
/// says on which line the field is.
fn with(section: &str, field: &str, value: &str) -> (String, usize) {
    let text = base(section);
    if section == "backend" {
        let (before, rest) = text.split_once("  { name").unwrap();
        let (backend, after) = rest.split_once("}").unwrap();
        let fields = format!("name{backend}");
        let kept = fields
            .split(", ")
            .filter(|own| own.split(" = ").next() != Some(field));
        let kept: Vec<&str> = kept.map(str::trim).filter(|own| !own.is_empty()).collect();
        let text = format!(
            "{before}  {{ {}, {field} = {value} }}{after}",
            kept.join(", ")
        );
        let line = before.lines().count() + 1;
        return (text, line);
    }
    let header = match section {
        "node" => "[node]".to_owned(),
        _ => format!("[[{section}]]"),
    };
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let at = lines.iter().position(|line| *line == header).unwrap();
    // A pool has one of the two.
    let other = match (section, field) {
        ("pool", "vni") => "network",
        _ => field,
    };
    let own = |line: &String| {
        line.split(" = ")
            .next()
            .is_some_and(|own| own == field || own == other)
    };
    let mut end = at + 1;
    while end < lines.len() && !lines[end].starts_with('[') {
        end += 1;
    }
    if let Some(old) = lines[at..end].iter().position(own) {
        let mut last = at + old;
        if lines[last].ends_with('[') {
            while lines[last] != "]" {
                last += 1;
            }
        }
        lines.drain(at + old..=last);
    }
    lines.insert(at + 1, format!("{field} = {value}"));
    (lines.join("\n"), at + 2)
}

/// Returns the reader's messages about the value of a field.
fn said(section: &str, field: &str, value: &str) -> Vec<String> {
    let (text, line) = with(section, field, value);
    let of_line = format!("t:{line}: ");
    let all = faults(&text);
    all.into_iter()
        .filter(|fault| fault.starts_with(&of_line))
        .collect()
}

/// The words between quotes.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_base_documents_are_good() {
    for text in [MUX, PROXY] {
        assert_eq!(faults(text), [""; 0]);
    }
}

#[test]
fn the_schema_has_the_fields_that_the_reader_reads() {
    let all = sections(&schema(&[]));
    assert!(all.len() > 12, "{:?}", all.keys());
    for (name, section) in &all {
        let said = said(name, UNKNOWN, "1").join("\n");
        let (_, read) = said
            .split_once(": expected ")
            .unwrap_or_else(|| panic!("{name}: {said}"));
        let known = section["properties"].as_object().unwrap();
        let known: BTreeSet<String> = known.keys().cloned().collect();
        assert_eq!(known, quoted(read), "{name}");
        assert_eq!(section["additionalProperties"], false, "{name}");
    }
    // A proxy's pool and frontend are in no network.
    let text = PROXY.replace("[[pool]]", "[[pool]]\nnetwork = \"red\"");
    assert!(faults(&text).join("").contains("networks are the hosts'"));
    let text = PROXY.replace("[[frontend]]", "[[frontend]]\nnetwork = \"red\"");
    assert!(faults(&text).join("").contains("networks are the hosts'"));
    // And the sections themselves.
    let said = faults(&format!("{UNKNOWN} = 1\n{MUX}")).join("\n");
    let (_, read) = said.split_once(": expected ").unwrap();
    let known = all.keys().filter(|name| *name != "backend").cloned();
    assert_eq!(known.collect::<BTreeSet<_>>(), quoted(read));
}

#[test]
fn types_ranges_and_choices_are_the_readers() {
    let schema = schema(&[]);
    let mut compared = BTreeMap::<&str, usize>::new();
    for (name, section) in &sections(&schema) {
        for (field, of) in section["properties"].as_object().unwrap() {
            let place = format!("{name}.{field}");
            let description = of["description"].as_str().unwrap();
            assert!(description.len() > 8, "{place}");
            let kind = match (of.get("type"), of.get("$ref")) {
                (_, Some(kind)) => kind.as_str().unwrap().rsplit('/').next().unwrap(),
                (Some(kind), _) => kind.as_str().unwrap(),
                (None, None) => "any",
            };
            let number = said(name, field, "5").join("\n");
            let word = said(name, field, "\"zzz\"").join("\n");
            let expects = |what: &str, got: &str| format!("expected {what}, got {got}");
            match kind {
                "integer" => {
                    let range = format!("{} to {}", of["minimum"], of["maximum"]);
                    assert!(
                        word.contains(&expects(&range, "\"zzz\"")),
                        "{place}: {word}"
                    );
                    *compared.entry("integer").or_default() += 1;
                }
                "boolean" => {
                    let message = expects("true or false", "5");
                    assert!(number.contains(&message), "{place}: {number}");
                    *compared.entry("boolean").or_default() += 1;
                }
                "duration" => {
                    let (_, range) = description.rsplit_once(", ").unwrap();
                    // The interval is the usual one here.
                    let range = range.replace("the interval", "15s");
                    let (least, most) = range.split_once(" to ").unwrap();
                    let message = format!("expected a time from {least} to {most}, ");
                    assert!(word.contains(&message), "{place}: {word}");
                    *compared.entry("duration").or_default() += 1;
                }
                "array" => {
                    let message = expects("a list of tables", "5");
                    assert!(number.contains(&message), "{place}: {number}");
                    *compared.entry("array").or_default() += 1;
                }
                _ => {
                    // A key is secret, so its value is not shown.
                    let got = if field == "hash_key" { "integer" } else { "5" };
                    assert!(
                        number.contains(&expects("a string", got)),
                        "{place}: {number}"
                    );
                }
            }
            if let Some(choices) = of.get("enum").and_then(Value::as_array) {
                let (_, listed) = word.split_once("expected ").unwrap();
                let (listed, _) = listed.split_once(", got").unwrap();
                let choices = choices
                    .iter()
                    .map(|choice| choice.as_str().unwrap().to_owned());
                let choices: BTreeSet<String> = choices.collect();
                let listed = quoted(listed);
                // Former names are taken, and not listed.
                for former in choices.difference(&listed) {
                    let said = said(name, field, &format!("{former:?}"));
                    assert_eq!(said, [""; 0], "{place}: {former}");
                }
                assert!(listed.is_subset(&choices), "{place}: {listed:?}");
                *compared.entry("enum").or_default() += 1;
            }
        }
    }
    let sum: usize = compared.values().sum();
    assert!(compared.len() == 5 && sum > 70, "{compared:?}");
}

/// Returns the parsed configuration as text, without places in its file.
fn meaning(text: &str) -> String {
    let config = Config::parse("t", text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    let whole = format!("{config:?}");
    let mut parts = whole.split("span: ");
    let mut meaning = parts.next().unwrap().to_owned();
    for part in parts {
        meaning += part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    }
    // A port that says nothing has the mode of the others, and fields of other roles are listed for a warning.
    let mut meaning = meaning.replace("mode: Some(Single)", "mode: None");
    for list in ["unused: [", "rewrite_spans: ["] {
        if let Some((before, after)) = meaning.split_once(list) {
            meaning = format!("{before}{}", after.split_once(']').unwrap().1);
        }
    }
    let (before, after) = meaning.split_once("origin: ").unwrap();
    let (_, after) = after.split_once("..").unwrap_or_default();
    format!("{before}{after}")
}

#[test]
fn defaults_are_the_readers() {
    let mut compared = 0;
    for (name, section) in &sections(&schema(&[])) {
        for (field, of) in section["properties"].as_object().unwrap() {
            let Some(default) = of.get("default") else {
                continue;
            };
            let (text, line) = with(name, field, &default.to_string());
            // Where the reader takes no value of the base document, as for fields of the other protocol, the
            // default says the same as none.
            let without: Vec<&str> = text.lines().collect();
            let mut without: Vec<String> = without.iter().map(|&own| own.to_owned()).collect();
            if name == "backend" {
                without[line - 1] =
                    without[line - 1].replace(&format!(", {field} = {default}"), "");
            } else {
                without.remove(line - 1);
            }
            let without = without.join("\n");
            let is_needed = !faults(&without).is_empty();
            assert!(
                !is_needed || field == "frontend_port",
                "{name}.{field}: {without}"
            );
            if !is_needed {
                assert_eq!(meaning(&text), meaning(&without), "{name}.{field}");
                compared += 1;
            }
        }
    }
    assert!(compared > 40, "{compared}");
}

/// True if a fault is one that a schema can know.
fn is_of_form(fault: &str) -> bool {
    let expected = ["a string", "true or false", "a list of tables", "a table"];
    let got = ["a list", "a table", "an empty list"];
    let is_of_type = expected
        .iter()
        .any(|kind| fault.contains(&format!("expected {kind}, got ")))
        || got
            .iter()
            .any(|kind| fault.ends_with(&format!(", got {kind}")));
    let is_out_of_range = fault.split("expected ").nth(1).is_some_and(|expected| {
        let mut words = expected.split(' ');
        let is_number = |word: Option<&str>| {
            word.is_some_and(|word| {
                let word = word.trim_end_matches(',');
                !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit())
            })
        };
        is_number(words.next()) && words.next() == Some("to") && {
            let most = words.next();
            is_number(most) && most.is_some_and(|most| most.ends_with(','))
        }
    });
    let is_a_section = fault.contains("expected a section [");
    // A field that is missing only since another one has some value is beyond the schema.
    let is_missing = fault.ends_with("is missing");
    is_of_type || is_out_of_range || is_a_section || is_missing || fault.contains("unknown field")
}

/// Documents that differ from one in a single place.
fn variants(document: &toml::Table) -> Vec<toml::Table> {
    let mut all = vec![document.clone()];
    let mut places = Vec::new();
    walk(
        &toml::Value::Table(document.clone()),
        &mut Vec::new(),
        &mut places,
    );
    let values: Vec<toml::Value> = vec![
        5.into(),
        (-1).into(),
        99_999_999_999_i64.into(),
        1.5.into(),
        true.into(),
        "zzz".into(),
        toml::Value::Array(Vec::new()),
        toml::Value::Table(toml::Table::new()),
    ];
    for place in places {
        for value in values.iter().cloned().map(Some).chain([None]) {
            let mut changed = document.clone();
            let is_unknown = matches!(place.last(), Some(Step::Field(name)) if name == UNKNOWN);
            if is_unknown && value.is_none() {
                continue;
            }
            set(&mut changed, &place, value);
            all.push(changed);
        }
    }
    all
}

#[derive(Clone, Debug)]
enum Step {
    Field(String),
    Element(usize),
}

/// All places of a value, and one more field in each table.
fn walk(value: &toml::Value, at: &mut Vec<Step>, places: &mut Vec<Vec<Step>>) {
    let mut child = |step: Step, value: Option<&toml::Value>| {
        at.push(step);
        places.push(at.clone());
        if let Some(value) = value {
            walk(value, at, places);
        }
        at.pop();
    };
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                child(Step::Field(name.clone()), Some(value));
            }
            child(Step::Field(UNKNOWN.to_owned()), None);
        }
        toml::Value::Array(all) => {
            for (index, value) in all.iter().enumerate() {
                child(Step::Element(index), Some(value));
            }
        }
        _ => {}
    }
}

fn set(document: &mut toml::Table, place: &[Step], value: Option<toml::Value>) {
    let (last, path) = place.split_last().unwrap();
    let mut root = toml::Value::Table(std::mem::take(document));
    let mut at = &mut root;
    for step in path {
        at = match step {
            Step::Field(name) => at.get_mut(name.as_str()).unwrap(),
            Step::Element(index) => at.get_mut(*index).unwrap(),
        };
    }
    match (last, at, value) {
        (Step::Field(name), toml::Value::Table(table), Some(value)) => {
            table.insert(name.clone(), value);
        }
        (Step::Field(name), toml::Value::Table(table), None) => {
            table.remove(name);
        }
        (Step::Element(index), toml::Value::Array(all), Some(value)) => all[*index] = value,
        (Step::Element(index), toml::Value::Array(all), None) => {
            all.remove(*index);
        }
        other => panic!("{other:?}"),
    }
    let toml::Value::Table(root) = root else {
        panic!("a table");
    };
    *document = root;
}

/// Says of each document whether another's validator accepts it; `None` where none is installed.
fn validated(schema: &Value, documents: &[Value]) -> Option<Vec<bool>> {
    let python = ["/usr/bin/python3", "python3"].into_iter().find(|python| {
        let mut command = Command::new(python);
        command.args(["-c", "import jsonschema; jsonschema.Draft202012Validator"]);
        command.stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })?;
    let program = "import json, sys, jsonschema\n\
                   schema, documents = json.load(sys.stdin)\n\
                   jsonschema.Draft202012Validator.check_schema(schema)\n\
                   valid = jsonschema.Draft202012Validator(schema).is_valid\n\
                   print(json.dumps([valid(document) for document in documents]))";
    let mut command = Command::new(python);
    command
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let text = serde_json::to_vec(&(schema, documents)).unwrap();
    let writer = std::thread::spawn(move || input.write_all(&text).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn a_validator_and_the_reader_agree_about_every_single_fault() {
    let mut texts = vec![MUX.to_owned(), PROXY.to_owned()];
    for entry in std::fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            texts.push(std::fs::read_to_string(path).unwrap());
        }
    }
    assert!(texts.len() >= 5);
    let mut documents = Vec::new();
    for text in &texts {
        assert_eq!(faults(text), [""; 0]);
        documents.extend(variants(&text.parse().unwrap()));
    }
    let json: Vec<Value> = documents
        .iter()
        .map(|document| serde_json::to_value(document).unwrap())
        .collect();
    let Some(verdicts) = validated(&schema(&[]), &json) else {
        skip!("no python3 with jsonschema");
    };
    let (mut good, mut bad) = (0, 0);
    for (document, is_valid) in documents.iter().zip(verdicts) {
        let text = document.to_string();
        let all = faults(&text);
        if all.is_empty() {
            assert!(is_valid, "the schema refuses what is good:\n{text}");
            good += 1;
        } else if all.iter().any(|fault| is_of_form(fault)) {
            assert!(!is_valid, "the schema takes what is not: {all:?}\n{text}");
            bad += 1;
        }
    }
    assert!(good > 100 && bad > 1000, "{good} good, {bad} bad");
}

#[test]
fn a_fleets_schema_has_what_a_fleet_has_and_nothing_of_a_node() {
    let fleet = schema(&["--fleet"]);
    let whole: toml::Table = MUX.parse().unwrap();
    let mut good = whole.clone();
    good.remove("node");
    let mut common = good.clone();
    let fields = "hash = \"xxh3\"\nhash_seed = 3\nmuxes = [\"172.16.0.11\"]\ninside = []\n\
                  hosts = { a = \"172.16.0.101\", b = [\"172.16.0.102\", \"fd00:16::102\"] }";
    common.insert(
        "fleet".to_owned(),
        fields.parse::<toml::Table>().unwrap().into(),
    );
    let mut unknown = common.clone();
    let role = "role = \"mux\"".parse::<toml::Table>().unwrap();
    unknown.insert("fleet".to_owned(), role.into());
    let mut anyone = good.clone();
    let hosts = "hosts = { a = 3 }".parse::<toml::Table>().unwrap();
    anyone.insert("fleet".to_owned(), hosts.into());
    let mut lacking = good.clone();
    set(
        &mut lacking,
        &[
            Step::Field("pool".to_owned()),
            Step::Element(0),
            Step::Field("backends".to_owned()),
            Step::Element(0),
            Step::Field("host".to_owned()),
        ],
        None,
    );
    let cases = [
        (good, true),
        (common, true),
        (unknown, false),
        (anyone, false),
        (lacking, false),
        (whole, false),
    ];
    let json: Vec<Value> = cases
        .iter()
        .map(|(document, _)| serde_json::to_value(document).unwrap())
        .collect();
    let Some(verdicts) = validated(&fleet, &json) else {
        skip!("no python3 with jsonschema");
    };
    for ((document, expected), verdict) in cases.iter().zip(verdicts) {
        let read = slb_fleet::document::Spec::parse("t", &document.to_string());
        assert_eq!(read.is_ok(), *expected, "{document}");
        assert_eq!(verdict, *expected, "{document}");
    }
}

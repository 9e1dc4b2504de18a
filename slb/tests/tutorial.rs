//! Pages of the documentation, word for word: their commands run in order, and print what they say.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::world::lacking;

/// A block of a page.
struct Block {
    commands: String,
    /// Lines that it prints, among others.
    prints: Vec<String>,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut parts = text.split("\n```");
    let _ = parts.next();
    let mut printed = true;
    while let (Some(code), rest) = (parts.next(), parts.next()) {
        let (language, body) = code.split_once('\n').unwrap();
        match language {
            "sh" => {
                let commands = body.to_owned();
                blocks.push(Block {
                    commands,
                    prints: Vec::new(),
                });
                printed = false;
            }
            // What stands right behind a block of commands.
            "text" if !printed => {
                let lines = body.lines().map(str::to_owned);
                blocks.last_mut().unwrap().prints.extend(lines);
            }
            _ => {}
        }
        printed |= rest.is_some_and(|between| between.trim() != "");
    }
    blocks
}

#[test]
#[ignore = "needs root"]
fn the_tutorials_commands_do_what_it_says() {
    if let Some(why) = lacking(&["unshare", "ethtool", "pgrep", "mount"]) {
        skip!("{why}");
    }
    run("tutorial.md", 8);
}

#[test]
#[ignore = "needs root"]
fn two_servers_on_one_machine_are_balanced_as_their_page_says() {
    if let Some(why) = lacking(&["unshare", "curl", "python3", "mount"]) {
        skip!("{why}");
    }
    run("two-servers.md", 6);
}

#[test]
#[ignore = "needs root"]
fn a_fleet_is_built_and_broken_as_its_tutorial_says() {
    let tools = ["unshare", "ethtool", "mount", "etcd", "etcdctl"];
    if let Some(why) = lacking(&tools) {
        skip!("{why}");
    }
    run("fleet-tutorial.md", 11);
}

/// Runs the commands of a page of the documentation, and compares what they print.
fn run(page: &str, at_least: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs").join(page)).unwrap();
    let blocks = blocks(&text);
    assert!(blocks.len() >= at_least, "{} blocks", blocks.len());
    let checked = blocks.iter().filter(|block| !block.prints.is_empty());
    assert_eq!(checked.count(), text.matches("\n```\n```text\n").count());
    let mut script = String::from("set -e\nmount -t tmpfs none /run/netns\n");
    for (number, block) in blocks.iter().enumerate() {
        script += &format!("{}\necho '=== {number}'\n", block.commands);
    }
    // In namespaces of its own, where its names are nobody else's. A folder has to be there to be
    // covered.
    fs::create_dir_all("/run/netns").unwrap();
    let mut shell = Command::new("unshare");
    shell.args([
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "bash",
        "-c",
    ]);
    let output = shell.arg(&script).current_dir(&root).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    let mut said = said.as_ref();
    for (number, block) in blocks.iter().enumerate() {
        let (own, rest) = said.split_once(&format!("=== {number}\n")).unwrap();
        said = rest;
        for line in &block.prints {
            assert!(
                own.lines().any(|said| said == line),
                "block {number}: {line:?} of:\n{own}"
            );
        }
    }
}

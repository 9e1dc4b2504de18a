//! `slb completions` and `slb man`: they have what the command line has, and nothing that it hides. No root.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};

fn slb(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
    command.args(arguments).output().unwrap()
}

fn text(arguments: &[&str]) -> String {
    let output = slb(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that the help of a command lists.
fn commands(of: &[&str]) -> Vec<String> {
    let mut arguments = of.to_vec();
    arguments.push("-h");
    let help = text(&arguments);
    let Some((_, list)) = help.split_once("Commands:\n") else {
        return Vec::new();
    };
    let lines = list.lines().take_while(|line| !line.is_empty());
    let indented = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = indented.filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// The long options of a page or of a help: those at the beginning of a line, not those that prose names.
fn options(text: &str) -> BTreeSet<String> {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c == '-';
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim_start) {
        let line = line.strip_prefix("\\fB").unwrap_or(line);
        if let Some(at) = line.find("--").filter(|_| line.starts_with('-')) {
            let name = line[at..].chars().take_while(|&c| is_of_name(c));
            found.insert(name.collect());
        }
    }
    found
}

#[test]
fn each_command_has_a_page_with_its_options() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    text(&["man", pages.to_str().unwrap()]);
    let page = |name: &str| {
        let path = pages.join(format!("{name}.1"));
        let raw = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        raw.replace("\\-", "-")
    };
    let mut expected = BTreeSet::from(["slb.1".to_owned()]);
    let top = commands(&[]);
    assert!(top.len() > 8, "{top:?}");
    let whole = page("slb");
    for command in &top {
        assert!(whole.contains(&format!("slb-{command}(1)")), "{command}");
        let mut below = vec![(vec![command.as_str()], format!("slb-{command}"))];
        let children = commands(&[command]);
        for child in &children {
            below.push((vec![command, child], format!("slb-{command}-{child}")));
        }
        for (words, name) in below {
            expected.insert(format!("{name}.1"));
            let page = page(&name);
            assert!(
                page.starts_with(".ie") && page.contains(".TH slb-"),
                "{page}"
            );
            let mut words = words.clone();
            words.push("--help");
            let help = text(&words);
            let known = options(&help);
            assert!(known.contains("--help"), "{name}: {known:?}");
            assert_eq!(options(&page), known, "{name}");
        }
    }
    let found = fs::read_dir(&pages).unwrap();
    let found = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(found.collect::<BTreeSet<_>>(), expected);
}

#[test]
fn pages_take_no_other_files_place() {
    let folder = tempfile::tempdir().unwrap();
    let (pages, victim) = (folder.path().join("man1"), folder.path().join("victim"));
    let all = pages.to_str().unwrap();
    fs::write(&victim, "precious").unwrap();
    for is_link in [true, false] {
        fs::create_dir(&pages).unwrap();
        match is_link {
            true => std::os::unix::fs::symlink(&victim, pages.join("slb.1")).unwrap(),
            false => fs::write(pages.join("slb.1"), "a page of another program").unwrap(),
        }
        let output = slb(&["man", all]);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("man1/slb.1: expected a new file or a manual page of slb"),
            "{said}"
        );
        assert_eq!(
            fs::read_dir(&pages).unwrap().count(),
            1,
            "no page is written"
        );
        fs::remove_dir_all(&pages).unwrap();
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    // Its own pages are written again.
    text(&["man", all]);
    text(&["man", all]);
}

#[test]
fn bash_completes_commands_options_and_values() {
    let script = text(&["completions", "bash"]);
    let complete = |words: &str, last: usize| {
        let ask = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={last}; _slb slb \"${{COMP_WORDS[{last}]}}\" \
             \"${{COMP_WORDS[{}]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            last - 1
        );
        let output = Command::new("bash").args(["-c", &ask]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let all = complete("slb ''", 1);
    for command in commands(&[]) {
        assert!(all.contains(&command), "{command}: {all:?}");
    }
    assert!(!all.contains("watchdog"), "{all:?}");
    assert_eq!(complete("slb che", 1), BTreeSet::from(["check".to_owned()]));
    assert_eq!(
        complete("slb check --po", 2),
        BTreeSet::from(["--ports".to_owned()])
    );
    let formats = complete("slb replay --report ''", 3);
    assert!(
        formats.contains("json") && formats.contains("text"),
        "{formats:?}"
    );
}

#[test]
fn the_other_shells_have_a_script_with_each_command() {
    for shell in ["elvish", "fish", "powershell", "zsh"] {
        let script = text(&["completions", shell]);
        for command in commands(&[]) {
            assert!(script.contains(&command), "{shell}: {command}");
        }
        assert!(!script.contains("watchdog"), "{shell}");
    }
    let unknown = slb(&["completions", "tcsh"]);
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn what_cannot_be_written_is_said() {
    let full = fs::File::create("/dev/full").unwrap();
    for arguments in [
        &["completions", "bash"][..],
        &["schema"],
        &["schema", "--fleet"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
        let output = command
            .args(arguments)
            .stdout(full.try_clone().unwrap())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("slb: standard output: "), "{said}");
    }
    let output = slb(&["man", "/dev/null/pages"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("slb: /dev/null/pages: "), "{said}");
}

//! CONTRIBUTING.md's recipes, the index of the documentation and the recipes of the justfile, held to the tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All Rust files below `folder`, as paths from the root of the repository.
fn sources(folder: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            sources(&path, found);
        } else if path.ends_with(".rs") {
            found.push(path);
        }
    }
}

/// The text between the first two backquotes.
fn quoted(text: &str) -> &str {
    text.split('`').nth(1).unwrap()
}

fn camel(snake: &str) -> String {
    let upper = |word: &str| word[..1].to_uppercase() + &word[1..];
    snake.split('_').map(upper).collect()
}

/// The code of a file without comments and without the tests at its end.
fn code(path: &str) -> String {
    let text = read(path);
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn each_recipe_names_all_places_of_its_example() {
    let text = read("CONTRIBUTING.md");
    let rows = text.lines().filter(|line| line.starts_with("| a "));
    let mut all = Vec::new();
    for of in ["slb-core", "slb-control", "slb-ffi", "slb"] {
        sources(&format!("{of}/src"), &mut all);
    }
    let mut recipes = 0;
    for row in rows {
        recipes += 1;
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (what, word, places) = (cells[1], quoted(cells[2]), cells[3]);
        let named: BTreeSet<String> = places
            .split("; ")
            .map(|place| quoted(place).to_owned())
            .collect();
        assert!((1..=4).contains(&named.len()), "{what}: {named:?}");
        // The dataplane's other files are those that use it, and Azure's import has words of its own.
        let uses = |path: &str| {
            path.starts_with("slb-core/") || path.starts_with("slb-control/src/azure/")
        };
        let (variant, word) = (format!("::{}", camel(word)), word.to_owned());
        let found: BTreeSet<String> = all
            .iter()
            .filter(|path| named.contains(*path) || !uses(path))
            .filter(|path| {
                let code = code(path);
                code.contains(&variant) || code.contains(&word)
            })
            .cloned()
            .collect();
        assert_eq!(
            found, named,
            "{what}: where {word} is, and where the recipe says"
        );
    }
    assert_eq!(recipes, 3);
}

#[test]
fn files_that_the_guide_names_exist() {
    let text = read("CONTRIBUTING.md");
    let is_a_path = |word: &&str| {
        let is_made = word.starts_with("mutants.out/"); // by cargo mutants
        word.contains('/') && !word.contains(char::is_whitespace) && !is_made
    };
    let paths = text.split('`').skip(1).step_by(2).filter(is_a_path);
    let mut checked = 0;
    for path in paths {
        assert!(root().join(path).exists(), "{path}");
        checked += 1;
    }
    assert!(checked > 10, "{checked}");
}

/// The targets of a page's links to other files, without anchors.
fn links(page: &str) -> Vec<String> {
    let text = read(page);
    let parts = text.split("](").skip(1);
    parts
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .map(str::to_owned)
        .collect()
}

fn markdown(folder: &str) -> Vec<String> {
    let names = fs::read_dir(root().join(folder)).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.sort();
    names
}

#[test]
fn every_page_is_in_the_index_and_every_link_leads_somewhere() {
    for folder in ["docs", "docs/adr"] {
        let index = links(&format!("{folder}/README.md"));
        for page in markdown(folder) {
            let is_listed = page == "README.md" || index.contains(&page);
            assert!(is_listed, "{folder}/README.md does not list {page}");
            for target in links(&format!("{folder}/{page}")) {
                let path = root().join(folder).join(&target);
                assert!(path.exists(), "{folder}/{page} links to {target}");
            }
        }
    }
    for page in ["README.md", "CONTRIBUTING.md", "SECURITY.md"] {
        for target in links(page) {
            assert!(root().join(&target).exists(), "{page} links to {target}");
        }
    }
}

/// `flood.rs: no_flood_moves_a_flow` names a test of a file.
#[test]
fn pages_name_tests_that_exist() {
    let mut all = Vec::new();
    for of in [
        "slb-control",
        "slb-core",
        "slb-ffi",
        "slb-fleet",
        "slb-io-afxdp",
        "slb-io-pcap",
        "slb-io-tun",
        "slb",
    ] {
        sources(of, &mut all);
    }
    all.retain(|path| !path.contains("/target/"));
    let code: String = all.iter().map(|path| read(path)).collect();
    let is_test = |name: &str| code.contains(&format!("fn {name}("));
    let mut named = 0;
    for page in ["docs/security.md", "docs/testing.md"] {
        let text = read(page);
        for quoted in text.split('`').skip(1).step_by(2) {
            let Some((file, test)) = quoted.split_once(": ") else {
                continue;
            };
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if file.contains(' ') || !test.chars().all(is_word) {
                continue;
            }
            named += 1;
            assert!(is_test(test), "{page}: no test is called {test}");
        }
    }
    assert!(named > 50, "{named}");
}

#[test]
fn the_glossary_has_each_term_once_and_in_order() {
    let text = read("docs/glossary.md");
    let terms: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("| **"))
        .map(|line| line.split("**").nth(1).unwrap().to_lowercase())
        .collect();
    assert!(terms.len() > 30, "{}", terms.len());
    let mut sorted = terms.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(terms, sorted);
}

#[test]
fn recipes_that_the_guide_names_are_in_the_justfile() {
    let (guide, recipes) = (read("CONTRIBUTING.md"), read("justfile"));
    let named: BTreeSet<&str> = guide
        .split("`just ")
        .skip(1)
        .filter_map(|rest| rest.split(['`', ' ']).next())
        .collect();
    assert!(named.len() > 5, "{named:?}");
    for name in named {
        let is_there = recipes
            .lines()
            .any(|line| line.split([' ', ':']).next() == Some(name));
        assert!(is_there, "just {name}");
    }
}

#[test]
fn tests_that_need_root_are_left_out_by_default() {
    let mut files = Vec::new();
    for folder in ["slb", "slb-io-afxdp", "slb-io-tun"] {
        sources(&format!("{folder}/tests"), &mut files);
    }
    let mut checked = 0;
    for path in files
        .iter()
        .filter(|path| !path.ends_with("/contributing.rs"))
    {
        let text = read(path);
        for test in text.split("#[test]\n").skip(1) {
            let body = test.split("\n}\n").next().unwrap();
            if body.contains("lacking(") || body.contains("is_root()") {
                let is_left_out = test.starts_with("#[ignore = \"needs root\"]\n");
                assert!(is_left_out, "{path}: {}", test.lines().next().unwrap());
                checked += 1;
            }
        }
    }
    assert!(checked > 40, "{checked}");
}

/// The first words of doc comments that leave their subject unsaid: pronouns, and questions.
const OPENERS: [&str; 21] = [
    "It", "Its", "They", "Their", "And", "Who", "Whose", "Whom", "Which", "Those", "These",
    "Nobody", "Somebody", "Anybody", "Whoever", "What", "Whatever", "Whether", "Of", "How", "Why",
];

/// An editor shows a doc comment alone, so that its first word has to be its subject or verb.
#[test]
fn doc_comments_open_with_their_subject() {
    let mut all = Vec::new();
    for of in [
        "slb",
        "slb-core",
        "slb-control",
        "slb-ffi",
        "slb-fleet",
        "slb-io-afxdp",
        "slb-io-pcap",
        "slb-io-tun",
        "examples",
        "fuzz",
        "benches",
    ] {
        sources(of, &mut all);
    }
    all.retain(|path| !path.contains("/target/"));
    let doc = |line: &str| -> Option<String> {
        let text = line.trim_start();
        let text = text.strip_prefix("///").or(text.strip_prefix("//!"))?;
        Some(text.trim_start().to_owned())
    };
    let (mut checked, mut found) = (0, Vec::new());
    for path in &all {
        let text = read(path);
        let mut is_inside = false;
        for (number, line) in text.lines().enumerate() {
            let comment = doc(line);
            if let (Some(comment), false) = (&comment, is_inside) {
                checked += 1;
                let first = comment.split(|c: char| !c.is_alphabetic()).next();
                if first.is_some_and(|first| OPENERS.contains(&first)) {
                    found.push(format!("{path}:{}: {comment}", number + 1));
                }
            }
            is_inside = comment.is_some();
        }
    }
    assert!(checked > 4000, "{checked}");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

//! The wanted state of a fleet: `slb apply`, `slb get`, `slb delete`.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use slb_fleet::document::Spec;
use slb_fleet::fetch::{self, Known};
use slb_fleet::object::{Digest, Keys, Object as _, ObjectError, Report};
use slb_fleet::rollout::{Rollout, Side, Stage};
use slb_fleet::store::Store;

use super::patient::Patient;
use crate::Failure;
use crate::cli::{ApplyOptions, DeleteOptions, GetOptions};
use crate::output::{is_standard, read_input};
use crate::schema;

/// Longest wait for a rollout that stopped at the same change before to begin again.
const AGAIN: Duration = Duration::from_secs(3);
/// The interval of checks of a rollout.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) fn apply(options: &ApplyOptions) -> Result<(), Failure> {
    let spec = read(options)?;
    let store = Patient::new(super::open(&options.store)?, options.wait);
    let keys = Keys::new(&options.store.access.cluster);
    let before = rollout(&store, &keys.key("state/rollout"))?;
    let mut said = String::new();
    let mut lost = None;
    let index = fetch::change(&store, &keys, |present| {
        let present = match present {
            // The file replaces the whole wanted state.
            Err(error) if !options.add && !matches!(error, ObjectError::Newer { .. }) => {
                lost = Some(error.to_string());
                None
            }
            present => present?,
        };
        let new = match (&present, options.add) {
            (Some(present), true) => {
                let mut new = present.clone();
                new.merge(&spec);
                new
            }
            _ => spec.clone(),
        };
        said = difference(present.as_ref(), &new);
        Ok(new)
    });
    let index = index.map_err(Failure::failed)?;
    if let Some(lost) = lost {
        tell_line!("warning: the previous configuration cannot be read, and is replaced: {lost}");
    }
    say!("{said}")?;
    say_line!("wanted: {index}")?;
    wait(&store, &keys, (&index, &before), options.wait)
}

/// Reads the spec of a file: a configuration without `[node]`, or Azure's JSON.
fn read(options: &ApplyOptions) -> Result<Spec, Failure> {
    let path = &options.file;
    let (name, text) = read_input(path)?;
    let spec = if is_json(path, &text) {
        import(&name, &text, options.inventory.as_deref())?
    } else {
        Spec::parse(&name, &text).map_err(bad)?
    };
    // A truncated file would remove everything.
    if !options.add && spec.list().iter().all(|(kind, ..)| kind == "fleet") {
        return Err(Failure::usage(format!(
            "{name}: expected sections such as [[frontend]] and [[pool]], got none (slb delete removes sections)"
        )));
    }
    Ok(spec)
}

/// Returns true if a file is JSON: by its extension, or by the first character of standard input.
fn is_json(path: &Path, text: &str) -> bool {
    match path.extension() {
        Some(ending) => ending.eq_ignore_ascii_case("json"),
        None => {
            is_standard(path)
                && text
                    .trim_start_matches('\u{feff}')
                    .trim_start()
                    .starts_with('{')
        }
    }
}

fn bad(error: ObjectError) -> Failure {
    match error {
        ObjectError::Spec(faults) => Failure {
            status: 2,
            message: faults,
        },
        other => Failure::usage(other),
    }
}

#[cfg(feature = "azure")]
fn import(name: &str, text: &str, inventory: Option<&Path>) -> Result<Spec, Failure> {
    use slb_control::azure::{Input, Inventory, import};

    let bad_file = |errors: slb_control::ConfigErrors| Failure {
        status: 2,
        message: errors.to_string(),
    };
    let inventory = inventory.map(Inventory::from_path).transpose();
    let inventory = inventory.map_err(bad_file)?.unwrap_or_default();
    let inventory = inventory.with_any_node();
    let imported = import(&[Input { file: name, text }], &inventory).map_err(bad_file)?;
    for warning in &imported.warnings {
        tell_line!("warning: {warning}");
    }
    if imported.is_empty {
        return Err(Failure::usage(format!(
            "{name}: expected a load balancer, got none"
        )));
    }
    if let Some(missing) = imported.missing {
        return Err(bad_file(missing));
    }
    Spec::of_configuration(name, &imported.toml).map_err(bad)
}

#[cfg(not(feature = "azure"))]
fn import(name: &str, _: &str, _: Option<&Path>) -> Result<Spec, Failure> {
    Err(Failure::usage(format!(
        "{name}: this program was built without Azure's JSON: build it with --features azure"
    )))
}

/// Lists the changes of a new spec, a line for each section.
fn difference(old: Option<&Spec>, new: &Spec) -> String {
    let sections = |spec: Option<&Spec>| -> BTreeSet<(String, String, String)> {
        spec.map(Spec::list).unwrap_or_default()
    };
    let (old, new) = (sections(old), sections(Some(new)));
    let named = |all: &BTreeSet<(String, String, String)>| -> BTreeSet<(String, String)> {
        let names = all.iter();
        names
            .map(|(kind, name, _)| (kind.clone(), name.clone()))
            .collect()
    };
    let (before, after) = (named(&old), named(&new));
    let mut said = String::new();
    for (kind, name, _) in new.difference(&old) {
        let is_known = before.contains(&(kind.clone(), name.clone()));
        let what = if is_known { "changed" } else { "added" };
        said += &format!("{what}: {kind} {name}\n");
    }
    for (kind, name) in before.difference(&after) {
        said += &format!("removed: {kind} {name}\n");
    }
    if said.is_empty() {
        said += "nothing changes\n";
    }
    said
}

/// Waits until all nodes have an index, or one refuses it, for the given maximum of seconds, if
/// any. `before` is the rollout before the index was wanted.
fn wait(
    store: &dyn Store,
    keys: &Keys,
    (index, before): (&Digest, &Rollout),
    seconds: Option<u64>,
) -> Result<(), Failure> {
    let Some(seconds) = seconds else {
        return Ok(());
    };
    let (begin, key) = (Instant::now(), keys.key("state/rollout"));
    let mut behind = Vec::new();
    loop {
        let rollout = rollout(store, &key)?;
        if rollout.target.as_ref() == Some(index) {
            match &rollout.stage {
                Stage::Live => {
                    behind = behind_of(store, keys, &rollout)?;
                    if behind.is_empty() {
                        say_line!("live: generation {}", rollout.generation)?;
                        return Ok(());
                    }
                }
                // The rollout may be tried again in a moment.
                Stage::Stopped { .. } if rollout == *before && begin.elapsed() < AGAIN => {}
                Stage::Stopped { node, why } => {
                    let (node, why) = (plain(node), plain(why));
                    return Err(Failure::failed(format!("{node} refuses it: {why}")));
                }
                _ => {}
            }
        }
        if begin.elapsed() >= Duration::from_secs(seconds) {
            let stage = rollout.stage.name();
            let leader = store.get(&keys.key("state/leader"));
            let why = match leader.map_err(Failure::failed)? {
                None => "no controller leads".to_owned(),
                Some(_) if behind.is_empty() => stage.to_owned(),
                Some(_) => format!("{} without it", behind.join(", ")),
            };
            return Err(Failure::failed(format!(
                "not installed on all nodes after {seconds} s: {why} (slb fleet status)"
            )));
        }
        sleep(LOOK);
    }
}

/// Lists the nodes that serve packets by an earlier generation.
fn behind_of(store: &dyn Store, keys: &Keys, rollout: &Rollout) -> Result<Vec<String>, Failure> {
    let mut behind = Vec::new();
    for side in [Side::Host, Side::Mux] {
        let prefix = keys.key(&format!("node/{}/", side.name()));
        for entry in store.list(&prefix).map_err(Failure::failed)?.entries {
            let name = entry.key.strip_prefix(&prefix).unwrap_or(&entry.key);
            let report = Report::read(&entry.key, &entry.value);
            let serves = |report: &Report| {
                let release = rollout.of(side);
                release.is_none_or(|release| report.serves(release))
            };
            if !report.is_ok_and(|report| serves(&report)) {
                behind.push(format!("{} {}", side.name(), plain(name)));
            }
        }
    }
    Ok(behind)
}

/// Returns a node's text as one line without terminal control characters.
pub(crate) fn plain(text: &str) -> String {
    let shown = text.chars().map(|c| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    });
    shown.collect()
}

pub(super) fn rollout(store: &dyn Store, key: &str) -> Result<Rollout, Failure> {
    let entry = store.get(key).map_err(Failure::failed)?;
    let read = entry.map(|entry| Rollout::read(key, &entry.value));
    Ok(read
        .transpose()
        .map_err(Failure::failed)?
        .unwrap_or_default())
}

/// Returns an error unless a fleet's configuration can have sections of a kind, or the kind is
/// `more`.
fn expect_kind(kind: &str, more: Option<&str>) -> Result<(), Failure> {
    let mut all = schema::kinds_of_fleet()?;
    all.extend(more.map(str::to_owned));
    match all.iter().any(|known| known == kind) {
        true => Ok(()),
        false => Err(Failure::usage(format!(
            "expected a kind of section ({}), got {kind:?}",
            all.join(", ")
        ))),
    }
}

pub(crate) fn get(options: &GetOptions) -> Result<(), Failure> {
    if let Some(kind) = &options.kind {
        expect_kind(kind, None)?;
    }
    let store = super::open(&options.store)?;
    let keys = Keys::new(&options.store.access.cluster);
    let wanted = fetch::wanted(&*store, &keys, &mut Known::default()).map_err(Failure::failed)?;
    let (_, spec, _) =
        wanted.ok_or_else(|| Failure::failed("no configuration was ever applied"))?;
    let Some(kind) = &options.kind else {
        say!("{}", spec.text())?;
        return Ok(());
    };
    let part = spec.only(kind, options.name.as_deref());
    let part = part.ok_or_else(|| {
        Failure::failed(match &options.name {
            Some(name) => format!("there is no {kind} {name}"),
            None => format!("there is no {kind}"),
        })
    })?;
    say!("{}", part.text())?;
    Ok(())
}

pub(crate) fn delete(options: &DeleteOptions) -> Result<(), Failure> {
    expect_kind(&options.kind, Some("backend"))?;
    let store = Patient::new(super::open(&options.store)?, options.wait);
    let keys = Keys::new(&options.store.access.cluster);
    let (kind, name) = (&options.kind, &options.name);
    let before = rollout(&store, &keys.key("state/rollout"))?;
    let index = fetch::change(&store, &keys, |present| {
        let mut spec = present?.unwrap_or_default();
        if !spec.remove(kind, name) {
            return Err(ObjectError::Spec(format!("there is no {kind} {name}")));
        }
        let users = spec.users(kind, name);
        let users: Vec<String> = users
            .iter()
            .map(|(kind, name)| format!("{kind} {name}"))
            .collect();
        if !users.is_empty() {
            return Err(ObjectError::Spec(format!(
                "{kind} {name} is in use by {}: delete that first, or apply a file that has none of them",
                users.join(", ")
            )));
        }
        Ok(spec)
    });
    let index = index.map_err(Failure::failed)?;
    say_line!("removed: {kind} {name}\nwanted: {index}")?;
    wait(&store, &keys, (&index, &before), options.wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_known_by_its_extension_or_its_beginning() {
        for (path, text, expected) in [
            ("lb.json", "", true),
            ("LB.JSON", "", true),
            ("lb.toml", "{}", false),
            ("lb", "{}", false),
            ("-", " \n{ \"resources\": [] }", true),
            ("-", "\u{feff}{}", true),
            ("-", "[[pool]]", false),
        ] {
            assert_eq!(is_json(path.as_ref(), text), expected, "{path} {text}");
        }
    }
}

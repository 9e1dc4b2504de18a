//! Objects that are read member by member, and notes about what is wrong with them.

use std::cell::RefCell;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::{Failure, Node, Value, is_named};
use crate::error::ConfigError;

/// Faults, and parts that were left out.
#[derive(Debug, Default)]
pub(in crate::azure) struct Notes {
    errors: RefCell<Vec<ConfigError>>,
    warnings: RefCell<Vec<ConfigError>>,
}

impl Notes {
    pub(in crate::azure) fn add_error(&self, error: ConfigError) {
        self.errors.borrow_mut().push(error);
    }

    pub(in crate::azure) fn error(&self, node: &Node, place: &str, message: impl Into<String>) {
        self.add_error(note(node, place, message.into()));
    }

    pub(in crate::azure) fn warning(&self, node: &Node, place: &str, message: impl Into<String>) {
        let warning = note(node, place, message.into());
        self.warnings.borrow_mut().push(warning);
    }

    /// Reports an expression without a value that is needed. If the cause is a parameter without a
    /// value, reports the parameter once, however many expressions refer to it.
    pub(in crate::azure) fn unresolved(
        &self,
        node: &Node,
        place: &str,
        message: String,
        why: &Failure,
    ) {
        let error = match why {
            Failure::NoValue {
                parameter,
                file,
                line,
            } => ConfigError {
                file: file.to_string(),
                line: *line,
                place: format!("parameter {parameter:?}"),
                message: "has no value and no default: a parameter file has to give one".to_owned(),
            },
            Failure::Other(_) => note(node, place, message),
        };
        let is_known = self.errors.borrow().contains(&error);
        if !is_known {
            self.add_error(error);
        }
    }

    /// Returns the errors and the warnings, each sorted by position.
    pub(in crate::azure) fn finish(self) -> (Vec<ConfigError>, Vec<ConfigError>) {
        let sort = |mut notes: Vec<ConfigError>| {
            notes.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
            notes
        };
        (
            sort(self.errors.into_inner()),
            sort(self.warnings.into_inner()),
        )
    }
}

fn note(node: &Node, place: &str, message: String) -> ConfigError {
    ConfigError {
        file: node.file.to_string(),
        line: node.line,
        place: place.to_owned(),
        message,
    }
}

/// Members of resources and their parts that are irrelevant to load balancers.
const OF_ARM: [&str; 13] = [
    "apiVersion",
    "comments",
    "dependsOn",
    "etag",
    "extendedLocation",
    "id",
    "location",
    "provisioningState",
    "resourceGroup",
    "resourceGuid",
    "resources",
    "tags",
    "type",
];

/// An object that is read member by member. Members under `properties` count as the object's own.
#[derive(Debug)]
pub(in crate::azure) struct Object<'n> {
    pub(in crate::azure) node: &'n Node,
    /// The item's name in messages: `rule "http"`.
    pub(in crate::azure) place: String,
    notes: &'n Notes,
    asked: RefCell<Vec<&'static str>>,
}

impl<'n> Object<'n> {
    pub(in crate::azure) fn new(
        node: &'n Node,
        place: impl Into<String>,
        notes: &'n Notes,
    ) -> Self {
        Self {
            node,
            place: place.into(),
            notes,
            asked: RefCell::default(),
        }
    }

    /// Makes an object of a kind that requires a name.
    pub(in crate::azure) fn named(node: &'n Node, kind: &str, notes: &'n Notes) -> (Self, String) {
        let mut object = Self::new(node, kind, notes);
        let name = object.text("name").unwrap_or_default();
        if object.get("name").is_none()
            || object.get("name").is_some_and(|n| n.as_str() == Some(""))
        {
            notes.error(node, kind, "name: is missing");
        }
        object.place = format!("{kind} {name:?}");
        (object, name)
    }

    /// Makes an object within this one.
    pub(in crate::azure) fn inner(&self, node: &'n Node, name: &str) -> Self {
        Self::new(node, format!("{}: {name}", self.place), self.notes)
    }

    pub(in crate::azure) fn get(&self, name: &'static str) -> Option<&'n Node> {
        self.asked.borrow_mut().push(name);
        let properties = || self.node.get("properties")?.get(name);
        self.node.get(name).or_else(properties)
    }

    pub(in crate::azure) fn error(&self, node: &Node, name: &str, message: impl AsRef<str>) {
        let message = format!("{name}: {}", message.as_ref());
        self.notes.error(node, &self.place, message);
    }

    pub(in crate::azure) fn warning(&self, node: &Node, name: &str, message: impl AsRef<str>) {
        let message = format!("{name}: {}", message.as_ref());
        self.notes.warning(node, &self.place, message);
    }

    fn expected(&self, node: &Node, name: &str, expected: &str) {
        let message = format!("{name}: expected {expected}, got {}", node.value.describe());
        match &node.value {
            Value::Unresolved(unresolved) => {
                let why = &unresolved.failure;
                self.notes.unresolved(node, &self.place, message, why);
            }
            _ => self.notes.error(node, &self.place, message),
        }
    }

    pub(in crate::azure) fn text(&self, name: &'static str) -> Option<String> {
        let node = self.get(name)?;
        let text = node.as_str().map(str::to_owned);
        if text.is_none() {
            self.expected(node, name, "a string");
        }
        text
    }

    pub(in crate::azure) fn address(&self, name: &'static str) -> Option<IpAddr> {
        self.address_or(name, "")
    }

    /// Reads an address; `or` names an alternative source of the address in messages.
    pub(in crate::azure) fn address_or(&self, name: &'static str, or: &str) -> Option<IpAddr> {
        let node = self.get(name)?;
        let address = node.as_str().and_then(|text| text.parse().ok());
        if address.is_none() {
            self.expected(node, name, &format!("an IPv4 or IPv6 address{or}"));
        }
        address
    }

    pub(in crate::azure) fn number(
        &self,
        name: &'static str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let node = self.get(name)?;
        let text = match &node.value {
            // Parameters may come as strings.
            Value::Number(text) | Value::String(text) => text.as_str(),
            _ => "",
        };
        let number = text.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            let expected = format!("{} to {}", range.start(), range.end());
            self.expected(node, name, &expected);
        }
        number
    }

    pub(in crate::azure) fn required_number(
        &self,
        name: &'static str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        if self.get(name).is_none() {
            self.error(self.node, name, "is missing");
        }
        self.number(name, range)
    }

    pub(in crate::azure) fn boolean(&self, name: &'static str) -> Option<bool> {
        let node = self.get(name)?;
        match &node.value {
            Value::Bool(value) => Some(*value),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
            _ => {
                self.expected(node, name, "true or false");
                None
            }
        }
    }

    /// One of some words.
    pub(in crate::azure) fn choice<T: Copy>(
        &self,
        name: &'static str,
        choices: &[(&str, T)],
    ) -> Option<(&'n Node, T)> {
        let node = self.get(name)?;
        let text = node.as_str().unwrap_or_default();
        let choice = choices
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(text));
        if choice.is_none() {
            let words = choices.iter().map(|(word, _)| *word);
            self.expected(node, name, &crate::document::list(words));
        }
        choice.map(|&(_, value)| (node, value))
    }

    /// The elements of a list.
    pub(in crate::azure) fn list(&self, name: &'static str) -> &'n [Node] {
        let Some(node) = self.get(name) else {
            return &[];
        };
        if !matches!(node.value, Value::Array(_)) {
            self.expected(node, name, "a list");
        }
        node.as_array()
    }

    /// Reports a value that is no list.
    pub(in crate::azure) fn unlisted(&self, node: &Node, name: &str) {
        self.expected(node, name, "a list");
    }

    /// Returns a list of strings, each with its position.
    pub(in crate::azure) fn texts(&self, name: &'static str) -> Vec<(&'n Node, &'n str)> {
        let texts = self.list(name).iter().filter_map(|node| {
            let text = node.as_str();
            if text.is_none() {
                self.expected(node, name, "a string");
            }
            Some((node, text?))
        });
        texts.collect()
    }

    /// Returns the id in a reference `{ "id": ... }`.
    pub(in crate::azure) fn reference(&self, name: &'static str) -> Option<(&'n Node, &'n str)> {
        let node = self.get(name)?;
        self.id_of(node, name).map(|id| (node, id))
    }

    /// Returns the ids in a list of references.
    pub(in crate::azure) fn references(&self, name: &'static str) -> Vec<(&'n Node, &'n str)> {
        let all = self.list(name).iter();
        all.filter_map(|node| Some((node, self.id_of(node, name)?)))
            .collect()
    }

    fn id_of(&self, node: &'n Node, name: &str) -> Option<&'n str> {
        if let Value::Object(members) = &node.value {
            for (own, _) in members.iter().filter(|(own, _)| own.trim() != own) {
                let message = format!("{own:?} is taken for {:?}", own.trim());
                self.warning(node, name, message);
            }
        }
        let id = node.get("id").and_then(Node::as_str);
        if id.is_none() {
            self.expected(node.get("id").unwrap_or(node), name, "an id");
        }
        id
    }

    /// Marks members as known and irrelevant.
    pub(in crate::azure) fn ignore(&self, names: &[&'static str]) {
        self.asked.borrow_mut().extend(names);
    }

    /// Warns about a member that is not supported.
    pub(in crate::azure) fn not_done(&self, name: &'static str, why: &str) {
        if let Some(node) = self.get(name) {
            let says_no = match &node.value {
                Value::Bool(value) => !value,
                Value::Array(elements) => elements.is_empty(),
                _ => false,
            };
            if !says_no {
                self.warning(node, name, why);
            }
        }
    }

    /// Refuses a member that would change the object into something unsupported.
    pub(in crate::azure) fn refuse(&self, name: &'static str, why: &str) {
        if let Some(node) = self.get(name)
            && !matches!(&node.value, Value::Array(elements) if elements.is_empty())
        {
            self.error(node, name, why);
        }
    }

    /// Returns true if a member is an expression that has no value.
    pub(in crate::azure) fn is_unresolved(&self, name: &'static str) -> bool {
        let node = self.get(name);
        node.is_some_and(|node| matches!(node.value, Value::Unresolved(_)))
    }

    /// Warns about the members that were not read.
    pub(in crate::azure) fn finish(self) {
        let asked = self.asked.borrow();
        let is_known = |own: &str| {
            let own = own.trim();
            let known = asked.iter().chain(&OF_ARM);
            known.into_iter().any(|name| own.eq_ignore_ascii_case(name))
        };
        let properties = self.node.get("properties");
        for object in [Some(self.node), properties].into_iter().flatten() {
            let Value::Object(members) = &object.value else {
                continue;
            };
            for (own, node) in members {
                let is_outer = std::ptr::eq(object, self.node);
                let is_shell = is_outer && is_named(own, "properties");
                if is_named(own, "copy") {
                    self.expected(node, own, "loops, each with name, count and input");
                } else if is_named(own, "condition") {
                    let message =
                        "condition: expected at whole resources only, not at a part of one";
                    self.notes.error(node, &self.place, message);
                } else if !is_shell && !is_known(own) {
                    let message = format!("{own:?} is unknown, and left out");
                    self.notes.warning(node, &self.place, message);
                }
            }
        }
    }
}

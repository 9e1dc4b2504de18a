//! JSON with comments as a tree with line numbers, and objects that are read member by member.
//!
//! An [`Object`] records which members were read, and warns about the others. Names are compared as
//! in Azure, ignoring case.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;

use jsonc_parser::ast::{ObjectPropName, Value as Ast};
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use super::Input;
use crate::error::ConfigError;

/// A value and its position.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) file: Rc<str>,
    pub(super) line: usize,
    /// The path of the value in the file; `None` for the root.
    pub(super) path: Option<Rc<Path>>,
    pub(super) value: Value,
}

/// The path from a file's root to a value.
#[derive(Debug)]
pub(super) struct Path {
    parent: Option<Rc<Self>>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Member(String),
    Element(usize),
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = &self.parent {
            parent.fmt(f)?;
        }
        let is_plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        match (&self.step, &self.parent) {
            (Step::Element(index), _) => write!(f, "[{index}]"),
            (Step::Member(name), _) if !is_plain(name) => write!(f, "[{name:?}]"),
            (Step::Member(name), None) => f.write_str(name),
            (Step::Member(name), Some(_)) => write!(f, ".{name}"),
        }
    }
}

/// The position of a value in a file, for faults that are found later.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) file: Rc<str>,
    pub(super) line: usize,
    pub(super) path: Option<Rc<Path>>,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// Digits as written in the file.
    Number(String),
    String(String),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
    /// An expression that cannot be evaluated, which is an error only if its value is needed.
    Unresolved(Box<Unresolved>),
}

/// An expression without a value.
#[derive(Clone, Debug)]
pub(super) struct Unresolved {
    /// The expression as written.
    pub(super) text: String,
    pub(super) failure: Failure,
}

/// Reason why an expression has no value.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// A parameter has neither a value nor a default.
    NoValue {
        parameter: String,
        /// File of the declaration.
        file: Rc<str>,
        line: usize,
    },
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoValue { parameter, .. } => write!(f, "parameter {parameter:?} has no value"),
            Self::Other(message) => f.write_str(message),
        }
    }
}

impl Value {
    /// Returns the value as shown in messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Number(text) => text.clone(),
            Self::String(text) => format!("{text:?}"),
            Self::Array(_) => "a list".to_owned(),
            Self::Object(_) => "an object".to_owned(),
            Self::Unresolved(unresolved) => format!(
                "the expression {:?}, which cannot be evaluated: {}",
                unresolved.text, unresolved.failure
            ),
        }
    }
}

impl Node {
    pub(super) fn origin(&self) -> Origin {
        Origin {
            file: Rc::clone(&self.file),
            line: self.line,
            path: self.path.clone(),
        }
    }

    /// Returns a member, if the value is an object that has it.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        let Value::Object(members) = &self.value else {
            return None;
        };
        let found = members.iter().find(|(own, _)| is_named(own, name));
        found
            .map(|(_, node)| node)
            .filter(|node| !matches!(node.value, Value::Null))
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_array(&self) -> &[Self] {
        match &self.value {
            Value::Array(elements) => elements,
            _ => &[],
        }
    }
}

/// Returns true if a member has this name. A leading space in its name is ignored as a typing
/// error.
fn is_named(own: &str, name: &str) -> bool {
    own.trim().eq_ignore_ascii_case(name)
}

/// Reads a text. Nesting is limited to 512 levels by the parser.
pub(super) fn parse(input: &Input<'_>) -> Result<Node, ConfigError> {
    let fault = |line, message: String| ConfigError {
        file: input.file.to_owned(),
        line,
        place: String::new(),
        message,
    };
    let options = ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    // RFC 8259 §8.1: parsers may ignore a byte order mark, and Windows' tools write one.
    let text = input.text.strip_prefix('\u{feff}').unwrap_or(input.text);
    let parsed = parse_to_ast(text, &CollectOptions::default(), &options).map_err(|error| {
        let found = text.get(error.range().start..).unwrap_or_default();
        let found: String = found
            .chars()
            .take_while(|c| !c.is_control())
            .take(20)
            .collect();
        let mut why = error.kind().to_string();
        if let Some(first) = why.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        let got = match found.is_empty() {
            true => "the end of the line".to_owned(),
            false => format!("{found:?}"),
        };
        let message = format!(
            "expected JSON, got {got} in column {}: {why}",
            error.column_display()
        );
        fault(error.line_display(), message)
    })?;
    let ast = parsed
        .value
        .ok_or_else(|| fault(1, "expected JSON, got nothing".to_owned()))?;
    let mut lines = Lines {
        text,
        at: 0,
        line: 1,
        twice: None,
    };
    let node = lines.node(ast, &Rc::from(input.file), None);
    match lines.twice {
        None => Ok(node),
        Some((line, name)) => Err(fault(
            line,
            format!("{name:?} is named twice in one object"),
        )),
    }
}

/// Counts lines during the walk through the tree, which follows the order of the text.
struct Lines<'t> {
    text: &'t str,
    at: usize,
    line: usize,
    /// The first member whose object has another of its name, and its line.
    twice: Option<(usize, String)>,
}

impl Lines<'_> {
    fn line_of(&mut self, start: usize) -> usize {
        let between = self.text.as_bytes().get(self.at..start).unwrap_or_default();
        self.line += between.iter().filter(|&&byte| byte == b'\n').count();
        self.at = self.at.max(start);
        self.line
    }

    fn node(&mut self, ast: Ast<'_>, file: &Rc<str>, path: Option<Rc<Path>>) -> Node {
        let inner = |step| {
            let parent = path.clone();
            Some(Rc::new(Path { parent, step }))
        };
        let line = self.line_of(ast.start());
        let value = match ast {
            Ast::NullKeyword(_) => Value::Null,
            Ast::BooleanLit(literal) => Value::Bool(literal.value),
            Ast::NumberLit(literal) => Value::Number(literal.value.to_owned()),
            Ast::StringLit(literal) => Value::String(literal.value.into_owned()),
            Ast::Array(array) => {
                let elements = array.elements.into_iter().enumerate();
                let element = |(index, element)| {
                    let path = inner(Step::Element(index));
                    self.node(element, file, path)
                };
                Value::Array(elements.map(element).collect())
            }
            Ast::Object(object) => {
                let mut names = HashSet::new();
                let properties = object.properties.into_iter();
                let member = |property: jsonc_parser::ast::ObjectProp<'_>| {
                    let name = match property.name {
                        ObjectPropName::String(name) => name.value.into_owned(),
                        ObjectPropName::Word(word) => word.value.to_owned(),
                    };
                    let path = inner(Step::Member(name.clone()));
                    let value = self.node(property.value, file, path);
                    if !names.insert(name.to_lowercase()) && self.twice.is_none() {
                        self.twice = Some((value.line, name.clone()));
                    }
                    (name, value)
                };
                Value::Object(properties.map(member).collect())
            }
        };
        Node {
            file: Rc::clone(file),
            line,
            path,
            value,
        }
    }
}

/// Faults, and parts that were left out.
#[derive(Debug, Default)]
pub(super) struct Notes {
    errors: RefCell<Vec<ConfigError>>,
    warnings: RefCell<Vec<ConfigError>>,
}

impl Notes {
    pub(super) fn add_error(&self, error: ConfigError) {
        self.errors.borrow_mut().push(error);
    }

    pub(super) fn error(&self, node: &Node, place: &str, message: impl Into<String>) {
        self.add_error(note(node, place, message.into()));
    }

    pub(super) fn warning(&self, node: &Node, place: &str, message: impl Into<String>) {
        let warning = note(node, place, message.into());
        self.warnings.borrow_mut().push(warning);
    }

    /// Reports an expression without a value that is needed. If the cause is a parameter without a
    /// value, reports the parameter once, however many expressions refer to it.
    pub(super) fn unresolved(&self, node: &Node, place: &str, message: String, why: &Failure) {
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
    pub(super) fn finish(self) -> (Vec<ConfigError>, Vec<ConfigError>) {
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
pub(super) struct Object<'n> {
    pub(super) node: &'n Node,
    /// The item's name in messages: `rule "http"`.
    pub(super) place: String,
    notes: &'n Notes,
    asked: RefCell<Vec<&'static str>>,
}

impl<'n> Object<'n> {
    pub(super) fn new(node: &'n Node, place: impl Into<String>, notes: &'n Notes) -> Self {
        Self {
            node,
            place: place.into(),
            notes,
            asked: RefCell::default(),
        }
    }

    /// Makes an object of a kind that requires a name.
    pub(super) fn named(node: &'n Node, kind: &str, notes: &'n Notes) -> (Self, String) {
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
    pub(super) fn inner(&self, node: &'n Node, name: &str) -> Self {
        Self::new(node, format!("{}: {name}", self.place), self.notes)
    }

    pub(super) fn get(&self, name: &'static str) -> Option<&'n Node> {
        self.asked.borrow_mut().push(name);
        let properties = || self.node.get("properties")?.get(name);
        self.node.get(name).or_else(properties)
    }

    pub(super) fn error(&self, node: &Node, name: &str, message: impl AsRef<str>) {
        let message = format!("{name}: {}", message.as_ref());
        self.notes.error(node, &self.place, message);
    }

    pub(super) fn warning(&self, node: &Node, name: &str, message: impl AsRef<str>) {
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

    pub(super) fn text(&self, name: &'static str) -> Option<String> {
        let node = self.get(name)?;
        let text = node.as_str().map(str::to_owned);
        if text.is_none() {
            self.expected(node, name, "a string");
        }
        text
    }

    pub(super) fn address(&self, name: &'static str) -> Option<IpAddr> {
        self.address_or(name, "")
    }

    /// Reads an address; `or` names an alternative source of the address in messages.
    pub(super) fn address_or(&self, name: &'static str, or: &str) -> Option<IpAddr> {
        let node = self.get(name)?;
        let address = node.as_str().and_then(|text| text.parse().ok());
        if address.is_none() {
            self.expected(node, name, &format!("an IPv4 or IPv6 address{or}"));
        }
        address
    }

    pub(super) fn number(&self, name: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
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

    pub(super) fn required_number(
        &self,
        name: &'static str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        if self.get(name).is_none() {
            self.error(self.node, name, "is missing");
        }
        self.number(name, range)
    }

    pub(super) fn boolean(&self, name: &'static str) -> Option<bool> {
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
    pub(super) fn choice<T: Copy>(
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
    pub(super) fn list(&self, name: &'static str) -> &'n [Node] {
        let Some(node) = self.get(name) else {
            return &[];
        };
        if !matches!(node.value, Value::Array(_)) {
            self.expected(node, name, "a list");
        }
        node.as_array()
    }

    /// Reports a value that is no list.
    pub(super) fn unlisted(&self, node: &Node, name: &str) {
        self.expected(node, name, "a list");
    }

    /// Returns a list of strings, each with its position.
    pub(super) fn texts(&self, name: &'static str) -> Vec<(&'n Node, &'n str)> {
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
    pub(super) fn reference(&self, name: &'static str) -> Option<(&'n Node, &'n str)> {
        let node = self.get(name)?;
        self.id_of(node, name).map(|id| (node, id))
    }

    /// Returns the ids in a list of references.
    pub(super) fn references(&self, name: &'static str) -> Vec<(&'n Node, &'n str)> {
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
    pub(super) fn ignore(&self, names: &[&'static str]) {
        self.asked.borrow_mut().extend(names);
    }

    /// Warns about a member that is not supported.
    pub(super) fn not_done(&self, name: &'static str, why: &str) {
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
    pub(super) fn refuse(&self, name: &'static str, why: &str) {
        if let Some(node) = self.get(name)
            && !matches!(&node.value, Value::Array(elements) if elements.is_empty())
        {
            self.error(node, name, why);
        }
    }

    /// Returns true if a member is an expression that has no value.
    pub(super) fn is_unresolved(&self, name: &'static str) -> bool {
        let node = self.get(name);
        node.is_some_and(|node| matches!(node.value, Value::Unresolved(_)))
    }

    /// Warns about the members that were not read.
    pub(super) fn finish(self) {
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

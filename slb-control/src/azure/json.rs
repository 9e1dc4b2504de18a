//! JSON with comments as a tree with line numbers, and objects that are read member by member.
//!
//! An [`Object`] records which members were read, and warns about the others. Names are compared as
//! in Azure, ignoring case.

mod object;
mod parse;

use std::fmt;
use std::rc::Rc;

pub(super) use object::{Notes, Object};
pub(super) use parse::parse;

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

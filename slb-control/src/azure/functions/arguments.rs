//! The arguments of a call, read one by one.

use super::values::as_text;
use crate::azure::json::{Failure, Node, Value};

/// The maximum length of a text or list that an expression may produce.
pub(in crate::azure) const LONGEST: usize = 16 << 10;

/// The arguments of a call, read one by one.
#[derive(Clone, Copy, Debug)]
pub(in crate::azure) struct Arguments<'a> {
    pub(in crate::azure) function: &'a str,
    pub(in crate::azure) all: &'a [Value],
    /// JSON value that contains the expression.
    pub(in crate::azure) node: &'a Node,
}

pub(super) type Outcome = Result<Value, Failure>;

impl<'a> Arguments<'a> {
    pub(in crate::azure) fn fault(&self, message: impl std::fmt::Display) -> Failure {
        Failure::Other(format!("{}(): {message}", self.function))
    }

    pub(in crate::azure) fn expected(&self, place: usize, expected: &str) -> Failure {
        let got = match self.all.get(place) {
            None => "nothing".to_owned(),
            Some(Value::Unresolved(unresolved)) => return unresolved.failure.clone(),
            Some(value) => value.describe(),
        };
        self.fault(format_args!(
            "expected {expected} as argument {}, got {got}",
            place + 1
        ))
    }

    pub(in crate::azure) fn count(&self) -> usize {
        self.all.len()
    }

    pub(in crate::azure) fn get(&self, place: usize) -> Result<&'a Value, Failure> {
        match self.all.get(place) {
            Some(Value::Unresolved(_)) | None => Err(self.expected(place, "a value")),
            Some(value) => Ok(value),
        }
    }

    /// A string.
    pub(in crate::azure) fn string(&self, place: usize) -> Result<&'a str, Failure> {
        match self.all.get(place) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(self.expected(place, "a string")),
        }
    }

    /// Returns an argument as text.
    pub(super) fn text(&self, place: usize) -> Result<String, Failure> {
        let text = self.all.get(place).and_then(as_text);
        text.ok_or_else(|| self.expected(place, "a string, a number, or true or false"))
    }

    pub(in crate::azure) fn number(&self, place: usize) -> Result<i64, Failure> {
        let number = match self.all.get(place) {
            Some(Value::Number(text)) => text.parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| self.expected(place, "an integer"))
    }

    /// Returns an argument as a number of elements.
    pub(super) fn size(&self, place: usize) -> Result<usize, Failure> {
        let number = self.number(place)?;
        usize::try_from(number).map_err(|_| self.expected(place, "an integer from 0"))
    }

    pub(in crate::azure) fn boolean(&self, place: usize) -> Result<bool, Failure> {
        match self.all.get(place) {
            Some(Value::Bool(value)) => Ok(*value),
            _ => Err(self.expected(place, "true or false")),
        }
    }

    pub(in crate::azure) fn array(&self, place: usize) -> Result<&'a [Node], Failure> {
        match self.all.get(place) {
            Some(Value::Array(elements)) => Ok(elements),
            _ => Err(self.expected(place, "a list")),
        }
    }

    pub(super) fn object(&self, place: usize) -> Result<&'a [(String, Node)], Failure> {
        match self.all.get(place) {
            Some(Value::Object(members)) => Ok(members),
            _ => Err(self.expected(place, "an object")),
        }
    }

    pub(in crate::azure) fn node(&self, value: Value) -> Node {
        Node {
            value,
            ..self.node.clone()
        }
    }

    pub(super) fn list(&self, values: impl IntoIterator<Item = Value>) -> Outcome {
        let mut elements = Vec::new();
        for value in values {
            if elements.len() >= LONGEST {
                return Err(self.fault(format_args!("expected at most {LONGEST} elements")));
            }
            elements.push(self.node(value));
        }
        Ok(Value::Array(elements))
    }

    pub(super) fn bounded(&self, text: String) -> Outcome {
        if text.len() <= LONGEST {
            Ok(Value::String(text))
        } else {
            Err(self.fault(format_args!("expected a text of at most {LONGEST} bytes")))
        }
    }

    /// The texts of a list.
    pub(super) fn texts(&self, place: usize) -> Result<Vec<String>, Failure> {
        let elements = self.array(place)?.iter();
        let texts = elements.map(|element| match (&element.value, as_text(&element.value)) {
            (_, Some(text)) => Ok(text),
            (Value::Unresolved(unresolved), _) => Err(unresolved.failure.clone()),
            (value, _) => Err(self.fault(format_args!(
                "expected a list of texts as argument {}, got one with {}",
                place + 1,
                value.describe()
            ))),
        });
        texts.collect()
    }
}

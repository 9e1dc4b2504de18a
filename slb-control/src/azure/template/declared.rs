//! Conversion and validation of parameters' values by their declarations.

use super::super::functions;
use super::super::json::{Failure, Node, Value};
use super::other;

/// Converts a parameter's value to the declared type: files and portals pass numbers as strings.
pub(super) fn as_declared(declared: &Node, value: Value) -> Value {
    let kind = declared
        .get("type")
        .and_then(Node::as_str)
        .unwrap_or_default();
    match (kind.to_ascii_lowercase().as_str(), value) {
        ("int", Value::String(text)) if text.parse::<i64>().is_ok() => Value::Number(text),
        ("bool", Value::String(text)) if text.eq_ignore_ascii_case("true") => Value::Bool(true),
        ("bool", Value::String(text)) if text.eq_ignore_ascii_case("false") => Value::Bool(false),
        (_, value) => value,
    }
}

/// Checks the type of a default value, as Azure does; only given values may be strings.
pub(super) fn check_default(name: &str, declared: &Node, default: &Value) -> Result<(), Failure> {
    let fault = |expected| {
        let got = default.describe();
        other(format!(
            "parameter {name:?}: expected {expected} as its defaultValue, got {got}"
        ))
    };
    unlike(declared, default).map_or(Ok(()), |expected| Err(fault(expected)))
}

/// Arguments of a function of the template's own have the types that it declares.
pub(super) fn check_argument(
    function: &str,
    name: &str,
    declared: &Node,
    value: &Value,
) -> Result<(), Failure> {
    let fault = |expected| {
        let got = value.describe();
        other(format!(
            "{function}(): expected {expected} as {name:?}, got {got}"
        ))
    };
    unlike(declared, value).map_or(Ok(()), |expected| Err(fault(expected)))
}

/// The type that is declared, where a value has another.
fn unlike(declared: &Node, value: &Value) -> Option<&'static str> {
    let kind = declared.get("type").and_then(Node::as_str);
    let kind = kind.unwrap_or_default().to_ascii_lowercase();
    Some(match (kind.as_str(), value) {
        (_, Value::Unresolved(_) | Value::Null) => return None,
        ("int", Value::Number(_))
        | ("bool", Value::Bool(_))
        | ("string" | "securestring", Value::String(_))
        | ("array", Value::Array(_))
        | ("object" | "secureobject", Value::Object(_)) => return None,
        ("int", _) => "an int",
        ("bool", _) => "a bool",
        ("string" | "securestring", _) => "a string",
        ("array", _) => "a list",
        ("object" | "secureobject", _) => "an object",
        _ => return None,
    })
}

/// Checks a value against the declaration's constraints, as Azure does.
pub(super) fn check_declared(name: &str, declared: &Node, value: &Value) -> Result<(), Failure> {
    let fault = |expected: &str| {
        let got = value.describe();
        Err(other(format!(
            "parameter {name:?}: expected {expected}, got {got}"
        )))
    };
    let allowed = declared
        .get("allowedValues")
        .map(Node::as_array)
        .unwrap_or_default();
    let is_scalar = matches!(value, Value::String(_) | Value::Number(_) | Value::Bool(_));
    if is_scalar
        && !allowed.is_empty()
        && !allowed.iter().any(|a| functions::is_equal(&a.value, value))
    {
        let words: Vec<String> = allowed.iter().map(|a| a.value.describe()).collect();
        return fault(&format!("one of {}", words.join(", ")));
    }
    let bound = |name| match declared.get(name).map(|node| &node.value) {
        Some(Value::Number(text)) => text.parse::<i64>().ok(),
        _ => None,
    };
    let (least, most) = (bound("minValue"), bound("maxValue"));
    if let Value::Number(text) = value
        && let Ok(number) = text.parse::<i64>()
        && (least.is_some_and(|least| number < least) || most.is_some_and(|most| number > most))
    {
        let (least, most) = (least.unwrap_or(i64::MIN), most.unwrap_or(i64::MAX));
        return fault(&format!("{least} to {most}"));
    }
    Ok(())
}

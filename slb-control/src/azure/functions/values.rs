//! Values as text, as JSON, and compared.

use super::LONGEST;
use crate::azure::json::{Failure, Value};

/// Returns the element of an array at an index, or the member of an object with a name.
pub(in crate::azure) fn element(value: &Value, index: &Value) -> Option<Value> {
    match (value, index) {
        (Value::Array(elements), Value::Number(number)) => {
            let element = elements.get(number.parse::<usize>().ok()?)?;
            Some(element.value.clone())
        }
        (Value::Object(members), Value::String(name)) => {
            let found = members
                .iter()
                .find(|(own, _)| own.eq_ignore_ascii_case(name));
            found.map(|(_, node)| node.value.clone())
        }
        _ => None,
    }
}

/// Formats a string, a number or a boolean as `concat` and `string` do; `None` for other values.
pub(in crate::azure) fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) | Value::Number(text) => Some(text.clone()),
        Value::Bool(true) => Some("True".to_owned()),
        Value::Bool(false) => Some("False".to_owned()),
        _ => None,
    }
}

pub(in crate::azure) fn is_equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(left), Value::Bool(right)) => left == right,
        (Value::Number(left), Value::Number(right))
        | (Value::String(left), Value::String(right)) => left == right,
        (Value::Array(left), Value::Array(right)) => {
            let mut pairs = left.iter().zip(right);
            left.len() == right.len() && pairs.all(|(l, r)| is_equal(&l.value, &r.value))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(name, l)| {
                    let other = right.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
                    other.is_some_and(|(_, r)| is_equal(&l.value, &r.value))
                })
        }
        _ => false,
    }
}

/// Writes a value as JSON, as `string` does with lists and objects.
pub(super) fn write_json(value: &Value, out: &mut String) -> Result<(), Failure> {
    if out.len() > LONGEST {
        return Ok(()); // refused by the caller
    }
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(text) => out.push_str(text),
        Value::String(text) => write_json_string(text, out),
        Value::Unresolved(unresolved) => return Err(unresolved.failure.clone()),
        Value::Array(elements) => {
            out.push('[');
            for (place, element) in elements.iter().enumerate() {
                out.push_str(if place == 0 { "" } else { "," });
                write_json(&element.value, out)?;
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (place, (name, node)) in members.iter().enumerate() {
                out.push_str(if place == 0 { "" } else { "," });
                write_json_string(name, out);
                out.push(':');
                write_json(&node.value, out)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

fn write_json_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

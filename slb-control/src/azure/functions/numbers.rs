//! Functions of numbers and comparisons.

use super::arguments::Outcome;
use super::{Arguments, is_equal};
use crate::azure::json::{Failure, Value};

pub(super) fn number(number: Option<i64>, arguments: &Arguments<'_>) -> Outcome {
    let number =
        number.ok_or_else(|| arguments.fault("the result does not fit a 64-bit integer"))?;
    Ok(Value::Number(number.to_string()))
}

pub(super) fn counted(count: usize) -> Value {
    Value::Number(count.to_string())
}

pub(super) fn of_numbers(name: &str, a: &Arguments<'_>) -> Option<Outcome> {
    let two = |apply: fn(i64, i64) -> Option<i64>| {
        let (left, right) = (a.number(0)?, a.number(1)?);
        number(apply(left, right), a)
    };
    let compared = |is: fn(std::cmp::Ordering) -> bool| {
        let order = match (a.get(0)?, a.get(1)?) {
            (Value::String(left), Value::String(right)) => left.cmp(right),
            _ => a.number(0)?.cmp(&a.number(1)?),
        };
        Ok(Value::Bool(is(order)))
    };
    Some(match name {
        "add" => two(i64::checked_add),
        "sub" => two(i64::checked_sub),
        "mul" => two(i64::checked_mul),
        "div" | "mod" if a.number(1).is_ok_and(|divisor| divisor == 0) => {
            Err(a.expected(1, "a number other than 0"))
        }
        "div" => two(i64::checked_div),
        "mod" => two(i64::checked_rem),
        "int" => a.get(0).and_then(|value| {
            let text = match value {
                Value::Number(text) | Value::String(text) => text.trim(),
                _ => "",
            };
            let parsed = text.parse().ok();
            number(Some(parsed.ok_or_else(|| a.expected(0, "an integer"))?), a)
        }),
        "min" => extreme(a, Iterator::min),
        "max" => extreme(a, Iterator::max),
        "less" => compared(std::cmp::Ordering::is_lt),
        "lessorequals" => compared(std::cmp::Ordering::is_le),
        "greater" => compared(std::cmp::Ordering::is_gt),
        "greaterorequals" => compared(std::cmp::Ordering::is_ge),
        "equals" => a
            .get(0)
            .and_then(|left| Ok(Value::Bool(is_equal(left, a.get(1)?)))),
        "not" => a.boolean(0).map(|value| Value::Bool(!value)),
        "true" => Ok(Value::Bool(true)),
        "false" => Ok(Value::Bool(false)),
        "null" => Ok(Value::Null),
        "bool" => a.get(0).and_then(|value| match value {
            Value::Bool(value) => Ok(Value::Bool(*value)),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(Value::Bool(true)),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(Value::Bool(false)),
            Value::Number(text) => Ok(Value::Bool(text != "0")),
            _ => Err(a.expected(0, "true or false")),
        }),
        _ => return None,
    })
}

fn extreme(a: &Arguments<'_>, of: fn(std::vec::IntoIter<i64>) -> Option<i64>) -> Outcome {
    let values = match a.all.first() {
        Some(Value::Array(elements)) => elements.iter().map(|e| e.value.clone()).collect(),
        _ => a.all.to_vec(),
    };
    let inner = Arguments { all: &values, ..*a };
    let numbers: Result<Vec<i64>, Failure> = (0..values.len()).map(|i| inner.number(i)).collect();
    let found = of(numbers?.into_iter());
    number(Some(found.ok_or_else(|| a.fault("expected a number"))?), a)
}

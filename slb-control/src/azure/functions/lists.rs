//! Functions of arrays and objects.

use super::arguments::Outcome;
use super::numbers::counted;
use super::{Arguments, LONGEST, element, is_equal};
use crate::azure::json::{Failure, Node, Value};

pub(super) fn of_lists(name: &str, a: &Arguments<'_>) -> Option<Outcome> {
    Some(match name {
        "createarray" => a.list(a.all.iter().cloned()),
        "array" => a.get(0).and_then(|value| match value {
            Value::Array(_) => Ok(value.clone()),
            value => a.list([value.clone()]),
        }),
        "createobject" => {
            let pairs = a.all.chunks(2).enumerate().map(|(place, pair)| {
                let name = a.string(2 * place)?;
                let value = pair
                    .get(1)
                    .ok_or_else(|| a.fault("expected names and values in turn"))?;
                Ok((name.to_owned(), a.node(value.clone())))
            });
            pairs.collect::<Result<_, Failure>>().map(Value::Object)
        }
        "range" => range(a),
        "length" => a.get(0).and_then(|value| match value {
            Value::Array(elements) => Ok(counted(elements.len())),
            Value::Object(members) => Ok(counted(members.len())),
            Value::String(text) => Ok(counted(text.chars().count())),
            _ => Err(a.expected(0, "a list, a string or an object")),
        }),
        "empty" => a.get(0).and_then(|value| match value {
            Value::Null => Ok(Value::Bool(true)),
            Value::Array(elements) => Ok(Value::Bool(elements.is_empty())),
            Value::Object(members) => Ok(Value::Bool(members.is_empty())),
            Value::String(text) => Ok(Value::Bool(text.is_empty())),
            _ => Err(a.expected(0, "a list, a string or an object")),
        }),
        "first" => part(a, |_| 0..1, true),
        "last" => part(a, |len| len.saturating_sub(1)..len, true),
        "take" => a.number(1).and_then(|count| {
            let count = usize::try_from(count).unwrap_or(0);
            part(a, |len| 0..count.min(len), false)
        }),
        "skip" => a.number(1).and_then(|count| {
            let count = usize::try_from(count).unwrap_or(0);
            part(a, |len| count.min(len)..len, false)
        }),
        "contains" => contains(a),
        "union" => union(a),
        "intersection" => intersection(a),
        "flatten" => a.array(0).and_then(|lists| {
            let values = lists.iter().map(|list| match &list.value {
                Value::Array(elements) => Ok(elements.iter().map(|e| e.value.clone())),
                _ => Err(a.expected(0, "a list of lists")),
            });
            let values: Result<Vec<_>, Failure> = values.collect();
            a.list(values?.into_iter().flatten())
        }),
        "tryget" => a.get(0).and_then(|value| {
            if !matches!(value, Value::Null | Value::Array(_) | Value::Object(_)) {
                return Err(a.expected(0, "a list or an object"));
            }
            let mut value = value.clone();
            for place in 1..a.count() {
                if !matches!(a.get(place)?, Value::Number(_) | Value::String(_)) {
                    return Err(a.expected(place, "a name or an index"));
                }
                value = element(&value, a.get(place)?).unwrap_or(Value::Null);
            }
            Ok(value)
        }),
        "items" => a.object(0).and_then(|members| {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|left, right| left.0.cmp(&right.0));
            a.list(members.into_iter().map(|(name, node)| {
                let key = a.node(Value::String(name.clone()));
                Value::Object(vec![
                    ("key".to_owned(), key),
                    ("value".to_owned(), node.clone()),
                ])
            }))
        }),
        "objectkeys" => a.object(0).and_then(|members| {
            let names = members.iter().map(|(name, _)| Value::String(name.clone()));
            a.list(names)
        }),
        _ => return None,
    })
}

pub(super) fn range(a: &Arguments<'_>) -> Outcome {
    // Azure's limit.
    const MOST: usize = 10_000;
    let (start, count) = (a.number(0)?, a.size(1)?);
    let end = i64::try_from(count)
        .ok()
        .and_then(|count| start.checked_add(count));
    match end {
        Some(end) if count <= MOST => a.list((start..end).map(|n| Value::Number(n.to_string()))),
        _ => Err(a.fault(format_args!("expected at most {MOST} numbers, got {count}"))),
    }
}

/// Returns a part of a list or of a text; with `is_one`, the element itself.
pub(super) fn part(
    a: &Arguments<'_>,
    of: impl Fn(usize) -> std::ops::Range<usize>,
    is_one: bool,
) -> Outcome {
    match a.get(0)? {
        Value::Array(elements) => {
            let part = elements.get(of(elements.len())).unwrap_or_default();
            if is_one {
                let first = part.first().map(|node| node.value.clone());
                return Ok(first.unwrap_or(Value::Null));
            }
            Ok(Value::Array(part.to_vec()))
        }
        Value::String(text) => {
            let characters: Vec<char> = text.chars().collect();
            let part = characters.get(of(characters.len())).unwrap_or_default();
            Ok(Value::String(part.iter().collect()))
        }
        _ => Err(a.expected(0, "a list or a string")),
    }
}

pub(super) fn contains(a: &Arguments<'_>) -> Outcome {
    let wanted = a.get(1)?;
    let is_there = match a.get(0)? {
        Value::Array(elements) => elements.iter().any(|node| is_equal(&node.value, wanted)),
        Value::Object(members) => {
            let wanted = a.text(1)?;
            members
                .iter()
                .any(|(own, _)| own.eq_ignore_ascii_case(&wanted))
        }
        Value::String(text) => text.contains(&a.text(1)?),
        _ => return Err(a.expected(0, "a list, a string or an object")),
    };
    Ok(Value::Bool(is_there))
}

fn union(a: &Arguments<'_>) -> Outcome {
    if let Some(Value::Object(_)) = a.all.first() {
        let mut all: Vec<(String, Node)> = Vec::new();
        for place in 0..a.count() {
            merge(&mut all, a.object(place)?);
        }
        return Ok(Value::Object(all));
    }
    let mut all: Vec<Value> = Vec::new();
    for place in 0..a.count() {
        for node in a.array(place)? {
            if all.len() > LONGEST / 16 {
                return Err(a.fault("expected shorter lists"));
            }
            if !all.iter().any(|own| is_equal(own, &node.value)) {
                all.push(node.value.clone());
            }
        }
    }
    a.list(all)
}

/// Adds the members of another object: objects within both are merged, other values of the later one replace those of the
/// former, lists among them.
fn merge(all: &mut Vec<(String, Node)>, others: &[(String, Node)]) {
    for (name, node) in others {
        let known = all.iter_mut();
        match known
            .into_iter()
            .find(|(own, _)| own.eq_ignore_ascii_case(name))
        {
            None => all.push((name.clone(), node.clone())),
            Some((_, own)) => match (&mut own.value, &node.value) {
                (Value::Object(own), Value::Object(other)) => merge(own, other),
                _ => *own = node.clone(),
            },
        }
    }
}

fn intersection(a: &Arguments<'_>) -> Outcome {
    let first = a.array(0)?.iter();
    let others: Result<Vec<_>, Failure> = (1..a.count()).map(|place| a.array(place)).collect();
    let others = others?;
    let is_in_all = |node: &&Node| {
        let has = |list: &&[Node]| list.iter().any(|n| is_equal(&n.value, &node.value));
        others.iter().all(has)
    };
    a.list(first.filter(is_in_all).map(|node| node.value.clone()))
}

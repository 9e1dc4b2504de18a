//! Functions of ARM templates that need nothing but their arguments.
//!
//! Source: "ARM template functions", Azure Resource Manager's documentation. Indexes and lengths of
//! strings count characters, as people do; Azure counts UTF-16 units, which is the same for the names and
//! addresses that templates are made of.

use std::net::IpAddr;
use std::rc::Rc;

use super::Input;
use super::json::{self, Failure, Node, Value};

/// The longest text and the longest list that an expression may become.
pub(super) const LONGEST: usize = 16 << 10;

/// The arguments of a call, read one by one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arguments<'a> {
    pub(super) function: &'a str,
    pub(super) all: &'a [Value],
    /// JSON value that contains the expression.
    pub(super) node: &'a Node,
}

type Outcome = Result<Value, Failure>;

impl<'a> Arguments<'a> {
    pub(super) fn fault(&self, message: impl std::fmt::Display) -> Failure {
        Failure::Other(format!("{}(): {message}", self.function))
    }

    fn expected(&self, place: usize, expected: &str) -> Failure {
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

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    pub(super) fn get(&self, place: usize) -> Result<&'a Value, Failure> {
        match self.all.get(place) {
            Some(Value::Unresolved(_)) | None => Err(self.expected(place, "a value")),
            Some(value) => Ok(value),
        }
    }

    /// A string.
    pub(super) fn string(&self, place: usize) -> Result<&'a str, Failure> {
        match self.all.get(place) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(self.expected(place, "a string")),
        }
    }

    /// A value that can stand within a text.
    fn text(&self, place: usize) -> Result<String, Failure> {
        let text = self.all.get(place).and_then(as_text);
        text.ok_or_else(|| self.expected(place, "a string, a number, or true or false"))
    }

    pub(super) fn number(&self, place: usize) -> Result<i64, Failure> {
        let number = match self.all.get(place) {
            Some(Value::Number(text)) => text.parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| self.expected(place, "an integer"))
    }

    /// A number that counts elements.
    fn size(&self, place: usize) -> Result<usize, Failure> {
        let number = self.number(place)?;
        usize::try_from(number).map_err(|_| self.expected(place, "an integer from 0"))
    }

    pub(super) fn boolean(&self, place: usize) -> Result<bool, Failure> {
        match self.all.get(place) {
            Some(Value::Bool(value)) => Ok(*value),
            _ => Err(self.expected(place, "true or false")),
        }
    }

    pub(super) fn array(&self, place: usize) -> Result<&'a [Node], Failure> {
        match self.all.get(place) {
            Some(Value::Array(elements)) => Ok(elements),
            _ => Err(self.expected(place, "a list")),
        }
    }

    fn object(&self, place: usize) -> Result<&'a [(String, Node)], Failure> {
        match self.all.get(place) {
            Some(Value::Object(members)) => Ok(members),
            _ => Err(self.expected(place, "an object")),
        }
    }

    pub(super) fn node(&self, value: Value) -> Node {
        Node {
            value,
            ..self.node.clone()
        }
    }

    fn list(&self, values: impl IntoIterator<Item = Value>) -> Outcome {
        let mut elements = Vec::new();
        for value in values {
            if elements.len() >= LONGEST {
                return Err(self.fault(format_args!("expected at most {LONGEST} elements")));
            }
            elements.push(self.node(value));
        }
        Ok(Value::Array(elements))
    }

    fn bounded(&self, text: String) -> Outcome {
        if text.len() <= LONGEST {
            Ok(Value::String(text))
        } else {
            Err(self.fault(format_args!("expected a text of at most {LONGEST} bytes")))
        }
    }

    /// The strings of one list, or of the arguments from `place` on.
    fn strings_from(&self, place: usize) -> Result<Vec<String>, Failure> {
        match self.all.get(place) {
            Some(Value::Array(elements)) => {
                let values: Vec<Value> = elements.iter().map(|e| e.value.clone()).collect();
                let inner = Arguments {
                    all: &values,
                    ..*self
                };
                (0..values.len()).map(|place| inner.text(place)).collect()
            }
            _ => (place..self.count())
                .map(|place| self.text(place))
                .collect(),
        }
    }
}

/// Works out a function of this name; `None` where there is none.
pub(super) fn call(arguments: &Arguments<'_>) -> Option<Outcome> {
    let name = arguments.function.to_ascii_lowercase();
    of_text(&name, arguments)
        .or_else(|| of_numbers(&name, arguments))
        .or_else(|| of_lists(&name, arguments))
        .or_else(|| of_networks(&name, arguments))
}

/// Why a function of ARM templates is not worked out here, by its name; `None`: there is no such function.
pub(super) fn refusal(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    Some(match name.as_str() {
        "utcnow" | "newguid" => {
            "gives another value at each deployment: give the value that was deployed as a parameter"
        }
        "datetimeadd" | "datetimefromepoch" | "datetimetoepoch" => {
            "times are not worked out here: give the value that was deployed as a parameter"
        }
        "filter" | "map" | "mapvalues" | "reduce" | "sort" | "groupby" | "toobject" | "lambda"
        | "lambdavariables" => {
            "is not worked out here: of the functions that take lambda expressions, map and filter are"
        }
        "providers" | "managementgroup" | "tenant" | "environment" | "deployer" | "references" => {
            "what it gives is known to Azure, and not to the template"
        }
        "datauri"
        | "datauritostring"
        | "uricomponent"
        | "uricomponenttostring"
        | "float"
        | "parsecidr"
        | "shallowmerge"
        | "indexfromend"
        | "externalinput" => "is not worked out here: write its result in its place",
        name if name.starts_with("list") => {
            "asks Azure about a deployed resource (keys and the like): what it gives is not in the template"
        }
        _ => return None,
    })
}

/// The characters of base64 (RFC 4648 §4).
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = (0..3).fold(0, |word, at| {
            word << 8 | u32::from(three.get(at).copied().unwrap_or(0))
        });
        for at in 0..4 {
            let six = (word >> (18 - 6 * at) & 63) as usize;
            let is_there = at <= three.len();
            text.push(if is_there {
                char::from(BASE64[six])
            } else {
                '='
            });
        }
    }
    text
}

/// The text that the first argument is in base64.
fn of_base64(a: &Arguments<'_>) -> Result<String, Failure> {
    let encoded = a.string(0)?;
    let bad = || a.fault(format_args!("expected base64 of a text, got {encoded:?}"));
    let digits = encoded.trim_end_matches('=');
    if encoded.len() % 4 != 0 || encoded.len() - digits.len() > 2 {
        return Err(bad());
    }
    let (mut bytes, mut word, mut bits) = (Vec::new(), 0u32, 0);
    for digit in digits.bytes() {
        let six = BASE64
            .iter()
            .position(|&known| known == digit)
            .ok_or_else(bad)?;
        word = (word << 6 | six as u32) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits) as u8);
        }
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

fn number(number: Option<i64>, arguments: &Arguments<'_>) -> Outcome {
    let number = number.ok_or_else(|| arguments.fault("the result is no integer of 64 bits"))?;
    Ok(Value::Number(number.to_string()))
}

fn counted(count: usize) -> Value {
    Value::Number(count.to_string())
}

fn of_text(name: &str, a: &Arguments<'_>) -> Option<Outcome> {
    Some(match name {
        "concat" => concat(a),
        "format" => format_text(a),
        "string" => a.get(0).and_then(|value| match as_text(value) {
            Some(text) => a.bounded(text),
            None => {
                let mut text = String::new();
                write_json(value, &mut text)?;
                a.bounded(text)
            }
        }),
        "tolower" => a.string(0).map(|text| Value::String(text.to_lowercase())),
        "toupper" => a.string(0).map(|text| Value::String(text.to_uppercase())),
        "trim" => a
            .string(0)
            .map(|text| Value::String(text.trim().to_owned())),
        "substring" => substring(a),
        "split" => split(a),
        "join" => a.string(1).and_then(|between| {
            let texts = a.strings_from(0)?;
            a.bounded(texts.join(between))
        }),
        "replace" => replace(a),
        "startswith" => affix(a, |text, affix| text.starts_with(affix)),
        "endswith" => affix(a, |text, affix| text.ends_with(affix)),
        "padleft" => pad_left(a),
        "indexof" => index_of(a, false),
        "lastindexof" => index_of(a, true),
        "json" => a.string(0).and_then(|text| {
            let input = Input {
                file: &a.node.file,
                text,
            };
            let parsed = json::parse(&input).map_err(|error| a.fault(error.message))?;
            Ok(parsed.value)
        }),
        "base64" => a
            .string(0)
            .and_then(|text| a.bounded(base64(text.as_bytes()))),
        "base64tostring" => of_base64(a).and_then(|text| a.bounded(text)),
        "base64tojson" => of_base64(a).and_then(|text| {
            let input = Input {
                file: &a.node.file,
                text: &text,
            };
            let parsed = json::parse(&input).map_err(|error| a.fault(error.message))?;
            Ok(parsed.value)
        }),
        "uri" => a.string(0).and_then(|base| {
            let relative = a.string(1)?;
            let end = base.rfind('/').map_or(base.len(), |slash| slash + 1);
            let base = base.get(..end).unwrap_or(base);
            a.bounded(format!("{base}{}", relative.trim_start_matches('/')))
        }),
        "resourceid"
        | "subscriptionresourceid"
        | "tenantresourceid"
        | "managementgroupresourceid" => resource_id(a),
        "extensionresourceid" => a.string(0).and_then(|base| {
            let inner = Arguments {
                all: a.all.get(1..).unwrap_or_default(),
                ..*a
            };
            let Value::String(id) = resource_id(&inner)? else {
                return Err(a.fault("expected a type and its names"));
            };
            let provider = id.find("/providers/").and_then(|at| id.get(at..));
            a.bounded(format!("{base}{}", provider.unwrap_or_default()))
        }),
        _ => return None,
    })
}

fn of_numbers(name: &str, a: &Arguments<'_>) -> Option<Outcome> {
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

fn of_lists(name: &str, a: &Arguments<'_>) -> Option<Outcome> {
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
            let mut value = value.clone();
            for place in 1..a.count() {
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

fn of_networks(name: &str, a: &Arguments<'_>) -> Option<Outcome> {
    Some(match name {
        "cidrhost" => cidr_host(a),
        "cidrsubnet" => cidr_subnet(a),
        _ => return None,
    })
}

/// Returns the element of an array at an index, or the member of an object with a name.
pub(super) fn element(value: &Value, index: &Value) -> Option<Value> {
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
pub(super) fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) | Value::Number(text) => Some(text.clone()),
        Value::Bool(true) => Some("True".to_owned()),
        Value::Bool(false) => Some("False".to_owned()),
        _ => None,
    }
}

pub(super) fn is_equal(left: &Value, right: &Value) -> bool {
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
fn write_json(value: &Value, out: &mut String) -> Result<(), Failure> {
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

fn concat(a: &Arguments<'_>) -> Outcome {
    if let Some(Value::Array(_)) = a.all.first() {
        let lists: Result<Vec<_>, Failure> = (0..a.count()).map(|place| a.array(place)).collect();
        return a.list(lists?.into_iter().flatten().map(|node| node.value.clone()));
    }
    let mut text = String::new();
    for place in 0..a.count() {
        text.push_str(&a.text(place)?);
        if text.len() > LONGEST {
            break;
        }
    }
    a.bounded(text)
}

/// `{0}` is the first argument behind the format, `{{` a brace, `{0:D2}` a number of two digits at least.
fn format_text(a: &Arguments<'_>) -> Outcome {
    let mut out = String::new();
    let mut rest = a.string(0)?;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if let Some(after) = from.strip_prefix("{{").or_else(|| from.strip_prefix("}}")) {
            out.push_str(from.get(..1).unwrap_or_default());
            rest = after;
            continue;
        }
        let inside = from.strip_prefix('{').and_then(|from| from.split_once('}'));
        let (inside, after) =
            inside.ok_or_else(|| a.fault("expected \"{\", a number and \"}\""))?;
        let (index, shape) = inside.split_once(':').unwrap_or((inside, ""));
        let index: usize = index
            .trim()
            .parse()
            .map_err(|_| a.fault(format_args!("expected a number in braces, got {index:?}")))?;
        let text = a.text(index.saturating_add(1))?;
        let width = match shape.split_at_checked(1) {
            None => 0,
            Some(("D" | "d", width)) => width.parse().unwrap_or(0),
            Some(_) if shape.chars().all(|c| c == '0') => shape.len(),
            Some(_) => return Err(a.fault(format_args!("the format {shape:?} is not known here"))),
        };
        out.push_str(&format!("{text:0>width$}", width = width.min(64)));
        rest = after;
        if out.len() > LONGEST {
            break;
        }
    }
    out.push_str(rest);
    a.bounded(out)
}

fn substring(a: &Arguments<'_>) -> Outcome {
    let text = a.string(0)?;
    let (start, count) = (a.size(1)?, text.chars().count());
    let len = match a.count() {
        2 => count.saturating_sub(start),
        _ => a.size(2)?,
    };
    if start.checked_add(len).is_none_or(|end| end > count) {
        let message = format!("expected at most {count} characters, got {len} from {start} on");
        return Err(a.fault(message));
    }
    Ok(Value::String(text.chars().skip(start).take(len).collect()))
}

fn split(a: &Arguments<'_>) -> Outcome {
    let text = a.string(0)?;
    let separators = match a.get(1)? {
        Value::String(separator) => vec![separator.clone()],
        _ => a.strings_from(1)?,
    };
    let (mut parts, mut rest) = (Vec::new(), text);
    loop {
        let found = separators.iter().filter(|separator| !separator.is_empty());
        let found = found.filter_map(|separator| Some((rest.find(separator)?, separator.len())));
        let Some((at, len)) = found.min_by_key(|&(at, _)| at) else {
            parts.push(Value::String(rest.to_owned()));
            return a.list(parts);
        };
        parts.push(Value::String(rest.get(..at).unwrap_or_default().to_owned()));
        rest = rest.get(at + len..).unwrap_or_default();
    }
}

fn replace(a: &Arguments<'_>) -> Outcome {
    let (text, old, new) = (a.string(0)?, a.string(1)?, a.string(2)?);
    if old.is_empty() {
        return Ok(Value::String(text.to_owned()));
    }
    let found = text.matches(old).count();
    if text.len() + found * new.len() > LONGEST {
        return Err(a.fault(format_args!("expected a text of at most {LONGEST} bytes")));
    }
    a.bounded(text.replace(old, new))
}

/// `startsWith` and `endsWith` know no case.
fn affix(a: &Arguments<'_>, is: fn(&str, &str) -> bool) -> Outcome {
    let (text, affix) = (a.string(0)?.to_lowercase(), a.string(1)?.to_lowercase());
    Ok(Value::Bool(is(&text, &affix)))
}

fn pad_left(a: &Arguments<'_>) -> Outcome {
    let (text, len) = (a.text(0)?, a.size(1)?);
    let with = match a.count() {
        2 => " ",
        _ => a.string(2)?,
    };
    let missing = len.saturating_sub(text.chars().count());
    if missing > LONGEST {
        return Err(a.fault(format_args!("expected a text of at most {LONGEST} bytes")));
    }
    let padding: String = with.chars().cycle().take(missing).collect();
    a.bounded(padding + &text)
}

/// `indexOf` and `lastIndexOf`: of a text in a text, or of a value in a list; -1 where it is not.
fn index_of(a: &Arguments<'_>, is_last: bool) -> Outcome {
    let found = match a.get(0)? {
        Value::Array(elements) => {
            let wanted = a.get(1)?;
            let is = |node: &Node| is_equal(&node.value, wanted);
            if is_last {
                elements.iter().rposition(is)
            } else {
                elements.iter().position(is)
            }
        }
        _ => {
            let (text, wanted) = (a.string(0)?.to_lowercase(), a.string(1)?.to_lowercase());
            let at = if is_last {
                text.rfind(&wanted)
            } else {
                text.find(&wanted)
            };
            at.map(|at| text.get(..at).map_or(0, |before| before.chars().count()))
        }
    };
    Ok(found.map_or_else(|| Value::Number("-1".to_owned()), counted))
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

fn range(a: &Arguments<'_>) -> Outcome {
    // Azure's own bound.
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

/// A part of a list or of a text; `is_one` gives the element itself.
fn part(a: &Arguments<'_>, of: impl Fn(usize) -> std::ops::Range<usize>, is_one: bool) -> Outcome {
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

fn contains(a: &Arguments<'_>) -> Outcome {
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
            for (name, node) in a.object(place)? {
                match all
                    .iter_mut()
                    .find(|(own, _)| own.eq_ignore_ascii_case(name))
                {
                    Some((_, own)) => *own = node.clone(),
                    None => all.push((name.clone(), node.clone())),
                }
            }
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

/// `resourceId('Microsoft.Network/loadBalancers/probes', 'lb', 'probe')`: types and names in turn.
/// Subscription and group may stand before the type; they make no difference here.
fn resource_id(a: &Arguments<'_>) -> Outcome {
    let texts: Result<Vec<&str>, Failure> = (0..a.count()).map(|place| a.string(place)).collect();
    let texts = texts?;
    let at = texts.iter().position(|text| text.contains('/'));
    let from_type = at.and_then(|at| texts.get(at..)?.split_first());
    let (kind, names) = from_type.ok_or_else(|| a.fault("expected a type with a \"/\""))?;
    let (provider, types) = kind.split_once('/').unwrap_or((kind, ""));
    let types: Vec<&str> = types.split('/').collect();
    // One text may hold several names.
    let names: Vec<&str> = names.iter().flat_map(|names| names.split('/')).collect();
    if types.len() != names.len() {
        return Err(a.fault(format_args!(
            "expected {} names for {kind}, got {}",
            types.len(),
            names.len()
        )));
    }
    let mut id = format!("/subscriptions/-/providers/{provider}");
    for (kind, name) in types.iter().zip(names) {
        id.push('/');
        id.push_str(kind);
        id.push('/');
        id.push_str(name);
    }
    a.bounded(id)
}

/// A prefix: its first address as a number, and its length.
fn prefix(a: &Arguments<'_>) -> Result<(IpAddr, u32), Failure> {
    let text = a.string(0)?;
    let parsed = text.split_once('/').and_then(|(address, bits)| {
        let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?);
        (bits <= width(address)).then_some((address, bits))
    });
    parsed.ok_or_else(|| a.expected(0, "a prefix such as \"10.0.0.0/24\""))
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address of a family that is `number`, from the prefix on that `first` is in.
fn address_in(first: IpAddr, bits: u32, number: u128) -> Option<IpAddr> {
    let host_bits = width(first) - bits;
    let mask = 1u128
        .checked_shl(host_bits)
        .map_or(u128::MAX, |size| size - 1);
    if number > mask {
        return None;
    }
    Some(match first {
        IpAddr::V4(first) => {
            let number = (u128::from(first.to_bits()) & !mask) + number;
            IpAddr::from(u32::try_from(number).ok()?.to_be_bytes())
        }
        IpAddr::V6(first) => IpAddr::from(((first.to_bits() & !mask) + number).to_be_bytes()),
    })
}

/// `cidrHost('10.0.0.0/24', 3)` is `10.0.0.4`: the addresses that hosts can have are counted from 0.
fn cidr_host(a: &Arguments<'_>) -> Outcome {
    let ((first, bits), index) = (prefix(a)?, a.size(1)?);
    let address = address_in(first, bits, index as u128 + 1);
    let address = address.ok_or_else(|| a.fault(format_args!("{index} is beyond the prefix")))?;
    Ok(Value::String(address.to_string()))
}

/// `cidrSubnet('10.0.0.0/16', 24, 2)` is `10.0.2.0/24`.
fn cidr_subnet(a: &Arguments<'_>) -> Outcome {
    let ((first, bits), new, index) = (prefix(a)?, a.size(1)?, a.size(2)?);
    let new = u32::try_from(new).unwrap_or(u32::MAX);
    let number = width(first)
        .checked_sub(new)
        .filter(|_| new >= bits)
        .and_then(|shift| (index as u128).checked_mul(1u128.checked_shl(shift)?));
    let address = number.and_then(|number| address_in(first, bits, number));
    let address = address.ok_or_else(|| a.fault("the subnet is beyond the prefix"))?;
    Ok(Value::String(format!("{address}/{new}")))
}

/// A text of letters and digits in place of Azure's hash, which is not public: FNV-1a.
pub(super) fn stand_in(texts: &[String]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Thirteen characters, as `uniqueString` gives.
pub(super) fn unique_string(hash: u64) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digit = |place: u32| DIGITS[(hash.rotate_right(5 * place) & 31) as usize];
    (0..13).map(|place| char::from(digit(place))).collect()
}

/// The shape of a GUID.
pub(super) fn guid(hash: u64) -> String {
    let low = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let text = format!("{hash:016x}{low:016x}");
    let part = |range| text.get(range).unwrap_or_default();
    [
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32),
    ]
    .join("-")
}

/// The strings of all arguments.
pub(super) fn texts(a: &Arguments<'_>) -> Result<Vec<String>, Failure> {
    (0..a.count()).map(|place| a.text(place)).collect()
}

/// An object of strings.
pub(super) fn object_of(node: &Node, members: &[(&str, &str)]) -> Value {
    let member = |&(name, text): &(&str, &str)| {
        let value = Node {
            file: Rc::clone(&node.file),
            line: node.line,
            path: node.path.clone(),
            value: Value::String(text.to_owned()),
        };
        (name.to_owned(), value)
    };
    Value::Object(members.iter().map(member).collect())
}

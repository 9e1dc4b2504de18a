//! Functions of texts: concatenation, formats, parts, and base64.

use super::arguments::Outcome;
use super::identifiers::resource_id;
use super::numbers::counted;
use super::values::{as_text, write_json};
use super::{Arguments, LONGEST, is_equal};
use crate::azure::Input;
use crate::azure::json::{self, Failure, Node, Value};

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

/// Decodes the first argument from base64.
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

pub(super) fn of_text(name: &str, a: &Arguments<'_>) -> Option<Outcome> {
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
            let texts = a.texts(0)?;
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

/// `{0}` is the first argument after the format, `{{` a brace, `{0:D2}` a number of at least two
/// digits.
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
            Some(_) => return Err(a.fault(format_args!("the format {shape:?} is not supported"))),
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

pub(super) fn split(a: &Arguments<'_>) -> Outcome {
    let text = a.string(0)?;
    let separators = match a.get(1)? {
        Value::String(separator) => vec![separator.clone()],
        Value::Array(_) => a.texts(1)?,
        _ => return Err(a.expected(1, "a string, or a list of strings")),
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

/// `startsWith` and `endsWith` ignore case.
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
    if with.chars().count() != 1 {
        return Err(a.expected(2, "a string of one character"));
    }
    let missing = len.saturating_sub(text.chars().count());
    if missing > LONGEST {
        return Err(a.fault(format_args!("expected a text of at most {LONGEST} bytes")));
    }
    let padding: String = with.chars().cycle().take(missing).collect();
    a.bounded(padding + &text)
}

/// `indexOf` and `lastIndexOf`: the index of a text in a text, or of a value in a list; -1 if it is
/// not there.
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

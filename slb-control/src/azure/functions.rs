//! Functions of ARM templates that depend only on their arguments.
//!
//! Source: "ARM template functions", Azure Resource Manager's documentation. Indexes and lengths of
//! strings count characters; Azure counts UTF-16 units, which is the same for the names and
//! addresses in templates.

mod arguments;
mod counts;
mod identifiers;
mod lists;
mod networks;
mod numbers;
mod text;
mod values;

use std::rc::Rc;

use self::arguments::Outcome;
pub(super) use self::arguments::{Arguments, LONGEST};
pub(super) use self::counts::wrong_count;
pub(super) use self::identifiers::{guid, stand_in, unique_string};
use self::lists::of_lists;
use self::networks::of_networks;
use self::numbers::of_numbers;
use self::text::of_text;
pub(super) use self::values::{element, is_equal};
use super::json::{Failure, Node, Value};

/// Evaluates a function by its name; returns `None` if there is no such function.
pub(super) fn call(arguments: &Arguments<'_>) -> Option<Outcome> {
    let name = arguments.function.to_ascii_lowercase();
    of_text(&name, arguments)
        .or_else(|| of_numbers(&name, arguments))
        .or_else(|| of_lists(&name, arguments))
        .or_else(|| of_networks(&name, arguments))
}

/// Returns the reason why a function of ARM templates is not supported; `None` if there is no such
/// function.
pub(super) fn refusal(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    Some(match name.as_str() {
        "utcnow" | "newguid" => {
            "returns another value at each deployment: give the deployed value as a parameter"
        }
        "datetimeadd" | "datetimefromepoch" | "datetimetoepoch" => {
            "is not supported (dates): give the deployed value as a parameter"
        }
        "filter" | "map" | "mapvalues" | "reduce" | "sort" | "groupby" | "toobject" | "lambda"
        | "lambdavariables" => {
            "is not supported: of the functions with lambda expressions, only map and filter are"
        }
        "providers" | "managementgroup" | "tenant" | "environment" | "deployer" | "references" => {
            "only Azure knows its result"
        }
        "datauri"
        | "datauritostring"
        | "uricomponent"
        | "uricomponenttostring"
        | "float"
        | "parsecidr"
        | "shallowmerge"
        | "indexfromend"
        | "externalinput" => "is not supported: write its result instead",
        name if name.starts_with("list") => {
            "queries a deployed resource (keys and the like): its result is not in the template"
        }
        _ => return None,
    })
}

/// Returns the strings of all arguments.
pub(super) fn texts(a: &Arguments<'_>) -> Result<Vec<String>, Failure> {
    (0..a.count()).map(|place| a.text(place)).collect()
}

/// Makes an object of strings.
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

//! The numbers of arguments that functions take.
//!
//! Source: "ARM template functions", Azure Resource Manager's documentation.

use std::ops::RangeInclusive;

/// No bound.
const ANY: usize = usize::MAX;

/// The functions that are worked out, in lower case, each with the least and the greatest number of its arguments.
const COUNTS: [(&str, usize, usize); 81] = [
    // Numbers.
    ("add", 2, 2),
    ("div", 2, 2),
    ("int", 1, 1),
    ("max", 1, ANY),
    ("min", 1, ANY),
    ("mod", 2, 2),
    ("mul", 2, 2),
    ("range", 2, 2),
    ("sub", 2, 2),
    // Comparisons and logic.
    ("and", 2, ANY),
    ("bool", 1, 1),
    ("coalesce", 1, ANY),
    ("equals", 2, 2),
    ("false", 0, 0),
    ("greater", 2, 2),
    ("greaterorequals", 2, 2),
    ("if", 3, 3),
    ("less", 2, 2),
    ("lessorequals", 2, 2),
    ("not", 1, 1),
    ("null", 0, 0),
    ("or", 2, ANY),
    ("true", 0, 0),
    // Lists and objects.
    ("array", 1, 1),
    ("concat", 1, ANY),
    ("contains", 2, 2),
    ("createarray", 0, ANY),
    ("createobject", 0, ANY),
    ("empty", 1, 1),
    ("filter", 2, 2),
    ("first", 1, 1),
    ("flatten", 1, 1),
    ("indexof", 2, 2),
    ("intersection", 2, ANY),
    ("items", 1, 1),
    ("join", 2, 2),
    ("last", 1, 1),
    ("lastindexof", 2, 2),
    ("length", 1, 1),
    ("map", 2, 2),
    ("objectkeys", 1, 1),
    ("skip", 2, 2),
    ("take", 2, 2),
    ("tryget", 2, ANY),
    ("union", 2, ANY),
    // Texts.
    ("base64", 1, 1),
    ("base64tojson", 1, 1),
    ("base64tostring", 1, 1),
    ("endswith", 2, 2),
    ("format", 1, ANY),
    ("guid", 1, ANY),
    ("json", 1, 1),
    ("padleft", 2, 3),
    ("replace", 3, 3),
    ("split", 2, 2),
    ("startswith", 2, 2),
    ("string", 1, 1),
    ("substring", 2, 3),
    ("tolower", 1, 1),
    ("toupper", 1, 1),
    ("trim", 1, 1),
    ("uniquestring", 1, ANY),
    ("uri", 2, 2),
    // Addresses.
    ("cidrhost", 2, 2),
    ("cidrsubnet", 3, 3),
    // Resources and deployments.
    ("copyindex", 0, 2),
    ("deployment", 0, 0),
    ("extensionresourceid", 3, ANY),
    ("lambda", 2, 2),
    ("lambdavariables", 1, 1),
    ("managementgroupresourceid", 2, ANY),
    ("parameters", 1, 1),
    ("pickzones", 3, 5),
    ("reference", 1, 3),
    ("resourcegroup", 0, 0),
    ("resourceid", 2, ANY),
    ("resourceinfo", 1, 1),
    ("subscription", 0, 0),
    ("subscriptionresourceid", 2, ANY),
    ("tenantresourceid", 2, ANY),
    ("variables", 1, 1),
];

/// The number of arguments that a function takes; `None`: it is not worked out.
fn counts(function: &str) -> Option<RangeInclusive<usize>> {
    let found = COUNTS
        .iter()
        .find(|(name, ..)| name.eq_ignore_ascii_case(function));
    found.map(|&(_, least, most)| least..=most)
}

/// Says what is wrong with the number of a function's arguments; `None` where nothing is.
pub(in crate::azure) fn wrong_count(function: &str, count: usize) -> Option<String> {
    let range = counts(function).filter(|range| !range.contains(&count))?;
    let arguments = |count: usize| match count {
        1 => "1 argument".to_owned(),
        count => format!("{count} arguments"),
    };
    let expected = match (*range.start(), *range.end()) {
        (0, 0) => "no arguments".to_owned(),
        (least, most) if least == most => arguments(least),
        (least, ANY) => format!("{} or more", arguments(least)),
        (0, most) => format!("at most {}", arguments(most)),
        (least, most) => format!("{least} to {}", arguments(most)),
    };
    Some(format!("{function}(): expected {expected}, got {count}"))
}

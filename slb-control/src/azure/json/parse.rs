//! From a text to the tree.

use std::collections::HashSet;
use std::rc::Rc;

use jsonc_parser::ast::{ObjectPropName, Value as Ast};
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use super::{Node, Path, Step, Value};
use crate::azure::Input;
use crate::error::ConfigError;

/// Reads a text. Nesting is limited to 512 levels by the parser.
pub(in crate::azure) fn parse(input: &Input<'_>) -> Result<Node, ConfigError> {
    let fault = |line, message: String| ConfigError {
        file: input.file.to_owned(),
        line,
        place: String::new(),
        message,
    };
    let options = ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    // RFC 8259 §8.1: parsers may ignore a byte order mark, and Windows' tools write one.
    let text = input.text.strip_prefix('\u{feff}').unwrap_or(input.text);
    let parsed = parse_to_ast(text, &CollectOptions::default(), &options).map_err(|error| {
        let found = text.get(error.range().start..).unwrap_or_default();
        let found: String = found
            .chars()
            .take_while(|c| !c.is_control())
            .take(20)
            .collect();
        let mut why = error.kind().to_string();
        if let Some(first) = why.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        let got = match found.is_empty() {
            true => "the end of the line".to_owned(),
            false => format!("{found:?}"),
        };
        let message = format!(
            "expected JSON, got {got} in column {}: {why}",
            error.column_display()
        );
        fault(error.line_display(), message)
    })?;
    let ast = parsed
        .value
        .ok_or_else(|| fault(1, "expected JSON, got nothing".to_owned()))?;
    let mut lines = Lines {
        text,
        at: 0,
        line: 1,
        twice: None,
    };
    let node = lines.node(ast, &Rc::from(input.file), None);
    match lines.twice {
        None => Ok(node),
        Some((line, name)) => Err(fault(
            line,
            format!("{name:?} is named twice in one object"),
        )),
    }
}

/// Counts lines during the walk through the tree, which follows the order of the text.
struct Lines<'t> {
    text: &'t str,
    at: usize,
    line: usize,
    /// The first member whose object has another of its name, and its line.
    twice: Option<(usize, String)>,
}

impl Lines<'_> {
    fn line_of(&mut self, start: usize) -> usize {
        let between = self.text.as_bytes().get(self.at..start).unwrap_or_default();
        self.line += between.iter().filter(|&&byte| byte == b'\n').count();
        self.at = self.at.max(start);
        self.line
    }

    fn node(&mut self, ast: Ast<'_>, file: &Rc<str>, path: Option<Rc<Path>>) -> Node {
        let inner = |step| {
            let parent = path.clone();
            Some(Rc::new(Path { parent, step }))
        };
        let line = self.line_of(ast.start());
        let value = match ast {
            Ast::NullKeyword(_) => Value::Null,
            Ast::BooleanLit(literal) => Value::Bool(literal.value),
            Ast::NumberLit(literal) => Value::Number(literal.value.to_owned()),
            Ast::StringLit(literal) => Value::String(literal.value.into_owned()),
            Ast::Array(array) => {
                let elements = array.elements.into_iter().enumerate();
                let element = |(index, element)| {
                    let path = inner(Step::Element(index));
                    self.node(element, file, path)
                };
                Value::Array(elements.map(element).collect())
            }
            Ast::Object(object) => {
                let mut names = HashSet::new();
                let properties = object.properties.into_iter();
                let member = |property: jsonc_parser::ast::ObjectProp<'_>| {
                    let name = match property.name {
                        ObjectPropName::String(name) => name.value.into_owned(),
                        ObjectPropName::Word(word) => word.value.to_owned(),
                    };
                    let path = inner(Step::Member(name.clone()));
                    let value = self.node(property.value, file, path);
                    if !names.insert(name.to_lowercase()) && self.twice.is_none() {
                        self.twice = Some((value.line, name.clone()));
                    }
                    (name, value)
                };
                Value::Object(properties.map(member).collect())
            }
        };
        Node {
            file: Rc::clone(file),
            line,
            path,
            value,
        }
    }
}

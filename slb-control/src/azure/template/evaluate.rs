//! Evaluation of values and expressions.

use std::rc::Rc;

use super::super::expression::{self, Expression};
use super::super::functions::{self, Arguments};
use super::super::json::{Node, Value};
use super::names::id_of;
use super::{
    Context, DEEPEST, Loops, Outcome, Resource, Templates, Turn, found_or, other, size_of,
    unresolved,
};

impl Templates<'_> {
    /// Evaluates a resource: its complete type and name, and its properties at `paths`, or all
    /// properties if `paths` is empty.
    pub(in crate::azure) fn work_out(&self, resource: &Resource, paths: &[&[&str]]) -> Node {
        const LEFT_OUT: [&str; 16] = [
            "apiVersion",
            "asserts",
            "comments",
            "condition",
            "copy",
            "dependsOn",
            "existing",
            "identity",
            "import",
            "location",
            "metadata",
            "name",
            "resources",
            "scope",
            "tags",
            "type",
        ];
        let context = resource.context();
        let raw = &resource.raw;
        let is_one_of = |own: &str, names: &[&str]| {
            let own = own.trim();
            names.iter().any(|name| own.eq_ignore_ascii_case(name))
        };
        let mut members = Vec::new();
        for (member, value) in [("type", &resource.kind), ("name", &resource.name)] {
            let Some(written) = raw.get(member) else {
                continue;
            };
            let value = match value {
                Ok(text) => Value::String(text.clone()),
                Err(_) => self.resolve(written, &context).value,
            };
            members.push((
                member.to_owned(),
                Node {
                    value,
                    ..written.clone()
                },
            ));
        }
        if let Value::Object(own) = &raw.value {
            let is_typed = raw.get("type").is_some();
            for (name, node) in own {
                let is_left_out = if is_typed {
                    is_one_of(name, &LEFT_OUT)
                } else {
                    is_one_of(name, &["name"]) && !matches!(node.value, Value::Null)
                };
                let is_of_use =
                    paths.is_empty() || is_one_of(name, &["properties", "sku", "zones"]);
                if is_left_out || !is_of_use {
                    continue;
                }
                let is_properties = is_one_of(name, &["properties"]);
                let value = if is_properties && !paths.is_empty() {
                    self.only(node, paths, &context)
                } else {
                    self.resolve(node, &context)
                };
                members.push((name.clone(), value));
            }
        } else {
            return self.resolve(raw, &context);
        }
        Node {
            value: Value::Object(members),
            file: Rc::clone(&raw.file),
            line: raw.line,
            path: raw.path.clone(),
        }
    }

    /// Returns an object with only the members at some paths.
    pub(super) fn only(&self, node: &Node, paths: &[&[&str]], context: &Context<'_>) -> Node {
        let mut members: Vec<(String, Node)> = Vec::new();
        for path in paths {
            let Some((last, _)) = path.split_last() else {
                continue;
            };
            if let Some(value) = self.at(node, path, context) {
                members.push(((*last).to_owned(), value));
            }
        }
        Node {
            value: Value::Object(members),
            ..node.clone()
        }
    }

    /// Evaluates the value at a path, and nothing else.
    pub(super) fn at(&self, node: &Node, path: &[&str], context: &Context<'_>) -> Option<Node> {
        let Some((first, rest)) = path.split_first() else {
            return Some(self.resolve(node, context));
        };
        if let Value::String(_) = &node.value {
            let resolved = self.resolve(node, context);
            return match &resolved.value {
                Value::Unresolved(_) => Some(resolved),
                _ => rest
                    .iter()
                    .try_fold(resolved.get(first)?, |n, name| n.get(name))
                    .cloned(),
            };
        }
        if let Some(member) = node.get(first) {
            return self.at(member, rest, context);
        }
        // A loop may produce the member.
        node.get("copy")?;
        let resolved = self.resolve(node, context);
        let found = resolved.get(first)?;
        rest.iter().try_fold(found, |n, name| n.get(name)).cloned()
    }

    /// Evaluates the expressions in a value.
    pub(super) fn resolve(&self, node: &Node, context: &Context<'_>) -> Node {
        let context = &context.deeper();
        let room = match context.depth {
            0..=DEEPEST => self.charge(1),
            _ => Err(other("it refers to itself, or is nested too deeply")),
        };
        let value = match (room, &node.value) {
            (Err(failure), value) => unresolved(&value.describe(), failure),
            (Ok(()), Value::String(text)) => self.text(node, text, context),
            (Ok(()), Value::Array(elements)) => {
                Value::Array(elements.iter().map(|e| self.resolve(e, context)).collect())
            }
            (Ok(()), Value::Object(members)) => Value::Object(self.members(members, context)),
            (Ok(()), plain) => plain.clone(),
        };
        Node {
            value,
            ..node.clone()
        }
    }

    pub(super) fn members(
        &self,
        members: &[(String, Node)],
        context: &Context<'_>,
    ) -> Vec<(String, Node)> {
        let mut all = Vec::with_capacity(members.len());
        for (name, node) in members {
            match &node.value {
                Value::Array(loops) if name.trim().eq_ignore_ascii_case("copy") => {
                    all.extend(loops.iter().map(|copy| self.made_by_loop(copy, context)));
                }
                _ => all.push((name.clone(), self.resolve(node, context))),
            }
        }
        all
    }

    /// Returns the member that a loop `{ "name": ..., "count": ..., "input": ... }` produces.
    pub(super) fn made_by_loop(&self, copy: &Node, context: &Context<'_>) -> (String, Node) {
        let with = |name: String, value| {
            let node = Node {
                value,
                ..copy.clone()
            };
            (name, node)
        };
        let name = match self.word(copy, "name", context) {
            Ok(name) => name,
            Err(failure) => return with("copy".to_owned(), unresolved("copy", failure)),
        };
        let turns = self.turns(copy, context, false).and_then(|turns| {
            let input = copy.get("input").ok_or_else(|| other("input is missing"))?;
            Ok((turns, input))
        });
        match turns {
            Err(failure) => {
                let text = format!("copy of {name:?}");
                with(name, unresolved(&text, failure))
            }
            Ok((turns, input)) => {
                let element = |loops: &Loops| self.resolve(input, &Context { loops, ..*context });
                let elements = turns.iter().map(element).collect();
                with(name, Value::Array(elements))
            }
        }
    }

    pub(super) fn text(&self, node: &Node, text: &str, context: &Context<'_>) -> Value {
        if let Some(escaped) = text.strip_prefix("[[") {
            return Value::String(format!("[{escaped}"));
        }
        if !(text.starts_with('[') && text.ends_with(']')) {
            return Value::String(text.to_owned());
        }
        let worked_out = match expression::parse(text) {
            Ok(expression) => self.evaluate(&expression, node, context),
            Err(error) => Err(other(error.to_string())),
        };
        worked_out.unwrap_or_else(|failure| unresolved(text, failure))
    }

    pub(super) fn evaluate(
        &self,
        expression: &Expression,
        node: &Node,
        context: &Context<'_>,
    ) -> Outcome {
        self.charge(1)?;
        let context = &context.deeper();
        if context.depth > DEEPEST {
            return Err(other("it refers to itself, or is nested too deeply"));
        }
        match expression {
            Expression::Text(text) => Ok(Value::String(text.clone())),
            Expression::Number(number) => Ok(Value::Number(number.to_string())),
            Expression::Call {
                function,
                arguments,
            } => self.call(function, arguments, node, context),
            Expression::Member { of, name } => {
                let value = self.evaluate(of, node, context)?;
                let found = functions::element(&value, &Value::String(name.clone()));
                let is_reference = matches!(&**of, Expression::Call { function, .. }
                    if function.eq_ignore_ascii_case("reference"));
                found_or(found, || match &value {
                    Value::Object(_) if is_reference => format!(
                        "{name:?} is not in the resource that it refers to: only Azure knows it, after the deployment"
                    ),
                    Value::Object(_) => format!("the object has no {name:?}"),
                    value => format!("expected an object with {name:?}, got {}", value.describe()),
                })
            }
            Expression::Index { of, index } => {
                let value = self.evaluate(of, node, context)?;
                let index = self.evaluate(index, node, context)?;
                let found = functions::element(&value, &index);
                found_or(found, || {
                    let index = index.describe();
                    match &value {
                        Value::Array(all) => format!("a list of {} has no {index}", all.len()),
                        Value::Object(_) => format!("the object has no {index}"),
                        value => format!("expected a list, got {}", value.describe()),
                    }
                })
            }
        }
    }

    pub(super) fn call(
        &self,
        function: &str,
        arguments: &[Expression],
        node: &Node,
        context: &Context<'_>,
    ) -> Outcome {
        if let Some(fault) = functions::wrong_count(function, arguments.len()) {
            return Err(other(fault));
        }
        // Lazy functions evaluate only some of their arguments.
        if let Some(outcome) = self.lazy(function, arguments, node, context) {
            return outcome;
        }
        let mut values = Vec::with_capacity(arguments.len());
        for argument in arguments {
            values.push(self.evaluate(argument, node, context)?);
        }
        let arguments = Arguments {
            function,
            all: &values,
            node,
        };
        if function.contains('.') {
            return self.own_function(&arguments, context);
        }
        if let Some(outcome) = self.of_template(&arguments, context) {
            return outcome;
        }
        let outcome = functions::call(&arguments);
        let outcome = outcome.unwrap_or_else(|| {
            Err(other(match functions::refusal(function) {
                Some(why) => format!("{function}(): {why}"),
                None => format!("the function {function:?} is not supported"),
            }))
        });
        if let Ok(Value::Array(made)) = &outcome {
            self.charge(made.len())?;
        }
        outcome
    }

    pub(super) fn lazy(
        &self,
        function: &str,
        arguments: &[Expression],
        node: &Node,
        context: &Context<'_>,
    ) -> Option<Outcome> {
        let value = |place: usize| match arguments.get(place) {
            Some(argument) => self.evaluate(argument, node, context),
            None => Err(other(format!("{function}(): expected more arguments"))),
        };
        let truth = |place: usize| match value(place)? {
            Value::Bool(value) => Ok(value),
            value => Err(other(format!(
                "{function}(): expected true or false as argument {}, got {}",
                place + 1,
                value.describe()
            ))),
        };
        let name = function.to_ascii_lowercase();
        Some(match name.as_str() {
            "if" => truth(0).and_then(|is| value(if is { 1 } else { 2 })),
            "and" | "or" => {
                let is_or = name == "or";
                let mut places = 0..arguments.len();
                let found = places.try_fold(!is_or, |_, place| match truth(place) {
                    Ok(is) if is == is_or => Err(Ok(is)),
                    Ok(is) => Ok(is),
                    Err(failure) => Err(Err(failure)),
                });
                found.map_or_else(|early| early.map(Value::Bool), |is| Ok(Value::Bool(is)))
            }
            "coalesce" => {
                let mut places = 0..arguments.len();
                places
                    .find_map(|place| match value(place) {
                        Ok(Value::Null) => None,
                        known => Some(known),
                    })
                    .unwrap_or(Ok(Value::Null))
            }
            "map" | "filter" => self.for_each(&name, arguments, node, context),
            "lambda" => Err(other("lambda() is an argument of map() and filter() only")),
            _ => return None,
        })
    }

    /// Evaluates `map(list, lambda('each', ...))` or `filter`.
    pub(super) fn for_each(
        &self,
        name: &str,
        arguments: &[Expression],
        node: &Node,
        context: &Context<'_>,
    ) -> Outcome {
        let fault = |what: &str| other(format!("{name}(): expected {what}"));
        let [
            list,
            Expression::Call {
                function,
                arguments,
            },
        ] = arguments
        else {
            return Err(fault("a list and a lambda"));
        };
        let (variable, body) = match arguments.as_slice() {
            [Expression::Text(variable), body] if function.eq_ignore_ascii_case("lambda") => {
                (variable, body)
            }
            _ => return Err(fault("a lambda of one variable")),
        };
        let Value::Array(elements) = self.evaluate(list, node, context)? else {
            return Err(fault("a list as argument 1"));
        };
        let mut all = Vec::new();
        for element in elements {
            self.charge(size_of(&element))?;
            let mut lambdas = context.lambdas.to_vec();
            lambdas.insert(0, (variable.clone(), element.value.clone()));
            let inner = Context {
                lambdas: &lambdas,
                ..*context
            };
            let value = self.evaluate(body, node, &inner)?;
            match (name, value) {
                ("map", value) => all.push(Node {
                    value,
                    ..node.clone()
                }),
                (_, Value::Bool(true)) => all.push(element),
                (_, Value::Bool(false)) => {}
                (_, value) => {
                    let got = value.describe();
                    return Err(fault(&format!("true or false of its lambda, got {got}")));
                }
            }
        }
        Ok(Value::Array(all))
    }

    /// Evaluates functions that depend on the template.
    pub(super) fn of_template(&self, a: &Arguments<'_>, context: &Context<'_>) -> Option<Outcome> {
        let stand_in = |what: &str| {
            let is_known = self
                .stand_ins
                .borrow()
                .iter()
                .any(|known| known == a.function);
            if !is_known {
                self.stand_ins.borrow_mut().push(a.function.to_owned());
                let message = format!("{}() is {what}", a.function);
                self.notes.warning(a.node, "expression", message);
            }
        };
        const HASH: &str = "not public: a placeholder of the same length is used instead";
        const UNKNOWN: &str = "known to Azure alone: placeholders are used instead";
        let name = a.function.to_ascii_lowercase();
        Some(match name.as_str() {
            "parameters" => a.string(0).and_then(|name| self.parameter(name, context)),
            "variables" => a.string(0).and_then(|name| self.variable(name, context)),
            "lambdavariables" => a.string(0).and_then(|name| {
                let found = context.lambdas.iter().find(|(own, _)| own == name);
                let value = found.map(|(_, value)| value.clone());
                found_or(value, || format!("no lambda has a variable {name:?}"))
            }),
            "copyindex" => copy_index(a, context),
            "reference" => self.reference(a, context),
            "resourceinfo" => a.string(0).and_then(|key| {
                let (kind, name) = match &*self.find(key, context)? {
                    Resource {
                        kind: Ok(kind),
                        name: Ok(name),
                        ..
                    } => (kind.clone(), name.clone()),
                    Resource { kind, name, .. } => (kind.clone()?, name.clone()?),
                };
                let id = id_of(&kind, &name);
                let members = [("id", &*id), ("name", &*name), ("type", &*kind)];
                Ok(functions::object_of(a.node, &members))
            }),
            "uniquestring" => functions::texts(a).map(|texts| {
                stand_in(HASH);
                Value::String(functions::unique_string(functions::stand_in(&texts)))
            }),
            "guid" => functions::texts(a).map(|texts| {
                stand_in(HASH);
                Value::String(functions::guid(functions::stand_in(&texts)))
            }),
            "resourcegroup" => {
                stand_in(UNKNOWN);
                let id = "/subscriptions/-/resourceGroups/resource-group";
                let members = [
                    ("id", id),
                    ("name", "resource-group"),
                    ("location", "location"),
                ];
                Ok(functions::object_of(a.node, &members))
            }
            "subscription" => {
                stand_in(UNKNOWN);
                let id = "00000000-0000-0000-0000-000000000000";
                let members = [
                    ("id", "/subscriptions/-"),
                    ("subscriptionId", id),
                    ("tenantId", id),
                    ("displayName", "subscription"),
                ];
                Ok(functions::object_of(a.node, &members))
            }
            "deployment" => {
                let link = functions::object_of(a.node, &[("uri", "https://localhost/")]);
                let link = Value::Object(vec![("templateLink".to_owned(), a.node(link))]);
                let name = a.node(Value::String("deployment".to_owned()));
                Ok(Value::Object(vec![
                    ("name".to_owned(), name),
                    ("properties".to_owned(), a.node(link)),
                ]))
            }
            "pickzones" => {
                stand_in("known to Azure alone: the first zones are used instead");
                let count = if a.count() > 3 { a.number(3) } else { Ok(1) };
                (0..3)
                    .try_for_each(|place| a.string(place).map(drop))
                    .and(count)
                    .and_then(|count| match count {
                        1..=3 => {
                            let zones =
                                (1..=count).map(|zone| a.node(Value::String(zone.to_string())));
                            Ok(Value::Array(zones.collect()))
                        }
                        _ => Err(a.fault(format_args!("expected 1 to 3 zones, got {count}"))),
                    })
            }
            _ => return None,
        })
    }
}

/// `copyIndex()`, `copyIndex(offset)`, `copyIndex('loop')`, `copyIndex('loop', offset)`.
pub(super) fn copy_index(a: &Arguments<'_>, context: &Context<'_>) -> Outcome {
    let (name, offset) = match a.all.first() {
        Some(Value::String(name)) => (Some(name.as_str()), 1),
        _ => (None, 0),
    };
    if a.count() > offset + 1 {
        return Err(a.expected(0, "a loop's name before the offset"));
    }
    let offset = if a.count() > offset {
        a.number(offset)?
    } else {
        0
    };
    let mut turns = context.loops.iter().rev();
    let turn = match name {
        Some(name) => turns.find(|turn| turn.name.eq_ignore_ascii_case(name)),
        // Without a name, it refers to the loop of the resource: inner loops have names.
        None => turns
            .find(|turn| turn.is_of_resources)
            .or(context.loops.last()),
    };
    let Some(&Turn { index, .. }) = turn else {
        return Err(match name {
            Some(name) => a.fault(format_args!("no loop {name:?} is around it")),
            None => a.fault("no loop is around it"),
        });
    };
    let number = index.checked_add(offset);
    let number = number.ok_or_else(|| a.fault("the result does not fit a 64-bit integer"))?;
    Ok(Value::Number(number.to_string()))
}

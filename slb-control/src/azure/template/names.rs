//! Names in expressions: parameters, variables, functions, resources, outputs.

use std::rc::Rc;

use super::super::functions::Arguments;
use super::super::json::{Failure, Node, Value};
use super::declared::{as_declared, check_argument, check_declared, check_default};
use super::{
    Context, DEPLOYMENT, Loops, Outcome, Resource, Templates, found_or, known, other, size_of,
    unresolved,
};

impl Templates<'_> {
    /// Returns a parameter's value: the given one, or the default.
    pub(super) fn parameter(&self, name: &str, context: &Context<'_>) -> Outcome {
        if let Some(own) = context.own {
            let found = own.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
            let value = found.map(|(_, value)| value.clone());
            return found_or(value, || format!("the function has no parameter {name:?}"));
        }
        let deployment = self.deployment(context.deployment)?;
        if let Some((outer, loops)) = &deployment.outer {
            let context = Context {
                deployment: *outer,
                loops,
                ..*context
            };
            return self.parameter(name, &context.deeper());
        }
        let declared = deployment
            .root
            .get("parameters")
            .and_then(|all| all.get(name));
        let declared =
            declared.ok_or_else(|| other(format!("no parameter {name:?} is declared")))?;
        let loops = Loops::new();
        let context = &Context {
            loops: &loops,
            ..*context
        };
        let given = deployment
            .given
            .iter()
            .find(|(own, _)| own.eq_ignore_ascii_case(name));
        let value = match (given, declared.get("defaultValue")) {
            // Values from a parent are evaluated already, and parameter files contain no expressions.
            (Some((_, given)), _) => {
                self.charge(size_of(given))?;
                given.value.clone()
            }
            (None, Some(default)) => {
                let default = self.resolve(default, context).value;
                check_default(name, declared, &default)?;
                default
            }
            (None, None) => {
                let is_nullable = declared
                    .get("nullable")
                    .is_some_and(|n| matches!(n.value, Value::Bool(true)));
                if is_nullable {
                    return Ok(Value::Null);
                }
                return Err(Failure::NoValue {
                    parameter: name.to_owned(),
                    file: Rc::clone(&declared.file),
                    line: declared.line,
                });
            }
        };
        let value = as_declared(declared, value);
        check_declared(name, declared, &value)?;
        known(value)
    }

    pub(super) fn variable(&self, name: &str, context: &Context<'_>) -> Outcome {
        let deployment = self.deployment(context.deployment)?;
        if let Some((outer, loops)) = &deployment.outer {
            let context = Context {
                deployment: *outer,
                loops,
                ..*context
            };
            return self.variable(name, &context.deeper());
        }
        let variables = deployment.root.get("variables");
        if let Some(node) = variables.and_then(|all| all.get(name))
            && !name.eq_ignore_ascii_case("copy")
        {
            return known(self.resolve(node, context).value);
        }
        let copies = variables
            .and_then(|all| all.get("copy"))
            .map(Node::as_array);
        for copy in copies.unwrap_or_default() {
            if self
                .word(copy, "name", context)
                .is_ok_and(|own| own.eq_ignore_ascii_case(name))
            {
                return known(self.made_by_loop(copy, context).1.value);
            }
        }
        Err(other(format!("no variable {name:?} is declared")))
    }

    /// Evaluates a user-defined function: `namespace.name`.
    pub(super) fn own_function(&self, a: &Arguments<'_>, context: &Context<'_>) -> Outcome {
        let deployment = self.deployment(context.deployment)?;
        let root = match &deployment.outer {
            Some((outer, _)) => self.deployment(*outer)?.root.clone(),
            None => deployment.root.clone(),
        };
        let (space, name) = a.function.split_once('.').unwrap_or_default();
        let spaces = root
            .get("functions")
            .map(Node::as_array)
            .unwrap_or_default();
        let is_named = |node: &&Node| {
            let own = node.get("namespace").and_then(Node::as_str);
            own.is_some_and(|own| own.eq_ignore_ascii_case(space))
        };
        let found = spaces
            .iter()
            .find(is_named)
            .and_then(|s| s.get("members")?.get(name));
        let found =
            found.ok_or_else(|| other(format!("no function {:?} is declared", a.function)))?;
        let declared = found
            .get("parameters")
            .map(Node::as_array)
            .unwrap_or_default();
        if declared.len() != a.count() {
            let (count, got) = (declared.len(), a.count());
            return Err(a.fault(format_args!("expected {count} arguments, got {got}")));
        }
        let mut own = Vec::new();
        for (place, declared) in declared.iter().enumerate() {
            let name = declared
                .get("name")
                .and_then(Node::as_str)
                .unwrap_or_default();
            let value = a.get(place)?.clone();
            check_argument(a.function, name, declared, &value)?;
            own.push((name.to_owned(), value));
        }
        let output = found.get("output").and_then(|output| output.get("value"));
        let output = output.ok_or_else(|| a.fault("has no output"))?;
        let loops = Loops::new();
        let context = Context {
            loops: &loops,
            own: Some(&own),
            lambdas: &[],
            ..*context
        };
        known(self.resolve(output, &context).value)
    }

    /// Finds a resource of the templates by its id, its type and name, its name, or its symbolic
    /// name.
    pub(super) fn find(&self, key: &str, context: &Context<'_>) -> Result<Rc<Resource>, Failure> {
        let id = split_id(key);
        let is_meant = |resource: &&Rc<Resource>| {
            let name = resource.name.as_deref().unwrap_or_default();
            match &id {
                Some((kind, own)) => {
                    let own_kind = resource.kind.as_deref().unwrap_or_default();
                    own_kind.eq_ignore_ascii_case(kind) && name.eq_ignore_ascii_case(own)
                }
                None => resource.symbol.as_deref() == Some(key) || name.eq_ignore_ascii_case(key),
            }
        };
        let count = self.deployments.borrow().len();
        let others = (0..count).filter(|&number| number != context.deployment);
        for number in std::iter::once(context.deployment).chain(others) {
            let resources = self.resources(number)?;
            self.charge(resources.len())?;
            if let Some(found) = resources.iter().find(is_meant) {
                return Ok(Rc::clone(found));
            }
        }
        Err(other(format!("{key:?} is not in the template")))
    }

    /// Evaluates `reference`: the properties of a resource, or the whole resource.
    pub(super) fn reference(&self, a: &Arguments<'_>, context: &Context<'_>) -> Outcome {
        let resource = self.find(a.string(0)?, context)?;
        let is_deployment = resource
            .kind
            .as_ref()
            .is_ok_and(|k| k.eq_ignore_ascii_case(DEPLOYMENT));
        if is_deployment {
            return self.outputs(&resource, a, context.depth);
        }
        let inner = Context {
            depth: context.depth,
            ..resource.context()
        };
        if let Some(value) = a.all.get(1)
            && !matches!(value, Value::String(_) | Value::Null)
        {
            return Err(a.expected(1, "the version of an API"));
        }
        if let Some(value) = a.all.get(2)
            && !matches!(value, Value::String(text) if text.eq_ignore_ascii_case("Full"))
        {
            return Err(a.expected(2, "\"Full\""));
        }
        let is_full =
            matches!(a.all.get(2), Some(Value::String(text)) if text.eq_ignore_ascii_case("Full"));
        if is_full {
            return known(self.resolve(&resource.raw, &inner).value);
        }
        match resource.raw.get("properties") {
            Some(properties) => known(self.resolve(properties, &inner).value),
            None => Ok(Value::Object(Vec::new())),
        }
    }

    /// Returns the outputs of a deployment, as `reference` sees them.
    pub(super) fn outputs(&self, resource: &Resource, a: &Arguments<'_>, depth: u32) -> Outcome {
        let number = self.inner(resource, depth)?;
        let deployment = self.deployment(number)?;
        let loops = Loops::new();
        let context = Context {
            deployment: number,
            loops: &loops,
            own: None,
            lambdas: &[],
            // Deployments may refer to each other in a circle.
            depth,
        };
        let outputs = match deployment.root.get("outputs") {
            Some(Node {
                value: Value::Object(outputs),
                ..
            }) => outputs.as_slice(),
            _ => &[],
        };
        let mut all = Vec::new();
        for (name, output) in outputs {
            let value = match (output.get("value"), output.get("copy")) {
                (Some(value), _) => self.resolve(value, &context),
                (None, Some(copy)) => self.output_loop(copy, &context),
                (None, None) => continue,
            };
            let output = Value::Object(vec![("value".to_owned(), value)]);
            all.push((name.clone(), a.node(output)));
        }
        let outputs = a.node(Value::Object(all));
        Ok(Value::Object(vec![("outputs".to_owned(), outputs)]))
    }

    /// Evaluates the loop of an output, which has no name.
    pub(super) fn output_loop(&self, copy: &Node, context: &Context<'_>) -> Node {
        let turns = self.turns(copy, context, false);
        let value = match (turns, copy.get("input")) {
            (Ok(turns), Some(input)) => {
                let element = |loops: &Loops| self.resolve(input, &Context { loops, ..*context });
                Value::Array(turns.iter().map(element).collect())
            }
            (Err(failure), _) => unresolved("copy", failure),
            (_, None) => unresolved("copy", other("input is missing")),
        };
        Node {
            value,
            ..copy.clone()
        }
    }
}

/// Splits an id, or a type with a name, such as `Microsoft.Network/loadBalancers/lb`, into type and
/// name.
pub(super) fn split_id(id: &str) -> Option<(String, String)> {
    let tail = match id.to_ascii_lowercase().rfind("/providers/") {
        Some(at) => id.get(at + "/providers/".len()..)?,
        None => id,
    };
    let mut segments = tail.split('/');
    let provider = segments.next().filter(|provider| provider.contains('.'))?;
    let segments: Vec<&str> = segments.collect();
    let (mut kind, mut name) = (provider.to_owned(), String::new());
    for pair in segments.chunks(2) {
        let &[own_kind, own_name] = pair else {
            return None;
        };
        kind = format!("{kind}/{own_kind}");
        name = if name.is_empty() {
            own_name.to_owned()
        } else {
            format!("{name}/{own_name}")
        };
    }
    (!name.is_empty()).then_some((kind, name))
}

/// Returns the id of a resource, like `resourceId`.
pub(super) fn id_of(kind: &str, name: &str) -> String {
    let (provider, types) = kind.split_once('/').unwrap_or((kind, ""));
    let pairs = types.split('/').zip(name.split('/'));
    let tail: String = pairs
        .map(|(kind, name)| format!("/{kind}/{name}"))
        .collect();
    format!("/subscriptions/-/providers/{provider}{tail}")
}

//! ARM templates worked out: deployments, their resources, and the expressions in them.
//!
//! ```text
//!  template ─► deployment ─► resources, one for each turn of a loop ─► members, where asked for
//!              parameters    nested deployments among them
//! ```
//! Nothing is worked out before it is needed: what a load balancer has no use for, such as a vm's password,
//! needs no value. An expression that has none becomes [`Value::Unresolved`], which says why.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::expression::{self, Expression};
use super::functions::{self, Arguments, LONGEST};
use super::json::{Failure, Node, Notes, Unresolved, Value};

/// Values that all expressions together may produce. Variables that refer to each other twice would
/// otherwise grow without bound.
const MOST_WORK: usize = 1 << 22;
/// Deepest nesting of values, expressions and references.
const DEEPEST: u32 = 128;
/// The most turns of a loop, Azure's own bound.
const MOST_COPIES: i64 = 800;
/// The most deployments within each other and beside each other.
const MOST_DEPLOYMENTS: usize = 256;

/// The most deployments that are read one because of another: what names and counts refer to is no
/// resource, by Azure's own rules.
const MOST_READING: u32 = 4;

/// The type of a resource that is a template of its own.
const DEPLOYMENT: &str = "microsoft.resources/deployments";

type Outcome = Result<Value, Failure>;

/// The turns of the loops around a value, the innermost last.
type Loops = Vec<Turn>;

/// A turn of a loop.
#[derive(Clone, Debug)]
struct Turn {
    name: String,
    index: i64,
    /// Whether the loop makes resources rather than what is in one.
    is_of_resources: bool,
}

/// All templates that are imported together.
#[derive(Debug)]
pub(super) struct Templates<'n> {
    notes: &'n Notes,
    /// Templates by the names of their files, for deployments that link to them.
    files: Vec<(String, Node)>,
    deployments: RefCell<Vec<Rc<Deployment>>>,
    /// The functions that gave another value than Azure's, each said once.
    stand_ins: RefCell<Vec<String>>,
    work: Cell<usize>,
    /// Number of deployments whose resources are being read, each on behalf of the one before.
    reading: Cell<u32>,
}

/// A template and the values of its parameters.
#[derive(Debug)]
struct Deployment {
    root: Node,
    given: Vec<(String, Node)>,
    /// Parent deployment and its loops, for a nested template with outer scope.
    outer: Option<(usize, Loops)>,
    resources: RefCell<Resources>,
}

#[derive(Clone, Debug)]
enum Resources {
    Unread,
    /// Their counts are being worked out.
    Reading,
    Read(Rc<Vec<Rc<Resource>>>),
}

/// A resource of a deployment, of one turn of its loop.
#[derive(Debug)]
pub(super) struct Resource {
    raw: Rc<Node>,
    deployment: usize,
    loops: Loops,
    /// The type, with the parents' in front.
    pub(super) kind: Result<String, Failure>,
    /// The name, with the parents' in front.
    pub(super) name: Result<String, Failure>,
    symbol: Option<String>,
    /// Deployment of the nested or linked template, if the resource is one.
    inner: RefCell<Inner>,
}

#[derive(Clone, Debug)]
enum Inner {
    Unread,
    Reading,
    Read(Result<usize, Failure>),
}

/// Names that an expression can refer to.
#[derive(Clone, Copy)]
struct Context<'c> {
    deployment: usize,
    loops: &'c Loops,
    /// Parameters of the user-defined function that is being evaluated; it sees nothing else.
    own: Option<&'c [(String, Value)]>,
    /// The variables of the lambdas around it.
    lambdas: &'c [(String, Value)],
    depth: u32,
}

impl Context<'_> {
    fn deeper(&self) -> Self {
        Self {
            depth: self.depth + 1,
            ..*self
        }
    }
}

fn other(message: impl Into<String>) -> Failure {
    Failure::Other(message.into())
}

impl<'n> Templates<'n> {
    /// Templates that deploy nothing yet. `files` are those that a deployment may link to.
    pub(super) fn new(files: Vec<(String, Node)>, notes: &'n Notes) -> Self {
        Self {
            notes,
            files,
            deployments: RefCell::default(),
            stand_ins: RefCell::default(),
            work: Cell::new(0),
            reading: Cell::new(0),
        }
    }

    /// Deploys a template; its number.
    pub(super) fn deploy(&self, root: Node, given: Vec<(String, Node)>) -> usize {
        self.add(root, given, None)
    }

    fn add(&self, root: Node, given: Vec<(String, Node)>, outer: Option<(usize, Loops)>) -> usize {
        let mut all = self.deployments.borrow_mut();
        all.push(Rc::new(Deployment {
            root,
            given,
            outer,
            resources: RefCell::new(Resources::Unread),
        }));
        all.len() - 1
    }

    fn deployment(&self, number: usize) -> Result<Rc<Deployment>, Failure> {
        let found = self.deployments.borrow().get(number).map(Rc::clone);
        found.ok_or_else(|| other("the deployment is not known"))
    }

    fn charge(&self, values: usize) -> Result<(), Failure> {
        let work = self.work.get().saturating_add(values);
        self.work.set(work);
        if work > MOST_WORK {
            return Err(other("the template's expressions take too much work"));
        }
        Ok(())
    }

    // Resources.

    /// The resources of a deployment, those of its nested ones not included.
    fn resources(&self, number: usize) -> Result<Rc<Vec<Rc<Resource>>>, Failure> {
        let deployment = self.deployment(number)?;
        let state = deployment.resources.borrow().clone();
        match state {
            Resources::Unread if self.reading.get() < MOST_READING => {}
            Resources::Read(all) => return Ok(all),
            _ => {
                return Err(other(
                    "a resource's type, name or count refers to a resource",
                ));
            }
        }
        *deployment.resources.borrow_mut() = Resources::Reading;
        self.reading.set(self.reading.get() + 1);
        let mut all = Vec::new();
        if let Some(resources) = deployment.root.get("resources") {
            self.expand(resources, number, None, &mut all);
        }
        self.reading.set(self.reading.get() - 1);
        let all = Rc::new(all);
        *deployment.resources.borrow_mut() = Resources::Read(Rc::clone(&all));
        Ok(all)
    }

    /// Adds the resources of a list, each as often as its loop says, and their children.
    fn expand(
        &self,
        list: &Node,
        number: usize,
        parent: Option<&Resource>,
        all: &mut Vec<Rc<Resource>>,
    ) {
        let Ok(deployment) = self.deployment(number) else {
            return;
        };
        let unnamed = |node| (None, node);
        // With symbolic names, an object of them.
        let list: Vec<(Option<&String>, &Node)> = match &list.value {
            Value::Array(list) => list.iter().map(unnamed).collect(),
            Value::Object(list) => list.iter().map(|(name, node)| (Some(name), node)).collect(),
            _ => Vec::new(),
        };
        for (symbol, raw) in list {
            let loops = match (parent, &deployment.outer) {
                (Some(parent), _) => parent.loops.clone(),
                (None, Some((_, loops))) => loops.clone(),
                (None, None) => Loops::new(),
            };
            let context = Context {
                deployment: number,
                loops: &loops,
                own: None,
                lambdas: &[],
                depth: 0,
            };
            let kind = self.word(raw, "type", &context);
            let turns = match raw.get("copy") {
                None => Ok(vec![loops.clone()]),
                Some(copy) => self.turns(copy, &context, true),
            };
            let turns = match turns {
                Ok(turns) => turns,
                Err(failure) => {
                    // The number of resources that no load balancer uses does not matter.
                    if kind.as_ref().is_ok_and(|kind| matters(kind, raw, parent)) {
                        let copy = raw.get("copy").unwrap_or(raw);
                        let place = raw
                            .get("name")
                            .map_or(String::new(), |n| n.value.describe());
                        let message = format!("copy: {failure}");
                        let place = format!("resource {place}");
                        self.notes.unresolved(copy, &place, message, &failure);
                    }
                    continue;
                }
            };
            if self.charge(size_of(raw)).is_err() {
                return;
            }
            let raw = Rc::new(raw.clone());
            for loops in turns {
                let context = Context {
                    loops: &loops,
                    ..context
                };
                let name = self.word(&raw, "name", &context);
                // A child's type and name may be whole.
                let parent = parent.filter(|_| !kind.as_ref().is_ok_and(|kind| kind.contains('.')));
                let joined = |outer: Option<&Result<String, Failure>>,
                              own: &Result<String, Failure>| {
                    match outer {
                        None => own.clone(),
                        Some(outer) => Ok(format!("{}/{}", outer.clone()?, own.clone()?)),
                    }
                };
                let resource = Rc::new(Resource {
                    raw: Rc::clone(&raw),
                    deployment: number,
                    kind: joined(parent.map(|parent| &parent.kind), &kind),
                    name: joined(parent.map(|parent| &parent.name), &name),
                    symbol: symbol.cloned(),
                    inner: RefCell::new(Inner::Unread),
                    loops,
                });
                all.push(Rc::clone(&resource));
                let depth = resource
                    .kind
                    .as_ref()
                    .map_or(0, |kind| kind.matches('/').count());
                if let Some(children) = raw.get("resources")
                    && depth < 8
                {
                    self.expand(children, number, Some(&resource), all);
                }
                if self.charge(1).is_err() {
                    return;
                }
            }
        }
    }

    /// The turns of a loop: what `copy` counts.
    fn turns(
        &self,
        copy: &Node,
        context: &Context<'_>,
        is_of_resources: bool,
    ) -> Result<Vec<Loops>, Failure> {
        let name = match copy.get("name") {
            Some(_) => self.word(copy, "name", context)?,
            None => String::new(),
        };
        let count = copy.get("count").ok_or_else(|| other("count is missing"))?;
        let count = match self.resolve(count, context).value {
            Value::Number(text) => text.parse::<i64>().ok(),
            Value::Unresolved(unresolved) => return Err(unresolved.failure),
            _ => None,
        };
        let count = count.filter(|count| (0..=MOST_COPIES).contains(count));
        let count =
            count.ok_or_else(|| other(format!("expected a count of 0 to {MOST_COPIES}")))?;
        let turn = |index| {
            let mut loops = context.loops.clone();
            loops.push(Turn {
                name: name.clone(),
                index,
                is_of_resources,
            });
            loops
        };
        Ok((0..count).map(turn).collect())
    }

    /// A member that is a text.
    fn word(&self, node: &Node, name: &str, context: &Context<'_>) -> Result<String, Failure> {
        let node = node
            .get(name)
            .ok_or_else(|| other(format!("{name} is missing")))?;
        match self.resolve(node, context).value {
            Value::String(text) => Ok(text),
            Value::Unresolved(unresolved) => Err(unresolved.failure),
            value => Err(other(format!(
                "expected a string as {name}, got {}",
                value.describe()
            ))),
        }
    }

    /// Whether a template took so much work that some of it was not looked at.
    pub(super) fn is_exhausted(&self) -> bool {
        self.work.get() > MOST_WORK
    }

    /// Hands the resources of a deployment out, in their order, those of nested deployments in the place
    /// where these stand.
    pub(super) fn visit(&self, number: usize, take: &mut dyn FnMut(&Self, &Resource)) {
        let Ok(resources) = self.resources(number) else {
            return;
        };
        for resource in resources.iter() {
            let is_deployment =
                matches!(&resource.kind, Ok(kind) if kind.eq_ignore_ascii_case(DEPLOYMENT));
            let is_relevant = match &resource.kind {
                Ok(kind) => matters(kind, &resource.raw, None),
                Err(failure) => {
                    let node = resource.raw.get("type").unwrap_or(&resource.raw);
                    // Parts of a load balancer have no type.
                    if resource.raw.get("type").is_some() {
                        let message = format!("type: {failure}");
                        self.notes.unresolved(node, "resource", message, failure);
                    }
                    resource.raw.get("type").is_none()
                }
            };
            if is_relevant && !self.is_deployed(resource) {
                continue;
            }
            if !is_deployment {
                take(self, resource);
                continue;
            }
            match self.inner(resource, 0) {
                Ok(inner) => self.visit(inner, take),
                Err(failure) => {
                    let place = format!("deployment {:?}", resource.name.as_deref().unwrap_or("?"));
                    let message = failure.to_string();
                    self.notes
                        .unresolved(&resource.raw, &place, message, &failure);
                }
            }
        }
    }

    /// Whether a resource's condition holds, and it is made rather than only referred to.
    fn is_deployed(&self, resource: &Resource) -> bool {
        let context = resource.context();
        if let Some(existing) = resource.raw.get("existing")
            && matches!(self.resolve(existing, &context).value, Value::Bool(true))
        {
            return false;
        }
        let Some(condition) = resource.raw.get("condition") else {
            return true;
        };
        let place = || format!("resource {:?}", resource.name.as_deref().unwrap_or("?"));
        match self.resolve(condition, &context).value {
            Value::Bool(value) => value,
            Value::String(text) if text.eq_ignore_ascii_case("true") => true,
            Value::String(text) if text.eq_ignore_ascii_case("false") => false,
            value => {
                let message = format!(
                    "condition: expected true or false, got {}",
                    value.describe()
                );
                match &value {
                    Value::Unresolved(unresolved) => {
                        let why = &unresolved.failure;
                        self.notes.unresolved(condition, &place(), message, why);
                    }
                    _ => self.notes.error(condition, &place(), message),
                }
                false
            }
        }
    }

    /// The deployment that a resource is.
    fn inner(&self, resource: &Resource, depth: u32) -> Result<usize, Failure> {
        match resource.inner.replace(Inner::Reading) {
            Inner::Unread => {}
            Inner::Reading => return Err(other("the deployment refers to itself")),
            Inner::Read(known) => {
                *resource.inner.borrow_mut() = Inner::Read(known.clone());
                return known;
            }
        }
        let made = self.deploy_inner(resource, depth);
        *resource.inner.borrow_mut() = Inner::Read(made.clone());
        made
    }

    fn deploy_inner(&self, resource: &Resource, depth: u32) -> Result<usize, Failure> {
        if self.deployments.borrow().len() >= MOST_DEPLOYMENTS {
            return Err(other(format!(
                "expected at most {MOST_DEPLOYMENTS} deployments"
            )));
        }
        let context = Context {
            depth,
            ..resource.context()
        };
        let get = |path: &[&str]| self.at(&resource.raw, path, &context);
        let mut given = Vec::new();
        if let Some(Value::Object(members)) = resource
            .raw
            .get("properties")
            .and_then(|p| p.get("parameters"))
            .map(|p| &p.value)
        {
            for (name, parameter) in members {
                let value = parameter
                    .get("value")
                    .map(|value| self.resolve(value, &context));
                given.extend(value.map(|value| (name.clone(), value)));
            }
        }
        if let Some(link) = get(&["properties", "templateLink"]) {
            let uri = link.get("uri").or_else(|| link.get("relativePath"));
            let uri = uri.or_else(|| link.get("id"));
            let uri = match uri.map(|uri| &uri.value) {
                Some(Value::String(uri)) => uri,
                Some(Value::Unresolved(unresolved)) => return Err(unresolved.failure.clone()),
                _ => return Err(other("templateLink: uri is missing")),
            };
            let file = file_name(uri);
            let known = self
                .files
                .iter()
                .find(|(own, _)| file_name(own).eq_ignore_ascii_case(file));
            let (_, root) = known.ok_or_else(|| {
                other(format!(
                    "templateLink: the template {file:?} is not among the files given"
                ))
            })?;
            return Ok(self.add(root.clone(), given, None));
        }
        let options = ["properties", "expressionEvaluationOptions", "scope"];
        let scope = get(&options);
        let is_inner = scope.and_then(|scope| Some(scope.as_str()?.eq_ignore_ascii_case("inner")));
        let template = resource
            .raw
            .get("properties")
            .and_then(|p| p.get("template"));
        let template = template.ok_or_else(|| other("template is missing"))?;
        // A template may be a variable.
        let template = match &template.value {
            Value::String(_) => self.resolve(template, &context),
            _ => template.clone(),
        };
        match &template.value {
            Value::Object(_) => {}
            Value::Unresolved(unresolved) => return Err(unresolved.failure.clone()),
            value => {
                let message = format!("expected an object as template, got {}", value.describe());
                return Err(other(message));
            }
        }
        let outer = (is_inner != Some(true)).then(|| (resource.deployment, resource.loops.clone()));
        Ok(self.add(template, given, outer))
    }

    /// A resource with the members that are asked for worked out, as one stands by itself: its whole type
    /// and name, and of its properties those at `paths`; all of them where there are none.
    pub(super) fn work_out(&self, resource: &Resource, paths: &[&[&str]]) -> Node {
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
                let is_of_use = paths.is_empty() || is_one_of(name, &["properties", "sku"]);
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
        }
    }

    /// An object with nothing but what stands at some paths in it.
    fn only(&self, node: &Node, paths: &[&[&str]], context: &Context<'_>) -> Node {
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
    fn at(&self, node: &Node, path: &[&str], context: &Context<'_>) -> Option<Node> {
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

    // Values.

    /// A value with the expressions in it worked out.
    fn resolve(&self, node: &Node, context: &Context<'_>) -> Node {
        let context = &context.deeper();
        let room = match context.depth {
            0..=DEEPEST => self.charge(1),
            _ => Err(other("it refers to itself, or lies too deep")),
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

    fn members(&self, members: &[(String, Node)], context: &Context<'_>) -> Vec<(String, Node)> {
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

    /// The member that a loop makes: `{ "name": ..., "count": ..., "input": ... }`.
    fn made_by_loop(&self, copy: &Node, context: &Context<'_>) -> (String, Node) {
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

    fn text(&self, node: &Node, text: &str, context: &Context<'_>) -> Value {
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

    fn evaluate(&self, expression: &Expression, node: &Node, context: &Context<'_>) -> Outcome {
        self.charge(1)?;
        let context = &context.deeper();
        if context.depth > DEEPEST {
            return Err(other("it refers to itself, or lies too deep"));
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
                        "{name:?} is not in the resource that it refers to: Azure says it once it is deployed"
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

    fn call(
        &self,
        function: &str,
        arguments: &[Expression],
        node: &Node,
        context: &Context<'_>,
    ) -> Outcome {
        // These look at some of their arguments only.
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
                None => format!("the function {function:?} is not known here"),
            }))
        });
        if let Ok(Value::Array(made)) = &outcome {
            self.charge(made.len())?;
        }
        outcome
    }

    fn lazy(
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

    /// `map(list, lambda('each', ...))` and `filter` alike.
    fn for_each(
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

    /// The functions that know the template.
    fn of_template(&self, a: &Arguments<'_>, context: &Context<'_>) -> Option<Outcome> {
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
        const HASH: &str = "not public: a text of the same length is used instead";
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
                count.map(|count| {
                    let zones =
                        (1..=count.clamp(0, 3)).map(|zone| a.node(Value::String(zone.to_string())));
                    Value::Array(zones.collect())
                })
            }
            _ => return None,
        })
    }

    /// A parameter's value: what was given, or its default.
    fn parameter(&self, name: &str, context: &Context<'_>) -> Outcome {
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
            (None, Some(default)) => self.resolve(default, context).value,
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

    fn variable(&self, name: &str, context: &Context<'_>) -> Outcome {
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

    /// A function of the template's own: `namespace.name`.
    fn own_function(&self, a: &Arguments<'_>, context: &Context<'_>) -> Outcome {
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
        let mut own = Vec::new();
        for (place, declared) in declared.iter().enumerate() {
            let name = declared
                .get("name")
                .and_then(Node::as_str)
                .unwrap_or_default();
            own.push((name.to_owned(), a.get(place)?.clone()));
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

    /// A resource of the templates: by its id, its type and name, its name, or its symbolic name.
    fn find(&self, key: &str, context: &Context<'_>) -> Result<Rc<Resource>, Failure> {
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

    /// `reference`: the properties of a resource, or all of it.
    fn reference(&self, a: &Arguments<'_>, context: &Context<'_>) -> Outcome {
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
    fn outputs(&self, resource: &Resource, a: &Arguments<'_>, depth: u32) -> Outcome {
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

    /// An output's loop has no name of its own.
    fn output_loop(&self, copy: &Node, context: &Context<'_>) -> Node {
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

impl Resource {
    fn context(&self) -> Context<'_> {
        Context {
            deployment: self.deployment,
            loops: &self.loops,
            own: None,
            lambdas: &[],
            depth: 0,
        }
    }

    /// Returns the resource as written in the file.
    pub(super) fn node(&self) -> &Node {
        &self.raw
    }

    /// The type as it is written, the parents' in front; empty where there is none.
    pub(super) fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or_default()
    }
}

/// Whether a resource may be a part of a load balancer, or lead to one.
fn matters(kind: &str, raw: &Node, parent: Option<&Resource>) -> bool {
    const VM: &str = "microsoft.compute/virtualmachines";
    let kind = match parent {
        Some(parent) => format!("{}/{kind}", parent.kind()),
        None => kind.to_owned(),
    };
    let kind = kind.to_ascii_lowercase();
    if kind == VM {
        // Most have network interfaces that are resources of their own.
        let profile = raw.get("properties").and_then(|p| p.get("networkProfile"));
        return profile.is_some_and(|p| p.get("networkInterfaceConfigurations").is_some());
    }
    kind == DEPLOYMENT
        || kind.starts_with("microsoft.network/loadbalancers/")
        || super::resources::KINDS
            .iter()
            .any(|(known, _)| kind == *known)
}

fn unresolved(text: &str, failure: Failure) -> Value {
    let text = text.chars().take(200).collect();
    Value::Unresolved(Box::new(Unresolved { text, failure }))
}

/// A value, unless it is one that could not be worked out.
fn known(value: Value) -> Outcome {
    match value {
        Value::Unresolved(unresolved) => Err(unresolved.failure),
        value => Ok(value),
    }
}

fn found_or(found: Option<Value>, message: impl FnOnce() -> String) -> Outcome {
    match found {
        Some(value) => known(value),
        None => Err(other(message())),
    }
}

/// The number of values in a value.
fn size_of(node: &Node) -> usize {
    1 + match &node.value {
        Value::Array(elements) => elements.iter().map(size_of).sum(),
        Value::Object(members) => members.iter().map(|(_, node)| size_of(node)).sum(),
        Value::String(text) => text.len() / LONGEST,
        _ => 0,
    }
}

/// A parameter's value in the type that is declared: files and portals give numbers as strings.
fn as_declared(declared: &Node, value: Value) -> Value {
    let kind = declared
        .get("type")
        .and_then(Node::as_str)
        .unwrap_or_default();
    match (kind.to_ascii_lowercase().as_str(), value) {
        ("int", Value::String(text)) if text.parse::<i64>().is_ok() => Value::Number(text),
        ("bool", Value::String(text)) if text.eq_ignore_ascii_case("true") => Value::Bool(true),
        ("bool", Value::String(text)) if text.eq_ignore_ascii_case("false") => Value::Bool(false),
        (_, value) => value,
    }
}

/// A value that its parameter may not have is one that Azure refuses.
fn check_declared(name: &str, declared: &Node, value: &Value) -> Result<(), Failure> {
    let fault = |expected: &str| {
        let got = value.describe();
        Err(other(format!(
            "parameter {name:?}: expected {expected}, got {got}"
        )))
    };
    let allowed = declared
        .get("allowedValues")
        .map(Node::as_array)
        .unwrap_or_default();
    let is_scalar = matches!(value, Value::String(_) | Value::Number(_) | Value::Bool(_));
    if is_scalar
        && !allowed.is_empty()
        && !allowed.iter().any(|a| functions::is_equal(&a.value, value))
    {
        let words: Vec<String> = allowed.iter().map(|a| a.value.describe()).collect();
        return fault(&format!("one of {}", words.join(", ")));
    }
    let bound = |name| match declared.get(name).map(|node| &node.value) {
        Some(Value::Number(text)) => text.parse::<i64>().ok(),
        _ => None,
    };
    let (least, most) = (bound("minValue"), bound("maxValue"));
    if let Value::Number(text) = value
        && let Ok(number) = text.parse::<i64>()
        && (least.is_some_and(|least| number < least) || most.is_some_and(|most| number > most))
    {
        let (least, most) = (least.unwrap_or(i64::MIN), most.unwrap_or(i64::MAX));
        return fault(&format!("{least} to {most}"));
    }
    Ok(())
}

/// `copyIndex()`, `copyIndex(offset)`, `copyIndex('loop')`, `copyIndex('loop', offset)`.
fn copy_index(a: &Arguments<'_>, context: &Context<'_>) -> Outcome {
    let (name, offset) = match a.all.first() {
        Some(Value::String(name)) => (Some(name.as_str()), 1),
        _ => (None, 0),
    };
    let offset = if a.count() > offset {
        a.number(offset)?
    } else {
        0
    };
    let mut turns = context.loops.iter().rev();
    let turn = match name {
        Some(name) => turns.find(|turn| turn.name.eq_ignore_ascii_case(name)),
        // Without a name, the loop of the resource counts: inner loops have names.
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
    let number = number.ok_or_else(|| a.fault("the result is no integer of 64 bits"))?;
    Ok(Value::Number(number.to_string()))
}

/// Type and name of an id, or of a type and a name: `Microsoft.Network/loadBalancers/lb`.
fn split_id(id: &str) -> Option<(String, String)> {
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

/// The id of a resource, as `resourceId` makes it.
fn id_of(kind: &str, name: &str) -> String {
    let (provider, types) = kind.split_once('/').unwrap_or((kind, ""));
    let pairs = types.split('/').zip(name.split('/'));
    let tail: String = pairs
        .map(|(kind, name)| format!("/{kind}/{name}"))
        .collect();
    format!("/subscriptions/-/providers/{provider}{tail}")
}

/// The last part of a path or an address, without what is asked of it.
pub(super) fn file_name(path: &str) -> &str {
    let path = path.split(['?', '#']).next().unwrap_or(path);
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

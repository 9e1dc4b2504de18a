//! Evaluation of ARM templates: deployments, their resources, and the expressions in them.
//!
//! ```text
//!  template ─► deployment ─► resources, one for each turn of a loop ─► members, where asked for
//!              parameters    nested deployments among them
//! ```
//! Evaluation is lazy: values that load balancers do not use, such as a vm's password, need not
//! exist. An expression without a value becomes [`Value::Unresolved`], with the reason.

mod declared;
mod deploy;
mod evaluate;
mod names;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::functions::LONGEST;
use super::json::{Failure, Node, Notes, Unresolved, Value};

/// The maximum number of values that all expressions together may produce. Variables that refer to
/// each other twice would otherwise grow exponentially.
const MOST_WORK: usize = 1 << 22;
/// Deepest nesting of values, expressions and references.
const DEEPEST: u32 = 128;
/// The maximum number of iterations of a loop, by Azure's limit.
const MOST_COPIES: i64 = 800;
/// The maximum number of deployments in total.
const MOST_DEPLOYMENTS: usize = 256;

/// The maximum depth of deployments that are read because of another one: by Azure's rules, names
/// and counts must not refer to resources.
const MOST_READING: u32 = 4;

/// The type of resources that contain a template.
const DEPLOYMENT: &str = "microsoft.resources/deployments";

type Outcome = Result<Value, Failure>;

/// The iterations of the loops around a value, the innermost last.
type Loops = Vec<Turn>;

/// An iteration of a loop.
#[derive(Clone, Debug)]
struct Turn {
    name: String,
    index: i64,
    /// True if the loop creates resources instead of values within a resource.
    is_of_resources: bool,
}

/// All templates that are imported together.
#[derive(Debug)]
pub(super) struct Templates<'n> {
    notes: &'n Notes,
    /// Templates by the names of their files, for deployments that link to them.
    files: Vec<(String, Node)>,
    deployments: RefCell<Vec<Rc<Deployment>>>,
    /// The functions that returned placeholders, each reported once.
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
    /// The counts are being evaluated.
    Reading,
    Read(Rc<Vec<Rc<Resource>>>),
}

/// A resource of a deployment, for one iteration of its loop.
#[derive(Debug)]
pub(super) struct Resource {
    raw: Rc<Node>,
    deployment: usize,
    loops: Loops,
    /// The type, with the parents' as a prefix.
    pub(super) kind: Result<String, Failure>,
    /// The name, with the parents' as a prefix.
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
    /// The variables of the enclosing lambdas.
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
    /// Makes templates without deployments. `files` are the templates that deployments may link to.
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

    /// Deploys a template, and returns its number.
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
        found.ok_or_else(|| other("the deployment does not exist"))
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

    /// Returns the resources of a deployment, without those of nested deployments.
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

    /// Adds the resources of a list, with the copies that their loops make, and their children.
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
        // With symbolic names, the resources are an object.
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
                    // Resources that no load balancer uses need not be counted.
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
                // A child's type and name may be complete.
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

    /// Returns the iterations of a `copy` loop.
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

    /// Returns a member that is a text.
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

    /// Returns true if evaluation stopped because a template takes too much work.
    pub(super) fn is_exhausted(&self) -> bool {
        self.work.get() > MOST_WORK
    }

    // Values.
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

    /// Returns the type as written, with the parents' as a prefix; empty if there is none.
    pub(super) fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or_default()
    }
}

/// Returns true if a resource may be a part of a load balancer, or lead to one.
fn matters(kind: &str, raw: &Node, parent: Option<&Resource>) -> bool {
    const VM: &str = "microsoft.compute/virtualmachines";
    let kind = match parent {
        Some(parent) => format!("{}/{kind}", parent.kind()),
        None => kind.to_owned(),
    };
    let kind = kind.to_ascii_lowercase();
    if kind == VM {
        // The network interfaces of most vms are separate resources.
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

/// Returns a value, unless it could not be evaluated.
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

/// Returns the number of values in a value.
fn size_of(node: &Node) -> usize {
    1 + match &node.value {
        Value::Array(elements) => elements.iter().map(size_of).sum(),
        Value::Object(members) => members.iter().map(|(_, node)| size_of(node)).sum(),
        Value::String(text) => text.len() / LONGEST,
        _ => 0,
    }
}

/// Returns the last segment of a path or URL, without its query.
pub(super) fn file_name(path: &str) -> &str {
    let path = path.split(['?', '#']).next().unwrap_or(path);
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

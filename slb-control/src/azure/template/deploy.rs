//! Resources and nested deployments whose conditions are true.

use super::super::json::{Failure, Value};
use super::{
    Context, DEPLOYMENT, Inner, MOST_DEPLOYMENTS, Resource, Templates, file_name, matters, other,
};

impl Templates<'_> {
    /// Passes the resources of a deployment to `take` in their order; a nested deployment is
    /// replaced by its resources.
    pub(in crate::azure) fn visit(&self, number: usize, take: &mut dyn FnMut(&Self, &Resource)) {
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

    /// Returns true if a resource's condition is true, and the resource is not `existing`.
    pub(super) fn is_deployed(&self, resource: &Resource) -> bool {
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

    /// Returns the deployment of a resource.
    pub(super) fn inner(&self, resource: &Resource, depth: u32) -> Result<usize, Failure> {
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

    pub(super) fn deploy_inner(&self, resource: &Resource, depth: u32) -> Result<usize, Failure> {
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
}

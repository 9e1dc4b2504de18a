//! Expressions of ARM templates, worked out: `[concat('a', parameters('b'))]`.
//!
//! Those functions are known that name things and count them. An expression that has another stays
//! as it is: who needs its value says so.

use std::cell::Cell;

use super::json::{Node, Value};

/// Longest text that an expression may become, and how much work all of them may take: a template can
/// name itself twice, again and again.
const LONGEST: usize = 16 << 10;
const MOST_WORK: u32 = 1 << 20;
const DEEPEST: u32 = 64;
/// Most copies of a resource.
const MOST_COPIES: u32 = 1000;

/// What expressions may refer to.
#[derive(Debug)]
pub(super) struct Template<'n> {
    root: &'n Node,
    /// Parameter files' `parameters`.
    given: Vec<&'n Node>,
    work: Cell<u32>,
}

impl<'n> Template<'n> {
    pub(super) fn new(root: &'n Node, given: Vec<&'n Node>) -> Self {
        Self {
            root,
            given,
            work: Cell::new(0),
        }
    }

    /// A resource with its expressions worked out, as often as its `copy` says.
    pub(super) fn resources(&self, node: &Node) -> Vec<Node> {
        let count = node.get("copy").and_then(|copy| copy.get("count"));
        let Some(count) = count else {
            return vec![self.resolve(node, 0, 0)];
        };
        let count = match self.resolve(count, 0, 0).value {
            Value::Number(text) | Value::String(text) => text.parse().unwrap_or(1),
            _ => 1,
        };
        let copies = 0..MOST_COPIES.min(count);
        copies.map(|index| self.resolve(node, index, 0)).collect()
    }

    /// A value with the expressions in it worked out.
    fn resolve(&self, node: &Node, copy: u32, depth: u32) -> Node {
        let value = match &node.value {
            Value::String(text) => self.text(text, copy, depth),
            Value::Array(elements) => {
                let elements = elements.iter();
                Value::Array(elements.map(|e| self.resolve(e, copy, depth)).collect())
            }
            Value::Object(members) => {
                let members = members.iter();
                let member =
                    |(name, node): &(String, Node)| (name.clone(), self.resolve(node, copy, depth));
                Value::Object(members.map(member).collect())
            }
            plain => plain.clone(),
        };
        Node {
            value,
            ..node.clone()
        }
    }

    fn text(&self, text: &str, copy: u32, depth: u32) -> Value {
        let unchanged = || Value::String(text.to_owned());
        if let Some(escaped) = text.strip_prefix("[[") {
            return Value::String(format!("[{escaped}"));
        }
        let inside = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        let Some(inside) = inside else {
            return unchanged();
        };
        let mut reader = Reader {
            rest: inside,
            template: self,
            copy,
        };
        let value = reader.expression(depth + 1);
        match value {
            Some(value) if reader.rest.trim().is_empty() => value,
            _ => unchanged(),
        }
    }

    /// A parameter's value: what was given, or its default.
    fn parameter(&self, name: &str) -> Option<&'n Node> {
        let given = self.given.iter().find_map(|given| given.get(name));
        let given = given.and_then(|parameter| parameter.get("value"));
        given.or_else(|| self.root.get("parameters")?.get(name)?.get("defaultValue"))
    }
}

/// Reads an expression from its front.
struct Reader<'r, 'n> {
    rest: &'r str,
    template: &'r Template<'n>,
    copy: u32,
}

impl Reader<'_, '_> {
    fn eat(&mut self, token: char) -> bool {
        let rest = self.rest.trim_start();
        let after = rest.strip_prefix(token);
        self.rest = after.unwrap_or(rest);
        after.is_some()
    }

    /// Letters and digits.
    fn word(&mut self) -> Option<String> {
        let rest = self.rest.trim_start();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        self.rest = after;
        (!word.is_empty()).then(|| word.to_owned())
    }

    fn expression(&mut self, depth: u32) -> Option<Value> {
        let work = &self.template.work;
        work.set(work.get() + 1);
        if depth > DEEPEST || work.get() > MOST_WORK {
            return None;
        }
        let mut value = if self.eat('\'') {
            self.literal()?
        } else {
            let word = self.word()?;
            if self.eat('(') {
                let arguments = self.arguments(depth)?;
                self.call(&word, &arguments, depth)?
            } else {
                word.parse::<u32>().ok()?;
                Value::Number(word)
            }
        };
        loop {
            if self.eat('.') {
                let member = self.word()?;
                value = member_of(&value, &member)?;
            } else if self.eat('[') {
                let index = self.expression(depth + 1)?;
                self.eat(']').then_some(())?;
                value = match (&value, &index) {
                    (Value::Array(elements), Value::Number(number)) => {
                        elements.get(number.parse::<usize>().ok()?)?.value.clone()
                    }
                    (_, Value::String(name)) => member_of(&value, name)?,
                    _ => return None,
                };
            } else {
                return Some(value);
            }
        }
    }

    /// The rest of a string: two quotes are one.
    fn literal(&mut self) -> Option<Value> {
        let mut text = String::new();
        loop {
            let end = self.rest.find('\'')?;
            text.push_str(self.rest.get(..end)?);
            self.rest = self.rest.get(end + 1..)?;
            match self.rest.strip_prefix('\'') {
                Some(rest) => self.rest = rest,
                None => return Some(Value::String(text)),
            }
            text.push('\'');
        }
    }

    fn arguments(&mut self, depth: u32) -> Option<Vec<Value>> {
        let mut all = Vec::new();
        if self.eat(')') {
            return Some(all);
        }
        loop {
            all.push(self.expression(depth + 1)?);
            if self.eat(')') {
                return Some(all);
            }
            self.eat(',').then_some(())?;
        }
    }

    fn call(&self, function: &str, arguments: &[Value], depth: u32) -> Option<Value> {
        let text = |place: usize| arguments.get(place).and_then(as_text);
        let number = |place: usize| text(place)?.parse::<i64>().ok();
        let counted = |number: Option<i64>| Some(Value::Number(number?.to_string()));
        let template = self.template;
        match function.to_ascii_lowercase().as_str() {
            "parameters" => {
                let node = template.parameter(&text(0)?)?;
                Some(template.resolve(node, self.copy, depth).value)
            }
            "variables" => {
                let node = template.root.get("variables")?.get(&text(0)?)?;
                Some(template.resolve(node, self.copy, depth).value)
            }
            "concat" => concat(arguments),
            "format" => format_text(&text(0)?, arguments),
            "resourceid" | "subscriptionresourceid" => resource_id(arguments),
            "copyindex" => {
                // copyIndex(), copyIndex(offset), copyIndex('loop', offset)
                let offset = number(0).or_else(|| number(1)).unwrap_or(0);
                counted(i64::from(self.copy).checked_add(offset))
            }
            "tolower" => Some(Value::String(text(0)?.to_lowercase())),
            "toupper" => Some(Value::String(text(0)?.to_uppercase())),
            "string" => Some(Value::String(text(0)?)),
            "int" => counted(number(0)),
            "add" => counted(number(0)?.checked_add(number(1)?)),
            "sub" => counted(number(0)?.checked_sub(number(1)?)),
            "mul" => counted(number(0)?.checked_mul(number(1)?)),
            "div" => counted(number(0)?.checked_div(number(1)?)),
            "mod" => counted(number(0)?.checked_rem(number(1)?)),
            "equals" => Some(Value::Bool(text(0)? == text(1)?)),
            "not" => Some(Value::Bool(!truth(arguments.first()?)?)),
            "if" => arguments
                .get(if truth(arguments.first()?)? { 1 } else { 2 })
                .cloned(),
            "length" => match arguments.first()? {
                Value::Array(elements) => Some(Value::Number(elements.len().to_string())),
                other => Some(Value::Number(as_text(other)?.len().to_string())),
            },
            _ => None,
        }
    }
}

fn member_of(value: &Value, name: &str) -> Option<Value> {
    let Value::Object(members) = value else {
        return None;
    };
    let found = members
        .iter()
        .find(|(own, _)| own.eq_ignore_ascii_case(name));
    found.map(|(_, node)| node.value.clone())
}

fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) | Value::Number(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        _ => None,
    }
}

fn bounded(text: String) -> Option<Value> {
    (text.len() <= LONGEST).then_some(Value::String(text))
}

fn concat(arguments: &[Value]) -> Option<Value> {
    if let Some(Value::Array(_)) = arguments.first() {
        let mut all = Vec::new();
        for argument in arguments {
            let Value::Array(elements) = argument else {
                return None;
            };
            if all.len() + elements.len() > LONGEST {
                return None;
            }
            all.extend(elements.iter().cloned());
        }
        return Some(Value::Array(all));
    }
    let texts: Option<Vec<String>> = arguments.iter().map(as_text).collect();
    bounded(texts?.concat())
}

/// `{0}` is the first argument behind the format.
fn format_text(format: &str, arguments: &[Value]) -> Option<Value> {
    let mut out = String::new();
    let mut rest = format;
    while let Some(start) = rest.find('{') {
        let (before, after) = rest.split_at(start);
        out.push_str(before);
        let (index, after) = after.strip_prefix('{')?.split_once('}')?;
        let index: usize = index.parse().ok()?;
        out.push_str(&as_text(arguments.get(index.checked_add(1)?)?)?);
        rest = after;
        if out.len() > LONGEST {
            return None;
        }
    }
    out.push_str(rest);
    bounded(out)
}

/// `resourceId('Microsoft.Network/loadBalancers/probes', 'lb', 'probe')`: types and names in turn.
/// Subscription and group may stand before the type; they make no difference here.
fn resource_id(arguments: &[Value]) -> Option<Value> {
    let texts: Option<Vec<String>> = arguments.iter().map(as_text).collect();
    let texts = texts?;
    let at = texts.iter().position(|text| text.contains('/'))?;
    let (kind, names) = texts.get(at..)?.split_first()?;
    let mut types = kind.split('/');
    let mut id = format!("/subscriptions/-/providers/{}", types.next()?);
    for (kind, name) in types.zip(names) {
        id.push('/');
        id.push_str(kind);
        id.push('/');
        id.push_str(name);
    }
    bounded(id)
}

#[cfg(test)]
mod tests {
    use super::super::{Input, json};
    use super::*;

    const TEMPLATE: &str = r#"{
        "parameters": { "prefix": { "defaultValue": "web" }, "count": { "type": "int", "defaultValue": 3 } },
        "variables": {
            "lb": "[concat(parameters('prefix'), '-lb')]",
            "loop": "[variables('loop')]",
            "twice": "[concat(variables('lb'), variables('lb'))]",
            "sizes": { "small": [1, 2] }
        }
    }"#;

    fn worked_out(expression: &str) -> Value {
        let input = |text| Input {
            file: "t.json",
            text,
        };
        let root = json::parse(&input(TEMPLATE)).expect("JSON");
        let given = json::parse(&input(r#"{ "count": { "value": 5 } }"#)).expect("JSON");
        let template = Template::new(&root, vec![&given]);
        template.text(expression, 2, 0)
    }

    #[test]
    fn what_names_and_counts_is_worked_out() {
        for (expression, expected) in [
            ("plain", "plain"),
            ("[[literal]", "[literal]"),
            ("[variables('lb')]", "web-lb"),
            (
                "[concat('it''s ', variables('twice'))]",
                "it's web-lbweb-lb",
            ),
            (
                "[format('{0}-{1}', parameters('prefix'), copyIndex(1))]",
                "web-3",
            ),
            ("[toUpper( if(equals(1, 2), 'a', 'b') )]", "B"),
            (
                "[resourceId('Microsoft.Network/loadBalancers/probes', variables('lb'), 'p')]",
                "/subscriptions/-/providers/Microsoft.Network/loadBalancers/web-lb/probes/p",
            ),
        ] {
            let value = worked_out(expression);
            assert_eq!(as_text(&value).as_deref(), Some(expected), "{expression}");
        }
        let counted = worked_out("[add(parameters('count'), variables('sizes').small[1])]");
        assert!(matches!(counted, Value::Number(number) if number == "7"));
    }

    #[test]
    fn what_cannot_be_worked_out_stays() {
        for expression in [
            "[reference('x').ipAddress]",
            "[concat('a'",
            "[concat('a']",
            "[parameters('none')]",
            "[variables('loop')]",
            "[add(9223372036854775807, 1)]",
            "[div(1, 0)]",
            "[format('{9}', 'a')]",
            "[]",
        ] {
            let value = worked_out(expression);
            assert_eq!(as_text(&value).as_deref(), Some(expression));
        }
    }
}

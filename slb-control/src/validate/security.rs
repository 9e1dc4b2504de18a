//! Access lists.

use std::collections::HashMap;

use slb_core::spec::{MOST_RANGES_OF_LIST, MOST_RULES_OF_LIST};

use crate::config::{Config, MOST_RULES, Role, SecurityList, SecurityRule, direction_name};
use crate::document::Faults;

/// Adds a fault where there are more lists or rules than are compiled in a few seconds, and says so.
pub(super) fn are_too_many(config: &Config, faults: &Faults<'_>) -> bool {
    let lists = &config.security_lists;
    if let Some(list) = lists.get(MOST_RULES) {
        let count = lists.len();
        let message = format!("expected at most {MOST_RULES} security lists, got {count}");
        faults.add(&list.span, "security_list", message);
        return true;
    }
    let mut rules = lists.iter().flat_map(|list| &list.rules);
    if let Some(rule) = rules.nth(MOST_RULES) {
        let count: usize = lists.iter().map(|list| list.rules.len()).sum();
        let message = format!("expected at most {MOST_RULES} security rules, got {count}");
        faults.add(&rule.span, "security_rule", message);
        return true;
    }
    for list in lists {
        if let Some(rule) = list.rules.get(MOST_RULES_OF_LIST) {
            let count = list.rules.len();
            let message = format!("expected at most {MOST_RULES_OF_LIST} rules, got {count}");
            faults.add(&rule.span, place(list), message);
            return true;
        }
        type Count = fn(&SecurityRule) -> usize;
        let fields: [(&str, Count); 4] = [
            ("sources", |rule| rule.sources.len()),
            ("destinations", |rule| rule.destinations.len()),
            ("source_ports", |rule| rule.source_ports.len()),
            ("destination_ports", |rule| rule.destination_ports.len()),
        ];
        for (field, count) in fields {
            let count: usize = list.rules.iter().map(count).sum();
            if count > MOST_RANGES_OF_LIST {
                let message = format!(
                    "expected at most {MOST_RANGES_OF_LIST} {field} in all rules together, got {count}"
                );
                faults.add(&list.span, place(list), message);
                return true;
            }
        }
    }
    false
}

pub(super) fn check(config: &Config, faults: &Faults<'_>) {
    let lists = config.security_lists.iter();
    super::unique(
        faults,
        "security_list",
        lists.map(|list| (list.name.clone(), &list.span)),
    );
    for list in &config.security_lists {
        let mut names = HashMap::new();
        let mut priorities = HashMap::new();
        for rule in &list.rules {
            let place = format!("{}: rule {:?}", place(list), rule.name);
            if let Some(line) = names.insert(&rule.name, faults.line(&rule.span)) {
                let message = format!("duplicate name: line {line} has it already");
                faults.add(&rule.span, place.clone(), message);
            }
            let rank = (rule.direction, rule.priority);
            if let Some(other) = priorities.insert(rank, &rule.name) {
                let message = format!(
                    "expected a priority of its own, but {} is that of {} rule {other:?} too",
                    rule.priority,
                    direction_name(rule.direction)
                );
                faults.add(&rule.span, format!("{place}: priority"), message);
            }
        }
    }
    if config.node.role == Role::Proxy
        && let Some(list) = config.security_lists.first()
    {
        let message = "is for role \"host\": a proxy has no vms";
        faults.add(&list.span, place(list), message);
    }
}

fn place(list: &SecurityList) -> String {
    format!("security_list {:?}", list.name)
}

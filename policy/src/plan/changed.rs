//! Which rules of a set are new or different.

use std::collections::BTreeMap;

use super::report::RuleUse;
use crate::diff::{ObjectChange, SetDiff};
use crate::model::{Filter, Object, Policy};
use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::source::Place;
use crate::walk::{action_name, direction_name, policy_name};

/// The rules, filter entries and grants of `after` that `before` does not have, in the order of `after`.
pub(crate) fn rules(before: &PolicySet, after: &PolicySet, diff: &SetDiff) -> Vec<RuleUse> {
    let old: BTreeMap<String, Object> = (before.objects().into_iter())
        .map(|object| (object.id(), object))
        .collect();
    let mut rules = Vec::new();
    for object in after.objects() {
        let id = object.id();
        if !matches!(
            diff.objects.get(&id),
            Some(ObjectChange::Added | ObjectChange::Changed { .. })
        ) {
            continue;
        }
        match (&object, old.get(&id)) {
            (Object::Policy(new), old) => {
                let old = old.and_then(|old| match old {
                    Object::Policy(old) => Some(old),
                    _ => None,
                });
                of_policy(new, old, &mut rules);
            }
            (Object::Filter(new), old) => {
                let old = old.and_then(|old| match old {
                    Object::Filter(old) => Some(old),
                    _ => None,
                });
                of_filter(new, old, &mut rules);
            }
            (Object::Grant(grant), _) => {
                for direction in [FlowDirection::Ingress, FlowDirection::Egress] {
                    if grant.speaks(direction) {
                        let word = direction_name(direction);
                        let name = format!("grants/{}/{word}[0]", grant.metadata.name);
                        rules.push(rule(name, &grant.place, "allow"));
                    }
                }
            }
            _ => {}
        }
    }
    rules
}

/// Where more than the lists is different, every rule means something else.
fn of_policy(new: &Policy, old: Option<&Policy>, rules: &mut Vec<RuleUse>) {
    let head = |policy: &Policy| Policy {
        ingress: None,
        egress: None,
        tests: Vec::new(),
        metadata: crate::model::Metadata::default(),
        ..policy.clone()
    };
    let old = old.filter(|old| head(old) == head(new));
    for direction in [FlowDirection::Ingress, FlowDirection::Egress] {
        let known = old.and_then(|old| old.rules(direction)).unwrap_or_default();
        for (index, own) in new.rules(direction).unwrap_or_default().iter().enumerate() {
            if !known.contains(own) {
                let word = direction_name(direction);
                let name = format!("{}/{word}[{index}]", policy_name(new));
                rules.push(rule(name, &own.place, action_name(own.action)));
            }
        }
    }
}

fn of_filter(new: &Filter, old: Option<&Filter>, rules: &mut Vec<RuleUse>) {
    let old = old.filter(|old| old.subject == new.subject && old.priority == new.priority);
    for (index, entry) in new.entries.iter().enumerate() {
        // An entry that lets through decides nothing: the next tier does.
        if entry.allow || old.is_some_and(|old| old.entries.contains(entry)) {
            continue;
        }
        let word = direction_name(entry.direction);
        let name = format!("filter/{}/{word}[{index}]", new.metadata.name);
        rules.push(rule(name, &entry.place, "deny"));
    }
}

fn rule(rule: String, place: &Place, action: &'static str) -> RuleUse {
    RuleUse {
        rule,
        place: (place.line > 0).then(|| place.to_string()),
        action,
        edges: 0,
        flows: 0,
    }
}

//! Selectors that select nobody, judged by an inventory.

use std::collections::BTreeSet;

use super::finding::Finding;
use super::names::selectors_of;
use crate::model::Object;
use crate::problems::did_you_mean;
use crate::selectors::{Labelled as _, Operator, Selector};
use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::source::Place;
use crate::walk::direction_name;
use crate::world::World;

pub(super) fn check(set: &PolicySet, world: &World, findings: &mut Vec<Finding>) {
    for object in set.objects() {
        let mut check = |what: String, selector: &Selector, place: &Place| {
            let somebody = world
                .workloads()
                .iter()
                .any(|workload| selector.matches(workload));
            // What contradicts itself is another finding.
            if somebody || super::region::label_box(selector).is_none() {
                return;
            }
            findings.push(
                Finding::new(
                    "zero-match-selector",
                    object.id(),
                    object.place(),
                    format!("{what} selects no workload of the inventory: {selector}"),
                    hint(world, selector),
                )
                .rule(format!("{}/{what}", object.id()), place)
                .detail(selector.to_string()),
            );
        };
        match &object {
            Object::Policy(policy) => {
                check("subject".to_owned(), &policy.subject, &policy.place);
                for direction in [FlowDirection::Ingress, FlowDirection::Egress] {
                    for (index, rule) in policy
                        .rules(direction)
                        .unwrap_or_default()
                        .iter()
                        .enumerate()
                    {
                        for selector in selectors_of(&rule.peers) {
                            let name = format!("{}[{index}]", direction_name(direction));
                            check(name, selector, &rule.place);
                        }
                    }
                }
            }
            Object::Filter(filter) => check("subject".to_owned(), &filter.subject, &filter.place),
            Object::Mode(mode) => check("subject".to_owned(), &mode.subject, &mode.place),
            Object::Grant(grant) => {
                check("subject".to_owned(), &grant.subject, &grant.place);
                for selector in selectors_of(&grant.peers) {
                    check("peers".to_owned(), selector, &grant.place);
                }
            }
            Object::Invariant(own) => {
                for selector in selectors_of(&own.from).chain(selectors_of(&own.to)) {
                    check("an end".to_owned(), selector, &own.place);
                }
            }
            _ => {}
        }
    }
}

/// The condition that nobody meets, and what may have been meant.
fn hint(world: &World, selector: &Selector) -> String {
    let pairs = (selector.match_labels.iter()).map(|(key, value)| (key.as_str(), value.as_str()));
    let listed = (selector.match_expressions.iter())
        .filter(|expression| expression.operator == Operator::In)
        .flat_map(|expression| {
            expression
                .values
                .iter()
                .map(|value| (expression.key.as_str(), value.as_str()))
        });
    for (key, value) in pairs.chain(listed) {
        let values: BTreeSet<&str> = world
            .workloads()
            .iter()
            .filter_map(|workload| workload.label(key))
            .collect();
        if values.is_empty() {
            let keys: BTreeSet<&str> = (world.workloads().iter())
                .flat_map(|workload| workload.labels.keys().map(String::as_str))
                .collect();
            return did_you_mean(key, keys)
                .unwrap_or_else(|| format!("no workload has the label \"{key}\""));
        }
        if !values.contains(value) {
            return did_you_mean(value, values)
                .unwrap_or_else(|| format!("no workload has {key}={value}"));
        }
    }
    "no workload has all of these labels".to_owned()
}

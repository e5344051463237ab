//! What lint calls superfluous can go without changing any verdict: one rule by itself, and all together.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::collections::BTreeMap;

use policy::evaluate::{EndVerdict, evaluate_end};
use policy::lint::{Finding, Settings, lint};
use policy::model::{Action, Entity, Object, Peer, Rule};
use policy::probe::Flow;
use policy::set::PolicySet;
use policy::snapshot::FlowDirection;
use policy::testing::{self as generate, NOW, Random};
use policy::world::World;
use time::{Duration, OffsetDateTime};

const SUPERFLUOUS: [&str; 4] = [
    "shadowed-rule",
    "conflicting-rules",
    "deny-after-allow-any",
    "redundant-rule",
];

/// `Policy/p1` and its rule: direction and index.
fn target(finding: &Finding) -> (String, String, usize) {
    let rule = finding.rule.as_deref().unwrap();
    let (rest, way) = rule.rsplit_once('/').unwrap();
    let (way, index) = way.trim_end_matches(']').split_once('[').unwrap();
    let name = rest.split_once('/').unwrap().1;
    let kind = finding.object.split_once('/').unwrap().0;
    (
        format!("{kind}/{name}"),
        way.to_owned(),
        index.parse().unwrap(),
    )
}

/// Objects without some rules.
fn without(objects: &[Object], findings: &[&Finding]) -> Vec<Object> {
    let gone: Vec<_> = findings.iter().map(|finding| target(finding)).collect();
    let mut objects = objects.to_vec();
    objects.retain(|object| {
        !matches!(object, Object::Grant(_)) || !gone.iter().any(|gone| gone.0 == object.id())
    });
    for object in &mut objects {
        let id = object.id();
        let mut indices: Vec<(String, usize)> = (gone.iter())
            .filter(|gone| gone.0 == id)
            .map(|(_, way, index)| (way.clone(), *index))
            .collect();
        // From the last, so that the others stay where they are.
        indices.sort_by_key(|(_, index)| std::cmp::Reverse(*index));
        for (way, index) in indices {
            match object {
                Object::Policy(policy) if way == "ingress" => {
                    policy.ingress.as_mut().unwrap().remove(index);
                }
                Object::Policy(policy) => {
                    policy.egress.as_mut().unwrap().remove(index);
                }
                Object::Filter(filter) => {
                    filter.entries.remove(index);
                }
                _ => panic!("{id}"),
            }
        }
    }
    objects
}

/// The verdict without the names of rules, whose numbers move.
fn essence(end: &EndVerdict) -> impl PartialEq + std::fmt::Debug {
    (
        (end.enforced, end.draft, end.evaluated),
        (end.reason, end.draft_reason),
        (end.keep, end.audit, end.hard),
    )
}

fn compare(world: &World, before: &PolicySet, after: &PolicySet, random: &mut Random, why: &str) {
    for _ in 0..60 {
        let subject = &world.workloads()[random.below(world.workloads().len())];
        let own = random.pick(&subject.addresses);
        let peer = if random.chance(60) {
            let other = &world.workloads()[random.below(world.workloads().len())];
            random.pick(&other.addresses)
        } else {
            generate::address(random.pick(&generate::STRANGERS))
        };
        if own.is_ipv4() != peer.is_ipv4() {
            continue;
        }
        let (protocol, port) = generate::protocol_and_port(random);
        let other = world.who(peer).workload();
        let direction = random.pick(&[FlowDirection::Ingress, FlowDirection::Egress]);
        let (source, destination, from, to) = match direction {
            FlowDirection::Egress => (own, peer, Some(subject), other),
            FlowDirection::Ingress => (peer, own, other, Some(subject)),
        };
        let flow = Flow {
            source,
            destination,
            from,
            to,
            protocol,
            port,
        };
        let at: OffsetDateTime = NOW + Duration::minutes(30 * random.below(9) as i64);
        let verdict = |set| evaluate_end(world, set, &flow, direction, at).unwrap();
        let (left, right) = (verdict(before), verdict(after));
        assert!(
            essence(&left) == essence(&right),
            "{why}\n{flow:?} {direction:?} at {at}\nbefore {left:#?}\nafter {right:#?}"
        );
    }
}

/// More rules that may be superfluous than the generator makes: copies, narrower and wider ones.
fn thicken(objects: &mut [Object], random: &mut Random) {
    let pool: Vec<Rule> = (objects.iter())
        .filter_map(|object| match object {
            Object::Policy(policy) => Some(policy.ingress.iter().chain(&policy.egress).flatten()),
            _ => None,
        })
        .flatten()
        .cloned()
        .collect();
    if pool.is_empty() {
        return;
    }
    for object in objects {
        let Object::Policy(policy) = object else {
            continue;
        };
        for rules in [&mut policy.ingress, &mut policy.egress]
            .into_iter()
            .flatten()
        {
            if random.chance(10) {
                // Everybody known, in three parts; the fourth is hidden by all of them together.
                let rule = Rule {
                    action: Action::Allow,
                    ..random.pick(&pool)
                };
                let parts = [
                    Some(Entity::World),
                    Some(Entity::Managed),
                    Some(Entity::Unmanaged),
                    None,
                ];
                for (at, part) in parts.into_iter().enumerate() {
                    let peers = part
                        .map(|entity| Peer::Entity { entity })
                        .into_iter()
                        .collect();
                    rules.insert(
                        at,
                        Rule {
                            peers,
                            ..rule.clone()
                        },
                    );
                }
            }
            if random.chance(40) {
                let mut rule = random.pick(&pool);
                match random.below(4) {
                    0 => rule.ports.clear(),
                    1 => {
                        rule.peers = vec![Peer::Selector {
                            selector: generate::selector(random, true),
                        }]
                    }
                    2 => rule.action = random.pick(&[Action::Allow, Action::Deny, Action::Pass]),
                    _ => {}
                }
                rules.insert(random.below(rules.len() + 1), rule);
            }
        }
    }
}

#[test]
fn what_is_called_superfluous_is() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..500 {
        let random = &mut Random::new(seed);
        let world = generate::world(random);
        let mut objects = generate::objects(random);
        thicken(&mut objects, random);
        let before = PolicySet::build(objects.clone()).unwrap();
        let findings = lint(&before, &[], None, &[], &Settings::at(NOW));
        let superfluous: Vec<&Finding> = (findings.iter())
            .filter(|finding| SUPERFLUOUS.contains(&finding.id))
            .collect();
        for finding in &superfluous {
            *counts.entry(finding.id).or_default() += 1;
            *counts
                .entry(match finding.object.split_once('/').unwrap().0 {
                    "Filter" => "filters",
                    "Grant" => "grants",
                    _ => "rules",
                })
                .or_default() += 1;
            if finding.related.len() > 1 {
                *counts.entry("by several").or_default() += 1;
            }
            // A grant that speaks for both directions may be hidden in one only.
            if finding.object.starts_with("Grant/")
                && objects.iter().any(|object| matches!(object, Object::Grant(grant) if object.id() == finding.object && grant.ingress && grant.egress))
            {
                continue;
            }
            let after = PolicySet::build(without(&objects, &[finding])).unwrap();
            compare(
                &world,
                &before,
                &after,
                random,
                &format!("seed {seed}: {finding:#?}"),
            );
        }
        let all: Vec<&Finding> = (superfluous.iter().copied())
            .filter(|finding| !finding.object.starts_with("Grant/"))
            .collect();
        if all.len() > 1 {
            *counts.entry("together").or_default() += 1;
            let after = PolicySet::build(without(&objects, &all)).unwrap();
            compare(
                &world,
                &before,
                &after,
                random,
                &format!("seed {seed}: all of {all:#?}"),
            );
        }
    }
    println!("{counts:#?}");
    for what in
        SUPERFLUOUS
            .into_iter()
            .chain(["by several", "together", "filters", "grants", "rules"])
    {
        let count = counts.get(what).copied().unwrap_or_default();
        assert!(count >= 10, "\"{what}\" was seen only {count} times");
    }
}

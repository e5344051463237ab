//! Owners, deadlines, references, and what is written twice in one rule.

use std::collections::BTreeSet;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Settings;
use super::finding::Finding;
use super::region;
use crate::model::{Action, Object, Peer, Rule, State};
use crate::ports::PortSpec;
use crate::problems::did_you_mean;
use crate::selectors::Selector;
use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::walk::direction_name;

/// The annotation that tells since when a policy is staged.
const STAGED_SINCE: &str = "cofferdam.dev/staged-since";

pub(super) fn check(set: &PolicySet, settings: &Settings, findings: &mut Vec<Finding>) {
    for object in set.objects() {
        owner(&object, findings);
        deadline(&object, settings, findings);
        selectors(&object, findings);
        if let Object::Policy(policy) = &object {
            staged(&object, settings, findings);
            for direction in [FlowDirection::Ingress, FlowDirection::Egress] {
                for (index, rule) in policy
                    .rules(direction)
                    .unwrap_or_default()
                    .iter()
                    .enumerate()
                {
                    let name = format!(
                        "{}/{}[{index}]",
                        crate::walk::policy_name(policy),
                        direction_name(direction)
                    );
                    self::rule(set, &object, &name, rule, findings);
                }
            }
        }
    }
    replaces(set, findings);
    unused(set, findings);
}

fn owner(object: &Object, findings: &mut Vec<Finding>) {
    let answers = matches!(
        object,
        Object::Policy(_) | Object::Filter(_) | Object::Grant(_)
    );
    if answers && object.metadata().owner.is_none() {
        findings.push(Finding::new(
            "missing-owner",
            object.id(),
            object.place(),
            "nobody is named who answers for this object",
            "add metadata.owner",
        ));
    }
}

fn text_of(moment: OffsetDateTime) -> String {
    moment.format(&Rfc3339).unwrap_or_default()
}

fn deadline(object: &Object, settings: &Settings, findings: &mut Vec<Finding>) {
    let expires = match object {
        Object::Policy(policy) => policy.expires,
        Object::Grant(grant) => Some(grant.expires),
        _ => None,
    };
    let Some(expires) = expires else { return };
    let finding =
        |id, message, fix: &str| Finding::new(id, object.id(), object.place(), message, fix);
    if expires <= settings.at {
        let message = format!(
            "it expired at {}: it is evaluated as if absent",
            text_of(expires)
        );
        findings.push(finding(
            "expired",
            message,
            "remove it, or move the deadline",
        ));
    } else if matches!(object, Object::Policy(_)) && expires - settings.at <= settings.soon {
        let message = format!("it expires at {}", text_of(expires));
        findings.push(finding(
            "expires-soon",
            message,
            "move the deadline if it is still needed",
        ));
    } else if matches!(object, Object::Grant(_)) && expires - settings.at > settings.long_grant {
        let days = (expires - settings.at).whole_days();
        let message = format!("this grant lasts for {days} more days");
        findings.push(finding(
            "long-grant",
            message,
            "shorten it, or write a policy",
        ));
    }
}

fn staged(object: &Object, settings: &Settings, findings: &mut Vec<Finding>) {
    let Object::Policy(policy) = object else {
        return;
    };
    let Some(since) = policy.metadata.annotations.get(STAGED_SINCE) else {
        return;
    };
    if policy.state != State::Staged {
        return;
    }
    // A date alone means its beginning.
    let moment = OffsetDateTime::parse(since, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(&format!("{since}T00:00:00Z"), &Rfc3339));
    if let Ok(moment) = moment
        && settings.at - moment > settings.long_staged
    {
        findings.push(Finding::new(
            "staged-long",
            object.id(),
            object.place(),
            format!(
                "it has been staged for {} days",
                (settings.at - moment).whole_days()
            ),
            "enforce it or remove it",
        ));
    }
}

/// Every selector of an object that no labels can satisfy.
fn selectors(object: &Object, findings: &mut Vec<Finding>) {
    let mut found: Vec<(String, &Selector, &crate::source::Place)> = Vec::new();
    match object {
        Object::Policy(policy) => {
            found.push(("subject".to_owned(), &policy.subject, &policy.place));
            for direction in [FlowDirection::Ingress, FlowDirection::Egress] {
                for (index, rule) in policy
                    .rules(direction)
                    .unwrap_or_default()
                    .iter()
                    .enumerate()
                {
                    for selector in selectors_of(&rule.peers) {
                        let name = format!("{}[{index}]", direction_name(direction));
                        found.push((name, selector, &rule.place));
                    }
                }
            }
        }
        Object::Filter(filter) => {
            found.push(("subject".to_owned(), &filter.subject, &filter.place))
        }
        Object::Mode(mode) => found.push(("subject".to_owned(), &mode.subject, &mode.place)),
        Object::Grant(grant) => {
            found.push(("subject".to_owned(), &grant.subject, &grant.place));
            for selector in selectors_of(&grant.peers) {
                found.push(("peers".to_owned(), selector, &grant.place));
            }
        }
        Object::Invariant(own) => {
            for selector in selectors_of(&own.from).chain(selectors_of(&own.to)) {
                found.push(("peers".to_owned(), selector, &own.place));
            }
        }
        _ => {}
    }
    for (name, selector, place) in found {
        if region::label_box(selector).is_none() {
            findings.push(
                Finding::new(
                    "impossible-selector",
                    object.id(),
                    object.place(),
                    format!("no labels can satisfy this selector: {selector}"),
                    "remove the condition that contradicts the others",
                )
                .rule(format!("{}/{name}", object.id()), place)
                .detail(selector.to_string()),
            );
        }
    }
}

pub(super) fn selectors_of(peers: &[Peer]) -> impl Iterator<Item = &Selector> {
    peers.iter().filter_map(|peer| match peer {
        Peer::Selector { selector } => Some(selector),
        _ => None,
    })
}

fn rule(set: &PolicySet, object: &Object, name: &str, rule: &Rule, findings: &mut Vec<Finding>) {
    let finding = |id, message: String, fix: &str, detail: String| {
        Finding::new(id, object.id(), object.place(), message, fix)
            .rule(name, &rule.place)
            .detail(detail)
    };
    if rule.keep && rule.action != Action::Allow {
        findings.push(finding(
            "keep-without-effect",
            "existing: keep is about flows that the rule admitted, and this rule admits none"
                .to_owned(),
            "remove it",
            String::new(),
        ));
    }
    let denies = rule.action == Action::Deny;
    let means = |peers: &[Peer], ports: &[PortSpec]| {
        region::rule_regions(set, &Selector::default(), peers, ports, denies)
    };
    for (index, kind) in superfluous(rule.peers.len(), |kept| {
        let peers: Vec<Peer> = kept
            .iter()
            .filter_map(|at| rule.peers.get(*at).cloned())
            .collect();
        (!peers.is_empty()).then(|| means(&peers, &rule.ports))
    })
    .into_iter()
    .map(|index| (index, "peers"))
    .chain(
        superfluous(rule.ports.len(), |kept| {
            let ports: Vec<PortSpec> = kept
                .iter()
                .filter_map(|at| rule.ports.get(*at).cloned())
                .collect();
            (!ports.is_empty()).then(|| means(&rule.peers, &ports))
        })
        .into_iter()
        .map(|index| (index, "ports")),
    ) {
        findings.push(finding(
            "redundant-item",
            format!("{kind}[{index}] means only what the other {kind} of this rule mean"),
            "remove it",
            format!("{kind}[{index}]"),
        ));
    }
}

/// Items of a list that the others cover, one after the other, the last first.
fn superfluous(
    count: usize,
    means: impl Fn(&[usize]) -> Option<Vec<region::Region>>,
) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..count).collect();
    let mut found = Vec::new();
    if !(2..=200).contains(&count) {
        return found;
    }
    for index in (0..count).rev() {
        let others: Vec<usize> = kept.iter().copied().filter(|own| *own != index).collect();
        let (Some(own), Some(rest)) = (means(&[index]), means(&others)) else {
            continue;
        };
        let covered = region::minus(own.clone(), &rest).is_some_and(|left| left.is_empty());
        if !own.is_empty() && covered {
            found.push(index);
            kept = others;
        }
    }
    found
}

fn replaces(set: &PolicySet, findings: &mut Vec<Finding>) {
    let names = || {
        set.policies()
            .iter()
            .map(|policy| policy.metadata.name.as_str())
    };
    for policy in set.policies() {
        let Some(replaced) = &policy.replaces else {
            continue;
        };
        let object = Object::Policy(policy.clone());
        let there = names().any(|name| name == replaced);
        if policy.state == State::Staged && !there {
            let fix = did_you_mean(replaced, names()).unwrap_or_else(|| {
                "name the policy that it takes the place of, or remove replaces".to_owned()
            });
            findings.push(Finding::new(
                "replaces-nothing",
                object.id(),
                object.place(),
                format!("there is no policy \"{replaced}\" that it could replace"),
                fix,
            ));
        }
        if policy.state == State::Enforced && there {
            findings.push(Finding::new(
                "replaced-still-there",
                object.id(),
                object.place(),
                format!("it is enforced, and so it does not replace \"{replaced}\", which is still there"),
                format!("remove the policy \"{replaced}\", then replaces"),
            ));
        }
    }
}

fn unused(set: &PolicySet, findings: &mut Vec<Finding>) {
    let mut groups: BTreeSet<&str> = BTreeSet::new();
    let mut services: BTreeSet<&str> = BTreeSet::new();
    let rules = (set.policies().iter())
        .flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
    let rules = rules.map(|rule| (&rule.peers, &rule.ports));
    let grants = set
        .grants()
        .iter()
        .map(|grant| (&grant.peers, &grant.ports));
    let tests = set.policies().iter().flat_map(|policy| &policy.tests);
    let wanted =
        (set.invariants().iter()).flat_map(|own| [(&own.from, &own.ports), (&own.to, &own.ports)]);
    let mut port = |spec: &'_ PortSpec| {
        if let PortSpec::Service(name) = spec
            && let Some(service) = set.service(name)
        {
            services.insert(service.metadata.name.as_str());
        }
    };
    for (peers, ports) in rules.chain(grants).chain(wanted) {
        for peer in peers {
            if let Peer::Group { group } = peer {
                groups.insert(group);
            }
        }
        ports.iter().for_each(&mut port);
    }
    tests.for_each(|test| port(&test.ports));
    let finding = |id, object: Object, what: &str| {
        let message = format!("nothing uses this {what}");
        Finding::new(
            id,
            object.id(),
            object.place(),
            message,
            "remove it, or use it",
        )
    };
    for group in set
        .groups()
        .filter(|group| !groups.contains(group.metadata.name.as_str()))
    {
        let object = Object::AddressGroup(group.clone());
        findings.push(finding("unused-address-group", object, "address group"));
    }
    for service in set
        .services()
        .filter(|service| !services.contains(service.metadata.name.as_str()))
    {
        findings.push(finding(
            "unused-service",
            Object::Service(service.clone()),
            "service",
        ));
    }
}

//! Rules without an effect: shadowed, contradicted, redundant.

use std::collections::HashSet;

use super::finding::{Finding, Level};
use super::order::{Entry, Order, Stage};
use super::region::{self, Region, class};
use crate::model::Action;
use crate::walk::{Lens, action_name};

pub(super) fn check(order: &Order<'_>, findings: &mut Vec<Finding>) {
    let none = HashSet::new();
    let mut gone: HashSet<usize> = HashSet::new();
    for (index, entry) in order.entries.iter().enumerate() {
        // A selector that contradicts itself is another finding.
        if entry.regions.is_empty() {
            continue;
        }
        let hidden = (entry.lenses().iter()).all(|lens| {
            order
                .arrivals(index, *lens, &none)
                .is_some_and(|left| left.is_empty())
        });
        if hidden {
            gone.insert(index);
            findings.push(shadowed(order, index, entry));
        }
    }
    // From the last to the first, so that all that is called redundant can go at once.
    for (index, entry) in order.entries.iter().enumerate().rev() {
        if entry.regions.is_empty() || gone.contains(&index) {
            continue;
        }
        if let Some(helpers) = order.is_redundant(index, &gone) {
            gone.insert(index);
            findings.push(redundant(order, entry, &helpers));
        }
    }
}

fn shadowed(order: &Order<'_>, index: usize, entry: &Entry<'_>) -> Finding {
    let lens = entry.lenses().first().copied().unwrap_or(Lens::Draft);
    let culprits: Vec<&Entry<'_>> = (order.culprits(index, lens).into_iter())
        .filter_map(|culprit| order.entries.get(culprit))
        .collect();
    let names: Vec<&str> = culprits
        .iter()
        .map(|culprit| culprit.name.as_str())
        .collect();
    let contrary = culprits
        .iter()
        .any(|culprit| culprit.action != entry.action);
    let (id, message, fix) = match &culprits[..] {
        [one] if is_contrary(one, entry) && same(&one.regions, &entry.regions) => (
            "conflicting-rules",
            format!(
                "this rule means exactly what {} means, which comes first and says {}: {} never happens",
                one.name,
                action_name(one.action),
                action_name(entry.action)
            ),
            "decide which of the two is meant and remove the other".to_owned(),
        ),
        [one]
            if one.action == Action::Allow
                && entry.action == Action::Deny
                && allows_anybody(one) =>
        {
            (
                "deny-after-allow-any",
                format!(
                    "{} allows everybody before this deny is asked: it denies nothing",
                    one.name
                ),
                "put the deny first, or into a policy with a lower priority or an earlier tier"
                    .to_owned(),
            )
        }
        [] => (
            "shadowed-rule",
            "nothing ever reaches this rule: the standard tier is closed for its subjects"
                .to_owned(),
            "remove the rule, or write it into a standard policy".to_owned(),
        ),
        [one] => (
            "shadowed-rule",
            format!(
                "{} decides everything that this rule means: it has no effect",
                one.name
            ),
            fix_of(contrary),
        ),
        several => (
            "shadowed-rule",
            format!(
                "together, {} rules decide everything that this rule means: {}; it has no effect",
                several.len(),
                shorten(&names)
            ),
            fix_of(contrary),
        ),
    };
    let mut finding = Finding::new(id, &entry.object, entry.object_place, message, fix)
        .rule(&entry.name, entry.place);
    if !contrary && id == "shadowed-rule" {
        finding = finding.level(Level::Note);
    }
    for culprit in culprits.iter().take(10) {
        let text = format!("{} ({})", culprit.name, action_name(culprit.action));
        finding = finding.related(text, culprit.place);
    }
    finding
}

fn fix_of(contrary: bool) -> String {
    if contrary {
        "if its action is meant, move it before the others; otherwise remove it".to_owned()
    } else {
        "remove it: the others do the same".to_owned()
    }
}

fn redundant(order: &Order<'_>, entry: &Entry<'_>, helpers: &[usize]) -> Finding {
    let helpers: Vec<&Entry<'_>> = helpers
        .iter()
        .filter_map(|helper| order.entries.get(*helper))
        .collect();
    let names: Vec<&str> = helpers.iter().map(|helper| helper.name.as_str()).collect();
    let (message, fix) = if helpers.is_empty() {
        (
            "no later entry denies what this one allows: it has no effect".to_owned(),
            "remove it, or put it before the entry that it is an exception of",
        )
    } else {
        (
            format!(
                "without this rule, {} would decide the same",
                shorten(&names)
            ),
            "remove it, or make the other narrower if that was not meant",
        )
    };
    let mut finding = Finding::new(
        "redundant-rule",
        &entry.object,
        entry.object_place,
        message,
        fix,
    )
    .rule(&entry.name, entry.place);
    for helper in helpers.iter().take(10) {
        finding = finding.related(helper.name.clone(), helper.place);
    }
    finding
}

fn shorten(names: &[&str]) -> String {
    match names {
        [] | [_] | [_, _] | [_, _, _] | [_, _, _, _] => names.join(", "),
        [first, second, third, rest @ ..] => {
            format!("{first}, {second}, {third} and {} more", rest.len())
        }
    }
}

fn is_contrary(left: &Entry<'_>, right: &Entry<'_>) -> bool {
    matches!(
        (left.action, right.action),
        (Action::Allow, Action::Deny) | (Action::Deny, Action::Allow)
    ) && left.stage == right.stage
}

/// Whether two rules mean the same; the unknown, which only denials can mean, aside.
fn same(left: &[Region], right: &[Region]) -> bool {
    let known = |regions: &[Region]| -> Vec<Region> {
        (regions.iter().cloned())
            .map(|region| Region {
                classes: region.classes & class::KNOWN,
                ..region
            })
            .filter(|region| region.classes != 0)
            .collect()
    };
    let (left, right) = (known(left), known(right));
    let inside = |one: &[Region], other: &[Region]| {
        region::minus(one.to_vec(), other).is_some_and(|left| left.is_empty())
    };
    inside(&left, &right) && inside(&right, &left)
}

/// Whether an entry allows every known peer and every port to its subjects.
pub(super) fn allows_anybody(entry: &Entry<'_>) -> bool {
    entry.stage != Stage::Filter
        && entry
            .regions
            .iter()
            .any(|region| *region == Region::of_subject(region.subject.clone(), class::KNOWN))
}

//! Names for what is new, and selectors for workloads as people would write them.

use std::collections::BTreeSet;

use crate::model::{Metadata, Object, Peer};
use crate::selectors::{Labelled as _, Labels, NAMESPACE_PREFIX, Selector};
use crate::set::PolicySet;
use crate::world::{Workload, World};

/// A selector for a workload: by the labels that policies speak of, or else by those that it shares
/// with others, or else by all; without those that select nobody less. `None` if it has no label.
pub(crate) fn selector_of(world: &World, set: &PolicySet, workload: &Workload) -> Option<Selector> {
    let own: Vec<String> = (workload.labels.keys().cloned())
        .chain((workload.namespace_labels.keys()).map(|key| format!("{NAMESPACE_PREFIX}{key}")))
        .collect();
    let spoken = keys(set);
    let shared = |key: &String| {
        let value = workload.label(key);
        let others = world.workloads().iter();
        others
            .filter(|other| other.label(key) == value)
            .nth(1)
            .is_some()
    };
    let known: Vec<&String> = own
        .iter()
        .filter(|key| spoken.contains(key.as_str()))
        .collect();
    let common = || own.iter().filter(|key| shared(key)).collect::<Vec<_>>();
    let chosen = match known.is_empty() {
        false => known,
        true => Some(common())
            .filter(|keys| !keys.is_empty())
            .unwrap_or_else(|| own.iter().collect()),
    };
    let mut match_labels: Labels = (chosen.into_iter())
        .filter_map(|key| Some((key.clone(), workload.label(key)?.to_owned())))
        .collect();
    if match_labels.is_empty() {
        return None;
    }
    let members = |labels: &Labels| {
        let selector = of(labels);
        (world.workloads().iter())
            .filter(|other| selector.matches(*other))
            .count()
    };
    let all = members(&match_labels);
    for key in match_labels
        .keys()
        .cloned()
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
    {
        let mut fewer = match_labels.clone();
        fewer.remove(&key);
        if !fewer.is_empty() && members(&fewer) == all {
            match_labels = fewer;
        }
    }
    Some(of(&match_labels))
}

fn of(labels: &Labels) -> Selector {
    Selector {
        match_labels: labels.clone(),
        match_expressions: Vec::new(),
    }
}

/// Label keys that some object looks at.
fn keys(set: &PolicySet) -> BTreeSet<&str> {
    let mut keys = BTreeSet::new();
    for policy in set.policies() {
        keys.extend(policy.subject.keys());
        for rule in [&policy.ingress, &policy.egress]
            .into_iter()
            .flatten()
            .flatten()
        {
            keys.extend(in_peers(&rule.peers));
        }
    }
    for grant in set.grants() {
        keys.extend(grant.subject.keys());
        keys.extend(in_peers(&grant.peers));
    }
    keys.extend(
        set.filters()
            .iter()
            .flat_map(|filter| filter.subject.keys()),
    );
    keys.extend(set.modes().iter().flat_map(|mode| mode.subject.keys()));
    keys
}

fn in_peers(peers: &[Peer]) -> impl Iterator<Item = &str> {
    peers.iter().flat_map(|peer| match peer {
        Peer::Selector { selector } => selector.keys().collect::<Vec<_>>(),
        _ => Vec::new(),
    })
}

/// Metadata with a name that no object of the set has, made of some words.
pub(crate) fn fresh(set: &PolicySet, words: &str) -> Metadata {
    let mut slug: String = words
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(200)
        .collect();
    while slug.contains("--") {
        slug = slug.replace("--", "-");
    }
    let slug = slug.trim_matches('-').to_owned();
    let objects = set.objects();
    let taken = |name: &str| (objects.iter()).any(|object: &Object| object.metadata().name == name);
    let name = std::iter::once(slug.clone())
        .chain((2..).map(|number: u32| format!("{slug}-{number}")))
        .find(|name| !taken(name));
    Metadata {
        name: name.unwrap_or(slug),
        ..Metadata::default()
    }
}

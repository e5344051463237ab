//! From the name of a rule, as verdicts give it, back to the objects that it comes from.

use crate::model::{Filter, FilterEntry, Grant, Policy, Rule};
use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::source::Place;
use crate::walk::{direction_name, policy_name};

/// What a rule name stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Located<'a> {
    /// One rule of a policy.
    Rule {
        /// The policy.
        policy: &'a Policy,
        /// Its list.
        direction: FlowDirection,
        /// From 0.
        index: usize,
        /// The rule.
        rule: &'a Rule,
    },
    /// The default deny of some policies that closed the direction.
    Closed(Vec<&'a Policy>),
    /// One entry of a filter.
    Entry {
        /// The filter.
        filter: &'a Filter,
        /// The entry.
        entry: &'a FilterEntry,
    },
    /// A grant.
    Grant(&'a Grant),
}

const DIRECTIONS: [FlowDirection; 2] = [FlowDirection::Ingress, FlowDirection::Egress];

/// Finds what a name stands for; `None` for decisions that no object made, and for objects that the
/// set does not have.
#[must_use]
pub fn locate<'a>(set: &'a PolicySet, name: &str) -> Option<Located<'a>> {
    if let Some(closed) = name.strip_suffix(" (default deny)") {
        let policies: Vec<&Policy> = closed
            .split(',')
            .filter_map(|part| policy(set, part.rsplit_once('/')?.0))
            .collect();
        return (!policies.is_empty()).then_some(Located::Closed(policies));
    }
    let (head, last) = name.rsplit_once('/')?;
    let (word, index) = last.strip_suffix(']')?.split_once('[')?;
    let direction = DIRECTIONS
        .into_iter()
        .find(|direction| direction_name(*direction) == word)?;
    let index: usize = index.parse().ok()?;
    if let Some(name) = head.strip_prefix("filter/") {
        let filter = (set.filters().iter()).find(|filter| filter.metadata.name == name)?;
        let entry = filter.entries.get(index)?;
        return Some(Located::Entry { filter, entry });
    }
    if let Some(name) = head.strip_prefix("grants/") {
        let grant = (set.grants().iter()).find(|grant| grant.metadata.name == name)?;
        return Some(Located::Grant(grant));
    }
    let policy = policy(set, head)?;
    let rule = policy.rules(direction)?.get(index)?;
    Some(Located::Rule {
        policy,
        direction,
        index,
        rule,
    })
}

/// A policy by `tier/name`.
fn policy<'a>(set: &'a PolicySet, name: &str) -> Option<&'a Policy> {
    let (_, plain) = name.split_once('/')?;
    set.policies()
        .iter()
        .find(|policy| policy.metadata.name == plain && policy_name(policy) == name)
}

impl<'a> Located<'a> {
    /// Where the text stands that decided; of a default deny, that of the first policy.
    #[must_use]
    pub fn place(&self) -> Option<&'a Place> {
        let place = match self {
            Self::Rule { rule, .. } => &rule.place,
            Self::Closed(policies) => &policies.first()?.place,
            Self::Entry { entry, .. } => &entry.place,
            Self::Grant(grant) => &grant.place,
        };
        // What was made by a program stands nowhere.
        (place.line > 0).then_some(place)
    }
}

/// `file:line:column` of what a name stands for, where it is known.
#[must_use]
pub fn place_of(set: &PolicySet, name: &str) -> Option<String> {
    locate(set, name)?.place().map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    #[test]
    fn names_lead_back_to_their_text() {
        let text = "\
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: shop/db}
spec:
  subject: {app: db}
  ingress:
    - {action: allow, ports: [{port: 80}]}
    - {action: deny, ports: [{port: 81}]}
---
apiVersion: cofferdam.dev/v1
kind: Filter
metadata: {name: edge}
spec:
  subject: all
  entries:
    - {direction: egress, action: deny, cidr: 10.0.0.0/8}
";
        let set = PolicySet::parse(&[Source::new("p.yaml", text)]).unwrap();
        let place = |name: &str| place_of(&set, name);
        assert_eq!(
            place("standard/shop/db/ingress[1]").as_deref(),
            Some("p.yaml:8:7")
        );
        assert_eq!(
            place("standard/shop/db/ingress (default deny)").as_deref(),
            Some("p.yaml:1:1")
        );
        assert_eq!(
            place("filter/edge/egress[0]").as_deref(),
            Some("p.yaml:16:7")
        );
        for none in [
            "default-deny",
            "isolation",
            "standard/shop/db/ingress[2]",
            "standard/shop/db/egress[0]",
            "baseline/shop/db/ingress[0]",
            "grants/none/ingress[0]",
        ] {
            assert_eq!(place(none), None, "{none}");
        }
    }
}

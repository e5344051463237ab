//! What would have to change for another verdict at one end of a flow.
//!
//! A suggestion is a list of edits that were tried: the end was evaluated again with them, and the
//! verdict was the other one. New rules are staged, so that nothing happens until somebody enforces
//! them; a suggestion says which verdict it turns.

mod allow;
mod deny;
mod names;

use serde::Serialize;
use time::OffsetDateTime;

use crate::evaluate::{EndVerdict, evaluate_end};
use crate::model::{Object, Peer, Policy, State};
use crate::ports::{PORTED, PortSpec, Ports, Protocol, is_icmp};
use crate::probe::Flow;
use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::world::{Who, Workload, World};
use crate::yaml;

pub(crate) use names::selector_of;

/// One change to a set.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// A new object, or one in place of that of its name.
    Put(Box<Object>),
    /// An object goes, by `Kind/name`.
    Remove(String),
}

/// Which verdict a suggestion turns, applied as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Turns {
    /// What happens.
    Enforced,
    /// What would happen with everything staged enforced.
    Draft,
}

/// What somebody could do.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Suggestion {
    /// `enforce`, `extend-rule`, `add-rule`, `set-mode`, `remove-grant`, or `note` where there is nothing
    /// to edit.
    pub kind: &'static str,
    /// What to do, in a sentence without a full stop.
    pub text: String,
    /// Which verdict it turns; `None` for a note.
    pub turns: Option<Turns>,
    /// The objects to apply.
    pub yaml: Option<String>,
    /// `Kind/name` of objects to remove.
    pub removes: Vec<String>,
    /// The same for programs.
    #[serde(skip)]
    pub edits: Vec<Edit>,
}

impl Suggestion {
    fn note(text: impl Into<String>) -> Self {
        Self {
            kind: "note",
            text: text.into(),
            turns: None,
            yaml: None,
            removes: Vec::new(),
            edits: Vec::new(),
        }
    }

    fn new(kind: &'static str, text: impl Into<String>, turns: Turns, edits: Vec<Edit>) -> Self {
        let documents: Vec<String> = (edits.iter())
            .filter_map(|edit| match edit {
                Edit::Put(object) => Some(yaml::to_string(&object.to_json())),
                Edit::Remove(_) => None,
            })
            .collect();
        Self {
            kind,
            text: text.into(),
            turns: Some(turns),
            yaml: (!documents.is_empty()).then(|| documents.join("---\n")),
            removes: (edits.iter())
                .filter_map(|edit| match edit {
                    Edit::Remove(id) => Some(id.clone()),
                    Edit::Put(_) => None,
                })
                .collect(),
            edits,
        }
    }
}

/// A set after some edits; `None` if they do not fit together.
#[must_use]
pub fn edited(set: &PolicySet, edits: &[Edit]) -> Option<PolicySet> {
    let mut objects = set.objects();
    for edit in edits {
        let id = match edit {
            Edit::Put(object) => object.id(),
            Edit::Remove(id) => id.clone(),
        };
        objects.retain(|object| object.id() != id);
        if let Edit::Put(object) = edit {
            objects.push((**object).clone());
        }
    }
    PolicySet::build(objects).ok()
}

/// One end of a flow that somebody wants to turn.
#[derive(Clone, Copy)]
pub(crate) struct Wish<'a> {
    pub(crate) world: &'a World,
    pub(crate) set: &'a PolicySet,
    pub(crate) flow: &'a Flow<'a>,
    pub(crate) direction: FlowDirection,
    pub(crate) at: OffsetDateTime,
}

impl<'a> Wish<'a> {
    /// What could be done for the other verdict, the plainest first; to allow what is denied now or in
    /// the draft, to deny what is allowed in both. Empty where the end is not managed.
    pub(crate) fn suggestions(&self) -> Vec<Suggestion> {
        match self.verdict(self.set) {
            Some(verdict) if verdict.enforced.is_allow() && verdict.draft.is_allow() => {
                deny::suggestions(self, &verdict)
            }
            Some(verdict) => allow::suggestions(self, &verdict),
            None => Vec::new(),
        }
    }

    fn verdict(&self, set: &PolicySet) -> Option<EndVerdict> {
        evaluate_end(self.world, set, self.flow, self.direction, self.at)
    }

    /// The end's verdict with some edits.
    fn tried(&self, edits: &[Edit]) -> Option<EndVerdict> {
        self.verdict(&edited(self.set, edits)?)
    }

    fn subject(&self) -> Option<&'a Workload> {
        match self.direction {
            FlowDirection::Egress => self.flow.from,
            FlowDirection::Ingress => self.flow.to,
        }
    }

    fn peer_address(&self) -> std::net::IpAddr {
        match self.direction {
            FlowDirection::Egress => self.flow.destination,
            FlowDirection::Ingress => self.flow.source,
        }
    }

    /// The other end as a rule may name it: by its labels, or else by its address.
    fn peer(&self) -> Peer {
        let address = self.peer_address();
        let labelled = match self.world.who(address) {
            Who::Workload(workload) => selector_of(self.world, self.set, workload),
            _ => None,
        };
        labelled.map_or_else(
            || Peer::Cidr {
                cidr: address.into(),
                except: Vec::new(),
            },
            |selector| Peer::Selector { selector },
        )
    }

    fn port(&self) -> PortSpec {
        let (protocol, port) = (self.flow.protocol, self.flow.port);
        let [kind, code] = port.to_be_bytes();
        PortSpec::Direct {
            protocol: Protocol::Number(protocol),
            ports: if is_icmp(protocol) {
                Ports::Icmp {
                    kind,
                    code: Some(code),
                }
            } else if PORTED.contains(&protocol) {
                Ports::Range(port, port)
            } else {
                Ports::All
            },
        }
    }
}

/// Staged policies that, enforced, would count here, with the policies that they replace gone.
fn enforced(set: &PolicySet, policies: &[&Policy]) -> Vec<Edit> {
    let mut edits = Vec::new();
    for policy in policies {
        if let Some(replaced) = &policy.replaces {
            let old = (set.policies().iter()).find(|old| old.metadata.name == *replaced);
            edits.extend(old.map(|old| Edit::Remove(Object::Policy(old.clone()).id())));
        }
    }
    edits.extend(policies.iter().map(|policy| {
        Edit::Put(Box::new(Object::Policy(Policy {
            state: State::Enforced,
            replaces: None,
            ..(*policy).clone()
        })))
    }));
    // What replaces a policy and is itself replaced must not come back.
    let removed: Vec<String> = (edits.iter())
        .filter_map(|edit| match edit {
            Edit::Remove(id) => Some(id.clone()),
            Edit::Put(_) => None,
        })
        .collect();
    edits.retain(|edit| !matches!(edit, Edit::Put(object) if removed.contains(&object.id())));
    edits
}

/// The staged policies that turn an end's enforced verdict when they are enforced: as few as can be.
fn by_enforcing(wish: &Wish<'_>, draft_rule: &str, allow: bool) -> Option<Suggestion> {
    use crate::locate::{Located, locate};
    let subject = wish.subject()?;
    let staged = |policy: &&Policy| {
        policy.state == State::Staged && crate::set::is_live(policy.expires, wish.at)
    };
    let named: Vec<&Policy> = match locate(wish.set, draft_rule) {
        Some(Located::Rule { policy, .. }) => vec![policy],
        Some(Located::Closed(policies)) => policies,
        _ => Vec::new(),
    };
    let all = wish.set.policies().iter();
    let concerning = all
        .filter(|policy| policy.subject.matches(subject) || policy.replaces.is_some())
        .collect();
    [named, concerning].into_iter().find_map(|policies| {
        let policies: Vec<&Policy> = policies.into_iter().filter(staged).collect();
        let edits = enforced(wish.set, &policies);
        let turned = wish.tried(&edits)?.evaluated.is_allow() == allow;
        if policies.is_empty() || !turned {
            return None;
        }
        let names: Vec<&str> = (policies.iter())
            .map(|policy| policy.metadata.name.as_str())
            .collect();
        let text = format!(
            "enforce {} (state: enforced): staged policy {} it already",
            names.join(", "),
            if allow { "allows" } else { "denies" }
        );
        Some(Suggestion::new("enforce", text, Turns::Enforced, edits))
    })
}

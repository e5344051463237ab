//! Rules are never mirrored: what a change allows at one end, the other end must allow, too.
//!
//! For every new allow rule, flows that it would let through at its own end are asked of the other
//! end. Where that denies them in the draft, the missing half is proposed as a staged policy, if
//! putting it in lets the flows through.

use std::collections::BTreeMap;
use std::net::IpAddr;

use time::OffsetDateTime;

use super::report::{MissingHalf, PairPort, RuleUse};
use super::scope::Scopes;
use crate::api::Scenario;
use crate::evaluate::evaluate_end;
use crate::locate::{Located, locate};
use crate::matching::{AddressView, blocks, peers_match};
use crate::model::{Action, Entity, Metadata, Object, Peer, Policy, PolicyKind, Rule, State, Tier};
use crate::ports::protocol_name;
use crate::probe::Flow;
use crate::selectors::Selector;
use crate::snapshot::FlowDirection;
use crate::source::Place;
use crate::suggest::{Edit, edited, selector_of};
use crate::walk::{direction_name, names};
use crate::world::Workload;
use crate::yaml;

/// Workloads of each side of a rule that are tried.
const TRIED: usize = 64;
/// Flows of one proposal with which it is tried again.
const PROVED: usize = 16;

/// The missing halves of some new rules.
pub(crate) fn missing(after: &Scenario, rules: &[RuleUse], at: OffsetDateTime) -> Vec<MissingHalf> {
    let mut scopes = Scopes::new(&after.world, &after.set, at);
    (rules.iter())
        .filter_map(|rule| match locate(&after.set, &rule.rule)? {
            Located::Rule {
                policy,
                direction,
                rule: own,
                ..
            } if own.action == Action::Allow => {
                let half = Half {
                    after,
                    policy,
                    direction,
                    rule: own,
                    name: &rule.rule,
                    at,
                };
                half.find(&mut scopes)
            }
            _ => None,
        })
        .collect()
}

/// One new rule, of which the other end is asked.
struct Half<'a> {
    after: &'a Scenario,
    policy: &'a Policy,
    direction: FlowDirection,
    rule: &'a Rule,
    name: &'a str,
    at: OffsetDateTime,
}

/// What the other end denies.
#[derive(Default)]
struct Denied<'a> {
    flows: Vec<Flow<'a>>,
    pairs: u64,
    by: BTreeMap<String, u64>,
}

const fn other(direction: FlowDirection) -> FlowDirection {
    match direction {
        FlowDirection::Ingress => FlowDirection::Egress,
        FlowDirection::Egress => FlowDirection::Ingress,
    }
}

impl<'a> Half<'a> {
    fn find(&self, scopes: &mut Scopes<'a>) -> Option<MissingHalf> {
        let denied = self.denied(scopes);
        let example = denied.flows.first()?;
        let (denied_by, _) = denied.by.iter().max_by_key(|(_, count)| **count)?;
        // An explicit deny is somebody's will, not an oversight.
        let forgotten = denied
            .by
            .keys()
            .all(|rule| rule == names::DEFAULT_DENY || rule.ends_with("(default deny)"));
        let objects = if forgotten {
            self.proposal(&denied)
        } else {
            Vec::new()
        };
        let documents: Vec<String> = (objects.iter())
            .map(|object| yaml::to_string(&object.to_json()))
            .collect();
        Some(MissingHalf {
            rule: self.name.to_owned(),
            end: direction_name(other(self.direction)),
            pairs: denied.pairs,
            denied_by: denied_by.clone(),
            example: PairPort {
                from: owner(example.from, example.source),
                to: owner(example.to, example.destination),
                protocol: protocol_name(example.protocol),
                port: example.port,
            },
            yaml: (!documents.is_empty()).then(|| documents.join("---\n")),
        })
    }

    /// Flows that the rule lets through at its own end and the other end denies.
    fn denied(&self, scopes: &mut Scopes<'a>) -> Denied<'a> {
        let (world, set) = (&self.after.world, &self.after.set);
        let subjects = (world.workloads().iter())
            .filter(|workload| self.policy.subject.matches(*workload))
            .take(TRIED);
        let peers: Vec<&Workload> = (world.workloads().iter())
            .filter(|workload| {
                workload.addresses.iter().any(|address| {
                    let view = AddressView {
                        address: *address,
                        who: world.who(*address),
                    };
                    peers_match(set, &self.rule.peers, &view, false)
                })
            })
            .take(TRIED)
            .collect();
        let mut denied = Denied::default();
        for subject in subjects {
            for peer in &peers {
                if self.pair(subject, peer, scopes, &mut denied) {
                    denied.pairs += 1;
                }
            }
        }
        denied
    }

    /// Tries the first port of each block of the rule's ports between two workloads.
    fn pair(
        &self,
        subject: &'a Workload,
        peer: &'a Workload,
        scopes: &mut Scopes<'a>,
        denied: &mut Denied<'a>,
    ) -> bool {
        let (from, to) = match self.direction {
            FlowDirection::Ingress => (peer, subject),
            FlowDirection::Egress => (subject, peer),
        };
        let addresses = (from.addresses.iter())
            .flat_map(|source| to.addresses.iter().map(move |other| (*source, *other)))
            .find(|(source, other)| source.is_ipv4() == other.is_ipv4());
        let Some((source, destination)) = addresses.filter(|_| from != to) else {
            return false;
        };
        let mut any = false;
        for block in blocks(&self.after.set, &self.rule.ports, &to.named_ports) {
            let flow = Flow {
                source,
                destination,
                from: Some(from),
                to: Some(to),
                protocol: block.protocol.unwrap_or(datapath::ids::protocol::TCP),
                port: match block.protocol {
                    None => block.low.max(1),
                    Some(_) => block.low,
                },
            };
            let own = scopes.end(&flow, self.direction);
            if own.is_none_or(|own| own.draft_rule != self.name) {
                continue;
            }
            let Some(far) = scopes.end(&flow, other(self.direction)) else {
                continue;
            };
            if !far.draft.is_allow() {
                any = true;
                *denied.by.entry(far.draft_rule).or_default() += 1;
                if denied.flows.len() < PROVED {
                    denied.flows.push(flow);
                }
            }
        }
        any
    }

    /// The rule from the other end's side; empty unless it lets every flow through that was denied.
    fn proposal(&self, denied: &Denied<'_>) -> Vec<Object> {
        let objects: Vec<Object> = (self.subjects(denied).into_iter().enumerate())
            .map(|(index, subject)| self.mirrored(subject, denied, index))
            .collect();
        let edits: Vec<Edit> = (objects.iter())
            .map(|object| Edit::Put(Box::new(object.clone())))
            .collect();
        let Some(set) = edited(&self.after.set, &edits) else {
            return Vec::new();
        };
        let passes = |flow: &Flow<'_>| {
            let far = other(self.direction);
            evaluate_end(&self.after.world, &set, flow, far, self.at)
                .is_some_and(|verdict| verdict.draft.is_allow())
        };
        if denied.flows.iter().all(passes) {
            objects
        } else {
            Vec::new()
        }
    }

    /// Who the rule's peers are, as subjects: by their selectors, or by the labels of those that were met.
    fn subjects(&self, denied: &Denied<'_>) -> Vec<Selector> {
        let by_labels = || {
            denied.flows.iter().filter_map(|flow| {
                let far = match self.direction {
                    FlowDirection::Ingress => flow.from,
                    FlowDirection::Egress => flow.to,
                };
                selector_of(&self.after.world, &self.after.set, far?)
            })
        };
        let mut subjects: Vec<Selector> = Vec::new();
        if self.rule.peers.is_empty() {
            subjects.push(Selector::default());
        }
        for peer in &self.rule.peers {
            match peer {
                Peer::Selector { selector } => subjects.push(selector.clone()),
                Peer::Entity {
                    entity: Entity::Any | Entity::Managed,
                } => subjects.push(Selector::default()),
                Peer::Cidr { .. } | Peer::Group { .. } => subjects.extend(by_labels()),
                Peer::Entity { .. } => {}
            }
        }
        subjects.sort();
        subjects.dedup();
        subjects
    }

    fn mirrored(&self, subject: Selector, denied: &Denied<'_>, index: usize) -> Object {
        let far = other(self.direction);
        let rules = Some(vec![Rule {
            name: None,
            action: Action::Allow,
            peers: vec![Peer::Selector {
                selector: self.policy.subject.clone(),
            }],
            ports: self.rule.ports.clone(),
            keep: false,
            audit: false,
            place: Place::default(),
        }]);
        let (ingress, egress) = match far {
            FlowDirection::Ingress => (rules, None),
            FlowDirection::Egress => (None, rules),
        };
        let slug: String = (self
            .name
            .split_once('/')
            .map_or(self.name, |(_, rest)| rest))
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
        let number = if index == 0 {
            String::new()
        } else {
            format!("-{}", index + 1)
        };
        Object::Policy(Policy {
            metadata: Metadata {
                name: format!("{}-{}{number}", slug.trim_matches('-'), direction_name(far)),
                owner: self.policy.metadata.owner.clone(),
                ..Metadata::default()
            },
            kind: PolicyKind::Policy,
            tier: self.tier(&subject, denied),
            priority: 1000,
            subject,
            state: State::Staged,
            ingress,
            egress,
            ..Policy::default()
        })
    }

    /// A policy of the standard tier would close what nobody closes yet: where the baseline tier speaks
    /// for these workloads, the proposal goes there.
    fn tier(&self, subject: &Selector, denied: &Denied<'_>) -> Tier {
        let open = denied.by.keys().all(|rule| rule == names::DEFAULT_DENY);
        let far = other(self.direction);
        let speaks = (self.after.set.policies().iter())
            .filter(|policy| policy.tier == Tier::Baseline && policy.rules(far).is_some())
            .any(|policy| {
                let workloads = self.after.world.workloads().iter();
                workloads
                    .filter(|workload| subject.matches(*workload))
                    .any(|workload| policy.subject.matches(workload))
            });
        if open && speaks {
            Tier::Baseline
        } else {
            Tier::Standard
        }
    }
}

fn owner(workload: Option<&Workload>, address: IpAddr) -> String {
    workload.map_or_else(|| address.to_string(), Workload::full_name)
}

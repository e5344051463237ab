//! Policies as one host endpoint sees them: a flat list of units in the order of evaluation.
//!
//! This walk is written apart from [`crate::walk`] on purpose: the property tests compare the two.

use std::collections::BTreeMap;

use datapath::drop_reason::DropReason;
use time::OffsetDateTime;

use super::CompileInput;
use super::names::Names;
use crate::matching::{PeerClass, PeerView, blocks, peers_match};
use crate::model::{Action, DefaultAction, NamedPort, Peer, State, Tier};
use crate::ports::{PortBlock, PortSpec};
use crate::posture::Posture;
use crate::set::is_live;
use crate::snapshot::{CellVerdict, FlowDirection};
use crate::walk::{closed_name, direction_name, names, policy_name};
use crate::world::Workload;

use super::identities::PeerIdentity;

/// Where a unit stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Guardrail,
    Grants,
    Standard,
    Baseline,
}

/// A rule as written.
struct Line<'a> {
    action: Action,
    name: u32,
    peers: &'a [Peer],
    ports: &'a [PortSpec],
    keep: bool,
    audit: bool,
}

/// A policy or a grant.
struct Unit<'a> {
    stage: Stage,
    name: String,
    expires: Option<OffsetDateTime>,
    enforced: bool,
    draft: bool,
    lines: Vec<Line<'a>>,
}

/// An entry of a filter.
struct FilterLine<'a> {
    name: u32,
    entry: &'a crate::model::FilterEntry,
}

/// What speaks about one endpoint and direction.
pub(super) struct Program<'a> {
    input: &'a CompileInput<'a>,
    pub(super) direction: FlowDirection,
    pub(super) posture: Posture,
    subject_ports: &'a [NamedPort],
    units: Vec<Unit<'a>>,
    filters: Vec<FilterLine<'a>>,
    default_rule: u32,
}

/// The lines of a program that match one peer identity; equal ones give equal tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Matched {
    unknown: bool,
    /// By unit: index and what it covers, in order.
    units: Vec<Vec<(usize, Vec<PortBlock>)>>,
    filters: Vec<(usize, Vec<PortBlock>)>,
}

/// Which policies count, and when.
#[derive(Clone, Copy)]
pub(super) enum View {
    Enforced(OffsetDateTime),
    Draft,
}

/// A verdict with the flags of the rule behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) verdict: CellVerdict,
    pub(super) keep: bool,
    pub(super) audit: bool,
    pub(super) hard: bool,
}

/// A point in (protocol, port) space; `None` stands for a protocol that no rule names.
pub(super) type Point = (Option<u8>, u16);

pub(super) fn covers(blocks: &[PortBlock], (protocol, port): Point) -> bool {
    blocks.iter().any(|block| match protocol {
        Some(protocol) => block.contains(protocol, port),
        None => block.protocol.is_none(),
    })
}

impl<'a> Program<'a> {
    pub(super) fn new(
        input: &'a CompileInput<'a>,
        subject: &'a Workload,
        direction: FlowDirection,
        names: &mut Names,
    ) -> Self {
        let posture = Posture::of(input.world, input.set, subject);
        let default_rule = names.number(match posture.default_action {
            DefaultAction::Allow => names::DEFAULT_ALLOW,
            DefaultAction::Deny => names::DEFAULT_DENY,
        });
        let mut units = policies(input, subject, direction, names);
        units.extend(grants(input, subject, direction, names));
        // Stable: within a stage the order of the set stays.
        units.sort_by_key(|unit| unit.stage);
        Self {
            input,
            direction,
            posture,
            subject_ports: &subject.named_ports,
            units,
            filters: filters(input, subject, direction, names),
            default_rule,
        }
    }

    /// Which lines match a peer, and what they cover.
    pub(super) fn matched(&self, peer: &PeerIdentity) -> Matched {
        let set = self.input.set;
        let named = match self.direction {
            FlowDirection::Ingress => self.subject_ports,
            FlowDirection::Egress => &peer.ports,
        };
        let units = self
            .units
            .iter()
            .map(|unit| {
                unit.lines
                    .iter()
                    .enumerate()
                    .filter(|(_, line)| {
                        peers_match(set, line.peers, peer, line.action == Action::Deny)
                    })
                    .map(|(index, line)| (index, blocks(set, line.ports, named)))
                    .filter(|(_, blocks)| !blocks.is_empty())
                    .collect()
            })
            .collect();
        let unknown = peer.class() == PeerClass::Unknown;
        let filters = self
            .filters
            .iter()
            .enumerate()
            .filter(|(_, line)| match line.entry.cidr {
                Some(cidr) => !unknown && peer.within(&cidr),
                None => !unknown || !line.entry.allow,
            })
            .map(|(index, line)| (index, blocks(set, line.entry.ports.as_slice(), &[])))
            .collect();
        Matched {
            unknown,
            units,
            filters,
        }
    }

    /// Moments at which the enforced verdict may change, in order.
    pub(super) fn deadlines(&self) -> Vec<OffsetDateTime> {
        let mut deadlines: Vec<_> = self
            .units
            .iter()
            .filter(|unit| unit.enforced)
            .filter_map(|unit| unit.expires)
            .collect();
        deadlines.sort();
        deadlines.dedup();
        deadlines
    }

    /// The verdict of the policies at a point.
    pub(super) fn outcome(
        &self,
        matched: &Matched,
        point: Point,
        view: View,
        names: &mut Names,
    ) -> Outcome {
        let mut left: Option<Stage> = None;
        let mut closed: Option<Vec<String>> = None;
        for (unit, lines) in self.units.iter().zip(&matched.units) {
            if closed.is_some() && unit.stage > Stage::Standard {
                break;
            }
            if left == Some(unit.stage) || !unit.counts(view) {
                continue;
            }
            let hit = lines.iter().find(|(_, blocks)| covers(blocks, point));
            if let Some(line) = hit.and_then(|(index, _)| unit.lines.get(*index)) {
                if line.action == Action::Pass {
                    left = Some(unit.stage);
                    closed = None;
                    continue;
                }
                return line.outcome(unit.stage);
            }
            if unit.stage == Stage::Standard {
                closed
                    .get_or_insert_default()
                    .push(unit.closing_name(self.direction));
            }
        }
        if let Some(closed) = closed {
            let rule = names.number(&closed_name(&closed));
            return self.default_outcome(false, rule, matched.unknown);
        }
        let allow = self.posture.default_action == DefaultAction::Allow;
        if allow && matched.unknown {
            let rule = names.number(names::DEFAULT_DENY);
            return self.default_outcome(false, rule, true);
        }
        self.default_outcome(allow, self.default_rule, matched.unknown)
    }

    fn default_outcome(&self, allow: bool, rule: u32, unknown: bool) -> Outcome {
        let reason = match (allow, unknown) {
            (true, _) => DropReason::None,
            (false, true) => DropReason::UnknownIdentity,
            (false, false) => DropReason::DefaultDeny,
        };
        Outcome {
            verdict: CellVerdict {
                allow,
                rule,
                reason: reason as u8,
            },
            keep: false,
            audit: false,
            hard: false,
        }
    }

    /// The filter entry that matches at a point: its rule, and whether it lets through.
    pub(super) fn filter(&self, matched: &Matched, point: Point) -> Option<(u32, bool)> {
        let (index, _) = matched
            .filters
            .iter()
            .find(|(_, blocks)| covers(blocks, point))?;
        let line = self.filters.get(*index)?;
        Some((line.name, line.entry.allow))
    }

    /// Every block whose borders matter for the policies' table.
    pub(super) fn borders(&self, matched: &Matched) -> Vec<PortBlock> {
        let lines = matched.units.iter().flatten();
        let mut borders: Vec<_> = lines.flat_map(|(_, blocks)| blocks).copied().collect();
        borders.extend(self.mode_borders());
        borders
    }

    /// Every block whose borders matter for the filters' table.
    pub(super) fn filter_borders(&self, matched: &Matched) -> Vec<PortBlock> {
        let lines = matched.filters.iter();
        let mut borders: Vec<_> = lines.flat_map(|(_, blocks)| blocks).copied().collect();
        borders.extend(self.mode_borders());
        borders
    }

    fn mode_borders(&self) -> impl Iterator<Item = PortBlock> {
        self.posture
            .selective
            .iter()
            .filter(|(direction, _)| *direction == self.direction)
            .map(|(_, block)| *block)
    }

    /// Whether the mode enforces a point.
    pub(super) fn enforces(&self, (protocol, port): Point) -> bool {
        match protocol {
            Some(protocol) => self.posture.enforces(self.direction, protocol, port),
            None => {
                use crate::snapshot::Mode;
                match self.posture.mode {
                    Mode::Observe => false,
                    Mode::Enforce | Mode::Isolate => true,
                    Mode::Selective => self.mode_borders().any(|block| block.protocol.is_none()),
                }
            }
        }
    }
}

impl Unit<'_> {
    fn counts(&self, view: View) -> bool {
        match view {
            View::Enforced(at) => self.enforced && is_live(self.expires, at),
            View::Draft => self.draft,
        }
    }

    fn closing_name(&self, direction: FlowDirection) -> String {
        format!("{}/{}", self.name, direction_name(direction))
    }
}

impl Line<'_> {
    fn outcome(&self, stage: Stage) -> Outcome {
        let allow = self.action == Action::Allow;
        let reason = if allow {
            DropReason::None
        } else {
            DropReason::PolicyDeny
        };
        Outcome {
            verdict: CellVerdict {
                allow,
                rule: self.name,
                reason: reason as u8,
            },
            keep: self.keep,
            audit: self.audit,
            hard: !allow && stage == Stage::Guardrail,
        }
    }
}

fn policies<'a>(
    input: &'a CompileInput<'a>,
    subject: &Workload,
    direction: FlowDirection,
    names: &mut Names,
) -> Vec<Unit<'a>> {
    let replaced = input.set.replaced(input.at);
    let mut units = Vec::new();
    for policy in input.set.policies() {
        let Some(rules) = policy.rules(direction) else {
            continue;
        };
        if !is_live(policy.expires, input.at) || !policy.subject.matches(subject) {
            continue;
        }
        let name = policy_name(policy);
        let lines = rules.iter().enumerate().map(|(index, rule)| Line {
            action: rule.action,
            name: names.number(&format!("{name}/{}[{index}]", direction_name(direction))),
            peers: &rule.peers,
            ports: &rule.ports,
            keep: rule.keep,
            audit: rule.audit,
        });
        units.push(Unit {
            stage: match policy.tier {
                Tier::Guardrail => Stage::Guardrail,
                Tier::Standard => Stage::Standard,
                Tier::Baseline => Stage::Baseline,
            },
            expires: policy.expires,
            enforced: policy.state == State::Enforced,
            draft: !replaced.contains(policy.metadata.name.as_str()),
            lines: lines.collect(),
            name,
        });
    }
    units
}

fn grants<'a>(
    input: &'a CompileInput<'a>,
    subject: &Workload,
    direction: FlowDirection,
    names: &mut Names,
) -> Vec<Unit<'a>> {
    input
        .set
        .grants()
        .iter()
        .filter(|grant| {
            is_live(Some(grant.expires), input.at)
                && grant.speaks(direction)
                && grant.subject.matches(subject)
        })
        .map(|grant| {
            let name = format!("grants/{}", grant.metadata.name);
            let rule = format!("{name}/{}[0]", direction_name(direction));
            Unit {
                stage: Stage::Grants,
                expires: Some(grant.expires),
                enforced: true,
                draft: true,
                lines: vec![Line {
                    action: Action::Allow,
                    name: names.number(&rule),
                    peers: &grant.peers,
                    ports: &grant.ports,
                    keep: false,
                    audit: false,
                }],
                name,
            }
        })
        .collect()
}

fn filters<'a>(
    input: &'a CompileInput<'a>,
    subject: &Workload,
    direction: FlowDirection,
    names: &mut Names,
) -> Vec<FilterLine<'a>> {
    let mut lines = Vec::new();
    for filter in input.set.filters() {
        if !filter.subject.matches(subject) {
            continue;
        }
        for (index, entry) in filter.entries.iter().enumerate() {
            if entry.direction == direction {
                let name = format!(
                    "filter/{}/{}[{index}]",
                    filter.metadata.name,
                    direction_name(direction)
                );
                lines.push(FilterLine {
                    name: names.number(&name),
                    entry,
                });
            }
        }
    }
    lines
}

/// Memo of tables by what matched.
pub(super) type Memo = BTreeMap<Matched, (u32, u32)>;

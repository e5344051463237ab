//! Questions: can any of these open a flow to any of those, and which?

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::arena::{ALL, NONE, SetId};
use super::ends::{Chosen, EndError};
use super::portset::PortSet;
use super::rows::{Part, Row};
use super::{End, Lens, Reach};
use crate::ports::{is_icmp, protocol_name};
use crate::snapshot::FlowDirection;

/// A question.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who opens the flow.
    pub from: Vec<End>,
    /// Who answers.
    pub to: Vec<End>,
    /// Which protocols and ports of it matter.
    pub ports: PortSet,
    /// Under which circumstances.
    pub lens: Lens,
    /// What is looked for.
    pub wanted: Wanted,
}

/// What a question looks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// What passes.
    #[default]
    Passing,
    /// What is denied at one end or both.
    Denied,
}

/// One side of a question: who was found to be meant.
#[derive(Clone, Debug)]
pub struct Side {
    /// Workloads with an address.
    pub workloads: usize,
    /// Networks that hold addresses without a workload.
    pub networks: usize,
    pub(super) chosen: Vec<Chosen>,
}

impl Side {
    /// Whether nobody is meant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    fn new(chosen: Vec<Chosen>) -> Self {
        let mut workloads: Vec<u32> = chosen
            .iter()
            .flat_map(|chosen| &chosen.members)
            .map(|member| member.workload)
            .collect();
        workloads.sort_unstable();
        workloads.dedup();
        Self {
            workloads: workloads.len(),
            networks: chosen.iter().map(|chosen| chosen.regions.len()).sum(),
            chosen,
        }
    }
}

/// What was found: for every pair of classes, the protocols and ports that were looked for.
#[derive(Clone, Debug)]
pub struct Found {
    /// Under which circumstances.
    pub lens: Lens,
    /// What was looked for.
    pub wanted: Wanted,
    /// Who opens.
    pub from: Side,
    /// Who answers.
    pub to: Side,
    /// Pairs of classes that a flow can run between and of which one end is managed.
    pub compared: usize,
    pub(super) hits: Vec<Hit>,
}

impl Found {
    /// Whether there is no such flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hits.is_empty()
    }

    /// How many pairs of classes have such a flow.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.hits.len()
    }
}

/// Ports that were found between two classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    /// Position in [`Side::chosen`].
    pub(super) from: u32,
    /// Position in [`Side::chosen`].
    pub(super) to: u32,
    pub(super) ports: SetId,
}

/// One flow that was looked for: the plainest one there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    /// Workload that opens; `None` = the address is nobody's.
    pub from: Option<String>,
    /// Its address.
    pub from_address: IpAddr,
    /// Workload that answers.
    pub to: Option<String>,
    /// Its address.
    pub to_address: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; ICMP: type × 256 + code.
    pub port: u16,
    /// What the source's egress says; `None` = it is not managed.
    pub egress: Option<RuleAt>,
    /// What the destination's ingress says.
    pub ingress: Option<RuleAt>,
}

/// What one end says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RuleAt {
    /// Whether it lets the flow pass.
    pub allow: bool,
    /// Rule that decided, as the evaluator names it.
    pub rule: String,
    /// The rule denies, but the workload's mode only observes.
    pub observed: bool,
}

impl RuleAt {
    pub(super) fn of(part: &Part) -> Self {
        Self {
            allow: part.allow,
            rule: part.rule.to_string(),
            observed: part.observed,
        }
    }
}

/// `allowed by standard/shop-db/ingress[0]`.
impl fmt::Display for RuleAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.allow, self.observed) {
            (_, true) => write!(f, "only observed, denied by {}", self.rule),
            (true, false) => write!(f, "allowed by {}", self.rule),
            (false, false) => write!(f, "denied by {}", self.rule),
        }
    }
}

/// `web-1 (10.0.0.5) → db-1 (10.0.1.9) tcp/5432: egress allowed by …; ingress allowed by …`.
impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |name: &Option<String>, address: &IpAddr| match name {
            Some(name) => format!("{name} ({address})"),
            None => address.to_string(),
        };
        let said = |rule: &Option<RuleAt>| {
            rule.as_ref()
                .map_or_else(|| "not managed".to_owned(), ToString::to_string)
        };
        write!(
            f,
            "{} → {} {}: egress {}; ingress {}",
            end(&self.from, &self.from_address),
            end(&self.to, &self.to_address),
            port_text(self.protocol, self.port),
            said(&self.egress),
            said(&self.ingress),
        )
    }
}

/// `tcp/443`, `icmp/8:0` or `47`.
pub(super) fn port_text(protocol: u8, port: u16) -> String {
    let name = protocol_name(protocol);
    if is_icmp(protocol) {
        let [kind, code] = port.to_be_bytes();
        format!("{name}/{kind}:{code}")
    } else if datapath::ids::protocol::has_ports(protocol) {
        format!("{name}/{port}")
    } else {
        format!("protocol {name}")
    }
}

impl Reach<'_> {
    /// Answers a question.
    ///
    /// # Errors
    /// When an end names a workload or an address group that is not there. An end that means nobody
    /// is no error: the side that was found is empty.
    pub fn ask(&mut self, question: &Question) -> Result<Found, EndError> {
        let from = Side::new(self.choose(&question.from)?);
        let to = Side::new(self.choose(&question.to)?);
        let ports = self.rows.arena.number(question.ports.clone());
        let (mut hits, mut compared) = (Vec::new(), 0);
        // The rows of the destinations are looked up once, not once a pair.
        let ingress: Vec<Option<Row>> = to
            .chosen
            .iter()
            .map(|to| self.side_row(to.class, FlowDirection::Ingress, question.lens))
            .collect();
        for (source, from_at) in from.chosen.iter().zip(0..) {
            let egress = self.side_row(source.class, FlowDirection::Egress, question.lens);
            for ((destination, ingress), to_at) in to.chosen.iter().zip(&ingress).zip(0..) {
                if !self.is_pair(source, destination) {
                    continue;
                }
                compared += 1;
                let passing = self.between(
                    source.class,
                    egress.as_ref(),
                    destination.class,
                    ingress.as_ref(),
                );
                let arena = &mut self.rows.arena;
                let wanted = match question.wanted {
                    Wanted::Passing => arena.intersection(passing, ports),
                    Wanted::Denied => arena.difference(ports, passing),
                };
                if wanted != NONE {
                    hits.push(Hit {
                        from: from_at,
                        to: to_at,
                        ports: wanted,
                    });
                }
            }
        }
        Ok(Found {
            lens: question.lens,
            wanted: question.wanted,
            from,
            to,
            compared,
            hits,
        })
    }

    /// The row of a class, if it is managed.
    pub(super) fn side_row(
        &mut self,
        class: u32,
        direction: FlowDirection,
        lens: Lens,
    ) -> Option<Row> {
        let subject = self.rows.classes.list.get(class as usize)?.subject?;
        Some(self.rows.row(subject, direction, lens))
    }

    /// What passes between two classes at both ends.
    pub(super) fn between(
        &mut self,
        from: u32,
        egress: Option<&Row>,
        to: u32,
        ingress: Option<&Row>,
    ) -> SetId {
        let list = &self.rows.classes.list;
        let side = |class: u32| {
            list.get(class as usize)
                .map_or(0, |class| class.peer as usize)
        };
        let at = |row: Option<&Row>, side: usize| {
            row.map_or(ALL, |row| row.get(side).copied().unwrap_or(NONE))
        };
        let (out, into) = (at(egress, side(to)), at(ingress, side(from)));
        self.rows.arena.intersection(out, into)
    }

    /// Whether a flow can run between two classes, and one end of it is managed.
    fn is_pair(&self, from: &Chosen, to: &Chosen) -> bool {
        // The only workload of both would speak with itself.
        let alone = from.only.is_some() && from.only == to.only;
        let nobody_else = from.regions.is_empty() && to.regions.is_empty();
        self.may_meet(from.class, to.class) && !(alone && nobody_else)
    }

    /// Whether two classes have their family in common, and one is managed.
    pub(super) fn may_meet(&self, from: u32, to: u32) -> bool {
        let list = &self.rows.classes.list;
        let (Some(from), Some(to)) = (list.get(from as usize), list.get(to as usize)) else {
            return false;
        };
        from.v4 == to.v4 && (from.subject.is_some() || to.subject.is_some())
    }

    /// On which protocols and ports any pair was found.
    #[must_use]
    pub fn ports(&mut self, found: &Found) -> PortSet {
        let arena = &mut self.rows.arena;
        let all = found
            .hits
            .iter()
            .fold(NONE, |all, hit| arena.union(all, hit.ports));
        arena.get(all).clone()
    }

    /// The plainest flow of what was found, always the same one: two workloads before an address that
    /// is nobody's, a familiar protocol and port before others, then by the names of the two ends.
    #[must_use]
    pub fn example(&mut self, found: &Found) -> Option<Example> {
        let mut examples: HashMap<SetId, Option<(u8, u16, usize)>> = HashMap::new();
        let mut ranks = vec![u32::MAX; self.world.workloads().len()];
        for ((_, position), rank) in self.world.positions_by_name().zip(0..) {
            if let Some(entry) = ranks.get_mut(position) {
                *entry = rank;
            }
        }
        let best = found
            .hits
            .iter()
            .filter_map(|hit| {
                let arena = &self.rows.arena;
                let example = examples
                    .entry(hit.ports)
                    .or_insert_with(|| arena.get(hit.ports).example());
                let (_, port, rank) = (*example)?;
                let from = found.from.chosen.get(hit.from as usize)?;
                let to = found.to.chosen.get(hit.to as usize)?;
                let (source, destination) = first_pair(from, to);
                let name = |member: Option<super::classes::Member>| {
                    member.map_or(0, |member| {
                        ranks
                            .get(member.workload as usize)
                            .copied()
                            .unwrap_or(u32::MAX)
                    })
                };
                let strangers = usize::from(source.is_none()) + usize::from(destination.is_none());
                let order = (
                    strangers,
                    rank,
                    port,
                    name(source),
                    name(destination),
                    hit.from,
                    hit.to,
                );
                Some((order, hit, source, destination))
            })
            .min_by_key(|(order, ..)| *order);
        let (_, hit, source, destination) = best?;
        let (protocol, port, _) = (*examples.get(&hit.ports)?)?;
        let from = found.from.chosen.get(hit.from as usize)?;
        let to = found.to.chosen.get(hit.to as usize)?;
        let address = |chosen: &Chosen, member: Option<super::classes::Member>| match member {
            Some(member) => Some(member.address),
            None => self.rows.classes.space.stranger(chosen.regions.first()?),
        };
        let name = |member: Option<super::classes::Member>| {
            let workload = self.world.workloads().get(member?.workload as usize);
            workload.map(crate::world::Workload::full_name)
        };
        let (from_address, to_address) = (address(from, source)?, address(to, destination)?);
        let (from_name, to_name) = (name(source), name(destination));
        let (from, to) = (from.class, to.class);
        Some(Example {
            from: from_name,
            from_address,
            to: to_name,
            to_address,
            protocol,
            port,
            egress: self.rule_at(
                from,
                FlowDirection::Egress,
                to,
                (protocol, port),
                found.lens,
            ),
            ingress: self.rule_at(
                to,
                FlowDirection::Ingress,
                from,
                (protocol, port),
                found.lens,
            ),
        })
    }

    /// What one end says about a protocol and port; `None` when it is not managed.
    pub(super) fn rule_at(
        &mut self,
        own: u32,
        direction: FlowDirection,
        other: u32,
        (protocol, port): (u8, u16),
        lens: Lens,
    ) -> Option<RuleAt> {
        let list = &self.rows.classes.list;
        let subject = list.get(own as usize)?.subject?;
        let side = list.get(other as usize)?.peer;
        let parts = self.rows.parts(subject, direction, side, lens);
        let part = parts
            .iter()
            .find(|part| self.rows.arena.get(part.ports).contains(protocol, port))?;
        Some(RuleAt::of(part))
    }
}

/// The first two different workloads of two parts of classes; `None` = a stranger.
fn first_pair(
    from: &Chosen,
    to: &Chosen,
) -> (
    Option<super::classes::Member>,
    Option<super::classes::Member>,
) {
    let first = from.members.first();
    if let (Some(first), Some(other)) = (first, to.members.first())
        && first.workload == other.workload
    {
        // Either side may have somebody else; the pair that comes first by names wins.
        let later = to
            .members
            .iter()
            .find(|member| member.workload != first.workload);
        let earlier = from
            .members
            .iter()
            .find(|member| member.workload != other.workload);
        return match (later, earlier) {
            (Some(later), _) => (Some(*first), Some(*later)),
            (None, earlier) => (earlier.copied(), Some(*other)),
        };
    }
    (first.copied(), to.members.first().copied())
}

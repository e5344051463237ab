//! How far somebody comes: workloads that can be reached in one hop, and over others in any number.
//!
//! A hop is a new flow from one workload to another. What runs over machines without an agent is not
//! seen, and not counted: nothing is decided between two of them.

use std::collections::{BTreeSet, VecDeque};

use serde::Serialize;
use time::OffsetDateTime;

use super::arena::{NONE, SetId};
use super::ask::{RuleAt, port_text};
use super::ends::{Chosen, EndError};
use super::portset::PortSet;
use super::rows::Row;
use super::{End, Lens, Reach};
use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::world::World;

/// Which way the hops are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Who can be reached from the start.
    #[default]
    From,
    /// Who can reach the start.
    To,
}

/// Everybody that can be reached from a start, or can reach it.
#[derive(Clone, Debug)]
pub struct Spread {
    /// Which way.
    pub direction: Direction,
    /// Under which circumstances.
    pub lens: Lens,
    ports: SetId,
    /// By workload: how it was found.
    found: Vec<Option<Hop>>,
    /// In the order in which they were found: by hops, then by class and name.
    order: Vec<u32>,
}

/// How a workload was found.
#[derive(Clone, Copy, Debug)]
struct Hop {
    /// Hops from the start; 0 = it is the start.
    hops: usize,
    /// The workload before it, nearer to the start; `None` = the start, or a start without a workload.
    before: Option<u32>,
    /// Its class, and that of the one before it.
    classes: (u32, u32),
}

/// One workload of a [`Spread`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// Full name.
    pub name: String,
    /// How many flows it takes, from 1.
    pub hops: usize,
    /// Flows to it from the start, or from it to the start, in the order in which they run.
    pub path: Vec<Step>,
}

/// One flow of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Who opens it; an address where it is no workload.
    pub from: String,
    /// Who answers.
    pub to: String,
    /// Every protocol and port that will do.
    pub ports: PortSet,
    /// One of them.
    pub protocol: u8,
    /// One of them; ICMP: type × 256 + code.
    pub port: u16,
    /// What the source's egress says about that one.
    pub egress: Option<RuleAt>,
    /// What the destination's ingress says about that one.
    pub ingress: Option<RuleAt>,
}

/// `web-1 → db-1 tcp/5432: egress allowed by …; ingress allowed by …`.
impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let said = |rule: &Option<RuleAt>| {
            let text = rule.as_ref().map(ToString::to_string);
            text.unwrap_or_else(|| "not managed".to_owned())
        };
        write!(
            f,
            "{} → {} {}: egress {}; ingress {}",
            self.from,
            self.to,
            port_text(self.protocol, self.port),
            said(&self.egress),
            said(&self.ingress)
        )
    }
}

/// How far one workload comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlastRadius {
    /// The workload.
    pub workload: String,
    /// Workloads that it can open a flow to, by name.
    pub direct: Vec<String>,
    /// Workloads that it can come to over any number of others, `direct` included, by name.
    pub all: Vec<String>,
}

/// Who a workload could come to if somebody took it over, on any protocol and port.
///
/// For several workloads of one world and set, make one [`Reach`] and call
/// [`Reach::blast_radius`] for each: most of the work is done once.
///
/// # Errors
/// When there is no such workload.
pub fn blast_radius(
    world: &World,
    set: &PolicySet,
    workload: &str,
    lens: Lens,
    at: OffsetDateTime,
) -> Result<BlastRadius, EndError> {
    Reach::new(world, set, at).blast_radius(workload, lens)
}

impl Reach<'_> {
    /// Who a workload could come to if somebody took it over, on any protocol and port.
    ///
    /// # Errors
    /// When there is no such workload.
    pub fn blast_radius(&mut self, workload: &str, lens: Lens) -> Result<BlastRadius, EndError> {
        let start = [End::Workload(workload.to_owned())];
        let spread = self.spread(&start, &PortSet::ALL, lens, Direction::From)?;
        let names = |hops: &dyn Fn(usize) -> bool| {
            let mut names: Vec<String> = spread
                .order
                .iter()
                .filter(|at| spread.hops(**at).is_some_and(hops))
                .map(|at| self.name(*at))
                .collect();
            names.sort();
            names
        };
        Ok(BlastRadius {
            workload: workload.to_owned(),
            direct: names(&|hops| hops == 1),
            all: names(&|hops| hops >= 1),
        })
    }

    /// Follows flows on some ports from a start, or against their direction to it, hop by hop.
    ///
    /// # Errors
    /// When the start names a workload or an address group that is not there.
    pub fn spread(
        &mut self,
        start: &[End],
        ports: &PortSet,
        lens: Lens,
        direction: Direction,
    ) -> Result<Spread, EndError> {
        let chosen = self.choose(start)?;
        let ports = self.rows.arena.number(ports.clone());
        Ok(self.follow(&chosen, ports, lens, direction))
    }

    /// The shortest way from some ends to others on some ports, over any number of workloads; no way
    /// leads from a workload to itself.
    ///
    /// # Errors
    /// When an end names a workload or an address group that is not there.
    pub fn way(
        &mut self,
        from: &[End],
        to: &[End],
        ports: &PortSet,
        lens: Lens,
    ) -> Result<Option<Vec<Step>>, EndError> {
        let (start, goal) = (self.choose(from)?, self.choose(to)?);
        let ports = self.rows.arena.number(ports.clone());
        let spread = self.follow(&start, ports, lens, Direction::From);
        let workloads = |side: &[Chosen]| -> BTreeSet<u32> {
            let members = side.iter().flat_map(|chosen| &chosen.members);
            members.map(|member| member.workload).collect()
        };
        let (starts, goals) = (workloads(&start), workloads(&goal));
        let nearest = goals
            .iter()
            .filter(|goal| !starts.contains(goal))
            .filter_map(|goal| Some((spread.hops(*goal)?, self.name(*goal), *goal)))
            .min();
        let mut best = nearest.and_then(|(_, _, goal)| self.path(&spread, goal));
        // Whoever is on both sides may still be reached from the others.
        for both in starts.intersection(&goals) {
            let others = without(&start, *both);
            let spread = self.follow(&others, ports, lens, Direction::From);
            let path = self.path(&spread, *both);
            best = [best, path]
                .into_iter()
                .flatten()
                .min_by_key(|path| path.hops);
            if best.as_ref().is_some_and(|best| best.hops == 1) {
                break;
            }
        }
        let beyond = self.beyond(&spread, &start, &goal);
        let ways = [best.map(|reached| reached.path), beyond];
        Ok(ways.into_iter().flatten().min_by_key(Vec::len))
    }

    /// The shortest way to an address that is nobody's.
    fn beyond(&mut self, spread: &Spread, start: &[Chosen], goal: &[Chosen]) -> Option<Vec<Step>> {
        let mut near: Vec<(usize, u32, u32)> = Vec::new();
        for chosen in start {
            near.extend(
                chosen
                    .members
                    .iter()
                    .map(|member| (0, chosen.class, member.workload)),
            );
        }
        for workload in &spread.order {
            let classes = self.rows.classes.of.get(*workload as usize);
            let hops = spread.hops(*workload).unwrap_or_default();
            near.extend(
                classes
                    .into_iter()
                    .flatten()
                    .map(|class| (hops, *class, *workload)),
            );
        }
        near.sort_by_key(|(hops, ..)| *hops);
        let mut seen = BTreeSet::new();
        for (_, class, workload) in near {
            if !seen.insert(class) {
                continue;
            }
            for chosen in goal.iter().filter(|chosen| !chosen.regions.is_empty()) {
                if !self.may_meet(class, chosen.class) {
                    continue;
                }
                let row = self.side_row(class, FlowDirection::Egress, spread.lens);
                if self.passing(spread, class, row.as_ref(), chosen.class, None) == NONE {
                    continue;
                }
                let mut path = self.path(spread, workload).map(|reached| reached.path)?;
                let address = self.rows.classes.space.stranger(chosen.regions.first()?)?;
                let name = self.name(workload);
                path.push(self.flow(spread, (class, name), (chosen.class, address.to_string()))?);
                return Some(path);
            }
        }
        None
    }

    fn follow(
        &mut self,
        start: &[Chosen],
        ports: SetId,
        lens: Lens,
        direction: Direction,
    ) -> Spread {
        let mut spread = Spread {
            direction,
            lens,
            ports,
            found: vec![None; self.world.workloads().len()],
            order: Vec::new(),
        };
        let mut queue = Queue::default();
        for chosen in start {
            for member in &chosen.members {
                if let Some(entry @ None) = spread.found.get_mut(member.workload as usize) {
                    *entry = Some(Hop {
                        hops: 0,
                        before: None,
                        classes: (chosen.class, chosen.class),
                    });
                }
                // Only the address that was meant is the start, not every one of the workload.
                queue.push(chosen.class, Some(member.workload), 0);
            }
            if !chosen.regions.is_empty() {
                queue.push(chosen.class, None, 0);
            }
        }
        while let Some(visit) = queue.next.pop_front() {
            self.visit(&visit, &mut spread, &mut queue);
        }
        spread
    }

    /// Everybody one hop away from a class.
    fn visit(&mut self, visit: &Visit, spread: &mut Spread, queue: &mut Queue) {
        let (own, other) = match spread.direction {
            Direction::From => (FlowDirection::Egress, FlowDirection::Ingress),
            Direction::To => (FlowDirection::Ingress, FlowDirection::Egress),
        };
        let row = self.side_row(visit.class, own, spread.lens);
        for class in (0..).take(self.rows.classes.list.len()) {
            if !self.may_meet(visit.class, class) {
                continue;
            }
            let Some(members) = self
                .rows
                .classes
                .list
                .get(class as usize)
                .map(|class| class.members.len())
            else {
                continue;
            };
            let is_new = (0..members).any(|at| {
                let member = self
                    .rows
                    .classes
                    .list
                    .get(class as usize)
                    .and_then(|class| class.members.get(at));
                member.is_some_and(|member| {
                    spread.hops(member.workload).is_none()
                        && visit.workload != Some(member.workload)
                })
            });
            if !is_new {
                continue;
            }
            let back = self.side_row(class, other, spread.lens);
            if self.passing(spread, visit.class, row.as_ref(), class, back.as_ref()) == NONE {
                continue;
            }
            let members = self
                .rows
                .classes
                .list
                .get(class as usize)
                .map(|class| class.members.clone());
            for member in members.into_iter().flatten() {
                let Some(entry @ None) = spread.found.get_mut(member.workload as usize) else {
                    continue;
                };
                *entry = Some(Hop {
                    hops: visit.hops + 1,
                    before: visit.workload,
                    classes: (class, visit.class),
                });
                spread.order.push(member.workload);
                // Whoever has the workload has all its addresses.
                let classes = self.rows.classes.of.get(member.workload as usize);
                for class in classes.into_iter().flatten() {
                    queue.push(*class, Some(member.workload), visit.hops + 1);
                }
            }
        }
    }

    /// What passes between a class that was visited and another one, on the ports that are meant.
    fn passing(
        &mut self,
        spread: &Spread,
        near: u32,
        near_row: Option<&Row>,
        far: u32,
        far_row: Option<&Row>,
    ) -> SetId {
        let passing = match spread.direction {
            Direction::From => self.between(near, near_row, far, far_row),
            Direction::To => self.between(far, far_row, near, near_row),
        };
        self.rows.arena.intersection(passing, spread.ports)
    }

    fn name(&self, workload: u32) -> String {
        let workload = self.world.workloads().get(workload as usize);
        workload
            .map(crate::world::Workload::full_name)
            .unwrap_or_default()
    }

    /// Every workload of a spread but the start, with one of the shortest paths, by hops and name.
    #[must_use]
    pub fn reached(&mut self, spread: &Spread) -> Vec<Reached> {
        let mut reached: Vec<Reached> = spread
            .order
            .clone()
            .into_iter()
            .filter_map(|workload| self.path(spread, workload))
            .collect();
        reached.sort_by(|a, b| (a.hops, &a.name).cmp(&(b.hops, &b.name)));
        reached
    }

    /// One of the shortest paths to a workload.
    fn path(&mut self, spread: &Spread, workload: u32) -> Option<Reached> {
        let hops = spread.hops(workload)?;
        let mut path = Vec::new();
        let mut at = Some(workload);
        while let Some(far) = at {
            let hop = (*spread.found.get(far as usize)?)?;
            if hop.hops == 0 {
                break;
            }
            path.push(self.step(spread, far, &hop)?);
            at = hop.before;
        }
        // They were gathered from the far end.
        if spread.direction == Direction::From {
            path.reverse();
        }
        Some(Reached {
            name: self.name(workload),
            hops,
            path,
        })
    }

    fn step(&mut self, spread: &Spread, far: u32, hop: &Hop) -> Option<Step> {
        let (class, before) = hop.classes;
        let far_name = self.name(far);
        let near_name = match hop.before {
            Some(near) => self.name(near),
            None => self.stranger_of(before)?,
        };
        let (near, far) = ((before, near_name), (class, far_name));
        match spread.direction {
            Direction::From => self.flow(spread, near, far),
            Direction::To => self.flow(spread, far, near),
        }
    }

    /// The flow from a class to another one.
    fn flow(
        &mut self,
        spread: &Spread,
        (source, from): (u32, String),
        (destination, to): (u32, String),
    ) -> Option<Step> {
        let egress = self.side_row(source, FlowDirection::Egress, spread.lens);
        let ingress = self.side_row(destination, FlowDirection::Ingress, spread.lens);
        let passing = self.between(source, egress.as_ref(), destination, ingress.as_ref());
        let meant = self.rows.arena.intersection(passing, spread.ports);
        let ports = self.rows.arena.get(meant).clone();
        let (protocol, port, _) = ports.example()?;
        let at = (protocol, port);
        Some(Step {
            from,
            to,
            ports,
            protocol,
            port,
            egress: self.rule_at(source, FlowDirection::Egress, destination, at, spread.lens),
            ingress: self.rule_at(destination, FlowDirection::Ingress, source, at, spread.lens),
        })
    }

    /// An address of a class that is no workload's.
    fn stranger_of(&self, class: u32) -> Option<String> {
        let space = &self.rows.classes.space;
        let region = self.rows.classes.list.get(class as usize)?.region?;
        Some(space.stranger(&space.region(region))?.to_string())
    }
}

impl Spread {
    /// How many workloads were found, the start left out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether nobody was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn hops(&self, workload: u32) -> Option<usize> {
        let hop = self.found.get(workload as usize)?;
        hop.map(|hop| hop.hops)
    }
}

/// Some ends but for one workload.
fn without(side: &[Chosen], workload: u32) -> Vec<Chosen> {
    let mut rest = side.to_vec();
    for chosen in &mut rest {
        chosen.members.retain(|member| member.workload != workload);
    }
    rest.retain(|chosen| !chosen.members.is_empty() || !chosen.regions.is_empty());
    rest
}

/// Classes to visit, each at most once for two different workloads: a second one matters, as the
/// first cannot open a flow to itself.
#[derive(Default)]
struct Queue {
    next: VecDeque<Visit>,
    visited: std::collections::HashMap<u32, Vec<Option<u32>>>,
}

struct Visit {
    class: u32,
    /// `None` = its strangers.
    workload: Option<u32>,
    hops: usize,
}

impl Queue {
    fn push(&mut self, class: u32, workload: Option<u32>, hops: usize) {
        let visited = self.visited.entry(class).or_default();
        if visited.len() < 2 && !visited.contains(&workload) {
            visited.push(workload);
            self.next.push_back(Visit {
                class,
                workload,
                hops,
            });
        }
    }
}

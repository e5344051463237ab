//! What one end lets through, for every peer at once.
//!
//! All peers begin as one group. Each line of the subject's program splits the groups that it tells
//! apart and moves ports from "not decided yet" to "allowed" or "denied"; groups that came to the
//! same are one again. So the work grows with what rules distinguish, not with pairs of classes.

use std::collections::HashMap;
use std::sync::Arc;

use super::Lens;
use super::arena::{ALL, Arena, NONE, SetId};
use super::bits::Bits;
use super::classes::{Classes, Subject};
use super::portset::PortSet;
use super::program::{Covered, Line, Program, Stage, Unit};
use crate::matching::PeerClass;
use crate::model::{Action, DefaultAction};
use crate::posture::Posture;
use crate::snapshot::{FlowDirection, Mode};
use crate::walk::{closed_name, names};

/// What one end lets through: by peer side.
pub(super) type Row = Arc<[SetId]>;

/// What is known of a group of peers while the lines are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Progress {
    /// Not decided yet.
    open: SetId,
    /// Has left the stage by a `pass`.
    passed: SetId,
    /// Passes.
    allowed: SetId,
}

/// A part of the protocols and ports that one rule decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) ports: SetId,
    pub(super) allow: bool,
    pub(super) rule: Arc<str>,
    /// Denied by the rule, but the mode lets it through.
    pub(super) observed: bool,
}

/// Groups of peers with their progress.
type Groups = Vec<(Bits, Progress)>;

/// The walk at the ends of one world and set.
pub(super) struct Rows<'a> {
    pub(super) classes: Classes,
    pub(super) program: Program<'a>,
    pub(super) arena: Arena,
    known: Bits,
    isolated: Bits,
    rows: HashMap<(u32, FlowDirection, Lens), Row>,
    parts: HashMap<(u32, FlowDirection, u32, Lens), Arc<[Part]>>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(classes: Classes, program: Program<'a>, arena: Arena) -> Self {
        let count = classes.peers.len();
        let (mut known, mut isolated) = (Bits::none(count), Bits::none(count));
        for (side, peer) in classes.peers.iter().enumerate() {
            if peer.class != PeerClass::Unknown {
                known.set(side);
            }
            if peer.isolated {
                isolated.set(side);
            }
        }
        Self {
            classes,
            program,
            arena,
            known,
            isolated,
            rows: HashMap::new(),
            parts: HashMap::new(),
        }
    }

    /// What a subject lets through in a direction.
    pub(super) fn row(&mut self, subject: u32, direction: FlowDirection, lens: Lens) -> Row {
        if let Some(row) = self.rows.get(&(subject, direction, lens)) {
            return row.clone();
        }
        let row = self.compute(subject, direction, lens);
        self.rows.insert((subject, direction, lens), row.clone());
        row
    }

    fn compute(&mut self, number: u32, direction: FlowDirection, lens: Lens) -> Row {
        let count = self.classes.peers.len();
        let mut row = vec![NONE; count];
        let Some(subject) = self.classes.subjects.get(number as usize) else {
            return row.into();
        };
        let Some(posture) = self.classes.postures.get(subject.posture as usize) else {
            return row.into();
        };
        if posture.mode != Mode::Isolate {
            let unenforced = unenforced(&mut self.arena, posture, direction, lens);
            let groups = walk(
                &self.program,
                &mut self.arena,
                subject,
                direction,
                lens,
                Bits::all(count).minus(&self.isolated),
            );
            let open_to_known = posture.default_action == DefaultAction::Allow;
            for (bits, progress) in groups {
                for side in bits.iter() {
                    let mut allowed = progress.allowed;
                    if open_to_known && self.known.get(side) {
                        allowed = self.arena.union(allowed, progress.open);
                    }
                    if let Some(entry) = row.get_mut(side) {
                        *entry = self.arena.union(allowed, unenforced);
                    }
                }
            }
        }
        for (entry, peer) in row.iter_mut().zip(&self.classes.peers) {
            // Whatever stays within the workload never leaves it.
            if peer
                .shared
                .is_some_and(|shared| subject.shared.contains(&shared))
            {
                *entry = ALL;
            }
        }
        row.into()
    }

    /// Which rule decides what for one peer: disjoint, and together everything.
    pub(super) fn parts(
        &mut self,
        subject: u32,
        direction: FlowDirection,
        side: u32,
        lens: Lens,
    ) -> Arc<[Part]> {
        let key = (subject, direction, side, lens);
        if let Some(parts) = self.parts.get(&key) {
            return parts.clone();
        }
        let parts: Arc<[Part]> = self.decide(subject, direction, side, lens).into();
        self.parts.insert(key, parts.clone());
        parts
    }

    fn decide(
        &mut self,
        number: u32,
        direction: FlowDirection,
        side: u32,
        lens: Lens,
    ) -> Vec<Part> {
        let Some(subject) = self.classes.subjects.get(number as usize) else {
            return Vec::new();
        };
        let posture = self.classes.postures.get(subject.posture as usize);
        let peer = self.classes.peers.get(side as usize);
        let (Some(posture), Some(peer)) = (posture, peer) else {
            return Vec::new();
        };
        let whole = |allow, rule: &str| {
            vec![Part {
                ports: ALL,
                allow,
                rule: rule.into(),
                observed: false,
            }]
        };
        if peer
            .shared
            .is_some_and(|shared| subject.shared.contains(&shared))
        {
            return whole(true, names::LOOPBACK);
        }
        if posture.mode == Mode::Isolate || peer.isolated {
            return whole(false, names::ISOLATION);
        }
        let unenforced = unenforced(&mut self.arena, posture, direction, lens);
        let mut teller = Teller {
            program: &self.program,
            arena: &mut self.arena,
            subject,
            direction,
            side: side as usize,
            parts: Vec::new(),
        };
        let open = teller.walk(lens);
        if open != NONE {
            let allow =
                posture.default_action == DefaultAction::Allow && self.known.get(side as usize);
            let rule = if allow {
                names::DEFAULT_ALLOW
            } else {
                names::DEFAULT_DENY
            };
            teller.tell(open, allow, rule.into());
        }
        let parts = teller.parts;
        observe(&mut self.arena, parts, unenforced)
    }
}

/// Splits denied parts by whether the mode drops them.
fn observe(arena: &mut Arena, parts: Vec<Part>, unenforced: SetId) -> Vec<Part> {
    let mut split = Vec::new();
    for part in parts {
        let observed = if part.allow {
            NONE
        } else {
            arena.intersection(part.ports, unenforced)
        };
        if observed == NONE {
            split.push(part);
            continue;
        }
        let dropped = arena.difference(part.ports, observed);
        if dropped != NONE {
            split.push(Part {
                ports: dropped,
                ..part.clone()
            });
        }
        split.push(Part {
            ports: observed,
            allow: true,
            observed: true,
            ..part
        });
    }
    split
}

/// What the mode does not drop.
fn unenforced(arena: &mut Arena, posture: &Posture, direction: FlowDirection, lens: Lens) -> SetId {
    if lens != Lens::Enforced {
        return NONE;
    }
    match posture.mode {
        Mode::Observe => ALL,
        Mode::Enforce | Mode::Isolate => NONE,
        Mode::Selective => {
            let of_direction = posture
                .selective
                .iter()
                .filter(|(own, _)| *own == direction);
            let blocks: Vec<_> = of_direction.map(|(_, block)| *block).collect();
            arena.number(PortSet::ALL.difference(&PortSet::of(&blocks)))
        }
    }
}

/// Units of a subject and stage that count and speak for the direction, with their lines.
fn units<'p, 'a>(
    program: &'p Program<'a>,
    subject: &Subject,
    stage: Stage,
    direction: FlowDirection,
    lens: Lens,
) -> impl Iterator<Item = (&'p Unit<'a>, &'p [Line])> {
    let numbers = program.by_labels.get(subject.labels as usize);
    numbers
        .into_iter()
        .flatten()
        .filter_map(|number| program.units.get(*number as usize))
        .filter(move |unit| unit.stage == stage)
        .filter(move |unit| match lens {
            Lens::Enforced | Lens::Evaluated => unit.enforced,
            Lens::Draft => unit.draft,
        })
        .filter_map(move |unit| Some((unit, unit.lines(direction)?)))
}

/// Reads the lines of all stages for all peers that are not isolated.
fn walk(
    program: &Program<'_>,
    arena: &mut Arena,
    subject: &Subject,
    direction: FlowDirection,
    lens: Lens,
    peers: Bits,
) -> Groups {
    let begin = Progress {
        open: ALL,
        passed: NONE,
        allowed: NONE,
    };
    let mut groups = vec![(peers, begin)];
    for stage in Stage::ALL {
        let mut speaks = false;
        for (_, lines) in units(program, subject, stage, direction, lens) {
            speaks = true;
            for line in lines {
                let (peers, covered) = program.matches(line, direction, subject.ports);
                match covered {
                    Covered::Same(ports) => {
                        groups = apply(arena, groups, line.action, peers, ports);
                    }
                    Covered::ByPeer(variants) => {
                        for (bits, ports) in variants {
                            groups = apply(arena, groups, line.action, &peers.and(bits), *ports);
                        }
                    }
                }
            }
        }
        if !speaks {
            continue;
        }
        for (_, progress) in &mut groups {
            // Only the standard tier closes a direction.
            let left = if stage == Stage::Standard {
                NONE
            } else {
                progress.open
            };
            progress.open = arena.union(left, progress.passed);
            progress.passed = NONE;
        }
        groups = merge(groups);
    }
    groups
}

/// One line: what of its ports is open moves on, for the peers that it matches.
fn apply(arena: &mut Arena, groups: Groups, action: Action, peers: &Bits, ports: SetId) -> Groups {
    let mut after = Vec::with_capacity(groups.len() + 1);
    let mut changed = false;
    for (bits, progress) in groups {
        let taken = arena.intersection(progress.open, ports);
        if taken == NONE || bits.is_disjoint(peers) {
            after.push((bits, progress));
            continue;
        }
        changed = true;
        let open = arena.difference(progress.open, taken);
        let moved = match action {
            Action::Allow => Progress {
                open,
                allowed: arena.union(progress.allowed, taken),
                ..progress
            },
            Action::Pass => Progress {
                open,
                passed: arena.union(progress.passed, taken),
                ..progress
            },
            Action::Deny => Progress { open, ..progress },
        };
        let rest = bits.minus(peers);
        let hit = bits.and(peers);
        if !rest.is_empty() {
            after.push((rest, progress));
        }
        after.push((hit, moved));
    }
    if changed { merge(after) } else { after }
}

/// Joins groups that came to the same.
fn merge(groups: Groups) -> Groups {
    let mut at: HashMap<Progress, usize> = HashMap::with_capacity(groups.len());
    let mut merged: Groups = Vec::with_capacity(groups.len());
    for (bits, progress) in groups {
        match at.get(&progress).and_then(|index| merged.get_mut(*index)) {
            Some((known, _)) => known.add(&bits),
            None => {
                at.insert(progress, merged.len());
                merged.push((bits, progress));
            }
        }
    }
    merged
}

/// The same walk for one peer, which remembers who decided what.
struct Teller<'p, 'a> {
    program: &'p Program<'a>,
    arena: &'p mut Arena,
    subject: &'p Subject,
    direction: FlowDirection,
    side: usize,
    parts: Vec<Part>,
}

impl Teller<'_, '_> {
    /// What no stage decided.
    fn walk(&mut self, lens: Lens) -> SetId {
        let program = self.program;
        let mut open = ALL;
        for stage in Stage::ALL {
            let mut passed = NONE;
            let mut closed_by = Vec::new();
            for (unit, lines) in units(program, self.subject, stage, self.direction, lens) {
                let name = unit.name(self.direction);
                for line in lines {
                    let taken = self.taken(line, open);
                    if taken == NONE {
                        continue;
                    }
                    open = self.arena.difference(open, taken);
                    match line.action {
                        Action::Pass => passed = self.arena.union(passed, taken),
                        action => {
                            let rule = format!("{name}[{}]", line.index);
                            self.tell(taken, action == Action::Allow, rule.into());
                        }
                    }
                }
                closed_by.push(name);
            }
            if stage == Stage::Standard && !closed_by.is_empty() && open != NONE {
                self.tell(open, false, closed_name(&closed_by).into());
                open = NONE;
            }
            open = self.arena.union(open, passed);
        }
        open
    }

    /// What a line matches of what is open.
    fn taken(&mut self, line: &Line, open: SetId) -> SetId {
        let (peers, covered) = self
            .program
            .matches(line, self.direction, self.subject.ports);
        if !peers.get(self.side) {
            return NONE;
        }
        let ports = match covered {
            Covered::Same(ports) => ports,
            Covered::ByPeer(variants) => variants
                .iter()
                .find(|(bits, _)| bits.get(self.side))
                .map_or(NONE, |(_, ports)| *ports),
        };
        self.arena.intersection(open, ports)
    }

    fn tell(&mut self, ports: SetId, allow: bool, rule: Arc<str>) {
        self.parts.push(Part {
            ports,
            allow,
            rule,
            observed: false,
        });
    }
}

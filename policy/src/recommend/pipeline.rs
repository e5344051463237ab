//! The steps of a recommendation, in their order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use time::OffsetDateTime;

use super::atoms::{Atom, Index, Maker, Side, Want};
use super::cover::{Terrain, is_wide};
use super::dynamic::{self, Svc};
use super::emit::{self, Writer, day, service_name, total};
use super::existing::Existing;
use super::groups::Groups;
use super::infra::{self, Infra};
use super::keys::{self, KeyChoice, Link};
use super::measure::{Draft, Measured, side};
use super::mislabel::{self, Habit, Mislabel};
use super::observe::{NodeKind, Observations, Recording, Seen};
use super::report::{CalledOut, InfraFound, Report, Totals, WideRule};
use super::sift::{Fate, KeptOut, sift};
use super::{Options, Recommendation};
use crate::model::Object;
use crate::set::PolicySet;
use crate::world::World;

/// What stands between the steps.
pub(crate) struct Pipeline<'a> {
    world: &'a World,
    set: &'a PolicySet,
    existing: Existing<'a>,
    options: &'a Options,
    recording: Recording,
    /// By workload: somebody asked about it.
    concerned: Vec<bool>,
}

/// What is decided about the edges.
struct Sorted {
    fates: Vec<Fate>,
    services: Vec<Svc>,
    infra: Vec<Infra>,
    /// By edge: index + 1 of the infrastructure service.
    infra_of: Vec<usize>,
    choice: KeyChoice,
    groups: Groups,
}

impl<'a> Pipeline<'a> {
    pub(crate) fn new(
        world: &'a World,
        observations: Observations<'_>,
        set: &'a PolicySet,
        options: &'a Options,
        at: OffsetDateTime,
    ) -> Self {
        let concerned = world
            .workloads()
            .iter()
            .map(|workload| {
                options
                    .subject
                    .as_ref()
                    .is_none_or(|subject| subject.matches(workload))
            })
            .collect();
        Self {
            world,
            set,
            existing: Existing::new(world, set, at),
            options,
            recording: observations.finish(),
            concerned,
        }
    }

    pub(crate) fn run(mut self) -> Recommendation {
        let name = |node| node_name(self.world, &self.recording, node);
        let (fates, scanners) = sift(&self.recording, &self.existing, self.options, name);
        let mut sorted = self.sort(self.only_concerned(fates));
        let terrain = Terrain::new(self.world);
        let wants = self.wants(&mut sorted);
        let maker = Maker {
            groups: &sorted.groups,
            terrain: &terrain,
            shapes: sorted.infra.iter().map(|found| found.shape).collect(),
        };
        let atoms = maker.make(&wants);
        drop(wants);
        let unresolved = std::mem::take(&mut self.recording.unresolved);
        let draft = Draft {
            recording: &self.recording,
            groups: &sorted.groups,
            atoms: &atoms,
            index: Index::new(&sorted.groups, &atoms),
        };
        let measured = draft.measure(&sorted.fates, &self.concerned);
        let writer = Writer {
            groups: &sorted.groups,
            infra: &sorted.infra,
            processes: &self.recording.processes,
            options: self.options,
            taken: self
                .set
                .objects()
                .iter()
                .map(|object| object.metadata().name.clone())
                .collect(),
            address_groups: BTreeMap::new(),
            services: BTreeMap::new(),
        };
        let output = writer.write(&draft, &measured.evidence);
        let mislabels = self.mislabels(&sorted);
        let report = Report {
            totals: self.totals(&sorted, &measured, &output),
            coverage: measured.coverage,
            over_permission: self.existing.is_empty().then_some(measured.connections),
            over_permission_ends: measured.ends,
            over_permission_addresses: measured.addresses,
            widest: self.widest(&draft, &measured, &output),
            infrastructure: self.infrastructure(&sorted),
            kept_out: kept_out(&sorted, &measured),
            called_out: self.called_out(&sorted, &measured),
            scanners,
            mislabels,
            unresolved,
            keys: sorted.choice,
        };
        Recommendation {
            objects: output.objects,
            report,
        }
    }

    /// Ends that nobody asked about need no rule.
    fn only_concerned(&self, mut fates: Vec<Fate>) -> Vec<Fate> {
        let concerned = |node: u32| self.concerned.get(node as usize).copied().unwrap_or(false);
        for ((key, _), fate) in self.recording.edges.iter().zip(&mut fates) {
            let (source, destination) = (concerned(key.source), concerned(key.destination));
            if !source && !destination && *fate != Fate::Ignored {
                *fate = Fate::Out(KeptOut::Elsewhere);
            } else if let Fate::Wanted { egress, ingress } = fate {
                *egress &= source;
                *ingress &= destination;
                if !*egress && !*ingress {
                    *fate = Fate::Allowed;
                }
            }
        }
        fates
    }

    fn sort(&self, fates: Vec<Fate>) -> Sorted {
        let recording = &self.recording;
        // What is allowed already is part of the picture, so that it stays the same when policies come.
        let wanted: Vec<bool> = fates
            .iter()
            .map(|fate| matches!(fate, Fate::Wanted { .. } | Fate::Allowed))
            .collect();
        let services = dynamic::services(recording, &wanted, self.options.dynamic_from);
        let rows = || recording.edges.iter().zip(&wanted).zip(&services);
        let fixed = rows()
            .filter(|((_, wanted), service)| **wanted && matches!(service, Svc::Fixed { .. }))
            .map(|(((key, _), _), _)| key);
        let infra = infra::find(recording, fixed);
        let infra_of: Vec<usize> = rows()
            .map(|(((key, _), wanted), service)| {
                let is_it = |found: &Infra| {
                    matches!(service, Svc::Fixed { .. })
                        && (found.protocol, found.port) == (key.protocol, key.port)
                        && found.few.contains(&infra::ends(found.shape, key).0)
                };
                infra
                    .iter()
                    .position(is_it)
                    .filter(|_| *wanted)
                    .map_or(0, |index| index + 1)
            })
            .collect();
        let choice = keys::choose(
            self.world,
            &self.links(&wanted, &services, &infra_of),
            &self.forced(),
        );
        let groups = Groups::new(self.world, &choice.keys);
        Sorted {
            fates,
            services,
            infra,
            infra_of,
            choice,
            groups,
        }
    }

    /// Keys that the groups must have so that the subject is a whole number of them.
    fn forced(&self) -> Vec<String> {
        let subject = self.options.subject.iter();
        let keys: BTreeSet<String> = subject
            .flat_map(|subject| subject.keys())
            .map(str::to_owned)
            .collect();
        keys.into_iter().collect()
    }

    /// What the keys have to explain: the applications' traffic, or all if there is no other.
    fn links(&self, wanted: &[bool], services: &[Svc], infra_of: &[usize]) -> Vec<Link> {
        let links = |all: bool| {
            let mut numbers: HashMap<Svc, u32> = HashMap::new();
            let workloads = u32::try_from(self.recording.workloads).unwrap_or(u32::MAX);
            let mut links = BTreeSet::new();
            let rows = self
                .recording
                .edges
                .iter()
                .zip(wanted)
                .zip(services)
                .zip(infra_of);
            for ((((key, _), wanted), service), infra) in rows {
                if !wanted || (!all && *infra != 0) {
                    continue;
                }
                let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
                let node = |node: u32| match self.recording.kind(node) {
                    NodeKind::Workload => node,
                    NodeKind::World => workloads,
                    _ => workloads.saturating_add(1),
                };
                links.insert(Link {
                    source: node(key.source),
                    destination: node(key.destination),
                    service: *numbers.entry(*service).or_insert(next),
                });
            }
            links.into_iter().collect::<Vec<_>>()
        };
        let applications = links(false);
        if applications.is_empty() {
            links(true)
        } else {
            applications
        }
    }

    /// The edges that get rules; marks the others as rare or stale.
    fn wants(&self, sorted: &mut Sorted) -> Vec<Want> {
        let newest = self
            .recording
            .edges
            .iter()
            .map(|(_, seen)| seen.last)
            .max()
            .unwrap_or(0);
        let side_of = |node| side(&self.recording, &sorted.groups, node);
        let mut bundles: HashMap<Bundle, Seen> = HashMap::new();
        let rows = || {
            let edges = self
                .recording
                .edges
                .iter()
                .zip(&sorted.services)
                .zip(&sorted.infra_of);
            edges.zip(sorted.fates.iter()).enumerate().filter_map(
                |(index, (((edge, svc), infra), fate))| {
                    let (egress, ingress) = match fate {
                        Fate::Wanted { egress, ingress } => (*egress, *ingress),
                        Fate::Allowed => (false, false),
                        _ => return None,
                    };
                    Some((index, edge, *svc, *infra, egress, ingress))
                },
            )
        };
        for (_, (key, seen), svc, infra, ..) in rows() {
            let bundle = bundle(side_of(key.source), side_of(key.destination), svc, infra);
            bundles
                .entry(bundle)
                .and_modify(|sum| sum.merge(seen))
                .or_insert(*seen);
        }
        let mut out: Vec<(usize, KeptOut)> = Vec::new();
        let mut gathered: BTreeMap<Gather, Want> = BTreeMap::new();
        for (index, (key, seen), svc, infra, egress, ingress) in rows() {
            let (source, destination) = (side_of(key.source), side_of(key.destination));
            let bundle = bundle(source, destination, svc, infra);
            let sum = bundles.get(&bundle).unwrap_or(seen);
            if !egress && !ingress {
                continue;
            }
            if let Some(reason) = self.too_little(sum, newest) {
                out.push((index, reason));
                continue;
            }
            let gather = (source, destination, svc, key.port, infra, egress, ingress);
            let one_more = |want: &mut Want| {
                want.pairs += 1;
                want.seen.merge(seen);
            };
            gathered.entry(gather).and_modify(one_more).or_insert(Want {
                source,
                destination,
                svc,
                port: key.port,
                infra,
                egress,
                ingress,
                pairs: 1,
                seen: *seen,
            });
        }
        let wants = self.without_rare_strangers(gathered.into_values().collect());
        for (index, reason) in out {
            if let Some(fate) = sorted.fates.get_mut(index) {
                *fate = Fate::Out(reason);
            }
        }
        wants
    }

    /// Where peers are named one by one, one that was hardly seen is not named.
    fn without_rare_strangers(&self, mut wants: Vec<Want>) -> Vec<Want> {
        let newest = self
            .recording
            .edges
            .iter()
            .map(|(_, seen)| seen.last)
            .max()
            .unwrap_or(0);
        let mut places: BTreeMap<(Svc, bool, Option<u32>), BTreeMap<std::net::IpAddr, Seen>> =
            BTreeMap::new();
        let place = |want: &Want| match (want.source, want.destination) {
            (Side::External(address, kind), Side::Group(group)) => Some((
                (want.svc, kind == NodeKind::World, Some(group)),
                address,
                false,
            )),
            (Side::Group(group), Side::External(address, kind)) => Some((
                (want.svc, kind == NodeKind::World, Some(group)),
                address,
                true,
            )),
            _ => None,
        };
        for want in &wants {
            if let Some((place, address, _)) = place(want) {
                let of_place = places.entry(place).or_default();
                of_place
                    .entry(address)
                    .and_modify(|sum| sum.merge(&want.seen))
                    .or_insert(want.seen);
            }
        }
        wants.retain(|want| {
            let Some((place, address, _)) = place(want) else {
                return true;
            };
            let Some(of_place) = places.get(&place) else {
                return true;
            };
            let wide = place.1 && is_wide(&of_place.keys().copied().collect());
            let seen = of_place.get(&address);
            wide || seen.is_none_or(|seen| self.too_little(seen, newest).is_none())
        });
        wants
    }

    /// Whether what was seen is too little, or too old, for a rule.
    fn too_little(&self, seen: &Seen, newest: i64) -> Option<KeptOut> {
        let options = self.options;
        let stale = i64::from(options.stale_days) * 86_400;
        if stale > 0 && newest - seen.last > stale {
            return Some(KeptOut::Stale);
        }
        (seen.flows < options.min_flows || seen.periods() < options.min_periods)
            .then_some(KeptOut::Rare)
    }

    fn mislabels(&self, sorted: &Sorted) -> Vec<Mislabel> {
        let groups = u32::try_from(sorted.groups.len()).unwrap_or(u32::MAX);
        let mut numbers: BTreeMap<Svc, u32> = BTreeMap::new();
        for svc in &sorted.services {
            numbers.entry(*svc).or_default();
        }
        for (number, slot) in (0u32..).zip(numbers.values_mut()) {
            *slot = number;
        }
        let mut seen: BTreeSet<(u32, Habit)> = BTreeSet::new();
        for (((key, _), svc), fate) in self
            .recording
            .edges
            .iter()
            .zip(&sorted.services)
            .zip(&sorted.fates)
        {
            if !matches!(fate, Fate::Wanted { .. } | Fate::Allowed) {
                continue;
            }
            let (source, destination) = (
                side(&self.recording, &sorted.groups, key.source),
                side(&self.recording, &sorted.groups, key.destination),
            );
            let number = numbers.get(svc).copied().unwrap_or(0);
            for (at_source, habit) in mislabel::habits(source, destination, number, groups) {
                let node = if at_source {
                    key.source
                } else {
                    key.destination
                };
                if self.recording.is_workload(node) {
                    seen.insert((node, habit));
                }
            }
        }
        let services: Vec<Svc> = numbers.into_keys().collect();
        let habit_name = |habit: &Habit| {
            let service = match services.get(habit.service as usize) {
                Some(Svc::Fixed { protocol, port }) => service_name(*protocol, *port),
                Some(Svc::Dynamic { protocol, .. }) => {
                    format!(
                        "{} on changing ports",
                        crate::ports::protocol_name(*protocol)
                    )
                }
                None => String::new(),
            };
            let peer = habit.peer.map(|peer| match peer {
                peer if peer < groups => sorted.groups.name(peer),
                peer if peer == groups => "the world".to_owned(),
                _ => "unmanaged".to_owned(),
            });
            match (habit.provides, peer) {
                (true, Some(peer)) => format!("provides {service} to {peer}"),
                (true, None) => format!("provides {service}"),
                (false, Some(peer)) => format!("uses {service} of {peer}"),
                (false, None) => format!("uses {service}"),
            }
        };
        let mut found = mislabel::find(&sorted.groups, &seen, |node| self.name(node), habit_name);
        found.retain(|found| self.is_concerned(&found.workload));
        found
    }

    fn is_concerned(&self, workload: &str) -> bool {
        self.options.subject.as_ref().is_none_or(|subject| {
            self.world
                .workload(workload)
                .is_some_and(|workload| subject.matches(workload))
        })
    }

    fn name(&self, node: u32) -> String {
        node_name(self.world, &self.recording, node)
    }

    fn totals(&self, sorted: &Sorted, measured: &Measured, output: &emit::Output) -> Totals {
        Totals {
            workloads: self.recording.workloads,
            groups: sorted.groups.len(),
            edges: measured.coverage.edges.whole,
            policies: output
                .objects
                .iter()
                .filter(|object| matches!(object, Object::Policy(_)))
                .count(),
            rules: output.rules.len(),
        }
    }

    fn widest(
        &self,
        draft: &Draft<'_>,
        measured: &Measured,
        output: &emit::Output,
    ) -> Vec<WideRule> {
        let width = |index: &usize| {
            draft
                .atoms
                .get(*index)
                .map_or(0, |atom: &Atom| draft.width(atom))
        };
        let mut rules: Vec<WideRule> = output
            .rules
            .iter()
            .map(|rule| {
                let allowed = rule.atoms.iter().map(width).fold(0, u64::saturating_add);
                WideRule {
                    rule: rule.rule.clone(),
                    text: rule.text.clone(),
                    allowed: (allowed < u64::MAX).then_some(allowed),
                    seen: total(&rule.atoms, &measured.evidence).edges,
                }
            })
            .filter(|rule| rule.allowed.is_none_or(|allowed| allowed > rule.seen))
            .collect();
        rules.sort_by(|a, b| {
            let beyond =
                |rule: &WideRule| rule.allowed.unwrap_or(u64::MAX).saturating_sub(rule.seen);
            beyond(b).cmp(&beyond(a)).then_with(|| a.rule.cmp(&b.rule))
        });
        rules.truncate(self.options.list.min(10));
        rules
    }

    fn infrastructure(&self, sorted: &Sorted) -> Vec<InfraFound> {
        let found = sorted.infra.iter().map(|found| InfraFound {
            name: found.name.clone(),
            shape: found.shape,
            service: service_name(found.protocol, found.port),
            few: found.few.iter().map(|node| self.name(*node)).collect(),
            many: found.many,
        });
        found.collect()
    }

    /// Edges without a rule, those first that somebody should look at.
    fn called_out(&self, sorted: &Sorted, measured: &Measured) -> Vec<CalledOut> {
        let mut edges: Vec<(KeptOut, usize)> = outs(sorted, measured)
            .filter(|(_, reason)| *reason != KeptOut::Elsewhere)
            .map(|(index, reason)| (reason, index))
            .collect();
        edges.sort_unstable();
        edges.truncate(self.options.list);
        let row = |(reason, index): (KeptOut, usize)| {
            let (key, seen) = self.recording.edges.get(index)?;
            Some(CalledOut {
                from: self.name(key.source),
                to: self.name(key.destination),
                service: service_name(key.protocol, key.port),
                reason,
                flows: seen.flows,
                failed: seen.failed,
                hours: seen.periods(),
                first_seen: day(seen.first),
                last_seen: day(seen.last),
            })
        };
        edges.into_iter().filter_map(row).collect()
    }
}

/// Client side, server side, service and infrastructure; all strangers of a kind are one.
type Bundle = (u32, u32, Svc, usize);

/// Everything that tells wants apart.
type Gather = (Side, Side, Svc, u16, usize, bool, bool);

fn bundle(source: Side, destination: Side, svc: Svc, infra: usize) -> Bundle {
    let number = |side: Side| match side {
        Side::Group(group) => group,
        Side::External(_, NodeKind::World) => u32::MAX,
        Side::External(..) => u32::MAX - 1,
    };
    (number(source), number(destination), svc, infra)
}

/// Edges that the draft does not allow, with the reason. An edge that was wanted and is not covered is one of a rare
/// stranger.
fn outs<'s>(
    sorted: &'s Sorted,
    measured: &'s Measured,
) -> impl Iterator<Item = (usize, KeptOut)> + 's {
    sorted
        .fates
        .iter()
        .zip(&measured.covered)
        .enumerate()
        .filter_map(|(index, (fate, covered))| match fate {
            _ if *covered => None,
            Fate::Out(reason) => Some((index, *reason)),
            Fate::Wanted { .. } => Some((index, KeptOut::Rare)),
            Fate::Allowed | Fate::Ignored => None,
        })
}

fn kept_out(sorted: &Sorted, measured: &Measured) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for (_, reason) in outs(sorted, measured) {
        *counts.entry(reason.name()).or_default() += 1;
    }
    counts
}

fn node_name(world: &World, recording: &Recording, node: u32) -> String {
    match recording.external(node) {
        Some((address, _)) => address.to_string(),
        None => world
            .workloads()
            .get(node as usize)
            .map(crate::world::Workload::full_name)
            .unwrap_or_default(),
    }
}

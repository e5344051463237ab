//! A change of policy against the traffic that was recorded: what it would have blocked and allowed.
//!
//! [`record`] reads one line of traffic, [`edges`] rolls lines up into edges in bounded memory, and
//! [`plan`] asks of every edge what policy says without and with the change. The verdicts are those of
//! [`crate::evaluate`], and a property test holds them to it.

mod changed;
pub mod edges;
mod halves;
mod radius;
pub mod record;
pub mod report;
mod resolve;
mod scope;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use self::edges::{Edge, EdgeKey};
use self::report::{Class, Counts, EdgeRow, EndInfo, GoneRow, Judged, Plan, RuleUse, Traffic};
pub use self::resolve::{EndNote, GoneReason};
use self::resolve::{Ends, Resolved, find, flow};
use self::scope::Scopes;
use crate::api::Scenario;
use crate::diff::diff_sets;
use crate::evaluate::{ConnectionVerdict, Verdict};
use crate::selectors::Labels;
use crate::world::World;

/// Pairs of addresses of one edge that are asked about.
const PAIRS: usize = 16;

/// What counts as recent, and what as rare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// An edge is recent if it was seen within this time.
    pub recent: Duration,
    /// An edge is rare if it has at most so many flows …
    pub rare_flows: u64,
    /// … and was not seen for this long.
    pub rare_age: Duration,
}

impl Default for Thresholds {
    /// Recent: a week. Rare: one flow, a month ago or longer.
    fn default() -> Self {
        Self {
            recent: Duration::days(7),
            rare_flows: 1,
            rare_age: Duration::days(30),
        }
    }
}

/// Compares what `before` and `after` say of every edge.
#[must_use]
pub fn plan(
    before: &Scenario,
    after: &Scenario,
    edges: &[Edge],
    at: OffsetDateTime,
    thresholds: Thresholds,
) -> Plan {
    let diff = diff_sets(&before.set, &after.set);
    let rules = changed::rules(&before.set, &after.set, &diff);
    let mut planner = Planner {
        ends: Ends::new(&before.world, &after.world),
        before: Scopes::new(&before.world, &before.set, at),
        after: Scopes::new(&after.world, &after.set, at),
        same_world: same_world(&before.world, &after.world),
        untouched: HashMap::new(),
        by_rule: (rules.iter().enumerate())
            .map(|(index, rule)| (rule.rule.clone(), index))
            .collect(),
        rules,
        counts: Counts::default(),
        pairs: BTreeSet::new(),
        rows: Vec::new(),
        gone: Vec::new(),
        at,
        thresholds,
    };
    for edge in edges {
        planner.edge(edge);
    }
    planner.rows.sort_by(|a, b| danger(b).cmp(&danger(a)));
    planner
        .gone
        .sort_by_key(|row| std::cmp::Reverse((row.traffic.last_seen, row.traffic.flows)));
    // Without a change nobody comes further.
    let radii = if diff.is_empty() && planner.same_world {
        radius::Radii::default()
    } else {
        let first = planner.concerned();
        radius::compare(before, after, &first, &planner.pairs, at)
    };
    Plan {
        at,
        missing_halves: halves::missing(after, &planner.rules, at),
        radius: radii.rows,
        widening: radii.widening,
        objects: diff.objects,
        counts: planner.counts,
        edges: planner.rows,
        gone: planner.gone,
        rules: planner.rules,
    }
}

/// The most dangerous class first; in it what was seen recently, and most often.
fn danger(row: &EdgeRow) -> impl Ord {
    let traffic = &row.traffic;
    (
        row.classes.first().copied().map(std::cmp::Reverse),
        traffic.recent,
        traffic.flows,
        traffic.last_seen,
    )
}

fn same_world(before: &World, after: &World) -> bool {
    before.managed_networks == after.managed_networks
        && before.default_mode == after.default_mode
        && before.workloads() == after.workloads()
}

struct Planner<'a> {
    ends: Ends<'a>,
    before: Scopes<'a>,
    after: Scopes<'a>,
    same_world: bool,
    /// Workloads of which both sets say the same.
    untouched: HashMap<Arc<str>, bool>,
    rules: Vec<RuleUse>,
    by_rule: HashMap<String, usize>,
    counts: Counts,
    /// Workloads between which there is recorded traffic.
    pairs: BTreeSet<(String, String)>,
    rows: Vec<EdgeRow>,
    gone: Vec<GoneRow>,
    at: OffsetDateTime,
    thresholds: Thresholds,
}

/// One pair of addresses of an edge, judged.
struct Pair {
    source: IpAddr,
    destination: IpAddr,
    before: ConnectionVerdict,
    after: ConnectionVerdict,
    classes: Vec<Class>,
}

impl<'a> Planner<'a> {
    fn edge(&mut self, edge: &Edge) {
        let traffic = self.traffic(edge);
        let key = &edge.key;
        let source = self.ends.resolve(&key.source);
        let destination = self.ends.resolve(&key.destination);
        let pair = match (&source, &destination) {
            (
                Resolved::Here {
                    workload: from,
                    addresses: sources,
                    ..
                },
                Resolved::Here {
                    workload: to,
                    addresses: destinations,
                    ..
                },
            ) => self.worst(key, (from, sources), (to, destinations)),
            (Resolved::Gone(reason), _) => return self.is_gone(key, "from", *reason, traffic),
            (_, Resolved::Gone(reason)) => return self.is_gone(key, "to", *reason, traffic),
        };
        let Some(pair) = pair else {
            return self.is_gone(key, "to", GoneReason::NoAddress, traffic);
        };
        self.count(&pair, &traffic, [&source, &destination]);
        if let (Some(from), Some(to)) = (source.workload(), destination.workload()) {
            self.pairs.insert((from.to_string(), to.to_string()));
        }
        if pair.classes.is_empty() {
            return;
        }
        let from = self.end_info(&source, pair.source);
        let to = self.end_info(&destination, pair.destination);
        self.rows.push(EdgeRow {
            from,
            to,
            traffic,
            before: Judged::from(&pair.before),
            after: Judged::from(&pair.after),
            classes: pair.classes,
        });
    }

    /// Of an edge that may mean several pairs of addresses, the one that fares worst.
    fn worst(
        &mut self,
        key: &EdgeKey,
        (from, sources): (&Option<Arc<str>>, &[IpAddr]),
        (to, destinations): (&Option<Arc<str>>, &[IpAddr]),
    ) -> Option<Pair> {
        let pairs = (sources.iter())
            .flat_map(|source| destinations.iter().map(move |other| (*source, *other)))
            .filter(|(source, other)| source.is_ipv4() == other.is_ipv4())
            .take(PAIRS);
        let mut worst: Option<Pair> = None;
        for (source, destination) in pairs {
            let ends = ((from, source), (to, destination));
            let old = flow(self.ends.before, ends.0, ends.1, key.protocol, key.port);
            let new = flow(self.ends.after, ends.0, ends.1, key.protocol, key.port);
            let before = self.before.verdict(&old);
            let untouched = self.same_world
                && [from, to].into_iter().all(|name| self.is_untouched(name))
                // Of an end that was told by its address only, the owner is not asked for here.
                && (from.is_some() || old.from.is_none())
                && (to.is_some() || old.to.is_none());
            let after = if untouched {
                before.clone()
            } else {
                self.after.verdict(&new)
            };
            let pair = Pair {
                source,
                destination,
                classes: classes(&before, &after),
                before,
                after,
            };
            let rank = |pair: &Pair| pair.classes.first().copied().map(std::cmp::Reverse);
            if worst.as_ref().is_none_or(|old| rank(&pair) > rank(old)) {
                worst = Some(pair);
            }
        }
        worst
    }

    /// Whether both sets say the same of a workload. What is no workload has no say.
    fn is_untouched(&mut self, name: &Option<Arc<str>>) -> bool {
        let Some(name) = name else { return true };
        if let Some(known) = self.untouched.get(name) {
            return *known;
        }
        let before = find(self.ends.before, name);
        let after = find(self.ends.after, name);
        let same = match (before, after) {
            (Some(before), Some(after)) => self.before.of(before) == self.after.of(after),
            _ => false,
        };
        self.untouched.insert(Arc::clone(name), same);
        same
    }

    /// Workloads about which the change says something.
    fn concerned(&mut self) -> BTreeSet<String> {
        let names: BTreeSet<Arc<str>> = [self.ends.before, self.ends.after]
            .into_iter()
            .flat_map(World::workloads)
            .map(|workload| workload.full_name().into())
            .collect();
        (names.into_iter())
            .filter(|name| !self.is_untouched(&Some(Arc::clone(name))))
            .map(|name| name.to_string())
            .collect()
    }

    fn traffic(&self, edge: &Edge) -> Traffic {
        let since = |age: Duration| self.at.checked_sub(age);
        let seen_after = |moment: Option<OffsetDateTime>| match (edge.last_seen, moment) {
            (Some(last), Some(moment)) => last >= moment,
            // When it was seen is not known, or the time reaches back for ever.
            _ => true,
        };
        Traffic {
            protocol: edge.key.protocol,
            port: edge.key.port,
            flows: edge.flows,
            packets: edge.packets,
            bytes: edge.bytes,
            allowed: edge.allowed,
            denied: edge.denied,
            doubtful: edge.doubtful,
            first_seen: edge.first_seen,
            last_seen: edge.last_seen,
            recent: seen_after(since(self.thresholds.recent)),
            rare: edge.flows <= self.thresholds.rare_flows
                && !seen_after(since(self.thresholds.rare_age)),
            processes: edge.processes.iter().map(ToString::to_string).collect(),
        }
    }

    fn count(&mut self, pair: &Pair, traffic: &Traffic, ends: [&Resolved; 2]) {
        let counts = &mut self.counts;
        counts.edges += 1;
        if pair.classes.is_empty() {
            match pair.after.enforced {
                Verdict::Allow => counts.unchanged_allowed += 1,
                Verdict::Deny => counts.unchanged_denied += 1,
            }
        }
        for class in &pair.classes {
            let count = counts.classes.entry(*class).or_default();
            count.edges += 1;
            count.flows = count.flows.saturating_add(traffic.flows);
            count.recent += u64::from(traffic.recent);
            count.rare += u64::from(traffic.rare);
        }
        let noted = |note| {
            (ends.iter())
                .any(|end| matches!(end, Resolved::Here { note: Some(own), .. } if *own == note))
        };
        counts.moved += u64::from(noted(EndNote::Moved));
        counts.now_managed += u64::from(noted(EndNote::NowManaged));
        counts.doubtful += u64::from(traffic.doubtful > 0);
        let allowed = pair.before.enforced.is_allow();
        counts.recorded_otherwise += u64::from(
            (allowed && traffic.allowed == 0 && traffic.denied > 0)
                || (!allowed && traffic.denied == 0 && traffic.allowed > 0),
        );
        // A rule counts once an edge, at whichever end and by whichever verdict it decides.
        let mut decided: Vec<usize> = [&pair.after.egress, &pair.after.ingress]
            .into_iter()
            .flatten()
            .flat_map(|end| [&end.rule, &end.draft_rule])
            .filter_map(|rule| self.by_rule.get(rule).copied())
            .collect();
        decided.sort_unstable();
        decided.dedup();
        for index in decided {
            if let Some(rule) = self.rules.get_mut(index) {
                rule.edges += 1;
                rule.flows = rule.flows.saturating_add(traffic.flows);
            }
        }
    }

    fn is_gone(&mut self, key: &EdgeKey, end: &'static str, reason: GoneReason, traffic: Traffic) {
        self.counts.gone += 1;
        self.counts.address_reused += u64::from(reason == GoneReason::AddressReused);
        let name = |end: &record::RecordedEnd<Arc<str>>| match (&end.workload, end.address) {
            (Some(name), _) => name.to_string(),
            (None, address) => address.map_or_else(String::new, |address| address.to_string()),
        };
        self.gone.push(GoneRow {
            from: name(&key.source),
            to: name(&key.destination),
            end,
            reason,
            traffic,
        });
    }

    fn end_info(&self, end: &Resolved, address: IpAddr) -> EndInfo {
        let Resolved::Here { workload, note, .. } = end else {
            return EndInfo {
                workload: None,
                address: Some(address),
                labels: Labels::new(),
                note: None,
            };
        };
        let labels = workload
            .as_deref()
            .and_then(|name| find(self.ends.before, name).or_else(|| find(self.ends.after, name)))
            .map(|workload| workload.labels.clone());
        EndInfo {
            workload: workload.as_deref().map(ToOwned::to_owned),
            address: Some(address),
            labels: labels.unwrap_or_default(),
            note: *note,
        }
    }
}

/// What is different between two verdicts. The draft has its own class where the enforced verdict
/// does not tell the same.
fn classes(before: &ConnectionVerdict, after: &ConnectionVerdict) -> Vec<Class> {
    let turn = |before: Verdict, after: Verdict| match (before, after) {
        (Verdict::Allow, Verdict::Deny) => Some(false),
        (Verdict::Deny, Verdict::Allow) => Some(true),
        _ => None,
    };
    let enforced = turn(before.enforced, after.enforced);
    let draft = turn(before.draft, after.draft).filter(|draft| Some(*draft) != enforced);
    let mut classes: Vec<Class> = [
        enforced.map(|allowed| {
            if allowed {
                Class::NewlyAllowed
            } else {
                Class::NewlyBlocked
            }
        }),
        draft.map(|allowed| {
            if allowed {
                Class::DraftAllowed
            } else {
                Class::DraftBlocked
            }
        }),
    ]
    .into_iter()
    .flatten()
    .collect();
    classes.sort();
    classes
}

//! Which flows are judged differently under another snapshot of the same host.
//!
//! Identities may be cut differently in the two, so peers are compared by address: every network that
//! either snapshot binds is looked up in both, and each distinct pair of identities is compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use datapath::ids::{ClassId, EndpointId, Identity, RuleId};
use ipnet::IpNet;
use serde::Serialize;

use crate::snapshot::{AddressBinding, FlowDirection, Mode, PortPrefix, Snapshot, SnapshotIndex};
use crate::walk::names;

/// A block of flows that pass now and did not, or the other way round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerdictChange {
    /// Name of the endpoint.
    pub endpoint: String,
    /// Direction seen from it.
    pub direction: FlowDirection,
    /// A network of the peers (one of perhaps many that are treated alike).
    pub peer: IpNet,
    /// The peers' identity number in the new snapshot.
    pub identity: u32,
    /// IANA protocol number; `None` = every protocol that no rule names.
    pub protocol: Option<u8>,
    /// First port of the block.
    pub first_port: u16,
    /// Last port of the block.
    pub last_port: u16,
    /// Whether the flows pass now; they did not before if so.
    pub allowed: bool,
    /// Rule that decided before.
    pub rule_before: String,
    /// Rule that decides now.
    pub rule_after: String,
}

/// Differences between two snapshots of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotDiff {
    /// Every block whose flows are treated differently.
    pub changes: Vec<VerdictChange>,
    /// Something that passed does not pass any more: the change should be confirmed.
    pub denies_more: bool,
}

/// Compares what two snapshots enforce, modes included. An endpoint that only one of them has is left
/// out: it has no verdicts that could change.
#[must_use]
pub fn diff_snapshots(before: &Snapshot, after: &Snapshot) -> SnapshotDiff {
    let (old, new) = (Side::new(before), Side::new(after));
    let mut diff = SnapshotDiff::default();
    for endpoint in &after.endpoints {
        if !old.modes.contains_key(&endpoint.id) {
            continue;
        }
        for direction in [FlowDirection::Ingress, FlowDirection::Egress] {
            for (was, is) in pairs(&old, &new) {
                let (was, is) = (
                    old.view(endpoint.id, direction, was),
                    new.view(endpoint.id, direction, is),
                );
                compare(&endpoint.name, &was, &is, &mut diff);
            }
        }
    }
    diff.denies_more = diff.changes.iter().any(|change| !change.allowed);
    diff
}

/// A snapshot with what the comparison looks up.
struct Side<'a> {
    index: SnapshotIndex<'a>,
    modes: HashMap<u32, Mode>,
    bindings: HashMap<IpNet, AddressBinding>,
    /// Prefixes by class: of rules, of filters.
    rules: HashMap<u32, Vec<PortPrefix>>,
    filters: HashMap<u32, Vec<PortPrefix>>,
}

impl<'a> Side<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let mut rules: HashMap<u32, Vec<PortPrefix>> = HashMap::new();
        for cell in &snapshot.rules {
            rules.entry(cell.class).or_default().push(cell.ports);
        }
        let mut filters: HashMap<u32, Vec<PortPrefix>> = HashMap::new();
        for cell in &snapshot.filters {
            filters.entry(cell.class).or_default().push(cell.ports);
        }
        Self {
            index: snapshot.index(),
            modes: snapshot
                .endpoints
                .iter()
                .map(|endpoint| (endpoint.id, endpoint.mode))
                .collect(),
            bindings: snapshot
                .addresses
                .iter()
                .map(|binding| (binding.net, *binding))
                .collect(),
            rules,
            filters,
        }
    }

    /// What holds for a network: the binding of it, or of the longest network around it.
    fn binding(&self, net: IpNet) -> AddressBinding {
        let mut around = Some(net);
        while let Some(candidate) = around {
            if let Some(binding) = self.bindings.get(&candidate) {
                return AddressBinding { net, ..*binding };
            }
            around = candidate.supernet();
        }
        AddressBinding {
            net,
            identity: Identity::UNKNOWN.0,
            isolated: false,
            local: false,
        }
    }

    fn view(&self, endpoint: u32, direction: FlowDirection, peer: AddressBinding) -> View<'_> {
        let class = self.index.class(
            EndpointId(endpoint),
            direction.into(),
            Identity(peer.identity),
        );
        View {
            side: self,
            direction,
            peer,
            isolated: peer.isolated || self.modes.get(&endpoint) == Some(&Mode::Isolate),
            observes: self.modes.get(&endpoint) == Some(&Mode::Observe),
            class,
        }
    }
}

/// Distinct pairs of what both snapshots bind, with one network each.
fn pairs(old: &Side<'_>, new: &Side<'_>) -> Vec<(AddressBinding, AddressBinding)> {
    let nets: BTreeSet<IpNet> = old
        .bindings
        .keys()
        .chain(new.bindings.keys())
        .copied()
        .collect();
    let mut pairs = BTreeMap::new();
    for net in nets {
        let (was, is) = (old.binding(net), new.binding(net));
        let key = (was.identity, was.isolated, is.identity, is.isolated);
        pairs.entry(key).or_insert((was, is));
    }
    pairs.into_values().collect()
}

/// One endpoint, direction and peer in one snapshot.
struct View<'a> {
    side: &'a Side<'a>,
    direction: FlowDirection,
    peer: AddressBinding,
    isolated: bool,
    observes: bool,
    class: Option<(ClassId, u32)>,
}

impl View<'_> {
    /// Whether flows pass at a point, and by which rule.
    fn passes(&self, protocol: u8, port: u16) -> (bool, String) {
        if self.isolated {
            return (false, names::ISOLATION.to_owned());
        }
        let Some((class, filter)) = self.class else {
            return (self.observes, String::new());
        };
        let index = &self.side.index;
        let name = |rule: u32| {
            let name = index.snapshot().rule_name(RuleId(rule));
            name.unwrap_or_default().to_owned()
        };
        if let Some(cell) = index.filter(filter, protocol, port)
            && cell.allow == Some(false)
        {
            return (!cell.mode_enforced, name(cell.rule));
        }
        match index.rule(class, protocol, port) {
            Some(cell) => (
                cell.enforced.allow || !cell.mode_enforced,
                name(cell.enforced.rule),
            ),
            None => (self.observes, String::new()),
        }
    }

    fn prefixes(&self) -> impl Iterator<Item = PortPrefix> {
        let (class, filter) = self
            .class
            .map_or((0, 0), |(class, filter)| (class.0, filter));
        let rules = self.side.rules.get(&class).into_iter().flatten();
        let filters = self.side.filters.get(&filter).into_iter().flatten();
        rules.chain(filters).copied()
    }
}

fn compare(endpoint: &str, was: &View<'_>, is: &View<'_>, diff: &mut SnapshotDiff) {
    // Where a port block begins, in either snapshot, by protocol.
    let mut starts: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
    for prefix in was.prefixes().chain(is.prefixes()) {
        let Some(protocol) = prefix.protocol else {
            continue;
        };
        let starts = starts.entry(protocol).or_insert_with(|| [0].into());
        starts.insert(prefix.port);
        let last = prefix.port
            | u16::MAX
                .checked_shr(u32::from(prefix.port_bits))
                .unwrap_or(0);
        starts.extend(last.checked_add(1));
    }
    let unnamed = (0..=u8::MAX)
        .rev()
        .find(|protocol| !starts.contains_key(protocol));
    if let Some(protocol) = unnamed {
        let (before, after) = (was.passes(protocol, 0), is.passes(protocol, 0));
        record(endpoint, is, (None, 0, u16::MAX), before, after, diff);
    }
    for (protocol, starts) in starts {
        let starts: Vec<u16> = starts.into_iter().collect();
        for (index, first) in starts.iter().enumerate() {
            let last = starts.get(index + 1).map_or(u16::MAX, |next| next - 1);
            let (before, after) = (was.passes(protocol, *first), is.passes(protocol, *first));
            record(
                endpoint,
                is,
                (Some(protocol), *first, last),
                before,
                after,
                diff,
            );
        }
    }
}

fn record(
    endpoint: &str,
    is: &View<'_>,
    (protocol, first_port, last_port): (Option<u8>, u16, u16),
    before: (bool, String),
    after: (bool, String),
    diff: &mut SnapshotDiff,
) {
    if before.0 == after.0 {
        return;
    }
    // A block that goes on where the last one ended is the same change.
    if let Some(last) = diff.changes.last_mut()
        && last.endpoint == endpoint
        && last.direction == is.direction
        && last.peer == is.peer.net
        && last.protocol == protocol
        && last.last_port.checked_add(1) == Some(first_port)
        && last.allowed == after.0
        && last.rule_before == before.1
        && last.rule_after == after.1
    {
        last.last_port = last_port;
        return;
    }
    diff.changes.push(VerdictChange {
        endpoint: endpoint.to_owned(),
        direction: is.direction,
        peer: is.peer.net,
        identity: is.peer.identity,
        protocol,
        first_port,
        last_port,
        allowed: after.0,
        rule_before: before.1,
        rule_after: after.1,
    });
}

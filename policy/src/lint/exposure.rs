//! What is open too wide, closed too far, or open at one end only.

use std::collections::HashSet;

use super::finding::{Finding, Level};
use super::order::{Entry, Order, Stage};
use super::region::{self, LabelBox, Region, class};
use super::spans::Spans;
use super::superfluous::allows_anybody;
use crate::model::{Action, DefaultAction, Policy, State, Tier};
use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::walk::{Lens, direction_name};
use crate::world::World;

/// Ports that nobody opens to the world on purpose, and what listens there: TCP, by IANA's registry and the
/// products' manuals.
const ADMIN_PORTS: &[(u16, &str)] = &[
    (21, "FTP"),
    (22, "SSH"),
    (23, "Telnet"),
    (111, "portmapper"),
    (135, "Windows RPC"),
    (139, "NetBIOS"),
    (389, "LDAP"),
    (445, "SMB"),
    (512, "rexec"),
    (513, "rlogin"),
    (514, "rsh"),
    (623, "IPMI"),
    (873, "rsync"),
    (1433, "SQL Server"),
    (1521, "Oracle"),
    (2049, "NFS"),
    (2181, "ZooKeeper"),
    (2375, "Docker"),
    (2376, "Docker"),
    (2379, "etcd"),
    (2380, "etcd"),
    (3306, "MySQL"),
    (3389, "RDP"),
    (4243, "Docker"),
    (5432, "PostgreSQL"),
    (5601, "Kibana"),
    (5672, "AMQP"),
    (5900, "VNC"),
    (5984, "CouchDB"),
    (5985, "WinRM"),
    (5986, "WinRM"),
    (6379, "Redis"),
    (6443, "Kubernetes API"),
    (7001, "WebLogic"),
    (8500, "Consul"),
    (9042, "Cassandra"),
    (9092, "Kafka"),
    (9200, "Elasticsearch"),
    (9300, "Elasticsearch"),
    (10250, "kubelet"),
    (11211, "memcached"),
    (15672, "RabbitMQ"),
    (27017, "MongoDB"),
    (50000, "SAP or DB2"),
];

const TCP: u8 = datapath::ids::protocol::TCP;

pub(super) fn check(
    set: &PolicySet,
    world: Option<&World>,
    orders: &[Order<'_>; 2],
    findings: &mut Vec<Finding>,
) {
    let [ingress, egress] = orders;
    for order in orders {
        for (index, entry) in order.entries.iter().enumerate() {
            if entry.action == Action::Allow && entry.stage != Stage::Filter {
                open(order, index, entry, findings);
            }
        }
        closed(set, order, findings);
        order_by_name(order, findings);
    }
    let may_allow = allowing_modes(set, world);
    half_open(&may_allow, ingress, egress, findings);
    half_open(&may_allow, egress, ingress, findings);
}

/// What of an entry is reached through any of its lenses.
fn reached(order: &Order<'_>, index: usize) -> Vec<Region> {
    let Some(entry) = order.entries.get(index) else {
        return Vec::new();
    };
    (entry.lenses().iter())
        .filter_map(|lens| order.arrivals(index, *lens, &HashSet::new()))
        .flatten()
        .collect()
}

/// Half of all public addresses of a family, or more: 0.0.0.0/0 in whatever pieces it is written.
fn is_broad(addresses: &Spans) -> bool {
    let global = Spans::one(0x2 << 124, (0x4 << 124) - 1);
    addresses.and(&Spans::v4()).count() >= 1 << 31 || addresses.and(&global).count() >= 1 << 124
}

fn open(order: &Order<'_>, index: usize, entry: &Entry<'_>, findings: &mut Vec<Finding>) {
    let finding = |id, message: String, fix: &str| {
        Finding::new(id, &entry.object, entry.object_place, message, fix)
            .rule(&entry.name, entry.place)
    };
    let everything = Region::of_subject(LabelBox::new(), class::KNOWN);
    let left = |target: Region| {
        let own: Vec<Region> = (entry.regions.iter().cloned())
            .map(|region| Region {
                subject: LabelBox::new(),
                ..region
            })
            .collect();
        region::minus(vec![target], &own)
    };
    let whole = |addresses: Spans| {
        left(Region {
            addresses,
            ..everything.clone()
        })
        .is_some_and(|left| left.is_empty())
    };
    if allows_anybody(entry) || whole(Spans::v4()) || whole(Spans::v6()) {
        let (who, level) = match order.direction {
            FlowDirection::Ingress => ("anybody, from anywhere, to every port", Level::Error),
            FlowDirection::Egress => ("connections to anybody, on every port", Level::Warning),
        };
        let fix = "name the peers and the ports that are needed";
        findings
            .push(finding("any-any-allow", format!("this rule allows {who}"), fix).level(level));
        return;
    }
    let world: Vec<Region> = reached(order, index)
        .into_iter()
        .filter(|region| region.classes & class::WORLD != 0 && is_broad(&region.addresses))
        .collect();
    match order.direction {
        FlowDirection::Ingress => {
            let open: Vec<String> = (ADMIN_PORTS.iter())
                .filter(|(port, _)| {
                    let number = (u128::from(TCP) << 16) | u128::from(*port);
                    (world.iter())
                        .any(|region| region.named.is_none() && region.ports.contains(number))
                })
                .map(|(port, what)| format!("{port} ({what})"))
                .collect();
            if !open.is_empty() {
                let more = match open.len().saturating_sub(6) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                let listed = open.iter().take(6).cloned().collect::<Vec<_>>().join(", ");
                let message = format!("this rule opens TCP port {listed}{more} to the world");
                let fix = "allow the networks that need it, or use a Grant with an end";
                findings.push(finding("world-open-admin-port", message, fix));
            }
        }
        FlowDirection::Egress => {
            let every = Spans::ports(TCP, 0, u16::MAX);
            if (world.iter()).any(|region| region.named.is_none() && region.ports.covers(&every)) {
                let message = "this rule allows connections to the whole world on every TCP port";
                let fix = "name the ports, for example 443, and the networks where they are known";
                findings.push(finding("egress-world-any-port", message.to_owned(), fix));
            }
        }
    }
}

/// Policies that close a direction for workloads that nothing may open it for.
fn closed(set: &PolicySet, order: &Order<'_>, findings: &mut Vec<Finding>) {
    for policy in set.policies() {
        if policy.tier != Tier::Standard
            || !order
                .closers
                .iter()
                .any(|closer| closer.name == closer_name(policy, order.direction))
        {
            continue;
        }
        let Some(rules) = policy.rules(order.direction) else {
            continue;
        };
        let Some(subject) = region::label_box(&policy.subject) else {
            continue;
        };
        if rules.iter().any(|rule| rule.action != Action::Deny) {
            continue;
        }
        let subjects = [Region::of_subject(subject, class::KNOWN)];
        let staged = policy.state == State::Staged;
        let opened = order.entries.iter().any(|entry| {
            let opens = matches!(
                entry.stage,
                Stage::Guardrail | Stage::Grants | Stage::Standard
            ) && entry.action != Action::Deny
                && (staged || !entry.staged);
            opens && region::meet(&entry.regions, &subjects)
        });
        if !opened {
            let way = direction_name(order.direction);
            let object = crate::model::Object::Policy(policy.clone()).id();
            findings.push(
                Finding::new(
                    "closed-without-rule",
                    object,
                    &policy.place,
                    format!("this policy closes {way} for {}, and nothing opens any of it", policy.subject),
                    format!("add the rules that are needed to {way}, or suppress this finding if nothing is"),
                )
                .detail(way),
            );
        }
    }
}

fn closer_name(policy: &Policy, direction: FlowDirection) -> String {
    format!(
        "{}/{}",
        crate::walk::policy_name(policy),
        direction_name(direction)
    )
}

/// Rules of two policies that only the names put in order.
fn order_by_name(order: &Order<'_>, findings: &mut Vec<Finding>) {
    let mut told = HashSet::new();
    for (index, later) in order.entries.iter().enumerate() {
        let Some(policy) = later.policy else { continue };
        for earlier in order.entries.iter().take(index) {
            let Some(other) = earlier.policy else {
                continue;
            };
            let tied = (other.tier, other.priority) == (policy.tier, policy.priority)
                && other.metadata.name != policy.metadata.name;
            let contrary = matches!(
                (earlier.action, later.action),
                (Action::Allow, Action::Deny) | (Action::Deny, Action::Allow)
            );
            let together = [Lens::Enforced, Lens::Draft]
                .iter()
                .any(|lens| earlier.counts.through(*lens) && later.counts.through(*lens));
            let pair = (&other.metadata.name, &policy.metadata.name);
            if tied
                && contrary
                && together
                && !told.contains(&pair)
                && region::meet(&earlier.regions, &later.regions)
            {
                told.insert(pair);
                findings.push(
                    Finding::new(
                        "order-by-name",
                        &later.object,
                        later.object_place,
                        format!(
                            "{} comes before this rule and says the opposite about some flows, only because \"{}\" sorts before \"{}\"",
                            earlier.name, other.metadata.name, policy.metadata.name
                        ),
                        "give the one that is to decide the lower priority",
                    )
                    .rule(&later.name, later.place)
                    .detail(&earlier.name)
                    .related(earlier.name.clone(), earlier.place),
                );
            }
        }
    }
}

/// Rules for workloads as peers whose own end allows nothing of it.
fn half_open(
    may_allow: &[Region],
    order: &Order<'_>,
    other: &Order<'_>,
    findings: &mut Vec<Finding>,
) {
    let openers: Vec<(&Entry<'_>, Vec<Region>)> = (other.entries.iter().enumerate())
        .filter(|(_, entry)| entry.action == Action::Allow && entry.stage != Stage::Filter)
        .map(|(index, entry)| {
            // As if everything were enforced: what does not count in the draft may count now.
            let lens = if entry.counts.draft {
                Lens::Draft
            } else {
                Lens::Enforced
            };
            (
                entry,
                other
                    .arrivals(index, lens, &HashSet::new())
                    .unwrap_or_else(|| entry.regions.clone()),
            )
        })
        .collect();
    for (index, entry) in order.entries.iter().enumerate() {
        if entry.action != Action::Allow || entry.stage == Stage::Filter {
            continue;
        }
        // Peers that are workloads by their labels; of addresses nothing is known.
        let wanted: Vec<Region> = reached(order, index)
            .into_iter()
            .filter(|region| {
                let by_labels = |own: &&Region| own.classes == class::MANAGED && own.meets(region);
                entry.regions.iter().any(|own| by_labels(&own)) && region.classes == class::MANAGED
            })
            .map(|region| Region {
                subject: region.peer,
                peer: region.subject,
                addresses: Spans::all_addresses(),
                ..region
            })
            .collect();
        let lost = (wanted.iter()).find(|wanted| {
            let allowed = openers
                .iter()
                .any(|(_, open)| open.iter().any(|open| open.meets(wanted)));
            !allowed && !by_default(may_allow, other, wanted)
        });
        if lost.is_some() {
            let (here, there) = (
                direction_name(order.direction),
                direction_name(other.direction),
            );
            let (end, peer) = match order.direction {
                FlowDirection::Ingress => ("sources", "source"),
                FlowDirection::Egress => ("destinations", "destination"),
            };
            findings.push(
                Finding::new(
                    "half-open",
                    &entry.object,
                    entry.object_place,
                    format!("{here} is allowed here, but nothing allows the {there} of some of its {end}: once they enforce, it does not pass"),
                    format!("add an allow rule to the {there} of a policy whose subject selects the {peer}"),
                )
                .rule(&entry.name, entry.place),
            );
        }
    }
}

/// Whose default action may be to allow.
fn allowing_modes(set: &PolicySet, world: Option<&World>) -> Vec<Region> {
    let subject = |subject| Region::of_subject(subject, class::KNOWN);
    let own = (world.into_iter().flat_map(World::workloads))
        .any(|workload| workload.default_action == Some(DefaultAction::Allow))
        .then(|| subject(LabelBox::new()));
    (set.modes().iter())
        .filter(|mode| mode.default_action == Some(DefaultAction::Allow))
        .filter_map(|mode| region::label_box(&mode.subject).map(subject))
        .chain(own)
        .collect()
}

/// Whether the default action may let flows pass that nothing decides.
fn by_default(may_allow: &[Region], order: &Order<'_>, wanted: &Region) -> bool {
    may_allow.iter().any(|subject| subject.meets(wanted))
        && !order.closes(vec![wanted.clone()], Lens::Draft)
}

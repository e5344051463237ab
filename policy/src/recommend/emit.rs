//! From atoms to policies as a person would write them: one policy a group, rules with the same peers in
//! one, long lists as groups and services with a name. All of it staged.

use std::collections::{BTreeMap, BTreeSet};

use time::OffsetDateTime;

use super::Options;
use super::atoms::{Atom, AtomPeer};
use super::groups::{ANY, Groups, Joined, MISSING, Pattern};
use super::infra::{Infra, Shape};
use super::measure::{Draft, Evidence};
use crate::model::{
    Action, AddressGroup, Entity, Metadata, Object, Peer, Policy, PolicyKind, Rule, Service, State,
    Tier,
};
use crate::ports::{PortSpec, Ports, Protocol, is_icmp, protocol_name};
use crate::selectors::{Labels, Selector};
use crate::source::Place;

/// Longer lists of networks and ports get a name.
const LONG: usize = 4;

/// Infrastructure before applications, and both behind what people write (default 1000): a deny of theirs wins.
const PRIORITIES: (u16, u16) = (2000, 3000);

/// A rule with what stands behind it.
pub(crate) struct Written {
    /// `standard/NAME/ingress[0]`.
    pub(crate) rule: String,
    pub(crate) text: String,
    pub(crate) atoms: Vec<usize>,
}

/// Objects and where each rule comes from.
pub(crate) struct Output {
    pub(crate) objects: Vec<Object>,
    pub(crate) rules: Vec<Written>,
}

/// Which policy an atom belongs to: infrastructure by name, shape and side, applications by subject.
type PolicyKey = (bool, String, bool, Pattern);

pub(crate) struct Writer<'a> {
    pub(crate) groups: &'a Groups,
    pub(crate) infra: &'a [Infra],
    pub(crate) processes: &'a [String],
    pub(crate) options: &'a Options,
    /// Names that are in use.
    pub(crate) taken: BTreeSet<String>,
    pub(crate) address_groups: BTreeMap<Vec<ipnet::IpNet>, String>,
    pub(crate) services: BTreeMap<Vec<PortSpec>, (String, usize)>,
}

impl Writer<'_> {
    /// Writes the policies of a draft.
    pub(crate) fn write(mut self, draft: &Draft<'_>, evidence: &[Evidence]) -> Output {
        let mut by_policy: BTreeMap<PolicyKey, Vec<usize>> = BTreeMap::new();
        for (index, atom) in draft.atoms.iter().enumerate() {
            by_policy.entry(self.key(atom)).or_default().push(index);
        }
        self.count_services(draft.atoms, &by_policy);
        let mut objects = Vec::new();
        let mut rules = Vec::new();
        for ((application, kind, crowd, subject), atoms) in by_policy {
            let name = self.policy_name(application, &kind, crowd, &subject);
            let mut policy = Policy {
                metadata: Metadata {
                    name: self.free(name),
                    owner: self.options.owner.clone(),
                    labels: Labels::from([("origin".to_owned(), "recommended".to_owned())]),
                    ..Metadata::default()
                },
                kind: PolicyKind::Policy,
                tier: Tier::Standard,
                priority: if application {
                    PRIORITIES.1
                } else {
                    PRIORITIES.0
                },
                subject: self.selector(&subject),
                state: State::Staged,
                ..Policy::default()
            };
            let mut all = Evidence::default();
            for egress in [false, true] {
                let of_direction = atoms.iter().copied().filter(|index| {
                    draft
                        .atoms
                        .get(*index)
                        .is_some_and(|atom| atom.egress == egress)
                });
                let written = self.rules(draft, of_direction.collect(), &policy.metadata.name);
                if written.is_empty() {
                    continue;
                }
                let word = if egress { "egress" } else { "ingress" };
                let mut list = Vec::new();
                for (position, (rule, atoms)) in written.into_iter().enumerate() {
                    let sum = total(&atoms, evidence);
                    all.add(sum.edges, sum.flows, sum.first, sum.last);
                    let key = format!("{word}[{position}]");
                    policy.metadata.annotations.insert(key.clone(), say(&sum));
                    rules.push(Written {
                        rule: format!("standard/{}/{key}", policy.metadata.name),
                        text: describe(&policy.subject, egress, &rule),
                        atoms,
                    });
                    list.push(rule);
                }
                *(if egress {
                    &mut policy.egress
                } else {
                    &mut policy.ingress
                }) = Some(list);
            }
            policy.metadata.description = Some(format!("Recommended from {}.", say(&all)));
            objects.push(Object::Policy(policy));
        }
        objects.extend(self.named());
        Output { objects, rules }
    }

    fn key(&self, atom: &Atom) -> PolicyKey {
        match atom
            .infra
            .checked_sub(1)
            .and_then(|index| self.infra.get(index))
        {
            Some(infra) => {
                let crowd = (infra.shape == Shape::FanIn) == atom.egress;
                (false, infra.name.clone(), crowd, atom.subject.clone())
            }
            None => (true, String::new(), false, atom.subject.clone()),
        }
    }

    fn policy_name(&self, application: bool, kind: &str, crowd: bool, subject: &Pattern) -> String {
        let values = self.values(subject);
        let name = match (application, crowd) {
            (true, _) => values,
            (false, true) if values == "all" => format!("infra-{kind}-for-all"),
            (false, true) => format!("infra-{kind}-for-{values}"),
            (false, false) => format!("infra-{kind}-{values}"),
        };
        format!("{}-{name}", self.options.prefix)
    }

    /// The values of a pattern, as part of a name.
    fn values(&self, pattern: &Pattern) -> String {
        let parts: Vec<String> = pattern
            .iter()
            .enumerate()
            .filter(|(_, slot)| **slot != ANY)
            .map(|(key, slot)| match self.groups.value(key, *slot) {
                Some(value) if *slot != MISSING => value.to_owned(),
                _ => format!(
                    "no-{}",
                    self.groups.keys.get(key).map_or("label", String::as_str)
                ),
            })
            .collect();
        if parts.is_empty() {
            return "all".to_owned();
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let clean: String = parts
            .join("-")
            .chars()
            .map(|c| if fits(c) { c } else { '-' })
            .take(180)
            .collect();
        clean
    }

    /// A name that is not in use, now in use.
    fn free(&mut self, name: String) -> String {
        let mut candidate = name.clone();
        let mut number = 2u32;
        while !self.taken.insert(candidate.clone()) {
            candidate = format!("{name}-{number}");
            number += 1;
        }
        candidate
    }

    fn selector(&self, pattern: &Pattern) -> Selector {
        let joined: Joined = pattern.iter().map(|slot| vec![*slot]).collect();
        self.groups.selector(&joined)
    }

    /// Rules of one direction, each with its atoms: ports with the same peers stand in one rule.
    fn rules(
        &mut self,
        draft: &Draft<'_>,
        atoms: Vec<usize>,
        policy: &str,
    ) -> Vec<(Rule, Vec<usize>)> {
        let by_peers = by_peers(draft.atoms, &atoms);
        let mut rules = Vec::new();
        for ((changing, peers), ports) in by_peers {
            let of_rule: Vec<usize> = ports.values().flatten().copied().collect();
            let mut specs: Vec<PortSpec> = ports.keys().map(|(block, _)| spec(*block)).collect();
            specs.dedup();
            let programs: BTreeSet<&str> = ports
                .keys()
                .filter_map(|(_, process)| self.processes.get((*process as usize).checked_sub(1)?))
                .map(|program| program.rsplit('/').next().unwrap_or(program))
                .collect();
            let name = changing.then(|| match programs.len() {
                0 => "changing ports".to_owned(),
                _ => format!(
                    "changing ports of {}",
                    programs.into_iter().collect::<Vec<_>>().join(", ")
                ),
            });
            let rule = Rule {
                name,
                action: Action::Allow,
                peers: self.peers(&peers, policy),
                ports: self.ports(specs),
                keep: false,
                audit: false,
                place: Place::default(),
            };
            rules.push((rule, of_rule));
        }
        rules
    }

    fn peers(&mut self, peers: &BTreeSet<AtomPeer>, policy: &str) -> Vec<Peer> {
        let mut list = Vec::new();
        let mut nets = Vec::new();
        let mut patterns = Vec::new();
        for peer in peers {
            match peer {
                AtomPeer::Groups(pattern) => patterns.push(pattern.clone()),
                AtomPeer::World => list.push(Peer::Entity {
                    entity: Entity::World,
                }),
                AtomPeer::Net(net) => nets.push(*net),
            }
        }
        for joined in self.groups.joined(&patterns) {
            let selector = self.groups.selector(&joined);
            list.push(if selector.is_empty() {
                Peer::Entity {
                    entity: Entity::Managed,
                }
            } else {
                Peer::Selector { selector }
            });
        }
        if nets.len() > LONG {
            let group = match self.address_groups.get(&nets) {
                Some(name) => name.clone(),
                None => {
                    let name = self.free(format!("{policy}-peers"));
                    self.address_groups.insert(nets, name.clone());
                    name
                }
            };
            list.push(Peer::Group { group });
        } else {
            list.extend(nets.into_iter().map(|cidr| Peer::Cidr {
                cidr,
                except: Vec::new(),
            }));
        }
        list
    }

    /// Port lists that are long and used more than once get a name.
    fn count_services(&mut self, atoms: &[Atom], by_policy: &BTreeMap<PolicyKey, Vec<usize>>) {
        let mut uses: BTreeMap<Vec<PortSpec>, usize> = BTreeMap::new();
        for of_policy in by_policy.values() {
            for egress in [false, true] {
                let list: Vec<usize> = of_policy
                    .iter()
                    .copied()
                    .filter(|index| atoms.get(*index).is_some_and(|atom| atom.egress == egress))
                    .collect();
                for ports in by_peers(atoms, &list).into_values() {
                    let mut specs: Vec<PortSpec> =
                        ports.keys().map(|(block, _)| spec(*block)).collect();
                    specs.dedup();
                    if specs.len() > LONG {
                        *uses.entry(specs).or_default() += 1;
                    }
                }
            }
        }
        for (specs, count) in uses {
            if count > 1 {
                let number = self.services.len() + 1;
                let name = self.free(format!("{}-ports-{number}", self.options.prefix));
                self.services.insert(specs, (name, count));
            }
        }
    }

    fn ports(&self, specs: Vec<PortSpec>) -> Vec<PortSpec> {
        match self.services.get(&specs) {
            Some((name, _)) => vec![PortSpec::Service(name.clone())],
            None => specs,
        }
    }

    /// The groups and services that rules refer to.
    fn named(self) -> Vec<Object> {
        let metadata = |name: String, what: &str| Metadata {
            name,
            owner: self.options.owner.clone(),
            labels: Labels::from([("origin".to_owned(), "recommended".to_owned())]),
            description: Some(what.to_owned()),
            ..Metadata::default()
        };
        let groups = self.address_groups.into_iter().map(|(cidrs, name)| {
            Object::AddressGroup(AddressGroup {
                metadata: metadata(name, "Peers that are no workloads, as they were seen."),
                cidrs,
                place: Place::default(),
            })
        });
        let services = self.services.into_iter().map(|(ports, (name, _))| {
            Object::Service(Service {
                metadata: metadata(name, "Ports that were seen together."),
                ports,
                place: Place::default(),
            })
        });
        let mut objects: Vec<Object> = groups.chain(services).collect();
        objects.sort_by_key(Object::id);
        objects
    }
}

/// Protocol, first and last port; and the program.
type PortKey = ((u8, u16, u16), u32);

/// Atoms by their set of peers. Changing ports stand in rules of their own.
fn by_peers(
    atoms: &[Atom],
    list: &[usize],
) -> BTreeMap<(bool, BTreeSet<AtomPeer>), BTreeMap<PortKey, Vec<usize>>> {
    let mut by_port: BTreeMap<(bool, PortKey), (BTreeSet<AtomPeer>, Vec<usize>)> = BTreeMap::new();
    for index in list {
        if let Some(atom) = atoms.get(*index) {
            let key = ((atom.protocol, atom.low, atom.high), atom.process);
            let entry = by_port.entry((atom.dynamic, key)).or_default();
            entry.0.insert(atom.peer.clone());
            entry.1.push(*index);
        }
    }
    let mut by_peers: BTreeMap<_, BTreeMap<PortKey, Vec<usize>>> = BTreeMap::new();
    for ((changing, key), (peers, atoms)) in by_port {
        by_peers
            .entry((changing, peers))
            .or_default()
            .insert(key, atoms);
    }
    by_peers
}

fn spec((protocol, low, high): (u8, u16, u16)) -> PortSpec {
    let ports = if is_icmp(protocol) {
        let [kind, code] = low.to_be_bytes();
        Ports::Icmp {
            kind,
            code: Some(code),
        }
    } else if datapath::ids::protocol::has_ports(protocol) {
        Ports::Range(low, high)
    } else {
        Ports::All
    };
    PortSpec::Direct {
        protocol: Protocol::Number(protocol),
        ports,
    }
}

pub(crate) fn total(atoms: &[usize], evidence: &[Evidence]) -> Evidence {
    let mut sum = Evidence::default();
    for found in atoms.iter().filter_map(|index| evidence.get(*index)) {
        if found.edges > 0 {
            sum.add(found.edges, found.flows, found.first, found.last);
        }
    }
    sum
}

fn say(evidence: &Evidence) -> String {
    let counted = |count: u64, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    format!(
        "{} with {}, seen {} to {}",
        counted(evidence.edges, "edge"),
        counted(evidence.flows, "flow"),
        day(evidence.first),
        day(evidence.last)
    )
}

/// The day of a moment.
pub(crate) fn day(seconds: i64) -> String {
    match OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(moment) => moment.date().to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// `web → tcp/5432 of db`: for the report.
fn describe(subject: &Selector, egress: bool, rule: &Rule) -> String {
    let peers: Vec<String> = rule
        .peers
        .iter()
        .map(|peer| match peer {
            Peer::Selector { selector } => selector.to_string(),
            Peer::Cidr { cidr, .. } => cidr.to_string(),
            Peer::Group { group } => format!("group {group}"),
            Peer::Entity { entity } => entity.name().to_owned(),
        })
        .collect();
    let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
    let (peers, ports) = (peers.join(" | "), ports.join(", "));
    if egress {
        format!("{subject} → {peers}: {ports}")
    } else {
        format!("{peers} → {subject}: {ports}")
    }
}

/// `tcp/5432`, for one edge.
pub(crate) fn service_name(protocol: u8, port: u16) -> String {
    if datapath::ids::protocol::has_ports(protocol) || is_icmp(protocol) {
        spec((protocol, port, port)).to_string()
    } else {
        protocol_name(protocol)
    }
}

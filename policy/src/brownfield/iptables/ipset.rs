//! `ipset save`: sets that rules name.
//!
//! Format: ipset(8). What changes by itself (timeouts) or has no counterpart in policy stays unknown.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::conditions::net;
use crate::brownfield::firewall::{Match, names};
use crate::brownfield::intervals::{Addresses, Intervals};
use crate::brownfield::region::{port_services, protocol_services, service};
use crate::ports::PORTED;
use crate::problems::{Problem, Problems};
use crate::source::{Place, Source};

/// Which side of a packet a dimension of a set is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// The sets by name.
#[derive(Default)]
pub(super) struct Sets(BTreeMap<String, Set>);

struct Set {
    kind: String,
    v6: bool,
    elements: Vec<String>,
    /// Why its content cannot be relied on.
    moving: Option<String>,
}

/// Whether a text is the output of `ipset save`.
pub(super) fn is_ipset(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .is_some_and(|line| line.starts_with("create "))
}

impl Sets {
    pub(super) fn read(&mut self, source: &Source, problems: &mut Problems) {
        for (index, line) in source.text.lines().enumerate() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let known = match words.as_slice() {
                [] => true,
                [first, ..] if first.starts_with('#') => true,
                ["create", name, kind, rest @ ..] => {
                    let timeout = rest.iter().position(|word| *word == "timeout");
                    self.0.insert(
                        (*name).to_owned(),
                        Set {
                            kind: (*kind).to_owned(),
                            v6: rest.contains(&"inet6"),
                            elements: Vec::new(),
                            moving: timeout.map(|_| "its elements time out".to_owned()),
                        },
                    );
                    true
                }
                ["add", name, element, rest @ ..] => match self.0.get_mut(*name) {
                    Some(set) => {
                        if rest.contains(&"nomatch") {
                            set.moving = Some("it has exceptions (nomatch)".into());
                        }
                        set.elements.push((*element).to_owned());
                        true
                    }
                    None => false,
                },
                _ => false,
            };
            if !known {
                let place = Place::new(Arc::clone(&source.name), index as u64 + 1, 1);
                problems.push(
                    Problem::at(&place, "this is no line of ipset save")
                        .suggest("give the whole output of ipset save"),
                );
                return;
            }
        }
    }

    pub(super) fn remarks(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| {
            "the content of IP sets was taken as it is in the files; later changes need another import"
                .to_owned()
        })
    }

    /// Conjunctions, any of which means that the set matches; or why policy cannot say it.
    pub(super) fn matches(
        &self,
        name: &str,
        sides: &[Side],
        negated: bool,
        protocols: &Intervals,
        v6: bool,
    ) -> Result<Vec<Vec<Match>>, String> {
        let Some(set) = self.0.get(name) else {
            return Err(format!(
                "the content of the set {name} is not known; add the output of ipset save"
            ));
        };
        if let Some(moving) = &set.moving {
            return Err(format!("the set {name}: {moving}"));
        }
        if set.kind == "list:set" {
            return self.list(name, set, sides, negated, protocols, v6);
        }
        let kinds: Vec<&str> = set
            .kind
            .split_once(':')
            .map_or("", |(_, dims)| dims)
            .split(',')
            .collect();
        if sides.len() < kinds.len() || kinds.len() > 1 && sides.len() > kinds.len() {
            return Err(format!(
                "the set {name} ({}) is asked for {} sides",
                set.kind,
                sides.len()
            ));
        }
        let element = |element: &String| {
            let parts: Vec<&str> = element.split(',').collect();
            if parts.len() != kinds.len() {
                return None;
            }
            let parts = kinds.iter().zip(&parts).zip(sides);
            parts
                .map(|((kind, part), side)| dimension(kind, part, *side, set.v6, protocols))
                .collect::<Option<Vec<Match>>>()
        };
        let read: Option<Vec<Vec<Match>>> = set.elements.iter().map(element).collect();
        let unknown = || format!("policy has no word for the set {name} ({})", set.kind);
        let found = read.ok_or_else(unknown)?;
        if kinds.len() > 1 {
            return if negated { Err(unknown()) } else { Ok(found) };
        }
        single(found, set.v6, v6, negated, protocols)
            .map(|condition| vec![vec![condition]])
            .ok_or_else(unknown)
    }

    fn list(
        &self,
        name: &str,
        set: &Set,
        sides: &[Side],
        negated: bool,
        protocols: &Intervals,
        v6: bool,
    ) -> Result<Vec<Vec<Match>>, String> {
        if negated {
            return Err(format!(
                "policy has no word for what is not in the list {name}"
            ));
        }
        let mut all = Vec::new();
        for member in &set.elements {
            if self
                .0
                .get(member)
                .is_some_and(|member| member.kind == "list:set")
            {
                return Err(format!("the list {name} holds another list"));
            }
            all.extend(self.matches(member, sides, false, protocols, v6)?);
        }
        Ok(all)
    }
}

/// The union of the elements of a set with one dimension, or what is not in it.
fn single(
    found: Vec<Vec<Match>>,
    set_v6: bool,
    v6: bool,
    negated: bool,
    protocols: &Intervals,
) -> Option<Match> {
    let mut addresses = Addresses::default();
    let mut services = Intervals::EMPTY;
    let mut sample = None;
    for condition in found.into_iter().flatten() {
        match &condition {
            Match::Source(set) | Match::Destination(set) => addresses = addresses.union(set),
            Match::SourcePort(set) | Match::DestinationPort(set) => services = services.union(set),
            _ => return None,
        }
        sample = Some(condition);
    }
    // A set of the other family matches nothing.
    let family = if v6 {
        Addresses::all_v6()
    } else {
        Addresses::all_v4()
    };
    if negated {
        addresses = family.difference(&addresses);
        services = protocols.difference(&services);
    }
    Some(match sample {
        Some(Match::Source(_)) => Match::Source(addresses),
        Some(Match::Destination(_)) => Match::Destination(addresses),
        Some(Match::SourcePort(_)) => Match::SourcePort(services),
        Some(Match::DestinationPort(_)) => Match::DestinationPort(services),
        _ if negated => Match::Protocols(protocols.clone()),
        _ => Match::Never(format!(
            "the set is empty ({})",
            if set_v6 { "IPv6" } else { "IPv4" }
        )),
    })
}

fn dimension(kind: &str, part: &str, side: Side, v6: bool, protocols: &Intervals) -> Option<Match> {
    match kind {
        "ip" | "net" => {
            let set = match part.split_once('-') {
                Some((low, high)) => Addresses::range(low.parse().ok()?, high.parse().ok()?),
                None => Addresses::nets([net(part, v6)?]),
            };
            Some(match side {
                Side::Source => Match::Source(set),
                Side::Destination => Match::Destination(set),
            })
        }
        "port" => {
            let set = match part.split_once(':') {
                Some((protocol, ports)) => services(names::protocol(protocol)?, ports)?,
                // A set of ports means the protocol that the rule names.
                None => {
                    let protocol = PORTED
                        .into_iter()
                        .find(|protocol| *protocols == protocol_services(*protocol))?;
                    services(protocol, part)?
                }
            };
            Some(match side {
                Side::Source => Match::SourcePort(set),
                Side::Destination => Match::DestinationPort(set),
            })
        }
        _ => None,
    }
}

fn services(protocol: u8, ports: &str) -> Option<Intervals> {
    if let Some((kind, code)) = ports.split_once('/') {
        let number = service(
            protocol,
            u16::from_be_bytes([kind.parse().ok()?, code.parse().ok()?]),
        );
        return crate::ports::is_icmp(protocol).then(|| Intervals::range(number, number));
    }
    if !PORTED.contains(&protocol) {
        return None;
    }
    let (low, high) = ports.split_once('-').unwrap_or((ports, ports));
    Some(port_services(
        protocol,
        low.parse().ok()?,
        high.parse().ok()?,
    ))
}

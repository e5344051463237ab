//! Who is meant by an end of a question.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Reach;
use super::classes::{Class, Member};
use super::space::Region;
use crate::matching::PeerClass;
use crate::model::{Entity, Peer};
use crate::problems::did_you_mean;
use crate::selectors::{Expression, Operator, Selector};

/// Somebody a question speaks about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// A workload by name.
    Workload(String),
    /// As in the peers of a rule, but that a selector also means a workload whose address is claimed
    /// by another one.
    Peer(Peer),
}

/// Why an end is nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndError {
    /// No workload has the name.
    #[error("there is no workload \"{name}\"{}", .suggestion.as_ref().map(|text| format!("; {text}")).unwrap_or_default())]
    UnknownWorkload {
        /// As given.
        name: String,
        /// A close one.
        suggestion: Option<String>,
    },
    /// No address group has the name.
    #[error("there is no AddressGroup \"{0}\"")]
    UnknownGroup(String),
    /// The text is no selector.
    #[error("\"{0}\" is no selector; write it like env=dev,tier in (web, db),!legacy")]
    NotASelector(String),
    /// The network has host bits.
    #[error("\"{0}\" has host bits set; write the network, or the address without a length")]
    HostBits(String),
}

impl End {
    /// Reads what people type: a selector (`env=dev,tier in (web, db),!legacy`), `world`, `managed`,
    /// `unmanaged`, `any`, an address, a CIDR, `group:NAME` for an address group, or the name of a
    /// workload (`workload:NAME` where it could be read otherwise).
    pub fn parse(text: &str) -> Result<Self, EndError> {
        let text = text.trim();
        let peer = |peer| Ok(Self::Peer(peer));
        if let Some((_, entity)) = Entity::WORDS.iter().find(|(word, _)| *word == text) {
            return peer(Peer::Entity { entity: *entity });
        }
        if let Some(name) = text.strip_prefix("workload:") {
            return Ok(Self::Workload(name.to_owned()));
        }
        if let Some(group) = text.strip_prefix("group:") {
            let group = group.to_owned();
            return peer(Peer::Group { group });
        }
        let network = match text.parse::<IpAddr>() {
            Ok(address) => Some(IpNet::from(address.to_canonical())),
            Err(_) => text.parse::<IpNet>().ok(),
        };
        if let Some(cidr) = network {
            if cidr.trunc() != cidr {
                return Err(EndError::HostBits(text.to_owned()));
            }
            let except = Vec::new();
            return peer(Peer::Cidr { cidr, except });
        }
        if text.is_empty() || text.starts_with('!') || text.contains(['=', '(', ',']) {
            return selector(text)
                .map(|selector| Self::Peer(Peer::Selector { selector }))
                .ok_or_else(|| EndError::NotASelector(text.to_owned()));
        }
        Ok(Self::Workload(text.to_owned()))
    }
}

/// For messages.
impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Workload(name) => f.write_str(name),
            Self::Peer(Peer::Selector { selector }) => write!(f, "{selector}"),
            Self::Peer(Peer::Cidr { cidr, except }) if except.is_empty() => write!(f, "{cidr}"),
            Self::Peer(Peer::Cidr { cidr, except }) => {
                let except: Vec<String> = except.iter().map(ToString::to_string).collect();
                write!(f, "{cidr} except {}", except.join(", "))
            }
            Self::Peer(Peer::Group { group }) => write!(f, "group:{group}"),
            Self::Peer(Peer::Entity { entity }) => f.write_str(entity.name()),
        }
    }
}

/// `env=dev,tier in (web, db),tier not in (old),app!=x,!legacy,owner`, as selectors are printed.
fn selector(text: &str) -> Option<Selector> {
    let mut selector = Selector::default();
    for term in terms(text)? {
        if let Some(expression) = expression(&term) {
            selector.match_expressions.push(expression?);
            continue;
        }
        let (key, value) = term.split_once("==").or_else(|| term.split_once('='))?;
        let (key, value) = (key.trim(), value.trim());
        let other = selector
            .match_labels
            .insert(key.to_owned(), value.to_owned());
        if !is_word(key)
            || value.contains(['=', '(', ')'])
            || other.is_some_and(|other| other != value)
        {
            return None;
        }
    }
    (!selector.is_empty()).then_some(selector)
}

/// What stands between the commas outside of parentheses.
fn terms(text: &str) -> Option<Vec<String>> {
    let mut terms = vec![String::new()];
    let mut inside = false;
    for character in text.chars() {
        match character {
            ',' if !inside => {
                terms.push(String::new());
                continue;
            }
            '(' if inside => return None,
            '(' => inside = true,
            ')' => inside = false,
            _ => {}
        }
        terms.last_mut()?.push(character);
    }
    let trimmed = terms.iter().map(|term| term.trim().to_owned()).collect();
    (!inside).then_some(trimmed)
}

/// An expression, if the term is one; the inner `None` says that it is a wrong one.
fn expression(term: &str) -> Option<Option<Expression>> {
    let make = |key: &str, operator, values: Vec<String>| {
        let key = key.trim();
        is_word(key).then(|| Expression {
            key: key.to_owned(),
            operator,
            values,
        })
    };
    if let Some(key) = term.strip_prefix('!') {
        return Some(make(key, Operator::DoesNotExist, Vec::new()));
    }
    if let Some((key, value)) = term.split_once("!=") {
        return Some(make(key, Operator::NotIn, vec![value.trim().to_owned()]));
    }
    if let Some((head, list)) = term.split_once('(') {
        let values: Option<Vec<String>> = list.strip_suffix(')').map(|list| {
            let values = list.split(',').map(|value| value.trim().to_owned());
            values.filter(|value| !value.is_empty()).collect()
        });
        let words: Vec<&str> = head.split_whitespace().collect();
        let (key, operator) = match words.as_slice() {
            [key, "in"] => (*key, Operator::In),
            [key, "notin"] | [key, "not", "in"] => (*key, Operator::NotIn),
            _ => return Some(None),
        };
        let values = values.filter(|values| !values.is_empty());
        return Some(values.and_then(|values| make(key, operator, values)));
    }
    (!term.contains('=')).then(|| make(term, Operator::Exists, Vec::new()))
}

fn is_word(key: &str) -> bool {
    !key.is_empty() && !key.contains(|c: char| c.is_whitespace() || "!=(),".contains(c))
}

/// The part of a class that is meant.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    /// Its class.
    pub(super) class: u32,
    /// Its members, in the order of the class.
    pub(super) members: Vec<Member>,
    /// Parts of its region, none of them empty, which may overlap.
    pub(super) regions: Vec<Region>,
    /// The workload that all members belong to.
    pub(super) only: Option<u32>,
}

impl Reach<'_> {
    /// The parts of all classes that some ends mean, in the order of the classes.
    pub(super) fn choose(&self, ends: &[End]) -> Result<Vec<Chosen>, EndError> {
        let named = self.named(ends)?;
        let mut chosen = Vec::new();
        for (class, number) in self.rows.classes.list.iter().zip(0..) {
            let members: Vec<Member> = class
                .members
                .iter()
                .filter(|member| {
                    named.contains(&Some(member.workload))
                        || ends.iter().any(|end| self.means(end, member))
                })
                .copied()
                .collect();
            let regions = self.regions(class, ends);
            if members.is_empty() && regions.is_empty() {
                continue;
            }
            let first = members.first().map(|member| member.workload);
            let only = first.filter(|first| members.iter().all(|member| member.workload == *first));
            chosen.push(Chosen {
                class: number,
                members,
                regions,
                only,
            });
        }
        Ok(chosen)
    }

    /// Indices of the workloads that are named.
    fn named(&self, ends: &[End]) -> Result<Vec<Option<u32>>, EndError> {
        let mut named = Vec::new();
        for end in ends {
            match end {
                End::Workload(name) => {
                    let position = self.world.workload_position(name).ok_or_else(|| {
                        EndError::UnknownWorkload {
                            name: name.clone(),
                            suggestion: did_you_mean(name, self.world.names()),
                        }
                    })?;
                    named.push(u32::try_from(position).ok());
                }
                End::Peer(Peer::Group { group }) if self.set.group(group).is_none() => {
                    return Err(EndError::UnknownGroup(group.clone()));
                }
                End::Peer(_) => {}
            }
        }
        Ok(named)
    }

    fn means(&self, end: &End, member: &Member) -> bool {
        let End::Peer(peer) = end else {
            return false;
        };
        let within = |net: &IpNet| net.contains(&member.address);
        match peer {
            Peer::Selector { selector } => self
                .world
                .workloads()
                .get(member.workload as usize)
                .is_some_and(|workload| selector.matches(workload)),
            Peer::Cidr { cidr, except } => within(cidr) && !except.iter().any(within),
            Peer::Group { group } => {
                let group = self.set.group(group);
                group.is_some_and(|group| group.cidrs.iter().any(within))
            }
            Peer::Entity { entity } => matches!(entity, Entity::Any | Entity::Managed),
        }
    }

    /// The parts of a region that are meant and have an address.
    fn regions(&self, class: &Class, ends: &[End]) -> Vec<Region> {
        let classes = &self.rows.classes;
        let Some(whole) = class.region.map(|region| classes.space.region(region)) else {
            return Vec::new();
        };
        let side = classes
            .peers
            .get(class.peer as usize)
            .map(|peer| peer.class);
        let mut parts = Vec::new();
        for end in ends {
            let End::Peer(peer) = end else {
                continue;
            };
            match peer {
                Peer::Selector { .. } => {}
                Peer::Cidr { cidr, except } => parts.extend(whole.cut(cidr, except)),
                Peer::Group { group } => {
                    let cidrs = self.set.group(group).map(|group| &group.cidrs);
                    let cuts = cidrs
                        .into_iter()
                        .flatten()
                        .filter_map(|cidr| whole.cut(cidr, &[]));
                    parts.extend(cuts);
                }
                Peer::Entity { entity } => {
                    let meant = match entity {
                        Entity::Any => true,
                        Entity::Managed => false,
                        Entity::Unmanaged => side == Some(PeerClass::Unmanaged),
                        Entity::World => side == Some(PeerClass::World),
                    };
                    parts.extend(meant.then(|| whole.clone()));
                }
            }
        }
        parts.retain(|part| classes.space.stranger(part).is_some());
        parts.sort();
        parts.dedup();
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_as_they_are_printed() {
        for text in [
            "env=dev",
            "env=dev,tier in (web, db),!legacy",
            "tier not in (old),owner",
            "namespace:team=shop",
            "world",
            "10.0.0.0/8",
            "group:office",
            "web-1",
            "shop/db-1",
        ] {
            assert_eq!(End::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(End::parse("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(
            End::parse("app!=web").unwrap(),
            End::parse("app not in (web)").unwrap()
        );
        assert_eq!(
            End::parse("app == web").unwrap(),
            End::parse("app=web").unwrap()
        );
        assert_eq!(
            End::parse("workload:world").unwrap(),
            End::Workload("world".into())
        );
        for wrong in [
            "",
            "=",
            "a=b,",
            "a=b,a=c",
            "a in ()",
            "a in (b",
            "a (b)",
            "a b=c",
            "!",
            "a=(b)",
            "10.0.0.1/8",
        ] {
            assert!(End::parse(wrong).is_err(), "{wrong}");
        }
    }
}

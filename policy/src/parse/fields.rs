//! Reading a mapping field by field, collecting every problem on the way.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::node::{Entry, Node, Value};
use crate::problems::{Problem, Problems, did_you_mean};
use crate::source::Place;

/// A mapping that is being read: fields are taken out one by one, and what is left is unknown.
pub(crate) struct Fields<'a> {
    what: &'static str,
    place: Place,
    entries: Vec<&'a Entry>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Opens a mapping; reports repeated keys and values of another kind.
    pub(crate) fn open(
        node: &'a Node,
        what: &'static str,
        problems: &mut Problems,
    ) -> Option<Self> {
        let entries = map_entries(node, what, problems)?;
        Some(Self {
            what,
            place: node.place.clone(),
            entries,
            known: Vec::new(),
        })
    }

    /// Place of the mapping.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Takes a field; `null` counts as absent.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<&'a Node> {
        self.take_entry(key)
            .map(|entry| &entry.node)
            .filter(|node| !matches!(node.value, Value::Null))
    }

    /// Takes a field with its key, even if the value is `null`.
    pub(crate) fn take_entry(&mut self, key: &'static str) -> Option<&'a Entry> {
        self.known.push(key);
        let index = self.entries.iter().position(|entry| entry.key == key)?;
        Some(self.entries.remove(index))
    }

    /// Takes a field that must be there.
    pub(crate) fn require(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<&'a Node> {
        let node = self.take(key);
        if node.is_none() {
            problems.push(Problem::at(
                &self.place,
                format!("{} has no \"{key}\"", self.what),
            ));
        }
        node
    }

    /// Takes an optional text.
    pub(crate) fn text(&mut self, key: &'static str, problems: &mut Problems) -> Option<String> {
        self.take(key)
            .and_then(|node| text(node, key, problems).map(str::to_owned))
    }

    /// Takes an optional list.
    pub(crate) fn list(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<&'a [Node]> {
        self.take(key).and_then(|node| list(node, key, problems))
    }

    /// Takes one of a closed set of words.
    pub(crate) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&'static str, T)],
        problems: &mut Problems,
    ) -> Option<T> {
        self.take(key)
            .and_then(|node| word(node, key, words, problems))
    }

    /// Ends the reading: what was not taken is unknown.
    pub(crate) fn finish(self, problems: &mut Problems) {
        for entry in &self.entries {
            // A field that was taken once and is here again was reported as repeated.
            if self.known.contains(&entry.key.as_str()) {
                continue;
            }
            let suggestion = did_you_mean(&entry.key, self.known.iter().copied())
                .unwrap_or_else(|| format!("known fields: {}", self.known.join(", ")));
            problems.push(
                Problem::at(
                    &entry.place,
                    format!("unknown field \"{}\" in {}", entry.key, self.what),
                )
                .suggest(suggestion),
            );
        }
    }
}

/// The entries of a mapping; reports repeated keys.
pub(crate) fn map_entries<'a>(
    node: &'a Node,
    what: &str,
    problems: &mut Problems,
) -> Option<Vec<&'a Entry>> {
    let Value::Map(entries) = &node.value else {
        problems.push(wrong_kind(node, what, "a mapping"));
        return None;
    };
    let mut seen = HashSet::new();
    for entry in entries {
        if !seen.insert(entry.key.as_str()) {
            problems.push(
                Problem::at(
                    &entry.place,
                    format!("duplicate key \"{}\" in {what}", entry.key),
                )
                .suggest("keep one of the two"),
            );
        }
    }
    Some(entries.iter().collect())
}

/// A text; numbers and booleans are not converted, as they may have lost characters.
pub(crate) fn text<'a>(node: &'a Node, what: &str, problems: &mut Problems) -> Option<&'a str> {
    match &node.value {
        Value::Text(text) => Some(text),
        Value::Int(_) | Value::Float | Value::Bool(_) => {
            problems.push(wrong_kind(node, what, "a text").suggest("put it in quotes"));
            None
        }
        _ => {
            problems.push(wrong_kind(node, what, "a text"));
            None
        }
    }
}

/// A list.
pub(crate) fn list<'a>(node: &'a Node, what: &str, problems: &mut Problems) -> Option<&'a [Node]> {
    match &node.value {
        Value::List(items) => Some(items),
        _ => {
            problems.push(wrong_kind(node, what, "a list").suggest("start each item with \"- \""));
            None
        }
    }
}

/// A whole number in a range.
pub(crate) fn number(
    node: &Node,
    what: &str,
    low: i128,
    high: i128,
    problems: &mut Problems,
) -> Option<i128> {
    match node.value {
        Value::Int(value) if (low..=high).contains(&value) => Some(value),
        Value::Int(value) => {
            problems.push(Problem::at(
                &node.place,
                format!("\"{what}\" is {value}, outside {low}–{high}"),
            ));
            None
        }
        _ => {
            problems.push(wrong_kind(node, what, "a whole number"));
            None
        }
    }
}

/// `true` or `false`.
pub(crate) fn boolean(node: &Node, what: &str, problems: &mut Problems) -> Option<bool> {
    match node.value {
        Value::Bool(value) => Some(value),
        _ => {
            problems.push(wrong_kind(node, what, "true or false"));
            None
        }
    }
}

/// One of a closed set of words.
pub(crate) fn word<T: Copy>(
    node: &Node,
    what: &str,
    words: &[(&'static str, T)],
    problems: &mut Problems,
) -> Option<T> {
    let given = text(node, what, problems)?;
    if let Some((_, value)) = words.iter().find(|(name, _)| *name == given) {
        return Some(*value);
    }
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    let suggestion = did_you_mean(given, names.iter().copied())
        .unwrap_or_else(|| format!("use one of: {}", names.join(", ")));
    problems
        .push(Problem::at(&node.place, format!("unknown {what} \"{given}\"")).suggest(suggestion));
    None
}

/// A network in CIDR notation without host bits.
pub(crate) fn cidr(node: &Node, what: &str, problems: &mut Problems) -> Option<IpNet> {
    let given = text(node, what, problems)?;
    if let Ok(net) = given.parse::<IpNet>() {
        if net.addr() == net.network() {
            return not_mapped(net, node, problems);
        }
        let fixed = net.trunc();
        problems.push(
            Problem::at(
                &node.place,
                format!("\"{given}\" has host bits set: it is an address, not a network"),
            )
            .suggest(format!(
                "write {fixed} for the network, or {}/{} for the one address",
                net.addr(),
                net.max_prefix_len()
            )),
        );
        return None;
    }
    let suggestion = match given.parse::<IpAddr>() {
        Ok(address) => format!("write {}", IpNet::from(address)),
        Err(_) => "write for example 10.0.0.0/8 or fd00::/8".to_owned(),
    };
    problems.push(
        Problem::at(&node.place, format!("\"{given}\" is no CIDR in \"{what}\""))
            .suggest(suggestion),
    );
    None
}

/// Refuses a network of IPv4-mapped addresses: addresses are compared in their IPv4 form, so it would
/// match nothing.
fn not_mapped(net: IpNet, node: &Node, problems: &mut Problems) -> Option<IpNet> {
    let IpNet::V6(v6) = net else {
        return Some(net);
    };
    let Some(v4) = v6.addr().to_ipv4_mapped().filter(|_| v6.prefix_len() >= 96) else {
        return Some(net);
    };
    problems.push(
        Problem::at(
            &node.place,
            format!("{net} is a network of IPv4 addresses in IPv6 form, and matches nothing"),
        )
        .suggest(format!("write {v4}/{}", v6.prefix_len() - 96)),
    );
    None
}

/// An IP address; IPv4-mapped IPv6 addresses become IPv4.
pub(crate) fn address(node: &Node, what: &str, problems: &mut Problems) -> Option<IpAddr> {
    let given = text(node, what, problems)?;
    match given.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical()),
        Err(_) => {
            let suggestion = if given.parse::<IpNet>().is_ok() {
                "write the address without a prefix length"
            } else {
                "write for example 10.0.0.5 or fd00::5"
            };
            problems.push(
                Problem::at(&node.place, format!("\"{given}\" is no IP address"))
                    .suggest(suggestion),
            );
            None
        }
    }
}

/// A moment in RFC 3339.
pub(crate) fn moment(node: &Node, what: &str, problems: &mut Problems) -> Option<OffsetDateTime> {
    let given = text(node, what, problems)?;
    match OffsetDateTime::parse(given, &Rfc3339) {
        Ok(moment) => Some(moment.to_offset(time::UtcOffset::UTC)),
        Err(_) => {
            problems.push(
                Problem::at(
                    &node.place,
                    format!("\"{what}\" is \"{given}\", which is no RFC 3339 time"),
                )
                .suggest("write for example 2030-01-31T18:00:00Z"),
            );
            None
        }
    }
}

/// `"x" must be …, but is …`.
pub(crate) fn wrong_kind(node: &Node, what: &str, wanted: &str) -> Problem {
    Problem::at(
        &node.place,
        format!("\"{what}\" must be {wanted}, but is {}", node.kind()),
    )
}

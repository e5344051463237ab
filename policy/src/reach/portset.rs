//! Sets in the space of protocols and ports: all 256 protocols, each with its 65,536 ports (ICMP:
//! type × 256 + code). A protocol without ports is in a set whole or not at all.

use std::fmt;

use datapath::ids::protocol as number;
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

use crate::ports::{PORTED, PortBlock, is_icmp, protocol_name};

/// First and last port of a range.
pub type Range = (u16, u16);

const FULL: &[Range] = &[(0, u16::MAX)];

/// Protocols in the order in which an example is looked for.
const FAMILIAR: [u8; 5] = [
    number::TCP,
    number::UDP,
    number::SCTP,
    number::ICMP,
    number::ICMPV6,
];

/// Ports in the order in which an example is looked for, where a set holds more than one.
const FAMILIAR_PORTS: [u16; 8] = [443, 80, 22, 53, 3389, 5432, 3306, 445];

/// A set of protocols and ports. Equal sets compare as equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSet {
    /// Whether protocols that are not listed are in it.
    others: bool,
    /// Sorted; never a protocol that `others` describes as well.
    protocols: Vec<(u8, Vec<Range>)>,
}

impl PortSet {
    /// Nothing.
    pub const NONE: Self = Self {
        others: false,
        protocols: Vec::new(),
    };
    /// Everything.
    pub const ALL: Self = Self {
        others: true,
        protocols: Vec::new(),
    };

    /// One range of one protocol.
    #[must_use]
    pub fn range(protocol: u8, low: u16, high: u16) -> Self {
        Self::of(&[PortBlock {
            protocol: Some(protocol),
            low,
            high,
        }])
    }

    /// Reads what people type: `tcp/443` or `443/tcp`, `443`, `udp/8000-8080`, `icmp/8`, `icmp/3:4`,
    /// `0/47` for a protocol without ports, `udp` for all of one protocol. `any` means every
    /// protocol, and with a port beside it TCP, UDP and SCTP.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let is_name = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic());
        let (name, ports) = match text.split_once('/') {
            Some((first, second)) if is_name(first) => (first, Some(second)),
            Some((first, second)) => (second, Some(first)),
            None if is_name(&text) => (text.as_str(), None),
            None => ("tcp", Some(text.as_str())),
        };
        let protocols = match (name, ports) {
            ("any", None) => return Some(Self::ALL),
            ("any", Some(_)) => PORTED.to_vec(),
            _ => vec![crate::api::protocol_number(name)?],
        };
        let mut set = Self::NONE;
        for protocol in protocols {
            let (low, high) = match ports {
                None => (0, u16::MAX),
                Some(ports) => range(protocol, ports)?,
            };
            set = set.union(&Self::range(protocol, low, high));
        }
        Some(set)
    }

    /// What some blocks cover together.
    #[must_use]
    pub fn of(blocks: &[PortBlock]) -> Self {
        let others = blocks.iter().any(|block| block.protocol.is_none());
        if others {
            return Self::ALL;
        }
        let mut by_protocol: Vec<(u8, Range)> = blocks
            .iter()
            .filter_map(|block| Some((block.protocol?, (block.low, block.high))))
            .map(|(protocol, range)| (protocol, whole(protocol, range)))
            .filter_map(|(protocol, range)| Some((protocol, range?)))
            .collect();
        by_protocol.sort_unstable();
        let mut protocols: Vec<(u8, Vec<Range>)> = Vec::new();
        for (protocol, (low, high)) in by_protocol {
            match protocols.last_mut() {
                Some((last, ranges)) if *last == protocol => match ranges.last_mut() {
                    // Ranges that touch are one range.
                    Some((_, end)) if u32::from(low) <= u32::from(*end) + 1 => {
                        *end = high.max(*end)
                    }
                    _ => ranges.push((low, high)),
                },
                _ => protocols.push((protocol, vec![(low, high)])),
            }
        }
        Self {
            others: false,
            protocols,
        }
        .canonical()
    }

    /// Where every protocol is listed, two forms would mean the same.
    fn canonical(mut self) -> Self {
        if self.protocols.len() == 256 && self.others {
            self.others = false;
            self.protocols.retain(|(_, ranges)| !ranges.is_empty());
        }
        if self.protocols.len() == 256 {
            let before = self.protocols.len();
            self.protocols.retain(|(_, ranges)| ranges != FULL);
            self.others = self.protocols.len() < before;
        }
        self
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    /// Whether a protocol and port is in it.
    #[must_use]
    pub fn contains(&self, protocol: u8, port: u16) -> bool {
        self.ranges(protocol)
            .iter()
            .any(|(low, high)| (*low..=*high).contains(&port))
    }

    /// Ranges of one protocol, ascending, which do not touch.
    #[must_use]
    pub fn ranges(&self, protocol: u8) -> &[Range] {
        match self
            .protocols
            .binary_search_by_key(&protocol, |(own, _)| *own)
        {
            Ok(index) => self.protocols.get(index).map_or(&[], |(_, ranges)| ranges),
            Err(_) if self.others => FULL,
            Err(_) => &[],
        }
    }

    /// Protocols that it lists, and their ranges. Every other one is in it whole, or not at all
    /// ([`PortSet::has_others`]).
    pub fn protocols(&self) -> impl Iterator<Item = (u8, &[Range])> {
        let listed = self.protocols.iter();
        listed.map(|(protocol, ranges)| (*protocol, ranges.as_slice()))
    }

    /// Whether protocols that it does not list are in it.
    #[must_use]
    pub const fn has_others(&self) -> bool {
        self.others
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.combine(other, |own, other| own || other)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |own, other| own && other)
    }

    /// What is only in this one.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |own, other| own && !other)
    }

    fn combine(&self, other: &Self, keep: impl Fn(bool, bool) -> bool) -> Self {
        let mut numbers: Vec<u8> = self.protocols.iter().map(|(own, _)| *own).collect();
        numbers.extend(other.protocols.iter().map(|(own, _)| *own));
        numbers.sort_unstable();
        numbers.dedup();
        let others = keep(self.others, other.others);
        let same: &[Range] = if others { FULL } else { &[] };
        let protocols = numbers
            .into_iter()
            .map(|protocol| {
                let (own, other) = (self.ranges(protocol), other.ranges(protocol));
                (protocol, combine_ranges(own, other, &keep))
            })
            .filter(|(_, ranges)| ranges != same)
            .collect();
        Self { others, protocols }.canonical()
    }

    /// One protocol and port of it that people know, with its place in the order of what is familiar
    /// (0 = most); the same set always gives the same one.
    #[must_use]
    pub fn example(&self) -> Option<(u8, u16, usize)> {
        let rest = (0..=u8::MAX).filter(|protocol| !FAMILIAR.contains(protocol));
        FAMILIAR
            .into_iter()
            .chain(rest)
            .enumerate()
            .find_map(|(rank, protocol)| {
                let ranges = self.ranges(protocol);
                let (first, _) = *ranges.first()?;
                let holds = |port: &u16| {
                    ranges
                        .iter()
                        .any(|(low, high)| (low..=high).contains(&port))
                };
                let familiar: &[u16] = match protocol {
                    number::ICMP => &[8 << 8],
                    number::ICMPV6 => &[128 << 8],
                    _ if number::has_ports(protocol) => &FAMILIAR_PORTS,
                    _ => &[0],
                };
                let found = familiar.iter().copied().find(holds);
                // Port 0 is nobody's example.
                let port = found.or_else(|| Some(1).filter(holds).filter(|_| first == 0));
                Some((protocol, port.unwrap_or(first), rank))
            })
    }
}

/// `80`, `80-90`; for ICMP `8`, `3:4`.
fn range(protocol: u8, text: &str) -> Option<Range> {
    if is_icmp(protocol) {
        let (kind, code) = match text.split_once(':') {
            Some((kind, code)) => (kind, Some(code.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let kind: u8 = kind.parse().ok()?;
        let port = |code| u16::from_be_bytes([kind, code]);
        return Some((port(code.unwrap_or(0)), port(code.unwrap_or(u8::MAX))));
    }
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (low.parse().ok()?, high.parse().ok()?);
    let is_right = low <= high && (number::has_ports(protocol) || (low, high) == (0, 0));
    is_right.then_some((low, high))
}

/// The range as far as the protocol has ports: one without is there, as port 0, or it is not.
fn whole(protocol: u8, range: Range) -> Option<Range> {
    if number::has_ports(protocol) || is_icmp(protocol) {
        return Some(range);
    }
    (range.0 == 0).then_some((0, u16::MAX))
}

fn combine_ranges(
    own: &[Range],
    other: &[Range],
    keep: &impl Fn(bool, bool) -> bool,
) -> Vec<Range> {
    let mut borders: Vec<u32> = own
        .iter()
        .chain(other)
        .flat_map(|(low, high)| [u32::from(*low), u32::from(*high) + 1])
        .chain([0])
        .collect();
    borders.sort_unstable();
    borders.dedup();
    let holds = |ranges: &[Range], port: u32| {
        ranges
            .iter()
            .any(|(low, high)| (u32::from(*low)..=u32::from(*high)).contains(&port))
    };
    let mut kept: Vec<Range> = Vec::new();
    for (index, low) in borders.iter().enumerate() {
        let next = borders.get(index + 1).copied().unwrap_or(1 << 16);
        let (Ok(low16), Ok(high16)) = (u16::try_from(*low), u16::try_from(next.saturating_sub(1)))
        else {
            continue;
        };
        if !keep(holds(own, *low), holds(other, *low)) {
            continue;
        }
        match kept.last_mut() {
            Some((_, end)) if u32::from(*end) + 1 == *low => *end = high16,
            _ => kept.push((low16, high16)),
        }
    }
    kept
}

/// `any`, or `tcp/80,443-444 icmp type 8, every other protocol`.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("any");
        }
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut parts: Vec<String> = self
            .protocols()
            .filter(|(_, ranges)| !ranges.is_empty())
            .map(|(protocol, ranges)| text(protocol, ranges))
            .collect();
        if self.others {
            let missing: Vec<String> = self
                .protocols()
                .filter(|(_, ranges)| ranges.is_empty())
                .map(|(protocol, _)| protocol_name(protocol))
                .collect();
            parts.push(match (parts.is_empty(), missing.is_empty()) {
                (true, false) => format!("any but {}", missing.join(", ")),
                (_, true) => "every other protocol".to_owned(),
                (false, false) => format!("every other protocol but {}", missing.join(", ")),
            });
        }
        f.write_str(&parts.join(" "))
    }
}

fn text(protocol: u8, ranges: &[Range]) -> String {
    let name = protocol_name(protocol);
    if ranges == FULL {
        return format!("{name}/any");
    }
    let parts: Vec<String> = ranges
        .iter()
        .map(|(low, high)| {
            if is_icmp(protocol) {
                return icmp(*low, *high);
            }
            if low == high {
                low.to_string()
            } else {
                format!("{low}-{high}")
            }
        })
        .collect();
    format!("{name}/{}", parts.join(","))
}

/// `8` for a type, `3:1` for a type and code, `3:1-5:0` for what lies between.
fn icmp(low: u16, high: u16) -> String {
    let ([kind, code], [last_kind, last_code]) = (low.to_be_bytes(), high.to_be_bytes());
    match (code, last_code) {
        (0, u8::MAX) if kind == last_kind => kind.to_string(),
        (0, u8::MAX) => format!("{kind}-{last_kind}"),
        _ if low == high => format!("{kind}:{code}"),
        _ => format!("{kind}:{code}-{last_kind}:{last_code}"),
    }
}

/// The text, and the ranges for machines.
impl Serialize for PortSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Listed<'a> {
            protocol: u8,
            ranges: &'a [Range],
        }
        let protocols: Vec<Listed<'_>> = self
            .protocols()
            .map(|(protocol, ranges)| Listed { protocol, ranges })
            .collect();
        let mut fields = serializer.serialize_struct("PortSet", 3)?;
        fields.serialize_field("text", &self.to_string())?;
        fields.serialize_field("protocols", &protocols)?;
        fields.serialize_field("other_protocols", &self.others)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PORTS, Random};

    fn any(random: &mut Random) -> PortSet {
        let blocks: Vec<PortBlock> = (0..random.below(4))
            .map(|_| {
                let (a, b) = (random.pick(&PORTS), random.pick(&PORTS));
                PortBlock {
                    protocol: Some(random.pick(&[1, 6, 6, 17, 47])),
                    low: a.min(b),
                    high: a.max(b),
                }
            })
            .collect();
        let set = PortSet::of(&blocks);
        if random.chance(30) {
            PortSet::ALL.difference(&set)
        } else {
            set
        }
    }

    #[test]
    fn they_are_sets() {
        let random = &mut Random::new(11);
        for _ in 0..2_000 {
            let (a, b) = (any(random), any(random));
            let (union, both, rest) = (a.union(&b), a.intersection(&b), a.difference(&b));
            for protocol in [0, 1, 6, 17, 47, 132, 255] {
                for port in PORTS
                    .into_iter()
                    .flat_map(|port| [port, port.wrapping_add(1), port.wrapping_sub(1)])
                {
                    // Without ports there is only port 0.
                    let port = if matches!(protocol, 0 | 47 | 255) {
                        0
                    } else {
                        port
                    };
                    let (in_a, in_b) = (a.contains(protocol, port), b.contains(protocol, port));
                    assert_eq!(union.contains(protocol, port), in_a || in_b, "{a} + {b}");
                    assert_eq!(both.contains(protocol, port), in_a && in_b, "{a} & {b}");
                    assert_eq!(rest.contains(protocol, port), in_a && !in_b, "{a} - {b}");
                }
            }
            // Equal sets are equal, whatever way they were made.
            assert_eq!(rest.union(&both), a);
            assert_eq!(b.union(&rest), union);
            assert!(rest.intersection(&b).is_empty());
            if let Some((protocol, port, _)) = union.example() {
                assert!(union.contains(protocol, port), "{union}");
            } else {
                assert!(union.is_empty());
            }
        }
    }

    #[test]
    fn ports_are_read_in_either_order() {
        for (text, shown) in [
            ("tcp/443", "tcp/443"),
            ("443/tcp", "tcp/443"),
            ("443", "tcp/443"),
            ("UDP/8000-8080", "udp/8000-8080"),
            ("udp", "udp/any"),
            ("icmp/8", "icmp/8"),
            ("3:4/icmp", "icmp/3:4"),
            ("0/47", "47/any"),
            ("any", "any"),
            ("any/53", "tcp/53 udp/53 sctp/53"),
        ] {
            assert_eq!(PortSet::parse(text).unwrap().to_string(), shown, "{text}");
        }
        for wrong in [
            "",
            "tcp/",
            "tcp/90-80",
            "tcp/65536",
            "tpc/80",
            "1/47",
            "icmp/8-9",
            "icmp/256",
            "tcp/http",
        ] {
            assert_eq!(PortSet::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_protocol_one_by_one_is_everything() {
        let mut set = PortSet::NONE;
        let mut rest = PortSet::ALL;
        for protocol in 0..=u8::MAX {
            let one = PortSet::range(protocol, 0, u16::MAX);
            set = set.union(&one);
            rest = rest.difference(&one);
        }
        assert_eq!(set, PortSet::ALL);
        assert_eq!(rest, PortSet::NONE);
    }

    #[test]
    fn texts_are_short() {
        let set = PortSet::range(6, 80, 80).union(&PortSet::range(6, 443, 444));
        assert_eq!(set.to_string(), "tcp/80,443-444");
        let ping = PortSet::range(1, 0x0800, 0x08ff).union(&PortSet::range(17, 53, 53));
        assert_eq!(ping.to_string(), "icmp/8 udp/53");
        assert_eq!(
            PortSet::ALL
                .difference(&PortSet::range(6, 0, u16::MAX))
                .to_string(),
            "any but tcp"
        );
        assert_eq!(
            PortSet::ALL
                .difference(&PortSet::range(6, 23, 23))
                .to_string(),
            "tcp/0-22,24-65535 every other protocol"
        );
        assert_eq!(set.union(&ping).example(), Some((6, 443, 0)));
        assert_eq!(PortSet::ALL.example(), Some((6, 443, 0)));
        assert_eq!(PortSet::range(6, 0, 21).example(), Some((6, 1, 0)));
    }
}

//! The conditions of one rule.

use ipnet::IpNet;
use std::net::IpAddr;

use super::ipset::{Sets, Side};
use super::words::Words;
use crate::brownfield::firewall::condition::FLAGS;
use crate::brownfield::firewall::{AddressKind, Match, States, names};
use crate::brownfield::intervals::{Addresses, Intervals};
use crate::brownfield::region::{all_services, port_services, protocol_services, service};
use crate::ports::PORTED;

/// Modules whose conditions are read below; any other is a condition that policy has no word for.
const KNOWN_MODULES: &[&str] = &[
    "tcp",
    "udp",
    "sctp",
    "icmp",
    "icmp6",
    "icmpv6",
    "ipv6-icmp",
    "multiport",
    "state",
    "conntrack",
    "comment",
    "set",
    "iprange",
    "addrtype",
    "pkttype",
    "limit",
    "hashlimit",
    "recent",
    "connlimit",
    "owner",
    "mark",
    "connmark",
    "mac",
    "time",
    "string",
    "u32",
    "bpf",
    "dccp",
    "udplite",
    "esp",
    "ah",
    "dscp",
    "tos",
    "ttl",
    "hl",
    "length",
    "statistic",
    "rt",
    "frag",
    "hbh",
    "dst",
    "eui64",
    "ecn",
    "physdev",
    "policy",
    "realm",
    "helper",
    "tcpmss",
    "cgroup",
    "quota",
    "connbytes",
    "nfacct",
    "osf",
];

/// Alternatives of one rule, because of sets of pairs.
const MAX_ALTERNATIVES: usize = 10_000;

/// A mistake: column and message.
type Mistake = (usize, String);

/// The conditions of a rule while they are read.
pub(super) struct Conditions<'a> {
    v6: bool,
    sets: &'a Sets,
    /// Protocols that `-p` names.
    protocols: Intervals,
    matches: Vec<Match>,
    alternatives: Vec<Vec<Match>>,
    pub(super) comment: Option<String>,
    /// The module whose options come now.
    module: String,
}

impl<'a> Conditions<'a> {
    pub(super) fn new(v6: bool, sets: &'a Sets) -> Self {
        Self {
            v6,
            sets,
            protocols: all_services(),
            matches: Vec::new(),
            alternatives: vec![Vec::new()],
            comment: None,
            module: String::new(),
        }
    }

    /// Conjunctions, any of which the rule means.
    pub(super) fn finish(self) -> Vec<Vec<Match>> {
        let family = if self.v6 {
            Addresses::all_v6()
        } else {
            Addresses::all_v4()
        };
        let own = std::iter::once(Match::Source(family)).chain(self.matches);
        let own: Vec<Match> = own.collect();
        self.alternatives
            .into_iter()
            .map(|mut more| {
                let mut all = own.clone();
                all.append(&mut more);
                all
            })
            .collect()
    }

    /// Reads one option.
    pub(super) fn option(
        &mut self,
        option: &str,
        mut negated: bool,
        words: &mut Words,
    ) -> Result<(), Mistake> {
        // Old versions write the negation behind the option.
        if words.peek() == Some("!") {
            words.next();
            negated = !negated;
        }
        match option {
            "-m" | "--match" => {
                let module = argument(option, words)?;
                self.module.clone_from(&module);
                if !KNOWN_MODULES.contains(&module.as_str()) {
                    self.unknown(option, negated, &module);
                }
            }
            "--comment" => self.comment = Some(argument(option, words)?),
            "-p" | "--protocol" | "--proto" => self.protocol(option, negated, words)?,
            "-s" | "--source" | "--src" => {
                let set = self.address(option, negated, words)?;
                self.matches.push(Match::Source(set));
            }
            "-d" | "--destination" | "--dst" => {
                let set = self.address(option, negated, words)?;
                self.matches.push(Match::Destination(set));
            }
            "--src-range" => {
                let set = self.range(option, negated, words)?;
                self.matches.push(Match::Source(set));
            }
            "--dst-range" => {
                let set = self.range(option, negated, words)?;
                self.matches.push(Match::Destination(set));
            }
            "-i" | "--in-interface" => {
                let name = argument(option, words)?.replace('+', "*");
                self.matches.push(Match::InDevice(name, negated));
            }
            "-o" | "--out-interface" => {
                let name = argument(option, words)?.replace('+', "*");
                self.matches.push(Match::OutDevice(name, negated));
            }
            // Later fragments open nothing and follow their first one.
            "-f" | "--fragment" if negated => {}
            "-f" | "--fragment" => self.matches.push(Match::Never(
                "later fragments follow their first one".into(),
            )),
            "--dport" | "--dports" | "--destination-port" | "--destination-ports" => {
                if let Some(set) = self.ports(option, negated, words)? {
                    self.matches.push(Match::DestinationPort(set));
                }
            }
            "--sport" | "--sports" | "--source-port" | "--source-ports" => {
                if let Some(set) = self.ports(option, negated, words)? {
                    self.matches.push(Match::SourcePort(set));
                }
            }
            "--icmp-type" | "--icmpv6-type" => self.icmp(option, negated, words)?,
            "--state" | "--ctstate" => self.state(option, negated, words)?,
            "--ctdir" => {
                let original = argument(option, words)?.eq_ignore_ascii_case("ORIGINAL");
                self.matches.push(Match::Original(original != negated));
            }
            "--tcp-flags" => self.flags(option, negated, words)?,
            "--syn" => self.matches.push(Match::TcpFlags {
                mask: 0x17,
                value: 0x02,
                negated,
            }),
            "--src-type" | "--dst-type" => self.kind(option, negated, words)?,
            "--pkt-type" => {
                let kind = match argument(option, words)?.to_ascii_lowercase().as_str() {
                    "unicast" | "host" => AddressKind::Local,
                    "multicast" => AddressKind::Multicast,
                    _ => AddressKind::Other,
                };
                self.matches.push(Match::PacketKind(kind, negated));
            }
            "--match-set" => self.set(option, negated, words)?,
            _ => {
                let mut text = String::new();
                while let Some(word) = words.peek() {
                    if word == "!" || word.starts_with('-') && word.len() > 1 {
                        break;
                    }
                    text.push_str(word);
                    text.push(' ');
                    words.next();
                }
                self.unknown(option, negated, text.trim_end());
            }
        }
        Ok(())
    }

    fn unknown(&mut self, option: &str, negated: bool, text: &str) {
        let not = if negated { "! " } else { "" };
        let start = format!("policy has no word for -m {} ", self.module);
        let text = format!("{not}{option} {text}");
        // The options of one module are one condition.
        if let Some(Match::Unknown(last)) = self.matches.last_mut()
            && last.starts_with(&start)
        {
            last.push(' ');
            last.push_str(text.trim_end());
            return;
        }
        let text = match option {
            "-m" | "--match" => start,
            _ if self.module.is_empty() => format!("policy has no word for {text}"),
            _ => start + &text,
        };
        self.matches
            .push(Match::Unknown(text.trim_end().to_owned()));
    }

    fn protocol(&mut self, option: &str, negated: bool, words: &mut Words) -> Result<(), Mistake> {
        let column = words.column();
        let name = argument(option, words)?;
        let set = if matches!(name.as_str(), "all" | "0" | "ip") {
            all_services()
        } else {
            let number = names::protocol(&name).ok_or_else(|| {
                (
                    column,
                    format!("unknown protocol {name:?}; write its number"),
                )
            })?;
            protocol_services(number)
        };
        let set = if negated {
            all_services().difference(&set)
        } else {
            set
        };
        self.protocols = set.clone();
        self.matches.push(Match::Protocols(set));
        Ok(())
    }

    fn address(
        &self,
        option: &str,
        negated: bool,
        words: &mut Words,
    ) -> Result<Addresses, Mistake> {
        let column = words.column();
        let text = argument(option, words)?;
        let mut nets = Vec::new();
        for part in text.split(',') {
            nets.push(net(part, self.v6).ok_or_else(|| {
                (
                    column,
                    format!("{part:?} is no address or network with a prefix"),
                )
            })?);
        }
        Ok(self.negate(Addresses::nets(nets), negated))
    }

    fn range(&self, option: &str, negated: bool, words: &mut Words) -> Result<Addresses, Mistake> {
        let column = words.column();
        let text = argument(option, words)?;
        let (low, high) = text.split_once('-').unwrap_or((&text, &text));
        match (low.parse::<IpAddr>(), high.parse::<IpAddr>()) {
            (Ok(low), Ok(high)) => Ok(self.negate(Addresses::range(low, high), negated)),
            _ => Err((column, format!("{text:?} is no range of addresses"))),
        }
    }

    fn negate(&self, set: Addresses, negated: bool) -> Addresses {
        let family = if self.v6 {
            Addresses::all_v6()
        } else {
            Addresses::all_v4()
        };
        if negated {
            family.difference(&set)
        } else {
            set.intersection(&family)
        }
    }

    fn ports(
        &mut self,
        option: &str,
        negated: bool,
        words: &mut Words,
    ) -> Result<Option<Intervals>, Mistake> {
        let column = words.column();
        let text = argument(option, words)?;
        let Some(protocol) = PORTED
            .into_iter()
            .find(|protocol| self.protocols == protocol_services(*protocol))
        else {
            self.unknown(option, negated, &text);
            return Ok(None);
        };
        let mut set = Intervals::EMPTY;
        for part in text.split(',') {
            let (low, high) = part.split_once(':').unwrap_or((part, part));
            let low = if low.is_empty() { "0" } else { low };
            let high = if high.is_empty() { "65535" } else { high };
            let (Ok(low), Ok(high)) = (low.parse::<u16>(), high.parse::<u16>()) else {
                return Err((
                    column,
                    format!("{part:?} is no port or range of ports; write numbers"),
                ));
            };
            set = set.union(&port_services(protocol, low, high));
        }
        Ok(Some(if negated {
            protocol_services(protocol).difference(&set)
        } else {
            set
        }))
    }

    fn icmp(&mut self, option: &str, negated: bool, words: &mut Words) -> Result<(), Mistake> {
        let column = words.column();
        let text = argument(option, words)?;
        let protocol = if self.v6 { 58 } else { 1 };
        let whole = protocol_services(protocol);
        let set = if matches!(text.as_str(), "any" | "255") {
            whole.clone()
        } else {
            let (kind, code) = match text.split_once('/') {
                Some((kind, code)) => (kind, Some(code)),
                None => (text.as_str(), None),
            };
            let kind = names::icmp_type(self.v6, kind);
            let code = code.map(|code| names::icmp_code(self.v6, code));
            let (Some(kind), None | Some(Some(_))) = (kind, code) else {
                return Err((
                    column,
                    format!("unknown ICMP type {text:?}; write type/code"),
                ));
            };
            let code = code.flatten();
            let ends = [code.unwrap_or(0), code.unwrap_or(u8::MAX)]
                .map(|code| service(protocol, u16::from_be_bytes([kind, code])));
            Intervals::range(ends[0], ends[1])
        };
        let set = if negated { whole.difference(&set) } else { set };
        self.matches.push(Match::Icmp(set));
        Ok(())
    }

    fn state(&mut self, option: &str, negated: bool, words: &mut Words) -> Result<(), Mistake> {
        let text = argument(option, words)?;
        let mut states = States::default();
        for name in text.split(',') {
            if !states.add(name) {
                // SNAT and DNAT are about what NAT did to the connection.
                self.unknown(option, negated, &text);
                return Ok(());
            }
        }
        self.matches.push(Match::State(if negated {
            states.negated()
        } else {
            states
        }));
        Ok(())
    }

    fn flags(&mut self, option: &str, negated: bool, words: &mut Words) -> Result<(), Mistake> {
        let column = words.column();
        let mut bits = [0_u8; 2];
        for slot in &mut bits {
            let text = argument(option, words)?;
            for name in text.split(',') {
                *slot |= match name {
                    "ALL" => 0x3f,
                    "NONE" => 0,
                    _ => FLAGS
                        .iter()
                        .find(|(known, _)| known.eq_ignore_ascii_case(name))
                        .map(|(_, bit)| *bit)
                        .ok_or_else(|| (column, format!("unknown TCP flag {name:?}")))?,
                };
            }
        }
        self.matches.push(Match::TcpFlags {
            mask: bits[0],
            value: bits[1],
            negated,
        });
        Ok(())
    }

    fn kind(&mut self, option: &str, negated: bool, words: &mut Words) -> Result<(), Mistake> {
        let text = argument(option, words)?;
        let kind = match text.as_str() {
            "LOCAL" => AddressKind::Local,
            "MULTICAST" => AddressKind::Multicast,
            _ if text.contains(',') => {
                self.unknown(option, negated, &text);
                return Ok(());
            }
            _ => AddressKind::Other,
        };
        self.matches.push(if option == "--src-type" {
            Match::SourceKind(kind, negated)
        } else {
            Match::DestinationKind(kind, negated)
        });
        Ok(())
    }

    fn set(&mut self, option: &str, negated: bool, words: &mut Words) -> Result<(), Mistake> {
        let name = argument(option, words)?;
        let sides = argument(option, words)?;
        let sides: Vec<Side> = sides
            .split(',')
            .map(|side| {
                if side == "src" {
                    Side::Source
                } else {
                    Side::Destination
                }
            })
            .collect();
        match self
            .sets
            .matches(&name, &sides, negated, &self.protocols, self.v6)
        {
            Ok(found) => {
                let count = self.alternatives.len().saturating_mul(found.len());
                if count > MAX_ALTERNATIVES {
                    self.unknown(option, negated, &format!("{name}: too many elements"));
                    return Ok(());
                }
                let mut all = Vec::with_capacity(count);
                for own in &self.alternatives {
                    for more in &found {
                        all.push([own.as_slice(), more.as_slice()].concat());
                    }
                }
                self.alternatives = all;
            }
            Err(reason) => self.matches.push(Match::Unknown(reason)),
        }
        Ok(())
    }
}

fn argument(option: &str, words: &mut Words) -> Result<String, Mistake> {
    let column = words.column();
    words
        .next()
        .map(str::to_owned)
        .ok_or_else(|| (column, format!("{option} needs an argument")))
}

/// An address, a network with a prefix length or, in IPv4, with a mask.
pub(super) fn net(text: &str, v6: bool) -> Option<IpNet> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    if address.is_ipv6() != v6 {
        return None;
    }
    let length = match length {
        None => {
            if v6 {
                128
            } else {
                32
            }
        }
        Some(length) => match length.parse::<u8>() {
            Ok(length) => length,
            // Masks with holes are none.
            Err(_) => ipnet::ip_mask_to_prefix(length.parse().ok()?).ok()?,
        },
    };
    IpNet::new(address, length).ok().map(|net| net.trunc())
}

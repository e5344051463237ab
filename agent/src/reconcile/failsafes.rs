//! What a host needs to live, from its configuration: visible, listed like a rule, removable by no policy.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use datapath::abi::{FailsafeKey, FailsafeValue, failsafe_flags};
use datapath::failsafe::{DHCP_RULE, FIRST_CONFIGURED_RULE};
use datapath::ids::{Direction, protocol};
use ipnet::IpNet;
use serde::Serialize;

/// One failsafe as a person reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failsafe {
    /// Rule number in records.
    pub rule: u32,
    /// Name in records and listings.
    pub name: String,
    /// Seen from this host.
    pub direction: &'static str,
    /// IANA number, 0 = any.
    pub protocol: u8,
    /// Port of the responder, 0 = any.
    pub port: u16,
    /// The peer.
    pub peer: IpNet,
    /// Holds in isolation.
    pub survives_isolation: bool,
    #[serde(skip)]
    kind: u32,
    #[serde(skip)]
    towards: Direction,
}

/// What the failsafes are made from.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Where the controller is.
    pub controllers: Vec<SocketAddr>,
    /// Name servers.
    pub resolvers: Vec<IpAddr>,
    /// Who may manage this host, on which ports.
    pub management: Vec<(IpNet, Vec<u16>)>,
    /// Who may look at it in isolation.
    pub forensic: Vec<(IpNet, u16)>,
}

/// Every failsafe, in a fixed order.
#[must_use]
pub fn list(needs: &Needs) -> Vec<Failsafe> {
    let mut found: Vec<Failsafe> = Vec::new();
    let mut add = |name: String, towards: Direction, protocol, port, peer, kind| {
        let rule = FIRST_CONFIGURED_RULE + u32::try_from(found.len()).unwrap_or(0);
        found.push(Failsafe {
            rule,
            name,
            direction: towards.name(),
            protocol,
            port,
            peer,
            survives_isolation: kind != failsafe_flags::ORDINARY,
            kind,
            towards,
        });
    };
    for address in &needs.controllers {
        add(
            format!("failsafe/controller/{address}"),
            Direction::Egress,
            protocol::TCP,
            address.port(),
            IpNet::from(address.ip()),
            failsafe_flags::CONTROLLER,
        );
    }
    for address in &needs.resolvers {
        for (protocol, word) in [(protocol::UDP, "udp"), (protocol::TCP, "tcp")] {
            add(
                format!("failsafe/resolver/{address}/{word}"),
                Direction::Egress,
                protocol,
                53,
                IpNet::from(*address),
                failsafe_flags::ORDINARY,
            );
        }
    }
    for (peer, ports) in &needs.management {
        for port in ports {
            add(
                format!("failsafe/management/{peer}/{port}"),
                Direction::Ingress,
                protocol::TCP,
                *port,
                *peer,
                failsafe_flags::ORDINARY,
            );
        }
    }
    for (peer, port) in &needs.forensic {
        add(
            format!("failsafe/forensic/{peer}/{port}"),
            Direction::Ingress,
            protocol::TCP,
            *port,
            *peer,
            failsafe_flags::FORENSIC,
        );
    }
    found
}

/// Name of a failsafe's rule number.
#[must_use]
pub fn name_of(failsafes: &[Failsafe], rule: u32) -> Option<String> {
    if rule == DHCP_RULE {
        return Some("failsafe/dhcp".to_owned());
    }
    failsafes
        .iter()
        .find(|failsafe| failsafe.rule == rule)
        .map(|failsafe| failsafe.name.clone())
}

/// The map entries. The trie gives the longest prefix only, so an entry carries the flags of every
/// shorter one that covers it.
#[must_use]
pub fn entries(failsafes: &[Failsafe]) -> BTreeMap<Vec<u8>, (FailsafeKey, FailsafeValue)> {
    let mut found = BTreeMap::new();
    for failsafe in failsafes {
        let flags = failsafes
            .iter()
            .filter(|other| {
                other.towards == failsafe.towards
                    && other.protocol == failsafe.protocol
                    && other.port == failsafe.port
                    && other.peer.contains(&failsafe.peer)
            })
            .fold(0, |flags, other| flags | other.kind);
        let key = key_of(failsafe);
        found.entry(crate::kernel::content_key(&key)).or_insert((
            key,
            FailsafeValue {
                flags,
                rule: failsafe.rule,
            },
        ));
    }
    found
}

fn key_of(failsafe: &Failsafe) -> FailsafeKey {
    let length = u32::from(failsafe.peer.prefix_len());
    let (addr, prefix_len) = match failsafe.peer.network() {
        IpAddr::V4(addr) => (addr.to_ipv6_mapped().octets(), 32 + 96 + length),
        IpAddr::V6(addr) => (addr.octets(), 32 + length),
    };
    FailsafeKey {
        prefix_len,
        direction: failsafe.towards as u8,
        protocol: failsafe.protocol,
        port: failsafe.port.to_be_bytes(),
        addr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_prefix_carries_the_flags_of_the_shorter_ones() {
        let needs = Needs {
            management: vec![("10.0.0.0/8".parse().expect("net"), vec![22])],
            forensic: vec![("10.1.1.1/32".parse().expect("net"), 22)],
            resolvers: vec!["10.0.0.53".parse().expect("ip")],
            ..Needs::default()
        };
        let list = list(&needs);
        let entries = entries(&list);
        assert_eq!(entries.len(), 4);
        let forensic = entries
            .values()
            .find(|(key, _)| key.prefix_len == 32 + 96 + 32 && key.port == [0, 22])
            .expect("entry");
        assert_eq!(
            forensic.1.flags,
            failsafe_flags::FORENSIC | failsafe_flags::ORDINARY
        );
        assert_eq!(
            name_of(&list, forensic.1.rule).as_deref(),
            Some("failsafe/forensic/10.1.1.1/32/22")
        );
        assert_eq!(forensic.0.addr[10..], [255, 255, 10, 1, 1, 1]);
        assert_eq!(name_of(&list, DHCP_RULE).as_deref(), Some("failsafe/dhcp"));
    }
}

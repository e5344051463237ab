//! Whether a rule's peers and ports match: the primitives that evaluation and compilation share.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Entity, NamedPort, Peer};
use crate::ports::{PortBlock, PortSpec, Ports, Protocol};
use crate::set::PolicySet;
use crate::world::Who;

/// The other end of a flow as rules see it.
pub(crate) trait PeerView {
    /// Whether the address lies in a network that a policy names.
    fn within(&self, net: &IpNet) -> bool;
    /// What kind of peer it is.
    fn class(&self) -> PeerClass;
    /// Whether a selector matches; only workloads have labels.
    fn selected(&self, selector: &crate::selectors::Selector) -> bool;
}

/// What kind of peer an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PeerClass {
    /// A workload.
    Managed,
    /// Inside, nobody's.
    Unmanaged,
    /// Outside.
    World,
    /// Not to be determined.
    Unknown,
}

/// An address with its owner.
pub(crate) struct AddressView<'a> {
    pub(crate) address: IpAddr,
    pub(crate) who: Who<'a>,
}

impl PeerView for AddressView<'_> {
    fn within(&self, net: &IpNet) -> bool {
        net.contains(&self.address)
    }

    fn class(&self) -> PeerClass {
        match self.who {
            Who::Workload(_) => PeerClass::Managed,
            Who::Unmanaged => PeerClass::Unmanaged,
            Who::World => PeerClass::World,
            Who::Unknown => PeerClass::Unknown,
        }
    }

    fn selected(&self, selector: &crate::selectors::Selector) -> bool {
        self.who
            .workload()
            .is_some_and(|workload| selector.matches(workload))
    }
}

/// Whether a rule's peers match. `denies` says that the rule denies: only such rules match an
/// unknown peer, and only when they mean everybody, as nothing is known of it.
pub(crate) fn peers_match(
    set: &PolicySet,
    peers: &[Peer],
    view: &impl PeerView,
    denies: bool,
) -> bool {
    if view.class() == PeerClass::Unknown {
        return denies && (peers.is_empty() || peers.iter().any(is_any));
    }
    peers.is_empty() || peers.iter().any(|peer| peer_matches(set, peer, view))
}

const fn is_any(peer: &Peer) -> bool {
    matches!(
        peer,
        Peer::Entity {
            entity: Entity::Any
        }
    )
}

/// Whether one peer of a rule matches a peer that is known.
pub(crate) fn peer_matches(set: &PolicySet, peer: &Peer, view: &impl PeerView) -> bool {
    match peer {
        Peer::Selector { selector } => view.selected(selector),
        Peer::Cidr { cidr, except } => {
            view.within(cidr) && !except.iter().any(|hole| view.within(hole))
        }
        Peer::Group { group } => set
            .group(group)
            .is_some_and(|group| group.cidrs.iter().any(|cidr| view.within(cidr))),
        Peer::Entity { entity } => match entity {
            Entity::Any => true,
            Entity::Managed => view.class() == PeerClass::Managed,
            Entity::Unmanaged => view.class() == PeerClass::Unmanaged,
            Entity::World => view.class() == PeerClass::World,
        },
    }
}

/// What a rule's `ports` cover. `named` are the named ports of the workload that receives the
/// connection: the subject for ingress, the peer for egress.
pub(crate) fn blocks(set: &PolicySet, ports: &[PortSpec], named: &[NamedPort]) -> Vec<PortBlock> {
    if ports.is_empty() {
        return vec![PortBlock::ANY];
    }
    let mut blocks = Vec::new();
    for spec in ports {
        match spec {
            PortSpec::Direct { protocol, ports } => direct(*protocol, ports, named, &mut blocks),
            PortSpec::Service(name) => {
                for spec in set
                    .service(name)
                    .map(|service| &service.ports)
                    .into_iter()
                    .flatten()
                {
                    // A service never holds a service, so this does not recurse.
                    if let PortSpec::Direct { protocol, ports } = spec {
                        direct(*protocol, ports, named, &mut blocks);
                    }
                }
            }
        }
    }
    blocks
}

fn direct(protocol: Protocol, ports: &Ports, named: &[NamedPort], blocks: &mut Vec<PortBlock>) {
    match ports {
        Ports::All => blocks.push(PortBlock {
            protocol: match protocol {
                Protocol::Any => None,
                Protocol::Number(number) => Some(number),
            },
            ..PortBlock::ANY
        }),
        Ports::Range(low, high) => {
            blocks.extend(protocol.ported().into_iter().map(|protocol| PortBlock {
                protocol: Some(protocol),
                low: *low,
                high: *high,
            }));
        }
        Ports::Named(name) => {
            let protocols = protocol.ported();
            blocks.extend(
                named
                    .iter()
                    .filter(|port| port.name == *name && protocols.contains(&port.protocol))
                    .map(|port| PortBlock {
                        protocol: Some(port.protocol),
                        low: port.port,
                        high: port.port,
                    }),
            );
        }
        Ports::Icmp { kind, code } => {
            let low = u16::from_be_bytes([*kind, code.unwrap_or(0)]);
            let high = u16::from_be_bytes([*kind, code.unwrap_or(u8::MAX)]);
            blocks.extend(protocol.ported().into_iter().map(|protocol| PortBlock {
                protocol: Some(protocol),
                low,
                high,
            }));
        }
    }
}

/// Whether a rule's `ports` cover a protocol and port.
pub(crate) fn ports_match(
    set: &PolicySet,
    ports: &[PortSpec],
    named: &[NamedPort],
    protocol: u8,
    port: u16,
) -> bool {
    ports.is_empty()
        || blocks(set, ports, named)
            .iter()
            .any(|block| block.contains(protocol, port))
}

/// The names of ports that some items use.
pub(crate) fn port_names<'a>(
    set: &'a PolicySet,
    ports: &'a [PortSpec],
) -> impl Iterator<Item = &'a str> {
    fn name(spec: &PortSpec) -> Option<&str> {
        match spec {
            PortSpec::Direct {
                ports: Ports::Named(name),
                ..
            } => Some(name),
            _ => None,
        }
    }
    ports.iter().flat_map(move |spec| {
        let inner = match spec {
            PortSpec::Service(service) => set
                .service(service)
                .map_or(&[][..], |service| &service.ports),
            PortSpec::Direct { .. } => std::slice::from_ref(spec),
        };
        inner.iter().filter_map(name)
    })
}

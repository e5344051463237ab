//! Sets of flows as rules of the language.

use ipnet::IpNet;

use super::intervals::{Addresses, Intervals, prefixes};
use super::region::{Region, all_services, protocol_services};
use crate::model::{Action, Entity, Peer, Rule};
use crate::ports::{PORTED, PortSpec, Ports, Protocol, is_icmp};
use crate::source::Place;

/// Rules that together match exactly the region, one a cell.
pub(crate) fn rules(region: &Region, action: Action, name: &str) -> Vec<Rule> {
    region
        .cells()
        .iter()
        .map(|cell| rule(action, name, peers(&cell.peers), ports(&cell.services)))
        .collect()
}

/// One rule.
pub(crate) fn rule(action: Action, name: &str, peers: Vec<Peer>, ports: Vec<PortSpec>) -> Rule {
    Rule {
        name: Some(super::report::shown(name)),
        action,
        peers,
        ports,
        keep: false,
        audit: false,
        place: Place::default(),
    }
}

/// Peers that are exactly these addresses; none for everybody.
pub(crate) fn peers(addresses: &Addresses) -> Vec<Peer> {
    if *addresses == Addresses::all() {
        return Vec::new();
    }
    let all = Addresses::all();
    let mut peers = Vec::new();
    for (own, family) in [
        (
            addresses.intersection(&Addresses::all_v4()),
            Addresses::all_v4(),
        ),
        (
            addresses.intersection(&Addresses::all_v6()),
            Addresses::all_v6(),
        ),
    ] {
        let direct = own.to_nets();
        let holes = all.difference(&own).intersection(&family).to_nets();
        // "Everything but these" reads better than what is left when they are cut out.
        if let ([whole], true) = (family.to_nets().as_slice(), holes.len() < direct.len()) {
            peers.push(Peer::Cidr {
                cidr: *whole,
                except: holes,
            });
        } else {
            peers.extend(direct.into_iter().map(cidr));
        }
    }
    if peers.is_empty() {
        // No rule is ever made of nobody; without peers it would mean everybody.
        peers.extend(
            Some(Peer::Entity {
                entity: Entity::Any,
            })
            .filter(|_| !addresses.is_empty()),
        );
    }
    peers
}

/// A network as a peer.
pub(crate) const fn cidr(cidr: IpNet) -> Peer {
    Peer::Cidr {
        cidr,
        except: Vec::new(),
    }
}

/// Ports that are exactly these services; none for all of them.
pub(crate) fn ports(services: &Intervals) -> Vec<PortSpec> {
    if *services == all_services() {
        return Vec::new();
    }
    let mut specs = Vec::new();
    for protocol in 0..=u8::MAX {
        let own = services.intersection(&protocol_services(protocol));
        if own.is_empty() {
            continue;
        }
        if own == protocol_services(protocol) {
            specs.push(PortSpec::protocol(protocol));
            continue;
        }
        for (low, high) in own.ranges() {
            // The lower 16 bits are the port.
            let [low, high] = [low, high].map(|end| u16::try_from(end & 0xffff).unwrap_or(0));
            if is_icmp(protocol) {
                icmp(protocol, low, high, &mut specs);
            } else {
                debug_assert!(PORTED.contains(&protocol), "{protocol} has no ports");
                specs.push(direct(protocol, Ports::Range(low, high)));
            }
        }
    }
    specs
}

const fn direct(protocol: u8, ports: Ports) -> PortSpec {
    PortSpec::Direct {
        protocol: Protocol::Number(protocol),
        ports,
    }
}

/// An interval of type × 256 + code as whole types and single codes.
fn icmp(protocol: u8, low: u16, high: u16, specs: &mut Vec<PortSpec>) {
    prefixes(low.into(), high.into(), 16, &mut |start, length| {
        let start = u16::try_from(start).unwrap_or(0);
        let count = 1_u32 << (16 - u32::from(length.min(16)));
        let step = if count >= 256 { 256 } else { 1 };
        for offset in (0..count).step_by(step) {
            let [kind, code] = (start + u16::try_from(offset).unwrap_or(0)).to_be_bytes();
            let code = (step == 1).then_some(code);
            specs.push(direct(protocol, Ports::Icmp { kind, code }));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brownfield::region::{Cell, port_services, service};
    use crate::matching::blocks;
    use crate::set::PolicySet;

    fn same(services: &Intervals) {
        let blocks = blocks(&PolicySet::default(), &ports(services), &[]);
        for (protocol, port) in (0..=u8::MAX).flat_map(|protocol| {
            [0, 1, 255, 256, 511, 512, 2047, 2048, 2049, 2304, 65_535].map(|port| (protocol, port))
        }) {
            assert_eq!(
                blocks.iter().any(|block| block.contains(protocol, port)),
                services.contains(service(protocol, port)),
                "{protocol} {port}"
            );
        }
    }

    #[test]
    fn ports_mean_what_the_services_are() {
        same(&all_services());
        same(&all_services().difference(&protocol_services(6)));
        same(&port_services(1, 8 << 8, 8 << 8));
        same(&port_services(1, 1, 0x0901));
        same(&all_services().difference(&port_services(6, 256, 511)));
    }

    #[test]
    fn everything_but_some_networks_is_written_with_except() {
        let cut = Addresses::nets(["10.0.0.0/8".parse().unwrap()]);
        let left = Addresses::all_v4().difference(&cut);
        let shown = serde_json::to_string(&peers(&left)).unwrap();
        assert_eq!(shown, r#"[{"cidr":"0.0.0.0/0","except":["10.0.0.0/8"]}]"#);
        let region = Region::of(Cell {
            peers: left,
            services: all_services(),
        });
        assert_eq!(rules(&region, Action::Deny, "x").len(), 1);
        assert!(peers(&Addresses::all()).is_empty());
    }
}

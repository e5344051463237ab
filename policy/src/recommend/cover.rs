//! Networks for peers that are no workloads: as few as possible, none much wider than what was seen.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::observe::NodeKind;
use crate::world::World;

/// A network may hold so many addresses for each one that was seen.
const RATIO: u128 = 8;

/// No network is shorter than this, IPv4 and IPv6.
const SHORTEST: [u8; 2] = [24, 112];

/// From so many addresses in so many networks (/16, IPv6 /32) on, traffic with the world is wide.
const WIDE: (usize, usize) = (64, 16);

/// What must not be inside a network.
#[derive(Debug)]
pub(crate) struct Terrain<'a> {
    managed: &'a [IpNet],
    /// Addresses of workloads, in order.
    taken: Vec<IpAddr>,
}

impl<'a> Terrain<'a> {
    pub(crate) fn new(world: &'a World) -> Self {
        let taken: BTreeSet<IpAddr> = world.addresses().collect();
        Self {
            managed: &world.managed_networks,
            taken: taken.into_iter().collect(),
        }
    }

    /// Whether a network holds nobody but strangers of one kind.
    fn is_pure(&self, net: &IpNet, kind: NodeKind) -> bool {
        let from = self
            .taken
            .partition_point(|address| *address < net.network());
        if self
            .taken
            .get(from)
            .is_some_and(|address| net.contains(address))
        {
            return false;
        }
        let inside = self.managed.iter().any(|managed| managed.contains(net));
        let touches = self
            .managed
            .iter()
            .any(|managed| managed.contains(net) || net.contains(managed));
        if kind == NodeKind::Unmanaged {
            inside
        } else {
            !touches
        }
    }

    /// The fewest networks that hold all addresses, each of one kind of stranger only and at most eight
    /// addresses for each one that was seen.
    ///
    /// The networks form a tree in which every one that is good enough and has no better one above it is
    /// taken; no two of them can be replaced by one, so there is no smaller answer.
    pub(crate) fn cover(&self, addresses: &BTreeSet<IpAddr>, kind: NodeKind) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for (v4, shortest) in [(true, SHORTEST[0]), (false, SHORTEST[1])] {
            let family: Vec<IpAddr> = addresses
                .iter()
                .copied()
                .filter(|a| a.is_ipv4() == v4)
                .collect();
            let same = |a: &IpAddr, b: &IpAddr| net(*a, shortest) == net(*b, shortest);
            for chunk in family.chunk_by(same) {
                self.descend(chunk, shortest, kind, &mut nets);
            }
        }
        nets
    }

    fn descend(&self, chunk: &[IpAddr], length: u8, kind: NodeKind, nets: &mut Vec<IpNet>) {
        let Some(first) = chunk.first() else { return };
        let bits = if first.is_ipv4() { 32 } else { 128 };
        if length >= bits || chunk.len() == 1 {
            nets.extend(chunk.iter().map(|address| net(*address, bits)));
            return;
        }
        let whole = net(*first, length);
        let size = 1u128 << (bits - length);
        if size <= RATIO * chunk.len() as u128 && self.is_pure(&whole, kind) {
            // The longest network with the same addresses: none more, and as narrow as it can be.
            nets.push(common(*first, *chunk.last().unwrap_or(first)));
            return;
        }
        let same = |a: &IpAddr, b: &IpAddr| net(*a, length + 1) == net(*b, length + 1);
        for half in chunk.chunk_by(same) {
            self.descend(half, length + 1, kind, nets);
        }
    }
}

/// Whether traffic with so many different places is traffic with the world.
pub(crate) fn is_wide(addresses: &BTreeSet<IpAddr>) -> bool {
    let places: BTreeSet<IpNet> = addresses
        .iter()
        .map(|address| net(*address, if address.is_ipv4() { 16 } else { 32 }))
        .collect();
    addresses.len() >= WIDE.0 && places.len() >= WIDE.1
}

/// How many addresses a network has.
pub(crate) fn addresses(net: &IpNet) -> u128 {
    let bits = u32::from(net.max_prefix_len() - net.prefix_len());
    1u128.checked_shl(bits).unwrap_or(u128::MAX)
}

/// The longest network that holds two addresses of a family.
fn common(one: IpAddr, two: IpAddr) -> IpNet {
    let equal = match (one, two) {
        (IpAddr::V4(one), IpAddr::V4(two)) => (u32::from(one) ^ u32::from(two)).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(two)) => (u128::from(one) ^ u128::from(two)).leading_zeros(),
        _ => 0,
    };
    net(one, u8::try_from(equal).unwrap_or(0))
}

/// The network of a length around an address.
fn net(address: IpAddr, length: u8) -> IpNet {
    let masked = match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    };
    IpNet::new(masked, length).unwrap_or_else(|_| IpNet::from(masked))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selectors::Labels;
    use crate::world::Workload;

    fn world() -> World {
        let own = Workload::new("w", Labels::new(), vec!["10.0.0.2".parse().unwrap()]);
        World::new(vec!["10.0.0.0/16".parse().unwrap()], vec![own])
    }

    fn cover(kind: NodeKind, texts: &[&str]) -> Vec<String> {
        let addresses = texts.iter().map(|text| text.parse().unwrap()).collect();
        let world = world();
        let nets = Terrain::new(&world).cover(&addresses, kind);
        nets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn neighbours_share_a_network_and_strangers_do_not() {
        let world = NodeKind::World;
        assert_eq!(cover(world, &["192.0.2.1"]), ["192.0.2.1/32"]);
        assert_eq!(cover(world, &["192.0.2.1", "192.0.2.14"]), ["192.0.2.0/28"]);
        assert_eq!(
            cover(world, &["192.0.2.1", "192.0.2.200"]),
            ["192.0.2.1/32", "192.0.2.200/32"]
        );
        assert_eq!(
            cover(world, &["2001:db8::1", "2001:db8::2"]),
            ["2001:db8::/126"]
        );
    }

    #[test]
    fn no_network_holds_a_workload_or_another_kind() {
        let unmanaged = NodeKind::Unmanaged;
        // 10.0.0.2 is a workload: 10.0.0.0/30 would hold it.
        assert_eq!(
            cover(unmanaged, &["10.0.0.1", "10.0.0.3"]),
            ["10.0.0.1/32", "10.0.0.3/32"]
        );
        assert_eq!(
            cover(unmanaged, &["10.0.0.9", "10.0.0.10"]),
            ["10.0.0.8/30"]
        );
    }

    #[test]
    fn only_many_places_are_the_world() {
        let narrow = (0..200u8).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        assert!(!is_wide(&narrow));
        let wide = (0..70u8).map(|n| IpAddr::from([n + 20, 1, 2, 3])).collect();
        assert!(is_wide(&wide));
    }
}

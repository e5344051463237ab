//! Networks that policy names, and the addresses in them that belong to no workload.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// IPv4 addresses in IPv6 notation (RFC 4291, 2.5.5.2): they are read as IPv4 everywhere.
fn mapped() -> IpNet {
    let base = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
    // 96 is a length that IPv6 has.
    IpNet::V6(Ipv6Net::new(base, 96).unwrap_or_default())
}

/// Addresses for documentation (RFC 5737, RFC 3849): the best examples of a stranger.
const EXAMPLES: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// Networks that nest or are disjoint, so that the longest one that holds an address says which of
/// them hold it.
pub(super) struct Space {
    nets: Vec<IpNet>,
    ids: HashMap<IpNet, u32>,
    /// Prefix lengths that occur, longest first: IPv4, IPv6.
    lengths: [Vec<u8>; 2],
    /// By network: the next smaller ones inside.
    children: Vec<Vec<u32>>,
    /// Of workloads, sorted.
    taken: Vec<IpAddr>,
}

impl Space {
    /// The whole address space, cut at the networks.
    pub(super) fn new(named: impl IntoIterator<Item = IpNet>, mut taken: Vec<IpAddr>) -> Self {
        taken.sort_unstable();
        taken.dedup();
        let everything = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        let mapped = mapped();
        let nets: BTreeSet<IpNet> = named
            .into_iter()
            .map(|net| net.trunc())
            .filter(|net| !mapped.contains(net))
            .chain(everything)
            .collect();
        let nets: Vec<IpNet> = nets.into_iter().collect();
        let ids = nets.iter().zip(0..).map(|(net, id)| (*net, id)).collect();
        let lengths = [true, false].map(|v4| {
            let family = nets.iter().filter(|net| is_v4(net) == v4);
            let lengths: BTreeSet<u8> = family.map(IpNet::prefix_len).collect();
            lengths.into_iter().rev().collect()
        });
        let mut space = Self {
            children: vec![Vec::new(); nets.len()],
            nets,
            ids,
            lengths,
            taken,
        };
        for (net, id) in space.nets.clone().iter().zip(0..) {
            let parent = net.supernet().map(|wider| space.longest_net(&wider));
            if let Some(list) = parent.and_then(|parent| space.children.get_mut(parent as usize)) {
                list.push(id);
            }
        }
        space
    }

    /// The networks, in order.
    pub(super) fn nets(&self) -> &[IpNet] {
        &self.nets
    }

    /// The longest network that holds an address.
    pub(super) fn longest(&self, address: IpAddr) -> u32 {
        self.longest_net(&IpNet::from(address))
    }

    fn longest_net(&self, net: &IpNet) -> u32 {
        let lengths = &self.lengths[usize::from(!is_v4(net))];
        lengths
            .iter()
            .filter(|length| **length <= net.prefix_len())
            .filter_map(|length| IpNet::new(net.addr(), *length).ok())
            .find_map(|wider| self.ids.get(&wider.trunc()))
            .copied()
            // The family's whole space is always in the list.
            .unwrap_or_default()
    }

    /// The addresses that have a network as their longest, as the network and what is cut out of it.
    pub(super) fn region(&self, id: u32) -> Region {
        let at = id as usize;
        let children = self.children.get(at).map_or(&[][..], Vec::as_slice);
        Region {
            net: self.nets.get(at).copied().unwrap_or_default(),
            except: children
                .iter()
                .filter_map(|child| self.nets.get(*child as usize))
                .copied()
                .collect(),
        }
    }

    /// An address of a region that no workload has, the same one every time.
    pub(super) fn stranger(&self, region: &Region) -> Option<IpAddr> {
        let mapped = mapped();
        let holes: Vec<&IpNet> = region.except.iter().chain([&mapped]).collect();
        let free = |address: &IpAddr| {
            region.net.contains(address)
                && !holes.iter().any(|hole| hole.contains(address))
                && self.taken.binary_search(address).is_err()
        };
        if let Some(example) = EXAMPLES.iter().find(|address| free(address)) {
            return Some(*example);
        }
        let (first, last) = (bits(region.net.network()), bits(region.net.broadcast()));
        let v4 = is_v4(&region.net);
        // The network's own address is an unusual example, but one that counts.
        let mut cursor = if first < last { first + 1 } else { first };
        while cursor <= last {
            let address = address(cursor, v4);
            if let Some(hole) = holes.iter().find(|hole| hole.contains(&address)) {
                let Some(next) = bits(hole.broadcast()).checked_add(1) else {
                    break;
                };
                cursor = next;
            } else if self.taken.binary_search(&address).is_ok() {
                let Some(next) = cursor.checked_add(1) else {
                    break;
                };
                cursor = next;
            } else {
                return Some(address);
            }
        }
        Some(region.net.network()).filter(free)
    }
}

/// Addresses of a network but for parts of it; those of workloads are never meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Region {
    pub(super) net: IpNet,
    pub(super) except: Vec<IpNet>,
}

impl Region {
    /// What lies in `net` too, but not in `holes`; perhaps no address at all.
    pub(super) fn cut(&self, net: &IpNet, holes: &[IpNet]) -> Option<Self> {
        let inner = if self.net.contains(net) {
            *net
        } else if net.contains(&self.net) {
            self.net
        } else {
            return None;
        };
        let except: BTreeSet<IpNet> = self
            .except
            .iter()
            .chain(holes)
            .filter(|hole| hole.contains(&inner) || inner.contains(*hole))
            .copied()
            .collect();
        let covered = except.iter().any(|hole| hole.contains(&inner));
        (!covered).then(|| Self {
            net: inner,
            except: except.into_iter().collect(),
        })
    }
}

pub(super) const fn is_v4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(bits: u128, v4: bool) -> IpAddr {
    match u32::try_from(bits) {
        Ok(bits) if v4 => IpAddr::V4(Ipv4Addr::from_bits(bits)),
        _ => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{address, cidr};

    #[test]
    fn the_longest_network_decides() {
        let named = [
            "10.0.0.0/8",
            "10.0.0.0/30",
            "10.0.0.3/32",
            "fd00::/16",
            "::ffff:10.0.0.0/104",
        ];
        let taken = ["10.0.0.1", "10.0.0.0"].map(address).to_vec();
        let space = Space::new(named.map(cidr), taken);
        let region = |text: &str| space.region(space.longest(address(text)));
        assert_eq!(region("11.0.0.1").except, [cidr("10.0.0.0/8")]);
        assert_eq!(region("10.0.0.2").except, [cidr("10.0.0.3/32")]);
        assert_eq!(region("10.9.9.9").net, cidr("10.0.0.0/8"));
        assert_eq!(region("fd00::1").net, cidr("fd00::/16"));
        assert_eq!(region("fd01::1").except, [cidr("fd00::/16")]);
        let stranger = |text: &str| space.stranger(&region(text));
        assert_eq!(stranger("10.0.0.2"), Some(address("10.0.0.2")));
        assert_eq!(stranger("10.0.0.3"), Some(address("10.0.0.3")));
        assert_eq!(stranger("10.9.9.9"), Some(address("10.0.0.4")));
        assert_eq!(stranger("11.0.0.1"), Some(address("192.0.2.1")));
        assert_eq!(stranger("fd01::1"), Some(address("2001:db8::1")));
    }

    #[test]
    fn a_region_that_workloads_fill_has_no_stranger() {
        let taken = ["10.0.0.0", "10.0.0.1"].map(address).to_vec();
        let space = Space::new([cidr("10.0.0.0/31")], taken);
        let region = space.region(space.longest(address("10.0.0.1")));
        assert_eq!(space.stranger(&region), None);
        let wider = space.region(space.longest(address("10.0.0.2")));
        let cut = wider
            .cut(&cidr("10.0.0.0/30"), &[cidr("10.0.0.3/32")])
            .unwrap();
        assert_eq!(space.stranger(&cut), Some(address("10.0.0.2")));
        assert_eq!(wider.cut(&cidr("10.0.0.0/31"), &[]), None);
    }
}

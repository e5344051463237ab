//! Sets of flows as one end sees them: peer address × protocol and port.
//!
//! Rule sets are flattened with this algebra: what a rule matches, minus what returned before it, and so
//! on. Everything is exact; what policy cannot say is left to the callers.

use std::net::IpAddr;

use super::intervals::{Addresses, Intervals};
use super::problem::Limit;

/// A protocol and port as one number: `protocol × 65536 + port`, ICMP `type × 256 + code` for the port.
#[must_use]
pub fn service(protocol: u8, port: u16) -> u128 {
    u128::from(protocol) << 16 | u128::from(port)
}

/// Every protocol and port.
#[must_use]
pub fn all_services() -> Intervals {
    Intervals::range(0, service(u8::MAX, u16::MAX))
}

/// One protocol, all of it.
#[must_use]
pub fn protocol_services(protocol: u8) -> Intervals {
    port_services(protocol, 0, u16::MAX)
}

/// A port range of one protocol.
#[must_use]
pub fn port_services(protocol: u8, low: u16, high: u16) -> Intervals {
    Intervals::range(service(protocol, low), service(protocol, high))
}

/// All of some addresses × all of some services.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// The other end.
    pub peers: Addresses,
    /// Protocols and ports.
    pub services: Intervals,
}

impl Cell {
    /// Every flow.
    #[must_use]
    pub fn all() -> Self {
        Self {
            peers: Addresses::all(),
            services: all_services(),
        }
    }

    /// Whether no flow is meant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() || self.services.is_empty()
    }

    /// Flows in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self {
            peers: self.peers.intersection(&other.peers),
            services: self.services.intersection(&other.services),
        }
    }

    fn minus(&self, other: &Self, into: &mut Vec<Self>) {
        let common = self.intersection(other);
        if common.is_empty() {
            into.push(self.clone());
            return;
        }
        let parts = [
            Self {
                peers: self.peers.difference(&other.peers),
                services: self.services.clone(),
            },
            Self {
                peers: common.peers,
                services: self.services.difference(&other.services),
            },
        ];
        into.extend(parts.into_iter().filter(|part| !part.is_empty()));
    }
}

/// Most cells of one region; what needs more is refused.
const MAX_CELLS: usize = 2_000;

/// A set of flows: disjoint cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region(Vec<Cell>);

impl Region {
    /// Every flow.
    #[must_use]
    pub fn all() -> Self {
        Self(vec![Cell::all()])
    }

    /// One cell.
    #[must_use]
    pub fn of(cell: Cell) -> Self {
        Self(Vec::from_iter(Some(cell).filter(|cell| !cell.is_empty())))
    }

    /// Its cells; none is empty, no two share a flow.
    #[must_use]
    pub fn cells(&self) -> &[Cell] {
        &self.0
    }

    /// Whether no flow is meant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a flow is meant.
    #[must_use]
    pub fn contains(&self, peer: IpAddr, protocol: u8, port: u16) -> bool {
        self.0.iter().any(|cell| {
            cell.peers.contains(peer) && cell.services.contains(service(protocol, port))
        })
    }

    /// Flows that are in the cell too.
    #[must_use]
    pub fn within(&self, cell: &Cell) -> Self {
        let cells = self.0.iter().map(|own| own.intersection(cell));
        Self(cells.filter(|cell| !cell.is_empty()).collect())
    }

    /// Flows that are not in the cell.
    pub fn without_cell(&self, cell: &Cell) -> Result<Self, Limit> {
        let mut left = Vec::new();
        for own in &self.0 {
            own.minus(cell, &mut left);
        }
        bounded(left)
    }

    /// Flows that are not in the other region.
    pub fn without(&self, other: &Self) -> Result<Self, Limit> {
        let mut left = self.clone();
        for cell in &other.0 {
            left = left.without_cell(cell)?;
        }
        Ok(left)
    }

    /// Flows that are in the other region too.
    pub fn intersection(&self, other: &Self) -> Result<Self, Limit> {
        let mut common = Vec::new();
        for cell in &other.0 {
            common.extend(self.within(cell).0);
            if common.len() > MAX_CELLS {
                return Err(Limit::Cells(MAX_CELLS));
            }
        }
        bounded(common)
    }

    /// Flows of both regions.
    pub fn union(&self, other: &Self) -> Result<Self, Limit> {
        let mut joined = self.0.clone();
        joined.extend(other.without(self)?.0);
        bounded(joined)
    }
}

/// Joins cells that differ in one dimension only, and refuses what stays too many.
fn bounded(mut cells: Vec<Cell>) -> Result<Region, Limit> {
    if cells.len() > 4 * MAX_CELLS {
        return Err(Limit::Cells(MAX_CELLS));
    }
    if cells.len() > 1 {
        cells.sort_by(|a, b| (&a.services, &a.peers).cmp(&(&b.services, &b.peers)));
        cells.dedup_by(|next, kept| {
            let same = next.services == kept.services;
            if same {
                kept.peers = kept.peers.union(&next.peers);
            }
            same
        });
        cells.sort();
        cells.dedup_by(|next, kept| {
            let same = next.peers == kept.peers;
            if same {
                kept.services = kept.services.union(&next.services);
            }
            same
        });
    }
    if cells.len() > MAX_CELLS {
        return Err(Limit::Cells(MAX_CELLS));
    }
    Ok(Region(cells))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cell() -> impl Strategy<Value = Cell> {
        (0_u128..12, 0_u128..6, 0_u128..12, 0_u128..6).prop_map(|(a, n, s, m)| Cell {
            peers: Addresses {
                v4: Intervals::range(a, a + n),
                v6: Intervals::EMPTY,
            },
            services: Intervals::range(s, s + m),
        })
    }

    fn region(cells: &[Cell]) -> Region {
        cells.iter().fold(Region::default(), |region, cell| {
            region.union(&Region::of(cell.clone())).unwrap()
        })
    }

    fn has(region: &Region, peer: u128, service: u128) -> usize {
        let cells = region.cells().iter();
        cells
            .filter(|cell| cell.peers.v4.contains(peer) && cell.services.contains(service))
            .count()
    }

    proptest! {
        #[test]
        fn regions_behave_like_sets(
            a in prop::collection::vec(cell(), 0..5),
            b in prop::collection::vec(cell(), 0..5),
        ) {
            let (a, b) = (region(&a), region(&b));
            let (join, meet, left) =
                (a.union(&b).unwrap(), a.intersection(&b).unwrap(), a.without(&b).unwrap());
            for peer in 0..20 {
                for service in 0..20 {
                    let (x, y) = (has(&a, peer, service), has(&b, peer, service));
                    prop_assert!(x <= 1 && y <= 1, "cells overlap");
                    prop_assert_eq!(has(&join, peer, service), usize::from(x + y > 0));
                    prop_assert_eq!(has(&meet, peer, service), usize::from(x + y == 2));
                    prop_assert_eq!(has(&left, peer, service), usize::from(x == 1 && y == 0));
                }
            }
        }
    }
}

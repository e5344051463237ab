//! Sets of numbers as sorted spans: addresses and ports.

use std::net::IpAddr;

use ipnet::IpNet;

/// IPv4 addresses lie where their IPv4-mapped IPv6 form lies, which no other address uses.
const V4_FIRST: u128 = 0xffff_0000_0000;
const V4_LAST: u128 = 0xffff_ffff_ffff;

/// Sorted, disjoint, not adjacent spans, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans(Vec<(u128, u128)>);

impl Spans {
    pub(super) fn one(low: u128, high: u128) -> Self {
        Self(vec![(low, high)])
    }

    /// Every address.
    pub(super) fn all_addresses() -> Self {
        Self::one(0, u128::MAX)
    }

    /// Every IPv4 address.
    pub(super) fn v4() -> Self {
        Self::one(V4_FIRST, V4_LAST)
    }

    /// Every IPv6 address.
    pub(super) fn v6() -> Self {
        Self(vec![(0, V4_FIRST - 1), (V4_LAST + 1, u128::MAX)])
    }

    /// The addresses of a network.
    pub(super) fn network(net: &IpNet) -> Self {
        let number = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_ipv6_mapped()),
            IpAddr::V6(address) => u128::from(address),
        };
        let spans = Self::one(number(net.network()), number(net.broadcast()));
        match net {
            IpNet::V4(_) => spans,
            IpNet::V6(_) => spans.minus(&Self::v4()),
        }
    }

    /// Every port of every protocol, as `protocol × 65536 + port`.
    pub(super) fn all_ports() -> Self {
        Self::one(0, 0xff_ffff)
    }

    /// Ports of one protocol.
    pub(super) fn ports(protocol: u8, low: u16, high: u16) -> Self {
        let base = u128::from(protocol) << 16;
        Self::one(base | u128::from(low), base | u128::from(high))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers; saturating.
    pub(super) fn count(&self) -> u128 {
        self.0.iter().fold(0, |sum: u128, (low, high)| {
            sum.saturating_add((high - low).saturating_add(1))
        })
    }

    pub(super) fn contains(&self, number: u128) -> bool {
        self.0
            .iter()
            .any(|(low, high)| (*low..=*high).contains(&number))
    }

    pub(super) fn covers(&self, other: &Self) -> bool {
        // Spans are as long as they can be, so that each of the other's lies in one.
        (other.0.iter()).all(|(low, high)| self.0.iter().any(|(l, h)| l <= low && high <= h))
    }

    pub(super) fn meets(&self, other: &Self) -> bool {
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some((low, high)), Some((l, h))) = (left.peek(), right.peek()) {
            if low <= h && l <= high {
                return true;
            }
            if high < l {
                left.next();
            } else {
                right.next();
            }
        }
        false
    }

    pub(super) fn and(&self, other: &Self) -> Self {
        let mut both = Vec::new();
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some((low, high)), Some((l, h))) = (left.peek(), right.peek()) {
            let (from, to) = (*low.max(l), *high.min(h));
            if from <= to {
                both.push((from, to));
            }
            if high < h {
                left.next();
            } else {
                right.next();
            }
        }
        Self(both)
    }

    pub(super) fn or(&self, other: &Self) -> Self {
        let mut all: Vec<_> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::with_capacity(all.len());
        for (low, high) in all {
            match joined.last_mut() {
                Some((_, last)) if low <= last.saturating_add(1) => *last = high.max(*last),
                _ => joined.push((low, high)),
            }
        }
        Self(joined)
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for (low, high) in &self.0 {
            let mut from = Some(*low);
            for (l, h) in &other.0 {
                let Some(start) = from else { break };
                if *h < start || l > high {
                    continue;
                }
                if *l > start {
                    left.push((start, l - 1));
                }
                from = h.checked_add(1).filter(|next| next <= high);
            }
            if let Some(start) = from {
                left.push((start, *high));
            }
        }
        Self(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against plain sets of small numbers.
    #[test]
    fn as_sets() {
        let spans = |bits: u32| {
            (0..12)
                .filter(|bit| bits & (1 << bit) != 0)
                .fold(Spans::default(), |all, bit| all.or(&Spans::one(bit, bit)))
        };
        for left in (0..4096).step_by(7) {
            for right in (0..4096).step_by(13) {
                let (a, b) = (spans(left), spans(right));
                assert_eq!(a.and(&b), spans(left & right));
                assert_eq!(a.or(&b), spans(left | right));
                assert_eq!(a.minus(&b), spans(left & !right));
                assert_eq!(a.meets(&b), left & right != 0);
                assert_eq!(a.covers(&b), right & !left == 0);
                assert_eq!(a.count(), u128::from(left.count_ones()));
            }
        }
    }

    #[test]
    fn families_are_apart() {
        let net = |text: &str| Spans::network(&text.parse::<IpNet>().unwrap_or_default());
        assert_eq!(net("0.0.0.0/0"), Spans::v4());
        assert_eq!(net("::/0"), Spans::v6());
        assert_eq!(Spans::v4().or(&Spans::v6()), Spans::all_addresses());
        assert_eq!(
            net("10.0.0.0/9").or(&net("10.128.0.0/9")),
            net("10.0.0.0/8")
        );
    }
}

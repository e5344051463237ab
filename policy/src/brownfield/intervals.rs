//! Sets of numbers as sorted intervals: addresses, and protocols with ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A set of numbers: sorted, disjoint intervals that do not touch, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Intervals(Vec<(u128, u128)>);

impl Intervals {
    /// Nothing.
    pub const EMPTY: Self = Self(Vec::new());

    /// One interval; empty when it runs backwards.
    #[must_use]
    pub fn range(low: u128, high: u128) -> Self {
        Self::from_ranges([(low, high)])
    }

    /// The union of some intervals, in any order; those that run backwards are empty.
    #[must_use]
    pub fn from_ranges(ranges: impl IntoIterator<Item = (u128, u128)>) -> Self {
        let mut sorted: Vec<_> = ranges
            .into_iter()
            .filter(|(low, high)| low <= high)
            .collect();
        sorted.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
        for (low, high) in sorted {
            match joined.last_mut() {
                Some(last) if low <= last.1 || low - last.1 == 1 => last.1 = last.1.max(high),
                _ => joined.push((low, high)),
            }
        }
        Self(joined)
    }

    /// Its intervals in order.
    #[must_use]
    pub fn ranges(&self) -> &[(u128, u128)] {
        &self.0
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it holds the number.
    #[must_use]
    pub fn contains(&self, number: u128) -> bool {
        let after = self.0.partition_point(|(low, _)| *low <= number);
        after
            .checked_sub(1)
            .and_then(|index| self.0.get(index))
            .is_some_and(|(_, high)| number <= *high)
    }

    /// Both sets together.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::from_ranges(self.0.iter().chain(&other.0).copied())
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = Vec::new();
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            let (low, high) = (a.0.max(b.0), a.1.min(b.1));
            if low <= high {
                common.push((low, high));
            }
            if a.1 < b.1 {
                left.next();
            } else {
                right.next();
            }
        }
        Self(common)
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut holes = other.0.iter().peekable();
        for (low, high) in &self.0 {
            let (mut low, high) = (*low, *high);
            let mut open = true;
            while let Some((hole_low, hole_high)) = holes.peek().copied().copied() {
                if hole_high < low {
                    holes.next();
                    continue;
                }
                if hole_low > high {
                    break;
                }
                if hole_low > low {
                    left.push((low, hole_low - 1));
                }
                if hole_high >= high {
                    open = false;
                    break;
                }
                low = hole_high + 1;
                holes.next();
            }
            if open {
                left.push((low, high));
            }
        }
        Self(left)
    }

    /// Whether everything of the other set is in this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.difference(self).is_empty()
    }
}

/// The last IPv4 address as a number.
pub(crate) const V4_LAST: u128 = u32::MAX as u128;

/// Addresses of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addresses {
    /// IPv4.
    pub v4: Intervals,
    /// IPv6; mapped IPv4 addresses never occur.
    pub v6: Intervals,
}

impl Addresses {
    /// Every address of both families.
    #[must_use]
    pub fn all() -> Self {
        Self {
            v4: Intervals::range(0, V4_LAST),
            v6: Intervals::range(0, u128::MAX),
        }
    }

    /// Every IPv4 address.
    #[must_use]
    pub fn all_v4() -> Self {
        Self {
            v6: Intervals::EMPTY,
            ..Self::all()
        }
    }

    /// Every IPv6 address.
    #[must_use]
    pub fn all_v6() -> Self {
        Self {
            v4: Intervals::EMPTY,
            ..Self::all()
        }
    }

    /// Both ends included; empty when they are of different families or run backwards.
    #[must_use]
    pub fn range(low: IpAddr, high: IpAddr) -> Self {
        match (low, high) {
            (IpAddr::V4(low), IpAddr::V4(high)) => Self {
                v4: Intervals::range(u32::from(low).into(), u32::from(high).into()),
                v6: Intervals::EMPTY,
            },
            (IpAddr::V6(low), IpAddr::V6(high)) => Self {
                v4: Intervals::EMPTY,
                v6: Intervals::range(low.into(), high.into()),
            },
            _ => Self::default(),
        }
    }

    /// The addresses of some networks; host bits do not matter.
    #[must_use]
    pub fn nets(nets: impl IntoIterator<Item = IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match net {
                IpNet::V4(net) => v4.push((
                    u32::from(net.network()).into(),
                    u32::from(net.broadcast()).into(),
                )),
                IpNet::V6(net) => v6.push((net.network().into(), net.broadcast().into())),
            }
        }
        Self {
            v4: Intervals::from_ranges(v4),
            v6: Intervals::from_ranges(v6),
        }
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether it holds the address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.contains(u32::from(address).into()),
            IpAddr::V6(address) => self.v6.contains(address.into()),
        }
    }

    /// Both sets together.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self {
            v4: self.v4.union(&other.v4),
            v6: self.v6.union(&other.v6),
        }
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self {
            v4: self.v4.intersection(&other.v4),
            v6: self.v6.intersection(&other.v6),
        }
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self {
            v4: self.v4.difference(&other.v4),
            v6: self.v6.difference(&other.v6),
        }
    }

    /// The fewest networks that are exactly this set.
    #[must_use]
    pub fn to_nets(&self) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for (low, high) in self.v4.ranges() {
            prefixes(*low, *high, 32, &mut |address, length| {
                let address = Ipv4Addr::from(u32::try_from(address).unwrap_or_default());
                nets.extend(Ipv4Net::new(address, length).map(IpNet::V4));
            });
        }
        for (low, high) in self.v6.ranges() {
            prefixes(*low, *high, 128, &mut |address, length| {
                nets.extend(Ipv6Net::new(Ipv6Addr::from(address), length).map(IpNet::V6));
            });
        }
        nets
    }
}

/// Splits an interval of `bits`-bit numbers into aligned blocks: number and prefix length of each.
pub(crate) fn prefixes(low: u128, high: u128, bits: u32, each: &mut impl FnMut(u128, u8)) {
    let mut low = low;
    loop {
        // The largest block that starts here and ends inside.
        let mut size = low.trailing_zeros().min(bits);
        let span = high - low;
        while size > 0 && block(size) > span {
            size -= 1;
        }
        each(low, u8::try_from(bits - size).unwrap_or(u8::MAX));
        match low
            .checked_add(block(size))
            .and_then(|end| end.checked_add(1))
        {
            Some(next) if next <= high => low = next,
            _ => return,
        }
    }
}

/// Last offset inside a block of `2^size` numbers.
const fn block(size: u32) -> u128 {
    match 1_u128.checked_shl(size) {
        Some(count) => count - 1,
        None => u128::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small() -> impl Strategy<Value = Intervals> {
        prop::collection::vec((0_u128..40, 0_u128..8), 0..6)
            .prop_map(|parts| Intervals::from_ranges(parts.into_iter().map(|(l, n)| (l, l + n))))
    }

    proptest! {
        #[test]
        fn sets_behave_like_sets(a in small(), b in small()) {
            for number in 0..60 {
                let (x, y) = (a.contains(number), b.contains(number));
                prop_assert_eq!(a.union(&b).contains(number), x || y);
                prop_assert_eq!(a.intersection(&b).contains(number), x && y);
                prop_assert_eq!(a.difference(&b).contains(number), x && !y);
            }
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a);
        }

        #[test]
        fn networks_are_exactly_the_interval(low in any::<u32>(), length in 0_u32..5000) {
            let high = low.saturating_add(length);
            let set = Addresses::range(Ipv4Addr::from(low).into(), Ipv4Addr::from(high).into());
            prop_assert_eq!(Addresses::nets(set.to_nets()), set);
        }
    }

    #[test]
    fn whole_families_are_one_network() {
        let nets = Addresses::all().to_nets();
        assert_eq!(
            nets.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["0.0.0.0/0", "::/0"]
        );
        let all = Intervals::range(0, u128::MAX);
        assert_eq!(
            all.difference(&Intervals::range(5, u128::MAX)),
            Intervals::range(0, 4)
        );
    }
}

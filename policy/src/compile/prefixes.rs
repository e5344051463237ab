//! The smallest set of prefixes that says the same as a list of port intervals.
//!
//! Bottom-up, every block learns which values would do as its default; top-down, a block writes an
//! entry only where what it inherits would not do (the construction known from routing tables).

use std::collections::BTreeSet;

/// The value that holds from `low` up to the next interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) low: u16,
    pub(super) value: usize,
}

/// A prefix and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) port: u16,
    pub(super) bits: u8,
    pub(super) value: usize,
}

enum Block {
    Leaf(usize),
    Split {
        candidates: BTreeSet<usize>,
        halves: Box<[Block; 2]>,
    },
}

impl Block {
    fn suits(&self, value: usize) -> bool {
        match self {
            Self::Leaf(own) => *own == value,
            Self::Split { candidates, .. } => candidates.contains(&value),
        }
    }

    fn candidates(&self) -> BTreeSet<usize> {
        match self {
            Self::Leaf(own) => [*own].into(),
            Self::Split { candidates, .. } => candidates.clone(),
        }
    }

    fn choice(&self) -> usize {
        match self {
            Self::Leaf(own) => *own,
            Self::Split { candidates, .. } => candidates.first().copied().unwrap_or_default(),
        }
    }
}

/// Prefixes for intervals that are sorted and begin at 0; `inherited` is what holds without any.
pub(super) fn prefixes(intervals: &[Interval], inherited: usize) -> Vec<Prefix> {
    let mut prefixes = Vec::new();
    write(&block(intervals, 0, 0), 0, 0, inherited, &mut prefixes);
    prefixes
}

/// The block of `bits` leading bits at `low`.
fn block(intervals: &[Interval], low: u16, bits: u8) -> Block {
    let size = 1u32 << (16 - u32::from(bits));
    let end = u32::from(low) + size;
    // The interval that holds `low` is the last one that begins at or before it.
    let first = intervals.partition_point(|interval| interval.low <= low);
    let value = first
        .checked_sub(1)
        .and_then(|index| intervals.get(index))
        .map_or(0, |interval| interval.value);
    let split = intervals
        .get(first)
        .is_some_and(|next| u32::from(next.low) < end);
    if !split {
        return Block::Leaf(value);
    }
    let half = u16::try_from(size / 2).unwrap_or_default();
    let halves = [
        block(intervals, low, bits + 1),
        block(intervals, low.saturating_add(half), bits + 1),
    ];
    let [left, right] = &halves;
    if let (Block::Leaf(a), Block::Leaf(b)) = (left, right)
        && a == b
    {
        return Block::Leaf(*a);
    }
    let (left, right) = (left.candidates(), right.candidates());
    let both: BTreeSet<usize> = left.intersection(&right).copied().collect();
    Block::Split {
        candidates: if both.is_empty() {
            left.union(&right).copied().collect()
        } else {
            both
        },
        halves: Box::new(halves),
    }
}

fn write(block: &Block, port: u16, bits: u8, inherited: usize, prefixes: &mut Vec<Prefix>) {
    let value = if block.suits(inherited) {
        inherited
    } else {
        let value = block.choice();
        prefixes.push(Prefix { port, bits, value });
        value
    };
    if let Block::Split { halves, .. } = block {
        let [left, right] = halves.as_ref();
        let half = u16::try_from((1u32 << (16 - u32::from(bits))) / 2).unwrap_or_default();
        write(left, port, bits + 1, value, prefixes);
        write(right, port.saturating_add(half), bits + 1, value, prefixes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::mask;

    fn lookup(prefixes: &[Prefix], inherited: usize, port: u16) -> usize {
        prefixes
            .iter()
            .filter(|prefix| mask(port, prefix.bits) == prefix.port)
            .max_by_key(|prefix| prefix.bits)
            .map_or(inherited, |prefix| prefix.value)
    }

    #[test]
    fn every_port_keeps_its_value() {
        let intervals: Vec<Interval> = [(0, 7), (1, 3), (80, 1), (81, 3), (1024, 2), (65_535, 3)]
            .map(|(low, value)| Interval { low, value })
            .into();
        let prefixes = prefixes(&intervals, 3);
        for port in 0..=u16::MAX {
            let wanted = intervals
                .iter()
                .rev()
                .find(|interval| interval.low <= port)
                .unwrap();
            assert_eq!(lookup(&prefixes, 3, port), wanted.value, "port {port}");
        }
    }

    #[test]
    fn writes_no_more_than_needed() {
        let one = |low, value| Interval { low, value };
        assert!(prefixes(&[one(0, 5)], 5).is_empty());
        assert_eq!(prefixes(&[one(0, 5)], 4).len(), 1);
        assert_eq!(prefixes(&[one(0, 4), one(443, 5), one(444, 4)], 4).len(), 1);
        // 1024–65535 is everything but the first of 64 blocks.
        assert_eq!(prefixes(&[one(0, 4), one(1024, 5)], 4).len(), 2);
    }
}

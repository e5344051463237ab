//! Sets of small numbers as bits: how classes are matched, sixty-four at a time.

/// A set of the numbers below a length that is given when it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// Nothing.
    pub(super) fn none(length: usize) -> Self {
        Self(vec![0; length.div_ceil(64)])
    }

    /// Everything below `length`.
    pub(super) fn all(length: usize) -> Self {
        let mut words = vec![u64::MAX; length.div_ceil(64)];
        if let (Some(last), tail @ 1..) = (words.last_mut(), length % 64) {
            *last = (1 << tail) - 1;
        }
        Self(words)
    }

    /// Adds a number; one beyond the length is not added.
    pub(super) fn set(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }

    /// Whether a number is in it.
    pub(super) fn get(&self, index: usize) -> bool {
        self.0
            .get(index / 64)
            .is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Adds everything of another set.
    pub(super) fn add(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own |= other;
        }
    }

    /// What both have.
    pub(super) fn and(&self, other: &Self) -> Self {
        let words = self.0.iter().zip(&other.0);
        Self(words.map(|(own, other)| own & other).collect())
    }

    /// What only this one has.
    pub(super) fn minus(&self, other: &Self) -> Self {
        let words = self.0.iter().zip(&other.0);
        Self(words.map(|(own, other)| own & !other).collect())
    }

    /// Whether nothing is common to both.
    pub(super) fn is_disjoint(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(&other.0)
            .all(|(own, other)| own & other == 0)
    }

    /// Whether it is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Its numbers, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(index, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.wrapping_sub(1);
                (bit < 64).then_some(index * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_sets() {
        for length in [0, 1, 63, 64, 65, 130] {
            let all = Bits::all(length);
            assert_eq!(
                all.iter().collect::<Vec<_>>(),
                (0..length).collect::<Vec<_>>()
            );
            let mut some = Bits::none(length);
            for index in (0..length).step_by(7) {
                some.set(index);
            }
            let rest = all.minus(&some);
            assert!(rest.is_disjoint(&some));
            assert_eq!(all.and(&some), some);
            let mut both = rest.clone();
            both.add(&some);
            assert_eq!(both, all);
            assert_eq!(some.is_empty(), length == 0);
            assert!((0..length).all(|index| some.get(index) != rest.get(index)));
            assert!(!all.get(length));
        }
    }
}

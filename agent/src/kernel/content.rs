//! One complete policy content as the kernel holds it: tables of raw keys and values.
//!
//! Keys and values lie one after the other, sorted by key, so that they go to the kernel in batches as they
//! are and compare by `==` with what is read back.

use aya::Pod;
use datapath::abi::{self, maps};
use sha2::{Digest, Sha256};

use super::sys;
use super::table::{bytes_of, from_bytes};

/// Which inner map of a slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// IPv4 addresses.
    Addr4,
    /// IPv6 addresses.
    Addr6,
    /// IPv4 prefixes.
    Cidr4,
    /// IPv6 prefixes.
    Cidr6,
    /// Endpoints.
    Endpoints,
    /// Classes.
    Classes,
    /// Rules: in the kernel those of port ranges.
    Rules,
    /// Filters.
    Filters,
    /// All other rules in the kernel (see `shape`); empty elsewhere.
    Cells,
    /// Lengths of the arrays in the kernel; empty elsewhere.
    Geometry,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 10] = [
        Self::Addr4,
        Self::Addr6,
        Self::Cidr4,
        Self::Cidr6,
        Self::Endpoints,
        Self::Classes,
        Self::Rules,
        Self::Filters,
        Self::Cells,
        Self::Geometry,
    ];

    /// Name of the outer map.
    #[must_use]
    pub const fn map(self) -> &'static str {
        match self {
            Self::Addr4 => maps::ADDR4,
            Self::Addr6 => maps::ADDR6,
            Self::Cidr4 => maps::CIDR4,
            Self::Cidr6 => maps::CIDR6,
            Self::Endpoints => maps::ENDPOINTS,
            Self::Classes => maps::CLASSES,
            Self::Rules => maps::RULES,
            Self::Filters => maps::FILTERS,
            Self::Cells => maps::CELLS,
            Self::Geometry => maps::GEOMETRY,
        }
    }

    /// Size of keys and values.
    #[must_use]
    pub const fn sizes(self) -> (usize, usize) {
        match self {
            Self::Addr4 => (4, size_of::<abi::AddrValue>()),
            Self::Addr6 => (16, size_of::<abi::AddrValue>()),
            Self::Cidr4 => (size_of::<abi::Cidr4Key>(), size_of::<abi::AddrValue>()),
            Self::Cidr6 => (size_of::<abi::Cidr6Key>(), size_of::<abi::AddrValue>()),
            Self::Endpoints => (4, size_of::<abi::EndpointValue>()),
            Self::Classes => (size_of::<abi::ClassKey>(), size_of::<abi::ClassValue>()),
            Self::Rules | Self::Cells => (size_of::<abi::RuleKey>(), size_of::<abi::RuleValue>()),
            Self::Filters => (size_of::<abi::RuleKey>(), size_of::<abi::FilterValue>()),
            Self::Geometry => (4, size_of::<abi::Geometry>()),
        }
    }

    /// Whether the kernel holds it as an array of lines.
    pub(crate) const fn has_lines(self) -> bool {
        matches!(
            self,
            Self::Addr4 | Self::Addr6 | Self::Classes | Self::Cells
        )
    }

    /// Size of keys and values in the kernel.
    #[must_use]
    pub(crate) const fn kernel_sizes(self) -> (usize, usize) {
        match self {
            Self::Addr4 | Self::Addr6 | Self::Classes | Self::Cells => (4, abi::LINE),
            other => other.sizes(),
        }
    }

    /// Entries that a map for so many is made for.
    pub(crate) const fn room(self, entries: usize) -> usize {
        let entries = if entries == 0 { 1 } else { entries };
        match self {
            // The kernel makes one bucket an entry of a hash; with twice as many, chains are short.
            Self::Endpoints => 2 * entries,
            _ => entries,
        }
    }

    /// Kernel map type and flags of the inner map.
    pub(crate) const fn kind(self) -> (u32, u32) {
        match self {
            Self::Addr4 | Self::Addr6 | Self::Classes | Self::Cells => {
                (sys::TYPE_ARRAY, sys::F_MMAPABLE | sys::F_INNER_MAP)
            }
            Self::Geometry => (sys::TYPE_ARRAY, 0),
            Self::Endpoints => (sys::TYPE_HASH, sys::F_NO_PREALLOC),
            Self::Cidr4 | Self::Cidr6 | Self::Rules | Self::Filters => {
                (sys::TYPE_LPM_TRIE, sys::F_NO_PREALLOC)
            }
        }
    }
}

/// Keys and values of one inner map, sorted by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flat {
    key_size: usize,
    value_size: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Flat {
    /// An empty table.
    #[must_use]
    pub const fn new(key_size: usize, value_size: usize) -> Self {
        Self {
            key_size,
            value_size,
            keys: Vec::new(),
            values: Vec::new(),
        }
    }

    /// An empty table of a part.
    #[must_use]
    pub const fn of(part: Part) -> Self {
        let (key, value) = part.sizes();
        Self::new(key, value)
    }

    /// Appends raw bytes; what does not fit the sizes is ignored (the caller's types fix them).
    pub(crate) fn push_raw(&mut self, key: &[u8], value: &[u8]) {
        if key.len() == self.key_size && value.len() == self.value_size {
            self.keys.extend_from_slice(key);
            self.values.extend_from_slice(value);
        }
    }

    /// Appends an entry.
    pub fn push<K: Pod, V: Pod>(&mut self, key: &K, value: &V) {
        debug_assert_eq!(
            (size_of::<K>(), size_of::<V>()),
            (self.key_size, self.value_size)
        );
        self.push_raw(bytes_of(key), bytes_of(value));
    }

    /// How many entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len() / self.key_size.max(1)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// All keys, one after the other.
    #[must_use]
    pub fn keys(&self) -> &[u8] {
        &self.keys
    }

    /// All values, one after the other.
    #[must_use]
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    /// Entries as types; entries that do not fit are left out.
    pub fn entries<K: Pod, V: Pod>(&self) -> impl Iterator<Item = (K, V)> + '_ {
        self.keys
            .chunks(self.key_size)
            .zip(self.values.chunks(self.value_size))
            .filter_map(|(key, value)| Some((from_bytes(key)?, from_bytes(value)?)))
    }

    /// Sorts by key; of equal keys the last stays, as it would in a map.
    pub fn sort(&mut self) {
        let mut entries: std::collections::BTreeMap<&[u8], &[u8]> =
            std::collections::BTreeMap::new();
        for (key, value) in self
            .keys
            .chunks(self.key_size)
            .zip(self.values.chunks(self.value_size))
        {
            entries.insert(key, value);
        }
        let keys = entries.keys().flat_map(|key| key.iter().copied()).collect();
        let values = entries
            .values()
            .flat_map(|value| value.iter().copied())
            .collect();
        self.keys = keys;
        self.values = values;
    }
}

/// Everything that one slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    parts: [Flat; 10],
}

impl Default for Content {
    fn default() -> Self {
        Self {
            parts: Part::ALL.map(Flat::of),
        }
    }
}

impl Content {
    /// One table.
    #[must_use]
    pub fn part(&self, part: Part) -> &Flat {
        // `Part` numbers the array that `Default` made with one table for each.
        &self.parts[part as usize]
    }

    /// One table, to be filled.
    pub fn part_mut(&mut self, part: Part) -> &mut Flat {
        &mut self.parts[part as usize]
    }

    /// Puts every table into its canonical order.
    pub fn sort(&mut self) {
        self.parts.iter_mut().for_each(Flat::sort);
    }

    /// Entries in all tables.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(Flat::len).sum()
    }

    /// Whether all tables are empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// SHA-256 over every table in order.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for part in Part::ALL {
            let flat = self.part(part);
            // Only a content in the kernel's shape has these; the others' digests do not know of them.
            if matches!(part, Part::Cells | Part::Geometry) && flat.is_empty() {
                continue;
            }
            hasher.update(part.map());
            hasher.update(u64::try_from(flat.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(flat.keys());
            hasher.update(flat.values());
        }
        hasher.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_the_last_of_equal_keys_stays() {
        let value = |identity| abi::AddrValue { identity, flags: 0 };
        let mut one = Content::default();
        one.part_mut(Part::Addr4).push(&[10u8, 0, 0, 2], &value(5));
        one.part_mut(Part::Addr4).push(&[10u8, 0, 0, 1], &value(6));
        let mut two = Content::default();
        two.part_mut(Part::Addr4).push(&[10u8, 0, 0, 1], &value(9));
        two.part_mut(Part::Addr4).push(&[10u8, 0, 0, 1], &value(6));
        two.part_mut(Part::Addr4).push(&[10u8, 0, 0, 2], &value(5));
        one.sort();
        two.sort();
        assert_eq!(one, two);
        assert_eq!(one.digest(), two.digest());
        assert_eq!(one.len(), 2);
        two.part_mut(Part::Addr4).push(&[10u8, 0, 0, 3], &value(5));
        assert_ne!(one.digest(), two.digest());
    }
}

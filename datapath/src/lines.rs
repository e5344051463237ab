//! Addresses, classes and cells of a content as arrays of cache lines: a key lies in one of two lines, both known from
//! its hash, so that a look-up costs one memory access, two at most, however large the policy is.
//!
//! A kernel hash walks a chain of elements, each some cache lines away from its key and its value; with 10,000 rules most
//! of what a new flow costs is waiting for them. Contents are written once and never changed, so that user space can lay
//! the keys out beforehand (cuckoo hashing: Pagh and Rodler, 2001) and the kernel has nothing to search for.
//!
//! The hash has no secret. Keys are those of the policy, not of the packets: who could choose colliding ones would have to
//! claim addresses, and a content that cannot be laid out is refused before anything is changed.

use crate::abi::{Addr4Line, Addr6Line, AddrValue, TAKEN};

/// Spreads the bits of a word (the finaliser of SplitMix64: Steele, Lea and Flood, 2014).
#[inline(always)]
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Hash of an IPv4 address as it stands in a header.
#[must_use]
#[inline(always)]
pub const fn addr4(addr: u32) -> u64 {
    mix(addr as u64 ^ 0x9e37_79b9_7f4a_7c15)
}

/// Hash of an IPv6 address as it stands in a header.
#[must_use]
#[inline(always)]
pub const fn addr6(addr: [u64; 2]) -> u64 {
    let [high, low] = addr;
    mix(mix(high ^ 0x9e37_79b9_7f4a_7c15) ^ low)
}

/// Hash of a class: [`crate::abi::ClassLine::identity`] and `scope`.
#[must_use]
#[inline(always)]
pub const fn class(identity: u32, scope: u32) -> u64 {
    mix((identity as u64) << 32 | scope as u64)
}

/// Hash of a cell: [`crate::abi::CellLine::class`] and `port`.
#[must_use]
#[inline(always)]
pub const fn cell(class: u32, port: u32) -> u64 {
    mix((class as u64) << 32 | port as u64)
}

/// What a cell covers in one word: one port of a protocol, a protocol (`port` is 0), or everything (both are 0). `bits` is
/// the length of its key's prefix.
#[must_use]
#[inline(always)]
pub const fn port_of_cell(bits: u32, protocol: u8, port: [u8; 2]) -> u32 {
    let [high, low] = port;
    bits << 24 | (protocol as u32) << 16 | (high as u32) << 8 | low as u32
}

/// The two lines, of so many, in which a key with this hash may lie. They differ where there are two.
#[must_use]
#[inline(always)]
pub const fn spots(hash: u64, lines: u32) -> [u32; 2] {
    let one = (((hash & 0xffff_ffff) * lines as u64) >> 32) as u32;
    let two = (((hash >> 32) * lines as u64) >> 32) as u32;
    if one != two {
        [one, two]
    } else if two + 1 < lines {
        [one, two + 1]
    } else {
        [one, 0]
    }
}

/// What an address of a line is bound to, as one word: flags (with [`TAKEN`]) 32 | identity 32. 0 when it is not there.
#[inline(always)]
#[must_use]
pub fn in_line4(line: &Addr4Line, addr: u32) -> u64 {
    let mut index = 0;
    while index < line.addr.len() {
        // The bounds are those of the loop: the arrays are equally long.
        if let (Some(own), Some(flags), Some(identity)) = (
            line.addr.get(index),
            line.flags.get(index),
            line.identity.get(index),
        ) && *own == addr
            && *flags != 0
        {
            return word(*flags, *identity);
        }
        index += 1;
    }
    0
}

/// The same for IPv6.
#[inline(always)]
#[must_use]
pub fn in_line6(line: &Addr6Line, addr: [u64; 2]) -> u64 {
    let mut index = 0;
    while index < line.addr.len() {
        if let (Some(own), Some(flags), Some(identity)) = (
            line.addr.get(index),
            line.flags.get(index),
            line.identity.get(index),
        ) && (own[0] ^ addr[0]) | (own[1] ^ addr[1]) == 0
            && *flags != 0
        {
            return word(*flags, *identity);
        }
        index += 1;
    }
    0
}

#[inline(always)]
const fn word(flags: u32, identity: u32) -> u64 {
    (flags as u64) << 32 | identity as u64
}

/// The binding in such a word.
#[inline(always)]
#[must_use]
pub const fn binding(word: u64) -> Option<AddrValue> {
    if word == 0 {
        return None;
    }
    Some(AddrValue {
        identity: word as u32,
        flags: (word >> 32) as u32 & !TAKEN,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_lie_inside_and_differ() {
        for lines in [1u32, 2, 3, 17, 4096, u32::MAX] {
            for number in 0..2000u32 {
                let [one, two] = spots(addr4(number), lines);
                assert!(one < lines && two < lines);
                assert!(lines == 1 || one != two);
            }
            // Both halves equal.
            let [one, two] = spots(u64::MAX, lines);
            assert!(one < lines && two < lines && (lines == 1 || one != two));
        }
    }

    #[test]
    fn consecutive_keys_are_spread() {
        let mut held = [0u32; 256];
        for number in 0..2560u32 {
            let [one, _] = spots(addr4((0x0a01_0000 + number).to_be()), 256);
            if let Some(count) = held.get_mut(one as usize) {
                *count += 1;
            }
        }
        assert!(held.iter().all(|count| (1..30).contains(count)), "{held:?}");
    }

    #[test]
    fn an_address_is_found_where_it_lies() {
        let mut line = Addr4Line::default();
        line.addr[2] = 7;
        line.identity[2] = 300;
        line.flags[2] = TAKEN | 1;
        assert_eq!(
            binding(in_line4(&line, 7)),
            Some(AddrValue {
                identity: 300,
                flags: 1
            })
        );
        assert_eq!(binding(in_line4(&line, 8)), None);
        // An empty place is no address 0.
        assert_eq!(binding(in_line4(&line, 0)), None);
        let mut line = Addr6Line::default();
        line.addr[1] = [1, 2];
        line.identity[1] = 301;
        line.flags[1] = TAKEN;
        assert_eq!(
            binding(in_line6(&line, [1, 2])).map(|v| v.identity),
            Some(301)
        );
        assert_eq!(binding(in_line6(&line, [2, 1])), None);
        assert_eq!(binding(in_line6(&line, [0, 0])), None);
    }
}

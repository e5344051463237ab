//! The keyed hash of the flow tables, computed inline: no helper, no memory but the key's own words.
//!
//! NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: UMAC, CRYPTO 1999; RFC 4418 §5.2): the sum of 32-bit
//! words with secret words added, multiplied in pairs into 64 bits. For any two keys that differ, the
//! 64-bit sums are equal with a chance of 2^-32 over the secret, whatever the attacker knows of the
//! keys: nobody can aim at one set without the secret. The finish only spreads the sum over all bits.

/// Secret words: ten for the longest key (40 bytes) and two to spare.
pub const SECRET_WORDS: usize = 12;

#[inline(always)]
const fn pair(word: u64, low: u32, high: u32) -> u64 {
    let a = (word as u32).wrapping_add(low) as u64;
    let b = ((word >> 32) as u32).wrapping_add(high) as u64;
    a.wrapping_mul(b)
}

#[inline(always)]
const fn finish(sum: u64) -> u64 {
    let sum = (sum ^ (sum >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    sum ^ (sum >> 29)
}

/// Hash of two words.
#[inline(always)]
#[must_use]
pub const fn hash2(words: &[u64; 2], secret: &[u32; SECRET_WORDS]) -> u64 {
    let [a, b] = *words;
    let [s0, s1, s2, s3, ..] = *secret;
    finish(pair(a, s0, s1).wrapping_add(pair(b, s2, s3)))
}

/// Hash of five words.
#[inline(always)]
#[must_use]
pub const fn hash5(words: &[u64; 5], secret: &[u32; SECRET_WORDS]) -> u64 {
    let [a, b, c, d, e] = *words;
    let [s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, ..] = *secret;
    finish(
        pair(a, s0, s1)
            .wrapping_add(pair(b, s2, s3))
            .wrapping_add(pair(c, s4, s5))
            .wrapping_add(pair(d, s6, s7))
            .wrapping_add(pair(e, s8, s9)),
    )
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::collections::HashMap;

    const SECRET: [u32; SECRET_WORDS] = [
        0x243f_6a88,
        0x85a3_08d3,
        0x1319_8a2e,
        0x0370_7344,
        0xa409_3822,
        0x299f_31d0,
        0x082e_fa98,
        0xec4e_6c89,
        0x4528_21e6,
        0x38d0_1377,
        0xbe54_66cf,
        0x34e9_0c6c,
    ];

    /// Flows as an attacker would choose them: one field counts, the rest stays. Sets of the table must fill evenly.
    #[test]
    fn regular_keys_spread_over_the_sets() {
        for step in [1u64, 1 << 16, 1 << 32, 1 << 48, 0x0100_0100_0001] {
            let mut sets: HashMap<u64, u32> = HashMap::new();
            for i in 0..16_384u64 {
                let hash = hash2(&[0x0a00_0001_0a00_0002, i.wrapping_mul(step)], &SECRET);
                *sets.entry((hash >> 32) & 0xfff).or_default() += 1;
            }
            // 4 a set on average: a Poisson set beyond 20 has a chance below 1e-8.
            assert!(sets.values().all(|count| *count < 20), "step {step:#x}");
            assert!(sets.len() > 3_900, "step {step:#x}: {} sets", sets.len());
        }
    }

    #[test]
    fn another_secret_is_another_order() {
        let mut other = SECRET;
        other[3] ^= 1;
        let same = (0..1000u64)
            .filter(|i| {
                (hash2(&[7, *i << 20], &SECRET) >> 32) & 0xff
                    == (hash2(&[7, *i << 20], &other) >> 32) & 0xff
            })
            .count();
        assert!(same < 40, "{same} of 1000 in the same of 256 sets");
        assert_ne!(
            hash5(&[1, 2, 3, 4, 5], &SECRET),
            hash5(&[1, 2, 3, 4, 5], &other)
        );
    }
}

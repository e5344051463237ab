//! Keys as the table compares and hashes them: machine words, in the order of memory.

use crate::abi::{Key4, Key6, Tables};
use crate::hash::{SECRET_WORDS, hash2, hash5};
use crate::packet::{Family, V4, V6};
use crate::word;

/// What the table needs to know of a family.
pub trait Tabled: Family {
    /// The key as machine words.
    type Words: Copy + PartialEq + Default;

    /// The words of a key.
    fn words(key: &Self::Key) -> Self::Words;
    /// The keyed hash of a key.
    fn hash(words: &Self::Words, secret: &[u32; SECRET_WORDS]) -> u64;
    /// An address in its v4-mapped or plain IPv6 form (RFC 4291 §2.5.5.2), as two words in memory order.
    fn mapped_words(addr: &Self::Addr) -> [u64; 2];
    /// Sets of this family's table, minus 1.
    fn mask(tables: &Tables) -> u32;
    /// Whether the line at `line` has this key.
    ///
    /// # Safety
    /// `line` points to a whole line.
    unsafe fn line_has(line: *const u8, words: &Self::Words) -> bool;
    /// Empties the line at `line` and writes the key.
    ///
    /// # Safety
    /// `line` points to a whole line that nobody else uses.
    unsafe fn write_line(line: *mut u8, words: &Self::Words);
    /// One end of a line's key, in the form of [`Self::mapped_words`].
    ///
    /// # Safety
    /// `line` points to a whole line.
    unsafe fn end_at(line: *const u8, lo: bool) -> [u64; 2];
    /// The last word of a line's key: ports, protocol, scope.
    ///
    /// # Safety
    /// `line` points to a whole line.
    unsafe fn tail_at(line: *const u8) -> Tail;
}

/// Words of a line behind its meta word.
macro_rules! line_words {
    ($count:literal, $words:literal) => {
        // SAFETY: the promise is the trait\'s.
        #[inline(always)]
        unsafe fn line_has(line: *const u8, words: &[u64; $words]) -> bool {
            let mut index = 0;
            let mut differ = 0;
            for word in words {
                // SAFETY: the key is the `$words` words behind the meta word.
                differ |= unsafe { word::load(line.cast::<u64>().add(1 + index)) } ^ *word;
                index += 1;
            }
            differ == 0
        }

        // SAFETY: the promise is the trait\'s.
        #[inline(always)]
        unsafe fn write_line(line: *mut u8, words: &[u64; $words]) {
            let at = line.cast::<u64>();
            let mut index = 1;
            for word in words {
                // SAFETY: the key is the `$words` words behind the meta word.
                unsafe { core::ptr::write_volatile(at.add(index), *word) };
                index += 1;
            }
            while index < $count {
                // SAFETY: a line has `$count` words.
                unsafe { core::ptr::write_volatile(at.add(index), 0) };
                index += 1;
            }
        }
    };
}

impl Tabled for V4 {
    type Words = [u64; 2];

    #[inline(always)]
    fn words(key: &Key4) -> [u64; 2] {
        // SAFETY: 16 bytes without padding, aligned to 8.
        unsafe { *core::ptr::from_ref(key).cast() }
    }

    #[inline(always)]
    fn hash(words: &[u64; 2], secret: &[u32; SECRET_WORDS]) -> u64 {
        hash2(words, secret)
    }

    #[inline(always)]
    fn mapped_words(addr: &[u8; 4]) -> [u64; 2] {
        [0, mapped4(u32::from_ne_bytes(*addr))]
    }

    #[inline(always)]
    fn mask(tables: &Tables) -> u32 {
        tables.mask4
    }

    line_words!(8, 2);

    // SAFETY: the promise is the trait\'s.
    #[inline(always)]
    unsafe fn end_at(line: *const u8, lo: bool) -> [u64; 2] {
        let offset = if lo { 8 } else { 12 };
        // SAFETY: the key begins with its two addresses.
        let addr: u32 = unsafe { core::ptr::read_volatile(line.add(offset).cast()) };
        [0, mapped4(addr)]
    }

    // SAFETY: the promise is the trait\'s.
    #[inline(always)]
    unsafe fn tail_at(line: *const u8) -> Tail {
        // SAFETY: the key's second word.
        Tail(unsafe { word::load(line.add(16).cast()) })
    }
}

impl Tabled for V6 {
    type Words = [u64; 5];

    #[inline(always)]
    fn words(key: &Key6) -> [u64; 5] {
        // SAFETY: 40 bytes without padding, aligned to 8.
        unsafe { *core::ptr::from_ref(key).cast() }
    }

    #[inline(always)]
    fn hash(words: &[u64; 5], secret: &[u32; SECRET_WORDS]) -> u64 {
        hash5(words, secret)
    }

    #[inline(always)]
    fn mapped_words(addr: &[u8; 16]) -> [u64; 2] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *addr;
        [
            u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        ]
    }

    #[inline(always)]
    fn mask(tables: &Tables) -> u32 {
        tables.mask6
    }

    line_words!(12, 5);

    // SAFETY: the promise is the trait\'s.
    #[inline(always)]
    unsafe fn end_at(line: *const u8, lo: bool) -> [u64; 2] {
        let offset = if lo { 8 } else { 24 };
        // SAFETY: the key begins with its two addresses.
        unsafe {
            [
                word::load(line.add(offset).cast()),
                word::load(line.add(offset + 8).cast()),
            ]
        }
    }

    // SAFETY: the promise is the trait\'s.
    #[inline(always)]
    unsafe fn tail_at(line: *const u8) -> Tail {
        // SAFETY: the key's fifth word.
        Tail(unsafe { word::load(line.add(40).cast()) })
    }
}

/// The last word of the v4-mapped form of an address, both in memory order.
#[inline(always)]
const fn mapped4(addr: u32) -> u64 {
    let [a, b, c, d] = addr.to_ne_bytes();
    u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])
}

/// The last word of a key, in memory order: lower end's port, higher end's port (network byte order), protocol, zero, scope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tail(pub u64);

impl Tail {
    /// Port of the lower end.
    #[must_use]
    #[inline(always)]
    pub const fn lo_port(self) -> u16 {
        u16::from_be(self.0 as u16)
    }

    /// Port of the higher end.
    #[must_use]
    #[inline(always)]
    pub const fn hi_port(self) -> u16 {
        u16::from_be((self.0 >> 16) as u16)
    }

    /// IANA protocol number.
    #[must_use]
    #[inline(always)]
    pub const fn protocol(self) -> u8 {
        (self.0 >> 32) as u8
    }
}

const _: () = assert!(
    cfg!(target_endian = "little"),
    "keys are read as little-endian words"
);

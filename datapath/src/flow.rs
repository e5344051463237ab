//! The entry of a flow: its flag word, its meta word, and access to one that other CPUs write too.

use core::marker::PhantomData;
use core::ptr::{self, NonNull};

use crate::abi::Body;
use crate::conntrack::State;
use crate::packet::Family;
use crate::table::{Tabled, Tail};
use crate::word;

/// Verdict bits of [`Body::flags`] (bits 16–23).
pub mod bits {
    /// The flow's packets pass.
    pub const ALLOW: u8 = 0x01;
    /// The policies as enforced would deny (observe mode, or kept).
    pub const EVALUATED_DENY: u8 = 0x02;
    /// The draft would deny.
    pub const DRAFT_DENY: u8 = 0x04;
    /// `existing: keep`.
    pub const KEEP: u8 = 0x08;
    /// Taken over while live, at arming: not cut by the content that armed.
    pub const ADOPTED: u8 = 0x10;
    /// Allowed by a failsafe.
    pub const FAILSAFE: u8 = 0x20;
    /// The initiator is the higher end of the canonical key.
    pub const INITIATOR_HI: u8 = 0x40;
    /// The flow's first packet left the endpoint.
    pub const EGRESS: u8 = 0x80;
}

/// Added to the state byte of one line: a stateless filter drops the packets of this direction.
pub const FILTERED: u8 = 0x80;

/// Added to the state byte of both lines: both ends have proved that they take part. Such an entry is never displaced.
pub const PROVEN: u8 = 0x40;

/// The state byte without its marks.
const STATE: u8 = 0x0f;

/// Slot states in the meta word.
pub mod slot {
    /// Free.
    pub const FREE: u8 = 0;
    /// Being written.
    pub const BUSY: u8 = 1;
    /// In use.
    pub const LIVE: u8 = 2;
    /// About to be reaped.
    pub const CLOSING: u8 = 3;
    /// May be harvested.
    pub const CLOSED: u8 = 4;
}

/// generation 32 | sequence 24 | slot state 8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta(pub u64);

impl Meta {
    /// A word from its parts; the sequence keeps its low 24 bits.
    #[must_use]
    #[inline(always)]
    pub const fn new(generation: u32, sequence: u32, slot: u8) -> Self {
        Self(((generation as u64) << 32) | (((sequence & 0x00ff_ffff) as u64) << 8) | slot as u64)
    }

    /// Generation of the content that admitted the flow, or judged it last.
    #[must_use]
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Instance of the entry.
    #[must_use]
    #[inline(always)]
    pub const fn sequence(self) -> u32 {
        ((self.0 >> 8) & 0x00ff_ffff) as u32
    }

    /// One of [`slot`].
    #[must_use]
    #[inline(always)]
    pub const fn slot(self) -> u8 {
        self.0 as u8
    }
}

/// tcp flags 8 | state 8 | verdict 8 | reason 8, low byte first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags(pub u32);

impl Flags {
    /// A word from its parts.
    #[must_use]
    #[inline(always)]
    pub const fn new(tcp: u8, state: State, verdict: u8, reason: u8) -> Self {
        Self(
            tcp as u32
                | ((state.0 as u32) << 8)
                | ((verdict as u32) << 16)
                | ((reason as u32) << 24),
        )
    }

    /// TCP flags seen in this direction.
    #[must_use]
    #[inline(always)]
    pub const fn tcp(self) -> u8 {
        self.0 as u8
    }

    /// State without its marks.
    #[must_use]
    #[inline(always)]
    pub const fn state(self) -> State {
        State(((self.0 >> 8) as u8) & STATE)
    }

    /// Whether both ends have proved that they take part.
    #[must_use]
    #[inline(always)]
    pub const fn is_proven(self) -> bool {
        ((self.0 >> 8) as u8) & PROVEN != 0
    }

    /// The word with the proof set.
    #[must_use]
    #[inline(always)]
    pub const fn with_proven(self) -> Self {
        Self(self.0 | ((PROVEN as u32) << 8))
    }

    /// Whether a filter drops this direction.
    #[must_use]
    #[inline(always)]
    pub const fn is_filtered(self) -> bool {
        ((self.0 >> 8) as u8) & FILTERED != 0
    }

    /// Verdict bits.
    #[must_use]
    #[inline(always)]
    pub const fn verdict(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// Drop reason number.
    #[must_use]
    #[inline(always)]
    pub const fn reason(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The word with another state.
    #[must_use]
    #[inline(always)]
    pub const fn with_state(self, state: State) -> Self {
        let mask = (STATE as u32) << 8;
        Self((self.0 & !mask) | (((state.0 as u32) << 8) & mask))
    }

    /// The word with more TCP flags.
    #[must_use]
    #[inline(always)]
    pub const fn with_tcp(self, tcp: u8) -> Self {
        Self(self.0 | tcp as u32)
    }

    /// The word with the filter mark set or cleared.
    #[must_use]
    #[inline(always)]
    pub const fn with_filtered(self, filtered: bool) -> Self {
        let mark = (FILTERED as u32) << 8;
        if filtered {
            Self(self.0 | mark)
        } else {
            Self(self.0 & !mark)
        }
    }

    /// The word with another verdict and reason.
    #[must_use]
    #[inline(always)]
    pub const fn with_verdict(self, verdict: u8, reason: u8) -> Self {
        Self((self.0 & 0xffff) | ((verdict as u32) << 16) | ((reason as u32) << 24))
    }
}

/// An entry in shared memory: line 0 and line 1.
///
/// Reads and writes are volatile single words, because other CPUs and user space look at the same entry;
/// counters are added atomically. One pointer, so that it travels in a register.
pub struct FlowRef<F> {
    base: NonNull<u8>,
    family: PhantomData<F>,
}

impl<F> Clone for FlowRef<F> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for FlowRef<F> {}

impl<F: Family> FlowRef<F> {
    /// The entry at `flow`.
    ///
    /// # Safety
    /// `flow` points to a whole entry that stays readable and writable for as long as the result is used
    /// (RCU in the kernel, ownership on the host).
    #[must_use]
    #[inline(always)]
    pub const unsafe fn new(flow: *mut F::Flow) -> Self {
        Self {
            // SAFETY: the caller's promise.
            base: unsafe { NonNull::new_unchecked(flow.cast()) },
            family: PhantomData,
        }
    }

    /// The first byte of the entry.
    #[must_use]
    #[inline(always)]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    #[inline(always)]
    fn meta_at(&self, line: usize) -> *mut u64 {
        // SAFETY: both lines are inside the entry (`new`), and each begins with its meta word.
        unsafe { self.base.as_ptr().add(line * F::STRIDE).cast() }
    }

    /// The meta word of line 0: the one that decides.
    #[must_use]
    #[inline(always)]
    pub fn meta(&self) -> Meta {
        self.meta_of(0)
    }

    /// The meta word of a line, 0 or 1.
    #[must_use]
    #[inline(always)]
    pub fn meta_of(&self, line: usize) -> Meta {
        // SAFETY: see `new`; an aligned word.
        Meta(unsafe { word::load(self.meta_at(line)) })
    }

    /// Writes the meta word of both lines; line 0 last, so that an entry is whole once it says so.
    #[inline(always)]
    pub fn set_meta(&self, meta: Meta) {
        // SAFETY: see `new`; aligned words.
        unsafe {
            word::publish(self.meta_at(1), meta.0);
            word::publish(self.meta_at(0), meta.0);
        }
    }

    /// Moves line 0's meta word from `old` to `new`; false when it was something else.
    #[must_use]
    #[inline(always)]
    pub fn exchange_meta(&self, old: Meta, new: Meta) -> bool {
        self.exchange_meta_of(0, old, new)
    }

    /// Moves a line's meta word from `old` to `new`; false when it was something else.
    #[must_use]
    #[inline(always)]
    pub fn exchange_meta_of(&self, line: usize, old: Meta, new: Meta) -> bool {
        // SAFETY: see `new`; an aligned word.
        unsafe { word::exchange(self.meta_at(line), old.0, new.0) == old.0 }
    }

    /// The line of a direction: `true` is lower → higher end.
    #[must_use]
    #[inline(always)]
    pub fn line(&self, from_lo: bool) -> LineRef {
        let offset = if from_lo {
            F::BODY
        } else {
            F::STRIDE + F::BODY
        };
        // SAFETY: both bodies are inside the entry.
        LineRef(unsafe { self.base.as_ptr().add(offset).cast() })
    }
}

impl<F: Tabled> FlowRef<F> {
    /// Whether the entry has this key.
    #[must_use]
    #[inline(always)]
    pub fn has_key(&self, words: &F::Words) -> bool {
        self.line_has_key(0, words)
    }

    /// Whether a line, 0 or 1, has this key.
    #[must_use]
    #[inline(always)]
    pub fn line_has_key(&self, line: usize, words: &F::Words) -> bool {
        // SAFETY: both lines are inside the entry.
        unsafe { F::line_has(self.base.as_ptr().add(line * F::STRIDE), words) }
    }

    /// One end of the key, v4-mapped for IPv4, as two words in memory order.
    #[must_use]
    #[inline(always)]
    pub fn end(&self, lo: bool) -> [u64; 2] {
        // SAFETY: line 0 is inside the entry.
        unsafe { F::end_at(self.base.as_ptr(), lo) }
    }

    /// Ports and protocol of the key.
    #[must_use]
    #[inline(always)]
    pub fn tail(&self) -> Tail {
        // SAFETY: line 0 is inside the entry.
        unsafe { F::tail_at(self.base.as_ptr()) }
    }

    /// Copies another entry's words, the meta words excepted.
    ///
    /// # Safety
    /// Nobody else uses the entry: it is BUSY or not in a table.
    #[inline(always)]
    pub unsafe fn copy_behind_meta(&self, other: Self) {
        let mut line = 0;
        while line < 2 {
            let (to, from) = (self.meta_at(line), other.meta_at(line));
            let mut index = 1;
            while index < F::STRIDE / 8 {
                // SAFETY: both lines are inside their entries.
                unsafe { ptr::write_volatile(to.add(index), ptr::read_volatile(from.add(index))) };
                index += 1;
            }
            line += 1;
        }
    }

    /// Copies another entry. Copying an entry onto itself changes nothing.
    ///
    /// # Safety
    /// As for [`Self::copy_behind_meta`].
    #[inline(always)]
    pub unsafe fn copy_whole(&self, other: Self) {
        // SAFETY: the caller's promise.
        unsafe { self.copy_behind_meta(other) };
        self.set_meta(other.meta());
    }

    /// Makes it the empty entry of a key. The meta words stay as they are.
    ///
    /// # Safety
    /// Nobody else uses the entry: it is BUSY or not in a table.
    #[inline(always)]
    pub unsafe fn begin(&self, words: &F::Words) {
        // SAFETY: both lines are inside the entry, and ours.
        unsafe {
            F::write_line(self.base.as_ptr(), words);
            F::write_line(self.base.as_ptr().add(F::STRIDE), words);
        }
    }
}

/// One direction of an entry.
#[derive(Clone, Copy)]
pub struct LineRef(*mut Body);

macro_rules! word {
    ($(#[$doc:meta])* $get:ident, $set:ident, $field:ident) => {
        $(#[$doc])*
        #[must_use]
        #[inline(always)]
        pub fn $get(&self) -> u32 {
            // SAFETY: see `FlowRef::new`; an aligned word is read in one go.
            unsafe { ptr::read_volatile(ptr::addr_of!((*self.0).$field)) }
        }

        /// Writes it.
        #[inline(always)]
        pub fn $set(&self, value: u32) {
            // SAFETY: see `FlowRef::new`; an aligned word is written in one go.
            unsafe { ptr::write_volatile(ptr::addr_of_mut!((*self.0).$field), value) }
        }
    };
}

impl LineRef {
    word!(/// Jiffies of the last packet.
        last, set_last, last);
    word!(/// Seconds since boot at which the verdict expires; 0 = never.
        expiry, set_expiry, expiry);
    word!(/// First word of three whose meaning depends on the line: see [`Body`].
        a, set_a, a);
    word!(/// Second word.
        b, set_b, b);
    word!(/// Third word.
        c, set_c, c);

    /// The flag word.
    #[must_use]
    #[inline(always)]
    pub fn flags(&self) -> Flags {
        // SAFETY: see `FlowRef::new`.
        Flags(unsafe { ptr::read_volatile(ptr::addr_of!((*self.0).flags)) })
    }

    /// Writes the flag word.
    #[inline(always)]
    pub fn set_flags(&self, flags: Flags) {
        // SAFETY: see `FlowRef::new`.
        unsafe { ptr::write_volatile(ptr::addr_of_mut!((*self.0).flags), flags.0) }
    }

    /// Counts a packet.
    #[inline(always)]
    pub fn add(&self, packets: u64, bytes: u64) {
        // SAFETY: see `FlowRef::new`; the fields are aligned 64-bit words.
        unsafe {
            word::add(ptr::addr_of_mut!((*self.0).packets), packets);
            word::add(ptr::addr_of_mut!((*self.0).bytes), bytes);
        }
    }

    /// Wire segments counted.
    #[must_use]
    #[inline(always)]
    pub fn packets(&self) -> u64 {
        // SAFETY: see `FlowRef::new`.
        unsafe { ptr::read_volatile(ptr::addr_of!((*self.0).packets)) }
    }

    /// L3 bytes counted.
    #[must_use]
    #[inline(always)]
    pub fn bytes(&self) -> u64 {
        // SAFETY: see `FlowRef::new`.
        unsafe { ptr::read_volatile(ptr::addr_of!((*self.0).bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        let meta = Meta::new(7, 0x0123_4567, slot::LIVE);
        assert_eq!(
            (meta.generation(), meta.sequence(), meta.slot()),
            (7, 0x0023_4567, slot::LIVE)
        );
        let flags =
            Flags::new(0x12, State::ESTABLISHED, bits::ALLOW | bits::EGRESS, 8).with_filtered(true);
        assert_eq!(flags.state(), State::ESTABLISHED);
        assert!(flags.is_filtered());
        let flags = flags.with_state(State::TIME_WAIT).with_tcp(1);
        assert_eq!(
            (flags.tcp(), flags.state(), flags.verdict(), flags.reason()),
            (0x13, State::TIME_WAIT, 0x81, 8)
        );
        assert!(flags.is_filtered());
        assert_eq!(flags.with_filtered(false).with_verdict(2, 3).verdict(), 2);
        let proven = flags.with_proven().with_state(State::CUT);
        assert!(proven.is_proven() && proven.is_filtered() && !flags.is_proven());
        assert_eq!(proven.state(), State::CUT);
    }
}

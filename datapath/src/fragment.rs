//! Packets that come in fragments: the first one's ports are given to the others.
//!
//! A first fragment that passes is remembered under (scope, direction, addresses, protocol, identification); a
//! later one gets that tuple and goes the ordinary way, so that it is judged, counted and cut like any packet of its
//! flow. What does not fit together *poisons* the identification, because receivers differ in what they make of
//! overlapping fragments (RFC 1858, RFC 3128, RFC 5722): a first fragment without its whole header, a later one
//! that begins inside the header, a second first one with another tuple. A later fragment that nothing is known of
//! is dropped: nothing is queued here, so fragments that overtake their first one are lost and counted.
//!
//! When the last fragment has passed without a gap, the identification is forgotten: 16 bits are used again soon.

use core::ptr::{self, NonNull};

use crate::abi::{FragmentKey, FragmentValue, Loss};
use crate::drop_reason::DropReason;
use crate::ids::Direction;
use crate::packet::{Kind, Packet, Piece};
use crate::pipeline::{Action, Env, Workspace, process};
use crate::table::Tabled;

/// How long a first fragment teaches, in seconds. Fragments of one packet leave their sender at once.
pub const LIFETIME: u32 = 5;
/// How long an identification stays poisoned, in seconds: longer than Linux keeps fragments (`ipfrag_time`: 30).
pub const POISONED: u32 = 35;

/// The table of packets that come in fragments. It may displace whatever it likes: what is not found is dropped.
pub trait Fragments: Copy {
    /// What is remembered.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRef>;
    /// Remembers, in place of what was; `false` without room.
    fn remember(&self, key: &FragmentKey, value: &FragmentValue) -> bool;
    /// Forgets.
    fn forget(&self, key: &FragmentKey);
}

/// An entry that other CPUs write too.
#[derive(Clone, Copy, Debug)]
pub struct FragmentRef(NonNull<FragmentValue>);

impl FragmentRef {
    /// # Safety
    /// `value` must be valid for reads and writes while this lives; others may write it at the same time, in whole
    /// fields.
    #[must_use]
    #[inline(always)]
    pub const unsafe fn new(value: NonNull<FragmentValue>) -> Self {
        Self(value)
    }

    #[inline(always)]
    fn get(self) -> FragmentValue {
        // SAFETY: see `new`.
        unsafe { ptr::read_volatile(self.0.as_ptr()) }
    }

    #[inline(always)]
    fn advance(self, next: u32) {
        // SAFETY: see `new`.
        unsafe { ptr::write_volatile(&raw mut (*self.0.as_ptr()).next, next) }
    }

    #[inline(always)]
    fn poison(self, now: u32) {
        // SAFETY: see `new`.
        unsafe {
            ptr::write_volatile(&raw mut (*self.0.as_ptr()).born, now);
            ptr::write_volatile(&raw mut (*self.0.as_ptr()).poisoned, 1);
        }
    }
}

/// Judges what the parser made of a packet: the way that every packet goes, and for whole ones nothing but
/// [`process`].
///
/// # Errors
/// The drop reason of a packet that was not understood or belongs to no packet that is known; where nothing is
/// enforced it passes nevertheless.
#[inline(always)]
pub fn judge<F: Tabled, E: Env<F> + Fragments>(
    env: E,
    w: &mut Workspace<F>,
    direction: Direction,
    parsed: Result<(), DropReason>,
) -> Result<Action, DropReason> {
    let whole = matches!(w.packet.piece, Piece::Whole);
    if whole {
        parsed?;
    } else {
        let reason = match parsed {
            Ok(()) => DropReason::None,
            Err(reason) => reason,
        };
        match before(env, w, direction, reason) {
            DropReason::None => {}
            reason => return Err(reason),
        }
    }
    let action = process(env, w, direction);
    if !whole {
        after(env, w, direction, matches!(action, Action::Pass));
    }
    Ok(action)
}

#[inline(always)]
fn key<F: Tabled>(packet: &Packet<F::Addr>, scope: u16, direction: Direction) -> FragmentKey {
    FragmentKey {
        src: F::mapped(&packet.src),
        dst: F::mapped(&packet.dst),
        id: packet.fragment.id,
        scope,
        protocol: packet.fragment.protocol,
        direction: direction as u8,
    }
}

/// Learns from a first fragment, teaches a later one. `parsed` and the answer are [`DropReason::None`] when all is
/// well.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn before<F: Tabled, E: Env<F> + Fragments>(
    env: E,
    w: &mut Workspace<F>,
    direction: Direction,
    parsed: DropReason,
) -> DropReason {
    let Some(config) = env.config() else {
        return DropReason::NoPolicy;
    };
    let (now, hz) = (env.jiffies(), config.hz);
    let packet = &mut w.packet;
    let key = key::<F>(packet, config.endpoint as u16, direction);
    let known = match env.fragment(&key) {
        Some(entry) if is_alive(&entry.get(), now, hz) => Some(entry),
        _ => None,
    };
    if let Piece::Later = packet.piece {
        if !matches!(parsed, DropReason::None) {
            return parsed;
        }
        return match known {
            Some(entry) => teach(packet, entry, now),
            None => DropReason::Fragment,
        };
    }
    if !matches!(parsed, DropReason::None) {
        let poison = FragmentValue {
            born: now,
            poisoned: 1,
            ..FragmentValue::default()
        };
        // Without room for the poison nothing is remembered either, so that all the same nothing passes.
        if !env.remember(&key, &poison) {
            env.lose(Loss::FragmentTableFull);
        }
        return parsed;
    }
    let value = FragmentValue {
        born: now,
        next: u32::from(packet.fragment.length),
        headers: packet.fragment.headers,
        src_port: packet.src_port,
        dst_port: packet.dst_port,
        policy_port: packet.policy_port,
        protocol: packet.protocol,
        reply_only: packet.reply_only as u8,
        poisoned: 0,
        pad: 0,
    };
    if let Some(entry) = known {
        let old = entry.get();
        if old.poisoned == 0 && says_the_same(&old, &value) {
            return DropReason::None;
        }
        entry.poison(now);
        return DropReason::FragmentInvalid;
    }
    if env.remember(&key, &value) {
        return DropReason::None;
    }
    env.lose(Loss::FragmentTableFull);
    DropReason::FragmentTableFull
}

/// Gives a later fragment the tuple of its first one.
#[inline(always)]
fn teach<A>(packet: &mut Packet<A>, entry: FragmentRef, now: u32) -> DropReason {
    let value = entry.get();
    if value.poisoned != 0 {
        return DropReason::FragmentInvalid;
    }
    if packet.fragment.offset < value.headers {
        entry.poison(now);
        return DropReason::FragmentInvalid;
    }
    packet.protocol = value.protocol;
    packet.src_port = value.src_port;
    packet.dst_port = value.dst_port;
    packet.policy_port = value.policy_port;
    packet.reply_only = value.reply_only != 0;
    packet.kind = Kind::Flow;
    // The first fragment's flags have moved the connection already.
    (packet.tcp_flags, packet.seq, packet.ack) = (0, 0, 0);
    DropReason::None
}

/// What was remembered of a first fragment that did not pass teaches nobody; what is complete is forgotten.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn after<F: Tabled, E: Env<F> + Fragments>(
    env: E,
    w: &Workspace<F>,
    direction: Direction,
    passed: bool,
) {
    let Some(config) = env.config() else {
        return;
    };
    let packet = &w.packet;
    let key = key::<F>(packet, config.endpoint as u16, direction);
    let Some(entry) = env.fragment(&key) else {
        return;
    };
    let value = entry.get();
    if value.poisoned != 0 {
        return;
    }
    if let Piece::First = packet.piece {
        if !passed {
            env.forget(&key);
        }
        return;
    }
    if !passed || value.next != u32::from(packet.fragment.offset) {
        return;
    }
    if packet.fragment.last {
        env.forget(&key);
    } else {
        entry.advance(value.next + u32::from(packet.fragment.length));
    }
}

#[inline(always)]
const fn is_alive(value: &FragmentValue, now: u32, hz: u32) -> bool {
    let seconds = if value.poisoned != 0 {
        POISONED
    } else {
        LIFETIME
    };
    let age = now.wrapping_sub(value.born);
    // Another CPU may be a tick ahead.
    age <= seconds.wrapping_mul(hz) || age > i32::MAX as u32
}

/// A repeated first fragment is the same packet; anything else is two packets under one name.
#[inline(always)]
const fn says_the_same(a: &FragmentValue, b: &FragmentValue) -> bool {
    a.headers == b.headers
        && a.src_port == b.src_port
        && a.dst_port == b.dst_port
        && a.policy_port == b.policy_port
        && a.protocol == b.protocol
}

//! What the agent is told: new and closed flows, and denials (aggregated; only some are announced).

use crate::abi::{DenyKey, Event, event_kind, verdict};
use crate::drop_reason::DropReason;
use crate::flow::{FlowRef, bits};
use crate::ids::protocol;
use crate::negative;
use crate::table::Tabled;
use crate::verdict::Decision;

use super::{Aggregated, Denial, Env, Workspace, decision_bits};

/// Announces the flow that the workspace describes.
#[inline(always)]
pub fn opened_now<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>) {
    let ifindex = env.ifindex();
    let w = &*w;
    env.emit(|event| {
        let (packets, bytes) = w.weight();
        event.kind = event_kind::NEW;
        event.direction = w.query.direction as u8;
        event.verdict = w.verdict_bits;
        event.reason = w.reason;
        event.state = w.state;
        event.tcp_flags = w.packet.tcp_flags;
        event.generation = w.now.generation;
        event.rule = w.decision.rule;
        event.draft_rule = w.decision.draft_rule;
        event.identity = w.query.peer.identity;
        orient(event, w, w.from_initiator);
        event.sequence = w.sequence & 0x00ff_ffff;
        event.packets = if w.from_initiator {
            [packets, 0]
        } else {
            [0, packets]
        };
        event.bytes = if w.from_initiator {
            [bytes, 0]
        } else {
            [0, bytes]
        };
        event.first = w.now.jiffies;
        event.last = w.now.jiffies;
        event.cookie = 0;
        event.ifindex = ifindex;
        event.opening = w.packet.is_opening() as u32;
        event.pad = 0;
    });
}

/// Announces the end of an entry; false when the ring was full.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub(super) fn close<F: Tabled, E: Env<F>>(env: E, entry: FlowRef<F>) -> bool {
    let ifindex = env.ifindex();
    env.emit(|event| {
        let tail = entry.tail();
        let lo = entry.line(true);
        let hi = entry.line(false);
        let flags = lo.flags();
        let meta = entry.meta();
        let initiator_is_lo = flags.verdict() & bits::INITIATOR_HI == 0;
        let requests = entry.line(initiator_is_lo);
        let answers = entry.line(!initiator_is_lo);
        event.kind = event_kind::CLOSE;
        event.direction = if flags.verdict() & bits::EGRESS != 0 {
            1
        } else {
            0
        };
        event.verdict = flags.verdict();
        event.reason = flags.reason();
        event.state = flags.state().0;
        event.tcp_flags = flags.tcp() | hi.flags().tcp();
        event.generation = meta.generation();
        event.rule = lo.a();
        event.draft_rule = lo.b();
        event.identity = lo.c();
        event.protocol = tail.protocol();
        event.family = F::VERSION;
        event.initiator = octets(entry.end(initiator_is_lo));
        event.responder = octets(entry.end(!initiator_is_lo));
        (event.initiator_port, event.responder_port) = if initiator_is_lo {
            (tail.lo_port(), tail.hi_port())
        } else {
            (tail.hi_port(), tail.lo_port())
        };
        event.sequence = meta.sequence();
        event.packets = [requests.packets(), answers.packets()];
        event.bytes = [requests.bytes(), answers.bytes()];
        event.first = hi.a();
        event.last = later(lo.last(), hi.last());
        event.cookie = u64::from(hi.b()) | (u64::from(hi.c()) << 32);
        event.ifindex = ifindex;
        event.opening = 0;
        event.pad = 0;
    })
}

/// Counts, aggregates and perhaps announces the denial that the workspace describes.
#[inline(always)]
pub fn deny_now<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>, opening: bool) {
    let (packets, bytes) = w.weight();
    env.count(w.decision.reason, packets, bytes);
    describe(w, opening);
    let told = &mut w.told;
    *told = Aggregated::default();
    let mut slot = None;
    if opening && w.denied.protocol == protocol::TCP && is_lasting(&w.decision) {
        // What was counted there comes first, so that the aggregate knows how many packets it has.
        slot = negative::settle(env, &w.denied);
    }
    env.deny(&w.denied, &w.denial, told);
    if told.again
        && let Some(slot) = slot
    {
        negative::remember(env, slot, &w.denied, &w.denial, told);
    }
    if told.announce {
        announce_denial(env, w, opening);
    }
}

/// Writes the key of the denial's aggregate, and the denial.
#[inline(always)]
fn describe<F: Tabled>(w: &mut Workspace<F>, opening: bool) {
    let (packets, bytes) = w.weight();
    w.denied = DenyKey {
        initiator: F::mapped(&w.packet.src),
        responder: F::mapped(&w.packet.dst),
        rule: w.decision.rule,
        port: w.packet.policy_port.to_be_bytes(),
        protocol: w.packet.protocol,
        reason: w.decision.reason as u8,
        direction: w.direction as u8,
        family: F::VERSION,
        opening: opening as u8,
        pad: 0,
    };
    w.denial = Denial {
        packets,
        bytes,
        now: w.now.jiffies,
        identity: w.query.peer.identity,
        generation: w.now.generation,
        draft_rule: w.decision.draft_rule,
        draft: if w.decision.draft {
            verdict::ALLOW as u32
        } else {
            verdict::DENY as u32
        },
        source_port: w.packet.src_port,
    };
}

/// Whether the same SYN would be denied again for as long as content and failsafes stay: not for want of room, and not
/// until some moment only.
#[inline(always)]
const fn is_lasting(decision: &Decision) -> bool {
    decision.expiry == 0
        && !matches!(
            decision.reason,
            DropReason::TableFull | DropReason::Contended
        )
}

#[cfg_attr(target_arch = "bpf", inline(never))]
fn announce_denial<F: Tabled, E: Env<F>>(env: E, w: &Workspace<F>, opening: bool) {
    let ifindex = env.ifindex();
    // Who was not let out; what comes in has no socket yet.
    let cookie = env.cookie();
    env.emit(|event| {
        let (packets, bytes) = w.weight();
        event.kind = event_kind::DENY;
        event.direction = w.direction as u8;
        event.verdict = decision_bits(&w.decision);
        event.reason = w.decision.reason as u8;
        event.state = 0;
        event.tcp_flags = w.packet.tcp_flags;
        event.generation = w.now.generation;
        event.rule = w.decision.rule;
        event.draft_rule = w.decision.draft_rule;
        event.identity = w.query.peer.identity;
        event.protocol = w.packet.protocol;
        event.family = F::VERSION;
        event.initiator = octets(F::mapped_words(&w.packet.src));
        event.responder = octets(F::mapped_words(&w.packet.dst));
        event.initiator_port = w.packet.src_port;
        event.responder_port = w.packet.policy_port;
        event.sequence = 0;
        event.packets = [packets, 0];
        event.bytes = [bytes, 0];
        event.first = w.now.jiffies;
        event.last = w.now.jiffies;
        event.cookie = cookie;
        event.ifindex = ifindex;
        event.opening = opening as u32;
        event.pad = 0;
    });
}

/// The later of two jiffies values, across a wrap.
#[inline(always)]
const fn later(a: u32, b: u32) -> u32 {
    if (a.wrapping_sub(b) as i32) >= 0 {
        a
    } else {
        b
    }
}

/// Writes the tuple as the initiator sees it.
#[inline(always)]
fn orient<F: Tabled>(event: &mut Event, w: &Workspace<F>, from_initiator: bool) {
    let packet = &w.packet;
    let icmp = matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6);
    event.protocol = packet.protocol;
    event.family = F::VERSION;
    if from_initiator {
        event.initiator = octets(F::mapped_words(&packet.src));
        event.responder = octets(F::mapped_words(&packet.dst));
        event.initiator_port = packet.src_port;
        event.responder_port = if icmp {
            packet.policy_port
        } else {
            packet.dst_port
        };
    } else {
        event.initiator = octets(F::mapped_words(&packet.dst));
        event.responder = octets(F::mapped_words(&packet.src));
        event.initiator_port = packet.dst_port;
        event.responder_port = packet.src_port;
    }
}

/// An address as it stands in a record.
#[inline(always)]
const fn octets(words: [u64; 2]) -> [u8; 16] {
    // SAFETY: any bytes are an address.
    unsafe { core::mem::transmute(words) }
}

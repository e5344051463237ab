//! A packet of a flow that is tracked: state, counters, and the question asked again when policy moved on.

use crate::abi::Config;
use crate::conntrack::{State, datagram_step, tcp_step};
use crate::drop_reason::DropReason;
use crate::flow::{Flags, FlowRef, LineRef, Meta, bits, slot};
use crate::ids::{Direction, protocol};
use crate::packet::Family;
use crate::verdict::Decision;

use super::{Env, Workspace, ask, decide_into, decision_bits, filter_back, notice};

/// What became of the packet.
pub(super) enum Existing {
    Pass,
    Drop,
    /// The entry is over; a new instance takes its place.
    Replace,
}

#[inline(always)]
pub(super) fn pass<F: Family, E: Env<F>>(
    env: E,
    w: &mut Workspace<F>,
    entry: FlowRef<F>,
    config: &Config,
) -> Existing {
    let meta = entry.meta();
    let line = entry.line(w.from_lo);
    let mut flags = line.flags();
    let state = flags.state();
    if is_over(w, entry, line, state, meta, config) {
        w.sequence = meta.sequence().wrapping_add(1);
        return Existing::Replace;
    }
    // A packet that was under way while another CPU cut the flow may have written its own line's word back: the cut on
    // the other line still counts.
    let other = entry.line(!w.from_lo).flags();
    if other.state() == State::CUT && state != State::CUT {
        line.set_flags(
            flags
                .with_state(State::CUT)
                .with_verdict(other.verdict(), other.reason()),
        );
        flags = line.flags();
    }
    if flags.state() != State::CUT
        && must_ask_again::<F, E>(env, meta, line.expiry(), w.now.generation)
    {
        if !reevaluate(env, w, entry) {
            return Existing::Drop;
        }
        flags = line.flags();
    }
    if !w.now.learning {
        // A cut flow keeps its reason in the entry.
        if flags.verdict() & bits::ALLOW == 0 {
            drop_packet(env, w, entry, flags.reason());
            return Existing::Drop;
        }
        if flags.is_filtered() {
            drop_packet(env, w, entry, DropReason::Filter as u8);
            return Existing::Drop;
        }
    }
    advance(env, w, entry, flags);
    let (packets, bytes) = w.weight();
    line.add(packets, bytes);
    line.set_last(w.now.jiffies);
    Existing::Pass
}

/// Idle beyond its timeout, or closed and asked for anew.
#[inline(always)]
fn is_over<F: Family>(
    w: &Workspace<F>,
    entry: FlowRef<F>,
    line: LineRef,
    state: State,
    meta: Meta,
    config: &Config,
) -> bool {
    if state.is_closed()
        && w.packet.is_opening()
        && (w.packet.protocol == protocol::TCP || meta.generation() != w.now.generation)
    {
        return true;
    }
    let timeout = match config.timeouts.get((state.0 & 15) as usize) {
        Some(timeout) => *timeout,
        None => 0,
    };
    // The other direction's line is only looked at when this one has been silent for the whole timeout.
    timeout != 0
        && is_older(w.now.jiffies, line.last(), timeout)
        && is_older(w.now.jiffies, entry.line(!w.from_lo).last(), timeout)
}

/// Whether `last` is more than `timeout` ago. A stamp of the next tick, by a CPU that is ahead of this one, is no age at all.
#[inline(always)]
const fn is_older(now: u32, last: u32, timeout: u32) -> bool {
    let age = now.wrapping_sub(last);
    age > timeout && age <= i32::MAX as u32
}

#[inline(always)]
fn must_ask_again<F: Family, E: Env<F>>(env: E, meta: Meta, expiry: u32, generation: u32) -> bool {
    // An entry that another CPU has judged under a newer content is not asked again under an older one.
    (generation.wrapping_sub(meta.generation()) as i32) > 0
        || (expiry != 0 && env.boot_ns() / 1_000_000_000 >= u64::from(expiry))
}

/// Moves the connection state; a flow that ends is announced.
#[inline(always)]
fn advance<F: Family, E: Env<F>>(env: E, w: &mut Workspace<F>, entry: FlowRef<F>, flags: Flags) {
    let initiator_is_lo = flags.verdict() & bits::INITIATOR_HI == 0;
    let from_initiator = w.from_lo == initiator_is_lo;
    let state = flags.state();
    let next = if w.packet.protocol == protocol::TCP {
        tcp_step(state, from_initiator, w.packet.tcp_flags)
    } else {
        datagram_step(state, from_initiator)
    };
    let seen = flags.with_tcp(w.packet.tcp_flags);
    if next == state {
        if seen != flags {
            entry.line(w.from_lo).set_flags(seen);
        }
        return;
    }
    entry.line(w.from_lo).set_flags(seen.with_state(next));
    let other = entry.line(!w.from_lo);
    if other.flags().state() != State::CUT {
        other.set_flags(other.flags().with_state(next));
    }
    if next.is_closed() && !state.is_closed() {
        notice::close(env, w, entry);
    }
}

/// Asks policy again, in the flow's original direction. False when the flow was cut and the packet dropped.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn reevaluate<F: Family, E: Env<F>>(env: E, w: &mut Workspace<F>, entry: FlowRef<F>) -> bool {
    let lo = entry.line(true);
    let old = lo.flags().verdict();
    let from_initiator = w.from_lo == (old & bits::INITIATOR_HI == 0);
    ask(
        env,
        w,
        from_initiator,
        Direction::from_u8(old & bits::EGRESS),
    );
    decide_into(env, w, false);
    let lapsed = lo.expiry() != 0 && env.boot_ns() / 1_000_000_000 >= u64::from(lo.expiry());
    let by_rule = old & bits::KEEP != 0 && w.query.peer.identity == lo.c() && !lapsed;
    // A flow that arming would cut is kept once and reported; the content after that cuts it.
    let by_arming = old & bits::ADOPTED != 0 && lo.flags().state().is_proven();
    let kept = !w.decision.allow && !w.decision.hard && (by_rule || by_arming);
    let mut verdict = (old & (bits::INITIATOR_HI | bits::EGRESS)) | decision_bits(&w.decision);
    if w.now.learning {
        verdict |= old & bits::ADOPTED;
    }
    lo.set_a(w.decision.rule);
    lo.set_b(w.decision.draft_rule);
    lo.set_c(w.query.peer.identity);
    let meta = Meta::new(w.now.generation, entry.meta().sequence(), slot::LIVE);
    if w.decision.allow || kept || w.now.learning {
        if kept && by_rule {
            verdict |= bits::KEEP;
            // What is kept is kept for as long as the rule that said so would have held.
            w.decision.expiry = lo.expiry();
        }
        let reason = if w.decision.allow {
            w.decision.reason
        } else {
            w.decision.evaluated_reason
        };
        restamp(env, w, entry, verdict | bits::ALLOW, reason as u8);
        entry.set_meta(meta);
        return true;
    }
    let reason = cut_reason(&w.decision, lapsed) as u8;
    cut(lo, verdict, reason);
    cut(entry.line(false), verdict, reason);
    entry.set_meta(meta);
    notice::close(env, w, entry);
    drop_packet(env, w, entry, reason);
    false
}

/// The reason of a cut says that something changed; isolation and filters name themselves.
#[inline(always)]
const fn cut_reason(decision: &Decision, lapsed: bool) -> DropReason {
    match decision.evaluated_reason {
        DropReason::DefaultDeny | DropReason::PolicyDeny if lapsed => DropReason::Expired,
        DropReason::DefaultDeny | DropReason::PolicyDeny | DropReason::None => {
            DropReason::PolicyChanged
        }
        other => other,
    }
}

#[inline(always)]
fn cut(line: LineRef, verdict: u8, reason: u8) {
    line.set_expiry(0);
    line.set_flags(
        line.flags()
            .with_state(State::CUT)
            .with_verdict(verdict & !bits::ALLOW, reason),
    );
}

/// Writes verdict, reason, expiry and the filter mark of both lines.
#[inline(always)]
fn restamp<F: Family, E: Env<F>>(
    env: E,
    w: &mut Workspace<F>,
    entry: FlowRef<F>,
    verdict: u8,
    reason: u8,
) {
    filter_back(env, w);
    let initiator_is_lo = verdict & bits::INITIATOR_HI == 0;
    let requests = entry.line(initiator_is_lo);
    let answers = entry.line(!initiator_is_lo);
    requests.set_flags(
        requests
            .flags()
            .with_verdict(verdict, reason)
            .with_filtered(false),
    );
    answers.set_flags(
        answers
            .flags()
            .with_verdict(verdict, reason)
            .with_filtered(w.back_filtered),
    );
    requests.set_expiry(w.decision.expiry);
    answers.set_expiry(w.decision.expiry);
}

/// Drops a packet of an entry that does not pass.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn drop_packet<F: Family, E: Env<F>>(env: E, w: &mut Workspace<F>, entry: FlowRef<F>, reason: u8) {
    let lo = entry.line(true);
    let reason = DropReason::from_u8(reason).unwrap_or(DropReason::PolicyChanged);
    w.decision = Decision::hard_deny(reason, lo.a());
    w.decision.draft = lo.flags().verdict() & bits::DRAFT_DENY == 0;
    w.decision.draft_rule = lo.b();
    w.query.peer.identity = lo.c();
    notice::deny(env, w, false);
}

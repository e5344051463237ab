//! A packet of a flow that is tracked: state, counters, and the question asked again when policy moved on. Everything
//! here happens under the lock of the entry's set.

use crate::abi::{Config, Loss};
use crate::conntrack::{State, datagram_step, tcp_step, tcp_unproven};
use crate::drop_reason::DropReason;
use crate::flow::{Flags, FlowRef, LineRef, Meta, bits, slot};
use crate::ids::{Direction, protocol};
use crate::packet::tcp;
use crate::table::{self, Tabled, bucket_word};
use crate::verdict::Decision;

use super::{Env, Workspace, ask, decision_bits, filter_back, notice};

/// What became of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Existing {
    /// It passes and was counted.
    Pass = 0,
    /// It is to be dropped for the reason in the workspace.
    Drop,
    /// The entry is over; a new instance takes its place.
    Replace,
}

/// Looks for the packet's entry and follows it; `None` when there is none. An entry that is over is ended here.
#[inline(always)]
pub(super) fn follow<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>) -> Option<Existing> {
    let words = F::words(&w.key);
    if let Some(entry) = table::find::<F, E>(env, w.spot, &words) {
        let outcome = env.follow(w, entry);
        if let Existing::Replace = outcome {
            table::retire::<F, E>(env, w.spot.set, entry, w.now.jiffies);
        }
        return Some(outcome);
    }
    if !table::has_spilled::<F, E>(env, w.spot.set) {
        return None;
    }
    let entry = env.spilled(&w.key)?;
    let outcome = env.follow(w, entry);
    if let Existing::Replace = outcome {
        unspill(env, w, entry);
    }
    Some(outcome)
}

/// The packet's entry, wherever it is.
#[inline(always)]
pub(super) fn lookup<F: Tabled, E: Env<F>>(env: E, w: &Workspace<F>) -> Option<FlowRef<F>> {
    let words = F::words(&w.key);
    match table::find::<F, E>(env, w.spot, &words) {
        Some(entry) => Some(entry),
        None if table::has_spilled::<F, E>(env, w.spot.set) => env.spilled(&w.key),
        None => None,
    }
}

/// Takes a spilled entry out; its last counters leave with a notice, or are lost and counted.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn unspill<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>, entry: FlowRef<F>) {
    if !notice::close(env, entry) {
        env.lose(Loss::ReplacedUnread);
    }
    forget(env, entry);
    if env.unspill(&w.key) {
        table::spilled_one_less::<F, E>(env, w.spot.set);
    }
}

/// Takes an entry that goes away off its peer's counter.
#[inline(always)]
pub(super) fn forget<F: Tabled, E: Env<F>>(env: E, entry: FlowRef<F>) {
    let Some(tables) = env.tables() else {
        return;
    };
    let mut change = bucket_word::ENTRY;
    if !entry.line(true).flags().is_proven() {
        change += bucket_word::UNPROVEN;
    }
    table::count::<F, E>(env, table::bucket_of(tables, entry), change.wrapping_neg());
}

/// Moves an entry by the packet in the workspace: what [`Env::follow`] does. The caller holds the lock.
#[inline(always)]
pub fn follow_now<F: Tabled, E: Env<F>>(
    env: E,
    w: &mut Workspace<F>,
    entry: FlowRef<F>,
) -> Existing {
    let Some(config) = env.config() else {
        return Existing::Drop;
    };
    let meta = entry.meta();
    let line = entry.line(w.from_lo);
    let mut flags = line.flags();
    if is_over(w, entry, flags.state(), meta, config) {
        return Existing::Replace;
    }
    if flags.state() != State::CUT
        && must_ask_again::<F, E>(env, meta, entry.line(true).expiry(), w.now.generation)
    {
        if !reevaluate(env, w, entry) {
            return Existing::Drop;
        }
        flags = line.flags();
    }
    if !w.now.learning {
        // A cut flow keeps its reason in the entry.
        if flags.verdict() & bits::ALLOW == 0 {
            refuse(w, entry, flags.reason());
            return Existing::Drop;
        }
        if flags.is_filtered() {
            refuse(w, entry, DropReason::Filter as u8);
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
fn is_over<F: Tabled>(
    w: &Workspace<F>,
    entry: FlowRef<F>,
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
    is_idle(w.now.jiffies, entry, state, config)
}

/// Whether both directions have been silent for longer than the state's timeout.
#[inline(always)]
pub(super) fn is_idle<F: Tabled>(
    now: u32,
    entry: FlowRef<F>,
    state: State,
    config: &Config,
) -> bool {
    let timeout = match config.timeouts.get((state.0 & 15) as usize) {
        Some(timeout) => *timeout,
        None => 0,
    };
    timeout != 0
        && is_older(now, entry.line(true).last(), timeout)
        && is_older(now, entry.line(false).last(), timeout)
}

/// Whether `last` is more than `timeout` ago. A stamp of the next tick, by a CPU that is ahead of this one, is no age at all.
#[inline(always)]
const fn is_older(now: u32, last: u32, timeout: u32) -> bool {
    let age = now.wrapping_sub(last);
    age > timeout && age <= i32::MAX as u32
}

#[inline(always)]
fn must_ask_again<F: Tabled, E: Env<F>>(env: E, meta: Meta, expiry: u32, generation: u32) -> bool {
    // An entry that another CPU has judged under a newer content is not asked again under an older one.
    (generation.wrapping_sub(meta.generation()) as i32) > 0
        || (expiry != 0 && env.boot_ns() / 1_000_000_000 >= u64::from(expiry))
}

/// Moves the connection state; a flow that ends is announced.
#[inline(always)]
fn advance<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>, entry: FlowRef<F>, flags: Flags) {
    let initiator_is_lo = flags.verdict() & bits::INITIATOR_HI == 0;
    let from_initiator = w.from_lo == initiator_is_lo;
    let state = flags.state();
    let mut proven = flags.is_proven();
    let next = if w.packet.protocol != protocol::TCP {
        let next = datagram_step(state, from_initiator);
        proven = proven || next.is_proven();
        next
    } else if proven {
        tcp_step(state, from_initiator, w.packet.tcp_flags)
    } else {
        let answered = entry.line(!initiator_is_lo).flags().tcp() & tcp::SYN != 0;
        let isn = answered.then(|| entry.line(false).expiry());
        let step = tcp_unproven(
            state,
            from_initiator,
            w.packet.tcp_flags,
            (w.packet.seq, w.packet.ack),
            isn,
        );
        if let Some(isn) = step.isn {
            entry.line(false).set_expiry(isn);
            note_cookie(env, entry);
        }
        proven = step.proven;
        step.state
    };
    let mut seen = flags.with_tcp(w.packet.tcp_flags).with_state(next);
    if proven && !flags.is_proven() {
        seen = seen.with_proven();
        prove(env, entry);
    }
    if seen == flags {
        return;
    }
    let other = entry.line(!w.from_lo);
    if next != state || proven != flags.is_proven() {
        let mut word = other.flags().with_state(next);
        if proven {
            word = word.with_proven();
        }
        other.set_flags(word);
    }
    entry.line(w.from_lo).set_flags(seen);
    if next.is_closed() && !state.is_closed() {
        notice::close(env, entry);
    }
}

/// The responder's first answer may know the socket that the initiator's first packet did not know yet.
#[inline(always)]
fn note_cookie<F: Tabled, E: Env<F>>(env: E, entry: FlowRef<F>) {
    let line = entry.line(false);
    if line.b() == 0 && line.c() == 0 {
        let cookie = env.cookie();
        line.set_b(cookie as u32);
        line.set_c((cookie >> 32) as u32);
    }
}

/// From now on the entry is never displaced, and its packets need no lock.
#[inline(always)]
fn prove<F: Tabled, E: Env<F>>(env: E, entry: FlowRef<F>) {
    entry.line(false).set_expiry(entry.line(true).expiry());
    if let Some(tables) = env.tables() {
        let change = bucket_word::UNPROVEN.wrapping_neg();
        table::count::<F, E>(env, table::bucket_of(tables, entry), change);
    }
}

/// Asks policy again, in the flow's original direction. False when the flow was cut and the packet dropped.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn reevaluate<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>, entry: FlowRef<F>) -> bool {
    let lo = entry.line(true);
    let old = lo.flags().verdict();
    let from_initiator = w.from_lo == (old & bits::INITIATOR_HI == 0);
    ask(
        env,
        w,
        from_initiator,
        Direction::from_u8(old & bits::EGRESS),
    );
    env.decide(w, false);
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
    notice::close(env, entry);
    refuse(w, entry, reason);
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
fn restamp<F: Tabled, E: Env<F>>(
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
    let lo = entry.line(true);
    lo.set_expiry(w.decision.expiry);
    if lo.flags().is_proven() {
        entry.line(false).set_expiry(w.decision.expiry);
    }
}

/// Writes down why a packet of an entry does not pass; the caller tells it when the lock is free again.
#[inline(always)]
fn refuse<F: Tabled>(w: &mut Workspace<F>, entry: FlowRef<F>, reason: u8) {
    let lo = entry.line(true);
    let reason = DropReason::from_u8(reason).unwrap_or(DropReason::PolicyChanged);
    w.decision = Decision::hard_deny(reason, lo.a());
    w.decision.draft = lo.flags().verdict() & bits::DRAFT_DENY == 0;
    w.decision.draft_rule = lo.b();
    w.query.peer.identity = lo.c();
}

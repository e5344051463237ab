//! The way of a packet: active word → parse → conntrack → policy → entry, counters, event.
//!
//! Generic over [`Env`], which is maps and helpers in the kernel and ordinary collections on the host, so
//! that the same packets give the same verdicts in both.

use crate::abi::{
    ActiveWord, AddrValue, Config, DenyKey, Event, Loss, addr_flags, config_flags, event_kind,
    panic, verdict,
};
use crate::conntrack::{State, datagram_step, tcp_step};
use crate::drop_reason::DropReason;
use crate::flow::{FILTERED, Flags, FlowRef, Meta, bits, slot};
use crate::ids::{Direction, protocol};
use crate::packet::{Family, Kind, Packet, canonical, tcp};
use crate::verdict::{Decision, PolicyLookup, Query, decide, filtered};

/// What a hook does with the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// On to the next program or the stack.
    Pass,
    /// Gone.
    Drop,
}

/// An entry that could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InsertError {
    /// Another CPU made it first.
    Exists,
    /// No room.
    Full,
}

/// A denial to be aggregated and, perhaps, announced.
#[derive(Clone, Copy)]
pub struct Denial {
    /// Wire segments.
    pub packets: u64,
    /// L3 bytes.
    pub bytes: u64,
    /// Jiffies.
    pub now: u32,
    /// Peer's identity.
    pub identity: u32,
    /// Generation that denied.
    pub generation: u32,
    /// Draft rule.
    pub draft_rule: u32,
    /// Draft verdict.
    pub draft: u32,
    /// Source port of the packet.
    pub source_port: u16,
}

/// Maps, clocks and output.
pub trait Env<F: Family> {
    /// Look-ups in one slot's content.
    type Policy: PolicyLookup;

    /// Settings; `None` only if the map itself is missing.
    fn config(&self) -> Option<&Config>;
    /// The active word.
    fn active(&self) -> ActiveWord;
    /// Low 32 bits of jiffies.
    fn jiffies(&self) -> u32;
    /// Nanoseconds since boot.
    fn boot_ns(&self) -> u64;
    /// The content of a slot.
    fn policy(&self, slot: u32) -> Self::Policy;
    /// Binding of an address in a slot's content; unknown on a miss.
    fn binding(&self, slot: u32, addr: &F::Addr) -> AddrValue;
    /// The entry of a flow.
    fn find(&self, key: &F::Key) -> Option<FlowRef>;
    /// Makes an entry that `fill` has written; `replace` overwrites the one that is there.
    ///
    /// # Errors
    /// When another CPU was first, or there is no room.
    fn insert(
        &self,
        key: &F::Key,
        replace: bool,
        fill: impl FnOnce(&mut F::Flow),
    ) -> Result<(), InsertError>;
    /// Sends a notice; a full ring is counted.
    fn emit(&self, fill: impl FnOnce(&mut Event)) -> bool;
    /// Adds to the aggregate of a key; true when it should be announced.
    fn deny(&self, fill: impl FnOnce(&mut DenyKey), denial: &Denial) -> bool;
    /// Counts by drop reason.
    fn count(&self, reason: DropReason, packets: u64, bytes: u64);
    /// Counts a lost record.
    fn lose(&self, cause: Loss);
    /// Device of the packet.
    fn ifindex(&self) -> u32;
    /// Cookie of the packet's socket; 0 when unknown.
    fn cookie(&self) -> u64;
}

/// What counts for this packet.
#[derive(Clone, Copy)]
struct Now {
    generation: u32,
    slot: u32,
    learning: bool,
    jiffies: u32,
    panic: u32,
    endpoint: u32,
}

/// Judges a parsed packet at a hook and accounts for it.
#[inline(always)]
pub fn process<F: Family, E: Env<F>>(
    env: &E,
    packet: &Packet<F::Addr>,
    direction: Direction,
) -> Action {
    let Some(config) = env.config() else {
        return Action::Drop;
    };
    let word = env.active();
    if word.is_empty() {
        return no_policy(env, packet);
    }
    let (generation, active_slot, _) = if word.is_pending() {
        word.effective(env.boot_ns() / 1_000_000_000)
    } else {
        (word.generation(), word.slot(), false)
    };
    let now = Now {
        generation,
        slot: active_slot,
        learning: word.is_learning() || config.panic == panic::OPEN,
        jiffies: env.jiffies(),
        panic: config.panic,
        endpoint: config.endpoint,
    };
    match packet.kind {
        Kind::LinkLocalControl => {
            env.count(
                DropReason::None,
                u64::from(packet.packets),
                u64::from(packet.bytes),
            );
            Action::Pass
        }
        Kind::IcmpError => icmp_error::<F, E>(env, packet, direction, &now),
        Kind::Flow => flow::<F, E>(env, packet, direction, &now, config),
    }
}

/// Nothing was ever activated: unknown denies. The agent activates before it attaches, so this is a broken map.
#[inline(always)]
fn no_policy<F: Family, E: Env<F>>(env: &E, packet: &Packet<F::Addr>) -> Action {
    if let Kind::LinkLocalControl = packet.kind {
        return Action::Pass;
    }
    env.count(
        DropReason::NoPolicy,
        u64::from(packet.packets),
        u64::from(packet.bytes),
    );
    Action::Drop
}

#[inline(always)]
fn flow<F: Family, E: Env<F>>(
    env: &E,
    packet: &Packet<F::Addr>,
    direction: Direction,
    now: &Now,
    config: &Config,
) -> Action {
    let (ends, from_lo) =
        canonical::<F>(&packet.src, &packet.dst, packet.src_port, packet.dst_port);
    let key = F::key(ends, packet.protocol, now.endpoint as u16);
    if now.panic == panic::CLOSE {
        return judge_only::<F, E>(env, packet, direction, now);
    }
    let mut replace = None;
    if let Some(entry) = env.find(&key) {
        match existing::<F, E>(env, &entry, packet, direction, from_lo, now, config) {
            Existing::Pass => return Action::Pass,
            Existing::Drop => return Action::Drop,
            Existing::Replace(sequence) => replace = Some(sequence),
        }
    }
    new_flow::<F, E>(env, packet, direction, &key, from_lo, now, config, replace)
}

enum Existing {
    Pass,
    Drop,
    /// The entry is over; a new instance takes its place, numbered one higher.
    Replace(u32),
}

/// A packet of a tracked flow.
#[inline(always)]
fn existing<F: Family, E: Env<F>>(
    env: &E,
    entry: &FlowRef,
    packet: &Packet<F::Addr>,
    direction: Direction,
    from_lo: bool,
    now: &Now,
    config: &Config,
) -> Existing {
    let meta = entry.meta();
    let line = entry.line(from_lo);
    let mut flags = line.flags();
    let state = flags.state();
    let opening = packet.is_opening();
    let next = meta.sequence().wrapping_add(1);

    let timeout = match config.timeouts.get((state.0 & 15) as usize) {
        Some(timeout) => *timeout,
        None => 0,
    };
    // The other direction's line is only looked at when this one has been silent for the whole timeout.
    if timeout != 0
        && now.jiffies.wrapping_sub(line.last()) > timeout
        && now.jiffies.wrapping_sub(entry.line(!from_lo).last()) > timeout
    {
        announce_close::<F, E>(env, entry, packet, from_lo, true);
        return Existing::Replace(next);
    }
    if state.is_closed()
        && opening
        && (packet.protocol == protocol::TCP || meta.generation() != now.generation)
    {
        announce_close::<F, E>(env, entry, packet, from_lo, true);
        return Existing::Replace(next);
    }
    if !(state == State::CUT) && must_ask_again::<F, E>(env, meta, line.expiry(), now) {
        if !reevaluate::<F, E>(env, entry, packet, direction, from_lo, now) {
            return Existing::Drop;
        }
        flags = line.flags();
    }
    if flags.verdict() & bits::ALLOW == 0 {
        // Cut: the reason stays in the entry; a learning or opened host passes everything.
        if now.learning {
            return Existing::Pass;
        }
        drop_existing::<F, E>(env, packet, direction, now, flags.reason(), entry);
        return Existing::Drop;
    }
    if flags.is_filtered() && !now.learning {
        drop_existing::<F, E>(env, packet, direction, now, DropReason::Filter as u8, entry);
        return Existing::Drop;
    }
    advance::<F, E>(env, entry, packet, from_lo, flags);
    line.add(u64::from(packet.packets), u64::from(packet.bytes));
    line.set_last(now.jiffies);
    Existing::Pass
}

#[inline(always)]
fn must_ask_again<F: Family, E: Env<F>>(env: &E, meta: Meta, expiry: u32, now: &Now) -> bool {
    meta.generation() != now.generation
        || (expiry != 0 && env.boot_ns() / 1_000_000_000 >= u64::from(expiry))
}

/// Moves the connection state; a flow that ends is announced.
#[inline(always)]
fn advance<F: Family, E: Env<F>>(
    env: &E,
    entry: &FlowRef,
    packet: &Packet<F::Addr>,
    from_lo: bool,
    flags: Flags,
) {
    let initiator_is_lo = flags.verdict() & bits::INITIATOR_HI == 0;
    let from_initiator = from_lo == initiator_is_lo;
    let state = flags.state();
    let next = if packet.protocol == protocol::TCP {
        tcp_step(state, from_initiator, packet.tcp_flags)
    } else {
        datagram_step(state, from_initiator)
    };
    let seen = flags.with_tcp(packet.tcp_flags);
    if next != state {
        entry.line(from_lo).set_flags(seen.with_state(next));
        let other = entry.line(!from_lo);
        other.set_flags(other.flags().with_state(next));
        if next.is_closed() && !state.is_closed() {
            announce_close::<F, E>(env, entry, packet, from_lo, false);
        }
    } else if seen != flags {
        entry.line(from_lo).set_flags(seen);
    }
}

/// Asks policy again, in the flow's original direction. False when the flow was cut.
#[inline(always)]
fn reevaluate<F: Family, E: Env<F>>(
    env: &E,
    entry: &FlowRef,
    packet: &Packet<F::Addr>,
    direction: Direction,
    from_lo: bool,
    now: &Now,
) -> bool {
    let lo = entry.line(true);
    let old = lo.flags();
    let initiator_is_lo = old.verdict() & bits::INITIATOR_HI == 0;
    let from_initiator = from_lo == initiator_is_lo;
    let flow_direction = if old.verdict() & bits::EGRESS != 0 {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    let query = original_query::<F, E>(env, packet, direction, from_initiator, flow_direction, now);
    let policy = env.policy(now.slot);
    let decision = decide(&policy, &query, false);
    let same_peer = query.peer.identity == lo.c();
    let kept = !decision.allow
        && !decision.hard
        && ((old.verdict() & bits::KEEP != 0 && same_peer)
            || (old.verdict() & bits::ADOPTED != 0 && old.state().is_proven()));
    // A flow that arming would cut is kept once and reported: the content after that cuts it.
    let adopted_kept = kept && old.verdict() & bits::KEEP == 0;
    let allow = decision.allow || kept || now.learning;
    let mut verdict_bits = old.verdict() & (bits::INITIATOR_HI | bits::EGRESS);
    if now.learning {
        verdict_bits |= old.verdict() & bits::ADOPTED;
    }
    verdict_bits |= decision_bits(&decision);
    if kept {
        verdict_bits |= old.verdict() & bits::KEEP;
    }
    let reason = if allow && !adopted_kept && !now.learning {
        decision.reason as u8
    } else {
        decision.evaluated_reason as u8
    };
    if allow {
        verdict_bits |= bits::ALLOW;
        stamp_verdict::<F, E>(env, entry, &policy, &query, verdict_bits, reason, now);
        lo.set_a(decision.rule);
        lo.set_b(decision.draft_rule);
        lo.set_c(query.peer.identity);
        lo.set_expiry(decision.expiry);
        entry.line(false).set_expiry(decision.expiry);
        entry.set_meta(Meta::new(
            now.generation,
            entry.meta().sequence(),
            slot::LIVE,
        ));
        return true;
    }
    let reason = match decision.evaluated_reason {
        DropReason::DefaultDeny | DropReason::PolicyDeny if decision.hard && lo.expiry() != 0 => {
            DropReason::Expired
        }
        DropReason::DefaultDeny | DropReason::PolicyDeny => DropReason::PolicyChanged,
        other => other,
    };
    lo.set_a(decision.rule);
    lo.set_b(decision.draft_rule);
    lo.set_c(query.peer.identity);
    let cut = |line: crate::flow::LineRef| {
        line.set_expiry(0);
        line.set_flags(
            line.flags()
                .with_state(State::CUT)
                .with_verdict(verdict_bits & !bits::ALLOW, reason as u8),
        );
    };
    cut(lo);
    cut(entry.line(false));
    entry.set_meta(Meta::new(
        now.generation,
        entry.meta().sequence(),
        slot::LIVE,
    ));
    announce_close::<F, E>(env, entry, packet, from_lo, false);
    drop_existing::<F, E>(env, packet, direction, now, reason as u8, entry);
    false
}

/// Writes verdict, reason and the filter mark of both lines.
#[inline(always)]
fn stamp_verdict<F: Family, E: Env<F>>(
    _env: &E,
    entry: &FlowRef,
    policy: &E::Policy,
    query: &Query,
    verdict_bits: u8,
    reason: u8,
    _now: &Now,
) {
    let initiator_is_lo = verdict_bits & bits::INITIATOR_HI == 0;
    let answers = entry.line(!initiator_is_lo);
    let requests = entry.line(initiator_is_lo);
    let back = filtered(policy, &reply_query(query));
    requests.set_flags(
        requests
            .flags()
            .with_verdict(verdict_bits, reason)
            .with_filtered(false),
    );
    answers.set_flags(
        answers
            .flags()
            .with_verdict(verdict_bits, reason)
            .with_filtered(back),
    );
}

/// The query of the flow's answers: filters are stateless, so they speak about each direction.
#[inline(always)]
const fn reply_query(query: &Query) -> Query {
    let icmp = matches!(query.protocol, protocol::ICMP | protocol::ICMPV6);
    Query {
        endpoint: query.endpoint,
        direction: query.direction.flipped(),
        peer: query.peer,
        peer_addr: query.peer_addr,
        protocol: query.protocol,
        src_port: query.port,
        // The answer to an echo request (8, 128) is type 0 or 129.
        port: if icmp {
            if query.port == 8 << 8 {
                0
            } else {
                query.port.wrapping_add(1 << 8)
            }
        } else {
            query.src_port
        },
    }
}

#[inline(always)]
fn original_query<F: Family, E: Env<F>>(
    env: &E,
    packet: &Packet<F::Addr>,
    direction: Direction,
    from_initiator: bool,
    flow_direction: Direction,
    now: &Now,
) -> Query {
    let peer = if let Direction::Ingress = direction {
        &packet.src
    } else {
        &packet.dst
    };
    let (src_port, port) = if from_initiator {
        (packet.src_port, packet.policy_port)
    } else if matches!(packet.protocol, protocol::ICMP) {
        (
            packet.dst_port,
            if packet.policy_port == 0 {
                8 << 8
            } else {
                packet.policy_port
            },
        )
    } else if matches!(packet.protocol, protocol::ICMPV6) {
        (
            packet.dst_port,
            if packet.policy_port == 129 << 8 {
                128 << 8
            } else {
                packet.policy_port
            },
        )
    } else {
        (packet.dst_port, packet.src_port)
    };
    Query {
        endpoint: now.endpoint,
        direction: flow_direction,
        peer: env.binding(now.slot, peer),
        peer_addr: F::mapped(peer),
        protocol: packet.protocol,
        src_port,
        port,
    }
}

#[inline(always)]
const fn decision_bits(decision: &Decision) -> u8 {
    let mut out = 0;
    if !decision.evaluated {
        out |= bits::EVALUATED_DENY;
    }
    if !decision.draft {
        out |= bits::DRAFT_DENY;
    }
    if decision.keep && decision.evaluated {
        out |= bits::KEEP;
    }
    if decision.failsafe {
        out |= bits::FAILSAFE;
    }
    out
}

/// A packet without an entry.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "inlined; the alternative is one more structure copied on a 512-byte stack"
)]
fn new_flow<F: Family, E: Env<F>>(
    env: &E,
    packet: &Packet<F::Addr>,
    direction: Direction,
    key: &F::Key,
    from_lo: bool,
    now: &Now,
    config: &Config,
    replace: Option<u32>,
) -> Action {
    let opening = packet.is_opening();
    // Who began a connection that is met in its middle is a guess: the responder answers with SYN or listens on the lower port.
    let from_initiator = opening || guess_initiator(packet);
    let flow_direction = if from_initiator {
        direction
    } else {
        direction.flipped()
    };
    let query = original_query::<F, E>(env, packet, direction, from_initiator, flow_direction, now);
    let spoofed =
        matches!(direction, Direction::Ingress) && query.peer.flags & addr_flags::LOCAL != 0;
    let policy = env.policy(now.slot);
    let mut decision = decide(&policy, &query, false);
    if !opening && !decision.failsafe && !now.learning && decision.enforced_here {
        decision.allow = false;
        decision.reason = match decision.evaluated_reason {
            DropReason::Isolated => DropReason::Isolated,
            DropReason::PeerIsolated => DropReason::PeerIsolated,
            _ if packet.protocol == protocol::TCP && packet.tcp_flags & tcp::RST != 0 => {
                DropReason::RstWithoutFlow
            }
            _ => DropReason::MidStream,
        };
    }
    if spoofed && !now.learning && decision.enforced_here {
        decision.allow = false;
        decision.reason = DropReason::SpoofedSource;
    }
    if !decision.allow && !now.learning {
        deny::<F, E>(
            env,
            packet,
            direction,
            now,
            &decision,
            query.peer.identity,
            opening,
        );
        return Action::Drop;
    }
    let (packets, bytes) = (u64::from(packet.packets), u64::from(packet.bytes));
    // A reset of nothing opens nothing.
    if packet.protocol == protocol::TCP && packet.tcp_flags & tcp::RST != 0 {
        env.count(DropReason::None, packets, bytes);
        return Action::Pass;
    }
    let state = first_state(packet, opening);
    let mut verdict_bits = decision_bits(&decision) | bits::ALLOW;
    if from_lo != from_initiator {
        verdict_bits |= bits::INITIATOR_HI;
    }
    if let Direction::Egress = flow_direction {
        verdict_bits |= bits::EGRESS;
    }
    if now.learning && !opening {
        verdict_bits |= bits::ADOPTED;
    }
    let reason = if decision.allow {
        decision.reason as u8
    } else {
        decision.evaluated_reason as u8
    };
    let sequence = replace.unwrap_or(now.jiffies.wrapping_shl(4));
    let back = filtered(&policy, &reply_query(&query));
    let cookie = env.cookie();
    let made = env.insert(key, replace.is_some(), |entry| {
        F::stamp(
            entry,
            key,
            Meta::new(now.generation, sequence, slot::LIVE).0,
        );
        let lines = F::lines(entry);
        let mine = lines.line(from_lo);
        let other = lines.line(!from_lo);
        mine.set_flags(
            Flags::new(packet.tcp_flags, state, verdict_bits, reason)
                .with_filtered(back && !from_initiator),
        );
        other.set_flags(
            Flags::new(0, state, verdict_bits, reason).with_filtered(back && from_initiator),
        );
        for line in [mine, other] {
            line.set_last(now.jiffies);
            line.set_expiry(decision.expiry);
        }
        let lo = lines.line(true);
        lo.set_a(decision.rule);
        lo.set_b(decision.draft_rule);
        lo.set_c(query.peer.identity);
        let hi = lines.line(false);
        hi.set_a(now.jiffies);
        hi.set_b(cookie as u32);
        hi.set_c((cookie >> 32) as u32);
        mine.add(packets, bytes);
    });
    match made {
        Ok(()) => {
            let oriented = Oriented {
                from_initiator,
                flow_direction,
                verdict_bits,
                reason,
                state,
                sequence,
            };
            announce_new::<F, E>(env, packet, now, &decision, query.peer.identity, &oriented);
            Action::Pass
        }
        Err(InsertError::Exists) => {
            // Another CPU was first: its entry counts this packet.
            if let Some(entry) = env.find(key) {
                let line = entry.line(from_lo);
                line.add(packets, bytes);
                line.set_last(now.jiffies);
                return Action::Pass;
            }
            full::<F, E>(
                env,
                packet,
                direction,
                now,
                &mut decision,
                query.peer.identity,
                config,
            )
        }
        Err(InsertError::Full) => full::<F, E>(
            env,
            packet,
            direction,
            now,
            &mut decision,
            query.peer.identity,
            config,
        ),
    }
}

#[inline(always)]
fn guess_initiator<A: Copy>(packet: &Packet<A>) -> bool {
    if packet.protocol == protocol::TCP && packet.tcp_flags & tcp::SYN != 0 {
        return packet.tcp_flags & tcp::ACK == 0;
    }
    !packet.reply_only && packet.src_port >= packet.dst_port
}

#[inline(always)]
const fn first_state<A: Copy>(packet: &Packet<A>, opening: bool) -> State {
    match (packet.protocol == protocol::TCP, opening) {
        (true, true) => State::SYN_SENT,
        (true, false) if packet.tcp_flags & tcp::SYN != 0 => State::SYN_RECEIVED,
        (true, false) => State::ESTABLISHED,
        (false, true) => State::NEW,
        (false, false) => State::REPLIED,
    }
}

#[inline(always)]
fn full<F: Family, E: Env<F>>(
    env: &E,
    packet: &Packet<F::Addr>,
    direction: Direction,
    now: &Now,
    decision: &mut Decision,
    identity: u32,
    config: &Config,
) -> Action {
    env.lose(Loss::FlowTableFull);
    if config.flags & config_flags::FULL_ALLOW != 0 || now.learning {
        env.lose(Loss::Untracked);
        env.count(
            DropReason::None,
            u64::from(packet.packets),
            u64::from(packet.bytes),
        );
        return Action::Pass;
    }
    decision.reason = DropReason::TableFull;
    deny::<F, E>(
        env,
        packet,
        direction,
        now,
        decision,
        identity,
        packet.is_opening(),
    );
    Action::Drop
}

/// `panic close`: failsafes only, and no state is touched.
#[inline(always)]
fn judge_only<F: Family, E: Env<F>>(
    env: &E,
    packet: &Packet<F::Addr>,
    direction: Direction,
    now: &Now,
) -> Action {
    let policy = env.policy(now.slot);
    let (packets, bytes) = (u64::from(packet.packets), u64::from(packet.bytes));
    // Either end may have begun: a failsafe covers its answers too.
    let asked = original_query::<F, E>(env, packet, direction, true, direction, now);
    let answered = original_query::<F, E>(env, packet, direction, false, direction.flipped(), now);
    if decide(&policy, &asked, true).allow || decide(&policy, &answered, true).allow {
        env.count(DropReason::None, packets, bytes);
        return Action::Pass;
    }
    env.count(DropReason::PanicClose, packets, bytes);
    Action::Drop
}

/// An ICMP error passes if what it quotes is a packet of a tracked, allowed flow that this end took part in.
#[inline(always)]
fn icmp_error<F: Family, E: Env<F>>(
    env: &E,
    packet: &Packet<F::Addr>,
    direction: Direction,
    now: &Now,
) -> Action {
    let (packets, bytes) = (u64::from(packet.packets), u64::from(packet.bytes));
    let related = match &packet.inner {
        // The quoted packet was sent by whom the error is addressed to.
        Some(inner) if inner.src == packet.dst => {
            let (ends, _) = canonical::<F>(&inner.src, &inner.dst, inner.src_port, inner.dst_port);
            match env.find(&F::key(ends, inner.protocol, now.endpoint as u16)) {
                Some(entry) => {
                    entry.line(true).flags().verdict() & bits::ALLOW != 0
                        && entry.meta().generation() == now.generation
                }
                None => false,
            }
        }
        _ => false,
    };
    let close = now.panic == panic::CLOSE;
    if (related || now.learning) && !close {
        env.count(DropReason::None, packets, bytes);
        return Action::Pass;
    }
    let observed = match env.policy(now.slot).endpoint(now.endpoint) {
        Some(endpoint) => endpoint.mode == crate::abi::mode::OBSERVE,
        None => false,
    };
    if observed && !close {
        env.count(DropReason::ModeObserve, packets, bytes);
        return Action::Pass;
    }
    let reason = if close {
        DropReason::PanicClose
    } else {
        DropReason::IcmpUnrelated
    };
    let decision = Decision {
        allow: false,
        evaluated: false,
        draft: false,
        failsafe: false,
        hard: true,
        keep: false,
        audit: false,
        enforced_here: true,
        reason,
        evaluated_reason: reason,
        rule: 0,
        draft_rule: 0,
        expiry: 0,
    };
    deny::<F, E>(env, packet, direction, now, &decision, 0, false);
    Action::Drop
}

/// Counts, aggregates and perhaps announces a denial.
#[inline(always)]
fn deny<F: Family, E: Env<F>>(
    env: &E,
    packet: &Packet<F::Addr>,
    direction: Direction,
    now: &Now,
    decision: &Decision,
    identity: u32,
    opening: bool,
) {
    let (packets, bytes) = (u64::from(packet.packets), u64::from(packet.bytes));
    env.count(decision.reason, packets, bytes);
    let denial = Denial {
        packets,
        bytes,
        now: now.jiffies,
        identity,
        generation: now.generation,
        draft_rule: decision.draft_rule,
        draft: if decision.draft {
            verdict::ALLOW as u32
        } else {
            verdict::DENY as u32
        },
        source_port: packet.src_port,
    };
    let announce = env.deny(
        |key| {
            key.initiator = F::mapped(&packet.src);
            key.responder = F::mapped(&packet.dst);
            key.rule = decision.rule;
            key.port = packet.policy_port.to_be_bytes();
            key.protocol = packet.protocol;
            key.reason = decision.reason as u8;
            key.direction = direction as u8;
            key.family = F::VERSION;
            key.opening = opening as u8;
            key.pad = 0;
        },
        &denial,
    );
    if !announce {
        return;
    }
    let ifindex = env.ifindex();
    env.emit(|event| {
        event.kind = event_kind::DENY;
        event.protocol = packet.protocol;
        event.direction = direction as u8;
        event.verdict = decision_bits(decision);
        event.reason = decision.reason as u8;
        event.state = 0;
        event.family = F::VERSION;
        event.tcp_flags = packet.tcp_flags;
        event.generation = now.generation;
        event.rule = decision.rule;
        event.draft_rule = decision.draft_rule;
        event.identity = identity;
        event.initiator = F::mapped(&packet.src);
        event.responder = F::mapped(&packet.dst);
        event.initiator_port = packet.src_port;
        event.responder_port = packet.policy_port;
        event.sequence = 0;
        event.packets = [packets, 0];
        event.bytes = [bytes, 0];
        event.first = now.jiffies;
        event.last = now.jiffies;
        event.cookie = 0;
        event.ifindex = ifindex;
        event.opening = opening as u32;
        event.pad = 0;
    });
}

/// Drops a packet of an entry that does not pass.
#[inline(always)]
fn drop_existing<F: Family, E: Env<F>>(
    env: &E,
    packet: &Packet<F::Addr>,
    direction: Direction,
    now: &Now,
    reason: u8,
    entry: &FlowRef,
) {
    let lo = entry.line(true);
    let reason = DropReason::from_u8(reason).unwrap_or(DropReason::PolicyChanged);
    let decision = Decision {
        allow: false,
        evaluated: false,
        draft: lo.flags().verdict() & bits::DRAFT_DENY == 0,
        failsafe: false,
        hard: false,
        keep: false,
        audit: false,
        enforced_here: true,
        reason,
        evaluated_reason: reason,
        rule: lo.a(),
        draft_rule: lo.b(),
        expiry: 0,
    };
    deny::<F, E>(env, packet, direction, now, &decision, lo.c(), false);
}

/// What is known of a flow apart from its packet.
struct Oriented {
    from_initiator: bool,
    flow_direction: Direction,
    verdict_bits: u8,
    reason: u8,
    state: State,
    sequence: u32,
}

#[inline(always)]
fn announce_new<F: Family, E: Env<F>>(
    env: &E,
    packet: &Packet<F::Addr>,
    now: &Now,
    decision: &Decision,
    identity: u32,
    flow: &Oriented,
) {
    let ifindex = env.ifindex();
    let (packets, bytes) = (u64::from(packet.packets), u64::from(packet.bytes));
    env.emit(|event| {
        event.kind = event_kind::NEW;
        event.protocol = packet.protocol;
        event.direction = flow.flow_direction as u8;
        event.verdict = flow.verdict_bits;
        event.reason = flow.reason;
        event.state = flow.state.0;
        event.family = F::VERSION;
        event.tcp_flags = packet.tcp_flags;
        event.generation = now.generation;
        event.rule = decision.rule;
        event.draft_rule = decision.draft_rule;
        event.identity = identity;
        orient::<F>(event, packet, flow.from_initiator);
        event.sequence = flow.sequence & 0x00ff_ffff;
        event.packets = if flow.from_initiator {
            [packets, 0]
        } else {
            [0, packets]
        };
        event.bytes = if flow.from_initiator {
            [bytes, 0]
        } else {
            [0, bytes]
        };
        event.first = now.jiffies;
        event.last = now.jiffies;
        event.cookie = 0;
        event.ifindex = ifindex;
        event.opening = packet.is_opening() as u32;
        event.pad = 0;
    });
}

/// Announces the end of a flow. `replaced` = the entry is about to be overwritten: then a full ring loses the record.
#[inline(always)]
fn announce_close<F: Family, E: Env<F>>(
    env: &E,
    entry: &FlowRef,
    packet: &Packet<F::Addr>,
    from_lo: bool,
    replaced: bool,
) {
    let ifindex = env.ifindex();
    let sent = env.emit(|event| {
        let lo = entry.line(true);
        let hi = entry.line(false);
        let flags = lo.flags();
        let meta = entry.meta();
        let initiator_is_lo = flags.verdict() & bits::INITIATOR_HI == 0;
        let (requests, answers) = if initiator_is_lo { (lo, hi) } else { (hi, lo) };
        event.kind = event_kind::CLOSE;
        event.protocol = packet.protocol;
        event.direction = if flags.verdict() & bits::EGRESS != 0 {
            1
        } else {
            0
        };
        event.verdict = flags.verdict();
        event.reason = flags.reason();
        event.state = flags.state().0 & !FILTERED;
        event.family = F::VERSION;
        event.tcp_flags = flags.tcp() | hi.flags().tcp();
        event.generation = meta.generation();
        event.rule = lo.a();
        event.draft_rule = lo.b();
        event.identity = lo.c();
        orient::<F>(event, packet, from_lo == initiator_is_lo);
        event.sequence = meta.sequence();
        event.packets = [requests.packets(), answers.packets()];
        event.bytes = [requests.bytes(), answers.bytes()];
        event.first = hi.a();
        event.last = later(lo.last(), hi.last());
        event.cookie = u64::from(hi.b()) | (u64::from(hi.c()) << 32);
        event.ifindex = ifindex;
        event.opening = 0;
        event.pad = 0;
    });
    if replaced && !sent {
        env.lose(Loss::ReplacedUnread);
    }
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

#[inline(always)]
fn orient<F: Family>(event: &mut Event, packet: &Packet<F::Addr>, from_initiator: bool) {
    let icmp = matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6);
    if from_initiator {
        event.initiator = F::mapped(&packet.src);
        event.responder = F::mapped(&packet.dst);
        event.initiator_port = packet.src_port;
        event.responder_port = if icmp {
            packet.policy_port
        } else {
            packet.dst_port
        };
    } else {
        event.initiator = F::mapped(&packet.dst);
        event.responder = F::mapped(&packet.src);
        event.initiator_port = packet.dst_port;
        event.responder_port = packet.src_port;
    }
}

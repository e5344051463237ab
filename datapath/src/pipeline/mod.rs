//! The way of a packet: active word → parse → conntrack → policy → entry, counters, event.
//!
//! Generic over [`Env`], which is maps and helpers in the kernel and ordinary collections on the host, so
//! that the same packets give the same verdicts in both. Everything a packet needs on its way is in one
//! [`Workspace`], because the kernel's stack has 512 bytes.

mod existing;
mod fast;
mod notice;
mod opening;

use crate::abi::{ActiveWord, AddrValue, Config, DenyKey, Event, Loss, Negative, mode, panic};
use crate::drop_reason::DropReason;
use crate::flow::{FlowRef, bits};
use crate::ids::{Direction, protocol};
use crate::negative;
use crate::packet::{Family, Kind, Packet, canonical};
use crate::table::{self, Memory, Spot, Tabled};
use crate::verdict::{Decision, PolicyLookup, Query, decide};

pub use existing::{Existing, follow_now};
pub use fast::{Direct, Plain, established};
pub use notice::{deny_now, opened_now};
pub use opening::claim_now;

/// What a hook does with the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// On to the next program or the stack.
    Pass,
    /// Gone.
    Drop,
}

/// A denial to be aggregated and, perhaps, announced.
#[derive(Clone, Copy, Debug, Default)]
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

impl Denial {
    /// Whether a denial that joins an aggregate is announced again: it is the N-th packet, or enough time has passed.
    /// `before`: packets counted without this one; `announced`: jiffies of the last notice.
    #[must_use]
    #[inline(always)]
    pub fn is_announced(&self, config: &Config, before: u64, announced: u32) -> bool {
        let every = u64::from(config.deny_every);
        let after = before.wrapping_add(self.packets);
        (every != 0 && before.checked_div(every) != after.checked_div(every))
            || (config.deny_interval != 0
                && self.now.wrapping_sub(announced) >= config.deny_interval)
    }
}

/// What adding to an aggregate gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Aggregated {
    /// It is time to announce the key.
    pub announce: bool,
    /// The key was there before.
    pub again: bool,
    /// Packets of the aggregate now.
    pub packets: u64,
    /// Jiffies of its last announcement.
    pub announced: u32,
}

/// Maps, clocks and output. Small and copied freely: in the kernel it is the packet's context.
pub trait Env<F: Tabled>: Memory<F> {
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
    /// Sends a notice; a full ring is counted.
    fn emit(&self, fill: impl FnOnce(&mut Event)) -> bool;
    /// Adds to the aggregate of a key; `told` is empty before.
    fn deny(&self, key: &DenyKey, denial: &Denial, told: &mut Aggregated);
    /// A slot of the negative entries.
    fn negative(&self, slot: u32) -> Option<*mut Negative>;
    /// Counts by drop reason.
    fn count(&self, reason: DropReason, packets: u64, bytes: u64);
    /// Counts a lost record.
    fn lose(&self, cause: Loss);
    /// Device of the packet.
    fn ifindex(&self) -> u32;
    /// Cookie of the packet's socket; 0 when unknown.
    fn cookie(&self) -> u64;

    /// Decides on the query in the workspace ([`decide_now`]). A method, because in the kernel this and those below
    /// are functions that the verifier looks at once, and not once for every way that leads to them.
    fn decide(&self, w: &mut Workspace<F>, panic_close: bool) {
        decide_now(*self, w, panic_close);
    }

    /// Counts and tells the denial that the workspace describes ([`deny_now`]).
    fn tell_denied(&self, w: &mut Workspace<F>, opening: bool) {
        deny_now(*self, w, opening);
    }

    /// Takes a set's lock ([`table::lock`]).
    fn lock(&self, set: u32) -> bool {
        table::lock::<F, Self>(*self, set)
    }

    /// Makes room in the packet's set ([`claim_now`]): the number of a way that is marked BUSY, or [`table::WAYS`].
    fn claim(&self, w: &mut Workspace<F>) -> u32 {
        claim_now(*self, w)
    }

    /// Follows the packet in its flow's entry ([`follow_now`]).
    fn follow(&self, w: &mut Workspace<F>, entry: FlowRef<F>) -> Existing {
        follow_now(*self, w, entry)
    }

    /// Moves what a slot of the negative entries has counted to its aggregate ([`negative::fold_now`]).
    fn fold(&self, slot: u32) {
        negative::fold_now(*self, slot);
    }

    /// Tells the new flow that the workspace describes ([`opened_now`]).
    fn tell_opened(&self, w: &mut Workspace<F>) {
        opened_now(*self, w);
    }
}

/// What counts for this packet, read once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Now {
    hz: u32,
    generation: u32,
    slot: u32,
    jiffies: u32,
    panic: u32,
    endpoint: u32,
    full_allow: bool,
    learning: bool,
}

/// Everything about one packet on its way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Workspace<F: Family> {
    /// The parsed packet.
    pub packet: Packet<F::Addr>,
    /// What the verdict was asked for, or is going to be.
    pub query: Query,
    /// What was decided.
    pub decision: Decision,
    key: F::Key,
    now: Now,
    direction: Direction,
    from_lo: bool,
    from_initiator: bool,
    back_filtered: bool,
    verdict_bits: u8,
    reason: u8,
    state: u8,
    sequence: u32,
    spot: Spot,
    denied: DenyKey,
    denial: Denial,
    told: Aggregated,
}

impl<F: Family> Workspace<F> {
    #[inline(always)]
    fn weight(&self) -> (u64, u64) {
        (u64::from(self.packet.packets), u64::from(self.packet.bytes))
    }
}

/// Judges the parsed packet in `w` at a hook and accounts for it.
#[inline(always)]
pub fn process<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>, direction: Direction) -> Action {
    let Some(config) = env.config() else {
        return Action::Drop;
    };
    let word = env.active();
    let (packets, bytes) = w.weight();
    if let Kind::LinkLocalControl = w.packet.kind {
        env.count(DropReason::None, packets, bytes);
        return Action::Pass;
    }
    if word.is_empty() {
        // Nothing was ever activated. The agent activates before it attaches, so this is a broken map: unknown denies.
        env.count(DropReason::NoPolicy, packets, bytes);
        return Action::Drop;
    }
    let (generation, slot, _) = if word.is_pending() {
        word.effective(env.boot_ns() / 1_000_000_000)
    } else {
        (word.generation(), word.slot(), false)
    };
    w.direction = direction;
    w.now = Now {
        hz: config.hz,
        generation,
        slot,
        jiffies: env.jiffies(),
        panic: config.panic,
        endpoint: config.endpoint,
        full_allow: config.flags & crate::abi::config_flags::FULL_ALLOW != 0,
        learning: word.is_learning() || config.panic == panic::OPEN,
    };
    if let Kind::IcmpError = w.packet.kind {
        return icmp_error(env, w);
    }
    if w.now.panic == panic::CLOSE {
        return failsafes_only(env, w);
    }
    let (ends, from_lo) = canonical::<F>(
        &w.packet.src,
        &w.packet.dst,
        w.packet.src_port,
        w.packet.dst_port,
    );
    w.key = F::key(ends, w.packet.protocol, w.now.endpoint as u16);
    w.from_lo = from_lo;
    let Some(tables) = env.tables() else {
        env.count(DropReason::NoPolicy, packets, bytes);
        return Action::Drop;
    };
    w.spot = table::spot::<F>(tables, &F::words(&w.key));
    // A bare SYN is judged before anything is looked for: most SYNs that are worth denying belong to no flow.
    let syn = w.packet.protocol == protocol::TCP && w.packet.is_opening();
    if !syn && let Some(action) = tracked(env, w) {
        return action;
    }
    opening::judge(env, w)
}

/// The way of a packet whose flow has an entry; `None` when there is none (any more).
#[cfg_attr(target_arch = "bpf", inline(never))]
fn tracked<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>) -> Option<Action> {
    if !env.lock(w.spot.set) {
        return Some(contended(env, w));
    }
    let outcome = existing::follow(env, w);
    table::unlock::<F, E>(env, w.spot.set);
    match outcome {
        Some(Existing::Pass) => Some(Action::Pass),
        Some(Existing::Drop) => {
            env.tell_denied(w, false);
            Some(Action::Drop)
        }
        Some(Existing::Replace) | None => None,
    }
}

/// Somebody held the set's lock for too long.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn contended<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>) -> Action {
    if w.now.learning {
        let (packets, bytes) = w.weight();
        env.lose(Loss::Untracked);
        env.count(DropReason::None, packets, bytes);
        return Action::Pass;
    }
    w.decision = Decision::hard_deny(DropReason::Contended, 0);
    let opening = w.packet.is_opening();
    env.tell_denied(w, opening);
    Action::Drop
}

/// Writes the query of the flow's first packet, whichever packet of it this is.
#[inline(always)]
fn ask<F: Tabled, E: Env<F>>(
    env: E,
    w: &mut Workspace<F>,
    from_initiator: bool,
    flow_direction: Direction,
) {
    let packet = &w.packet;
    let peer = if let Direction::Ingress = w.direction {
        &packet.src
    } else {
        &packet.dst
    };
    let (src_port, port) = if from_initiator {
        (packet.src_port, packet.policy_port)
    } else {
        (packet.dst_port, answered_port(packet))
    };
    w.query.peer = env.binding(w.now.slot, peer);
    w.query.peer_addr = F::mapped(peer);
    w.query.endpoint = w.now.endpoint;
    w.query.direction = flow_direction;
    w.query.protocol = packet.protocol;
    w.query.src_port = src_port;
    w.query.port = port;
}

/// What policy calls the port of the flow that this packet answers: an echo reply answers an echo request
/// (types 8 and 0 in RFC 792, 128 and 129 in RFC 4443).
#[inline(always)]
const fn answered_port<A>(packet: &Packet<A>) -> u16 {
    match packet.protocol {
        protocol::ICMP if packet.policy_port >> 8 == 0 => 8 << 8,
        protocol::ICMPV6 if packet.policy_port >> 8 == 129 => 128 << 8,
        protocol::ICMP | protocol::ICMPV6 => packet.policy_port,
        _ => packet.src_port,
    }
}

/// The query of the flow's answers: filters are stateless, so they speak about each direction by itself.
#[inline(always)]
fn reply_query(query: &Query) -> Query {
    let port = match query.protocol {
        protocol::ICMP if query.port == 8 << 8 => 0,
        protocol::ICMPV6 if query.port == 128 << 8 => 129 << 8,
        protocol::ICMP | protocol::ICMPV6 => query.port,
        _ => query.src_port,
    };
    Query {
        direction: query.direction.flipped(),
        src_port: query.port,
        port,
        ..*query
    }
}

/// Runs the verdict on the query in the workspace: what [`Env::decide`] does.
#[inline(always)]
pub fn decide_now<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>, panic_close: bool) {
    let policy = env.policy(w.now.slot);
    w.decision = decide(&policy, &w.query, panic_close);
}

/// Whether a stateless filter drops the flow's answers.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn filter_back<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>) {
    let policy = env.policy(w.now.slot);
    w.back_filtered =
        crate::verdict::filtered(&policy, &reply_query(&w.query), w.decision.back_filter);
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

/// `panic close`: failsafes only, established flows included, and no state is touched.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn failsafes_only<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>) -> Action {
    let (packets, bytes) = w.weight();
    let direction = w.direction;
    ask(env, w, true, direction);
    env.decide(w, true);
    if !w.decision.allow {
        // Either end may have begun: a failsafe covers its answers too.
        ask(env, w, false, direction.flipped());
        env.decide(w, true);
    }
    if w.decision.allow {
        env.count(DropReason::None, packets, bytes);
        return Action::Pass;
    }
    env.count(DropReason::PanicClose, packets, bytes);
    Action::Drop
}

/// Whether the key in the workspace is that of an allowed flow of the active content.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn is_tracked<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>) -> bool {
    if !env.lock(w.spot.set) {
        return false;
    }
    let mut related = false;
    if let Some(entry) = existing::lookup(env, w) {
        let line = entry.line(true);
        let expired =
            line.expiry() != 0 && env.boot_ns() / 1_000_000_000 >= u64::from(line.expiry());
        related = line.flags().verdict() & bits::ALLOW != 0
            && entry.meta().generation() == w.now.generation
            && !expired;
    }
    table::unlock::<F, E>(env, w.spot.set);
    related
}

/// An ICMP error passes if what it quotes is a packet of a tracked, allowed flow that its receiver sent.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn icmp_error<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>) -> Action {
    let (packets, bytes) = w.weight();
    let inner = &w.packet.inner;
    let mut related = false;
    if inner.src == w.packet.dst {
        let (ends, _) = canonical::<F>(&inner.src, &inner.dst, inner.src_port, inner.dst_port);
        w.key = F::key(ends, inner.protocol, w.now.endpoint as u16);
        if let Some(tables) = env.tables() {
            w.spot = table::spot::<F>(tables, &F::words(&w.key));
            related = is_tracked(env, w);
        }
    }
    let close = w.now.panic == panic::CLOSE;
    if (related || w.now.learning) && !close {
        env.count(DropReason::None, packets, bytes);
        return Action::Pass;
    }
    let observed = match env.policy(w.now.slot).endpoint(w.now.endpoint) {
        Some(endpoint) => endpoint.mode == mode::OBSERVE,
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
    w.decision = Decision::hard_deny(reason, 0);
    w.query.peer = AddrValue::default();
    env.tell_denied(w, false);
    Action::Drop
}

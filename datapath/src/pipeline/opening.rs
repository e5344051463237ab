//! A packet without an entry: policy is asked, and an entry made or a denial counted.

use crate::abi::{Config, Loss, addr_flags};
use crate::conntrack::State;
use crate::drop_reason::DropReason;
use crate::flow::{Flags, FlowRef, Meta, bits, slot};
use crate::ids::{Direction, protocol};
use crate::packet::{Packet, tcp};
use crate::table::{self, Tabled, WAYS, bucket_word};

use super::existing::{self, Existing};
use super::{Action, Env, Workspace, ask, contended, decision_bits, filter_back, notice};

/// What became of a packet that policy lets through.
enum Placed {
    /// A new entry counts it.
    Opened,
    /// An entry that was there counts it.
    Followed,
    /// The entry that was there drops it, for the reason in the workspace.
    Dropped,
    /// There is no room for a new entry.
    Full,
}

#[cfg_attr(target_arch = "bpf", inline(never))]
pub(super) fn judge<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>) -> Action {
    let opening = w.packet.is_opening();
    w.from_initiator = opening || guess_initiator(&w.packet);
    let flow_direction = if w.from_initiator {
        w.direction
    } else {
        w.direction.flipped()
    };
    let from_initiator = w.from_initiator;
    ask(env, w, from_initiator, flow_direction);
    env.decide(w, false);
    refuse_stateless(w, opening);
    if !w.decision.allow && !w.now.learning {
        env.tell_denied(w, opening);
        return Action::Drop;
    }
    table::fetch::<F, E>(env, w.spot);
    let (packets, bytes) = w.weight();
    if is_reset(&w.packet) {
        // A reset of nothing opens nothing.
        env.count(DropReason::None, packets, bytes);
        return Action::Pass;
    }
    prepare(env, w, opening);
    if !env.lock(w.spot.set) {
        return contended(env, w);
    }
    let placed = place(env, w);
    table::unlock::<F, E>(env, w.spot.set);
    match placed {
        Placed::Opened => {
            env.tell_opened(w);
            Action::Pass
        }
        Placed::Followed => Action::Pass,
        Placed::Dropped => {
            env.tell_denied(w, false);
            Action::Drop
        }
        Placed::Full => full(env, w),
    }
}

/// Finds or makes the flow's entry. The caller holds the lock.
#[inline(always)]
fn place<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>) -> Placed {
    // A bare SYN was judged first; for other packets, another CPU may have been faster.
    match existing::follow(env, w) {
        Some(Existing::Pass) => return Placed::Followed,
        Some(Existing::Drop) => return Placed::Dropped,
        Some(Existing::Replace) | None => {}
    }
    let Some(tables) = env.tables() else {
        return Placed::Full;
    };
    let peer = if let Direction::Ingress = w.direction {
        &w.packet.src
    } else {
        &w.packet.dst
    };
    let bucket = table::bucket::<F>(tables, peer);
    if tables.share != 0 && table::entries::<F, E>(env, bucket) >= tables.share {
        env.lose(Loss::PeerShare);
        return Placed::Full;
    }
    let mut change = bucket_word::ENTRY;
    if !State(w.state).is_proven() {
        change += bucket_word::UNPROVEN;
    }
    w.sequence = table::next_sequence::<F, E>(env, w.spot.set, w.now.jiffies);
    let claimed = env.claim(w);
    let Some(set) = env.set(w.spot.set) else {
        return Placed::Full;
    };
    if claimed >= WAYS {
        return spill(env, w, bucket, change);
    }
    // SAFETY: a whole set of the table.
    let entry: FlowRef<F> = unsafe { table::way(set, claimed) };
    let words = F::words(&w.key);
    // SAFETY: the slot is BUSY, and this CPU holds its set's lock.
    unsafe { entry.begin(&words) };
    fill(env, w, entry);
    entry.set_meta(Meta::new(w.now.generation, w.sequence, slot::LIVE));
    table::count::<F, E>(env, bucket, change);
    Placed::Opened
}

/// No way is free: the hash map takes the entry.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn spill<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>, bucket: u32, change: u64) -> Placed {
    table::spilled_one_more::<F, E>(env, w.spot.set);
    let view = &*w;
    let words = F::words(&view.key);
    let spilled = env.spill(&view.key, |entry| {
        // SAFETY: memory of our own until it is in the map.
        unsafe { entry.begin(&words) };
        fill(env, view, entry);
        entry.set_meta(Meta::new(view.now.generation, view.sequence, slot::LIVE));
    });
    if !spilled {
        table::spilled_one_less::<F, E>(env, w.spot.set);
        return Placed::Full;
    }
    table::count::<F, E>(env, bucket, change);
    Placed::Opened
}

/// The number of a way of the packet's set that is now marked BUSY: one that was free, one that has been closed for long
/// enough, or one whose flow was not proven. [`WAYS`] when all of them are taken by proven flows. The caller holds the lock.
#[inline(always)]
pub fn claim_now<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>) -> u32 {
    let (Some(config), Some(set), Some(tables)) = (env.config(), env.set(w.spot.set), env.tables())
    else {
        return WAYS;
    };
    let settled = table::is_settled::<F, E>(env, w.spot.set, w.now.jiffies, w.now.hz);
    let mut closed = WAYS;
    let mut victim = WAYS;
    let mut most = 0;
    let mut index = 0;
    while index < WAYS {
        // SAFETY: a whole set of the table.
        let entry: FlowRef<F> = unsafe { table::way(set, w.spot.start + index) };
        match entry.meta().slot() {
            slot::FREE => {
                busy(entry);
                return (w.spot.start + index) & (WAYS - 1);
            }
            slot::CLOSED if settled => closed = index,
            slot::LIVE | slot::CLOSING => {
                let weight = displaceable(env, w, tables, entry);
                if weight > most {
                    (victim, most) = (index, weight);
                }
                if weight == 0 {
                    end_if_idle(env, w, entry, config);
                }
            }
            _ => {}
        }
        index += 1;
    }
    if closed < WAYS {
        // SAFETY: a whole set of the table.
        let entry: FlowRef<F> = unsafe { table::way(set, w.spot.start + closed) };
        let meta = entry.meta();
        // Unless user space has just taken it: then it is free in a moment, and somebody else has to make room.
        if meta.slot() == slot::CLOSED
            && entry.exchange_meta(meta, Meta::new(0, meta.sequence(), slot::BUSY))
        {
            if !notice::close(env, entry) {
                env.lose(Loss::ReplacedUnread);
            }
            existing::forget(env, entry);
            busy(entry);
            return (w.spot.start + closed) & (WAYS - 1);
        }
    }
    if victim < WAYS {
        // SAFETY: a whole set of the table.
        let entry: FlowRef<F> = unsafe { table::way(set, w.spot.start + victim) };
        env.lose(Loss::Displaced);
        if !notice::close(env, entry) {
            env.lose(Loss::ReplacedUnread);
        }
        existing::forget(env, entry);
        busy(entry);
        return (w.spot.start + victim) & (WAYS - 1);
    }
    WAYS
}

/// Takes a slot out of use; its sequence stays, so that the next instance can differ.
#[inline(always)]
fn busy<F: Tabled>(entry: FlowRef<F>) {
    entry.set_meta(Meta::new(0, entry.meta().sequence(), slot::BUSY));
}

/// How much an entry that is not proven deserves to make room for the packet's flow; 0 = it may not be touched. The peer
/// that holds most of them loses first. A SYN displaces another protocol's flow only where no TCP flow could: a flood
/// of one must not push the others out.
#[inline(always)]
fn displaceable<F: Tabled, E: Env<F>>(
    env: E,
    w: &Workspace<F>,
    tables: &crate::abi::Tables,
    entry: FlowRef<F>,
) -> u64 {
    if entry.line(true).flags().is_proven() {
        return 0;
    }
    let held = table::unproven::<F, E>(env, table::bucket_of(tables, entry));
    let preferred = w.packet.protocol != protocol::TCP || entry.tail().protocol() == protocol::TCP;
    (u64::from(preferred) << 40) | (u64::from(held) + 1)
}

/// Ends a proven entry that has been silent for longer than its timeout: its way can be used a little later.
#[inline(always)]
fn end_if_idle<F: Tabled, E: Env<F>>(env: E, w: &Workspace<F>, entry: FlowRef<F>, config: &Config) {
    let line = entry.line(true);
    if existing::is_idle(w.now.jiffies, entry, line.flags().state(), config) {
        table::retire::<F, E>(env, w.spot.set, entry, w.now.jiffies);
    }
}

#[inline(always)]
const fn is_reset<A>(packet: &Packet<A>) -> bool {
    packet.protocol == protocol::TCP && packet.tcp_flags & tcp::RST != 0
}

/// Where policy is enforced, only an opening packet may open, and nobody speaks for this host's own address.
#[inline(always)]
fn refuse_stateless<F: Tabled>(w: &mut Workspace<F>, opening: bool) {
    if w.now.learning || !w.decision.enforced_here {
        return;
    }
    if let Direction::Ingress = w.direction
        && w.query.peer.flags & addr_flags::LOCAL != 0
    {
        w.decision.allow = false;
        w.decision.reason = DropReason::SpoofedSource;
        return;
    }
    if !opening {
        w.decision.allow = false;
        w.decision.reason = match w.decision.evaluated_reason {
            DropReason::Isolated => DropReason::Isolated,
            DropReason::PeerIsolated => DropReason::PeerIsolated,
            _ if is_reset(&w.packet) => DropReason::RstWithoutFlow,
            _ => DropReason::MidStream,
        };
    }
}

/// Who began a connection that is met in its middle is a guess: the responder answers a SYN, or listens on the lower port.
#[inline(always)]
const fn guess_initiator<A>(packet: &Packet<A>) -> bool {
    if packet.protocol == protocol::TCP && packet.tcp_flags & tcp::SYN != 0 {
        return packet.tcp_flags & tcp::ACK == 0;
    }
    !packet.reply_only && packet.src_port >= packet.dst_port
}

/// Works out what the entry will hold.
#[inline(always)]
fn prepare<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>, opening: bool) {
    let is_tcp = w.packet.protocol == protocol::TCP;
    let state = match (is_tcp, opening) {
        (true, true) => State::SYN_SENT,
        (true, false) if w.packet.tcp_flags & tcp::SYN != 0 => State::SYN_RECEIVED,
        (true, false) => State::ESTABLISHED,
        (false, true) => State::NEW,
        (false, false) => State::REPLIED,
    };
    w.state = state.0;
    let mut verdict = decision_bits(&w.decision) | bits::ALLOW;
    if w.from_lo != w.from_initiator {
        verdict |= bits::INITIATOR_HI;
    }
    if let Direction::Egress = w.query.direction {
        verdict |= bits::EGRESS;
    }
    if w.now.learning && !opening {
        verdict |= bits::ADOPTED;
    }
    w.verdict_bits = verdict;
    w.reason = if w.decision.allow {
        w.decision.reason
    } else {
        w.decision.evaluated_reason
    } as u8;
    filter_back(env, w);
}

/// Writes what the workspace knows into an entry that is empty but for its key.
#[inline(always)]
fn fill<F: Tabled, E: Env<F>>(env: E, w: &Workspace<F>, entry: FlowRef<F>) {
    let cookie = env.cookie();
    let state = State(w.state);
    let mut flags = Flags::new(0, state, w.verdict_bits, w.reason);
    if state.is_proven() {
        flags = flags.with_proven();
    }
    let mine = entry.line(w.from_lo);
    let other = entry.line(!w.from_lo);
    mine.set_flags(
        flags
            .with_tcp(w.packet.tcp_flags)
            .with_filtered(w.back_filtered && !w.from_initiator),
    );
    other.set_flags(flags.with_filtered(w.back_filtered && w.from_initiator));
    mine.set_last(w.now.jiffies);
    other.set_last(w.now.jiffies);
    let lo = entry.line(true);
    lo.set_expiry(w.decision.expiry);
    lo.set_a(w.decision.rule);
    lo.set_b(w.decision.draft_rule);
    lo.set_c(w.query.peer.identity);
    let hi = entry.line(false);
    if state.is_proven() {
        hi.set_expiry(w.decision.expiry);
    } else if state == State::SYN_RECEIVED {
        // Met at the responder's answer: its number is what the initiator has to acknowledge.
        hi.set_expiry(w.packet.seq);
    }
    hi.set_a(w.now.jiffies);
    hi.set_b(cookie as u32);
    hi.set_c((cookie >> 32) as u32);
    let (packets, bytes) = w.weight();
    mine.add(packets, bytes);
}

/// No room: the configured choice, counted.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn full<F: Tabled, E: Env<F>>(env: E, w: &mut Workspace<F>) -> Action {
    env.lose(Loss::FlowTableFull);
    if w.now.full_allow || w.now.learning {
        let (packets, bytes) = w.weight();
        env.lose(Loss::Untracked);
        env.count(DropReason::None, packets, bytes);
        return Action::Pass;
    }
    w.decision.reason = DropReason::TableFull;
    let opening = w.packet.is_opening();
    env.tell_denied(w, opening);
    Action::Drop
}

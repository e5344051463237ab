//! A packet without an entry: policy is asked, and an entry made or a denial counted.

use crate::abi::{Loss, addr_flags};
use crate::conntrack::State;
use crate::drop_reason::DropReason;
use crate::flow::{Flags, FlowRef, Meta, bits, slot};
use crate::ids::{Direction, protocol};
use crate::packet::{Family, Packet, tcp};

use super::{
    Action, Env, InsertError, Workspace, ask, decide_into, decision_bits, filter_back, notice,
};

#[cfg_attr(target_arch = "bpf", inline(never))]
pub(super) fn judge<F: Family, E: Env<F>>(env: E, w: &mut Workspace<F>, replace: bool) -> Action {
    let opening = w.packet.is_opening();
    w.from_initiator = opening || guess_initiator(&w.packet);
    let flow_direction = if w.from_initiator {
        w.direction
    } else {
        w.direction.flipped()
    };
    let from_initiator = w.from_initiator;
    ask(env, w, from_initiator, flow_direction);
    decide_into(env, w, false);
    refuse_stateless(w, opening);
    if !w.decision.allow && !w.now.learning {
        notice::deny(env, w, opening);
        return Action::Drop;
    }
    let (packets, bytes) = w.weight();
    if is_reset(&w.packet) {
        // A reset of nothing opens nothing.
        env.count(DropReason::None, packets, bytes);
        return Action::Pass;
    }
    prepare(env, w, opening, replace);
    if replace {
        tell_replaced(env, w);
    }
    match make(env, w, replace) {
        Ok(()) => {
            notice::new(env, w);
            Action::Pass
        }
        Err(InsertError::Exists) => match env.find(&w.key) {
            // Another CPU was first: its entry counts this packet.
            Some(entry) => {
                let line = entry.line(w.from_lo);
                line.add(packets, bytes);
                line.set_last(w.now.jiffies);
                Action::Pass
            }
            None => full(env, w),
        },
        Err(InsertError::Full) => full(env, w),
    }
}

/// The instance that is about to be overwritten is announced with its last counters; if the ring is full, a record is lost.
#[inline(always)]
fn tell_replaced<F: Family, E: Env<F>>(env: E, w: &mut Workspace<F>) {
    if let Some(entry) = env.find(&w.key)
        && !notice::close(env, w, entry)
    {
        env.lose(Loss::ReplacedUnread);
    }
}

#[inline(always)]
const fn is_reset<A>(packet: &Packet<A>) -> bool {
    packet.protocol == protocol::TCP && packet.tcp_flags & tcp::RST != 0
}

/// Where policy is enforced, only an opening packet may open, and nobody speaks for this host's own address.
#[inline(always)]
fn refuse_stateless<F: Family>(w: &mut Workspace<F>, opening: bool) {
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
fn prepare<F: Family, E: Env<F>>(env: E, w: &mut Workspace<F>, opening: bool, replace: bool) {
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
    if !replace {
        // Two instances of one tuple differ even if the first one's entry is long gone.
        w.sequence = w.now.jiffies.wrapping_shl(4);
    }
    filter_back(env, w);
}

#[cfg_attr(target_arch = "bpf", inline(never))]
fn make<F: Family, E: Env<F>>(
    env: E,
    w: &mut Workspace<F>,
    replace: bool,
) -> Result<(), InsertError> {
    let cookie = env.cookie();
    let w = &*w;
    env.insert(&w.key, replace, |flow| {
        F::stamp(
            flow,
            &w.key,
            Meta::new(w.now.generation, w.sequence, slot::LIVE).0,
        );
        // SAFETY: `flow` is a whole entry of our own until it is inserted.
        let entry: FlowRef<F> = unsafe { FlowRef::new(flow) };
        let state = State(w.state);
        let flags = Flags::new(0, state, w.verdict_bits, w.reason);
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
        mine.set_expiry(w.decision.expiry);
        other.set_expiry(w.decision.expiry);
        let lo = entry.line(true);
        lo.set_a(w.decision.rule);
        lo.set_b(w.decision.draft_rule);
        lo.set_c(w.query.peer.identity);
        let hi = entry.line(false);
        hi.set_a(w.now.jiffies);
        hi.set_b(cookie as u32);
        hi.set_c((cookie >> 32) as u32);
        let (packets, bytes) = w.weight();
        mine.add(packets, bytes);
    })
}

/// No room: the configured choice, counted.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn full<F: Family, E: Env<F>>(env: E, w: &mut Workspace<F>) -> Action {
    env.lose(Loss::FlowTableFull);
    if w.now.full_allow || w.now.learning {
        let (packets, bytes) = w.weight();
        env.lose(Loss::Untracked);
        env.count(DropReason::None, packets, bytes);
        return Action::Pass;
    }
    w.decision.reason = DropReason::TableFull;
    let opening = w.packet.is_opening();
    notice::deny(env, w, opening);
    Action::Drop
}

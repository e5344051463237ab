//! Connection states and their transitions: pure, no clock, no memory.
//!
//! TCP follows RFC 9293 as far as a middle-box can see it. Nothing here frees an entry: a reset or a
//! close shortens the timeout, and traffic that goes on restores the state, so that a spoofed segment
//! cannot cut a flow.

use crate::packet::tcp;

/// State of a tracked flow. A newtype over its number, because it is read from shared memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct State(pub u8);

impl State {
    /// No flow.
    pub const FREE: Self = Self(0);
    /// TCP: the initiator's SYN was seen.
    pub const SYN_SENT: Self = Self(1);
    /// TCP: the responder answered with SYN.
    pub const SYN_RECEIVED: Self = Self(2);
    /// TCP: both ends agreed.
    pub const ESTABLISHED: Self = Self(3);
    /// TCP: the initiator has finished.
    pub const FIN_INITIATOR: Self = Self(4);
    /// TCP: the responder has finished.
    pub const FIN_RESPONDER: Self = Self(5);
    /// TCP: both have finished.
    pub const TIME_WAIT: Self = Self(6);
    /// TCP: a reset was seen.
    pub const RESET: Self = Self(7);
    /// Other protocols: only the initiator spoke.
    pub const NEW: Self = Self(8);
    /// Other protocols: the responder answered.
    pub const REPLIED: Self = Self(9);
    /// Policy ended the flow: its packets are dropped.
    pub const CUT: Self = Self(10);

    /// How many numbers there are.
    pub const COUNT: usize = 11;

    /// Whether the flow is over: its record is final unless traffic goes on.
    #[must_use]
    #[inline(always)]
    pub const fn is_closed(self) -> bool {
        matches!(self.0, 6 | 7 | 10)
    }

    /// Whether both ends have proved that they take part.
    #[must_use]
    #[inline(always)]
    pub const fn is_proven(self) -> bool {
        matches!(self.0, 3..=6 | 9)
    }

    /// The word in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            0 => "free",
            1 => "syn-sent",
            2 => "syn-received",
            3 => "established",
            4 => "fin-initiator",
            5 => "fin-responder",
            6 => "time-wait",
            7 => "reset",
            8 => "new",
            9 => "replied",
            10 => "cut",
            _ => "invalid",
        }
    }

    /// Idle timeout in seconds that the agent configures unless told otherwise.
    #[must_use]
    pub const fn default_timeout(self) -> u32 {
        match self.0 {
            1 | 2 => 30,
            // Beyond the two hours after which TCP keep-alives start (RFC 9293 §3.8.4), with room for their retries.
            3 => 8_000,
            4 | 5 => 600,
            6 | 7 | 10 => 10,
            8 => 30,
            9 => 120,
            _ => 0,
        }
    }
}

/// The state after a TCP segment that belongs to the flow.
#[must_use]
#[inline(always)]
pub const fn tcp_step(state: State, from_initiator: bool, flags: u8) -> State {
    let control = flags & tcp::CONTROL;
    if matches!(state, State::CUT) {
        return state;
    }
    if control & tcp::RST != 0 {
        return State::RESET;
    }
    if control & tcp::SYN != 0 {
        // A SYN never moves a proven flow; the responder's SYN answers the initiator's (or crosses it, RFC 9293 §3.5).
        return if matches!(state, State::SYN_SENT) && !from_initiator {
            State::SYN_RECEIVED
        } else {
            state
        };
    }
    if control & tcp::FIN != 0 {
        return match (state, from_initiator) {
            (State::TIME_WAIT, _) => State::TIME_WAIT,
            (State::FIN_RESPONDER, true) | (State::FIN_INITIATOR, false) => State::TIME_WAIT,
            (_, true) => State::FIN_INITIATOR,
            (_, false) => State::FIN_RESPONDER,
        };
    }
    match state {
        State::SYN_RECEIVED if from_initiator && control & tcp::ACK != 0 => State::ESTABLISHED,
        // Traffic after a reset: the reset was not believed, so neither is it here.
        State::RESET if control & tcp::ACK != 0 => State::ESTABLISHED,
        other => other,
    }
}

/// What a segment of a TCP flow that is not proven does to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unproven {
    /// The state after it.
    pub state: State,
    /// Both ends have proved by now that they take part.
    pub proven: bool,
    /// The responder's initial sequence number, when this segment is the first to tell it.
    pub isn: Option<u32>,
}

/// How far beyond the responder's SYN the initiator's first acknowledgment may be: data may come with the SYN's answer
/// (RFC 7413), or have been acknowledged by a segment that was lost here.
const ACKNOWLEDGED: u32 = 1 << 20;

/// The state after a TCP segment of a flow that is not proven. Only the initiator's acknowledgment of the responder's
/// initial sequence number proves it (RFC 9293 §3.5): nobody who does not see the responder's answers knows that number.
/// `numbers` are the segment's sequence and acknowledgment number, `isn` is the responder's number once it is known.
#[must_use]
#[inline(always)]
pub const fn tcp_unproven(
    state: State,
    from_initiator: bool,
    flags: u8,
    numbers: (u32, u32),
    isn: Option<u32>,
) -> Unproven {
    let mut out = Unproven {
        state,
        proven: false,
        isn: None,
    };
    let control = flags & tcp::CONTROL;
    if matches!(state, State::CUT) {
        return out;
    }
    if control & tcp::RST != 0 {
        out.state = State::RESET;
        return out;
    }
    if control & tcp::SYN != 0 {
        if !from_initiator {
            out.state = State::SYN_RECEIVED;
            if isn.is_none() {
                out.isn = Some(numbers.0);
            }
        }
        return out;
    }
    if let Some(isn) = isn
        && from_initiator
        && control & tcp::ACK != 0
        && numbers.1.wrapping_sub(isn).wrapping_sub(1) < ACKNOWLEDGED
    {
        out.proven = true;
        out.state = tcp_step(State::SYN_RECEIVED, true, flags);
    }
    out
}

/// The state after a packet of another protocol.
#[must_use]
#[inline(always)]
pub const fn datagram_step(state: State, from_initiator: bool) -> State {
    match state {
        State::NEW if !from_initiator => State::REPLIED,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(steps: &[(bool, u8)]) -> State {
        steps
            .iter()
            .fold(State::SYN_SENT, |state, (initiator, flags)| {
                tcp_step(state, *initiator, *flags)
            })
    }

    #[test]
    fn a_whole_connection() {
        use tcp::{ACK, FIN, SYN};
        assert_eq!(run(&[(false, SYN | ACK)]), State::SYN_RECEIVED);
        assert_eq!(run(&[(false, SYN | ACK), (true, ACK)]), State::ESTABLISHED);
        let open = [(false, SYN | ACK), (true, ACK)];
        assert_eq!(
            run(&[open[0], open[1], (true, FIN | ACK)]),
            State::FIN_INITIATOR
        );
        assert_eq!(
            run(&[open[0], open[1], (false, FIN | ACK)]),
            State::FIN_RESPONDER
        );
        assert_eq!(
            run(&[open[0], open[1], (true, FIN | ACK), (false, FIN | ACK)]),
            State::TIME_WAIT
        );
        assert_eq!(
            run(&[
                open[0],
                open[1],
                (true, FIN | ACK),
                (false, FIN | ACK),
                (true, ACK)
            ]),
            State::TIME_WAIT
        );
    }

    #[test]
    fn a_spurious_reset_is_undone_by_traffic_and_cut_by_nothing() {
        let reset = run(&[
            (false, tcp::SYN | tcp::ACK),
            (true, tcp::ACK),
            (false, tcp::RST),
        ]);
        assert_eq!(reset, State::RESET);
        assert_eq!(tcp_step(reset, true, tcp::ACK), State::ESTABLISHED);
        assert_eq!(tcp_step(State::CUT, true, tcp::ACK), State::CUT);
        assert_eq!(tcp_step(State::CUT, false, tcp::RST), State::CUT);
    }

    #[test]
    fn a_syn_moves_no_proven_flow() {
        for state in [
            State::ESTABLISHED,
            State::FIN_INITIATOR,
            State::FIN_RESPONDER,
        ] {
            assert_eq!(tcp_step(state, true, tcp::SYN), state);
            assert_eq!(tcp_step(state, false, tcp::SYN), state);
        }
    }

    #[test]
    fn only_the_responder_proves_a_datagram_flow() {
        assert_eq!(datagram_step(State::NEW, true), State::NEW);
        assert_eq!(datagram_step(State::NEW, false), State::REPLIED);
        assert_eq!(datagram_step(State::CUT, false), State::CUT);
    }
}

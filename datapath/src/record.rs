//! Reading an entry of the flow table as a person would: who began, what passed each way, what was decided.

use crate::abi::{Body, Flow4, Flow6};
use crate::conntrack::State;
use crate::drop_reason::DropReason;
use crate::flow::{Flags, Meta, bits};
use crate::ids::Direction;

/// A flow, seen from its initiator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowView {
    /// 4 or 6.
    pub family: u8,
    /// IANA protocol number.
    pub protocol: u8,
    /// Direction of the flow's first packet, seen from the endpoint.
    pub direction: Direction,
    /// Who began, v4-mapped for IPv4.
    pub initiator: [u8; 16],
    /// Who was asked.
    pub responder: [u8; 16],
    /// Port of the initiator; ICMP: the echo identifier.
    pub initiator_port: u16,
    /// Port of the responder; ICMP: the echo identifier.
    pub responder_port: u16,
    /// Wire segments, initiator → responder.
    pub packets_out: u64,
    /// L3 bytes, initiator → responder.
    pub bytes_out: u64,
    /// Wire segments, responder → initiator.
    pub packets_in: u64,
    /// L3 bytes, responder → initiator.
    pub bytes_in: u64,
    /// TCP flags seen, both ways together.
    pub tcp_flags: u8,
    /// Connection state.
    pub state: State,
    /// Packets pass.
    pub allowed: bool,
    /// The enforced policies allow it (differs from `allowed` in observe mode or when kept).
    pub evaluated_allow: bool,
    /// The draft allows it.
    pub draft_allow: bool,
    /// Taken over while live.
    pub adopted: bool,
    /// Allowed by a failsafe.
    pub failsafe: bool,
    /// Why not.
    pub reason: DropReason,
    /// Rule that decided.
    pub rule: u32,
    /// Rule that decided the draft.
    pub draft_rule: u32,
    /// Peer's identity.
    pub identity: u32,
    /// Generation of the content that judged last.
    pub generation: u32,
    /// Instance of the entry.
    pub sequence: u32,
    /// Jiffies (low 32 bits) of the first packet.
    pub first: u32,
    /// Jiffies (low 32 bits) of the last packet.
    pub last: u32,
    /// Seconds since boot at which the verdict expires; 0 = never.
    pub expiry: u32,
    /// Socket cookie; 0 = unknown.
    pub cookie: u64,
}

struct Parts<'a> {
    family: u8,
    protocol: u8,
    lo: [u8; 16],
    hi: [u8; 16],
    lo_port: u16,
    hi_port: u16,
    meta: Meta,
    lines: [&'a Body; 2],
}

impl FlowView {
    /// Reads an IPv4 entry.
    #[must_use]
    pub fn of4(flow: &Flow4) -> Self {
        use crate::packet::{Family as _, V4};
        let [a, b] = &flow.lines;
        Self::new(&Parts {
            family: 4,
            protocol: a.key.protocol,
            lo: V4::mapped(&a.key.lo),
            hi: V4::mapped(&a.key.hi),
            lo_port: u16::from_be_bytes(a.key.lo_port),
            hi_port: u16::from_be_bytes(a.key.hi_port),
            meta: Meta(a.meta),
            lines: [&a.body, &b.body],
        })
    }

    /// Reads an IPv6 entry.
    #[must_use]
    pub fn of6(flow: &Flow6) -> Self {
        let [a, b] = &flow.lines;
        Self::new(&Parts {
            family: 6,
            protocol: a.key.protocol,
            lo: a.key.lo,
            hi: a.key.hi,
            lo_port: u16::from_be_bytes(a.key.lo_port),
            hi_port: u16::from_be_bytes(a.key.hi_port),
            meta: Meta(a.meta),
            lines: [&a.body, &b.body],
        })
    }

    fn new(parts: &Parts<'_>) -> Self {
        let [lo, hi] = parts.lines;
        let flags = Flags(lo.flags);
        let verdict = flags.verdict();
        let initiator_is_lo = verdict & bits::INITIATOR_HI == 0;
        let (requests, answers) = if initiator_is_lo { (lo, hi) } else { (hi, lo) };
        let (initiator, responder) = if initiator_is_lo {
            (parts.lo, parts.hi)
        } else {
            (parts.hi, parts.lo)
        };
        let (initiator_port, responder_port) = if initiator_is_lo {
            (parts.lo_port, parts.hi_port)
        } else {
            (parts.hi_port, parts.lo_port)
        };
        let allowed = verdict & bits::ALLOW != 0;
        let evaluated_allow = verdict & bits::EVALUATED_DENY == 0;
        let reason = DropReason::from_u8(flags.reason()).unwrap_or(DropReason::None);
        Self {
            family: parts.family,
            protocol: parts.protocol,
            direction: if verdict & bits::EGRESS != 0 {
                Direction::Egress
            } else {
                Direction::Ingress
            },
            initiator,
            responder,
            initiator_port,
            responder_port,
            packets_out: requests.packets,
            bytes_out: requests.bytes,
            packets_in: answers.packets,
            bytes_in: answers.bytes,
            tcp_flags: flags.tcp() | Flags(hi.flags).tcp(),
            state: flags.state(),
            allowed,
            evaluated_allow,
            draft_allow: verdict & bits::DRAFT_DENY == 0,
            // Kept once at arming: the adopted bit is spent, the reason of the evaluated deny stays.
            adopted: verdict & bits::ADOPTED != 0
                || (allowed && !evaluated_allow && !matches!(reason, DropReason::ModeObserve)),
            failsafe: verdict & bits::FAILSAFE != 0,
            reason,
            rule: lo.a,
            draft_rule: lo.b,
            identity: lo.c,
            generation: parts.meta.generation(),
            sequence: parts.meta.sequence(),
            first: hi.a,
            last: if (lo.last.wrapping_sub(hi.last) as i32) >= 0 {
                lo.last
            } else {
                hi.last
            },
            expiry: lo.expiry,
            cookie: u64::from(hi.b) | (u64::from(hi.c) << 32),
        }
    }
}

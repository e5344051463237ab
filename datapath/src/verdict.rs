//! The verdict on one end of one new flow: the only implementation, run by kernel, agent, controller and CLI.

use core::borrow::Borrow;

use crate::abi::{
    AddrValue, ClassKey, ClassValue, EndpointValue, FailsafeKey, FailsafeValue, FilterValue,
    RuleKey, RuleValue, addr_flags, cells, failsafe_flags, filter_action, mode, rule_flags,
    verdict,
};
use crate::drop_reason::DropReason;
use crate::failsafe;
use crate::ids::{Direction, Identity};

/// A filter class that is not known: it has to be looked up.
pub const ASK: u32 = u32::MAX;

/// What a look-up of a class gave.
pub trait Class: Copy {
    /// Class in the filter trie; 0 when no filter speaks.
    fn filter(&self) -> u32;
    /// The filter class of the same peer in the other direction; [`ASK`] when it has to be looked up.
    fn back_filter(&self) -> u32;
}

impl Class for ClassValue {
    fn filter(&self) -> u32 {
        self.filter
    }

    fn back_filter(&self) -> u32 {
        ASK
    }
}

/// "Look this up", in the content that counts for this packet.
pub trait PolicyLookup {
    /// What a class is.
    type Class: Class;
    /// What a cell is.
    type Cell: Borrow<RuleValue>;

    /// The endpoint's mode.
    fn endpoint(&self, endpoint: u32) -> Option<EndpointValue>;
    /// The class of a peer.
    fn class(&self, key: &ClassKey) -> Option<Self::Class>;
    /// The cell of a class for a protocol and port, by longest prefix.
    fn rule(&self, class: &Self::Class, protocol: u8, port: u16) -> Option<Self::Cell>;
    /// The filter cell, by longest prefix.
    fn filter(&self, key: &RuleKey) -> Option<FilterValue>;
    /// A configured failsafe, by longest prefix.
    fn failsafe(&self, key: &FailsafeKey) -> Option<FailsafeValue>;
    /// Calls `look` with memory for a key. A method, because the kernel's stack has no room for one.
    fn with_failsafe_key(
        &self,
        look: impl FnOnce(&mut FailsafeKey) -> FailsafeValue,
    ) -> FailsafeValue {
        look(&mut FailsafeKey::default())
    }
    /// Bits of [`cells::bit`] for which no failsafe is configured in this direction; 0 when that is not known.
    fn failsafe_absent(&self, direction: Direction) -> u64 {
        let _ = direction;
        0
    }
    /// Nanoseconds since boot; asked only when a cell has an expiry.
    fn boot_ns(&self) -> u64;
}

/// One end of a flow, as its first packet shows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query {
    /// [`crate::ids::EndpointId`] number.
    pub endpoint: u32,
    /// Of the flow, seen from the endpoint.
    pub direction: Direction,
    /// What the peer's address is bound to.
    pub peer: AddrValue,
    /// The peer's address, v4-mapped for IPv4.
    pub peer_addr: [u8; 16],
    /// IANA protocol number.
    pub protocol: u8,
    /// Source port of the first packet.
    pub src_port: u16,
    /// Destination port of the first packet; ICMP: type × 256 + code.
    pub port: u16,
}

/// What was decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Decision {
    /// The packet passes.
    pub allow: bool,
    /// The enforced policies, mode left out, allow it.
    pub evaluated: bool,
    /// The draft allows it.
    pub draft: bool,
    /// A failsafe decided.
    pub failsafe: bool,
    /// The deny outlives `existing: keep`.
    pub hard: bool,
    /// The rule said `existing: keep`.
    pub keep: bool,
    /// The rule said `audit: true`.
    pub audit: bool,
    /// Policy is enforced here (a packet without state may not pass).
    pub enforced_here: bool,
    /// Why not; `None` when evaluated as allowed, `ModeObserve` when only the mode lets it pass.
    pub reason: DropReason,
    /// Why the evaluated verdict is a deny.
    pub evaluated_reason: DropReason,
    /// Rule that decided.
    pub rule: u32,
    /// Rule that decided the draft.
    pub draft_rule: u32,
    /// Seconds since boot at which it must be asked again; 0 = never.
    pub expiry: u32,
    /// Filter class of the answers, or [`ASK`].
    pub back_filter: u32,
}

impl Decision {
    /// A deny that no mode softens.
    #[must_use]
    #[inline(always)]
    pub const fn hard_deny(reason: DropReason, rule: u32) -> Self {
        Self {
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
            rule,
            draft_rule: rule,
            expiry: 0,
            back_filter: ASK,
        }
    }

    #[inline(always)]
    const fn by_failsafe(rule: u32) -> Self {
        Self {
            allow: true,
            evaluated: true,
            draft: true,
            failsafe: true,
            hard: false,
            keep: false,
            audit: false,
            enforced_here: false,
            reason: DropReason::None,
            evaluated_reason: DropReason::None,
            rule,
            draft_rule: rule,
            expiry: 0,
            back_filter: ASK,
        }
    }
}

/// Judges one end of a new flow. `panic_close` leaves failsafes only.
#[inline(always)]
pub fn decide<L: PolicyLookup>(lookup: &L, query: &Query, panic_close: bool) -> Decision {
    let failsafe = configured_failsafe(lookup, query);
    let flags = failsafe.flags;
    if panic_close {
        return match flags {
            0 => Decision::hard_deny(DropReason::PanicClose, 0),
            _ => Decision::by_failsafe(failsafe.rule),
        };
    }
    let Some(endpoint) = lookup.endpoint(query.endpoint) else {
        return match flags {
            0 => Decision::hard_deny(DropReason::NoEndpoint, 0),
            _ => Decision::by_failsafe(failsafe.rule),
        };
    };
    if endpoint.mode == mode::ISOLATE {
        return if flags & (failsafe_flags::CONTROLLER | failsafe_flags::FORENSIC) != 0 {
            Decision::by_failsafe(failsafe.rule)
        } else {
            Decision::hard_deny(DropReason::Isolated, 0)
        };
    }
    if query.peer.flags & addr_flags::ISOLATED != 0 {
        return if flags & failsafe_flags::FORENSIC != 0 {
            Decision::by_failsafe(failsafe.rule)
        } else {
            Decision::hard_deny(DropReason::PeerIsolated, 0)
        };
    }
    if flags != 0 {
        return Decision::by_failsafe(failsafe.rule);
    }
    by_policy(lookup, query, endpoint)
}

#[inline(always)]
fn by_policy<L: PolicyLookup>(lookup: &L, query: &Query, endpoint: EndpointValue) -> Decision {
    let key = ClassKey {
        endpoint: query.endpoint,
        identity: query.peer.identity,
        direction: query.direction as u32,
    };
    let Some(class) = lookup.class(&key) else {
        return missing(endpoint);
    };
    let Some(cell) = lookup.rule(&class, query.protocol, query.port) else {
        return missing(endpoint);
    };
    let mut decision = from_cell(lookup, cell.borrow());
    decision.back_filter = class.back_filter();
    if class.filter() != 0
        && let Some(filter) =
            lookup.filter(&RuleKey::lookup(class.filter(), query.protocol, query.port))
        && filter.action & 0xff == filter_action::DENY
    {
        let enforced = filter.action & filter_action::ENFORCED != 0;
        (decision.evaluated, decision.draft, decision.hard) = (false, false, true);
        (
            decision.evaluated_reason,
            decision.rule,
            decision.draft_rule,
        ) = (DropReason::Filter, filter.rule, filter.rule);
        (decision.enforced_here, decision.expiry) = (enforced, 0);
    }
    if query.peer.identity == Identity::UNKNOWN.0 && (decision.evaluated || decision.draft) {
        // Identity 0 matches no allow rule, whatever the tables say.
        if decision.evaluated {
            decision.evaluated_reason = DropReason::UnknownIdentity;
        }
        (decision.evaluated, decision.draft, decision.hard) = (false, false, true);
    }
    decision.allow = decision.evaluated || !decision.enforced_here;
    decision.reason = match (decision.evaluated, decision.allow) {
        (true, _) => DropReason::None,
        (false, true) => DropReason::ModeObserve,
        (false, false) => decision.evaluated_reason,
    };
    decision
}

#[inline(always)]
fn from_cell<L: PolicyLookup>(lookup: &L, cell: &RuleValue) -> Decision {
    let mut decision = Decision {
        allow: false,
        evaluated: cell.enforced == verdict::ALLOW,
        draft: cell.draft == verdict::ALLOW,
        failsafe: false,
        hard: cell.flags & rule_flags::HARD != 0,
        keep: cell.flags & rule_flags::KEEP != 0,
        audit: cell.flags & rule_flags::AUDIT != 0,
        enforced_here: cell.flags & rule_flags::ENFORCED != 0,
        reason: DropReason::None,
        evaluated_reason: reason_of(cell.reason),
        rule: cell.rule,
        draft_rule: cell.draft_rule,
        expiry: 0,
        back_filter: ASK,
    };
    if cell.expiry != 0 {
        if lookup.boot_ns() >= cell.expiry {
            let was_allowed = decision.evaluated;
            decision.evaluated = cell.after == verdict::ALLOW;
            decision.rule = cell.after_rule;
            decision.evaluated_reason = reason_of(cell.after_reason);
            if was_allowed && !decision.evaluated {
                // `keep` does not survive an expiry.
                decision.hard = true;
            }
        } else {
            // Rounded up to whole seconds would extend it; rounded down it is asked again early, which is harmless.
            let seconds = (cell.expiry / 1_000_000_000) as u32;
            decision.expiry = if seconds == 0 { 1 } else { seconds };
        }
    }
    decision
}

#[inline(always)]
fn reason_of(number: u8) -> DropReason {
    DropReason::from_u8(number).unwrap_or(DropReason::DefaultDeny)
}

/// The active content lacks an entry that it should have: unknown denies, unless nothing is enforced.
#[inline(always)]
const fn missing(endpoint: EndpointValue) -> Decision {
    let mut decision = Decision::hard_deny(DropReason::NoPolicyEntry, 0);
    if endpoint.mode == mode::OBSERVE {
        decision.allow = true;
        decision.enforced_here = false;
        decision.reason = DropReason::ModeObserve;
    }
    decision
}

/// The failsafe that covers the flow: for its exact port, for its protocol, for its peer.
#[inline(always)]
fn configured_failsafe<L: PolicyLookup>(lookup: &L, query: &Query) -> FailsafeValue {
    if failsafe::is_dhcp(query.direction, query.protocol, query.src_port, query.port) {
        return FailsafeValue {
            flags: failsafe_flags::ORDINARY,
            rule: failsafe::DHCP_RULE,
        };
    }
    let absent = lookup.failsafe_absent(query.direction);
    let is_absent = |protocol, port| absent.wrapping_shr(cells::bit(protocol, port)) & 1 != 0;
    let port = query.port.to_be_bytes();
    let exact = !is_absent(query.protocol, port);
    let protocol = !is_absent(query.protocol, [0, 0]);
    let peer = !is_absent(0, [0, 0]);
    if !(exact || protocol || peer) {
        return FailsafeValue::default();
    }
    lookup.with_failsafe_key(|key| {
        key.prefix_len = 160;
        key.direction = query.direction as u8;
        key.protocol = query.protocol;
        key.port = port;
        key.addr = query.peer_addr;
        let mut found = FailsafeValue::default();
        if exact {
            found = lookup.failsafe(key).unwrap_or_default();
        }
        key.port = [0, 0];
        if protocol {
            found = merge(found, lookup.failsafe(key));
        }
        key.protocol = 0;
        if peer {
            found = merge(found, lookup.failsafe(key));
        }
        found
    })
}

#[inline(always)]
fn merge(found: FailsafeValue, other: Option<FailsafeValue>) -> FailsafeValue {
    match other {
        Some(other) if found.flags == 0 => other,
        Some(other) => FailsafeValue {
            flags: found.flags | other.flags,
            rule: found.rule,
        },
        None => found,
    }
}

/// Whether the stateless filter drops packets of this tuple, and whether the mode enforces it. `filter` is the tuple's
/// filter class or [`ASK`].
#[inline(always)]
pub fn filtered<L: PolicyLookup>(lookup: &L, query: &Query, filter: u32) -> bool {
    if filter != ASK {
        return filter != 0 && filters(lookup, filter, query);
    }
    let key = ClassKey {
        endpoint: query.endpoint,
        identity: query.peer.identity,
        direction: query.direction as u32,
    };
    match lookup.class(&key) {
        Some(class) => class.filter() != 0 && filters(lookup, class.filter(), query),
        None => false,
    }
}

#[inline(always)]
fn filters<L: PolicyLookup>(lookup: &L, filter: u32, query: &Query) -> bool {
    match lookup.filter(&RuleKey::lookup(filter, query.protocol, query.port)) {
        Some(value) => {
            value.action & 0xff == filter_action::DENY
                && value.action & filter_action::ENFORCED != 0
        }
        None => false,
    }
}

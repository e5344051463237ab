//! Rule sets of a host's own packet filter: what iptables and nftables have in common.
//!
//! [`walk`] follows the chains and jumps for one kind of packet and lists what they decide, in order;
//! [`build`] makes a policy of that. A policy speaks about connections, a packet filter about packets, so
//! three kinds of packets are followed: the one that opens a connection, the later ones of the same
//! direction, and the replies. A connection passes if all three do.

pub(crate) mod build;
pub(crate) mod condition;
pub(crate) mod names;
pub(crate) mod walk;

use std::net::IpAddr;

use super::intervals::{Addresses, Intervals};
use crate::selectors::Selector;

/// What an import of a host's rule set needs to know besides the rules.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// Name of the policy.
    pub name: String,
    /// Who answers for it.
    pub owner: Option<String>,
    /// The workload that the host is.
    pub subject: Selector,
    /// Every address of the host that policy protects; empty = not known, and conditions on the host's own
    /// address cannot be carried over.
    pub addresses: Vec<IpAddr>,
    /// Interfaces over which all traffic of the workload comes and goes; empty = not known, and
    /// conditions on interfaces other than `lo` cannot be carried over.
    pub interfaces: Vec<String>,
    /// What cannot be carried over exactly may allow more than the source, instead of less.
    pub allow_wider: bool,
}

/// All chains of a host.
#[derive(Debug, Default)]
pub(crate) struct Ruleset {
    pub(crate) chains: Vec<Chain>,
    pub(crate) rules: Vec<SourceRule>,
    pub(crate) bases: Vec<Base>,
    /// Families whose rules are all here: no base chain means that nothing is filtered.
    pub(crate) complete: Addresses,
    /// Some rule exempts packets from connection tracking, so that no state is certain.
    pub(crate) untracked: bool,
}

/// Rules in order.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// For people: `filter INPUT`.
    pub(crate) name: String,
    /// Indices into [`Ruleset::rules`].
    pub(crate) rules: Vec<usize>,
    /// Why its rules say nothing about the workload's own traffic, if they are not reached.
    pub(crate) elsewhere: Option<String>,
}

/// A chain that the kernel starts with.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) chain: usize,
    pub(crate) way: Way,
    /// Order among the chains on the same way: hook, then priority, then as listed.
    pub(crate) order: (u8, i64),
    /// Families that pass it.
    pub(crate) families: Addresses,
    /// What happens at its end.
    pub(crate) accept: bool,
    /// NAT chains see the first packet of a connection only.
    pub(crate) opening_only: bool,
    /// Devices whose packets it sees; empty = all.
    pub(crate) devices: Vec<String>,
    /// It sees packets before connection tracking does, so that their state is not known.
    pub(crate) before_tracking: bool,
}

/// The way of a packet between the network and the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Towards the host.
    In,
    /// Away from it.
    Out,
}

/// Which packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The one that opens it.
    Opening,
    /// Later ones in the same direction.
    Later,
    /// Answers.
    Reply,
}

/// One rule as it stands in the source.
#[derive(Debug, Default)]
pub(crate) struct SourceRule {
    pub(crate) file: String,
    /// Line or JSON path.
    pub(crate) place: String,
    pub(crate) text: String,
    /// What rules that are made of it are called: chain and line or handle.
    pub(crate) label: String,
    pub(crate) comment: Option<String>,
    /// Looked at in order.
    pub(crate) clauses: Vec<Clause>,
    /// What else the rule does that policy has no word for; the only thing, if there are no clauses.
    pub(crate) aside: Option<String>,
}

/// A conjunction with a verdict.
#[derive(Clone, Debug)]
pub(crate) struct Clause {
    pub(crate) matches: Vec<Match>,
    pub(crate) verdict: Verdict,
}

/// What happens to a packet that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Passes this base chain.
    Accept,
    /// Is gone.
    Drop,
    /// Goes back to where the chain was jumped to from.
    Return,
    /// Goes through a chain and comes back.
    Jump(usize),
    /// Goes through a chain and back to where this one was jumped to from.
    Goto(usize),
    /// Gets another destination or port, so that later rules do not see what is on the wire.
    Rewrite,
    /// Somebody else decides.
    Elsewhere(String),
}

/// One condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// Source address.
    Source(Addresses),
    /// Destination address.
    Destination(Addresses),
    /// Protocols, each with all its ports.
    Protocols(Intervals),
    /// Source port, as services.
    SourcePort(Intervals),
    /// Destination port, as services.
    DestinationPort(Intervals),
    /// Type and code of one ICMP, as services.
    Icmp(Intervals),
    /// Connection tracking state: any of these.
    State(States),
    /// Whether it travels in the direction in which the connection was opened.
    Original(bool),
    /// `flags & mask == value`, or not.
    TcpFlags { mask: u8, value: u8, negated: bool },
    /// Incoming device, or not; `*` at the end stands for anything.
    InDevice(String, bool),
    /// Outgoing device, or not.
    OutDevice(String, bool),
    /// Kind of the source address as the routing table sees it, or not.
    SourceKind(AddressKind, bool),
    /// Kind of the destination address, or not.
    DestinationKind(AddressKind, bool),
    /// Whether the packet was sent to the host alone, to many, or to all; or not.
    PacketKind(AddressKind, bool),
    /// A condition that no connection through the network meets: it never matches.
    Never(String),
    /// A condition that policy has no word for.
    Unknown(String),
}

/// Kinds of addresses that rules ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressKind {
    /// One of the host's.
    Local,
    /// 224.0.0.0/4 and ff00::/8.
    Multicast,
    /// Any other kind that no address of the host is.
    Other,
}

/// States of connection tracking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct States {
    pub(crate) new: bool,
    pub(crate) established: bool,
    pub(crate) related: bool,
    pub(crate) invalid: bool,
    pub(crate) untracked: bool,
}

impl States {
    /// Adds a state by name; `false` when it is none.
    pub(crate) fn add(&mut self, name: &str) -> bool {
        let state = match name.to_ascii_lowercase().as_str() {
            "new" => &mut self.new,
            "established" => &mut self.established,
            "related" => &mut self.related,
            "invalid" => &mut self.invalid,
            "untracked" => &mut self.untracked,
            _ => return false,
        };
        *state = true;
        true
    }

    /// All others.
    pub(crate) const fn negated(self) -> Self {
        Self {
            new: !self.new,
            established: !self.established,
            related: !self.related,
            invalid: !self.invalid,
            untracked: !self.untracked,
        }
    }
}

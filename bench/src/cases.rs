//! What is measured on one host: each case is a program, a frame, and what must become of the packets.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Result;
use datapath::drop_reason::DropReason;
use serde::Serialize;

use crate::frames::{
    CLOSED, FILTERED, FILTERED_COUNT, FILTERED_PORT, Family, PEERS, SERVICE, Segment, UNKNOWN,
    UNKNOWN_COUNT, frame,
};
use crate::host::{Host, RING_ROOM};
use crate::programs::{self, End, Order, Program, Rewrite};

/// What must become of every packet of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Expect {
    /// It passes as a packet of a flow that is there: no drop, no notice.
    Established,
    /// It passes and opens a flow: a notice for each.
    New,
    /// It is dropped for this reason.
    Denied(DropReason),
}

/// Name and circumstances of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Label {
    pub(crate) case: String,
    pub(crate) family: Family,
    pub(crate) rules: u32,
    /// Flows in the working set, for cases that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) flows: Option<u32>,
}

/// What is run.
pub(crate) enum Runs {
    /// The program itself, over one and the same packet.
    Bare(OwnedFd),
    /// Behind a rewriter.
    Rewritten(Program, Rewrite),
}

impl Runs {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Bare(fd) => fd.as_fd(),
            Self::Rewritten(program, _) => program.as_fd(),
        }
    }
}

/// One row of the table.
pub(crate) struct Case<'h> {
    pub(crate) label: Label,
    pub(crate) host: &'h Host,
    pub(crate) runs: Runs,
    pub(crate) frame: Vec<u8>,
    pub(crate) expect: Expect,
    /// Most packets in a burst, where more would not fit the ring.
    pub(crate) most: Option<u32>,
    /// Packets before each burst that are not timed: they bring back into the caches what other cases pushed out.
    pub(crate) warm: u32,
    /// A reader empties the ring on another CPU meanwhile.
    pub(crate) reader: bool,
}

/// Makes the cases of one host and family.
pub(crate) struct Maker<'h> {
    pub(crate) host: &'h Host,
    pub(crate) family: Family,
}

impl<'h> Maker<'h> {
    fn case(&self, name: &str, runs: Runs, frame: Vec<u8>, expect: Expect) -> Case<'h> {
        Case {
            label: Label {
                case: name.to_owned(),
                family: self.family,
                rules: self.host.rules,
                flows: None,
            },
            host: self.host,
            runs,
            frame,
            expect,
            most: None,
            warm: 64,
            reader: false,
        }
    }

    fn bare(&self) -> Result<Runs> {
        Ok(Runs::Bare(self.host.ingress.try_clone()?))
    }

    fn rewritten(&self, base: u32, peers: u32, order: Order) -> Result<Runs> {
        let what = Rewrite {
            family: self.family,
            end: End::Source,
            base,
            peers,
            order,
            first: 0,
        };
        let program = programs::rewriter(&what, self.host.ingress.as_fd())?;
        Ok(Runs::Rewritten(program, what))
    }

    /// Packets that touch nearly all of the policy, as far as the ring has room for their notices.
    fn every_peer_twice(&self) -> u32 {
        self.host.rules.saturating_mul(2).min(RING_ROOM)
    }

    fn peer(&self, port: u16, segment: Segment) -> Vec<u8> {
        frame(self.family, PEERS, 1024, port, segment)
    }

    /// Packets of established flows: one flow, and pseudo-random ones of each of `sets`. The flows must be there.
    pub(crate) fn established(&self, sets: &[u32]) -> Result<Vec<Case<'h>>> {
        let ack = self.peer(SERVICE, Segment::Ack);
        let mut hot = self.case(
            "established",
            self.bare()?,
            ack.clone(),
            Expect::Established,
        );
        hot.label.flows = Some(1);
        let mut cases = vec![hot];
        for flows in sets {
            let order = Order::Random(*flows);
            let runs = self.rewritten(PEERS, self.host.rules, order)?;
            let mut case = self.case("established", runs, ack.clone(), Expect::Established);
            case.label.flows = Some(*flows);
            case.warm = flows.saturating_mul(2).min(200_000);
            cases.push(case);
        }
        Ok(cases)
    }

    /// Packets that are dropped, the same again and again.
    pub(crate) fn repeated(&self) -> Result<Vec<Case<'h>>> {
        let filtered = frame(self.family, FILTERED, 1024, FILTERED_PORT, Segment::Syn);
        Ok(vec![
            self.case(
                "denied, same SYN again",
                self.bare()?,
                self.peer(CLOSED, Segment::Syn),
                Expect::Denied(DropReason::DefaultDeny),
            ),
            self.case(
                "filter-denied, same SYN again",
                self.bare()?,
                filtered,
                Expect::Denied(DropReason::Filter),
            ),
        ])
    }

    /// Packets that are dropped, every one from another sender or to another port. `suffix` says in which state the
    /// table of denials is.
    pub(crate) fn scans(&self, suffix: &str) -> Result<Vec<Case<'h>>> {
        let denied = Expect::Denied(DropReason::DefaultDeny);
        let scan = Order::Scan { ports: true };
        let spoof = Order::Scan { ports: false };
        let unknown = frame(self.family, UNKNOWN, 1024, SERVICE, Segment::Syn);
        let filtered = frame(self.family, FILTERED, 1024, FILTERED_PORT, Segment::Syn);
        let mut cases = vec![
            self.case(
                &format!("denied, wrong port{suffix}"),
                self.rewritten(PEERS, self.host.rules, scan)?,
                self.peer(CLOSED, Segment::Syn),
                denied,
            ),
            self.case(
                &format!("denied, unknown source{suffix}"),
                self.rewritten(UNKNOWN, UNKNOWN_COUNT, spoof)?,
                unknown,
                denied,
            ),
        ];
        if suffix.is_empty() {
            cases.push(self.case(
                "filter-denied",
                self.rewritten(FILTERED, FILTERED_COUNT, spoof)?,
                filtered,
                Expect::Denied(DropReason::Filter),
            ));
        }
        for case in &mut cases {
            case.most = Some(NOTICED);
            case.warm = self.every_peer_twice();
        }
        Ok(cases)
    }

    /// Packets each of which opens a flow: the ring is emptied between the bursts, or by a reader during them.
    pub(crate) fn new_flows(&self, reader: bool) -> Result<Vec<Case<'h>>> {
        let name = if reader {
            "new flow, live reader"
        } else {
            "new flow"
        };
        let what = Rewrite {
            family: self.family,
            end: End::Source,
            base: PEERS,
            peers: self.host.rules,
            order: Order::Sequence,
            first: if reader { NEW_READER } else { 0 },
        };
        let program = programs::rewriter(&what, self.host.ingress.as_fd())?;
        let syn = self.peer(SERVICE, Segment::Syn);
        let mut case = self.case(name, Runs::Rewritten(program, what), syn, Expect::New);
        case.most = Some(NOTICED);
        case.warm = self.every_peer_twice();
        case.reader = reader;
        Ok(vec![case])
    }
}

/// Packets in a burst each of which may be announced.
const NOTICED: u32 = RING_ROOM / 2;
/// Number of the first flow of the case with a reader: 300,000 of ten peers are 30,000 ports of each.
const NEW_READER: u32 = 300_000;

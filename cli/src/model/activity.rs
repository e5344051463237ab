//! What happens on the wire: flows and edges.

use std::io;

use proto::v1;
use serde::Serialize;

use super::{address, moment, some, verdict};
use crate::output::{self, Column, Document, Screen, Table, Tone};

/// One end of a flow.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct End {
    pub(crate) address: Option<String>,
    /// `null` for ICMP and protocols without ports.
    pub(crate) port: Option<u32>,
    /// As known when the record arrived.
    pub(crate) workload: Option<String>,
}

impl End {
    fn name(&self) -> String {
        self.workload
            .clone()
            .or_else(|| self.address.clone())
            .unwrap_or_default()
    }
}

/// A process, as far as it is known.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Process {
    pub(crate) pid: Option<u32>,
    /// Of the thread.
    pub(crate) name: Option<String>,
    pub(crate) executable: Option<String>,
    pub(crate) started: Option<String>,
    pub(crate) uid: Option<u32>,
    pub(crate) cgroup: Option<String>,
    /// systemd unit.
    pub(crate) unit: Option<String>,
    pub(crate) container: Option<String>,
    /// `create`, `connect`, `bind` or `listed`.
    pub(crate) learnt: Option<String>,
}

impl From<v1::Process> for Process {
    fn from(process: v1::Process) -> Self {
        Self {
            pid: Some(process.pid).filter(|pid| *pid != 0),
            name: some(process.name),
            executable: some(process.executable),
            started: moment(process.started),
            uid: process.uid,
            cgroup: some(process.cgroup),
            unit: some(process.unit),
            container: some(process.container_id),
            learnt: some(process.learnt),
        }
    }
}

/// One flow, or one aggregated denial, as one host saw it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Flow {
    /// Unique for host and flow; the record with the highest counters of one uid counts.
    pub(crate) uid: String,
    pub(crate) host: String,
    pub(crate) first_seen: Option<String>,
    pub(crate) last_seen: Option<String>,
    /// `ingress` or `egress`, as the host saw it.
    pub(crate) direction: Option<&'static str>,
    /// `tcp`, `udp`, …, or the number.
    pub(crate) protocol: String,
    pub(crate) icmp_type: Option<u32>,
    pub(crate) icmp_code: Option<u32>,
    pub(crate) initiator: End,
    pub(crate) responder: End,
    /// From initiator to responder.
    pub(crate) packets_out: u64,
    pub(crate) bytes_out: u64,
    pub(crate) packets_in: u64,
    pub(crate) bytes_in: u64,
    pub(crate) state: Option<String>,
    pub(crate) closed: bool,
    /// What happened to the packets: `allow` or `deny`.
    pub(crate) verdict: &'static str,
    /// What the enforced policies say; differs from `verdict` in observe mode.
    pub(crate) enforced: &'static str,
    /// What they would say with every staged policy enforced.
    pub(crate) draft: &'static str,
    pub(crate) rule: Option<String>,
    pub(crate) draft_rule: Option<String>,
    pub(crate) reason: Option<String>,
    /// An aggregated denial: the `out` counters are what was dropped.
    pub(crate) denial: bool,
    /// The flow was there before the agent.
    pub(crate) adopted: bool,
    /// The process behind the flow on `host`; `null` when it is not known.
    pub(crate) process: Option<Process>,
    pub(crate) peer_identity: u32,
    pub(crate) generation: u32,
    pub(crate) revision: u64,
    #[serde(skip)]
    port_text: String,
}

impl From<v1::FlowRecord> for Flow {
    fn from(record: v1::FlowRecord) -> Self {
        let icmp = matches!(record.protocol, 1 | 58);
        let port = |port: u32| matches!(record.protocol, 6 | 17 | 132).then_some(port);
        let direction = match record.direction() {
            v1::Direction::Unspecified => None,
            v1::Direction::Ingress => Some("ingress"),
            v1::Direction::Egress => Some("egress"),
        };
        Self {
            direction,
            first_seen: moment(record.first_seen),
            last_seen: moment(record.last_seen),
            protocol: output::protocol(record.protocol),
            icmp_type: icmp.then_some(record.responder_port >> 8),
            icmp_code: icmp.then_some(record.responder_port & 0xff),
            initiator: End {
                address: record.initiator.as_ref().and_then(address),
                port: port(record.initiator_port),
                workload: some(record.initiator_workload),
            },
            responder: End {
                address: record.responder.as_ref().and_then(address),
                port: port(record.responder_port),
                workload: some(record.responder_workload),
            },
            packets_out: record.packets_out,
            bytes_out: record.bytes_out,
            packets_in: record.packets_in,
            bytes_in: record.bytes_in,
            state: some(record.state),
            closed: record.closed,
            verdict: verdict(record.allowed),
            enforced: verdict(record.evaluated_allow),
            draft: verdict(record.draft_allow),
            rule: some(record.rule),
            draft_rule: some(record.draft_rule),
            reason: some(record.reason).filter(|reason| reason != "none"),
            denial: record.denial,
            adopted: record.adopted,
            process: record.process.map(Process::from),
            peer_identity: record.peer_identity,
            generation: record.generation,
            revision: record.revision,
            port_text: output::port(record.protocol, record.responder_port),
            uid: record.uid,
            host: record.host,
        }
    }
}

impl Flow {
    /// Widths hold while rows are printed one by one.
    pub(crate) const HEADS: &[Column] = &[
        ("TIME", 24),
        ("VERDICT", 7),
        ("ENFORCED", 8),
        ("DRAFT", 5),
        ("FROM", 15),
        ("TO", 15),
        ("PORT", 9),
        ("OUT", 9),
        ("IN", 9),
        ("RULE", 28),
        ("REASON", 0),
    ];

    fn add_to(&self, table: &mut Table) {
        let tone = |verdict| match verdict {
            "allow" => Tone::Plain,
            _ => Tone::Bad,
        };
        let plain = |text: String| (text, Tone::Plain);
        table.row([
            plain(output::moment_or_empty(self.last_seen.as_ref())),
            (self.verdict.to_owned(), tone(self.verdict)),
            (self.enforced.to_owned(), tone(self.enforced)),
            (self.draft.to_owned(), tone(self.draft)),
            plain(self.initiator.name()),
            plain(self.responder.name()),
            plain(self.port_text.clone()),
            plain(output::bytes(self.bytes_out)),
            plain(output::bytes(self.bytes_in)),
            plain(self.rule.clone().unwrap_or_default()),
            plain(self.reason.clone().unwrap_or_default()),
        ]);
    }
}

impl Document for Flow {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        let mut table = Table::new(Self::HEADS);
        self.add_to(&mut table);
        table.print_rows(screen)
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(vec![self.uid.clone()])
    }
}

/// Flows that a follower was too slow to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Missed {
    pub(crate) missed: u64,
}

impl Missed {
    /// The controller tells it in a record that is none: a state and nothing else.
    pub(crate) fn told_by(record: &v1::FlowRecord) -> Option<Self> {
        let count = record.state.strip_prefix("lost:")?;
        let missed = count.parse().ok()?;
        record.uid.is_empty().then_some(Self { missed })
    }
}

impl Document for Missed {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        screen.remark(&format!(
            "{} flows came faster than they could be printed and are missing here",
            self.missed
        ))
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(Vec::new())
    }
}

/// Flows, newest first.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FlowList {
    pub(crate) flows: Vec<Flow>,
    /// There are more; ask with a higher `--limit`.
    pub(crate) truncated: bool,
}

impl Document for FlowList {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        // The whole table is known here, so columns are only as wide as they must be.
        let heads: Vec<Column> = Flow::HEADS.iter().map(|(name, _)| (*name, 0)).collect();
        let mut table = Table::new(&heads);
        for flow in &self.flows {
            flow.add_to(&mut table);
        }
        table.print(screen)?;
        super::more(self.truncated, screen)
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.flows.iter().map(|flow| flow.uid.clone()).collect())
    }
}

/// Who talked to whom on which port.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Edge {
    /// Workload or address.
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) protocol: String,
    /// ICMP: type × 256 + code.
    pub(crate) port: u32,
    pub(crate) first_seen: Option<String>,
    pub(crate) last_seen: Option<String>,
    pub(crate) flows: u64,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Flows that passed.
    pub(crate) allowed: u64,
    /// Flows that did not.
    pub(crate) denied: u64,
    #[serde(skip)]
    port_text: String,
}

impl From<v1::Edge> for Edge {
    fn from(edge: v1::Edge) -> Self {
        Self {
            from: edge.from,
            to: edge.to,
            protocol: output::protocol(edge.protocol),
            port: edge.port,
            first_seen: moment(edge.first_seen),
            last_seen: moment(edge.last_seen),
            flows: edge.flows,
            packets: edge.packets,
            bytes: edge.bytes,
            allowed: edge.allowed,
            denied: edge.denied,
            port_text: output::port(edge.protocol, edge.port),
        }
    }
}

/// Edges as the controller orders them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct EdgeList {
    pub(crate) edges: Vec<Edge>,
    /// There are more; ask with a higher `--limit`.
    pub(crate) truncated: bool,
}

impl Document for EdgeList {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        let mut table = Table::new(&[
            ("FROM", 0),
            ("TO", 0),
            ("PORT", 0),
            ("FLOWS", 0),
            ("ALLOWED", 0),
            ("DENIED", 0),
            ("BYTES", 0),
            ("FIRST-SEEN", 0),
            ("LAST-SEEN", 0),
        ]);
        for edge in &self.edges {
            let denied = if edge.denied > 0 {
                Tone::Bad
            } else {
                Tone::Plain
            };
            let plain = |text: String| (text, Tone::Plain);
            table.row([
                plain(edge.from.clone()),
                plain(edge.to.clone()),
                plain(edge.port_text.clone()),
                plain(edge.flows.to_string()),
                plain(edge.allowed.to_string()),
                (edge.denied.to_string(), denied),
                plain(output::bytes(edge.bytes)),
                plain(output::moment_or_empty(edge.first_seen.as_ref())),
                plain(output::moment_or_empty(edge.last_seen.as_ref())),
            ]);
        }
        table.print(screen)?;
        super::more(self.truncated, screen)
    }
}

//! One line of recorded traffic: what `cofferdam flows -o json` and `cofferdam edges -o json` print.
//!
//! Reading is strict where a wrong guess would change a verdict (addresses, protocol, ports, times)
//! and lenient about fields that it does not know: a newer version may print more.

use std::net::IpAddr;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::protocol_number;
use crate::ports::{PORTED, is_icmp};

/// Who one end of recorded traffic was: a workload, an address, or both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordedEnd<T = String> {
    /// Full name of the workload, as it was known when the record arrived.
    pub workload: Option<T>,
    /// The address, where the record has it.
    pub address: Option<IpAddr>,
}

/// A flow as one host saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// Unique for host and flow; of several records of one flow the one with the highest counters counts.
    pub uid: String,
    /// Name of the host.
    pub host: String,
    /// Which end the host is, if the record says it.
    pub side: Option<crate::snapshot::FlowDirection>,
    /// Who opened it.
    pub source: RecordedEnd,
    /// Who answered.
    pub destination: RecordedEnd,
    /// IANA protocol number.
    pub protocol: u8,
    /// Of the responder; ICMP: type × 256 + code; 0 where there is none.
    pub port: u16,
    /// Of the initiator; 0 where there is none.
    pub source_port: u16,
    /// First packet.
    pub first_seen: Option<OffsetDateTime>,
    /// Last packet.
    pub last_seen: Option<OffsetDateTime>,
    /// Both directions.
    pub packets: u64,
    /// Both directions, layer 3.
    pub bytes: u64,
    /// The responder sent something.
    pub answered: bool,
    /// The flow has ended.
    pub closed: bool,
    /// The flow was there before the agent, which guessed who opened it.
    pub adopted: bool,
    /// What happened to the packets.
    pub allowed: bool,
    /// What the enforced policies said, the mode left out.
    pub evaluated_allow: bool,
    /// What they said with everything staged.
    pub draft_allow: bool,
    /// Rule that decided.
    pub rule: Option<String>,
    /// Rule that decided the draft.
    pub draft_rule: Option<String>,
    /// Why it was denied.
    pub reason: Option<String>,
    /// Of the policy that judged it.
    pub revision: u64,
    /// The process behind it on the host: its unit, program or name.
    pub process: Option<String>,
}

/// An edge as the controller rolled it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeRecord {
    /// Who opens.
    pub source: RecordedEnd,
    /// Who answers.
    pub destination: RecordedEnd,
    /// IANA protocol number.
    pub protocol: u8,
    /// As in [`FlowRecord::port`].
    pub port: u16,
    /// First packet ever.
    pub first_seen: Option<OffsetDateTime>,
    /// Last packet so far.
    pub last_seen: Option<OffsetDateTime>,
    /// How many flows.
    pub flows: u64,
    /// Both directions.
    pub packets: u64,
    /// Both directions, layer 3.
    pub bytes: u64,
    /// Flows that passed.
    pub allowed: u64,
    /// Flows that did not.
    pub denied: u64,
}

/// What one line tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// One flow.
    Flow(Box<FlowRecord>),
    /// One edge.
    Edge(EdgeRecord),
    /// So many flows came faster than `flows -f` could print them.
    Missed(u64),
}

/// Why a line is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It is not JSON, or a field has another type.
    #[error("{0}")]
    Json(String),
    /// It is JSON, but neither a flow nor an edge.
    #[error("neither a flow nor an edge: there is neither \"initiator\" nor \"from\"")]
    Unknown,
    /// A field is missing.
    #[error("the field \"{0}\" is missing")]
    Missing(&'static str),
    /// A field makes no sense.
    #[error("{field}: {why}")]
    Field {
        /// Which one.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// The fields of both kinds of line. What is not listed is not looked at.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Line {
    missed: Option<u64>,
    uid: Option<String>,
    host: Option<String>,
    first_seen: Option<String>,
    last_seen: Option<String>,
    direction: Option<Side>,
    protocol: Option<String>,
    icmp_type: Option<u8>,
    icmp_code: Option<u8>,
    initiator: Option<LineEnd>,
    responder: Option<LineEnd>,
    #[serde(default)]
    packets_out: u64,
    #[serde(default)]
    bytes_out: u64,
    #[serde(default)]
    packets_in: u64,
    #[serde(default)]
    bytes_in: u64,
    #[serde(default)]
    closed: bool,
    #[serde(default)]
    adopted: bool,
    verdict: Option<Word>,
    enforced: Option<Word>,
    draft: Option<Word>,
    rule: Option<String>,
    draft_rule: Option<String>,
    reason: Option<String>,
    #[serde(default)]
    revision: u64,
    process: Option<LineProcess>,
    from: Option<String>,
    to: Option<String>,
    port: Option<u16>,
    #[serde(default)]
    flows: u64,
    #[serde(default)]
    packets: u64,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    allowed: u64,
    #[serde(default)]
    denied: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct LineEnd {
    address: Option<IpAddr>,
    port: Option<u16>,
    workload: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct LineProcess {
    name: Option<String>,
    executable: Option<String>,
    unit: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    Ingress,
    Egress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Allow,
    Deny,
}

impl Record {
    /// Reads one JSON text.
    ///
    /// # Errors
    /// When it is no record.
    pub fn parse(text: &str) -> Result<Self, RecordError> {
        let line: Line = serde_json::from_str(text).map_err(|error| {
            // The caller knows the line; only the column inside it is news.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            RecordError::Json(format!("column {}: {message}", error.column()))
        })?;
        Self::from_line(line)
    }

    /// Understands the fields of one line.
    ///
    /// # Errors
    /// When a field that is needed is missing or makes no sense.
    pub fn from_line(line: Line) -> Result<Self, RecordError> {
        if let Some(missed) = line.missed {
            return Ok(Self::Missed(missed));
        }
        if line.initiator.is_some() || line.responder.is_some() {
            return flow(line).map(|flow| Self::Flow(Box::new(flow)));
        }
        if line.from.is_some() || line.to.is_some() {
            return edge(line).map(Self::Edge);
        }
        Err(RecordError::Unknown)
    }
}

fn flow(line: Line) -> Result<FlowRecord, RecordError> {
    let protocol = protocol(line.protocol.as_deref())?;
    let source = line.initiator.ok_or(RecordError::Missing("initiator"))?;
    let destination = line.responder.ok_or(RecordError::Missing("responder"))?;
    let port = if is_icmp(protocol) {
        let kind = line.icmp_type.ok_or(RecordError::Missing("icmp_type"))?;
        u16::from_be_bytes([kind, line.icmp_code.unwrap_or(0)])
    } else if PORTED.contains(&protocol) {
        let port = destination.port;
        port.ok_or(RecordError::Missing("responder.port"))?
    } else {
        0
    };
    let source_port = source.port.unwrap_or(0);
    let allowed = line.verdict.ok_or(RecordError::Missing("verdict"))? == Word::Allow;
    let word = |word: Option<Word>| word.map_or(allowed, |word| word == Word::Allow);
    let (source, destination) = (
        end("initiator", source.workload, source.address)?,
        end("responder", destination.workload, destination.address)?,
    );
    same_family(&source, &destination)?;
    let (first_seen, last_seen) = times(line.first_seen.as_deref(), line.last_seen.as_deref())?;
    Ok(FlowRecord {
        uid: line.uid.unwrap_or_default(),
        host: line.host.unwrap_or_default(),
        side: line.direction.map(|side| match side {
            Side::Ingress => crate::snapshot::FlowDirection::Ingress,
            Side::Egress => crate::snapshot::FlowDirection::Egress,
        }),
        source,
        destination,
        protocol,
        port,
        source_port,
        first_seen,
        last_seen,
        packets: line.packets_out.saturating_add(line.packets_in),
        bytes: line.bytes_out.saturating_add(line.bytes_in),
        answered: line.packets_in > 0,
        closed: line.closed,
        adopted: line.adopted,
        allowed,
        evaluated_allow: word(line.enforced),
        draft_allow: word(line.draft),
        rule: line.rule,
        draft_rule: line.draft_rule,
        reason: line.reason,
        revision: line.revision,
        process: line
            .process
            .and_then(|process| process.unit.or(process.executable).or(process.name)),
    })
}

fn edge(line: Line) -> Result<EdgeRecord, RecordError> {
    let source = line.from.ok_or(RecordError::Missing("from"))?;
    let destination = line.to.ok_or(RecordError::Missing("to"))?;
    let (first_seen, last_seen) = times(line.first_seen.as_deref(), line.last_seen.as_deref())?;
    let edge = EdgeRecord {
        source: RecordedEnd::named("from", source)?,
        destination: RecordedEnd::named("to", destination)?,
        protocol: protocol(line.protocol.as_deref())?,
        port: line.port.ok_or(RecordError::Missing("port"))?,
        first_seen,
        last_seen,
        flows: line.flows,
        packets: line.packets,
        bytes: line.bytes,
        allowed: line.allowed,
        denied: line.denied,
    };
    same_family(&edge.source, &edge.destination)?;
    Ok(edge)
}

impl RecordedEnd {
    /// What stands in an edge: an address if it reads as one, otherwise the name of a workload.
    ///
    /// # Errors
    /// When it is empty.
    pub fn named(field: &'static str, text: String) -> Result<Self, RecordError> {
        match text.parse::<IpAddr>() {
            Ok(address) => end(field, None, Some(address)),
            Err(_) => end(field, Some(text), None),
        }
    }
}

fn end(
    field: &'static str,
    workload: Option<String>,
    address: Option<IpAddr>,
) -> Result<RecordedEnd, RecordError> {
    let workload = workload.filter(|name| !name.is_empty());
    if workload.is_none() && address.is_none() {
        return Err(RecordError::Field {
            field,
            why: "neither a workload nor an address".into(),
        });
    }
    Ok(RecordedEnd {
        workload,
        address: address.map(|address| address.to_canonical()),
    })
}

fn same_family(source: &RecordedEnd, destination: &RecordedEnd) -> Result<(), RecordError> {
    match (source.address, destination.address) {
        (Some(source), Some(destination)) if source.is_ipv4() != destination.is_ipv4() => {
            Err(RecordError::Field {
                field: "responder",
                why: format!("{destination} and {source} are not of one address family"),
            })
        }
        _ => Ok(()),
    }
}

fn protocol(name: Option<&str>) -> Result<u8, RecordError> {
    let name = name.ok_or(RecordError::Missing("protocol"))?;
    protocol_number(name).ok_or_else(|| RecordError::Field {
        field: "protocol",
        why: format!("unknown protocol \"{name}\""),
    })
}

type Times = (Option<OffsetDateTime>, Option<OffsetDateTime>);

fn times(first: Option<&str>, last: Option<&str>) -> Result<Times, RecordError> {
    let read = |field, text: Option<&str>| {
        text.map(|text| OffsetDateTime::parse(text, &Rfc3339))
            .transpose()
            .map_err(|_| RecordError::Field {
                field,
                why: "not a time; write it like 2026-11-23T10:00:00Z".into(),
            })
    };
    let (first, last) = (read("first_seen", first)?, read("last_seen", last)?);
    if let (Some(first), Some(last)) = (first, last)
        && last < first
    {
        return Err(RecordError::Field {
            field: "last_seen",
            why: "it is before first_seen".into(),
        });
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: &str = r#"{"uid": "u-1", "host": "db-1", "first_seen": "2026-11-23T10:00:00Z",
        "last_seen": "2026-11-23T10:00:01.5Z", "direction": "ingress", "protocol": "tcp", "icmp_type": null,
        "icmp_code": null, "initiator": {"address": "::ffff:10.0.0.5", "port": 40000, "workload": "web-1"},
        "responder": {"address": "10.0.1.9", "port": 5432, "workload": null}, "packets_out": 12, "bytes_out": 1536,
        "packets_in": 20, "bytes_in": 5242880, "verdict": "deny", "enforced": "deny", "draft": "allow",
        "rule": "standard/shop-db/ingress[0]", "reason": "default-deny", "denial": true, "revision": 12,
        "process": {"pid": 1, "name": "postgres", "executable": "/usr/bin/postgres", "unit": null}, "future": 1}"#;

    fn error(text: &str) -> String {
        Record::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_flow_is_read_as_printed() {
        let Record::Flow(flow) = Record::parse(FLOW).unwrap() else {
            panic!("no flow");
        };
        assert_eq!(flow.source.address, Some("10.0.0.5".parse().unwrap()));
        assert_eq!(flow.destination.workload, None);
        assert_eq!((flow.packets, flow.bytes, flow.port), (32, 5_244_416, 5432));
        assert_eq!(
            (flow.allowed, flow.evaluated_allow, flow.draft_allow),
            (false, false, true)
        );
        assert_eq!(flow.process.as_deref(), Some("/usr/bin/postgres"));
        assert_eq!(flow.revision, 12);
    }

    #[test]
    fn an_edge_and_a_gap_are_read() {
        let text = r#"{"from": "web-1", "to": "fd00::9", "protocol": "47", "port": 0, "flows": 3}"#;
        let Record::Edge(edge) = Record::parse(text).unwrap() else {
            panic!("no edge");
        };
        assert_eq!((edge.protocol, edge.flows), (47, 3));
        assert_eq!(edge.destination.address, Some("fd00::9".parse().unwrap()));
        assert_eq!(
            Record::parse("{\"missed\": 17}").unwrap(),
            Record::Missed(17)
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(error("{").starts_with("column 1: EOF"), "{}", error("{"));
        assert!(error("{\"a\": 1}").starts_with("neither a flow nor an edge"));
        for (wrong, right, message) in [
            ("\"allow\"", "\"pass\"", "unknown variant `pass`"),
            ("\"tcp\"", "\"tpc\"", "protocol: unknown protocol \"tpc\""),
            (
                "\"port\": 5432",
                "\"port\": null",
                "\"responder.port\" is missing",
            ),
            (
                "10:00:01.5Z",
                "09:00:00Z",
                "last_seen: it is before first_seen",
            ),
            ("10:00:01.5Z", "yesterday", "last_seen: not a time"),
            ("10.0.1.9", "fd00::9", "not of one address family"),
            ("\"verdict\"", "\"verdikt\"", "\"verdict\" is missing"),
        ] {
            let message_of = error(&FLOW.replace(wrong, right));
            assert!(message_of.contains(message), "{message_of}");
        }
    }
}

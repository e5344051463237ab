//! One flow, or one aggregated denial, as this host saw it.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use datapath::abi::{DenyKey, DenyValue, Event};
use datapath::conntrack::State;
use datapath::drop_reason::DropReason;
use datapath::flow::bits;
use datapath::ids::{Direction, protocol};
use datapath::record::FlowView;
use serde::{Serialize, Serializer};

use super::names::Names;
use super::process::Process;
use crate::kernel::clock::Converter;

/// A record. Counters are totals: of one uid the record with the highest counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Unique for this host, boot and flow.
    pub uid: String,
    /// UTC nanoseconds of the first packet.
    pub first_ns: i64,
    /// UTC nanoseconds of the last packet.
    pub last_ns: i64,
    /// Of the first packet, seen from the host: `ingress` or `egress`.
    pub direction: &'static str,
    /// IANA number.
    pub protocol: u8,
    /// Who began.
    pub initiator: IpAddr,
    /// Who was asked.
    pub responder: IpAddr,
    /// Port of the initiator.
    pub initiator_port: u16,
    /// Port of the responder; ICMP: type × 256 + code.
    pub responder_port: u16,
    /// Wire segments initiator → responder.
    pub packets_out: u64,
    /// L3 bytes initiator → responder.
    pub bytes_out: u64,
    /// Wire segments back.
    pub packets_in: u64,
    /// L3 bytes back.
    pub bytes_in: u64,
    /// TCP flags seen.
    pub tcp_flags: u8,
    /// Connection state.
    pub state: &'static str,
    /// The flow is over.
    pub closed: bool,
    /// Its packets passed.
    pub allowed: bool,
    /// The enforced policies allow it.
    pub evaluated_allow: bool,
    /// The draft allows it.
    pub draft_allow: bool,
    /// Why not.
    pub reason: &'static str,
    /// Rule that decided.
    pub rule: String,
    /// Rule that decided the draft.
    pub draft_rule: String,
    /// Peer's identity.
    pub peer_identity: u32,
    /// Generation that judged last.
    pub generation: u32,
    /// Revision behind it.
    pub revision: u64,
    /// An aggregated denial.
    pub denial: bool,
    /// The denied packet asked for a new flow.
    pub opening: bool,
    /// Taken over while live.
    pub adopted: bool,
    /// Socket cookie, 0 = unknown.
    pub cookie: u64,
    /// The process behind it on this host, where it is known.
    #[serde(serialize_with = "shared", skip_serializing_if = "Option::is_none")]
    pub process: Option<Arc<Process>>,
}

fn shared<S: Serializer>(process: &Option<Arc<Process>>, out: S) -> Result<S::Ok, S::Error> {
    process.as_deref().serialize(out)
}

/// What identifies a flow's instance: the same for its events and for its table entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Instance {
    /// IANA number.
    pub protocol: u8,
    /// Who began, v4-mapped.
    pub initiator: [u8; 16],
    /// Who was asked.
    pub responder: [u8; 16],
    /// Port of the initiator, echo identifier for ICMP.
    pub initiator_port: u16,
    /// Port of the responder; 0 for ICMP, whose events say type and code there.
    pub responder_port: u16,
    /// Instance of the entry.
    pub sequence: u32,
    /// Jiffies of the first packet.
    pub first: u32,
}

const fn is_icmp(number: u8) -> bool {
    matches!(number, protocol::ICMP | protocol::ICMPV6)
}

impl Instance {
    /// Of a table entry.
    #[must_use]
    pub const fn of_view(view: &FlowView) -> Self {
        Self {
            protocol: view.protocol,
            initiator: view.initiator,
            responder: view.responder,
            initiator_port: view.initiator_port,
            responder_port: if is_icmp(view.protocol) {
                0
            } else {
                view.responder_port
            },
            sequence: view.sequence,
            first: view.first,
        }
    }

    /// Of an event about a flow.
    #[must_use]
    pub const fn of_event(event: &Event) -> Self {
        Self {
            protocol: event.protocol,
            initiator: event.initiator,
            responder: event.responder,
            initiator_port: event.initiator_port,
            responder_port: if is_icmp(event.protocol) {
                0
            } else {
                event.responder_port
            },
            sequence: event.sequence,
            first: event.first,
        }
    }

    /// The uid in records.
    #[must_use]
    pub fn uid(&self, boot: &str) -> String {
        format!(
            "{boot}-{:x}-{:x}-{}-{}:{}-{}:{}",
            self.first,
            self.sequence,
            self.protocol,
            address(self.initiator),
            self.initiator_port,
            address(self.responder),
            self.responder_port
        )
    }
}

/// An address from its v4-mapped form.
#[must_use]
pub fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// What decoding needs to know of the host.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// First characters of the boot id.
    pub boot: &'a str,
    /// Ticks to UTC.
    pub clock: &'a Converter,
    /// Rule numbers to names.
    pub names: &'a Names,
}

impl Record {
    /// Of a table entry. `icmp` is type × 256 + code of the first packet, where it is known.
    #[must_use]
    pub fn of_view(context: &Context<'_>, view: &FlowView, icmp: Option<u16>) -> Self {
        let Context { boot, clock, names } = context;
        Self {
            uid: Instance::of_view(view).uid(boot),
            first_ns: clock.utc_of(view.first),
            last_ns: clock.utc_of(view.last),
            direction: view.direction.name(),
            protocol: view.protocol,
            initiator: address(view.initiator),
            responder: address(view.responder),
            initiator_port: view.initiator_port,
            responder_port: responder_port(view, icmp),
            packets_out: view.packets_out,
            bytes_out: view.bytes_out,
            packets_in: view.packets_in,
            bytes_in: view.bytes_in,
            tcp_flags: view.tcp_flags,
            state: view.state.name(),
            closed: view.state.is_closed(),
            allowed: view.allowed,
            evaluated_allow: view.evaluated_allow,
            draft_allow: view.draft_allow,
            reason: view.reason.name(),
            rule: names.rule(view.generation, view.rule),
            draft_rule: names.rule(view.generation, view.draft_rule),
            peer_identity: view.identity,
            generation: view.generation,
            revision: names.revision(view.generation),
            denial: false,
            opening: false,
            adopted: view.adopted,
            cookie: view.cookie,
            process: None,
        }
    }

    /// Of the notice that a flow began or ended.
    #[must_use]
    pub fn of_event(context: &Context<'_>, event: &Event, closed: bool) -> Self {
        let Context { boot, clock, names } = context;
        let state = State(event.state);
        let [packets_out, packets_in] = event.packets;
        let [bytes_out, bytes_in] = event.bytes;
        Self {
            uid: Instance::of_event(event).uid(boot),
            first_ns: clock.utc_of(event.first),
            last_ns: clock.utc_of(event.last),
            direction: Direction::from_u8(event.direction).name(),
            protocol: event.protocol,
            initiator: address(event.initiator),
            responder: address(event.responder),
            initiator_port: event.initiator_port,
            responder_port: event.responder_port,
            packets_out,
            bytes_out,
            packets_in,
            bytes_in,
            tcp_flags: event.tcp_flags,
            state: state.name(),
            closed,
            allowed: event.verdict & bits::ALLOW != 0,
            evaluated_allow: event.verdict & bits::EVALUATED_DENY == 0,
            draft_allow: event.verdict & bits::DRAFT_DENY == 0,
            reason: DropReason::from_u8(event.reason)
                .unwrap_or(DropReason::None)
                .name(),
            rule: names.rule(event.generation, event.rule),
            draft_rule: names.rule(event.generation, event.draft_rule),
            peer_identity: event.identity,
            generation: event.generation,
            revision: names.revision(event.generation),
            denial: false,
            opening: event.opening != 0,
            adopted: event.verdict & bits::ADOPTED != 0,
            cookie: event.cookie,
            process: None,
        }
    }

    /// Of an aggregated denial.
    #[must_use]
    pub fn of_denial(
        context: &Context<'_>,
        key: &DenyKey,
        value: &DenyValue,
        closed: bool,
    ) -> Self {
        let Context { boot, clock, names } = context;
        let initiator = address(key.initiator);
        let responder = address(key.responder);
        let port = u16::from_be_bytes(key.port);
        Self {
            uid: format!(
                "{boot}-deny-{:x}-{}-{}-{}-{initiator}-{responder}:{port}-{}-{}",
                value.first, key.protocol, key.rule, key.reason, key.direction, key.opening
            ),
            first_ns: clock.utc_of(value.first),
            last_ns: clock.utc_of(value.last),
            direction: Direction::from_u8(key.direction).name(),
            protocol: key.protocol,
            initiator,
            responder,
            initiator_port: u16::try_from(value.source_port).unwrap_or(0),
            responder_port: port,
            packets_out: value.packets,
            bytes_out: value.bytes,
            packets_in: 0,
            bytes_in: 0,
            tcp_flags: 0,
            state: "denied",
            closed,
            allowed: false,
            evaluated_allow: false,
            draft_allow: value.draft == u32::from(datapath::abi::verdict::ALLOW),
            reason: DropReason::from_u8(key.reason)
                .unwrap_or(DropReason::None)
                .name(),
            rule: names.rule(value.generation, key.rule),
            draft_rule: names.rule(value.generation, value.draft_rule),
            peer_identity: value.identity,
            generation: value.generation,
            revision: names.revision(value.generation),
            denial: true,
            opening: key.opening != 0,
            adopted: false,
            cookie: 0,
            process: None,
        }
    }
}

/// One line for a person, from the JSON that the daemon sends.
#[must_use]
pub fn line_of(record: &serde_json::Value) -> String {
    use serde_json::Value;
    let word = |key: &str| record.get(key).and_then(Value::as_str).unwrap_or_default();
    let number = |key: &str| record.get(key).and_then(Value::as_u64).unwrap_or(0);
    let flag = |key: &str| record.get(key).and_then(Value::as_bool).unwrap_or(false);
    let verdict = match (flag("allowed"), flag("evaluated_allow")) {
        (true, true) => "allow",
        (true, false) => "allow*",
        (false, _) => "DENY",
    };
    let arrow = if word("direction") == "ingress" {
        "<-"
    } else {
        "->"
    };
    let at = record
        .get("last_ns")
        .and_then(Value::as_i64)
        .and_then(|ns| time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns)).ok())
        .and_then(|at| {
            at.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_default();
    let end = |address: &str, port: &str| match word(address).parse() {
        Ok(ip) => {
            std::net::SocketAddr::new(ip, u16::try_from(number(port)).unwrap_or(0)).to_string()
        }
        Err(_) => word(address).to_owned(),
    };
    let mut line = format!(
        "{at} {verdict:<6} {arrow} {} {} -> {} {} packets {}/{} bytes {}/{}",
        policy::ports::protocol_name(u8::try_from(number("protocol")).unwrap_or(0)),
        end("initiator", "initiator_port"),
        end("responder", "responder_port"),
        word("state"),
        number("packets_out"),
        number("packets_in"),
        number("bytes_out"),
        number("bytes_in"),
    );
    if !word("rule").is_empty() {
        line.push_str(&format!(" rule {}", word("rule")));
    }
    if !matches!(word("reason"), "" | "none") {
        line.push_str(&format!(" ({})", word("reason")));
    }
    if let Some(process) = record.get("process") {
        line.push_str(&process_of(process));
    }
    line
}

/// Who it was: program or name, pid, and the unit or container around it.
fn process_of(process: &serde_json::Value) -> String {
    let word = |key: &str| process.get(key).and_then(serde_json::Value::as_str);
    let mut text = format!(" by {}", word("executable").or(word("name")).unwrap_or("?"));
    if let Some(pid) = process.get("pid") {
        text.push_str(&format!("[{pid}]"));
    }
    if let Some(uid) = process.get("uid") {
        text.push_str(&format!(" uid {uid}"));
    }
    let place = word("container").map(|id| id.get(..12).unwrap_or(id));
    if let Some(place) = place.or(word("unit")) {
        text.push_str(&format!(" in {place}"));
    }
    text
}

fn responder_port(view: &FlowView, icmp: Option<u16>) -> u16 {
    match view.protocol {
        // A flow of ICMP begins with an echo request unless an event said otherwise.
        protocol::ICMP => icmp.unwrap_or(8 << 8),
        protocol::ICMPV6 => icmp.unwrap_or(128 << 8),
        _ => view.responder_port,
    }
}

//! The agent's own types as wire types.

use std::collections::BTreeMap;

use proto::convert;
use proto::v1;

use crate::flows::Record;
use crate::flows::process::Process;

/// A batch of records of the workload `host`: the controller refuses records of anybody else.
#[must_use]
pub fn batch(
    host: &str,
    sequence: u64,
    records: &[Record],
    lost: &BTreeMap<String, u64>,
    utc_ns: i64,
) -> v1::FlowBatch {
    v1::FlowBatch {
        sequence,
        records: records.iter().map(|record| flow(record, host)).collect(),
        lost: lost
            .iter()
            .map(|(cause, count)| (cause.clone(), *count))
            .collect(),
        sent_at: Some(convert::from_unix_ns(utc_ns)),
    }
}

fn flow(record: &Record, host: &str) -> v1::FlowRecord {
    let Record {
        uid,
        first_ns,
        last_ns,
        direction,
        protocol,
        initiator,
        responder,
        initiator_port,
        responder_port,
        packets_out,
        bytes_out,
        packets_in,
        bytes_in,
        tcp_flags,
        state,
        closed,
        allowed,
        evaluated_allow,
        draft_allow,
        reason,
        rule,
        draft_rule,
        peer_identity,
        generation,
        revision,
        denial,
        opening,
        adopted,
        cookie,
        process,
    } = record;
    let direction = if *direction == "ingress" {
        v1::Direction::Ingress
    } else {
        v1::Direction::Egress
    };
    v1::FlowRecord {
        uid: uid.clone(),
        host: host.to_owned(),
        first_seen: Some(convert::from_unix_ns(*first_ns)),
        last_seen: Some(convert::from_unix_ns(*last_ns)),
        direction: direction.into(),
        protocol: u32::from(*protocol),
        initiator: Some((*initiator).into()),
        responder: Some((*responder).into()),
        initiator_port: u32::from(*initiator_port),
        responder_port: u32::from(*responder_port),
        packets_out: *packets_out,
        bytes_out: *bytes_out,
        packets_in: *packets_in,
        bytes_in: *bytes_in,
        tcp_flags: u32::from(*tcp_flags),
        state: (*state).to_owned(),
        closed: *closed,
        allowed: *allowed,
        evaluated_allow: *evaluated_allow,
        draft_allow: *draft_allow,
        reason: (*reason).to_owned(),
        rule: rule.clone(),
        draft_rule: draft_rule.clone(),
        peer_identity: *peer_identity,
        generation: *generation,
        revision: *revision,
        denial: *denial,
        opening: *opening,
        adopted: *adopted,
        endpoint: datapath::ids::EndpointId::HOST.0,
        socket_cookie: *cookie,
        process: process.as_deref().map(process_of),
        ..v1::FlowRecord::default()
    }
}

fn process_of(process: &Process) -> v1::Process {
    let Process {
        pid,
        name,
        executable,
        start_ns,
        uid,
        cgroup,
        unit,
        container,
        learnt,
    } = process;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    v1::Process {
        pid: pid.unwrap_or(0),
        name: text(name),
        executable: text(executable),
        started: start_ns.map(convert::from_unix_ns),
        uid: *uid,
        cgroup: text(cgroup),
        unit: text(unit),
        container_id: text(container),
        learnt: (*learnt).to_owned(),
    }
}

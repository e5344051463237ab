//! An agent speaks for itself only, and its records make sense.

use std::net::IpAddr;

use policy::snapshot::FlowDirection;
use proto::convert::{self, ConvertError};
use proto::v1;

use super::Flow;
use crate::state::State;

/// Longest text in a record.
const TEXT: usize = 1_024;

/// Why a batch is refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field does not fit.
    #[error("records[{0}].{1}")]
    Malformed(usize, ConvertError),
    /// A text is missing or too long.
    #[error("records[{0}].{1}: a text of 1 to {TEXT} bytes is needed")]
    Text(usize, &'static str),
    /// It tells of another host.
    #[error("records[{0}]: host is \"{1}\", but this is the agent of \"{2}\"")]
    Host(usize, String, String),
    /// The end that should be the agent's own is not.
    #[error("records[{0}]: {1} is not an address of this agent")]
    Foreign(usize, IpAddr),
}

/// Checks the records of an agent and fills in the names of workloads.
///
/// # Errors
/// The first record that must not be.
pub fn check(
    state: &State,
    workload: &str,
    records: Vec<v1::FlowRecord>,
) -> Result<Vec<Flow>, Refusal> {
    let known = state.workloads.get(workload);
    let agent = Agent {
        workload,
        hostname: known.map_or("", |record| &record.hostname),
        addresses: known.map_or(&[], |record| &record.addresses),
    };
    records
        .into_iter()
        .enumerate()
        .map(|(index, record)| one(state, &agent, index, record))
        .collect()
}

/// Who speaks, by certificate.
struct Agent<'a> {
    workload: &'a str,
    hostname: &'a str,
    addresses: &'a [IpAddr],
}

fn one(
    state: &State,
    agent: &Agent<'_>,
    index: usize,
    mut record: v1::FlowRecord,
) -> Result<Flow, Refusal> {
    let malformed = |error| Refusal::Malformed(index, error);
    // It may call itself by the name of its host; what is stored is who it has proved to be.
    if record.host != agent.workload && record.host != agent.hostname {
        return Err(Refusal::Host(index, record.host, agent.workload.to_owned()));
    }
    agent.workload.clone_into(&mut record.host);
    if record.uid.is_empty() || record.uid.len() > 256 {
        return Err(Refusal::Text(index, "uid"));
    }
    for (field, text) in [
        ("state", &record.state),
        ("reason", &record.reason),
        ("rule", &record.rule),
        ("draft_rule", &record.draft_rule),
    ] {
        if text.len() > TEXT {
            return Err(Refusal::Text(index, field));
        }
    }
    if let Some(process) = &mut record.process {
        clip(process);
    }
    let direction = convert::to_direction("direction", record.direction).map_err(malformed)?;
    let address = |field, value: &Option<v1::Address>| {
        convert::to_address(field, value.as_ref())
            .map(|address| address.to_canonical())
            .map_err(malformed)
    };
    let initiator = address("initiator", &record.initiator)?;
    let responder = address("responder", &record.responder)?;
    let protocol = convert::to_u8("protocol", record.protocol).map_err(malformed)?;
    let port = convert::to_u16("responder_port", record.responder_port).map_err(malformed)?;
    convert::to_u16("initiator_port", record.initiator_port).map_err(malformed)?;
    let time = |field: &str, value: &Option<prost_types::Timestamp>| {
        convert::to_unix_ns(&value.unwrap_or_default())
            .map_err(|error| malformed(error.within(field)))
    };
    let first_seen = time("first_seen", &record.first_seen)?;
    let last_seen = time("last_seen", &record.last_seen)?;

    let egress = direction == FlowDirection::Egress;
    let local = if egress { initiator } else { responder };
    if !agent.addresses.contains(&local) && !shared(local, egress) {
        return Err(Refusal::Foreign(index, local));
    }
    // Names are the controller's business: what an agent put there does not count.
    record.initiator_workload = state.owner(initiator).unwrap_or_default().to_owned();
    record.responder_workload = state.owner(responder).unwrap_or_default().to_owned();
    Ok(Flow {
        record,
        initiator,
        responder,
        egress,
        protocol,
        port,
        first_seen,
        last_seen,
    })
}

/// Who a process is, is reported and not matched: a path that is too long is cut rather than refused.
fn clip(process: &mut v1::Process) {
    let v1::Process {
        name,
        executable,
        cgroup,
        unit,
        container_id,
        learnt,
        pid: _,
        started: _,
        uid: _,
    } = process;
    for text in [name, executable, cgroup, unit, container_id, learnt] {
        let end = (0..=TEXT).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
    }
}

/// Addresses that are nobody's own: a host may send from, or receive at, any of these.
fn shared(local: IpAddr, egress: bool) -> bool {
    let link_local = match local {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let group = match local {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    };
    link_local
        || if egress {
            local.is_unspecified()
        } else {
            group
        }
}

//! Flows: checked, merged exactly once, rolled up into edges, shown live, given to the detectors.

mod check;
mod db;
mod ingest;
mod merge;
mod query;

use std::net::IpAddr;

use proto::v1;

pub use check::{Refusal, check};
pub use db::{FlowDb, Ingested, Outcome};
pub use ingest::{Ingest, Live, Submitted};
pub use query::Filter;

/// A record that has been checked, with its parts taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    /// As received, with the names of the workloads filled in.
    pub record: v1::FlowRecord,
    /// Who opened it.
    pub initiator: IpAddr,
    /// Who answers.
    pub responder: IpAddr,
    /// The initiator's side told of it.
    pub egress: bool,
    /// IANA protocol number.
    pub protocol: u8,
    /// Of the responder; ICMP: type × 256 + code.
    pub port: u16,
    /// UTC nanoseconds.
    pub first_seen: i64,
    /// UTC nanoseconds.
    pub last_seen: i64,
}

impl Flow {
    /// Name of the initiator's workload, or its address.
    #[must_use]
    pub fn from(&self) -> String {
        name_or(&self.record.initiator_workload, self.initiator)
    }

    /// Name of the responder's workload, or its address.
    #[must_use]
    pub fn to(&self) -> String {
        name_or(&self.record.responder_workload, self.responder)
    }
}

fn name_or(name: &str, address: IpAddr) -> String {
    if name.is_empty() {
        address.to_string()
    } else {
        name.to_owned()
    }
}

/// Records of one batch, all checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Name of the agent's workload.
    pub host: String,
    /// Of the agent, from 1.
    pub sequence: u64,
    /// Empty when the batch was refused: then only its number counts.
    pub flows: Vec<Flow>,
    /// It was refused.
    pub refused: bool,
    /// Records that the agent lost since the batch before.
    pub lost: u64,
}

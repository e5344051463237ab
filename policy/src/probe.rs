//! A question about one new connection.

use std::net::IpAddr;

use crate::problems::did_you_mean;
use crate::world::{Who, Workload, World};

/// One end of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeEnd {
    /// A workload by name.
    Name(String),
    /// An address, whoever owns it.
    Address(IpAddr),
}

impl ProbeEnd {
    /// An address if it reads as one, otherwise a name.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.parse::<IpAddr>() {
            Ok(address) => Self::Address(address.to_canonical()),
            Err(_) => Self::Name(text.to_owned()),
        }
    }
}

/// A question about one new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Repeated in the answer.
    pub id: String,
    /// Who opens it.
    pub from: ProbeEnd,
    /// Who answers.
    pub to: ProbeEnd,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; ICMP: type × 256 + code; 0 where there is none.
    pub port: u16,
}

/// Why a probe has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// No workload has the name.
    #[error("there is no workload \"{name}\"{}", .suggestion.as_ref().map(|text| format!("; {text}")).unwrap_or_default())]
    UnknownWorkload {
        /// As given.
        name: String,
        /// A close one.
        suggestion: Option<String>,
    },
    /// The workload cannot send or receive.
    #[error("workload \"{0}\" has no address")]
    NoAddress(String),
    /// One end is IPv4 and the other IPv6.
    #[error("the two ends have no address family in common")]
    NoCommonFamily,
}

/// A probe with addresses and owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<'a> {
    /// Address of the opener.
    pub source: IpAddr,
    /// Address of the answerer.
    pub destination: IpAddr,
    /// Workload that opens, if it is managed.
    pub from: Option<&'a Workload>,
    /// Workload that answers, if it is managed.
    pub to: Option<&'a Workload>,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; ICMP: type × 256 + code.
    pub port: u16,
}

impl<'a> Flow<'a> {
    /// Finds workloads and addresses. A workload with several addresses uses the first one that the
    /// other end can reach, i.e. of the same family.
    pub fn resolve(world: &'a World, probe: &Probe) -> Result<Self, ProbeError> {
        let (from, sources) = end(world, &probe.from)?;
        let (to, destinations) = end(world, &probe.to)?;
        let (source, destination) = sources
            .iter()
            .flat_map(|source| {
                destinations
                    .iter()
                    .map(move |destination| (*source, *destination))
            })
            .find(|(source, destination)| source.is_ipv4() == destination.is_ipv4())
            .ok_or(ProbeError::NoCommonFamily)?;
        Ok(Self {
            source,
            destination,
            from,
            to,
            protocol: probe.protocol,
            port: probe.port,
        })
    }

    /// A flow between two addresses.
    #[must_use]
    pub fn between(
        world: &'a World,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Self {
        let (source, destination) = (source.to_canonical(), destination.to_canonical());
        Self {
            source,
            destination,
            from: world.who(source).workload(),
            to: world.who(destination).workload(),
            protocol,
            port,
        }
    }
}

fn end<'a>(
    world: &'a World,
    end: &ProbeEnd,
) -> Result<(Option<&'a Workload>, Vec<IpAddr>), ProbeError> {
    match end {
        ProbeEnd::Address(address) => {
            let address = address.to_canonical();
            let workload = match world.who(address) {
                Who::Workload(workload) => Some(workload),
                _ => None,
            };
            Ok((workload, vec![address]))
        }
        ProbeEnd::Name(name) => {
            let workload = world
                .workload(name)
                .ok_or_else(|| ProbeError::UnknownWorkload {
                    name: name.clone(),
                    suggestion: did_you_mean(name, world.names()),
                })?;
            if workload.addresses.is_empty() {
                return Err(ProbeError::NoAddress(name.clone()));
            }
            Ok((Some(workload), workload.addresses.clone()))
        }
    }
}

//! Wire types to and from the types that the rest of the code works with.
//!
//! Everything that arrives is checked here, field by field, and refused with the path of the field
//! that does not fit. What leaves is never refused.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use datapath::ids::EndpointId;
use ipnet::IpNet;
use policy::snapshot::{self, FlowDirection};

use crate::v1;

/// Number of a machine's own endpoint: the only one that an agent of a virtual machine has.
pub const HOST_ENDPOINT: EndpointId = EndpointId::HOST;

/// A field that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {fault}")]
pub struct ConvertError {
    /// Path of the field, `rules[3].ports.port`.
    pub field: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A message that must be there is not.
    #[error("missing")]
    Missing,
    /// An address has neither 4 nor 16 bytes.
    #[error("an address has 4 or 16 bytes, not {0}")]
    AddressLength(usize),
    /// A prefix is longer than its address.
    #[error("prefix length {length} is above {max}")]
    PrefixLength {
        /// As received.
        length: u32,
        /// 32 or 128.
        max: u8,
    },
    /// An address has bits set behind its prefix.
    #[error("bits are set behind the prefix")]
    HostBits,
    /// An enumeration has no such value, or the value "unspecified".
    #[error("unknown value {0}")]
    UnknownValue(i32),
    /// A number does not fit.
    #[error("{value} is above {max}")]
    OutOfRange {
        /// As received.
        value: u64,
        /// Largest allowed.
        max: u64,
    },
    /// A time before 1970, after 2262 or with impossible nanoseconds.
    #[error("time out of range")]
    Time,
    /// A block of ports that is not one.
    #[error("not a block of ports: {0}")]
    PortBlock(&'static str),
}

impl ConvertError {
    fn new(field: &str, fault: Fault) -> Self {
        Self {
            field: field.to_owned(),
            fault,
        }
    }

    /// Puts the path of the enclosing message before the field's.
    #[must_use]
    pub fn within(mut self, parent: &str) -> Self {
        self.field = if self.field.is_empty() {
            parent.to_owned()
        } else {
            format!("{parent}.{}", self.field)
        };
        self
    }
}

fn required<T>(field: &str, value: Option<T>) -> Result<T, ConvertError> {
    value.ok_or_else(|| ConvertError::new(field, Fault::Missing))
}

fn small<T: TryFrom<u32>>(field: &str, value: u32, max: u64) -> Result<T, ConvertError> {
    T::try_from(value).map_err(|_| {
        ConvertError::new(
            field,
            Fault::OutOfRange {
                value: u64::from(value),
                max,
            },
        )
    })
}

/// A number of the wire that must fit 8 bits.
///
/// # Errors
/// When it does not.
pub fn to_u8(field: &str, value: u32) -> Result<u8, ConvertError> {
    small(field, value, u64::from(u8::MAX))
}

/// A number of the wire that must fit 16 bits.
///
/// # Errors
/// When it does not.
pub fn to_u16(field: &str, value: u32) -> Result<u16, ConvertError> {
    small(field, value, u64::from(u16::MAX))
}

/// An address that must be there.
///
/// # Errors
/// When it is missing or malformed.
pub fn to_address(field: &str, address: Option<&v1::Address>) -> Result<IpAddr, ConvertError> {
    IpAddr::try_from(required(field, address)?).map_err(|error| error.within(field))
}

/// A list of addresses.
///
/// # Errors
/// When one is malformed.
pub fn to_addresses(field: &str, addresses: &[v1::Address]) -> Result<Vec<IpAddr>, ConvertError> {
    each(field, addresses, IpAddr::try_from)
}

/// A list of prefixes.
///
/// # Errors
/// When one is malformed.
pub fn to_prefixes(field: &str, prefixes: &[v1::Prefix]) -> Result<Vec<IpNet>, ConvertError> {
    each(field, prefixes, IpNet::try_from)
}

/// A time, to the nanosecond.
///
/// # Errors
/// When it lies before 1970, after 2262, or has impossible nanoseconds.
pub fn to_unix_ns(time: &prost_types::Timestamp) -> Result<i64, ConvertError> {
    let nanoseconds = (0..1_000_000_000)
        .contains(&time.nanos)
        .then(|| {
            time.seconds
                .checked_mul(1_000_000_000)?
                .checked_add(i64::from(time.nanos))
        })
        .flatten()
        .filter(|ns| *ns >= 0);
    nanoseconds.ok_or_else(|| ConvertError::new("", Fault::Time))
}

/// Nanoseconds since 1970 as a wire time.
#[must_use]
pub fn from_unix_ns(ns: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: ns.div_euclid(1_000_000_000),
        nanos: i32::try_from(ns.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}

/// A system time as a wire time; what lies before 1970 becomes 1970.
#[must_use]
pub fn from_system_time(time: SystemTime) -> prost_types::Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    prost_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// A mode; "unspecified" is refused.
///
/// # Errors
/// When the number is unknown.
pub fn to_mode(field: &str, mode: i32) -> Result<snapshot::Mode, ConvertError> {
    match v1::Mode::try_from(mode) {
        Ok(v1::Mode::Observe) => Ok(snapshot::Mode::Observe),
        Ok(v1::Mode::Selective) => Ok(snapshot::Mode::Selective),
        Ok(v1::Mode::Enforce) => Ok(snapshot::Mode::Enforce),
        Ok(v1::Mode::Isolate) => Ok(snapshot::Mode::Isolate),
        Ok(v1::Mode::Unspecified) | Err(_) => {
            Err(ConvertError::new(field, Fault::UnknownValue(mode)))
        }
    }
}

/// A direction; "unspecified" is refused.
///
/// # Errors
/// When the number is unknown.
pub fn to_direction(field: &str, direction: i32) -> Result<FlowDirection, ConvertError> {
    match v1::Direction::try_from(direction) {
        Ok(v1::Direction::Ingress) => Ok(FlowDirection::Ingress),
        Ok(v1::Direction::Egress) => Ok(FlowDirection::Egress),
        Ok(v1::Direction::Unspecified) | Err(_) => {
            Err(ConvertError::new(field, Fault::UnknownValue(direction)))
        }
    }
}

fn each<'a, W, T>(
    field: &str,
    items: &'a [W],
    convert: impl Fn(&'a W) -> Result<T, ConvertError>,
) -> Result<Vec<T>, ConvertError> {
    items
        .iter()
        .enumerate()
        .map(|(index, item)| {
            convert(item).map_err(|error| error.within(&format!("{field}[{index}]")))
        })
        .collect()
}

impl From<IpAddr> for v1::Address {
    fn from(address: IpAddr) -> Self {
        let value = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        Self { value }
    }
}

impl TryFrom<&v1::Address> for IpAddr {
    type Error = ConvertError;

    fn try_from(address: &v1::Address) -> Result<Self, ConvertError> {
        octets(&address.value)
    }
}

fn octets(value: &[u8]) -> Result<IpAddr, ConvertError> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        Ok(IpAddr::from(v4))
    } else if let Ok(v6) = <[u8; 16]>::try_from(value) {
        Ok(IpAddr::from(v6))
    } else {
        Err(ConvertError::new("", Fault::AddressLength(value.len())))
    }
}

impl From<IpNet> for v1::Prefix {
    fn from(net: IpNet) -> Self {
        Self {
            value: v1::Address::from(net.addr()).value,
            length: u32::from(net.prefix_len()),
        }
    }
}

impl TryFrom<&v1::Prefix> for IpNet {
    type Error = ConvertError;

    fn try_from(prefix: &v1::Prefix) -> Result<Self, ConvertError> {
        let address = octets(&prefix.value).map_err(|error| error.within("value"))?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let too_long = || {
            ConvertError::new(
                "length",
                Fault::PrefixLength {
                    length: prefix.length,
                    max,
                },
            )
        };
        let length = u8::try_from(prefix.length).map_err(|_| too_long())?;
        let net = Self::new(address, length).map_err(|_| too_long())?;
        if net.trunc() == net {
            Ok(net)
        } else {
            Err(ConvertError::new("value", Fault::HostBits))
        }
    }
}

impl From<snapshot::Mode> for v1::Mode {
    fn from(mode: snapshot::Mode) -> Self {
        match mode {
            snapshot::Mode::Observe => Self::Observe,
            snapshot::Mode::Selective => Self::Selective,
            snapshot::Mode::Enforce => Self::Enforce,
            snapshot::Mode::Isolate => Self::Isolate,
        }
    }
}

impl From<FlowDirection> for v1::Direction {
    fn from(direction: FlowDirection) -> Self {
        match direction {
            FlowDirection::Ingress => Self::Ingress,
            FlowDirection::Egress => Self::Egress,
        }
    }
}

impl From<snapshot::CellVerdict> for v1::CellVerdict {
    fn from(verdict: snapshot::CellVerdict) -> Self {
        Self {
            allow: verdict.allow,
            rule: verdict.rule,
            reason: u32::from(verdict.reason),
        }
    }
}

impl TryFrom<&v1::CellVerdict> for snapshot::CellVerdict {
    type Error = ConvertError;

    fn try_from(verdict: &v1::CellVerdict) -> Result<Self, ConvertError> {
        Ok(Self {
            allow: verdict.allow,
            rule: verdict.rule,
            reason: to_u8("reason", verdict.reason)?,
        })
    }
}

fn cell_verdict(
    field: &str,
    verdict: Option<&v1::CellVerdict>,
) -> Result<snapshot::CellVerdict, ConvertError> {
    snapshot::CellVerdict::try_from(required(field, verdict)?).map_err(|error| error.within(field))
}

impl From<snapshot::PortPrefix> for v1::PortPrefix {
    fn from(ports: snapshot::PortPrefix) -> Self {
        Self {
            protocol: ports.protocol.map(u32::from),
            port: u32::from(ports.port),
            port_bits: u32::from(ports.port_bits),
        }
    }
}

impl TryFrom<&v1::PortPrefix> for snapshot::PortPrefix {
    type Error = ConvertError;

    fn try_from(ports: &v1::PortPrefix) -> Result<Self, ConvertError> {
        let block = Self {
            protocol: ports
                .protocol
                .map(|protocol| to_u8("protocol", protocol))
                .transpose()?,
            port: to_u16("port", ports.port)?,
            port_bits: to_u8("port_bits", ports.port_bits)?,
        };
        let bad = |why| Err(ConvertError::new("port_bits", Fault::PortBlock(why)));
        if block.port_bits > 16 {
            bad("a port has 16 bits")
        } else if block.protocol.is_none() && block.port_bits != 0 {
            bad("ports without a protocol")
        } else if snapshot::mask(block.port, block.port_bits) != block.port {
            bad("the port has bits set behind the block's length")
        } else {
            Ok(block)
        }
    }
}

fn ports(ports: Option<&v1::PortPrefix>) -> Result<snapshot::PortPrefix, ConvertError> {
    snapshot::PortPrefix::try_from(required("ports", ports)?).map_err(|error| error.within("ports"))
}

fn endpoint(wire: &v1::SnapshotEndpoint) -> Result<snapshot::Endpoint, ConvertError> {
    Ok(snapshot::Endpoint {
        id: wire.id,
        name: wire.name.clone(),
        mode: to_mode("mode", wire.mode)?,
        addresses: to_addresses("addresses", &wire.addresses)?,
    })
}

fn identity(wire: &v1::SnapshotIdentity) -> Result<snapshot::IdentityInfo, ConvertError> {
    Ok(snapshot::IdentityInfo {
        id: wire.id,
        labels: wire.labels.clone(),
        cidrs: to_prefixes("cidrs", &wire.cidrs)?,
        workloads: wire.workloads.clone(),
    })
}

fn binding(wire: &v1::SnapshotAddress) -> Result<snapshot::AddressBinding, ConvertError> {
    let prefix = required("prefix", wire.prefix.as_ref())?;
    Ok(snapshot::AddressBinding {
        net: IpNet::try_from(prefix).map_err(|error| error.within("prefix"))?,
        identity: wire.identity,
        isolated: wire.isolated,
        local: wire.local,
    })
}

fn class(wire: &v1::SnapshotClass) -> Result<snapshot::ClassBinding, ConvertError> {
    Ok(snapshot::ClassBinding {
        endpoint: wire.endpoint,
        direction: to_direction("direction", wire.direction)?,
        identity: wire.identity,
        class: wire.class,
        filter: wire.filter,
    })
}

fn rule(wire: &v1::SnapshotRule) -> Result<snapshot::RuleCell, ConvertError> {
    let after = match &wire.after {
        Some(after) => Some(cell_verdict("after", Some(after))?),
        // What follows an expiry must be said: guessing could open.
        None if wire.expires_unix_ns.is_some() => {
            return Err(ConvertError::new("after", Fault::Missing));
        }
        None => None,
    };
    Ok(snapshot::RuleCell {
        class: wire.class,
        ports: ports(wire.ports.as_ref())?,
        enforced: cell_verdict("enforced", wire.enforced.as_ref())?,
        draft: cell_verdict("draft", wire.draft.as_ref())?,
        expires: wire.expires_unix_ns,
        after,
        mode_enforced: wire.mode_enforced,
        keep: wire.keep,
        audit: wire.audit,
        hard: wire.hard,
    })
}

fn filter(wire: &v1::SnapshotFilter) -> Result<snapshot::FilterCell, ConvertError> {
    Ok(snapshot::FilterCell {
        class: wire.class,
        ports: ports(wire.ports.as_ref())?,
        allow: wire.allow,
        rule: wire.rule,
        mode_enforced: wire.mode_enforced,
    })
}

impl TryFrom<&v1::Snapshot> for snapshot::Snapshot {
    type Error = ConvertError;

    fn try_from(wire: &v1::Snapshot) -> Result<Self, ConvertError> {
        Ok(Self {
            revision: wire.revision,
            endpoints: each("endpoints", &wire.endpoints, endpoint)?,
            identities: each("identities", &wire.identities, identity)?,
            addresses: each("addresses", &wire.addresses, binding)?,
            classes: each("classes", &wire.classes, class)?,
            rules: each("rules", &wire.rules, rule)?,
            filters: each("filters", &wire.filters, filter)?,
            rule_names: wire
                .rule_names
                .iter()
                .map(|name| snapshot::RuleName {
                    id: name.id,
                    name: name.name.clone(),
                })
                .collect(),
        })
    }
}

impl TryFrom<v1::Snapshot> for snapshot::Snapshot {
    type Error = ConvertError;

    fn try_from(wire: v1::Snapshot) -> Result<Self, ConvertError> {
        Self::try_from(&wire)
    }
}

impl From<&snapshot::Snapshot> for v1::Snapshot {
    fn from(snapshot: &snapshot::Snapshot) -> Self {
        let addresses = |list: &[IpAddr]| list.iter().copied().map(Into::into).collect();
        Self {
            revision: snapshot.revision,
            endpoints: (snapshot.endpoints.iter())
                .map(|endpoint| v1::SnapshotEndpoint {
                    id: endpoint.id,
                    name: endpoint.name.clone(),
                    mode: v1::Mode::from(endpoint.mode).into(),
                    addresses: addresses(&endpoint.addresses),
                })
                .collect(),
            identities: (snapshot.identities.iter())
                .map(|identity| v1::SnapshotIdentity {
                    id: identity.id,
                    labels: identity.labels.clone(),
                    cidrs: identity.cidrs.iter().copied().map(Into::into).collect(),
                    workloads: identity.workloads.clone(),
                })
                .collect(),
            addresses: (snapshot.addresses.iter())
                .map(|binding| v1::SnapshotAddress {
                    prefix: Some(binding.net.into()),
                    identity: binding.identity,
                    isolated: binding.isolated,
                    local: binding.local,
                })
                .collect(),
            classes: (snapshot.classes.iter())
                .map(|class| v1::SnapshotClass {
                    endpoint: class.endpoint,
                    direction: v1::Direction::from(class.direction).into(),
                    identity: class.identity,
                    class: class.class,
                    filter: class.filter,
                })
                .collect(),
            rules: (snapshot.rules.iter())
                .map(|cell| v1::SnapshotRule {
                    class: cell.class,
                    ports: Some(cell.ports.into()),
                    enforced: Some(cell.enforced.into()),
                    draft: Some(cell.draft.into()),
                    expires_unix_ns: cell.expires,
                    after: cell.after.map(Into::into),
                    mode_enforced: cell.mode_enforced,
                    keep: cell.keep,
                    audit: cell.audit,
                    hard: cell.hard,
                })
                .collect(),
            filters: (snapshot.filters.iter())
                .map(|cell| v1::SnapshotFilter {
                    class: cell.class,
                    ports: Some(cell.ports.into()),
                    allow: cell.allow,
                    rule: cell.rule,
                    mode_enforced: cell.mode_enforced,
                })
                .collect(),
            rule_names: (snapshot.rule_names.iter())
                .map(|name| v1::SnapshotRuleName {
                    id: name.id,
                    name: name.name.clone(),
                })
                .collect(),
        }
    }
}

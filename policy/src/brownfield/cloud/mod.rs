//! Security groups and network ACLs of AWS, however they were written down.
//!
//! Sources: EC2 API reference (`IpPermission`, `NetworkAclEntry`), VPC user guide ("Security group rules",
//! "Control subnet traffic with network access control lists"). A security group denies what no rule
//! allows, and the rules of all groups of an interface add up: that is what allow rules of the standard
//! tier mean for workloads that carry one label a group.

mod acls;
mod groups;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::intervals::Intervals;
use super::region::{all_services, port_services, protocol_services, service};
use super::report::{Item, Outcome, Report, shown};
use super::{Imported, SOURCE_ANNOTATION};
use crate::model::{AddressGroup, Metadata, Object};
use crate::ports::is_icmp;
use crate::selectors::Selector;
use crate::source::Place;
use datapath::ids::protocol;

pub(crate) use acls::{Acl, Entry};
pub(crate) use groups::{Group, PeerKind, Permission, Target};

/// What becomes of network ACLs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AclForm {
    /// Staged policies of the guardrail tier: `pass` and `deny`, for connections.
    #[default]
    Guardrail,
    /// Filters: stateless, for packets, as the original; they cannot be staged.
    Filter,
}

/// What an import needs to know besides the texts.
#[derive(Clone, Debug)]
pub struct CloudOptions {
    /// Who answers for the policies.
    pub owner: Option<String>,
    /// What becomes of network ACLs.
    pub acls: AclForm,
    /// Ports that clients take, both ends included: replies through a network ACL go there.
    pub client_ports: (u16, u16),
}

impl Default for CloudOptions {
    fn default() -> Self {
        Self {
            owner: None,
            acls: AclForm::default(),
            // Linux: net.ipv4.ip_local_port_range.
            client_ports: (32_768, 60_999),
        }
    }
}

/// Everything that was read.
#[derive(Debug, Default)]
pub(crate) struct Cloud {
    /// For annotations: `aws a.json, b.json`.
    pub(crate) source: String,
    /// By label.
    pub(crate) groups: BTreeMap<String, Group>,
    pub(crate) acls: Vec<Acl>,
    /// By id.
    pub(crate) prefix_lists: BTreeMap<String, Vec<IpNet>>,
    /// Networks of subnets, by label.
    pub(crate) subnets: BTreeMap<String, Vec<IpNet>>,
    /// Resolvers of VPCs, which nothing filters.
    pub(crate) resolvers: Vec<IpNet>,
    pub(crate) workloads: Vec<Object>,
    pub(crate) remarks: Vec<String>,
    /// Rules of kinds that are not read.
    pub(crate) unread: Vec<Item>,
}

/// The label of the members of a security group.
pub(crate) fn group_label(key: &str) -> String {
    format!("aws.sg/{key}")
}

/// The label of what is in a subnet.
pub(crate) fn subnet_label(key: &str) -> String {
    format!("aws.subnet/{key}")
}

/// Everything with a label that only says that it is there.
pub(crate) fn labelled(label: &str) -> Selector {
    Selector::label(label, "true")
}

impl Cloud {
    /// Policies, address groups and workloads, with the report.
    pub(crate) fn build(&self, options: &CloudOptions) -> Result<Imported, super::Limit> {
        let mut report = Report::default();
        let mut objects = Vec::new();
        let mut used = BTreeSet::new();
        for (key, group) in &self.groups {
            objects.push(self.group(key, group, options, &mut used, &mut report));
        }
        for acl in &self.acls {
            self.acl(acl, options, &mut objects, &mut report)?;
        }
        for id in used {
            if let Some(cidrs) = self.prefix_lists.get(&id) {
                objects.push(Object::AddressGroup(AddressGroup {
                    metadata: self.metadata(&prefix_list_name(&id), None, options),
                    cidrs: cidrs.clone(),
                    place: Place::default(),
                }));
            }
        }
        objects.extend(self.workloads.iter().cloned());
        report.items.extend(self.unread.iter().cloned());
        for remark in &self.remarks {
            report.remark(remark.clone());
        }
        Ok(Imported { objects, report })
    }

    fn metadata(
        &self,
        name: &str,
        description: Option<String>,
        options: &CloudOptions,
    ) -> Metadata {
        Metadata {
            name: name.to_owned(),
            owner: options.owner.clone(),
            annotations: [(SOURCE_ANNOTATION.to_owned(), self.source.clone())].into(),
            description,
            ..Metadata::default()
        }
    }

    /// Addresses that neither security groups nor network ACLs filter: the VPC's own services (DNS, instance
    /// and task metadata, time, licence activation).
    fn unfiltered(&self) -> Vec<IpNet> {
        [
            "169.254.169.123/32",
            "169.254.169.250/31",
            "169.254.169.253/32",
            "169.254.169.254/32",
            "169.254.170.2/32",
            "fd00:ec2::123/128",
            "fd00:ec2::253/128",
            "fd00:ec2::254/128",
        ]
        .iter()
        .filter_map(|net| net.parse().ok())
        .chain(self.resolvers.iter().copied())
        .collect()
    }
}

fn prefix_list_name(id: &str) -> String {
    super::name(&["aws", id])
}

/// A network of the cloud, which ignores host bits.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    text.trim()
        .parse::<IpNet>()
        .map(|net| net.trunc())
        .map_err(|_| format!("{text:?} is no network"))
}

/// The services that protocol and ports mean.
///
/// Ports matter for TCP and UDP; ICMP has its type in `from` and its code in `to`, −1 for any; of every other
/// protocol everything is meant.
pub(crate) fn services(
    name: &str,
    from: Option<i64>,
    to: Option<i64>,
) -> Result<Intervals, String> {
    let number = match name.to_ascii_lowercase().as_str() {
        "-1" | "all" => return Ok(all_services()),
        other => super::firewall::names::protocol(other)
            .ok_or_else(|| format!("the protocol {name:?} is not known"))?,
    };
    if is_icmp(number) {
        let any = |value: Option<i64>| value.is_none_or(|value| value == -1);
        if any(from) && any(to) && (from.is_some() || number == protocol::ICMPV6) {
            return Ok(protocol_services(number));
        }
        let byte = |value: Option<i64>| value.and_then(|value| u8::try_from(value).ok());
        let Some(kind) = byte(from) else {
            return Err("an ICMP code without a type".into());
        };
        let ends = match (any(to), byte(to)) {
            (true, _) => (0, u8::MAX),
            (false, Some(code)) => (code, code),
            (false, None) => return Err("the ICMP code is out of range".into()),
        };
        let number_of = |code| service(number, u16::from_be_bytes([kind, code]));
        return Ok(Intervals::range(number_of(ends.0), number_of(ends.1)));
    }
    if !matches!(number, protocol::TCP | protocol::UDP) {
        return Ok(protocol_services(number));
    }
    let port = |value: Option<i64>| value.and_then(|value| u16::try_from(value).ok());
    match (port(from), port(to)) {
        (Some(low), Some(high)) if low <= high => Ok(port_services(number, low, high)),
        _ => Err("there is no range of ports, or it is out of range".into()),
    }
}

/// An item of the report.
pub(crate) fn item(
    file: &str,
    place: &str,
    rule: &str,
    outcome: Outcome,
    reason: Option<String>,
    carried_as: Vec<String>,
) -> Item {
    Item {
        file: file.to_owned(),
        place: place.to_owned(),
        rule: shown(rule),
        outcome,
        reason,
        carried_as,
    }
}

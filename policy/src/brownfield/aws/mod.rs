//! What `aws ec2 describe-…` prints: security groups and their rules, network ACLs, prefix lists, and the
//! inventory that belongs to them.
//!
//! Format: AWS CLI reference, commands `ec2 describe-security-groups`, `describe-security-group-rules`,
//! `describe-network-acls`, `describe-prefix-lists`, `get-managed-prefix-list-entries`, `describe-subnets`,
//! `describe-vpcs`, `describe-instances`, `describe-network-interfaces`.

mod inventory;

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::Imported;
use super::cloud::{Acl, Cloud, CloudOptions, Entry, Group, PeerKind, Permission, Target, network};
use super::json::{self, integer, list, text};
use super::problem::ImportError;
use crate::source::Source;

/// What a file may hold, by its top-level key.
const KINDS: [&str; 9] = [
    "SecurityGroups",
    "SecurityGroupRules",
    "NetworkAcls",
    "PrefixLists",
    "Entries",
    "Subnets",
    "Vpcs",
    "Reservations",
    "NetworkInterfaces",
];

/// Imports any of the listings; they may refer to each other.
///
/// # Errors
/// Text that is not JSON, or not one of the listings.
pub fn import(sources: &[Source], options: &CloudOptions) -> Result<Imported, ImportError> {
    let mut cloud = Cloud {
        source: format!("aws ec2 {}", super::files(sources)),
        ..Cloud::default()
    };
    let mut members = inventory::Members::default();
    for source in sources {
        let root = json::read(source)?;
        let mut found = false;
        for kind in KINDS {
            let Some(value) = root.get(kind) else {
                continue;
            };
            found = true;
            let Some(items) = value.as_array() else {
                let message = format!("\"{kind}\" is no list");
                return Err(ImportError::file(
                    &source.name,
                    message,
                    "give what aws ec2 printed",
                ));
            };
            for (index, item) in items.iter().enumerate() {
                let place = format!("{kind}[{index}]");
                read(&mut cloud, &mut members, source, kind, item, &place)?;
            }
        }
        if !found {
            return Err(ImportError::file(
                &source.name,
                "this is none of the known listings",
                format!("give JSON of aws ec2 with one of: {}", KINDS.join(", ")),
            ));
        }
        if text(&root, "NextToken").is_some() {
            cloud.remarks.push(format!(
                "{}: the listing is cut off (NextToken); list again without a limit",
                source.name
            ));
        }
    }
    if cloud.resolvers.is_empty() {
        cloud.remarks.push(
            "the VPC's own resolver (base address + 2) is not known; add describe-vpcs, or see that DNS is allowed"
                .into(),
        );
    }
    cloud.workloads = members.workloads();
    Ok(cloud.build(options)?)
}

fn read(
    cloud: &mut Cloud,
    members: &mut inventory::Members,
    source: &Source,
    kind: &str,
    item: &Value,
    place: &str,
) -> Result<(), ImportError> {
    let bad = |what: &str| {
        ImportError::file(
            &source.name,
            format!("{place}: {what}"),
            "give the whole output of aws ec2",
        )
    };
    match kind {
        "SecurityGroups" => {
            let id = text(item, "GroupId").ok_or_else(|| bad("there is no GroupId"))?;
            let group = cloud.groups.entry(id.to_owned()).or_default();
            group.name = text(item, "GroupName").map(str::to_owned);
            group.description = text(item, "Description").map(str::to_owned);
            for (key, slot) in [
                ("IpPermissions", &mut group.ingress),
                ("IpPermissionsEgress", &mut group.egress),
            ] {
                if let Some(permissions) = item.get(key).and_then(Value::as_array) {
                    let read = permissions.iter().enumerate().map(|(index, one)| {
                        permission(source, id, one, &format!("{place}.{key}[{index}]"))
                    });
                    slot.get_or_insert_default().extend(read);
                }
            }
        }
        "SecurityGroupRules" => {
            let id = text(item, "GroupId").ok_or_else(|| bad("there is no GroupId"))?;
            let egress = item
                .get("IsEgress")
                .and_then(Value::as_bool)
                .ok_or_else(|| bad("there is no IsEgress"))?;
            let group: &mut Group = cloud.groups.entry(id.to_owned()).or_default();
            // The listing holds the rules of both directions.
            let ingress_list = group.ingress.get_or_insert_default();
            let egress_list = group.egress.get_or_insert_default();
            let rules = if egress { egress_list } else { ingress_list };
            rules.push(rule(source, item, place));
        }
        "NetworkAcls" => {
            let id = text(item, "NetworkAclId").ok_or_else(|| bad("there is no NetworkAclId"))?;
            cloud.acls.push(acl(source, id, item, place));
        }
        "PrefixLists" => {
            let id = text(item, "PrefixListId").ok_or_else(|| bad("there is no PrefixListId"))?;
            // Only describe-prefix-lists has the networks in it.
            if item.get("Cidrs").is_some() {
                let nets = networks(list(item, "Cidrs").iter().map(Value::as_str))
                    .ok_or_else(|| bad("not every CIDR is a network"))?;
                cloud.prefix_lists.insert(id.to_owned(), nets);
            }
        }
        "Entries" => {
            let stem = source.name.rsplit('/').next().unwrap_or_default();
            let id = stem.strip_suffix(".json").unwrap_or(stem);
            if !id.starts_with("pl-") {
                return Err(ImportError::file(
                    &source.name,
                    "entries of a prefix list do not say of which",
                    "name the file after the list, pl-….json",
                ));
            }
            let nets = networks([text(item, "Cidr")]).ok_or_else(|| bad("there is no Cidr"))?;
            cloud
                .prefix_lists
                .entry(id.to_owned())
                .or_default()
                .extend(nets);
        }
        "Subnets" => {
            let id = text(item, "SubnetId").ok_or_else(|| bad("there is no SubnetId"))?;
            let v6 = list(item, "Ipv6CidrBlockAssociationSet").iter();
            let v6 = v6.map(|one| text(one, "Ipv6CidrBlock"));
            let nets = networks(v6.chain([text(item, "CidrBlock")]))
                .ok_or_else(|| bad("not every CIDR block is a network"))?;
            cloud.subnets.insert(id.to_owned(), nets);
        }
        "Vpcs" => {
            let blocks = list(item, "CidrBlockAssociationSet").iter();
            let blocks = blocks.map(|one| text(one, "CidrBlock"));
            let nets = networks(blocks.chain(text(item, "CidrBlock").map(Some)))
                .ok_or_else(|| bad("not every CIDR block is a network"))?;
            for net in nets {
                cloud.resolvers.extend(resolver(net));
            }
            cloud.resolvers.sort();
            cloud.resolvers.dedup();
        }
        "Reservations" => members.reservation(item),
        _ => members.interface(item),
    }
    Ok(())
}

/// The resolver of a VPC: its first address plus two.
fn resolver(net: IpNet) -> Option<IpNet> {
    match net.network() {
        IpAddr::V4(base) => {
            let address = u32::from(base).checked_add(2)?;
            Some(IpNet::from(IpAddr::V4(address.into())))
        }
        IpAddr::V6(_) => None,
    }
}

fn networks<'a>(texts: impl IntoIterator<Item = Option<&'a str>>) -> Option<Vec<IpNet>> {
    texts.into_iter().map(|text| network(text?).ok()).collect()
}

fn permission(source: &Source, id: &str, item: &Value, place: &str) -> Permission {
    let mut targets = Vec::new();
    for (key, field) in [
        ("IpRanges", "CidrIp"),
        ("Ipv6Ranges", "CidrIpv6"),
        ("PrefixListIds", "PrefixListId"),
    ] {
        for (index, one) in list(item, key).iter().enumerate() {
            let kind = match text(one, field) {
                None => PeerKind::Unknown(format!("there is no {field}")),
                Some(text) if key == "PrefixListIds" => PeerKind::PrefixList(text.to_owned()),
                Some(text) => PeerKind::Cidr(text.to_owned()),
            };
            targets.push(target(one, format!("{place}.{key}[{index}]"), kind));
        }
    }
    for (index, one) in list(item, "UserIdGroupPairs").iter().enumerate() {
        let place = format!("{place}.UserIdGroupPairs[{index}]");
        targets.push(target(one, place, referenced(one)));
    }
    Permission {
        file: source.name.to_string(),
        place: place.to_owned(),
        label: format!("{id} {}", place.rsplit('.').next().unwrap_or_default()),
        protocol: text(item, "IpProtocol").unwrap_or("?").to_owned(),
        from: integer(item, "FromPort"),
        to: integer(item, "ToPort"),
        targets,
        broken: None,
    }
}

fn target(item: &Value, place: String, kind: PeerKind) -> Target {
    Target {
        place,
        description: text(item, "Description").map(str::to_owned),
        kind,
    }
}

fn referenced(pair: &Value) -> PeerKind {
    match (text(pair, "GroupId"), text(pair, "PeeringStatus")) {
        (_, Some(status)) if status != "active" => {
            PeerKind::Unknown(format!("the peering of its group is {status}"))
        }
        (Some(id), _) => PeerKind::Group(id.to_owned()),
        (None, _) => PeerKind::Unknown("the group has no id".into()),
    }
}

/// One item of `describe-security-group-rules`.
fn rule(source: &Source, item: &Value, place: &str) -> Permission {
    let kind = if let Some(text) = text(item, "CidrIpv4").or_else(|| text(item, "CidrIpv6")) {
        PeerKind::Cidr(text.to_owned())
    } else if let Some(id) = text(item, "PrefixListId") {
        PeerKind::PrefixList(id.to_owned())
    } else {
        item.get("ReferencedGroupInfo").map_or_else(
            || PeerKind::Unknown("it has no peer of a known kind".into()),
            referenced,
        )
    };
    Permission {
        file: source.name.to_string(),
        place: place.to_owned(),
        label: text(item, "SecurityGroupRuleId")
            .unwrap_or(place)
            .to_owned(),
        protocol: text(item, "IpProtocol").unwrap_or("?").to_owned(),
        from: integer(item, "FromPort"),
        to: integer(item, "ToPort"),
        targets: vec![target(item, place.to_owned(), kind)],
        broken: None,
    }
}

fn acl(source: &Source, id: &str, item: &Value, place: &str) -> Acl {
    let subnets = list(item, "Associations").iter();
    let mut subnets: Vec<String> = subnets
        .filter_map(|one| text(one, "SubnetId"))
        .map(str::to_owned)
        .collect();
    subnets.sort();
    subnets.dedup();
    let entries = list(item, "Entries").iter().enumerate();
    Acl {
        key: id.to_owned(),
        subnets,
        entries: entries
            .map(|(index, one)| entry(source, one, &format!("{place}.Entries[{index}]")))
            .collect(),
    }
}

fn entry(source: &Source, item: &Value, place: &str) -> Entry {
    let icmp = item.get("IcmpTypeCode");
    let ports = item.get("PortRange");
    let (from, to) = match (icmp, ports) {
        (Some(icmp), _) => (integer(icmp, "Type"), integer(icmp, "Code")),
        (None, Some(ports)) => (integer(ports, "From"), integer(ports, "To")),
        (None, None) => (None, None),
    };
    let egress = item.get("Egress").and_then(Value::as_bool);
    let number = integer(item, "RuleNumber");
    let action = text(item, "RuleAction");
    let broken = match (egress, number, action) {
        (Some(_), Some(_), Some("allow" | "deny")) => None,
        _ => Some("it does not say its direction, number or action".to_owned()),
    };
    Entry {
        file: source.name.to_string(),
        place: place.to_owned(),
        egress: egress.unwrap_or_default(),
        number: number.unwrap_or_default(),
        allow: action == Some("allow"),
        protocol: text(item, "Protocol").unwrap_or("?").to_owned(),
        from,
        to,
        cidr: text(item, "CidrBlock")
            .or_else(|| text(item, "Ipv6CidrBlock"))
            .map(str::to_owned),
        broken,
    }
}

//! Instances and network interfaces as workloads.
//!
//! Security groups belong to interfaces, labels to workloads: where the interfaces of an instance differ in
//! their groups, each becomes a workload of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use crate::brownfield::cloud::{group_label, subnet_label};
use crate::brownfield::json::{list, text};
use crate::model::{Metadata, Object, WorkloadObject};
use crate::selectors::{Labels, NAMESPACE_PREFIX};
use crate::source::Place;

/// Interfaces by id, instances' tags by id.
#[derive(Default)]
pub(super) struct Members {
    interfaces: BTreeMap<String, Interface>,
    tags: BTreeMap<String, Labels>,
}

#[derive(Default)]
struct Interface {
    instance: Option<String>,
    labels: Labels,
    tags: Labels,
    addresses: BTreeSet<IpAddr>,
}

impl Members {
    /// One item of `describe-instances`.
    pub(super) fn reservation(&mut self, item: &Value) {
        for instance in list(item, "Instances") {
            let state = instance.get("State").and_then(|state| text(state, "Name"));
            let Some(id) = text(instance, "InstanceId") else {
                continue;
            };
            if matches!(state, Some("terminated" | "shutting-down")) {
                continue;
            }
            self.tags.insert(id.to_owned(), tags(instance, "Tags"));
            for interface in list(instance, "NetworkInterfaces") {
                self.add(interface, Some(id));
            }
        }
    }

    /// One item of `describe-network-interfaces`.
    pub(super) fn interface(&mut self, item: &Value) {
        let attachment = item.get("Attachment");
        let instance = attachment.and_then(|attachment| text(attachment, "InstanceId"));
        self.add(item, instance);
    }

    fn add(&mut self, item: &Value, instance: Option<&str>) {
        let Some(id) = text(item, "NetworkInterfaceId") else {
            return;
        };
        let interface = self.interfaces.entry(id.to_owned()).or_default();
        if let Some(instance) = instance {
            interface.instance = Some(instance.to_owned());
        }
        interface.tags.extend(tags(item, "TagSet"));
        for group in list(item, "Groups") {
            let id = text(group, "GroupId").unwrap_or_default();
            interface.labels.insert(group_label(id), "true".into());
        }
        if let Some(subnet) = text(item, "SubnetId") {
            interface.labels.insert(subnet_label(subnet), "true".into());
        }
        for (key, field) in [
            ("PrivateIpAddresses", "PrivateIpAddress"),
            ("Ipv6Addresses", "Ipv6Address"),
        ] {
            let found = list(item, key).iter().filter_map(|one| text(one, field));
            interface
                .addresses
                .extend(found.filter_map(|text| text.parse::<IpAddr>().ok()));
        }
        let own = text(item, "PrivateIpAddress").and_then(|text| text.parse::<IpAddr>().ok());
        interface.addresses.extend(own);
    }

    /// One workload an instance, or an interface.
    pub(super) fn workloads(&self) -> Vec<Object> {
        let mut by_instance: BTreeMap<&str, Vec<(&str, &Interface)>> = BTreeMap::new();
        for (id, interface) in &self.interfaces {
            let owner = interface.instance.as_deref().unwrap_or(id);
            by_instance.entry(owner).or_default().push((id, interface));
        }
        let mut workloads = Vec::new();
        for (owner, interfaces) in by_instance {
            let same = interfaces
                .windows(2)
                .all(|pair| matches!(pair, [(_, a), (_, b)] if a.labels == b.labels));
            let tags = self.tags.get(owner).cloned().unwrap_or_default();
            if same {
                let all = interfaces.iter().flat_map(|(_, one)| &one.addresses);
                let labels = interfaces.iter().map(|(_, one)| one);
                let labels = labels.fold(tags, |mut all, one| {
                    all.extend(one.tags.clone());
                    all.extend(one.labels.clone());
                    all
                });
                workloads.push(workload(owner, labels, all.copied().collect()));
            } else {
                for (id, one) in interfaces {
                    let mut labels = tags.clone();
                    labels.extend(one.tags.clone());
                    labels.extend(one.labels.clone());
                    let addresses = one.addresses.iter().copied().collect();
                    workloads.push(workload(&format!("{owner}/{id}"), labels, addresses));
                }
            }
        }
        workloads
    }
}

fn workload(name: &str, labels: Labels, addresses: Vec<IpAddr>) -> Object {
    Object::Workload(WorkloadObject {
        metadata: Metadata {
            name: crate::brownfield::name(&[name]),
            labels,
            ..Metadata::default()
        },
        addresses,
        named_ports: Vec::new(),
        namespace_labels: Labels::new(),
        place: Place::default(),
    })
}

/// Tags as labels; one that reads as a label of groups, subnets or namespaces is not taken.
fn tags(item: &Value, key: &str) -> Labels {
    let ours = ["aws.sg/", "aws.subnet/", NAMESPACE_PREFIX];
    list(item, key)
        .iter()
        .filter_map(|tag| Some((text(tag, "Key")?, tag.get("Value")?.as_str()?)))
        .filter(|(key, _)| !ours.iter().any(|prefix| key.starts_with(prefix)))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

//! A cluster's pods, namespaces and nodes as workloads.
//!
//! Fields that are read of core/v1 objects: `metadata` (name, namespace, labels); of pods
//! `spec.hostNetwork`, `spec.containers[].ports[]` (also of `initContainers` that run on),
//! `status.podIP(s)` and `status.phase`; of nodes `status.addresses`. Everything else is passed over:
//! these objects are facts about a cluster, not policy.

use std::collections::BTreeMap;
use std::net::IpAddr;

use datapath::ids::protocol;

use super::NODE;
use super::metadata::{DEFAULT_NAMESPACE, pairs};
use crate::model::{DefaultAction, NamedPort};
use crate::parse::fields::{address, list, number, text, word};
use crate::parse::node::{Node, Value};
use crate::problems::{Problem, Problems};
use crate::selectors::{Labels, NAMESPACE_NAME_LABEL};
use crate::source::Place;
use crate::world::Workload;

/// Label of a workload that is a node of a cluster; its value is [`NODE`].
pub const NODE_LABEL: &str = "cofferdam.dev/entity";

/// The kinds that are read.
const KINDS: [&str; 3] = ["Pod", "Namespace", "Node"];

const PROTOCOLS: &[(&str, u8)] = &[
    ("TCP", protocol::TCP),
    ("UDP", protocol::UDP),
    ("SCTP", protocol::SCTP),
];

/// A pod as a workload.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) labels: Labels,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) named_ports: Vec<NamedPort>,
}

impl Pod {
    /// With the labels of its namespace, which always has its own name among them.
    pub(crate) fn workload(self, namespaces: &BTreeMap<String, Labels>) -> Workload {
        let mut namespace_labels = namespaces.get(&self.namespace).cloned().unwrap_or_default();
        namespace_labels.insert(NAMESPACE_NAME_LABEL.to_owned(), self.namespace.clone());
        Workload {
            name: self.name,
            namespace: Some(self.namespace),
            labels: self.labels,
            namespace_labels,
            addresses: self.addresses,
            named_ports: self.named_ports,
            ..Workload::default()
        }
    }
}

/// A node as a workload. Kubernetes' policies do not restrict nodes.
pub(crate) fn node(name: String, mut labels: Labels, addresses: Vec<IpAddr>) -> Workload {
    labels.insert(NODE_LABEL.to_owned(), NODE.to_owned());
    Workload {
        default_action: Some(DefaultAction::Allow),
        ..Workload::new(name, labels, addresses)
    }
}

/// What `kubectl get pods,namespaces,nodes -A` says, document by document.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    namespaces: BTreeMap<String, Labels>,
    pods: Vec<(Pod, Place)>,
    nodes: Vec<(Workload, Place)>,
}

/// Whether a document comes from a cluster.
pub(crate) fn owns(document: &Node) -> bool {
    super::text_of(document, "kind").is_some()
}

impl Cluster {
    /// Reads one object or a list of them.
    pub(crate) fn read(&mut self, document: &Node, problems: &mut Problems) {
        let kind = super::text_of(document, "kind").unwrap_or_default();
        if kind != "List" {
            self.object(document, kind, problems);
            return;
        }
        let items = get(document, "items").and_then(|node| list(node, "items", problems));
        for item in items.unwrap_or_default() {
            let kind = super::text_of(item, "kind").unwrap_or_default();
            self.object(item, kind, problems);
        }
    }

    fn object(&mut self, object: &Node, kind: &str, problems: &mut Problems) {
        let metadata = get(object, "metadata");
        let string = |key| metadata.and_then(|node| super::text_of(node, key));
        let Some(name) = string("name") else {
            problems.push(Problem::at(
                &object.place,
                format!("this {kind} has no \"metadata.name\""),
            ));
            return;
        };
        let labels = metadata.and_then(|node| get(node, "labels"));
        let labels = pairs(labels, "labels", problems);
        match kind {
            "Namespace" => {
                self.namespaces.insert(name.to_owned(), labels);
            }
            "Node" => {
                let addresses = node_addresses(object, problems);
                self.nodes.push((
                    node(name.to_owned(), labels, addresses),
                    object.place.clone(),
                ));
            }
            "Pod" => {
                if !is_on_pod_network(object) {
                    return;
                }
                let pod = Pod {
                    name: name.to_owned(),
                    namespace: string("namespace").unwrap_or(DEFAULT_NAMESPACE).to_owned(),
                    labels,
                    addresses: pod_addresses(object, problems),
                    named_ports: named_ports(object, problems),
                };
                self.pods.push((pod, object.place.clone()));
            }
            _ => problems.push(
                Problem::at(
                    &object.place,
                    format!("an inventory has no use for kind \"{kind}\""),
                )
                .suggest(format!("known kinds: List, {}", KINDS.join(", "))),
            ),
        }
    }

    /// Every pod and node, with the place where it was described.
    pub(crate) fn workloads(self) -> Vec<(Workload, Place)> {
        let Self {
            namespaces,
            pods,
            nodes,
        } = self;
        pods.into_iter()
            .map(|(pod, place)| (pod.workload(&namespaces), place))
            .chain(nodes)
            .collect()
    }
}

/// A field of a mapping; `null` counts as absent.
fn get<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    let Value::Map(entries) = &node.value else {
        return None;
    };
    entries
        .iter()
        .find(|entry| entry.key == key)
        .map(|entry| &entry.node)
        .filter(|node| !matches!(node.value, Value::Null))
}

/// Host-network pods have the addresses of their node; pods that have ended have none, whatever is
/// still written in their status.
fn is_on_pod_network(pod: &Node) -> bool {
    let spec = get(pod, "spec");
    let host = spec
        .and_then(|spec| get(spec, "hostNetwork"))
        .is_some_and(|node| matches!(node.value, Value::Bool(true)));
    let phase = get(pod, "status").and_then(|status| super::text_of(status, "phase"));
    !host && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn items<'a>(node: Option<&'a Node>, key: &str, problems: &mut Problems) -> &'a [Node] {
    node.and_then(|node| get(node, key))
        .and_then(|node| list(node, key, problems))
        .unwrap_or_default()
}

fn pod_addresses(pod: &Node, problems: &mut Problems) -> Vec<IpAddr> {
    let status = get(pod, "status");
    let all: Vec<&Node> = items(status, "podIPs", problems)
        .iter()
        .filter_map(|item| get(item, "ip"))
        .collect();
    let one = status.and_then(|status| get(status, "podIP"));
    let nodes = if all.is_empty() {
        Vec::from_iter(one)
    } else {
        all
    };
    nodes
        .into_iter()
        .filter_map(|node| address(node, "podIP", problems))
        .collect()
}

fn node_addresses(node: &Node, problems: &mut Problems) -> Vec<IpAddr> {
    items(get(node, "status"), "addresses", problems)
        .iter()
        .filter(|item| {
            matches!(
                super::text_of(item, "type"),
                Some("InternalIP" | "ExternalIP")
            )
        })
        .filter_map(|item| get(item, "address"))
        .filter_map(|node| address(node, "address", problems))
        .collect()
}

fn named_ports(pod: &Node, problems: &mut Problems) -> Vec<NamedPort> {
    let spec = get(pod, "spec");
    let sidecars = items(spec, "initContainers", problems)
        .iter()
        .filter(|container| super::text_of(container, "restartPolicy") == Some("Always"));
    let mut ports = Vec::new();
    for container in items(spec, "containers", problems).iter().chain(sidecars) {
        for port in items(Some(container), "ports", problems) {
            let Some(name) = get(port, "name") else {
                continue;
            };
            let name = text(name, "name", problems);
            let protocol = match get(port, "protocol") {
                Some(node) => word(node, "protocol", PROTOCOLS, problems),
                None => Some(protocol::TCP),
            };
            let number = get(port, "containerPort")
                .and_then(|node| number(node, "containerPort", 1, 65_535, problems));
            if let (Some(name), Some(protocol), Some(number)) = (name, protocol, number) {
                ports.push(NamedPort {
                    name: name.to_owned(),
                    protocol,
                    port: u16::try_from(number).unwrap_or_default(),
                });
            }
        }
    }
    ports
}

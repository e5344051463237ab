//! Cases of the Kubernetes network-policy conformance format: a cluster, its policies as JSON, and
//! probes with the verdicts that are expected.
//!
//! A case is answered by the reference evaluator ([`Cluster::evaluate`]) or by the compiled snapshots
//! of every end ([`Cluster::judge`]); both must say the same. What a case expects is read into
//! [`Expected`] and is no part of what an answer is made of.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use datapath::ids::EndpointId;
use serde::Deserialize;
use time::OffsetDateTime;

use crate::api::protocol_number;
use crate::compile::{
    CompileError, CompileInput, HostWorkload, IdentityAllocator, Limits, compile,
};
use crate::evaluate::{ConnectionVerdict, Verdict, evaluate_flow};
use crate::judge::judge_snapshot;
use crate::kubernetes::inventory::{self, Pod};
use crate::kubernetes::{allow_pods, read_unlimited};
use crate::model::NamedPort;
use crate::ports::{PORTED, is_icmp};
use crate::probe::Flow;
use crate::problems::Problems;
use crate::selectors::Labels;
use crate::set::PolicySet;
use crate::snapshot::{FlowDirection, Snapshot};
use crate::source::Source;
use crate::world::{Who, Workload, World};

/// One line of a file of cases. Fields that say nothing about cluster, policies and probes are ignored.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// Repeated in the answer.
    pub id: String,
    /// What the case exercises, in the words of its collection.
    #[serde(default)]
    pub features: Vec<String>,
    /// Consecutive states of one test share an id. Every state is a case by itself: probes are new
    /// connections, which have no memory.
    #[serde(default)]
    pub sequence: Option<Sequence>,
    /// Namespaces and their labels.
    #[serde(default)]
    pub namespaces: Vec<NamespaceRecord>,
    /// Nodes, their labels and addresses.
    #[serde(default)]
    pub nodes: Vec<NodeRecord>,
    /// Pods.
    #[serde(default)]
    pub pods: Vec<PodRecord>,
    /// Kubernetes objects.
    #[serde(default)]
    pub policies: Vec<serde_json::Value>,
    /// Connections to be judged.
    #[serde(default)]
    pub probes: Vec<ProbeRecord>,
}

/// Which state of which test a case is.
#[derive(Clone, Debug, Deserialize)]
pub struct Sequence {
    /// The test.
    pub id: String,
    /// Which of its states.
    pub step: u32,
    /// How many there are.
    pub of: u32,
}

/// A namespace.
#[derive(Clone, Debug, Deserialize)]
pub struct NamespaceRecord {
    /// Its name.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
}

/// A node.
#[derive(Clone, Debug, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// Its addresses.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
}

/// A pod.
#[derive(Clone, Debug, Deserialize)]
pub struct PodRecord {
    /// Its namespace.
    pub ns: String,
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// Ports that it serves.
    #[serde(default)]
    pub ports: Vec<PortRecord>,
    /// It uses its node's addresses.
    #[serde(default)]
    pub host_network: bool,
}

/// A port that a pod serves.
#[derive(Clone, Debug, Deserialize)]
pub struct PortRecord {
    /// Its number.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`; TCP where it is left out.
    #[serde(default = "tcp")]
    pub proto: String,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
}

fn tcp() -> String {
    "TCP".to_owned()
}

/// One connection.
#[derive(Clone, Debug, Deserialize)]
pub struct ProbeRecord {
    /// `ns/name` or an address.
    pub from: String,
    /// `ns/name` or an address.
    pub to: String,
    /// Destination port (ICMP: ignored, an echo is meant).
    #[serde(default)]
    pub port: u16,
    /// As in [`PortRecord`], or `ICMP`, `ICMPv6`.
    #[serde(default = "tcp")]
    pub proto: String,
}

/// The verdicts that a case expects, where it says so.
#[derive(Clone, Debug, Deserialize)]
pub struct Expected {
    /// Repeated from the case.
    pub id: String,
    #[serde(default)]
    probes: Vec<ExpectedVerdict>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct ExpectedVerdict {
    expected: Option<String>,
}

impl Expected {
    /// Of each probe: allow, deny or nothing.
    pub fn verdicts(&self) -> impl Iterator<Item = Option<Verdict>> {
        self.probes
            .iter()
            .map(|probe| match probe.expected.as_deref() {
                Some("allow") => Some(Verdict::Allow),
                Some("deny") => Some(Verdict::Deny),
                _ => None,
            })
    }
}

/// Why a case, or a probe of it, has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaseError {
    /// The policies cannot be imported.
    #[error("{0}")]
    Policy(Problems),
    /// Two pods or nodes have one name.
    #[error("{0}")]
    Duplicate(#[from] crate::world::DuplicateWorkload),
    /// Nothing has this name, and it is no address.
    #[error("there is no pod \"{0}\"")]
    UnknownEnd(String),
    /// The protocol has no such name.
    #[error("unknown protocol \"{0}\"")]
    UnknownProtocol(String),
    /// One end is IPv4 and the other IPv6.
    #[error("from {0} to {1}: the ends have no address family in common")]
    NoCommonFamily(IpAddr, IpAddr),
    /// The snapshot of an end cannot be made.
    #[error("{0}")]
    Compile(#[from] CompileError),
}

/// A case made ready to be asked.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Pods and nodes.
    pub world: World,
    /// Its policies, as ours.
    pub set: PolicySet,
    /// Addresses of host-network pods by name: they are no workloads.
    host_network: HashMap<String, IpAddr>,
}

impl Case {
    /// Builds the world and imports the policies.
    pub fn cluster(&self) -> Result<Cluster, CaseError> {
        let namespaces: BTreeMap<String, Labels> = self
            .namespaces
            .iter()
            .map(|namespace| (namespace.name.clone(), namespace.labels.clone()))
            .collect();
        let node_addresses: BTreeSet<IpAddr> = self
            .nodes
            .iter()
            .flat_map(|node| &node.ips)
            .map(IpAddr::to_canonical)
            .collect();
        let mut world = World::default();
        let mut host_network = HashMap::new();
        for pod in &self.pods {
            // A pod with its node's address is on its node's network, whether the case says so or not.
            if pod.host_network || node_addresses.contains(&pod.ip.to_canonical()) {
                host_network.insert(format!("{}/{}", pod.ns, pod.name), pod.ip.to_canonical());
                continue;
            }
            world.add(pod.pod()?.workload(&namespaces))?;
        }
        for node in &self.nodes {
            world.add(inventory::node(
                node.name.clone(),
                node.labels.clone(),
                node.ips.clone(),
            ))?;
        }
        let sources: Vec<Source> = self
            .policies
            .iter()
            .enumerate()
            .map(|(index, policy)| {
                Source::new(format!("{}#policies[{index}]", self.id), policy.to_string())
            })
            .collect();
        let mut objects = Vec::new();
        for source in &sources {
            read_unlimited(source, &mut objects).map_err(CaseError::Policy)?;
        }
        // A cluster without any policy is open as well.
        allow_pods(&mut objects);
        Ok(Cluster {
            world,
            set: PolicySet::build(objects).map_err(CaseError::Policy)?,
            host_network,
        })
    }
}

impl PodRecord {
    fn pod(&self) -> Result<Pod, CaseError> {
        let mut named_ports = Vec::new();
        for port in &self.ports {
            if let Some(name) = &port.name {
                named_ports.push(NamedPort {
                    name: name.clone(),
                    protocol: protocol(&port.proto)?,
                    port: port.port,
                });
            }
        }
        Ok(Pod {
            name: self.name.clone(),
            namespace: self.ns.clone(),
            labels: self.labels.clone(),
            addresses: vec![self.ip],
            named_ports,
        })
    }
}

fn protocol(name: &str) -> Result<u8, CaseError> {
    protocol_number(name).ok_or_else(|| CaseError::UnknownProtocol(name.to_owned()))
}

impl Cluster {
    /// Whom a probe means.
    pub fn flow(&self, probe: &ProbeRecord) -> Result<Flow<'_>, CaseError> {
        let (source, from) = self.end(&probe.from)?;
        let (destination, to) = self.end(&probe.to)?;
        if source.is_ipv4() != destination.is_ipv4() {
            return Err(CaseError::NoCommonFamily(source, destination));
        }
        let protocol = protocol(&probe.proto)?;
        Ok(Flow {
            source,
            destination,
            from,
            to,
            protocol,
            port: if PORTED.contains(&protocol) {
                probe.port
            } else if is_icmp(protocol) {
                let echo = if source.is_ipv4() { 8 } else { 128 };
                u16::from_be_bytes([echo, 0])
            } else {
                0
            },
        })
    }

    fn end(&self, name: &str) -> Result<(IpAddr, Option<&Workload>), CaseError> {
        let of_address = |address: IpAddr| {
            let workload = match self.world.who(address) {
                Who::Workload(workload) => Some(workload),
                _ => None,
            };
            (address, workload)
        };
        if let Ok(address) = name.parse::<IpAddr>() {
            return Ok(of_address(address.to_canonical()));
        }
        if let Some(address) = self.host_network.get(name) {
            return Ok(of_address(*address));
        }
        let workload = self
            .world
            .workload(name)
            .filter(|workload| workload.full_name() == name)
            .ok_or_else(|| CaseError::UnknownEnd(name.to_owned()))?;
        let address = workload
            .addresses
            .first()
            .ok_or_else(|| CaseError::UnknownEnd(name.to_owned()))?;
        Ok((*address, Some(workload)))
    }

    /// By the reference evaluator.
    #[must_use]
    pub fn evaluate(&self, flow: &Flow<'_>, at: OffsetDateTime) -> ConnectionVerdict {
        evaluate_flow(&self.world, &self.set, flow, at)
    }

    /// Compiles what the host of a workload gets.
    pub fn snapshot(
        &self,
        workload: &Workload,
        identities: &mut IdentityAllocator,
        at: OffsetDateTime,
    ) -> Result<Snapshot, CompileError> {
        let host = [HostWorkload {
            name: workload.full_name(),
            endpoint: EndpointId::HOST,
        }];
        compile(
            &CompileInput {
                world: &self.world,
                set: &self.set,
                host: &host,
                at,
                revision: 1,
                limits: Limits::default(),
                label_keys: &[],
            },
            identities,
        )
    }

    /// By the compiled snapshot of each end's own host, in the order of the flows.
    pub fn judge(
        &self,
        flows: &[Flow<'_>],
        identities: &mut IdentityAllocator,
        at: OffsetDateTime,
    ) -> Result<Vec<ConnectionVerdict>, CompileError> {
        let mut ends = vec![(None, None); flows.len()];
        let names: BTreeSet<String> = flows
            .iter()
            .flat_map(|flow| [flow.from, flow.to])
            .flatten()
            .map(Workload::full_name)
            .collect();
        for name in names {
            let Some(workload) = self.world.workload(&name) else {
                continue;
            };
            let snapshot = self.snapshot(workload, identities, at)?;
            let index = snapshot.index();
            let judge = |direction, peer, flow: &Flow<'_>| {
                judge_snapshot(
                    &index,
                    EndpointId::HOST,
                    direction,
                    peer,
                    flow.protocol,
                    flow.port,
                    at,
                )
            };
            for (flow, (egress, ingress)) in flows.iter().zip(&mut ends) {
                if flow.from == Some(workload) {
                    *egress = Some(judge(FlowDirection::Egress, flow.destination, flow));
                }
                if flow.to == Some(workload) {
                    *ingress = Some(judge(FlowDirection::Ingress, flow.source, flow));
                }
            }
        }
        Ok(ends
            .into_iter()
            .map(|(egress, ingress)| ConnectionVerdict::new(egress, ingress))
            .collect())
    }
}

/// How verdicts are come by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Judge {
    /// By the reference evaluator.
    #[default]
    Evaluator,
    /// By the compiled snapshot of each end's host.
    Snapshot,
}

/// The answer to one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// In the order of the probes; `None` where there is no verdict.
    pub results: Vec<Option<Verdict>>,
    /// Why there is none, once each.
    pub errors: Vec<CaseError>,
}

/// What can be told of a case that cannot be read: enough for an answer that gives no verdict.
#[derive(Clone, Debug, Deserialize)]
pub struct Outline {
    /// Repeated in the answer.
    pub id: String,
    /// Whatever stands for the probes.
    #[serde(default)]
    pub probes: Vec<serde_json::Value>,
}

impl Outline {
    /// No verdict for any probe.
    #[must_use]
    pub fn nothing(&self) -> Answer {
        Answer {
            results: vec![None; self.probes.len()],
            errors: Vec::new(),
        }
    }
}

/// Answers cases one after the other. Identity numbers are kept from case to case, as a controller
/// keeps them from state to state.
#[derive(Debug, Default)]
pub struct Examiner {
    judge: Judge,
    identities: IdentityAllocator,
}

impl Examiner {
    /// Who judges in one way.
    #[must_use]
    pub fn new(judge: Judge) -> Self {
        Self {
            judge,
            identities: IdentityAllocator::default(),
        }
    }

    /// Answers one case.
    pub fn answer(&mut self, case: &Case, at: OffsetDateTime) -> Answer {
        let nothing = |error| Answer {
            results: vec![None; case.probes.len()],
            errors: vec![error],
        };
        let cluster = match case.cluster() {
            Ok(cluster) => cluster,
            Err(error) => return nothing(error),
        };
        let mut errors = Vec::new();
        let flows: Vec<Option<Flow<'_>>> = case
            .probes
            .iter()
            .map(|probe| match cluster.flow(probe) {
                Ok(flow) => Some(flow),
                Err(error) => {
                    if !errors.contains(&error) {
                        errors.push(error);
                    }
                    None
                }
            })
            .collect();
        let known: Vec<Flow<'_>> = flows.iter().flatten().copied().collect();
        let verdicts = match self.judge {
            Judge::Evaluator => known
                .iter()
                .map(|flow| cluster.evaluate(flow, at))
                .collect(),
            Judge::Snapshot => match cluster.judge(&known, &mut self.identities, at) {
                Ok(verdicts) => verdicts,
                Err(error) => return nothing(error.into()),
            },
        };
        let mut verdicts = verdicts.into_iter();
        let results = flows
            .iter()
            .map(|flow| {
                flow.as_ref()
                    .and_then(|_| verdicts.next())
                    .map(|verdict| verdict.enforced)
            })
            .collect();
        Answer { results, errors }
    }
}

/// The line that answers a case.
#[must_use]
pub fn answer_line(id: &str, answer: &Answer) -> String {
    let results: Vec<Option<&str>> = answer
        .results
        .iter()
        .map(|verdict| verdict.map(Verdict::name))
        .collect();
    // Keys in their documented order.
    format!(
        "{{\"id\": {}, \"results\": {}}}",
        serde_json::Value::from(id),
        serde_json::Value::from(
            results
                .into_iter()
                .map(serde_json::Value::from)
                .collect::<Vec<_>>()
        )
    )
}

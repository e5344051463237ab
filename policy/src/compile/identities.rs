//! Identities: numbers for the sets of things that policy can tell apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath::ids::Identity;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{CompileError, CompileInput, HostWorkload};
use crate::matching::{PeerClass, PeerView, port_names};
use crate::model::{NamedPort, Peer};
use crate::posture::is_isolated;
use crate::selectors::{Labelled, Labels, Selector};
use crate::set::is_live;
use crate::snapshot::{AddressBinding, IdentityInfo};
use crate::world::{Who, Workload};

/// How many workloads an identity lists for people.
const LISTED_WORKLOADS: usize = 32;

/// Label that tells people what an identity without a workload is.
const ENTITY_LABEL: &str = "cofferdam.dev/entity";

/// Gives numbers to identity contents; the same content has the same number for ever.
///
/// One allocator serves every host of a controller, and is stored with its state: numbers occur in
/// flow records, so they are never given to another content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityAllocator {
    next: u32,
    numbers: BTreeMap<String, u32>,
}

impl Default for IdentityAllocator {
    fn default() -> Self {
        Self {
            next: Identity::FIRST_DYNAMIC.0,
            numbers: BTreeMap::new(),
        }
    }
}

impl IdentityAllocator {
    /// The number of a content, new if it was never seen.
    pub fn number(&mut self, content: &str) -> Result<u32, CompileError> {
        if let Some(number) = self.numbers.get(content) {
            return Ok(*number);
        }
        let number = self.next.max(Identity::FIRST_DYNAMIC.0);
        self.next = number
            .checked_add(1)
            .ok_or(CompileError::IdentitiesExhausted)?;
        self.numbers.insert(content.to_owned(), number);
        Ok(number)
    }

    /// How many numbers were given out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether none was given out yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

/// What an identity stands for; equal contents are one identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Content {
    class: &'static str,
    labels: Labels,
    ports: Vec<NamedPort>,
    cidrs: BTreeSet<IpNet>,
}

/// One identity as the other end of a flow.
#[derive(Clone, Debug)]
pub(super) struct PeerIdentity {
    pub(super) number: u32,
    class: PeerClass,
    labels: Labels,
    pub(super) ports: Vec<NamedPort>,
    cidrs: BTreeSet<IpNet>,
    workloads: BTreeSet<String>,
}

impl PeerIdentity {
    const fn reserved(identity: Identity, class: PeerClass) -> Self {
        Self {
            number: identity.0,
            class,
            labels: Labels::new(),
            ports: Vec::new(),
            cidrs: BTreeSet::new(),
            workloads: BTreeSet::new(),
        }
    }

    pub(super) fn info(&self) -> IdentityInfo {
        let mut labels = self.labels.clone();
        let entity = match self.class {
            PeerClass::Managed => None,
            PeerClass::Unmanaged => Some("unmanaged"),
            PeerClass::World => Some("world"),
            PeerClass::Unknown => Some("unknown"),
        };
        if let Some(entity) = entity {
            labels.insert(ENTITY_LABEL.to_owned(), entity.to_owned());
        }
        IdentityInfo {
            id: self.number,
            labels,
            cidrs: self.cidrs.iter().copied().collect(),
            workloads: self
                .workloads
                .iter()
                .take(LISTED_WORKLOADS)
                .cloned()
                .collect(),
        }
    }
}

impl PeerView for PeerIdentity {
    fn within(&self, net: &IpNet) -> bool {
        // Every network that a rule names is a policy CIDR, so the set knows the answer.
        self.cidrs.contains(net)
    }

    fn class(&self) -> PeerClass {
        self.class
    }

    fn selected(&self, selector: &Selector) -> bool {
        self.class == PeerClass::Managed && selector.matches(&self.labels)
    }
}

/// Identities and address bindings.
pub(super) struct Directory {
    pub(super) identities: Vec<PeerIdentity>,
    pub(super) bindings: Vec<AddressBinding>,
}

/// What policies can tell apart.
struct Relevant<'a> {
    keys: BTreeSet<&'a str>,
    ports: BTreeSet<&'a str>,
    cidrs: BTreeSet<IpNet>,
}

/// Builds every identity that exists in the world.
pub(super) fn directory(
    input: &CompileInput<'_>,
    allocator: &mut IdentityAllocator,
) -> Result<Directory, CompileError> {
    let mut builder = Builder {
        relevant: relevant(input),
        input,
        allocator,
        identities: BTreeMap::new(),
        bindings: BTreeMap::new(),
    };
    for (identity, class) in [
        (Identity::UNKNOWN, PeerClass::Unknown),
        (Identity::WORLD, PeerClass::World),
        (Identity::UNMANAGED, PeerClass::Unmanaged),
    ] {
        let reserved = PeerIdentity::reserved(identity, class);
        builder.identities.insert(identity.0, reserved);
    }
    builder.bind_networks()?;
    builder.bind_workloads()?;
    Ok(Directory {
        identities: builder.identities.into_values().collect(),
        bindings: builder.bindings.into_values().collect(),
    })
}

struct Builder<'a, 'i> {
    relevant: Relevant<'a>,
    input: &'a CompileInput<'a>,
    allocator: &'i mut IdentityAllocator,
    identities: BTreeMap<u32, PeerIdentity>,
    bindings: BTreeMap<IpNet, AddressBinding>,
}

impl Builder<'_, '_> {
    /// Addresses without a workload. Networks nest or are disjoint, so that the longest one that
    /// holds an address says which policy CIDRs hold it, and whether it is inside.
    fn bind_networks(&mut self) -> Result<(), CompileError> {
        let everything = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        let networks: BTreeSet<IpNet> = self
            .relevant
            .cidrs
            .iter()
            .copied()
            .chain(self.input.world.managed_networks.iter().map(IpNet::trunc))
            .chain(everything)
            .collect();
        for net in networks {
            let inside = self
                .input
                .world
                .managed_networks
                .iter()
                .any(|managed| managed.contains(&net));
            let class = if inside {
                PeerClass::Unmanaged
            } else {
                PeerClass::World
            };
            let cidrs = self.cidrs_of(|cidr| cidr.contains(&net));
            let identity = self.identity(class, Labels::new(), Vec::new(), cidrs)?;
            self.bindings.insert(
                net,
                AddressBinding {
                    net,
                    identity,
                    isolated: false,
                    local: false,
                },
            );
        }
        Ok(())
    }

    fn bind_workloads(&mut self) -> Result<(), CompileError> {
        let addresses: BTreeSet<IpAddr> = self.input.world.addresses().collect();
        for address in addresses {
            let identity = match self.input.world.who(address) {
                Who::Workload(workload) => {
                    let number = self.workload_identity(workload, address)?;
                    if let Some(identity) = self.identities.get_mut(&number) {
                        identity.workloads.insert(workload.full_name());
                    }
                    number
                }
                _ => Identity::UNKNOWN.0,
            };
            let claimants: Vec<&Workload> = self.input.world.claimants(address).collect();
            let isolated = claimants
                .iter()
                .any(|workload| is_isolated(self.input.world, self.input.set, workload));
            let local = claimants
                .iter()
                .any(|workload| is_local(self.input.host, workload));
            let net = IpNet::from(address);
            let binding = AddressBinding {
                net,
                identity,
                isolated,
                local,
            };
            // A workload's own binding takes the place of a policy CIDR that is one address.
            self.bindings.insert(net, binding);
        }
        Ok(())
    }

    fn workload_identity(
        &mut self,
        workload: &Workload,
        address: IpAddr,
    ) -> Result<u32, CompileError> {
        let labels = self
            .relevant
            .keys
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), workload.label(key)?.to_owned())))
            .collect();
        let mut ports: Vec<NamedPort> = workload
            .named_ports
            .iter()
            .filter(|port| self.relevant.ports.contains(port.name.as_str()))
            .cloned()
            .collect();
        ports.sort();
        ports.dedup();
        let cidrs = self.cidrs_of(|cidr| cidr.contains(&address));
        self.identity(PeerClass::Managed, labels, ports, cidrs)
    }

    fn cidrs_of(&self, holds: impl Fn(&IpNet) -> bool) -> BTreeSet<IpNet> {
        self.relevant
            .cidrs
            .iter()
            .copied()
            .filter(|cidr| holds(cidr))
            .collect()
    }

    fn identity(
        &mut self,
        class: PeerClass,
        labels: Labels,
        ports: Vec<NamedPort>,
        cidrs: BTreeSet<IpNet>,
    ) -> Result<u32, CompileError> {
        let name = match class {
            PeerClass::World if cidrs.is_empty() => return Ok(Identity::WORLD.0),
            PeerClass::Unmanaged if cidrs.is_empty() => return Ok(Identity::UNMANAGED.0),
            PeerClass::Unknown => return Ok(Identity::UNKNOWN.0),
            PeerClass::World => "world",
            PeerClass::Unmanaged => "unmanaged",
            PeerClass::Managed => "managed",
        };
        let content = Content {
            class: name,
            labels,
            ports,
            cidrs,
        };
        // The content is plain data, its serialisation cannot fail.
        let key = serde_json::to_string(&content).unwrap_or_default();
        let number = self.allocator.number(&key)?;
        self.identities.entry(number).or_insert(PeerIdentity {
            number,
            class,
            labels: content.labels,
            ports: content.ports,
            cidrs: content.cidrs,
            workloads: BTreeSet::new(),
        });
        Ok(number)
    }
}

fn is_local(host: &[HostWorkload], workload: &Workload) -> bool {
    let name = workload.full_name();
    host.iter().any(|local| local.name == name)
}

/// Collects what live policies, staged ones included, look at.
fn relevant<'a>(input: &'a CompileInput<'_>) -> Relevant<'a> {
    let set = input.set;
    let mut relevant = Relevant {
        keys: input.label_keys.iter().map(String::as_str).collect(),
        ports: BTreeSet::new(),
        cidrs: BTreeSet::new(),
    };
    for policy in set.policies() {
        if !is_live(policy.expires, input.at) {
            continue;
        }
        relevant.keys.extend(policy.subject.keys());
        for rule in policy.ingress.iter().flatten() {
            peers(input, &rule.peers, &mut relevant);
        }
        for rule in policy.egress.iter().flatten() {
            peers(input, &rule.peers, &mut relevant);
            relevant.ports.extend(port_names(set, &rule.ports));
        }
    }
    for grant in set.grants() {
        if !is_live(Some(grant.expires), input.at) {
            continue;
        }
        relevant.keys.extend(grant.subject.keys());
        peers(input, &grant.peers, &mut relevant);
        if grant.egress {
            relevant.ports.extend(port_names(set, &grant.ports));
        }
    }
    for filter in set.filters() {
        relevant.keys.extend(filter.subject.keys());
        relevant
            .cidrs
            .extend(filter.entries.iter().filter_map(|entry| entry.cidr));
    }
    for mode in set.modes() {
        relevant.keys.extend(mode.subject.keys());
    }
    relevant
}

fn peers<'a>(input: &'a CompileInput<'_>, peers: &'a [Peer], relevant: &mut Relevant<'a>) {
    for peer in peers {
        match peer {
            Peer::Selector { selector } => relevant.keys.extend(selector.keys()),
            Peer::Cidr { cidr, except } => {
                relevant.cidrs.insert(*cidr);
                relevant.cidrs.extend(except);
            }
            Peer::Group { group } => {
                if let Some(group) = input.set.group(group) {
                    relevant.cidrs.extend(&group.cidrs);
                }
            }
            Peer::Entity { .. } => {}
        }
    }
}

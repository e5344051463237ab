//! Everybody who can be an end of a flow, sorted into classes that policy cannot tell apart.
//!
//! The unit is one address of one workload, as an address decides which networks a workload lies in;
//! addresses without a workload are cut into regions by the networks that policy names. An end has
//! two sides: what it is to its own policies (a [`Subject`]) and what it is to those of others (a
//! [`PeerSide`]). Ends with the same two sides are one class.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use super::space::{Space, is_v4};
use super::vocabulary::{Interner, LabelGroups, Vocabulary};
use crate::matching::PeerClass;
use crate::model::NamedPort;
use crate::posture::Posture;
use crate::set::PolicySet;
use crate::snapshot::Mode;
use crate::world::{Workload, World};

/// A workload as its own policies see it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    /// Its group of labels.
    pub(super) labels: u32,
    /// Its list of named ports.
    pub(super) ports: u32,
    /// Its posture.
    pub(super) posture: u32,
    /// Addresses of it that other workloads claim too: to it, they are itself.
    pub(super) shared: Vec<u32>,
}

/// An address as the policies of others see it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PeerSide {
    pub(super) class: PeerClass,
    /// Its group of labels, if it is a workload.
    pub(super) labels: Option<u32>,
    /// Its list of named ports; none unless it is a workload.
    pub(super) ports: u32,
    /// The longest network that holds it.
    pub(super) net: u32,
    /// A workload that claims it is isolated.
    pub(super) isolated: bool,
    /// Its number, if several workloads claim it.
    pub(super) shared: Option<u32>,
}

/// One address of one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Index in the world.
    pub(super) workload: u32,
    pub(super) address: IpAddr,
}

/// Ends that policy cannot tell apart.
pub(super) struct Class {
    /// `None` = not managed.
    pub(super) subject: Option<u32>,
    pub(super) peer: u32,
    pub(super) v4: bool,
    /// By name, then in the order of the workload's addresses; empty for a region.
    pub(super) members: Vec<Member>,
    /// Network whose strangers it is.
    pub(super) region: Option<u32>,
}

/// All classes of a world.
pub(super) struct Classes {
    pub(super) space: Space,
    pub(super) labels: LabelGroups,
    pub(super) port_lists: Vec<Vec<NamedPort>>,
    pub(super) postures: Vec<Posture>,
    pub(super) subjects: Vec<Subject>,
    pub(super) peers: Vec<PeerSide>,
    pub(super) list: Vec<Class>,
    /// By workload: the classes of its addresses.
    pub(super) of: Vec<Vec<u32>>,
}

impl Classes {
    pub(super) fn new(world: &World, set: &PolicySet, words: &Vocabulary<'_>) -> Self {
        let workloads = world.workloads();
        let nets = words.nets.iter().chain(&world.managed_networks).copied();
        let space = Space::new(nets, world.addresses().collect());
        let labels = LabelGroups::new(workloads, words.selectors.items());
        let shared = Shared::new(world);
        let mut builder = Builder {
            world,
            classes: Self {
                of: vec![Vec::new(); workloads.len()],
                space,
                labels,
                port_lists: Vec::new(),
                postures: Vec::new(),
                subjects: Vec::new(),
                peers: Vec::new(),
                list: Vec::new(),
            },
            shared,
            ports: Interner::default(),
            subjects: Interner::default(),
            peers: Interner::default(),
            found: HashMap::new(),
        };
        let nobody = builder.ports.number(Vec::new());
        let postures = builder.postures(set);
        let isolated = builder.isolated_shares(&postures);
        for (_, index) in world.positions_by_name() {
            builder.workload(index, &postures, &isolated, words, nobody);
        }
        builder.regions(nobody);
        builder.finish()
    }

    /// Whether a network is IPv4.
    fn is_v4(&self, net: u32) -> bool {
        self.space.nets().get(net as usize).is_some_and(is_v4)
    }
}

/// Addresses that several workloads claim.
struct Shared(HashMap<IpAddr, u32>);

impl Shared {
    fn new(world: &World) -> Self {
        let claimed = world
            .addresses()
            .filter(|address| world.claimant_positions(*address).len() > 1);
        Self(claimed.zip(0..).collect())
    }
}

struct Builder<'a> {
    world: &'a World,
    classes: Classes,
    shared: Shared,
    ports: Interner<Vec<NamedPort>>,
    subjects: Interner<Subject>,
    peers: Interner<PeerSide>,
    found: HashMap<(Option<u32>, u32), u32>,
}

impl Builder<'_> {
    /// The posture of every workload. Those with equal labels and no list of their own are alike.
    fn postures(&mut self, set: &PolicySet) -> Vec<u32> {
        let mut numbers: BTreeMap<Posture, u32> = BTreeMap::new();
        let mut alike = BTreeMap::new();
        let mut list = Vec::new();
        let mut of = Vec::new();
        for (workload, labels) in self.world.workloads().iter().zip(&self.classes.labels.of) {
            let key = (*labels, workload.mode, workload.default_action);
            let plain = workload.selective.is_empty();
            if let Some(known) = alike.get(&key).filter(|_| plain) {
                of.push(*known);
                continue;
            }
            let posture = Posture::of(self.world, set, workload);
            let number = *numbers.entry(posture).or_insert_with_key(|posture| {
                list.push(posture.clone());
                u32::try_from(list.len() - 1).unwrap_or(u32::MAX)
            });
            if plain {
                alike.insert(key, number);
            }
            of.push(number);
        }
        self.classes.postures = list;
        of
    }

    fn is_isolated(&self, posture: Option<&u32>) -> bool {
        posture
            .and_then(|posture| self.classes.postures.get(*posture as usize))
            .is_some_and(|posture| posture.mode == Mode::Isolate)
    }

    /// Shared addresses that an isolated workload claims.
    fn isolated_shares(&self, postures: &[u32]) -> HashSet<u32> {
        let shares = self.shared.0.iter().filter(|(address, _)| {
            let claimants = self.world.claimant_positions(**address);
            claimants
                .iter()
                .any(|index| self.is_isolated(postures.get(*index)))
        });
        shares.map(|(_, number)| *number).collect()
    }

    fn workload(
        &mut self,
        index: usize,
        postures: &[u32],
        isolated: &HashSet<u32>,
        words: &Vocabulary<'_>,
        nobody: u32,
    ) {
        let world = self.world;
        let (Some(workload), Some(labels), Some(posture)) = (
            world.workloads().get(index),
            self.classes.labels.of.get(index).copied(),
            postures.get(index),
        ) else {
            return;
        };
        let ports = self.ports.number(named_ports(workload, words));
        let mut shared: Vec<u32> = workload
            .addresses
            .iter()
            .filter_map(|address| self.shared.0.get(address).copied())
            .collect();
        shared.sort_unstable();
        shared.dedup();
        let subject = self.subjects.number(Subject {
            labels,
            ports,
            posture: *posture,
            shared,
        });
        for (position, address) in workload.addresses.iter().enumerate() {
            if workload
                .addresses
                .iter()
                .take(position)
                .any(|earlier| earlier == address)
            {
                continue;
            }
            let shared = self.shared.0.get(address).copied();
            let isolated = match shared {
                None => self.is_isolated(Some(posture)),
                Some(shared) => isolated.contains(&shared),
            };
            let peer = PeerSide {
                class: if shared.is_some() {
                    PeerClass::Unknown
                } else {
                    PeerClass::Managed
                },
                labels: shared.is_none().then_some(labels),
                ports: if shared.is_some() { nobody } else { ports },
                net: self.classes.space.longest(*address),
                isolated,
                shared,
            };
            let class = self.class(Some(subject), peer);
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            if let Some(class) = self.classes.list.get_mut(class as usize) {
                class.members.push(Member {
                    workload: number,
                    address: *address,
                });
            }
            if let Some(of) = self.classes.of.get_mut(index)
                && !of.contains(&class)
            {
                of.push(class);
            }
        }
    }

    fn class(&mut self, subject: Option<u32>, peer: PeerSide) -> u32 {
        let v4 = self.classes.is_v4(peer.net);
        let peer = self.peers.number(peer);
        let list = &mut self.classes.list;
        *self.found.entry((subject, peer)).or_insert_with(|| {
            list.push(Class {
                subject,
                peer,
                v4,
                members: Vec::new(),
                region: None,
            });
            u32::try_from(list.len() - 1).unwrap_or(u32::MAX)
        })
    }

    /// Addresses without a workload, where there are any.
    fn regions(&mut self, nobody: u32) {
        for (net, id) in self.classes.space.nets().to_vec().into_iter().zip(0..) {
            if self
                .classes
                .space
                .stranger(&self.classes.space.region(id))
                .is_none()
            {
                continue;
            }
            let managed = &self.world.managed_networks;
            let class = if managed.iter().any(|managed| managed.contains(&net)) {
                PeerClass::Unmanaged
            } else {
                PeerClass::World
            };
            let class = self.class(
                None,
                PeerSide {
                    class,
                    labels: None,
                    ports: nobody,
                    net: id,
                    isolated: false,
                    shared: None,
                },
            );
            if let Some(class) = self.classes.list.get_mut(class as usize) {
                class.region = Some(id);
            }
        }
    }

    fn finish(self) -> Classes {
        Classes {
            port_lists: self.ports.items().to_vec(),
            subjects: self.subjects.items().to_vec(),
            peers: self.peers.items().to_vec(),
            ..self.classes
        }
    }
}

/// The named ports that some rule means.
fn named_ports(workload: &Workload, words: &Vocabulary<'_>) -> Vec<NamedPort> {
    let mut ports: Vec<NamedPort> = workload
        .named_ports
        .iter()
        .filter(|port| words.port_names.contains(port.name.as_str()))
        .cloned()
        .collect();
    ports.sort();
    ports.dedup();
    ports
}

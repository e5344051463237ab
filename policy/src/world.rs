//! The workloads and networks that policies speak about.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{DefaultAction, NamedPort, SelectiveEntry, WorkloadObject};
use crate::problems::Problems;
use crate::selectors::{Labelled, Labels, NAMESPACE_NAME_LABEL, NAMESPACE_PREFIX};
use crate::snapshot::Mode;
use crate::source::Source;

/// Something that owns addresses and is protected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Its name, unique within the namespace.
    pub name: String,
    /// Its namespace, where there are any.
    pub namespace: Option<String>,
    /// Its own labels.
    pub labels: Labels,
    /// Labels of its namespace.
    pub namespace_labels: Labels,
    /// Its addresses, IPv4-mapped ones as IPv4.
    pub addresses: Vec<IpAddr>,
    /// Names for its ports.
    pub named_ports: Vec<NamedPort>,
    /// Mode said by the inventory; Mode objects may say more.
    pub mode: Option<Mode>,
    /// What mode `selective` enforces.
    pub selective: Vec<SelectiveEntry>,
    /// What happens to a flow that nothing decided, as the inventory says; Mode objects may say more.
    pub default_action: Option<DefaultAction>,
}

impl Workload {
    /// A workload without a namespace.
    #[must_use]
    pub fn new(name: impl Into<String>, labels: Labels, addresses: Vec<IpAddr>) -> Self {
        Self {
            name: name.into(),
            labels,
            addresses,
            ..Self::default()
        }
    }

    /// `namespace/name`, or the name where there is no namespace.
    #[must_use]
    pub fn full_name(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        }
    }
}

impl Labelled for Workload {
    fn label(&self, key: &str) -> Option<&str> {
        let Some(key) = key.strip_prefix(NAMESPACE_PREFIX) else {
            return self.labels.get(key).map(String::as_str);
        };
        // A namespace always has its own name as a label, whether written out or not.
        let implied = || (key == NAMESPACE_NAME_LABEL).then_some(self.namespace.as_deref())?;
        self.namespace_labels
            .get(key)
            .map(String::as_str)
            .or_else(implied)
    }
}

impl From<&WorkloadObject> for Workload {
    fn from(object: &WorkloadObject) -> Self {
        Self {
            name: object.metadata.name.clone(),
            namespace: object.metadata.namespace.clone(),
            labels: object.metadata.labels.clone(),
            namespace_labels: object.namespace_labels.clone(),
            addresses: object.addresses.clone(),
            named_ports: object.named_ports.clone(),
            mode: None,
            selective: Vec::new(),
            default_action: None,
        }
    }
}

/// Two workloads with one full name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are two workloads called \"{0}\"")]
pub struct DuplicateWorkload(pub String);

/// Whom an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who<'a> {
    /// One workload.
    Workload(&'a Workload),
    /// Nobody, inside a managed network.
    Unmanaged,
    /// Nobody, outside.
    World,
    /// Two workloads claim it: it cannot be determined.
    Unknown,
}

impl<'a> Who<'a> {
    /// The workload, if it is one.
    #[must_use]
    pub const fn workload(&self) -> Option<&'a Workload> {
        match self {
            Self::Workload(workload) => Some(workload),
            _ => None,
        }
    }
}

/// Everything that is known of the network.
#[derive(Clone, Debug)]
pub struct World {
    /// Networks that are inside.
    pub managed_networks: Vec<IpNet>,
    /// Mode of a workload about which neither inventory nor Mode object says anything.
    pub default_mode: Mode,
    workloads: Vec<Workload>,
    by_address: HashMap<IpAddr, Vec<usize>>,
    by_name: BTreeMap<String, usize>,
}

impl Default for World {
    fn default() -> Self {
        Self::new(Vec::new(), Vec::new())
    }
}

impl World {
    /// A world whose workloads are in mode enforce unless something says otherwise.
    ///
    /// Of workloads with the same full name the first one stays; use [`World::add`] to be told.
    #[must_use]
    pub fn new(managed_networks: Vec<IpNet>, workloads: Vec<Workload>) -> Self {
        let mut world = Self {
            managed_networks,
            default_mode: Mode::Enforce,
            workloads: Vec::new(),
            by_address: HashMap::new(),
            by_name: BTreeMap::new(),
        };
        for workload in workloads {
            let _duplicate = world.add(workload);
        }
        world
    }

    /// Reads the inventory file of `cofferdam policy eval`.
    pub fn parse(inventory: &Source) -> Result<Self, Problems> {
        crate::parse::inventory::inventory(inventory)
    }

    /// Adds a workload.
    pub fn add(&mut self, mut workload: Workload) -> Result<(), DuplicateWorkload> {
        let name = workload.full_name();
        if self.by_name.contains_key(&name) {
            return Err(DuplicateWorkload(name));
        }
        for address in &mut workload.addresses {
            *address = address.to_canonical();
        }
        let index = self.workloads.len();
        for address in &workload.addresses {
            let owners = self.by_address.entry(*address).or_default();
            if !owners.contains(&index) {
                owners.push(index);
            }
        }
        self.by_name.insert(name, index);
        self.workloads.push(workload);
        Ok(())
    }

    /// Every workload, in the order of adding.
    #[must_use]
    pub fn workloads(&self) -> &[Workload] {
        &self.workloads
    }

    /// A workload by its full name, or by its plain name if only one has it.
    #[must_use]
    pub fn workload(&self, name: &str) -> Option<&Workload> {
        self.workloads.get(self.workload_position(name)?)
    }

    /// Where [`World::workload`] stands in [`World::workloads`].
    pub(crate) fn workload_position(&self, name: &str) -> Option<usize> {
        if let Some(index) = self.by_name.get(name) {
            return Some(*index);
        }
        let mut named = self
            .workloads
            .iter()
            .enumerate()
            .filter(|(_, workload)| workload.name == name);
        match (named.next(), named.next()) {
            (Some((index, _)), None) => Some(index),
            _ => None,
        }
    }

    /// Names of all workloads, for suggestions.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// Full names in order, with where the workloads stand in [`World::workloads`].
    pub(crate) fn positions_by_name(&self) -> impl Iterator<Item = (&str, usize)> {
        self.by_name
            .iter()
            .map(|(name, position)| (name.as_str(), *position))
    }

    /// Every workload that claims an address; more than one makes it unknown.
    pub fn claimants(&self, address: IpAddr) -> impl Iterator<Item = &Workload> {
        self.by_address
            .get(&address.to_canonical())
            .into_iter()
            .flatten()
            .filter_map(|index| self.workloads.get(*index))
    }

    /// Whom an address belongs to.
    #[must_use]
    pub fn who(&self, address: IpAddr) -> Who<'_> {
        let address = address.to_canonical();
        let mut claimants = self.claimants(address);
        match (claimants.next(), claimants.next()) {
            (Some(workload), None) => Who::Workload(workload),
            (Some(_), Some(_)) => Who::Unknown,
            (None, _) if self.is_inside(address) => Who::Unmanaged,
            (None, _) => Who::World,
        }
    }

    /// Whether an address lies in a managed network.
    #[must_use]
    pub fn is_inside(&self, address: IpAddr) -> bool {
        self.managed_networks
            .iter()
            .any(|network| network.contains(&address))
    }

    /// Where the workloads that claim an address stand in [`World::workloads`].
    pub(crate) fn claimant_positions(&self, address: IpAddr) -> &[usize] {
        self.by_address
            .get(&address.to_canonical())
            .map_or(&[], Vec::as_slice)
    }

    /// Every address that some workload claims.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.by_address.keys().copied()
    }
}

//! From a state to the snapshot of every agent. Pure: time is an argument.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use policy::compile::{
    CompileError, CompileInput, HostWorkload, IdentityAllocator, Limits, compile,
};
use policy::set::PolicySet;
use policy::snapshot::{AddressBinding, FlowDirection, Mode, PortPrefix, Snapshot};
use policy::world::{Workload, World};
use time::OffsetDateTime;

use crate::config::{Config, DefaultMode};
use crate::state::{State, WorkloadRecord};

/// A virtual machine's own endpoint: the only one of its agent.
const HOST: datapath::ids::EndpointId = datapath::ids::EndpointId::HOST;

/// What planning needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is inside.
    pub managed_networks: Vec<IpNet>,
    /// Mode of workloads that nobody spoke about.
    pub default_mode: Mode,
    /// Upper bounds.
    pub limits: Limits,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            managed_networks: config.managed_networks.clone(),
            default_mode: match config.default_mode {
                DefaultMode::Observe => Mode::Observe,
                DefaultMode::Enforce => Mode::Enforce,
            },
            limits: Limits {
                addresses: config.limits.addresses,
                cidrs: config.limits.cidrs,
                classes: config.limits.classes,
                rules: config.limits.rules,
                filters: config.limits.filters,
            },
        }
    }
}

/// An agent's policy does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{workload}: {source}")]
pub struct PlanError {
    /// Whose.
    pub workload: String,
    /// Why, with numbers.
    pub source: CompileError,
}

/// The snapshot of every agent.
pub type Plan = BTreeMap<String, Arc<Snapshot>>;

/// Everything that is known of the network: enrolled workloads, and those written down as objects.
/// Where both speak of one workload, the object's labels win, and the addresses are the agent's.
#[must_use]
pub fn world(state: &State, policies: &PolicySet, settings: &Settings) -> World {
    let mut workloads: BTreeMap<String, Workload> = BTreeMap::new();
    for object in policies.workloads() {
        let workload = Workload::from(object);
        workloads.insert(workload.full_name(), workload);
    }
    for (name, record) in state.workloads.iter() {
        let workload = workloads.entry(name.clone()).or_insert_with(|| named(name));
        for (label, value) in &record.labels {
            if !workload.labels.contains_key(label) {
                workload.labels.insert(label.clone(), value.clone());
            }
        }
        workload.addresses.clone_from(&record.addresses);
    }
    for (name, workload) in &mut workloads {
        if state.isolations.contains_key(name) {
            workload.mode = Some(Mode::Isolate);
        }
    }
    let mut world = World::new(
        settings.managed_networks.clone(),
        workloads.into_values().collect(),
    );
    world.default_mode = settings.default_mode;
    world
}

fn named(full_name: &str) -> Workload {
    let (namespace, name) = match full_name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, full_name),
    };
    Workload {
        name: name.to_owned(),
        namespace,
        ..Workload::default()
    }
}

/// Who gets a snapshot: whoever may speak.
fn agents(state: &State) -> impl Iterator<Item = (&String, &WorkloadRecord)> {
    state.workloads.iter().filter(|(_, record)| !record.revoked)
}

/// Compiles for every agent, or says which agent's tables do not hold it.
///
/// # Errors
/// When a snapshot does not fit.
pub fn plan(
    state: &State,
    policies: &PolicySet,
    settings: &Settings,
    identities: &mut IdentityAllocator,
    revision: u64,
    at: OffsetDateTime,
) -> Result<Plan, PlanError> {
    let world = world(state, policies, settings);
    let mut plan = Plan::new();
    for (name, _) in agents(state) {
        let host = [HostWorkload {
            name: name.clone(),
            endpoint: HOST,
        }];
        let input = CompileInput {
            world: &world,
            set: policies,
            host: &host,
            at,
            revision,
            limits: settings.limits,
            label_keys: &[],
        };
        let snapshot = compile(&input, identities).map_err(|source| PlanError {
            workload: name.clone(),
            source,
        })?;
        plan.insert(name.clone(), Arc::new(snapshot));
    }
    Ok(plan)
}

/// Whether a flow that passes under `before` is dropped under `after`, on any agent of both.
///
/// Exact but for blocks of ports that are wholly covered by longer ones: those count although no
/// flow can meet them, so that the answer errs towards "yes".
#[must_use]
pub fn denies_more(before: &Plan, after: &Plan) -> bool {
    after.iter().any(|(name, after)| {
        before
            .get(name)
            .is_some_and(|before| snapshot_denies_more(before, after))
    })
}

fn snapshot_denies_more(before: &Snapshot, after: &Snapshot) -> bool {
    let (old, new) = (Tables::new(before), Tables::new(after));
    // Peers that some binding of either side can tell apart, by an address that stands for them.
    let peers: HashSet<IpAddr> = (before.addresses.iter())
        .chain(&after.addresses)
        .map(|binding| binding.net.addr())
        .collect();
    let mut compared = HashSet::new();
    for address in peers {
        for direction in [FlowDirection::Ingress, FlowDirection::Egress] {
            let (from, to) = (old.class(address, direction), new.class(address, direction));
            if !compared.insert((from, to)) {
                continue;
            }
            if old
                .ports(from)
                .chain(new.ports(to))
                .any(|ports| old.passes(from, ports) && !new.passes(to, ports))
            {
                return true;
            }
        }
    }
    false
}

/// Class and filter class of a peer; otherwise whether it is isolated.
type Classes = Result<(u32, u32), bool>;

/// A snapshot as the kernel looks it up, for blocks of ports instead of single ones.
struct Tables<'a> {
    snapshot: &'a Snapshot,
    bindings: HashMap<IpNet, &'a AddressBinding>,
    lengths: Vec<u8>,
    classes: HashMap<(FlowDirection, u32), (u32, u32)>,
    rules: HashMap<u32, HashMap<PortPrefix, bool>>,
    filters: HashMap<u32, HashMap<PortPrefix, bool>>,
}

impl<'a> Tables<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let mut rules: HashMap<u32, HashMap<PortPrefix, bool>> = HashMap::new();
        for cell in &snapshot.rules {
            let passes = cell.enforced.allow || !cell.mode_enforced;
            rules
                .entry(cell.class)
                .or_default()
                .insert(cell.ports, passes);
        }
        let mut filters: HashMap<u32, HashMap<PortPrefix, bool>> = HashMap::new();
        for cell in &snapshot.filters {
            let passes = cell.allow != Some(false) || !cell.mode_enforced;
            filters
                .entry(cell.class)
                .or_default()
                .insert(cell.ports, passes);
        }
        let mut lengths: Vec<u8> = snapshot
            .addresses
            .iter()
            .map(|b| b.net.prefix_len())
            .collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        Self {
            snapshot,
            bindings: snapshot.addresses.iter().map(|b| (b.net, b)).collect(),
            lengths,
            classes: (snapshot.classes.iter())
                .map(|c| ((c.direction, c.identity), (c.class, c.filter)))
                .collect(),
            rules,
            filters,
        }
    }

    /// The classes of a peer.
    fn class(&self, address: IpAddr, direction: FlowDirection) -> Classes {
        let binding = self
            .lengths
            .iter()
            .filter_map(|length| IpNet::new(address, *length).ok())
            .find_map(|net| self.bindings.get(&net.trunc()))
            .ok_or(false)?;
        if binding.isolated {
            return Err(true);
        }
        self.classes
            .get(&(direction, binding.identity))
            .copied()
            .ok_or(false)
    }

    fn ports(&self, classes: Classes) -> impl Iterator<Item = PortPrefix> {
        let (class, filter) = classes.unwrap_or_default();
        let cells = |table: &'_ HashMap<u32, HashMap<PortPrefix, bool>>, class| {
            table
                .get(&class)
                .map(|cells| cells.keys().copied().collect::<Vec<_>>())
                .unwrap_or_default()
        };
        cells(&self.rules, class)
            .into_iter()
            .chain(cells(&self.filters, filter))
    }

    fn passes(&self, classes: Classes, ports: PortPrefix) -> bool {
        let observed = (self.snapshot.endpoints.iter()).all(|e| e.mode == Mode::Observe);
        let (class, filter) = match classes {
            Ok(classes) => classes,
            Err(isolated) => return observed && !isolated,
        };
        let filtered = covering(ports).find_map(|p| self.filters.get(&filter)?.get(&p).copied());
        let ruled = covering(ports).find_map(|p| self.rules.get(&class)?.get(&p).copied());
        filtered.unwrap_or(true) && ruled.unwrap_or(observed)
    }
}

/// Every block that contains a block, longest first.
fn covering(ports: PortPrefix) -> impl Iterator<Item = PortPrefix> {
    let blocks = ports.protocol.map_or(0..0, |_| 0..ports.port_bits + 1);
    blocks
        .rev()
        .map(move |bits| PortPrefix {
            protocol: ports.protocol,
            port: policy::snapshot::mask(ports.port, bits),
            port_bits: bits,
        })
        .chain(std::iter::once(PortPrefix::ANY))
}

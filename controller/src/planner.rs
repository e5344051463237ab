//! From a state to the snapshot of every agent. Pure: time is an argument.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use policy::compile::{
    CompileError, CompileInput, HostWorkload, IdentityAllocator, Limits, compile,
};
use policy::set::PolicySet;
use policy::snapshot::{Mode, Snapshot};
use policy::snapshot_diff::diff_snapshots;
use policy::world::{Workload, World};
use proto::convert::HOST_ENDPOINT;
use time::OffsetDateTime;

use crate::config::{Config, DefaultMode};
use crate::state::{State, WorkloadRecord};

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

/// What planning comes to. Agents do not wait for each other.
#[derive(Clone, Debug, Default)]
pub struct Plans {
    /// Who has room.
    pub fit: Plan,
    /// Who has not, and why.
    pub unfit: BTreeMap<String, PlanError>,
}

/// Compiles for every agent, and says which agents' tables do not hold it.
#[must_use]
pub fn plan(
    state: &State,
    policies: &PolicySet,
    settings: &Settings,
    identities: &mut IdentityAllocator,
    revision: u64,
    at: OffsetDateTime,
) -> Plans {
    let world = world(state, policies, settings);
    let mut plans = Plans::default();
    for (name, _) in agents(state) {
        let host = [HostWorkload {
            name: name.clone(),
            endpoint: HOST_ENDPOINT,
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
        match compile(&input, identities) {
            Ok(snapshot) => {
                plans.fit.insert(name.clone(), Arc::new(snapshot));
            }
            Err(source) => {
                let workload = name.clone();
                plans
                    .unfit
                    .insert(name.clone(), PlanError { workload, source });
            }
        }
    }
    plans
}

/// Whether a flow that passes under `before` is dropped under `after`, on any agent of both.
#[must_use]
pub fn denies_more(before: &Plan, after: &Plan) -> bool {
    after.iter().any(|(name, after)| {
        before
            .get(name)
            .is_some_and(|before| diff_snapshots(before, after).denies_more)
    })
}

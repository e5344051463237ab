//! From a state to the snapshot of every agent. Pure: time is an argument.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use policy::compile::{
    CompileError, CompileInput, HostWorkload, IdentityAllocator, Limits, compile,
};
use policy::enrolled::{Enrolled, join};
use policy::set::PolicySet;
use policy::snapshot::{Mode, Snapshot};
use policy::snapshot_diff::diff_snapshots;
use policy::world::World;
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
    let enrolled: Vec<Enrolled> = (state.workloads.iter())
        .map(|(name, record)| Enrolled {
            full_name: name.clone(),
            labels: record.labels.clone(),
            addresses: record.addresses.clone(),
        })
        .collect();
    let isolated = state.isolations.keys().cloned().collect();
    let networks = settings.managed_networks.clone();
    join(
        networks,
        settings.default_mode,
        &enrolled,
        &isolated,
        policies,
    )
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

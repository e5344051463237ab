//! Rules from recorded traffic: what would have to be allowed so that default deny breaks nothing that is
//! needed.
//!
//! [`recommend`] takes a world, what was seen in it ([`Observations`]) and the policies that exist, and gives staged
//! policies and a [`Report`]. It is deterministic: the same input gives the same bytes, in whatever order it came.
//! The steps, each in a module of its own:
//!
//! 1. `observe`: flows and edges become one row an edge.
//! 2. `sift`: scans, failures, answers that were recorded as openings, and what existing policies already decide
//!    are set aside, each with its reason.
//! 3. `dynamic`: services on changing ports become one service.
//! 4. `infra`: services that most workloads use, or few sources that visit most workloads, get policies of their own.
//! 5. `keys`: the label keys that explain the rest best are chosen, by description length.
//! 6. A (client group, server group, service) that was seen too little or too long ago is *rare*: it is called out and
//!    gets no rule. An edge that is rare by itself is not rare when its groups do the same all the time.
//! 7. `atoms`: both halves of every rule, egress at the source and ingress at the destination, with the most general
//!    selectors that pay, and nothing that is not needed. `cover`: networks for peers that are no workloads.
//! 8. `emit`: atoms become policies; `measure`: coverage and over-permission of the result are counted.
//! 9. `mislabel`: workloads whose traffic is another group's are named.

mod atoms;
mod bits;
mod cover;
mod dynamic;
mod emit;
mod existing;
mod groups;
mod infra;
mod keys;
mod measure;
mod mislabel;
mod observe;
mod pipeline;
mod recorded;
mod report;
mod sift;

use time::OffsetDateTime;

pub use infra::Shape;
pub use keys::{KeyChange, KeyChoice};
pub use measure::{Coverage, OverPermission, Share};
pub use mislabel::{HabitEvidence, LabelChange, Mislabel};
pub use observe::{MAX_EDGES, Observation, Observations, TooManyEdges};
pub use recorded::{RecordCount, Recorder, Window};
pub use report::{CalledOut, InfraFound, Report, Totals, WideRule};
pub use sift::{KeptOut, Scanner};

use crate::model::Object;
use crate::selectors::Selector;
use crate::set::PolicySet;
use crate::world::World;

/// What may be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A (group, group, service) seen in fewer flows is rare.
    pub min_flows: u64,
    /// A (group, group, service) seen in fewer different hours is rare.
    pub min_periods: u32,
    /// One last seen so many days before the end of the recording is stale; 0 = never.
    pub stale_days: u32,
    /// Lowest port that may be one of a service on changing ports.
    pub dynamic_from: u16,
    /// A source with fewer targets is never a scanner.
    pub scan_targets: usize,
    /// Only policies for these workloads.
    pub subject: Option<Selector>,
    /// What the names of all objects begin with.
    pub prefix: String,
    /// Owner of all objects.
    pub owner: Option<String>,
    /// Edges, rules and workloads that each list of the report names, at most.
    pub list: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            min_flows: 3,
            min_periods: 2,
            stale_days: 30,
            dynamic_from: 32_768,
            scan_targets: 32,
            subject: None,
            prefix: "recommended".to_owned(),
            owner: None,
            list: 50,
        }
    }
}

/// What is recommended.
#[derive(Clone, Debug)]
pub struct Recommendation {
    /// Staged policies, and the groups and services that they refer to.
    pub objects: Vec<Object>,
    /// What they cover, what they allow beyond, and what they leave out.
    pub report: Report,
}

/// Recommends rules for what the existing policies (their draft) do not allow yet at `at`.
#[must_use]
pub fn recommend(
    world: &World,
    observations: Observations<'_>,
    existing: &PolicySet,
    options: &Options,
    at: OffsetDateTime,
) -> Recommendation {
    pipeline::Pipeline::new(world, observations, existing, options, at).run()
}

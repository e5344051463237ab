//! Invariants: a change under which one does not hold is not applied.

use std::collections::BTreeSet;
use std::sync::Arc;

use policy::invariants::{InvariantResult, check_invariants};
use policy::model::Object;
use policy::set::PolicySet;
use proto::v1;
use time::OffsetDateTime;
use tonic::Status;

use super::content::wire_problem;
use crate::core::Core;
use crate::planner::{self, Settings};
use crate::state::State;

/// What a change comes to.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// Why it is not applied.
    pub(super) refusals: Vec<v1::Problem>,
    /// What somebody should know all the same.
    pub(super) warnings: Vec<v1::Problem>,
}

/// Names of the invariants among some objects.
pub(super) fn names_of(objects: &[Object]) -> BTreeSet<String> {
    objects
        .iter()
        .filter_map(|object| match object {
            Object::Invariant(invariant) => Some(invariant.metadata.name.clone()),
            _ => None,
        })
        .collect()
}

/// Checks every invariant with these policies.
///
/// One that was broken before the change, and is not in `named` (those of the request), is a warning
/// only: who mends something else at night is not held up by it. So is one that means nobody (yet).
pub(super) async fn check(
    core: &Core,
    state: &Arc<State>,
    after: Arc<PolicySet>,
    named: BTreeSet<String>,
) -> Result<Checked, Status> {
    let (state, settings) = (state.clone(), Settings::from(&core.config));
    let work = move || {
        let at = OffsetDateTime::now_utc();
        let results = |policies: &PolicySet| -> Vec<InvariantResult> {
            let world = planner::world(&state, policies, &settings);
            check_invariants(&world, policies, at)
        };
        let after = results(&after);
        let is_foreign = |result: &InvariantResult| !named.contains(&result.name);
        let before: BTreeSet<String> = if after.iter().any(|r| r.is_broken() && is_foreign(r)) {
            let broken = results(&state.policies).into_iter();
            broken
                .filter(InvariantResult::is_broken)
                .map(|result| result.name)
                .collect()
        } else {
            BTreeSet::new()
        };
        let mut checked = Checked::default();
        for result in &after {
            let Some(problem) = result.problem().map(wire_problem) else {
                continue;
            };
            let known = is_foreign(result) && before.contains(&result.name);
            if result.is_broken() && !known {
                checked.refusals.push(problem);
            } else {
                checked.warnings.push(problem);
            }
        }
        checked
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Status::internal("the invariants were cut short"))
}

//! The tests in policy files: a change that breaks one is not applied.

use std::collections::BTreeSet;
use std::sync::Arc;

use policy::filetests::{TestResult, run_tests};
use policy::model::Object;
use policy::set::PolicySet;
use proto::v1;
use time::OffsetDateTime;
use tonic::Status;

use super::content::wire_problem;
use crate::core::Core;
use crate::planner::{self, Settings};
use crate::state::State;

/// Names of the policies among some objects.
pub(super) fn policies_of(objects: &[Object]) -> BTreeSet<String> {
    objects
        .iter()
        .filter_map(|object| match object {
            Object::Policy(policy) => Some(policy.metadata.name.clone()),
            _ => None,
        })
        .collect()
}

/// The tests that come out otherwise than expected with these policies, as problems.
///
/// A test that means no connection, because the workloads that it names are not there (yet), stops
/// nobody. Nor does a test of a policy that is not in `named` (those of the request), if it failed before
/// the change too: who mends something else at night is not held up by it.
pub(super) async fn broken(
    core: &Core,
    state: &Arc<State>,
    after: Arc<PolicySet>,
    named: &BTreeSet<String>,
) -> Result<Vec<v1::Problem>, Status> {
    let (state, settings, named) = (state.clone(), Settings::from(&core.config), named.clone());
    let work = move || {
        let at = OffsetDateTime::now_utc();
        let wrong = |policies: &PolicySet| -> Vec<TestResult> {
            let world = planner::world(&state, policies, &settings);
            let mut results = run_tests(&world, policies, at);
            results.retain(|result| result.wrong);
            results
        };
        let mut failed = wrong(&after);
        if failed.iter().any(|result| !named.contains(&result.policy)) {
            let before: BTreeSet<(String, String)> = wrong(&state.policies)
                .into_iter()
                .map(|result| (result.policy, result.name))
                .collect();
            failed.retain(|result| {
                named.contains(&result.policy)
                    || !before.contains(&(result.policy.clone(), result.name.clone()))
            });
        }
        failed.iter().map(problem).collect()
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Status::internal("the tests were cut short"))
}

fn problem(result: &TestResult) -> v1::Problem {
    let message = format!(
        "the test \"{}\" of policy {} fails: {}",
        result.name,
        result.policy,
        result.failures.join("; ")
    );
    wire_problem(
        policy::problems::Problem::at(&result.place, message)
            .suggest("mend the rules, or the test if it asks for the wrong thing"),
    )
}

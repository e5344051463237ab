//! Watching the invariants: workloads come, labels change and deadlines pass without an apply.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use policy::invariants::{InvariantOutcome, InvariantResult, check_invariants};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::planner::{self, Settings};
use crate::state::State;

/// Policies and grants end at a moment of their own.
const AGAIN: Duration = Duration::from_secs(60);

/// States of an invariant, as the metric names them.
const STATES: [&str; 3] = ["holds", "broken", "empty"];

/// Checks at every change of the state, and every minute, until `stop`; says in the log and in the
/// metric when an invariant is broken or means nobody any more.
pub(crate) async fn watch(core: Arc<Core>, stop: CancellationToken) {
    let mut states = core.follow();
    states.mark_changed();
    let mut told: BTreeMap<String, &'static str> = BTreeMap::new();
    let mut last: Option<Arc<State>> = None;
    loop {
        let waited = tokio::time::timeout(AGAIN, states.changed());
        let again = match stop.run_until_cancelled(waited).await {
            None | Some(Ok(Err(_))) => return,
            Some(Err(_elapsed)) => true,
            Some(Ok(Ok(()))) => false,
        };
        let state = states.borrow_and_update().clone();
        if !again && last.as_ref().is_some_and(|last| last.plans_like(&state)) {
            continue;
        }
        last = Some(state.clone());
        if state.policies.invariants().is_empty() && told.is_empty() {
            continue;
        }
        let settings = Settings::from(&core.config);
        let work = move || {
            let world = planner::world(&state, &state.policies, &settings);
            check_invariants(&world, &state.policies, OffsetDateTime::now_utc())
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(results) => tell(&core, &results, &mut told),
            Err(error) => tracing::error!(%error, "the invariants are not checked"),
        }
    }
}

/// Counts, and writes down what is new.
fn tell(core: &Core, results: &[InvariantResult], told: &mut BTreeMap<String, &'static str>) {
    let mut now = BTreeMap::new();
    for result in results {
        let state = match result.outcome {
            InvariantOutcome::Holds => "holds",
            InvariantOutcome::Broken { .. } => "broken",
            InvariantOutcome::Empty { .. } => "empty",
        };
        let before = told.get(&result.name).copied();
        let (name, claim, outcome) = (&result.name, &result.claim, &result.outcome);
        match state {
            _ if before == Some(state) => {}
            "broken" => tracing::error!(name, claim, %outcome, "an invariant is broken"),
            "empty" => tracing::warn!(name, claim, %outcome, "an invariant means nobody"),
            _ if before.is_some() => tracing::info!(name, claim, "an invariant holds again"),
            _ => {}
        }
        now.insert(result.name.clone(), state);
    }
    for state in STATES {
        let count = now.values().filter(|own| **own == state).count();
        core.metrics
            .invariants(state)
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    *told = now;
}

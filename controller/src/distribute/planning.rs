//! Following the state: compile, compare, desire. And what happens by itself when its time comes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use policy::compile::IdentityAllocator;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::Desired;
use crate::clock;
use crate::core::{Core, CoreError};
use crate::planner::{self, Plans, Settings};
use crate::state::{self, State, key};
use crate::store::Op;

/// Compiles at every change of the state, until `stop`.
pub async fn follow(core: Arc<Core>, stop: CancellationToken) {
    let mut states = core.follow();
    states.mark_changed();
    let mut last: Option<Arc<State>> = None;
    while let Some(Ok(())) = stop.run_until_cancelled(states.changed()).await {
        let state = states.borrow_and_update().clone();
        // Tokens, answers and the like concern no agent.
        if last.as_ref().is_some_and(|last| last.plans_like(&state)) {
            core.hub.still_planned(state.revision);
            last = Some(state);
            continue;
        }
        last = None;
        if let Err(error) = replan(&core, &state).await {
            // Everybody keeps what they have.
            tracing::error!(%error, revision = state.revision, "no snapshots");
        } else {
            last = Some(state);
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ReplanError {
    #[error(transparent)]
    Core(#[from] CoreError),
    #[error("compiling was cut short")]
    Cut,
}

struct Planned {
    now: Plans,
    fallback: Option<Plans>,
    identities: IdentityAllocator,
}

async fn replan(core: &Arc<Core>, state: &Arc<State>) -> Result<(), ReplanError> {
    let begun = Instant::now();
    let settings = Settings::from(&core.config);
    let work = {
        let state = state.clone();
        move || -> Planned {
            let at = OffsetDateTime::now_utc();
            let mut identities = (*state.identities).clone();
            let mut plan = |policies: &_| {
                planner::plan(
                    &state,
                    policies,
                    &settings,
                    &mut identities,
                    state.revision,
                    at,
                )
            };
            let now = plan(&state.policies);
            let fallback = state.previous.as_deref().map(&mut plan);
            Planned {
                now,
                fallback,
                identities,
            }
        }
    };
    let planned = tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ReplanError::Cut)?;
    // Numbers are durable before anybody hears them.
    if planned.identities != *state.identities {
        let mut change = core.change().await;
        change.op(state::put(key::IDENTITIES.to_owned(), &planned.identities));
        change.commit().await?;
    }
    // Every apply was checked: what does not fit is a workload too many. The others do not wait for
    // those that it does not fit, and without its fallback nothing unconfirmed is sent.
    let without_fallback = planned.fallback.iter().flat_map(|plans| &plans.unfit);
    let unfit: BTreeMap<String, String> = (without_fallback.chain(&planned.now.unfit))
        .map(|(name, error)| (name.clone(), error.source.to_string()))
        .collect();
    let mut desired = BTreeMap::new();
    for (name, reason) in &unfit {
        tracing::error!(
            workload = name,
            reason,
            revision = state.revision,
            "no snapshot"
        );
        let Some(before) = core.hub.desired(name) else {
            continue;
        };
        // What it should have was confirmed; anything else would have changed the policy.
        if before.deadline.is_some()
            && state.pending.is_none()
            && state.policy_revision <= before.revision
        {
            let confirmed = Desired {
                fallback: None,
                deadline: None,
                ..(*before).clone()
            };
            desired.insert(name.clone(), confirmed);
        }
    }
    for (name, snapshot) in planned.now.fit {
        if unfit.contains_key(&name) {
            continue;
        }
        let digest = snapshot.digest();
        let fallback = (planned.fallback.as_ref()).and_then(|plans| plans.fit.get(&name).cloned());
        // Whom a change does not concern keeps the old revision, and has nothing to confirm.
        let concerned = fallback
            .as_ref()
            .is_some_and(|fallback| fallback.digest() != digest);
        let fallback = fallback.filter(|_| concerned);
        // An isolation that only the fallback shows has to get there too. Without a fallback the
        // change was confirmed, which is told in another way.
        let before = core.hub.desired(&name);
        let same = before.filter(|before| {
            let known = before.fallback.as_ref().map(|fallback| fallback.digest());
            before.digest == digest
                && (fallback.as_ref()).is_none_or(|new| known == Some(new.digest()))
        });
        desired.insert(
            name,
            Desired {
                revision: same.as_ref().map_or(state.revision, |same| same.revision),
                digest,
                snapshot: same.map_or(snapshot, |same| same.snapshot.clone()),
                deadline: (state.pending.as_ref())
                    .filter(|_| concerned)
                    .map(|pending| pending.deadline),
                fallback,
                isolations: state.isolation_revision,
            },
        );
    }
    core.hub.desire(desired, unfit, state.revision);
    core.metrics
        .plan_seconds
        .observe(begun.elapsed().as_secs_f64());
    Ok(())
}

/// Ends isolations and unconfirmed changes when their time comes, and forgets answers after a day,
/// until `stop`.
pub async fn timers(core: Arc<Core>, stop: CancellationToken) {
    const LONGEST: Duration = Duration::from_secs(30);
    const DAY: u64 = 24 * 3_600;
    let mut states = core.follow();
    let mut cleaned: Option<Instant> = None;
    loop {
        if cleaned.is_none_or(|last| last.elapsed() > Duration::from_secs(DAY / 24)) {
            cleaned = Some(Instant::now());
            let day_ago = clock::now_ns() - clock::seconds_ns(DAY);
            if let Err(error) = core.forget_answers(day_ago).await {
                tracing::error!(%error, "old answers stay");
            }
        }
        let state = states.borrow_and_update().clone();
        let next = (state.isolations.values())
            .filter_map(|(isolation, _)| isolation.until)
            .chain(state.pending.as_ref().map(|pending| pending.deadline))
            .min();
        // The clock may jump, so that no sleep is a long one.
        let wait = next.map_or(LONGEST, clock::until).min(LONGEST);
        if wait.is_zero() {
            if let Err(error) = expire(&core).await {
                tracing::error!(%error, "what has ended is not recorded");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            changed = states.changed() => if changed.is_err() { return },
        }
    }
}

async fn expire(core: &Arc<Core>) -> Result<(), CoreError> {
    let mut change = core.change().await;
    let (state, now) = (change.state.clone(), clock::now_ns());
    for (workload, (isolation, _)) in state.isolations.iter() {
        if isolation.until.is_some_and(|until| until <= now) {
            change.op(Op::Delete(format!("{}{workload}", key::ISOLATION)));
            change.audit(
                "controller",
                "workload.restore",
                workload,
                "the isolation has ended",
            );
            tracing::info!(workload, "the isolation has ended");
        }
    }
    if let Some(pending) = state
        .pending
        .as_ref()
        .filter(|pending| pending.deadline <= now)
    {
        crate::api::fall_back(core, &mut change, pending).await?;
    }
    change.commit().await?;
    Ok(())
}

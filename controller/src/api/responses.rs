//! Cutting workloads off and letting them back in, with the time that it took.

use std::time::{Duration, Instant};

use proto::v1;
use proto::v1::responses_server::Responses;
use tonic::{Request, Response, Status};

use super::{Api, caller, expect};
use crate::clock;
use crate::core::{Begun, Core};
use crate::state::{self, IsolationRecord, key};
use crate::store::Op;

/// The longest wait.
const MAX_WAIT: Duration = Duration::from_secs(60);

#[tonic::async_trait]
impl Responses for Api {
    async fn isolate(
        &self,
        request: Request<v1::IsolateRequest>,
    ) -> Result<Response<v1::IsolateResponse>, Status> {
        let begun_at = Instant::now();
        let caller = caller(&request)?;
        let request = request.into_inner();
        let wait = request.wait_milliseconds;
        let options = request.options.clone();
        let (mut change, slot) = match self.core.begin(&caller, options.as_ref(), &request).await? {
            Begun::Fresh(change, slot) => (change, slot),
            Begun::Repeated(answer) => return self.wait(answer, wait, begun_at, None).await,
        };
        known(&change.state, &request.workload)?;
        if request.reason.len() > 1_024 {
            return Err(Status::invalid_argument("reason: at most 1024 bytes"));
        }
        let before = change.state.isolations.get(&request.workload);
        expect(
            options.as_ref(),
            before.map_or(0, |(_, revision)| *revision),
            "the isolation",
        )?;
        if options.is_some_and(|options| options.dry_run) {
            return Ok(Response::new(dry(&change.state)));
        }
        let now = clock::now_ns();
        let ttl = clock::seconds_ns(request.ttl_seconds.into());
        let record = IsolationRecord {
            until: (ttl > 0).then(|| now.saturating_add(ttl)),
            reason: request.reason.clone(),
            actor: caller.uri.clone(),
            at: now,
        };
        change.op(state::put(
            format!("{}{}", key::ISOLATION, request.workload),
            &record,
        ));
        change.audit(
            &caller.uri,
            "workload.isolate",
            &request.workload,
            &request.reason,
        );
        let answer = v1::IsolateResponse {
            revision: change.revision(),
            ..v1::IsolateResponse::default()
        };
        change.answer(slot, &answer);
        let stored = change.commit().await?.committed;
        self.wait(answer, wait, begun_at, stored).await
    }

    async fn restore(
        &self,
        request: Request<v1::RestoreRequest>,
    ) -> Result<Response<v1::IsolateResponse>, Status> {
        let begun_at = Instant::now();
        let caller = caller(&request)?;
        let request = request.into_inner();
        let wait = request.wait_milliseconds;
        let options = request.options.clone();
        let (mut change, slot) = match self.core.begin(&caller, options.as_ref(), &request).await? {
            Begun::Fresh(change, slot) => (change, slot),
            Begun::Repeated(answer) => return self.wait(answer, wait, begun_at, None).await,
        };
        let Some((_, revision)) = change.state.isolations.get(&request.workload) else {
            return Err(Status::failed_precondition(format!(
                "\"{}\" is not isolated",
                request.workload
            )));
        };
        expect(options.as_ref(), *revision, "the isolation")?;
        if options.is_some_and(|options| options.dry_run) {
            return Ok(Response::new(dry(&change.state)));
        }
        change.op(Op::Delete(format!(
            "{}{}",
            key::ISOLATION,
            request.workload
        )));
        change.audit(&caller.uri, "workload.restore", &request.workload, "");
        let answer = v1::IsolateResponse {
            revision: change.revision(),
            ..v1::IsolateResponse::default()
        };
        change.answer(slot, &answer);
        let stored = change.commit().await?.committed;
        self.wait(answer, wait, begun_at, stored).await
    }
}

fn known(state: &state::State, workload: &str) -> Result<(), Status> {
    let written = || {
        (state.policies.workloads().iter())
            .any(|object| policy::world::Workload::from(object).full_name() == workload)
    };
    if state.workloads.contains_key(workload) || written() {
        Ok(())
    } else {
        Err(Status::not_found(format!(
            "there is no workload \"{workload}\""
        )))
    }
}

fn dry(state: &state::State) -> v1::IsolateResponse {
    v1::IsolateResponse {
        revision: state.revision,
        ..v1::IsolateResponse::default()
    }
}

impl Api {
    /// Waits until the agents that a revision concerns have proved that they hold it.
    async fn wait(
        &self,
        mut answer: v1::IsolateResponse,
        milliseconds: u32,
        begun_at: Instant,
        stored: Option<Instant>,
    ) -> Result<Response<v1::IsolateResponse>, Status> {
        let since =
            |moment: Instant| moment.saturating_duration_since(begun_at).as_secs_f64() * 1e3;
        answer.stored_ms = stored.map_or(0.0, since);
        let wait = Duration::from_millis(milliseconds.into()).min(MAX_WAIT);
        if wait.is_zero() {
            return Ok(Response::new(answer));
        }
        let mut changes = self.core.hub.changes();
        let all = async {
            self.core.hub.planned(answer.revision).await;
            loop {
                changes.mark_unchanged();
                // Who is away cannot answer: waiting for it would only delay those who look.
                let away_only = concerned(&self.core, answer.revision).all(|(_, agent)| {
                    agent.verified >= answer.revision || !agent.connected || !agent.unfit.is_empty()
                });
                if away_only || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // Not all in time: the answer says who.
        let _late = tokio::time::timeout(wait, all).await;
        if *self.core.hub.follow_planned().borrow() < answer.revision {
            // Whom it concerns is not known yet: nobody has proved anything.
            let state = self.core.state();
            answer.not_verified = (state.workloads.iter())
                .filter(|(_, record)| !record.revoked)
                .map(|(name, _)| format!("{name} (not planned yet)"))
                .collect();
            answer.agents_affected = u32::try_from(answer.not_verified.len()).unwrap_or(u32::MAX);
            return Ok(Response::new(answer));
        }
        for (name, agent) in concerned(&self.core, answer.revision) {
            answer.agents_affected += 1;
            if let Some(sent) = agent.sent_at.filter(|_| agent.sent >= answer.revision) {
                answer.sent_ms = answer.sent_ms.max(since(sent));
            }
            match agent
                .verified_at
                .filter(|_| agent.verified >= answer.revision && agent.unfit.is_empty())
            {
                Some(verified) => {
                    answer.agents_verified += 1;
                    answer.verified_ms = answer.verified_ms.max(since(verified));
                }
                None => answer.not_verified.push(name),
            }
        }
        Ok(Response::new(answer))
    }
}

/// Agents whose content a revision changed, or would have if it fitted.
fn concerned(
    core: &Core,
    revision: u64,
) -> impl Iterator<Item = (String, crate::distribute::AgentState)> {
    let agents = core.hub.agents().into_iter();
    agents.filter(move |(_, agent)| agent.desired >= revision || !agent.unfit.is_empty())
}

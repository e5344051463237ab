//! What every agent should have and has.

use std::time::Duration;

use proto::v1::status_server::Status as StatusService;
use proto::{convert, v1};
use tonic::{Request, Response, Status};

use super::{Answers, Api, inventory};
use crate::distribute::AgentState;

/// A watcher hears of changes at most so often.
const PACE: Duration = Duration::from_millis(20);

#[tonic::async_trait]
impl StatusService for Api {
    async fn get(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(self.status()))
    }

    type WatchStream = Answers<v1::GetStatusResponse>;

    async fn watch(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let api = self.clone();
        let (mut changes, mut states) = (self.core.hub.changes(), self.core.follow());
        let mut planned = self.core.hub.follow_planned();
        Ok(Response::new(self.stream(|feed| async move {
            loop {
                changes.mark_unchanged();
                states.mark_unchanged();
                planned.mark_unchanged();
                if !feed.send(Ok(api.status())).await {
                    return;
                }
                let ended = tokio::select! {
                    changed = changes.changed() => changed.is_err(),
                    changed = states.changed() => changed.is_err(),
                    changed = planned.changed() => changed.is_err(),
                };
                if ended {
                    return;
                }
                tokio::time::sleep(PACE).await;
            }
        })))
    }
}

impl Api {
    fn status(&self) -> v1::GetStatusResponse {
        let state = self.core.state();
        // Before `known` is read: what agents desire is then at least of this revision, and whoever waits for a
        // revision cannot take agents for converged that have not even been told of it.
        let planned = *self.core.hub.follow_planned().borrow();
        let known = self.core.hub.agents();
        let mut refused = self.core.hub.refused();
        let agents = state.workloads.iter().map(|(workload, record)| {
            let agent = known.get(workload).cloned().unwrap_or_default();
            let refused = refused.remove(workload).unwrap_or_default();
            if record.revoked {
                return out(workload, &agent, &["revoked", &refused]);
            }
            v1::AgentInfo {
                workload: workload.clone(),
                hostname: agent.hostname,
                version: agent.version,
                kernel: agent.kernel,
                connected: agent.connected,
                desired_revision: agent.desired,
                applied_revision: agent.applied,
                verified_revision: agent.verified,
                // What it should have now nobody could work out.
                digest_matches: agent.digest_matches && agent.unfit.is_empty(),
                last_error: join(&[&agent.unfit, &agent.last_error, &refused]),
                pending: agent.pending,
                last_seen: (agent.last_seen > 0).then(|| convert::from_unix_ns(agent.last_seen)),
                losses: agent.losses,
                mode: v1::Mode::from(inventory::mode_of(&self.core, workload)).into(),
            }
        });
        let mut agents: Vec<v1::AgentInfo> = agents.collect();
        // Who has never got in.
        let stranger = AgentState::default();
        agents
            .extend((refused.iter()).map(|(workload, reason)| out(workload, &stranger, &[reason])));
        // Those who are out do not hold up who waits for the fleet; alone they are not a fleet.
        if !state.workloads.values().any(|record| !record.revoked) {
            for agent in &mut agents {
                agent.digest_matches = false;
            }
        }
        v1::GetStatusResponse {
            revision: state.revision.min(planned),
            agents,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Who may not speak: nothing is desired of it, and so nothing is missing.
fn out(workload: &str, agent: &AgentState, reasons: &[&str]) -> v1::AgentInfo {
    v1::AgentInfo {
        workload: workload.to_owned(),
        hostname: agent.hostname.clone(),
        version: agent.version.clone(),
        kernel: agent.kernel.clone(),
        digest_matches: true,
        last_error: join(reasons),
        last_seen: (agent.last_seen > 0).then(|| convert::from_unix_ns(agent.last_seen)),
        ..v1::AgentInfo::default()
    }
}

fn join(reasons: &[&str]) -> String {
    let said: Vec<&str> = (reasons.iter().copied())
        .filter(|reason| !reason.is_empty())
        .collect();
    said.join("; ")
}

//! What every agent should have and has.

use std::time::Duration;

use proto::v1::status_server::Status as StatusService;
use proto::{convert, v1};
use tonic::{Request, Response, Status};

use super::{Answers, Api, inventory};

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
        let agents = state.workloads.keys().map(|workload| {
            let agent = known.get(workload).cloned().unwrap_or_default();
            v1::AgentInfo {
                workload: workload.clone(),
                hostname: agent.hostname,
                version: agent.version,
                kernel: agent.kernel,
                connected: agent.connected,
                desired_revision: agent.desired,
                applied_revision: agent.applied,
                verified_revision: agent.verified,
                digest_matches: agent.digest_matches,
                last_error: agent.last_error,
                pending: agent.pending,
                last_seen: (agent.last_seen > 0).then(|| convert::from_unix_ns(agent.last_seen)),
                losses: agent.losses,
                mode: v1::Mode::from(inventory::mode_of(&self.core, workload)).into(),
            }
        });
        v1::GetStatusResponse {
            revision: state.revision.min(planned),
            agents: agents.collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

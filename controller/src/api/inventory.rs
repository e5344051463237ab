//! Workloads and how they join and leave.

use std::collections::BTreeSet;

use policy::posture::Posture;
use policy::snapshot::Mode;
use proto::v1::inventory_server::Inventory;
use proto::{convert, v1};
use tonic::{Request, Response, Status};

use super::{Api, caller, page};
use crate::auth::{Token, TokenParts, valid_segment};
use crate::clock;
use crate::core::Begun;
use crate::planner::{self, Settings};
use crate::state::{self, key};
use crate::store::Op;

/// Life of a token when nobody says how long, and at most.
const TTL: u32 = 3_600;
const MAX_TTL: u32 = 30 * 24 * 3_600;

#[tonic::async_trait]
impl Inventory for Api {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let options = request.options.clone();
        let begun = self
            .core
            .begin::<_, v1::CreateTokenResponse>(&caller, options.as_ref(), &request)
            .await?;
        let Begun::Fresh(mut change, slot) = begun else {
            return Err(Status::already_exists(
                "this request was answered before; a token is shown once: ask for another with a new idempotency_key",
            ));
        };
        let workload = workload_name(&request.namespace, &request.workload)?;
        let scope = convert::to_prefixes("addresses", &request.addresses)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if scope.is_empty() {
            return Err(Status::invalid_argument(
                "addresses: at least one is needed, the agent may claim no other",
            ));
        }
        for (label, value) in &request.labels {
            if label.is_empty() || label.len() > 253 || value.len() > 253 {
                return Err(Status::invalid_argument(
                    "labels: keys have 1 to 253 bytes, values at most 253",
                ));
            }
        }
        let ttl = match request.ttl_seconds {
            0 => TTL,
            ttl => ttl.min(MAX_TTL),
        };
        let parts = TokenParts::generate().map_err(|error| Status::internal(error.to_string()))?;
        let token = Token {
            secret_sha256: parts.hash(),
            workload: workload.clone(),
            labels: request.labels,
            scope,
            expires: clock::now_ns().saturating_add(clock::seconds_ns(ttl.into())),
            used_by: None,
            enrolment: 0,
        };
        let mut response = v1::CreateTokenResponse {
            token: String::new(),
            expires_at: Some(convert::from_unix_ns(token.expires)),
            ca_sha256: self.core.authority.fingerprint(),
        };
        if options.is_some_and(|options| options.dry_run) {
            return Ok(Response::new(response));
        }
        // Tokens that ended make room for new ones.
        let now = clock::now_ns();
        for (id, old) in change.state.clone().tokens.iter() {
            if old.expires <= now {
                change.op(Op::Delete(format!("{}{id}", key::TOKEN)));
            }
        }
        change.op(state::put(format!("{}{}", key::TOKEN, parts.id), &token));
        change.audit(
            &caller.uri,
            "token.create",
            &workload,
            &format!("token {}", parts.id),
        );
        // Without its secret: that is kept nowhere.
        change.answer(slot, &response);
        change.commit().await?;
        response.token = parts.text();
        Ok(Response::new(response))
    }

    async fn revoke_agent(
        &self,
        request: Request<v1::RevokeAgentRequest>,
    ) -> Result<Response<v1::RevokeAgentResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let options = request.options.clone();
        let (mut change, slot) = match self.core.begin(&caller, options.as_ref(), &request).await? {
            Begun::Fresh(change, slot) => (change, slot),
            Begun::Repeated(answer) => return Ok(Response::new(answer)),
        };
        let mut record =
            (change.state.workloads.get(&request.workload).cloned()).ok_or_else(|| {
                Status::not_found(format!("there is no workload \"{}\"", request.workload))
            })?;
        let mut response = v1::RevokeAgentResponse {
            revision: change.state.revision,
        };
        if !options.is_some_and(|options| options.dry_run) {
            record.revoked = true;
            response.revision = change.revision();
            change.op(state::put(
                format!("{}{}", key::WORKLOAD, request.workload),
                &record,
            ));
            // Nobody joins with a token that was lying around.
            for (id, token) in change.state.clone().tokens.iter() {
                if token.workload == request.workload {
                    change.op(Op::Delete(format!("{}{id}", key::TOKEN)));
                }
            }
            change.audit(&caller.uri, "agent.revoke", &request.workload, "");
            change.answer(slot, &response);
            change.commit().await?;
        }
        Ok(Response::new(response))
    }

    async fn list_workloads(
        &self,
        request: Request<v1::ListWorkloadsRequest>,
    ) -> Result<Response<v1::ListWorkloadsResponse>, Status> {
        let request = request.into_inner();
        let state = self.core.state();
        let agents = self.core.hub.agents();
        let settings = Settings::from(&self.core.config);
        let world = planner::world(&state, &state.policies, &settings);
        let written: BTreeSet<String> = (state.policies.workloads().iter())
            .map(|object| policy::world::Workload::from(object).full_name())
            .collect();
        let workloads = world.workloads().iter().map(|workload| {
            let name = workload.full_name();
            let until = (state.isolations.get(&name)).and_then(|(isolation, _)| isolation.until);
            v1::WorkloadInfo {
                labels: workload.labels.clone().into_iter().collect(),
                provenance: if written.contains(&name) {
                    "operator"
                } else {
                    "enrolment-token"
                }
                .to_owned(),
                addresses: workload.addresses.iter().copied().map(Into::into).collect(),
                mode: v1::Mode::from(Posture::of(&world, &state.policies, workload).mode).into(),
                connected: agents.get(&name).is_some_and(|agent| agent.connected),
                isolation_seconds_left: until.map_or(0, |until| {
                    u32::try_from(clock::until(until).as_secs())
                        .unwrap_or(u32::MAX)
                        .max(1)
                }),
                enrolled: state.workloads.contains_key(&name),
                enrolled_labels: (state.workloads.get(&name))
                    .map(|record| record.labels.clone().into_iter().collect())
                    .unwrap_or_default(),
                isolated: state.isolations.contains_key(&name),
                name,
            }
        });
        let (workloads, next_page_token) = page(workloads, request.page_size, &request.page_token)?;
        Ok(Response::new(v1::ListWorkloadsResponse {
            workloads,
            next_page_token,
            managed_networks: (settings.managed_networks.iter().copied())
                .map(Into::into)
                .collect(),
            default_mode: v1::Mode::from(settings.default_mode).into(),
        }))
    }
}

/// `namespace/name`, given in two fields or in one.
fn workload_name(namespace: &str, name: &str) -> Result<String, Status> {
    let (namespace, name) = match name.split_once('/') {
        Some((inside, name)) if namespace.is_empty() => (inside, name),
        _ => (namespace, name),
    };
    if !valid_segment(name) || !(namespace.is_empty() || valid_segment(namespace)) {
        return Err(Status::invalid_argument(
            "workload: letters, digits, `-`, `_` and `.`, starting with a letter or digit; the same for its namespace",
        ));
    }
    Ok(if namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}/{name}")
    })
}

/// The mode that an agent's workload is in.
pub(super) fn mode_of(core: &crate::core::Core, workload: &str) -> Mode {
    let desired = core.hub.desired(workload);
    desired
        .and_then(|desired| {
            desired
                .snapshot
                .endpoints
                .first()
                .map(|endpoint| endpoint.mode)
        })
        .unwrap_or_default()
}

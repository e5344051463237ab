//! Joining: a token and a certificate request for an identity.

use proto::v1::enrollment_server::Enrollment;
use proto::{convert, v1};
use sha2::{Digest as _, Sha256};
use tonic::{Code, Request, Response, Status};

use super::Api;
use crate::auth::{Identity, Peer, Token, TokenParts};
use crate::clock;
use crate::core::Core;
use crate::distribute::session::may_claim;
use crate::state::{self, WorkloadRecord, key};

#[tonic::async_trait]
impl Enrollment for Api {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let remote = request
            .extensions()
            .get::<Peer>()
            .map_or_else(|| "unknown".to_owned(), |peer| peer.remote.ip().to_string());
        let request = request.into_inner();
        match enroll(&self.core, &request).await {
            Ok(response) => Ok(Response::new(response)),
            Err(refusal) => {
                note(&self.core, &request.token, &refusal);
                (self.core)
                    .audit_refusal(
                        &remote,
                        "agent.enroll",
                        &request.hostname,
                        refusal.message(),
                    )
                    .await;
                Err(refusal)
            }
        }
    }
}

/// Tells operators why a workload does not join. Only who has its token's secret is heard.
fn note(core: &Core, text: &str, refusal: &Status) {
    let state = core.state();
    let Some(parts) = TokenParts::parse(text) else {
        return;
    };
    let Some(token) =
        (state.tokens.get(&parts.id)).filter(|token| token.secret_sha256 == parts.hash())
    else {
        return;
    };
    let reason = if token.expires <= clock::now_ns() {
        "the token has expired"
    } else if refusal.code() == Code::Unauthenticated {
        "the token was used"
    } else {
        refusal.message()
    };
    let reason = format!("enrolment refused: {reason}");
    core.hub.refuse(&token.workload, Some(reason));
}

async fn enroll(core: &Core, request: &v1::EnrollRequest) -> Result<v1::EnrollResponse, Status> {
    if request.hostname.len() > 253 {
        return Err(Status::invalid_argument("hostname: at most 253 bytes"));
    }
    let addresses = convert::to_addresses("addresses", &request.addresses)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    // Strangers do not get to hold up changes: only who has a token goes on.
    find_token(&core.state(), &request.token)?;
    let mut change = core.change().await;
    let (id, token) = find_token(&change.state, &request.token)?;
    let request_hash = hex::encode(Sha256::digest(&request.csr_der));
    let known = change.state.workloads.get(&token.workload).cloned();
    let repeated = match &token.used_by {
        None => false,
        // The answer to this very request was lost, and nobody has taken its place since.
        Some(used_by) => {
            *used_by == request_hash
                && (known.as_ref()).is_some_and(|k| !k.revoked && k.enrolment == token.enrolment)
        }
    };
    if token.used_by.is_some() && !repeated {
        return Err(no_token());
    }
    let limits = &core.config.limits;
    may_claim(
        &change.state,
        limits,
        &token.workload,
        &token.scope,
        &addresses,
    )
    .map_err(Status::permission_denied)?;
    let enrolment = known.as_ref().map_or(0, |known| known.enrolment) + u32::from(!repeated);
    let identity = Identity::Agent(token.workload.clone());
    let issued = core
        .authority
        .sign(
            &request.csr_der,
            &identity,
            enrolment,
            core.config.certificates.agent,
        )
        .map_err(|error| Status::invalid_argument(format!("csr_der: {error}")))?;
    if !repeated {
        let mut sorted: Vec<_> = addresses
            .iter()
            .map(std::net::IpAddr::to_canonical)
            .collect();
        sorted.sort();
        sorted.dedup();
        let record = WorkloadRecord {
            labels: token.labels.clone(),
            scope: token.scope.clone(),
            addresses: sorted,
            hostname: request.hostname.clone(),
            enrolment,
            revoked: false,
            enrolled_at: clock::now_ns(),
        };
        let used = Token {
            used_by: Some(request_hash),
            enrolment,
            ..token.clone()
        };
        change.op(state::put(format!("{}{id}", key::TOKEN), &used));
        change.op(state::put(
            format!("{}{}", key::WORKLOAD, token.workload),
            &record,
        ));
        let detail = format!(
            "token {id}, host {}, enrolment {enrolment}",
            request.hostname
        );
        let uri = identity.uri(&core.config.trust_domain);
        change.audit(&uri, "agent.enroll", &token.workload, &detail);
        change.commit().await?;
        core.hub.refuse(&token.workload, None);
        tracing::info!(
            workload = token.workload,
            hostname = request.hostname,
            "agent enrolled"
        );
    }
    Ok(respond(core, &identity, &token.workload, issued))
}

fn find_token(state: &state::State, text: &str) -> Result<(String, Token), Status> {
    let parts = TokenParts::parse(text).ok_or_else(no_token)?;
    let token = state.tokens.get(&parts.id).ok_or_else(no_token)?;
    if token.secret_sha256 != parts.hash() || token.expires <= clock::now_ns() {
        return Err(no_token());
    }
    Ok((parts.id, token.clone()))
}

/// One answer for all: a stranger learns nothing about which tokens there are.
fn no_token() -> Status {
    Status::unauthenticated("the token is unknown, has expired or was used")
}

/// The answer with a new certificate.
pub(super) fn respond(
    core: &Core,
    identity: &Identity,
    workload: &str,
    issued: crate::auth::Issued,
) -> v1::EnrollResponse {
    v1::EnrollResponse {
        certificate_chain_der: vec![issued.certificate.to_vec()],
        ca_der: vec![core.authority.certificate().to_vec()],
        spiffe_id: identity.uri(&core.config.trust_domain),
        workload: workload.to_owned(),
        not_after: Some(convert::from_system_time(issued.not_after.into())),
    }
}

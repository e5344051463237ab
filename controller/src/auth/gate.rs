//! The one place that decides who may call which service.
//!
//! What is not listed is for people only, so that a service that is added later is closed to agents
//! and strangers until somebody thinks about it.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;
use tower::{Layer, Service};

use super::{Caller, Identity, Peer};
use crate::clock;
use crate::core::Core;

/// Who a service is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    Anybody,
    Certified,
    Agents,
    People,
}

fn audience(path: &str) -> Audience {
    let service = path
        .strip_prefix('/')
        .and_then(|path| path.split('/').next())
        .unwrap_or_default();
    match service {
        "cofferdam.v1.Enrollment" => Audience::Anybody,
        "cofferdam.v1.AgentSync" | "cofferdam.v1.FlowIngest" => Audience::Agents,
        "grpc.health.v1.Health" => Audience::Certified,
        _ => Audience::People,
    }
}

/// Stands before every service.
#[derive(Clone, Debug)]
pub struct Gate {
    core: Arc<Core>,
}

impl Gate {
    /// A gate that knows who was revoked.
    #[must_use]
    pub const fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    fn check(&self, path: &str, peer: Option<&Peer>) -> Result<Option<Caller>, Status> {
        let audience = audience(path);
        let certified = peer.and_then(|peer| peer.certified.as_deref());
        let Some(certified) = certified else {
            if audience == Audience::Anybody {
                return Ok(None);
            }
            return Err(Status::unauthenticated(
                "this service demands a client certificate of this controller's authority",
            ));
        };
        // Somebody may come to enrol again with a certificate that has ended.
        if audience == Audience::Anybody {
            return Ok(None);
        }
        let caller = Caller {
            identity: certified.identity.clone(),
            uri: certified.identity.uri(&self.core.config.trust_domain),
            enrolment: certified.enrolment,
            not_after: certified.not_after,
        };
        self.core.admit(&caller)?;
        match (audience, &caller.identity) {
            (Audience::Agents, Identity::Agent(_))
            | (Audience::People, Identity::User(_))
            | (Audience::Certified | Audience::Anybody, _) => Ok(Some(caller)),
            (Audience::Agents, Identity::User(_)) => {
                Err(Status::permission_denied("this service is for agents"))
            }
            (Audience::People, Identity::Agent(_)) => {
                Err(Status::permission_denied("this service is not for agents"))
            }
        }
    }
}

impl Core {
    /// Whether an identity may speak at all, now.
    ///
    /// # Errors
    /// When its certificate has ended, was revoked or belongs to an older enrolment.
    pub fn admit(&self, caller: &Caller) -> Result<(), Status> {
        if caller.not_after <= clock::now_ns() {
            return Err(Status::unauthenticated("the certificate has ended"));
        }
        let Identity::Agent(workload) = &caller.identity else {
            return Ok(());
        };
        match self.state().workloads.get(workload) {
            Some(known) if known.revoked => Err(Status::unauthenticated("the agent was revoked")),
            Some(known) if known.enrolment == caller.enrolment => Ok(()),
            Some(_) => Err(Status::unauthenticated(
                "another enrolment of this workload has taken this one's place",
            )),
            None => Err(Status::unauthenticated("the workload is not known")),
        }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            gate: self.clone(),
            inner,
        }
    }
}

/// A service behind the gate.
#[derive(Clone, Debug)]
pub struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Gated<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<S::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let peer = request.extensions().get::<Peer>();
        match self.gate.check(request.uri().path(), peer) {
            Ok(caller) => {
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                Either::Right(self.inner.call(request))
            }
            Err(status) => {
                self.gate.core.metrics.requests_refused.inc();
                tracing::debug!(path = request.uri().path(), %status, "refused");
                Either::Left(ready(Ok(status.into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_is_for_people() {
        assert_eq!(
            audience("/cofferdam.v1.Enrollment/Enroll"),
            Audience::Anybody
        );
        assert_eq!(audience("/cofferdam.v1.AgentSync/Sync"), Audience::Agents);
        assert_eq!(
            audience("/cofferdam.v1.FlowIngest/Export"),
            Audience::Agents
        );
        for path in [
            "/cofferdam.v1.Policies/Apply",
            "/cofferdam.v1.EnrollmentX/Enroll",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/",
            "",
            "cofferdam.v1.Enrollment/Enroll",
        ] {
            assert_eq!(audience(path), Audience::People, "{path}");
        }
    }
}

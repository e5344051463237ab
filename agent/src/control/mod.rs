//! Follows the controller: enrolment, the policy stream, the flow stream, renewal.
//!
//! A controller that vanishes changes nothing: what is enforced stays, records wait in the spool.
//! Wire types end here: [`wire`] makes them from the agent's own.

mod backoff;
mod export;
mod identity;
mod session;
mod tls;
pub mod wire;

pub use session::follow;

use std::io;
use std::path::PathBuf;

/// Why talking to the controller failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A file of the identity.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is neither an identity nor a token.
    #[error(
        "this agent has no identity yet and no join token (controller.token or controller.token_file)"
    )]
    NoToken,
    /// Nothing says which CA to believe.
    #[error(
        "this agent has no identity yet and neither controller.ca_sha256 nor controller.ca_file: it would have to believe anybody"
    )]
    NoPin,
    /// The certificate or key cannot be used.
    #[error("certificate: {0}")]
    Certificate(String),
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The connection failed.
    #[error("connecting to {endpoint}: {}", chain(source))]
    Connect {
        /// Whom.
        endpoint: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The controller refused a call.
    #[error("{call}: {} ({:?})", source.message(), source.code())]
    Call {
        /// Which.
        call: &'static str,
        /// Why.
        source: Box<tonic::Status>,
    },
    /// The controller refused what this agent claims.
    #[error("the controller refused this agent: {0}")]
    Refused(String),
    /// The stream ended.
    #[error("the controller closed the stream")]
    Closed,
    /// Own addresses changed; the claim is made again.
    #[error("own addresses changed")]
    Readdressed,
    /// The certificate was renewed; the connection is made again with it.
    #[error("the certificate was renewed")]
    Renewed,
}

impl ControlError {
    fn call(call: &'static str) -> impl FnOnce(tonic::Status) -> Self {
        move |source| Self::Call {
            call,
            source: Box::new(source),
        }
    }
}

/// An error with everything that caused it: the outermost text alone is often "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

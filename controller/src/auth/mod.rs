//! Who may speak: the controller's own authority, join tokens, mutual TLS, and what follows from an
//! identity.
//!
//! Identities are URIs in a certificate: `spiffe://<trust domain>/agent/<workload>` (the workload's
//! name contains its namespace, where it has one) and `spiffe://<trust domain>/user/<name>`.

mod ca;
mod gate;
mod tls;
mod token;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub use ca::{Authority, CaError, Issued};
pub use gate::Gate;
pub use tls::{PeerStream, incoming, server_config};
pub use token::{Token, TokenParts};

/// An identity of this trust domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// An agent, by the name of its workload.
    Agent(String),
    /// A person or automation.
    User(String),
}

impl Identity {
    /// The URI.
    #[must_use]
    pub fn uri(&self, trust_domain: &str) -> String {
        format!("spiffe://{trust_domain}/{self}")
    }

    /// From a URI; `None` when it is of another trust domain or malformed.
    #[must_use]
    pub fn parse(uri: &str, trust_domain: &str) -> Option<Self> {
        let path = uri
            .strip_prefix("spiffe://")?
            .strip_prefix(trust_domain)?
            .strip_prefix('/')?;
        let (kind, name) = path.split_once('/')?;
        match kind {
            "agent" if valid_workload(name) => Some(Self::Agent(name.to_owned())),
            "user" if valid_segment(name) => Some(Self::User(name.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(name) => write!(f, "agent/{name}"),
            Self::User(name) => write!(f, "user/{name}"),
        }
    }
}

/// Whether a text is `name` or `namespace/name`, each part fit for a URI and a key.
#[must_use]
pub fn valid_workload(name: &str) -> bool {
    match name.split_once('/') {
        Some((namespace, name)) => valid_segment(namespace) && valid_segment(name),
        None => valid_segment(name),
    }
}

/// One part of a name: letters, digits, `-`, `_` and `.`, starting with a letter or digit.
#[must_use]
pub fn valid_segment(part: &str) -> bool {
    part.len() <= 253
        && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// What a verified client certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// Who it is.
    pub identity: Identity,
    /// The enrolment that the certificate belongs to; an older one than the newest is refused.
    pub enrolment: u32,
    /// UTC nanoseconds.
    pub not_after: i64,
}

impl Certified {
    /// Reads a certificate whose chain TLS has verified.
    #[must_use]
    pub fn read(der: &[u8], trust_domain: &str) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let mut uris = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            });
        // More than one would leave open who speaks.
        let (uri, None) = (uris.next()?, uris.next()) else {
            return None;
        };
        Some(Self {
            identity: Identity::parse(uri, trust_domain)?,
            enrolment: ca::enrolment_of(certificate.raw_serial()),
            not_after: (certificate.validity().not_after.timestamp()).saturating_mul(1_000_000_000),
        })
    }
}

/// The other end of a connection, in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub remote: SocketAddr,
    /// `None` when it showed no certificate, or one of no use.
    pub certified: Option<Arc<Certified>>,
}

/// Who makes a request, put into its extensions by the [`Gate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub identity: Identity,
    /// URI for audit entries.
    pub uri: String,
    /// Enrolment of the certificate.
    pub enrolment: u32,
    /// When the certificate ends; UTC nanoseconds.
    pub not_after: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_strictly() {
        let parse = |uri: &str| Identity::parse(uri, "td");
        assert_eq!(
            parse("spiffe://td/agent/web-1"),
            Some(Identity::Agent("web-1".into()))
        );
        let namespaced = Identity::Agent("shop/web-1".into());
        let uri = namespaced.uri("td");
        assert_eq!(Identity::parse(&uri, "td"), Some(namespaced));
        assert_eq!(
            parse("spiffe://td/user/admin"),
            Some(Identity::User("admin".into()))
        );
        for bad in [
            "spiffe://td2/agent/a",
            "spiffe://td/agent/",
            "spiffe://td/agent/a/b/c",
            "spiffe://td/agent/../user/admin",
            "spiffe://td/user/a/b",
            "spiffe://td/root/a",
            "spiffe://td.evil/agent/a",
            "https://td/agent/a",
            "spiffe://td/agent/-a",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}

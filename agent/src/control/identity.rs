//! The agent's key and certificate: made here, signed by the controller, renewed before half of its life.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::v1;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::ControlError;
use crate::reconcile::store::write_atomically;

/// What proves who this agent is, and whom it believes.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Identity {
    /// PKCS#8.
    key: Vec<u8>,
    /// Leaf first.
    chain: Vec<Vec<u8>>,
    /// Trusted roots.
    roots: Vec<Vec<u8>>,
    /// As signed.
    pub(super) spiffe_id: String,
    /// Name of the workload that the token was for.
    pub(super) workload: String,
}

/// A key that waits for its certificate.
pub(super) struct Request {
    key: KeyPair,
    /// PKCS#10.
    pub(super) csr: Vec<u8>,
}

impl Request {
    /// A new key and a request for it. Names in the request count for nothing.
    pub(super) fn new() -> Result<Self, ControlError> {
        let certificate = |error: rcgen::Error| ControlError::Certificate(error.to_string());
        let key = KeyPair::generate().map_err(certificate)?;
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .map_err(certificate)?;
        Ok(Self {
            csr: csr.der().to_vec(),
            key,
        })
    }

    /// Together with the controller's answer.
    pub(super) fn answered(self, answer: v1::EnrollResponse) -> Result<Identity, ControlError> {
        if answer.certificate_chain_der.is_empty() || answer.ca_der.is_empty() {
            return Err(ControlError::Certificate(
                "the answer holds no certificate".into(),
            ));
        }
        Ok(Identity {
            key: self.key.serialize_der(),
            chain: answer.certificate_chain_der,
            roots: answer.ca_der,
            spiffe_id: answer.spiffe_id,
            workload: answer.workload,
        })
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("identity.json")
}

impl Identity {
    /// The one on disk.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, ControlError> {
        let path = path(dir);
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes)
                    .map(Some)
                    .map_err(|error| ControlError::File {
                        path,
                        source: error.into(),
                    })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ControlError::File { path, source }),
        }
    }

    /// Keeps it, readable by nobody else.
    pub(super) fn save(&self, dir: &Path) -> Result<(), ControlError> {
        let path = path(dir);
        serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|bytes| write_atomically(&path, &bytes, 0o600))
            .map_err(|source| ControlError::File { path, source })
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()))
    }

    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain
            .iter()
            .cloned()
            .map(CertificateDer::from)
            .collect()
    }

    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.roots
            .iter()
            .cloned()
            .map(CertificateDer::from)
            .collect()
    }

    /// Validity of the leaf, UTC seconds.
    fn validity(&self) -> Result<(i64, i64), ControlError> {
        let leaf = self.chain.first().map(Vec::as_slice).unwrap_or_default();
        let (_, certificate) = x509_parser::parse_x509_certificate(leaf)
            .map_err(|error| ControlError::Certificate(error.to_string()))?;
        let validity = certificate.validity();
        Ok((
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
        ))
    }

    /// Whether it has ended.
    pub(super) fn expired(&self, now: i64) -> bool {
        self.validity().map_or(true, |(_, end)| now >= end)
    }

    /// How long until it should be renewed: before half of its life, spread by `random`.
    pub(super) fn renew_in(&self, now: i64, random: u64) -> Duration {
        let Ok((start, end)) = self.validity() else {
            return Duration::ZERO;
        };
        let life = u64::try_from(end - start).unwrap_or(0);
        let at = life * 2 / 5 + random % (life / 10).max(1);
        let gone = u64::try_from(now - start).unwrap_or(0);
        Duration::from_secs(at.saturating_sub(gone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_kept_and_renewed_before_half_of_its_life() {
        let request = Request::new().expect("request");
        let signed = CertificateParams::default()
            .self_signed(&request.key)
            .expect("sign");
        let answer = v1::EnrollResponse {
            certificate_chain_der: vec![signed.der().to_vec()],
            ca_der: vec![signed.der().to_vec()],
            workload: "web-1".into(),
            ..v1::EnrollResponse::default()
        };
        let identity = request.answered(answer).expect("identity");
        let dir = tempfile::tempdir().expect("dir");
        assert!(Identity::load(dir.path()).expect("none").is_none());
        identity.save(dir.path()).expect("save");
        let identity = Identity::load(dir.path()).expect("load").expect("some");
        assert_eq!(identity.workload, "web-1");
        let (start, end) = identity.validity().expect("validity");
        let half = Duration::from_secs(u64::try_from(end - start).expect("life") / 2);
        assert!(identity.renew_in(start, u64::MAX) <= half);
        assert_eq!(identity.renew_in(end, 0), Duration::ZERO);
        assert!(identity.expired(end) && !identity.expired(start));
    }
}

//! Join tokens: `cfd-<id>.<secret>`, one use, expiring, bound to one workload.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ipnet::IpNet;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::CaError;

/// What is stored of a token: not its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// SHA-256 of the secret, hex. The secret has 256 random bits: no salt is needed.
    pub secret_sha256: String,
    /// Name of the workload that joins with it.
    pub workload: String,
    /// Labels that the workload gets.
    pub labels: BTreeMap<String, String>,
    /// What its agent may claim.
    pub scope: Vec<IpNet>,
    /// UTC nanoseconds.
    pub expires: i64,
    /// SHA-256 of the certificate request that used it: the same request may be repeated when its
    /// answer was lost, another one is refused.
    pub used_by: Option<String>,
    /// The enrolment that used it made; only while that is the workload's newest may the request be
    /// repeated.
    #[serde(default)]
    pub enrolment: u32,
}

/// The two parts of a token as it is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenParts {
    /// Public part.
    pub id: String,
    /// Secret part.
    pub secret: String,
}

impl TokenParts {
    /// A new one.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn generate() -> Result<Self, CaError> {
        let mut random = [0; 40];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| CaError::Random)?;
        let (id, secret) = random.split_at(8);
        Ok(Self {
            id: hex::encode(id),
            secret: URL_SAFE_NO_PAD.encode(secret),
        })
    }

    /// Takes a token apart.
    #[must_use]
    pub fn parse(token: &str) -> Option<Self> {
        let (id, secret) = token.trim().strip_prefix("cfd-")?.split_once('.')?;
        let fits = |part: &str, length| {
            part.len() == length
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        (fits(id, 16) && fits(secret, 43)).then(|| Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// What is handed over.
    #[must_use]
    pub fn text(&self) -> String {
        format!("cfd-{}.{}", self.id, self.secret)
    }

    /// What is stored.
    #[must_use]
    pub fn hash(&self) -> String {
        hex::encode(Sha256::digest(self.secret.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_being_written_down() {
        let parts = TokenParts::generate().expect("random numbers");
        assert_eq!(
            TokenParts::parse(&format!("{}\n", parts.text())),
            Some(parts.clone())
        );
        assert_ne!(TokenParts::generate().expect("random numbers"), parts);
        for bad in ["", "cfd-", "cfd-a.b", "cfd-../../0123456789.x"] {
            assert_eq!(TokenParts::parse(bad), None, "{bad}");
        }
    }
}

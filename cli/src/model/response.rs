//! Isolation, confirmation, revocation.

use std::io;

use proto::v1;
use serde::Serialize;

use crate::output::{self, Document, Screen};

/// What became of `isolate` and `restore`. Milliseconds count from the controller's receipt.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Isolation {
    pub(crate) workload: String,
    /// `isolate` or `restore`.
    pub(crate) action: &'static str,
    pub(crate) revision: u64,
    pub(crate) agents_affected: u32,
    pub(crate) agents_verified: u32,
    pub(crate) stored_ms: f64,
    pub(crate) sent_ms: f64,
    /// When the last agent had read it back from its kernel; `null` unless all have.
    pub(crate) verified_ms: Option<f64>,
    pub(crate) not_verified: Vec<String>,
    /// As the operator waited, round trip included.
    pub(crate) answered_ms: f64,
    /// Every affected agent has verified it.
    pub(crate) complete: bool,
}

impl Isolation {
    /// `answered_ms` is measured here.
    pub(crate) fn new(
        action: &'static str,
        workload: String,
        response: v1::IsolateResponse,
        answered_ms: f64,
    ) -> Self {
        let complete = response.agents_verified >= response.agents_affected
            && response.agents_affected > 0
            && response.not_verified.is_empty();
        Self {
            workload,
            action,
            revision: response.revision,
            agents_affected: response.agents_affected,
            agents_verified: response.agents_verified,
            stored_ms: response.stored_ms,
            sent_ms: response.sent_ms,
            verified_ms: complete.then_some(response.verified_ms),
            not_verified: response.not_verified,
            answered_ms,
            complete,
        }
    }
}

impl Document for Isolation {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        let done = match (self.action, self.complete) {
            ("isolate", true) => "isolated",
            ("isolate", false) => "NOT proved isolated",
            (_, true) => "restored",
            (_, false) => "NOT proved restored",
        };
        screen.line(&format!(
            "{} {done}: revision {}, {} of {} agents verified",
            self.workload, self.revision, self.agents_verified, self.agents_affected
        ))?;
        for (step, at) in [
            ("stored", Some(self.stored_ms)),
            ("sent", Some(self.sent_ms)),
            ("verified", self.verified_ms),
            ("answered", Some(self.answered_ms)),
        ] {
            let at = at.map_or_else(|| "-".to_owned(), output::milliseconds);
            screen.line(&format!("  {step:9}{at:>12}"))?;
        }
        if self.agents_affected == 0 {
            screen.line("no agent is concerned: is one enrolled for this workload?")?;
        }
        if !self.not_verified.is_empty() {
            screen.line(&format!("not verified: {}", self.not_verified.join(", ")))?;
        }
        Ok(())
    }
}

/// A change became final.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Confirmed {
    pub(crate) revision: u64,
}

impl Document for Confirmed {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        screen.line(&format!("revision {} is final", self.revision))
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(vec![self.revision.to_string()])
    }
}

/// An agent may not come back.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Revoked {
    pub(crate) workload: String,
    pub(crate) revision: u64,
}

impl Document for Revoked {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        screen.line(&format!(
            "the agent of {} is revoked (revision {})",
            self.workload, self.revision
        ))
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(vec![self.workload.clone()])
    }
}

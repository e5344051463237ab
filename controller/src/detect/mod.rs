//! Detection: pure, streaming, bounded memory, deterministic. Time comes from the records.

mod probing;

use proto::convert::from_unix_ns;
use proto::v1;

pub use probing::{Probing, ProbingConfig};

use crate::flows::Flow;

/// Something that a person should look at, with everything that it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// From the evidence: the same evidence gives the same id.
    pub id: String,
    /// Who found it.
    pub detector: &'static str,
    /// Time of the record that completed the evidence; UTC nanoseconds.
    pub found_at: i64,
    /// Time of the first record of the evidence; UTC nanoseconds.
    pub first_evidence: i64,
    /// Workload, or address where there is none.
    pub subject: String,
    /// Its address.
    pub subject_address: String,
    /// One line.
    pub reason: String,
    /// Probability that the hypothesis holds, under the detector's model and even odds before.
    pub confidence: f64,
    /// ATT&CK technique that the evidence is consistent with.
    pub technique: &'static str,
    /// Records.
    pub evidence: Vec<v1::FlowRecord>,
    /// Rules that denied them.
    pub rules: Vec<String>,
}

impl From<&Finding> for v1::Finding {
    fn from(finding: &Finding) -> Self {
        Self {
            id: finding.id.clone(),
            detector: finding.detector.to_owned(),
            found_at: Some(from_unix_ns(finding.found_at)),
            first_evidence: Some(from_unix_ns(finding.first_evidence)),
            subject: finding.subject.clone(),
            subject_address: finding.subject_address.clone(),
            reason: finding.reason.clone(),
            confidence: finding.confidence,
            technique: finding.technique.to_owned(),
            evidence: finding.evidence.clone(),
            rules: finding.rules.clone(),
        }
    }
}

/// One way of finding things.
pub trait Detector: Send {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Looks at one record. Records of one host come in order; a record may come again.
    fn observe(&mut self, flow: &Flow) -> Option<Finding>;
}

/// All detectors, and what they found and nobody stored yet.
#[derive(Default)]
pub struct Detectors {
    detectors: Vec<Box<dyn Detector>>,
    unsaved: Vec<Finding>,
}

impl std::fmt::Debug for Detectors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self
            .detectors
            .iter()
            .map(|detector| detector.name())
            .collect();
        f.debug_tuple("Detectors").field(&names).finish()
    }
}

impl Detectors {
    /// Some detectors.
    #[must_use]
    pub const fn new(detectors: Vec<Box<dyn Detector>>) -> Self {
        Self {
            detectors,
            unsaved: Vec::new(),
        }
    }

    /// Shows a record to all.
    pub fn observe(&mut self, flow: &Flow) {
        for detector in &mut self.detectors {
            self.unsaved.extend(detector.observe(flow));
        }
    }

    /// What has to be stored.
    #[must_use]
    pub fn unsaved(&self) -> &[Finding] {
        &self.unsaved
    }

    /// It is stored.
    pub fn forget_unsaved(&mut self) {
        self.unsaved.clear();
    }
}

//! What looks like an attack.

use std::io;

use proto::v1;
use serde::Serialize;

use super::{Flow, moment, some};
use crate::output::{self, Column, Document, Screen, Table};

/// Something that looks like an attack.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) id: String,
    pub(crate) detector: String,
    pub(crate) found_at: Option<String>,
    /// First packet of the evidence.
    pub(crate) first_evidence: Option<String>,
    /// Workload.
    pub(crate) subject: Option<String>,
    pub(crate) subject_address: Option<String>,
    pub(crate) reason: String,
    /// 0 to 1.
    pub(crate) confidence: f64,
    /// ATT&CK technique that the evidence is consistent with.
    pub(crate) technique: Option<String>,
    /// Rules that judged the evidence.
    pub(crate) rules: Vec<String>,
    pub(crate) evidence: Vec<Flow>,
}

impl From<v1::Finding> for Finding {
    fn from(finding: v1::Finding) -> Self {
        Self {
            id: finding.id,
            detector: finding.detector,
            found_at: moment(finding.found_at),
            first_evidence: moment(finding.first_evidence),
            subject: some(finding.subject),
            subject_address: some(finding.subject_address),
            reason: finding.reason,
            confidence: finding.confidence,
            technique: some(finding.technique),
            rules: finding.rules,
            evidence: finding.evidence.into_iter().map(Into::into).collect(),
        }
    }
}

impl Finding {
    /// Widths hold while rows are printed one by one.
    pub(crate) const HEADS: &[Column] = &[
        ("FOUND", 24),
        ("SUBJECT", 15),
        ("DETECTOR", 12),
        ("CONFIDENCE", 10),
        ("TECHNIQUE", 9),
        ("ID", 12),
        ("REASON", 0),
    ];

    fn add_to(&self, table: &mut Table) {
        let subject = self.subject.as_ref().or(self.subject_address.as_ref());
        table.row([
            output::moment_or_empty(self.found_at.as_ref()),
            subject.cloned().unwrap_or_default(),
            self.detector.clone(),
            format!("{:.2}", self.confidence),
            self.technique.clone().unwrap_or_default(),
            self.id.clone(),
            self.reason.clone(),
        ]);
    }
}

impl Document for Finding {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        let mut table = Table::new(Self::HEADS);
        self.add_to(&mut table);
        table.print_rows(screen)
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(vec![self.id.clone()])
    }
}

/// Findings as the controller orders them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FindingList {
    pub(crate) findings: Vec<Finding>,
    /// There are more; ask with a higher `--limit`.
    pub(crate) truncated: bool,
}

impl Document for FindingList {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        let heads: Vec<Column> = Finding::HEADS.iter().map(|(name, _)| (*name, 0)).collect();
        let mut table = Table::new(&heads);
        for finding in &self.findings {
            finding.add_to(&mut table);
        }
        table.print(screen)?;
        super::more(self.truncated, screen)
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.findings.iter().map(|f| f.id.clone()).collect())
    }
}

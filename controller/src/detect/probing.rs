//! Who is feeling for services: a sequential test on denied first contacts.
//!
//! Every time a source meets a (responder, protocol, port) for the first time, the contact is either
//! allowed or denied. A client that knows where it wants to go is seldom denied; somebody who guesses
//! against a default-deny policy often is. Wald's sequential probability ratio test weighs each first
//! contact (after "Threshold Random Walk", Jung, Paxson, Berger and Balakrishnan, 2004) and stops as
//! soon as the evidence suffices for the error rates that were asked for. It knows no time window, no
//! rate, no port and no address, so that a slow scan is found with as many contacts as a fast one; and
//! a client that repeats one denied contact a thousand times has one first contact.
//!
//! A source is a workload with all its addresses, or an address without a workload. A contact that was let out by the source's end and then denied by the other counts as denied. In
//! observe mode nothing is denied, and a contact that would be says nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use proto::v1;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Detector, Finding};
use crate::flows::Flow;

/// Evidence that a finding carries.
const EVIDENCE: usize = 16;

/// Parameters of the test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbingConfig {
    /// α: share of benign sources' tests that may end in a finding.
    pub false_positives: f64,
    /// β: share of guessing sources' tests that may end without one.
    pub false_negatives: f64,
    /// θ0: how often a benign source's first contact is allowed. Lower it while policy is young and
    /// denies what should pass.
    pub benign_allowed: f64,
    /// θ1: how often a guess is allowed: about the share of the network that policy opens to anybody.
    pub guess_allowed: f64,
    /// Sources that are watched at once; beyond it the one that was quiet for longest is forgotten.
    pub max_sources: usize,
    /// Contacts that are remembered for each source; beyond it the oldest is forgotten.
    pub max_contacts: usize,
    /// Seconds after which a source without any denied contact starts afresh, and after which a
    /// source that was reported may be reported again.
    pub forget_seconds: u64,
}

impl Default for ProbingConfig {
    fn default() -> Self {
        Self {
            false_positives: 1e-4,
            false_negatives: 0.01,
            benign_allowed: 0.9,
            guess_allowed: 0.2,
            max_sources: 16_384,
            max_contacts: 512,
            forget_seconds: 24 * 3600,
        }
    }
}

impl ProbingConfig {
    /// Whether the parameters make a test.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        let inside = |value: f64| value > 0.0 && value < 1.0;
        let all = [
            self.false_positives,
            self.false_negatives,
            self.benign_allowed,
            self.guess_allowed,
        ];
        if !all.into_iter().all(inside) {
            return Err("probabilities lie between 0 and 1".to_owned());
        }
        if self.guess_allowed >= self.benign_allowed {
            return Err("guess_allowed must be below benign_allowed".to_owned());
        }
        if self.false_positives + self.false_negatives >= 1.0 {
            return Err("false_positives and false_negatives together must be below 1".to_owned());
        }
        if self.max_sources == 0 || self.max_contacts == 0 || self.forget_seconds == 0 {
            return Err("max_sources, max_contacts and forget_seconds are above 0".to_owned());
        }
        Ok(())
    }

    fn denied_weight(&self) -> f64 {
        ((1.0 - self.guess_allowed) / (1.0 - self.benign_allowed)).ln()
    }

    fn allowed_weight(&self) -> f64 {
        (self.guess_allowed / self.benign_allowed).ln()
    }

    fn guilty(&self) -> f64 {
        ((1.0 - self.false_negatives) / self.false_positives).ln()
    }

    fn innocent(&self) -> f64 {
        (self.false_negatives / (1.0 - self.false_positives)).ln()
    }
}

/// Whom and what a source met.
type Contact = (IpAddr, u8, u16);

#[derive(Debug, Default)]
struct Source {
    /// Logarithm of the likelihood ratio.
    score: f64,
    /// Met before; `true` = denied.
    contacts: BTreeMap<Contact, bool>,
    order: VecDeque<Contact>,
    /// Denied first contacts of the running test.
    denied: u64,
    /// Allowed ones.
    allowed: u64,
    evidence: VecDeque<v1::FlowRecord>,
    rules: BTreeSet<String>,
    reporters: BTreeSet<String>,
    first: i64,
    last_denied: i64,
    last: i64,
    reported: Option<i64>,
}

impl Source {
    /// The test starts afresh; what was met stays met.
    fn restart(&mut self) {
        self.score = 0.0;
        self.denied = 0;
        self.allowed = 0;
        self.evidence.clear();
        self.rules.clear();
        self.reporters.clear();
    }
}

/// The detector.
#[derive(Debug)]
pub struct Probing {
    config: ProbingConfig,
    forget: i64,
    sources: BTreeMap<String, Source>,
    /// Sources by the time of their last record, to find the quietest.
    quiet: BTreeSet<(i64, String)>,
}

impl Probing {
    /// A detector that has seen nothing.
    #[must_use]
    pub fn new(config: ProbingConfig) -> Self {
        let forget = Duration::from_secs(config.forget_seconds).as_nanos();
        Self {
            config,
            forget: i64::try_from(forget).unwrap_or(i64::MAX),
            sources: BTreeMap::new(),
            quiet: BTreeSet::new(),
        }
    }

    /// Sources and contacts that are held: for the proof that memory is bounded.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        let contacts = self.sources.values().map(|source| source.contacts.len());
        (self.sources.len(), contacts.max().unwrap_or(0))
    }

    fn source(&mut self, name: String, time: i64) -> &mut Source {
        if let Some(known) = self.sources.get(&name) {
            self.quiet.remove(&(known.last, name.clone()));
        } else if self.sources.len() >= self.config.max_sources
            && let Some((_, quietest)) = self.quiet.pop_first()
        {
            self.sources.remove(&quietest);
        }
        let source = self.sources.entry(name.clone()).or_default();
        // Records of several hosts come a little out of order: time does not go back.
        source.last = source.last.max(time);
        self.quiet.insert((source.last, name));
        source
    }
}

impl Detector for Probing {
    fn name(&self) -> &'static str {
        "probing"
    }

    fn observe(&mut self, flow: &Flow) -> Option<Finding> {
        let record = &flow.record;
        let denied = record.denial && record.opening;
        let allowed = !record.denial && record.allowed && record.evaluated_allow;
        if !denied && !allowed {
            return None;
        }
        let (config, forget) = (self.config, self.forget);
        let contact = (flow.responder, flow.protocol, flow.port);
        let source = self.source(flow.from(), flow.last_seen);
        match source.contacts.get(&contact) {
            Some(true) => {
                // Met before, and denied then: only who tells of it may be new.
                if denied {
                    source.reporters.insert(record.host.clone());
                }
                return None;
            }
            Some(false) if allowed => return None,
            // Let out at one end and denied at the other: not a success after all.
            Some(false) => {
                source.score -= config.allowed_weight();
                source.allowed = source.allowed.saturating_sub(1);
            }
            None => {
                source.order.push_back(contact);
                if source.order.len() > config.max_contacts
                    && let Some(oldest) = source.order.pop_front()
                {
                    source.contacts.remove(&oldest);
                }
            }
        }
        source.contacts.insert(contact, denied);
        if allowed {
            source.allowed += 1;
            source.score += config.allowed_weight();
            if source.score <= config.innocent() {
                source.restart();
            }
            return None;
        }
        if source.denied > 0 && flow.last_seen.saturating_sub(source.last_denied) > forget {
            source.restart();
        }
        if source.denied == 0 {
            source.first = flow.first_seen;
        }
        source.last_denied = source.last_denied.max(flow.last_seen);
        source.denied += 1;
        source.score += config.denied_weight();
        source.evidence.push_back(record.clone());
        if source.evidence.len() > EVIDENCE {
            source.evidence.pop_front();
        }
        if source.rules.len() < EVIDENCE && !record.rule.is_empty() {
            source.rules.insert(record.rule.clone());
        }
        if source.reporters.len() < EVIDENCE {
            source.reporters.insert(record.host.clone());
        }
        if source.score < config.guilty() {
            return None;
        }
        let again = source
            .reported
            .is_none_or(|reported| flow.last_seen.saturating_sub(reported) > forget);
        let finding = again.then(|| finding(flow, source));
        if again {
            source.reported = Some(flow.last_seen);
        }
        source.restart();
        finding
    }
}

fn finding(flow: &Flow, source: &Source) -> Finding {
    let mut hasher = Sha256::new();
    hasher.update(b"probing");
    hasher.update(flow.from());
    for record in &source.evidence {
        hasher.update(record.host.as_bytes());
        hasher.update(record.uid.as_bytes());
    }
    let id = hex::encode(&hasher.finalize()[..12]);
    let own = source.reporters.contains(&flow.record.initiator_workload);
    // Who is accused by others only may be the victim of forged source addresses.
    let witnesses = if own {
        "seen by its own agent".to_owned()
    } else {
        format!(
            "seen by {} other host(s) only, the source may be forged",
            source.reporters.len()
        )
    };
    let subject = flow.from();
    let reason = format!(
        "{subject} was denied at {} of its {} first contacts with a service ({witnesses}): consistent with network service discovery",
        source.denied,
        source.denied + source.allowed,
    );
    Finding {
        id,
        detector: "probing",
        found_at: flow.last_seen,
        first_evidence: source.first,
        subject,
        subject_address: flow.initiator.to_string(),
        reason,
        confidence: 1.0 / (1.0 + (-source.score).exp()),
        technique: "T1046",
        evidence: source.evidence.iter().cloned().collect(),
        rules: source.rules.iter().cloned().collect(),
    }
}

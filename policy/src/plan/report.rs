//! What a plan tells.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use time::OffsetDateTime;

use super::resolve::{EndNote, GoneReason};
use crate::diff::ObjectChange;
use crate::evaluate::{ConnectionVerdict, Verdict};
use crate::selectors::Labels;

/// What a change does to an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// It passes today and will be dropped.
    NewlyBlocked,
    /// It would pass if everything staged were enforced; with the change it would be dropped.
    DraftBlocked,
    /// It is dropped today and will pass.
    NewlyAllowed,
    /// It would be dropped if everything staged were enforced; with the change it would pass.
    DraftAllowed,
}

impl Class {
    /// Every class, the most dangerous first.
    pub const ALL: [Self; 4] = [
        Self::NewlyBlocked,
        Self::DraftBlocked,
        Self::NewlyAllowed,
        Self::DraftAllowed,
    ];

    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NewlyBlocked => "newly-blocked",
            Self::DraftBlocked => "draft-blocked",
            Self::NewlyAllowed => "newly-allowed",
            Self::DraftAllowed => "draft-allowed",
        }
    }
}

/// Who decides about an edge, and how, on one side of the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// What happens, modes included.
    pub enforced: Verdict,
    /// Rule that decided: of the first end that denies, egress first; otherwise of the destination.
    pub rule: Option<String>,
    /// `egress` or `ingress`: the end whose rule that is.
    pub end: Option<&'static str>,
    /// Why it is denied, or would be but for the mode; `none` otherwise.
    pub reason: &'static str,
    /// What would happen with everything staged enforced.
    pub draft: Verdict,
    /// Rule that decided the draft.
    pub draft_rule: Option<String>,
    /// The end whose rule that is.
    pub draft_end: Option<&'static str>,
}

impl From<&ConnectionVerdict> for Judged {
    fn from(verdict: &ConnectionVerdict) -> Self {
        let ends = || {
            let egress = verdict.egress.as_ref().map(|end| ("egress", end));
            egress
                .into_iter()
                .chain(verdict.ingress.as_ref().map(|end| ("ingress", end)))
        };
        let decides = ends()
            .find(|(_, end)| !end.enforced.is_allow())
            .or_else(|| ends().last());
        let drafts = ends()
            .find(|(_, end)| !end.draft.is_allow())
            .or_else(|| ends().last());
        Self {
            enforced: verdict.enforced,
            rule: decides.map(|(_, end)| end.rule.clone()),
            end: decides.map(|(name, _)| name),
            reason: decides.map_or("none", |(_, end)| end.reason.name()),
            draft: verdict.draft,
            draft_rule: drafts.map(|(_, end)| end.draft_rule.clone()),
            draft_end: drafts.map(|(name, _)| name),
        }
    }
}

/// One end of an edge, as it is today.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndInfo {
    /// Full name, if it is a workload.
    pub workload: Option<String>,
    /// The address that was asked about.
    pub address: Option<IpAddr>,
    /// Labels of the workload, before the change.
    pub labels: Labels,
    /// What else is to be known.
    pub note: Option<EndNote>,
}

impl EndInfo {
    /// Name, or address.
    #[must_use]
    pub fn name(&self) -> String {
        match (&self.workload, self.address) {
            (Some(name), _) => name.clone(),
            (None, Some(address)) => address.to_string(),
            (None, None) => "?".to_owned(),
        }
    }
}

/// What was seen of an edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// IANA protocol number; written by its name where it has one.
    #[serde(serialize_with = "protocol")]
    pub protocol: u8,
    /// Destination port; ICMP: type × 256 + code; 0 where there is none.
    pub port: u16,
    /// How many flows.
    pub flows: u64,
    /// Both directions.
    pub packets: u64,
    /// Both directions, layer 3.
    pub bytes: u64,
    /// Flows that passed, as recorded.
    pub allowed: u64,
    /// Flows that did not, as recorded.
    pub denied: u64,
    /// Flows whose opener is doubtful.
    pub doubtful: u64,
    /// First packet ever.
    #[serde(with = "time::serde::rfc3339::option")]
    pub first_seen: Option<OffsetDateTime>,
    /// Last packet so far.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_seen: Option<OffsetDateTime>,
    /// Seen in the days that count as recent, or nobody knows when.
    pub recent: bool,
    /// Seen seldom and long ago: the job that runs once a quarter looks like this.
    pub rare: bool,
    /// Processes at either end, as far as they are known.
    pub processes: Vec<String>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde prescribes the signature"
)]
fn protocol<S: serde::Serializer>(protocol: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&crate::ports::protocol_name(*protocol))
}

/// An edge on which the change has an effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EdgeRow {
    /// What the effect is, the most dangerous first; never empty.
    pub classes: Vec<Class>,
    /// Who opens.
    pub from: EndInfo,
    /// Who answers.
    pub to: EndInfo,
    /// What was seen.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Verdicts without the change.
    pub before: Judged,
    /// Verdicts with it.
    pub after: Judged,
}

/// An edge that cannot be asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GoneRow {
    /// Name or address of who opened.
    pub from: String,
    /// Name or address of who answered.
    pub to: String,
    /// Which end is gone, `from` or `to`.
    pub end: &'static str,
    /// Why.
    pub reason: GoneReason,
    /// What was seen.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// A rule that is new or different, and the recorded edges that it decides, enforced or in the draft.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleUse {
    /// Its name, as in verdicts.
    pub rule: String,
    /// `file:line:column`, where it is known.
    pub place: Option<String>,
    /// `allow`, `deny` or `pass`.
    pub action: &'static str,
    /// Edges that it decides at one of their ends.
    pub edges: u64,
    /// Flows of these.
    pub flows: u64,
}

/// A flow by names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PairPort {
    /// Who opens.
    pub from: String,
    /// Who answers.
    pub to: String,
    /// By its name, or number.
    pub protocol: String,
    /// Destination port; ICMP: type × 256 + code.
    pub port: u16,
}

/// A new rule whose flows the other end denies in the draft.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingHalf {
    /// The rule.
    pub rule: String,
    /// The end that lacks a rule: `egress` (of the source) or `ingress` (of the destination).
    pub end: &'static str,
    /// Pairs of workloads between which the other end denies, of at most 64 × 64 that were tried.
    pub pairs: u64,
    /// What denies them, most often.
    pub denied_by: String,
    /// One of the flows.
    pub example: PairPort,
    /// Staged policy that lets them through; `None` where a rule denies them on purpose, or the peers
    /// have no labels that a subject could select.
    pub yaml: Option<String>,
}

/// How far a workload comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Radius {
    /// Workloads that it can open a flow to.
    pub direct: usize,
    /// Workloads that it can come to over any number of others.
    pub all: usize,
}

/// A workload that comes further, or less far, with the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RadiusRow {
    /// Full name.
    pub workload: String,
    /// What passes today, modes included.
    pub before: Radius,
    /// What passes with the change.
    pub after: Radius,
    /// Without the change, with everything staged enforced.
    pub draft_before: Radius,
    /// With it, with everything staged enforced.
    pub draft_after: Radius,
}

/// Pairs of workloads, one of which can open a flow to the other with the change and could not without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Widening {
    /// Such pairs, enforced.
    pub pairs: u64,
    /// Those of them without recorded traffic.
    pub never_seen: u64,
    /// Such pairs in the draft.
    pub draft_pairs: u64,
    /// Those of them without recorded traffic.
    pub draft_never_seen: u64,
    /// Workloads that were not looked at, because there are too many.
    pub left_out: usize,
}

/// Numbers of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// How many edges.
    pub edges: u64,
    /// Their flows.
    pub flows: u64,
    /// Edges that were seen recently.
    pub recent: u64,
    /// Edges that were seen seldom and long ago.
    pub rare: u64,
}

/// Numbers of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Edges that were asked about.
    pub edges: u64,
    /// Of those, on how many nothing changes and they pass.
    pub unchanged_allowed: u64,
    /// Of those, on how many nothing changes and they are dropped.
    pub unchanged_denied: u64,
    /// By class; an edge may be in one class of the enforced verdict and in one of the draft.
    pub classes: BTreeMap<Class, ClassCount>,
    /// Edges that cannot be asked about, because an end means nobody today.
    pub gone: u64,
    /// Of those, edges whose address is another workload's today.
    pub address_reused: u64,
    /// Edges with an end that has another address today.
    pub moved: u64,
    /// Edges with an end that was nobody's and is a workload's today.
    pub now_managed: u64,
    /// Edges with flows whose opener is doubtful.
    pub doubtful: u64,
    /// Edges whose records say allowed only and policy today denies, or the other way round: they
    /// were recorded under another policy.
    pub recorded_otherwise: u64,
}

/// A change against recorded traffic.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The moment that it is evaluated for.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Objects that are different, by `Kind/name`.
    #[serde(skip)]
    pub objects: BTreeMap<String, ObjectChange>,
    /// Numbers.
    pub counts: Counts,
    /// Edges on which the change has an effect, the most dangerous first.
    pub edges: Vec<EdgeRow>,
    /// Edges that cannot be asked about.
    pub gone: Vec<GoneRow>,
    /// Rules that are new or different.
    pub rules: Vec<RuleUse>,
    /// New rules whose other half is missing.
    pub missing_halves: Vec<MissingHalf>,
    /// Workloads that come further, or less far, those that come further first.
    pub radius: Vec<RadiusRow>,
    /// Pairs of workloads that can talk with the change and could not without.
    pub widening: Widening,
}

impl Plan {
    /// Numbers of one class.
    #[must_use]
    pub fn count(&self, class: Class) -> ClassCount {
        self.counts.classes.get(&class).copied().unwrap_or_default()
    }

    /// Whether the change has an effect on recorded traffic.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.edges.is_empty()
    }
}

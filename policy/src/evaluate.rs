//! The reference evaluator: the meaning of policy, straight from the objects.
//!
//! It is written to be read beside `docs/policy.md`, not to be fast; the compiled form is proved equal
//! to it by property tests.

use datapath::drop_reason::DropReason;
use serde::Serialize;
use time::OffsetDateTime;

use crate::posture::Posture;
use crate::probe::{Flow, Probe, ProbeError};
use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::walk::{Decision, End, Lens, NoTrace, decide};
use crate::world::World;

/// Whether a flow passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
}

impl Verdict {
    /// From a boolean.
    #[must_use]
    pub const fn from_allow(allow: bool) -> Self {
        if allow { Self::Allow } else { Self::Deny }
    }

    /// Whether it passes.
    #[must_use]
    pub const fn is_allow(self) -> bool {
        matches!(self, Self::Allow)
    }

    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// The verdicts at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndVerdict {
    /// What happens to the flow: the enforced policies, with the mode.
    pub enforced: Verdict,
    /// What would happen if every staged policy and every mode were enforced.
    pub draft: Verdict,
    /// Rule that decided, the policies that closed the direction, or one of [`crate::walk::names`].
    pub rule: String,
    /// Why it is denied, or would be but for the mode ([`DropReason::ModeObserve`]).
    pub reason: DropReason,
    /// What the enforced policies say, the mode left out.
    pub evaluated: Verdict,
    /// Rule that decided the draft.
    pub draft_rule: String,
    /// Why the draft denies.
    pub draft_reason: DropReason,
    /// The deciding rule said `existing: keep`.
    pub keep: bool,
    /// The deciding rule said `audit: true`.
    pub audit: bool,
    /// A guardrail denies.
    pub hard: bool,
}

impl EndVerdict {
    /// Joins both decisions and the mode.
    #[must_use]
    pub fn new(enforced: Decision, draft: Decision, mode_enforced: bool) -> Self {
        let observed = !enforced.allow && !mode_enforced && !enforced.is_isolation();
        Self {
            enforced: Verdict::from_allow(enforced.allow || observed),
            draft: Verdict::from_allow(draft.allow),
            rule: enforced.rule,
            reason: if observed {
                DropReason::ModeObserve
            } else {
                enforced.reason
            },
            evaluated: Verdict::from_allow(enforced.allow),
            draft_rule: draft.rule,
            draft_reason: draft.reason,
            keep: enforced.keep,
            audit: enforced.audit,
            hard: enforced.hard,
        }
    }
}

/// The verdicts on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionVerdict {
    /// Deny if either end denies.
    pub enforced: Verdict,
    /// Deny if either end's draft denies.
    pub draft: Verdict,
    /// Rule of the first end that denies, egress first; if none does, of the destination, or of the
    /// source where the destination is not managed.
    pub rule: Option<String>,
    /// The source's end, if it is managed.
    pub egress: Option<EndVerdict>,
    /// The destination's end, if it is managed.
    pub ingress: Option<EndVerdict>,
}

impl ConnectionVerdict {
    /// Joins the two ends.
    #[must_use]
    pub fn new(egress: Option<EndVerdict>, ingress: Option<EndVerdict>) -> Self {
        let ends = || egress.iter().chain(&ingress);
        let enforced = ends().all(|end| end.enforced.is_allow());
        let draft = ends().all(|end| end.draft.is_allow());
        let rule = ends()
            .find(|end| !end.enforced.is_allow())
            .or(ingress.as_ref())
            .or(egress.as_ref())
            .map(|end| end.rule.clone());
        Self {
            enforced: Verdict::from_allow(enforced),
            draft: Verdict::from_allow(draft),
            rule,
            egress,
            ingress,
        }
    }
}

/// Evaluates one new connection.
pub fn evaluate(
    world: &World,
    set: &PolicySet,
    probe: &Probe,
    at: OffsetDateTime,
) -> Result<ConnectionVerdict, ProbeError> {
    Ok(evaluate_flow(world, set, &Flow::resolve(world, probe)?, at))
}

/// Evaluates one new connection whose ends are known.
#[must_use]
pub fn evaluate_flow(
    world: &World,
    set: &PolicySet,
    flow: &Flow<'_>,
    at: OffsetDateTime,
) -> ConnectionVerdict {
    ConnectionVerdict::new(
        evaluate_end(world, set, flow, FlowDirection::Egress, at),
        evaluate_end(world, set, flow, FlowDirection::Ingress, at),
    )
}

/// Evaluates one end; `None` when it is not managed.
#[must_use]
pub fn evaluate_end(
    world: &World,
    set: &PolicySet,
    flow: &Flow<'_>,
    direction: FlowDirection,
    at: OffsetDateTime,
) -> Option<EndVerdict> {
    let end = End::of(world, set, flow, direction, at)?;
    let enforced = decide(&end, Lens::Enforced, &mut NoTrace);
    let draft = decide(&end, Lens::Draft, &mut NoTrace);
    let mode_enforced =
        Posture::of(world, set, end.subject).enforces(direction, flow.protocol, flow.port);
    Some(EndVerdict::new(enforced, draft, mode_enforced))
}

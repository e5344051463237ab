//! From allow to deny.

use datapath::drop_reason::DropReason;

use super::allow::{Before, staged};
use super::names::{fresh, selector_of};
use super::{Edit, Suggestion, Turns, Wish};
use crate::evaluate::EndVerdict;
use crate::locate::{Located, locate};
use crate::model::{Action, ModeObject, Object, Tier};
use crate::snapshot::Mode;
use crate::source::Place;
use crate::walk::names;

/// Of an end that lets the flow pass, enforced and in the draft. A draft that denies what the mode lets
/// pass is not asked here: then [`super::allow`] says how to keep it.
pub(super) fn suggestions(wish: &Wish<'_>, verdict: &EndVerdict) -> Vec<Suggestion> {
    if verdict.reason == DropReason::ModeObserve {
        return mode(wish, verdict).into_iter().collect();
    }
    if verdict.draft_rule == names::LOOPBACK {
        return vec![Suggestion::note(
            "traffic within a workload is never filtered",
        )];
    }
    let Some(subject) = wish.subject() else {
        return Vec::new();
    };
    if let Some(Located::Grant(grant)) = locate(wish.set, &verdict.draft_rule) {
        let id = Object::Grant(grant.clone()).id();
        let edits = vec![Edit::Remove(id)];
        let text = format!(
            "end the grant {}, or wait until {}",
            grant.metadata.name, grant.expires
        );
        let turned = wish
            .tried(&edits)
            .is_some_and(|verdict| !verdict.evaluated.is_allow());
        if turned {
            return vec![Suggestion::new(
                "remove-grant",
                text,
                Turns::Enforced,
                edits,
            )];
        }
    }
    let Some(selector) = selector_of(wish.world, wish.set, subject) else {
        return vec![Suggestion::note(format!(
            "{} has no labels, so that no subject but `all` selects it",
            subject.full_name()
        ))];
    };
    let (tier, before) = match locate(wish.set, &verdict.draft_rule) {
        Some(Located::Rule { policy, .. }) => (policy.tier, policy.into()),
        // Grants come before the standard tier, guardrails before grants.
        Some(Located::Grant(_)) => (Tier::Guardrail, Before::Nobody),
        _ => (Tier::Baseline, Before::Nobody),
    };
    let object = staged(wish, wish.set, selector.clone(), tier, Action::Deny, before);
    let edits = vec![Edit::Put(Box::new(object))];
    let turned = (wish.tried(&edits)).is_some_and(|verdict| !verdict.draft.is_allow());
    let text = format!(
        "add this deny before {} (subject {selector})",
        verdict.draft_rule
    );
    turned
        .then(|| Suggestion::new("add-rule", text, Turns::Draft, edits))
        .into_iter()
        .collect()
}

/// Policy denies it, and the mode lets it pass.
pub(super) fn mode(wish: &Wish<'_>, verdict: &EndVerdict) -> Option<Suggestion> {
    let subject = wish.subject()?;
    let selector = selector_of(wish.world, wish.set, subject)?;
    let object = Object::Mode(ModeObject {
        metadata: fresh(wish.set, &format!("enforce {}", subject.full_name())),
        subject: selector.clone(),
        mode: Some(Mode::Enforce),
        enforce: Vec::new(),
        default_action: None,
        place: Place::default(),
    });
    let edits = vec![Edit::Put(Box::new(object))];
    let turned = !wish.tried(&edits)?.enforced.is_allow();
    let text = format!(
        "to have it denied: policy denies it ({}), but the mode only observes; set the mode to enforce (subject {selector})",
        verdict.rule
    );
    turned.then(|| Suggestion::new("set-mode", text, Turns::Enforced, edits))
}

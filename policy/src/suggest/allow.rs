//! From deny to allow.

use datapath::drop_reason::DropReason;

use super::names::{fresh, selector_of};
use super::{Edit, Suggestion, Turns, Wish, by_enforcing, edited};
use crate::evaluate::{EndVerdict, Verdict};
use crate::locate::{Located, locate, place_of};
use crate::model::{
    Action, Filter, FilterEntry, Metadata, Object, Peer, Policy, PolicyKind, Rule, State, Tier,
};
use crate::ports::{PortSpec, Protocol};
use crate::selectors::Selector;
use crate::set::{PolicySet, is_live};
use crate::snapshot::FlowDirection;
use crate::source::Place;
use crate::walk::{direction_name, names};
use crate::world::Who;

/// Deniers that are got out of the way one after the other: a filter, a guardrail, a rule, a default.
const STEPS: usize = 5;

pub(super) fn suggestions(wish: &Wish<'_>, verdict: &EndVerdict) -> Vec<Suggestion> {
    if let Some(note) = hopeless(wish, verdict) {
        return vec![note];
    }
    let mut suggestions = Vec::new();
    if !verdict.evaluated.is_allow() {
        if verdict.draft.is_allow() {
            suggestions.extend(by_enforcing(wish, &verdict.draft_rule, true));
        }
        suggestions.extend(expired(wish));
    }
    if !verdict.draft.is_allow() {
        suggestions.extend(extend(wish, verdict));
        suggestions.extend(add(wish, verdict));
    }
    if verdict.reason == DropReason::ModeObserve {
        // It passes today, and only because nobody enforces.
        suggestions.extend(super::deny::mode(wish, verdict));
    }
    if let Some(note) = peer_note(wish) {
        suggestions.push(Suggestion::note(note));
    }
    suggestions
}

/// Where no policy can help.
fn hopeless(wish: &Wish<'_>, verdict: &EndVerdict) -> Option<Suggestion> {
    let subject = wish.subject()?.full_name();
    if verdict.reason == DropReason::Isolated {
        return Some(Suggestion::note(format!(
            "{subject} is isolated: `cofferdam restore {subject}` ends that, and nothing else does"
        )));
    }
    let claimants: Vec<String> = (wish.world.claimants(wish.peer_address()))
        .map(crate::world::Workload::full_name)
        .collect();
    if verdict.reason == DropReason::PeerIsolated {
        let peer = claimants.join(", ");
        return Some(Suggestion::note(format!(
            "the peer is isolated: `cofferdam restore {peer}` ends that, and nothing else does"
        )));
    }
    (claimants.len() > 1).then(|| {
        Suggestion::note(format!(
            "the peer is unknown: {} claim {}, and an unknown peer matches no allow rule; make sure that only \
             one of them has the address",
            claimants.join(" and "),
            wish.peer_address()
        ))
    })
}

fn peer_note(wish: &Wish<'_>) -> Option<String> {
    match wish.world.who(wish.peer_address()) {
        Who::Unmanaged => Some(format!(
            "{} is unmanaged: it has no labels, so that only a cidr or an entity can mean it; a selector can as \
             soon as it is a workload",
            wish.peer_address()
        )),
        _ => None,
    }
}

/// A policy or grant that has expired and allowed it.
fn expired(wish: &Wish<'_>) -> Option<Suggestion> {
    let subject = wish.subject()?;
    let policies = wish
        .set
        .policies()
        .iter()
        .filter(|policy| !is_live(policy.expires, wish.at) && policy.subject.matches(subject));
    let policies = policies.map(|policy| {
        let renewed = Policy {
            expires: None,
            ..policy.clone()
        };
        (policy.expires, Object::Policy(renewed))
    });
    let grants =
        wish.set.grants().iter().filter(|grant| {
            !is_live(Some(grant.expires), wish.at) && grant.subject.matches(subject)
        });
    let grants = grants.filter_map(|grant| {
        let renewed = crate::model::Grant {
            expires: wish.at.checked_add(time::Duration::hours(1))?,
            ..grant.clone()
        };
        Some((Some(grant.expires), Object::Grant(renewed)))
    });
    policies.chain(grants).find_map(|(expired, object)| {
        let text = format!(
            "{} allowed it until {}; give it a new `expires`",
            object.id(),
            expired.map_or_else(String::new, |at| at.to_string())
        );
        let edits = vec![Edit::Put(Box::new(object))];
        let turned = wish.tried(&edits)?.evaluated.is_allow();
        turned.then(|| Suggestion::new("extend-expiry", text, Turns::Enforced, edits))
    })
}

/// Which verdict is another one now: the stronger, if both are.
fn turns(before: &EndVerdict, after: &EndVerdict) -> Option<Turns> {
    let gained = |before: Verdict, after: Verdict| !before.is_allow() && after.is_allow();
    match (
        gained(before.evaluated, after.evaluated),
        gained(before.draft, after.draft),
    ) {
        (true, _) => Some(Turns::Enforced),
        (false, true) => Some(Turns::Draft),
        (false, false) => None,
    }
}

/// A rule that would allow it if it knew one port or one peer more.
fn extend(wish: &Wish<'_>, verdict: &EndVerdict) -> Option<Suggestion> {
    let subject = wish.subject()?;
    let mut with_peer = None;
    for policy in wish.set.policies() {
        if !policy.subject.matches(subject) || !is_live(policy.expires, wish.at) {
            continue;
        }
        let rules = policy.rules(wish.direction).unwrap_or_default();
        for (index, rule) in rules.iter().enumerate() {
            if rule.action != Action::Allow {
                continue;
            }
            let name = crate::walk::policy_name(policy);
            let name = format!("{name}/{}[{index}]", direction_name(wish.direction));
            let place = place_of(wish.set, &name).map_or_else(String::new, |at| format!(" ({at})"));
            let change = |rule: Rule, text: String| {
                let mut policy = policy.clone();
                let rules = match wish.direction {
                    FlowDirection::Ingress => policy.ingress.as_mut(),
                    FlowDirection::Egress => policy.egress.as_mut(),
                };
                *rules?.get_mut(index)? = rule;
                let edits = vec![Edit::Put(Box::new(Object::Policy(policy)))];
                let turned = wish.tried(&edits)?;
                let turns = turns(verdict, &turned)?;
                Some(Suggestion::new("extend-rule", text, turns, edits))
            };
            if !rule.ports.is_empty() {
                let mut more = rule.clone();
                more.ports.push(wish.port());
                let text = format!("add port {} to {name}{place}: its peers match", wish.port());
                if let Some(found) = change(more, text) {
                    return Some(found);
                }
            }
            if with_peer.is_none() && !rule.peers.is_empty() {
                let mut more = rule.clone();
                more.peers.push(wish.peer());
                let text = format!(
                    "add peer {} to {name}{place}: its ports match",
                    shown(&wish.peer())
                );
                with_peer = change(more, text);
            }
        }
    }
    with_peer
}

pub(super) fn shown(peer: &Peer) -> String {
    match peer {
        Peer::Selector { selector } => selector.to_string(),
        Peer::Cidr { cidr, .. } => cidr.to_string(),
        Peer::Group { group } => format!("addressGroup {group}"),
        Peer::Entity { entity } => entity.name().to_owned(),
    }
}

/// New staged objects that get every denier of the draft out of the way.
fn add(wish: &Wish<'_>, original: &EndVerdict) -> Option<Suggestion> {
    let subject = wish.subject()?;
    let selector = selector_of(wish.world, wish.set, subject);
    let Some(selector) = selector else {
        return Some(Suggestion::note(format!(
            "{} has no labels, so that no subject but `all` selects it: give it one, and allow it there",
            subject.full_name()
        )));
    };
    let members = (wish.world.workloads().iter())
        .filter(|workload| selector.matches(*workload))
        .count();
    let mut edits: Vec<Edit> = Vec::new();
    let mut notes: Vec<String> = Vec::new();
    let (mut set, mut verdict) = (wish.set.clone(), original.clone());
    for _ in 0..STEPS {
        let (object, note) = step(wish, &set, &selector, &verdict)?;
        notes.extend(note);
        edits.push(Edit::Put(Box::new(object)));
        set = edited(wish.set, &edits)?;
        verdict = wish.verdict(&set)?;
        if verdict.draft.is_allow() {
            let which = match members {
                1 => "this workload only".to_owned(),
                count => format!("{count} workloads"),
            };
            let turns = turns(original, &verdict)?;
            let how = match turns {
                Turns::Draft => "add this (subject",
                Turns::Enforced => "add this; filters are never staged (subject",
            };
            let then = match turns {
                Turns::Draft => ", hold it against `cofferdam plan`, then enforce it",
                Turns::Enforced => "",
            };
            let text = format!("{}: {how} {selector}: {which}){then}", notes.join("; "));
            return Some(Suggestion::new("add-rule", text, turns, edits));
        }
    }
    None
}

/// What gets the present denier out of the way.
fn step(
    wish: &Wish<'_>,
    set: &PolicySet,
    selector: &Selector,
    verdict: &EndVerdict,
) -> Option<(Object, Option<String>)> {
    let subject = selector.clone();
    match locate(set, &verdict.draft_rule) {
        Some(Located::Entry { filter, .. }) => {
            let note = format!("filter {} drops it before any policy", filter.metadata.name);
            Some((let_through(wish, set, subject, filter), Some(note)))
        }
        Some(Located::Rule { policy, .. }) if policy.tier == Tier::Guardrail => {
            let owner = (policy.metadata.owner.as_deref())
                .map_or_else(String::new, |owner| format!(" of {owner}"));
            let note = format!(
                "guardrail {}{owner} denies it before: no rule of the standard tier can allow it",
                policy.metadata.name
            );
            let exception = staged(
                wish,
                set,
                subject,
                Tier::Guardrail,
                Action::Pass,
                policy.into(),
            );
            Some((exception, Some(note)))
        }
        Some(Located::Rule { policy, .. }) => {
            let note = format!(
                "{} denies it: the new rule stands before it",
                verdict.draft_rule
            );
            let tier = policy.tier;
            let before = staged(wish, set, subject, tier, Action::Allow, policy.into());
            Some((before, Some(note)))
        }
        Some(Located::Closed(_)) => {
            let object = staged(
                wish,
                set,
                subject,
                Tier::Standard,
                Action::Allow,
                Before::Nobody,
            );
            Some((object, Some("no rule allows it".to_owned())))
        }
        None if verdict.draft_rule == names::DEFAULT_DENY => {
            let tier = safe_tier(wish, set);
            let object = staged(wish, set, subject, tier, Action::Allow, Before::Nobody);
            Some((object, Some("no policy speaks for it".to_owned())))
        }
        _ => None,
    }
}

/// A policy of the standard tier closes its direction: where something of the baseline tier speaks for
/// that, the new rule goes there, so that nothing else is lost.
fn safe_tier(wish: &Wish<'_>, set: &PolicySet) -> Tier {
    let Some(subject) = wish.subject() else {
        return Tier::Standard;
    };
    let speaks = set.policies().iter().any(|policy| {
        policy.tier == Tier::Baseline
            && policy.subject.matches(subject)
            && policy.rules(wish.direction).is_some()
    });
    if speaks {
        Tier::Baseline
    } else {
        Tier::Standard
    }
}

/// Whom a new policy has to come before.
pub(super) enum Before {
    Nobody,
    Policy(u16, String),
}

impl From<&Policy> for Before {
    fn from(policy: &Policy) -> Self {
        Self::Policy(policy.priority, policy.metadata.name.clone())
    }
}

impl Before {
    /// Priority and name that come first: a lower priority, or else a name that sorts before.
    fn place(self, metadata: Metadata) -> (u16, Metadata) {
        match self {
            Self::Nobody => (1000, metadata),
            Self::Policy(priority @ 1.., _) => (priority - 1, metadata),
            Self::Policy(0, other) if metadata.name < other => (0, metadata),
            Self::Policy(..) => {
                let name = format!("-{}", metadata.name);
                (0, Metadata { name, ..metadata })
            }
        }
    }
}

/// A staged policy of one rule.
pub(super) fn staged(
    wish: &Wish<'_>,
    set: &PolicySet,
    subject: Selector,
    tier: Tier,
    action: Action,
    before: Before,
) -> Object {
    let rule = Rule {
        name: None,
        action,
        peers: vec![wish.peer()],
        ports: vec![wish.port()],
        keep: false,
        audit: false,
        place: Place::default(),
    };
    let (priority, metadata) = before.place(fresh(set, &words(wish, action)));
    let rules = Some(vec![rule]);
    let (ingress, egress) = match wish.direction {
        FlowDirection::Ingress => (rules, None),
        FlowDirection::Egress => (None, rules),
    };
    Object::Policy(Policy {
        metadata,
        kind: match tier {
            Tier::Guardrail => PolicyKind::Guardrail,
            _ => PolicyKind::Policy,
        },
        tier,
        priority,
        subject,
        state: State::Staged,
        ingress,
        egress,
        ..Policy::default()
    })
}

/// An entry that hands the packets on to the policies.
fn let_through(wish: &Wish<'_>, set: &PolicySet, subject: Selector, filter: &Filter) -> Object {
    let before = Before::Policy(filter.priority, filter.metadata.name.clone());
    let (priority, metadata) = before.place(fresh(set, &words(wish, Action::Pass)));
    Object::Filter(Filter {
        metadata,
        subject,
        priority,
        entries: vec![FilterEntry {
            direction: wish.direction,
            cidr: Some(wish.peer_address().into()),
            ports: Some(wish.port()),
            allow: true,
            place: Place::default(),
        }],
        place: Place::default(),
    })
}

fn words(wish: &Wish<'_>, action: Action) -> String {
    let name = |workload: Option<&crate::world::Workload>, address: std::net::IpAddr| {
        workload.map_or_else(|| address.to_string(), crate::world::Workload::full_name)
    };
    let port = match wish.port() {
        PortSpec::Direct {
            protocol: Protocol::Any,
            ..
        } => String::new(),
        port => port.to_string(),
    };
    format!(
        "{} {} to {} {port} {}",
        crate::walk::action_name(action),
        name(wish.flow.from, wish.flow.source),
        name(wish.flow.to, wish.flow.destination),
        direction_name(wish.direction)
    )
}

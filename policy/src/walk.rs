//! The walk through the tiers at one end of a flow.
//!
//! Evaluation and explanation are the same walk; only who listens differs.

use std::net::IpAddr;

use datapath::drop_reason::DropReason;
use time::OffsetDateTime;

use crate::matching::{AddressView, PeerClass, PeerView, peers_match, ports_match};
use crate::model::{Action, DefaultAction, NamedPort, Policy, State, Tier};
use crate::posture::{Posture, is_isolated};
use crate::probe::Flow;
use crate::set::{PolicySet, is_live};
use crate::snapshot::FlowDirection;
use crate::world::{Workload, World};

/// Names of decisions that no rule made.
pub mod names {
    /// Nothing decided, and the workload's default action denies.
    pub const DEFAULT_DENY: &str = "default-deny";
    /// Nothing decided, and the workload's default action allows.
    pub const DEFAULT_ALLOW: &str = "default-allow";
    /// One of the two ends is isolated.
    pub const ISOLATION: &str = "isolation";
    /// Traffic within one workload.
    pub const LOOPBACK: &str = "loopback";
}

/// Which policies count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lens {
    /// The enforced ones.
    Enforced,
    /// The staged ones too, without those that they replace.
    Draft,
}

/// What the walk found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the flow passes.
    pub allow: bool,
    /// What decided.
    pub rule: String,
    /// Why it does not pass.
    pub reason: DropReason,
    /// The deciding rule said `existing: keep`.
    pub keep: bool,
    /// The deciding rule said `audit: true`.
    pub audit: bool,
    /// A guardrail denies.
    pub hard: bool,
}

impl Decision {
    /// A flow that passes.
    #[must_use]
    pub fn allow(rule: impl Into<String>) -> Self {
        Self {
            allow: true,
            rule: rule.into(),
            reason: DropReason::None,
            keep: false,
            audit: false,
            hard: false,
        }
    }

    /// A flow that does not.
    #[must_use]
    pub fn deny(rule: impl Into<String>, reason: DropReason) -> Self {
        Self {
            allow: false,
            reason,
            ..Self::allow(rule)
        }
    }

    /// Whether it comes from an isolation, which no mode softens.
    #[must_use]
    pub const fn is_isolation(&self) -> bool {
        matches!(self.reason, DropReason::Isolated | DropReason::PeerIsolated)
    }
}

/// One managed end of a flow.
pub struct End<'a> {
    pub(crate) world: &'a World,
    pub(crate) set: &'a PolicySet,
    pub(crate) subject: &'a Workload,
    pub(crate) direction: FlowDirection,
    pub(crate) view: AddressView<'a>,
    pub(crate) peer_address: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    pub(crate) at: OffsetDateTime,
    pub(crate) loopback: bool,
}

impl<'a> End<'a> {
    /// The end of a flow that `direction` names; `None` when it is not managed.
    #[must_use]
    pub fn of(
        world: &'a World,
        set: &'a PolicySet,
        flow: &Flow<'a>,
        direction: FlowDirection,
        at: OffsetDateTime,
    ) -> Option<Self> {
        let (subject, peer_address) = match direction {
            FlowDirection::Egress => (flow.from?, flow.destination),
            FlowDirection::Ingress => (flow.to?, flow.source),
        };
        Some(Self {
            world,
            set,
            subject,
            direction,
            view: AddressView {
                address: peer_address,
                who: world.who(peer_address),
            },
            peer_address,
            protocol: flow.protocol,
            port: flow.port,
            at,
            // Whatever stays within the workload never leaves it: loopback is not filtered.
            loopback: subject.addresses.contains(&peer_address),
        })
    }

    /// Named ports that rules of this direction mean: those of the receiving workload.
    fn named_ports(&self) -> &[NamedPort] {
        match self.direction {
            FlowDirection::Ingress => &self.subject.named_ports,
            FlowDirection::Egress => self
                .view
                .who
                .workload()
                .map_or(&[][..], |workload| &workload.named_ports),
        }
    }

    fn is_peer_isolated(&self) -> bool {
        self.world
            .claimants(self.peer_address)
            .any(|workload| is_isolated(self.world, self.set, workload))
    }
}

/// A listener to the walk.
pub(crate) trait Trace {
    /// A tier begins.
    fn stage(&mut self, stage: &'static str);
    /// A policy, filter or grant was considered; `skipped` says why its rules were not.
    fn policy(&mut self, name: &str, skipped: Option<&'static str>);
    /// A rule was compared.
    fn rule(&mut self, name: &str, action: &'static str, peer: bool, port: bool);
}

/// Nobody listens.
pub(crate) struct NoTrace;

impl Trace for NoTrace {
    fn stage(&mut self, _: &'static str) {}
    fn policy(&mut self, _: &str, _: Option<&'static str>) {}
    fn rule(&mut self, _: &str, _: &'static str, _: bool, _: bool) {}
}

/// What one end says, the mode left out (but for isolation).
pub(crate) fn decide(end: &End<'_>, lens: Lens, trace: &mut impl Trace) -> Decision {
    if end.loopback {
        return Decision::allow(names::LOOPBACK);
    }
    if let Some(decision) = isolation(end, trace).or_else(|| filters(end, trace)) {
        return decision;
    }
    tier(end, lens, Tier::Guardrail, trace)
        .or_else(|| grants(end, trace))
        .or_else(|| tier(end, lens, Tier::Standard, trace))
        .or_else(|| tier(end, lens, Tier::Baseline, trace))
        .unwrap_or_else(|| nothing_decided(end, trace))
}

fn isolation(end: &End<'_>, trace: &mut impl Trace) -> Option<Decision> {
    trace.stage("isolation");
    if is_isolated(end.world, end.set, end.subject) {
        return Some(Decision::deny(names::ISOLATION, DropReason::Isolated));
    }
    end.is_peer_isolated()
        .then(|| Decision::deny(names::ISOLATION, DropReason::PeerIsolated))
}

/// The filter tier can only drop; what it allows goes on to the next tier.
fn filters(end: &End<'_>, trace: &mut impl Trace) -> Option<Decision> {
    trace.stage("filter");
    let unknown = end.view.class() == PeerClass::Unknown;
    for filter in end.set.filters() {
        let name = format!("filter/{}", filter.metadata.name);
        if !filter.subject.matches(end.subject) {
            trace.policy(&name, Some("its subject does not select the workload"));
            continue;
        }
        trace.policy(&name, None);
        for (index, entry) in filter.entries.iter().enumerate() {
            if entry.direction != end.direction {
                continue;
            }
            let rule = format!("{name}/{}[{index}]", direction_name(end.direction));
            // Of an unknown peer only denials of everybody can be told to match.
            let peer = match &entry.cidr {
                Some(cidr) => !unknown && end.view.within(cidr),
                None => !unknown || !entry.allow,
            };
            let port = ports_match(end.set, entry.ports.as_slice(), &[], end.protocol, end.port);
            trace.rule(
                &rule,
                if entry.allow { "allow" } else { "deny" },
                peer,
                port,
            );
            if peer && port {
                return (!entry.allow).then(|| Decision::deny(rule, DropReason::Filter));
            }
        }
    }
    None
}

/// Grants only allow.
fn grants(end: &End<'_>, trace: &mut impl Trace) -> Option<Decision> {
    trace.stage("grants");
    for grant in end.set.grants() {
        let name = format!("grants/{}", grant.metadata.name);
        let skipped = if !is_live(Some(grant.expires), end.at) {
            Some("it has expired")
        } else if !grant.subject.matches(end.subject) {
            Some("its subject does not select the workload")
        } else if !grant.speaks(end.direction) {
            Some("it does not speak for this direction")
        } else {
            None
        };
        trace.policy(&name, skipped);
        if skipped.is_some() {
            continue;
        }
        let rule = format!("{name}/{}[0]", direction_name(end.direction));
        let peer = peers_match(end.set, &grant.peers, &end.view, false);
        let port = ports_match(
            end.set,
            &grant.ports,
            end.named_ports(),
            end.protocol,
            end.port,
        );
        trace.rule(&rule, "allow", peer, port);
        if peer && port {
            return Some(Decision::allow(rule));
        }
    }
    None
}

/// One tier of policies: the first rule that matches decides; `pass` leaves the tier.
fn tier(end: &End<'_>, lens: Lens, tier: Tier, trace: &mut impl Trace) -> Option<Decision> {
    trace.stage(tier.name());
    let replaced = end.set.replaced(end.at);
    let mut closed_by: Vec<String> = Vec::new();
    for policy in end
        .set
        .policies()
        .iter()
        .filter(|policy| policy.tier == tier)
    {
        let name = policy_name(policy);
        let skipped = skip(policy, end, lens, &replaced);
        trace.policy(&name, skipped);
        if skipped.is_some() {
            continue;
        }
        let rules = policy.rules(end.direction).unwrap_or_default();
        let name = format!("{name}/{}", direction_name(end.direction));
        for (index, rule) in rules.iter().enumerate() {
            let denies = rule.action == Action::Deny;
            let peer = peers_match(end.set, &rule.peers, &end.view, denies);
            let port = ports_match(
                end.set,
                &rule.ports,
                end.named_ports(),
                end.protocol,
                end.port,
            );
            let rule_name = format!("{name}[{index}]");
            trace.rule(&rule_name, action_name(rule.action), peer, port);
            if !(peer && port) {
                continue;
            }
            let decision = match rule.action {
                Action::Allow => Decision::allow(rule_name),
                Action::Deny => Decision {
                    hard: tier == Tier::Guardrail,
                    ..Decision::deny(rule_name, DropReason::PolicyDeny)
                },
                Action::Pass => return None,
            };
            return Some(Decision {
                keep: rule.keep,
                audit: rule.audit,
                ..decision
            });
        }
        closed_by.push(name);
    }
    // Only the standard tier closes a direction.
    (tier == Tier::Standard && !closed_by.is_empty())
        .then(|| Decision::deny(closed_name(&closed_by), default_reason(end)))
}

/// Why a policy's rules are not looked at.
fn skip(
    policy: &Policy,
    end: &End<'_>,
    lens: Lens,
    replaced: &std::collections::HashSet<&str>,
) -> Option<&'static str> {
    if !is_live(policy.expires, end.at) {
        return Some("it has expired");
    }
    match lens {
        Lens::Enforced if policy.state == State::Staged => return Some("it is staged"),
        Lens::Draft if replaced.contains(policy.metadata.name.as_str()) => {
            return Some("a staged policy replaces it");
        }
        _ => {}
    }
    if !policy.subject.matches(end.subject) {
        return Some("its subject does not select the workload");
    }
    policy
        .rules(end.direction)
        .is_none()
        .then_some("it does not speak for this direction")
}

fn nothing_decided(end: &End<'_>, trace: &mut impl Trace) -> Decision {
    trace.stage("default");
    let unknown = end.view.class() == PeerClass::Unknown;
    match Posture::of(end.world, end.set, end.subject).default_action {
        DefaultAction::Allow if !unknown => Decision::allow(names::DEFAULT_ALLOW),
        _ => Decision::deny(names::DEFAULT_DENY, default_reason(end)),
    }
}

fn default_reason(end: &End<'_>) -> DropReason {
    match end.view.class() {
        PeerClass::Unknown => DropReason::UnknownIdentity,
        _ => DropReason::DefaultDeny,
    }
}

/// `tier/name` of a policy.
pub(crate) fn policy_name(policy: &Policy) -> String {
    format!("{}/{}", policy.tier.name(), policy.metadata.name)
}

/// Name of the default deny of some `tier/name/direction`, in their order.
pub(crate) fn closed_name(closed_by: &[String]) -> String {
    format!("{} (default deny)", closed_by.join(","))
}

/// The word for a direction.
#[must_use]
pub(crate) fn direction_name(direction: FlowDirection) -> &'static str {
    datapath::ids::Direction::from(direction).name()
}

/// The word for an action.
pub(crate) const fn action_name(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Pass => "pass",
    }
}

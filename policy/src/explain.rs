//! Why a verdict is what it is: the walk of the evaluator, written down.

use std::fmt;

use serde::Serialize;
use time::OffsetDateTime;

use crate::evaluate::{ConnectionVerdict, EndVerdict, Verdict, evaluate_end};
use crate::locate::place_of;
use crate::ports::{is_icmp, protocol_name};
use crate::posture::Posture;
use crate::probe::{Flow, Probe, ProbeError};
use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::suggest::{Suggestion, Wish};
use crate::walk::{End, Lens, Trace, decide, direction_name};
use crate::world::{Who, World};

/// So many policies that do not select the workload are named; more are counted.
const ELSEWHERE: usize = 3;

/// The whole story of one connection.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The connection in words.
    pub title: String,
    /// Whether it passes.
    pub enforced: Verdict,
    /// Whether it would pass.
    pub draft: Verdict,
    /// The source's end, if it is managed.
    pub egress: Option<EndExplanation>,
    /// The destination's end, if it is managed.
    pub ingress: Option<EndExplanation>,
}

/// The story of one end.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndExplanation {
    /// The workload whose policies are asked.
    pub subject: String,
    /// The other end in words.
    pub peer: String,
    /// Direction seen from the subject.
    pub direction: FlowDirection,
    /// Mode of the subject.
    pub mode: &'static str,
    /// What happens to the flow here.
    pub enforced: Verdict,
    /// What the enforced policies say, the mode left out.
    pub evaluated: Verdict,
    /// Rule that decided.
    pub rule: String,
    /// `file:line:column` of that rule, where it is known.
    pub place: Option<String>,
    /// Why it is denied.
    pub reason: &'static str,
    /// What would happen if everything were enforced.
    pub draft: Verdict,
    /// Rule that decided the draft.
    pub draft_rule: String,
    /// `file:line:column` of that rule, where it is known.
    pub draft_place: Option<String>,
    /// The tiers of the enforced walk that were reached, in order.
    pub tiers: Vec<TierTrace>,
    /// The tiers of the draft's walk.
    pub draft_tiers: Vec<TierTrace>,
    /// What would have to change for another verdict, in one line.
    pub change: String,
    /// The same as edits that were tried, the plainest first.
    pub suggestions: Vec<Suggestion>,
}

/// One tier of the walk.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TierTrace {
    /// `isolation`, `filter`, `guardrail`, `grants`, `standard`, `baseline` or `default`.
    pub tier: &'static str,
    /// What was considered in it.
    pub policies: Vec<PolicyTrace>,
}

/// One policy, filter or grant of the walk.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTrace {
    /// `tier/name`.
    pub name: String,
    /// Why its rules were not looked at.
    pub skipped: Option<&'static str>,
    /// Its rules up to the first that matched.
    pub rules: Vec<RuleTrace>,
}

/// One rule of the walk.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleTrace {
    /// Rule name.
    pub name: String,
    /// `file:line:column`, where it is known.
    pub place: Option<String>,
    /// What it does.
    pub action: &'static str,
    /// Whether its peers match.
    pub peer_matches: bool,
    /// Whether its ports match.
    pub port_matches: bool,
}

impl RuleTrace {
    /// Whether the rule matched.
    #[must_use]
    pub const fn matched(&self) -> bool {
        self.peer_matches && self.port_matches
    }
}

struct Recorder<'a> {
    set: &'a PolicySet,
    tiers: Vec<TierTrace>,
}

impl Trace for Recorder<'_> {
    fn stage(&mut self, stage: &'static str) {
        self.tiers.push(TierTrace {
            tier: stage,
            policies: Vec::new(),
        });
    }

    fn policy(&mut self, name: &str, skipped: Option<&'static str>) {
        if let Some(tier) = self.tiers.last_mut() {
            tier.policies.push(PolicyTrace {
                name: name.to_owned(),
                skipped,
                rules: Vec::new(),
            });
        }
    }

    fn rule(&mut self, name: &str, action: &'static str, peer: bool, port: bool) {
        let policy = self
            .tiers
            .last_mut()
            .and_then(|tier| tier.policies.last_mut());
        if let Some(policy) = policy {
            policy.rules.push(RuleTrace {
                name: name.to_owned(),
                place: place_of(self.set, name),
                action,
                peer_matches: peer,
                port_matches: port,
            });
        }
    }
}

/// Explains one new connection.
pub fn explain(
    world: &World,
    set: &PolicySet,
    probe: &Probe,
    at: OffsetDateTime,
) -> Result<Explanation, ProbeError> {
    Ok(explain_flow(world, set, &Flow::resolve(world, probe)?, at))
}

/// Explains one new connection whose ends are known.
#[must_use]
pub fn explain_flow(
    world: &World,
    set: &PolicySet,
    flow: &Flow<'_>,
    at: OffsetDateTime,
) -> Explanation {
    let verdict_at = |direction| evaluate_end(world, set, flow, direction, at);
    let (egress, ingress) = (
        verdict_at(FlowDirection::Egress),
        verdict_at(FlowDirection::Ingress),
    );
    let told = |direction, verdict: &Option<EndVerdict>| {
        let end = End::of(world, set, flow, direction, at)?;
        let wish = Wish {
            world,
            set,
            flow,
            direction,
            at,
        };
        verdict
            .as_ref()
            .map(|verdict| end_explanation(&end, verdict, wish.suggestions()))
    };
    let explained = (
        told(FlowDirection::Egress, &egress),
        told(FlowDirection::Ingress, &ingress),
    );
    let verdict = ConnectionVerdict::new(egress, ingress);
    Explanation {
        title: title(world, flow),
        enforced: verdict.enforced,
        draft: verdict.draft,
        egress: explained.0,
        ingress: explained.1,
    }
}

fn end_explanation(
    end: &End<'_>,
    verdict: &EndVerdict,
    suggestions: Vec<Suggestion>,
) -> EndExplanation {
    let walk = |lens| {
        let mut recorder = Recorder {
            set: end.set,
            tiers: Vec::new(),
        };
        let _decision = decide(end, lens, &mut recorder);
        recorder.tiers
    };
    EndExplanation {
        subject: end.subject.full_name(),
        peer: peer_title(end.world, end.peer_address),
        direction: end.direction,
        mode: Posture::of(end.world, end.set, end.subject).mode.name(),
        enforced: verdict.enforced,
        evaluated: verdict.evaluated,
        rule: verdict.rule.clone(),
        place: place_of(end.set, &verdict.rule),
        reason: verdict.reason.name(),
        draft: verdict.draft,
        draft_rule: verdict.draft_rule.clone(),
        draft_place: place_of(end.set, &verdict.draft_rule),
        change: suggestions.first().map_or_else(
            || "nothing that was tried turns the verdict".to_owned(),
            |first| {
                format!(
                    "{}: {}",
                    purpose(verdict.enforced, verdict.draft),
                    first.text
                )
            },
        ),
        suggestions,
        tiers: walk(Lens::Enforced),
        draft_tiers: walk(Lens::Draft),
    }
}

/// What suggestions are for.
const fn purpose(enforced: Verdict, draft: Verdict) -> &'static str {
    match (enforced, draft) {
        (Verdict::Deny, _) => "to allow it",
        (Verdict::Allow, Verdict::Deny) => "to keep it once everything staged is enforced",
        (Verdict::Allow, Verdict::Allow) => "to deny it",
    }
}

fn title(world: &World, flow: &Flow<'_>) -> String {
    let [kind, code] = flow.port.to_be_bytes();
    let what = if is_icmp(flow.protocol) {
        format!("{} type {kind} code {code}", protocol_name(flow.protocol))
    } else {
        format!("{} port {}", protocol_name(flow.protocol), flow.port)
    };
    format!(
        "{} → {}, {what}",
        peer_title(world, flow.source),
        peer_title(world, flow.destination)
    )
}

fn peer_title(world: &World, address: std::net::IpAddr) -> String {
    match world.who(address) {
        Who::Workload(workload) => format!("{} ({address})", workload.full_name()),
        Who::Unmanaged => format!("{address} (unmanaged)"),
        Who::World => format!("{address} (world)"),
        Who::Unknown => format!("{address} (unknown: claimed twice)"),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        writeln!(
            f,
            "enforced: {}   draft: {}",
            self.enforced.name(),
            self.draft.name()
        )?;
        for (name, end) in [("egress", &self.egress), ("ingress", &self.ingress)] {
            match end {
                Some(end) => write!(f, "\n{end}")?,
                None => writeln!(f, "\n{name}: this end is not managed, nothing is asked")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for EndExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} of {} (mode {}), peer {}",
            direction_name(self.direction),
            self.subject,
            self.mode,
            self.peer
        )?;
        for tier in self.tiers.iter().filter(|tier| !tier.policies.is_empty()) {
            writeln!(f, "  {}", tier.tier)?;
            let elsewhere = |policy: &&PolicyTrace| {
                policy.skipped == Some("its subject does not select the workload")
            };
            let others = tier.policies.iter().filter(elsewhere).count();
            if others > ELSEWHERE {
                writeln!(f, "    {others} do not select the workload")?;
            }
            for policy in &tier.policies {
                if others > ELSEWHERE && elsewhere(&policy) {
                    continue;
                }
                match policy.skipped {
                    Some(why) => writeln!(f, "    {} — skipped: {why}", policy.name)?,
                    None => writeln!(f, "    {}", policy.name)?,
                }
                for rule in &policy.rules {
                    writeln!(f, "      {rule}")?;
                }
            }
        }
        let at = |place: &Option<String>| {
            (place.as_deref()).map_or_else(String::new, |place| format!(" at {place}"))
        };
        writeln!(
            f,
            "  ⇒ {} by {}{} (reason {})",
            self.enforced.name(),
            self.rule,
            at(&self.place),
            self.reason
        )?;
        if self.draft != self.enforced || self.draft_rule != self.rule {
            writeln!(
                f,
                "  ⇒ draft: {} by {}{}",
                self.draft.name(),
                self.draft_rule,
                at(&self.draft_place)
            )?;
        }
        writeln!(f, "  {}", self.change)?;
        for suggestion in self.suggestions.iter().skip(1) {
            writeln!(f, "  or: {}", suggestion.text)?;
        }
        // Only what is new is short enough to print; what changes an object is in the JSON.
        let wanted = !(self.enforced.is_allow() && self.draft.is_allow());
        for suggestion in (self.suggestions.iter()).filter(|one| wanted && one.kind == "add-rule") {
            for line in suggestion.yaml.iter().flat_map(|yaml| yaml.lines()) {
                writeln!(f, "      {line}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for RuleTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match (self.peer_matches, self.port_matches) {
            (true, true) => "matches",
            (true, false) => "no match: other port",
            (false, true) => "no match: other peer",
            (false, false) => "no match: other peer and port",
        };
        write!(f, "{} {}: {why}", self.name, self.action)?;
        match &self.place {
            Some(place) if self.matched() => write!(f, " ({place})"),
            _ => Ok(()),
        }
    }
}

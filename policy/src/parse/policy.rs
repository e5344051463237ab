//! Policies, guardrails, filters, modes, grants and their tests.

use time::OffsetDateTime;

use super::document::name;
use super::fields::{Fields, boolean, list, moment, number, text};
use super::node::{Node, Value};
use super::peers::{peers, selector, subject};
use super::ports::{self, Allow};
use crate::model::{
    Action, DefaultAction, Filter, FilterEntry, Grant, Metadata, ModeObject, Policy, PolicyKind,
    PolicyTest, Rule, SelectiveEntry, State, TestEnd, TestVerdict, Tier,
};
use crate::ports::{PortSpec, Ports, Protocol};
use crate::problems::{Problem, Problems};
use crate::snapshot::{FlowDirection, Mode};
use crate::source::Place;

/// Priority of what does not say one.
const DEFAULT_PRIORITY: u16 = 1000;

pub(crate) const STATES: &[(&str, State)] =
    &[("staged", State::Staged), ("enforced", State::Enforced)];
pub(crate) const EXISTING: &[(&str, bool)] = &[("reevaluate", false), ("keep", true)];
pub(crate) const FILTER_ACTIONS: &[(&str, bool)] = &[("allow", true), ("deny", false)];
pub(crate) const DEFAULT_ACTIONS: &[(&str, DefaultAction)] = &[
    ("allow", DefaultAction::Allow),
    ("deny", DefaultAction::Deny),
];
pub(crate) const DIRECTIONS: &[(&str, FlowDirection)] = &[
    ("ingress", FlowDirection::Ingress),
    ("egress", FlowDirection::Egress),
];
/// Directions of a grant: ingress, egress.
pub(crate) const GRANT_DIRECTIONS: &[(&str, (bool, bool))] = &[
    ("ingress", (true, false)),
    ("egress", (false, true)),
    ("both", (true, true)),
];
pub(crate) const MODES: &[(&str, Mode)] = &[
    ("observe", Mode::Observe),
    ("selective", Mode::Selective),
    ("enforce", Mode::Enforce),
    ("isolate", Mode::Isolate),
];

pub(super) fn policy(
    spec: &Node,
    metadata: Metadata,
    tests: Vec<PolicyTest>,
    place: Place,
    problems: &mut Problems,
) -> Option<Policy> {
    let mut fields = Fields::open(spec, "policy", problems)?;
    let tier = fields
        .word("tier", Tier::WORDS, problems)
        .unwrap_or_default();
    rest(&mut fields, tier, PolicyKind::Policy, problems).map(|policy| {
        fields.finish(problems);
        Policy {
            metadata,
            tests,
            place,
            ..policy
        }
    })
}

pub(super) fn guardrail(
    spec: &Node,
    metadata: Metadata,
    tests: Vec<PolicyTest>,
    place: Place,
    problems: &mut Problems,
) -> Option<Policy> {
    let mut fields = Fields::open(spec, "guardrail", problems)?;
    rest(
        &mut fields,
        Tier::Guardrail,
        PolicyKind::Guardrail,
        problems,
    )
    .map(|policy| {
        fields.finish(problems);
        Policy {
            metadata,
            tests,
            place,
            ..policy
        }
    })
}

/// What `Policy` and `Guardrail` share.
fn rest(
    fields: &mut Fields<'_>,
    tier: Tier,
    kind: PolicyKind,
    problems: &mut Problems,
) -> Option<Policy> {
    let state = fields.word("state", STATES, problems);
    Some(Policy {
        kind,
        tier,
        priority: priority(fields, problems),
        subject: subject(fields, problems).unwrap_or_default(),
        state: state.unwrap_or(match kind {
            PolicyKind::Policy => State::Staged,
            PolicyKind::Guardrail => State::Enforced,
        }),
        replaces: fields
            .take("replaces")
            .and_then(|node| name(node, "replaces", problems)),
        ingress: rules(fields, "ingress", problems),
        egress: rules(fields, "egress", problems),
        expires: expires(fields, problems),
        ..Policy::default()
    })
}

fn priority(fields: &mut Fields<'_>, problems: &mut Problems) -> u16 {
    fields
        .take("priority")
        .and_then(|node| number(node, "priority", 0, 65_535, problems))
        .and_then(|value| u16::try_from(value).ok())
        .unwrap_or(DEFAULT_PRIORITY)
}

fn expires(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<OffsetDateTime> {
    fields
        .take("expires")
        .and_then(|node| moment(node, "expires", problems))
}

fn rules(fields: &mut Fields<'_>, key: &'static str, problems: &mut Problems) -> Option<Vec<Rule>> {
    let entry = fields.take_entry(key)?;
    if matches!(entry.node.value, Value::Null) {
        // A bare key would close the direction, which nobody should do by an oversight.
        problems.push(
            Problem::at(&entry.place, format!("\"{key}\" has no value")).suggest(format!(
                "write {key}: [] to close the direction, or remove the key"
            )),
        );
        return None;
    }
    let items = list(&entry.node, key, problems)?;
    Some(
        items
            .iter()
            .filter_map(|node| rule(node, problems))
            .collect(),
    )
}

fn rule(node: &Node, problems: &mut Problems) -> Option<Rule> {
    let mut fields = Fields::open(node, "rule", problems)?;
    let action = fields
        .require("action", problems)
        .and_then(|node| super::fields::word(node, "action", Action::WORDS, problems));
    let rule = Rule {
        name: fields.text("name", problems),
        action: action.unwrap_or(Action::Deny),
        peers: fields
            .take("peers")
            .map(|node| peers(node, problems))
            .unwrap_or_default(),
        ports: fields
            .take("ports")
            .map(|node| ports::ports(node, Allow::ALL, problems))
            .unwrap_or_default(),
        keep: fields
            .word("existing", EXISTING, problems)
            .unwrap_or_default(),
        audit: fields
            .take("audit")
            .and_then(|node| boolean(node, "audit", problems))
            .unwrap_or_default(),
        place: node.place.clone(),
    };
    fields.finish(problems);
    Some(rule)
}

pub(super) fn filter(
    spec: &Node,
    metadata: Metadata,
    place: Place,
    problems: &mut Problems,
) -> Option<Filter> {
    let mut fields = Fields::open(spec, "filter", problems)?;
    let filter = Filter {
        metadata,
        subject: subject(&mut fields, problems).unwrap_or_default(),
        priority: priority(&mut fields, problems),
        entries: fields
            .require("entries", problems)
            .and_then(|node| list(node, "entries", problems))
            .unwrap_or_default()
            .iter()
            .filter_map(|node| filter_entry(node, problems))
            .collect(),
        place,
    };
    fields.finish(problems);
    Some(filter)
}

fn filter_entry(node: &Node, problems: &mut Problems) -> Option<FilterEntry> {
    let mut fields = Fields::open(node, "filter entry", problems)?;
    let action = fields
        .require("action", problems)
        .and_then(|node| super::fields::word(node, "action", FILTER_ACTIONS, problems));
    let direction = fields
        .require("direction", problems)
        .and_then(|node| super::fields::word(node, "direction", DIRECTIONS, problems));
    let entry = FilterEntry {
        direction: direction.unwrap_or(FlowDirection::Ingress),
        cidr: fields
            .take("cidr")
            .and_then(|node| super::fields::cidr(node, "cidr", problems)),
        ports: ports::spec(&mut fields, Allow::NUMBERS, problems),
        allow: action.unwrap_or_default(),
        place: node.place.clone(),
    };
    fields.finish(problems);
    Some(entry)
}

pub(super) fn mode(
    spec: &Node,
    metadata: Metadata,
    place: Place,
    problems: &mut Problems,
) -> Option<ModeObject> {
    let mut fields = Fields::open(spec, "mode", problems)?;
    let before = problems.0.len();
    let object = ModeObject {
        metadata,
        subject: subject(&mut fields, problems).unwrap_or_default(),
        mode: fields.word("mode", MODES, problems),
        enforce: fields
            .list("enforce", problems)
            .unwrap_or_default()
            .iter()
            .filter_map(|node| selective(node, problems))
            .collect(),
        default_action: fields.word("defaultAction", DEFAULT_ACTIONS, problems),
        place: place.clone(),
    };
    fields.finish(problems);
    if object.mode.is_none() && object.default_action.is_none() && problems.0.len() == before {
        problems.push(
            Problem::at(&spec.place, "this Mode sets nothing").suggest("add mode or defaultAction"),
        );
    }
    if !object.enforce.is_empty() && object.mode.is_some_and(|mode| mode != Mode::Selective) {
        problems.push(
            Problem::at(
                &spec.place,
                "\"enforce\" has a meaning in mode selective only",
            )
            .suggest("write mode: selective, or remove \"enforce\""),
        );
    }
    Some(object)
}

/// `{protocol, port, endPort, direction}` of a selective mode.
pub(crate) fn selective(node: &Node, problems: &mut Problems) -> Option<SelectiveEntry> {
    let mut fields = Fields::open(node, "selective entry", problems)?;
    let entry = SelectiveEntry {
        direction: fields
            .word("direction", DIRECTIONS, problems)
            .unwrap_or(FlowDirection::Ingress),
        ports: ports::spec(&mut fields, Allow::NUMBERS, problems).unwrap_or(PortSpec::Direct {
            protocol: Protocol::Any,
            ports: Ports::All,
        }),
    };
    fields.finish(problems);
    Some(entry)
}

pub(super) fn grant(
    spec: &Node,
    metadata: Metadata,
    place: Place,
    problems: &mut Problems,
) -> Option<Grant> {
    let mut fields = Fields::open(spec, "grant", problems)?;
    let (ingress, egress) = fields
        .word("direction", GRANT_DIRECTIONS, problems)
        .unwrap_or((true, false));
    let subject = subject(&mut fields, problems).unwrap_or_default();
    let peers_node = fields.require("peers", problems);
    let before = problems.0.len();
    let given = peers_node
        .map(|node| peers(node, problems))
        .unwrap_or_default();
    if let Some(node) = peers_node
        && given.is_empty()
        && problems.0.len() == before
    {
        problems.push(
            Problem::at(&node.place, "a grant must say who gets access")
                .suggest("list the peers; for everybody, entity: any"),
        );
    }
    let ports = fields
        .take("ports")
        .map(|node| ports::ports(node, Allow::ALL, problems))
        .unwrap_or_default();
    let expires = fields
        .require("expires", problems)
        .and_then(|node| moment(node, "expires", problems));
    let grant = Grant {
        metadata,
        subject,
        peers: given,
        ports,
        ingress,
        egress,
        // Without a deadline there was a problem, and the grant is never used.
        expires: expires.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        reason: fields.text("reason", problems),
        place,
    };
    fields.finish(problems);
    Some(grant)
}

/// `tests[]` of a policy.
pub(super) fn tests(
    fields: &mut Fields<'_>,
    kind: &str,
    problems: &mut Problems,
) -> Vec<PolicyTest> {
    if !matches!(kind, "Policy" | "Guardrail") {
        return Vec::new();
    }
    fields
        .list("tests", problems)
        .unwrap_or_default()
        .iter()
        .filter_map(|node| test(node, problems))
        .collect()
}

fn test(node: &Node, problems: &mut Problems) -> Option<PolicyTest> {
    let mut fields = Fields::open(node, "test", problems)?;
    let given = fields.text("name", problems);
    let from = fields
        .require("from", problems)
        .and_then(|node| test_end(node, "from", problems));
    let to = fields
        .require("to", problems)
        .and_then(|node| test_end(node, "to", problems));
    let expect = fields
        .require("expect", problems)
        .and_then(|node| super::fields::word(node, "expect", FILTER_ACTIONS, problems));
    let ports = test_ports(&mut fields, problems);
    let verdict = fields.word("verdict", TestVerdict::WORDS, problems);
    let reason = fields
        .take("reason")
        .and_then(|node| reason(node, problems));
    let rule = fields.text("rule", problems);
    fields.finish(problems);
    Some(PolicyTest {
        name: given,
        from: from?,
        to: to?,
        ports: ports?,
        expect_allow: expect?,
        verdict: verdict.unwrap_or_default(),
        reason,
        rule,
        place: node.place.clone(),
    })
}

fn test_end(node: &Node, what: &str, problems: &mut Problems) -> Option<TestEnd> {
    match node.value {
        Value::Map(_) => selector(node, what, problems).map(TestEnd::Selected),
        _ => text(node, what, problems).map(|end| TestEnd::Named(end.to_owned())),
    }
}

/// What a test tries; an ICMP type without a code means code 0, as in a probe.
fn test_ports(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<PortSpec> {
    let place = fields.place().clone();
    let before = problems.0.len();
    let spec = ports::spec(fields, Allow::ALL, problems);
    if spec.is_none() && problems.0.len() == before {
        problems.push(
            Problem::at(&place, "a test needs a protocol, a port or a service")
                .suggest("write for example protocol: tcp, port: 443"),
        );
    }
    match spec? {
        PortSpec::Direct {
            protocol,
            ports: Ports::Icmp { kind, code: None },
        } => Some(PortSpec::Direct {
            protocol,
            ports: Ports::Icmp {
                kind,
                code: Some(0),
            },
        }),
        spec => Some(spec),
    }
}

fn reason(node: &Node, problems: &mut Problems) -> Option<String> {
    let words: Vec<(&'static str, ())> = datapath::drop_reason::DropReason::ALL
        .iter()
        .map(|reason| (reason.name(), ()))
        .collect();
    super::fields::word(node, "reason", &words, problems)?;
    text(node, "reason", problems).map(str::to_owned)
}

//! Objects as JSON, in the form in which they are parsed.

use serde::Serialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::{
    API_VERSION, Filter, FilterEntry, Grant, Invariant, ModeObject, Object, Policy, PolicyKind,
    PolicyTest, SelectiveEntry, State, TestVerdict,
};
use crate::ports::PortSpec;
use crate::selectors::{Selector, serialize_subject};
use crate::walk::direction_name;

impl Object {
    /// The object as a document that parses to itself again.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut document = Map::new();
        document.insert("apiVersion".into(), json!(API_VERSION));
        document.insert("kind".into(), json!(self.kind()));
        document.insert("metadata".into(), value(self.metadata()));
        let spec = match self {
            Self::Policy(policy) => {
                if !policy.tests.is_empty() {
                    let tests: Vec<Value> = policy.tests.iter().map(test).collect();
                    document.insert("tests".into(), Value::Array(tests));
                }
                self::policy(policy)
            }
            Self::Filter(object) => filter(object),
            Self::Mode(object) => mode(object),
            Self::Grant(object) => grant(object),
            Self::Workload(object) => json!({
                "addresses": object.addresses,
                "namedPorts": object.named_ports,
                "namespaceLabels": object.namespace_labels,
            }),
            Self::AddressGroup(object) => json!({"cidrs": object.cidrs}),
            Self::Service(object) => json!({"ports": object.ports}),
            Self::Invariant(object) => invariant(object),
        };
        document.insert("spec".into(), spec);
        Value::Object(document)
    }
}

/// Plain data whose serialisation cannot fail.
fn value(data: &impl Serialize) -> Value {
    serde_json::to_value(data).unwrap_or_default()
}

fn subject(selector: &Selector) -> Value {
    serialize_subject(selector, serde_json::value::Serializer).unwrap_or_default()
}

fn moment(moment: OffsetDateTime) -> Value {
    // Only years beyond 9999 have no RFC 3339 form, and those were never parsed.
    moment.format(&Rfc3339).map_or(Value::Null, Value::String)
}

fn policy(policy: &Policy) -> Value {
    let mut spec = Map::new();
    if policy.kind == PolicyKind::Policy {
        spec.insert("tier".into(), value(&policy.tier));
    }
    spec.insert("priority".into(), json!(policy.priority));
    spec.insert("subject".into(), subject(&policy.subject));
    let state = match policy.state {
        State::Staged => "staged",
        State::Enforced => "enforced",
    };
    spec.insert("state".into(), json!(state));
    if let Some(replaces) = &policy.replaces {
        spec.insert("replaces".into(), json!(replaces));
    }
    if let Some(rules) = &policy.ingress {
        spec.insert("ingress".into(), value(rules));
    }
    if let Some(rules) = &policy.egress {
        spec.insert("egress".into(), value(rules));
    }
    if let Some(expires) = policy.expires {
        spec.insert("expires".into(), moment(expires));
    }
    Value::Object(spec)
}

fn filter(filter: &Filter) -> Value {
    let entries: Vec<Value> = filter.entries.iter().map(filter_entry).collect();
    json!({
        "subject": subject(&filter.subject),
        "priority": filter.priority,
        "entries": entries,
    })
}

fn filter_entry(entry: &FilterEntry) -> Value {
    let mut map = port_fields(entry.ports.as_ref());
    map.insert("direction".into(), json!(direction_name(entry.direction)));
    map.insert(
        "action".into(),
        json!(if entry.allow { "allow" } else { "deny" }),
    );
    if let Some(cidr) = entry.cidr {
        map.insert("cidr".into(), value(&cidr));
    }
    Value::Object(map)
}

fn port_fields(ports: Option<&PortSpec>) -> Map<String, Value> {
    match ports.map(value) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn mode(object: &ModeObject) -> Value {
    let mut spec = Map::new();
    spec.insert("subject".into(), subject(&object.subject));
    if let Some(mode) = object.mode {
        spec.insert("mode".into(), json!(mode.name()));
    }
    if !object.enforce.is_empty() {
        let entries = object.enforce.iter().map(selective).collect();
        spec.insert("enforce".into(), Value::Array(entries));
    }
    if let Some(action) = object.default_action {
        spec.insert("defaultAction".into(), value(&action));
    }
    Value::Object(spec)
}

fn selective(entry: &SelectiveEntry) -> Value {
    let mut map = port_fields(Some(&entry.ports));
    map.insert("direction".into(), json!(direction_name(entry.direction)));
    Value::Object(map)
}

fn grant(grant: &Grant) -> Value {
    let direction = match (grant.ingress, grant.egress) {
        (true, true) => "both",
        (false, true) => "egress",
        _ => "ingress",
    };
    let mut spec = Map::new();
    spec.insert("subject".into(), subject(&grant.subject));
    spec.insert("peers".into(), value(&grant.peers));
    if !grant.ports.is_empty() {
        spec.insert("ports".into(), value(&grant.ports));
    }
    spec.insert("direction".into(), json!(direction));
    spec.insert("expires".into(), moment(grant.expires));
    if let Some(reason) = &grant.reason {
        spec.insert("reason".into(), json!(reason));
    }
    Value::Object(spec)
}

fn invariant(object: &Invariant) -> Value {
    let mut spec = Map::new();
    spec.insert("from".into(), value(&object.from));
    spec.insert("to".into(), value(&object.to));
    if !object.ports.is_empty() {
        spec.insert("ports".into(), value(&object.ports));
    }
    spec.insert("expect".into(), value(&object.expect));
    spec.insert("lens".into(), value(&object.lens));
    if object.transitive {
        spec.insert("transitive".into(), json!(true));
    }
    if let Some(reason) = &object.reason {
        spec.insert("reason".into(), json!(reason));
    }
    Value::Object(spec)
}

fn test(test: &PolicyTest) -> Value {
    let mut map = port_fields(Some(&test.ports));
    if test.verdict != TestVerdict::default() {
        map.insert("verdict".into(), value(&test.verdict));
    }
    map.insert("from".into(), value(&test.from));
    map.insert("to".into(), value(&test.to));
    let expect = if test.expect_allow { "allow" } else { "deny" };
    map.insert("expect".into(), json!(expect));
    for (key, text) in [
        ("name", &test.name),
        ("reason", &test.reason),
        ("rule", &test.rule),
    ] {
        if let Some(text) = text {
            map.insert(key.into(), json!(text));
        }
    }
    Value::Object(map)
}

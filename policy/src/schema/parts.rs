//! What the kinds are made of.

use datapath::drop_reason::DropReason;
use serde_json::{Map, Value, json};

use crate::model::{Action, Entity, TestVerdict};
use crate::parse::policy::{DIRECTIONS, EXISTING, FILTER_ACTIONS};
use crate::ports::{PORTED, PROTOCOL_NAMES};
use crate::selectors::Operator;

/// Fields of a mapping, in the order in which editors offer them.
type FieldList = Vec<(&'static str, Value)>;

/// A mapping with these fields and no others.
pub(super) fn object(about: &str, required: &[&str], fields: FieldList) -> Value {
    let fields: Map<String, Value> = (fields.into_iter())
        .map(|(name, schema)| (name.to_owned(), schema))
        .collect();
    let mut schema = json!({
        "type": "object",
        "description": about,
        "properties": fields,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

pub(super) fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/$defs/{name}")})
}

pub(super) fn describe(mut schema: Value, about: &str) -> Value {
    schema["description"] = json!(about);
    schema
}

/// One of a closed set of words, as the parser knows them.
pub(super) fn words<T>(words: &[(&str, T)]) -> Value {
    let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    json!({"enum": words})
}

pub(super) fn number(low: u32, high: u32) -> Value {
    json!({"type": "integer", "minimum": low, "maximum": high})
}

pub(super) fn text(about: &str) -> Value {
    json!({"type": "string", "description": about})
}

/// The fields that say protocol and port.
pub(super) fn port_fields(service: bool, named: bool) -> FieldList {
    let port = if named {
        json!({
            "description": "A number, or a port that the receiving workload names.",
            "anyOf": [
                number(0, 65_535),
                {
                    "type": "string",
                    "pattern": NAME,
                    "not": {"pattern": "^(0[xob].*|[^A-Za-z]*)$"},
                },
            ],
        })
    } else {
        describe(number(0, 65_535), "The port, or the first of a range.")
    };
    let mut fields = Vec::new();
    if service {
        fields.push(("service", describe(reference("name"), "A Service by name.")));
    }
    fields.extend([
        ("protocol", reference("protocol")),
        ("port", port),
        (
            "endPort",
            describe(number(0, 65_535), "The last port of a range."),
        ),
        ("type", describe(number(0, 255), "ICMP type.")),
        (
            "code",
            describe(
                number(0, 255),
                "ICMP code; without it, every code of the type.",
            ),
        ),
    ]);
    fields
}

pub(super) fn port_conditions(schema: &mut Value) {
    schema["dependentRequired"] =
        json!({"endPort": ["port"], "code": ["type"], "type": ["protocol"]});
    // Ranges are of numbers.
    let mut dependent = json!({"endPort": {"properties": {"port": {"type": "integer"}}}});
    if schema["properties"].get("service").is_some() {
        dependent["service"] = json!({"properties": {
            "protocol": false, "port": false, "endPort": false, "type": false, "code": false,
        }});
    }
    schema["dependentSchemas"] = dependent;
}

/// An item that must say something.
pub(super) fn complete_port(schema: &mut Value) {
    port_conditions(schema);
    schema["minProperties"] = json!(1);
}

const NAME: &str = "^[A-Za-z0-9._/:@-]{1,350}$";

/// Every part by name.
pub(super) fn parts() -> Map<String, Value> {
    let mut port = object(
        "One protocol with its ports, or a service.",
        &[],
        port_fields(true, true),
    );
    complete_port(&mut port);
    let entries = [
        ("name", json!({"type": "string", "pattern": NAME})),
        (
            "labels",
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
        ),
        (
            "cidr",
            json!({
                "type": "string",
                "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$",
                "description": "A network without host bits: 10.0.0.0/8, fd00::/8.",
            }),
        ),
        (
            "address",
            json!({
                "type": "string",
                "pattern": "^[0-9A-Fa-f.:]+$",
                "description": "An IP address: 10.0.0.5, fd00::5.",
            }),
        ),
        (
            "moment",
            json!({
                "type": "string",
                "format": "date-time",
                "description": "RFC 3339, for example 2030-01-31T18:00:00Z.",
            }),
        ),
        (
            "priority",
            describe(
                number(0, 65_535),
                "Lower first, default 1000; then by name.",
            ),
        ),
        ("protocol", protocol()),
        ("port", port),
        (
            "ports",
            describe(
                list(reference("port")),
                "What is meant: any of them. Without it, any protocol and port.",
            ),
        ),
        ("selector", selector()),
        (
            "subject",
            json!({
                "description": "The workloads that are meant: a selector that says something, or the word all.",
                "anyOf": [
                    {"const": "all"},
                    {"$ref": "#/$defs/selector", "minProperties": 1},
                ],
            }),
        ),
        ("peer", peer()),
        ("rule", rule()),
        ("selective", selective()),
        ("namedPort", named_port()),
        ("metadata", metadata(false)),
        ("workloadMetadata", metadata(true)),
        ("test", test()),
    ];
    (entries.into_iter())
        .map(|(name, schema)| (name.to_owned(), schema))
        .collect()
}

fn metadata(workload: bool) -> Value {
    let mut fields = vec![
        (
            "name",
            describe(reference("name"), "Unique within its kind."),
        ),
        ("owner", text("Who answers for it.")),
    ];
    if workload {
        fields.push((
            "namespace",
            describe(reference("name"), "Its namespace, where there are any."),
        ));
    }
    fields.extend([
        (
            "labels",
            describe(
                reference("labels"),
                "Labels of a workload; free on other objects.",
            ),
        ),
        (
            "annotations",
            describe(
                reference("labels"),
                "Free pairs that mean nothing to policy.",
            ),
        ),
        ("description", text("Free text.")),
    ]);
    object("Name, owner and free text.", &["name"], fields)
}

/// Names are read without regard to case; numbers are IANA's.
fn protocol() -> Value {
    let names: Vec<&str> = (PROTOCOL_NAMES.iter().map(|(name, _)| *name))
        .chain(["any"])
        .collect();
    let pattern: Vec<String> = names.iter().map(|name| either_case(name)).collect();
    json!({
        "description": "Default tcp. any means every protocol; with a port beside it, TCP, UDP and SCTP.",
        "anyOf": [
            {"enum": names},
            {"type": "string", "pattern": format!("^({})$", pattern.join("|"))},
            number(0, 255),
        ],
    })
}

fn either_case(name: &str) -> String {
    name.chars()
        .map(|letter| {
            if letter.is_ascii_alphabetic() {
                format!(
                    "[{}{}]",
                    letter.to_ascii_uppercase(),
                    letter.to_ascii_lowercase()
                )
            } else {
                letter.to_string()
            }
        })
        .collect()
}

fn selector() -> Value {
    let expression = object(
        "One condition on one label.",
        &["key", "operator"],
        vec![
            ("key", json!({"type": "string", "minLength": 1})),
            (
                "operator",
                describe(
                    words(Operator::WORDS),
                    "NotIn is true when the key is missing.",
                ),
            ),
            ("values", list(json!({"type": "string"}))),
        ],
    );
    json!({
        "type": "object",
        "description": "Labels that must all be there; keys that begin with namespace: are the namespace's.",
        "properties": {
            "matchLabels": reference("labels"),
            "matchExpressions": list(expression),
        },
        "additionalProperties": {"type": "string"},
    })
}

fn peer() -> Value {
    let mut schema = object(
        "Somebody: one of selector, cidr, addressGroup, entity.",
        &[],
        vec![
            (
                "selector",
                describe(
                    reference("selector"),
                    "Workloads by labels; {} means every workload.",
                ),
            ),
            (
                "cidr",
                describe(reference("cidr"), "Addresses, also those of workloads."),
            ),
            (
                "except",
                describe(
                    list(reference("cidr")),
                    "Parts of the cidr that are not meant.",
                ),
            ),
            (
                "addressGroup",
                describe(reference("name"), "An AddressGroup by name."),
            ),
            (
                "entity",
                describe(words(Entity::WORDS), "A class of peers."),
            ),
        ],
    );
    schema["dependentRequired"] = json!({"except": ["cidr"]});
    schema["oneOf"] = json!([
        {"required": ["selector"]},
        {"required": ["cidr"]},
        {"required": ["addressGroup"]},
        {"required": ["entity"]},
    ]);
    schema
}

fn rule() -> Value {
    object(
        "One rule: matches if any of its peers and any of its ports match.",
        &["action"],
        vec![
            ("name", text("What people call it.")),
            (
                "action",
                describe(words(Action::WORDS), "pass goes on with the next tier."),
            ),
            (
                "peers",
                describe(
                    list(reference("peer")),
                    "Who is meant: any of them. Without it, anybody.",
                ),
            ),
            ("ports", reference("ports")),
            (
                "existing",
                describe(
                    words(EXISTING),
                    "Whether flows that it admitted survive a later deny; default reevaluate.",
                ),
            ),
            (
                "audit",
                json!({"type": "boolean", "description": "Announce every new flow."}),
            ),
        ],
    )
}

fn selective() -> Value {
    let mut fields = vec![("direction", describe(words(DIRECTIONS), "Default ingress."))];
    fields.extend(port_fields(false, false));
    let mut schema = object("What is enforced in mode selective.", &[], fields);
    port_conditions(&mut schema);
    schema
}

fn named_port() -> Value {
    let names: Vec<&str> = (PROTOCOL_NAMES.iter())
        .filter(|(_, number)| PORTED.contains(number))
        .map(|(name, _)| *name)
        .collect();
    let pattern: Vec<String> = names.iter().map(|name| either_case(name)).collect();
    object(
        "A name for a port of a workload.",
        &["name", "port"],
        vec![
            ("name", reference("name")),
            (
                "protocol",
                json!({
                    "description": "Default tcp.",
                    "anyOf": [
                        {"enum": names},
                        {"type": "string", "pattern": format!("^({})$", pattern.join("|"))},
                        {"enum": PORTED},
                    ],
                }),
            ),
            ("port", number(1, 65_535)),
        ],
    )
}

fn test() -> Value {
    let end = json!({
        "description": "A workload by name, an address, or a selector: then every workload that it selects.",
        "anyOf": [{"type": "string"}, reference("selector")],
    });
    let reasons: Vec<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    let mut fields = vec![
        ("name", text("What people call it.")),
        ("from", end.clone()),
        ("to", end),
    ];
    fields.extend(port_fields(true, true));
    fields.extend([
        ("expect", words(FILTER_ACTIONS)),
        (
            "verdict",
            describe(
                words(TestVerdict::WORDS),
                "Which verdict; default draft: as if everything were enforced.",
            ),
        ),
        (
            "reason",
            json!({"enum": reasons, "description": "Why it must be denied."}),
        ),
        ("rule", text("Rule that must decide.")),
    ]);
    let mut schema = object(
        "What must come out for every connection that it means.",
        &["from", "to", "expect"],
        fields,
    );
    port_conditions(&mut schema);
    schema["anyOf"] =
        json!([{"required": ["service"]}, {"required": ["protocol"]}, {"required": ["port"]}]);
    schema
}

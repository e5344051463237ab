//! JSON Schema (draft 2020-12) of the language, for editors and other programs.
//!
//! The words, ranges and names come from the constants that the parser reads with. What a schema cannot say
//! (a CIDR with host bits, an `except` that covers its `cidr`, references between objects) only the parser
//! refuses; what it can say, both refuse: `policy/tests/schema.rs` holds them against each other. The
//! schema is stricter in one thing: a key without a value (`null`) is an error where the parser takes it as
//! absent.

mod kinds;
mod parts;

use serde_json::{Map, Value, json};

use crate::model::API_VERSION;
use crate::parse::document::KINDS;
use crate::parse::policy::{DEFAULT_ACTIONS, MODES};

use parts::{describe, list, object, parts, reference, words};

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The schema of policy documents, every kind.
#[must_use]
pub fn documents() -> Value {
    let mut definitions = parts();
    let mut branches = Vec::new();
    for kind in KINDS {
        definitions.insert(kind.to_owned(), document(kind));
        branches.push(json!({
            "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
            "then": {"$ref": format!("#/$defs/{kind}")},
        }));
    }
    definitions.insert(
        "object".to_owned(),
        json!({
            "type": "object",
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {"kind": {"enum": KINDS}},
            "allOf": branches,
        }),
    );
    definitions.insert("List".to_owned(), list_document());
    let is_list = json!({"properties": {"kind": {"const": "List"}}, "required": ["kind"]});
    json!({
        "$schema": DRAFT,
        "title": "Cofferdam policy documents",
        "description": "One document of a policy file, apiVersion cofferdam.dev/v1.",
        "type": ["object", "null"],
        "if": {"type": "object"},
        "then": {
            "if": is_list,
            "then": reference("List"),
            "else": reference("object"),
        },
        "$defs": definitions,
    })
}

/// The schema of the inventory file that `cofferdam policy eval` and `policy lint` read.
#[must_use]
pub fn inventory() -> Value {
    let workload = object(
        "A workload: something that owns addresses and is protected.",
        &["name", "addresses"],
        vec![
            (
                "name",
                describe(reference("name"), "Unique within its namespace."),
            ),
            (
                "namespace",
                describe(reference("name"), "Its namespace, where there are any."),
            ),
            ("labels", describe(reference("labels"), "Its own labels.")),
            (
                "namespaceLabels",
                describe(reference("labels"), "Labels of its namespace."),
            ),
            (
                "addresses",
                describe(list(reference("address")), "All its addresses."),
            ),
            (
                "namedPorts",
                describe(list(reference("namedPort")), "Names for its ports."),
            ),
            (
                "mode",
                describe(words(MODES), "How far policy is enforced; default enforce."),
            ),
            (
                "selective",
                describe(
                    list(reference("selective")),
                    "What mode selective enforces.",
                ),
            ),
            (
                "defaultAction",
                describe(
                    words(DEFAULT_ACTIONS),
                    "What happens to a flow that nothing decided; default deny.",
                ),
            ),
        ],
    );
    let mut schema = object(
        "Managed networks and workloads.",
        &[],
        vec![
            (
                "managedNetworks",
                describe(list(reference("cidr")), "The networks that are inside."),
            ),
            ("workloads", describe(list(workload), "Every workload.")),
        ],
    );
    schema["$schema"] = json!(DRAFT);
    schema["title"] = json!("Cofferdam inventory");
    schema["$defs"] = Value::Object(parts());
    schema
}

/// A document of one kind.
fn document(kind: &str) -> Value {
    let mut fields = vec![
        (
            "apiVersion",
            json!({"const": API_VERSION, "description": "The only version there is."}),
        ),
        ("kind", json!({"const": kind})),
        (
            "metadata",
            reference(if kind == "Workload" {
                "workloadMetadata"
            } else {
                "metadata"
            }),
        ),
        ("spec", kinds::spec(kind)),
    ];
    if matches!(kind, "Policy" | "Guardrail") {
        fields.push((
            "tests",
            describe(
                list(reference("test")),
                "Expectations: `cofferdam policy test` checks them, and `apply` refuses a change that breaks one.",
            ),
        ));
    }
    object(
        kinds::about(kind),
        &["apiVersion", "kind", "metadata", "spec"],
        fields,
    )
}

fn list_document() -> Value {
    object(
        "Several objects in one document.",
        &["kind"],
        vec![
            ("apiVersion", Value::Object(Map::new())),
            ("kind", json!({"const": "List"})),
            ("metadata", Value::Object(Map::new())),
            ("items", list(reference("object"))),
        ],
    )
}

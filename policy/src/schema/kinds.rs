//! `spec` of every kind.

use serde_json::{Value, json};

use super::parts::{
    complete_port, describe, list, object, port_conditions, port_fields, reference, text, words,
};
use crate::model::{Expectation, Tier};
use crate::parse::policy::{
    DEFAULT_ACTIONS, DIRECTIONS, FILTER_ACTIONS, GRANT_DIRECTIONS, MODES, STATES,
};
use crate::reach::Lens;

/// What a kind is for.
pub(super) fn about(kind: &str) -> &'static str {
    match kind {
        "Policy" => "Rules for the workloads of a subject. Staged unless it says state: enforced.",
        "Guardrail" => "A policy of tier guardrail, enforced unless it says state: staged.",
        "Filter" => {
            "The coarse tier: stateless, on every packet, before everything else. May only drop."
        }
        "Mode" => "How far policy is enforced on some workloads.",
        "Grant" => "Just-in-time access: an allow rule that ends by itself.",
        "Workload" => "A workload written down by hand.",
        "AddressGroup" => "A named list of networks.",
        "Invariant" => "What must, or must never, be reachable; checked on every apply.",
        _ => "A named list of ports.",
    }
}

/// `spec` of a kind.
pub(super) fn spec(kind: &str) -> Value {
    match kind {
        "Policy" => policy(true),
        "Guardrail" => policy(false),
        "Filter" => object(
            "What is filtered.",
            &["subject", "entries"],
            vec![
                ("subject", reference("subject")),
                ("priority", reference("priority")),
                (
                    "entries",
                    describe(
                        list(filter_entry()),
                        "In order; the first that matches decides.",
                    ),
                ),
            ],
        ),
        "Mode" => mode(),
        "Grant" => grant(),
        "Invariant" => invariant(),
        "Workload" => object(
            "The workload.",
            &["addresses"],
            vec![
                (
                    "addresses",
                    describe(list(reference("address")), "All its addresses."),
                ),
                (
                    "namedPorts",
                    describe(list(reference("namedPort")), "Names for its ports."),
                ),
                (
                    "namespaceLabels",
                    describe(reference("labels"), "Labels of its namespace."),
                ),
            ],
        ),
        "AddressGroup" => object(
            "The networks.",
            &["cidrs"],
            vec![("cidrs", list(reference("cidr")))],
        ),
        _ => {
            let mut port = object(
                "One protocol with its ports.",
                &[],
                port_fields(false, true),
            );
            complete_port(&mut port);
            let mut ports = list(port);
            ports["minItems"] = json!(1);
            object("The ports.", &["ports"], vec![("ports", ports)])
        }
    }
}

fn policy(tier: bool) -> Value {
    let mut fields = Vec::new();
    if tier {
        fields.push(("tier", describe(words(Tier::WORDS), "Default standard.")));
    }
    fields.extend([
        ("state", describe(words(STATES), "Policy: default staged; Guardrail: default enforced.")),
        ("priority", reference("priority")),
        ("subject", reference("subject")),
        ("replaces", describe(reference("name"), "Policy that the draft omits while this one is staged.")),
        (
            "ingress",
            describe(list(reference("rule")), "Rules towards the subject. The key, even as [], speaks for the direction: in tier standard, what no rule allows is denied."),
        ),
        (
            "egress",
            describe(list(reference("rule")), "Rules away from the subject. The key, even as [], speaks for the direction: in tier standard, what no rule allows is denied."),
        ),
        ("expires", describe(reference("moment"), "From this moment on it is evaluated as if absent.")),
    ]);
    object("What the policy says.", &["subject"], fields)
}

fn mode() -> Value {
    let mut schema = object(
        "The mode of the subject.",
        &["subject"],
        vec![
            ("subject", reference("subject")),
            (
                "mode",
                describe(
                    words(MODES),
                    "observe drops nothing; selective enforces its list.",
                ),
            ),
            (
                "enforce",
                describe(
                    list(reference("selective")),
                    "What mode selective enforces.",
                ),
            ),
            (
                "defaultAction",
                describe(
                    words(DEFAULT_ACTIONS),
                    "What happens to a flow that nothing decided.",
                ),
            ),
        ],
    );
    schema["anyOf"] = json!([{"required": ["mode"]}, {"required": ["defaultAction"]}]);
    schema
}

fn grant() -> Value {
    let mut peers = list(reference("peer"));
    peers["minItems"] = json!(1);
    object(
        "Who gets access to what, and until when.",
        &["subject", "peers", "expires"],
        vec![
            ("subject", reference("subject")),
            ("peers", describe(peers, "Who gets access.")),
            ("ports", reference("ports")),
            (
                "direction",
                describe(words(GRANT_DIRECTIONS), "Default ingress."),
            ),
            (
                "expires",
                describe(
                    reference("moment"),
                    "From this moment on it is gone, for open connections too.",
                ),
            ),
            ("reason", text("Why it was given.")),
        ],
    )
}

fn invariant() -> Value {
    let mut side = list(reference("peer"));
    side["minItems"] = json!(1);
    let mut port = object(
        "One protocol with its ports.",
        &[],
        port_fields(true, false),
    );
    complete_port(&mut port);
    let mut schema = object(
        "What must hold.",
        &["from", "to", "expect"],
        vec![
            ("from", describe(side.clone(), "Who opens the flow.")),
            ("to", describe(side, "Who answers.")),
            (
                "ports",
                describe(
                    list(port),
                    "On what, by number; without it, any protocol and port.",
                ),
            ),
            (
                "expect",
                describe(
                    words(Expectation::WORDS),
                    "unreachable: no flow of any pair passes; reachable: every one does.",
                ),
            ),
            (
                "lens",
                describe(
                    words(Lens::WORDS),
                    "What counts: draft (default) as if everything were enforced, evaluated the enforced policies, enforced with modes that only observe.",
                ),
            ),
            (
                "transitive",
                json!({"type": "boolean", "description": "Over any number of workloads, not only directly."}),
            ),
            ("reason", text("Why it must hold, for whoever breaks it.")),
        ],
    );
    schema["if"] =
        json!({"properties": {"expect": {"const": "reachable"}}, "required": ["expect"]});
    schema["then"] = json!({
        "required": ["ports"],
        "properties": {"ports": {"minItems": 1}, "transitive": {"const": false}},
    });
    schema
}

fn filter_entry() -> Value {
    let mut fields = vec![
        (
            "action",
            describe(
                words(FILTER_ACTIONS),
                "allow hands the packet to the policies; deny is final.",
            ),
        ),
        (
            "direction",
            describe(words(DIRECTIONS), "Seen from the subject."),
        ),
        (
            "cidr",
            describe(
                reference("cidr"),
                "The other end's address; without it, any.",
            ),
        ),
    ];
    fields.extend(port_fields(false, false));
    let mut entry = object("One entry.", &["action", "direction"], fields);
    port_conditions(&mut entry);
    entry
}

//! Kubernetes' policy objects, unchanged, as ours.
//!
//! `NetworkPolicy` (`networking.k8s.io/v1`), `AdminNetworkPolicy` and `BaselineAdminNetworkPolicy`
//! (`policy.networking.k8s.io/v1alpha1`) and `ClusterNetworkPolicy` (`…/v1alpha2`) are read with the
//! limits that the API server holds them to; a field that has no counterpart here is an error and is
//! never passed over.
//!
//! * A policy becomes a [`Policy`] named `kind/namespace/name` (without namespace for the cluster's own),
//!   enforced, in the tier that Kubernetes gives it: Admin is guardrail, Baseline is baseline.
//! * Whatever has a namespace is a pod: every imported selector asks for one, so that machines beside
//!   the cluster are never meant by a policy of the cluster.
//! * A node is a workload without a namespace that carries [`NODE_LABEL`]; host-network pods are part of
//!   their node and of nothing else.
//! * Once per set of files comes a [`ModeObject`] that lets pods do what no policy speaks about, as in
//!   Kubernetes.

mod cluster_rules;
pub(crate) mod inventory;
mod metadata;
mod network_policy;
mod ports;
mod report;
mod selectors;

use std::collections::BTreeMap;

use crate::model::{DefaultAction, Metadata, ModeObject, Object, Policy, PolicyKind, State, Tier};
use crate::parse::fields::{Fields, text};
use crate::parse::node::{Node, Value, documents};
use crate::problems::{Problem, Problems, did_you_mean};
use crate::selectors::{
    Expression, Labels, NAMESPACE_NAME_LABEL, NAMESPACE_PREFIX, Operator, Selector,
};
use crate::source::{Place, Source};

pub use inventory::NODE_LABEL;

use report::Report;

/// Name of the Mode object that import adds.
pub const MODE_NAME: &str = "kubernetes-pods";

/// Value of [`NODE_LABEL`] on a node.
pub const NODE: &str = "node";

/// The only name that a `BaselineAdminNetworkPolicy` may have.
const BASELINE_NAME: &str = "default";

/// Group of `NetworkPolicy`.
const NETWORKING: &str = "networking.k8s.io/";
/// Group of the cluster's own policies.
const POLICY: &str = "policy.networking.k8s.io/";

/// What is imported, and from which version.
const KINDS: &[(&str, &str, Kind)] = &[
    ("NetworkPolicy", "networking.k8s.io/v1", Kind::NetworkPolicy),
    (
        "AdminNetworkPolicy",
        "policy.networking.k8s.io/v1alpha1",
        Kind::Admin,
    ),
    (
        "BaselineAdminNetworkPolicy",
        "policy.networking.k8s.io/v1alpha1",
        Kind::BaselineAdmin,
    ),
    (
        "ClusterNetworkPolicy",
        "policy.networking.k8s.io/v1alpha2",
        Kind::Cluster,
    ),
];

/// The kinds of Kubernetes that are policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    NetworkPolicy,
    Admin,
    BaselineAdmin,
    Cluster,
}

/// A field of a mapping if it is a text.
fn text_of<'a>(document: &'a Node, key: &str) -> Option<&'a str> {
    let Value::Map(entries) = &document.value else {
        return None;
    };
    let entry = entries.iter().find(|entry| entry.key == key)?;
    match &entry.node.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// Whether a document is one of Kubernetes' policies, or would be in another version.
pub(crate) fn owns(document: &Node) -> bool {
    let version = text_of(document, "apiVersion").unwrap_or_default();
    let kind = text_of(document, "kind").unwrap_or_default();
    version.starts_with(NETWORKING)
        || version.starts_with(POLICY)
        || KINDS.iter().any(|(known, ..)| *known == kind)
}

/// Reads a document that [`owns`] claims, with every limit of the API.
pub(crate) fn read(document: &Node, objects: &mut Vec<Object>, problems: &mut Problems) {
    let report = read_document(document, objects);
    for problem in report.problems.0.into_iter().chain(report.limits.0) {
        // Keys that a document repeats were reported when it was opened the first time.
        if !problems.0.contains(&problem) {
            problems.push(problem);
        }
    }
}

/// Reads objects that no API server has seen: what breaks its limits and is clear nevertheless is
/// taken as it stands.
pub(crate) fn read_unlimited(source: &Source, objects: &mut Vec<Object>) -> Result<(), Problems> {
    let mut problems = Problems::default();
    for document in documents(source)? {
        problems
            .0
            .extend(read_document(&document, objects).problems.0);
    }
    problems.into_result(())
}

fn read_document(document: &Node, objects: &mut Vec<Object>) -> Report {
    let mut report = Report::default();
    if let Some(policy) = read_policy(document, &mut report) {
        objects.push(Object::Policy(policy));
        allow_pods(objects);
    }
    report
}

fn read_policy(document: &Node, report: &mut Report) -> Option<Policy> {
    let problems = &mut report.problems;
    let mut fields = Fields::open(document, "document", problems)?;
    let version = fields.require("apiVersion", problems);
    let kind = fields.require("kind", problems);
    let metadata = fields.require("metadata", problems);
    let spec = fields.require("spec", problems);
    // What a cluster reports about the object is not part of it.
    let _status = fields.take("status");
    let (name, kind) = known(version?, kind?, problems)?;
    fields.finish(problems);
    let metadata = metadata::metadata(metadata?, kind == Kind::NetworkPolicy, report);
    let spec = spec?;
    let policy = match kind {
        Kind::NetworkPolicy => {
            let namespace = metadata.as_ref().map_or("", |metadata| &metadata.namespace);
            network_policy::read(spec, namespace, report)
        }
        Kind::Admin => cluster_rules::admin(spec, report),
        Kind::BaselineAdmin => {
            if let Some(metadata) = &metadata
                && metadata.name != BASELINE_NAME
            {
                report.limit(
                    Problem::at(
                        &document.place,
                        format!("a {name} can only be called \"{BASELINE_NAME}\""),
                    )
                    .suggest(
                        "a cluster has one; ClusterNetworkPolicy has several, with priorities",
                    ),
                );
            }
            cluster_rules::baseline_admin(spec, report)
        }
        Kind::Cluster => cluster_rules::cluster(spec, report),
    }?;
    let metadata = metadata?;
    Some(Policy {
        metadata: Metadata {
            name: match kind {
                Kind::NetworkPolicy => format!("{name}/{}/{}", metadata.namespace, metadata.name),
                _ => format!("{name}/{}", metadata.name),
            },
            labels: metadata.labels,
            annotations: metadata.annotations,
            ..Metadata::default()
        },
        kind: PolicyKind::Policy,
        state: State::Enforced,
        place: document.place.clone(),
        ..policy
    })
}

/// Adds the Mode that lets pods do what no policy speaks about, unless it is there.
pub(crate) fn allow_pods(objects: &mut Vec<Object>) {
    if !objects.iter().any(is_mode) {
        objects.push(Object::Mode(mode()));
    }
}

/// The kind that version and kind say together.
fn known(version: &Node, kind: &Node, problems: &mut Problems) -> Option<(&'static str, Kind)> {
    let given_version = text(version, "apiVersion", problems)?;
    let given = text(kind, "kind", problems)?;
    let names = || KINDS.iter().map(|(name, ..)| *name);
    let Some((name, wanted, known)) = KINDS.iter().find(|(name, ..)| *name == given) else {
        problems.push(
            Problem::at(
                &kind.place,
                format!("kind \"{given}\" of {given_version} is no policy that can be imported"),
            )
            .suggest(did_you_mean(given, names()).unwrap_or_else(|| {
                format!("known kinds: {}", names().collect::<Vec<_>>().join(", "))
            })),
        );
        return None;
    };
    if given_version != *wanted {
        problems.push(
            Problem::at(
                &version.place,
                format!("{given} is imported from {wanted}, not from \"{given_version}\""),
            )
            .suggest(format!("write apiVersion: {wanted}")),
        );
        return None;
    }
    Some((name, *known))
}

/// What a person should know about imported objects: where the API leaves the outcome open.
#[must_use]
pub fn remarks(objects: &[Object]) -> Vec<String> {
    let mut equals: BTreeMap<(Tier, u16), Vec<&str>> = BTreeMap::new();
    for object in objects {
        if let Object::Policy(policy) = object
            && policy.tier != Tier::Standard
        {
            let names = equals.entry((policy.tier, policy.priority)).or_default();
            names.push(&policy.metadata.name);
        }
    }
    equals
        .into_iter()
        .filter(|(_, names)| names.len() > 1)
        .map(|((tier, priority), mut names)| {
            names.sort_unstable();
            format!(
                "in tier {}, {} have priority {priority}: Kubernetes promises no order between them; here it is this one",
                tier.name(),
                names.join(", "),
            )
        })
        .collect()
}

/// Removes the Mode that import added where the files bring their own of that name.
pub(crate) fn settle(objects: &mut Vec<Object>) {
    if objects.iter().filter(|object| is_mode(object)).count() < 2 {
        return;
    }
    objects.retain(|object| !is_mode(object) || object.place().line > 0);
}

fn is_mode(object: &Object) -> bool {
    matches!(object, Object::Mode(mode) if mode.metadata.name == MODE_NAME)
}

/// What no policy speaks about is allowed to pods.
fn mode() -> ModeObject {
    ModeObject {
        metadata: Metadata {
            name: MODE_NAME.to_owned(),
            description: Some(
                "Kubernetes allows a pod what no policy speaks about; added by import".to_owned(),
            ),
            ..Metadata::default()
        },
        subject: pods(Selector::default()),
        default_action: Some(DefaultAction::Allow),
        place: Place::default(),
        ..ModeObject::default()
    }
}

/// The key of the label that every namespace has.
fn namespace_name_key() -> String {
    format!("{NAMESPACE_PREFIX}{NAMESPACE_NAME_LABEL}")
}

/// The pods among what a selector matches.
fn pods(mut selector: Selector) -> Selector {
    let key = namespace_name_key();
    let asks = selector.match_labels.contains_key(&key)
        || selector.match_expressions.iter().any(|expression| {
            expression.key == key && matches!(expression.operator, Operator::In | Operator::Exists)
        });
    if !asks {
        selector.match_expressions.push(Expression {
            key,
            operator: Operator::Exists,
            values: Vec::new(),
        });
    }
    selector
}

/// The nodes among what a selector matches.
fn nodes(mut selector: Selector) -> Selector {
    selector
        .match_labels
        .insert(NODE_LABEL.to_owned(), NODE.to_owned());
    // A pod may carry any label that its owner likes.
    selector.match_expressions.push(Expression {
        key: namespace_name_key(),
        operator: Operator::DoesNotExist,
        values: Vec::new(),
    });
    selector
}

/// Both selectors in one.
fn both(mut left: Selector, right: Selector) -> Selector {
    left.match_labels.extend(right.match_labels);
    left.match_expressions.extend(right.match_expressions);
    left
}

/// The pods of one namespace.
fn namespace(name: &str) -> Selector {
    Selector {
        match_labels: Labels::from([(namespace_name_key(), name.to_owned())]),
        match_expressions: Vec::new(),
    }
}

/// A policy of a tier, with what every imported one has.
fn policy(tier: Tier, priority: u16) -> Policy {
    Policy {
        tier,
        priority,
        ..Policy::default()
    }
}
